"""Reading npz files that may be broken or hostile.

Everything that a file claims (names, shapes, dtypes, sizes) is read and checked before any array is; nothing
is ever unpickled. Writing is atomic.
"""

import math
import re
import zipfile
from pathlib import Path
from typing import IO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.fields import fail

MOST_BYTES = 2**36  # 64 GiB: several times the largest ViT of the tables in float32
# Trained numbers hardly compress; a head of zeros does, and is a small part of a file.
MOST_RATIO, FREE_BYTES = 100, 2**28
MOST_HEADER = 10_000  # bytes of one array's header, numpy's own limit
FLOATS = {"<f2", "<f4", "<f8", ">f2", ">f4", ">f8"}
SIZE_COMMENT = "vit_jax image_size={}x{}"
HTML = (b"<!doctype", b"<html", b"<?xml")


class Entry(NamedTuple):
    """What an array's header declares."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the array, without its header."""
        return math.prod(self.shape) * self.dtype.itemsize


class Archive:
    """An npz of which only the directory and the headers have been read."""

    def __init__(self, path: Path) -> None:
        """Raises UserError, on one line, for anything that is not an npz of plain numbers of a sane size."""
        self.path = path
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.entries: dict[str, Entry] = {}
        self._comment = ""
        try:
            with zipfile.ZipFile(path) as file:
                self._scan(file)
        except UserError:
            raise
        except Exception as error:  # of many kinds, for as many ways to break a file
            fail(_diagnose(path, error))

    def _scan(self, file: zipfile.ZipFile) -> None:
        self._comment = file.comment.decode("latin-1")
        for member in file.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in self._members:
                fail(f"{self.path}: {member.filename!r} is not one array of an npz: is this a weights file?")
            self._members[name] = member
        total = sum(member.file_size for member in self._members.values())
        if total > min(MOST_BYTES, FREE_BYTES + MOST_RATIO * self.path.stat().st_size):
            fail(f"{self.path} declares {total:,} bytes, which no model has: refused, nothing was read")
        for name, member in self._members.items():
            with file.open(member) as stream:
                self.entries[name] = self._header(name, member, stream)

    @property
    def image_hw(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the images the model was saved for, in files that `write` wrote."""
        match = re.match(SIZE_COMMENT.format(r"(\d{1,6})", r"(\d{1,6})") + r"(?: |$)", self._comment)
        return (int(match[1]), int(match[2])) if match else None

    fields: ClassVar[dict[str, object]] = {}  # of the model, which only safetensors tell

    @property
    def heads(self) -> int | None:
        """Attention heads, in torch layouts that `write` wrote: there no array tells them."""
        match = re.search(r" heads=(\d{1,4})$", self._comment)
        return int(match[1]) if match else None

    def _header(self, name: str, member: zipfile.ZipInfo, stream: IO[bytes]) -> Entry:
        try:
            version = np.lib.format.read_magic(stream)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, fortran, dtype = readers[version](stream, max_header_size=MOST_HEADER)
        except Exception:  # of many kinds: the header is parsed as a Python literal
            fail(f"{self.path}: {name} has no header that numpy could read: the file is broken")
        if dtype.hasobject:
            fail(f"{self.path}: {name} holds pickled objects, which could run code: refused, not unpickled")
        entry = Entry(shape, dtype, fortran)
        if min(shape, default=0) < 0 or stream.tell() + entry.nbytes != member.file_size:
            fail(f"{self.path}: {name} declares shape {shape} but holds {member.file_size:,} bytes: refused")
        return entry

    def read(self, name: str) -> np.ndarray:
        """One array as float32. bfloat16 lies in npz files as two raw bytes. Raises UserError."""
        entry = self.entries[name]
        raw = np.empty(entry.nbytes, np.uint8)
        try:
            with zipfile.ZipFile(self.path) as file, file.open(self._members[name]) as stream:
                self._header(name, self._members[name], stream)
                if stream.readinto(memoryview(raw)) != entry.nbytes or stream.read(1):  # type: ignore[attr-defined]
                    fail(f"{self.path}: {name} is cut short: get the file again")
        except UserError:
            raise
        except Exception as error:  # a checksum, a compressed stream, the disk
            fail(_diagnose(self.path, error))
        dtype = np.dtype(ml_dtypes.bfloat16) if is_bfloat16(entry.dtype) else entry.dtype
        array = raw.view(dtype).reshape(entry.shape, order="F" if entry.fortran else "C")
        return np.ascontiguousarray(array, np.float32).reshape(entry.shape)


def is_number(dtype: np.dtype) -> bool:
    """Whether `read` can make float32 of it."""
    return dtype.str in FLOATS or is_bfloat16(dtype)


def is_bfloat16(dtype: np.dtype) -> bool:
    """bfloat16, which numpy, as it does not know it, saves as void of two bytes."""
    return dtype == np.dtype("V2") or dtype == np.dtype(ml_dtypes.bfloat16)


def write(
    path: paths.Path, arrays: dict[str, np.ndarray], *, image_hw: tuple[int, int], heads: int | None = None
) -> None:
    """Write an npz, whole or not at all. Raises UserError.

    The image size, which no array tells for sure, and the heads, where no array tells them, go into the zip's
    comment, that other readers pass over.
    """
    with paths.replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        stated = f" heads={heads}" if heads else ""
        archive.comment = (SIZE_COMMENT.format(*image_hw) + stated).encode()
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def _diagnose(path: Path, error: Exception) -> str:
    if not path.exists():
        return f"there is no file {path}: check the path"
    if path.is_dir():
        return f"{path} is a folder, not a weights file: name the .npz file"
    with path.open("rb") as file:
        start = file.read(512)
    size = f"{path.stat().st_size:,} bytes"
    if not start:
        return f"{path} is empty: get the file again"
    if start.lstrip().lower().startswith(HTML):
        return (
            f"{path} is a web page ({size}), not an npz: the download gave an error page; get the file again"
        )
    if start.startswith(b"PK"):
        return f"{path} is cut short or damaged ({size}; {error}): get the file again"
    return f"{path} is not an npz file ({size}): give an .npz of the official or big_vision code"
