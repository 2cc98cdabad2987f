"""Whether this machine's devices, memory and disk are enough for a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from harness.models import checkpoints
from harness.pipeline import estimate, other_models
from harness.pipeline.checkup.finding import Finding
from harness.plugins import registry
from harness.run import plan
from harness.run.context import RunContext

SPARE_BYTES = 2 * 2**30  # free disk beyond what the checkpoints take
HOST_SHARE = 2.5  # of the weights: what loading and a training's start hold in memory


def check_device(ctx: RunContext) -> Iterator[Finding]:
    import torch

    wanted, count = ctx.config.training.device, torch.cuda.device_count()
    names = ", ".join(
        f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 1e9:.0f} GB)"
        for i in range(count)
    )
    cores = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
    if wanted == "cuda" and not count:
        mend = "a CUDA build of torch and its driver (nvidia-smi), or --set training.device=cpu"
        yield Finding("fail", "device", f"the recipe wants CUDA and torch sees none ({cores})", mend)
        return
    needed = ctx.config.training.num_processes
    if count and needed > count:
        mend = f"--num-processes {count}, or --launcher for several machines"
        yield Finding("fail", "device", f"the recipe wants {needed} devices; here: {names}", mend)
        return
    if count and ctx.config.training.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        yield Finding("fail", "bfloat16", f"{names}: no bfloat16", "--set training.dtype=float32")
    yield Finding("pass", "device", names or cores)


def check_packing(ctx: RunContext) -> Iterator[Finding]:
    """Where rows are to be packed on a GPU, whether its kernel takes them: else they are padded."""
    trained = [cell for cell in ctx.cells() if cell.kind == "trained"]
    rows = [ctx.config.row(cell.method).training for cell in trained]
    packed = {row.dtype for row in rows if row.batching == "padding-free" and row.attention == "auto"}
    if not packed or not estimate.on_cuda(ctx):
        return
    no_kernel = registry.load_object("harness.training.attention:no_kernel")
    for dtype in sorted(packed):
        reason = no_kernel(ctx.device, dtype, _read_text_config(ctx))
        if reason:
            line = f"padding-free becomes grouped here, which is slower: {reason}"
            mend = "--set training.dtype=bfloat16, or a torch whose kernel takes this model on this device"
            yield Finding("warn", "batching", line, mend)
        else:
            yield Finding("pass", "batching", "padding-free: the device's kernel takes packed rows")


def _read_text_config(ctx: RunContext) -> Any:
    """The model's configuration, as far as it reads text; None where it is not here."""
    if not checkpoints.is_here(ctx.config.model):
        return None
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(ctx.seed_folder, trust_remote_code=False).get_text_config()


def check_memory(ctx: RunContext) -> Iterator[Finding]:
    import psutil

    known = estimate.architecture(ctx)
    if known is None:
        what = f"the size of {ctx.config.model} is not known yet"
        yield Finding("warn", "memory", what, "fetch the model first")
        return
    trained = estimate.estimate_training_memory(ctx, ctx.cells(), known)
    if trained is None:
        return
    needed, free = trained.together, estimate.free_memory(ctx)
    many = f"{trained.jobs} trainings side by side take" if trained.jobs > 1 else "training takes"
    line = f"{many} at most about {needed / 1e9:.1f} GB a device, {free / 1e9:.1f} GB are free"
    if needed > free:
        mend = "--tuning lora, gradient_checkpointing, a smaller micro_batch_size, or --num-processes"
        mend = f"fewer --jobs, {mend}" if trained.jobs > 1 else mend
        yield Finding("fail" if needed > 1.2 * free else "warn", "memory", line, mend)
    else:
        yield Finding("pass", "memory", line)
    largest = max((other_models.size(ctx, row) for row in plan.methods(ctx.config)), default=0)
    host = HOST_SHARE * 4 * known.parameters + largest
    if estimate.on_cuda(ctx) and host > psutil.virtual_memory().available:
        yield Finding("warn", "host memory", f"about {host / 1e9:.0f} GB to load and save", "free some")


def check_disk(ctx: RunContext) -> Iterator[Finding]:
    place, free = estimate.disk_at(ctx.out)
    if not os.access(place, os.W_OK):
        yield Finding("fail", "run folder", f"{place} cannot be written", "another --out")
        return
    known = estimate.architecture(ctx)
    if known is None:
        yield Finding("pass", "disk", f"{free / 1e9:.0f} GB free at {place}")
        return
    cells = ctx.cells()
    whole = estimate.checkpoints_bytes(ctx, cells, known) + estimate.state_bytes(known) + SPARE_BYTES
    count = sum(cell.kind == "trained" for cell in cells)
    spare = estimate.gigabytes(SPARE_BYTES)
    line = f"a run takes about {estimate.gigabytes(whole)} ({count} checkpoints, {spare} to spare), "
    line += f"{estimate.gigabytes(free)} are free at {place}"
    if whole > free:
        yield Finding("fail", "disk", line, "another --out, or harness clean on old runs")
    else:
        yield Finding("pass", "disk", line)
