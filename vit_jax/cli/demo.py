"""A web page on this machine: drop images, see their classes, where the model looked, and what is near."""

import errno
import html
import json
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_jax.cli.common import REF, make_parser, nonempty_path, run_command
from vit_jax.errors import UserError

if TYPE_CHECKING:
    from vit_jax.cli.answers import Answers

EXAMPLES = """examples:
  python -m vit_jax.cli.demo runs/pets
  python -m vit_jax.cli.embed runs/pets photos --out features.npz
  python -m vit_jax.cli.demo runs/pets --features features.npz

The page is for this machine alone unless --host says otherwise; whoever reaches it may use the model, and
sees the images that --features names. Nothing that is dropped is kept. Confidences are those of `classify`.
"""
PORT = 7860
MOST_BYTES = 64 * 2**20  # of an image file
PATIENCE_S = 60  # with a browser that stops in the middle of an image
PAGE = Path(__file__).with_suffix(".html")


class Server(ThreadingHTTPServer):
    """Answers on a port that is taken at once; `answers` and `title` are set before it serves."""

    daemon_threads = True
    answers: "Answers"
    title: str

    @property
    def url(self) -> str:
        """Its address for a browser."""
        host, port = self.server_address[:2]
        return f"http://{host}:{port}"


def bind(host: str, port: int) -> Server:
    """A server there; port 0 is a free one. Raises UserError for a port that cannot be had."""
    try:
        return Server((host, port), _Handler)
    except (OSError, OverflowError) as e:
        if isinstance(e, OSError) and e.errno == errno.EADDRINUSE:
            raise UserError(f"--port={port} is taken: give another, or 0 for one that is free") from e
        raise UserError(f"cannot listen at --host={host} --port={port}: {e}") from e


def main() -> None:
    """Parse the command line, load, compile, serve until Ctrl-C."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("ref", help=REF)
    parser.add_argument(
        "--features", type=nonempty_path, help="file of embed: show the nearest of its images"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port; 0: a free one (default: {PORT})")
    args = parser.parse_args()
    with bind(args.host, args.port) as server:  # first: a port that is taken is told at once
        from PIL import Image  # after parsing: --help stays quick

        import vit_jax
        from vit_jax.cli import answers, embed

        loaded = vit_jax.load(args.ref)
        loaded.need_head()
        near = args.features and answers.near(loaded, embed.read(args.features), str(args.features))
        server.title, server.answers = args.ref, answers.Answers(loaded, near)
        server.answers(answers.png(Image.new("L", (8, 8))))  # compiles, before anybody waits
        print(f"demo of {args.ref}: {server.url} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        if self.path == "/":
            page = PAGE.read_text(encoding="utf-8").replace("MOST_BYTES", str(MOST_BYTES))
            page = page.replace("MODEL", html.escape(self.server.title))
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())
        elif self.path.startswith("/near/"):
            self._answer("image/png", lambda: self._near(self.path.removeprefix("/near/")))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        elif int(length) > MOST_BYTES:
            most = f"images of up to {MOST_BYTES // 2**20} MiB are taken"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file is too large: {most}")
        else:
            data = self.rfile.read(int(length))
            self._answer("application/json", lambda: json.dumps(self.server.answers(data)).encode())

    def _near(self, number: str) -> bytes:
        near = self.server.answers.near
        if not near or not number.isdecimal() or int(number) >= len(near.names):
            raise UserError(f"there is no image {number}")
        return near.picture(int(number))

    def _answer(self, kind: str, make: Callable[[], bytes]) -> None:
        """What `make` gives. A user's mistake is the reply; our own errors are printed in the terminal."""
        try:
            made = make()
        except UserError as e:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(e))
        except Exception:
            traceback.print_exc()
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the demo failed: its terminal says where")
        self._send(HTTPStatus.OK, kind, made)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send(status, "application/json", json.dumps({"error": message}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True  # the browser has gone

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: each request would be a line."""


if __name__ == "__main__":
    raise SystemExit(run_command(main))
