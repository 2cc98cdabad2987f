"""Guards that each train task of a run keeps its own rows: by content, and extended, never mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.config import RunConfig
from harness.contracts import HarnessError, UsageError
from harness.data import loading
from harness.run import plan, run_folder
from harness.run.context import RunContext

Command = Callable[..., Any]
GSM8K, SAMSUM = "gsm8k-mini", "samsum-mini"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Rows of two tasks, in two formats with columns of their own."""
    one, two = tmp_path / "a.jsonl", tmp_path / "b.json"
    one.write_text('{"q": "1+1?", "r": "#### 2"}\n{"q": "2+2?", "r": "#### 4"}\n')
    two.write_text(json.dumps([{"dialogue": "A: Hi.\nB: Hi.", "summary": "They greet."}]))
    return str(one), str(two)


def recipe(**overrides: Any) -> RunConfig:
    return config.load("mini", {"methods": ["vanilla"], **overrides})


def joined(out: Path, **overrides: Any) -> RunConfig:
    out.mkdir(exist_ok=True)
    return run_folder.join(RunContext(recipe(**overrides), out))


def columns(task: str) -> dict[str, dict[str, str]]:
    return {task: {"prompt": "q", "answer": "r"}}


def test_each_train_task_reads_its_own_file_with_its_own_columns(
    files: tuple[str, str], tmp_path: Path
) -> None:
    from harness.plugins import registry

    both = recipe(train_data=dict(zip((GSM8K, SAMSUM), files, strict=True)), columns=columns(GSM8K))
    ctx = RunContext(both, tmp_path)
    stories, dialogues = (ctx.examples(registry.load("train task", task)) for task in (GSM8K, SAMSUM))
    assert [(one.instruction, one.answer) for one in stories] == [("1+1?", "#### 2"), ("2+2?", "#### 4")]
    assert [one.answer for one in dialogues] == ["They greet."]
    assert "A: Hi." in dialogues[0].instruction
    one = RunContext(recipe(train_data={GSM8K: files[0]}, columns=columns(GSM8K)), tmp_path)
    assert len(one.examples(registry.load("train task", SAMSUM))) == 1000  # its own rows


def test_what_a_run_is_goes_by_content(files: tuple[str, str], tmp_path: Path) -> None:
    out, moved = tmp_path / "run", tmp_path / "moved.jsonl"
    shutil.copy(files[0], moved)
    fixed = {"train_tasks": [GSM8K], "columns": {"prompt": "q", "answer": "r"}}
    joined(out, train_data=files[0], **fixed)
    record = json.loads((out / "run.json").read_text())["fixed"]
    assert record[f"train_data.{GSM8K}"] == loading.source_hash(files[0])
    assert record[f"columns.{GSM8K}"] == {"prompt": "q", "answer": "r"}
    for train_data in (str(moved), {GSM8K: str(moved)}):  # however it is said
        joined(out, train_tasks=[GSM8K], train_data=train_data, columns=columns(GSM8K))
    moved.write_text('{"q": "3+3?", "r": "#### 6"}\n')
    with pytest.raises(
        HarnessError, match=r"What differs: train_data: [0-9a-f]{12}… there, [0-9a-f]{12}… here$"
    ):
        joined(out, train_data=str(moved), **fixed)
    with pytest.raises(
        HarnessError, match=r"What differs: columns: .* there, None here; train_data: .* None here$"
    ):
        joined(out, train_tasks=[GSM8K])


def test_a_run_grows_by_a_train_task_with_its_own_file(files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    joined(out, train_tasks=[GSM8K], train_data=files[0], columns={"prompt": "q", "answer": "r"})
    found = joined(out, train_tasks=[SAMSUM], train_data={SAMSUM: files[1]})
    assert found.train_tasks == (GSM8K, SAMSUM)
    assert found.train_data == {GSM8K: files[0], SAMSUM: files[1]}
    assert (found.columns_of(GSM8K), found.columns_of(SAMSUM)) == ({"prompt": "q", "answer": "r"}, {})
    plan.cells(found)
    assert run_folder.stored_config(out) == found
    fixed = json.loads((out / "run.json").read_text())["fixed"]
    assert {key for key in fixed if key.startswith(("train_data.", "columns."))} == {
        f"train_data.{GSM8K}", f"train_data.{SAMSUM}", f"columns.{GSM8K}"
    }  # fmt: skip
    # Its own rows instead of the file, or the other way round, is another training.
    with pytest.raises(
        HarnessError, match=rf"What differs: train_data\.{SAMSUM}: [0-9a-f]+… there, None here$"
    ):
        joined(out, train_tasks=[SAMSUM])
    again = joined(out, train_tasks=[GSM8K], train_data=files[0], columns=columns(GSM8K))
    assert again.train_data == found.train_data


def test_a_task_that_was_trained_on_its_own_rows_takes_no_file_later(
    files: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    joined(out)
    with pytest.raises(
        HarnessError, match=rf"What differs: train_data\.{SAMSUM}: None there, [0-9a-f]+… here$"
    ):
        joined(out, train_data={SAMSUM: files[1]})


# --- on the command line and in a recipe -----------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--train-data", "F"], f"say whose it is (--train-data {GSM8K}=F), or add --train-tasks {GSM8K}"),
        (["--train-data", "F", "--train-data", "G"], "of several, each names its train task: TASK=F"),
        (["--train-data", f"{GSM8K}=F", "--train-data", "G"], "each names its train task: TASK=G"),
        (["--train-data", f"{GSM8K}=F", "--train-data", f"{GSM8K}=G"], f"'{GSM8K}' is given twice"),
        (["--train-data", f"{GSM8K}="], "expected TASK=FILE"),
        (["--train-data", "gsm8k-min=F"], "unknown train task of train_data, 'gsm8k-min': did you mean"),
        (["--train-data", f"{SAMSUM}=F", "--train-tasks", GSM8K],
         f"train_data names '{SAMSUM}', and the run does not train on it: leave it out, or add --train-tasks "
         f"{GSM8K},{SAMSUM}"),
        (["--columns", f"{GSM8K}.prompt=q"], f"which trains on its own rows: add --train-data {GSM8K}=FILE"),
        (["--columns", f"{GSM8K}.prompt=q,answer=r"], "name the train task of each column"),
        (["--columns", "x.prompt=q"], "unknown train task of columns, 'x'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("walk", [["compare"], ["compare", "--dry-run"], ["train", "vanilla"]])
def test_rows_of_no_task_are_refused_in_one_line(
    walk: list[str], flags: list[str], says: str, command: Command, tmp_path: Path
) -> None:
    ended = command(*walk, *flags, "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert says in ended.err
    assert not (tmp_path / "run").exists()


def test_a_recipe_says_the_same(files: tuple[str, str], tmp_path: Path, command: Command) -> None:
    file = tmp_path / "mine.yaml"
    lines = [f"extends: mini\ntrain_data: {{{GSM8K}: {files[0]}, {SAMSUM}: {files[1]}}}\n"]
    lines.append(f"columns: {{{GSM8K}: {{prompt: q, answer: r}}}}\nmethods: [vanilla]\n")
    file.write_text("".join(lines))
    read = config.load(str(file))
    flagged = recipe(train_data=dict(zip((GSM8K, SAMSUM), files, strict=True)), columns=columns(GSM8K))
    assert (read.train_data, read.columns) == (flagged.train_data, flagged.columns)
    assert read.train_source(SAMSUM) == files[1]
    one = config.load(str(file), {"train_data": {GSM8K: "other.jsonl"}})
    assert one.train_data == {GSM8K: "other.jsonl", SAMSUM: files[1]}  # the other task's stays
    flat = config.load(str(file), {"columns": {"prompt": "a"}})
    assert flat.columns == {"prompt": "a"}  # for all: instead of the recipe's
    assert config.load(str(file), {f"train_data.{SAMSUM}": None}).train_data == {GSM8K: files[0]}
    assert config.load(str(file), {"train_data": None}).train_data is None
    with pytest.raises(UsageError, match="columns: either"):
        config.load("mini", {"columns": {GSM8K: {"prompt": "q"}, "answer": "r"}})


def test_the_data_command_takes_the_same_options(
    files: tuple[str, str], tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["data", "export", "--method", "vanilla", "--train-task", GSM8K, "--out", out]
    named = [f"{GSM8K}.prompt=q,{GSM8K}.answer=r", "prompt=q,answer=r"]
    for given, said in zip((f"{GSM8K}={files[0]}", files[0]), named, strict=True):
        ended = command(*flags, "--train-data", given, "--columns", said)
        assert (ended.code, ended.out) == (0, f"{out}: 2 examples\n"), ended.err
    assert command(*flags, "--train-data", f"{SAMSUM}={files[1]}").code == 2
    both = command(*flags, "--train-data", files[0], "--data", files[0])
    assert (both.code, "leave --data out" in both.err) == (2, True)
