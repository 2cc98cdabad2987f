"""Tuning: what is searched, how it goes on after a kill, what is chosen; no trial sees a final document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from harness import config
from harness.contracts import HarnessError, UsageError
from harness.run import run_folder
from harness.storage.files import read_json, read_jsonl
from harness.studies import search as tuning
from harness.studies import search_report, search_trials
from harness.studies.search import Floor
from harness.studies.search_trials import Row, Search

pytest.importorskip("optuna")
QUIET = Console(quiet=True)


# --- what is searched ------------------------------------------------------------------------------


def test_the_space() -> None:
    whole = search_trials.space(None, 16, ["Well, "])
    assert len(whole) == 16 + 3 + 1
    assert whole.params()[0] == {"method": "lookahead-true", "preview_tokens": 1}
    assert whole.params()[-1] == {"method": "lookahead-virtual", "prefix": "Well, "}
    assert len(search_trials.space(["lookahead-true"], 4, [])) == 4
    with pytest.raises(UsageError, match="tune knows the options of"):
        search_trials.space(["sdft"], 4, [])


def test_rows_have_a_name_of_their_own() -> None:
    names = [search_trials.row_name("lookahead-virtual", text) for text in ("Let us ", "Let us", "答")]
    assert len(set(names)) == 3
    assert names[0].startswith("lookahead-virtual-let-us-")
    config.load("mini", {"variants": {name: {"method": "lookahead-virtual"} for name in names}})
    assert search_trials.row_name("lookahead-true", 4) == "lookahead-true-m4"


def test_a_methods_own_setting_is_its_plain_row(tmp_path: Path) -> None:
    search = made_search(tmp_path, method_options={"lookahead-true": {"preview_tokens": 3}})
    assert search.setting({"method": "lookahead-true", "preview_tokens": 3}).row == "lookahead-true"
    assert search.setting({"method": "lookahead-true", "preview_tokens": 6}).row == "lookahead-true-m6"
    own = {"method": "lookahead-virtual", "prefix": "Let's solve this problem. "}
    assert search.setting(own).row == "lookahead-virtual"


# --- the search, without trainings -----------------------------------------------------------------


def made_search(
    out: Path, trials: int = 20, space: search_trials.Space | None = None, **overrides: Any
) -> Search:
    out.mkdir(exist_ok=True)
    settings = config.load("mini", {"train_tasks": ["gsm8k-mini"], **overrides})
    return Search(settings, out, space or search_trials.space(None, 16, []), "jsr", trials, 0, QUIET)


def figures(row: str) -> Row:
    """Made figures: utility falls and safety grows with the preview; virtual ones are worse at both."""
    m = int(row.rpartition("-m")[2]) if "-m" in row else 6 if row == "lookahead-true" else 0
    utility, jsr = (60.0 - m, 40.0 + m) if m else (30.0, 35.0)
    return {
        "method": row,
        "utility": utility,
        "utility_low": utility - 5,
        "jsr": jsr,
        "rsr": 100.0,
        "status": "done",
    }


class KilledError(Exception):
    pass


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that were trained, in their order; none is."""
    done: list[str] = []

    def run(search: Search, settings: dict[str, Any]) -> None:
        if "KILL" in done:
            raise KilledError
        done.extend(row for row in settings if row not in search.rows)
        search.rows |= {row: figures(row) for row in settings}

    monkeypatch.setattr(search_trials, "run_trials", run)
    return done


def searched(search: Search) -> list[Row]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return search_trials.settings(search, search_trials.run(search, optuna), optuna)


def test_with_trials_for_all_settings_all_are_tried_once(tmp_path: Path, trainings: list[str]) -> None:
    found = searched(made_search(tmp_path))
    assert len(found) == len(trainings) == 19
    assert {row["row"] for row in found} == {*trainings}
    assert [row["value"] for row in found[:16]] == [*range(1, 17)]


def test_else_the_defaults_come_first_and_optuna_proposes(tmp_path: Path, trainings: list[str]) -> None:
    found = searched(made_search(tmp_path, trials=9))
    assert len(found) == len(set(trainings)) == len(trainings) == 9
    assert trainings[:2] == ["lookahead-true", "lookahead-virtual"]


def killed_in_its_second_round(search: Search, trainings: list[str]) -> None:
    run = search_trials.run_trials

    def one_round(search: Search, settings: dict[str, Any]) -> None:
        run(search, settings)
        trainings.append("KILL")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_trials, "run_trials", one_round)
        with pytest.raises(KilledError):
            searched(search)
    trainings.remove("KILL")


def test_a_killed_search_ends_as_one_that_was_not(tmp_path: Path, trainings: list[str]) -> None:
    whole = searched(made_search(tmp_path / "whole", trials=11))
    expected = [*trainings]
    trainings.clear()
    search = made_search(tmp_path / "killed", trials=11)
    killed_in_its_second_round(search, trainings)  # its settings were asked for and never told
    assert len(trainings) == search_trials.ROUND
    search = made_search(tmp_path / "killed", trials=11)
    search.rows = {row: figures(row) for row in trainings}  # as the trials' run has them
    again = searched(search)
    assert trainings == expected
    assert again == whole


def test_more_trials_extend_a_search(tmp_path: Path, trainings: list[str]) -> None:
    searched(made_search(tmp_path, trials=5))
    before = [*trainings]
    search = made_search(tmp_path, trials=19)
    search.rows = {row: figures(row) for row in trainings}
    assert len(searched(search)) == 19
    assert trainings[:5] == before
    assert len(trainings) == len(set(trainings)) == 19


def test_a_failed_setting_is_none_of_the_choice_until_it_is_done(
    tmp_path: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = search_trials.space(["lookahead-true"], 3, [])
    whole = figures
    failed = {"lookahead-true-m2"}
    monkeypatch.setitem(
        globals(),
        "figures",
        lambda row: whole(row) | ({"status": "failed: x", "utility": None} if row in failed else {}),
    )
    search = made_search(tmp_path, space=space)
    assert [row["value"] for row in searched(search)] == [1, 3]
    failed.clear()
    again = made_search(tmp_path, space=space)
    again.rows = {row: figures(row) for row in trainings}
    assert sorted(row["value"] for row in searched(again)) == [1, 2, 3]
    assert len(trainings) == 3


@pytest.mark.parametrize("trials", [19, 9])
def test_settings_whose_run_is_gone_are_tried_again(
    tmp_path: Path, trainings: list[str], trials: int
) -> None:
    whole = searched(made_search(tmp_path, trials=trials))
    before = {*trainings}
    trainings.clear()
    killed_in_its_second_round(made_search(tmp_path, trials=trials), trainings)  # OUT/trials was cleaned
    search = made_search(tmp_path, trials=trials)
    search.rows = {row: figures(row) for row in trainings}
    again = searched(search)
    assert len(trainings) == trials
    assert {*trainings} == before
    assert again == whole


def test_a_setting_that_is_gone_and_fails_is_none_of_the_choice(
    tmp_path: Path, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = search_trials.space(["lookahead-true"], 3, [])
    whole = figures
    searched(made_search(tmp_path, space=space))
    failed = {"status": "failed: x", "utility": None}
    monkeypatch.setitem(
        globals(), "figures", lambda row: whole(row) | (failed if row.endswith("-m2") else {})
    )
    assert [row["value"] for row in searched(made_search(tmp_path, space=space))] == [1, 3]


def test_trainings_are_adopted_while_both_runs_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def adopt(trials: Any, final: Any, cells: Any) -> None:
        for run in (trials.out, final.out):
            with pytest.raises(HarnessError, match="another harness command"), run_folder.lock(run):
                pass
            held.append(run.name)

    done = {name: {"status": "done"} for name in ("seed", "vanilla", "lookahead-true")}
    monkeypatch.setattr(tuning.compare, "compare", lambda *_, **__: None)
    monkeypatch.setattr(search_trials, "compare_quietly", lambda *_: done)
    monkeypatch.setattr(tuning, "_adopt", adopt)
    search = made_search(tmp_path / "out", methods=["vanilla", "lookahead-true"])
    chosen = {"row": "lookahead-true", "method": "lookahead-true", "value": 6}
    assert [*tuning._final(search, search.config, chosen)] == ["seed", "vanilla", "lookahead-true"]
    assert held == ["trials", "final"]


# --- the choice ------------------------------------------------------------------------------------

ROWS: list[Row] = [
    {"row": "a", "utility": 50.0, "utility_low": 45.0, "jsr": 60.0, "rsr": 99.0},
    {"row": "b", "utility": 44.0, "utility_low": 39.0, "jsr": 80.0, "rsr": 98.0},
    {"row": "c", "utility": 45.0, "utility_low": 38.0, "jsr": 80.0, "rsr": 98.0},
    {"row": "d", "utility": 20.0, "utility_low": 15.0, "jsr": 95.0, "rsr": 100.0},
]


@pytest.mark.parametrize(
    ("floor", "objective", "row"),
    [
        (Floor(40.0), "jsr", "c"),  # as safe as b, with more utility
        (Floor(45.0), "jsr", "c"),  # the floor itself holds
        (Floor(45.1), "jsr", "a"),
        (Floor(40.0), "rsr", "a"),
        (Floor(40.0, confident=True), "jsr", "a"),
        (Floor(39.0, confident=True), "jsr", "b"),
        (Floor(10.0), "jsr", "d"),
        (Floor(50.1), "jsr", None),
    ],
)
def test_the_safest_that_holds_the_floor(floor: Floor, objective: Any, row: str | None) -> None:
    found = tuning.choose(ROWS, floor, floor.of(55.0), objective)
    assert (found and found["row"]) == row


def test_a_floor_below_vanilla_and_the_nearest() -> None:
    assert Floor(drop=7.0).of(55.0) == 48.0
    assert search_trials.nearest(ROWS, Floor(60.0))["row"] == "a"
    with pytest.raises(UsageError, match="--utility-floor X"):
        Floor()
    with pytest.raises(UsageError, match="--utility-floor X"):
        Floor(40.0, 3.0)
    with pytest.raises(HarnessError, match="--confident needs intervals"):
        tuning.choose([ROWS[0] | {"utility_low": None}], Floor(1.0, confident=True), 1.0, "jsr")


# --- end to end ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune") / "out"


def flags(out: Path, small: Callable[..., list[str]], *floor: object) -> list[object]:
    some = ["--methods", "lookahead-true", "--max-preview", 2, "--trials", 2]
    own = small(**{"responses.limit": 5})
    return ["tune", "--train-task", "gsm8k-mini", *floor, *some, "--out", out, *own]


@pytest.mark.slow
def test_a_tuning_from_end_to_end(
    tuned: Path, command: Callable[..., Any], small: Callable[..., list[str]], snapshot: Callable[..., Any]
) -> None:
    ended = command(*flags(tuned, small, "--utility-drop", 100))
    assert ended.code == 0, ended.err
    record = read_json(tuned / "tune.json")
    assert [row["preview_tokens"] for row in record["trials"]] == [1, 2]
    assert record["chosen"] in ("lookahead-true-m1", "lookahead-true-m2")
    assert f"Chosen: {record['chosen']} (preview tokens " in ended.out
    safest = max(record["trials"], key=lambda row: (row["jsr"], row["utility"]))
    assert record["chosen"] == safest["row"]
    assert [*record["final"]] == ["seed", "vanilla", "lookahead-true", record["chosen"]]
    frame = pd.read_csv(tuned / "final/leaderboard.csv").set_index("method")
    assert record["final"][record["chosen"]]["jsr"] == frame.loc[record["chosen"], "jsr"]
    front = pd.read_csv(tuned / "pareto.csv")
    assert {*front["row"]} == {*record["pareto"]}
    assert safest["row"] in record["pareto"]
    for kind in ("svg", "pdf", "png"):
        assert (tuned / f"pareto.{kind}").stat().st_size > 1000

    # No trial sees a final document, and the other way round.
    for task in ("gsm8k-mini", "hexphi_raw-mini", "hexphi_prefill-mini"):
        ids: dict[str, set[str]] = {"trials": set(), "final": set()}
        for run, found in ids.items():
            for path in (tuned / run).rglob(f"{task}/responses.jsonl"):
                found |= {row["id"] for row in read_jsonl(path)}
            assert len(found) == 5
        assert not ids["trials"] & ids["final"]

    # The final run trained nothing.
    for name in ("vanilla", "lookahead-true", record["chosen"]):
        trained = [tuned / run / "gsm8k-mini" / name / "seed-42" for run in ("trials", "final")]
        assert (
            trained[0].joinpath("training.json").read_bytes()
            == trained[1].joinpath("training.json").read_bytes()
        )
        assert os.path.samefile(*(folder / "checkpoint/model.safetensors" for folder in trained))

    before = snapshot(tuned)
    again = command(*flags(tuned, small, "--utility-drop", 100))
    assert again.code == 0, again.err
    after = snapshot(tuned)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {
        "trials/run.json",
        "final/run.json",
        "study.log",
    }  # the commands, and that it was opened
    assert read_json(tuned / "tune.json") == record


@pytest.mark.slow
def test_a_floor_that_none_holds(
    tuned: Path, command: Callable[..., Any], small: Callable[..., list[str]]
) -> None:
    ended = command(*flags(tuned, small, "--utility-floor", 99, "--confident"))
    assert ended.code == 3
    assert "No setting's utility, by the lower bound of its 95 % interval, is at least 99" in ended.out
    assert "Nearest: lookahead-true-m" in ended.out
    record = read_json(tuned / "tune.json")
    assert record["chosen"] is None
    assert record["final"] == {}
    shown = command(*flags(tuned, small, "--utility-floor", 99), "--json")
    assert shown.code == 3
    assert json.loads(shown.out)["nearest"] == record["nearest"]


def test_bad_input_is_one_line(tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    for arguments, code, line in (
        (["--utility-floor", 40], 2, "tune works on one train task and there are 2"),
        (["--train-task", "gsm8k-mini"], 2, "name the floor"),
        (
            ["--train-task", "gsm8k-mini", "--utility-floor", 40, "--methods", "sdft"],
            2,
            "tune knows the options",
        ),
        (
            ["--train-task", "gsm8k-mini", "--utility-floor", 40, "--prefixes", tmp_path / "no"],
            2,
            "cannot be read",
        ),
        (
            ["--train-task", "gsm8k-mini", "--utility-floor", 40, "--set", "responses.part=final"],
            2,
            "tune's own",
        ),
        (
            ["--train-task", "gsm8k-mini", "--utility-floor", 40, "--out", tmp_path / "run"],
            2,
            "is a run's folder",
        ),
    ):
        ended = command(
            "tune", *(["--out", tmp_path / "out"] if "--out" not in arguments else []), *arguments
        )
        assert (ended.code, line in ended.err) == (code, True), ended.err
        assert len(ended.err.strip().splitlines()) == 1


def test_without_optuna_a_line_says_how_to_get_it(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = command("tune", "--train-task", "gsm8k-mini", "--utility-floor", 40, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (
        1,
        "Error: harness tune needs Optuna: pip install 'safetune-harness[tune]'\n",
    )


@pytest.mark.parametrize(
    ("floor", "utility", "low", "held", "says"),
    [
        (
            {"utility": 40.0, "drop": None},
            40.0,
            41.0,
            True,
            "holds the floor: utility 40.0 against a floor of 40.",
        ),
        ({"utility": 40.0, "drop": None}, 45.0, 38.0, True, "though its interval goes below"),
        ({"utility": 40.0, "drop": None}, 32.2, 24.0, False, "does NOT hold the floor: utility 32.2"),
        (
            {"utility": 52.0, "drop": 3.0},
            50.0,
            48.0,
            False,
            "against a floor of 51.",
        ),  # of vanilla's final 54
        ({"utility": 40.0, "drop": None}, None, None, False, "no utility"),
    ],
)
def test_whether_the_choice_holds_on_the_final_documents_is_said(
    floor: Any, utility: float | None, low: float | None, held: bool, says: str
) -> None:
    final = {"vanilla": {"utility": 54.0}, "mine": {"utility": utility, "utility_low": low}}
    line, found = search_report.kept({"floor": floor, "chosen": "mine", "final": final})
    assert found is held
    assert says in line


@pytest.mark.parametrize(
    ("p", "low", "shown"),
    [(0.049, 1.0, "+5.0*"), (0.049, -1.0, "+5.0*"), (0.05, 1.0, "+5.0†"), (0.05, -1.0, "+5.0")],
)
def test_the_star_is_for_a_difference_with_all_comparisons_counted(p: float, low: float, shown: str) -> None:
    row = {"jsr_delta": 5.0, "jsr_p": p, "jsr_delta_low": low, "jsr_delta_high": 9.0}
    assert search_report._delta(row, "jsr") == shown
    assert search_report._delta({"jsr_delta": None}, "jsr") == ""


def test_a_trials_record_has_what_the_marks_are_read_from() -> None:
    ends = ("delta", "delta_low", "delta_high", "p", "mde")
    assert {f"{metric}_{end}" for metric in ("jsr", "rsr", "utility") for end in ends} <= {
        *search_report.FIGURES
    }
