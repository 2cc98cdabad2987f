"""Whether checkpoints that answer side by side fit on a GPU, by formula: for the plan. Not measured yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.config import ResponsesConfig
from harness.engines import select
from harness.generation import stage as generation
from harness.models import checkpoints
from harness.pipeline import estimate, stages
from harness.run import plan
from harness.run.context import RunContext
from harness.training import memory

TOKENS = 1024  # of a prompt and its answer, where the model's context holds so many
LOGIT_BYTES = 8  # of a next token's score in float32, and of what decoding makes of it


def answering_bytes(model: memory.Architecture, settings: ResponsesConfig, tokens: int) -> float:
    """Expected peak bytes on a GPU of one checkpoint that answers with transformers, a prompt and its answer
    having so many ``tokens``. A batch's key-value cache is copied a layer at a time when it grows; of the
    prompts' pass one layer's states count."""
    size = 2 if settings.dtype == "bfloat16" else 4
    rows, read = settings.batch_size, settings.batch_size * tokens
    layer = 2 * model.key * size * read
    states = size * read * (2 * model.hidden + max(2 * model.inner, model.query + 2 * model.key))
    scores = (size + LOGIT_BYTES) * rows * model.vocabulary
    standing = size * model.parameters + layer * model.layers + memory.CONTEXT_BYTES
    return standing + max(layer, states, scores)


def line(ctx: RunContext, cells: Sequence[plan.Cell]) -> str | None:
    """One line where checkpoints answer side by side on this machine's GPU, and their sizes are known."""
    parts = [part for cell in cells for part in stages.split_cell(ctx, cell)]
    jobs = plan.job_count(ctx.config, len(parts))
    if jobs == 1 or ctx.config.executor != "local" or not estimate.on_cuda(ctx):
        return None
    sizes = _sizes(ctx, parts)[:jobs]
    if len(sizes) < 2:
        return None
    together, free = sum(sizes), estimate.free_memory(ctx)
    most = max(1, int(free / sizes[0]))
    verdict = "they fit" if together <= free else f"they do NOT fit (--jobs {most} would)"
    return (
        f"Memory: {len(sizes)} checkpoints that answer side by side take at most about "
        f"{estimate.gigabytes(together)} (batches of {ctx.config.responses.batch_size}, prompts "
        f"and answers of up to {TOKENS:,} tokens; by formula); "
        f"{estimate.gigabytes(free)} are free here: {verdict}"
    )


def _sizes(ctx: RunContext, parts: Sequence[plan.Cell]) -> list[float]:
    """Of each part that is answered as by transformers, the largest first; what is not known is left out."""
    found: list[float] = []
    for part in parts:
        engine = select.engine_class(generation.engine_name(ctx, part))
        folder = _folder(ctx, part) if engine.like_transformers else None
        known = memory.find("", folder) if folder else None
        if folder is None or known is None:
            continue
        tokens = min(TOKENS, checkpoints.context_of(folder))
        found.append(answering_bytes(known, ctx.config.responses, tokens))
    return sorted(found, reverse=True)


def _folder(ctx: RunContext, part: plan.Cell) -> Path | None:
    """Whose shape a part's model has."""
    if part.kind != "checkpoint":
        return ctx.seed_folder
    checkpoint = checkpoints.checkpoint(ctx.config.checkpoints[part.method])
    return checkpoint.base or checkpoint.folder
