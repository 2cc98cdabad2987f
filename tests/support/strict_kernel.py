"""torch's kernel for packed rows as a CUDA device has it, stood in for on the CPU: as strict about what it
takes as flash attention is, and as plain in what it computes as attention's definition."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def sharing(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """``varlen_attn`` of torch 2.12 and later."""
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("Expect query and key/value to have the same number of heads")
    if enable_gqa and query.shape[1] % key.shape[1]:
        raise ValueError("Expect number of query heads to be a multiple of kv heads for GQA")
    return _attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def unsharing(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """``varlen_attn`` of torch 2.11: heads are not shared."""
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("as many heads of keys as of queries are needed")
    return _attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def windowless(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: Any = None,
) -> Tensor:
    """``varlen_attn`` as it first was, without windows and scales."""
    raise AssertionError("what is asked of it is not there")


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    longest: int,
    longest_key: int,
    scale: float | None,
    window_size: tuple[int, int],
) -> Tensor:
    _check(query, key, value, bounds, key_bounds, longest, longest_key, window_size)
    before, _ = window_size
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    parts = [
        plain(
            *(each[start:end].float() for each in (query, key, value)),
            scale,
            before + 1 if before >= 0 else None,
        )
        for start, end in itertools.pairwise(bounds.tolist())
    ]
    return torch.cat(parts).to(query.dtype)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    longest: int,
    longest_key: int,
    window_size: tuple[int, int],
) -> None:
    if query.dtype not in HALF:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError("query, key and value must have the same dtype")
    for states in (query, key, value):
        if states.ndim != 3 or states.stride(-1) != 1:
            raise RuntimeError("Input tensor must be (T, H, D) and have contiguous last dimension")
    if key.shape != value.shape or query.shape[2] != key.shape[2] or len(query) != len(key):
        raise RuntimeError("shapes of query, key and value do not fit")
    if query.shape[2] > 256 or query.shape[2] % 8:
        raise RuntimeError("FlashAttention needs a head dimension of at most 256, and a multiple of 8")
    for each, most in ((bounds, longest), (key_bounds, longest_key)):
        if each.dtype != torch.int32 or not each.is_contiguous():
            raise RuntimeError("cu_seqlens must be int32 and contiguous")
        if not isinstance(most, int) or most != int(each.diff().max()):
            raise RuntimeError("the longest row is not as long as it is said to be")
        if each[0] != 0 or each[-1] != len(query):
            raise RuntimeError("cu_seqlens do not span the rows")
    left, right = window_size
    if right != 0 or left < -1:
        raise RuntimeError("not a causal window")


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Causal attention of one example, (T, H, D), head by head, as its definition has it."""
    length, heads, _ = query.shape
    distance = torch.arange(length)[:, None] - torch.arange(length)
    unseen = (distance < 0) | (distance >= (window or length))
    shared = heads // key.shape[1]
    parts = []
    for head in range(heads):
        scores = query[:, head] @ key[:, head // shared].T * scale
        parts.append(scores.masked_fill(unseen, -torch.inf).softmax(-1) @ value[:, head // shared])
    return torch.stack(parts, 1)
