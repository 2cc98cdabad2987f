"""Guards what ``harness clean --row`` and ``--task`` take out, and that the same command mends a kill in the
middle."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import finish

from harness import config
from harness.config import trust
from harness.contracts import UsageError
from harness.pipeline import cleaning
from harness.run import plan, run_folder
from harness.storage import crash

Command = Callable[..., Any]
CELL = Path("gsm8k-mini")


def rows_of(values: Callable[[Path], list[dict[str, str]]], run: Path) -> dict[str, dict[str, str]]:
    return {row["method"]: row for row in values(run)}


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_a_row_is_taken_out(command: Command, run_copy: Path, values: Any, snapshot: Command) -> None:
    before, files = rows_of(values, run_copy), snapshot(run_copy)
    dry = command("clean", run_copy, "--row", "sdft,lisa", "--dry-run")
    assert dry.code == 0
    assert f"{run_copy / CELL / 'sdft' / 'seed-42'}\n" in dry.out
    assert "Would remove sdft, lisa from" in dry.out
    assert snapshot(run_copy) == files
    ended = command("clean", run_copy, "--row", "sdft", "--row", "lisa", "--yes")
    assert ended.code == 0, ended.err
    assert f"Removed sdft, lisa from {run_copy} (" in ended.out
    assert not [*run_copy.glob("**/sdft/**/*.json*"), *run_copy.glob("**/lisa/**/*.json*")]
    after = rows_of(values, run_copy)
    assert {*before} - {*after} == {"sdft", "lisa"}
    own = ("utility", "rsr", "jsr", "delta_jsr")  # p-values are corrected for fewer rows
    assert all(after[name][key] == before[name][key] for name in after for key in own if key in after[name])
    assert "sdft" not in (run_copy / "leaderboard.md").read_text()
    assert "sdft" not in record(run_copy)["config"]["methods"]
    assert trust.owned(run_folder.stored_config(run_copy))
    left = {name: content for name, content in files.items() if "/responses" in name and "/sdft/" not in name}
    now = snapshot(run_copy)
    assert all(now[name] == content for name, content in left.items() if "/lisa/" not in name)


def test_a_script_that_answers_nothing_is_told_of_yes(
    run_copy: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", _ended)
    files = sorted(run_copy.rglob("*"))
    ended = command("clean", run_copy)
    assert (ended.code, ended.err) == (
        2,
        "Error: nothing removed, since nobody answered; --yes removes without asking\n",
    )
    assert sorted(run_copy.rglob("*")) == files


def _ended(prompt: str) -> str:
    raise EOFError


def test_it_asks_first_and_takes_no_for_an_answer(
    command: Command, run_copy: Path, snapshot: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text))
    before = snapshot(run_copy)
    assert command("clean", run_copy, "--row", "sdft").out == "Nothing removed.\n"
    assert asked[0].startswith(f"Remove sdft from {run_copy} (")
    assert snapshot(run_copy) == before


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--row", "seed"], "the base model's row stays"),
        (["--row", "vanila"], "unknown row 'vanila': did you mean 'vanilla'?"),
        (["--task", "gsm8k-mini"], "'gsm8k-mini' is the run's only train task: --all removes the run"),
        (["--task", "hexphi_raw-mini"], "'hexphi_raw-mini' stays: the rates"),
        (["--task", "xstest_safe"], "unknown task of the run 'xstest_safe'"),
        (["--row", "sdft", "--all"], "--all removes the whole run: leave out --row and --task"),
        (["--row", "sdft", "--task", "gsm8k"], "unknown task of the run 'gsm8k'"),
        (["--row", "nobody", "--task", "gsm8k-mini"], "unknown row 'nobody'"),
    ],
)
def test_what_cannot_be_taken_out_is_refused(
    flags: list[str], says: str, command: Command, small_run: Path, snapshot: Command
) -> None:
    before = snapshot(small_run)
    ended = command("clean", small_run, *flags, "--yes")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert says in ended.err
    assert snapshot(small_run) == before


def test_what_a_row_answered_to_a_task_is_made_anew(
    command: Command, run_copy: Path, small: Callable[..., list[str]], values: Any, snapshot: Command
) -> None:
    before, files = values(run_copy), snapshot(run_copy)
    ended = command("clean", run_copy, "--row", "seed", "--task", "hexphi_raw-mini", "--yes")
    assert ended.code == 0, ended.err
    assert not (run_copy / "seed/hexphi_raw-mini").exists()
    assert (run_copy / "seed/gsm8k-mini/responses.jsonl").exists()
    assert values(run_copy) != before
    again = command("compare", "--methods", "all", "--out", run_copy, *small())
    assert again.code == 0, again.err
    assert values(run_copy) == before
    name = "seed/hexphi_raw-mini/responses.jsonl"
    assert (run_copy / name).read_bytes() == files[name]


# --- which files and which record ------------------------------------------------------------------


def recipe(**overrides: Any) -> config.RunConfig:
    return config.load("mini", {"methods": ["vanilla", "sdft"], **overrides})


def test_a_train_task_goes_with_its_rows_data_and_columns() -> None:
    given = {
        "train_data": {"gsm8k-mini": "a", "samsum-mini": "b"},
        "columns": {"samsum-mini": {"prompt": "p"}},
    }
    after = cleaning.without(recipe(**given), (), ["samsum-mini"])
    assert (after.train_tasks, after.train_data, after.columns) == (("gsm8k-mini",), {"gsm8k-mini": "a"}, {})
    assert {cell.folder.parts[0] for cell in plan.cells(after)} == {"seed", "gsm8k-mini"}


def test_a_further_column_goes_and_its_group_keeps_the_others() -> None:
    given = recipe(
        safety_tasks=["hexphi_prefill_depths-mini"],
        utility_tasks=["gsm8k"],
        safety_sets={"mine": "conversations.jsonl"},
        data={"gsm8k": "gsm8k.jsonl"},
    )
    members = plan.further(given)
    depth = next(name for name in members if name.endswith("k5-mini"))
    after = cleaning.without(given, (), [depth, "gsm8k", "mine"])
    assert {*plan.further(after)} == {*members} - {depth, "gsm8k", "mine"}
    assert (after.data, after.safety_sets, after.utility_tasks) == ({}, {}, ())
    whole = cleaning.without(given, (), ["hexphi_prefill_depths-mini"])
    assert (whole.safety_tasks, whole.data) == ((), given.data)


def test_a_row_goes_with_its_options() -> None:
    variant = {"method": "sdft", "options": {"temperature": 0.5}}
    given = recipe(
        variants={"v": variant}, method_options={"sdft": {"top_p": 0.5}}, checkpoints={"mine": "somewhere"}
    )
    after = cleaning.without(given, ["sdft", "mine"], ())
    assert (after.methods, after.checkpoints) == (("vanilla",), {})
    assert after.method_options == given.method_options  # of the variant
    assert cleaning.without(after, ["v"], ()).method_options == {}
    assert cleaning.without(recipe(methods=["vanilla"]), ["vanilla"], ()).methods == ("seed",)
    with pytest.raises(UsageError, match="unknown row"):
        cleaning.without(after, ["sdft"], ())


def test_what_a_checkpoint_was_trained_on_goes_with_either() -> None:
    tasks = {"train_tasks": ["gsm8k-mini", "samsum-mini"], "checkpoints": {"one": "a", "two": "b"}}
    given = recipe(**tasks, trained_on={"one": "gsm8k-mini", "two": "samsum-mini"})
    assert cleaning.without(given, ["one"], ()).trained_on == {"two": "samsum-mini"}
    after = cleaning.without(given, (), ["gsm8k-mini"])
    assert after.trained_on == {"two": "samsum-mini"}
    assert {*after.checkpoints} == {"one", "two"}  # the first one as if it was trained elsewhere
    for left in (after, cleaning.without(given, ["one"], ())):
        assert plan.cells(left)


def test_what_lies_there_of_a_part(tmp_path: Path) -> None:
    given = recipe(utility_tasks=["gsm8k"], eval_every_epoch=True, checkpoints={"mine": "x"})
    for cell in plan.cells(given):
        for one in (cell, *plan.epochs(given, cell)):
            for task in cell.tasks:
                (tmp_path / one.folder / task).mkdir(parents=True)
    column = cleaning.list_removed(tmp_path, given, cleaning.without(given, (), ["gsm8k"]))
    assert {path.name for path in column} == {"gsm8k"}
    assert len(column) == 2 + 4 * 3  # base model, checkpoint, and four trainings of three epochs
    row = cleaning.list_removed(tmp_path, given, cleaning.without(given, ["mine"], ()))
    assert row == [tmp_path / "checkpoints/mine"]
    task = cleaning.list_removed(tmp_path, given, cleaning.without(given, (), ["samsum-mini"]))
    places = {str(path.relative_to(tmp_path)) for path in task}
    trained = {f"samsum-mini/{name}/seed-42" for name in ("vanilla", "sdft")}
    assert places == {*trained, "seed/samsum-mini", "checkpoints/mine/samsum-mini"}
    alone = cleaning.again(tmp_path, given, ["vanilla"], ["samsum-mini"])
    assert alone == [tmp_path / "samsum-mini/vanilla/seed-42"]
    answers = cleaning.again(tmp_path, given, ["vanilla", "seed"], ["hexphi_raw-mini"])
    assert {path.name for path in answers} == {"hexphi_raw-mini"}
    assert len(answers) == 1 + 2 * 3
    assert cleaning.list_removed(tmp_path, given, given) == []


# --- kills -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "scores.unmarked leaderboard.done.json",
        "part.removed seed-42:1",
        "text.written run.json:1",
        "text.replaced run.json:1",
        "report.removed report.html",
        "stage.moved leaderboard.done.json:2",
    ],
)
def test_killed_while_a_row_is_taken_out_the_same_command_ends_it(
    moment: str, run_copy: Path, values: Any, tmp_path: Path
) -> None:
    flags, log = ["clean", str(run_copy), "--row", "sdft", "--yes"], tmp_path / "log.txt"
    assert finish(flags, log, environment={crash.AT: moment}) == -signal.SIGKILL
    ended = finish(flags, log, environment={crash.AT: ""})
    assert ended == 0, log.read_text(encoding="utf-8")
    assert "sdft" not in rows_of(values, run_copy)
    assert not [*run_copy.glob("**/sdft/**/responses.jsonl")]
    assert (run_copy / "leaderboard.done.json").exists()
    assert (run_copy / "report.html").exists()
