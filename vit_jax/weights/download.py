"""Files of gs:// and https:// addresses, through a cache on this machine."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from vit_jax import paths, staging
from vit_jax.errors import first_line
from vit_jax.fields import fail

CHUNK = 2**20
ATTEMPTS = 4  # connections that break off are taken up again where they broke
TIMEOUT_S = 60
PUBLIC_GCS = "https://storage.googleapis.com/"


def download(address: str) -> Path:
    """The cached file of a gs:// or https:// address; an interrupted download goes on where it stopped.

    Checked against the size and, where the server tells one, the MD5 of the whole. Raises UserError.
    """
    url = address.replace("gs://", PUBLIC_GCS, 1)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        fail(f"{address} is not an address this can read: give gs:// or https://")
    path = (
        staging.cache_dir()
        / re.sub(r"[^\w.-]", "_", parts.netloc)
        / re.sub(r"[^\w.+/-]", "_", parts.path.strip("/"))
    )
    if ".." in path.parts:
        fail(f"{address} leads out of the cache: give the address without '..'")
    if path.exists():
        return path
    if address.startswith("gs://") and "STORAGE_EMULATOR_HOST" in os.environ:
        return _with_credentials(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            _resume(address, urllib.parse.quote(url, safe=":/?=&%~"), part)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403) and address.startswith("gs://"):
                return _with_credentials(address)
            if error.code != 416:
                fail(f"{address}: the server answers {error.code} {error.reason}: check the address")
            part.unlink(missing_ok=True)
        except (http.client.HTTPException, OSError) as error:
            if attempt + 1 == ATTEMPTS:
                what = f"{address} could not be read ({first_line(error)})"
                fail(f"{what}: check the connection and try again, it resumes")
    part.replace(path)
    part.with_suffix(".json").unlink(missing_ok=True)
    return path


def _resume(address: str, url: str, part: Path) -> None:
    """Bring `part` to its full length. Raises OSError or HTTPException where the connection ends early."""
    note = part.with_suffix(".json")  # the version of the file that the part is of
    tag = json.loads(note.read_text())["etag"] if note.exists() and part.exists() else ""
    start = part.stat().st_size if tag else 0
    headers = {"Range": f"bytes={start}-", "If-Range": tag} if start else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as reply:
        if "text/html" in reply.headers.get("Content-Type", ""):
            fail(f"{address} gives a web page, not a weights file: check the address")
        start = start if reply.status == 206 else 0
        length = reply.headers.get("Content-Length")
        total = start + int(length) if length else None
        note.write_text(json.dumps({"etag": reply.headers.get("ETag", "")}))
        name, mode = part.name.removesuffix(".part"), "ab" if start else "wb"
        with part.open(mode) as file, staging.progress(name, total, start) as advance:
            while chunk := reply.read1(CHUNK):  # keeps what arrived before a break, unlike read
                file.write(chunk)
                advance(len(chunk))
        size = part.stat().st_size
        if total is not None and size < total:
            raise OSError(f"the connection ended at {size:,} of {total:,} bytes")
        _check_md5(address, part, reply.headers.get_all("x-goog-hash") or [])


def _check_md5(address: str, part: Path, headers: list[str]) -> None:
    """Raise UserError, and drop the file, unless its MD5 is the one that Google's storage tells."""
    wanted = re.search(r"md5=([\w+/=]+)", ",".join(headers))
    if wanted is None:
        return
    with part.open("rb") as file:
        got = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
    if got != wanted[1]:
        part.unlink()
        fail(f"{address} arrived damaged (MD5 {got}, not {wanted[1]}): try again")


def from_bucket(folder: paths.Path, names: Sequence[str]) -> Path:
    """A folder of the cache with those of `names` that a bucket's folder has, as it has them now."""
    files = []
    with paths.reached(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                files.append(paths.object_at(folder / name))
    version = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    to = staging.cache_dir() / str(folder).removeprefix("gs://") / version
    staging.bring(files, folder, to)
    return to


def _with_credentials(address: str) -> Path:
    path = paths.of(address)
    found = from_bucket(path.parent, [path.name]) / path.name
    if not found.exists():
        fail(f"{address} is not there: check the address")
    return found
