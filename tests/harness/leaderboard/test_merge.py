"""Runs that are measured alike become one table; what would mix in a column is named."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made_run
import pytest
from rich.console import Console

from harness.contracts import HarnessError, UsageError
from harness.leaderboard import markdown, merge, tables
from harness.pipeline import table
from harness.run import run_folder
from harness.storage.files import read_json, write_json_atomic

Command = Callable[..., Any]
Change = Callable[[dict[str, Any]], None]


def part(small_run: Path, folder: Path, methods: Sequence[str], change: Change | None = None) -> Path:
    """A run with some of the small run's methods."""
    shutil.copytree(small_run, folder)
    record = read_json(folder / "run.json")
    for method in set(record["config"]["methods"]) - {"seed", *methods}:
        shutil.rmtree(folder / "gsm8k-mini" / method)
    record["config"]["methods"] = ["seed", *methods]
    if change:
        change(record)
    write_json_atomic(folder / "run.json", record)
    return folder


def edit(path: Path, *keys: str, value: Any) -> None:
    """Change one value in a JSON file, as if its stage had written it so."""
    record = read_json(path)
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json_atomic(path, record)
    if path.name == "task.json":
        made_run.restamp(path)


@pytest.fixture(scope="module")
def parts(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one setting, their tables written."""
    folder = tmp_path_factory.mktemp("parts")
    for name, methods in (("a", ["vanilla", "lookahead-true"]), ("b", ["vanilla", "sdft"])):
        run = part(small_run, folder / name, methods)
        table.present(run_folder.stored_config(run), run, Console(quiet=True))
    return folder


@pytest.fixture
def two(parts: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the two that a test may change."""
    shutil.copytree(parts, tmp_path / "two")
    return tmp_path / "two" / "a", tmp_path / "two" / "b"


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is the run's own: its name, costs, and what counts all of the run's comparisons."""
    counted = ("_p", "_mde")
    return {k: v for k, v in row.items() if k not in ("run", *tables.COSTS) and not k.endswith(counted)}


def test_other_methods_of_one_setting_become_one_table(two: tuple[Path, Path], small_run: Path) -> None:
    merged = merge.merge(two)
    rows = tables.records(merged.frame)
    assert [(row["run"], row["method"]) for row in rows] == [
        ("a", "seed"),
        ("a", "vanilla"),
        ("b", "sdft"),
        ("a", "lookahead-true"),
    ]
    alone = {row["method"]: figures(row) for row in tables.records(tables.read(small_run))}
    assert [figures(row) for row in rows] == [alone[row["method"]] for row in rows]
    assert merged.notes[:3] == [
        merge.WITHIN,
        "seed: one checkpoint in a and b, shown once.",
        "vanilla: one checkpoint in a and b, shown once.",
    ]
    assert not [note for note in merged.notes[1:] if "differ" in note or "MIXED" in note]
    own = {row["method"]: row for row in tables.records(tables.read(two[1]))}["sdft"]
    counted = [name for name in own if name.endswith(("_p", "_mde"))]
    assert {name: rows[2][name] for name in counted} == {name: own[name] for name in counted}
    assert {*merged.scores["run"]} == {"a", "b"}
    assert len(merged.scores) == sum(len(tables.read_scores(run)) for run in two)


def test_differences_stay_within_a_run(small_run: Path, tmp_path: Path) -> None:
    without = part(small_run, tmp_path / "a", ["lookahead-true"])
    having = part(small_run, tmp_path / "b", ["vanilla", "sdft"])
    rows = {row["method"]: row for row in tables.records(merge.merge([without, having]).frame)}
    assert rows["lookahead-true"]["rsr_delta"] is None
    assert rows["sdft"]["rsr_delta"] is not None
    assert (rows["seed"]["run"], rows["seed"]["rsr_delta"]) == ("b", 0.0)  # the one that is compared


def test_one_method_trained_twice_is_two_rows(
    two: tuple[Path, Path], small_run: Path, tmp_path: Path
) -> None:
    again = part(small_run, tmp_path / "c", ["vanilla"])
    for marker in again.glob("gsm8k-mini/vanilla/seed-42/*/respond.done.json"):
        edit(marker, "inputs", "weights", value={"checkpoint/model.safetensors": "0" * 64})
    edit(again / "gsm8k-mini/vanilla/seed-42/train.done.json", "outputs", value={
        "checkpoint/model.safetensors": {"bytes": 1, "sha256": "0" * 64}
    })  # fmt: skip
    merged = merge.merge([two[0], again])
    names = [row["method"] for row in tables.records(merged.frame)]
    assert names == ["seed", "vanilla (a)", "vanilla (c)", "lookahead-true"]


CELL = "gsm8k-mini/sdft/seed-42"


@pytest.mark.parametrize(
    ("file", "keys", "value", "words"),
    [
        ("hexphi_raw-mini/task.json", ["version"], "1", "hexphi_raw-mini: version: 2 in a, 1 and 2 in b"),
        (
            "hexphi_raw-mini/task.json",
            ["documents"],
            330,
            "hexphi_raw-mini: documents: 8 in a, 330 and 8 in b",
        ),
        ("hexphi_raw-mini/task.json", ["sha256"], "f" * 64, "hexphi_raw-mini: documents' content: "),
        ("hexphi_prefill-mini/task.json", ["sha256"], "f" * 64, "hexphi_prefill-mini: documents' content ("),
        ("hexphi_raw-mini/task.json", ["source"], "file x", "hexphi_raw-mini: source: generated in a"),
        ("hexphi_prefill-mini/respond.done.json", ["inputs", "prefill_tokens"], 5, "k: 3 in a, 3 and 5 in b"),
        (
            "gsm8k-mini/respond.done.json",
            ["inputs", "task", "content"],
            "e" * 64,
            "gsm8k-mini: prompts and scoring: ",
        ),
        ("gsm8k-mini/respond.done.json", ["inputs", "engine", "name"], "vllm", "answers: engine: hf in a"),
        ("gsm8k-mini/respond.done.json", ["inputs", "responses", "limit"], None, "answers: limit: 8 in a"),
        ("gsm8k-mini/respond.done.json", ["inputs", "responses", "dtype"], "bfloat16", "answers: dtype: "),
        (
            "hexphi_raw-mini/judge-mini-exact.done.json",
            ["inputs", "judge", "version"],
            "2",
            "judge mini-exact: version: ",
        ),
        (
            "hexphi_raw-mini/judge-mini-exact.done.json",
            ["inputs", "judge", "threshold"],
            3,
            "judge mini-exact: threshold: ",
        ),
        (
            "hexphi_raw-mini/judge-mini-exact.done.json",
            ["inputs", "scope"],
            "response",
            "judge mini-exact: judged of a prefilled answer: prefill+response in a",
        ),
    ],
)
def test_what_would_mix_in_a_column_is_refused_by_name(
    two: tuple[Path, Path], file: str, keys: list[str], value: Any, words: str
) -> None:
    edit(two[1] / CELL / file, *keys, value=value)
    if "threshold" in keys:  # a fact that only one run has says nothing; both have it, and it differs
        edit(two[0] / "gsm8k-mini/lookahead-true/seed-42" / file, *keys, value=4)
    with pytest.raises(HarnessError) as refused:
        merge.merge(two)
    assert words in str(refused.value)
    assert "--allow-mixed" in str(refused.value)


def test_mixed_runs_are_printed_apart_where_that_is_wanted(two: tuple[Path, Path]) -> None:
    edit(two[1] / CELL / "hexphi_raw-mini/task.json", "version", value="1")
    merged = merge.merge(two, allow_mixed=True)
    assert merged.notes[0] == "MIXED: hexphi_raw-mini: version: 2 in a, 1 and 2 in b"
    methods = [row["method"] for row in tables.records(merged.frame)]
    assert methods == [
        *("seed (a)", "seed (b)", "vanilla (a)", "vanilla (b)"),
        *("sdft (b)", "lookahead-true (a)"),
    ]


def test_budgets_and_machines_may_differ_and_are_named(small_run: Path, tmp_path: Path) -> None:
    def other(record: dict[str, Any]) -> None:
        record["fixed"] |= {"training.epochs": 3, "train_data": "d" * 64}
        record["config"]["method_options"] = {"sdft": {}, "lookahead-true": {"tokens": 4}}

    first = part(small_run, tmp_path / "a", ["lookahead-true"])
    second = part(small_run, tmp_path / "b", ["lookahead-true"], other)
    for marker in second.glob("gsm8k-mini/lookahead-true/seed-42/*/respond.done.json"):
        edit(marker, "inputs", "libraries", "torch", value="9.9")
    notes = merge.merge([first, second]).notes
    assert "Not trained under one budget: epochs: 1 in a, 3 in b." in notes
    assert 'Methods\' options differ: lookahead-true: {} in a, {"tokens": 4} in b.' in notes
    assert [note for note in notes if note.startswith("Not made alike: torch: ") and "9.9 in b" in note]


def test_other_models_have_tables_of_their_own(small_run: Path, tmp_path: Path) -> None:
    """Their prefills may differ, since these are cut by the model's tokenizer."""

    def other(record: dict[str, Any]) -> None:
        record["fixed"]["model"] = "9" * 64

    first = part(small_run, tmp_path / "a", ["vanilla"])
    second = part(small_run, tmp_path / "b", ["vanilla"], other)
    for record in second.glob("**/hexphi_prefill-mini/task.json"):
        edit(record, "sha256", value="f" * 64)
    merged = merge.merge([first, second])
    assert {*merged.frame["model"]} == {"mini (a)", "mini (b)"}
    assert merged.title.endswith(": mini (a), mini (b)")
    text = markdown.document(merged.frame, title=merged.title, notes=merged.notes)
    assert "## mini (a) · trained on gsm8k-mini" in text
    assert "## mini (b) · trained on gsm8k-mini" in text
    for raw in second.glob("**/hexphi_raw-mini/task.json"):
        edit(raw, "sha256", value="f" * 64)
    with pytest.raises(HarnessError, match="hexphi_raw-mini: documents' content"):
        merge.merge([first, second])


def test_a_run_is_not_merged_with_itself(two: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="named twice"):
        merge.merge([two[0], two[0] / "." / ".." / "a"])


def test_names_tell_folders_apart() -> None:
    assert merge._names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert merge._names([Path("/x/run"), Path("/y/run")]) == ["x/run", "y/run"]


def test_differences_are_between_those_that_have_the_fact() -> None:
    facts = {"a": {"k": {"3"}, "v": {"1"}}, "b": {"v": {"1"}}, "c": {"k": {"5", "3"}, "v": {"a" * 64}}}
    assert merge.differences(facts) == [
        "k: 3 in a, 3 and 5 in c",
        "v: 1 in a, 1 in b, aaaaaaaaaaaa… in c",
    ]
    assert merge.differences({"a": {"k": {"3"}}, "b": {"k": {"3"}}}) == []


# --- the command -----------------------------------------------------------------------------------


def test_the_files_of_a_merged_leaderboard(command: Command, two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "both"
    ended = command("leaderboard", *two, "--out", out)
    assert (ended.code, ended.err) == (0, "")
    assert "lookahead-true" in ended.out
    assert "sdft" in ended.out
    names = ["leaderboard.csv", "leaderboard.json", "leaderboard.md", "leaderboard.tex", "scores.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    rows = list(csv.DictReader((out / "leaderboard.csv").open(encoding="utf-8")))
    assert [row["run"] for row in rows] == ["a", "a", "b", "a"]
    assert [row["rsr"] for row in rows] == ["100.00"] * 4
    assert (out / "leaderboard.tex").read_text(encoding="utf-8").count("lookahead-true &") == 1
    frame = tables.read(out)
    assert list(frame["run"]) == [row["run"] for row in rows]


@pytest.mark.parametrize(
    ("flags", "begins"),
    [
        (["--json"], "{"),
        (["--format", "json"], "{"),
        (["--format", "csv"], "run,model,method"),
        (["--format", "markdown"], "# Safety"),
        (["--format", "latex"], "% Needs"),
    ],
)
def test_it_can_be_printed_in_each_format(
    command: Command, two: tuple[Path, Path], flags: list[str], begins: str
) -> None:
    ended = command("leaderboard", *two, *flags)
    assert ended.code == 0
    assert ended.out.startswith(begins)
    if begins == "{":
        assert [row["run"] for row in json.loads(ended.out)["rows"]] == ["a", "a", "b", "a"]


def test_one_run_is_its_own_leaderboard(command: Command, small_run: Path) -> None:
    for kind, file in (("csv", "csv"), ("markdown", "md"), ("json", "json"), ("latex", "tex")):
        ended = command("leaderboard", small_run, "--format", kind)
        assert ended.out == (small_run / f"leaderboard.{file}").read_text(encoding="utf-8")
    wide = command("leaderboard", small_run, "--format", "latex", "--intervals").out
    assert len(wide.splitlines()) > len((small_run / "leaderboard.tex").read_text().splitlines())


def test_refusals_are_one_line(command: Command, two: tuple[Path, Path]) -> None:
    edit(two[1] / CELL / "hexphi_raw-mini/task.json", "version", value="1")
    refused = command("leaderboard", *two)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (1, "", 1)
    assert command("leaderboard", *two, "--allow-mixed").code == 0
    into = command("leaderboard", *two, "--allow-mixed", "--out", two[0])
    assert (into.code, len(into.err.splitlines())) == (2, 1)
