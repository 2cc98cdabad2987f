"""Guards that damage to any file of a finished run is found, that the stage it belongs to is done again and
no other, and that the run ends in the values it had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness.contracts import HarnessError
from harness.generation import stage as generation
from harness.judging import stage as judging
from harness.judging import verdict_files
from harness.judging.session import JudgeSession
from harness.leaderboard import publish
from harness.run import plan, run_folder
from harness.run.context import RunContext
from harness.storage.files import Stage, files_below, read_json
from harness.storage.records import DamagedError
from harness.training import stage as training

Run = Callable[..., Any]
CELLS = (Path("seed"), Path("gsm8k-mini/vanilla/seed-42"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "edited": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff\x00\xfe nonsense"),
    "deleted": Path.unlink,
}


def stages(run: Path) -> dict[Path, Stage]:
    """Every stage of the two cells, by marker."""
    config = run_folder.stored_config(run)
    ctx = RunContext(config, run)
    session = JudgeSession(ctx)
    found = []
    for cell in plan.cells(config):
        if cell.folder not in CELLS:
            continue
        if cell.kind == "trained":
            found.append(training.train_stage(ctx, cell))
        for task in cell.tasks:
            found.append(generation.respond_stage(ctx, cell, task))
        for task in cell.safety_tasks:
            found.append(judging.judge_stage(session, cell, task, "mini-exact"))
    return {stage.marker.relative_to(run): stage for stage in found}


def owned(run: Path, stage: Stage) -> list[Path]:
    """A stage's files: its marker, and all that it has a record of."""
    return [stage.marker, *(stage.folder / name for name in read_json(stage.marker)["outputs"])]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_in_the_stage_it_belongs_to(run_copy: Path, kind: str) -> None:
    every = stages(run_copy)
    assert len(every) == 11
    seen = 0
    for stage in every.values():
        for path in owned(run_copy, stage):
            content = path.read_bytes()
            DAMAGE[kind](path)
            assert not stage.done(), path
            assert [other for other in every.values() if not other.done()] == [stage], path
            path.write_bytes(content)
            assert stage.done()
            seen += 1
    held = [path for cell in CELLS for path in files_below(run_copy / cell)]
    assert seen == len(held) - len(CELLS)  # all there are, but for each cell's scores.json


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))])
def test_the_same_command_mends_what_is_damaged(
    number: int, small_run: Path, run_copy: Path, command: Run, small: Run, values: Run
) -> None:
    """Two files of every stage of one cell at once, another kind of damage to each, and two of the tables: in
    five rounds each file once."""
    kinds = [*DAMAGE.values()]
    hurt = []
    cell = CELLS[1]
    for place, (marker, stage) in enumerate(stages(run_copy).items()):
        if marker.is_relative_to(cell):
            files = owned(run_copy, stage)
            for path in dict.fromkeys(files[at % len(files)] for at in (number, number + 5)):
                kinds[(number + place) % len(kinds)](path)
                hurt.append(path)
    tables = [*publish.FILES, "leaderboard.done.json", "seed/scores.json", str(cell / "scores.json")]
    for name in dict.fromkeys(tables[at % len(tables)] for at in (number, number + 5)):
        kinds[number % len(kinds)](run_copy / name)
        hurt.append(run_copy / name)
    before = {path: path.stat().st_mtime_ns for path in files_below(run_copy) if path not in hurt}
    ended = command("compare", "--methods", "all", "--out", run_copy, *small())
    assert ended.code == 0, ended.err
    assert values(run_copy) == values(small_run)
    measured = ("training.json", "done.json", "run.json", ".html", "error.log")
    for path in files_below(small_run):
        if not path.name.endswith(measured) and not path.name.startswith("leaderboard."):
            assert (run_copy / path.relative_to(small_run)).read_bytes() == path.read_bytes(), path
    for path, written in before.items():
        inside = path.relative_to(run_copy)
        if len(inside.parts) > 1 and not inside.is_relative_to(cell) and path.name != "scores.json":
            assert path.stat().st_mtime_ns == written, path  # no other cell was touched
    again = command("compare", "--methods", "all", "--out", run_copy, *small())
    assert "Nothing to do" in again.out


@pytest.mark.parametrize("kind", ["truncated", "emptied", "garbage", "deleted"])
def test_a_damaged_record_is_one_line_and_nothing_is_lost(
    run_copy: Path, command: Run, small: Run, kind: str, snapshot: Run
) -> None:
    DAMAGE[kind](run_copy / "run.json")
    before = snapshot(run_copy)
    for arguments in (
        ["compare", "--methods", "all", "--out", run_copy, *small()],
        ["score", run_copy],
        ["leaderboard", run_copy],
        ["report", run_copy],
        ["clean", run_copy, "--yes"],
        ["judge", run_copy, "--judge", "keyword"],
        ["analyze", "categories", run_copy],
        ["figures", run_copy],
        ["gate", run_copy, "--min-rsr", "50"],
        ["card", run_copy, "vanilla"],
    ):
        ended = command(*arguments)
        assert (ended.code, ended.err.count("\n")) == (1, 1), (arguments, ended)
        assert str(run_copy) in ended.err, (arguments, ended)
        assert "traceback" not in ended.err, (arguments, ended)
    assert snapshot(run_copy) == before


def test_answers_that_are_gone_do_not_judge(run_copy: Path, command: Run) -> None:
    """``harness judge`` has no model at hand: it says which file to mend."""
    path = run_copy / "seed" / "hexphi_raw-mini" / "responses.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    ended = command("judge", run_copy, "--judge", "keyword")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert str(path) in ended.err
    with pytest.raises(DamagedError, match="is not as its marker has it"):
        verdict_files.read_exchanges(path.parent)
    made_run.restamp(path)  # nor where the marker agrees
    with pytest.raises(HarnessError, match="not valid JSON"):
        verdict_files.read_exchanges(path.parent)
