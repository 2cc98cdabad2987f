"""How much device memory a training will take, by formula: for the plan, before anything is fetched.

Weights, gradients and optimizer states are exact to the byte. Activations are what a dense decoder's layers
keep for the backward pass, counted one by one (after Korthikanti et al. 2022, arXiv 2205.05198, §4.1, who
count half precision throughout), for attention that keeps no score matrix. On one GPU and one model, tuned
whole in bfloat16, the formula gave 7 to 9 % less than was measured; on other models it has not been measured.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from harness.config import TrainingConfig

# Published sizes of the packaged recipes' models, under the keys of their config.json.
_LLAMA2 = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
_LLAMA3_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
_LLAMA3_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256}
_SMOLLM2_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
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
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        **_SMOLLM2_135M, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "tie_word_embeddings": True,
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
STEPS = 20  # drawn from the known rows, to see how large a micro-batch can get
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
    inner: int  # units of a feed-forward layer
    heads: int
    query: int  # units of all query heads
    key: int  # of all key heads, and of all value heads

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
        inner=inner,
        heads=heads,
        query=query,
        key=key,
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


class RowSize(NamedTuple):
    """Of a training row, or of a micro-batch of them: its tokens (padding included), and those with loss."""

    tokens: int
    loss: float

    @property
    def input_ids(self) -> range:
        """As many as an encoded example would have: by them a batch is cut."""
        return range(self.tokens)


def micro_batches(
    training: TrainingConfig, max_length: int, rows: Sequence[RowSize] = ()
) -> list[list[RowSize]]:
    """What one device passes through the model in each of some steps. Without ``rows`` every row is taken to
    have ``max_length`` tokens, half of them with loss."""
    whole, rng = RowSize(max_length, max_length / 2), random.Random(0)
    if not rows:
        return [_dealt([whole] * training.batch_size, training)]
    enough = len(rows) >= training.batch_size
    draw = rng.sample if enough else rng.choices
    return [_dealt(draw(rows, k=training.batch_size), training) for _ in range(STEPS)]


def _dealt(batch: list[RowSize], training: TrainingConfig) -> list[RowSize]:
    """A device's share of a global batch, cut as the trainer cuts it."""
    from harness.training.batching import deal  # brings torch

    size, tokens = training.micro_batch_size, training.micro_batch_tokens
    mine: Any = deal(cast(Any, batch), size, tokens, training.batching, training.num_processes)[0]
    packed = training.batching == "padding-free"
    return [_together(rows, packed) for rows in mine if rows]


def _together(rows: Sequence[RowSize], packed: bool) -> RowSize:
    lengths = [row.tokens for row in rows]
    return RowSize(sum(lengths) if packed else max(lengths) * len(rows), sum(row.loss for row in rows))


def training_bytes(
    model: Architecture, training: TrainingConfig, max_length: int, rows: Sequence[RowSize] = ()
) -> float:
    """Expected peak bytes on one device while training on examples of up to ``max_length`` tokens; ``rows``:
    some of them, where they are known."""
    standing, gradients = _weights_and_states(model, training, training.num_processes)
    peaks = [standing + gradients]  # the optimizer's step
    for step in micro_batches(training, max_length, rows):
        for number, micro in enumerate(step):  # behind the first, gradients are there already
            peaks.append(standing + gradients * (number > 0) + _activations(model, training, micro))
    return max(peaks) + (HOST_BYTES if training.device == "cpu" else CONTEXT_BYTES)


def trained_parameters(model: Architecture, training: TrainingConfig) -> int:
    """How many numbers are trained: all weights, or the adapters'."""
    return model.parameters if training.tuning == "full" else model.adapter_parameters(training.lora.r)


def _weights_and_states(model: Architecture, training: TrainingConfig, devices: int) -> tuple[float, float]:
    """Bytes that stand all the time, and those of gradients that a step's first micro-batch comes before."""
    count, low = model.parameters, training.dtype == "bfloat16"
    moments = 2 if training.optimizer == "adamw_8bit" else 8
    if training.tuning != "full":
        adapters = model.adapter_parameters(training.lora.r)
        embeddings = model.head_copies * model.vocabulary * model.hidden
        frozen: float = (2 if low else 4) * count
        if training.tuning == "qlora":  # peft makes all that is not in 4 bits float32
            frozen = (count - embeddings) * FOUR_BIT_BYTES + embeddings * 4
        return frozen + adapters * (4 + moments), 4.0 * adapters
    if devices > 1 and training.distributed in ("zero2", "zero3") and low:
        share = (2 + 4 + moments) * count / devices  # gradients, float32 weights, moments
        whole = 2 * count if training.distributed == "zero2" else 2 * count / devices
        return whole + share + BUCKET_BYTES, 0.0
    if devices > 1 and training.distributed in ("zero3", "fsdp2"):
        return (4 + 4 + moments) * count / devices + 2 * 2 * model.linear, 0.0
    if devices > 1 and training.distributed == "zero2":
        return 4 * count + (4 + moments) * count / devices + BUCKET_BYTES, 0.0
    return float((4 + moments) * count + (2 * count if low else 0)), 4.0 * count  # autocast's copies


def _activations(model: Architecture, training: TrainingConfig, micro: RowSize) -> float:
    """What a forward pass keeps for the backward pass. A layer: its inputs and their norms in float32, what
    the norms hand on, queries, keys, values and attention's output, and four states of the feed-forward."""
    low = training.dtype == "bfloat16"
    width = 2 if low else 4
    a_layer = (
        (22 + 2 * width) * model.hidden
        + 2 * width * (model.query + model.key)
        + 4 * width * model.inner
        + 4 * model.heads  # attention's normalisers
        + 8  # the norms'
    )
    kept = (4 if training.tuning == "full" else width) * model.hidden
    layers = kept * model.layers + a_layer if training.gradient_checkpointing else a_layer * model.layers
    return micro.tokens * (layers + 16 * model.hidden) + LOGIT_BYTES * micro.loss * model.vocabulary
