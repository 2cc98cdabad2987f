"""Guards that a run survives a kill -9 at every moment at which its files change: each point that a whole run
passes is died at once, and the same command ends in the values of a run that no one has killed.

The points are those of harness/storage/crash.py; that none is missing is read off the source.
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
from fault_server import FaultServer, completion, finish_batch, running, verdict
from forked import finish

from harness.figures import charts
from harness.pipeline import forecast
from harness.plugins import registry
from harness.storage import crash
from harness.storage.files import read_jsonl

ROOT = Path(crash.__file__).parents[2]
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

MOVES = {"os.replace", "os.rename", "shutil.move", "shutil.rmtree", "remove", "files.remove"}
# Outside of a run's walk.
ELSEWHERE = {
    "harness/storage/files.py": {
        "_write": "a failed write's own temporary file",
        "_unlinked": "a lock that is a link, which holds nothing",
        "fresh": "a temporary file, picture or log, which is written now",
        "remove": "where it is called there is a point",
    },
    "harness/training/job.py": {"launch": "messages of processes that have ended"},
    "harness/pipeline/stages.py": {"attempt": "a log for people"},
    "harness/pipeline/ray_cluster.py": {"run_cells": "a file by which a node sees the folder"},
    "harness/pipeline/cluster_storage.py": {"_kept": "a copy of what the recipe names, whole or not there"},
    "harness/pipeline/cleaning.py": {
        "remove": "asked for; what is half removed is not done",
        "remove_empty": "asked for; nothing of the run is left",
    },
    "harness/mini/build.py": {"build": "the maker of the packaged model"},
    "harness/studies/search.py": {"_link": "a file that a marker vouches for, which is linked last"},
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
            if ast.unparse(statement).startswith(("shutil.rmtree(scratch", "remove(scratch")):
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


Run = Callable[..., Any]


class Walk:
    """One command. A whole run of it leaves, at the first passing of each moment, what a kill -9 there would
    leave: the folder and the cache as they lie on the disk."""

    def __init__(self, folder: Path, command: Run, arguments: Callable[[Path], list[str]],
                 monkeypatch: pytest.MonkeyPatch, base: Path | None = None):  # fmt: skip
        self.folder, self.command, self.arguments, self.monkeypatch = folder, command, arguments, monkeypatch
        self.whole = folder / "whole" / "run"
        if base:
            shutil.copytree(base, self.whole)
        self.moments: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(crash, "point", self._passed)
            self.finish(self.whole)

    def _passed(self, name: str, path: Path) -> None:
        """What lies in a scratch folder is not believed; that it is left behind is a moment of its own."""
        moment = f"{name} {path.name}"
        if ".partial" not in str(path.parent) and moment not in self.moments:
            shutil.copytree(self.whole.parent, self.folder / str(len(self.moments)))
            self.moments.append(moment)

    def finish(self, out: Path) -> str:
        self.monkeypatch.setenv("HARNESS_CACHE", str(out.parent / "cache"))
        ended = self.command(*self.arguments(out))
        assert ended.code == 0, ended.err
        return str(ended.out)

    def left_at(self, moment: str) -> Path:
        return self.folder / str(self.moments.index(moment)) / "run"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a forecast, nor a look for foreign packages: together they would take most of the time."""
    monkeypatch.setattr(charts, "save", lambda figure, path, *about: path.write_bytes(b""))
    for drawn in ("images", "openings"):
        monkeypatch.setattr(f"harness.report.pictures.{drawn}", lambda *about: [])
    monkeypatch.setattr(registry, "foreign_packages", list)
    monkeypatch.setattr(forecast, "forecast", lambda *about: forecast.Forecast(1))


def content(out: Path) -> dict[str, bytes | None]:
    """What a run folder holds; of files with measured seconds or bytes in them, that they are there."""
    measured = ("training.json", "train.done.json", "run.json", ".lock", ".svg", ".html")
    return {
        str(path.relative_to(out)): None
        if path.name.endswith(measured) or path.name.startswith("leaderboard.")
        else path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


def ends_alike(walk: Walk, moments: Sequence[str]) -> None:
    for moment in moments:
        out = walk.left_at(moment)
        walk.finish(out)
        assert content(out) == content(walk.whole), moment


SEED = [
    "text.replaced run.json",
    "stage.moved respond.done.json",
    "journal.row .respond.journal.jsonl",
    "stage.collected judge-mini-exact.done.json",
    "stage.collected leaderboard.done.json",
    "text.written report.html",
]
TRAINED = [
    "journal.row .generated.journal.jsonl",
    "stage.collected generated.done.json",
    "state.swept checkpoint-2",
    "epoch.saved epoch-1",
    "training.collected epoch-1",
    "stage.moved train.done.json",
    "training.removed train.done.json",
]


@pytest.mark.parametrize(
    ("arguments", "some", "others"),
    [
        pytest.param("compare --methods seed", SEED, True, marks=pytest.mark.exhaustive("kills")),
        pytest.param("train sdft", TRAINED, True, marks=pytest.mark.exhaustive("kills")),
        pytest.param("compare --methods seed", SEED, False, marks=pytest.mark.slow),
        pytest.param("train sdft", TRAINED, False, marks=pytest.mark.slow),
        pytest.param(  # it has a state
            "train lisa",
            ["state.saved checkpoint-2", "state.marked checkpoint-4"],
            False,
            marks=pytest.mark.slow,
        ),
        ("train constrained-sft", ["stage.moved seed-logp.done.json"], False),
    ],
)
def test_killed_at_any_point_the_same_command_ends_alike(
    arguments: str, some: list[str], others: bool, tmp_path: Path, small: Run, command: Run, no_figures: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    flags = [*arguments.split(), *small(**SMALL), "--out"]
    walk = Walk(tmp_path, command, lambda out: [*flags, str(out)], monkeypatch)
    assert {*some} <= {*walk.moments}
    ends_alike(walk, walk.moments if others else some)


# --- judges ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, Any]) -> Path:
    """A run of the base model alone."""
    folder = tmp_path_factory.mktemp("answered")
    settings = {**small_settings, **SMALL, "responses.limit": 3}
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    arguments = ["compare", "--methods", "seed", "--out", str(folder / "run"), *flags]
    ended = finish(arguments, folder / "log.txt")
    assert ended == 0, (folder / "log.txt").read_text(encoding="utf-8")
    return folder / "run"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with running() as server:
        yield server


def judging(server: FaultServer, out: Path, *more: str) -> list[str]:
    return ["judge", str(out), "--judge", f"openai:judge-1@{server.url}", *more]


@pytest.mark.exhaustive("kills")
def test_killed_at_any_point_of_judging_it_ends_alike(
    server: FaultServer, answered: Path, tmp_path: Path, command: Run, no_figures: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    walk = Walk(tmp_path, command, lambda out: judging(server, out), monkeypatch, answered)
    stage = next(walk.whole.rglob("judge-openai*.done.json")).name
    for one in (f"verdicts.unmarked {stage}", f"stage.moved {stage}", "text.replaced run.json"):
        assert one in walk.moments
    assert any(one.startswith("journal.row .judge-openai") for one in walk.moments)
    ends_alike(walk, walk.moments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "batch.written:1",  # no batch yet
        "batch.remembered:1",
        "batch.written:2",  # the server has it, its id is not written down
        "batch.remembered:2",
        "batch.forgotten:1",  # all verdicts are in the journal
        "verdicts.forgotten:1",
    ],
)
def test_killed_around_a_batch_no_second_one_is_paid(
    moment: str, server: FaultServer, answered: Path, tmp_path: Path
) -> None:
    """By kill -9, in a process of its own."""
    out, log = tmp_path / "run", tmp_path / "log.txt"
    shutil.copytree(answered, out)
    environment = {"HARNESS_CACHE": str(tmp_path / "cache"), crash.AT: moment}
    codes = []
    while 0 not in codes and len(codes) < 5:
        codes.append(finish(judging(server, out, "--judge-mode", "batch"), log, environment=environment))
        if codes[-1] == -9:
            environment[crash.AT] = ""
        for name, batch in list(server.batches.items()):
            lines = server.files[batch["input_file_id"]].decode().splitlines()
            replies = {json.loads(line)["custom_id"]: completion(verdict(1)) for line in lines}
            if codes[-1] == 4:
                finish_batch(server, name, replies)
    assert codes[-1] == 0, log.read_text(encoding="utf-8")
    assert codes.count(-9) == 1
    assert len(server.batches) == 2  # a task each
    rows = [row for file in out.rglob("verdicts.openai*.jsonl") for row in read_jsonl(file)]
    assert len(rows) == 6
    assert all(row["harmful"] is False for row in rows)
    assert not [*out.rglob("batch.json"), *out.rglob(".*.journal.jsonl")]
