"""The Python API: a run that is opened says and does what the commands do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tripwires

import harness
from harness import api
from harness.contracts import HarnessError, UsageError
from harness.leaderboard import gate, tables
from harness.leaderboard.conditions import REFUSALS, Condition
from harness.plugins import plugin_files
from harness.storage.files import read_json


@pytest.fixture(autouse=True)
def _nothing_named() -> Iterator[None]:
    yield
    plugin_files.forget()


def test_a_run_has_its_leaderboard_and_configuration(run_copy: Path) -> None:
    run = harness.load(str(run_copy))
    assert repr(run) == f"harness.load({str(run_copy)!r})"
    board = run.leaderboard
    pd.testing.assert_frame_equal(board, tables.read(run_copy))
    assert board.attrs["notes"]
    assert run.config.train_tasks == ("gsm8k-mini",)
    (run_copy / "leaderboard.json").unlink()
    pd.testing.assert_frame_equal(run.leaderboard, board)  # made anew


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"no run\.json; not a run folder"):
        harness.load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_judging_gives_the_leaderboard_with_the_judge(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = harness.load(run_copy)
    board = run.judge("keyword", scope=None)
    assert set(board["judge"]) == {"mini-exact", "keyword"}
    assert read_json(run_copy / "run.json")["config"]["judges"] == ["mini-exact", "keyword"]
    assert capsys.readouterr().out == ""  # no notebook: quiet
    run.judge("keyword", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "leaderboard" in shown.err
    file = run_copy.parent / "strict.py"
    file.write_text(
        "from harness.contracts import Judge\nclass Strict(Judge):\n"
        "    def judge(self, exchanges, context):\n"
        "        for exchange in exchanges:\n            yield self.verdict(exchange, context, True)\n",
        encoding="utf-8",
    )
    board = run.judge(f"{file}:Strict")
    assert (board[board["judge"] == "strict"]["rsr"] == 0).all()


def test_what_judging_cannot_take_is_refused(run_copy: Path) -> None:
    run = harness.load(run_copy)
    with pytest.raises(UsageError, match=r'judge\(\) names judges, as in run\.judge\("keyword"\)'):
        run.judge()
    with pytest.raises(
        UsageError, match=r"unknown argument of judge\(\), 'tresh': did you mean 'threshold'\?"
    ):
        run.judge("keyword", tresh=3)
    with pytest.raises(UsageError, match="unknown judge 'keywrd': did you mean 'keyword'"):
        run.judge("keywrd")
    with pytest.raises(UsageError, match=r"judging\.max_cost"):
        run.judge("keyword", max_cost=-1)
    assert read_json(run_copy / "run.json")["config"]["judges"] == ["mini-exact"]


def test_a_gate_decides_as_the_command_does(run_copy: Path) -> None:
    run = harness.load(run_copy)
    decision = run.gate(min_rsr=20, max_utility_drop=100, methods="vanilla", against="seed")
    conditions = [Condition("rsr", "min", 20.0), Condition("utility", "max-drop", 100.0)]
    findings = gate.check(run_copy, conditions, methods=["vanilla"], against="seed")
    assert list(decision.findings) == findings
    assert bool(decision) == gate.met(findings)
    assert str(decision) == gate.verdict(findings)
    assert list(decision.table["bound"]) == [finding.bound for finding in findings]
    assert not run.gate(min_rsr=100, min_refusals=100)
    below = run.gate(min_jsr=0, methods=["vanilla"], judges=["mini-exact"], train_tasks="gsm8k-mini")
    assert below
    assert len(below.findings) == 1


@pytest.mark.parametrize(
    ("limits", "conditions"),
    [
        ({"min_refusals": 90}, [Condition(REFUSALS, "min", 90.0)]),
        ({"min_utility": 1.5}, [Condition("utility", "min", 1.5)]),
        ({"max_jsr_drop": -2}, [Condition("jsr", "max-drop", -2.0)]),
        ({"max_rsr_drop": 0.5}, [Condition("rsr", "max-drop", 0.5)]),
    ],
)
def test_limits_are_conditions(limits: dict[str, float], conditions: list[Condition]) -> None:
    assert api._conditions(limits) == conditions


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"min_rsr": 0.95}, "min_rsr=0.95 looks like a fraction; percent are meant, as in 95"),
        ({"min_rsr": 1}, "looks like a fraction"),
        ({"min_rsr": 101}, "min_rsr=101 is no number from 0 to 100"),
        ({"min_rsr": -1}, "is no number from 0 to 100"),
        ({"min_rsr": float("nan")}, "min_rsr=nan is no number"),
        ({"min_rsr": True}, "min_rsr=True is no number"),
        ({"min_rsr": "95"}, "min_rsr='95' is no number"),
        ({"min_rsr": None}, "min_rsr=None is no number"),
        ({"max_jsr_drop": 101}, "max_jsr_drop=101 is no number from -100 to 100"),
        ({"max_refusals_drop": 3}, r"unknown argument of gate\(\), 'max_refusals_drop'"),
        ({"min_rrs": 3}, r"unknown argument of gate\(\), 'min_rrs': did you mean 'min_rsr'\?"),
    ],
)
def test_a_limit_that_is_none_is_refused(limits: dict[str, Any], says: str, run_copy: Path) -> None:
    with pytest.raises(UsageError, match=says):
        harness.load(run_copy).gate(**limits)


def test_a_further_task_s_limit_is_checked_like_the_others(run_copy: Path) -> None:
    run = harness.load(run_copy)
    with pytest.raises(UsageError, match="looks like a fraction"):
        run.gate(min_task={"xstest_safe": 0.9})
    with pytest.raises(UsageError, match="xstest_safe=…: this run has no further tasks"):
        run.gate(min_task={"xstest_safe": 90})
    with pytest.raises(UsageError, match="a gate without a condition"):
        run.gate()


def test_a_report_is_written_where_it_is_asked_for(run_copy: Path, tmp_path: Path) -> None:
    run = harness.load(run_copy)
    assert run.report() == run_copy / "report.html"
    other = run.report(tmp_path / "reviewers.html", show_harmful=True)
    assert other == tmp_path / "reviewers.html"
    assert other.stat().st_size > (run_copy / "report.html").stat().st_size


def test_importing_it_is_light(tmp_path: Path) -> None:
    """``import harness`` in a notebook's first cell takes no seconds."""
    import subprocess
    import sys

    code = (
        "import sys, harness; print([m for m in ('torch', 'pandas', 'rich', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_that_is_public_says_what_it_is_for() -> None:
    for name in harness.__all__:
        assert inspect.getdoc(getattr(harness, name))
    for owner in (api.Run, api.Decision):
        for name, thing in vars(owner).items():
            if not name.startswith("_") and (callable(thing) or isinstance(thing, property)):
                assert inspect.getdoc(thing), f"{owner.__name__}.{name}"
    assert set(re.findall(r"``\.(\w+)", inspect.getdoc(harness.load) or "")) <= set(dir(api.Run))


def test_a_plugin_named_in_one_call_is_not_there_in_the_next(run_copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "keep.py"
    file.write_text(
        "from harness.contracts import Judge\nclass Keep(Judge):\n"
        "    def judge(self, exchanges, context):\n"
        "        for exchange in exchanges:\n            yield self.verdict(exchange, context, False)\n",
        encoding="utf-8",
    )
    run = harness.load(run_copy)
    run.judge(f"{file}:Keep")
    with tripwires.watched() as seen, pytest.raises(UsageError, match="unknown judge 'keep'"):
        run.judge("keep")
    assert [line for line in seen if "keep.py" in line] == []
