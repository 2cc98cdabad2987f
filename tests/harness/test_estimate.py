"""Guards the plan as it is shown before anything is spent, in 80 and in 100 columns, and its forecast."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import config, estimate, judging, models, plan, registry
from harness.workshop import Workshop


def shop(out: Path, **overrides: Any) -> Workshop:
    return Workshop(config.load(None, overrides), out)


def shown(workshop: Workshop, width: int, done: int = 0) -> list[str]:
    file = io.StringIO()
    cells = plan.cells(workshop.config)
    estimate.show(judging.Bench(workshop), cells, cells[done:], Console(file=file, width=width))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
def test_the_plan_fits_and_names_every_method_and_task(tmp_path: Path, width: int) -> None:
    workshop = shop(tmp_path / "run", **{"training.max_examples": 40, "seeds": [1, 2], "methods": ["all"]})
    lines = shown(workshop, width, done=1)
    assert all(len(line) <= width for line in lines[:-1])
    text = " ".join(" ".join(line.strip("│┃ ") for line in lines).split())
    for name in (*plan.methods(workshop.config), "gsm8k-mini", "samsum-mini", "hexphi_raw-mini", "x 2 seeds"):
        assert name.split("-")[0] in text
    assert "40 x 3 epochs" in text
    assert f"{len(plan.cells(workshop.config)) - 1} of {len(plan.cells(workshop.config))} cells to do" in text


def test_one_epoch_is_no_epochs(tmp_path: Path) -> None:
    text = "\n".join(shown(shop(tmp_path, **{"training.epochs": 1, "training.max_examples": 8}), 100))
    assert "8 x 1 epoch " in text


def test_variants_of_other_epochs_are_in_the_plan(tmp_path: Path) -> None:
    variants = {"long": {"method": "sdft", "training": {"epochs": 5}}}
    budget = {"training.epochs": 2, "training.max_examples": 8}
    text = "\n".join(shown(shop(tmp_path, methods=["vanilla"], variants=variants, **budget), 100))
    assert "8 x 2 to 5 epochs" in text
    assert "vanilla, long" in text


def test_the_memory_is_that_of_the_row_that_takes_most(tmp_path: Path) -> None:
    def gigabytes(**variants: Any) -> str | None:
        options = {"training.max_examples": 8, "training.tuning": "lora"}
        workshop = shop(tmp_path, methods=["vanilla"], variants=variants, **options)
        return estimate.expected_memory(workshop, plan.cells(workshop.config))

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


def test_the_forecast_grows_with_the_work_and_shrinks_with_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "measure", lambda *_: estimate.Probe(micro_batch_s=2.0, decode_step_s=0.0))
    size = {"training.batch_size": 32, "training.micro_batch_size": 32}
    length = {"training.max_examples": 320, "training.epochs": 2}
    workshop = shop(tmp_path, methods=["vanilla"], **size, **length)
    todo = plan.cells(workshop.config)
    assert estimate.forecast(workshop, todo, 1) == "Estimated time: about 80 s (by a short probe)"
    assert "about 40 s (by a short probe, 2 jobs side by side)" in estimate.forecast(workshop, todo, 2)
    assert estimate.forecast(workshop, todo[:1], 1).startswith("Estimated time: about 0 s")
    longer = {"longer": {"method": "vanilla", "training": {"epochs": 4}}}
    workshop = shop(tmp_path, methods=["vanilla"], variants=longer, **size, **length)
    assert "about 2.0 min" not in estimate.forecast(workshop, todo, 1)
    assert estimate.forecast(workshop, plan.cells(workshop.config)[2:3], 1).startswith(
        "Estimated time: about 80 s"
    )


def test_the_probe_measures_the_real_model(tmp_path: Path) -> None:
    workshop = shop(tmp_path, **{"training.max_examples": 8, "responses.batch_size": 4})
    workshop.import_libraries()
    model = models.load_model(workshop.seed_folder, "float32", "cpu")
    before = [parameter.clone() for parameter in model.parameters()]
    examples = workshop.examples(registry.load("train task", "gsm8k-mini"))
    probe = estimate.measure(workshop, model, examples)
    assert probe.micro_batch_s > 0
    assert probe.decode_step_s > 0
    assert all((a == b).all() for a, b in zip(before, model.parameters(), strict=True))


def test_a_large_model_on_a_cpu_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "PROBE_PARAMETERS", 1000)
    workshop = shop(tmp_path, methods=["vanilla"])
    assert "not probed (0.0 B parameters on a CPU)" in estimate.forecast(
        workshop, plan.cells(workshop.config), 1
    )
