"""A judge: the exchanges that it reads, the verdicts that it yields, and what it may use and spend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from harness import finish
from harness.contracts.errors import HarnessError, UsageError

Label = Literal["refusal", "compliance", "partial", "incoherent"]
JudgedScope = Literal["prefill+response", "response"]
REFUSED_TO_JUDGE = "the judge refused to judge"  # why there is no verdict: a count of its own


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the model's answer to it, as stored in responses.jsonl."""

    id: str
    task: str
    category: str | None
    system: str | None
    prompt: str
    prefill: str  # "" where the answer was not prefilled
    response: str  # the continuation alone
    finish_reason: str | None  # as engine or server gave it (harness/finish.py); None: it did not say
    reasoning: str | None = None  # of a thinking model, before its answer; not judged
    unavailable: str | None = None  # why the engine could not have an answer, in our words
    goal: str | None = None  # the harmful request itself, where ``prompt`` hides or rewrites it

    @property
    def request(self) -> str:
        """What a judge is to judge the answer by: the goal, or else what was sent."""
        return self.prompt if self.goal is None else self.goal

    @property
    def missing(self) -> str | None:
        """Why there is no answer to score or judge; None where there is one."""
        return finish.missing(self.response, self.finish_reason, self.reasoning, self.unavailable)

    def judged_text(self, scope: JudgedScope) -> str:
        return self.prefill + self.response if scope == "prefill+response" else self.response


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's finding on one exchange. ``harmful`` None: could not be judged, counted and shown.

    ``reason``: why, in the judge's words, which may quote the answer; but where ``harmful`` is None it says
    why there is no verdict, in ours, and quotes nothing. ``score`` is on the judge's own scale. Tokens and
    price are of all requests made for this verdict; ``price_usd`` None: not known. ``cached``: taken over
    from an equal exchange judged before (then without texts), at no new cost.
    """

    exchange_id: str
    judge: str
    judge_version: str
    harmful: bool | None
    label: Label | None = None
    score: float | None = None
    reason: str | None = None
    scope: JudgedScope = "prefill+response"
    model: str | None = None  # that replied, as it names itself
    rubric: str | None = None  # version of the rubric
    raw_reply: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    price_usd: float | None = 0.0
    cached: bool = False


class JudgePendingError(HarnessError):
    """A judge has handed its work to somebody else (a batch) and is to be asked again later. Exit code 4."""


@dataclass(slots=True)
class Budget:
    """What judges may spend in one command, in USD; ``cap_usd`` None is no limit. Not for several threads.

    A request is reserved at the most that it can cost before it is sent, so that the cap holds whatever is in
    flight.
    """

    cap_usd: float | None = None
    spent_usd: float = 0.0
    reserved_usd: float = 0.0

    def reserve(self, most_usd: float) -> bool:
        """Whether there is room for a request that costs at most so much; if so it is set aside."""
        if self.cap_usd is not None and self.spent_usd + self.reserved_usd + most_usd > self.cap_usd:
            return False
        self.reserved_usd += most_usd
        return True

    def settle(self, most_usd: float, cost_usd: float) -> None:
        """A reserved request has ended and cost so much."""
        self.reserved_usd -= most_usd
        self.spent_usd += cost_usd


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """The recipe's ``judging`` section, as judges see it (harness/config says what each key means)."""

    rubric: Path | None = None
    threshold: float | None = None
    prompt_files: Mapping[str, Path] = field(default_factory=dict)
    in_flight: int = 32
    timeout_s: float = 60.0
    attempts: int = 6
    batch: bool = False
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class JudgeModel(Protocol):
    """A judge's own weights, loaded: what local judges ask of transformers or vLLM.

    Prompts are token ids; results come in their order.
    """

    tokenizer: Any
    context_tokens: int  # the longest prompt and reply together

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Greedy replies, special tokens left out. ``schema``: JSON that the reply must fit, where the engine
        can hold it to that."""
        ...

    def choose(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
        """Probabilities of each of ``tokens`` as the next one, among them alone (they sum to 1)."""
        ...

    def classify(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        """A sequence classifier's probability of each of its labels, for (request, answer)."""
        ...


def threshold(judge: str, given: float | None, own: float, scale: tuple[float, float]) -> float:
    """From which score on a judge calls an answer harmful: ``given``, else its ``own``. ``scale``: its least
    and highest score. Raises UsageError for a threshold that every score reaches, or none."""
    found, (least, most) = own if given is None else given, scale
    if not least < found <= most:
        calls = "everything" if found <= least else "nothing"
        raise UsageError(
            f"judge '{judge}' scores from {least:g} to {most:g}, so that a threshold of {found:g} would call "
            f"{calls} harmful: give one above {least:g} and up to {most:g}"
        )
    return found


def _no_model(name: str) -> JudgeModel:
    raise HarnessError(f"judge model '{name}': no engine at hand here")


@dataclass(frozen=True, slots=True)
class JudgeContext:
    """What ``Judge.judge`` may use.

    ``load_model(name)``: the weights in a folder or of a hub name. ``others``: the other judges' verdicts by
    judge and exchange id (for ``combines``). ``folder``: where work handed to somebody else is remembered.
    """

    scope: JudgedScope = "prefill+response"
    load_model: Callable[[str], JudgeModel] = _no_model
    others: Mapping[str, Mapping[str, Verdict]] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    folder: Path | None = None


class Judge:
    """Yields one verdict for each exchange, in any order, as they come; never raises for one bad item.

    HarnessError ends the judging with one line (a wrong key, an unknown model); what was yielded is kept.
    A subclass sets ``name``, ``version`` (part of a verdict's identity) and ``summary``. Exchanges without an
    answer (``Exchange.missing``) are unjudged by the harness, and reach no judge.
    """

    name: str
    summary: str
    version: str = "1"
    argument: ClassVar[str] = ""  # what may follow its name behind a colon: "MODEL[@BASE_URL]"
    needs: str = "nothing"  # key, memory, licence: for ``harness judges``
    heavy: ClassVar[bool] = False  # a model or a server: judges when all cells have answered, kept by content
    combines: ClassVar[bool] = False  # judges by the other judges' verdicts
    model: str | None = None  # weights of its own: a folder or a hub name

    @classmethod
    def configured(cls, name: str, argument: str, settings: JudgeSettings) -> Judge:
        """The judge behind ``--judge NAME`` or ``NAME:ARGUMENT``. Raises UsageError for a bad argument."""
        if argument:
            raise UsageError(f"judge '{name}' takes nothing behind a colon ('{name}:{argument}')")
        return cls()

    @classmethod
    def described(cls, name: str, exchanges: int, characters: int) -> tuple[str, str, str]:
        """For ``harness judges``: what it does, what it needs, and what so many exchanges cost."""
        return cls.summary, cls.needs, "free"

    def identity(self) -> dict[str, Any]:
        """All that its verdicts depend on, but for the exchange and the weights, as JSON values."""
        return {"name": self.name, "version": self.version}

    def check(self) -> str | None:
        """Look whether it can work (key, server) before anything is spent. Raises HarnessError with the mend;
        returns a line to show, or None."""
        return None

    def expected(self, exchanges: int, characters: int) -> tuple[int, float | None]:
        """About what so many exchanges of so many characters in all take: tokens of a paid or remote service,
        and USD (None: not known)."""
        return 0, 0.0

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        raise NotImplementedError

    def verdict(
        self, exchange: Exchange, context: JudgeContext, harmful: bool | None, **found: Any
    ) -> Verdict:
        """A verdict of this judge; ``found`` are further fields of Verdict."""
        return Verdict(exchange.id, self.name, self.version, harmful, scope=context.scope, **found)
