"""Guards the forecast of a run: it grows with the work and shrinks with the jobs, its tokens and bytes are
those of the real run, and the probe leaves the model as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import benchmarks, config, estimate, forecast, models, plan, responding
from harness.contracts import HarnessError
from harness.forecast import Forecast, Probe, Work
from harness.store import read_json
from harness.workshop import Workshop


def shop(out: Path, **overrides: Any) -> Workshop:
    return Workshop(config.load(None, {"train_tasks": "gsm8k-mini", **overrides}), out)


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes a second a token: beside it, nothing else counts."""
    monkeypatch.setattr(Probe, "_step_s_by_token", lambda probe, encoded: 1.0)
    monkeypatch.setattr(Probe, "_task", lambda probe, name, cell: Work())


@pytest.mark.usefixtures("known_speed")
def test_time_grows_with_the_work_and_shrinks_with_the_jobs(tmp_path: Path) -> None:
    length = {"training.max_examples": 64, "training.epochs": 2, "methods": ["vanilla", "ptst"]}
    workshop = shop(tmp_path, **length)
    todo = plan.cells(workshop.config)
    alone, two = (forecast.forecast(workshop, todo, jobs) for jobs in (1, 2))
    assert alone.seconds is not None
    assert two.seconds is not None
    assert alone.work.trained > 5_000  # 2 x 2 x 64 examples of some 70 tokens
    assert alone.seconds == pytest.approx(alone.work.trained, rel=0.05)
    assert two.seconds == pytest.approx(alone.seconds / 2, rel=0.05)
    three = forecast.forecast(workshop, todo, 3)  # two trainings do not go faster for a third worker
    assert three.seconds == pytest.approx(two.seconds, rel=0.05)
    assert forecast.forecast(workshop, todo[:1], 1).work.trained == 0
    longer = {"longer": {"method": "vanilla", "training": {"epochs": 4}}}
    more = shop(tmp_path, variants=longer, **length)
    added = forecast.forecast(more, plan.cells(more.config)[-1:], 1)
    assert added.work.trained == pytest.approx(alone.work.trained)


@pytest.mark.usefixtures("known_speed")
def test_what_a_method_prepares_with_is_charged(tmp_path: Path) -> None:
    workshop = shop(tmp_path, **{"training.max_examples": 64, "training.epochs": 1})
    found = {
        cell.method: forecast.forecast(workshop, [cell], 1)
        for cell in plan.cells(workshop.config)
        if cell.method in ("vanilla", "constrained-sft", "lookahead-virtual")
    }
    vanilla = found["vanilla"]
    assert found["constrained-sft"].work.trained == vanilla.work.trained
    extra = found["constrained-sft"].work.seconds - vanilla.work.seconds
    assert extra == pytest.approx(vanilla.work.trained / 3, rel=0.05)
    assert found["lookahead-virtual"].work.trained > 1.1 * vanilla.work.trained


def test_tokens_and_bytes_are_those_of_the_real_run(small_run: Path, tmp_path: Path) -> None:
    stored = config.RunConfig.model_validate(read_json(small_run / "run.json")["config"])
    workshop = Workshop(stored, tmp_path / "new")
    cells = plan.cells(stored)
    found = forecast.forecast(workshop, cells, 1)
    records = [read_json(path) for path in small_run.glob("*/*/*/training.json")]
    trained = sum(record["train_tokens"] for record in records)
    rows = [
        json.loads(line)
        for path in small_run.rglob("responses.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    written = sum(row["tokens"] for row in rows)
    assert found.work.trained == pytest.approx(trained, rel=0.05)
    assert found.work.written == pytest.approx(written, rel=0.25)
    kept = [p for p in small_run.rglob("*") if p.suffix in (".safetensors", ".jsonl")]
    assert found.work.disk == pytest.approx(sum(p.stat().st_size for p in kept), rel=0.25)
    assert found.absent == ()
    # what is done is not forecast
    done = forecast.forecast(Workshop(stored, small_run), cells, 1)
    assert (done.work.trained, done.work.written, done.work.disk) == (0, 0, 0)


def test_the_probe_leaves_the_seed_model_as_it_was(tmp_path: Path) -> None:
    workshop = shop(tmp_path, methods=["vanilla"], **{"training.max_examples": 8, "responses.limit": 4})
    workshop.import_libraries()
    probe = Probe(workshop)
    before = models.load_model(workshop.seed_folder, "float32", "cpu")
    work = probe.cell(plan.cells(workshop.config)[-1])
    assert work.seconds > 0
    assert work.read > work.written > 0
    same = zip(before.parameters(), probe.model.parameters(), strict=True)
    assert all((a == b).all() for a, b in same)


def test_an_answer_that_the_probe_cut_off_is_taken_to_go_on(tmp_path: Path) -> None:
    workshop = shop(tmp_path, methods=["vanilla"])
    workshop.import_libraries()
    probe = Probe(workshop)
    probe._generate = lambda prompts, limit, **sampling: [[7] * limit for _ in prompts]
    probe.engine.generate([[1, 2, 3]] * 2, 1000)
    rest = (1000 - forecast.LONGEST) / 2
    assert probe.made.written == 2 * (forecast.LONGEST + rest)
    assert probe.made.read == 6
    probe.made = Work()
    probe.engine.generate([[1, 2, 3]], 10)
    assert probe.made.written == 10


def test_tasks_that_are_not_here_are_left_out_and_named(tmp_path: Path) -> None:
    workshop = shop(tmp_path, methods=["vanilla"], utility_tasks="gsm8k", **{"training.max_examples": 8})
    found = forecast.forecast(workshop, plan.cells(workshop.config)[:1], 1)
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
        responding.check_functions(benchmarks.get("capitals"))


def test_a_missing_file_of_a_tasks_own_is_no_matter_of_the_hub(
    tmp_path: Path, own_task: Callable[..., Path]
) -> None:
    (own_task() / "functions.py").write_text(
        "def dataset(**metadata):\n    open('nowhere')\n\ndef process_results(doc, results): ...\n",
        encoding="utf-8",
    )
    workshop = shop(tmp_path, methods=["vanilla"], utility_tasks="capitals")
    with pytest.raises(HarnessError, match=r"cannot be loaded: FileNotFoundError in functions\.py, line 2"):
        forecast.forecast(workshop, plan.cells(workshop.config)[:1], 1)


def test_a_large_model_on_a_cpu_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "PROBE_PARAMETERS", 1000)
    workshop = shop(tmp_path, methods=["vanilla"])
    cells = plan.cells(workshop.config)
    lines = forecast.forecast(workshop, cells, 1).lines(workshop, cells)
    assert lines[0] == "Estimated time: not probed (0.0 B parameters on a CPU)"
    assert lines[1].startswith("Disk: about 0.0041 GB for checkpoints, up to")


@pytest.mark.parametrize(("known", "loaded"), [(True, 0), (False, 1)])
def test_a_model_that_is_known_to_be_too_large_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, loaded: int
) -> None:
    calls = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *given, **more: calls.append(1) or load(*given, **more))
    monkeypatch.setattr(forecast, "PROBE_PARAMETERS", 1000)
    if not known:
        monkeypatch.setattr(estimate, "architecture", lambda shop: None)
    found = forecast.forecast(shop(tmp_path, methods=["vanilla"]), [], 1)
    assert found.why == "0.0 B parameters on a CPU"
    assert len(calls) == loaded


def test_a_model_that_one_device_does_not_hold_is_not_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(probe: Probe, cell: plan.Cell) -> Work:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Probe, "cell", full)
    workshop = shop(tmp_path, methods=["vanilla"])
    found = forecast.forecast(workshop, plan.cells(workshop.config), 1)
    assert found.time() == "Estimated time: not probed (one device alone does not hold it)"


def test_the_lines_read_well() -> None:
    found = Forecast(2, 300, Work(trained=3_770_000, read=513_400, written=246_000), absent=("b", "a"))
    assert found.time() == (
        "Estimated time: about 5.0 min without a, b (not downloaded) (by a short probe, 2 jobs side by side)"
    )
    assert found.tokens() == "Estimated tokens: 3.77 M trained, 513 k read and 246 k written in answers"
    vllm = Forecast(1, 60, Work(trained=1000), without_answers="vllm")
    assert "for training; how fast vllm answers is not probed" in vllm.time()
    assert vllm.tokens() == "Estimated tokens: 1 k trained"


def test_a_dry_run_prints_all_of_it(command: Callable[..., Any], small: Callable[..., list[str]]) -> None:
    ended = command("compare", "--methods", "vanilla", "--dry-run", *small(), "--out", "nowhere")
    assert ended.code == 0, ended.err
    for line in ("2 of 2 cells to do", "Memory: ", "Estimated time: ", "Estimated tokens: ", "Disk: about "):
        assert line in ended.out
    assert not Path("nowhere").exists()
    assert estimate.duration(89) == "89 s"
