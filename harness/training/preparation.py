"""What happens to a method's data before training: its ``prepare`` hook, with the base model at hand.

What the base model writes for it is kept by content, batch by batch: a distillation that is killed goes on
where it stopped, and the next run with the same model, data and decoding reads it. Its cost is charged to the
method either way, as measured when it was made: a leaderboard compares methods, not caches.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from harness.contracts import Example, Generate, Message, Method, PrepareContext, TrainTask
from harness.engines.base import Request
from harness.models import chat
from harness.storage.files import Journal, content_hash, read_jsonl, write_jsonl_atomic
from harness.training import hook_checks
from harness.training.measure import cost

if TYPE_CHECKING:
    from harness.run.context import RunContext
    from harness.run.plan import Cell

KIND = "generated"
VERSION = 1
FILE = "continuations.jsonl"


def prepare(
    ctx: RunContext,
    task: TrainTask,
    method: Method,
    cell: Cell,
    label: str,
    examples: Sequence[Example] | None = None,
) -> tuple[list[Example], dict[str, Any]]:
    """The method's training data, made from ``examples`` (default: the task's), and its record;
    ``preparation`` in it is what the base model's writing cost: tokens read and written, seconds, peak
    memory, and whether all of it was there already."""
    record: dict[str, Any] = {}
    generate = make_generate(ctx, f"{label}  rewrite", cell.seed, record)
    given = ctx.examples(task) if examples is None else list(examples)
    prepared = method.prepare(given, make_context(ctx, task, method, cell, generate, record))
    hook_checks.check_prepared(method, prepared)
    hook_checks.check_record(method, record)
    return prepared, record


def make_generate(ctx: RunContext, label: str, seed: int | None, record: dict[str, Any]) -> Generate:
    """The base model as a text generator, which adds what its writing cost to ``record``."""

    def generate(
        conversations: Sequence[Sequence[Message]],
        *,
        opening: str,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> list[str]:
        prompts, opened = build_prompts(ctx, conversations, opening)
        decoding = {"temperature": temperature, "top_p": top_p, "seed": seed if temperature else None}
        made, found = continue_prompts(ctx, prompts, opened, max_tokens, decoding, label)
        _charge(record, prompts, made, found)
        texts = {int(index): text for row in made for index, text in row["texts"].items()}
        return [texts[index] for index in range(len(prompts))]

    return generate


def _charge(
    record: dict[str, Any], prompts: Sequence[Sequence[int]], made: Sequence[Mapping[str, Any]], found: bool
) -> None:
    """Add to a method's record what writing has cost when it was made; ``found``: all was there already."""
    nothing = {"prompt_tokens": 0, "generated_tokens": 0, "seconds": 0.0, "peak_memory_bytes": 0}
    spent = record.setdefault("preparation", {**nothing, "from_cache": True})
    spent["prompt_tokens"] += sum(map(len, prompts))
    spent["generated_tokens"] += sum(row["tokens"] for row in made)
    spent["seconds"] = round(spent["seconds"] + sum(row["seconds"] for row in made), 3)
    peaks = [spent["peak_memory_bytes"], *(row["peak_memory_bytes"] for row in made)]
    spent["peak_memory_bytes"] = max(peaks)
    spent["from_cache"] &= found


def build_prompts(
    ctx: RunContext, conversations: Sequence[Sequence[Message]], opening: str
) -> tuple[list[list[int]], list[int]]:
    """The ids that the base model continues, and those at their end with which its answers are opened."""
    tokenizer = ctx.seed_tokenizer
    opened = chat.token_ids(tokenizer, opening) if opening else []
    return [chat.prompt_ids(tokenizer, turns) + opened for turns in conversations], opened


def make_context(
    ctx: RunContext,
    task: TrainTask,
    method: Method,
    cell: Cell,
    generate: Generate,
    record: dict[str, Any] | None = None,
) -> PrepareContext:
    """What a method's ``prepare`` is handed; ``generate``: the base model's writing."""
    return PrepareContext(
        tokenizer=ctx.seed_tokenizer,
        train_task=task,
        generate=generate,
        rng=random.Random(f"{cell.seed} prepare"),
        record={} if record is None else record,
        safety_examples=ctx.safety_examples(task) if method.needs_safety_data else (),
    )


def continue_prompts(
    ctx: RunContext,
    prompts: list[list[int]],
    opened: list[int],
    max_tokens: int,
    decoding: dict[str, Any],
    label: str,
) -> tuple[list[dict[str, Any]], bool]:
    """The base model's continuations of ``prompts``, which end with the ids ``opened`` of the answer, and
    whether they were all there. A row a batch: ``texts`` by prompt number, ``tokens`` written, ``seconds``,
    and ``peak_memory_bytes`` of the making, the same in all rows.

    Batches are fixed by the prompts, so that a resumed distillation equals one that was not stopped.
    """
    inputs = {
        **_describe_maker(ctx),
        "max_tokens": max_tokens,
        "decoding": decoding,
        "prompts": content_hash(prompts),  # a marker holds its inputs, and these are millions of ids
        "opened": opened,
    }
    stage = ctx.cache.entry(KIND, inputs, [FILE])
    stage.folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(stage)
    with FileLock(stage.folder / ".lock"):
        found = stage.done()
        if not found:
            rows = journal.rows()
            with cost(ctx.device) as making:
                _make_missing(ctx, prompts, opened, rows, max_tokens, decoding, journal, label)
            peak = {"peak_memory_bytes": making.peak_memory_bytes}
            stage.run(lambda scratch: write_jsonl_atomic(scratch / FILE, (row | peak for row in rows)))
        journal.remove()
    return read_jsonl(stage.folder / FILE), found


def _describe_maker(ctx: RunContext) -> dict[str, Any]:
    """What the base model's writing depends on besides what it is asked."""
    return {
        "version": VERSION,
        "seed_model": ctx.seed_fingerprint,
        "engine": ctx.engine_name,
        "dtype": ctx.config.responses.dtype,
        "batch_size": ctx.config.responses.batch_size,
        "device": ctx.device,
        "libraries": ctx.libraries,
    }


def _make_missing(
    ctx: RunContext,
    prompts: list[list[int]],
    opened: list[int],
    rows: list[dict[str, Any]],
    max_tokens: int,
    decoding: dict[str, Any],
    journal: Journal,
    label: str,
) -> None:
    """Generate the batches that ``rows`` lack, and append each to ``rows`` and the journal as it is done."""
    ctx.import_libraries()
    engine = ctx.engine(ctx.seed_checkpoint)
    fewer: list[int] = []  # prompts at once, where memory asked for it
    batches = engine.plan(prompts)

    def ask(batch: Sequence[int]) -> Request:
        return Request(
            max_tokens,
            decoding["temperature"],
            decoding["top_p"],
            seed=int(content_hash([decoding["seed"], batch])[:8], 16),
            came_down_to=tuple(fewer),
            on_fewer=fewer.append,
            on_note=lambda line: ctx.reporter.send(("note", None, f"{label}  {line}")),
        )

    with ctx.reporter.bar(label, len(prompts), "answers") as advance, journal.writing(rows) as write:
        advance(sum(len(batch) for batch in batches[: len(rows)]))
        for batch in batches[len(rows) :]:
            row = _continue(engine, prompts, opened, batch, ask(batch))
            ctx.clock["generation"] += row["seconds"]
            rows.append(row)
            write(row)
            advance(len(batch))
    ctx.release()  # the training that follows wants the device's memory


def _continue(
    engine: Any,
    prompts: Sequence[list[int]],
    opened: list[int],
    batch: Sequence[int],
    request: Request,
) -> dict[str, Any]:
    """The row of a batch, which holds the numbers of its prompts."""
    start = time.perf_counter()
    made = engine.generate([prompts[index] for index in batch], request)
    seconds = time.perf_counter() - start
    texts = [engine.completion(ids, opened).text for ids in made]
    return {
        "texts": {str(index): text for index, text in zip(batch, texts, strict=True)},
        "tokens": sum(map(len, made)),
        "seconds": seconds,
    }
