"""A GPU's kernel for packed rows, computed by torch's own attention on any device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.training import attention
from harness.training.attention import Kernel


def packed_attention(
    query: Any, key: Any, value: Any, bounds: Any, key_bounds: Any, longest: int, longest_key: int,
    *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The kernel for packed rows, as a device has it: it knows their lengths without telling anybody."""
    place = torch.arange(len(query), device=query.device)
    row = (place[:, None] >= bounds[None, 1:]).sum(1)
    distance = place[:, None] - place[None, :]
    window = window_size[0] + 1 if window_size[0] >= 0 else len(query)
    seen = (row[:, None] == row[None, :]) & (distance >= 0) & (distance < window)
    heads = [states.transpose(0, 1)[None] for states in (query, key, value)]
    found = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
    )
    return found[0].transpose(0, 1)


def put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows go through it, as they go through the kernel of a GPU."""
    monkeypatch.setattr(attention, "kernel", Kernel.of(packed_attention))
    monkeypatch.setattr(attention, "_takes_kernel", lambda device: True)
