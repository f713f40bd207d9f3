"""Copies on this machine of files in a bucket."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.paths import File

AT_ONCE = 8  # files


def cache_dir() -> Path:
    """$VIT_JAX_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VIT_JAX_CACHE") or Path(base) / "vit_jax")


@contextlib.contextmanager
def progress(what: str, total: int | None, start: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on stderr, from `start` to `total` if it is known, and the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=start)
        yield lambda count: bar.advance(task, count)


def bring(files: Sequence[File], root: paths.Path, to: Path) -> None:
    """Copy `files` below `root` of a bucket to the same places below `to`.

    One process of this machine copies, the others wait for it. Files that are there in their size are kept,
    so that a copy goes on where it was interrupted. Raises UserError where there is no room, or no answer.
    """
    with _alone(to), paths.reached(root):
        missing = {file: target for file in files if not _whole(target := _below(to, file, root), file.bytes)}
        if not missing:
            return
        room, wanted = shutil.disk_usage(to).free, sum(file.bytes for file in missing)
        if wanted > room:
            raise UserError(
                f"{root} wants {wanted / 1e9:.1f} GB in {to}, which has room for {room / 1e9:.1f} GB"
            )
        with progress(f"{root} -> {to}", wanted) as advance, ThreadPoolExecutor(AT_ONCE) as pool:
            copied = [pool.submit(_copy, file, target, advance) for file, target in missing.items()]
            try:
                for copy in copied:
                    copy.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _below(to: Path, file: File, root: paths.Path) -> Path:
    return to / file.path.removeprefix(f"{root}/")


def _whole(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _copy(file: File, target: Path, advance: Callable[[int], None]) -> None:
    from fsspec.callbacks import Callback  # not before it is needed

    class Advance(Callback):
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    paths.bucket().get_file(file.path, str(part), callback=Advance())
    if not _whole(part, file.bytes):
        raise UserError(
            f"{file.path} arrived with {part.stat().st_size:,} of {file.bytes:,} bytes: try again"
        )
    part.replace(target)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, where the file system has locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # not everywhere

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
