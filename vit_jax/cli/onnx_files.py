"""A function of images as an ONNX file, by jax2onnx, and back, by onnxruntime: the extra onnx."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax.errors import UserError, first_line
from vit_jax.models.kernels import plain_forms


def write(ref: str, logits: Callable[[Any], Any], shape: tuple[int, ...]) -> bytes:
    """`logits` of uint8 images [b, *shape] for any b. Raises UserError for what cannot be converted."""
    logging.disable(logging.ERROR)  # what the converter says of plugins for packages that are not here
    try:
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports] - an extra

        with plain_forms():  # it knows no `platform_dependent`, nor does a file know where it will run
            made = to_onnx(logits, [jax.ShapeDtypeStruct(("b", *shape), np.uint8)])
        return made.SerializeToString()
    except Exception as error:  # whatever a converter of many operations raises
        raise UserError(
            f"{ref} cannot be written as ONNX by jax2onnx ({first_line(error)}): "
            "name the file .stablehlo instead"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def read(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """The function of images in a file, as onnxruntime computes it on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports] - an extra

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda image_bhwc: np.asarray(session.run(None, {session.get_inputs()[0].name: image_bhwc})[0])
