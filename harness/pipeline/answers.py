"""What ``harness respond`` shows: each task's own metrics, and the token ids of a prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.console.terminal import say
from harness.contracts import HarnessError, UsageError
from harness.engines.base import Engine, Request
from harness.engines.lm import Asking, TaskModel
from harness.generation import lm_tasks
from harness.generation import stage as generation
from harness.leaderboard import scores
from harness.leaderboard.health import NOT_MEANINGFUL, is_enough
from harness.models import checkpoints
from harness.models.checkpoints import Checkpoint
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.storage import records
from harness.text import listed


def rows(out: Path, cell: Cell, reader: scores.Reader | None = None) -> list[dict[str, Any]]:
    """Every task's metrics by lm-eval's own scoring: value and interval as fractions, and n. Safety tasks are
    judged by rule here; verdicts of judges are another matter."""
    found = []
    for task in cell.tasks:
        folder = out / cell.folder
        if not (folder / task / "respond.done.json").exists():
            continue
        record = records.documents(folder / task)
        for outcome in scores.all_measured(cell, folder, task, reader):
            estimate = outcome.estimate()
            found.append(
                {
                    "task": task,
                    "metric": outcome.metric,
                    "value": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "n": estimate.n,
                    "missing": record.get("missing") or {},
                    "unscored": record.get("unscored") or {},
                }
            )
    return found


def show(out: Path, cells: Sequence[Cell], console: Console) -> None:
    for cell in cells:
        reader = scores.Reader()  # each task's answers are read once
        found = rows(out, cell, reader)
        table = Table("task", "metric", box=None, header_style="bold", padding=(0, 2, 0, 0))
        for heading in ("value", "95 % interval", "n"):
            table.add_column(heading, justify="right")
        whole = scores.whole_share(cell, out / cell.folder, reader)
        for row in found:
            value, low, high = (None if row[k] is None else 100 * row[k] for k in ("value", "low", "high"))
            interval = "" if low is None or high is None else f"{low:.1f}–{high:.1f}"
            shown = "" if value is None else f"{value:.2f}"
            if row["task"] in cell.safety and not is_enough(whole):
                shown, interval = NOT_MEANINGFUL, ""
            table.add_row(escape(row["task"]), escape(row["metric"]), shown, interval, str(row["n"]))
        console.print(table)
        for task, missing in {row["task"]: row["missing"] for row in found if row["missing"]}.items():
            say(console, f"{task}: {sum(missing.values())} without an answer ({listed(missing)})", "yellow")
        for task, unscored in {row["task"]: row["unscored"] for row in found if row["unscored"]}.items():
            say(console, f"{task}: not scored: {listed(unscored)}", "yellow")
        if line := scores.health_line(out, cell, reader):
            say(console, line)
        if cell.safety_tasks:
            console.print(
                "Safety by rule: refusal phrases (mini tasks: the world's grammar). "
                f"Judges: harness judge {escape(str(out))} --judge …",
                highlight=False,
                soft_wrap=True,
            )


class _Reader(Engine):
    """An engine without weights: it makes prompts and answers nothing."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.context_tokens, self.stop_ids = tokenizer, 2**31, set()

    @classmethod
    def open(cls, checkpoint: Checkpoint, settings: Any, device: str) -> _Reader:
        if checkpoint.folder is None and settings.tokenizer is None:
            raise UsageError("a server's prompts are made with its model's tokenizer: add --tokenizer FOLDER")
        named = settings.tokenizer
        folder = checkpoints.tokenizer_folder(named) if named else checkpoint.folder
        assert folder is not None
        return cls(checkpoints.load_tokenizer(folder))

    def generate(self, prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
        raise HarnessError("no weights are loaded")

    def logprobs(self, pairs: Any, request: Request) -> Any:
        raise HarnessError("no weights are loaded")


def prompt(ctx: RunContext, cell: Cell, task: str, index: int) -> tuple[list[int], list[int], Any]:
    """(prompt ids, prefill ids at their end, tokenizer) of one document of a task, from 0: what every engine
    sends. Raises UsageError where there is no such document."""
    benchmark = ctx.benchmark(task)
    engine = _Reader.open(generation.checkpoint_of(ctx, cell), ctx.config.responses, ctx.device)
    lm_task = lm_tasks.open_task(ctx, engine, benchmark)
    model = TaskModel(engine, Asking(thinking=ctx.config.responses.thinking))
    documents = len(lm_task.eval_docs)
    if index >= documents:
        raise UsageError(f"--print-ids {index}: task '{task}' has {documents} documents, counted from 0")
    lm_task.build_all_requests(
        samples=[index],
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=model.apply_chat_template,
    )
    request = lm_task.instances[0]
    if lm_task.OUTPUT_TYPE == "generate_until":
        return model.prompt_ids(request), model.prefill_ids(request), engine.tokenizer
    context, continuation = model.pair(request)
    return context + continuation, continuation, engine.tokenizer


def print_ids(
    ctx: RunContext, cells: Sequence[Cell], index: int, console: Console, *, show_harmful: bool
) -> None:
    """The token ids of one document's prompt in each task, and their texts, those of safety tasks only with
    ``show_harmful``."""
    for cell in cells:
        for task in cell.tasks:
            ids, opened, tokenizer = prompt(ctx, cell, task, index)
            console.print(
                f"[bold]{escape(task)}[/bold], document {index}: {len(ids)} tokens", highlight=False
            )
            if opened:
                console.print(f"  the last {len(opened)} open the answer", highlight=False)
            bos = tokenizer.bos_token_id
            if bos is not None:
                console.print(f"  BOS ({bos}): {ids.count(bos)}", highlight=False)
            console.print(json.dumps(ids), highlight=False, soft_wrap=True)
            if show_harmful or ctx.benchmark(task).readable:
                pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
                console.print(escape("│".join(pieces)), highlight=False, soft_wrap=True, markup=True)
            else:
                console.print("  (texts of safety tasks: --show-harmful)", style="dim", highlight=False)
