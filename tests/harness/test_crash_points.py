"""Guards that a run survives a kill -9 at every moment at which its files change: each point that a whole run
passes is died at once, and the same command ends in the values of a run that no one has killed.

The points are those of harness/crash.py; that none is missing is read off the source.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, completion, finish_batch, ok, running, verdict
from forked import finish

from harness import crash

ROOT = Path(crash.__file__).parents[1]
SMALL = {
    "training.max_examples": 6,
    "training.epochs": 2,
    "training.batch_size": 2,
    "training.micro_batch_size": 2,
    "training.save_steps": 2,
    "responses.limit": 1,
    "eval_every_epoch": "true",
}


# --- every rename and removal has its point --------------------------------------------------------

MOVES = {"os.replace", "os.rename", "shutil.move", "shutil.rmtree"}
# Outside of a run's walk.
ELSEWHERE = {
    "harness/store.py": {"write_text_atomic": "a failed write's own temporary file"},
    "harness/job.py": {"launch": "messages of processes that have ended"},
    "harness/workers.py": {"_attempt": "a log for people"},
    "harness/commands/folder.py": {"clean": "asked for; what is half removed is not done"},
    "harness/mini/build.py": {"build": "the maker of the packaged model"},
    "harness/tuning.py": {"_link": "a file that a marker vouches for, which is linked last"},
}


def moves(tree: ast.Module) -> Iterator[tuple[str, ast.stmt, ast.stmt | None]]:
    """(function, statement that moves or removes, the statement after it)."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            for field in ("body", "orelse", "finalbody", "handlers"):
                statements = getattr(node, field, None) or []
                if not isinstance(statements, list):
                    continue
                for statement, after in pairwise([*statements, None]):
                    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                        called = ast.unparse(statement.value.func)
                        if called in MOVES or called.endswith((".unlink", ".rename", ".rmdir")):
                            yield function.name, statement, after


def test_every_rename_and_removal_stands_before_a_point() -> None:
    bare, named, excused = [], set(), set()
    for file in sorted(path for part in ("harness", "backends", "judges", "tasks") for path in
                       (ROOT / part).rglob("*.py")):  # fmt: skip
        where = str(file.relative_to(ROOT))
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash.point":
                named.add(ast.literal_eval(node.args[0]))
        for function, statement, after in moves(tree):
            if ast.unparse(statement).startswith("shutil.rmtree(scratch"):
                continue  # no one believes in what lies there
            if function in ELSEWHERE.get(where, {}):
                excused.add((where, function))
            elif after is None or not ast.unparse(after).startswith("crash.point("):
                bare.append(f"{where}:{statement.lineno} in {function}")
    assert bare == []
    assert named == {*crash.POINTS}
    assert excused == {(where, function) for where, functions in ELSEWHERE.items() for function in functions}


def test_an_unknown_point_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(crash.AT, "stage.mvoed:2")
    with pytest.raises(ValueError, match=r"no point is called 'stage\.mvoed'"):
        crash.point("stage.moved", tmp_path)


# --- to die at every one of them -------------------------------------------------------------------


def record(log: Path) -> None:
    """Let this process write down the moments that it passes, those in scratch folders left out: nothing
    there is believed, and that they are left behind is a moment of its own."""

    def passed(name: str, path: Path) -> None:
        if ".partial" not in str(path.parent):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{name} {path.name}\n")

    crash.point = passed


class Runs:
    """One command, again and again: each time on a fresh copy of ``base``, with a cache of its own."""

    def __init__(self, folder: Path, command: Callable[[Path], list[str]], base: Path | None = None):
        self.folder, self.command, self.base = folder, command, base

    def start(self, name: str) -> Path:
        out = self.folder / name / "run"
        if self.base:
            shutil.copytree(self.base, out)
        return out

    def end(self, out: Path, at: str = "", **options: Any) -> int:
        environment = {"HARNESS_CACHE": str(out.parent / "cache"), crash.AT: at}
        return finish(self.command(out), out.parent / "log.txt", environment=environment, **options)

    def moments(self, out: Path) -> list[str]:
        """All that a whole run passes, each once, and what it shows is in order."""
        trace = self.folder / "moments.txt"
        assert self.end(out, before=record, given=(trace,)) == 0, self.shown(out)
        return list(dict.fromkeys(trace.read_text(encoding="utf-8").splitlines()))

    def shown(self, out: Path) -> str:
        return (out.parent / "log.txt").read_text(encoding="utf-8")


def content(out: Path) -> dict[str, Any]:
    """What a run folder holds, but for what is measured: times, and whether a cache knew it."""
    measured = (".svg", "training.json", "train.done.json", "run.json", "leaderboard.done.json", ".html")
    return {
        str(path.relative_to(out)): None if path.name.endswith((*measured, ".lock")) or
        path.name.startswith("leaderboard.") else path.read_bytes()
        for path in out.rglob("*") if path.is_file()
    }  # fmt: skip


def died_at_each(runs: Runs, moments: Sequence[str], whole: Path, values: Callable[[Path], Any]) -> None:
    for number, moment in enumerate(moments):
        out = runs.start(str(number))
        assert runs.end(out, moment) == -9, (moment, runs.shown(out))
        assert runs.end(out) == 0, (moment, runs.shown(out))
        assert content(out) == content(whole), moment
        assert values(out) == values(whole), moment
        shutil.rmtree(out.parent)


@pytest.fixture
def flags(small: Callable[..., list[str]]) -> list[str]:
    return small(**SMALL)


WHOLE = 2  # in how many tests the whole walk's moments are divided


@pytest.mark.parametrize("part", range(WHOLE))
def test_a_whole_comparison_is_died_in_at_every_point(
    tmp_path: Path, flags: list[str], values: Callable[[Path], Any], part: int
) -> None:
    runs = Runs(tmp_path, lambda out: ["compare", "--methods", "sdft", "--out", str(out), *flags])
    whole = runs.start("whole")
    moments = runs.moments(whole)
    for one in (
        "stage.worked train.done.json",
        "stage.moved respond.done.json",
        "stage.collected judge-mini-exact.done.json",
        "stage.collected leaderboard.done.json",
        "journal.row .generated.journal.jsonl",
        "journal.row .respond.journal.jsonl",
        "state.swept checkpoint-2",
        "epoch.saved epoch-1",
        "training.collected epoch-1",
        "text.replaced run.json",
        "text.written report.html",
    ):
        assert one in moments
    died_at_each(runs, moments[part::WHOLE], whole, values)
