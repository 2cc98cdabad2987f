"""A server on loopback that builds all prompts itself; the test says what it answers to a chat."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serving import serving

Reply = tuple[int, Any]  # status, and a JSON value


class CaseServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[dict[str, Any]], Reply] = lambda body: completion("")
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: CaseServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, code: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send(404, {"error": {"message": "no list"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if "messages" not in body:
            self.send(400, {"error": {"message": "no completions here", "code": 400}})
            return
        self.server.asked += 1
        self.send(*self.server.answer(body))


def completion(content: Any, finish: Any = "stop", **message: Any) -> Reply:
    """``message``: further fields of the answer."""
    answer = {"role": "assistant", "content": content, **message}
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
    choice = {"index": 0, "message": answer, "finish_reason": finish}
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    return 200, {**head, "choices": [choice], "usage": usage}


@contextmanager
def running() -> Iterator[CaseServer]:
    with serving(CaseServer()) as server:
        yield server
