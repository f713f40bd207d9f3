"""Frozen features of a model: of which block, pooled how, computed once and kept in a file.

Dims: b batch, n examples or tokens, d width, p features of a column.
"""

import dataclasses
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.models import native
from vit_jax.models.build import build
from vit_jax.models.layers import Norm
from vit_jax.models.vit import Pool
from vit_jax.patches import Patches
from vit_jax.sections import Data, Model, Preprocess, seen_size
from vit_jax.training.evaluate import walk

FORMAT = 3  # of what is kept; another number for another meaning, so that no old file is taken
POOLINGS = ("token", "gap", "model")  # that make one row of an image
Pooling = Literal["model", "token", "gap", "none"]


class Column(NamedTuple):
    """Features after block `layer`: its class token, the mean of its patches, or pooled as the model does.

    `none` pools nothing: class and distillation token, registers and patches, as the model has them.
    """

    layer: int
    pooling: str

    @property
    def name(self) -> str:
        """Such as block_11/gap."""
        return f"block_{self.layer}/{self.pooling}"


class Split(NamedTuple):
    """float32 [n, p] of each column, [n, tokens, d] of one that is not pooled, and int32 labels [n].

    All in the order of the split; `place` [n] is each row's index in the split; unreadable examples
    have no row.
    """

    columns: dict[Column, np.ndarray]
    label: np.ndarray
    place: np.ndarray


def seen_by_head(cfg: Model) -> Column:
    """What the head is applied to; by the name of a plain pooling, where it is no more than that."""
    return Column(cfg.depth - 1, _own(cfg))


def pick(cfg: Model, *, layer: int, pool: str) -> Column:
    """The column after a block, -1 for the last. Raises UserError for one that `cfg` lacks."""
    depth = cfg.depth
    if not -depth <= layer < depth:
        raise _wrong(f"layer={layer} is not between -{depth} and {depth - 1}, the blocks of the model")
    _want(cfg, pool, get_args(Pooling), field="pool")
    return Column(layer % depth, _own(cfg) if pool == "model" else pool)


def _own(cfg: Model) -> str:
    plain = cfg.pooling in ("token", "gap") and not cfg.pre_logits and cfg.final_norm == "tokens"
    return cfg.pooling if plain else "model"


def _want(cfg: Model, pooling: str, known: tuple[str, ...], *, field: str) -> None:
    if pooling not in known:
        raise _wrong(f"{field}={pooling} is not one of {', '.join(known)}")
    if pooling == "token" and not cfg.class_token:
        raise _wrong(f"{field}=token: the model has no class token: use gap or model")


def _wrong(message: str) -> UserError:
    return UserError(message, command=f"--{message}")


def choose(cfg: Model, *, layers: int, poolings: Iterable[str]) -> tuple[Column, ...]:
    """The columns of the last `layers` blocks, each once. Raises UserError for those that `cfg` lacks.

    The head is only ever applied to the last block: "model" is one column.
    """
    if not 1 <= layers <= cfg.depth:
        raise UserError(f"--layers={layers} is not between 1 and the {cfg.depth} blocks of the model")
    found: list[Column] = []
    for pooling in poolings:
        _want(cfg, pooling, POOLINGS, field="pooling")
        if pooling == "model":
            found.append(seen_by_head(cfg))
        else:
            found += [Column(i, pooling) for i in range(cfg.depth - layers, cfg.depth)]
    return tuple(dict.fromkeys(found))


def meaningful(cfg: Model) -> tuple[str, ...]:
    """The poolings that `cfg` has."""
    return POOLINGS if cfg.class_token else POOLINGS[1:]


def extract(
    cfg: Model, params: Any, images: jax.Array | Patches, columns: tuple[Column, ...]
) -> dict[Column, jax.Array]:
    """float32 [b, p] of each column for normalised images, dropout off; [b, n, d] where nothing is pooled.

    Of Patches, tokens of padding are 0.

    Tokens are those of the block under the model's final norm, as DINO evaluates its last blocks
    (arXiv:2104.14294 appendix F.2); after the last block this is what pooling sees.
    """
    wanted = {f"block_{column.layer}" for column in columns}
    _, state = build(cfg).apply(
        {"params": params},
        images,
        logits=False,
        capture_intermediates=lambda module, method: module.name in wanted and method == "__call__",
        mutable=["intermediates"],
    )
    captured: Any = state["intermediates"]
    grid = (native.grid_of(cfg, images, cfg.patch_size),) if isinstance(images, Patches) else ()

    def found(column: Column) -> jax.Array:
        x_bnd = captured[f"block_{column.layer}"]["__call__"][0]
        if cfg.final_norm == "tokens":
            x_bnd = cast(jax.Array, Norm(cfg).apply({"params": params["norm"]}, x_bnd))
        return _pooled(cfg, params, x_bnd, column.pooling, *grid).astype(jnp.float32)

    return {column: found(column) for column in columns}


def _pooled(cfg: Model, params: Any, x_bnd: jax.Array, pooling: str, grid_b2: Any = None) -> Any:
    if pooling == "none":
        if grid_b2 is None:
            return x_bnd
        return jnp.where(native.real(grid_b2, x_bnd.shape[1], cfg.prefix)[..., None], x_bnd, 0)
    if pooling in ("token", "gap"):
        x_bd = x_bnd[:, 0] if pooling == "token" else native.mean(x_bnd[:, cfg.prefix :], grid_b2)
        norm = {"params": params["pool"]["norm"]} if cfg.final_norm == "pooled" else None
        return x_bd if norm is None else Norm(cfg).apply(norm, x_bd)
    return Pool(cfg).apply({"params": params.get("pool", {})}, x_bnd, grid_b2, train=False)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be computed of a split, but for the parameters and the examples themselves."""

    cfg: Model
    preprocess: Preprocess
    data: Data
    columns: tuple[Column, ...]
    train: bool
    batch_size: int

    def key(self, params: Any, source: Source) -> str:
        """All that the features depend on, as JSON: weights, preprocessing, columns, examples."""
        data = self.data
        facts = {
            "format": FORMAT,
            "model": dataclasses.asdict(self.cfg),
            "params": digest_of(params),
            "preprocess": dataclasses.asdict(self.preprocess),
            "columns": [column.name for column in self.columns],
            "data": [data.name, data.train_split if self.train else data.eval_split, data.on_error],
            "train": self.train,
            "files": _digest([json.dumps(source.files()).encode()]),
            "size": source.size,
            "classes": source.class_names,
        }
        return json.dumps(facts, sort_keys=True)

    def run(self, params: Any, source: Source, on_progress: Callable[[int], None]) -> Split:
        """Every example through the model, on all devices; `on_progress` is called with how many are done.

        Raises UserError if none can be read, or for features that are not finite.
        """
        forward = lambda params, image_bhwc: extract(self.cfg, params, image_bhwc, self.columns)
        size = seen_size(self.cfg, self.preprocess)
        seen: Any = {"preprocess": self.preprocess, "image_size": size, "batch_size": self.batch_size}
        labels, rows, at = [], [], []
        for label_b, made in walk(
            forward, params, source, self.data, on_progress=on_progress, which=at.append, **seen
        ):
            labels.append(label_b)
            rows.append(made)
        label_n = np.concatenate(labels)
        if not len(label_n):
            raise UserError(f"{self.data.name}: no example can be read")
        made = {column: np.concatenate([row[column] for row in rows]) for column in self.columns}
        bad = [column.name for column, x_np in made.items() if not np.isfinite(x_np).all()]
        if bad:
            raise UserError(
                f"the model gives features that are not finite: {', '.join(bad)}: nothing was kept"
            )
        return Split(made, label_n, np.concatenate(at))


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of features, one file per key. Raises UserError if it cannot be written to."""

    folder: Path

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()  # now, and not after the features are computed
        except OSError as error:
            raise _not_writable(self.folder, error) from error

    def split(
        self, job: Job, params: Any, source: Source, on_progress: Callable[[int], None] = lambda done: None
    ) -> tuple[Split, Path, bool]:
        """(features, their file, whether they were in it); what was not there is computed and kept.

        `on_progress` is called with the number of examples done so far.
        """
        key = job.key(params, source)
        path = self.folder / f"{_digest([key.encode()])}.npz"
        found = load(path, key, job.columns)
        if found is not None:
            return found, path, True
        made = job.run(params, source, on_progress)
        save(path, key, made)
        return made, path, False


def load(path: Path, key: str, columns: tuple[Column, ...]) -> Split | None:
    """What `save` wrote under `key`; None if there is nothing, something else, or something broken.

    Bytes that changed on disk are found by the sums that npz files carry.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return Split({c: file[c.name] for c in columns}, file["label"], file["place"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save(path: Path, key: str, split: Split) -> None:
    """Write under another name, then rename: readers see all or nothing. Raises UserError."""
    arrays: Any = {column.name: x_np for column, x_np in split.columns.items()}
    part = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = Path(file.name)
            np.savez(file, key=np.array(key), label=split.label, place=split.place, **arrays)
        part.replace(path)
    except BaseException as error:
        if part:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_writable(path.parent, error) from error
        raise


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write --cache {folder}: {error.strerror}: choose another folder")


def digest_of(params: Any) -> str:
    """Of all parameters, in the order of the tree."""
    return _digest(np.asarray(x).tobytes() for x in jax.tree.leaves(params))


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(part)
    return whole.hexdigest()
