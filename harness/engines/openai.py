"""A server that speaks the OpenAI API as an engine: `vllm serve` and its like, or OpenAI's own.

With the model's tokenizer at hand prompts go as token ids, and ids come back where the server can tell them.
Without one, and where a server takes no ids, it gets the conversation and builds the prompt itself; then no
answer can be opened for it (ChatEngine).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness import finish
from harness.config import ResponsesConfig
from harness.contracts import HarnessError, Message, UsageError
from harness.engines import replies
from harness.engines.base import Engine, Request
from harness.engines.replies import Reply
from harness.engines.service import RefusedError, Service
from harness.models import chat, checkpoints
from harness.models.checkpoints import Checkpoint
from harness.servers import http_client
from harness.storage.files import read_json
from harness.text import shown_words

log = logging.getLogger(__name__)

CHUNK = 4  # times the requests in flight: answers that are kept together
PROBE = "Tom has 3 apples and buys 4 more. How many apples does he have?"
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # whatever the model's own settings say
LONGEST_TOKEN = 256  # characters; what is longer than its tokens can be was not made within their limit
REPEATED = 200  # characters of a prompt's end by which it is known again
DOCUMENTS_OWN = {200, 400, 403, 413, 422, 451}  # statuses that may be for what one document holds


class OpenAIEngine(Engine):
    """``model`` is the name under which the server has the checkpoint."""

    settings = ("server",)
    device_kinds = ()
    remote = True

    def __init__(self, service: Service, model: str, settings: ResponsesConfig, tokenizer: Any):
        self._service, self._model, self._settings = service, model, settings
        self.tokenizer = tokenizer
        self.stop_ids: set[int] = set()
        self.context_tokens = 2**31

    @classmethod
    def check(cls, name: str, settings: ResponsesConfig, device: str) -> None:
        super().check(name, settings, device)
        if not settings.server:
            raise UsageError(f"engine {name}: which server? --server http://HOST:PORT/v1")

    @classmethod
    def open(cls, checkpoint: Checkpoint, settings: ResponsesConfig, device: str) -> OpenAIEngine:
        url = checkpoint.server.base_url if checkpoint.server else settings.server
        if not url:
            raise UsageError("engine openai: which server? --server http://HOST:PORT/v1")
        service = Service(url, settings)
        with contextlib.ExitStack() as unless_open:
            unless_open.callback(service.client.close)
            engine = cls._opened(service, checkpoint, settings)
            unless_open.pop_all()
        return engine

    @classmethod
    def _opened(cls, service: Service, checkpoint: Checkpoint, settings: ResponsesConfig) -> OpenAIEngine:
        entry = _entry(checkpoint, service.listed(), service)
        folder = _tokenizer(checkpoint, settings, entry)
        if folder is not None:
            engine = cls(service, entry["id"], settings, checkpoints.load_tokenizer(folder))
            engine.stop_ids = checkpoints.stop_ids(checkpoints.declared_stops(folder), engine.tokenizer)
            engine.context_tokens = replies.count(entry.get("max_model_len")) or _context_tokens(folder)
            if engine._takes_ids():
                return engine
            log.warning("%s takes no token ids for '%s': it builds the prompts", service.url, engine._model)
        return ChatEngine(service, entry["id"], settings, Characters(entry["id"]))

    def close(self) -> None:
        self._service.client.close()

    def _takes_ids(self) -> bool:
        """Whether a prompt of ids arrives as it was sent. Raises HarnessError where the tokenizer is another
        model's, as the server's echo tells."""
        ids = chat.token_ids(self.tokenizer, PROBE)
        body = {"model": self._model, "prompt": ids, "max_tokens": 1, "temperature": 0}
        try:
            choice, reply = self._service.ask(
                self._service.client.completions.create, body, {**self._extras(Request()), "echo": True}
            )
        except RefusedError:
            return False
        read = getattr(reply.usage, "prompt_tokens", None)
        if read not in (None, len(ids)):
            counted = "no count" if replies.count(read) is None else read
            log.warning("%s reads %s tokens where %s were sent", self._service.url, counted, len(ids))
            return False
        expected, echo = self.tokenizer.decode(ids, skip_special_tokens=True), str(choice.text or "")
        if len(echo.strip()) >= len(PROBE) // 3 and expected.strip() not in echo:
            raise HarnessError(
                f"'{self.tokenizer_name}' is not the tokenizer of '{self._model}' on {self._service.url}"
            )
        return True

    def _extras(self, request: Request) -> dict[str, Any]:
        stops = sorted(self.stop_ids)
        return {
            **NEUTRAL, "stop_token_ids": stops, "add_special_tokens": False, "return_token_ids": True,
        }  # fmt: skip

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        places, size = range(len(prompts)), CHUNK * self._settings.in_flight
        return [list(places[start : start + size]) for start in range(0, len(prompts), size)]

    def generate(self, prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
        """As the contract has it. A request that the server refuses for what it holds (its content, its
        length) is an answer that could not be had, with the reason. Raises HarnessError where it refuses what
        all requests share: where a harmless request of the same kind is refused, too."""

        def one(place: int) -> list[int]:
            own = replace(request, seed=request.seed + place)
            try:
                return self._continue(prompts[place], own)
            except RefusedError as error:
                refusal = error
            why = refusal.own or self._own_reason(refusal, prompts[place], own)
            return Reply(unavailable=why).packed()

        return self._service.each(one, range(len(prompts)), request.on_progress)

    def _continue(self, prompt: list[int], request: Request) -> list[int]:
        most = request.max_new_tokens
        body = {"model": self._model, "prompt": prompt, "max_tokens": most, **_sampling(request)}
        choice, reply = self._service.ask(
            self._service.client.completions.create, body, self._extras(request)
        )
        if getattr(choice, "prompt_token_ids", None) not in (None, prompt):
            raise HarnessError(f"{self._service.url} has changed a prompt's token ids")
        ids = getattr(choice, "token_ids", None)
        reason = replies.finish_reason(choice.finish_reason)
        if ids is not None and not (isinstance(ids, list) and all(map(self._is_token, ids))):
            raise HarnessError(f"{self._service.url} answers with token ids that are none")
        if self._repeats(choice, prompt):
            self._check_repeated(prompt, request)
        if ids is None:
            return replies.of_choice(choice, reply.usage).within(most * LONGEST_TOKEN).packed()
        ids = self.to_stop(ids)
        if len(ids) > most:  # an answer longer than was asked for is one that was cut off
            return ids[:most]
        if finish.ended(reason) and (not ids or ids[-1] not in self.stop_ids):  # by a token unknown to us
            known = ids[:-1] if ids and getattr(choice, "stop_reason", None) == ids[-1] else ids
            ids = [*known, min(self.stop_ids)]
        return list(ids) if reason in ("stop", "length") else Reply(ids=ids, finish_reason=reason).packed()

    def _is_token(self, token: Any) -> bool:
        return type(token) is int and (0 <= token < self._vocabulary or token in self.stop_ids)

    @cached_property
    def _vocabulary(self) -> int:
        """One more than the highest id of the tokenizer, which may leave some out."""
        return 1 + int(max(self.tokenizer.get_vocab().values()))

    def _repeats(self, choice: Any, prompt: list[int]) -> bool:
        """Whether an answer begins with its prompt, or with the end of it, in ids or in text."""
        ids = getattr(choice, "token_ids", None)
        if isinstance(ids, list):
            return ids[: len(prompt)] == prompt
        text = choice.text if isinstance(choice.text, str) else ""
        decode = self.tokenizer.decode
        shown = (decode(prompt, skip_special_tokens=True), decode(prompt), decode(prompt[1:]))
        return any(_begins_with(text, one) for one in shown)

    def _check_repeated(self, prompt: list[int], request: Request) -> None:
        """Raises HarnessError where the server returns the prompt before every answer: in front of a single
        token, too, which no model makes of it."""
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        choice, _ = self._service.ask(self._service.client.completions.create, body, self._extras(request))
        if self._repeats(choice, prompt):
            raise HarnessError(
                f"{self._service.url} returns the prompt with its answers; switch that off (return_full_text)"
            )

    def _own_reason(self, error: RefusedError, prompt: list[int], request: Request) -> str:
        """Why the server refuses this prompt alone. Raises HarnessError where it refuses others like it."""
        if error.status in DOCUMENTS_OWN or (error.status >= 500 and error.likely):
            with contextlib.suppress(RefusedError):
                self._continue(self._harmless(prompt), request)
                return error.likely or f"{finish.REFUSED_REQUEST} ({error})"
        raise self._refused(error)

    def _harmless(self, prompt: list[int]) -> list[int]:
        """A prompt that a server has no reason to refuse for what it holds."""
        return chat.token_ids(self.tokenizer, PROBE)

    def logprobs(
        self, pairs: Sequence[tuple[list[int], list[int]]], request: Request
    ) -> list[tuple[float, bool]]:
        def one(pair: tuple[list[int], list[int]]) -> tuple[float, bool]:
            context, continuation = pair
            whole = context + continuation
            body = {
                "model": self._model, "prompt": whole, "max_tokens": 1, "temperature": 0,
                "echo": True, "logprobs": 1,
            }  # fmt: skip
            try:
                choice, _ = self._service.ask(
                    self._service.client.completions.create, body, {"add_special_tokens": False}
                )
            except RefusedError as error:
                raise self._no_logprobs(str(error)) from None
            found = getattr(choice.logprobs, "token_logprobs", None) or []
            best = getattr(choice.logprobs, "top_logprobs", None) or []
            span = range(len(context), len(whole))
            try:
                if min(len(found), len(best)) < len(whole):
                    raise ValueError("too few")
                greedy = all(found[place] >= max(best[place].values()) for place in span)
                total = float(sum(found[place] for place in span))
                if math.isnan(total):
                    raise ValueError("not a number")
                return total, greedy
            except http_client.ODD_SHAPE:
                raise self._no_logprobs("its reply holds none of the prompt") from None

        return self._service.each(one, pairs, lambda answers: None)

    def _no_logprobs(self, why: str) -> HarnessError:
        return HarnessError(
            f"{self._service.url} gives no log-probabilities of a prompt ({why}), and multiple-choice tasks "
            "need them: --engine hf or vllm"
        )

    def _refused(self, error: RefusedError) -> HarnessError:
        if error.status == 404:
            return HarnessError(f"{self._service.url} has no model '{self._model}', or its URL is wrong")
        why = error.likely if error.status == 200 and error.likely else error
        return HarnessError(f"{self._service.url} refuses a request for '{self._model}': {why}")


class ChatEngine(OpenAIEngine):
    """A server that builds the prompts. Here a prompt is the conversation, character by character."""

    takes_ids = False

    def __init__(self, service: Service, model: str, settings: ResponsesConfig, tokenizer: Characters):
        super().__init__(service, model, settings, tokenizer)
        self._limit = "max_tokens"
        self._takes_temperature = True

    def prompt_ids(
        self, turns: Sequence[Message], prefill: Sequence[int] = (), *, thinking: bool = False, task: str = ""
    ) -> list[int]:
        if prefill:
            raise HarnessError(
                f"task '{task}' opens answers with exact tokens, and {self._service.url} builds "
                "the prompts: give its model's tokenizer (--tokenizer FOLDER), if it takes token ids"
            )
        shown = [{"role": turn.role, "content": turn.content} for turn in turns]
        return chat.token_ids(self.tokenizer, json.dumps(shown, ensure_ascii=False))

    def _extras(self, request: Request) -> dict[str, Any]:
        return {**NEUTRAL, "chat_template_kwargs": {"enable_thinking": request.thinking}}

    def _continue(self, prompt: list[int], request: Request) -> list[int]:
        create = self._service.client.chat.completions.create
        limit, takes_temperature = self._limit, self._takes_temperature
        while True:
            body = {"model": self._model, "messages": json.loads(self.tokenizer.decode(prompt))}
            body |= {limit: request.max_new_tokens, **(_sampling(request) if takes_temperature else {})}
            try:
                choice, reply = self._service.ask(create, body, self._extras(request))
            except RefusedError as error:  # models that reason take neither
                if error.own:
                    raise
                if limit == "max_tokens" and "max_tokens" in error.told and not error.likely:
                    limit = "max_completion_tokens"
                elif takes_temperature and re.search("temperature|top_p", error.told):
                    takes_temperature = False
                else:
                    raise
                continue
            self._learn(limit, takes_temperature)
            most = request.max_new_tokens * LONGEST_TOKEN
            return replies.of_choice(choice, reply.usage).within(most).packed()

    def _learn(self, limit: str, takes_temperature: bool) -> None:
        """What the server takes, once it has taken it: a refusal may name a parameter for other reasons."""
        self._limit = limit
        if self._takes_temperature and not takes_temperature:
            log.warning("'%s' takes no temperature: its answers are sampled as it likes", self._model)
        self._takes_temperature = takes_temperature

    def _harmless(self, prompt: list[int]) -> list[int]:
        turns = json.loads(self.tokenizer.decode(prompt))
        shown = [turn if turn["role"] == "system" else turn | {"content": PROBE} for turn in turns]
        return chat.token_ids(self.tokenizer, json.dumps(shown, ensure_ascii=False))

    def logprobs(
        self, pairs: Sequence[tuple[list[int], list[int]]], request: Request
    ) -> list[tuple[float, bool]]:
        raise self._no_logprobs("it takes no token ids")

    def pair_ids(
        self, turns: Sequence[Message], opened: str, continuation: str
    ) -> tuple[list[int], list[int]]:
        raise self._no_logprobs("it takes no token ids")


class Characters:
    """In place of a tokenizer, where only the server has one: a text's characters as numbers."""

    def __init__(self, name: str):
        self.name_or_path = name

    def __call__(self, text: str, **options: Any) -> dict[Literal["input_ids"], list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return "".join(map(chr, ids))


def _sampling(request: Request) -> dict[str, Any]:
    """How a request is decoded, in the API's words."""
    if not request.temperature:
        return {"temperature": request.temperature}
    return {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}


def _begins_with(text: str, prompt: str) -> bool:
    """Whether a text begins with a prompt or with the end of it, white space aside."""
    bare, end = "".join(prompt.split()), "".join(prompt[-REPEATED:].split())
    said = "".join(text[: 2 * len(prompt) + REPEATED].split())
    return bool(end) and 0 <= said.find(end) <= len(bare) - len(end)


def _entry(checkpoint: Checkpoint, listed: Sequence[dict[str, Any]], service: Service) -> dict[str, Any]:
    """What the server lists of the checkpoint's model, its ``id`` at least."""
    shown = shown_words(entry["id"] for entry in listed) or ("odd names alone" if listed else "nothing")
    if checkpoint.server:
        wanted = checkpoint.server.model
        name = http_client.listed_as(wanted, {entry["id"] for entry in listed})
        found = next((entry for entry in listed if entry["id"] == name), None)
        if found is None and listed and service.host in ("localhost", "127.0.0.1", "::1"):
            raise HarnessError(f"{service.url} has no model '{wanted}'; it has {shown}")
        return found or {"id": wanted}
    folder = checkpoint.folder
    assert folder is not None
    names = {folder.name, *re.findall(r"models--(.+?)--(.+?)/snapshots", str(folder.resolve()))}
    named = {"/".join(name) if isinstance(name, tuple) else name for name in names}
    for entry in listed:
        for name in filter(None, (entry.get("root"), entry["id"])):
            if isinstance(name, str) and (name in named or _is_at(name, folder)):
                return entry
    raise HarnessError(f"{service.url} does not serve {folder}; it has {shown}")


def _is_at(name: str, folder: Path) -> bool:
    """Whether a server's name for a model is the path of this folder."""
    try:
        place = Path(name).expanduser()
        return place.is_dir() and place.resolve() == folder.resolve()
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a NUL
        return False


def _tokenizer(checkpoint: Checkpoint, settings: ResponsesConfig, entry: dict[str, Any]) -> Path | None:
    """The folder of the model's tokenizer, where there is one on this machine."""
    if settings.tokenizer:
        return checkpoints.tokenizer_folder(settings.tokenizer)
    if checkpoint.folder:
        return checkpoint.folder
    for name in (entry.get("root"), entry["id"], entry.get("parent")):
        if not isinstance(name, str) or name in ("", checkpoints.MINI):
            continue
        try:
            if checkpoints.is_here(name):
                return checkpoints.tokenizer_folder(name)
        except (HarnessError, OSError, RuntimeError, ValueError):  # the last three: no path at all
            continue
    return None


def _context_tokens(folder: Path) -> int:
    config = folder / "config.json"
    return checkpoints.context_tokens(read_json(config) if config.is_file() else {})
