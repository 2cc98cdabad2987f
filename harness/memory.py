"""How much device memory a training will take, by formula: for the plan, before anything is fetched.

Weights, gradients and optimizer states are exact to the byte; activations follow Korthikanti et al. 2022
(arXiv 2205.05198, §4.1) for attention that keeps no score matrix. Not measured on the models named here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import TrainingConfig

# Published sizes of the packaged recipes' models, under the keys of their config.json.
_LLAMA2 = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
_LLAMA3_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
_LLAMA3_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256}
_QWEN3_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "vocab_size": 151936}
_QWEN3_8B = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
_GEMMA3_1B = {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "vocab_size": 262144}
_GROUPED = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-chat-hf": {**_LLAMA2, "num_attention_heads": 32},
    "meta-llama/Llama-3.1-8B-Instruct": {**_LLAMA3_8B, **_GROUPED},
    "meta-llama/Llama-3.2-1B-Instruct": {
        **_LLAMA3_1B, **_GROUPED, "head_dim": 64, "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-4B": {**_QWEN3_4B, **_GROUPED, "tie_word_embeddings": True},
    "Qwen/Qwen3-8B": {**_QWEN3_8B, **_GROUPED},
    "google/gemma-3-1b-it": {
        **_GEMMA3_1B, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
CONTEXT_BYTES = 1.5e9  # the device's own, and the communication library's buffers
HOST_BYTES = 0.7e9  # of a process that trains on the CPU: Python and the libraries
BUCKET_BYTES = 2 * 2 * 500_000_000  # ZeRO's two buckets of half a billion bfloat16 numbers
ACTIVATIONS_A_LAYER = 34  # bytes a token and hidden unit, in 16 bits
LOGIT_BYTES = 12  # a logit, its float32 copy, and the gradients of both
FOUR_BIT_BYTES = 0.5 + 0.127 / 8  # NF4 with doubly quantised constants (arXiv 2305.14314, §3)


@dataclass(frozen=True)
class Architecture:
    """A dense decoder with gated feed-forward layers. ``linear``: weights a layer's projections hold."""

    layers: int
    hidden: int
    vocabulary: int
    linear: int  # a layer
    linear_sides: int  # inputs + outputs of a layer's projections: what a rank of adapters costs
    head_copies: int  # 1: the output head is tied to the embedding

    @property
    def parameters(self) -> int:
        return (
            self.layers * (self.linear + 2 * self.hidden) + self.head_copies * self.vocabulary * self.hidden
        )

    def adapter_parameters(self, rank: int) -> int:
        return self.layers * rank * self.linear_sides


def architecture(config: Mapping[str, Any]) -> Architecture:
    """From a config.json's values. Raises KeyError where it is no such model's."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    query, key = heads * size, (config.get("num_key_value_heads") or heads) * size
    return Architecture(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        vocabulary=config["vocab_size"],
        linear=hidden * (2 * query + 2 * key + 3 * inner),
        linear_sides=2 * (hidden + query) + 2 * (hidden + key) + 3 * (hidden + inner),
        head_copies=1 if config.get("tie_word_embeddings") else 2,
    )


def find(model: str, folder: Path | None) -> Architecture | None:
    """The architecture of a model that is on disk or packaged; None for one that is not known."""
    try:
        if folder is not None:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return architecture(values.get("text_config") or values)
        return architecture(PUBLISHED[model])
    except (OSError, ValueError, KeyError, TypeError):  # the last: a size for each layer
        return None


def training_bytes(model: Architecture, training: TrainingConfig, max_length: int) -> float:
    """Expected peak bytes on one device while training on examples of up to ``max_length`` tokens."""
    devices = training.num_processes
    return (
        _weights_and_states(model, training, devices)
        + _activations(model, training, max_length)
        + (HOST_BYTES if training.device == "cpu" else CONTEXT_BYTES)
    )


def _weights_and_states(model: Architecture, training: TrainingConfig, devices: int) -> float:
    count, low = model.parameters, training.dtype == "bfloat16"
    moments = 2 if training.optimizer == "adamw_8bit" else 8
    if training.tuning != "full":
        adapters = model.adapter_parameters(training.lora.r)
        embeddings = model.head_copies * model.vocabulary * model.hidden
        frozen: float = (2 if low else 4) * count
        if training.tuning == "qlora":
            frozen = (count - embeddings) * FOUR_BIT_BYTES + embeddings * (2 if low else 4)
        return frozen + adapters * (4 + 4 + moments)
    if devices > 1 and training.distributed in ("zero2", "zero3") and low:
        share = (2 + 4 + moments) * count / devices  # gradients, float32 weights, moments
        whole = 2 * count if training.distributed == "zero2" else 2 * count / devices
        return whole + share + BUCKET_BYTES
    if devices > 1 and training.distributed in ("zero3", "fsdp2"):
        return (4 + 4 + moments) * count / devices + 2 * 2 * model.linear
    if devices > 1 and training.distributed == "zero2":
        return 4 * count + (4 + moments) * count / devices + BUCKET_BYTES
    return (4 + 4 + moments) * count + (2 * count if low else 0)  # and autocast's copies


def _activations(model: Architecture, training: TrainingConfig, max_length: int) -> float:
    tokens = training.micro_batch_tokens or min(training.micro_batch_size, training.batch_size) * max_length
    width = 1 if training.dtype == "bfloat16" else 2
    a_layer = ACTIVATIONS_A_LAYER * width * tokens * model.hidden
    kept = 2 * width * tokens * model.hidden * model.layers
    layers = kept + a_layer if training.gradient_checkpointing else a_layer * model.layers
    return layers + LOGIT_BYTES * tokens / 2 * model.vocabulary  # half of the tokens carry loss
