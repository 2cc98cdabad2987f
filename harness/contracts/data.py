"""Training data, and what a method fine-tunes on: Message, Example, TrainTask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


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
