"""How much a linear or nearest-neighbour classifier reads from frozen features.

Dims: n training examples, m others, d features, c classes, g columns of features, h heads, k neighbours,
s steps, b batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.training.losses import softmax_cross_entropy

TEMPERATURE = 0.07  # of k-NN votes, arXiv:1805.01978 section 3.4 and arXiv:2104.14294
TESTED = 256  # examples whose neighbours are looked for at once: bounds memory
STD_FLOOR = 1e-5  # added to standard deviations: a feature that never changes stays 0
DRAWS = 3  # of few-shot training sets
BATCH_SIZE = 256  # of heads
MOMENTUM = 0.9
EXACT = jax.lax.Precision.HIGHEST  # accelerators would round the factors of float32 products


class Fit(NamedTuple):
    """A linear classifier of standardised features: x W + a, or many with leading dims."""

    kernel: Any  # [d, c]
    bias: Any  # [c]


class Part(NamedTuple):
    """Features float32 [n, d], or [g, n, d] of many columns, and their labels int32 [n]."""

    x: np.ndarray
    label: np.ndarray


class FewShot(NamedTuple):
    """Accuracies at the best l2 of the held-out part; the mean and standard deviation are over draws."""

    shots: int
    l2: float
    held_out: float
    top1: float
    top1_std: float


class Linear(NamedTuple):
    """The head that was best on the held-out part, and held-out accuracies of all, float32 [g, h]."""

    column: int
    head: int
    correct: np.ndarray  # bool [m], of the chosen head on the test part
    held_out: np.ndarray


class Standard(NamedTuple):
    """Mean and scale of features, float32 [d]."""

    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, x_nd: np.ndarray) -> np.ndarray:
        """Centred, and divided by the standard deviation."""
        return (x_nd - self.mean) / self.scale


def standard(x_nd: np.ndarray) -> Standard:
    """The statistics of a training set."""
    mean_d = x_nd.mean(axis=0, dtype=np.float64)
    scale_d = x_nd.std(axis=0, dtype=np.float64) + STD_FLOOR
    return Standard(mean_d.astype(np.float32), scale_d.astype(np.float32))


def knn(
    train_nd: np.ndarray,
    label_n: np.ndarray,
    test_md: np.ndarray,
    *,
    classes: int,
    neighbours: tuple[int, ...],
) -> dict[tuple[str, int], np.ndarray]:
    """{(vote, k): predicted class int32 [m]} of the k nearest by cosine; exact ties go to the first.

    "weighted": a neighbour of similarity s votes with exp(s / 0.07) (arXiv:1805.01978 section 3.4, as in
    DINO, arXiv:2104.14294); "plain": each with 1.
    """
    known_nd, asked_md = jnp.asarray(unit(train_nd)), unit(test_md)
    chunks = []
    for start in range(0, len(asked_md), TESTED):
        chunk_bd = asked_md[start : start + TESTED]
        padded_bd = np.pad(chunk_bd, ((0, TESTED - len(chunk_bd)), (0, 0)))
        voted = _vote(known_nd, jnp.asarray(label_n), padded_bd, classes=classes, neighbours=neighbours)
        chunks.append({name: np.asarray(p_b)[: len(chunk_bd)] for name, p_b in voted.items()})
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@functools.partial(jax.jit, static_argnames=("classes", "neighbours"))
def _vote(
    train_nd: jax.Array, label_n: jax.Array, test_bd: jax.Array, *, classes: int, neighbours: tuple[int, ...]
) -> dict[tuple[str, int], jax.Array]:
    similarity_bn = jnp.matmul(test_bd, train_nd.T, precision=EXACT)
    s_bk, nearest_bk = jax.lax.top_k(similarity_bn, max(neighbours))
    label_bkc = jax.nn.one_hot(label_n[nearest_bk], classes, dtype=jnp.float32)
    weights = {"weighted": jnp.exp(s_bk / TEMPERATURE), "plain": jnp.ones_like(s_bk)}
    return {
        (name, k): (w_bk[:, :k, None] * label_bkc[:, :k]).sum(axis=1).argmax(axis=1).astype(jnp.int32)
        for name, w_bk in weights.items()
        for k in neighbours
    }


def unit(x_nd: np.ndarray) -> np.ndarray:
    """Rows of length 1; zeros stay zeros."""
    return x_nd / np.maximum(np.linalg.norm(x_nd, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def few_shot(
    train: Part, held: Part, test: Part, *, shots: int, l2: tuple[float, ...], classes: int, seed: int
) -> FewShot:
    """Ridge regression on `shots` random examples of each class, as often as DRAWS says.

    The l2 with the best mean on `held` is used; the others never meet `test`.
    """
    fits, held_dl = [], np.zeros((DRAWS, len(l2)))
    for draw in range(DRAWS):
        chosen = pick(train.label, shots, np.random.default_rng((seed, draw)))
        scaled = standard(train.x[chosen])
        fits.append((scaled, ridge(scaled(train.x[chosen]), train.label[chosen], classes=classes, l2=l2)))
        held_x = scaled(held.x)
        held_dl[draw] = [accuracy(fit, held_x, held.label) for fit in fits[-1][1]]
    i = int(held_dl.mean(axis=0).argmax())
    top1 = [accuracy(found[i], scaled(test.x), test.label) for scaled, found in fits]
    return FewShot(shots, l2[i], float(held_dl[:, i].mean()), float(np.mean(top1)), float(np.std(top1)))


def pick(label_n: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `shots` random examples of each class, all of those that have fewer; ascending."""
    shuffled_n = rng.permutation(len(label_n))
    by_class_n = shuffled_n[np.argsort(label_n[shuffled_n], kind="stable")]
    ordered_n = label_n[by_class_n]
    rank_n = np.arange(len(label_n)) - np.searchsorted(ordered_n, ordered_n)
    return np.sort(by_class_n[rank_n < shots])


def ridge(x_nd: np.ndarray, label_n: np.ndarray, *, classes: int, l2: tuple[float, ...]) -> list[Fit]:
    """argmin over W, a of ||x W + a - y||^2 + l2 ||W||^2 for each l2; y is 1 for the label, -1 elsewhere.

    The bias is not penalised. With x = U S V' and y centred, W = V S / (S^2 + l2) U' y: one decomposition in
    float64 serves every l2. As the few-shot evaluation of ViT, arXiv:2010.11929 section 4.1.
    """
    y_nc = 2.0 * np.eye(classes)[label_n] - 1.0
    x_mean_d, y_mean_c = x_nd.mean(axis=0, dtype=np.float64), y_nc.mean(axis=0)
    u_nr, s_r, v_rd = np.linalg.svd(x_nd - x_mean_d, full_matrices=False)
    uy_rc = u_nr.T @ (y_nc - y_mean_c)
    fits = []
    for strength in l2:
        kernel_dc = v_rd.T @ ((s_r / (s_r**2 + strength))[:, None] * uy_rc)
        fits.append(Fit(kernel_dc, y_mean_c - x_mean_d @ kernel_dc))
    return fits


def predict(fit: Fit, x_md: np.ndarray) -> np.ndarray:
    """The class that scores highest."""
    return np.asarray(x_md @ np.asarray(fit.kernel) + np.asarray(fit.bias)).argmax(axis=1)


def accuracy(fit: Fit, x_md: np.ndarray, label_m: np.ndarray) -> float:
    """Share of the examples whose label scores highest."""
    return float((predict(fit, x_md) == label_m).mean())


def linear(
    train: Part,
    held: Part,
    test: Part,
    *,
    rates: np.ndarray,
    decays: np.ndarray,
    classes: int,
    epochs: int,
    seed: int,
) -> Linear:
    """Heads of every column with every (rate, decay) [h], the best on `held`, and that one alone on `test`.

    Columns are standardised already, and stacked.
    """
    size = min(BATCH_SIZE, len(train.label))
    order_sb = batches(len(train.label), batch_size=size, epochs=epochs, seed=seed)
    grid = [jnp.asarray(values, jnp.float32) for values in (rates, decays)]
    fits = train_heads(jnp.asarray(train.x), jnp.asarray(train.label), order_sb, *grid, classes=classes)
    hit_gh, loss_gh = map(np.asarray, measure_heads(fits, held.x, held.label))
    g, h = best(hit_gh, loss_gh)
    chosen = Fit(*(np.asarray(x[g, h]) for x in fits))
    return Linear(g, h, predict(chosen, test.x[g]) == test.label, hit_gh)


def stack(columns: list[np.ndarray]) -> np.ndarray:
    """[n, d] each to [g, n, d]; narrow ones are filled up with zeros, which no head can see or learn from."""
    width = max(x_nd.shape[1] for x_nd in columns)
    return np.stack([np.pad(x_nd, ((0, 0), (0, width - x_nd.shape[1]))) for x_nd in columns])


def batches(examples: int, *, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Indices int32 [s, b]: every epoch another order, without seams; what does not fill a batch is left."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(examples) for _ in range(epochs)]).astype(np.int32)
    steps = max(len(order) // batch_size, 1)
    return order[: steps * batch_size].reshape(steps, -1)


def train_head(
    x_nd: jax.Array, label_n: jax.Array, batch_sb: jax.Array, rate: jax.Array, decay: jax.Array, classes: int
) -> Fit:
    """One head from zeros: softmax cross-entropy, SGD with Nesterov momentum, cosine decay of `rate` to 0.

    `decay` times the kernel is added to its gradient.
    """
    optimizer = optax.chain(
        optax.add_decayed_weights(decay, mask=Fit(True, False)),
        optax.trace(MOMENTUM, nesterov=True),
        optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, len(batch_sb))),
        optax.scale(-rate),
    )

    def loss(fit: Fit, batch_b: jax.Array) -> jax.Array:
        logits_bc = jnp.matmul(x_nd[batch_b], fit.kernel, precision=EXACT) + fit.bias[None]
        return softmax_cross_entropy(logits_bc, label_n[batch_b]).mean()

    def step(carry: tuple[Any, Any], batch_b: jax.Array) -> tuple[tuple[Any, Any], None]:
        fit, state = carry
        updates, state = optimizer.update(jax.grad(loss)(fit, batch_b), state, fit)
        return (optax.apply_updates(fit, updates), state), None

    start = Fit(jnp.zeros((x_nd.shape[1], classes), jnp.float32), jnp.zeros(classes, jnp.float32))
    return jax.lax.scan(step, (start, optimizer.init(start)), batch_sb)[0][0]


def fitted(
    x_nd: np.ndarray, label_n: np.ndarray, *, rate: float, decay: float, classes: int, epochs: int, seed: int
) -> Fit:
    """`train_head` on these examples, standardised: a float64 head of the features as they are."""
    scale = standard(x_nd)
    size = min(BATCH_SIZE, len(label_n))
    order_sb = batches(len(label_n), batch_size=size, epochs=epochs, seed=seed)
    grid = [jnp.asarray([value], jnp.float32) for value in (rate, decay)]
    fits = train_heads(jnp.asarray(scale(x_nd)[None]), jnp.asarray(label_n), order_sb, *grid, classes=classes)
    kernel_dc, bias_c = (np.asarray(x[0, 0], np.float64) for x in fits)
    kernel_dc /= scale.scale[:, None]
    return Fit(kernel_dc, bias_c - scale.mean @ kernel_dc)


@functools.partial(jax.jit, static_argnames="classes")
def train_heads(
    x_gnd: jax.Array,
    label_n: jax.Array,
    batch_sb: jax.Array,
    rate_h: jax.Array,
    decay_h: jax.Array,
    *,
    classes: int,
) -> Fit:
    """`train_head` of every column with every (rate, decay) at once: kernels [g, h, d, c], biases [g, h, c].

    All heads see the same batches. A grid over blocks and poolings, too, is DINOv2's (arXiv:2304.07193).
    """
    one = lambda x_nd, rate, decay: train_head(x_nd, label_n, batch_sb, rate, decay, classes)
    of_column = jax.vmap(one, in_axes=(None, 0, 0))
    return jax.vmap(of_column, in_axes=(0, None, None))(x_gnd, rate_h, decay_h)


@jax.jit
def measure_heads(fits: Fit, x_gmd: jax.Array, label_m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(accuracy, mean loss), float32 [g, h]; accuracy 0 for a head that diverged."""

    def measure(fit: Fit, x_md: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_mc = jnp.matmul(x_md, fit.kernel, precision=EXACT) + fit.bias[None]
        loss = softmax_cross_entropy(logits_mc, label_m).mean()
        hit = (logits_mc.argmax(axis=1) == label_m).astype(jnp.float32).mean()
        return jnp.where(jnp.isfinite(loss), hit, 0.0), loss

    # One head after another: the logits of all at once would be larger than the heads.
    column = lambda fits_x: jax.lax.map(lambda fit: measure(fit, fits_x[1]), fits_x[0])
    return jax.lax.map(column, (fits, x_gmd))


def best(hit_gh: np.ndarray, loss_gh: np.ndarray) -> tuple[int, int]:
    """(column, head) of the highest accuracy, the lower loss among equals."""
    order = np.lexsort((np.nan_to_num(loss_gh, nan=np.inf).ravel(), -hit_gh.ravel()))
    column, head = np.unravel_index(order[0], hit_gh.shape)
    return int(column), int(head)
