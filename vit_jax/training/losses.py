"""Losses per example, float32 [b]. Dims: b batch, n examples of a data set, c classes."""

import jax
import jax.numpy as jnp
import numpy as np


def softmax_cross_entropy(logits_bc: jax.Array, label_b: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]."""
    log_p_bc = jax.nn.log_softmax(logits_bc.astype(jnp.float32))
    return -jnp.take_along_axis(log_p_bc, label_b[:, None], axis=1)[:, 0]


def softmax(logits_bc: jax.Array, target_bc: jax.Array, weight_bc: jax.Array | None = None) -> jax.Array:
    """-sum over classes of weight * target * log softmax(logits), for targets that are distributions."""
    log_p_bc = jax.nn.log_softmax(logits_bc.astype(jnp.float32))
    return -((target_bc if weight_bc is None else weight_bc * target_bc) * log_p_bc).sum(axis=1)


def sigmoid(logits_bc: jax.Array, target_bc: jax.Array, weight_bc: jax.Array | None = None) -> jax.Array:
    """Binary cross-entropy of each class, times its weight, summed. arXiv:2006.07159 section 5."""
    logits_bc = logits_bc.astype(jnp.float32)
    # log(1 - sigmoid(x)) = log sigmoid(-x), which does not lose small numbers
    yes_bc, no_bc = jax.nn.log_sigmoid(logits_bc), jax.nn.log_sigmoid(-logits_bc)
    loss_bc = -(target_bc * yes_bc + (1.0 - target_bc) * no_bc)
    return (loss_bc if weight_bc is None else weight_bc * loss_bc).sum(axis=1)


# By `Loss.name`: functions of logits, targets and, where the config weighs classes, weights [b, c].
KINDS = {"softmax": softmax, "sigmoid": sigmoid}


def balanced(label_n: np.ndarray, classes: int) -> tuple[float, ...]:
    """n / (k n_c) for each class of n_c examples, with k classes that have any; 1 for one without.

    As scikit-learn's class_weight="balanced"; negative labels do not count. King & Zeng, Political Analysis 9
    (2001).
    """
    count_c = np.bincount(label_n[label_n >= 0], minlength=classes)
    fair = count_c.sum() / max((count_c > 0).sum(), 1)
    return tuple(float(fair / count) if count else 1.0 for count in count_c)


def soft_distillation(logits_bc: jax.Array, teacher_bc: jax.Array, *, temperature: float) -> jax.Array:
    """t^2 KL(softmax(teacher/t) || softmax(logits/t)). arXiv:2012.12877 eq. 2, arXiv:1503.02531."""
    log_p_bc = jax.nn.log_softmax(logits_bc.astype(jnp.float32) / temperature)
    log_t_bc = jax.nn.log_softmax(teacher_bc.astype(jnp.float32) / temperature)
    return temperature**2 * (jnp.exp(log_t_bc) * (log_t_bc - log_p_bc)).sum(axis=1)


def hard_distillation(logits_bc: jax.Array, teacher_bc: jax.Array) -> jax.Array:
    """Cross-entropy towards the teacher's best class. arXiv:2012.12877 eq. 3."""
    return softmax_cross_entropy(logits_bc, teacher_bc.argmax(axis=1))


def smooth(label: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Targets with a share spread over all classes, float32 [b, c]. arXiv:1512.00567 section 7.

    Labels are integers [b], or [b, c] of 0 and 1, of several classes or none.
    """
    target_bc = (
        label.astype(jnp.float32) if label.ndim == 2 else jax.nn.one_hot(label, classes, dtype=jnp.float32)
    )
    return target_bc * (1.0 - smoothing) + smoothing / classes


def in_top(logits_bc: jax.Array, label_b: jax.Array, k: int) -> jax.Array:
    """1.0 where fewer than k other classes score at least as high as the label, float32 [b].

    Ties count against the model: constant logits are right for no k below the class count.
    """
    score_b1 = jnp.take_along_axis(logits_bc, label_b[:, None], axis=1)
    others_b = (logits_bc >= score_b1).sum(axis=1) - 1
    return (others_b < k).astype(jnp.float32)


def in_top_of(logits_bc: jax.Array, own_bc: jax.Array, k: int) -> jax.Array:
    """1.0 where fewer than k classes that are not an example's own score at least as high as its best one.

    `own_bc` is above 0 at an example's classes; one of no class has no hit. float32 [b].
    """
    own_bc = own_bc > 0
    best_b1 = jnp.where(own_bc, logits_bc, -jnp.inf).max(axis=1, keepdims=True)
    rivals_b = ((logits_bc >= best_b1) & ~own_bc).sum(axis=1)
    return ((rivals_b < k) & own_bc.any(axis=1)).astype(jnp.float32)


def confusion(logits_bc: jax.Array, label_b: jax.Array, weight_b: jax.Array) -> jax.Array:
    """Weights summed by label and likeliest class, float32 [c, c]."""
    c = logits_bc.shape[1]
    return jnp.zeros((c, c), jnp.float32).at[label_b, logits_bc.argmax(axis=1)].add(weight_b)
