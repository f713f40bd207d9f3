"""The vitals are what their names say, the same for layers written out and scanned, of every family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.data.loader import Batch
from vit_jax.models import build, vitals
from vit_jax.models.stack import stack
from vit_jax.sections import Model, Optim, Preprocess, Train
from vit_jax.training import health, optim
from vit_jax.training.step import Recipe, init_state, train_step

pytestmark = pytest.mark.usefixtures("optax_dtypes")
VIT = Model(
    image_size=8,
    patch_size=4,
    width=16,
    depth=3,
    heads=2,
    mlp_width=32,
    classes=10,
    layer_scale=0.1,
    qk_norm=True,
)
SGD = Optim(name="sgd")
PLAIN = {"qk_norm": False, "layer_scale": 0.0, "heads": 1, "class_token": False, "pooling": "gap"}
MIXER = dataclasses.replace(VIT, **PLAIN, family="mixer", token_width=8, posemb="none")
HYBRID = dataclasses.replace(VIT, image_size=32, patch_size=1, stem_width=32, stem_blocks=(1,), depth=2)


def measured(model, *, scan=False, remat="none", parts=2, own=SGD, change=lambda params: params):
    """The flat vitals of a fresh model on random images, with the recipe, state and batch."""
    net = build.build(model, scan=scan, remat=remat)
    train = Train(steps=9, batch_size=8)
    recipe = Recipe(
        model=net,
        optimizer=optim.make(own, 9),
        preprocess=Preprocess(channels=1),
        seed=0,
        train=train,
        optim=own,
    )
    options = {"image_hw": model.image_hw, "channels": 1}
    params = jax.jit(lambda key: build.init(net, key, **options))(jax.random.key(0))
    head = params["head"] | {"kernel": jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)}
    params = change(params | {"head": head})
    state = jax.jit(lambda p: init_state(stack(p) if scan else p, recipe.optimizer))(params)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, *model.image_hw, 1), np.uint8)
    batch = Batch(image, rng.integers(0, 10, 8).astype(np.int32), np.ones(8, np.float32))
    found = jax.jit(lambda state, batch: health.measure(state, batch, recipe=recipe, parts=parts))(
        state, batch
    )
    return health.flat(jax.device_get(found)), recipe, state, batch


@pytest.mark.long
@pytest.mark.parametrize("model", [dataclasses.replace(VIT, pooling="gap"), MIXER], ids=["vit", "mixer"])
def test_scanned_layers_have_the_vitals_of_those_written_out(model):
    plain, *_ = measured(model)
    scanned, *_ = measured(model, scan=True, remat="full")
    assert plain.keys() == scanned.keys()
    of_blocks = {quantity for quantity, part in plain if part == "block_2"}
    attention = {"attention_logit", "attention_entropy", "dead_scales"} if model is not MIXER else set()
    assert of_blocks == {"grad_norm", "update_ratio", "dormant_units"} | attention
    for name, value in plain.items():  # float32 sums in another order
        np.testing.assert_allclose(scanned[name], value, rtol=1e-4, atol=1e-6, err_msg=str(name))


@pytest.mark.slow
def test_norms_and_ratios_are_those_of_the_gradient_of_the_part_and_of_the_next_step():
    """With all examples measured, the update is the one that the step makes."""
    own = Optim(lr=1e-2, clip_norm=0.1, weight_decay=0.1)  # AdamW
    found, recipe, state, batch = measured(VIT, parts=1, own=own)
    stepped = jax.jit(lambda state, batch: train_step(state, batch, recipe=recipe))(state, batch)
    moved = jax.tree.map(jnp.subtract, stepped.params, state.params)
    for part in state.params:
        norm = lambda tree, part=part: float(optax.tree.norm(tree[part]))
        # The step's parameters are rounded to float32 before they are subtracted.
        ratio = norm(moved) / norm(state.params)
        assert found["update_ratio", part] == pytest.approx(ratio, rel=1e-3)
    assert found["grad_norm", "head"] > 0
    assert {part for quantity, part in found if quantity == "grad_norm"} == state.params.keys()


@pytest.mark.long
def test_what_is_not_to_be_trained_is_not_measured():
    found, *_ = measured(VIT, own=Optim(frozen=("^embed", "^block_0/mlp")))
    parts = {part for quantity, part in found if quantity == "update_ratio"}
    assert parts == {"block_0", "block_1", "block_2", "norm", "head"}
    only, *_ = measured(VIT, own=Optim(trained=("^head",)))
    assert {part for quantity, part in only if quantity == "grad_norm"} == {"head"}


@pytest.mark.slow
def test_a_hybrid_has_the_vitals_of_its_blocks_and_its_stem_is_in_embed():
    found, *_ = measured(HYBRID)
    assert ("attention_logit", "block_1") in found
    assert found["grad_norm", "embed"] > 0


def test_a_block_behind_a_factor_of_zero_has_no_gradient_and_dead_scales():
    zero = lambda block: block | {"scale1": {"gamma": jnp.zeros(16)}, "scale2": {"gamma": jnp.zeros(16)}}
    cut = lambda params: params | {"block_1": zero(params["block_1"])}
    found, *_ = measured(VIT, own=Optim(frozen=("scale",)), change=cut)
    assert found["grad_norm", "block_1"] == 0
    assert found["dead_scales", "block_1"] == 1
    assert found["dead_scales", "block_0"] == 0
    assert found["grad_norm", "block_0"] > 0


def test_units_that_are_off_for_all_tokens_are_dormant():
    def shut(params):
        up = params["block_2"]["mlp"]["up"]
        bias = up["bias"].at[:24].set(-30.0)
        mlp = params["block_2"]["mlp"] | {"up": up | {"bias": bias}}
        return params | {"block_2": params["block_2"] | {"mlp": mlp}}

    found, *_ = measured(VIT, change=shut)
    assert found["dormant_units", "block_2"] == pytest.approx(24 / 32)
    assert found["dormant_units", "block_0"] == 0


def test_entropy_and_the_largest_logit_are_what_they_are_by_hand():
    uniform = jnp.full((1, 1, 2, 4), 0.25)
    assert float(vitals.entropy(uniform)) == pytest.approx(1.0)
    assert float(vitals.entropy(jnp.eye(4)[None, None])) == 0.0
    assert float(vitals.entropy(jnp.ones((1, 1, 1, 1)))) == 1.0
    q, k = jnp.array([[[[3.0, 0, 0, 0]]]]), jnp.array([[[[1.0, 9, 9, 9]], [[-8.0, 0, 0, 0]]]])
    assert float(vitals.largest_logit(q, k)) == 12.0  # |3 * -8| / sqrt 4


@pytest.mark.slow  # what it clears, all tests after it would compile again
def test_a_program_that_does_not_ask_has_no_trace_of_it():
    """The step is the same to the letter as without models/vitals.py."""
    _, recipe, state, batch = measured(VIT)
    lower = lambda: jax.jit(lambda s, b: train_step(s, b, recipe=recipe)).lower(state, batch).as_text()
    own = lower()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vitals, "sow", lambda module, **quantities: None)
        patch.setattr(vitals, "wanted", lambda module: False)
        jax.clear_caches()
        assert lower() == own


@pytest.mark.parametrize(
    ("batch_size", "devices", "micro_batches", "parts"),
    [
        (64, 1, 1, 8),
        (64, 8, 1, 8),
        (32, 8, 1, 4),
        (8, 8, 1, 1),
        (60, 1, 1, 6),
        (64, 1, 16, 16),
        (48, 2, 3, 6),
    ],
)
def test_a_part_is_an_eighth_or_what_devices_and_micro_batches_leave(
    batch_size, devices, micro_batches, parts
):
    assert health.parts_of(batch_size, devices=devices, micro_batches=micro_batches) == parts
