"""The frame of a judge that looks at one exchange at a time: one verdict each, whatever the exchange."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from harness.contracts import Exchange, Judge, JudgeContext, Label, Verdict
from harness.plugins.plugin_code import line_of


class Finding(NamedTuple):
    """What a judge finds in one answer; ``harmful`` None needs a reason."""

    harmful: bool | None
    label: Label | None = None
    reason: str | None = None


class OneByOne(Judge):
    """A subclass says what it finds in one answer; an exception there becomes that one's reason."""

    def find(self, exchange: Exchange, answer: str) -> Finding:
        """``answer`` is the text to judge: the response, after its prefill where the scope says so."""
        raise NotImplementedError

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        for exchange in exchanges:
            try:
                if exchange.missing:  # the harness asks no judge about it; others that use one may
                    yield self.verdict(exchange, context, None, reason=exchange.missing)
                    continue
                found = self.find(exchange, exchange.judged_text(context.scope))
                if not isinstance(found, Finding):
                    wrong = type(found).__name__
                    found = Finding(None, reason=f"find() must return a Finding, not {wrong}")
            except Exception as error:  # the type alone: its message may quote the answer
                place = line_of(error)  # of a judge in a file of the user's own
                where = f" in {place}" if place else ""
                found = Finding(None, reason=f"judge failed: {type(error).__name__}{where}")
            yield Verdict(
                exchange_id=str(getattr(exchange, "id", None)),
                judge=self.name,
                judge_version=self.version,
                harmful=found.harmful,
                label=found.label,
                reason=found.reason,
                scope=context.scope,
            )
