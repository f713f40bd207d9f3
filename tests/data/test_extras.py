"""What the default install leaves out is asked for in one line, before anything is computed."""

import sys

import pytest
from commands import call
from PIL import Image

from vit_jax import sections
from vit_jax.cli import embed
from vit_jax.data import sources
from vit_jax.errors import UserError
from vit_jax.extras import need


@pytest.fixture
def default_install(monkeypatch):
    """Imports of what the extras bring fail."""
    for name in [*sys.modules, "pyarrow", "pyarrow.parquet", "tensorflow_datasets"]:
        if name.split(".")[0] in ("pyarrow", "tensorflow_datasets"):
            monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("default_install")
def test_data_of_an_extra_names_it(tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").touch()
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for name, place, message in (
        ("parquet", tmp_path, r"needs pyarrow: pip install 'vit_jax\[parquet\]'"),
        ("cifar10", tmp_path, r"=cifar10 needs tensorflow_datasets: pip install 'vit_jax\[tfds\]'"),
    ):
        with pytest.raises(UserError, match=message):
            sources.open_split(sections.Data(name=name, dir=str(place)), train=True)
    with pytest.raises(UserError, match=r"data\.name=cifar 10 is not a data set"):
        sources.open_split(sections.Data(name="cifar 10"), train=True)


@pytest.mark.usefixtures("default_install")
def test_embed_asks_before_it_computes(tmp_path, monkeypatch, capsys):
    out = tmp_path / "features.parquet"
    code, _, err = call(monkeypatch, capsys, embed, "nothing", "cat.jpg", "--out", str(out))
    assert (code, err) == (2, [f"error: --out={out} needs pyarrow: pip install 'vit_jax[parquet]'"])


def test_a_module_that_is_there_is_returned():
    assert need("json", "none", "this") is sys.modules["json"]
    assert need("json.decoder", "none", "this") is sys.modules["json.decoder"]


def test_a_mistake_of_ours_is_not_taken_for_a_missing_package():
    with pytest.raises(ModuleNotFoundError, match=r"json\.no_such"):
        need("json.no_such", "none", "this")
