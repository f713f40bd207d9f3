"""Every command of the README and of docs/ does what is said, on a machine without a network.

Training commands are parsed and set up, for data of their kind that is not here; all others run, on a tiny
run that stands where theirs does.
"""

import dataclasses
import importlib
import json
import re
import shlex
import shutil

import jax
import pytest
from commands import call
from paths import ROOT
from PIL import Image

import vit_jax
from vit_jax.cli import embed, main, train
from vit_jax.data import sources
from vit_jax.errors import UserError
from vit_jax.run.setup import set_up

pytestmark = pytest.mark.usefixtures("optax_dtypes")

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = re.compile(r"(?:python train\.py|python -m vit_jax\.cli\.\w+|vit_jax (?!COMMAND)\w+)[^&;\"#]*")
# Beginnings of lines of a shell without a command of ours, and who tries them.
NOT_OURS = {
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[test]' && pytest": ".ci/run, whole",
    "deploy/": "tests/run/test_deploy.py",
    "sbatch ": "tests/run/test_deploy.py",
    "gcloud ": "nobody: there is no cloud here",
    "export ": "nobody: there is no cloud here",
    "until SPOT=1 deploy/": "nobody: there is no cloud here",
    "pip install ": "nobody: packages are downloaded",
    "ln -s ": "nobody: links what pip installed",
    "python benchmarks/records.py ": "tests/config/test_results.py, of runs of a minute",
    "tfds build ": "nobody: it wants TensorFlow and ImageNet",
}
# Commands that need what is not here, and which is left of them.
UNTRIED = {
    "python -m vit_jax.cli.convert augreg/B_16-384 b16_folder --dialect huggingface": "downloads the weights",
    "python -m vit_jax.cli.evaluate gs://BUCKET/b16": "reads a bucket",
    "python -m vit_jax.cli.info timm/vit_tiny_patch16_224.augreg_in21k": "downloads the weights",
    "python -m vit_jax.cli.embed facebook/dinov3-vits16-pretrain-lvd1689m@main photos --out features.npz": (
        "downloads the weights"
    ),
}
PHOTOS = (2000, 10)  # examples and classes of a folder of photographs


def documented():
    """(page, command) of each line in a block for the shell, and of commands in the text."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S):
            for line in filter(str.strip, block.replace("\\\n", " ").splitlines()):
                commands = [part.strip() for part in COMMAND.findall(line.replace("$i", "0"))]
                assert commands or line.strip().startswith(tuple(NOT_OURS)), (page.name, line)
                found += [(page.name, command) for command in commands]
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        inline = (" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose))
        found += [(page.name, command) for command in inline if COMMAND.fullmatch(command)]
    return list(dict.fromkeys(found))


def as_module(command):
    """(module of vit_jax.cli, its arguments)."""
    words = shlex.split(command)
    if words[0] == "vit_jax":
        return words[1], words[2:]
    return ("train", words[2:]) if words[1] == "train.py" else (words[2].rpartition(".")[2], words[3:])


COMMANDS = documented()
TRAINING = [pair for pair in COMMANDS if as_module(pair[1])[0] == "train"]
OTHERS = [pair for pair in COMMANDS if pair not in TRAINING]


@pytest.fixture(scope="module")
def features(tmp_path_factory, workdir):
    """What embed makes of cat.jpg."""
    path = tmp_path_factory.mktemp("features") / "features.npz"
    about = {"ref": "runs/pets", "image_size": 8, "layer": -1, "pool": "model"}
    embed.write(path, ["cat.jpg"], vit_jax.load(workdir).features([Image.new("L", (8, 8), 90)]), about)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch, workdir, features):
    """A folder in which the commands find what they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in (
        "runs/quickstart",
        "runs/again",
        "runs/pets",
        "runs/mine",
        "runs/fashion",
        "runs/flexi",
        "runs/tags",
        "runs/textile",
        "runs/tuned",
        "REF",
        "OTHER",
    ):
        shutil.copytree(workdir, tmp_path / name)
    for i in range(200):
        path = tmp_path / "photos" / str(i % 10) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * (i % 10) + i % 7).save(path)
    shutil.copy(features, tmp_path)
    (tmp_path / "textile").symlink_to(tmp_path / "photos")
    for name in ("digit.png", "cat.jpg"):
        Image.new("L", (8, 8), 90).save(tmp_path / name)
    return tmp_path


def no_network(*arguments):
    raise UserError("no network")


def test_there_are_commands_of_every_kind():
    kinds = {as_module(command)[0] for _, command in COMMANDS}
    assert kinds == set(main.COMMANDS)
    assert UNTRIED.keys() <= {command for _, command in COMMANDS}


@pytest.mark.long
@pytest.mark.parametrize(("page", "command"), TRAINING)
def test_a_documented_training_command_is_set_up(place, one_device, capsys, page, command):
    _, words = as_module(command)
    if "--help" in words:
        with pytest.raises(SystemExit) as ended:
            train.parse(words)
        assert ended.value.code == 0
        assert "--config.optim.warmup_steps" in capsys.readouterr().out
        return
    _, _, (cfg,) = train.parse(words)
    two_blocks = dataclasses.replace(cfg.model, depth=min(cfg.model.depth, 2))  # more are slow to trace
    cfg = dataclasses.replace(cfg, model=two_blocks)
    sizes = sources.PUBLISHED.get(cfg.data.name, PHOTOS)
    data = sources.open_splits(cfg.data) if cfg.data.name == "digits" else sources.absent(*sizes)
    setup = set_up(cfg, one_device, data)
    assert setup.steps > 0
    jax.eval_shape(setup.step, setup.forms.packed, setup.batch_like(), None)


@pytest.mark.long
@pytest.mark.parametrize(("page", "command"), OTHERS)
def test_a_documented_command_does_what_is_said(place, monkeypatch, capsys, page, command):
    name, words = as_module(command)
    module = importlib.import_module(f"vit_jax.cli.{name}")
    if command in UNTRIED:
        for name_of_read in ("vit_jax.loaded.read", "vit_jax.weights.load.read"):
            monkeypatch.setattr(name_of_read, no_network)
    if name == "demo":  # on a port that is free, and no longer than it takes to begin
        words += ["--port", "0"]
        monkeypatch.setattr(module.Server, "serve_forever", lambda server: None)
    if "--help" in words:
        with pytest.raises(SystemExit) as ended:
            call(monkeypatch, capsys, module, *words)
        assert ended.value.code == 0
        return
    code, out, err = call(monkeypatch, capsys, module, *words)
    if command in UNTRIED:
        assert (code, err) == (2, ["error: no network"])
        return
    assert code == 0, err
    assert out
    for option in ("--out", "--confusion"):
        if option in words:
            assert (place / words[words.index(option) + 1]).stat().st_size
    if "--json" in words:
        assert json.loads(out)
