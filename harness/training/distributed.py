"""The shipped configurations of the engines that share one training among several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from harness.config import TrainingConfig


def arguments(settings: TrainingConfig) -> dict[str, Any]:
    """What ``transformers.TrainingArguments`` needs for ``settings.distributed``, under a launcher."""
    on_cpu = settings.device == "cpu"
    common: dict[str, Any] = {"ddp_find_unused_parameters": False, "average_tokens_across_devices": False}
    if on_cpu:
        common["ddp_backend"] = "gloo"
    if settings.distributed in ("zero2", "zero3"):
        return {**common, "deepspeed": deepspeed(settings)}
    if settings.distributed == "fsdp2":
        return {**common, "fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    return common


def deepspeed(settings: TrainingConfig) -> dict[str, Any]:
    """ZeRO (arXiv 1910.02054): stage 2 shards gradients and optimizer states, stage 3 the weights too.

    "auto" values come from the training arguments. The optimizer is torch's own, so that one process and
    several take the same steps.
    """
    stage = 2 if settings.distributed == "zero2" else 3
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": settings.device != "cpu",
        "contiguous_gradients": True,
        "reduce_bucket_size": 500_000_000,
    }
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }


@contextlib.contextmanager
def whole_on(device: torch.device, model: Any) -> Iterator[None]:
    """For the block, weights that are to be sharded (ZeRO-3, FSDP2) and wait on the CPU until then are whole
    on the device that trains, so that what scores them before the first step computes there. Where its
    memory does not hold them they stay where they are."""
    home = model.device
    if home.type != "cpu" or device.type == "cpu":
        yield
        return
    try:
        try:
            model.to(device)
        except torch.OutOfMemoryError:  # a part of it is there
            _back(model, home)
        yield
    finally:
        _back(model, home)


def _back(model: Any, home: torch.device) -> None:
    model.to(home)
    free_cached()


def free_cached() -> None:
    """Give back device memory that torch keeps and does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
