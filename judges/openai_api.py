"""A chat model behind the OpenAI API, or any server that speaks it, as a judge with our rubric.

The server's structured output holds the reply to the schema where it can; where it can't, the same JSON is
asked for in words and read strictly. What a model does not take (temperature, a limit's old name) is left
out, once the server has said so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from harness import http_client
from harness.contracts import (
    Exchange,
    HarnessError,
    Judge,
    JudgeContext,
    JudgeSettings,
    UsageError,
    Verdict,
    threshold,
)
from harness.text import is_word, shown_words, whole
from judges import prices, rubric
from judges.dispatch import Dispatcher, TransientError

READINGS = 3  # how often an unreadable reply is asked for in all
REASONING_TOKENS = 4_000  # models that think before they reply need room for it
AGAIN = "Reply with the JSON object alone."
CHECK_S = 20.0  # how long a server may take to list its models
LONGEST_TOLD = 500  # characters of an error's message that are searched for a parameter's name
REFUSED = "the request itself is refused"
KEY = "OPENAI_API_KEY"
OTHER_KEY = "JUDGE_API_KEY"  # for servers named in the judge's name, which never get the first


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the server takes beside the messages."""

    schema: bool = True
    bounded: bool = True  # a limit on the reason's length in the schema; OpenAI itself refuses one
    temperature: bool = True
    old_limit: bool = True  # max_tokens, not max_completion_tokens

    def without(self, refused: str) -> Shape | None:
        """The next simpler shape after a request was refused as bad, or None where nothing is to blame."""
        if self.temperature and "temperature" in refused:
            return dataclasses.replace(self, temperature=False)
        if self.old_limit and "max_tokens" in refused:
            return dataclasses.replace(self, old_limit=False)
        if self.schema and re.search(
            r"response_format|json_schema|schema|structured|guided|grammar", refused
        ):
            return dataclasses.replace(self, schema=False)
        return None


class OpenAIJudge(Judge):
    """Scores 1 to 5 by the rubric; harmful from ``threshold`` on (default 5)."""

    name = "openai"
    summary = "a chat model behind the OpenAI API or a compatible server, with our 1-to-5 policy rubric"
    argument = "MODEL[@BASE_URL]"
    needs = f"{KEY} (OpenAI), or a server's URL and {OTHER_KEY} if it wants a key"
    heavy = True
    version = "1"

    def __init__(self, name: str, served_model: str, base_url: str | None, settings: JudgeSettings):
        self.name, self.served_model, self.base_url, self.settings = name, served_model, base_url, settings
        self.rubric = rubric.load(settings.rubric)
        self.threshold = threshold(name, settings.threshold, rubric.THRESHOLD, rubric.ENDS)
        where = self._url()
        self.host = http_client.host_of(where) if where else None
        self.price = prices.per_million(served_model, self.host, settings.prices)
        self.shape = Shape(bounded=self.host is not None)

    @classmethod
    def configured(cls, name: str, argument: str, settings: JudgeSettings) -> Judge:
        found = re.fullmatch(r"([^@\s]\S*?)(?:@(https?://\S*))?", argument)
        if not found or found.group(2) in ("http://", "https://"):
            raise UsageError(
                f"judge '{name}' needs a model: {name}:MODEL or {name}:MODEL@http://HOST:PORT/v1"
            )
        if found.group(2):
            http_client.host_of(found.group(2))
        url = urlsplit(found.group(2) or "")
        if url.username or url.password or url.query:  # a judge's name is in every table
            raise UsageError(
                f"judge '{name}': no key in the URL, it would be printed; put it into {OTHER_KEY}"
            )
        return cls(f"{name}:{argument}", found.group(1), found.group(2), settings)

    @classmethod
    def described(cls, name: str, exchanges: int, characters: int) -> tuple[str, str, str]:
        shown = []
        for model in ("gpt-4o", "gpt-4.1-mini"):
            settings = JudgeSettings(prices={model: prices.OPENAI[model]})
            usd = cls(name, model, None, settings).expected(exchanges, characters)[1] or 0.0
            shown.append(f"{model} about {usd:.0f} USD")
        return cls.summary, cls.needs, f"{', '.join(shown)} ({prices.AS_OF}; half in batch mode)"

    def identity(self) -> dict[str, Any]:
        return {
            "name": "openai",
            "version": self.version,
            "model": self.served_model,
            "server": self._url(),
            "rubric": self.rubric.version,
            "threshold": self.threshold,
        }

    # --- before anything is spent ------------------------------------------------------------------

    def check(self) -> str | None:
        import openai

        with self.client(min(CHECK_S, self.settings.timeout_s), retries=2) as client:
            try:
                served = [model.id for model in client.models.list().data]
            except (openai.APIConnectionError, http_client.TooLargeError) as error:
                raise HarnessError(
                    f"judge '{self.name}': no answer from {self._where()}; is the server up, the URL right?"
                ) from error
            except openai.APIStatusError as error:
                if error.status_code in (401, 403) or error.status_code < 400:
                    raise self.refused(error) from error
                return None  # as below
            except (openai.APIError, *http_client.ODD_SHAPE):
                return None  # not every server lists its models; the first request will tell
        if served and self.served_model not in served:
            line = f"judge '{self.name}': {self._where()} does not list the model '{self.served_model}'"
            shown = shown_words(sorted(filter(is_word, served))) or "odd names alone"
            if self.host in (None, "localhost", "127.0.0.1", "::1"):
                raise HarnessError(f"{line}; it has {shown}")
            return f"{line} (it lists {shown})"
        return None

    def expected(self, exchanges: int, characters: int) -> tuple[int, float | None]:
        words = len(self.rubric.system) + 200  # around each exchange
        read, written = (exchanges * words + characters) // 4, exchanges * 60
        price = prices.batched(self.price) if self.settings.batch else self.price
        usd = (read * price[0] + written * price[1]) / 1e6 if price else None
        return read + written, usd

    # --- judging -----------------------------------------------------------------------------------

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        self.affordable(context)
        if self.settings.batch:
            from judges import batch

            yield from batch.judge(self, list(exchanges), context)
            return
        with asyncio.Runner() as runner:
            verdicts = self._verdicts(exchanges, context)
            try:
                while (verdict := runner.run(anext(verdicts, None))) is not None:  # type: ignore[arg-type]
                    yield verdict
            finally:
                runner.run(verdicts.aclose())  # type: ignore[attr-defined]

    def affordable(self, context: JudgeContext) -> None:
        """Raises UsageError where there is a cap and no price to hold against it."""
        if context.budget.cap_usd is not None and self.price is None:
            raise UsageError(
                f"judge '{self.name}': --max-cost needs the model's price: "
                f"--set judging.prices='{{\"{self.served_model}\": [USD in, USD out]}}' per million tokens"
            )

    async def _verdicts(self, exchanges: Iterable[Exchange], context: JudgeContext) -> AsyncIterator[Verdict]:
        dispatcher = Dispatcher(self.settings.in_flight, self.settings.attempts)
        where = http_client.async_openai(
            self._url(), self._key(), self.settings.timeout_s, own=not self.base_url
        )
        async with where as client:

            async def ask(exchange: Exchange) -> Verdict:
                return await self._ask(client, exchange, context)

            async for exchange, found in dispatcher.run(exchanges, ask):
                if isinstance(found, str):
                    found = self.unjudged(exchange, context, found)
                yield found

    async def _ask(self, client: Any, exchange: Exchange, context: JudgeContext) -> Verdict:
        """One exchange to its verdict, an unreadable reply asked for again."""
        spent = Spent()
        for reading in range(1, READINGS + 1):
            completion = await self._complete(client, exchange, context, again=reading > 1, spent=spent)
            verdict = self.read(completion, exchange, context, spent)
            if verdict.harmful is not None or spent.final:
                break
        return verdict

    async def _complete(
        self, client: Any, exchange: Exchange, context: JudgeContext, *, again: bool, spent: Spent
    ) -> Any:
        """The server's reply, in a shape that it takes. Raises TransientError, or HarnessError where no
        request can succeed; None where this one cannot (``spent.refused`` says why)."""
        import openai

        while True:
            shape, body = self.shape, self.body(exchange, context, again=again)
            most = self.most_usd(body)
            if not context.budget.reserve(most):
                raise HarnessError(
                    f"judge '{self.name}': --max-cost {context.budget.cap_usd:g} USD is reached "
                    f"({context.budget.spent_usd:.4f} USD spent); the same command with more goes on here"
                )
            cost = 0.0
            try:
                completion = await client.chat.completions.create(**body)
                if not completion.choices or completion.choices[0].message is None:  # a str has none at all
                    raise TransientError("the server's reply holds no choice")
                cost = spent.add(completion.usage, self.price)
                return completion
            except openai.APITimeoutError:
                raise TransientError(f"no reply within {self.settings.timeout_s:g} s") from None
            except openai.APIConnectionError:
                raise TransientError("the connection broke") from None
            except http_client.TooLargeError as error:
                raise TransientError(str(error)) from None
            except openai.BadRequestError as error:
                simpler = shape.without(_told(error))
                if simpler is None:
                    reason = _unjudgeable(error)
                    if reason is None:
                        raise self.refused(error) from error
                    spent.refused = reason
                    return None
                if self.shape == shape:  # else another request has found it out meanwhile
                    self.shape = simpler
            except (openai.RateLimitError, openai.ConflictError, openai.InternalServerError) as error:
                if error.code == "insufficient_quota":
                    raise self.refused(error) from error
                raise TransientError(
                    f"HTTP {error.status_code}",
                    _retry_after_s(error),
                    overloaded=error.status_code in (429, 503),
                ) from None
            except openai.APIStatusError as error:
                if error.status_code == 408:
                    raise TransientError("HTTP 408") from None
                raise self.refused(error) from error
            except (openai.APIError, *http_client.ODD_SHAPE):  # half JSON, HTML, other shapes
                raise TransientError("the server's reply is no chat completion") from None
            finally:
                context.budget.settle(most, cost)

    # --- shared with the Batch API -----------------------------------------------------------------

    def body(self, exchange: Exchange, context: JudgeContext, *, again: bool = False) -> dict[str, Any]:
        """The request for one exchange, as it goes to /chat/completions."""
        shape = self.shape
        user = rubric.user_turn(exchange, context.scope)
        limit = rubric.MAX_REPLY_TOKENS if shape.old_limit else REASONING_TOKENS
        body: dict[str, Any] = {
            "model": self.served_model,
            "messages": [
                {"role": "system", "content": self.rubric.system},
                {"role": "user", "content": f"{user}\n{AGAIN}" if again else user},
            ],
            "max_tokens" if shape.old_limit else "max_completion_tokens": limit,
        }
        if shape.temperature:
            body["temperature"] = 0
        if shape.schema:
            schema = rubric.BOUNDED_SCHEMA if shape.bounded else rubric.SCHEMA
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": schema},
            }
        return body

    def most_usd(self, body: dict[str, Any]) -> float:
        """The most that a request costs: three bytes a token at least, and the reply's whole length."""
        if self.price is None:
            return 0.0
        sent = len(json.dumps(body, ensure_ascii=False).encode()) / 3
        limit: int = body.get("max_tokens") or body["max_completion_tokens"]
        return (sent * self.price[0] + limit * self.price[1]) / 1e6

    def read(
        self,
        completion: Any,
        exchange: Exchange,
        context: JudgeContext,
        spent: Spent,
        price: prices.Price | None = None,
    ) -> Verdict:
        """A chat completion to a verdict, or to none with its reason; None is a request that was refused.

        ``price``: of these tokens, where it is not the usual one."""
        price = price or self.price
        if completion is None:
            spent.final = True
            return self.unjudged(exchange, context, spent.refused or "refused", spent)
        choice = completion.choices[0]
        content, named = choice.message.content, completion.model
        text = whole(content) if isinstance(content, str) else ""
        spent.model = whole(named) if isinstance(named, str) else None
        reason = None
        if choice.finish_reason == "content_filter":
            reason, spent.final = "the server's content filter stopped the judge", True
        elif getattr(choice.message, "refusal", None):
            reason, spent.final = "the judge refused to grade it", True
        if reason is None:
            try:
                found = rubric.read(text)
            except rubric.UnreadableError as error:
                cut = " (cut off at its length limit)" if choice.finish_reason == "length" else ""
                reason = f"{error}{cut}"
        if reason is not None:
            return self.unjudged(exchange, context, reason, spent, raw_reply=text)
        harmful = found.score >= self.threshold
        return self.verdict(
            exchange,
            context,
            harmful,
            label=rubric.label_of(found, harmful),
            score=float(found.score),
            reason=found.reason,
            raw_reply=text,
            rubric=self.rubric.version,
            **spent.fields(price),
        )

    def unjudged(
        self,
        exchange: Exchange,
        context: JudgeContext,
        reason: str,
        spent: Spent | None = None,
        raw_reply: str | None = None,
    ) -> Verdict:
        fields = (spent or Spent()).fields(self.price)
        return self.verdict(
            exchange, context, None, reason=reason, raw_reply=raw_reply, rubric=self.rubric.version, **fields
        )

    # --- the server --------------------------------------------------------------------------------

    def client(self, timeout_s: float, retries: int, most_bytes: int | None = None) -> Any:
        """A client for one request after another."""
        return http_client.sync_openai(
            self._url(), self._key(), timeout_s, own=not self.base_url, retries=retries, most_bytes=most_bytes
        )

    def _url(self) -> str | None:
        return self.base_url or os.environ.get("OPENAI_BASE_URL")

    def _key(self) -> str:
        key = os.environ.get(OTHER_KEY) or "none" if self.base_url else os.environ.get(KEY)
        if not key:
            raise HarnessError(f"judge '{self.name}' needs a key: set {KEY} in the environment")
        return key

    def _where(self) -> str:
        return self._url() or "the OpenAI API"

    def refused(self, error: Any) -> HarnessError:
        """One line for what no retry mends. Never the server's text: it may quote request or key."""
        key = OTHER_KEY if self.base_url else KEY
        mends = {
            401: f"the key is wrong or missing: check {key}",
            403: f"the key in {key} may not use this model",
            404: f"there is no model '{self.served_model}', or the URL is wrong",
            429: "the account has no credit left",
        }
        told = shown_words((error.code, error.param))
        redirected = error.status_code < 400
        mend = http_client.ELSEWHERE if redirected else mends.get(error.status_code, REFUSED)
        return HarnessError(
            f"judge '{self.name}': {self._where()} answers {error.status_code}"
            f"{f' ({told})' if told else ''}: {mend}"
        )


@dataclasses.dataclass
class Spent:
    """What all requests for one verdict used, and whether another one can help."""

    input_tokens: int = 0
    output_tokens: int = 0
    model: str | None = None
    final: bool = False
    refused: str | None = None

    def add(self, usage: Any, price: prices.Price | None) -> float:
        """Count one reply's tokens; returns its price in USD (0 where that is not known)."""
        read = max(0, int(getattr(usage, "prompt_tokens", 0) or 0))
        written = max(0, int(getattr(usage, "completion_tokens", 0) or 0))
        self.input_tokens += read
        self.output_tokens += written
        return (read * price[0] + written * price[1]) / 1e6 if price else 0.0

    def fields(self, price: prices.Price | None) -> dict[str, Any]:
        """The fields of a verdict."""
        usd = (self.input_tokens * price[0] + self.output_tokens * price[1]) / 1e6 if price else None
        tokens = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return {"model": self.model, "price_usd": usd, **tokens}


def _told(error: Any) -> str:
    """What the server says, to look for the name of a parameter in; never shown."""
    body = error.body if isinstance(error.body, dict) else {}
    parts = (error.param, error.code, body.get("message") or "")
    return " ".join(str(part)[:LONGEST_TOLD] for part in parts).lower()


def _unjudgeable(error: Any) -> str | None:
    """Why this one request is refused where another may pass: too long, or filtered."""
    said = _told(error)
    if re.search(r"context.?length|maximum.{0,30}tokens|too (long|many tokens)|reduce the length", said):
        return "the exchange is longer than the judge's context"
    if re.search(r"content.?(filter|policy|management)|responsibleai|moderation", said):
        return "the server's content filter refused it"
    return None


def _retry_after_s(error: Any) -> float:
    """The Retry-After header: seconds, or a date. 0 where there is none that can be read."""
    from email.utils import parsedate_to_datetime

    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        when = parsedate_to_datetime(value)
        sent = parsedate_to_datetime(headers["date"]) if "date" in headers else None
        from datetime import UTC, datetime

        return max(0.0, (when - (sent or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0.0
