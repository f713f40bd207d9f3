"""The site: `pip install -e '.[docs]' && sphinx-build -W --keep-going -j 2 docs docs/_build/html`.

Pages are plain markdown, readable where the code is hosted; those in notebooks/ are run while it is
built.
"""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for site_tables.py

# What notebooks inherit: CPUs, the commands of this environment, and one cache of compiled programs.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE / "_build" / "programs"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["PYTHONWARNINGS"] = (
    "ignore:os.fork:RuntimeWarning"  # of "!command", which replaces the fork at once
)

project, author = "vit_jax", "the authors of vit_jax"
version = release = version_of("vit_jax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "site_tables"]
exclude_patterns = ["_build"]

nb_execution_mode = "force"
nb_execution_in_temp = True  # runs and pictures stay out of the checkout
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, of a slow machine
nb_merge_streams = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3  # links to headings, as on code forges

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
nitpicky = False  # types of jax and numpy are named, not linked

html_theme = "furo"
html_title = "vit_jax"
html_copy_source = False
html_show_sphinx = False
linkcheck_ignore = [r"https?://(?!localhost)"]  # only links within the site are checked
