"""Whether a method keeps the contract of its hooks, and where it can be trained."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.config import TrainingConfig
from harness.contracts import Encoded, Example, HarnessError, Method
from harness.text import printable

ON_WEIGHTS = ("after_step", "after_training")  # hooks that are there to change weights
WITH_CONTEXT = {"on_gradients": 2, "after_training": 2}  # hook -> its arguments


def overrides(method: Method, hook: str) -> bool:
    """Whether a method has a hook of its own."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def asks_safety_gradient(method: Method) -> bool:
    """Whether a method is taken to ask for the safety gradient in each step, for a forecast."""
    return overrides(method, "on_gradients") and method.needs_safety_data


def check_signatures(method: Method) -> None:
    """Raises HarnessError for a hook that would fail when it is called, perhaps hours later."""
    for hook, count in WITH_CONTEXT.items():
        try:
            inspect.signature(getattr(method, hook)).bind(*[None] * count)
        except TypeError as error:
            raise HarnessError(
                f"method '{method.name}': {hook} does not take (model, context) ({error}): write "
                f"def {hook}(self, model, context)"
            ) from error


def check_prepared(method: Method, prepared: Any) -> None:
    """Raises HarnessError where ``Method.prepare`` returned no list of examples."""
    wrong = _other(prepared, Example) if isinstance(prepared, list) else type(prepared).__name__
    if wrong:
        raise HarnessError(
            f"method '{method.name}': prepare must return a list of examples: it returned {wrong}"
        )


def check_loss(method: Method, loss: Any) -> None:
    """Raises HarnessError where ``Method.loss`` returned no scalar tensor."""
    shape = getattr(loss, "shape", None)
    if shape is None or len(shape):
        found = type(loss).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"
        raise HarnessError(f"method '{method.name}': loss must return a scalar tensor, not {found}")


def check_state(method: Method, state: Any) -> None:
    """Raises HarnessError where ``Method.state`` returned what cannot be kept for a resumed training."""
    from torch import Tensor  # a plan imports this module, and waits for no torch

    wrong = _other(state.values(), Tensor) if isinstance(state, dict) else type(state).__name__
    if wrong:
        raise HarnessError(
            f"method '{method.name}': state must return a dict of tensors by name: it returned {wrong}"
        )


def check_record(method: Method, record: Mapping[str, Any]) -> None:
    """Raises HarnessError where ``context.record`` holds what JSON cannot."""
    for name, value in record.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError) as error:
            raise HarnessError(
                f"method '{method.name}': context.record['{printable(str(name))[:40]}'] must be a "
                f"JSON value (a number, text, list or dict), not {type(value).__name__}"
            ) from error


def _other(values: Iterable[Any], kind: type) -> str | None:
    """What a value is that is of another kind; None where all are of that kind."""
    return next(
        (f"one with {type(value).__name__} in it" for value in values if not isinstance(value, kind)), None
    )


def check_batches(method: Method, batches: Sequence[Sequence[Encoded]], size: int) -> None:
    """Raises HarnessError where ``Method.batches`` returned no batches, or some of another size."""
    if not isinstance(batches, list):
        raise HarnessError(
            f"method '{method.name}': batches must return a list of batches, not {type(batches).__name__}"
        )
    if any(len(batch) != size for batch in batches[:-1]):
        raise HarnessError(
            f"method '{method.name}' broke its contract: all its batches but the last must have "
            f"{size} examples, not {sorted({len(batch) for batch in batches[:-1]})}"
        )


def check_sharding(method: Method, settings: TrainingConfig, *, several: bool | None = None) -> None:
    """Raises HarnessError where a hook works on what no process holds whole. ``several``: whether there will
    be several processes (default: whether a launcher has started this one)."""
    if not ("WORLD_SIZE" in os.environ if several is None else several):
        return
    if overrides(method, "on_gradients") and settings.distributed != "ddp":
        raise HarnessError(
            f"method '{method.name}' works on the gradients, which {settings.distributed} holds in no "
            "process whole: set training.distributed to ddp"
        )
    touches = method.uses_weights or any(overrides(method, hook) for hook in ON_WEIGHTS)
    if touches and settings.distributed in ("zero3", "fsdp2"):
        raise HarnessError(
            f"method '{method.name}' works on the weights, which {settings.distributed} holds in no process "
            "whole: set training.distributed to zero2 or ddp"
        )


@contextlib.contextmanager
def weights_unchanged(method: Method, model: Any, hook: str) -> Iterator[None]:
    """For the block, a hook may change weights only if the method says that it does (``uses_weights``).
    Raises HarnessError behind it otherwise."""
    before = [(parameter, parameter._version) for parameter in model.parameters()]
    yield
    if not method.uses_weights and any(parameter._version != version for parameter, version in before):
        raise HarnessError(
            f"method '{method.name}': {hook} changes weights and does not say so: set uses_weights = True"
        )
