"""A fine-tuning method, as its difference from vanilla fine-tuning, and what its hooks are given."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from harness.contracts.data import Example, Message, TrainTask


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
