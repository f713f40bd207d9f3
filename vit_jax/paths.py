"""Paths of runs and files: on this machine, or in a bucket of Google Cloud Storage (gs://).

The one is a pathlib.Path, the other an etils.epath.Path, and their methods are the same. A bucket has no
folders, no rename and no append: what takes their place is here.
"""

import contextlib
import errno
import importlib.util
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from vit_jax.errors import UserError, first_line

if TYPE_CHECKING:
    from etils import epath

    Path: TypeAlias = pathlib.Path | epath.Path
else:
    Path = pathlib.PurePath

SCHEME = re.compile(r"([a-zA-Z][\w+.-]+):/+(.*)")  # with one slash, too: pathlib makes it of two


class File(NamedTuple):
    """A file as far as is known without reading it; or, by its digest, what is held in memory."""

    path: str
    bytes: int
    changed_ns: int  # of a bucket's object: its generation


def of(text: str | os.PathLike[str]) -> Path:
    """The path of `text`. Raises UserError for a scheme other than gs://, and where gcsfs is missing."""
    match = SCHEME.fullmatch(str(text))
    if match is None:
        return pathlib.Path(text)
    if match[1] != "gs":
        raise UserError(f"{text}: {match[1]}:// is no place for files here: give a folder or gs://")
    if not match[2].split("/")[0]:
        raise UserError(f"{text} names no bucket: give gs://bucket/folder")
    return _bucket_path(f"gs://{match[2]}")


def at_hand(text: str | os.PathLike[str]) -> Path | None:
    """The path of `text`; None for what can only be downloaded: of the web, or gs:// without gcsfs.

    Raises UserError for other schemes.
    """
    match = SCHEME.fullmatch(str(text))
    scheme = match[1] if match else ""
    if scheme in ("http", "https") or (scheme == "gs" and not _has_gcsfs()):
        return None
    return of(text)


def in_web(text: str) -> bool:
    """Whether `text` is an address of the web, and no path."""
    return text.startswith(("http://", "https://"))


def in_bucket(path: Path) -> bool:
    """Whether `path` is in a bucket."""
    return not isinstance(path, pathlib.Path)


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; unlike is_dir, it raises what kept a bucket from answering."""
    if isinstance(path, pathlib.Path):
        return path.is_dir()
    try:
        return bucket().info(str(path))["type"] == "directory"
    except FileNotFoundError:
        return False


def absolute(path: Path) -> Path:
    """`path` as any folder of work has it."""
    return path.absolute() if isinstance(path, pathlib.Path) else path


def make_folder(path: Path) -> None:
    """The folder and those above it, if they are missing; in a bucket there is nothing to make."""
    if isinstance(path, pathlib.Path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end, and is gone after an error.

    Raises UserError if it cannot be written.
    """
    with reached(path):
        if isinstance(path, pathlib.Path):
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
        else:
            part = pathlib.Path(tempfile.mkdtemp(), path.name)
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if isinstance(path, pathlib.Path):
                part.replace(path)
            else:
                upload(part, path)
        except OSError as error:
            if error.strerror is None:  # what a bucket answered
                raise
            raise UserError(
                f"cannot write {path} ({error.strerror}): choose a folder that exists and has room"
            ) from error
        finally:
            part.unlink(missing_ok=True)
            if in_bucket(path):
                part.parent.rmdir()


def write(path: Path, data: bytes | str) -> None:
    """Write `path` whole or not at all. Raises UserError if it cannot be written."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def upload(file: pathlib.Path, to: Path) -> None:
    """Copy a file of this machine into a bucket."""
    bucket().put_file(str(file), str(to))


def create(path: Path, data: bytes) -> bool:
    """Write an object of a bucket that is not there yet; False if it is, also if another was faster."""
    try:
        bucket().pipe_file(str(path), data, mode="create")
    except FileExistsError:
        return False
    return True


def names_in(folder: Path) -> list[str]:
    """What is in a folder, one level deep, sorted; nothing in one that is not there."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


def folders_in(folder: Path) -> list[str]:
    """The folders in a folder, sorted."""
    if isinstance(folder, pathlib.Path):
        return sorted(p.name for p in folder.iterdir() if p.is_dir())
    found = bucket().ls(str(folder), detail=True)
    return sorted(entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "directory")


def names_below(root: Path) -> Iterator[str]:
    """Every file below a folder, as its name below it with slashes, in no order; links are followed."""
    if isinstance(root, pathlib.Path):
        return (path.relative_to(root).as_posix() for path in _walk(root))
    return (file.path.removeprefix(f"{root}/") for file in files_below(root))


def files_below(root: Path) -> list[File]:
    """Every file below a folder, sorted; links are followed."""
    if isinstance(root, pathlib.Path):
        return stats(map(str, _walk(root)))
    found = bucket().find(str(root), detail=True)
    objects = ((f"gs://{name}", entry) for name, entry in found.items() if not name.endswith("/"))
    return sorted(File(name, int(entry["size"]), int(entry["generation"])) for name, entry in objects)


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Every file below a folder; links are followed, but not in circles."""
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not _leads_back(folder, name)]
        yield from (pathlib.Path(folder, name) for name in names)


def _leads_back(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    return os.path.islink(path) and pathlib.Path(folder).resolve().is_relative_to(os.path.realpath(path))


def read(name: str) -> bytes:
    """A file. Raises OSError where it is not to be read, UserError where a bucket does not answer."""
    if not name.startswith("gs://"):
        return pathlib.Path(name).read_bytes()
    with reached(of(name)):
        try:
            return bucket().cat_file(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error


def object_at(path: Path) -> File:
    """An object of a bucket. Raises FileNotFoundError."""
    found = bucket().info(str(path))
    return File(str(path), int(found["size"]), int(found["generation"]))


def stats(names: Iterable[str]) -> list[File]:
    """The files of these names that are there, sorted."""
    found = []
    for path in map(of, names):
        with contextlib.suppress(OSError):  # a link to nowhere is no file
            found.append(_stat(path) if isinstance(path, pathlib.Path) else object_at(path))
    return sorted(found)


def _stat(path: pathlib.Path) -> File:
    stat = path.stat()
    return File(str(path), stat.st_size, stat.st_mtime_ns)


@contextlib.contextmanager
def reached(path: Path) -> Iterator[None]:
    """Raises UserError where the bucket of `path` refuses, or does not answer after several tries."""
    try:
        yield
    except Exception as error:
        answer = _answer(error) if in_bucket(path) else None
        if answer is None:
            raise
        raise UserError(f"{path}: {answer}") from error


def bucket() -> Any:
    """gcsfs's file system, which tries again for half a minute where a bucket answers that it is busy."""
    import fsspec

    return fsspec.filesystem("gcs")


def _has_gcsfs() -> bool:
    return importlib.util.find_spec("gcsfs") is not None


def _bucket_path(address: str) -> "epath.Path":
    if not _has_gcsfs():
        raise UserError(f"{address} is in a bucket: pip install 'vit_jax[gcs]'")
    os.environ.setdefault("EPATH_USE_TF", "false")  # else epath takes TensorFlow's client where it finds one
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for the bucket's kind first
    import fsspec.config
    from etils import epath  # not before it is needed

    # Others write here, too: TensorStore, and other processes.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(address)


def _answer(error: Exception) -> str | None:
    """What a bucket answered, or why it did not; None for errors of other kinds."""
    import aiohttp
    import requests
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    text = first_line(error)
    if isinstance(error, GoogleAuthError):
        return f"no Google credentials serve here ({text}): gcloud auth application-default login"
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return "there is no such bucket, or no such object in it: check the address"
    if isinstance(error, OSError) and text.startswith("Forbidden"):
        return "the bucket answers 403 Forbidden: check your rights to read and write there"
    if isinstance(error, HttpError):
        code = int(error.code or 0)
        hint = "check your credentials" if code == 401 else "try again later"
        return f"the bucket answers {code or text}: {hint}; what was saved is intact"
    if isinstance(error, (aiohttp.ClientError, requests.RequestException, TimeoutError)):
        return f"the bucket cannot be reached ({type(error).__name__}): check the connection, and try again"
    return None
