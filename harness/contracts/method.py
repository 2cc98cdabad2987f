"""A fine-tuning method, as its difference from vanilla fine-tuning, and what its hooks are given."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

from harness.contracts.data import Example, Message, TrainTask
from harness.contracts.errors import HarnessError


class ModelRef(str):
    """An option that names another model, as a recipe does: a folder, a hub name, or "mini"; adapters too.

    The harness finds it, hashes its content into the training's identity, counts its size, ships it to a
    cluster, and loads it: ``TrainContext.model``.
    """

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


def model_refs(options: Any) -> list[ModelRef]:
    """The models that options (a method, or any value of one) name, each once."""
    if isinstance(options, ModelRef):
        return [options]
    if isinstance(options, Method):
        values = [getattr(options, one.name) for one in fields(options) if one.init]  # type: ignore[arg-type]
    elif isinstance(options, Mapping):
        values = list(options.values())
    elif isinstance(options, list | tuple):
        values = list(options)
    else:
        return []
    return list(dict.fromkeys(ref for value in values for ref in model_refs(value)))


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


class OtherModel(Protocol):
    """The weights of a model that an option names, in the CPU's memory until this object is let go of.

    Tensors are float32, on the device of the training. A weight goes by its name in this model, or in the one
    that is trained, adapters' wrapping or not. Of an adapter they are its base's with the adapter's in them.
    """

    def names(self) -> list[str]: ...

    def weight(self, name: str) -> Any:
        """One weight, in the shape that it has in the trained model. Raises HarnessError for another."""
        ...

    def factors(self, module: str) -> tuple[Any, Any, float] | None:
        """An adapter's A (r, in), B (out, r) and scaling at a module; None where it has none there."""
        ...


class SafetyGradient(Protocol):
    """The gradient of a loss on the recipe's safety data, float32 by the names of the trained weights.

    The batch has a step's size and is drawn by seed, step and call; ``loss``: of a micro-batch (default:
    cross-entropy). The same in each process; ``.grad`` stays as it is. For methods with
    ``needs_safety_data``; its cost is the method's.
    """

    def __call__(self, loss: Callable[[LossInputs], Any] | None = None) -> dict[str, Any]: ...


def _no_gradient(loss: Callable[[LossInputs], Any] | None = None) -> dict[str, Any]:
    raise HarnessError("there is no gradient on safety data outside a training")


def _no_other_model(ref: ModelRef) -> OtherModel:
    raise HarnessError(f"model '{ref}' is not loaded outside a training")


def _no_layers(model: Any) -> list[Any]:
    raise HarnessError("a model's layers are not told outside a training")


@dataclass(frozen=True, slots=True)
class TrainContext:
    """What the hooks around the training loop may use.

    ``seed_logp(examples)``: each example's log-probabilities of its loss-carrying tokens under the untouched
    base model, float32; kept by content, so that a second run or a resumed one has the same values, and
    counted as part of the method's cost. ``safety_examples``: the recipe's ``safety_data``, tokenized.
    ``model(option)``: the weights of a model that an option (``ModelRef``) names, loaded anew at each call.
    ``layers(model)``: its decoder's blocks in their order, adapters inside them. ``rng`` and ``record`` (JSON
    values) go on where they were when a stopped training is resumed.
    """

    examples: Sequence[Encoded]
    seed_logp: Callable[[Sequence[Encoded]], list[list[float]]]
    rng: random.Random
    record: dict[str, Any] = field(default_factory=dict)
    safety_examples: Sequence[Encoded] = ()
    safety_gradient: SafetyGradient = _no_gradient
    model: Callable[[ModelRef], OtherModel] = _no_other_model
    layers: Callable[[Any], list[Any]] = _no_layers


@dataclass(slots=True)
class LossInputs:
    """One micro-batch, as ``Method.loss`` sees it: B examples, A loss-carrying tokens in the longest.

    ``logp`` (B, A) float32: log-probability of each loss-carrying token, by example and by its place among
    the example's loss-carrying tokens; 0 behind an answer's end. ``mask`` (B, A) bool: where there is one.
    ``ids``: the examples' ids. ``token_count``: loss-carrying tokens of the global batch, so that a sum
    divided by it is the mean over the global batch, however it is cut; ``model``: for penalties on the
    weights (divide them by ``micro_batches``, the global batch's number over all devices).

    On request: ``logits`` (B, A, V) float32, from which ``logp`` is taken, and ``hidden_states``
    (L + 1, B, A, H) float32, what goes into the first block and comes out of each (the last behind the final
    norm) at the position before each loss-carrying token; 0 behind an answer's end.
    """

    logp: Any
    mask: Any
    ids: list[str]
    token_count: int
    model: Any
    micro_batches: int
    logits: Any = None
    hidden_states: Any = None


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
    needs_logits: ClassVar[bool] = False  # ``LossInputs.logits``
    needs_hidden_states: ClassVar[bool] = False  # ``LossInputs.hidden_states``
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

    def on_gradients(self, model: Any, context: TrainContext) -> None:
        """Act on the weights' ``.grad``, that of the whole global batch over all devices, before it is
        clipped and the optimizer steps. Each process does the same. Not where gradients are sharded."""

    def after_step(self, model: Any, step: int) -> None:
        """Act on the weights after an optimizer step (1-based)."""

    def after_training(self, model: Any, context: TrainContext) -> None:
        """Act on the trained weights before they are saved (project, merge, add a vector)."""

    def state(self) -> dict[str, Any]:
        """Tensors by name that ``on_gradients`` and ``after_step`` change, for a training that is stopped and
        resumed; the same in each process."""
        return {}

    def load_state(self, tensors: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave; called after ``before_training`` and ``batches``."""

    def inference_system_prompt(self, system: str | None) -> str | None:
        """The system prompt under which the tuned model answers, given the task's own (PTST)."""
        return system
