"""Optimizers against optax and numpy, schedules against their formulas, tables against names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.models import build, stack
from vit_jax.sections import Model, Optim
from vit_jax.training import optim, schedules, tables

TINY = Model(image_size=8, patch_size=4, width=16, depth=3, heads=2, mlp_width=32, classes=5)
STEPS = 20
pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture(scope="module")
def vit_params():
    return build.init(build.build(TINY), jax.random.key(0), image_hw=(8, 8), channels=3)


def matrices(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"dense": {"kernel": draw(40, 36), "bias": draw(36)}, "positions": draw(4)}


def follow(tx, params, steps=3):
    """Parameters after some updates with other gradients each time."""
    state = tx.init(params)
    for i in range(steps):
        updates, state = tx.update(matrices(i + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params


KERNELS = {"dense": {"kernel": True, "bias": False}, "positions": False}
REFERENCES = {
    "adamw": lambda lr: optax.adamw(lr, weight_decay=0.1, mask=KERNELS),
    "lion": lambda lr: optax.lion(lr, 0.9, 0.999, weight_decay=0.1, mask=KERNELS),
    "lamb": lambda lr: optax.lamb(lr, eps=1e-8, weight_decay=0.1, mask=KERNELS),
    "sgd": lambda lr: optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(0.1, KERNELS), optax.scale_by_learning_rate(lr)
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_optimizer_is_the_one_of_optax(name):
    cfg = Optim(name=name, lr=1e-2, weight_decay=0.1, warmup_steps=1)
    got = follow(optim.make(cfg, STEPS), matrices())
    wanted = follow(REFERENCES[name](schedules.make(cfg, STEPS)), matrices())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)  # same formulas


def test_sgd_equals_its_formula():
    cfg = Optim(name="sgd", lr=0.1, momentum=0.9, schedule="constant")
    tx = optim.make(cfg, 100)
    params = {"kernel": jnp.zeros(2)}
    state, velocity, wanted = tx.init(params), np.zeros(2), np.zeros(2)
    for i in range(3):
        grad = np.array([1.0, -2.0]) * (i + 1)
        updates, state = tx.update({"kernel": jnp.asarray(grad, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + grad
        wanted = wanted - 0.1 * velocity
    np.testing.assert_allclose(params["kernel"], wanted, rtol=1e-6)  # float32 against float64


def test_the_momentum_can_be_bfloat16():
    state = optim.make(Optim(name="sgd", momentum_dtype="bfloat16"), STEPS).init(matrices())
    assert {x.dtype.name for x in jax.tree.leaves(state) if x.ndim} == {"bfloat16"}
    got = follow(optim.make(Optim(name="sgd", lr=0.1, momentum_dtype="bfloat16"), STEPS), matrices())
    wanted = follow(optim.make(Optim(name="sgd", lr=0.1), STEPS), matrices())
    # 8 bits of mantissa in a momentum of order one, times the rate
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), got, wanted)


def adafactor_formula(params, steps):
    """big_vision's, in float64: factored over the two axes of a matrix, whole for what is small."""
    params = {k: np.float64(v) for k, v in params.items()}
    row, column = np.zeros(40), np.zeros(36)
    whole, momentum = np.zeros(36), {k: np.zeros_like(v) for k, v in params.items()}
    for i in range(steps):
        beta = min(0.999, 1 - (i + 1.0) ** -0.8)
        grads = {k: np.float64(v) for k, v in matrices(i + 1)["dense"].items()}
        squared = {k: g**2 + 1e-30 for k, g in grads.items()}
        row = beta * row + (1 - beta) * squared["kernel"].mean(axis=1)
        column = beta * column + (1 - beta) * squared["kernel"].mean(axis=0)
        whole = beta * whole + (1 - beta) * squared["bias"]
        v = {"kernel": np.outer(row / row.mean(), column), "bias": whole}
        for k in params:
            update = grads[k] / np.sqrt(v[k])
            update /= max(1.0, np.sqrt((update**2).mean()))
            momentum[k] = 0.9 * momentum[k] + 0.1 * update
            params[k] = params[k] - 0.01 * momentum[k]
    return params


def test_adafactor_is_the_one_of_big_vision():
    cfg = Optim(name="adafactor", lr=0.01, schedule="constant")
    got = follow(optim.make(cfg, STEPS), matrices())["dense"]
    wanted = adafactor_formula(matrices()["dense"], 3)
    for name in got:
        np.testing.assert_allclose(got[name], wanted[name], rtol=2e-5, atol=1e-6)  # float32 against float64


def muon_formula(x, grads, beta=0.9):
    """Nesterov momentum, five Newton-Schulz steps, RMS 0.2. arXiv:2502.16982 and optax's bias correction."""
    mean = np.zeros_like(x)
    for i, g in enumerate(grads):
        mean = beta * mean + (1 - beta) * g
        m = beta * mean / (1 - beta ** (i + 2)) + (1 - beta) * g / (1 - beta ** (i + 1))
        m = m / (np.linalg.norm(m) + 1e-8)
        wide = m if m.shape[0] <= m.shape[1] else m.T
        for _ in range(5):
            gram = wide @ wide.T
            wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * gram @ gram) @ wide
        m = wide if m.shape[0] <= m.shape[1] else wide.T
        x = x - 0.01 * 0.2 * np.sqrt(max(m.shape)) * m
    return x


def test_muon_turns_the_blocks_kernels_and_adamw_the_rest(vit_params):
    cfg = Optim(name="muon", lr=0.01, schedule="constant")
    tx, adam = optim.make(cfg, STEPS), optim.make(Optim(lr=0.01, schedule="constant"), STEPS)
    noise = lambda i: jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(i).normal(size=x.shape), jnp.float32), vit_params
    )
    grads = [noise(1), noise(2)]
    ends = []
    for rule in (tx, adam):
        params, state = vit_params, rule.init(vit_params)
        for g in grads:
            updates, state = jax.jit(rule.update)(g, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    muon, other = ends
    np.testing.assert_array_equal(muon["embed"]["patch"]["kernel"], other["embed"]["patch"]["kernel"])
    np.testing.assert_array_equal(muon["head"]["kernel"], other["head"]["kernel"])
    for path, shape in {"attention/query": (16, 16), "attention/out": (16, 16), "mlp/up": (16, 32)}.items():
        outer, inner = path.split("/")
        of = lambda tree, o=outer, i=inner, s=shape: np.float64(tree["block_1"][o][i]["kernel"]).reshape(s)
        wanted = muon_formula(of(vit_params), [of(g) for g in grads])
        np.testing.assert_allclose(of(muon), wanted, atol=1e-5)  # float32 products against float64


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "rsqrt"])
@pytest.mark.parametrize("cooldown", [0, 20])
def test_schedules_follow_their_formula(name, cooldown):
    cfg = Optim(lr=0.3, schedule=name, warmup_steps=10, cooldown_steps=cooldown, timescale_steps=7)
    n = np.arange(111)
    got = [float(schedules.make(cfg, 110)(step)) for step in n]
    t = np.clip((n - 10) / 100, 0, 1)
    decay = {
        "cosine": (1 + np.cos(np.pi * t)) / 2,
        "linear": 1 - t,
        "constant": np.ones(111),
        "rsqrt": np.sqrt(7 / (100 * t + 7)),
    }[name]
    cool = np.clip((110 - n) / cooldown, 0, 1) if cooldown else 1
    wanted = 0.3 * np.minimum(n / 10, 1) * decay * cool
    np.testing.assert_allclose(got, wanted, atol=1e-7)  # float32 against float64


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"warmup_steps=10 leaves nothing of the 10 steps.*warmup_steps=0.05"):
        optim.make(Optim(warmup_steps=10), 10)
    with pytest.raises(UserError, match=r"warmup_steps=5 and .*cooldown_steps=5 leave nothing of the 10"):
        optim.make(Optim(warmup_steps=5, cooldown_steps=5), 10)


def test_warmup_and_cooldown_below_one_are_shares_of_the_run():
    shares, steps = (
        Optim(warmup_steps=0.025, cooldown_steps=0.1),
        Optim(warmup_steps=500, cooldown_steps=2000),
    )
    at = np.arange(20_001)
    np.testing.assert_array_equal(*(schedules.make(cfg, 20_000)(at) for cfg in (shares, steps)))
    assert schedules.ramps(shares, 500) == (12, 50)
    assert schedules.ramps(Optim(warmup_steps=0.025), 10) == (0, 0)
    with pytest.raises(UserError, match=r"warmup_steps=10.5 is neither a whole number of steps nor a share"):
        Optim(warmup_steps=10.5)


def test_the_shares_of_recipes_are_the_steps_of_their_papers():
    for reference, steps in (("configs/vit_b16.py", 10_000), ("configs/vit_b16.py:finetune", 500)):
        cfg = config.parse(config.load_file(reference))
        length = optim.total_steps(cfg.train.steps, cfg.train.epochs, 1_281_167, cfg.train.batch_size)
        assert schedules.ramps(cfg.optim, length) == (steps, 0)


def updated(cfg, params):
    """One update with gradients of one."""
    tx = optim.make(cfg, STEPS)
    step = jax.jit(lambda params: tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0])
    return step(params)


def test_layer_decay_scales_each_layer_by_those_above_it(vit_params):
    cfg = Optim(name="sgd", lr=1.0, layer_decay=0.5, schedule="constant")
    got = updated(cfg, vit_params)
    wanted = {"embed": 1 / 16, "block_0": 1 / 8, "block_1": 1 / 4, "block_2": 1 / 2, "norm": 1.0, "head": 1.0}
    assert set(got) == {*wanted} | (set(got) & {"pool"})
    for part, scale in wanted.items():
        assert {float(-x.min()) for x in jax.tree.leaves(got[part])} == {scale}, part
    frozen = updated(
        Optim(name="sgd", lr=1.0, layer_decay=0.5, schedule="constant", frozen=("block_2",)), vit_params
    )
    assert float(-frozen["block_1"]["mlp"]["up"]["kernel"].min()) == 1 / 4


@pytest.mark.parametrize(
    ("fields", "moves"),
    [
        ({"trained": ("^head",)}, lambda name: name.startswith("head")),  # a linear probe
        ({"trained": ("bias$", "^head")}, lambda name: name.endswith("bias") or name.startswith("head")),
        ({"frozen": ("^embed", "block_0")}, lambda name: not name.startswith(("embed", "block_0"))),
    ],
)
def test_freezing_leaves_the_rest_as_it_is_and_without_state(vit_params, fields, moves):
    cfg = Optim(lr=1.0, weight_decay=0.1, clip_norm=1.0, **fields)
    got = updated(cfg, vit_params)
    tree = tables.by_name(lambda name: name, got)
    for name, update in zip(jax.tree.leaves(tree), jax.tree.leaves(got), strict=True):
        assert bool(jnp.any(update != 0)) == moves(name), name
    moving = [x.size for n, x in zip(jax.tree.leaves(tree), jax.tree.leaves(got), strict=True) if moves(n)]
    state = [x.size for x in jax.tree.leaves(optim.make(cfg, STEPS).init(vit_params)) if x.ndim]
    assert sum(state) == 2 * sum(moving)


def test_the_clipped_norm_is_that_of_the_trained(vit_params):
    cfg = Optim(name="sgd", lr=1.0, clip_norm=1.0, trained=("^head",), schedule="constant")
    assert float(optax.tree.norm(updated(cfg, vit_params))) == pytest.approx(1.0, rel=1e-6)


def test_decay_takes_the_named_parameters(vit_params):
    zero = jax.tree.map(jnp.zeros_like, vit_params)
    ones = jax.tree.map(jnp.ones_like, vit_params)
    for patterns in (("kernel$",), ("positions$", "mlp/.*bias$")):
        cfg = Optim(name="sgd", lr=1.0, weight_decay=0.25, decayed=patterns, schedule="constant")
        tx = optim.make(cfg, STEPS)
        got = tx.update(zero, tx.init(ones), ones)[0]
        wanted = tables.decayed(vit_params, cfg)
        jax.tree.map(lambda u, d: np.testing.assert_array_equal(u, -0.25 * d), got, wanted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decayed": ("kernels",)}, "optim.decayed=kernels matches no parameter"),
        ({"trained": ("haed",)}, "optim.trained=haed matches no parameter"),
        ({"frozen": (".",)}, "leave nothing to train"),
    ],
)
def test_patterns_without_a_match_are_refused(vit_params, fields, message):
    with pytest.raises(UserError, match=message):
        tables.check(Optim(**fields), vit_params)


def test_a_pattern_that_is_no_expression_is_refused():
    with pytest.raises(UserError, match=r"optim.frozen=\( is not a regular expression"):
        Optim(frozen=("(",))


def test_every_leaf_of_every_module_has_a_place_in_the_tables():
    extra = {"pooling": "map", "mlp": "swiglu", "qk_norm": True, "layer_scale": 0.1, "pre_logits": 8}
    cfg = Model(
        **({f: getattr(TINY, f) for f in ("image_size", "patch_size", "width", "depth", "heads")} | extra),
        classes=3,
    )
    params = jax.eval_shape(
        lambda: build.init(build.build(cfg), jax.random.key(0), image_hw=(8, 8), channels=3)
    )
    dims = tables.matrices(params)
    names = jax.tree.leaves(tables.by_name(lambda name: name, params))
    chosen = [n for n in names if n.startswith("block_") and n.endswith("kernel")]
    assert len(jax.tree.leaves(dims, is_leaf=lambda x: hasattr(x, "reduction_axis"))) == len(chosen)


@pytest.mark.long
@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion", "lamb", "muon"])
def test_layers_in_one_array_are_updated_as_each_of_them_alone(vit_params, name):
    fields = {"weight_decay": 0.1, "layer_decay": 0.7, "clip_norm": 1.0, "frozen": ("^embed", "bias$")}
    tx = optim.make(Optim(name=name, lr=1e-2, **fields), STEPS)

    @jax.jit
    def steps(params):
        state = tx.init(params)
        for i in range(3):
            # other gradients at each step and in each layer; the two forms see the same
            grads = jax.tree.map(lambda p, i=i: jnp.cos(37 * p + i), params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    wanted = steps(vit_params)
    got = stack.unstack(steps(stack.stack(vit_params)), TINY.depth)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    # Sums of squares in another order; Muon's iterations and Adafactor's roots carry it further.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), got, wanted)


def test_stacking_loses_nothing_and_is_left_to_blocks_that_are_treated_alike(vit_params):
    again = stack.unstack(stack.stack(vit_params), TINY.depth)
    assert jax.tree.structure(again) == jax.tree.structure(vit_params)
    jax.tree.map(np.testing.assert_array_equal, again, vit_params)
    depth = sum(name.startswith("block_") for name in vit_params)
    assert tables.same_in_all_blocks(Optim(frozen=("^embed", "bias$")), vit_params, depth)
    assert not tables.same_in_all_blocks(Optim(frozen=("^block_0",)), vit_params, depth)
    assert not tables.same_in_all_blocks(Optim(decayed=("^block_2/.*kernel",)), vit_params, depth)


@pytest.mark.parametrize("largest", [0.5, 100.0], ids=("clipped", "within"))
def test_clipping_is_optaxs(largest):
    rng = np.random.default_rng(0)
    grads = {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.ones(5, jnp.bfloat16)}
    got, want = (
        rule.update(grads, rule.init(grads))[0]
        for rule in (optim.clip_by_global_norm(largest), optax.clip_by_global_norm(largest))
    )
    for name in grads:
        assert got[name].dtype == grads[name].dtype
        np.testing.assert_array_equal(*(np.asarray(x[name], np.float32) for x in (got, want)))
    assert (largest > 1) == all((got[name] == grads[name]).all() for name in grads)
