"""Directives of the site whose tables are made from the code: config fields, published models, commands."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import math
import sys
import typing
from types import UnionType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from vit_jax import fields
from vit_jax.cli import main
from vit_jax.models import build, variants
from vit_jax.models.kernels import plain_forms
from vit_jax.sections import Config, Model
from vit_jax.weights import published

CAPTURED = ["intermediates"]  # with it the last block computes every token, as other counts have it
NESTED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters of an operation that hold the operations in it


def config_fields(section: str) -> str:
    """Markdown: a row for each field of a section, or of the root, with type, default, bounds and meaning."""
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, f in fields.leaves(Config).items():
        if name.rpartition(".")[0] == section:
            bounds = f" ({f.metadata['bounds']})" if f.metadata["bounds"] else ""
            default = f"`{f.default!r}`" if f.default != "" else "empty"
            meaning = f.metadata["meaning"].replace("|", "\\|")
            rows.append(f"| `{name}` | {_type(f.type)}{bounds} | {default} | {meaning} |")
    return "\n".join(rows)


def _type(hint: Any) -> str:
    """A type as a user would write it."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if isinstance(hint, UnionType):
        return " or ".join(map(_type, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        return f"list of {_type(inner[0])}" if inner[-1] is ... else f"{len(inner)} x {_type(inner[0])}"
    return {int: "integer", float: "number", bool: "true or false", str: "text"}[hint]


LICENCE = "Apache-2.0"  # of every publisher in the table
SOURCES = {"O": "[O]", "T": "[T]", "B": "[B]", "": ""}


def published_models() -> str:
    """Markdown: a row for each published checkpoint, parameters and multiply-adds counted from its model."""
    rows = [
        "| `REF` | model | px | classes | parameters (M) | GMACs | ImageNet top-1 | licence |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in published.TABLE.items():
        parameters, macs = size(row.variant, row.image_size, row.classes)
        top1 = f"{row.top1:.2f} {SOURCES[row.source]}" if row.top1 else ""
        counts = f"{parameters / 1e6:.1f} | {macs / 1e9:.2f}"
        what = f"`{name}` | {row.variant} | {row.image_size} | {row.classes:,}"
        rows.append(f"| {what} | {counts} | {top1} | {LICENCE} |")
    return "\n".join(rows)


@functools.cache
def size(variant: str, image_size: int, classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds of an image's products and convolutions. Nothing is computed."""
    cfg = Model(**variants.model(variant), image_size=image_size, classes=classes)
    one, two = (_count(dataclasses.replace(cfg, depth=depth)) for depth in (1, 2))
    parameters, macs = (a + (cfg.depth - 1) * (b - a) for a, b in zip(one, two, strict=True))
    return parameters, macs


def _count(cfg: Model) -> tuple[int, int]:
    model = build.build(cfg)
    image = jax.ShapeDtypeStruct((1, *cfg.image_hw, 3), jnp.float32)
    run = lambda params, x: model.apply({"params": params}, x, mutable=CAPTURED)
    with plain_forms():
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        program = jax.make_jaxpr(run)(params, image)
    return build.count(params), multiply_adds(program.jaxpr)


def multiply_adds(jaxpr: Any) -> int:
    """Of the products and convolutions in a program."""
    total = 0
    for op in jaxpr.eqns:
        if op.primitive.name == "dot_general":
            (contracted, _), _ = op.params["dimension_numbers"]
            shape = op.invars[0].aval.shape
            total += op.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif op.primitive.name == "conv_general_dilated":
            kernel, out = op.invars[1].aval, op.params["dimension_numbers"].rhs_spec[0]
            total += op.outvars[0].aval.size * kernel.size // kernel.shape[out]
        for inner in (op.params[name] for name in NESTED if name in op.params):
            total += multiply_adds(getattr(inner, "jaxpr", inner))
    return total


def command_help(name: str) -> str:
    """Markdown: what `vit_jax NAME --help` prints."""
    module, printed = importlib.import_module(f"vit_jax.cli.{name}"), io.StringIO()
    words = mock.patch.object(sys, "argv", [f"vit_jax {name}", "--help"])
    wide, ended = mock.patch.dict("os.environ", COLUMNS="100"), contextlib.suppress(SystemExit)
    with words, wide, ended, contextlib.redirect_stdout(printed):
        module.main()
    text = printed.getvalue().partition("\nfields:")[0].rstrip()
    return f"```text\n{text}\n```"


def commands() -> str:
    """Markdown: a section for each command."""
    return "\n\n".join(f"## {name}\n\n{command_help(name)}" for name in main.COMMANDS)


MADE = {
    "config-fields": config_fields,
    "published-models": published_models,
    "commands": commands,
}


class Made(SphinxDirective):
    """Markdown that a function of MADE writes, given the words after the directive's name."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """What the page gets in place of the directive."""
        make = MADE[self.name]
        words = self.arguments if inspect.signature(make).parameters else []
        if words == ["config"]:  # the root has no name of its own
            words = [""]
        return self.parse_text_to_nodes(make(*words), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    for name in MADE:
        app.add_directive(name, Made)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
