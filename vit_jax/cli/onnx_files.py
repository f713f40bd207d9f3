"""A function of images as an ONNX file, by jax2onnx, and back, by onnxruntime: the extra onnx."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, Literal

from vit_jax.errors import UserError

INLINED = {"custom_vjp_call": "call_jaxpr", "jit": "jaxpr"}  # primitives that call, and what holds their body


def write(ref: str, logits: Callable[[Any], Any], shape: tuple[int, ...]) -> bytes:
    """`logits` of uint8 images [b, *shape] for any b. Raises UserError for what cannot be converted."""
    logging.disable(logging.ERROR)  # what the converter says of plugins for packages that are not here
    try:
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports] - an extra

        return to_onnx(plain(logits), [jax.ShapeDtypeStruct(("b", *shape), np.uint8)]).SerializeToString()
    except Exception as error:  # whatever a converter of many operations raises
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{ref} cannot be written as ONNX by jax2onnx ({what}): name the file .stablehlo instead"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def read(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """The function of images in a file, as onnxruntime computes it on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports] - an extra

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda image_bhwc: np.asarray(session.run(None, {session.get_inputs()[0].name: image_bhwc})[0])


def plain(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of one array, in the default form wherever `models/` has one for each platform.

    The converter knows no `platform_dependent`, nor does a file of ONNX know where it will run.
    """

    def run(x: Any) -> Any:
        closed = jax.make_jaxpr(function)(x)
        return _evaluated(closed.jaxpr, closed.consts, [x])[0]

    return run


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The results of `jaxpr`, its operations one after another. A platform's number is an int of Python."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    value = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
    for eqn in jaxpr.eqns:
        given, name = list(map(value, eqn.invars)), eqn.primitive.name
        if name == "platform_index":
            made = [eqn.params["platforms"].index(None)]
        elif name == "cond" and isinstance(given[0], int):
            branch = eqn.params["branches"][given[0]]
            made = _evaluated(branch.jaxpr, branch.consts, given[1:])
        elif name in INLINED:
            body = eqn.params[INLINED[name]]
            made = _evaluated(body.jaxpr, body.consts, given)
        else:
            bound: Any = eqn.primitive.get_bind_params(eqn.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # by the version of jax
            made = eqn.primitive.bind(*functions, *given, **params)
            made = made if eqn.primitive.multiple_results else [made]
        known.update(zip(eqn.outvars, made, strict=True))
    return [value(atom) for atom in jaxpr.outvars]
