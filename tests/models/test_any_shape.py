"""One set of parameters at any grid of patches: the numbers of weights that were loaded for that size."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from marks import one_by_default

from vit_jax.errors import UserError
from vit_jax.models import build, posemb
from vit_jax.sections import Model, Preprocess
from vit_jax.weights import adapt
from vit_jax.weights.adapt import Weights
from vit_jax.weights.report import Report

# Of the largest logit: positions are resized in float32 here and in float64 on loading, a rounding apart.
RELATIVE = 1e-6
SIZES = [(32, 32), (24, 40), (48, 16)]
TINY = Model(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_width=32, classes=3)
NO_TOKEN = {"class_token": False, "pooling": "gap"}
FORMS: dict[str, dict[str, Any]] = {
    **{f"learned, {m}": {"posemb_method": m} for m in posemb.WEIGHTS},
    "learned, patches alone": {"posemb_class_slot": False, "registers": 2},
    "learned, two tokens": {"distill_token": True},
    "oblong": {"image_size": (16, 40), **NO_TOKEN},
    "sine": {"posemb": "sincos2d", **NO_TOKEN},
    **{form: {"posemb": "none", "rotary": form} for form in ("dinov3", "pe", "rope_vit")},
    "both": {"rotary": "eva02", "rotary_grid": 4, "posemb_method": "bicubic"},
}


def weights(**fields) -> Weights:
    cfg = dataclasses.replace(TINY, **fields)
    params = build.init(build.build(cfg), jax.random.key(0), image_hw=cfg.image_hw, channels=3)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return Weights(cfg, jax.device_get(structure.unflatten(noisy)), (), Preprocess(), Report("", "", 0))


def images(height: int, width: int) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (2, height, width, 3))


def logits(cfg: Model, params, size_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(jax.jit(build.build(cfg).apply)({"params": params}, images(*size_hw)))


@pytest.mark.parametrize("form", one_by_default(FORMS))
def test_a_model_at_another_size_is_the_one_loaded_for_it(form):
    own = weights(**FORMS[form])
    for size_hw in SIZES:
        loaded = adapt.resize(own, size_hw)
        wanted = logits(loaded.model, loaded.params, size_hw)
        atol = RELATIVE * np.abs(wanted).max()
        np.testing.assert_allclose(logits(own.model, own.params, size_hw), wanted, rtol=0, atol=atol)
    assert len({logits(own.model, own.params, hw).tobytes() for hw in SIZES}) == len(SIZES)


@pytest.mark.long
@pytest.mark.parametrize("train", [{}, {"scan": True}, {"remat": "full"}], ids=str)
def test_gradients_at_another_size_reach_the_stored_positions(train):
    own = weights(posemb_method="bicubic")
    loaded = adapt.resize(own, (48, 16))

    def gradients(of: Weights):
        model = build.build(of.model, **train)
        loss = lambda p: (model.apply({"params": p}, images(48, 16), train=True) ** 2).sum()
        return flatten_dict(jax.device_get(jax.jit(jax.grad(loss))(of.params)), sep="/")

    got, wanted = gradients(own), gradients(loaded)
    # The transpose of the resize, which is linear: what it makes of each stored position alone.
    slots, stored = 1, 16
    eye_nd = np.eye(slots + stored, dtype=np.float32)[None]
    matrix_mn = posemb.resize(eye_nd, (4, 4), (6, 2), method="bicubic", slots=slots)[0]
    wanted["embed/positions"] = matrix_mn.T @ wanted["embed/positions"]
    for name, gradient in got.items():
        # Sums over 26 tokens in another order.
        np.testing.assert_allclose(gradient, wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_fresh_parameters_have_the_stored_grid_whatever_image_they_are_made_from():
    model = build.build(TINY)
    shapes = [
        jax.eval_shape(lambda hw=hw: build.init(model, jax.random.key(0), image_hw=hw, channels=3))
        for hw in SIZES
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0]["embed"]["positions"].shape == (1, 17, 16)


@pytest.mark.parametrize(("h", "w"), [(32, 36), (4, 32), (0, 8)])
def test_pixels_that_make_no_whole_patches_are_refused(h, w):
    with pytest.raises(UserError, match=f"images of {h}x{w} pixels are not whole patches of 8"):
        build.build(TINY).apply({"params": weights().params}, jnp.zeros((1, h, w, 3)))


def test_a_mixer_is_told_its_one_size():
    sizes = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "mlp_width": 32, "token_width": 8}
    cfg = Model(family="mixer", **sizes, heads=1, classes=2, posemb="none", **NO_TOKEN)
    params = build.init(build.build(cfg), jax.random.key(0), image_hw=(32, 32), channels=3)
    with pytest.raises(UserError, match="a Mixer of 4x4 patches takes no images of 3x5: give 32 pixels"):
        build.build(cfg).apply({"params": params}, images(24, 40))
