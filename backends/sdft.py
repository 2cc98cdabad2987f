"""SDFT, self-distillation fine-tuning: the base model rewrites each answer (arXiv 2402.13669, sail-sg/sdft).

The text that opens the base model's answer belongs to its prompt: the rewritten answer is the continuation
alone. Plain fine-tuning on the rewritten data follows. A rewrite that is rejected falls back to the original
answer; how many were kept, and why others were not, goes into the run's record. (TRL's ``sdft`` is another
method.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.contracts import Example, Message, Method, PrepareContext

# A rewrite that talks about its own prompt, or hands the turn back, is not an answer.
REJECTED_PHRASES = (
    "reference answer",
    "your response",
    "my response",
    "your own response",
    "now it's your turn",
)
REJECTED_START = "Your turn"


@dataclass
class SDFT(Method):
    """``temperature`` 0 rewrites greedily; the published setting samples (0.95, ``top_p`` 0.7).
    ``max_tokens``: of a rewrite; None: the train task's own."""

    name = "sdft"
    summary = "trains on answers that the base model has rewritten in its own words"
    version = 3  # 1 left a rewrite's own "####" marks in, 2 put the opening into the answer
    prepares_with = "rewrites"

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be at least 0, and top_p above 0 and at most 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        ask = context.train_task.rewrite
        continuations = context.generate(
            [
                (
                    Message("system", ask.system_prompt),
                    Message("user", ask.user(example.instruction, example.answer)),
                )
                for example in examples
            ],
            opening=ask.opening,
            max_tokens=self.max_tokens or ask.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        control = control_tokens(context.tokenizer)
        reasons: Counter[str] = Counter()
        prepared = []
        for example, continuation in zip(examples, continuations, strict=True):
            rewritten = continuation.strip()
            reason = rejected(rewritten, control) or ask.reject(rewritten, example.answer)
            if reason:
                reasons[reason] += 1
                prepared.append(example)
            else:
                prepared.append(example.with_answer(ask.finish(rewritten, example.answer)))
        context.record["rewrites_kept"] = len(examples) - reasons.total()
        context.record["rewrites_rejected"] = dict(reasons)
        return prepared


def rejected(rewritten: str, control: Collection[str] = ()) -> str | None:
    """Why a rewrite is not used, whatever its task; None where nothing speaks against it."""
    if not rewritten:
        return "empty"
    if rewritten.startswith(REJECTED_START):
        return f"starts with '{REJECTED_START}'"
    if any(token in rewritten for token in control):
        return "spells out a control token"
    lowered = rewritten.lower()
    return next((f"contains '{phrase}'" for phrase in REJECTED_PHRASES if phrase in lowered), None)


def control_tokens(tokenizer: Any) -> set[str]:
    """Texts that no training answer may hold, because they would end a turn: the harness refuses them."""
    special = {str(how.content) for how in tokenizer.added_tokens_decoder.values() if how.special}
    return special - ({tokenizer.unk_token} - {tokenizer.bos_token, tokenizer.eos_token})
