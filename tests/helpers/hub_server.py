"""A Hugging Face Hub on this machine: the paths, headers and errors of the real one that tell models."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path
from typing import NamedTuple

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class Hub(NamedTuple):
    """Where it answers, and what it was asked for, as `METHOD path`."""

    url: str
    asked: list[str]
    gated: set[str]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ROOT/org/name/REVISION/FILE; an organisation named `gated` wants a token."""

    root: Path
    asked: list[str]
    gated: set[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            org, name, kind, revision = path.removeprefix("/api/models/").split("/")[:4]
            assert kind == "tree", path
            folder = self._folder(org, name, revision)
            files = [(f.name, f.stat().st_size) for f in folder.iterdir()] if folder else []
            listed = [{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in files]
            self._send(json.dumps(listed).encode(), {"Content-Type": "application/json"}, body)
            return
        if "/resolve/" not in path:
            self._refuse(404, {})
            return
        org, name, _, revision, file = path.strip("/").split("/")
        if f"{org}/{name}" in self.gated and "Authorization" not in self.headers:
            self._refuse(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif not (self.root / org / name).is_dir():
            self._refuse(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif (folder := self._folder(org, name, revision)) is None:
            self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        elif not (folder / file).is_file():
            commit = COMMITS[folder.name]
            self._refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            data, commit = (folder / file).read_bytes(), COMMITS[folder.name]
            etag = f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"'
            self._send(data, {"ETag": etag, "X-Repo-Commit": commit}, body)

    def _folder(self, org: str, name: str, revision: str) -> Path | None:
        names = {commit: branch for branch, commit in COMMITS.items()} | {b: b for b in COMMITS}
        folder = self.root / org / name / names.get(revision, "none")
        return folder if folder.is_dir() else None

    def _send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _refuse(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(root: Path) -> tuple[http.server.ThreadingHTTPServer, Hub]:
    """A running server of ROOT, to be shut down by who asked for it."""
    handler = type("Fresh", (Handler,), {"root": root, "asked": [], "gated": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, Hub(f"http://127.0.0.1:{server.server_port}", handler.asked, handler.gated)
