"""Typed fields: how a tree of frozen dataclasses is read from plain dicts or text, checked, and listed."""

import dataclasses
import difflib
import math
import re
import typing
from types import UnionType
from typing import Any, Literal

from vit_jax.errors import UserError


def field(default: Any, meaning: str) -> Any:
    """A dataclass field with its default and one line on what it means."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def section(kind: type) -> Any:
    """A dataclass field that is itself a dataclass, at its defaults."""
    return dataclasses.field(default_factory=kind)


def fail(message: str) -> typing.NoReturn:
    """Raise UserError."""
    raise UserError(message)


def at_least(name: str, value: float, least: float) -> None:
    """Raise UserError unless value >= least."""
    if not value >= least:
        fail(f"{name}={value} must be at least {least}")


def rate(name: str, value: float) -> None:
    """Raise UserError unless value is in [0, 1)."""
    if not 0 <= value < 1:
        fail(f"{name}={value} is not in [0, 1)")


def pattern(name: str, values: tuple[str, ...]) -> None:
    """Raise UserError unless each value is a regular expression."""
    for value in values:
        try:
            re.compile(value)
        except re.error as e:
            fail(f"{name}={value} is not a regular expression: {e}")


def leaves(root: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """{"model.width": its field, ...} of a dataclass of dataclasses, in the order they are written."""
    out: dict[str, dataclasses.Field[Any]] = {}
    for f in dataclasses.fields(root):
        nested = dataclasses.is_dataclass(f.type)
        out |= leaves(typing.cast(type, f.type), f"{prefix}{f.name}.") if nested else {prefix + f.name: f}
    return out


def build(root: type, tree: dict[str, Any]) -> Any:
    """`root` from a nested dict. Raises UserError for an unknown field, a wrong type or a bad value."""
    return _build(root, tree, "", list(leaves(root)))


def read(root: type, name: str, text: str) -> Any:
    """Text of the command line (3, 3e-4, true, a word, or values with commas) as the type of `name`."""
    known = leaves(root)
    if name not in known:
        fail(_unknown(name, list(known)))
    hint = known[name].type
    if hint is str:
        return text
    body = text.strip()
    if body[:1] + body[-1:] in ("()", "[]"):  # a pattern may begin or end with one
        body = body[1:-1]
    values = tuple(_word(word.strip()) for word in body.split(",") if word.strip())
    if not body and not (isinstance(hint, UnionType) or typing.get_origin(hint) is tuple):
        fail(f"{name}= is {_wanted(hint)}: give a value")
    many = len(values) != 1 or typing.get_origin(hint) is tuple
    return _check(name, values if many else values[0], hint)


def describe(root: type) -> str:
    """Two lines a field: name, default and choices; meaning."""
    lines = []
    for name, f in leaves(root).items():
        choices = f" [{'|'.join(map(str, typing.get_args(f.type)))}]" if _is_literal(f.type) else ""
        lines.append(f"  --config.{name}={f.default}{choices}\n      {f.metadata['meaning']}")
    return "\n".join(lines)


def _build(kind: type, tree: dict[str, Any], prefix: str, known: list[str]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for name, value in tree.items():
        if name not in fields:
            fail(_unknown(prefix + name, known))
        hint: Any = fields[name].type
        if not dataclasses.is_dataclass(hint):
            values[name] = _check(prefix + name, value, hint)
        elif isinstance(value, dict):
            values[name] = _build(typing.cast(type, hint), value, f"{prefix}{name}.", known)
        else:
            fail(f"{prefix}{name}={value!r} is not a section of fields")
    return kind(**values)


def _unknown(name: str, known: list[str]) -> str:
    same_leaf = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same_leaf or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "python train.py --help lists them all"
    return f"config has no field {name}: {hint}"


def _check(name: str, value: Any, hint: Any) -> Any:
    """`value` as `hint`: ints pass as floats, lists (of JSON) as tuples, nothing else is converted."""
    if _is_literal(hint):
        if value in typing.get_args(hint) and not isinstance(value, bool):
            return value
    elif isinstance(hint, UnionType):
        for option in typing.get_args(hint):
            try:
                return _check(name, value, option)
            except UserError:
                continue
    elif typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if isinstance(value, list | tuple) and (items[-1] is ... or len(items) == len(value)):
            return tuple(_check(name, v, items[0]) for v in value)
    elif hint is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is hint:
        return value
    fail(f"{name}={value!r} is not {_wanted(hint)}")


def _word(word: str) -> Any:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _wanted(hint: Any) -> str:
    if _is_literal(hint):
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names[hint] if hint in names else str(hint)
