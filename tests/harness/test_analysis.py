"""What a training cost, from a run's files: relative to vanilla, over seeds, nothing dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import analysis
from harness.store import read_json, write_json_atomic


def test_costs_are_those_of_the_files(small_run: Path) -> None:
    rows = {row["method"]: row for row in analysis.flops(small_run)}
    assert next(iter(rows)) == "vanilla"
    assert len(rows) == 8
    base = read_json(small_run / "gsm8k-mini/vanilla/seed-42/training.json")
    assert rows["vanilla"]["relative_flops"] == 1.0
    assert rows["ptst"]["relative_flops"] == 1.0  # trains as vanilla does
    for method, row in rows.items():
        record = read_json(small_run / f"gsm8k-mini/{method}/seed-42/training.json")
        for name in analysis.MEASURED:
            assert row[name] == record[name]
        assert row["relative_flops"] == pytest.approx(record["train_flops"] / base["train_flops"])
    one_epoch = rows["constrained-sft"]["relative_flops"]
    assert 1.2 < one_epoch < 1.4  # a forward pass beside forward and backward
    assert rows["lookahead-true"]["relative_flops"] > 1
    assert rows["sdft"]["preparation_flops"] > 0


def test_seeds_are_averaged_and_missing_ones_named(run_copy: Path, command: Callable[..., Any]) -> None:
    record = read_json(run_copy / "run.json")
    record["config"]["seeds"] = [42, 7]
    write_json_atomic(run_copy / "run.json", record)
    other = run_copy / "gsm8k-mini/vanilla/seed-7/training.json"
    mine = read_json(run_copy / "gsm8k-mini/vanilla/seed-42/training.json")
    write_json_atomic(other, {**mine, "train_seconds": mine["train_seconds"] + 2})
    rows = {row["method"]: row for row in analysis.flops(run_copy)}
    assert rows["vanilla"]["train_seconds"] == pytest.approx(mine["train_seconds"] + 1)
    assert (rows["vanilla"]["missing"], rows["lisa"]["missing"]) == (0, 1)
    ended = command("analyze", "flops", run_copy)
    assert ended.code == 0
    assert "lisa (1 missing)" in ended.out
    assert all(len(line) <= 100 for line in ended.out.splitlines())


def test_json_and_errors(run_copy: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    ended = command("analyze", "flops", run_copy, "--json")
    assert {row["method"] for row in json.loads(ended.out)} >= {"vanilla", "lisa"}
    ended = command("analyze", "flops", tmp_path)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "no run.json; not a run folder" in ended.err
