"""Unscored documents and what a method says of its data reach the tables, each line once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness.leaderboard import remarks
from harness.run import plan, run_folder
from harness.storage.files import read_json, write_json_atomic


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_run.make(
        tmp_path / "run", methods=("seed", "vanilla", "safety-mixing"), judges=("keyword",), documents=4
    )


def notes(run: Path) -> list[str]:
    config = run_folder.stored_config(run)
    return remarks.notes(config, run, plan.cells(config))


def note(run: Path, method: str, **record: Any) -> None:
    path = run / f"gsm8k-mini/{method}/seed-42/training.json"
    write_json_atomic(path, read_json(path) | {"method": {"name": method, **record}})
    made_run.restamp(path)


def asked(run: Path, folder: str, task: str, **record: Any) -> None:
    """task.json of a cell, as the respond stage writes it."""
    place = run / folder / task
    marker = read_json(place / "respond.done.json")
    whole = {"source": "generated", "version": "2", "documents": 4, "sha256": "0", "missing": {}}
    write_json_atomic(place / "task.json", whole | record)
    marker["outputs"]["task.json"] = {"bytes": 0, "sha256": ""}
    write_json_atomic(place / "respond.done.json", marker)
    made_run.restamp(place / "task.json")


def test_nothing_to_say(run: Path) -> None:
    asked(run, "seed", "gsm8k-mini")
    note(run, "vanilla")
    assert notes(run) == []


def test_what_could_not_be_scored_is_said_once(run: Path) -> None:
    for folder in ("seed", "gsm8k-mini/vanilla/seed-42"):
        asked(run, folder, "gsm8k-mini", unscored={"no letter in its reference": 3})
    asked(run, "seed", "hexphi_raw-mini", unscored={"safety tasks are judged": 3})
    expected = ["Unscored of gsm8k-mini's 4 documents, and in no figure: 3 no letter in its reference."]
    assert notes(run) == expected


def test_what_a_method_says_of_its_data(run: Path) -> None:
    note(run, "safety-mixing", note="too few\nrows\x1b[31m")
    note(run, "vanilla", note=7)
    assert notes(run) == ["safety-mixing on gsm8k-mini: too few rows [31m"]
    note(run, "safety-mixing", note="x" * 5000)
    (line,) = notes(run)
    assert len(line) < 400


def test_the_tables_repeat_it(run: Path, command: Callable[..., Any]) -> None:
    note(run, "safety-mixing", note="too few rows")
    ended = command("score", run)
    assert ended.code == 0, ended.err
    for text in (ended.out, (run / "leaderboard.md").read_text(), (run / "leaderboard.json").read_text()):
        assert "safety-mixing on gsm8k-mini: too few rows" in text
