"""Where a model is computed, in which numbers, and what it leaves behind there."""

from __future__ import annotations


def device(choice: str) -> str:
    if choice != "auto":
        return choice
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype(choice: str, device: str) -> str:
    """``auto``: bfloat16 on a GPU that computes in it (one that is not at hand does), else float32."""
    if choice != "auto":
        return choice
    if device != "cuda":
        return "float32"
    import torch

    has = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has else "float32"


def free_device() -> None:
    """Give back what deleted models have left on the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
