"""A bucket of Google Cloud Storage on this machine, with faults when a test wants them.

The emulator stores and answers; what it lacks is added here: preconditions on generations, and answers that
are errors.
"""

import contextlib
import json
import sys
import threading
from collections import Counter
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

NAME = "bkt"


class PreconditionFailed(Exception):
    pass


class Objects(Storage):
    """Writes an object only if it has the generation that the request wants; "0": if there is none."""

    wanted = None

    def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
        try:
            there = self.get_file_obj(bucket_name, file_name)["generation"]
        except NotFound:
            there = "0"
        if self.wanted not in (None, there):
            raise PreconditionFailed
        super().create_file(bucket_name, file_name, content, file_obj, file_id)


class Handler(RequestHandler):
    """The emulator's, one request at a time, behind faults and preconditions."""

    def handle_with(self, method, answer):
        url = urlsplit(self.path)
        with self.server.lock:
            self.server.requests[f"{method} {unquote(url.path)}"] += 1
            status = self.server.fault(method, unquote(self.path))
            if status:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return self.refuse(status)
            self.storage.wanted = parse_qs(url.query).get("ifGenerationMatch", [None])[0]
            try:
                answer()
            except PreconditionFailed:
                self.refuse(412)

    def refuse(self, status):
        message = json.dumps({"error": {"code": status, "message": HTTPStatus(status).phrase}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(message)))
        self.end_headers()
        self.wfile.write(message)

    def do_GET(self):
        self.handle_with("GET", super().do_GET)

    def do_POST(self):
        self.handle_with("POST", super().do_POST)

    def do_PUT(self):
        self.handle_with("PUT", super().do_PUT)

    def do_PATCH(self):
        self.handle_with("PATCH", super().do_PATCH)

    def do_DELETE(self):
        self.handle_with("DELETE", super().do_DELETE)


class Server(ThreadingHTTPServer):
    """Counts `requests` by method and path; `fault(method, path)` is a status to answer, or None."""

    daemon_threads = True

    def __init__(self):
        self.storage, self.lock = Objects(use_memory_fs=True), threading.RLock()
        buckets.create_bucket(NAME, self.storage)
        self.begin()
        super().__init__(("127.0.0.1", 0), partial(Handler, self.storage))

    def handle_error(self, request, client_address):
        """Nothing to say of clients that go away; they are killed here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def begin(self):
        """Without faults, and counting anew."""
        self.requests, self.fault = Counter(), lambda method, path: None

    @property
    def environment(self):
        """What has gcsfs and TensorStore talk to this server."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        }


@contextlib.contextmanager
def serve():
    """A server in a thread of this process."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
