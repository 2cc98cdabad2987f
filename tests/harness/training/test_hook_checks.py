"""A hook that returns something else than its contract says ends in one line with the method's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from backends.vanilla import Vanilla
from harness.contracts import Encoded, Example, HarnessError, Message
from harness.training import hook_checks

ROW = Example("a", (Message("user", "Why?"), Message("assistant", "So.")))


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        call(Vanilla(), *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        ("prepared", None, "prepare must return a list of examples: it returned NoneType"),
        ("prepared", (ROW,), "it returned tuple"),
        ("prepared", [ROW, None], "it returned one with NoneType in it"),
        ("prepared", [{"messages": []}], "it returned one with dict in it"),
        ("loss", None, "loss must return a scalar tensor, not NoneType"),
        ("loss", 0.5, "loss must return a scalar tensor, not float"),
        ("loss", torch.zeros(4), "loss must return a scalar tensor, not a tensor of shape (4,)"),
        ("state", None, "state must return a dict of tensors by name: it returned NoneType"),
        ("state", {"step": 3}, "it returned one with int in it"),
        ("state", [torch.zeros(1)], "it returned list"),
        ("record", {"x": torch.ones(2)}, "context.record['x'] must be a JSON value"),
        ("record", {"fine": 1, "y": {1, 2}}, "context.record['y'] must be a JSON value"),
    ],
)
def test_what_a_hook_must_return(check: str, value: Any, says: str) -> None:
    found = refused(getattr(hook_checks, f"check_{check}"), value)
    assert found.startswith("method 'vanilla': ")
    assert says in found


def test_what_is_right_passes() -> None:
    hook_checks.check_prepared(Vanilla(), [ROW])
    hook_checks.check_loss(Vanilla(), torch.zeros(()))
    hook_checks.check_state(Vanilla(), {"a": torch.zeros(2)})
    hook_checks.check_record(Vanilla(), {"a": [1, "x", None, {"b": 2.5}]})


@dataclass
class NoLoss(Vanilla):
    def loss(self, inputs: Any) -> Any:
        return None


@dataclass
class Numbers(Vanilla):
    def state(self) -> dict[str, Any]:
        return {"steps": 3}

    def load_state(self, tensors: Any) -> None: ...


@dataclass
class Tells(Vanilla):
    def after_training(self, model: Any, context: Any) -> None:
        context.record["norm"] = torch.ones(())


@dataclass
class NoBatches(Vanilla):
    def batches(self, batches: Any, context: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (NoLoss(), "loss must return a scalar tensor"),
        (Numbers(), "state must return a dict of tensors by name"),
        (Tells(), "context.record['norm'] must be a JSON value"),
        (NoBatches(), "batches must return a list of batches, not NoneType"),
    ],
)
def test_a_training_looks_at_what_its_hooks_return(
    method: Vanilla,
    says: str,
    make_model: Callable[..., Any],
    train: Callable[..., dict[str, Any]],
    encoded: list[Encoded],
) -> None:
    with pytest.raises(HarnessError, match=says.replace("[", r"\[")):
        train(make_model(), encoded[:8], method, micro_batch_size=4, epochs=1)
