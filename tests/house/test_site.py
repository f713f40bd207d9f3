"""The site: its tables are those of the code, and it builds without a warning or a dead link."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from paths import ROOT

from vit_jax.fields import leaves
from vit_jax.sections import Config

needs_sphinx = pytest.mark.skipif(find_spec("myst_nb") is None, reason="needs the extra docs")


@pytest.fixture
def site_tables(monkeypatch):
    """The module of the site's directives."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return __import__("site_tables")


@needs_sphinx
def test_sizes_of_models_are_those_that_others_published(site_tables):
    # Parameters with 1000 classes: models_test.py of the official code. GMACs: timm's, to its two digits.
    for variant, parameters, gmacs in (("Ti/16", 5_717_416, 1.26), ("S/16", 22_050_664, 4.6)):
        counted, macs = site_tables.size(variant, 224, 1000)
        assert counted == parameters
        assert macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert site_tables.size("R26+S/32", 224, 1000)[0] == 36_431_912
    assert site_tables.size("Mixer-B/16", 224, 1000)[0] == 59_880_472


@needs_sphinx
def test_every_field_of_a_config_is_on_its_page(site_tables):
    page = (ROOT / "docs" / "fields.md").read_text()
    sections = {name.rpartition(".")[0] for name in leaves(Config)}
    for section in sections:
        assert f"```{{config-fields}} {section or 'config'}\n" in page
    rows = "\n".join(site_tables.config_fields(section) for section in sections)
    assert all(f"| `{name}` |" in rows for name in leaves(Config))


@pytest.mark.slow
@needs_sphinx
@pytest.mark.parametrize("builder", ["html", "linkcheck"])
def test_the_site_builds_without_a_warning_or_a_dead_link(tmp_path, builder):
    """Without its notebooks, which CI executes: links to other hosts are not asked."""
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder]
    off = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer"]
    done = subprocess.run([*build, *off, ROOT / "docs", tmp_path / builder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
