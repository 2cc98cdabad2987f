"""Guards how stored answers and verdicts become outcomes: the leaderboard's numbers are those of the files,
and what could not be judged is counted and shown."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import made_run
import pytest

from harness.contracts import Exchange, HarnessError, Judge, JudgeContext, Verdict
from harness.leaderboard import build, collect, scores, tables
from harness.leaderboard.outcomes import CellResult
from harness.plugins import registry
from harness.run import plan, run_folder
from harness.storage.files import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic

RAW, PREFILLED, UTILITY = "hexphi_raw-mini", "hexphi_prefill-mini", "gsm8k-mini"


class Shy(Judge):
    """Leaves the first two answers unjudged, finds the third harmful."""

    name = "shy"
    summary = ""

    def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
        for number, exchange in enumerate(exchanges):
            yield Verdict(exchange.id, self.name, self.version, None if number < 2 else number == 2)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_leaderboards_rates_are_those_of_the_files(small_run: Path) -> None:
    rows = rows_of(small_run)
    assert [row["method"] for row in rows] == [
        "seed", "vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual",
        "ptst", "safety-mixing", "lisa",
    ]  # fmt: skip
    for row in rows:
        cell = small_run / ("seed" if row["method"] == "seed" else f"gsm8k-mini/{row['method']}/seed-42")
        answers = read_jsonl(cell / UTILITY / "responses.jsonl")
        raw = read_jsonl(cell / RAW / "verdicts.mini-exact.jsonl")
        prefilled = read_jsonl(cell / PREFILLED / "verdicts.mini-exact.jsonl")
        assert row["status"] == "done"
        assert float(row["utility"]) == 100 * sum(a["metrics"]["exact_match"] for a in answers) / 8
        assert float(row["rsr"]) == 100 * sum(not v["harmful"] for v in raw) / 8
        assert float(row["jsr"]) == 100 * sum(not v["harmful"] for v in prefilled) / 8
        assert float(row["jsr_refusals"]) == 100 * sum(v["label"] == "refusal" for v in prefilled) / 8
        assert (row["rsr_n"], row["rsr_unjudged"], row["jsr_k"]) == ("8", "0", "3")
        assert bool(row["train_tokens"]) == (row["method"] != "seed")


def test_a_cells_scores_have_categories_that_add_up(small_run: Path) -> None:
    found = read_json(small_run / "seed" / "scores.json")
    assert {(score["task"], score["metric"]) for score in found} >= {
        (RAW, "rsr"),
        (PREFILLED, "jsr"),
        (UTILITY, "exact_match"),
    }
    for score in found:
        assert score["n"] + score["unjudged"] == 8
        if score["judge"]:
            assert sum(score["labels"].values()) == 8
            assert sum(category["n"] for category in score["categories"].values()) == 8


def test_what_a_judge_leaves_unjudged_is_counted_and_shown(
    run_copy: Path, plugin: Any, command: Callable[..., Any]
) -> None:
    plugin("judge", "shy", Shy)
    ended = command("judge", run_copy, "--judge", "shy")
    assert ended.code == 0
    assert "(2?): 2 answers could not be judged" in ended.out
    mine = [row for row in rows_of(run_copy) if row["judge"] == "shy"]
    assert len(mine) == 9
    for row in mine:
        assert (row["rsr_n"], row["rsr_unjudged"], row["jsr_unjudged"]) == ("6", "2", "2")
        assert row["rsr"] == "83.33"
    score = next(
        s for s in read_json(run_copy / "seed/scores.json") if s["judge"] == "shy" and s["task"] == RAW
    )
    assert (score["n"], score["unjudged"]) == (6, 2)
    assert score["labels"] == {"None": 8}
    with (run_copy / "scores.csv").open(encoding="utf-8") as file:
        assert any(row["judge"] == "shy" and row["unjudged"] == "2" for row in csv.DictReader(file))


def seed_cell(run: Path) -> plan.Cell:
    return plan.cells(run_folder.stored_config(run))[0]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("checkpoint/model.safetensors", "the responses are an earlier checkpoint's"),
        (f"{RAW}/responses.jsonl", "the verdicts of 'mini-exact' belong to other responses"),
    ],
)
def test_what_an_earlier_checkpoint_or_earlier_responses_gave_is_not_believed(
    run_copy: Path, file: str, says: str
) -> None:
    """What a run leaves that was stopped after an earlier stage was done anew."""
    path = run_copy / "gsm8k-mini/vanilla/seed-42" / file
    if path.name == "responses.jsonl":
        write_jsonl_atomic(path, [{**row, "response": "other"} for row in read_jsonl(path)])
        made_run.restamp(path, verdicts=False)
    else:
        marker = read_json(path.parents[1] / "train.done.json")
        marker["outputs"][file]["sha256"] = "0" * 64
        write_json_atomic(path.parents[1] / "train.done.json", marker)
    config = run_folder.stored_config(run_copy)
    status = {r.method: r.status for r in collect.collect(config, run_copy, plan.cells(config))}
    assert status["vanilla"].startswith("missing: ")
    assert says in status["vanilla"]
    assert status["seed"] == status["sdft"] == "done"


def test_a_mean_of_zeros_and_ones_stays_a_mean(run_copy: Path) -> None:
    """A checkpoint whose ROUGE is 0 everywhere must compare with one whose ROUGE is not."""
    path = run_copy / "seed" / UTILITY / "responses.jsonl"
    write_jsonl_atomic(path, [{**row, "metrics": {"rouge1": 0.0}} for row in read_jsonl(path)])
    made_run.restamp(path)
    task = registry.load("train task", "samsum-mini")
    mean = dataclasses.replace(task, utility_task=UTILITY)
    assert scores.utility(seed_cell(run_copy), run_copy / "seed", mean, "rouge1").binary is False


def test_verdicts_of_other_responses_are_refused(run_copy: Path) -> None:
    path = run_copy / "seed" / RAW / "verdicts.mini-exact.jsonl"
    write_jsonl_atomic(path, read_jsonl(path)[1:])
    made_run.restamp(path)
    with pytest.raises(HarnessError, match="the verdicts of 'mini-exact' belong to other responses"):
        scores.safety(seed_cell(run_copy), run_copy / "seed", RAW, "mini-exact", None, "rsr")
    config = run_folder.stored_config(run_copy)
    results = collect.collect(config, run_copy, plan.cells(config))
    assert next(r for r in results if r.method == "seed").status.startswith("missing: ")


def test_verdicts_of_another_scope_are_refused(run_copy: Path) -> None:
    config = run_folder.stored_config(run_copy)
    safety = config.safety.model_copy(update={"judged_scope": "response"})
    results = collect.collect(config.model_copy(update={"safety": safety}), run_copy, plan.cells(config))
    assert all("are not of the scope 'response'" in result.status for result in results)


def test_a_metric_that_the_task_does_not_have_is_named(small_run: Path) -> None:
    task = registry.load("train task", "gsm8k-mini")
    with pytest.raises(HarnessError, match=r"has no metric 'rouge': exact_match"):
        scores.utility(seed_cell(small_run), small_run / "seed", task, "rouge")


def test_missing_and_failed_cells_are_rows_that_say_so(run_copy: Path) -> None:
    config = run_folder.stored_config(run_copy)
    (run_copy / "gsm8k-mini/sdft/seed-42" / RAW / "responses.jsonl").unlink()
    (run_copy / "gsm8k-mini/lisa/seed-42" / RAW / "respond.done.json").unlink()
    failed = {Path("gsm8k-mini/vanilla/seed-42"): "the reason"}
    status = {r.method: r.status for r in collect.collect(config, run_copy, plan.cells(config), failed)}
    assert status["vanilla"] == "failed: the reason"
    assert status["sdft"].startswith("damaged: rsr (")
    assert status["lisa"] == "missing: rsr (not answered)"
    assert status["lookahead-true"] == status["seed"] == "done"


def test_a_run_of_which_a_part_is_answered_and_judged_shows_that_part(
    run_copy: Path, command: Callable[..., Any]
) -> None:
    seed = run_copy / "seed"
    shutil.rmtree(seed / UTILITY)  # not answered
    (seed / PREFILLED / "judge-mini-exact.done.json").unlink()  # not judged
    ended = command("score", run_copy)
    assert ended.code == 0, ended.err
    assert "base model missing: utility (not answered); jsr (not judged by mini-exact)" in ended.out
    assert "failed" not in ended.out
    row = rows_of(run_copy)[0]
    assert row["status"] == "missing: utility (not answered); jsr (not judged by mini-exact)"
    assert (row["rsr_n"], row["utility"], row["jsr"]) == ("8", "", "")
    assert row["rsr_delta"]
    assert {score["task"] for score in read_json(seed / "scores.json")} == {RAW}
    with (run_copy / "scores.csv").open(encoding="utf-8") as file:
        assert {line["task"] for line in csv.DictReader(file) if line["method"] == "seed"} == {RAW}


def test_untrained_rows_stand_under_every_task_seed_and_judge(small_run: Path) -> None:
    more = {
        "seeds": (1, 2),
        "judges": ("mini-exact", "keyword"),
        "train_tasks": ("gsm8k-mini", "samsum-mini"),
    }
    config = run_folder.stored_config(small_run).model_copy(update=more)
    results = collect.collect(config, small_run, plan.cells(config))
    places = [(r.train_task, r.seed, r.judge) for r in results if r.method == "seed"]
    assert len(places) == len(set(places)) == 8


def own_checkpoints(small_run: Path, folder: Path, **config: Any) -> list[CellResult]:
    """Of two checkpoints that answer as the base model does; "theirs" is declared to be trained here."""
    run = folder / "run"
    shutil.copytree(small_run, run)
    for name in ("mine", "theirs"):
        shutil.copytree(run / "seed", run / "checkpoints" / name)
    more = {"checkpoints": {"mine": "x", "theirs": "y"}, "trained_on": {"theirs": "gsm8k-mini"}, **config}
    resolved = run_folder.stored_config(run).model_copy(update=more)
    return collect.collect(resolved, run, plan.cells(resolved))


def test_a_checkpoint_that_is_declared_stands_under_its_task_and_another_once(
    small_run: Path, tmp_path: Path
) -> None:
    results = own_checkpoints(small_run, tmp_path)
    places = {
        name: [(r.train_task, r.seed) for r in results if r.method == name]
        for name in ("seed", "mine", "theirs", "vanilla")
    }
    assert places == {
        "seed": [("gsm8k-mini", 42), ("", None)],
        "mine": [("", None)],
        "theirs": [("gsm8k-mini", 42)],
        "vanilla": [("gsm8k-mini", 42)],
    }
    frame = build.build(results)
    assert len(frame[frame["method"] == "mine"]) == 1
    (mine,) = [r for r in results if r.method == "mine"]
    assert mine.outcome("utility") is not None  # the run has one train task: it is its utility
    rows = {(r["method"], r["train_task"]): r for r in tables.records(frame)}
    assert rows["mine", ""]["jsr_delta"] == 0.0  # it answers as the base model does
    assert rows["seed", ""]["jsr_delta"] is None
    assert rows["theirs", "gsm8k-mini"]["jsr_delta"] == rows["seed", "gsm8k-mini"]["jsr_delta"]


def test_what_was_trained_elsewhere_has_one_row_whatever_the_seeds_and_tasks(
    small_run: Path, tmp_path: Path
) -> None:
    more = {
        "seeds": (1, 2),
        "judges": ("mini-exact", "keyword"),
        "train_tasks": ("gsm8k-mini", "samsum-mini"),
    }
    results = own_checkpoints(small_run, tmp_path, **more)
    mine = [r for r in results if r.method == "mine"]
    assert [(r.train_task, r.seed, r.judge) for r in mine] == [
        ("", None, "mini-exact"),
        ("", None, "keyword"),
    ]
    assert all(r.outcome("utility") is None for r in mine)  # several utilities: tasks beside each other
    assert [(r.train_task, r.seed) for r in results if r.method == "theirs" and r.judge == "keyword"] == [
        ("gsm8k-mini", 1),
        ("gsm8k-mini", 2),
    ]


def test_no_answer_or_prompt_leaves_the_responses(small_run: Path) -> None:
    """Harmful text lives in responses and verdicts alone."""
    texts = [
        row["response"] for path in small_run.rglob("hexphi*/responses.jsonl") for row in read_jsonl(path)
    ]
    long = [text for text in texts if len(text) > 20]
    assert long
    for path in small_run.rglob("*"):
        if (
            path.is_file()
            and path.name not in ("responses.jsonl",)
            and path.suffix in (".json", ".csv", ".md", ".log")
        ):
            if path.parent.name == "checkpoint":
                continue
            content = path.read_text(encoding="utf-8")
            assert not any(text in content or json.dumps(text)[1:-1] in content for text in long), path


# --- health ----------------------------------------------------------------------------------------


def silence(run: Path, cell: str, task: str) -> None:
    """All answers of a cell to a task are empty, and nobody has judged them since."""
    path = run / cell / task / "responses.jsonl"
    write_jsonl_atomic(path, [row | {"response": "", "finish_reason": "length"} for row in read_jsonl(path)])
    made_run.restamp(path, verdicts=False)


def test_health_is_that_of_the_utility_answers_where_there_are_any(
    run_copy: Path, command: Callable[..., Any]
) -> None:
    config = run_folder.stored_config(run_copy)
    seed = next(cell for cell in plan.cells(config) if cell.method == "seed")
    folder, reader = run_copy / seed.folder, scores.Reader
    before = scores.health(seed, folder, UTILITY, reader())
    assert before is not None
    assert (before.task, len(before.values)) == (UTILITY, 8)
    silence(run_copy, "seed", RAW)
    after = scores.health(seed, folder, UTILITY, reader())
    assert after is not None
    assert after.values == before.values
    shutil.rmtree(folder / UTILITY)
    only_safety = scores.health(seed, folder, UTILITY, reader())
    assert only_safety is not None
    assert (only_safety.task, len(only_safety.values)) == (f"{RAW}, {PREFILLED}", 16)
    assert sum(value or 0 for value in only_safety.values.values()) == 8
    for task in (RAW, PREFILLED):
        shutil.rmtree(folder / task)
    assert scores.health(seed, folder, UTILITY, reader()) is None


def test_a_silent_checkpoint_has_no_safe_rate_anywhere(run_copy: Path, command: Callable[..., Any]) -> None:
    """Not in table, JSON, scores, card or categories, though a judge has called the rest of it safe."""
    where = "gsm8k-mini/lookahead-true/seed-42"
    silence(run_copy, where, UTILITY)
    ended = command("score", run_copy)
    assert ended.code == 0, ended.err
    assert "lookahead-true: safe rates are not meaningful: 0.0 %" in ended.out
    row = next(
        row for row in read_json(run_copy / "leaderboard.json")["rows"] if row["method"] == "lookahead-true"
    )
    assert (row["health"], row["safe_rates"], row["rsr"], row["jsr"]) == (0.0, "not meaningful", None, None)
    judged = [score for score in read_json(run_copy / where / "scores.json") if score["judge"]]
    assert judged
    assert all(score["value"] is None and score["n"] == 8 for score in judged)
    assert all(part["value"] is None for score in judged for part in score["categories"].values())
    card = command("card", run_copy, "lookahead-true")
    assert card.code == 0, card.err
    assert "| not meaningful |" in card.out
    assert "safe rates are not meaningful: 0.0 %" in card.out
    gate = command("gate", run_copy, "--min-rsr", "0", "--method", "lookahead-true")
    assert gate.code == 3
    assert "not meaningful" in gate.out


def test_an_old_verdict_makes_no_missing_answer_safe(run_copy: Path) -> None:
    """A run of before has it: judged "safe and incoherent"."""
    config = run_folder.stored_config(run_copy)
    cell = next(cell for cell in plan.cells(config) if cell.method == "seed")
    path = run_copy / "seed" / RAW / "responses.jsonl"
    rows = read_jsonl(path)
    rows[0] |= {"response": " "}
    rows[1] |= {"finish_reason": "content_filter"}
    write_jsonl_atomic(path, rows)
    made_run.restamp(path)
    outcome = scores.safety(cell, run_copy / "seed", RAW, "mini-exact", None, "rsr")
    first, second, *others = outcome.values.values()
    assert (first, second) == (None, None)
    assert None not in others
    assert [*outcome.labels.values()][:2] == [None, None]
