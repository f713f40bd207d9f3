"""Configurations in and out: config files, the command line, plain dicts.

`default()` is the tree that config files start from, `parse` turns the edited tree into the frozen classes
of vit_jax.sections, `override` applies one `section.field=value` of the command line. Imports neither jax
nor flax.
"""

import dataclasses
import importlib.util
import operator
import sys
import types
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax import fields
from vit_jax.fields import fail
from vit_jax.sections import Config, Data, Preprocess, Spec

# Fields that older runs stored in another section.
MOVED = {"model.scan": "train.scan", "model.remat": "train.remat"}

# What older runs did where a field was not there yet, if that is not its default: by data.name.
BEFORE = {"folder": {"held_out": "by_file"}}


def default() -> Any:
    """The tree of all fields at their defaults, a ConfigDict for config files to edit."""
    tree = ConfigDict(type_safe=False)
    for name, f in fields.leaves(Config).items():
        _set(tree, name, f.default)
    return tree


def load_file(reference: str) -> ConfigDict:
    """Run `get_config(arg)` of `path/file.py` or `path/file.py:arg`. Raises UserError if there is none.

    An installed package brings its `configs/`, a checkout has them beside it: they are found where the
    working directory has no such file.
    """
    path, _, arg = reference.partition(":")
    places = (Path(path), *(folder / path for folder in Path(__file__).parents[:2]))
    path = next((place for place in places if place.is_file()), Path(path))
    spec = importlib.util.spec_from_file_location("vit_jax_config_file", path)
    if not path.is_file():
        fail(f"--config={reference}: no config file at {path}: try configs/quickstart.py")
    if spec is None or spec.loader is None:
        fail(f"--config={reference}: {path} is no Python file: try configs/quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        fail(f"--config={reference}: {path} has no get_config(arg) that returns a ConfigDict")
    return module.get_config(arg)


def from_command_line(reference: str, arguments: list[str]) -> Config:
    """The config of a file with `--config.section.field=value` arguments applied. Raises UserError."""
    return _apply(load_file(reference), arguments)


def apply(cfg: Config, arguments: list[str]) -> Config:
    """`cfg` with `--config.section.field=value` arguments applied. Raises UserError."""
    return _apply(ConfigDict(to_dict(cfg), type_safe=False), arguments)


def _apply(tree: ConfigDict, arguments: list[str]) -> Config:
    for argument in arguments:
        prefix, dot, assignment = argument.partition(".")
        if prefix != "--config" or not dot:
            fail(f"unknown argument {argument}: fields are set by --config.section.field=value")
        override(tree, assignment)
    return parse(tree)


def override(tree: ConfigDict, assignment: str) -> None:
    """Apply `section.field=text` to `tree`, reading the text as the field's type. Raises UserError."""
    name, equals, text = assignment.partition("=")
    if not equals:
        fail(f"{name}: no value given: write {name}=VALUE")
    _set(tree, name, fields.read(Config, name, text))


def parse(tree: ConfigDict | dict[str, Any]) -> Config:
    """Check `tree` whole and freeze it. Raises UserError for an unknown field or a bad value."""
    return fields.build(Config, tree.to_dict() if isinstance(tree, ConfigDict) else tree)


def parse_stored(tree: dict[str, Any]) -> Config:
    """The config that a run stored, by this version or an older one. Raises UserError as `parse` does."""
    tree = _moved(tree)
    if isinstance(data := tree.get("data"), dict):
        tree["data"] = BEFORE.get(data.get("name", ""), {}) | data
    return parse(tree)


def override_data(data: Data, arguments: list[str]) -> Data:
    """`data` with `--data.field=value` arguments applied. Raises UserError."""
    tree = dataclasses.asdict(data)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not name.startswith("--data.") or not equals:
            fail(f"unknown argument {argument}: data fields are set by --data.field=value")
        tree[name.removeprefix("--data.")] = fields.read(Config, name.removeprefix("--"), text)
    return fields.build(Data, tree)


def preprocess_of(data: Data) -> Preprocess:
    """The part of `data` that travels with a checkpoint."""
    return Preprocess(**{f.name: getattr(data, f.name) for f in dataclasses.fields(Preprocess)})


def parse_spec(tree: dict[str, Any]) -> Spec:
    """The Spec that a run stored, by this version or an older one. Raises UserError as `parse` does."""
    tree = {name: value for name, value in _moved(tree).items() if name != "train"}
    return fields.build(Spec, tree)


def to_dict(cfg: Config | Spec) -> dict[str, Any]:
    """Nested plain dict; `parse(to_dict(cfg)) == cfg`, also after a trip through JSON."""
    return dataclasses.asdict(cfg)


def differences(old: Config, new: Config) -> list[str]:
    """One `field: old -> new` per changed field."""
    pairs = [(name, *map(operator.attrgetter(name), (old, new))) for name in fields.leaves(Config)]
    return [f"{name}: {a!r} -> {b!r}" for name, a, b in pairs if a != b]


def _moved(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with the fields of MOVED in their present sections."""
    tree = {name: dict(part) if isinstance(part, dict) else part for name, part in tree.items()}
    for old, new in MOVED.items():
        (was, field), (now, _) = old.split("."), new.split(".")
        if isinstance(part := tree.get(was), dict) and field in part:
            tree.setdefault(now, {})[field] = part.pop(field)
    return tree


def _set(tree: Any, name: str, value: Any) -> None:
    part, _, rest = name.partition(".")
    if not rest:
        tree[part] = value
    else:
        if part not in tree:
            tree[part] = ConfigDict(type_safe=False)
        _set(tree[part], rest, value)


class _Callable(types.ModuleType):
    """One name for `from vit_jax import config`, as config files say, and `vit_jax.config(FILE, {...})`."""

    def __call__(self, reference: str | Path, overrides: dict[str, Any] | None = None) -> Config:
        """The config of a file with {"section.field": value} applied. Raises UserError."""
        tree = load_file(str(reference))
        for name, value in (overrides or {}).items():
            _set(tree, name, value)
        return parse(tree)


sys.modules[__name__].__class__ = _Callable
