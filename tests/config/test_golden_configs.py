"""What each config file means, as a stored text: its fields, its steps, and one row for each parameter.

A change of a recipe, a default, a parameter's name or shape, or of what decays or is split, shows as a diff
of these texts. After an intended change, renew them and review the diff:

    pytest -n 0 -m '' tests/config/test_golden_configs.py --golden-update
"""

import difflib
import re
from pathlib import Path

import jax
import pytest
from config_files import RECIPES, parse
from paths import GOLDEN

from vit_jax import fields, sections
from vit_jax.data import sources
from vit_jax.models import build
from vit_jax.training import mesh as meshes
from vit_jax.training import optim, tables

TEXTS = GOLDEN / "configs"
# Training examples, classes.
DATA = {**sources.PUBLISHED, "digits": (1_438, 10), "folder": (2_000, 10)}
RENEW = "if intended, renew it: pytest -n 0 -m '' tests/config/test_golden_configs.py --golden-update"
MOST_LINES = 90  # of a text, so that a person reviews it


def name_of(path, arg):
    return f"{path.stem}.{Path(arg).stem}.txt" if arg else f"{path.stem}.txt"


def describe(path, arg):
    """The whole text of a recipe. Shapes only: no array is made."""
    cfg = parse(path, arg)
    examples, classes = DATA[cfg.data.name]
    model = build.build(cfg.model, classes=classes)
    options = {"image_hw": cfg.model.image_hw, "channels": cfg.data.channels}
    params = jax.eval_shape(lambda: build.init(model, jax.random.key(0), **options))
    mesh = meshes.make("cpu", 4)
    size, steps = cfg.train.batch_size, cfg.train.steps
    steps = optim.total_steps(steps, cfg.train.epochs, examples, size)
    return "\n".join(
        [
            *changed(cfg),
            "",
            f"steps: {steps} of {size} examples, from the {examples} of {cfg.data.name}",
            f"parameters: {build.count(params)} with {classes} classes",
            f"sharding: on {meshes.describe(mesh)}",
            "",
            *aligned(rows(described(params, cfg.optim, mesh))),
            "",
        ]
    )


def changed(cfg):
    """One line for each field that differs from its default; the defaults have a text of their own."""
    values = {name: value_of(cfg, name) for name in fields.leaves(sections.Config)}
    return [f"{name} = {values[name]!r}" for name, default in defaults().items() if values[name] != default]


def defaults():
    return {name: f.default for name, f in sorted(fields.leaves(sections.Config).items())}


def value_of(cfg, name):
    for part in name.split("."):
        cfg = getattr(cfg, part)
    return cfg


def described(params, cfg, mesh):
    """A tree like `params` of (shape, dtype, decays, trained, learning-rate scale, sharding) as words."""

    def words(x, decays, trained, scale, sharding):
        spec = ",".join(axis or "-" for axis in sharding.spec) or "whole"
        chosen = ("decays" if decays and cfg.weight_decay else "-", "trained" if trained else "frozen")
        return "x".join(map(str, x.shape)), str(x.dtype), *chosen, f"lr*{scale:g}", spec

    named = (tables.decayed(params, cfg), tables.trained(params, cfg))
    scales = tables.layer_scales(params, cfg.layer_decay)
    return jax.tree.map(words, params, *named, scales, meshes.shardings(params, mesh))


def rows(tree, path=""):
    """[path, *words] of each leaf. Siblings with equal rows share them: block_{0..11}/norm1/{bias,scale}."""
    if not isinstance(tree, dict):
        return [[path, *tree]]
    alike = {}
    for name in sorted(tree, key=natural):
        alike.setdefault(str(below := rows(tree[name])), (below, []))[1].append(name)
    return [
        ["/".join(filter(None, (label(names), row[0]))), *row[1:]]
        for found, names in alike.values()
        for row in found
    ]


def label(names):
    if len(names) == 1:
        return names[0]
    stems, numbers = zip(*(re.fullmatch(r"(.*?)(\d*)", name).groups() for name in names), strict=True)
    first, last = numbers[0], numbers[-1]
    if len(set(stems)) == 1 and first and len(names) == int(last) - int(first) + 1:
        return f"{stems[0]}{{{first}..{last}}}"
    return f"{{{','.join(names)}}}"


def natural(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def aligned(table):
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(word.ljust(w) for word, w in zip(row, widths, strict=True)).rstrip() for row in table]


def compare(name, text, *, update):
    """Fail with a diff unless `text` is the stored one; with `update`, store it."""
    path = TEXTS / name
    if update:
        path.write_text(text)
    stored = path.read_text() if path.is_file() else ""
    if text != stored:
        lines = difflib.unified_diff(
            stored.splitlines(), text.splitlines(), f"stored {name}", f"now {name}", n=1, lineterm=""
        )
        pytest.fail("\n".join([*lines, RENEW]), pytrace=False)


@pytest.fixture
def update(request):
    return request.config.getoption("--golden-update")


@pytest.mark.long
@pytest.mark.parametrize(("path", "arg"), RECIPES, ids=lambda x: getattr(x, "stem", x))
def test_a_config_file_means_what_its_text_says(path, arg, update):
    text = describe(path, arg)
    assert len(text.splitlines()) <= MOST_LINES
    compare(name_of(path, arg), text, update=update)


def test_the_defaults_are_those_of_their_text(update):
    compare("defaults.txt", "".join(f"{k} = {v!r}\n" for k, v in defaults().items()), update=update)


def test_every_text_belongs_to_a_config_file():
    wanted = {name_of(*recipe) for recipe in RECIPES} | {"defaults.txt"}
    assert {p.name for p in TEXTS.iterdir()} == wanted


def test_a_changed_recipe_shows_as_a_diff():
    stored = (TEXTS / "vit_b16.txt").read_text()
    changed = stored.replace("optim.lr", "optim.learning_rate").replace("optim.weight_decay = 0.1\n", "")
    with pytest.raises(pytest.fail.Exception) as e:
        compare("vit_b16.txt", changed, update=False)
    assert "\n-optim.weight_decay = 0.1\n" in str(e.value)


def test_equal_blocks_are_one_row_and_others_their_own():
    block = {"bias": ("3",), "scale": ("3",), "kernel": ("3x4",)}
    tree = {f"block_{i}": block for i in range(12)} | {"block_12": block | {"bias": ("5",)}, "head": ("2",)}
    assert rows(tree) == [
        ["block_{0..11}/{bias,scale}", "3"],
        ["block_{0..11}/kernel", "3x4"],
        ["block_12/bias", "5"],
        ["block_12/kernel", "3x4"],
        ["block_12/scale", "3"],
        ["head", "2"],
    ]
