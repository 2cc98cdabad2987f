"""Guards the plan as it is shown before anything is spent, in 80 and in 100 columns: memory and disk too."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import config
from harness.judging.session import JudgeSession
from harness.pipeline import estimate
from harness.plugins import registry
from harness.run import plan
from harness.run.context import RunContext


def context_at(out: Path, **overrides: Any) -> RunContext:
    return RunContext(config.load(None, overrides), out)


def shown(run_context: RunContext, width: int, done: int = 0) -> list[str]:
    file = io.StringIO()
    cells = plan.cells(run_context.config)
    estimate.show(JudgeSession(run_context), cells, cells[done:], Console(file=file, width=width))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
def test_the_plan_fits_and_names_every_method_and_task(tmp_path: Path, width: int) -> None:
    run_context = context_at(
        tmp_path / "run", **{"training.max_examples": 40, "seeds": [1, 2], "methods": ["all"]}
    )
    lines = shown(run_context, width, done=1)
    assert all(len(line) <= width for line in lines[:-1])
    text = " ".join(" ".join(line.strip("│┃ ") for line in lines).split())
    for name in (
        *plan.methods(run_context.config),
        "gsm8k-mini",
        "samsum-mini",
        "hexphi_raw-mini",
        "x 2 seeds",
    ):
        assert name.split("-")[0] in text
    assert "40 x 3 epochs" in text
    number = len(plan.cells(run_context.config))
    assert f"{number - 1} of {number} cells to do" in text


def test_one_epoch_is_no_epochs(tmp_path: Path) -> None:
    text = "\n".join(shown(context_at(tmp_path, **{"training.epochs": 1, "training.max_examples": 8}), 100))
    assert "8 x 1 epoch " in text


def test_variants_of_other_epochs_are_in_the_plan(tmp_path: Path) -> None:
    variants = {"long": {"method": "sdft", "training": {"epochs": 5}}}
    budget = {"training.epochs": 2, "training.max_examples": 8}
    text = "\n".join(shown(context_at(tmp_path, methods=["vanilla"], variants=variants, **budget), 100))
    assert "8 x 2 to 5 epochs" in text
    assert "vanilla, long" in text


def test_the_memory_is_that_of_the_row_that_takes_most(tmp_path: Path) -> None:
    def gigabytes(**variants: Any) -> str | None:
        options = {"training.max_examples": 8, "training.tuning": "lora"}
        run_context = context_at(tmp_path, methods=["vanilla"], variants=variants, **options)
        return estimate.describe_memory(run_context, plan.cells(run_context.config))

    small = {"method": "vanilla", "training": {"lora": {"r": 1}}}
    full = {"method": "vanilla", "training": {"tuning": "full"}}
    assert gigabytes() == gigabytes(small=small)
    assert "lora tuning" in str(gigabytes())
    assert "full tuning" in str(gigabytes(small=small, full=full))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "1.5 min"), (600, "10.0 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert estimate.duration(seconds) == text


def test_the_memory_line_says_whether_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_context = context_at(tmp_path, **{"training.max_examples": 8, "jobs": 1})
    cells = plan.cells(run_context.config)
    monkeypatch.setattr(estimate, "free_memory", lambda context_at: 20e9)
    assert str(estimate.describe_memory(run_context, cells)).endswith("20.0 GB are free here: it fits")
    monkeypatch.setattr(estimate, "free_memory", lambda context_at: 0.1e9)
    assert "0.1 GB are free here: it does NOT fit" in str(estimate.describe_memory(run_context, cells))
    elsewhere = context_at(tmp_path, **{"training.max_examples": 8, "executor": "ray"})
    assert "free here" not in str(estimate.describe_memory(elsewhere, cells))


def test_the_memory_of_the_mini_world_is_within_a_quarter_of_what_was_measured(tmp_path: Path) -> None:
    run_context = context_at(tmp_path)
    known = estimate.architecture(run_context)
    assert known is not None
    found = estimate.estimate_training_memory(run_context, plan.cells(run_context.config), known)
    assert found is not None
    with (Path(__file__).parents[3] / "results/mini/leaderboard.csv").open(encoding="utf-8") as file:
        measured = [int(row["peak_memory_bytes"]) for row in csv.DictReader(file) if row["method"] != "seed"]
    assert found[0] == pytest.approx(max(measured), rel=0.25)


def test_real_lengths_count_where_they_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a batch as long as the other; a method that rewrites answers lets them go further."""
    from harness.models import checkpoints
    from harness.training.rows import encode_all

    run_context = context_at(tmp_path, methods=["vanilla", "sdft"], train_tasks="gsm8k-mini", seeds=[1])
    known = estimate.architecture(run_context)
    assert known is not None
    vanilla, sdft = ([c] for c in plan.cells(run_context.config) if c.kind == "trained")
    given = run_context.config.training
    size = given.micro_batch_size
    task = registry.load("train task", "gsm8k-mini")
    examples = run_context.examples(task)
    lengths = sorted(
        len(row.input_ids) for row in encode_all(run_context.seed_tokenizer, examples, task.max_length)[0]
    )
    found = estimate.estimate_training_memory(run_context, vanilla, known)
    assert found is not None
    assert size * lengths[len(lengths) // 2] < found.tokens <= size * lengths[-1]
    rewritten = estimate.estimate_training_memory(run_context, sdft, known)
    assert rewritten is not None
    assert found.tokens < rewritten.tokens <= size * task.max_length
    monkeypatch.setattr(checkpoints, "is_here", lambda name: False)
    unknown = estimate.estimate_training_memory(run_context, vanilla, known)
    assert unknown is not None
    assert unknown.tokens == size * task.max_length
    assert unknown.size > rewritten.size > found.size


def test_trainings_side_by_side_take_what_they_take_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {"small": {"method": "vanilla", "training": {"tuning": "lora", "micro_batch_size": 1}}}
    base = {
        "training.max_examples": 8, "methods": ["vanilla"], "variants": variants,
        "train_tasks": "gsm8k-mini", "seeds": [1, 2],
    }  # fmt: skip

    def needed(**more: Any) -> Any:
        run_context = context_at(tmp_path, **base, **more)
        known = estimate.architecture(run_context)
        assert known is not None
        return run_context, estimate.estimate_training_memory(
            run_context, plan.cells(run_context.config), known
        )

    _, alone = needed(jobs=1)
    assert (alone.jobs, alone.together) == (1, alone.size)
    _, two = needed(jobs=2)
    assert two.together == pytest.approx(2 * alone.size)  # both seeds of the one that takes most
    run_context, four = needed(jobs=9)
    assert four.jobs == 4  # there are no more trainings
    small = (four.together - two.together) / 2
    assert 0 < small < alone.size
    for free, said in (
        (four.together + 1, "they fit"),
        (four.size * 2.5, "they do NOT fit (--jobs 2 would)"),
        (four.size - 1, "it does NOT fit (harness doctor says what helps)"),
    ):
        monkeypatch.setattr(estimate, "free_memory", lambda context_at, free=free: free)
        line = str(estimate.describe_memory(run_context, plan.cells(run_context.config)))
        assert line.endswith(said)
        assert f", 4 side by side about {estimate.gigabytes(four.together)}; " in line
    _, on_a_cluster = needed(jobs=2, executor="ray")
    assert on_a_cluster.jobs == 1


def test_disk_is_what_training_writes(small_run: Path) -> None:
    run_context = context_at(small_run, train_tasks="gsm8k-mini")
    known = estimate.architecture(run_context)
    assert known is not None
    cells = plan.cells(run_context.config)
    written = sum(path.stat().st_size for path in small_run.glob("*/*/*/checkpoint/*.safetensors"))
    assert estimate.checkpoints_bytes(run_context, cells, known) == pytest.approx(written, rel=0.05)
    every_epoch = context_at(small_run, train_tasks="gsm8k-mini", eval_every_epoch=True)
    assert estimate.checkpoints_bytes(every_epoch, cells, known) == pytest.approx(3 * written, rel=0.05)
    adapters = context_at(small_run, train_tasks="gsm8k-mini", **{"training.tuning": "lora"})
    assert estimate.checkpoints_bytes(adapters, cells, known) < written / 2


@pytest.mark.parametrize(
    ("size", "text"), [(12e6, "0.012 GB"), (0.9e9, "0.9 GB"), (13.46e9, "13.5 GB"), (410.2e9, "410 GB")]
)
def test_sizes_read_well(size: float, text: str) -> None:
    assert estimate.gigabytes(size) == text
