"""Floating-point operations of training, by formula, and how well a device was used.

Model FLOPs: what the mathematics asks for, so that utilisation (MFU: Chowdhery et al. 2022, PaLM, appendix
B) is comparable between machines. Padding is not counted, nor what gradient checkpointing computes again. A
multiply-add is two operations. Attention counts the full square of a sequence's length, as PaLM's formula and
torch's own counter do, although a causal mask or a sliding window (Gemma, Mistral) lets kernels skip a part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# Dense peaks (without sparsity) in TFLOP/s, from the makers' data sheets: of bfloat16 (V100: float16), of
# float32 products in TF32 (V100 has none), and of float32.
PEAKS = {
    "B200": (2250.0, 1125.0, 75.0),
    "GH200": (989.4, 494.7, 67.0),
    "H200": (989.4, 494.7, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "H100 NVL": (835.0, 417.5, 60.0),
    "H100": (989.4, 494.7, 67.0),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.0, 183.0, 91.6),
    "L4": (121.0, 60.5, 30.3),
    "A10": (125.0, 62.5, 31.2),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 35.6, 35.6),
    "V100": (125.0, 15.7, 15.7),
}

Place = tuple[float, float]  # layer, and how far into it: the order in which a forward pass gets there
_EMBEDDINGS, _AFTER_LAYERS, _HEAD = (-1.0, 0.0), (math.inf, 0.0), (math.inf, 1.0)
_OUTPUTS = re.compile(r"\b(o_proj|down_proj|c_proj|dense|fc2)\b")  # the last product of attention and MLP


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one pass: for a token in the layers, for one in the output head, and for a pair of
    tokens of one sequence in attention."""

    body: int
    head: int
    attention: int

    def flops(self, lengths: Sequence[int], head_tokens: int) -> int:
        pairs = sum(length * length for length in lengths)
        return 2 * (self.body * sum(lengths) + self.head * head_tokens + self.attention * pairs)


@dataclass(frozen=True)
class ModelFlops:
    """A causal language model in multiply-adds. ``parameters``: how many it has, adapters included."""

    parameters: int
    forward_pass: Work
    backward_pass: Work

    def forward(self, lengths: Sequence[int], head_tokens: int) -> int:
        """A forward pass over sequences of ``lengths`` tokens, the output head on ``head_tokens`` of them."""
        return self.forward_pass.flops(lengths, head_tokens)

    def train(self, lengths: Sequence[int], head_tokens: int) -> int:
        """Forward and backward over the same: three times the forward pass where all weights are trained."""
        return self.forward(lengths, head_tokens) + self.backward_pass.flops(lengths, head_tokens)


def count(model: Any) -> ModelFlops:
    """Read a loaded decoder as it will be trained: full, partly frozen, with peft adapters, in 4 bits.

    A matrix is multiplied once in the forward pass; in the backward pass once for its own gradient, where it
    is trained, and once for its input's, where anything before it is. Of stacked experts a token passes
    ``num_experts_per_tok``. Of linear attention and state-space layers the matrices alone are counted.
    """
    config = model.config.get_text_config()
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    first = min((_place(name) for name, p in decoder.named_parameters() if p.requires_grad), default=_HEAD)
    if model.get_input_embeddings().weight.requires_grad:
        first = _EMBEDDINGS
    in_layers = [(size, trained, first < place) for place, size, trained in _matrices(decoder, config)]
    in_head = [(size, trained, first < _HEAD) for _, size, trained in _matrices(head, config)]
    heads, layers = getattr(config, "num_attention_heads", 0), config.num_hidden_layers
    width = 2 * heads * (getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))  # QK^T, AV
    reached = sum(first < (layer, 1.0) for layer in range(layers))  # by gradients for Q, K or V
    return ModelFlops(
        parameters=model.num_parameters(),
        forward_pass=Work(
            body=sum(size for size, _, _ in in_layers),
            head=sum(size for size, _, _ in in_head),
            attention=layers * width,
        ),
        backward_pass=Work(
            body=sum(size * (trained + passed) for size, trained, passed in in_layers),
            head=sum(size * (trained + passed) for size, trained, passed in in_head),
            attention=reached * 2 * width,
        ),
    )


def _matrices(root: Any, config: Any) -> Iterator[tuple[Place, int, bool]]:
    """Of each weight matrix below ``root``: its place, its size, and whether it is trained."""
    used = getattr(config, "num_experts_per_tok", None) or 0
    for name, module in root.named_modules():
        if isinstance(module, nn.Linear):  # a 4-bit weight is stored packed
            yield _place(name), module.in_features * module.out_features, module.weight.requires_grad
        elif not isinstance(module, nn.Embedding):
            for weight in module.parameters(recurse=False):
                if weight.ndim == 2:  # a router, or GPT-2's transposed layers
                    yield _place(name), weight.numel(), weight.requires_grad
                elif weight.ndim == 3:  # (experts, out, in)
                    yield _place(name), used * weight[0].numel(), weight.requires_grad


def _place(name: str) -> Place:
    """Where in a forward pass a module or parameter of the decoder comes, by its dotted name."""
    number = re.search(r"(?:^|\.)(\d+)\.", name)
    if number is None:
        return _AFTER_LAYERS
    if "attn" not in name and "mlp" not in name:  # a norm, taken for the one at the layer's beginning
        return float(number[1]), -1.0
    return float(number[1]), 2 * ("mlp" in name) + bool(_OUTPUTS.search(name)) + 0.5 * ("lora_B" in name)


def peak(device_name: str, dtype: str, *, tf32: bool = False) -> float | None:
    """A device's dense peak in FLOP/s by its name as torch gives it; None for one that is not listed.
    ``tf32``: whether float32 products are computed in TF32."""
    for name, (bfloat16, in_tf32, float32) in PEAKS.items():
        if re.search(rf"\b{name}\b(?!.*Laptop)", device_name, re.IGNORECASE):
            return 1e12 * (bfloat16 if dtype == "bfloat16" else in_tf32 if tf32 else float32)
    return None


def mfu(flops: float, seconds: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the share of ``peak_flops`` (FLOP/s of all devices) that was used."""
    return flops / seconds / peak_flops
