"""One server that speaks the OpenAI API: its requests, in parallel and retried, and what its errors mean."""

from __future__ import annotations

import logging
import multiprocessing
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from multiprocessing.pool import ThreadPool
from time import time
from typing import Any, TypeVar
from urllib.parse import urlsplit

import tenacity

from harness import finish
from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.engines import replies
from harness.models import checkpoints
from harness.servers import http_client, server_errors
from harness.text import is_word, shown_words, without_keys

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

KEY, OTHER_KEY = "OPENAI_API_KEY", checkpoints.SERVER_KEY  # the first is for OpenAI alone
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 8, 1.0, 120.0
LONGEST_TOLD = 2_000  # characters of an error's message that are searched for a parameter's name
LONGEST_NAME = 500  # characters of a model's name or path
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
        self, ask: Callable[[Item], Result], items: Sequence[Item], on_done: Callable[[int], object]
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


def _wrapped(status: int, body: Any) -> str | None:
    """Why a document alone is refused, where a proxy passes that on as a failure of its own (HTTP 5xx)."""
    against = server_errors.complaint(status, body)
    if against.page:
        return None
    if against.filtered:
        return f"{finish.REFUSED_REQUEST} (content filter)"
    return finish.TOO_LONG if against.too_long else None


def _can_be_named(name: Any) -> bool:
    """Whether a value is a model's name or path; it is sent back, and shown in a warning."""
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()


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
