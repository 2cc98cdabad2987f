"""Adapters have the recipe's shape, and its dropout in training alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from backends import tuning
from harness.config import TrainingConfig


def adapted(make_model: Callable[..., Any], **lora: Any) -> Any:
    settings = TrainingConfig(tuning="lora", lora={"r": 4, "alpha": 8, **lora})
    return tuning.with_adapters(make_model(), settings)


def dropouts(model: Any) -> set[float]:
    return {module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}


@pytest.mark.parametrize(
    ("lora", "found"), [({}, set()), ({"dropout": 0.0}, set()), ({"dropout": 0.1}, {0.1})]
)
def test_the_adapters_have_the_recipes_dropout(
    make_model: Callable[..., Any], lora: dict[str, Any], found: set[float]
) -> None:
    assert dropouts(adapted(make_model, **lora)) == found


def test_dropout_acts_in_training_alone(make_model: Callable[..., Any]) -> None:
    model = adapted(make_model, dropout=0.9)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.1)
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        still = [model.eval()(input_ids=ids).logits for _ in range(2)]
        torch.manual_seed(0)
        drawn = [model.train()(input_ids=ids).logits for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*drawn)


def test_without_dropout_leaves_none(make_model: Callable[..., Any]) -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.3), make_model(attention_dropout=0.5))
    tuning.without_dropout(model)
    assert dropouts(model) == {0.0}
    assert {m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")} == {0.0}


def test_a_dropout_that_drops_all_is_refused() -> None:
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="dropout"):
            TrainingConfig(tuning="lora", lora={"dropout": share})
