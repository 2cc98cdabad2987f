"""What a cell trains on: its method's rows as token ids, and what of them does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.contracts import Encoded, Example, HarnessError, Method
from harness.models import chat, checkpoints
from harness.rows import Unused
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.training.measure import cost
from harness.training.preparation import prepare


@dataclass(frozen=True)
class TrainingRows:
    """``prepared``: how many rows the method has made; ``lengths``: how many of them were cut or left out;
    ``untrained``: rows of the data that are not trained; ``record``: the method's own."""

    examples: list[Encoded]
    safety_examples: list[Encoded]
    prepared: int
    lengths: dict[str, int]
    untrained: int
    record: dict[str, Any]
    peak_memory_bytes: int


def training_rows(ctx: RunContext, cell: Cell, method: Method, label: str) -> TrainingRows:
    """Prepare and tokenize a cell's rows, and tell what of them is not used. Raises HarnessError where
    nothing is left."""
    task, settings = ctx.train_task(cell), ctx.config.row(cell.method).training

    def tell(line: str) -> None:
        ctx.reporter.send(("note", None, line))

    with cost(ctx.device) as preparation:
        prepared, record = prepare(ctx, task, method, cell, label)
    if record.get("note"):
        tell(f"{label}  {record['note']}")
    if not prepared:
        given = len(ctx.examples(task))
        raise HarnessError(f"method '{cell.method}': prepare returned no examples ({given:,} given)")
    # The model's context counts too: positions beyond it have no row, or were never learnt.
    context = checkpoints.context_of(ctx.seed_folder)
    max_length = min(settings.max_length or task.max_length, context)
    encoded, lengths = encode_all(ctx.seed_tokenizer, prepared, max_length, settings.too_long)
    if any(lengths.values()):
        tell(_length_note(label, len(prepared), max_length, context, lengths))
    unused, unused_safety = ctx.unused(task), Unused()
    safety = ctx.safety_examples(task, unused_safety) if method.needs_safety_data else []
    for line in (*unused.lines(), *(f"safety data: {line}" for line in unused_safety.lines())):
        tell(f"{label}  {line}")
    return TrainingRows(
        examples=encoded,
        safety_examples=(
            encode_all(ctx.seed_tokenizer, safety, max_length, settings.too_long)[0] if safety else []
        ),
        prepared=len(prepared),
        lengths=lengths,
        untrained=unused.untrained + unused_safety.untrained,
        record=record,
        peak_memory_bytes=preparation.peak_memory_bytes,
    )


def _length_note(label: str, examples: int, max_length: int, context: int, lengths: dict[str, int]) -> str:
    """What did not fit, in one line: a training that silently learns half an answer helps no one."""
    limit = (
        f"max_length {max_length}" if max_length < context else f"the model's context of {context:,} tokens"
    )
    return (
        f"{label}  of {examples:,} examples {lengths['truncated_examples']:,} lost their answer's end and "
        f"{lengths['dropped_examples']:,} were left out at {limit} (training.too_long)"
    )


def encode_all(
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int,
    too_long: Literal["cut", "leave-out"] = "cut",
) -> tuple[list[Encoded], dict[str, int]]:
    """Token ids of all examples. Those over ``max_length`` lose their answer's end ("cut"), or are left out
    whole ("leave-out", or when nothing of the answer would remain). Returns the counts of both."""
    whole = [chat.encode(tokenizer, example) for example in examples]
    keep = max_length if too_long == "cut" else None
    cut = [
        chat.truncate(encoded, max_length) if keep or len(encoded.input_ids) <= max_length else None
        for encoded in whole
    ]
    kept = [encoded for encoded in cut if encoded is not None]
    if not kept:
        raise HarnessError(
            f"no training example fits into max_length {max_length}: raise training.max_length"
        )
    dropped = len(whole) - len(kept)
    truncated = sum(len(encoded.input_ids) > max_length for encoded in whole) - dropped
    return kept, {"truncated_examples": truncated, "dropped_examples": dropped}
