"""A method: each answer's first tokens carry no loss."""

from dataclasses import dataclass, replace

from harness.contracts import Example, Method, PrepareContext


@dataclass
class AnswerMask(Method):
    name = "answer-mask"
    summary = "leaves each answer's first tokens without loss"

    tokens: int = 2

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        return [replace(example, loss_free_tokens=self.tokens) for example in examples]
