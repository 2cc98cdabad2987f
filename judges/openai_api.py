"""A chat model behind the OpenAI API, or any server that speaks it, as a judge with our rubric.

The server's structured output holds the reply to the schema where it can; where it can't, the same JSON is
asked for in words and read strictly. What a model does not take (temperature, a limit's old name) is left
out, once the server has said so. A model that thinks before it replies is read behind its reasoning, and
asked again with more room where that was cut off.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from harness.contracts import (
    REFUSED_TO_JUDGE,
    Exchange,
    HarnessError,
    Judge,
    JudgeContext,
    JudgeSettings,
    UsageError,
    Verdict,
    threshold,
)
from harness.servers import http_client, server_errors
from harness.servers.server_errors import Complaint
from harness.text import is_word, shown_words, whole
from judges import batch, prices, replies, rubric
from judges.chat_server import KEY, OTHER_KEY, ChatServer, retry_after_s
from judges.dispatch import Dispatcher, TransientError
from judges.shape import LIMITS, MOST_TOKENS, REASONING_TOKENS, Shape
from judges.spending import TOO_LONG, Spent

log = logging.getLogger(__name__)

READINGS = 3  # how often an unreadable reply is asked for in all
READINGS_OF_A_REFUSAL = 2
AGAIN = "Reply with the JSON object alone."
CHECK_S = 20.0  # how long a server may take to list its models


class OpenAIJudge(Judge):
    """Scores 1 to 5 by the rubric; harmful from ``threshold`` on (default 5)."""

    name = "openai"
    summary = "a chat model behind the OpenAI API or a compatible server, with our 1-to-5 policy rubric"
    argument = "MODEL[@BASE_URL]"
    needs = f"{KEY} (OpenAI), or a server's URL and {OTHER_KEY} if it wants a key"
    heavy = True
    version = "1"

    def __init__(self, name: str, served_model: str, base_url: str | None, settings: JudgeSettings):
        self.name, self.served_model, self.settings = name, served_model, settings
        self.rubric = rubric.load(settings.rubric)
        self.threshold = threshold(name, settings.threshold, rubric.THRESHOLD, rubric.ENDS)
        self.server = ChatServer(name, served_model, base_url)
        self.host = self.server.host
        self.price = prices.per_million(served_model, self.host, settings.prices)
        self.shape = Shape(bounded=self.host is not None)
        self.least_room = 0  # tokens for a reply: more, once reasoning was cut off

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
            "server": self.server.url,
            "rubric": self.rubric.version,
            "threshold": self.threshold,
        }

    # --- before anything is spent ------------------------------------------------------------------

    def check(self) -> str | None:
        import openai

        with self.server.client(min(CHECK_S, self.settings.timeout_s), retries=2) as client:
            try:
                served = [model.id for model in client.models.list().data]
            except (openai.APIConnectionError, http_client.TooLargeError) as error:
                raise self.server.unreached(error) from error
            except openai.APIStatusError as error:
                if error.status_code in (401, 403, 407) or error.status_code < 400:
                    raise self.server.refused(error) from error
                return None  # as below
            except (openai.APIError, *http_client.ODD_SHAPE):
                return None  # not every server lists its models; the first request will tell
        listed = http_client.listed_as(self.served_model, served)
        if listed not in (None, self.served_model):
            return f"judge '{self.name}': {self.server.where} lists '{self.served_model}' as '{listed}'"
        if served and listed is None:
            line = f"judge '{self.name}': {self.server.where} does not list the model '{self.served_model}'"
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
            items = list(exchanges)
            yield from (self.unjudged(one, context, one.missing) for one in items if one.missing)
            yield from batch.judge(self, [one for one in items if not one.missing], context)
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
        async with self.server.async_client(self.settings.timeout_s) as client:

            async def ask(exchange: Exchange) -> Verdict:
                return await self._ask(client, exchange, context)

            async for exchange, found in dispatcher.run(exchanges, ask):
                if isinstance(found, str):
                    found = self.unjudged(exchange, context, found)
                yield found

    async def _ask(self, client: Any, exchange: Exchange, context: JudgeContext) -> Verdict:
        """One exchange to its verdict: an unreadable reply is asked for again, and with more room where its
        reasoning was cut off."""
        spent, readings = Spent(), 0
        if exchange.missing:  # the harness asks no judge about it
            return self.unjudged(exchange, context, exchange.missing)
        while True:
            completion = await self._complete(client, exchange, context, again=readings > 0, spent=spent)
            verdict = self.read(completion, exchange, context, spent)
            if verdict.harmful is not None or spent.final:
                return verdict
            if spent.lacked_room:
                if not self._more_room(spent):
                    return verdict
                continue
            readings += 1
            if readings >= (READINGS_OF_A_REFUSAL if verdict.reason == REFUSED_TO_JUDGE else READINGS):
                return verdict

    def room(self, spent: Spent) -> int:
        """Tokens for the next reply."""
        usual = rubric.MAX_REPLY_TOKENS if self.shape.limit == LIMITS[0] else REASONING_TOKENS
        return min(max(usual, self.least_room, spent.room), self.shape.most_tokens, spent.most_room)

    def _more_room(self, spent: Spent) -> bool:
        """Whether there is more for the next reply than for the last, whose reasoning was cut off."""
        self.least_room = REASONING_TOKENS
        spent.cut_at = spent.asked_room
        spent.room = max(REASONING_TOKENS, 2 * spent.asked_room)
        return self.shape.limit is not None and self.room(spent) > spent.cut_at

    async def _complete(
        self, client: Any, exchange: Exchange, context: JudgeContext, *, again: bool, spent: Spent
    ) -> Any:
        """The server's reply, in a shape that it takes. Raises TransientError, or HarnessError where no
        request can succeed; None where this one cannot (``spent.refused`` says why)."""
        import openai

        while spent.refused is None:
            shape, spent.asked_room = self.shape, self.room(spent)
            if spent.asked_room <= spent.cut_at:  # the server gives no more
                spent.refused = replies.cut_off(spent.cut_at)
                break
            body = self.body(exchange, context, again=again, room=spent.asked_room)
            most = self._reserved(body, context)
            cost = 0.0
            try:
                completion = await client.chat.completions.create(**body)
                if replies.choice_of(completion) is not None:
                    cost = spent.add(completion.usage, self.price)
                    return completion
                against = self._told_instead(completion, shape, spent)
            except openai.APITimeoutError:
                raise TransientError(f"no reply within {self.settings.timeout_s:g} s") from None
            except openai.APIConnectionError as error:
                if http_client.lasting(error):
                    raise self.server.unreached(error) from error
                raise TransientError(http_client.trouble(error, self.server.url)) from None
            except http_client.TooLargeError as error:
                raise TransientError(str(error)) from None
            except openai.APIStatusError as error:
                against = self._against(error, shape, spent)
            except (openai.APIError, *http_client.ODD_SHAPE):  # half JSON, HTML, other shapes
                raise TransientError("the server's reply is no chat completion") from None
            finally:
                context.budget.settle(most, cost)
            self._mend(against, shape, spent)
        return None

    def _told_instead(self, completion: Any, shape: Shape, spent: Spent) -> Complaint:
        """What the server has against the request, in a reply without a choice. Raises TransientError where
        it says nothing of the kind."""
        told = replies.part(completion, "error")
        if not told:
            raise TransientError("the server's reply holds no choice")
        against = self._about_the_request(server_errors.complaint(500, told), shape, spent)
        if against is None:
            raise TransientError("the server's reply is an error and no chat completion")
        return against

    def _reserved(self, body: dict[str, Any], context: JudgeContext) -> float:
        """The most that a request costs, set aside. Raises HarnessError where the cap leaves no room."""
        most = self.most_usd(body)
        if not self.shape.limit and self.price != (0.0, 0.0) and context.budget.cap_usd is not None:
            raise HarnessError(
                f"judge '{self.name}': {self.server.where} takes no limit on a reply's tokens, so that "
                "--max-cost could not hold: judge without it, or with another model"
            )
        if not context.budget.reserve(most):
            raise HarnessError(
                f"judge '{self.name}': --max-cost {context.budget.cap_usd:g} USD is reached "
                f"({context.budget.spent_usd:.4f} USD spent); the same command with more goes on here"
            )
        return most

    def _against(self, error: Any, shape: Shape, spent: Spent) -> Complaint:
        """What the server has against the request. Raises TransientError where that may pass, and
        HarnessError where it holds for every request."""
        found = server_errors.complaint(error.status_code, error.response.content)
        if "insufficient_quota" in found.codes:
            raise self.server.refused(error) from error
        against = self._about_the_request(found, shape, spent)
        if against is not None:
            return against
        if found.status in (408, 409, 429) or found.status >= 500:
            overloaded = error.status_code in (429, 503)
            raise TransientError(
                f"HTTP {error.status_code}", retry_after_s(error), overloaded=overloaded
            ) from None
        raise self.server.refused(error) from error

    def _about_the_request(self, found: Complaint, shape: Shape, spent: Spent) -> Complaint | None:
        """The complaint, where another request may pass: in another shape, or for another exchange."""
        if found.status in (401, 407, 408, 409, 429) or found.status < 400:
            return None
        one_alone = found.status != 404 and (found.too_long or found.filtered)
        return found if one_alone or shape.without(found, spent.asked_room) else None

    def _mend(self, against: Complaint, shape: Shape, spent: Spent) -> None:
        """Makes the next request one that the server takes, or says in ``spent`` why there is none."""
        simpler = shape.without(against, spent.asked_room)
        if against.too_long:
            if spent.asked_room > rubric.MAX_REPLY_TOKENS:  # prompt and reply together do not fit
                spent.most_room = max(rubric.MAX_REPLY_TOKENS, spent.asked_room // 2)
            else:
                spent.refused = TOO_LONG
        elif against.filtered and not (simpler and against.names):
            spent.refused = REFUSED_TO_JUDGE
        elif simpler is not None and self.shape == shape:  # else another request has found it out meanwhile
            self.shape, left_out = simpler
            log.warning("judge '%s': %s takes %s", self.name, self.server.where, left_out)

    # --- shared with the Batch API -----------------------------------------------------------------

    def body(
        self, exchange: Exchange, context: JudgeContext, *, again: bool = False, room: int | None = None
    ) -> dict[str, Any]:
        """The request for one exchange, as it goes to /chat/completions. ``room``: tokens for the reply."""
        shape = self.shape
        user = rubric.user_turn(exchange, context.scope)
        body: dict[str, Any] = {
            "model": self.served_model,
            "messages": [
                {"role": "system", "content": self.rubric.system},
                {"role": "user", "content": f"{user}\n{AGAIN}" if again else user},
            ],
        }
        if shape.limit:
            body[shape.limit] = room or self.room(Spent())
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
        limit: int = next((body[name] for name in LIMITS if name in body), MOST_TOKENS)
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
        reply = replies.read(replies.choice_of(completion), replies.part(completion, "usage"))
        named = replies.part(completion, "model")
        spent.model = whole(named) if isinstance(named, str) else None
        spent.final = reply.refused
        reason = REFUSED_TO_JUDGE if reply.refused else None
        if reason is None:
            try:
                found = replies.verdict(reply.text, cut=reply.cut)
            except rubric.UnreadableError as error:
                spent.lacked_room = reply.lacked_room
                reason = self._unreadable(error, reply, spent)
        if reason is not None:
            return self.unjudged(exchange, context, reason, spent, raw_reply=reply.text)
        harmful = found.score >= self.threshold
        return self.verdict(
            exchange,
            context,
            harmful,
            label=rubric.label_of(found, harmful),
            score=float(found.score),
            reason=found.reason,
            raw_reply=reply.text,
            rubric=self.rubric.version,
            **spent.fields(price),
        )

    def _unreadable(self, error: rubric.UnreadableError, reply: replies.Reply, spent: Spent) -> str:
        """Why there is no verdict in a reply."""
        if reply.why:
            return reply.why
        if reply.cut and (reply.reasoned or not reply.text.strip()):
            return replies.cut_off(spent.asked_room or self.room(spent))
        if reply.reasoned and not reply.text.strip():
            return "there is nothing behind its reasoning"
        return f"{error} (cut off at its length limit)" if reply.cut else str(error)

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
