"""Floating-point operations of training, by formula, and how well a device was used.

Model FLOPs: what the mathematics asks for. Recomputation by gradient checkpointing and padding are not
counted, so that utilisation (MFU: Chowdhery et al. 2022, PaLM, appendix B) is comparable between machines.
A multiply-add is two operations; attention is counted as the full square, as torch's own counter does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

# Dense peak FLOP/s in bfloat16 (without sparsity), from the makers' data sheets; longer names first.
PEAKS_BF16 = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
TF32_SHARE = 0.5  # of the bfloat16 peak: what float32 matrix products reach on tensor cores


@dataclass(frozen=True)
class ModelFlops:
    """What a dense causal language model multiplies for a token.

    ``body``: weights of all linear layers but the output head; ``body_trained``: those of them that are
    trained; ``head``: the output head's weights; ``attention``: layers x heads x head size.
    """

    parameters: int
    body: int
    body_trained: int
    head: int
    head_trained: bool
    attention: int

    def forward(self, lengths: Sequence[int], head_tokens: int) -> int:
        """A forward pass over sequences of ``lengths`` tokens, the output head on ``head_tokens`` of them."""
        return 2 * self.body * sum(lengths) + 2 * self.head * head_tokens + self._attend(lengths)

    def train(self, lengths: Sequence[int], head_tokens: int) -> int:
        """Forward and backward: the backward pass multiplies again for the inputs' gradients everywhere, and
        for the weights' gradients where they are trained."""
        inputs = 2 * self.body * sum(lengths) + 2 * self.head * head_tokens
        weights = 2 * self.body_trained * sum(lengths) + 2 * self.head * self.head_trained * head_tokens
        return self.forward(lengths, head_tokens) + inputs + weights + 2 * self._attend(lengths)

    def _attend(self, lengths: Sequence[int]) -> int:
        return 4 * self.attention * sum(length * length for length in lengths)  # Q K^T, and the mean of V


def count(model: Any) -> ModelFlops:
    """Read a loaded model: full, with peft adapters, or in 4 bits. Dense decoders only."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    body = trained = 0
    for module in model.modules():
        if module is head or not isinstance(module, (torch.nn.Linear, Conv1D)):
            continue
        size = module.nf * module.nx if isinstance(module, Conv1D) else _size(module)
        body += size
        trained += size * module.weight.requires_grad
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelFlops(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        body=body,
        body_trained=trained,
        head=_size(head),
        head_trained=bool(head.weight.requires_grad),
        attention=config.num_hidden_layers * heads * head_size,
    )


def _size(linear: Any) -> int:
    return int(linear.in_features * linear.out_features)  # a 4-bit layer's weight tensor is packed


def peak(device_name: str, dtype: str) -> float | None:
    """A device's dense peak in FLOP/s by its name as torch gives it; None for one that is not listed."""
    for name, flops in PEAKS_BF16.items():
        if name.lower() in device_name.lower():
            return flops if dtype == "bfloat16" else flops * TF32_SHARE
    return None


def mfu(flops: float, seconds: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the share of ``peak_flops`` (FLOP/s of all devices) that was used."""
    return flops / seconds / peak_flops
