"""An OpenAI-compatible server on loopback that does what a test tells it to: answer well, slowly, wrongly, not at all.

    with MisbehavingServer(script) as server:
        ... server.base_url ... server.asked ...

A script is asked about every chat completion and returns an Act; `None` is a sound answer. What is asked again with the
same clip and turn is the same to a script except for `Asked.times`.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny-eyes"
KEY = "sk-correct-horse-battery-staple"


@dataclass(frozen=True)
class Asked:
    """A request for a chat completion."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    at: float
    """When it came, on the monotonic clock, seconds."""
    number: int = 0
    """Requests that came before."""
    times: int = 0
    """How often this turn of this clip was asked before."""

    @property
    def turn(self) -> str:
        """trial, caption or qa."""
        messages = self.body["messages"]
        if len(messages) == 1:
            return "caption"
        return "trial" if messages[1]["content"] == "A grey picture." else "qa"

    @property
    def pictures(self) -> list[str]:
        """The frames as they came: data URLs, or parts of one."""
        parts = self.body["messages"][0]["content"]
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        videos = [part["video_url"]["url"] for part in parts if part["type"] == "video_url"]
        return images or [picture for video in videos for picture in video.partition(",")[2].split(",")]

    @property
    def clip(self) -> str:
        """A name for what is asked about, from the frames."""
        return hashlib.sha256("".join(self.pictures).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Act:
    """What to do with a request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    wait_s: float = 0.0
    """Seconds before the answer."""
    send_bytes: int | None = None
    """Bytes of the body that are sent before the connection is cut; None: all; -1: not even headers."""


Script = Callable[[Asked], Act | None]


def says(
    text: str | None, finish: str = "stop", *, refusal: str | None = None, usage: bool = True, prompt_tokens: int = 40
) -> Act:
    """A chat completion with this text."""
    tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 32}}
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if refusal is not None:
        choice["message"]["refusal"] = refusal  # type: ignore[index]
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    return Act(body=json.dumps({**answer, **({"usage": tokens} if usage else {})}).encode())


def fails(status: int, message: str = "on purpose", code: str | None = None, **headers: str) -> Act:
    """An error as the API has them. A header's name is written with _ for -."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Act(status, named, json.dumps(body).encode())


def caption_of(asked: Asked) -> str:
    return f"A small disc with the mark {asked.clip} moves slowly across a dark field."


def pairs_of(asked: Asked) -> list[dict[str, str]]:
    """Three pairs that keep every rule of `clean`."""
    things = ("disc in the middle", "dark field on the left side", "bright edge along the bottom")
    says_of = ("moves slowly to the right", "keeps its colour and its grain", "grows a little wider")
    return [
        {
            "instruction": f"Describe the {thing} of the picture.",
            "answer": f"The {thing} carries the mark {asked.clip}. It {does} from the first second to the last one.",
        }
        for thing, does in zip(things, says_of, strict=True)
    ]


def sound(asked: Asked) -> Act:
    """The answer of a server that behaves."""
    return says(caption_of(asked) if asked.turn == "caption" else json.dumps({"pairs": pairs_of(asked)}))


def shares(acts: Mapping[str, Callable[[Asked], Act]], share: float, seed: int = 0) -> Script:
    """Each act at so many of the requests: by clip, turn and times asked, so that the order of requests changes
    nothing. The trial is always answered well."""

    def script(asked: Asked) -> Act | None:
        if asked.turn == "trial":
            return None
        drawn = random.Random(f"{seed} {asked.clip} {asked.turn} {asked.times}").random()
        place = int(drawn / share)
        return list(acts.values())[place](asked) if place < len(acts) else None

    return script


class MisbehavingServer:
    """See the module's text."""

    def __init__(self, script: Script = lambda asked: None, *, key: str = KEY, models: list[str] | None = None) -> None:
        self.script = script
        self.key = key
        self.models = [MODEL] if models is None else models
        """What /models lists; empty: there is no /models."""
        self.asked: list[Asked] = []
        """Every request for a completion that came with the key, in order."""
        self.open = 0
        self.most_open = 0
        """Most requests that were open at once."""
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> MisbehavingServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; at the same port as before, should it have been stopped."""
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening; what is connected is cut."""
        if self._server is not None:
            self._server.shutdown()
            self._server.cut_all()
            self._server.server_close()
            self._server = None

    def forget(self) -> None:
        """As if nothing had been asked."""
        self.asked.clear()
        self._times.clear()

    def turns(self) -> list[str]:
        """The turn of every request, in order."""
        return [asked.turn for asked in self.asked]

    def note(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
        asked = Asked(body, headers, time.monotonic())
        with self._lock:
            asked = replace(asked, number=len(self.asked), times=self._times[(asked.clip, asked.turn)])
            self._times[(asked.clip, asked.turn)] += 1
            self.asked.append(asked)
        return asked

    def count_open(self, change: int) -> None:
        with self._lock:
            self.open += change
            self.most_open = max(self.most_open, self.open)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._connections):
            _cut(connection)

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that hangs up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    owner: MisbehavingServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self._welcome():
            return
        if not self.owner.models:
            self._send(fails(404, "Not Found"))
            return
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in self.owner.models]
        self._send(Act(body=json.dumps({"object": "list", "data": data}).encode()))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._welcome():
            return
        if self.path != "/v1/chat/completions":
            self._send(fails(404, f"no route {self.path}"))
        elif self.owner.models and body["model"] not in self.owner.models:
            self._send(fails(404, f"The model `{body['model']}` does not exist.", "model_not_found"))
        else:
            asked = self.owner.note(body, dict(self.headers))
            self.owner.count_open(1)
            try:
                self._send(self.owner.script(asked) or sound(asked))
            finally:
                self.owner.count_open(-1)

    def _welcome(self) -> bool:
        if self.owner.key and self.headers["Authorization"] != f"Bearer {self.owner.key}":
            given = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            self._send(fails(401, f"Incorrect API key provided: {given}.", "invalid_api_key"))
            return False
        return True

    def _send(self, act: Act) -> None:
        if act.wait_s:
            time.sleep(act.wait_s)
        if act.send_bytes == -1:
            self._hang_up()
            return
        self.send_response(act.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(act.body)), **act.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(act.body[: act.send_bytes])
        if act.send_bytes is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        _cut(self.connection)


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
