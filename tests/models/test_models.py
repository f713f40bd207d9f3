"""What the modules compute, and how many parameters they have."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import one_by_default
from small_models import BEIT, DINOV3, HYBRID, MIXER, SMALL, shapes

from vit_jax.errors import UserError
from vit_jax.models import build, layers, variants
from vit_jax.sections import Model
from vit_jax.weights import layout, save

# Of the official code's models_test.py, with 1000 classes at 224 pixels.
COUNTS = {
    "Ti/16": 5_717_416,
    "S/16": 22_050_664,
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "B/8": 86_576_872,
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "H/14": 632_045_800,
    "R+Ti/16": 6_337_704,
    "R26+S/32": 36_431_912,
    "R26+B/32": 101_383_976,
    "R50+B/16": 98_659_112,
    "R50+L/32": 328_994_856,
    "Mixer-B/16": 59_880_472,
    "Mixer-B/32": 60_293_428,
    "Mixer-L/16": 208_196_168,
}


def fresh(cfg: Model, seed: int = 0) -> Any:
    """Random parameters without the zeros that hide things, made by numpy."""
    rng = np.random.default_rng(seed)
    params: dict[str, Any] = {}
    for name, shape in layout.shapes(cfg).items():
        *parents, leaf = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(rng.normal(0, 0.2, shape).astype(np.float32))
    return params


def run(cfg: Model, params: Any, *, scan: bool = False, **kwargs: Any) -> Any:
    images_bhwc = jnp.asarray(np.random.default_rng(1).normal(size=(2, *cfg.image_hw, 3)).astype(np.float32))
    model = build.build(cfg, scan=scan)
    apply = jax.jit(lambda params, images_bhwc: model.apply({"params": params}, images_bhwc, **kwargs))
    return apply(params, images_bhwc)


@pytest.mark.parametrize("name", one_by_default(variants.PUBLISHED))
def test_a_published_variant_has_the_published_number_of_parameters(name):
    cfg = Model(**variants.model(name), classes=1000)
    assert sum(int(np.prod(shape)) for shape in layout.shapes(cfg).values()) == COUNTS[name]
    two_blocks = dataclasses.replace(cfg, depth=2)
    assert layout.shapes(two_blocks) == shapes(two_blocks)


def test_an_unknown_variant_is_refused():
    for name in ("R50+B/32", "Q/16", "Mixer-Ti/16", "B"):
        with pytest.raises(UserError, match="no variant"):
            variants.model(name)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"pooling": "map", "pre_logits": 9, "qk_norm": True, "mlp": "swiglu"},
        {"class_token": False, "pooling": "gap", "registers": 3, "posemb": "none"},
        {"distill_token": True, "layer_scale": 0.1, "image_size": (32, 64)},
        {"distill_token": True, "posemb_class_slot": False},
        {"distill_token": True, "distill_head": False, "qkv_bias": "query_value", "mlp_norm": True},
        {
            "embed_norm": True,
            "patch_bias": False,
            "final_norm": "pooled",
            "qkv_bias": "none",
            "pooling": "gap",
        },
        {"pooling": "map", "pool_heads": 1, "pool_mlp_width": 12, "attention_norm": True},
        {"pooling": "token_gap", "final_norm": "none"},
        {"pre_logits": 9, "pre_logits_form": "linear"},
        BEIT,
        BEIT | {"image_size": (32, 64)},
        HYBRID,
        HYBRID | {"stem_blocks": ()},
        MIXER,
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_tells_the_modules_names_and_shapes_and_back(extra, channels):
    cfg = Model(**(SMALL | extra))
    by_name = shapes(cfg, channels)
    assert layout.shapes(cfg, channels=channels) == by_name
    told = layout.infer(
        by_name, absent_posemb="none", class_slot=cfg.posemb_class_slot, stored_hw=cfg.image_hw, image_hw=None
    )
    same = {"layer_scale": cfg.layer_scale, "image_size": cfg.image_size}
    assert dataclasses.replace(told, **same) == cfg
    assert layout.channels(by_name) == channels


def test_distillation_trains_both_heads_and_answers_with_their_mean():
    cfg = Model(**SMALL, distill_token=True)
    params = fresh(cfg)
    logits_bc, distill_bc = run(cfg, params, train=True)
    np.testing.assert_allclose(run(cfg, params), (logits_bc + distill_bc) / 2, rtol=1e-6)
    assert float(jnp.abs(logits_bc - distill_bc).max()) > 1e-2


def test_registers_are_not_pooled_and_have_no_position():
    cfg = Model(**SMALL, class_token=False, pooling="gap", registers=3)
    params = fresh(cfg)
    for i in range(cfg.depth):  # without branches every token goes its own way
        for layer in (params[f"block_{i}"]["attention"]["out"], params[f"block_{i}"]["mlp"]["down"]):
            layer |= {k: jnp.zeros_like(v) for k, v in layer.items()}
    without = dataclasses.replace(cfg, registers=0)
    embed = {k: v for k, v in params["embed"].items() if k != "registers"}
    # The same numbers are summed in the same order.
    np.testing.assert_array_equal(run(cfg, params), run(without, params | {"embed": embed}))


def test_layer_scale_of_one_changes_nothing_and_of_zero_removes_the_branch():
    cfg = Model(**SMALL, layer_scale=0.1)
    params, plain = fresh(cfg), dataclasses.replace(cfg, layer_scale=0.0)
    stripped = {k: {n: x for n, x in v.items() if "scale" not in n or k == "norm"} for k, v in params.items()}
    for value, wanted in ((1.0, run(plain, stripped)), (0.0, None)):
        for i in range(cfg.depth):
            params[f"block_{i}"] |= {f"scale{n}": {"gamma": jnp.full(cfg.width, value)} for n in (1, 2)}
        if wanted is not None:
            np.testing.assert_array_equal(run(cfg, params), wanted)
    empty = {k: jax.tree.map(jnp.zeros_like, v) if "block" in k else v for k, v in stripped.items()}
    np.testing.assert_array_equal(run(cfg, params), run(plain, empty))


def test_qk_norm_bounds_the_attention_logits():
    cfg = Model(**SMALL, qk_norm=True)
    params = fresh(cfg)
    louder = jax.tree.map(lambda x: x, params)
    for i in range(cfg.depth):
        for part in ("query", "key"):
            louder[f"block_{i}"]["attention"][part] = jax.tree.map(
                lambda x: x * 64, louder[f"block_{i}"]["attention"][part]
            )
    # A power of two changes no mantissa; what is left is the epsilon of the norm.
    np.testing.assert_allclose(run(cfg, louder), run(cfg, params), rtol=1e-3, atol=1e-4)


def test_swiglu_is_its_formula():
    cfg = Model(**SMALL, mlp="swiglu")
    p = fresh(cfg)["block_0"]["mlp"]
    x_bnd = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, cfg.width)).astype(np.float32))
    got = layers.Mlp(cfg, cfg.mlp_width).apply({"params": p}, x_bnd, train=False)
    p = jax.tree.map(np.float64, p)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]
    gate = dense("gate", np.float64(x_bnd))
    wanted = dense("down", gate / (1 + np.exp(-gate)) * dense("up", np.float64(x_bnd)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)  # float32 sums of 40 products of order one


@pytest.mark.parametrize("base", [SMALL, MIXER, DINOV3, BEIT], ids=["vit", "mixer", "dinov3", "beit"])
@pytest.mark.parametrize(
    "change", one_by_default([{"scan": True}, {"remat": "full"}, {"scan": True, "remat": "dots"}])
)
def test_scan_and_remat_change_neither_answers_nor_gradients(base, change):
    cfg = Model(**base)
    params = fresh(cfg)
    images_bhwc = jnp.asarray(np.random.default_rng(1).normal(size=(2, *cfg.image_hw, 3)).astype(np.float32))

    def gradient(**form):
        loss = lambda p: build.build(cfg, **form).apply({"params": p}, images_bhwc, train=True).sum()
        return jax.jit(jax.value_and_grad(loss))(params)

    # The same operations, fused otherwise; gradients are of order 100.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), gradient(), gradient(**change)
    )
    init = lambda **form: build.init(
        build.build(cfg, **form), jax.random.key(0), image_hw=cfg.image_hw, channels=3
    )
    assert jax.eval_shape(init) == jax.eval_shape(lambda: init(**change))


@pytest.mark.parametrize(
    "change", one_by_default([{}, {"distill_token": True}, {"registers": 2, "layer_scale": 0.1}])
)
def test_the_last_block_computes_no_token_that_no_head_reads(change):
    cfg = Model(**SMALL | {"depth": 3} | change)
    params, model = fresh(cfg), build.build(cfg)
    images_bhwc = jnp.asarray(np.random.default_rng(1).normal(size=(2, *cfg.image_hw, 3)).astype(np.float32))
    apply = lambda p, **kwargs: model.apply({"params": p}, images_bhwc, **kwargs)
    whole, state = apply(params, mutable=["intermediates"], capture_intermediates=True)
    # The same sums over the same numbers, in products of other shapes.
    np.testing.assert_allclose(apply(params), whole, rtol=1e-5, atol=1e-6)
    flops = lambda **kwargs: jax.jit(lambda p: apply(p, **kwargs)).lower(params).cost_analysis()["flops"]
    block = 2 * 2 * (cfg.grid_hw[0] * cfg.grid_hw[1]) * cfg.width * (2 * cfg.width + 2 * cfg.mlp_width)
    assert flops() < flops(mutable=["intermediates"]) - 0.8 * block
    assert state["intermediates"]["block_2"]["__call__"][0].shape[1] > cfg.grid_hw[0] * cfg.grid_hw[1]


def test_a_scan_drops_at_the_rates_of_each_layer():
    cfg = Model(**SMALL | {"depth": 3, "stochastic_depth": 0.5, "dtype": "bfloat16"})
    params = fresh(cfg)
    draw = lambda i: run(cfg, params, scan=True, train=True, rngs={"dropout": jax.random.key(i)})
    np.testing.assert_array_equal(draw(0), draw(0))
    assert len({float(draw(i)[0, 0]) for i in range(6)}) > 2


@pytest.mark.parametrize("base", [HYBRID, MIXER], ids=["hybrid", "mixer"])
def test_bfloat16_computes_the_same_within_its_precision(base):
    cfg = Model(**base)
    params = fresh(cfg)
    wanted = run(cfg, params)
    got = run(dataclasses.replace(cfg, dtype="bfloat16"), params)
    assert got.dtype == jnp.float32
    # 8 bits of mantissa through about ten layers.
    assert float(jnp.abs(got - wanted).max()) < 0.1 * float(jnp.abs(wanted).max())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            HYBRID | {"image_size": 60},
            "image_size=60 is not a multiple of patch times stem stride=8: use 56 or 64",
        ),
        (HYBRID | {"stem_width": 48}, "stem_width=48"),
        (SMALL | {"stem_blocks": (1,)}, "stem_blocks"),
        (MIXER | {"heads": 3}, "heads=3 has no meaning for model.family=mixer: use 1"),
        (MIXER | {"token_width": 0}, "token_width"),
        (SMALL | {"token_width": 3}, "token_width=3 is for model.family=mixer"),
        (SMALL | {"distill_token": True, "pooling": "map"}, "distill_token"),
        (SMALL | {"registers": -1}, "registers"),
        (BEIT | {"registers": 2}, "relative_bias=True is for a class token and patches alone"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Model(**fields)


def test_flatten_takes_jax_arrays():
    flat = save.flatten({"a": {"b": jnp.ones(2, jnp.bfloat16)}})
    assert flat["a/b"].dtype == np.float32


def test_training_traces_blocks_that_are_alike_once_and_drops_other_features_in_each():
    cfg = Model(**SMALL | {"depth": 4, "dropout": 0.5})
    params, traced = fresh(cfg), []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, layers.Block) and context.method_name == "__call__":
            traced.append(context.module.name)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        _, state = build.build(cfg).apply(
            {"params": params},
            jnp.ones((2, *cfg.image_hw, 3)),
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "Dropout_0",
        )
    assert traced == ["block_0"]  # the last is like the others where intermediates are kept
    blocks = [state["intermediates"][f"block_{i}"] for i in range(cfg.depth)]
    dropped = [np.asarray(block["mlp"]["Dropout_0"]["__call__"][0]) == 0 for block in blocks]
    for i in range(1, cfg.depth):
        assert 0.3 < (dropped[0] != dropped[i]).mean() < 0.7  # masks that share nothing differ in half
