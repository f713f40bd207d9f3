"""Typed fields with bounds: read a tree of frozen dataclasses from dicts or text, check it, and list it."""

import dataclasses
import difflib
import math
import re
import typing
from types import UnionType
from typing import Any, Literal

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The numbers that a field takes; of a tuple, each of its numbers. `hint` ends the error message."""

    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    hint: str = ""

    def admit(self, value: float) -> bool:
        """Whether `value` is within the bounds; nan never is."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    def __str__(self) -> str:
        low = f"[{self.least}" if self.above is None else f"({self.above}"
        high = f"{self.most}]" if self.below is None else f"{self.below})"
        if self.below is None and self.most is None:
            return f"above {self.above}" if self.least is None else f"at least {self.least}"
        return f"in {low}, {high}"


def field(
    default: Any,
    meaning: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    hint: str = "",
    pattern: bool = False,
    **roles: Any,
) -> Any:
    """A dataclass field: its default, one line on what it means, and its bounds.

    A `pattern` is a tuple of regular expressions. `with_role` finds the fields of a role.
    """
    bounded = any(bound is not None for bound in (least, above, below, most))
    bounds = Bounds(least, above, below, most, hint) if bounded else None
    facts = {"meaning": meaning, "bounds": bounds, "pattern": pattern, "roles": roles}
    return dataclasses.field(default=default, metadata=facts)


def rate(meaning: str, default: float = 0.0, **roles: Any) -> Any:
    """A number in [0, 1)."""
    return field(default, meaning, least=0, below=1, **roles)


def share(default: float, meaning: str, *, hint: str = "") -> Any:
    """A number in (0, 1]."""
    return field(default, meaning, above=0, most=1, hint=hint)


def with_role(kind: type, role: str) -> dict[str, Any]:
    """{field name: the role's value} of the fields of `kind` that have it."""
    roles = {f.name: f.metadata["roles"] for f in dataclasses.fields(kind)}
    return {name: has[role] for name, has in roles.items() if role in has}


def section(kind: type) -> Any:
    """A dataclass field that is itself a dataclass, at its defaults."""
    return dataclasses.field(default_factory=kind)


def fail(message: str, *, command: str = "") -> typing.NoReturn:
    """Raise UserError; `command` is what a command says instead."""
    raise UserError(message, command=command)


def at_least(name: str, value: float | tuple[float, ...], least: float) -> None:
    """Raise UserError unless value >= least, and so is each number of a tuple."""
    _check_bounds(name, value, Bounds(least=least))


def check(section: Any, name: str) -> None:
    """Raise UserError unless every field of `section`, called `name`, is within its bounds."""
    for f in dataclasses.fields(section):
        value, full = getattr(section, f.name), f"{name}.{f.name}" if name else f.name
        if not f.metadata:  # a section of its own
            continue
        if f.metadata["bounds"]:
            _check_bounds(full, value, f.metadata["bounds"])
        if f.metadata["pattern"]:
            _check_patterns(full, value)


def _check_bounds(name: str, value: float | tuple[float, ...], bounds: Bounds) -> None:
    if all(bounds.admit(number) for number in (value if isinstance(value, tuple) else (value,))):
        return
    wrong = "is not" if str(bounds).startswith("in ") else "must be"
    fail(f"{name}={value} {wrong} {bounds}{bounds.hint and f': {bounds.hint}'}")


def _check_patterns(name: str, values: tuple[str, ...]) -> None:
    for value in values:
        try:
            re.compile(value)
        except re.error as e:
            fail(f"{name}={value} is not a regular expression: {e}")


def leaves(root: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """{"model.width": its field, ...} of a dataclass of dataclasses, in source order."""
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
    if body[:1] + body[-1:] in ("()", "[]"):  # both: a pattern may begin or end with one
        body = body[1:-1]
    values = tuple(_word(word.strip()) for word in body.split(",") if word.strip())
    if not body and not (isinstance(hint, UnionType) or typing.get_origin(hint) is tuple):
        fail(f"{name}= is {_wanted(hint)}: give a value")
    many = len(values) != 1 or typing.get_origin(hint) is tuple
    return _check(name, values if many else values[0], hint)


def describe(root: type) -> str:
    """Two lines per field: name, default and choices or bounds; meaning."""
    lines = []
    for name, f in leaves(root).items():
        limits = f"  [{'|'.join(map(str, typing.get_args(f.type)))}]" if _is_literal(f.type) else ""
        if f.metadata["bounds"]:
            limits = f"  ({f.metadata['bounds']})"
        lines.append(f"  --config.{name}={f.default}{limits}\n      {f.metadata['meaning']}")
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
    hint = f"did you mean {near[0]}?" if near else "vit_jax train --help lists them all"
    return f"config has no field {name}: {hint}"


def _check(name: str, value: Any, hint: Any) -> Any:
    """`value` as type `hint`: ints become floats, JSON's lists tuples; nothing else is converted."""
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


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether one of a field's regular expressions is found in `name`."""
    return any(re.search(pattern, name) for pattern in patterns)


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
    if isinstance(hint, UnionType):
        return " or ".join(map(_wanted, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_wanted(typing.get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names[hint] if hint in names else str(hint)
