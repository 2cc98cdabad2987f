"""LookAhead Tuning: preview the answer's beginning in the instruction (arXiv 2503.19041, eq. 5-7).

It touches the data and nothing else. The reference code is zjunlp/LookAheadTuning; its connector, its six
previewed tokens and its prefix are protocol constants, byte for byte. It previews texts as they stand, and a
task that strips them does so afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.contracts import Example, Method, PrepareContext

CONNECTOR = " The answer begins with: "
PREFIX = "Let's solve this problem. "


@dataclass
class LookAheadTrue(Method):
    """Preview the answer's first ``preview_tokens`` tokens, counted by the model's own tokenizer (eq. 5)."""

    name = "lookahead-true"
    summary = "previews the true answer's first tokens in the instruction"

    preview_tokens: int = 6
    connector: str = CONNECTOR

    def __post_init__(self) -> None:
        if self.preview_tokens < 1:
            raise ValueError(f"preview_tokens must be at least 1, not {self.preview_tokens}")

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        return [self._previewed(example.unstripped(), context).stripped() for example in examples]

    def _previewed(self, example: Example, context: PrepareContext) -> Example:
        preview = self.preview(example, context)
        return example.with_instruction(example.instruction + self.connector + preview)

    def preview(self, example: Example, context: PrepareContext) -> str:
        """The first tokens of the bare answer, decoded; a shorter answer is previewed whole."""
        ids = context.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        return str(context.tokenizer.decode(ids[: self.preview_tokens]))


@dataclass
class LookAheadVirtual(Method):
    """Put one fixed prefix before every answer and preview it in the instruction (eq. 6 and 7)."""

    name = "lookahead-virtual"
    summary = "previews a fixed prefix that is also put before the answer"

    prefix: str = PREFIX
    connector: str = CONNECTOR

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        return [self._previewed(example.unstripped()).stripped() for example in examples]

    def _previewed(self, example: Example) -> Example:
        instruction = example.instruction + self.connector + self.prefix
        return example.with_instruction(instruction).with_answer(self.prefix + example.answer)
