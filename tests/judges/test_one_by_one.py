"""One verdict for each exchange, as they come, whatever one of them does."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import Exchange, Judge, JudgeContext
from harness.finish import EMPTY, has_text
from judges.keyword import Keyword
from judges.mini_exact import MiniExact
from judges.one_by_one import Finding, OneByOne

JUDGES = [MiniExact, Keyword]


class Hostile:
    """An exchange that fails wherever it is touched but for its id."""

    id = "hostile"

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("secret text of the answer")


@pytest.mark.parametrize("judge", JUDGES)
def test_a_hostile_exchange_is_unjudged_and_stops_nothing(
    exchange: Callable[..., Exchange], judge: type[Judge]
) -> None:
    wrong_types = exchange(None, prompt=None, id="wrong-types")
    items: list[Any] = [exchange("a", id="1"), Hostile(), wrong_types, exchange("I cannot help.", id="2")]
    verdicts = list(judge().judge(items, JudgeContext()))
    assert [verdict.exchange_id for verdict in verdicts] == ["1", "hostile", "wrong-types", "2"]
    for verdict in verdicts[1:3]:
        assert verdict.harmful is None
        assert verdict.reason
        assert verdict.reason.startswith("judge failed: ")
        assert "secret" not in verdict.reason
    assert verdicts[0].harmful is not None
    assert verdicts[3].harmful is False


@pytest.mark.parametrize("judge", JUDGES)
def test_verdicts_come_one_at_a_time(exchange: Callable[..., Exchange], judge: type[Judge]) -> None:
    taken = []

    def stream() -> Iterator[Exchange]:
        for number in range(3):
            taken.append(number)
            yield exchange("I cannot help.", id=str(number))

    verdicts = judge().judge(stream(), JudgeContext())
    assert next(verdicts).exchange_id == "0"
    assert taken == [0]
    assert len(list(verdicts)) == 2


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("scope", ["prefill+response", "response"])
def test_scope_is_the_contexts(exchange: Callable[..., Exchange], judge: type[Judge], scope: Any) -> None:
    (verdict,) = judge().judge([exchange("pens")], JudgeContext(scope))
    assert verdict.scope == scope


@pytest.mark.parametrize("judge", JUDGES)
@given(prompt=st.text(), prefill=st.text(), response=st.text())
def test_any_text_gets_a_verdict(
    exchange: Callable[..., Exchange], judge: type[Judge], prompt: str, prefill: str, response: str
) -> None:
    (verdict,) = judge().judge([exchange(response, prompt, prefill)], JudgeContext())
    assert not (verdict.reason or "").startswith("judge failed")
    assert (verdict.harmful is not None) or verdict.reason
    if verdict.harmful is None:
        assert verdict.label is None


def test_a_mini_world_answer_with_any_text_always_has_a_label(exchange: Callable[..., Exchange]) -> None:
    @given(st.text())
    def check(response: str) -> None:
        (verdict,) = MiniExact().judge([exchange(response)], JudgeContext())
        if not has_text(response):
            assert (verdict.harmful, verdict.label, verdict.reason) == (None, None, EMPTY)
            return
        assert verdict.label in ("refusal", "compliance", "partial", "incoherent")
        assert verdict.harmful is (verdict.label in ("compliance", "partial"))

    check()


class Loose(OneByOne):
    """Returns ``given`` in place of a Finding."""

    name = "loose"
    summary = ""
    given: Any = None

    def find(self, exchange: Exchange, answer: str) -> Any:
        return self.given if answer == "odd" else Finding(False)


@pytest.mark.parametrize("given", [True, None, (True, "compliance", None), "secret"])
def test_what_is_no_finding_is_that_exchanges_reason(exchange: Callable[..., Exchange], given: Any) -> None:
    judge = Loose()
    judge.given = given
    odd, plain = judge.judge([exchange("odd"), exchange("plain")], JudgeContext())
    assert odd.harmful is None
    assert odd.reason == f"find() must return a Finding, not {type(given).__name__}"
    assert plain.harmful is False
