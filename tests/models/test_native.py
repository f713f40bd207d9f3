"""Images of several aspects in one array of patches have the numbers of each alone, whatever the padding."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from marks import one_by_default

from vit_jax.errors import UserError
from vit_jax.models import build, posemb
from vit_jax.models.attend import attend_real, attended, attended_on_cpu
from vit_jax.models.kernels import plain_forms
from vit_jax.patches import Native, Patches, cut, joined
from vit_jax.sections import MIXER_ONLY, Model

P = 4
TINY = Model(image_size=16, patch_size=P, width=16, depth=2, heads=2, mlp_width=32, classes=3)
NO_TOKEN = {"class_token": False, "pooling": "gap"}
FORMS: dict[str, dict[str, Any]] = {
    **{f"learned, {m}": {"posemb_method": m} for m in posemb.WEIGHTS},
    "learned, patches alone": {"posemb_class_slot": False, "registers": 2, "pooling": "token_gap"},
    "learned, two tokens": {"distill_token": True},
    "oblong": {"image_size": (8, 20), **NO_TOKEN},
    "attention pooling": {"class_token": False, "pooling": "map", "registers": 1},
    "sine": {"posemb": "sincos2d", **NO_TOKEN},
    **{form: {"posemb": "none", "rotary": form} for form in ("dinov3", "pe", "rope_vit")},
    "both": {"rotary": "eva02", "rotary_grid": 4, "posemb_method": "bicubic"},
    "large head": {"norm_eps": 1e-3, "final_norm": "pooled", "layer_scale": 0.5, **NO_TOKEN},
}
GRIDS = [(4, 4), (2, 5), (1, 3), (5, 1)]  # of TINY's own size first
# Of the largest logit: sums of other lengths, and weights in float32 that for one grid are made in float64.
RELATIVE = 2e-6


def parameters(cfg: Model) -> Any:
    init = functools.partial(build.init, build.build(cfg), image_hw=cfg.image_hw, channels=3)
    params = jax.jit(init)(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        [x + 0.3 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    )


def images(grids=GRIDS) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=(y * P, x * P, 3)).astype(np.float32) for y, x in grids]


def patches(images_hwc, tokens: int, padding: float = 0.0) -> Patches:
    pixels = np.full((len(images_hwc), tokens, P, P, 3), padding, np.float32)
    grid = np.zeros((len(images_hwc), 2), np.int32)
    for i, image in enumerate(images_hwc):
        made = cut(image, P)
        pixels[i, : len(made)], grid[i] = made, np.array(image.shape[:2]) // P
    return Patches(pixels, grid)


def close(made, wanted):
    np.testing.assert_allclose(made, wanted, rtol=0, atol=RELATIVE * np.abs(wanted).max())


@pytest.mark.parametrize("form", one_by_default(FORMS))
def test_each_image_has_the_numbers_that_it_has_alone(form):
    cfg = dataclasses.replace(TINY, **FORMS[form])
    model, params = build.build(cfg), parameters(cfg)
    apply = jax.jit(lambda x: model.apply({"params": params}, x))
    made = np.asarray(apply(patches(images(), 20)))
    for i, image in enumerate(images()):
        close(made[i], np.asarray(apply(image[None]))[0])
    assert np.ptp(made, axis=0).max() > 0.01  # images differ


@pytest.mark.long
@pytest.mark.parametrize("form", ["learned, patches alone", "attention pooling", "large head", "dinov3"])
@pytest.mark.parametrize("how", [{}, {"scan": True}, {"remat": "full"}], ids=str)
def test_padding_changes_no_number_and_no_gradient(form, how):
    cfg = dataclasses.replace(TINY, **FORMS[form])
    model, params = build.build(cfg, **how), parameters(cfg)

    @jax.jit
    def loss(params, given):
        logits_bc = model.apply({"params": params}, given, train=True)
        return jnp.square(logits_bc[: len(GRIDS)]).mean(), logits_bc

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, wanted), gradient = run(params, patches(images(), 16))
    # More padding, of wild values, and a row without an image.
    more = patches([*images(), np.zeros((0, 0, 3), np.float32)], 23, padding=1e3)
    (_, made), again = run(params, more)
    assert np.isfinite(made).all()
    # Softmax sums over more keys, of which the padding's are 0, in another order: a few roundings of float32.
    np.testing.assert_allclose(made[:-1], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    # Sums over rows of padding, which are 0, in another order, through two blocks and back.
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    for name, x in flatten_dict(gradient, sep="/").items():
        np.testing.assert_allclose(flatten_dict(again, sep="/")[name], x, rtol=0, atol=4e-6 * largest)


def test_attention_to_real_keys_is_that_to_them_alone():
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=(2, n, 2, 7)).astype(np.float32) for n in (3, 5, 5)]
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, 2, 7), (2, 2, 3, 5))]
    real_bm = np.array([[True] * 3 + [False] * 2, [True] * 5])

    def shortened(q, k, v):
        y, p = attended(q[:1], k[:1, :3], v[:1, :3])
        whole = attended(q[1:], k[1:], v[1:])
        return jnp.concatenate([y, whole[0]]), jnp.concatenate(
            [jnp.pad(p, [(0, 0)] * 3 + [(0, 2)]), whole[1]]
        )

    wanted, back = jax.vjp(shortened, *arrays)
    derivatives = back(tuple(weights))
    masked = lambda *x: attend_real(*x, real_bm)
    made, back = jax.vjp(masked, *arrays)
    with plain_forms():
        plain = masked(*arrays)
    for form in (made, plain, attended_on_cpu(*arrays, real_bm), attended(*arrays, real_bm)):
        assert not np.any(form[1][0, :, :, 3:])
        for a, b in zip(form, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # sums of seven products of order one
    for a, b in zip(back(tuple(weights)), derivatives, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-6)  # sums of such sums


def test_patches_of_another_size_come_from_the_same_parameters():
    params = parameters(TINY)
    image = np.random.default_rng(4).normal(size=(16, 24, 3)).astype(np.float32)
    model = build.build(TINY).clone(patch_size=8)
    given = Patches(cut(image, 8)[None], np.array([[2, 3]], np.int32))
    close(model.apply({"params": params}, given), model.apply({"params": params}, image[None]))
    with pytest.raises(UserError, match="patches of 8x8 pixels are not those of 4 that the model takes"):
        build.build(TINY).apply({"params": params}, given)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (MIXER_ONLY | {"family": "mixer", "token_width": 8}, "model.family=mixer"),
        ({"patch_size": 1, "stem_width": 32}, "model.stem_width=32"),
    ],
)
def test_models_of_one_grid_say_so(fields, why):
    cfg = dataclasses.replace(TINY, **fields)
    with pytest.raises(UserError, match=f"{why} takes no images of their own aspect: give it images of one"):
        jax.eval_shape(build.build(cfg).init, jax.random.key(0), patches(images(), 20))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((100, 100), (64, 64)), ((7, 7), (64, 64)), ((480, 640), (56, 72)), ((10, 4000), (4, 1024))],
)
def test_an_image_is_resized_to_whole_patches_at_most_so_many(size, wanted):
    native = Native(4, 256)
    assert native.fit(*size) == wanted
    assert native.fit(*size[::-1]) == native.fit(*size)[::-1]


def test_an_image_is_put_together_again():
    for row, image in enumerate(images()):
        np.testing.assert_array_equal(joined(patches(images(), 20), row), image)
