"""The command `vit_jax`: its subcommands, and the wheel that brings it and the config files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from vit_jax.cli import main
from vit_jax.data import sources
from vit_jax.errors import UserError


def test_every_module_with_a_main_is_a_command():
    modules = {p.stem for p in (ROOT / "vit_jax" / "cli").glob("*.py") if "\ndef main(" in p.read_text()}
    assert set(main.COMMANDS) == modules - {"main"}


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_all_are_listed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vit_jax", *arguments])
    assert main.main() == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in main.COMMANDS)


def test_an_unknown_command_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vit_jax", "trian"])
    with pytest.raises(UserError, match="vit_jax has no command 'trian': use train, predict"):
        main.main()


@pytest.mark.slow
def test_the_wheel_of_the_sdist_trains_and_is_used_from_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")  # made of the sdist
    assert list(tmp_path.glob("*.tar.gz"))
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    empty.mkdir()
    env = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    call = lambda *arguments: subprocess.run(
        [sys.executable, str(site / "bin" / "vit_jax"), *arguments],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    fields = ("--config.train.epochs=2", "--config.optim.warmup_steps=5")
    trained = call("train", "--config", "configs/quickstart.py", "--workdir", "run", *fields)
    assert trained.returncode == 0, trained.stderr
    assert "done: top-1" in trained.stdout
    told = json.loads(call("info", "run", "--json").stdout)
    assert (told["training"]["train"]["epochs"], told["model"]["classes"]) == (2.0, 10)
    image = empty / "digit.png"
    Image.fromarray(sources.digits(train=False).get(0)[0][..., 0]).save(image)
    seen = json.loads(call("predict", "run", image, "--top", "1", "--json").stdout)
    assert seen["predictions"][0]["class"] in "0123456789"
    embedded = call("embed", "run", image, "--out", "features.npz")
    assert embedded.returncode == 0, embedded.stderr
    assert np.load(empty / "features.npz")["features"].shape == (1, told["model"]["width"])
    large = call("train", "--config", "configs/vit_b16.py:finetune", "--workdir", "b16", "--config.zzz=1")
    assert (large.returncode, large.stderr) == (
        2,
        "error: config has no field zzz: vit_jax train --help lists them all\n",
    )
    assert {p.name for p in empty.iterdir()} == {"run", "digit.png", "features.npz"}
