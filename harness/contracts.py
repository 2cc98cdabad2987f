"""The contracts between the harness and its plugins: data, methods, train tasks, judges.

Standard library only (harness.finish and harness.text are that, too), so that a plugin's author can read the
whole of it in a sitting and import it for nothing. Tensors appear as ``Any``: the shapes are in the comments.
Rates are fractions in [0, 1] all through the code and become percentages only where they are printed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from harness import finish
from harness.text import one_line, without_keys

Role = Literal["system", "user", "assistant"]
Label = Literal["refusal", "compliance", "partial", "incoherent"]
JudgedScope = Literal["prefill+response", "response"]
REFUSED_TO_JUDGE = "the judge refused to judge"  # why there is no verdict: a count of its own


class HarnessError(Exception):
    """A failure that the user can mend: one line that says what, where and how. Exit code 1.

    It may quote what came from outside: as text it prints, and holds no key of the environment.
    """

    def __str__(self) -> str:
        return one_line(without_keys(super().__str__()))


class NotFetchedError(HarnessError):
    """Data that only the hub has, and that could not be had from it."""


class UsageError(HarnessError):
    """A wrong name or flag on the command line or in a recipe. Exit code 2."""


# --- training data ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One training conversation: the last message is the assistant's and carries the loss.

    ``loss_free_tokens`` leaves that many tokens at the start of the answer without loss. ``white_space``:
    what was stripped (SAMSum's protocol) behind the instruction, before the answer and behind it; None where
    nothing is stripped.
    """

    id: str
    messages: tuple[Message, ...]
    loss_free_tokens: int = 0
    white_space: tuple[str, str, str] | None = None

    @property
    def instruction(self) -> str:
        """The user turn that the answer replies to."""
        return self.messages[-2].content

    @property
    def answer(self) -> str:
        return self.messages[-1].content

    def with_instruction(self, text: str) -> Example:
        return replace(self, messages=(*self.messages[:-2], Message("user", text), self.messages[-1]))

    def with_answer(self, text: str) -> Example:
        return replace(self, messages=(*self.messages[:-1], Message("assistant", text)))

    def unstripped(self) -> Example:
        """The example with the white space that was stripped: what a method sees that comes before that."""
        behind, before_answer, behind_answer = self.white_space or ("", "", "")
        answer = f"{before_answer}{self.answer}{behind_answer}"
        return self.with_instruction(self.instruction + behind).with_answer(answer)

    def stripped(self) -> Example:
        """The example without outer white space, if its task strips it."""
        if self.white_space is None:
            return self
        return self.with_instruction(self.instruction.strip()).with_answer(self.answer.strip())


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How SDFT asks the base model to rewrite a training answer, and which rewrites it accepts.

    ``reject(rewritten, reference)`` gives the reason why a rewritten answer is not used, or None;
    ``finish(rewritten, reference)`` adds what the task's scorer reads (GSM8K's ``#### n`` line).
    Source: sail-sg/sdft (arXiv 2402.13669).
    """

    system_prompt: str
    user: Callable[[str, str], str]  # (instruction, reference answer) -> user turn
    opening: str = ""  # the assistant turn is opened with this text, which is no part of the new answer
    max_tokens: int = 512
    reject: Callable[[str, str], str | None] = lambda rewritten, reference: None
    finish: Callable[[str, str], str] = lambda rewritten, reference: rewritten


@dataclass(frozen=True, slots=True)
class TrainTask:
    """What a method fine-tunes on: rows, how a row becomes a conversation, and how its skill is measured.

    ``rows()`` yields the default rows; ``--train-data FILE`` replaces them. ``fields`` names a row's
    prompt and answer column, ``prompt_template`` is formatted with the prompt column's text as ``{prompt}``.
    """

    name: str
    rows: Callable[[], Iterable[Mapping[str, Any]]]
    fields: tuple[str, str]
    system_prompt: str
    max_length: int  # tokens, prompt and answer together
    utility_task: str  # the lm-eval task that measures the skill
    utility_metric: str  # its per-document metric, in [0, 1]
    rewrite: Rewrite
    utility_kind: Literal["rate", "mean"] = "rate"  # right or wrong by document, or a score
    prompt_template: str = "{prompt}"
    strip: bool = False  # remove white space around prompt and answer (SAMSum's protocol does)
    version: int = 1


# --- methods ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized example. ``trained[i]`` is True where token i carries loss (answer and end-of-turn)."""

    id: str
    input_ids: list[int]
    trained: list[bool]


class Generate(Protocol):
    """The base model as a text generator: chat messages (and an opened answer) in, continuations out.

    ``temperature`` 0 decodes greedily; above it samples, seeded, from the ``top_p`` nucleus.
    """

    def __call__(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        opening: str,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class PrepareContext:
    """What ``Method.prepare`` may use. ``record`` ends up in training.json under ``method``; a line under its
    key ``note`` is shown, and repeated by the tables.

    ``safety_examples``: harmful requests with refusals (the recipe's ``safety_data``), for methods with
    ``needs_safety_data``; empty for others.
    """

    tokenizer: Any
    train_task: TrainTask
    generate: Generate
    rng: random.Random
    record: dict[str, Any] = field(default_factory=dict)
    safety_examples: Sequence[Example] = ()


@dataclass(frozen=True, slots=True)
class TrainContext:
    """What the hooks around the training loop may use.

    ``seed_logp(examples)``: each example's log-probabilities of its loss-carrying tokens under the untouched
    base model, float32; kept by content, so that a second run or a resumed one has the same values, and
    counted as part of the method's cost. ``safety_examples``: the recipe's ``safety_data``, tokenized.
    """

    examples: Sequence[Encoded]
    seed_logp: Callable[[Sequence[Encoded]], list[list[float]]]
    rng: random.Random
    record: dict[str, Any] = field(default_factory=dict)
    safety_examples: Sequence[Encoded] = ()


@dataclass(slots=True)
class LossInputs:
    """One micro-batch, as ``Method.loss`` sees it: B examples, A loss-carrying tokens in the longest.

    ``logp`` (B, A) float32: log-probability of each loss-carrying token, by example and by its place among
    the example's loss-carrying tokens; 0 behind an answer's end. ``mask`` (B, A) bool: where there is one.
    ``ids``: the examples' ids. ``token_count``: loss-carrying tokens of the global batch, so that a sum
    divided by it is the mean over the global batch, however it is cut; ``model``: for penalties on the
    weights (divide them by ``micro_batches``, the global batch's number over all devices).
    """

    logp: Any
    mask: Any
    ids: list[str]
    token_count: int
    model: Any
    micro_batches: int


class Method:
    """A fine-tuning method, as its difference from vanilla fine-tuning. Every hook is optional.

    A subclass is a dataclass: its fields are the method's options, set in a recipe under
    ``method_options: {NAME: {option: value}}`` or with ``--set method_options.NAME.option=value``. Raise
    ``version`` when a change alters results: what was trained with another version is then trained again.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    version: ClassVar[int] = 1
    needs_safety_data: ClassVar[bool] = False  # trains on the recipe's ``safety_data``
    uses_weights: ClassVar[bool] = False  # a hook reads or changes weights: not where they are sharded
    prepares_with: ClassVar[Literal["rewrites", "seed_logp"] | None] = None  # for the forecast of its cost

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        """Change the training data; the order of the examples is kept."""
        return examples

    def before_training(self, model: Any, context: TrainContext) -> None:
        """Act on the untouched base model: store reference values, freeze layers."""

    def loss(self, inputs: LossInputs) -> Any:
        """The micro-batch's share of the objective (scalar tensor). Vanilla: eq. 1 of the paper."""
        return -(inputs.logp * inputs.mask).sum() / inputs.token_count

    def batches(self, batches: list[list[Encoded]], context: TrainContext) -> list[list[Encoded]]:
        """Change the stream of global batches, one an optimizer step: a second data set, an alternating
        phase. All batches but the last must have the size of those given."""
        return batches

    def after_step(self, model: Any, step: int) -> None:
        """Act on the weights after an optimizer step (1-based)."""

    def after_training(self, model: Any) -> None:
        """Act on the trained weights before they are saved (project, merge, add a vector)."""

    def state(self) -> dict[str, Any]:
        """Tensors by name that ``after_step`` changes, for a training that is stopped and resumed."""
        return {}

    def load_state(self, tensors: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave; called after ``before_training`` and ``batches``."""

    def inference_system_prompt(self, system: str | None) -> str | None:
        """The system prompt under which the tuned model answers, given the task's own (PTST)."""
        return system


# --- judging ---------------------------------------------------------------------------------------


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
