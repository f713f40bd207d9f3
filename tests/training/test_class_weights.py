"""Weights of classes: their formula, the loss that torch computes of them, and what is refused."""

import jax
import numpy as np
import pytest
from batches import make_batch
from sklearn.utils.class_weight import compute_class_weight
from tiny_run import tiny

from vit_jax import config
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.errors import UserError
from vit_jax.run.setup import set_up
from vit_jax.sections import Loss
from vit_jax.training import losses
from vit_jax.training import mesh as meshes
from vit_jax.training.step import accumulate, prepare, training_sums

pytestmark = pytest.mark.usefixtures("optax_dtypes")
WEIGHTS = (0.5, 2.0, 1.0, 3.0, 0.25)
KINDS = (
    Loss(),
    Loss(label_smoothing=0.1),
    Loss(mixup=0.5),
    Loss(mixup=0.5, label_smoothing=0.1),
    Loss(name="sigmoid"),
    Loss(name="sigmoid", cutmix=1.0),
)


def weighed(cfg, weights=WEIGHTS):
    """(logits, examples, mean loss) of a batch whose last row is padding."""
    batch = make_batch()
    batch.weight[-1] = 0
    examples = prepare(batch, 5, key=jax.random.key(1), cfg=cfg, class_weights=weights)
    logits = jax.random.normal(jax.random.key(0), (8, 5)) * 3
    sums = training_sums(logits, examples, None, cfg)
    return np.float64(logits), batch, examples, float(sums.loss / sums.weight)


def test_balanced_is_the_formula_and_that_of_scikit_learn():
    label = np.repeat([0, 1, 3], [60, 30, 10])
    got = losses.balanced(np.append(label, [-1, -1]), 5)  # two that cannot be read
    assert got == pytest.approx((100 / 180, 100 / 90, 1.0, 100 / 30, 1.0), rel=1e-12)  # float64
    known = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=label)
    np.testing.assert_allclose([got[i] for i in (0, 1, 3)], known, rtol=1e-12)


@pytest.mark.parametrize("cfg", KINDS, ids=str)
def test_the_loss_is_its_formula(cfg):
    logits, batch, examples, got = weighed(cfg)
    target, w = np.float64(examples.target), np.array(WEIGHTS)
    if cfg.name == "softmax":
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss = -(w * target * log_p).sum(1)
        soft = cfg.mixup or cfg.cutmix
        share = np.ones(8) if soft else w[batch.label]
    else:
        p = 1 / (1 + np.exp(-logits))
        loss = -(w * (target * np.log(p) + (1 - target) * np.log(1 - p))).sum(1)
        share = np.ones(8)
    # float32 against float64
    assert got == pytest.approx((loss * batch.weight).sum() / (share * batch.weight).sum(), rel=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("cfg", KINDS, ids=str)
def test_the_loss_is_that_of_torch(cfg):
    torch = pytest.importorskip("torch")
    logits, batch, examples, got = weighed(cfg)
    x, w = torch.tensor(logits[:-1]), torch.tensor(WEIGHTS, dtype=torch.float64)
    target = torch.tensor(np.float64(examples.target)[:-1])
    if cfg.name == "sigmoid":
        wanted = torch.nn.BCEWithLogitsLoss(weight=w, reduction="none")(x, target).sum(1).mean()
    elif cfg.mixup:
        wanted = torch.nn.CrossEntropyLoss(weight=w)(x, target)
    else:
        rule = torch.nn.CrossEntropyLoss(weight=w, label_smoothing=cfg.label_smoothing)
        wanted = rule(x, torch.tensor(batch.label[:-1], dtype=torch.int64))
    assert got == pytest.approx(float(wanted), rel=1e-5)  # float32 against float64


@pytest.mark.parametrize("cfg", KINDS, ids=str)
def test_equal_weights_change_nothing_but_the_scale_of_what_is_not_a_mean(cfg):
    plain = weighed(cfg, ())[-1]
    scale = 1 if cfg.name == "softmax" and not cfg.mixup else 2
    assert weighed(cfg, (2.0,) * 5)[-1] == pytest.approx(scale * plain, rel=1e-6)  # float32


def test_micro_batches_see_the_weights_of_the_whole_batch():
    _, _, examples, _ = weighed(Loss())

    def objective(kernel, part, key):
        sums = training_sums(part.pixels.mean((1, 2)) @ kernel, part, None, Loss())
        return sums.loss, sums

    kernel = jax.random.normal(jax.random.key(2), (3, 5)) / 100
    gradient = jax.grad(objective, has_aux=True)
    whole, parts = (accumulate(gradient, kernel, examples, key=jax.random.key(0), parts=n) for n in (1, 4))
    # sums of other orders, of gradients up to some hundreds
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3), whole, parts)


def test_what_is_no_weight_is_refused():
    for value, message in {
        "balancd": "loss.class_weights=balancd is not balanced, and not one number per class",
        "1,0": r"loss.class_weights=\(1.0, 0.0\) must be above 0: leave out the images of a class",
        "1,x": r"loss.class_weights=\(1, 'x'\) is not text or a list, each a number",
        "2": "loss.class_weights=2 is not text or a list, each a number",
    }.items():
        with pytest.raises(UserError, match=message):
            config.apply(tiny(), [f"--config.loss.class_weights={value}"])
    data = Splits(sources.digits(train=True), sources.digits(train=False))
    mesh = meshes.make("cpu", 1)
    with (
        jax.set_mesh(mesh),
        pytest.raises(UserError, match=r"class_weights has 2 numbers, the model 10 classes: give one each"),
    ):
        set_up(config.apply(tiny(), ["--config.loss.class_weights=1,2"]), mesh, data)
    for source in (data.train, sources.absent(1000, 10).train):
        with jax.set_mesh(mesh):
            cfg = config.apply(tiny(), ["--config.loss.class_weights=balanced"])
            assert set_up(cfg, mesh, Splits(source, source)).steps == 60
