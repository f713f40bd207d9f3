"""Losses, mixing, distillation, accumulation, the running mean: values against formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import TINY as TWO_BLOCKS
from batches import make_batch

from vit_jax.data.loader import Batch
from vit_jax.models import build
from vit_jax.sections import Loss, Optim, Preprocess, Train
from vit_jax.training import losses, mixing, optim
from vit_jax.training.step import Examples, Recipe, Teacher, init_state, prepare, train_step, training_sums

TINY = dataclasses.replace(TWO_BLOCKS, depth=1)
SGD = Optim(name="sgd", lr=0.05, momentum=0.5, schedule="constant")
ROUNDING = 1e-6  # float32 on both sides: a few units in the last place
pytestmark = pytest.mark.usefixtures("optax_dtypes")


def run(model_cfg=TINY, steps=3, rule=SGD, micro_batches=1, teacher_params=None, **extra):
    """The states after each of some compiled steps."""
    model, optimizer = build.build(model_cfg), optim.make(rule, 10)
    params = build.init(model, jax.random.key(0), image_hw=(8, 8), channels=3)
    train = Train(steps=10, log_every=100, micro_batches=micro_batches)
    common = {"model": model, "optimizer": optimizer, "preprocess": Preprocess(), "seed": 0}
    recipe = Recipe(**common, train=train, optim=rule, **extra)
    step = jax.jit(functools.partial(train_step, teacher_params=teacher_params, recipe=recipe))
    states = [init_state(params, optimizer, ema=bool(rule.ema))]
    for i in range(steps):
        states.append(step(states[-1], make_batch(i)))
    return states


def logits_and_targets():
    rng = np.random.default_rng(0)
    target = rng.dirichlet(np.ones(5), 6)
    return rng.normal(size=(6, 5)) * 3, target


def close(tree, other, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), tree, other)


def test_softmax_of_soft_targets_is_its_formula_and_optax():
    logits, target = logits_and_targets()
    got = losses.softmax(jnp.float32(logits), jnp.float32(target))
    wanted = -(target * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)  # float32 against float64
    known = optax.softmax_cross_entropy(jnp.float32(logits), jnp.float32(target))
    np.testing.assert_allclose(got, known, rtol=ROUNDING)


def test_sigmoid_is_the_sum_of_binary_cross_entropies():
    logits, target = logits_and_targets()
    got = losses.sigmoid(jnp.float32(logits), jnp.float32(target))
    p = 1 / (1 + np.exp(-logits))
    wanted = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)  # float32 against float64
    assert np.isfinite(losses.sigmoid(jnp.full((1, 5), 1e4), jnp.zeros((1, 5)))).all()


def test_smoothing_keeps_the_mass_of_a_label():
    got = losses.smooth(jnp.array([1, 0]), 4, 0.2)
    np.testing.assert_allclose(got, [[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]], rtol=ROUNDING)


def test_distillation_is_its_formula():
    logits, _ = logits_and_targets()
    teacher = np.random.default_rng(1).normal(size=(6, 5))
    log = lambda x: x - np.log(np.exp(x).sum(1, keepdims=True))
    p, t = log(logits / 3), log(teacher / 3)
    got = losses.soft_distillation(jnp.float32(logits), jnp.float32(teacher), temperature=3.0)
    np.testing.assert_allclose(got, 9 * (np.exp(t) * (t - p)).sum(1), rtol=1e-4)  # float32 differences
    hard = losses.hard_distillation(jnp.float32(logits), jnp.float32(teacher))
    np.testing.assert_allclose(
        hard, -log(logits)[np.arange(6), teacher.argmax(1)], rtol=1e-5
    )  # float32 against float64


@pytest.mark.parametrize("cfg", [Loss(mixup=0.4), Loss(cutmix=1.0), Loss(mixup=0.4, cutmix=1.0)])
def test_mixing_keeps_label_mass_and_follows_the_pixels(cfg):
    # Every image has its own constant value, so that a pixel tells how much of which image it is.
    image = jnp.broadcast_to(jnp.arange(6.0).reshape(6, 1, 1, 1), (6, 16, 16, 1))
    target = jnp.eye(6)
    seen = set()
    for i in range(8):
        mixed, labels = mixing.mix(image, target, key=jax.random.key(i), cfg=cfg)
        np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=ROUNDING)
        wanted = labels @ jnp.arange(6.0)
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), wanted, rtol=1e-5)  # sums of 256 pixels
        whole = float(jnp.abs(mixed - mixed[:, :1, :1]).max()) < 1e-6
        seen.add("mixup" if whole else "cutmix")
    assert seen == {name for name in ("mixup", "cutmix") if getattr(cfg, name)}


@pytest.mark.parametrize("cfg", [Loss(mixup=1.0), Loss(cutmix=1.0)])
def test_copies_of_an_image_are_mixed_with_another_image(cfg):
    """A batch as repeated augmentation fills it, begun and ended within the copies of an image."""
    slot = (jnp.arange(8) + 2) // 3
    image = jnp.broadcast_to(jnp.float32(slot).reshape(8, 1, 1, 1), (8, 16, 16, 1))
    met = np.zeros(8, bool)
    for i in range(8):
        _, labels = mixing.mix(image, jnp.eye(4)[slot], key=jax.random.key(i), cfg=cfg, by=3)
        met |= np.asarray(labels.max(axis=1)) < 1
    assert met.all()


def test_mixing_is_a_function_of_the_key_alone():
    draw = lambda i: prepare(make_batch(), 5, key=jax.random.key(i), cfg=Loss(mixup=1.0))
    jax.tree.map(np.testing.assert_array_equal, draw(1), draw(1))
    assert float(jnp.abs(draw(1).pixels - draw(2).pixels).max()) > 1


def test_the_kinds_of_loss_are_those_of_the_config():
    logits, target = (jnp.float32(x) for x in logits_and_targets())
    part = Examples(jnp.zeros((6, 1, 1, 1)), target, jnp.ones(6))
    for name, rule in {"softmax": losses.softmax, "sigmoid": losses.sigmoid}.items():
        assert training_sums(logits, part, None, Loss(name=name)).loss == rule(logits, target).sum()


def test_the_class_head_learns_labels_and_the_distillation_head_the_teacher():
    own, target = (jnp.float32(x) for x in logits_and_targets())
    student, teacher = own[::-1], own * 2 - 1
    part = Examples(jnp.zeros((6, 1, 1, 1)), target, jnp.ones(6))
    label, cfg = losses.softmax(own, target).sum(), Loss(distill_weight=0.25)
    got = training_sums((own, student), part, teacher, cfg).loss
    wanted = 0.75 * label + 0.25 * losses.hard_distillation(student, teacher).sum()
    np.testing.assert_allclose(got, wanted, rtol=ROUNDING)
    cfg = dataclasses.replace(cfg, distill="soft", temperature=2.0)
    got = training_sums(own, part, teacher, cfg).loss  # without the token one head learns both
    wanted = 0.75 * label + 0.25 * losses.soft_distillation(own, teacher, temperature=2.0).sum()
    np.testing.assert_allclose(got, wanted, rtol=ROUNDING)
    alone = training_sums((own, student), part, None, cfg).loss
    np.testing.assert_allclose(alone, (label + losses.softmax(student, target).sum()) / 2, rtol=ROUNDING)


def test_a_student_comes_closer_to_its_teacher():
    teacher = build.build(TINY)
    params = build.init(teacher, jax.random.key(7), image_hw=(8, 8), channels=3)
    params["head"]["kernel"] = jax.random.normal(jax.random.key(8), params["head"]["kernel"].shape)
    states = run(
        dataclasses.replace(TINY, distill_token=True),
        steps=8,
        loss=Loss(distill="soft", distill_weight=1.0),
        teacher=Teacher(teacher, Preprocess()),
        teacher_params=params,
    )
    # the window adds up, so the loss of a step is a difference
    sums = [float(s.window.loss) for s in states]
    assert sums[8] - sums[7] < sums[1] - sums[0]
    np.testing.assert_array_equal(states[-1].params["head"]["bias"], states[0].params["head"]["bias"])
    assert float(jnp.abs(states[-1].params["head_distill"]["kernel"]).max()) > 0


@pytest.mark.parametrize("loss", [Loss(), Loss(mixup=0.5, label_smoothing=0.1, name="sigmoid")])
def test_micro_batches_give_the_numbers_of_the_whole_batch(loss):
    whole, parts = run(loss=loss)[-1], run(loss=loss, micro_batches=4)[-1]
    close(whole.params, parts.params, atol=1e-6)  # sums in another order
    np.testing.assert_allclose(whole.window, parts.window, rtol=ROUNDING)


def test_the_running_mean_is_its_formula():
    states = run(rule=dataclasses.replace(SGD, ema=0.9))
    mean = jax.device_get(states[0].params)
    for state in states[1:]:
        mean = jax.tree.map(lambda m, p: 0.9 * m + 0.1 * np.float64(p), mean, jax.device_get(state.params))
    close(states[-1].ema, mean, atol=1e-6)  # float32 against float64
    close(states[-1].params, run()[-1].params, atol=0)


def test_sam_takes_the_gradient_at_the_sharpest_point():
    rho, rate = 0.1, 0.05
    batch = make_batch(0)
    model = build.build(TINY)
    params = build.init(model, jax.random.key(0), image_hw=(8, 8), channels=3)
    plain = Optim(name="sgd", lr=rate, momentum=0.0, schedule="constant")

    def descent(params, batch: Batch):
        """The gradient, as the difference that plain SGD makes."""
        tx = optim.make(plain, 10)
        train = Train(steps=10, log_every=9)
        recipe = Recipe(model=model, optimizer=tx, preprocess=Preprocess(), seed=0, train=train)
        step = functools.partial(train_step, recipe=recipe)
        after = jax.jit(step)(init_state(params, tx), batch).params
        return jax.tree.map(lambda a, b: (a - b) / rate, params, after)

    grads = descent(params, batch)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    worst = jax.tree.map(lambda p, g: p + rho * g / norm, params, grads)
    wanted = jax.tree.map(lambda p, g: p - rate * g, params, descent(worst, batch))
    got = run(steps=1, rule=dataclasses.replace(plain, sam_rho=rho))[-1].params
    close(got, wanted, atol=2e-6)  # the differences lose digits of the parameters
