"""A server on loopback that speaks the OpenAI protocol and fails as real ones do.

An exchange is known by the mark ("case-x") in its request; ``steps`` says what happens to it, a step a
request, the last repeated. A step is a function of ``Handler``: ``ok``, ``error``, ``reset``, ``hang``.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serving import serving

Step = Callable[["Handler"], None]
MARK = re.compile(r"case-[\w.-]+")
USAGE = {"prompt_tokens": 900, "completion_tokens": 30, "total_tokens": 930}


class FaultServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: dict[str, list[Step]] = {}  # by the exchange's mark in its request
        self.default: list[Step] = [ok(1)]
        self.models: list[Any] = ["judge-1"]
        self.on_get: Step | None = None  # in place of every reply to a GET
        self.on_connect: Step | None = None  # as a proxy that is asked for a tunnel
        self.connections = 0
        self.got: list[tuple[str, dict[str, str]]] = []  # path and headers of each request
        self.key: str | None = None  # what is asked for, if anything
        self.latency_s = 0.0
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are part of the game."""


class Handler(BaseHTTPRequestHandler):
    server: FaultServer
    body: dict[str, Any]  # of the request at hand
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, code: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, code: int, value: Any, **headers: str) -> None:
        self.send(code, json.dumps(value).encode(), **headers)

    def refused(self) -> bool:
        """Whether the key is wrong; the reply quotes it, as some servers' do."""
        self.server.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        given = self.headers.get("Authorization", "")
        if self.server.key is None or given == f"Bearer {self.server.key}":
            return False
        body = {"message": f"wrong key: {given}", "code": "invalid_api_key", "type": "x", "param": None}
        self.send_json(401, {"error": body})
        return True

    def do_GET(self) -> None:
        server = self.server
        if self.refused():
            return
        if server.on_get:
            server.on_get(self)
            return
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            self.send_json(200, {"object": "list", "data": [model(name) for name in server.models]})
        elif path.startswith("/v1/files/") and path.endswith("/content"):
            self.send(200, server.files[path.split("/")[3]], "application/octet-stream")
        elif path == "/v1/batches":
            self.send_json(200, {"object": "list", "data": list(server.batches.values()), "has_more": False})
        elif path.startswith("/v1/batches/"):
            self.send_json(200, server.batches[path.split("/")[3]])
        else:
            error(404, "not_found", "no such path")(self)

    def do_CONNECT(self) -> None:
        (self.server.on_connect or error(501, "x", "no tunnels"))(self)
        self.close_connection = True

    def do_POST(self) -> None:
        server = self.server
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused():
            return
        if self.path == "/v1/files":
            name = f"file-{len(server.files)}"
            server.files[name] = content.split(b"\r\n\r\n")[-1].rpartition(b"\r\n--")[0]
            if b'filename="' in content:  # the part with the file, whichever order the parts have
                part = content.partition(b'filename="')[2].partition(b"\r\n\r\n")[2]
                server.files[name] = part.partition(b"\r\n--")[0]
            self.send_json(200, {"id": name, "object": "file", "bytes": len(content), "created_at": 0,
                                 "filename": "x", "purpose": "batch", "status": "processed"})  # fmt: skip
            return
        body = json.loads(content)
        if self.path == "/v1/batches":
            self.send_json(200, add_batch(server, body))
            return
        mark = MARK.search(body["messages"][-1]["content"])
        name = mark.group() if mark else ""
        self.body = body
        with server.lock:
            number = server.asked[name]
            server.asked[name] += 1
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.times.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            if server.latency_s:
                server.closing.wait(server.latency_s)
            steps = server.steps.get(name, server.default)
            steps[min(number, len(steps) - 1)](self)
        finally:
            with server.lock:
                server.in_flight -= 1


def model(name: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tests"}


# --- steps -----------------------------------------------------------------------------------------


def verdict(score: int, kind: str = "refusal", reason: str = "it declines") -> str:
    return json.dumps({"reason": reason, "kind": kind, "score": score})


def completion(text: str | None, finish: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    head = {"id": "c", "object": "chat.completion", "created": 0, "model": "judge-1-2026"}
    return {**head, "choices": [choice], "usage": USAGE}


def ok(score: int, kind: str = "refusal") -> Step:
    return says(verdict(score, kind))


def says(text: str | None, finish: str = "stop", refusal: str | None = None) -> Step:
    return lambda handler: handler.send_json(200, completion(text, finish, refusal))


def error(code: int, name: str, message: str, param: str | None = None, **headers: str) -> Step:
    body = {"error": {"message": message, "type": "error", "code": name, "param": param}}
    return lambda handler: handler.send_json(code, body, **headers)


def raw(body: bytes, kind: str = "application/json", code: int = 200) -> Step:
    return lambda handler: handler.send(code, body, kind)


def half_sent(handler: Handler) -> None:
    """Half of a reply, then the end of the connection."""
    body = json.dumps(completion(verdict(1))).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.close_connection = True


def no_choice(handler: Handler) -> None:
    handler.send_json(200, completion("") | {"choices": []})


def reset(handler: Handler) -> None:
    """RST instead of a reply."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def hang(handler: Handler) -> None:
    handler.server.closing.wait(60)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then: no single read times out."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.closing.wait(0.1):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def endless(handler: Handler) -> None:
    """Chunks of blanks, for as long as somebody reads them."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while not handler.server.closing.is_set():
        handler.wfile.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")


def dripped_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b"X-More: x\r\n")


def many_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-More: x\r\n" * 10**5 + b"\r\n")


def for_ever_soon(handler: Handler) -> None:
    """One "100 Continue" after the other."""
    while not handler.server.closing.is_set():
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000)


def packed(body: bytes, encoding: str) -> Step:
    """A body that says how it is packed, whatever was asked for."""
    return lambda handler: handler.send(200, body, Content_Encoding=encoding)


def redirect(code: int, location: str) -> Step:
    return lambda handler: handler.send(code, b"", Location=location)


# --- batches ---------------------------------------------------------------------------------------


def add_batch(server: FaultServer, body: dict[str, Any]) -> dict[str, Any]:
    name = f"batch-{len(server.batches)}"
    server.batches[name] = {
        "id": name,
        "object": "batch",
        "endpoint": body["endpoint"],
        "input_file_id": body["input_file_id"],
        "completion_window": "24h",
        "status": "in_progress",
        "created_at": 0,
        "metadata": body.get("metadata"),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    }
    return server.batches[name]


def finish_batch(server: FaultServer, name: str, replies: dict[str, Any], status: str = "completed") -> None:
    """End a batch: ``replies`` by custom id are chat completions, or ("error", code); others are missing."""
    batch = server.batches[name]
    lines = []
    for line in server.files[batch["input_file_id"]].decode().splitlines():
        row = json.loads(line)
        reply = replies.get(row["custom_id"])
        if isinstance(reply, tuple):
            lines.append({"custom_id": row["custom_id"], "response": None, "error": {"code": reply[1]}})
        elif reply is not None:
            response = {"status_code": 200, "request_id": "r", "body": reply}
            lines.append({"custom_id": row["custom_id"], "response": response, "error": None})
    server.files[f"{name}-out"] = "\n".join(map(json.dumps, lines)).encode()
    batch |= {"status": status, "output_file_id": f"{name}-out"}


@contextmanager
def running() -> Iterator[FaultServer]:
    with serving(FaultServer()) as server:
        yield server
