"""The folder of a run: the names in it, how it is claimed for a config, and how it is locked."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax

from vit_jax import paths
from vit_jax.config import differences, parse_stored, to_dict
from vit_jax.errors import UserError
from vit_jax.paths import Path
from vit_jax.run import lease
from vit_jax.sections import Config
from vit_jax.weights.formats import orbax

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Workdir:
    """The folder of one run at `path`, on this machine or in a bucket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / orbax.CONFIG
        self.origin = path / "origin.json"  # what it began with
        self.checkpoints = path / orbax.CHECKPOINTS  # numbered steps
        self.best = path / orbax.BEST  # the one step of the best train.best
        self.unsound = path / "unsound"  # steps that were set aside
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"
        self.tensorboard = path / "tensorboard"
        self.curves = path / "curves.png"
        self.loggers = path / "loggers.json"  # what W&B and MLflow call the run
        self.claims = path / "claims"  # of a folder in a bucket, see lease.py

    def make(self, cfg: Config, *, accept_change: bool) -> None:
        """Make the folder. Raises UserError if it is another config's or cannot be made."""
        try:
            with paths.reached(self.path):
                paths.make_folder(self.path)
                changes = self._changes(cfg)
        except OSError as e:
            raise self._not_writable(e) from e
        except ValueError as e:
            raise UserError(
                f"{self.config} cannot be read ({e}): remove it, and the same command continues"
            ) from e
        if changes and not accept_change:
            raise UserError(
                f"{self.path} holds a run of another config ({'; '.join(changes)}): "
                "use another --workdir, or continue it anyway with --config_change=accept"
            )

    def claim(self, cfg: Config) -> None:
        """Keep `cfg` in the folder, which then refuses others. Raises UserError if it is read-only."""
        if jax.process_index() == 0:
            paths.write(self.config, json.dumps(to_dict(cfg), indent=1))

    def _not_writable(self, error: OSError) -> UserError:
        return UserError(f"cannot write to --workdir={self.path}: {error.strerror}")

    @contextmanager
    def room(self) -> Iterator[None]:
        """Raises UserError for any write inside that fails because the disk is full or read-only."""
        try:
            with paths.reached(self.path):
                yield
        except OSError as e:
            if e.errno not in NO_ROOM:
                raise
            raise UserError(
                f"cannot write to {self.path} ({e.strerror}): earlier checkpoints are intact; "
                "make room, and the same command continues"
            ) from e

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises UserError while another process trains here, if the file system has locks or is a bucket."""
        if jax.process_index() != 0:
            yield
        elif paths.in_bucket(self.path):
            with lease.held(self.claims):
                yield
        else:
            with self._locked():
                yield

    def _changes(self, cfg: Config) -> list[str]:
        """What `cfg` has otherwise than the folder's config, if it has one."""
        try:
            text = self.config.read_text()
        except FileNotFoundError:
            return []
        return differences(parse_stored(json.loads(text)), cfg)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        held = None
        with suppress(ImportError, OSError):
            held = self._lock()
        try:
            yield
        finally:
            if held is not None:
                os.close(held)

    def _lock(self) -> int:
        import fcntl  # not everywhere

        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(folder)
            if e.errno != errno.EWOULDBLOCK:
                raise
            raise UserError(f"another process trains in {self.path}: use another --workdir, or wait") from e
        return folder


def metrics_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, a line each, without a last one that a kill cut off.

    There are none without the file. Raises UserError for other damage.
    """
    if not path.is_file():
        return []
    try:
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        rows = [json.loads(line) for line in whole]
        return [row | {"step": int(row["step"])} for row in rows]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} cannot be read ({e}): remove what is wrong in it, or all of it") from e
