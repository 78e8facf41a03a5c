"""A Hugging Face hub on loopback with a few tiny repositories, for what a hub's client does when all is not well.

acme/open          two revisions' worth of nothing: open to all
acme/gated         terms to accept first
acme/busy          answers 503
anything else      not there, or private
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"the good weights",
    "model.bin": b"the same as a pickle",
    "tokenizer.json": b"[]",
    "notes.txt": b"nobody asked for these",
}


class _Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.asked.append(path)
        repo = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if repo == "acme/busy":
            self._error(503, {}, body)
        elif repo == "acme/gated":
            self._error(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}, body)
        elif repo != "acme/open":
            self._error(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found."}, body)
        elif not {COMMIT, "main"} & set(path.split("/")):
            self._error(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id."}, body)
        elif path.startswith("api/models/"):
            self._api(path, body)
        else:
            self._file(path.rpartition("/")[2], body)

    def _api(self, path: str, body: bool) -> None:
        listing = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in FILES.items()
        ]
        info = {"id": "acme/open", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
        found = listing if "/tree/" in path else info
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, name: str, body: bool) -> None:
        data = FILES[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self._send(200, data, headers, body)

    def _error(self, status: int, headers: dict[str, str], body: bool) -> None:
        self._send(status, b"{}", headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def hub() -> Iterator[tuple[str, list[str]]]:
    """A running hub: its address, and the paths that were asked for so far."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
