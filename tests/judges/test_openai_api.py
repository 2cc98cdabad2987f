"""The server judge against a server that fails as real ones do: nothing lost, nothing invented or twice."""

from __future__ import annotations

import dataclasses
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import fault_server
import pytest
import tls_server
from fault_server import (
    FaultServer,
    completion,
    drip,
    error,
    finish_batch,
    half_sent,
    hang,
    no_choice,
    ok,
    raw,
    reset,
    running,
    says,
    verdict,
)

from harness.contracts import (
    REFUSED_TO_JUDGE,
    Budget,
    Exchange,
    HarnessError,
    JudgeContext,
    JudgePendingError,
    JudgeSettings,
    UsageError,
    Verdict,
)
from harness.servers import http_client
from judges import batch, rubric
from judges.chat_server import retry_after_s
from judges.openai_api import OpenAIJudge

Make = Callable[..., Exchange]
SECRET = "sk-planted-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name in ("OPENAI_API_KEY", "JUDGE_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with running() as server:
        yield server


def make(server: FaultServer, model: str = "judge-1", **settings: Any) -> OpenAIJudge:
    quick = {"timeout_s": 60.0, "attempts": 4, **settings}
    judge = OpenAIJudge.configured("openai", f"{model}@{server.url}", JudgeSettings(**quick))
    assert isinstance(judge, OpenAIJudge)
    return judge


def exchanges(exchange: Make, *names: str) -> list[Exchange]:
    return [exchange("I cannot help with that.", prompt=f"case-{name}", id=name) for name in names]


def judged(judge: OpenAIJudge, items: list[Exchange], **context: Any) -> dict[str, Verdict]:
    verdicts = list(judge.judge(items, JudgeContext(**context)))
    assert sorted(v.exchange_id for v in verdicts) == sorted(item.id for item in items)  # all, none twice
    return {v.exchange_id: v for v in verdicts}


# --- what is asked and kept ------------------------------------------------------------------------


def test_a_verdict_keeps_all_there_is_to_know(server: FaultServer, exchange: Make) -> None:
    server.steps["case-a"] = [ok(5, "compliance")]
    judge = make(server, prices={"judge-1": (2.0, 10.0)})
    found = judged(judge, exchanges(exchange, "a", "b"))
    assert dataclasses.asdict(found["a"]) == {
        "exchange_id": "a",
        "judge": f"openai:judge-1@{server.url}",
        "judge_version": "1",
        "harmful": True,
        "label": "compliance",
        "score": 5.0,
        "reason": "it declines",
        "scope": "prefill+response",
        "model": "judge-1-2026",
        "rubric": rubric.load(None).version,
        "raw_reply": verdict(5, "compliance"),
        "input_tokens": 900,
        "output_tokens": 30,
        "price_usd": pytest.approx((900 * 2 + 30 * 10) / 1e6),
        "cached": False,
    }
    assert (found["b"].harmful, found["b"].label, found["b"].score) == (False, "refusal", 1.0)
    body = server.bodies[0]
    assert body["temperature"] == 0
    assert body["messages"][0]["content"] == rubric.load(None).system
    assert body["response_format"]["json_schema"]["schema"] == rubric.BOUNDED_SCHEMA


@pytest.mark.parametrize(("threshold", "harmful"), [(None, False), (4.0, True), (5.0, False)])
def test_harmful_from_the_threshold_on(
    server: FaultServer, exchange: Make, threshold: float | None, harmful: bool
) -> None:
    server.default = [ok(4, "partial")]
    found = judged(make(server, threshold=threshold), exchanges(exchange, "a"))
    assert found["a"].harmful is harmful


def test_only_the_scope_is_shown(server: FaultServer, exchange: Make) -> None:
    item = exchange("the rest", prompt="case-a", prefill="the prefix ")
    judged(make(server), [item], scope="response")
    assert "<answer>\nthe rest\n</answer>" in server.bodies[0]["messages"][1]["content"]
    assert "the prefix" not in str(server.bodies)


def test_identity_is_all_that_verdicts_depend_on(server: FaultServer, tmp_path: Any) -> None:
    own = tmp_path / "rubric.md"
    own.write_text("1 or 5.")
    made = [
        make(server),
        make(server, model="judge-2"),
        make(server, threshold=3.0),
        make(server, rubric=own),
        OpenAIJudge.configured("openai", "judge-1", JudgeSettings()),
    ]
    assert len({str(judge.identity()) for judge in made}) == 5
    assert make(server).identity() == make(server, timeout_s=1.0, in_flight=2, batch=True).identity()


# --- faults ----------------------------------------------------------------------------------------


def told(code: int, body: Any, kind: str = "application/json") -> Any:
    content = body if isinstance(body, str) else json.dumps(body)
    return raw(content.encode(), kind, code)


BUSY = error(429, "rate_limit_exceeded", "slow down")
FAULTS: dict[str, tuple[list[Any], bool | None, str | None, int]] = {
    # steps, harmful, reason of no verdict, requests
    "busy": ([BUSY, BUSY, ok(1)], False, None, 3),
    "busy-for-a-while": ([error(429, "x", "y", Retry_After="1"), ok(5, "compliance")], True, None, 2),
    "broken": ([error(500, "x", "y"), error(503, "x", "y"), ok(5)], True, None, 3),
    "reset": ([reset, reset, ok(1)], False, None, 3),
    "hangs-once": ([hang, ok(1)], False, None, 2),
    "drips-once": ([drip, ok(1)], False, None, 2),
    "half-sent": ([half_sent, ok(1)], False, None, 2),
    "half-json": ([raw(b'{"id": "c", "choices": [{"mess'), ok(1)], False, None, 2),
    "other-json": ([raw(b"[1, 2]"), raw(b"null"), raw(b'"x"'), ok(1)], False, None, 4),
    "html": ([raw(b"<html>no</html>", "text/html"), ok(1)], False, None, 2),
    "html-for-ever": ([raw(b"<html>no</html>", "text/html")], None, "no chat completion (tried 4", 4),
    "no-choice": ([no_choice], None, "holds no choice (tried 4 times)", 4),
    "always-busy": ([BUSY], None, "HTTP 429 (tried 4 times)", 4),
    "always-broken": ([error(500, "x", "y")], None, "HTTP 500 (tried 4 times)", 4),
    "always-reset": ([reset], None, "the connection broke (tried 4 times)", 4),
    "bare-score": ([says("5.")], True, None, 1),
    "score-of-five": ([says("Score: 4/5")], False, None, 1),
    "out-of-range": ([says("#thescore: 7")], None, "outside 1 to 5", 3),
    "prose-then-json": ([says("I think it is a 5"), ok(1)], False, None, 2),
    "prose": ([says("It says 1, I say 5")], None, "not the JSON object", 3),
    "empty-reply": ([says(""), says(None), ok(1)], False, None, 3),
    "cut-off": ([says('{"reason": "it', finish="length")], None, "cut off at its length limit", 3),
    "filtered": ([says("", finish="content_filter")], None, REFUSED_TO_JUDGE, 1),
    "refused": ([says(None, refusal="I can't grade that")], None, REFUSED_TO_JUDGE, 1),
    "declines": ([says("I'm sorry, I can't help with that.")], None, REFUSED_TO_JUDGE, 2),
    "declines-once": ([says("I'm sorry, I can't help with that."), ok(1)], False, None, 2),
    "too-long": ([error(400, "context_length_exceeded", "maximum context length is 9 tokens")], None,
                 "longer than the judge's context", 1),
    "filtered-request": ([error(400, "content_filter", "policy")], None, REFUSED_TO_JUDGE, 1),
    "flagged": ([error(403, "x", "your input was flagged")], None, REFUSED_TO_JUDGE, 1),
    "an-error-in-200": ([told(200, {"error": {"code": 400, "message": "content_filter"}})], None,
                        REFUSED_TO_JUDGE, 1),
    "busy-in-200": ([told(200, {"error": {"code": 429, "message": "slow down"}}), ok(1)], False, None, 2),
    "too-large": ([told(413, {})], None, "longer than the judge's context", 1),
    "gone": ([error(408, "x", "timeout"), ok(1)], False, None, 2),
}  # fmt: skip


@pytest.mark.slow
def test_every_exchange_ends_as_a_verdict_or_unjudged_with_its_reason(
    server: FaultServer, exchange: Make
) -> None:
    server.steps = {f"case-{name}": steps for name, (steps, *_) in FAULTS.items()}
    found = judged(make(server, timeout_s=10), exchanges(exchange, *FAULTS, "plain"))
    for name, (_, harmful, reason, requests) in FAULTS.items():
        assert found[name].harmful is harmful, name
        assert server.asked[f"case-{name}"] == requests, name
        if harmful is None:
            assert reason is not None
            assert reason in (found[name].reason or ""), name
            assert found[name].score is None
            assert "I say 5" not in (found[name].reason or "")
        else:
            assert found[name].score is not None
    assert found["plain"].harmful is False
    assert found["out-of-range"].output_tokens == 3 * 30  # all that was paid for it
    assert found["prose-then-json"].output_tokens == 2 * 30


THOUGHTS: dict[str, tuple[list[Any], bool | None, str | None, int]] = {
    "thinks": ([says(f"<think>{{so}} {verdict(1)}</think>\n\n{verdict(5, 'compliance')}")], True, None, 1),
    "thinks-too-long": ([says("<think>so", finish="length"), ok(5, "compliance")], True, None, 2),
    "thinks-for-ever": ([says(f"<think>{verdict(1)}", finish="length")], None,
                        "its reasoning was cut off at 16,000 tokens", 4),
    "thinks-in-silence": ([says("", finish="length")], None, "its reasoning was cut off at 16,000 tokens", 4),
    "thinks-and-stops": ([says(f"<think>{verdict(1)}")], None, "there is nothing behind its reasoning", 3),
    "thinks-unmarked": ([says("Let me see", finish="length"), ok(1)], False, None, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", THOUGHTS)
def test_reasoning_is_taken_off_and_gets_room(server: FaultServer, exchange: Make, name: str) -> None:
    steps, harmful, reason, requests = THOUGHTS[name]
    server.steps = {"case-a": steps}
    found = judged(make(server), exchanges(exchange, "a"))["a"]
    assert (found.harmful, len(server.bodies)) == (harmful, requests)
    assert harmful is not None or found.reason == reason
    rooms = [body["max_tokens"] for body in server.bodies]
    grown = reason is None or "cut off" in reason
    assert rooms == ([400, 4_000, 8_000, 16_000][:requests] if grown else [400] * requests)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            error(401, "invalid_api_key", f"Incorrect API key provided: {SECRET}"),
            "the key is wrong or missing",
        ),
        (error(403, "x", "no"), "may not use this model"),
        (error(404, "model_not_found", "no such model"), "there is no model 'judge-1', or the URL is wrong"),
        (
            error(400, "invalid", "the request case-a is odd", "messages"),
            "400 (invalid, messages): the request",
        ),
        (error(422, "x", "odd"), "422 (x): the request itself is refused"),
        (error(429, "insufficient_quota", "pay"), "the account has no credit left"),
    ],
)
def test_what_no_retry_mends_stops_at_once_with_one_line(
    server: FaultServer, exchange: Make, monkeypatch: pytest.MonkeyPatch, step: Any, says: str
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", SECRET)
    server.default = [step]
    items = exchanges(exchange, *(f"a{number}" for number in range(100)))
    with pytest.raises(HarnessError) as stopped:
        list(make(server, in_flight=4).judge(items, JudgeContext()))
    line = str(stopped.value)
    assert says in line
    assert server.url in line
    assert SECRET not in line
    assert "case-a" not in line
    assert sum(server.asked.values()) <= 4


def test_what_was_judged_before_the_stop_is_yielded(server: FaultServer, exchange: Make) -> None:
    server.steps = {"case-a9": [error(401, "x", "y")]}
    items = exchanges(exchange, *(f"a{number}" for number in range(10)))
    found: list[Verdict] = []
    with pytest.raises(HarnessError, match="the key is wrong"):
        found.extend(make(server, in_flight=10).judge(items, JudgeContext()))
    assert sorted(one.exchange_id for one in found) == [f"a{number}" for number in range(9)]


def test_a_server_that_does_not_take_all_parameters_is_asked_for_less(
    server: FaultServer, exchange: Make
) -> None:
    def picky(handler: Any) -> None:
        body = handler.body
        for name, code in (("temperature", "unsupported_value"), ("max_tokens", "unsupported_parameter")):
            if name in body:
                return error(400, code, f"'{name}' is not supported", name)(handler)
        if "response_format" in body:
            return error(400, "invalid", "response_format of type json_schema is unknown")(handler)
        return ok(5, "compliance")(handler)

    server.default = [picky]
    found = judged(make(server, in_flight=1), exchanges(exchange, "a", "b", "c"))
    assert [found[name].harmful for name in "abc"] == [True] * 3
    assert sum(server.asked.values()) == 3 + 3  # found out once
    assert set(server.bodies[-1]) == {"model", "messages", "max_completion_tokens"}


PARAMETERS = ("response_format", "temperature", "max_tokens", "max_completion_tokens")
REFUSALS: dict[str, Callable[[str], Any]] = {
    "OpenAI": lambda name: error(400, "unsupported_parameter", f"'{name}' is not supported", name),
    "FastAPI": lambda name: told(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", name],
                                                   "msg": "Extra inputs are not permitted"}]}),
    "text": lambda name: told(400, {"error": f"Unsupported parameter: '{name}'"}),
    "no error": lambda name: told(400, {"message": f"unknown field {name}", "type": "BadRequest"}),
    "plain": lambda name: told(400, f"Unrecognized request argument supplied: {name}", "text/plain"),
    "page": lambda name: told(422, f"<html><h1>Error</h1>{name} is not permitted</html>", "text/html"),
    "list": lambda name: told(400, [{"error": {"message": "bad", "param": name}}]),
    "raw": lambda name: told(400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {
        "raw": json.dumps({"error": {"message": f"no {name}", "param": name}})}}}),
    "inside 500": lambda name: told(500, {"error": {"code": 400, "message": f"{name} is not supported"}}),
    "inside 200": lambda name: told(200, {"error": {"code": 400, "message": f"{name} is not supported"}}),
    "nameless": lambda name: told(400, {"error": {"message": "Unsupported parameters"}}),
}  # fmt: skip


@pytest.mark.parametrize("shape", REFUSALS)
@pytest.mark.parametrize("most", range(1, len(PARAMETERS) + 1))
def test_what_is_refused_is_left_out_until_nothing_is(
    server: FaultServer, exchange: Make, caplog: pytest.LogCaptureFixture, shape: str, most: int
) -> None:
    refused = PARAMETERS[:most]

    def picky(handler: Any) -> None:
        name = next((name for name in refused if name in handler.body), None)
        (REFUSALS[shape](name) if name else ok(5, "compliance"))(handler)

    server.default = [picky]
    found = judged(make(server, in_flight=1), exchanges(exchange, "a", "b"))
    assert [found[name].harmful for name in "ab"] == [True, True]
    left_out = len(server.bodies) - 2
    assert left_out == len(caplog.messages) == most  # found out once, and said once
    left = {"model", "messages", *PARAMETERS[:2], "max_tokens"} - {*refused}
    assert set(server.bodies[-1]) == left | ({"max_completion_tokens"} if most == 3 else set())
    assert all(server.url in line and "takes no" in line for line in caplog.messages)


def test_a_request_that_lacks_nothing_but_itself_is_refused(server: FaultServer, exchange: Make) -> None:
    server.default = [told(422, {"detail": [{"loc": ["body", "messages"], "msg": "Extra inputs are bad"}]})]
    with pytest.raises(HarnessError, match="answers 422: the request itself is refused"):
        judged(make(server), exchanges(exchange, "a"))
    assert len(server.bodies) == 1


def test_a_server_with_little_room_is_asked_for_less(server: FaultServer, exchange: Make) -> None:
    def small(handler: Any) -> None:
        if handler.body["max_tokens"] > 256:
            return told(400, {"error": "max_tokens must be less than or equal to 256"})(handler)
        return ok(5, "compliance")(handler)

    server.default = [small]
    assert judged(make(server, in_flight=1), exchanges(exchange, "a"))["a"].harmful is True
    assert [body["max_tokens"] for body in server.bodies] == [400, 200]


def test_a_server_with_no_room_for_a_verdict_is_refused(server: FaultServer, exchange: Make) -> None:
    server.default = [told(400, {"error": "max_tokens is too large"})]
    with pytest.raises(HarnessError, match="answers 400: the request itself is refused"):
        judged(make(server, in_flight=1), exchanges(exchange, "a"))
    assert [body["max_tokens"] for body in server.bodies] == [400, 200, 100]


def test_reasoning_gets_as_much_room_as_the_context_has(server: FaultServer, exchange: Make) -> None:
    def small(handler: Any) -> None:
        if handler.body["max_tokens"] > 2_500:
            return told(400, {"error": "max_tokens is too large: the maximum context length is 4096"})(
                handler
            )
        return says("<think>so", finish="length")(handler)

    server.default = [small]
    found = judged(make(server, in_flight=1), exchanges(exchange, "a"))["a"]
    assert (found.harmful, found.reason) == (None, "its reasoning was cut off at 2,000 tokens")
    assert [body["max_tokens"] for body in server.bodies] == [400, 4_000, 2_000]


def test_a_server_that_takes_no_limit_cannot_be_held_to_a_cap(server: FaultServer, exchange: Make) -> None:
    def picky(handler: Any) -> None:
        limits = [name for name in ("max_tokens", "max_completion_tokens") if name in handler.body]
        (error(400, "unsupported_parameter", "no", limits[0]) if limits else ok(1))(handler)

    server.default = [picky]
    judge = make(server, prices={"judge-1": (2.0, 10.0)}, in_flight=1)
    with pytest.raises(
        HarnessError, match="takes no limit on a reply's tokens, so that --max-cost could not"
    ):
        judged(judge, exchanges(exchange, "a"), budget=Budget(cap_usd=5.0))
    assert len(server.bodies) == 2


def test_more_room_is_reserved_before_it_is_asked_for(server: FaultServer, exchange: Make) -> None:
    server.default = [says("<think>so", finish="length")]
    judge = make(server, prices={"judge-1": (0.0, 10.0)}, in_flight=1)
    budget = Budget(cap_usd=0.01)  # 1,000 tokens
    with pytest.raises(HarnessError, match=r"--max-cost 0\.01 USD is reached"):
        judged(judge, exchanges(exchange, "a"), budget=budget)
    assert [body["max_tokens"] for body in server.bodies] == [400]
    assert budget.reserved_usd == pytest.approx(0, abs=1e-12)


def test_once_reasoning_was_cut_off_the_next_ones_get_room_at_once(
    server: FaultServer, exchange: Make
) -> None:
    server.steps = {"case-a": [says("<think>so", finish="length"), ok(1)]}
    found = judged(make(server, in_flight=1), exchanges(exchange, "a", "b"))
    assert [body["max_tokens"] for body in server.bodies] == [400, 4_000, 4_000]
    assert found["a"].output_tokens == 2 * 30  # all that was paid for it


THINKING: dict[str, dict[str, Any]] = {
    "parts": {
        "content": [{"type": "thinking", "thinking": verdict(1)}, {"type": "text", "text": verdict(5)}]
    },
    "a field": {"content": verdict(5), "reasoning_content": verdict(1)},
    "a template's mark": {"content": f"{verdict(1)}</think>{verdict(5)}"},
}


@pytest.mark.parametrize("how", THINKING)
@pytest.mark.parametrize("batched", [False, True])
def test_the_verdict_stands_behind_the_reasoning(
    server: FaultServer, exchange: Make, tmp_path: Any, how: str, batched: bool
) -> None:
    reply = completion("")
    reply["choices"][0]["message"] |= THINKING[how]
    server.default = [told(200, reply)]
    items, judge = exchanges(exchange, "a"), make(server, batch=batched)
    if batched:
        with pytest.raises(JudgePendingError):
            judged(judge, items, folder=tmp_path)
        finish_batch(server, "batch-0", {"a": reply})
    found = judged(judge, items, folder=tmp_path)["a"]
    assert (found.harmful, found.score, found.raw_reply) == (True, 5.0, verdict(5))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_verdict_that_is_only_thought_is_none(server: FaultServer, exchange: Make, field: str) -> None:
    reply = completion("")
    reply["choices"][0]["message"] |= {field: verdict(1)}
    server.default = [told(200, reply)]
    found = judged(make(server), exchanges(exchange, "a"))["a"]
    assert (found.harmful, found.reason) == (None, "there is nothing behind its reasoning")


# --- servers that mean no good ---------------------------------------------------------------------

STEERS = "\x1b[2Jevil"
BAD: dict[str, tuple[Any, str]] = {
    "drips": (drip, "no reply within 0.3 s (tried 2 times)"),
    "drips-headers": (fault_server.dripped_headers, "no reply within 0.3 s (tried 2 times)"),
    "promises": (fault_server.for_ever_soon, "no reply within 0.3 s (tried 2 times)"),
    "hangs": (hang, "no reply within 0.3 s (tried 2 times)"),
    "never-ends": (fault_server.endless, "a reply of more than 0.25 MiB (tried 2 times)"),
    "unpacks": (
        fault_server.packed(gzip.compress(bytes(2**24), 1), "gzip"),
        "a reply of more than 0.25 MiB (tried 2 times)",
    ),
    "has-many-headers": (fault_server.many_headers, "the connection broke (tried 2 times)"),
    "is-deep": (raw(b"[" * 50_000), "the server's reply is no chat completion (tried 2 times)"),
    "is-deep-inside": (
        raw(b'{"choices": [{"message": ' + b'{"a": ' * 900 + b"1" + b"}" * 902 + b"]}"),
        "(tried 2 times)",
    ),
    "has-odd-choices": (raw(b'{"choices": {"a": 1}}'), "no chat completion (tried 2 times)"),
}


def test_no_server_keeps_a_judge_waiting_or_fills_its_memory(
    server: FaultServer, exchange: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MOST_BYTES", 2**18)
    server.steps = {f"case-{name}": [step] for name, (step, _) in BAD.items()}
    found = judged(make(server, timeout_s=0.3, attempts=2), exchanges(exchange, *BAD))
    for name, (_, reason) in BAD.items():
        assert found[name].harmful is None, name
        assert reason in (found[name].reason or ""), name


@pytest.mark.parametrize("code", [302, 307])
def test_a_judge_that_sends_elsewhere_is_one_line_and_nothing_goes_there(
    server: FaultServer, exchange: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", SECRET)
    with running() as other:
        server.on_get = fault_server.redirect(code, f"{other.url}/models")
        server.default = [fault_server.redirect(code, f"{other.url}/chat/completions")]
        for ask in (
            make(server).check,
            lambda: judged(make(server), exchanges(exchange, "a")),
        ):
            with pytest.raises(HarnessError, match=f"answers {code}: {http_client.ELSEWHERE}"):
                ask()
        assert (other.connections, other.got) == (0, [])


@pytest.mark.parametrize("odd", [STEERS, "two words", "x" * 300, {"a": STEERS}, ["x"], None])
def test_what_an_error_calls_itself_is_shown_only_as_a_word(
    server: FaultServer, exchange: Make, odd: Any
) -> None:
    server.default = [error(422, odd, STEERS, odd)]
    with pytest.raises(HarnessError, match="answers 422: the request itself is refused"):
        judged(make(server), exchanges(exchange, "a"))


def test_the_check_shows_a_few_plain_names(server: FaultServer) -> None:
    odd = [None, 7, {"a": 1}, ["x"], "x" * 10**6, STEERS, "two words", ""]
    server.models = [*odd, *(f"m{number}" for number in range(9))]
    with pytest.raises(HarnessError, match=r"does not list the model 'judge-1'; it has m0, m1, m2, m3, m4$"):
        make(server).check()
    server.models = odd
    with pytest.raises(HarnessError, match=r"it has odd names alone$"):
        make(server).check()
    server.models = [*odd, "judge-1"]
    assert make(server).check() is None


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (drip, "no answer from"),
        (fault_server.endless, "no answer from"),
        (fault_server.packed(gzip.compress(bytes(2**24), 1), "gzip"), "no answer from"),
        (fault_server.many_headers, "no answer from"),
        (raw(b"[" * 50_000), None),
        (raw(b'{"data": null}'), None),
        (raw(b'{"data": [1, "x"]}'), None),
        (raw(b"<html>", "text/html"), None),
        (error(404, STEERS, STEERS), None),
    ],
)
def test_the_check_ends_whatever_lists_the_models(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, step: Any, says: str | None
) -> None:
    monkeypatch.setattr(http_client, "MOST_BYTES", 2**18)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    server.on_get = step
    if says is None:
        assert make(server, timeout_s=0.15).check() is None
        return
    with pytest.raises(HarnessError, match=says):
        make(server, timeout_s=0.15).check()


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999/v1", "http://h:0"])
def test_a_url_that_is_none_is_wrong_usage(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is no server's base URL"):
        OpenAIJudge.configured("openai", f"m@{url}", JudgeSettings())
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UsageError, match="is no server's base URL"):
        OpenAIJudge.configured("openai", "m", JudgeSettings())


# --- many at once ----------------------------------------------------------------------------------


def together(count: int, step: Any) -> Any:
    """A step that so many requests take when all of them are there."""
    barrier = threading.Barrier(count)

    def taken(handler: Any) -> None:
        barrier.wait(30)
        step(handler)

    return taken


def test_as_many_requests_as_allowed_are_in_flight(server: FaultServer, exchange: Make) -> None:
    first = together(8, ok(1))
    server.steps = {f"case-{number}": [first] for number in range(8)}
    judged(make(server, in_flight=8), exchanges(exchange, *map(str, range(40))))
    assert server.most_in_flight == 8
    assert sum(server.asked.values()) == 40


def test_fewer_are_in_flight_after_a_429_and_none_before_retry_after(
    server: FaultServer, exchange: Make
) -> None:
    busy = together(8, error(429, "x", "y", Retry_After="1"))
    server.steps = {f"case-{number}": [busy, ok(1)] for number in range(8)}
    judged(make(server, in_flight=8), exchanges(exchange, *map(str, range(60))))
    assert len(server.times) == 8 + 60
    assert server.times[8] - server.times[7] > 0.8  # the whole judge waited, not one request


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": f"Mon, 01 Jan {10**20} 00:00:00 GMT"}, 0.0),
        (
            {"retry-after": formatdate(1_000_030, usegmt=True), "date": formatdate(1_000_000, usegmt=True)},
            30.0,
        ),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float) -> None:
    class Error:
        response = type("Response", (), {"headers": headers})

    assert retry_after_s(Error) == seconds


def test_one_that_is_left_in_the_middle_asks_no_more(server: FaultServer, exchange: Make) -> None:
    verdicts = make(server, in_flight=2).judge(exchanges(exchange, *map(str, range(50))), JudgeContext())
    next(verdicts)
    verdicts.close()
    assert sum(server.asked.values()) < 10


# --- money -----------------------------------------------------------------------------------------


def test_the_cap_is_never_passed_and_what_was_paid_is_kept(server: FaultServer, exchange: Make) -> None:
    budget = Budget(cap_usd=0.05)
    judge = make(server, prices={"judge-1": (2.0, 10.0)}, in_flight=4)
    found: list[Verdict] = []
    with pytest.raises(HarnessError, match=r"--max-cost 0\.05 USD is reached .* goes on here"):
        found.extend(judge.judge(exchanges(exchange, *map(str, range(90))), JudgeContext(budget=budget)))
    assert 0 < len(found) < 90
    assert len(found) == sum(server.asked.values())
    assert budget.spent_usd == pytest.approx(sum(one.price_usd or 0 for one in found))
    assert budget.spent_usd <= 0.05
    assert budget.reserved_usd == pytest.approx(0, abs=1e-12)


def test_a_cap_without_a_price_is_wrong_usage(exchange: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    judge = OpenAIJudge.configured("openai", "m@https://example.org/v1", JudgeSettings())
    with pytest.raises(UsageError, match="--max-cost needs the model's price"):
        list(judge.judge(exchanges(exchange, "a"), JudgeContext(budget=Budget(1.0))))


def test_prices_are_known_for_openai_free_at_home_and_unknown_elsewhere() -> None:
    def price(argument: str, **settings: Any) -> Any:
        judge = OpenAIJudge.configured("openai", argument, JudgeSettings(**settings))
        assert isinstance(judge, OpenAIJudge)
        return judge.price, judge.expected(1_000, 1_000_000)[1]

    assert price("gpt-4o") == price("gpt-4o-2024-08-06")
    assert price("gpt-4o")[1] == pytest.approx(2 * price("gpt-4o", batch=True)[1])
    assert price("m@http://127.0.0.1:1/v1") == ((0.0, 0.0), 0.0)
    assert price("m@https://example.org/v1") == (None, None)
    assert price("m@https://example.org/v1", prices={"m": (1.0, 1.0)})[1] > 0
    assert price("gpt-unheard-of") == (None, None)


# --- before anything is spent ----------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["", "@http://x/v1", "m@ftp://x", "a b", "m@http://"])
def test_a_model_is_needed(argument: str) -> None:
    if argument == "m@ftp://x":
        assert OpenAIJudge.configured("openai", argument, JudgeSettings())  # an odd name, no URL
        return
    with pytest.raises(UsageError, match="needs a model: openai:MODEL"):
        OpenAIJudge.configured("openai", argument, JudgeSettings())


@pytest.mark.parametrize("url", ["http://me:secret@h/v1", "https://h/v1?key=secret", "http://secret@h/v1"])
def test_no_key_gets_into_a_name(url: str) -> None:
    with pytest.raises(UsageError, match="no key in the URL") as error:
        OpenAIJudge.configured("openai", f"m@{url}", JudgeSettings())
    assert "secret" not in str(error.value)


def test_the_check_knows_keys_servers_and_models(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(server).check() is None
    with pytest.raises(HarnessError, match="does not list the model 'judge-9'; it has judge-1"):
        make(server, model="judge-9").check()
    server.key = "right"
    with pytest.raises(HarnessError, match="the key is wrong or missing: check JUDGE_API_KEY"):
        make(server).check()
    monkeypatch.setenv("JUDGE_API_KEY", "right")
    assert make(server).check() is None
    server.models = []
    assert make(server).check() is None
    nobody = OpenAIJudge.configured("openai", "m@http://127.0.0.1:9/v1", JudgeSettings())
    with pytest.raises(HarnessError, match=r"no answer from http://127\.0\.0\.1:9/v1; is the server up"):
        nobody.check()
    with pytest.raises(HarnessError, match="needs a key: set OPENAI_API_KEY"):
        OpenAIJudge.configured("openai", "gpt-4o", JudgeSettings()).check()


@pytest.mark.parametrize("own", [False, True])
def test_a_key_that_no_header_carries_asks_nothing(
    server: FaultServer, exchange: Make, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    variable = "OPENAI_API_KEY" if own else "JUDGE_API_KEY"
    monkeypatch.setenv(variable, f"{SECRET}\n")
    if own:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    judge = OpenAIJudge.configured("openai", "judge-1", JudgeSettings()) if own else make(server)
    for ask in (judge.check, lambda: list(judge.judge(exchanges(exchange, "a"), JudgeContext()))):
        with pytest.raises(HarnessError, match=f"^{variable} holds a line break, which no key has") as told:
            ask()
        assert SECRET not in str(told.value)
    assert server.connections == 0


@pytest.mark.parametrize("url", ["", "https://api.openai.com/v1/", "https://API.OPENAI.COM:443/v1"])
@pytest.mark.parametrize("by", ["variable", "name"])
def test_openais_own_url_is_openai(monkeypatch: pytest.MonkeyPatch, url: str, by: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    monkeypatch.setenv("JUDGE_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_BASE_URL", url if by == "variable" else "")
    named = f"@{url}" if by == "name" and url else ""
    judge = OpenAIJudge.configured("openai", f"gpt-4o{named}", JudgeSettings())
    assert isinstance(judge, OpenAIJudge)
    assert (judge.server.key(), judge.price, judge.shape.bounded) == ("sk-own", (2.5, 10.0), False)
    assert judge.identity()["server"] is None
    with judge.server.client(1.0, 0) as client:
        assert str(client.base_url) == "https://api.openai.com/v1/"


def test_ollamas_latest_is_told(server: FaultServer) -> None:
    server.models = ["llama3:latest", "x"]
    line = make(server, model="llama3").check()
    assert line == f"judge 'openai:llama3@{server.url}': {server.url} lists 'llama3' as 'llama3:latest'"
    assert make(server, model="llama3:latest").check() is None
    with pytest.raises(HarnessError, match="does not list the model 'llama3:8b'; it has llama3:latest, x"):
        make(server, model="llama3:8b").check()


def test_a_certificate_stops_a_judge_at_once(exchange: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server.running(tls_server.GOOD) as server:
        judge = OpenAIJudge.configured("openai", f"m@{server.url_at('localhost')}", JudgeSettings())
        for ask in (judge.check, lambda: list(judge.judge(exchanges(exchange, "a"), JudgeContext()))):
            with pytest.raises(HarnessError, match=r"the certificate of localhost is refused \(self-signed"):
                ask()
        assert server.got == []


def test_a_page_by_way_of_a_proxy_names_the_proxy(exchange: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running() as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:planted@127.0.0.1:{proxy.server_address[1]}")
        judge = OpenAIJudge.configured("openai", "m@http://models.invalid/v1", JudgeSettings())
        for code, says in (
            (403, "the proxy http://127.0.0.1:"),
            (407, "the proxy wants a name and a password"),
        ):
            proxy.on_get = told(code, "<html>no</html>", "text/html")
            with pytest.raises(HarnessError, match=says) as stopped:
                judge.check()
            assert "planted" not in str(stopped.value)


def test_openais_key_goes_to_no_other_server(
    server: FaultServer, exchange: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    make(server).check()
    judged(make(server), exchanges(exchange, "a"))
    assert SECRET not in str(server.headers)
    assert server.headers[0]["authorization"] == "Bearer none"


# --- the Batch API ---------------------------------------------------------------------------------


def test_a_batch_is_submitted_left_and_collected_by_another(
    server: FaultServer, exchange: Make, tmp_path: Any
) -> None:
    items = exchanges(exchange, "a", "b", "c", "d", "e")
    budget = Budget(cap_usd=1.0)
    context = {"folder": tmp_path / "remote", "budget": budget}
    prices = {"judge-1": (2.0, 10.0)}
    with pytest.raises(JudgePendingError, match="batch batch-0 of 5 exchanges is submitted"):
        judged(make(server, batch=True, prices=prices), items, **context)
    with pytest.raises(JudgePendingError, match="batch batch-0 of 5 exchanges is in_progress"):
        judged(make(server, batch=True, prices=prices), items, **context)
    assert len(server.batches) == 1
    replies = {
        "a": completion(verdict(5, "compliance")),
        "b": completion("no verdict"),
        "c": ("error", "batch_expired"),
        "d": {"odd": 1},
    }
    finish_batch(server, "batch-0", replies, "expired")
    context["budget"] = Budget(cap_usd=1.0)
    found = judged(make(server, batch=True, prices=prices), items, **context)
    assert (found["a"].harmful, found["a"].price_usd) == (True, pytest.approx((900 * 2 + 30 * 10) / 2e6))
    reasons = {name: found[name].reason for name in "bcde"}
    assert all(found[name].harmful is None for name in "bcde")
    assert reasons == {
        "b": "the reply is not the JSON object that was asked for",
        "c": "the batch's request failed (batch_expired)",
        "d": "the server's reply is no chat completion",
        "e": "the batch (expired) holds no reply to it",
    }
    assert context["budget"].spent_usd == pytest.approx(2 * (900 * 2 + 30 * 10) / 2e6)
    assert not (tmp_path / "remote" / "batch.json").exists()
    direct = make(server).body(items[0], JudgeContext())
    sent = server.files["file-0"].decode().splitlines()
    assert len(sent) == 5
    assert json.loads(sent[0])["body"] == direct


def test_a_batch_that_was_made_but_not_written_down_is_found_again(
    server: FaultServer, exchange: Make, tmp_path: Any
) -> None:
    items = exchanges(exchange, "a")
    memory = tmp_path / "batch.json"
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), items, folder=tmp_path)
    kept = json.loads(memory.read_text())
    memory.write_text(json.dumps(kept | {"id": None}))  # killed between the two
    with pytest.raises(JudgePendingError, match="batch-0 of 1 exchanges is in_progress"):
        judged(make(server, batch=True), items, folder=tmp_path)
    assert len(server.batches) == 1


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_memory_pays_no_second_batch(
    server: FaultServer, exchange: Make, tmp_path: Any, content: str
) -> None:
    (tmp_path / "batch.json").write_text(content)
    with pytest.raises(HarnessError, match=r"batch\.json: damaged"):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    assert server.batches == {}


def test_a_failed_batch_and_a_dear_one(server: FaultServer, exchange: Make, tmp_path: Any) -> None:
    items = exchanges(exchange, "a")
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), items, folder=tmp_path)
    server.batches["batch-0"] |= {
        "status": "failed",
        "errors": {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "x"}]},
    }
    with pytest.raises(HarnessError, match=r"batch-0 failed \(token_limit_exceeded\)"):
        judged(make(server, batch=True), items, folder=tmp_path)
    dear = make(server, batch=True, prices={"judge-1": (1e6, 1e6)})
    with pytest.raises(HarnessError, match="more than --max-cost leaves"):
        judged(dear, items, folder=tmp_path, budget=Budget(1.0))
    assert len(server.batches) == 1


def test_a_batchs_failures_are_told_as_they_are_when_asked_directly(
    server: FaultServer, exchange: Make, tmp_path: Any
) -> None:
    bodies = {
        "filtered": {"error": {"code": "content_filter", "message": "x"}},
        "long": {"error": {"message": "maximum context length is 9 tokens"}},
        "picky": {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]},
        "odd": {"error": {"message": "x"}},
    }
    names = [*bodies, "declines", "cut", "stopped"]
    items = exchanges(exchange, *names)
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), items, folder=tmp_path)
    replies = {
        "declines": completion("I'm sorry, I can't help with that."),
        "cut": completion("<think>so", finish="length"),
        "stopped": completion("", finish="content_filter"),
    }
    finish_batch(server, "batch-0", replies)
    lines = [
        {"custom_id": name, "response": {"status_code": 400, "body": body}, "error": None}
        for name, body in bodies.items()
    ]
    server.files["batch-0-out"] += ("\n" + "\n".join(map(json.dumps, lines))).encode()
    found = judged(make(server, batch=True), items, folder=tmp_path)
    assert {name: (found[name].harmful, found[name].reason) for name in names} == {
        "filtered": (None, REFUSED_TO_JUDGE),
        "long": (None, "the exchange is longer than the judge's context"),
        "picky": (None, "the judge takes no temperature of 0: use --judge-mode direct"),
        "odd": (None, "the batch's request failed (HTTP 400)"),
        "declines": (None, REFUSED_TO_JUDGE),
        "cut": (None, "its reasoning was cut off at 400 tokens"),
        "stopped": (None, REFUSED_TO_JUDGE),
    }


ODD_CODES = [STEERS, "two words", {"a": 1}, None, "x" * 300]


def test_what_a_batch_calls_its_errors_is_shown_only_as_a_word(
    server: FaultServer, exchange: Make, tmp_path: Any
) -> None:
    names = [f"e{number}" for number in range(len(ODD_CODES))]
    items = exchanges(exchange, *names, "good")
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), items, folder=tmp_path)
    replies = {name: ("error", code) for name, code in zip(names, ODD_CODES, strict=True)}
    finish_batch(server, "batch-0", {**replies, "good": ("error", "server_error")})
    found = judged(make(server, batch=True), items, folder=tmp_path)
    assert {found[name].reason for name in names} == {"the batch's request failed (no status)"}
    assert found["good"].reason == "the batch's request failed (server_error)"


@pytest.mark.parametrize("code", ODD_CODES)
def test_a_failed_batch_names_no_odd_code(
    server: FaultServer, exchange: Make, tmp_path: Any, code: Any
) -> None:
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    errors = {"object": "list", "data": [{"code": code, "message": STEERS}, {"code": "fine", "message": "x"}]}
    server.batches["batch-0"] |= {"status": "failed", "errors": errors}
    with pytest.raises(HarnessError, match=r"batch-0 failed \(fine\)$"):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "error_is", "says"),
    [
        ({"status": STEERS}, JudgePendingError, "is in a state that is not known here"),
        ({"status": {"a": 1}}, JudgePendingError, "is in a state that is not known here"),
        ({"request_counts": {"completed": "many"}}, JudgePendingError, "is in_progress$"),
        ({"request_counts": 7}, JudgePendingError, "is in_progress$"),
        ({"id": STEERS}, HarnessError, "what the server sends is no batch"),
        ({"id": None}, HarnessError, "what the server sends is no batch"),
        ({"output_file_id": "../../secrets"}, HarnessError, "what the server sends is no batch"),
        ({"status": "failed", "errors": "all"}, HarnessError, "what the server sends is no batch"),
        ({"status": "failed", "errors": {"data": None}}, HarnessError, "no reason given"),
    ],
)
def test_an_odd_batch_is_one_line(
    server: FaultServer, exchange: Make, tmp_path: Any, change: dict[str, Any], error_is: Any, says: str
) -> None:
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    server.batches["batch-0"] |= change
    with pytest.raises(error_is, match=says) as told:
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    assert type(told.value) is error_is
    assert len(server.batches) == 1


@pytest.mark.parametrize("reply", [b"[1]", b"null", b'"x"', b"[" * 50_000, b"<html>"])
def test_what_is_no_batch_is_one_line(
    server: FaultServer, exchange: Make, tmp_path: Any, reply: bytes
) -> None:
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    server.on_get = raw(reply)
    with pytest.raises(HarnessError, match="what the server sends is no batch; use --judge-mode direct"):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    assert (tmp_path / "batch.json").exists()  # it is not paid twice


def test_pages_of_batches_come_to_an_end(server: FaultServer, exchange: Make, tmp_path: Any) -> None:
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    kept = json.loads((tmp_path / "batch.json").read_text())
    (tmp_path / "batch.json").write_text(json.dumps(kept | {"id": None}))
    another = server.batches["batch-0"] | {"metadata": None}
    page = {"object": "list", "data": [another], "has_more": True}
    server.on_get = lambda handler: handler.send_json(200, page)
    with pytest.raises(JudgePendingError, match="is submitted"):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    assert sum(path.startswith("/v1/batches?") for path, _ in server.got) == batch.MOST_PAGES


def test_replies_of_a_batch_without_end_are_not_read(
    server: FaultServer, exchange: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_BYTES", 2**18)
    with pytest.raises(JudgePendingError):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    finish_batch(server, "batch-0", {})
    server.files["batch-0-out"] = b" " * 2**20
    with pytest.raises(HarnessError, match=r"the Batch API sends a reply of more than 0\.25 MiB"):
        judged(make(server, batch=True), exchanges(exchange, "a"), folder=tmp_path)
    assert (tmp_path / "batch.json").exists()
