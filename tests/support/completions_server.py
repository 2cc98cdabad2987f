"""A server on loopback that answers completions and chats as the servers of models do: some take token ids
and vLLM's further fields, some refuse what OpenAI does not have, some build every prompt themselves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from serving import serving

LIMITS = {"max_tokens", "max_completion_tokens"}
SAMPLING = {"temperature", "top_p", "seed"}
OPENAI_FIELDS = {
    "completions": {"model", "prompt", "max_tokens", "echo", "logprobs", *SAMPLING},
    "chat/completions": {"model", "messages", *LIMITS, *SAMPLING},
}
Answer = tuple[list[int], Any]  # ids with the stop token, finish reason


class CompletionsServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer = tokenizer
        self.models: list[Any] = [{"id": "served", "max_model_len": 512}]
        self.extras: Literal["taken", "ignored", "refused"] = "taken"
        self.takes_ids = self.completes = True
        self.added_ids = 0  # what it puts in front of a prompt
        self.refused: set[str] = set()  # fields of OpenAI's that its model does not take
        self.key: str | None = None
        self.faults: list[tuple[int, dict[str, str]]] = []  # of the next requests
        self.answer: Callable[[Any], Answer] = lambda prompt: ([tokenizer.eos_token_id], "stop")
        self.message: dict[str, Any] = {}  # further fields of a chat's answer
        self.usage: dict[str, Any] = {}  # and of its usage
        self.refusal: Callable[[dict[str, Any]], tuple[int, Any] | None] = lambda body: None  # of a request
        self.changed: Callable[[dict[str, Any]], Any] = lambda reply: reply  # the whole reply
        self.latency_s = 0.0
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [body for at, body in self.bodies if at == path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are part of the game."""


class Handler(BaseHTTPRequestHandler):
    server: CompletionsServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, code: int, message: str, param: str | None = None, **headers: str) -> None:
        error = {"message": message, "type": "error", "code": None, "param": param}
        self.send(code, {"error": error}, headers)

    def wrong_key(self) -> bool:
        given = self.headers.get("Authorization", "")
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.key is None or given == f"Bearer {self.server.key}":
            return False
        self.fail(401, f"wrong key: {given}")
        return True

    def do_GET(self) -> None:
        if self.wrong_key():
            return
        if self.path != "/v1/models":
            self.fail(404, "no such path")
            return
        head = {"object": "model", "created": 0, "owned_by": "tests"}
        data = [head | one if isinstance(one, dict) else one for one in self.server.models]
        self.send(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.wrong_key():
            return
        path = self.path.removeprefix("/v1/")
        with server.lock:
            server.bodies.append((path, body))
            fault = server.faults.pop(0) if server.faults else None
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            time.sleep(server.latency_s)
            if fault:
                self.fail(fault[0], "the prompt was: secret", **fault[1])
            elif path in OPENAI_FIELDS and (self.server.completes or path != "completions"):
                self.reply(path, body)
            else:
                self.fail(404, "no such path")
        finally:
            with server.lock:
                server.in_flight -= 1

    def reply(self, path: str, body: dict[str, Any]) -> None:
        server, decode = self.server, self.server.tokenizer.decode
        unknown = set(body) - OPENAI_FIELDS[path]
        refusal = server.refusal(body)
        if refusal:
            self.send(*refusal)
        elif body["model"] not in [one["id"] for one in server.models]:
            self.fail(404, f"no model {body['model']}")
        elif unknown and server.extras == "refused":
            self.fail(400, f"unknown fields {sorted(unknown)}")
        elif server.refused & set(body):
            self.fail(400, f"unsupported: {sorted(server.refused & set(body))}", sorted(server.refused)[0])
        elif path == "completions" and not (server.takes_ids and isinstance(body["prompt"], list)):
            self.fail(400, "a prompt is a text")
        else:
            asked = body["prompt"] if path == "completions" else body["messages"]
            ids, finish = server.answer(asked)
            text = decode(ids, skip_special_tokens=True)
            usage: dict[str, Any] = {
                "prompt_tokens": len(asked) + server.added_ids,
                "completion_tokens": len(ids),
            }
            usage |= {"total_tokens": 0, **server.usage}
            head = {"id": "c", "created": 0, "model": body["model"], "usage": usage}
            choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
            if path == "completions":
                if body.get("echo"):
                    text = decode(asked, skip_special_tokens=True) + text
                    if body.get("logprobs"):
                        choice["logprobs"] = self.logprobs([*asked, *ids[:1]])
                if server.extras == "taken" and body.get("return_token_ids"):
                    choice |= {"token_ids": ids, "prompt_token_ids": asked, "stop_reason": None}
                choices = [{**choice, "text": text}]
                self.send(200, server.changed({**head, "object": "text_completion", "choices": choices}))
            else:
                message = {"role": "assistant", "content": text, **server.message}
                choices = [{**choice, "message": message}]
                self.send(200, server.changed({**head, "object": "chat.completion", "choices": choices}))

    def logprobs(self, ids: list[int]) -> dict[str, Any]:
        """-1 for even tokens, -2 for odd ones, where the best has -1."""
        scores = [None, *(-1.0 - token % 2 for token in ids[1:])]
        best = [None, *({"best": -1.0, "this": score} for score in scores[1:])]
        tokens = [f"token_id:{token}" for token in ids]
        return {
            "tokens": tokens,
            "token_logprobs": scores,
            "top_logprobs": best,
            "text_offset": [0] * len(ids),
        }


@contextmanager
def running(tokenizer: Any) -> Iterator[CompletionsServer]:
    with serving(CompletionsServer(tokenizer)) as server:
        yield server
