"""Reading and writing safetensors: a length, a JSON header, and the arrays one behind the other.

Everything that the header claims is checked before any array is read. Writing is atomic. Format:
github.com/huggingface/safetensors.
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from vit_jax import paths
from vit_jax.fields import fail
from vit_jax.weights.formats.npz import Entry

MOST_HEADER = 10**8  # bytes, the limit of the format
DTYPES: dict[str, Any] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
METADATA = "__metadata__"
OURS = "vit_jax"  # the key of our own lines in the header, which other readers pass over


class Archive:
    """A safetensors file of which only the header has been read."""

    def __init__(self, path: Path) -> None:
        """Raises UserError, on one line, for anything that is not a whole safetensors file."""
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, Any] = {}
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(MOST_HEADER, size - 8):
                    fail(f"{path} is not a safetensors file, or cut short ({size:,} bytes): get it again")
                header = json.loads(file.read(length))
        except OSError as error:
            fail(f"{path} cannot be read: {error.strerror}: check the path")
        except (ValueError, RecursionError):
            fail(f"{path} has no header that could be read: it is no safetensors file, or a damaged one")
        self._start = 8 + length
        self._offsets: dict[str, int] = {}
        self._scan(header, size - self._start)

    def _scan(self, header: Any, size: int) -> None:
        try:
            self.metadata = json.loads(header.pop(METADATA, {}).get(OURS, "{}"))
            spans = sorted((row["data_offsets"], name, row) for name, row in header.items())
            end = 0
            for (start, stop), name, row in spans:
                entry = Entry(tuple(map(int, row["shape"])), np.dtype(DTYPES[row["dtype"]]), False)
                if start != end or stop - start != entry.nbytes or min(entry.shape, default=0) < 0:
                    fail(f"{self.path}: {name} declares shape {entry.shape} but holds {stop - start:,} bytes")
                self.entries[name], self._offsets[name] = entry, start
                end = stop
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            fail(f"{self.path} has a damaged header ({type(error).__name__}: {error}): get the file again")
        if end != size:
            fail(f"{self.path} is cut short: {size:,} of {end:,} bytes of arrays: get the file again")

    @property
    def image_hw(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the images the model was saved for, in files that `write` wrote."""
        size = self.metadata.get("image_size")
        return (int(size[0]), int(size[1])) if size else None

    @property
    def heads(self) -> int | None:
        """Attention heads, in files that `write` wrote."""
        heads = self.metadata.get("heads")
        return int(heads) if heads else None

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the model that readers of its family choose, in files that `write` wrote."""
        return dict(self.metadata.get("fields", {}))

    def read(self, name: str) -> np.ndarray:
        """One array as float32."""
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(self._start + self._offsets[name])
            raw = file.read(entry.nbytes)
        return np.frombuffer(raw, entry.dtype).reshape(entry.shape).astype(np.float32)


class Shards:
    """Several safetensors files that an index names, as one archive; each array is read from its own file."""

    def __init__(self, path: Path) -> None:
        """Raises UserError, on one line, where index and files do not fit each other."""
        self.path, self._file = path, shards_of(path)
        self._archives = {file: Archive(path.parent / file) for file in sorted(set(self._file.values()))}
        lying = {name: file for file, archive in self._archives.items() for name in archive.entries}
        wrong = sorted(n for n in self._file | lying if self._file.get(n) != lying.get(n))
        if wrong:
            fail(f"{path} and its files do not agree where {', '.join(wrong)} lies: get them again")
        self.entries: dict[str, Entry] = {n: self._archives[f].entries[n] for n, f in self._file.items()}

    image_hw = heads = None  # what only files of ours tell
    fields: ClassVar[dict[str, Any]] = {}

    def read(self, name: str) -> np.ndarray:
        """One array as float32."""
        return self._archives[self._file[name]].read(name)


def shards_of(path: Path) -> dict[str, str]:
    """{array: file beside the index} of an index. Raises UserError for anything else."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if files and all(re.fullmatch(r"[\w.-]+\.safetensors", file) for file in files.values()):
            return files
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}: check the path")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    fail(f"{path} is no index of safetensors files, which has a weight_map of names to files beside it")


def opened(path: Path) -> Archive | Shards:
    """One file, or the files of an index. Raises UserError as they do."""
    return Shards(path) if path.suffix == ".json" else Archive(path)


def write(
    path: paths.Path,
    arrays: dict[str, np.ndarray],
    *,
    image_hw: tuple[int, int],
    heads: int | None = None,
    fields: dict[str, Any] | None = None,
) -> None:
    """Write float32 arrays in the order of their names, whole or not at all. Raises UserError.

    Image size, heads and fields that no array tells go into a line of our own in the header.
    """
    names, offset = sorted(arrays), 0
    metadata: dict[str, Any] = {"image_size": list(image_hw)} | ({"heads": heads} if heads else {})
    metadata |= {"fields": fields} if fields else {}
    header: dict[str, Any] = {METADATA: {"format": "pt", OURS: json.dumps(metadata, sort_keys=True)}}
    for name in names:
        end = offset + arrays[name].nbytes
        header[name] = {"dtype": "F32", "shape": list(arrays[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of eight
    with paths.replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name], "<f4").tobytes())
