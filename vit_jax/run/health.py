"""What `train.health` tells: the vitals of a run at its logs, and a line when one leaves its usual range.

The ranges are wide: what healthy runs never left (tests/run/test_health.py has three of them), or where a
paper saw training diverge. Each says which.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax.run.first_state import Fixed
from vit_jax.run.setup import Setup
from vit_jax.training import health
from vit_jax.training.step import State

APART = 50  # steps at least between two measurements, each an eighth of a step or so: 0.3 % of the time
# Of training's mistakes, before it is said what they are like: so many, and so far from chance to all right.
MANY_MISTAKES, LEARNED = 100, 0.4

# Usual ranges. Weights that begin at 0 and follow a linear warm-up move by 2/t of themselves at step t, 0.04
# at the first measurement; all else of healthy runs was below 0.03, and 1e-3 is the rule of thumb.
LARGEST_UPDATE = 0.1
# Of its weights at the peak rate, or of the median part's gradient: half of float32's precision.
SMALLEST_SHARE = 2.0**-24
# bfloat16 rounds q and k to 2^-9, so that logits of 2^8 are wrong by about 1, and their softmax by a factor
# of e; in float32 runs that went beyond 1e4 diverged (arXiv:2309.14322 section 3.1). Healthy ones: up to 19.
LARGEST_ATTENTION_LOGIT = {"float32": 1e4, "bfloat16": 2.0**8}
# Attention of zero entropy went before divergence in arXiv:2302.05442 section 2; 0.4 and more when healthy.
SMALLEST_ENTROPY = 0.02
# No paper has a figure: most of a layer is far from the 0 of healthy runs.
MOST_DORMANT, MOST_DEAD = 0.75, 0.5
# Healthy runs: below 20. The softmax of float32 has lost all but the best class at 104, long before.
LARGEST_LOGIT = 1e3
# 1 for random labels; a fifth or less in healthy runs of digits, about a half in early ImageNet training.
MOST_RANDOM = 0.75

LOWER = "lower optim.lr, lengthen optim.warmup_steps or set optim.clip_norm"
NORMALISE = "train a model with model.qk_norm=true, or lower optim.lr"
Values = dict[tuple[str, str], float]  # by (quantity, part)


class Sign(NamedTuple):
    """A vital out of its range; `what` has the value, `helps` what to do."""

    cause: str
    part: str
    what: str
    helps: str

    def line(self, step: int) -> str:
        """Such as: health at step 50: block_1: largest attention logit 300, usual up to 256: train ..."""
        return f"health at step {step}: {self.part}: {self.what}: {self.helps}"


class Health:
    """Measures a run of `setup` at some of its logs; what it has said of a part, it does not say again."""

    def __init__(self, setup: Setup, fixed: Fixed) -> None:
        self._setup, self._fixed = setup, fixed
        self._said: set[tuple[str, str]] = set()

    def __call__(
        self, state: State, given: Any, step: int, *, rates: tuple[float, float], examples: float
    ) -> tuple[dict[str, float], list[str]]:
        """What is measured after `step`, as metrics, and the lines to say; nothing where it is not due.

        `given` is the step's batch on the devices, `rates` are top-1 and top-5 of the `examples` since the
        last log.
        """
        setup = self._setup
        if not due(step, setup):
            return {}, []
        vitals = setup.health(state, given, *self._fixed[:2])
        values = health.flat(jax.device_get(vitals))
        if not setup.spec.multi_label:
            values |= mistakes(*rates, examples=examples, classes=setup.spec.model.classes)
        first, next_ = float(setup.cfg.optim.lr), float(setup.schedule(step))
        signs = unusual(values, dtype=setup.spec.model.dtype, rate=next_ / first)
        new = [sign for sign in signs if (sign.cause, sign.part) not in self._said]
        self._said |= {(sign.cause, sign.part) for sign in new}
        return metrics(values), [sign.line(step) for sign in new]


def due(step: int, setup: Setup) -> bool:
    """Whether a log is measured: the first of each APART steps, not the last, which no update follows."""
    every = setup.cfg.train.log_every
    regular = step % every == 0 and step // APART != (step - every) // APART
    return setup.cfg.train.health and regular and step < setup.steps


def metrics(values: Values) -> dict[str, float]:
    """Finite values as health/grad_norm/block_3, with the six digits that their noise leaves."""
    named = {f"health/{quantity}/{part}": value for (quantity, part), value in values.items()}
    return {name: float(f"{value:.6g}") for name, value in named.items() if math.isfinite(value)}


def mistakes(top1: float, top5: float, *, examples: float, classes: int) -> Values:
    """How random the labels of training mistakes are: 1 if the five best guesses hold them as chance would.

    A model that has learned something takes a class for a similar one, and has the right one among its next
    guesses; a wrong label may be any. Empty with too few classes or mistakes to tell, and before anything is
    learned. Three standard errors are taken off, so that few mistakes say little.
    """
    wrong, chance = 1.0 - top1, 1.0 / classes
    learned = (top1 - chance) / (1.0 - chance) >= LEARNED
    if classes <= 5 or not learned or wrong * examples < MANY_MISTAKES:
        return {}
    missed, random = (1.0 - top5) / wrong, (classes - 5) / (classes - 1)
    error = math.sqrt(missed * (1.0 - missed) / (wrong * examples))
    return {("random_mistakes", "labels"): max(missed - 3 * error, 0.0) / random}


def unusual(values: Values, *, dtype: str, rate: float) -> list[Sign]:
    """The Signs of what is out of its usual range.

    `dtype` is that of the model's products, `rate` the learning rate of the update that was measured, as a
    share of the peak.
    """
    gradients = [value for (quantity, _), value in values.items() if quantity == "grad_norm"]
    median = float(np.median([value for value in gradients if math.isfinite(value)] or [0.0]))
    signs = []
    for (quantity, part), value in values.items():
        if not math.isfinite(value):
            signs.append(Sign("not finite", part, f"its {quantity} is not finite", LOWER))
        elif (rule := RULES.get(quantity)) and (found := rule(value, dtype, rate, median)):
            signs.append(Sign(found[0], part, *found[1:]))
    return signs


Found = tuple[str, str, str] | None  # cause, what it is, what helps


def _above(limit: float, cause: str, what: str, helps: str) -> Callable[..., Found]:
    def rule(value: float, dtype: str, rate: float, median: float) -> Found:
        return (cause, f"{what} {value:.3g}, usual up to {limit:g}", helps) if value > limit else None

    return rule


def _update(value: float, dtype: str, rate: float, median: float) -> Found:
    if rate and value / rate < SMALLEST_SHARE:
        return _frozen(f"an update is {value:.2g} of its weights, which leaves them as they are")
    what = "an update is of its weights a share of"
    return _above(LARGEST_UPDATE, "large update", what, LOWER)(value, dtype, rate, median)


def _gradient(value: float, dtype: str, rate: float, median: float) -> Found:
    if value > SMALLEST_SHARE * median:
        return None
    return _frozen(f"its gradient has norm {value:.2g}, that of the median part {median:.2g}")


def _frozen(because: str) -> Found:
    helps = (
        "no gradient reaches it: look for a factor of 0 behind it; if it is to stay, name it in optim.frozen"
    )
    return "frozen", f"does not learn, {because}", helps


def _attention_logit(value: float, dtype: str, rate: float, median: float) -> Found:
    rule = _above(LARGEST_ATTENTION_LOGIT[dtype], "attention logit", "largest attention logit", NORMALISE)
    return rule(value, dtype, rate, median)


def _entropy(value: float, dtype: str, rate: float, median: float) -> Found:
    if value >= SMALLEST_ENTROPY:
        return None
    what = f"each token looks at one other, entropy {value:.2g} of uniform attention's, usual from"
    return "entropy", f"{what} {SMALLEST_ENTROPY:g}", NORMALISE


RULES: dict[str, Callable[[float, str, float, float], Found]] = {
    "grad_norm": _gradient,
    "update_ratio": _update,
    "attention_logit": _attention_logit,
    "attention_entropy": _entropy,
    "dormant_units": _above(
        MOST_DORMANT,
        "dormant units",
        "share of an MLP's units that are off for all tokens",
        "lower optim.lr or optim.weight_decay; what is off does not come back by itself",
    ),
    "dead_scales": _above(
        MOST_DEAD,
        "dead scales",
        "share of LayerScale's factors that are 0",
        "its branches do nothing: begin with a larger model.layer_scale, and keep gamma out of optim.decayed",
    ),
    "logit": _above(LARGEST_LOGIT, "logit", "largest logit of a class", "lower optim.lr, or smooth labels"),
    "random_mistakes": _above(
        MOST_RANDOM,
        "random mistakes",
        "training's mistakes are as random as guesses by a share of",
        "many labels may be wrong: `probe --suspects` lists the likeliest; optim.ema and fewer epochs help",
    ),
}
