"""Guards the forecast of a run: it grows with the work and shrinks with the jobs, its tokens and bytes are
those of the real run, the probe leaves the model as it was, and what it costs is bounded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import config
from harness.contracts import HarnessError
from harness.data import benchmarks
from harness.generation import lm_tasks
from harness.models import checkpoints
from harness.pipeline import estimate, forecast
from harness.pipeline.forecast import Forecast
from harness.pipeline.probing import base_model, training_probe
from harness.pipeline.probing.effort import Effort
from harness.pipeline.probing.probe import Probe
from harness.pipeline.probing.task_probe import TaskProbe
from harness.pipeline.probing.time_budget import TimeBudget
from harness.run import plan
from harness.run.context import RunContext
from harness.storage.files import read_json
from harness.training.rows import encode_all


def context_at(out: Path, **overrides: Any) -> RunContext:
    return RunContext(config.load(None, {"train_tasks": "gsm8k-mini", **overrides}), out)


def still() -> TimeBudget:
    """No time passes: all that the probe could look at, it does."""
    return TimeBudget(clock=lambda: 0.0)


class KnownSpeed:
    """Training takes a second a token, a forward pass a third of one."""

    def __init__(self, step: Any, rows: Any):
        pass

    def warm_up(self, budget: TimeBudget) -> float:
        return 0.0

    def measure(self, budget: TimeBudget) -> None:
        pass

    def count(self, rows: Any, settings: Any) -> float:
        return 1.0

    def seconds_by_example(self, rows: Any, settings: Any) -> float:
        return sum(len(row.input_ids) for row in rows) / len(rows)

    def forward_s(self, rows: Any) -> float:
        return sum(len(row.input_ids) for row in rows) / 3


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes a second a token: beside it, nothing else counts."""
    monkeypatch.setattr(training_probe, "TrainingSpeed", KnownSpeed)
    monkeypatch.setattr(training_probe, "AGREEMENT_ROWS", 0)
    monkeypatch.setattr(TaskProbe, "measure", lambda probe, name: Effort())


@pytest.mark.usefixtures("known_speed")
def test_time_grows_with_the_work_and_shrinks_with_the_jobs(tmp_path: Path) -> None:
    length = {"training.max_examples": 64, "training.epochs": 2, "methods": ["vanilla", "ptst"]}
    run_context = context_at(tmp_path, **length)
    todo = plan.cells(run_context.config)
    alone, two = (forecast.forecast(run_context, todo, jobs) for jobs in (1, 2))
    assert alone.seconds is not None
    assert two.seconds is not None
    assert alone.total.trained > 5_000  # 2 x 2 x 64 examples of some 70 tokens
    assert alone.seconds == pytest.approx(alone.total.trained, rel=0.05)
    assert two.seconds == pytest.approx(alone.seconds / 2, rel=0.05)
    three = forecast.forecast(run_context, todo, 3)  # two trainings do not go faster for a third worker
    assert three.seconds == pytest.approx(two.seconds, rel=0.05)
    assert forecast.forecast(run_context, todo[:1], 1).total.trained == 0
    longer = {"longer": {"method": "vanilla", "training": {"epochs": 4}}}
    more = context_at(tmp_path, variants=longer, **length)
    added = forecast.forecast(more, plan.cells(more.config)[-1:], 1)
    assert added.total.trained == pytest.approx(alone.total.trained)


@pytest.mark.usefixtures("known_speed")
def test_what_a_method_prepares_with_is_charged(tmp_path: Path) -> None:
    run_context = context_at(tmp_path, **{"training.max_examples": 64, "training.epochs": 1})
    found = {
        cell.method: forecast.forecast(run_context, [cell], 1)
        for cell in plan.cells(run_context.config)
        if cell.method in ("vanilla", "constrained-sft", "lookahead-virtual")
    }
    vanilla = found["vanilla"]
    assert found["constrained-sft"].total.trained == vanilla.total.trained
    extra = found["constrained-sft"].total.seconds - vanilla.total.seconds
    assert extra == pytest.approx(vanilla.total.trained / 3, rel=0.05)
    assert found["lookahead-virtual"].total.trained > 1.1 * vanilla.total.trained


@pytest.mark.usefixtures("known_speed")
def test_a_safety_gradient_is_charged(tmp_path: Path) -> None:
    """A step more on safety data for each step on the task's rows, whose length it has."""
    import hook_methods

    from harness.plugins import plugin_files

    length = {"training.max_examples": 64, "training.epochs": 1, "train_tasks": ["gsm8k-mini"]}
    run_context = context_at(tmp_path, methods=["vanilla", f"{hook_methods.__file__}:SafeGrad"], **length)
    try:
        vanilla, safe = (
            forecast.forecast(run_context, [cell], 1)
            for cell in plan.cells(run_context.config)
            if cell.kind == "trained"
        )
        task = run_context.train_task("gsm8k-mini")
        safety = encode_all(run_context.seed_tokenizer, run_context.safety_examples(task), task.max_length)[0]
    finally:
        plugin_files.forget()
    tokens = sum(len(row.input_ids) for row in safety) / len(safety)
    assert safe.total.seconds - vanilla.total.seconds == pytest.approx(64 * tokens, rel=0.1)


def test_tokens_and_bytes_are_those_of_the_real_run(small_run: Path, tmp_path: Path) -> None:
    stored = config.RunConfig.model_validate(read_json(small_run / "run.json")["config"])
    run_context = RunContext(stored, tmp_path / "new")
    cells = plan.cells(stored)
    found = forecast.forecast(run_context, cells, 1, budget=still())
    records = [read_json(path) for path in small_run.glob("*/*/*/training.json")]
    trained = sum(record["train_tokens"] for record in records)
    rows = [
        json.loads(line)
        for path in small_run.rglob("responses.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    written = sum(row["tokens"] for row in rows)
    assert found.total.trained == pytest.approx(trained, rel=0.05)
    assert found.total.written == pytest.approx(written, rel=0.25)
    kept = [p for p in small_run.rglob("*") if p.suffix in (".safetensors", ".jsonl")]
    assert found.total.disk == pytest.approx(sum(p.stat().st_size for p in kept), rel=0.25)
    assert found.absent == ()
    # what is done is not forecast
    done = forecast.forecast(RunContext(stored, small_run), cells, 1)
    assert (done.total.trained, done.total.written, done.total.disk) == (0, 0, 0)


def test_the_probe_leaves_the_seed_model_as_it_was(tmp_path: Path) -> None:
    run_context = context_at(
        tmp_path, methods=["vanilla"], **{"training.max_examples": 8, "responses.limit": 4}
    )
    run_context.import_libraries()
    probe = Probe(run_context, "leaderboard", still())
    (effort,) = probe.measure(plan.cells(run_context.config)[-1:], 1, 10**6)
    assert effort.read > effort.written > 0
    before = checkpoints.load_model(run_context.seed_folder, "float32", "cpu")
    for model in (probe.model, probe.training.speed.step.model):
        same = zip(before.parameters(), model.parameters(), strict=True)
        assert all((a == b).all() for a, b in same)


@pytest.mark.parametrize("until", ["train", "leaderboard"])
def test_a_training_asks_for_no_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Any, known_speed: None
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(TaskProbe, "measure", lambda probe, name: asked.append(name) or Effort())
    monkeypatch.setattr(Probe, "_measure_answers", lambda probe: asked.append("speed"))
    run_context = context_at(
        tmp_path, methods=["vanilla"], utility_tasks="gsm8k", **{"training.max_examples": 8}
    )
    found = forecast.forecast(run_context, plan.cells(run_context.config)[1:], 1, until)
    assert found.total.trained > 0
    assert bool(asked) == (until == "leaderboard")


@pytest.mark.parametrize("layer_s", [0.05, 0.5, 5.0, 100.0])
def test_a_slow_model_is_looked_at_for_half_a_minute_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer_s: float
) -> None:
    """A model whose layers take a known time each, whatever passes through them."""
    now, load = [0.0], checkpoints.load_model

    def slow(*given: Any, **more: Any) -> Any:
        model = load(*given, **more)
        for layer in model.model.layers:
            layer.register_forward_pre_hook(pass_time)
        return model

    def pass_time(*given: Any) -> None:
        now[0] += layer_s

    monkeypatch.setattr(checkpoints, "load_model", slow)
    sizes = {"training.max_examples": 1000, "training.epochs": 3, "training.batch_size": 64}
    run_context = context_at(tmp_path, methods=["vanilla"], **sizes, **{"training.micro_batch_size": 4})
    budget = TimeBudget(clock=lambda: now[0])
    cells = plan.cells(run_context.config)[1:]
    found = forecast.forecast(run_context, cells, 1, "train", budget)
    passes = -(-3000 // 64) * 16
    layers = json.loads((run_context.seed_folder / "config.json").read_text(encoding="utf-8"))[
        "num_hidden_layers"
    ]
    truth = passes * layers * layer_s
    assert budget.spent() <= max(5.0, min(30.0, 0.05 * truth)) + layer_s
    if layer_s < 1:
        assert found.each[0] == pytest.approx(truth, rel=0.05)
    else:
        assert found.seconds is None
        assert "not probed (a look at it takes over" in found.time()


def test_weights_on_a_slow_disk_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "estimate_load_s", lambda folder, clock: 60.0)
    monkeypatch.setattr(checkpoints, "load_model", lambda *given, **more: pytest.fail("loaded"))
    run_context = context_at(tmp_path, methods=["vanilla"])
    found = forecast.forecast(run_context, plan.cells(run_context.config), 1)
    assert found.time() == "Estimated time: not probed (its weights take about 60 s to load)"


def test_the_time_to_read_weights_goes_by_some_of_their_bytes(tmp_path: Path) -> None:
    for name, size in (("a", 30 << 20), ("b", 10 << 20)):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(size))
    ticks = iter([5.0, 7.0])  # 2 s for two looks of 4 MiB into each file: 16 of 40 MiB
    assert base_model.estimate_load_s(tmp_path, lambda: next(ticks)) == pytest.approx(2 * 40 / 16)


def test_tasks_that_are_not_here_are_left_out_and_named(tmp_path: Path) -> None:
    run_context = context_at(
        tmp_path, methods=["vanilla"], utility_tasks="gsm8k", **{"training.max_examples": 8}
    )
    found = forecast.forecast(run_context, plan.cells(run_context.config)[:1], 1, budget=still())
    assert found.absent == ("gsm8k",)
    assert "without gsm8k (not downloaded)" in found.time()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_task_that_cannot_be_loaded_stops_the_plan(
    tmp_path: Path, own_task: Callable[..., Path], command: Callable[..., Any], small: Any, dry_run: bool
) -> None:
    folder = own_task(dataset="datset", custom_datset="custom_dataset")
    flags = ["--methods", "seed", "--utility-task", "capitals", *small(), "--out", tmp_path / "run"]
    ended = command("compare", *flags, *["--dry-run"] * dry_run)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith("Error: task 'capitals' cannot be loaded: AttributeError: Module '")
    assert "has no function 'datset'" in ended.err
    assert not (tmp_path / "run" / "seed").exists()
    (folder / "functions.py").write_text("import no_such_module_here\n", encoding="utf-8")
    with pytest.raises(HarnessError, match="No module named 'no_such_module_here'"):
        lm_tasks.check_functions(benchmarks.get("capitals"))


def test_a_missing_file_of_a_tasks_own_is_no_matter_of_the_hub(
    tmp_path: Path, own_task: Callable[..., Path]
) -> None:
    (own_task() / "functions.py").write_text(
        "def dataset(**metadata):\n    open('nowhere')\n\ndef process_results(doc, results): ...\n",
        encoding="utf-8",
    )
    run_context = context_at(tmp_path, methods=["vanilla"], utility_tasks="capitals")
    with pytest.raises(HarnessError, match=r"cannot be loaded: FileNotFoundError in functions\.py, line 2"):
        forecast.forecast(run_context, plan.cells(run_context.config)[:1], 1, budget=still())


def test_a_large_model_on_a_cpu_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "MOST_PARAMETERS", 1000)
    run_context = context_at(tmp_path, methods=["vanilla"])
    cells = plan.cells(run_context.config)
    lines = forecast.forecast(run_context, cells, 1).lines(run_context, cells)
    assert lines[0] == "Estimated time: not probed (0.0 B parameters on a CPU)"
    assert lines[1].startswith("Disk: about 0.0041 GB for checkpoints, up to")


@pytest.mark.parametrize(("known", "loaded"), [(True, 0), (False, 1)])
def test_a_model_that_is_known_to_be_too_large_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, loaded: int
) -> None:
    calls = []
    load = checkpoints.load_model
    monkeypatch.setattr(
        checkpoints, "load_model", lambda *given, **more: calls.append(1) or load(*given, **more)
    )
    monkeypatch.setattr(base_model, "MOST_PARAMETERS", 1000)
    if not known:
        monkeypatch.setattr(estimate, "architecture", lambda context_at: None)
    run_context = context_at(tmp_path, methods=["vanilla"])
    found = forecast.forecast(run_context, plan.cells(run_context.config), 1)
    assert found.why == "0.0 B parameters on a CPU"
    assert len(calls) == loaded


def test_a_model_that_one_device_does_not_hold_is_not_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(probe: Probe, *given: Any) -> list[Effort]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Probe, "measure", full)
    run_context = context_at(tmp_path, methods=["vanilla"])
    found = forecast.forecast(run_context, plan.cells(run_context.config), 1)
    assert found.time() == "Estimated time: not probed (one device alone does not hold it)"


def test_the_lines_read_well() -> None:
    found = Forecast(2, 300, Effort(trained=3_770_000, read=513_400, written=246_000), absent=("b", "a"))
    assert found.time() == (
        "Estimated time: about 5.0 min without a, b (not downloaded) (by a short probe, 2 jobs side by side)"
    )
    assert found.tokens() == "Estimated tokens: 3.77 M trained, 513 k read and 246 k written in answers"
    vllm = Forecast(1, 60, Effort(trained=1000), without_answers="vllm")
    assert "for training; how fast vllm answers is not probed" in vllm.time()
    assert vllm.tokens() == "Estimated tokens: 1 k trained"


def test_a_dry_run_prints_all_of_it(command: Callable[..., Any], small: Callable[..., list[str]]) -> None:
    ended = command("compare", "--methods", "vanilla", "--dry-run", *small(), "--out", "nowhere")
    assert ended.code == 0, ended.err
    for line in ("2 of 2 cells to do", "Memory: ", "Estimated time: ", "Estimated tokens: ", "Disk: about "):
        assert line in ended.out
    assert not Path("nowhere").exists()
    assert estimate.duration(89) == "89 s"
