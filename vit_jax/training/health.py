"""The health of a run, measured by a program of its own on a few examples of the last batch: pure.

It takes the state and changes nothing, so that training has the same bits with it and without. A part is what
a line can name: a block, or another entry of the parameters such as embed and head. Dims: l layers, b batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.stack import STACK
from vit_jax.models.vitals import HEALTH
from vit_jax.training import tables
from vit_jax.training.step import DROPOUT, Recipe, State, examples_of, loss_of

PART = 8  # of a batch is measured, where devices and micro-batches allow: at each 50th step 0.3 % of the time
DEAD_SCALE = 1e-8  # a hundredth of the smallest first value of CaiT (arXiv:2103.17239 section 3)
Parts = dict[str, jax.Array]  # float32 scalars by part; with stacked layers, those of `blocks` are [l]


class Vitals(NamedTuple):
    """What is measured, by part; quantities that a model does not have are empty.

    `grad_norm` is of the mean loss over the examples measured, `update_ratio` the norm of the update that
    they would cause over that of the parameters, both over the trained parameters only. `attention_logit`,
    `attention_entropy` and `dormant_units` are those of models/vitals.py, `dead_scales` the share of
    LayerScale's factors below DEAD_SCALE, `logit` the largest of the model's own. Where heads read one token
    alone, the last block is measured on that, unless it is scanned.
    """

    grad_norm: Parts
    update_ratio: Parts
    attention_logit: Parts
    attention_entropy: Parts
    dormant_units: Parts
    dead_scales: Parts
    logit: Parts


def measure(
    state: State,
    batch: Any,
    teacher_params: Any = None,
    base_params: Any = None,
    *,
    recipe: Recipe,
    parts: int,
) -> Vitals:
    """The Vitals of `state`, as `train_step` takes it, on the first of `parts` parts of a batch."""
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    examples = examples_of(batch, recipe, key)
    part = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:])[:, 0], examples)
    objective = functools.partial(
        loss_of,
        total=jnp.maximum(part.weight.sum(), 1.0),
        model=recipe.model,
        recipe=recipe,
        teacher_params=teacher_params,
        base_params=base_params,
        watched=True,
    )
    gradient = jax.grad(objective, has_aux=True)
    grads, (logits, sown) = gradient(state.params, part, jax.random.fold_in(key, DROPOUT))
    updates, _ = recipe.optimizer.update(grads, state.opt_state, state.params)
    trained = tables.trained(state.params, recipe.optim)
    own = lambda tree: norms(jax.tree.map(lambda chosen, x: x if chosen else None, trained, tree))
    weights = own(state.params)
    found = sown.get(HEALTH, {})
    return Vitals(
        grad_norm=own(grads),
        update_ratio={name: norm / _positive(weights[name]) for name, norm in own(updates).items()},
        attention_logit=called("logit", found),
        attention_entropy=called("entropy", found),
        dormant_units=called("dormant", found),
        dead_scales=called("gamma", state.params, _dead_share),
        logit={"head": jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(logits)]).max()},
    )


def parts_of(batch_size: int, *, devices: int, micro_batches: int) -> int:
    """In how many parts a batch is cut: PART, or as many as leave each device as many examples.

    A part is no larger than a micro-batch, so that it fits where a step does.
    """
    shared = lambda parts: batch_size % (parts * devices) == 0
    most = max(PART, micro_batches)
    return max(n for n in range(micro_batches, most + 1, micro_batches) if shared(n))


def norms(tree: Any) -> Parts:
    """The Euclidean norm of each part; parts without arrays are left out."""

    def norm(name: str, part: Any) -> jax.Array:
        axes = lambda x: tuple(range(int(name == STACK), x.ndim))
        squares = [jnp.square(x.astype(jnp.float32)).sum(axis=axes(x)) for x in jax.tree.leaves(part)]
        return jnp.sqrt(functools.reduce(jnp.add, squares))

    return {name: norm(name, part) for name, part in tree.items() if jax.tree.leaves(part)}


def called(name: str, tree: Any, of_leaf: Callable[[Any], jax.Array] = lambda x: x) -> Parts:
    """The largest `of_leaf` of the arrays called `name` in each part that has some."""
    found: Parts = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if path[-1].key == name:
            part, value = path[0].key, of_leaf(x)
            found[part] = jnp.maximum(found[part], value) if part in found else value
    return found


def _dead_share(gamma: jax.Array) -> jax.Array:
    """The share of factors [d] that are all but 0; of stacked layers [l, d] that of each."""
    return (jnp.abs(gamma) < DEAD_SCALE).astype(jnp.float32).mean(axis=-1)


def flat(vitals: Any) -> dict[tuple[str, str], float]:
    """Numbers on the host by (quantity, part), with block_0, block_1, ... for stacked layers."""
    found: dict[tuple[str, str], float] = {}
    for quantity, parts in vitals._asdict().items():
        for part, value in parts.items():
            layers = np.asarray(value, np.float64).reshape(-1)
            names = [f"block_{i}" for i in range(len(layers))] if part == STACK else [part]
            found |= {(quantity, name): float(x) for name, x in zip(names, layers, strict=True)}
    return found


def _positive(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, jnp.finfo(jnp.float32).tiny)
