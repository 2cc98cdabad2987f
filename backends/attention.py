"""Causal attention that needs no mask: over padded rows, or over examples laid end to end in one row.

Padding stands on the right, where no real token looks; packed examples are kept apart by their lengths. So no
mask is built, none is checked (transformers would wait for the device to do so), and attention's fastest
kernels apply. Registered with transformers under the name ``CAUSAL``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

CAUSAL = "harness_causal"


def causal_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, T, D), key and value (B, H_kv, T, D) -> (B, T, H, D).

    ``cu_seq_lens_q`` (examples + 1) int32: where each packed example begins, and the end; B is 1 then.
    ``sliding_window``: a token sees so many tokens, itself included. Raises ValueError for logit soft-capping
    (Gemma 2), which no fused kernel here knows.
    """
    if kwargs.get("softcap") is not None:
        raise ValueError("attention soft-capping needs training.attention: eager and batching: grouped")
    gqa = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None:
        return _over_rows(query, key, value, scaling, sliding_window, gqa), None
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        packed = varlen_attn(
            query[0].transpose(0, 1),  # (T, H, D)
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q or 0,
            max_length_q or 0,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=gqa,
        )
        assert isinstance(packed, Tensor)
        return packed.unsqueeze(0), None
    lengths = cu_seq_lens_q.diff().tolist()  # on a CPU there is nothing to wait for
    examples = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    parts = [_over_rows(q, k, v, scaling, sliding_window, gqa) for q, k, v in examples]
    return torch.cat(parts, dim=1), None


def _over_rows(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, gqa: bool
) -> Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        position = torch.arange(length, device=query.device)
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (distance < window)
    output: Tensor = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
    )
    return output.transpose(1, 2)


AttentionInterface.register(CAUSAL, causal_attention)
