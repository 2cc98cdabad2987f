"""Dropout is off whatever it is made of, and adapters go where they count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch

from harness.config import TrainingConfig
from harness.contracts import HarnessError
from harness.training import adapters

IDS = torch.arange(3, 23)[None]
RATES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    "gptj": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "bart": {"dropout": 0.5, "activation_dropout": 0.5, "decoder_layerdrop": 0.5},
    "xglm": {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5, "layerdrop": 0.5},
    "phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
    "biogpt": {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "layerdrop": 0.5},
    "persimmon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
}


@pytest.mark.parametrize("name", list(RATES))
def test_dropout_is_off_in_training(name: str) -> None:
    model = tiny_models.build(name, **RATES[name])
    still = model(input_ids=IDS, use_cache=False).logits
    model.train()
    torch.manual_seed(1)
    assert not torch.allclose(model(input_ids=IDS, use_cache=False).logits, still, atol=1e-3)
    adapters.without_dropout(model)
    for _ in range(3):
        torch.testing.assert_close(model(input_ids=IDS, use_cache=False).logits, still, atol=1e-5, rtol=0)


def test_what_is_no_rate_stays() -> None:
    model = tiny_models.build("llama", attention_dropout=0.5)
    model.drop_path_name, model.dropped, model.keeps = "a", True, 0.5
    adapters.without_dropout(model)
    assert (model.drop_path_name, model.dropped, model.keeps) == ("a", True, 0.5)
    assert model.config.attention_dropout == 0.0
    assert model.config.initializer_range == 0.3


def adapted(name: str, **changes: Any) -> tuple[Any, set[str]]:
    settings = TrainingConfig(tuning="lora", lora={"r": 2, "alpha": 4, **changes})
    model = adapters.with_adapters(tiny_models.build(name), settings)
    return model, {key.rpartition(".lora_A")[0].rpartition(".")[2] for key, _ in model.named_parameters()} - {
        ""
    }


@pytest.mark.parametrize(
    ("name", "expected", "never"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, {"lm_head"}),
        ("phimoe", {"q_proj", "k_proj", "v_proj", "o_proj"}, {"router", "gate"}),
        ("llama4_text", {"q_proj", "k_proj", "v_proj", "o_proj"}, {"router"}),
        ("mamba", {"in_proj", "x_proj", "dt_proj"}, {"out_proj"}),
        ("bamba", {"in_proj", "up_proj"}, {"out_proj"}),
        ("falcon", {"query_key_value", "dense"}, {"lm_head"}),
        ("opt", {"q_proj", "out_proj"}, {"lm_head"}),
        ("qwen3_next", {"out_proj", "q_proj"}, {"lm_head"}),
    ],
)
def test_all_linear_layers_but_those_that_are_none(name: str, expected: set[str], never: set[str]) -> None:
    model, layers = adapted(name)
    assert expected <= layers
    assert not never & layers
    with torch.no_grad():
        base = tiny_models.build(name)
        found, own = (each(input_ids=IDS, use_cache=False).logits for each in (model, base))
    torch.testing.assert_close(found, own)


def test_named_layers_are_taken_as_named() -> None:
    assert adapted("llama", target_modules=["q_proj", "v_proj"])[1] == {"q_proj", "v_proj"}


def test_layers_that_take_no_adapters_are_one_line() -> None:
    with pytest.raises(HarnessError, match=r"'llama' takes no adapters .* training\.lora\.target_modules"):
        adapted("llama", target_modules=["nowhere"])


# --- the recipe's own dropout ------------------------------------------------------------------------


def with_lora(make_model: Callable[..., Any], **lora: Any) -> Any:
    settings = TrainingConfig(tuning="lora", lora={"r": 4, "alpha": 8, **lora})
    return adapters.with_adapters(make_model(), settings)


def dropouts(model: Any) -> set[float]:
    return {module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}


@pytest.mark.parametrize(
    ("lora", "found"), [({}, set()), ({"dropout": 0.0}, set()), ({"dropout": 0.1}, {0.1})]
)
def test_the_adapters_have_the_recipes_dropout(
    make_model: Callable[..., Any], lora: dict[str, Any], found: set[float]
) -> None:
    assert dropouts(with_lora(make_model, **lora)) == found


def test_dropout_acts_in_training_alone(make_model: Callable[..., Any]) -> None:
    model = with_lora(make_model, dropout=0.9)
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
    adapters.without_dropout(model)
    assert dropouts(model) == {0.0}
    assert {m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")} == {0.0}


def test_a_dropout_that_drops_all_is_refused() -> None:
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="dropout"):
            TrainingConfig(tuning="lora", lora={"dropout": share})
