"""Downloads: cached, resumed, checked by size and hash, clear when they fail. The server is a local one."""

import base64
import hashlib
import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator

import pytest
from commands import call
from paths import GOLDEN

import vit_jax
from vit_jax.analysis import predictions
from vit_jax.cli import info
from vit_jax.errors import UserError
from vit_jax.weights import download as downloads
from vit_jax.weights.load import read

DATA = (GOLDEN / "vit_token.npz").read_bytes()
MD5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA as /KIND/w.npz, with what KIND does to it, and remembers the ranges asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.asked.append(f"{kind} {start}")
        if kind == "absent":
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        chunked, left = kind == "chunks", len(DATA) - start
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(left))))
        self.send_header("ETag", '"one"')
        self.send_header("Content-Type", "text/html" if kind == "page" else "application/octet-stream")
        if kind in ("whole", "breaks", "damaged"):
            self.send_header("x-goog-hash", "crc32c=AAAAAA==")
            self.send_header("x-goog-hash", f"md5={'AAAA' if kind == 'damaged' else MD5}")
        self.end_headers()
        end = min(start + 80_000, len(DATA)) if kind in ("breaks", "stops", "chunks") else len(DATA)
        sent = DATA[start : start if kind == "stops" and start else end]
        if chunked:  # one chunk of all that is left, of which the last request alone gets the whole
            sent = b"%x\r\n%b%b" % (left, sent, b"\r\n0\r\n\r\n" if end == len(DATA) else b"")
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[tuple[str, list[str]]]:
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    handler = type("Fresh", (Handler,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", handler.asked
        httpd.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server):
    url, asked = server
    first, second = read(f"{url}/whole/w.npz"), read(f"{url}/whole/w.npz")
    assert first.model == second.model
    assert first.report.source == f"{url}/whole/w.npz"
    assert asked == ["whole 0"]


@pytest.mark.parametrize("kind", ["breaks", "chunks"])
def test_a_broken_connection_is_taken_up_where_it_broke(server, kind):
    url, asked = server
    path = downloads.download(f"{url}/{kind}/w.npz")
    assert path.read_bytes() == DATA
    assert asked == [f"{kind} 0", f"{kind} 80000", f"{kind} 160000"]
    assert [p.name for p in path.parent.iterdir()] == ["w.npz"]


def test_the_next_call_resumes_too(server):
    url, asked = server
    with pytest.raises(UserError, match=r"ended at 80,000 of 207,830 bytes.*it resumes"):
        downloads.download(f"{url}/stops/w.npz")
    assert asked == ["stops 0", *["stops 80000"] * 3]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "the server answers 404 Not Found: check the address"),
        ("page", "gives a web page, not a weights file"),
        ("damaged", "arrived damaged"),
    ],
)
def test_what_is_not_the_file_is_refused_and_not_kept(server, kind, message, tmp_path):
    url, _ = server
    with pytest.raises(UserError, match=message):
        downloads.download(f"{url}/{kind}/w.npz")
    assert not list((tmp_path / "cache").rglob("*.npz"))
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_google_address_and_a_published_name_go_to_the_public_bucket(server, monkeypatch):
    url, asked = server
    monkeypatch.setattr(downloads, "PUBLIC_GCS", f"{url}/whole/")
    read("gs://bucket/w.npz")
    assert read("imagenet21k/ViT-B_16").report.source == "imagenet21k/ViT-B_16"
    assert len(asked) == 2


def test_a_public_file_of_a_bucket_is_used_without_the_package_for_buckets(server, monkeypatch, capsys):
    url, asked = server
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    monkeypatch.setattr(downloads, "PUBLIC_GCS", f"{url}/whole/")
    loaded = vit_jax.load("gs://bucket/w.npz")
    assert (loaded.report.source, loaded.calibration) == ("gs://bucket/w.npz", None)
    code, out, _ = call(monkeypatch, capsys, info, "gs://bucket/w.npz", "--json")
    assert (code, json.loads(out)["result"], json.loads(out)["stopped_early"]) == (0, None, None)
    assert predictions.load("gs://bucket/w.npz") is None  # a model, to be loaded
    assert asked == ["whole 0"]
    with pytest.raises(UserError, match=r"is in a bucket: pip install"):
        vit_jax.load("gs://bucket/run")


def test_an_address_of_another_kind_and_one_that_nobody_answers(server):
    with pytest.raises(UserError, match="give gs:// or https://"):
        read("ftp://host/w.npz")
    with pytest.raises(UserError, match=r"could not be read .*it resumes"):
        read("http://127.0.0.1:9/w.npz")
