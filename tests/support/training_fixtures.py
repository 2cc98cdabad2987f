"""The real trainer on something small: the mini world's tokenizer and rows, and a random two-layer Llama."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import small

from harness.config import TrainingConfig
from harness.contracts import Encoded, Example, Method
from harness.mini import seed_model_path
from harness.models import chat


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(seed_model_path())


@pytest.fixture(scope="session")
def texts() -> list[Example]:
    """Forty conversations of the mini world, of different lengths."""
    return small.texts(40)


@pytest.fixture(scope="session")
def encoded(tokenizer: Any, texts: list[Example]) -> list[Encoded]:
    return [chat.encode(tokenizer, example) for example in texts]


@pytest.fixture(scope="session")
def make_model(tokenizer: Any) -> Callable[..., Any]:
    """The same random weights each time; wide enough an initialisation for gradients over the clip norm."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()

    return make


@pytest.fixture
def train(tokenizer: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """(model, examples, method, **settings) -> the trainer's record; ``folder`` keeps a restart's state."""
    from harness.storage.files import Cache
    from harness.training import trainer

    numbers = itertools.count()

    def run(
        model: Any,
        examples: Sequence[Encoded],
        method: Method,
        *,
        seed: int = 7,
        folder: Path | None = None,
        safety_examples: Sequence[Encoded] = (),
        on_step: Callable[[int, int], None] = lambda step, steps: None,
        snapshots: bool = False,
        cache: Path | None = None,
        models: Mapping[str, Path] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        settings = TrainingConfig(
            **{"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3, "device": "cpu"}
            | changes
        )
        torch.manual_seed(seed)  # as the job does: adapters start at random
        place = folder or tmp_path / f"training-{next(numbers)}"
        return trainer.train(
            model,
            tokenizer,
            examples,
            method,
            settings,
            seed,
            on_step,
            places=trainer.Places(place / "output", place / "state", place / "reports"),
            cache=Cache(cache or place / "cache"),
            identity={"model": "random"},
            safety_examples=safety_examples,
            snapshots=snapshots,
            models=models,
        )

    return run


@pytest.fixture
def answer_logp(tokenizer: Any) -> Callable[..., list[list[float]]]:
    """(model, examples) -> each one's log-probabilities of its loss-carrying tokens."""
    from harness.training import logprobs

    def run(model: Any, examples: Sequence[Encoded], **changes: Any) -> list[list[float]]:
        settings = TrainingConfig(device="cpu", **changes)
        head = logprobs.TargetHead(model)
        return logprobs.answer_logp(model, head, examples, tokenizer.pad_token_id, settings)

    return run


@pytest.fixture
def weights() -> Callable[[Any], dict[str, torch.Tensor]]:
    """A copy of a model's weights, by name."""
    return lambda model: {name: value.detach().clone() for name, value in model.named_parameters()}
