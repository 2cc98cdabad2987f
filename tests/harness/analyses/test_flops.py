"""What training cost, from made-up run folders: by hand, with gaps, as JSON, at its narrowest."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import made_run
import pytest
from rich.cells import cell_len
from rich.console import Console

from harness import config
from harness.analyses import flops
from harness.contracts import HarnessError
from harness.run import run_folder
from harness.storage.files import write_json_atomic

METHODS = ("vanilla", "sdft", "lookahead-true")
TASKS = ("gsm8k-mini", "samsum-mini")


def training(flops: float, **more: Any) -> dict[str, Any]:
    """A training.json of ``flops`` 1e9 FLOPs."""
    return {
        "train_flops": flops * 1e9,
        "preparation_flops": 0,
        "train_tokens": 1_234_567,
        "answer_tokens": 987,
        "padding_tokens": 12,
        "train_seconds": 30.5,
        "preparation_seconds": 0.5,
        "tokens_per_second": 41_000.0,
        "mfu": 0.4567,
        "peak_memory_bytes": 12_340_000_000,
        "device": "NVIDIA H200",
        "processes": 2,
        "peak_tflops": 989.4,
        **more,
    }


Make = Callable[..., Path]
Cells = Mapping[tuple[str, str, int], dict[str, Any]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make({(train task, method, seed): record})`` -> a run folder with these trainings done."""

    def run(cells: Cells, failures: Mapping[str, str] | None = None, **changes: Any) -> Path:
        settings = {"methods": ["seed", *METHODS], "train_tasks": list(TASKS), **changes}
        stored = config.load(None, settings).model_dump(mode="json")
        write_json_atomic(tmp_path / "run.json", {"config": stored, "failures": dict(failures or {})})
        for (task, method, seed), record in cells.items():
            folder = tmp_path / task / method / f"seed-{seed}"
            made_run.stage(folder, "train", {}, {"training.json": record})
        return tmp_path

    return run


WHOLE: dict[tuple[str, str, int], dict[str, Any]] = {
    ("gsm8k-mini", "vanilla", 42): training(100),
    ("gsm8k-mini", "sdft", 42): training(150, preparation_flops=60e9),
    ("gsm8k-mini", "lookahead-true", 42): training(102),
    ("samsum-mini", "vanilla", 42): training(10),
    ("samsum-mini", "sdft", 42): training(25),
    ("samsum-mini", "lookahead-true", 42): training(10.4),
}


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["train_task"], row["method"]): row for row in flops.flops(folder)["rows"]}


def shown(folder: Path, width: int = 100, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    flops.show_flops(flops.flops(folder), Console(file=file, width=width))
    file.seek(0)
    return file.read()


# --- trainings side by side ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "hardware", "jobs", "together"),
    [
        ({"jobs": 4}, {}, None, True),
        ({"jobs": 1}, {}, None, False),
        ({"training": {"device": "cuda"}}, {"cores": 8}, None, False),  # a GPU's run: one at a time
        ({"threads": 2, "training": {"device": "cpu"}}, {"cores": 8}, None, True),
        ({"threads": 8, "training": {"device": "cpu"}}, {"cores": 8}, None, False),
        ({"threads": 1, "training": {"device": "cpu"}}, {}, None, False),  # cores not known
        ({"threads": 1, "training": {"device": "cpu"}}, {"cores": "many"}, None, False),
        ({"jobs": 4}, {}, 1, False),  # what the training recorded goes before the settings
        ({"jobs": 1}, {}, 3, True),
        ({"executor": "ray"}, {}, 1, True),
        ({"executor": "ray", "jobs": 1}, {}, 1, False),
    ],
)
def test_seconds_are_left_out_where_trainings_ran_side_by_side(
    make: Make, changes: dict[str, Any], hardware: dict[str, Any], jobs: int | None, together: bool
) -> None:
    cells = {key: {**record, **({"jobs": jobs} if jobs else {})} for key, record in WHOLE.items()}
    out = make(cells, **changes)
    stored = json.loads((out / "run.json").read_text())
    write_json_atomic(out / "run.json", {**stored, "hardware": hardware})
    found = flops.flops(out)
    assert found["side_by_side"] is together
    for row in found["rows"]:
        assert all((row[name] is None) is together for name in flops.SECONDS)
        assert row["train_flops"] is not None
        assert row["train_tokens"] is not None
    assert (flops.NO_SECONDS in found["notes"]) is together
    assert (flops.TIMED in found["notes"]) is not together
    text = shown(out, width=120)
    assert ("tok/s" in text) is not together
    assert ("Seconds are left out" in text) is together


def test_one_training_alone_has_its_seconds(make: Make) -> None:
    one = {("gsm8k-mini", "vanilla", 42): training(100, jobs=4)}
    assert not flops.side_by_side(make(one, methods=["seed", "vanilla"], train_tasks=["gsm8k-mini"]))


# --- figures ---------------------------------------------------------------------------------------


def test_each_method_against_vanilla_of_its_train_task(make: Make) -> None:
    rows = rows_of(make(WHOLE))
    ratios = {key: row["relative_flops"] for key, row in rows.items()}
    assert ratios == pytest.approx(
        {
            ("gsm8k-mini", "vanilla"): 1.0,
            ("gsm8k-mini", "sdft"): 1.5,
            ("gsm8k-mini", "lookahead-true"): 1.02,
            ("samsum-mini", "vanilla"): 1.0,
            ("samsum-mini", "sdft"): 2.5,
            ("samsum-mini", "lookahead-true"): 1.04,
        }
    )
    assert (rows["gsm8k-mini", "sdft"]["preparation_share"], rows["gsm8k-mini", "vanilla"]["missing"]) == (
        0.4,
        [],
    )
    assert {name: rows["gsm8k-mini", "vanilla"][name] for name in flops.FIGURES} == {
        name: training(100)[name] for name in flops.FIGURES
    }


def test_the_average_is_over_train_tasks_as_in_the_paper(make: Make) -> None:
    found = {row["method"]: row for row in flops.flops(make(WHOLE))["average"]}
    assert found["sdft"]["average"] == pytest.approx(2.0)  # of 1.5 and 2.5, not (150 + 25) / (100 + 10)
    assert found["sdft"]["relative_flops"] == {"gsm8k-mini": 1.5, "samsum-mini": 2.5}


def test_seeds_are_averaged_and_compared_with_vanilla_of_the_same_seeds(make: Make) -> None:
    cells = {
        ("gsm8k-mini", "vanilla", 1): training(100, train_seconds=10, mfu=None),
        ("gsm8k-mini", "vanilla", 2): training(300, train_seconds=30),
        ("gsm8k-mini", "sdft", 2): training(330),
    }
    rows = rows_of(make(cells, train_tasks=["gsm8k-mini"], seeds=[1, 2]))
    vanilla, sdft = rows["gsm8k-mini", "vanilla"], rows["gsm8k-mini", "sdft"]
    assert (vanilla["train_flops"], vanilla["train_seconds"], vanilla["seeds"]) == (200e9, 20, [1, 2])
    assert vanilla["mfu"] is None  # half a mean would say something else
    assert sdft["relative_flops"] == pytest.approx(1.1)  # not 330 / 200
    assert sdft["missing"] == [{"seed": 1, "reason": "not trained yet"}]


def test_what_is_missing_is_named_with_its_reason(make: Make) -> None:
    cells = {key: record for key, record in WHOLE.items() if key[1] != "sdft"}
    cells["samsum-mini", "lookahead-true", 42] = {"steps": 3}
    folder = make(cells, failures={"gsm8k-mini/sdft/seed-42": "out of memory"})
    torn = folder / "samsum-mini/vanilla/seed-42/training.json"
    torn.write_text("{")
    made_run.restamp(torn)
    rows = rows_of(folder)
    assert len(rows) == 6
    reasons = {key: row["missing"][0]["reason"] for key, row in rows.items() if row["missing"]}
    assert reasons["gsm8k-mini", "sdft"] == "failed: out of memory"
    assert reasons["samsum-mini", "sdft"] == "not trained yet"
    assert reasons["samsum-mini", "lookahead-true"].endswith("training.json has no train_flops")
    assert "cannot be read as JSON" in reasons["samsum-mini", "vanilla"]
    assert rows["samsum-mini", "sdft"]["relative_flops"] is None
    average = {row["method"]: row["average"] for row in flops.flops(folder)["average"]}
    assert average == {"vanilla": None, "sdft": None, "lookahead-true": None}
    text = shown(folder)
    assert "sdft seed 42 is missing: failed: out of memory" in text
    assert "lookahead-true seed 42 is missing: " in text


def test_a_record_without_its_marker_is_not_believed(make: Make) -> None:
    """Training anew takes the marker away first; the old record stays until the new one is there."""
    folder = make(WHOLE)
    (folder / "gsm8k-mini/sdft/seed-42/train.done.json").unlink()
    assert rows_of(folder)["gsm8k-mini", "sdft"]["missing"] == [{"seed": 42, "reason": "not trained yet"}]


def test_without_vanilla_there_are_figures_but_no_ratio(make: Make) -> None:
    cells = {("gsm8k-mini", "sdft", 42): training(150)}
    row = rows_of(make(cells, methods=["sdft"], train_tasks=["gsm8k-mini"]))["gsm8k-mini", "sdft"]
    assert (row["train_flops"], row["relative_flops"]) == (150e9, None)


def test_a_folder_that_has_nothing_to_show_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="not a run folder"):
        flops.flops(tmp_path / "nowhere")
    with pytest.raises(HarnessError, match="trains with no method"):
        flops.flops(make({}, methods=["seed"]))


# --- terminal and JSON -----------------------------------------------------------------------------


def lines_of(text: str, start: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(start)]


def test_the_tables_say_what_the_record_says(make: Make) -> None:
    text = shown(make(WHOLE))
    relative, gsm8k, samsum = lines_of(text, "sdft")
    assert relative == ["sdft", "+50.00", "%", "+150.00", "%", "+100.00", "%"]
    figures = ["1.235M", "987", "30.5", "41,000", "45.7%", "12.34"]
    assert gsm8k == ["sdft", "1.5e+11", "+50.00", "%", "40.0%", *figures]
    assert samsum == ["sdft", "2.5e+10", "+150.00", "%", "0.0%", *figures]
    assert "Device: 2 x NVIDIA H200, peak 989.4 TFLOP/s" in text
    assert "MFU = (FLOPs - preparation) / (seconds x devices x peak)" in text


def test_one_train_task_needs_no_table_of_averages(make: Make) -> None:
    text = shown(make(WHOLE, train_tasks=["gsm8k-mini"]))
    assert "average" not in text
    assert len(lines_of(text, "sdft")) == 1


def test_an_unknown_peak_is_said(make: Make) -> None:
    cpu = {key: {**r, "mfu": None, "peak_tflops": None, "device": "cpu"} for key, r in WHOLE.items()}
    text = shown(make(cpu))
    assert "2 x cpu, peak not known, so no MFU" in text
    assert lines_of(text, "vanilla")[1][-2] == "-"


@pytest.mark.parametrize("width", [40, 100])
def test_it_fits_a_hundred_columns_and_loses_no_digit_on_fewer(make: Make, width: int) -> None:
    large = training(1, train_flops=1.23e22, train_tokens=123_456_789, answer_tokens=98_765_432)
    large |= {"train_seconds": 123_456.7, "tokens_per_second": 123_456.7}
    large["peak_memory_bytes"] = 139_210_000_000
    text = shown(make(dict.fromkeys(WHOLE, large)), width)
    assert all(cell_len(line) <= 100 for line in text.splitlines())
    figures = [
        "1.23e+22",
        "+0.00",
        "%",
        "0.0%",
        "123.5M",
        "98.77M",
        "123,456.7",
        "123,457",
        "45.7%",
        "139.21",
    ]
    assert lines_of(text, "lookahead-true")[1] == ["lookahead-true", *figures]


def test_no_escape_reaches_the_terminal_and_ascii_ones_are_served(make: Make) -> None:
    folder = make({}, failures={"gsm8k-mini/sdft/seed-42": "a\x1b[2Jb … c"}, train_tasks=["gsm8k-mini"])
    assert "failed: a [2Jb … c" in shown(folder)
    assert "failed: a [2Jb ? c" in shown(folder, encoding="ascii")


def test_the_command_prints_the_same_as_json_and_writes_nothing(
    make: Make, command: Callable[..., Any], snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    folder = make(WHOLE)
    before = snapshot(folder)
    ended = command("analyze", "flops", folder, "--json")
    assert (ended.code, json.loads(ended.out)) == (0, flops.flops(folder))
    assert "trained on samsum-mini" in command("analyze", "flops", folder).out
    assert snapshot(folder) == before
    ended = command("analyze", "flops", folder / "nowhere")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert not (folder / "nowhere").exists()


def test_the_command_waits_for_no_other_on_the_run(make: Make, command: Callable[..., Any]) -> None:
    folder = make(WHOLE)
    with run_folder.lock(folder):
        ended = command("analyze", "flops", folder)
    assert (ended.code, ended.out) == (1, "")
    assert "another harness command is at work on this run" in ended.err
