"""A server that speaks the OpenAI API as an engine: `vllm serve` and its like, or OpenAI's own.

With the model's tokenizer at hand prompts go as token ids, and ids come back where the server can tell them.
Without one, and where a server takes no ids, it gets the conversation and builds the prompt itself; then no
answer can be opened for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import multiprocessing
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from time import time
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import tenacity
from lm_eval.api.instance import Instance

from harness import finish
from harness.config import ResponsesConfig
from harness.contracts import HarnessError, UsageError
from harness.engines import replies
from harness.engines.base import IdEngine
from harness.engines.replies import Reply
from harness.models import chat, checkpoints
from harness.models.checkpoints import Checkpoint
from harness.servers import http_client, server_errors
from harness.storage.files import read_json
from harness.text import is_word, shown_words, without_keys

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

KEY, OTHER_KEY = "OPENAI_API_KEY", checkpoints.SERVER_KEY  # the first is for OpenAI alone
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 8, 1.0, 120.0
CHUNK = 4  # times the requests in flight: answers that are kept together
PROBE = "Tom has 3 apples and buys 4 more. How many apples does he have?"
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # whatever the model's own settings say
LONGEST_TOKEN = 256  # characters; what is longer than its tokens can be was not made within their limit
REPEATED = 200  # characters of a prompt's end by which it is known again
LONGEST_TOLD = 2_000  # characters of an error's message that are searched for a parameter's name
LONGEST_NAME = 500  # characters of a model's name or path
DOCUMENTS_OWN = {200, 400, 403, 413, 422, 451}  # statuses that may be for what one document holds
# Why, by an error's code or type; and by its message, which may quote the request.
_FILTERED = re.compile(
    "content_?(?:filter|polic|management)|responsible_?ai|moderat|data_?inspection|flagged|prohibited_?content|"
    "safety|guardrail|sensitive|invalid_prompt|(?:prompt|input|request|response)_?blocked|blocklist|censor",
    re.IGNORECASE,
)
_SAID_FILTERED = re.compile(
    r"content (?:filter|polic|management)|responsible ai|moderation|flagged|inappropriate|usage polic|"
    r"guardrail|safety (?:system|filter|polic)|was filtered",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    "context_?(?:length|window|size)|string_above_max|(?:prompt|input|request)_?too_?l(?:ong|arge)|"
    "too_?many_?tokens|tokens?_limit_(?:exceeded|reached)|exceed_context",
    re.IGNORECASE,
)
_SAID_TOO_LONG = re.compile(
    r"context (?:length|window|size)|max_model_len|longer than the (?:model|maximum|context)|"
    r"(?:prompt|input|request|message)s? (?:is|are|was) too l(?:ong|arge)",
    re.IGNORECASE,
)
_ACCOUNT = re.compile("billing|quota|credit|balance|payment", re.IGNORECASE)
_PASSING = re.compile(
    "rate_?limit|overload|server_error|internal|timeout|unavailable|capacity", re.IGNORECASE
)
_CODES = ("code", "type", "status", "reason", "error_type", "error_code", "error")


class RefusedError(Exception):
    """A request that no retry mends (HTTP 400, 404, 405, 422, 501). It quotes nothing.

    ``told``: the error's words, to be searched and never shown. ``own``: why one document alone is refused,
    as the error's code says it; ``likely``: as its message does.
    """

    def __init__(
        self, status: int, blamed: str = "", told: str = "", own: str | None = None, likely: str | None = None
    ):
        super().__init__(f"HTTP {status}{f' ({blamed})' if blamed else ''}")
        self.status, self.told, self.own, self.likely = status, told, own, likely


class TransientError(Exception):
    """A failure that may pass; ``wait_s`` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = min(max(0.0, wait_s), LONGEST_WAIT_S)  # in this order 0 for NaN


class Service:
    """One server: its requests, in parallel and retried."""

    def __init__(self, url: str, settings: ResponsesConfig):
        import openai

        self.url, self._settings = checkpoints.base_url(url), settings
        self.host = urlsplit(self.url).hostname
        self.own = http_client.takes_openai_key(self.url)
        key = http_client.key_from(KEY if self.own else OTHER_KEY)
        if not key and http_client.is_openai(self.url):
            raise HarnessError(f"{self.url} needs a key: set {KEY} in the environment")
        self._openai, self._stop = openai, threading.Event()
        self.takes_extras = True
        self.client = http_client.sync_openai(self.url, key or "none", settings.timeout_s, own=self.own)

    def listed(self) -> list[dict[str, Any]]:
        """The models that the server says it has; none where it keeps that to itself. Left out is what has no
        ``id`` that could be a name."""

        def asked() -> list[dict[str, Any]]:
            return [dict(model) for model in self.client.models.list().data]

        try:
            return [entry for entry in self._retried(asked, attempts=3) if _can_be_named(entry.get("id"))]
        except RefusedError:
            return []

    def ask(
        self, create: Callable[..., Any], body: Mapping[str, Any], extras: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """(first choice, whole reply). ``extras``: what not every server takes; left out from now on where
        the server refuses a request with them and takes the same one without."""

        def asked(**extra: Any) -> tuple[Any, Any]:
            reply = create(**body, **extra)
            self._check(reply)
            choice = reply.choices[0]
            replies.content_of(choice)  # or its shape is odd
            return choice, reply

        if not self.takes_extras:
            return self._retried(asked)
        try:
            return self._retried(lambda: asked(extra_body=dict(extras)))
        except RefusedError as error:
            if error.status not in (400, 422) or error.own:
                raise
            found = self._retried(asked)
            if self.takes_extras:
                self.takes_extras = False
                log.warning("%s takes no sampling settings but OpenAI's: its model's own hold", self.url)
            return found

    def each(
        self, ask: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[int], None]
    ) -> list[Result]:
        """``ask`` of every item, in their order; the first failure ends them all."""
        self._stop = threading.Event()
        found: dict[int, Result] = {}

        def numbered(place: int) -> tuple[int, Result]:
            return place, ask(items[place])

        pool = ThreadPool(self._settings.in_flight)  # daemons: Ctrl-C waits for no server's reply
        try:
            replies = pool.imap_unordered(numbered, range(len(items)))
            while len(found) < len(items):
                try:  # not for ever: a Ctrl-C just before a wait is only seen after it
                    place, result = replies.next(timeout=1)
                except multiprocessing.TimeoutError:
                    continue
                found[place] = result
                on_done(1)
        finally:
            self._stop.set()
            pool.terminate()
        return [found[place] for place in range(len(items))]

    def _retried(self, send: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
        backoff = tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S / 2)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return (error.wait_s if isinstance(error, TransientError) else 0.0) + backoff(state)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_when_event_set(self._stop),
            wait=wait,
            sleep=tenacity.sleep_using_event(self._stop),
            retry=tenacity.retry_if_exception_type(TransientError),
            reraise=True,
        )
        try:
            found: Result = retrying(self._once, send)
            return found
        except TransientError as error:
            raise HarnessError(
                f"{self.url}: {error}, {attempts} times; is the server up, the URL right (many end in /v1)?"
            ) from None

    def _once(self, send: Callable[[], Result]) -> Result:
        openai = self._openai
        try:
            return send()
        except openai.APITimeoutError:
            failure: Exception = TransientError(f"no reply within {self._settings.timeout_s:g} s")
        except openai.APIConnectionError as error:
            if http_client.lasting(error):
                failure = HarnessError(f"no answer from {self.url}: {http_client.trouble(error, self.url)}")
            else:
                failure = TransientError(f"no connection ({http_client.trouble(error, self.url)})")
        except openai.APIStatusError as error:
            failure = self._status(error)
        except http_client.TooLargeError as error:
            failure = TransientError(str(error))
        except (openai.APIError, *http_client.ODD_SHAPE):
            failure = TransientError("no reply of the OpenAI API")
        raise failure  # out here it carries no other error along, which may quote what was sent

    def _check(self, reply: Any) -> None:
        """Raises what an error means that came as a success (HTTP 200), or a reply without a choice."""
        choices = getattr(reply, "choices", None)
        first = choices[0] if isinstance(choices, list) and choices else None
        for error in (getattr(reply, "error", None), getattr(first, "error", None)):
            if error:
                code = str(error.get("code")) if isinstance(error, Mapping) else ""
                raise self._meaning(int(code) if re.fullmatch(r"[45]\d\d", code) else 200, error, 0.0)
        none = choices is None and "choices" in getattr(reply, "model_fields_set", ())
        if none or choices == []:
            hidden = (getattr(reply, "prompt_filter_results", None), getattr(reply, "promptFeedback", None))
            own = f"{finish.REFUSED_REQUEST} (content filter)" if any(hidden) else None
            raise RefusedError(200, own=own, likely=finish.NO_CHOICE)

    def _status(self, error: Any) -> Exception:
        """What an HTTP status means. Never the server's text: it may quote a request or the key."""
        status = int(error.status_code)
        if 300 <= status < 400:
            return HarnessError(f"{self.url} answers {status}: {http_client.ELSEWHERE}")
        return self._meaning(status, error.body, _retry_after_s(error.response.headers))

    def _meaning(self, status: int, body: Any, wait_s: float) -> Exception:
        codes, told = _said({"error": body})
        own, likely = _reasons(status, codes, told)
        if status == 401 or (status == 403 and not (own or likely)):
            key = KEY if self.own else OTHER_KEY
            return HarnessError(
                f"{self.url} answers {status}: the key in {key} is wrong, missing or not enough"
            )
        no_credit = status in (200, 400, 403) and any(map(_ACCOUNT.search, codes))
        if status == 402 or no_credit or (status == 429 and "insufficient_quota" in codes):
            return HarnessError(f"{self.url} answers {status}: the account has no credit left")
        if status >= 500 and (why := _wrapped(status, body)):
            return RefusedError(status, told=told.lower(), own=own, likely=likely or why)
        passing = status == 200 and any(map(_PASSING.search, codes))
        if passing or status in (408, 409, 429) or (status >= 500 and status != 501):
            return TransientError(f"HTTP {status}", wait_s)
        given = body if isinstance(body, Mapping) else {}
        blamed = shown_words((given.get("code"), given.get("param")))
        return RefusedError(status, blamed, told.lower(), own, likely)


class OpenAIEngine(IdEngine):
    """``model`` is the name under which the server has the checkpoint."""

    def __init__(self, service: Service, model: str, settings: ResponsesConfig, tokenizer: Any):
        super().__init__()
        self._service, self._model, self._settings = service, model, settings
        self.tokenizer = tokenizer
        self.stop_ids: set[int] = set()
        self.context_tokens = 2**31

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
                self._service.client.completions.create, body, {**self._extras(), "echo": True}
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

    def _extras(self) -> dict[str, Any]:
        stops = sorted(self.stop_ids)
        return {
            **NEUTRAL, "stop_token_ids": stops, "add_special_tokens": False, "return_token_ids": True,
        }  # fmt: skip

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        places, size = range(len(prompts)), CHUNK * self._settings.in_flight
        return [list(places[start : start + size]) for start in range(0, len(prompts), size)]

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """As the contract has it. A request that the server refuses for what it holds (its content, its
        length) is an answer that could not be had, with the reason. Raises HarnessError where it refuses what
        all requests share: where a harmless request of the same kind is refused, too."""

        def one(place: int) -> list[int]:
            drawn = {"top_p": top_p, "seed": seed + place} if temperature else {}
            sampling = {"temperature": temperature, **drawn}
            try:
                return self._continue(prompts[place], max_new_tokens, sampling)
            except RefusedError as error:
                refusal = error
            why = refusal.own or self._own_reason(refusal, prompts[place], max_new_tokens, sampling)
            return Reply(unavailable=why).packed()

        return self._service.each(one, range(len(prompts)), lambda answers: self.on_progress(answers))

    def _continue(self, prompt: list[int], max_new_tokens: int, sampling: dict[str, Any]) -> list[int]:
        body = {"model": self._model, "prompt": prompt, "max_tokens": max_new_tokens, **sampling}
        choice, reply = self._service.ask(self._service.client.completions.create, body, self._extras())
        if getattr(choice, "prompt_token_ids", None) not in (None, prompt):
            raise HarnessError(f"{self._service.url} has changed a prompt's token ids")
        ids = getattr(choice, "token_ids", None)
        reason = replies.finish_reason(choice.finish_reason)
        if ids is not None and not (isinstance(ids, list) and all(map(self._is_token, ids))):
            raise HarnessError(f"{self._service.url} answers with token ids that are none")
        if self._repeats(choice, prompt):
            self._check_repeated(prompt)
        if ids is None:
            return replies.of_choice(choice, reply.usage).within(max_new_tokens * LONGEST_TOKEN).packed()
        ids = self.to_stop(ids)
        if len(ids) > max_new_tokens:  # an answer longer than was asked for is one that was cut off
            return ids[:max_new_tokens]
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

    def _check_repeated(self, prompt: list[int]) -> None:
        """Raises HarnessError where the server returns the prompt before every answer: in front of a single
        token, too, which no model makes of it."""
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        choice, _ = self._service.ask(self._service.client.completions.create, body, self._extras())
        if self._repeats(choice, prompt):
            raise HarnessError(
                f"{self._service.url} returns the prompt with its answers; switch that off (return_full_text)"
            )

    def _own_reason(
        self, error: RefusedError, prompt: list[int], max_new_tokens: int, sampling: dict[str, Any]
    ) -> str:
        """Why the server refuses this prompt alone. Raises HarnessError where it refuses others like it."""
        if error.status in DOCUMENTS_OWN or (error.status >= 500 and error.likely):
            with contextlib.suppress(RefusedError):
                self._continue(self._harmless(prompt), max_new_tokens, sampling)
                return error.likely or f"{finish.REFUSED_REQUEST} ({error})"
        raise self._refused(error)

    def _harmless(self, prompt: list[int]) -> list[int]:
        """A prompt that a server has no reason to refuse for what it holds."""
        return chat.token_ids(self.tokenizer, PROBE)

    def logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
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

    def prompt_ids(self, request: Instance) -> list[int]:
        if self.prefill_ids(request):
            raise HarnessError(
                f"task '{request.task_name}' opens answers with exact tokens, and {self._service.url} builds "
                "the prompts: give its model's tokenizer (--tokenizer FOLDER), if it takes token ids"
            )
        turns = [{"role": turn.role, "content": turn.content} for turn in self.conversation(request)]
        return chat.token_ids(self.tokenizer, json.dumps(turns, ensure_ascii=False))

    def _extras(self) -> dict[str, Any]:
        return {**NEUTRAL, "chat_template_kwargs": {"enable_thinking": self.thinking}}

    def _continue(self, prompt: list[int], max_new_tokens: int, sampling: dict[str, Any]) -> list[int]:
        create = self._service.client.chat.completions.create
        limit, takes_temperature = self._limit, self._takes_temperature
        while True:
            body = {"model": self._model, "messages": json.loads(self.tokenizer.decode(prompt))}
            body |= {limit: max_new_tokens, **(sampling if takes_temperature else {})}
            try:
                choice, reply = self._service.ask(create, body, self._extras())
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
            return replies.of_choice(choice, reply.usage).within(max_new_tokens * LONGEST_TOKEN).packed()

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

    def logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        raise self._no_logprobs("it takes no token ids")

    def pair(self, request: Instance) -> tuple[list[int], list[int]]:
        raise self._no_logprobs("it takes no token ids")


class Characters:
    """In place of a tokenizer, where only the server has one: a text's characters as numbers."""

    def __init__(self, name: str):
        self.name_or_path = name

    def __call__(self, text: str, **options: Any) -> dict[Literal["input_ids"], list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return "".join(map(chr, ids))


def _said(body: Any, depth: int = 5) -> tuple[list[str], str]:
    """(codes, all that is text) of an error's body, bounded."""
    if isinstance(body, str):
        return [], body[:LONGEST_TOLD]
    codes, told = list[str](), list[str]()
    items = (
        list(body.items())
        if isinstance(body, Mapping)
        else list(enumerate(body if isinstance(body, list) else ()))
    )
    for key, value in items[:20] if depth else ():
        if key in _CODES and is_word(value):
            codes.append(value)
        inner, words = _said(value, depth - 1)
        codes, told = codes + inner, [*told, words]
    return codes[:20], " ".join(filter(None, told))[:LONGEST_TOLD]


def _reasons(status: int, codes: Sequence[str], told: str) -> tuple[str | None, str | None]:
    """Why a document alone is refused: (for sure, likely), in our words and the error's code."""
    filtered = next((code for code in codes if _FILTERED.search(code)), None)
    if filtered or status == 451:
        return f"{finish.REFUSED_REQUEST} ({without_keys(filtered or 'HTTP 451')})", None
    if status == 413 or any(map(_TOO_LONG.search, codes)):
        return finish.TOO_LONG, None
    if _SAID_TOO_LONG.search(told):
        return None, finish.TOO_LONG
    return None, f"{finish.REFUSED_REQUEST} (content filter)" if _SAID_FILTERED.search(told) else None


def _begins_with(text: str, prompt: str) -> bool:
    """Whether a text begins with a prompt or with the end of it, white space aside."""
    bare, end = "".join(prompt.split()), "".join(prompt[-REPEATED:].split())
    said = "".join(text[: 2 * len(prompt) + REPEATED].split())
    return bool(end) and 0 <= said.find(end) <= len(bare) - len(end)


def _wrapped(status: int, body: Any) -> str | None:
    """Why a document alone is refused, where a proxy passes that on as a failure of its own (HTTP 5xx)."""
    against = server_errors.complaint(status, body)
    if against.page:
        return None
    if against.filtered:
        return f"{finish.REFUSED_REQUEST} (content filter)"
    return finish.TOO_LONG if against.too_long else None


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


def _can_be_named(name: Any) -> bool:
    """Whether a value is a model's name or path; it is sent back, and shown in a warning."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()


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


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds, or a date; 0 where there is none that can be read."""
    value = headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
