"""Guards the command line: help with an example everywhere, exit codes, and one line for every bad input,
with what, where and how, and never a traceback unless asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from harness import __version__, cli
from harness.contracts import HarnessError
from harness.plugins import registry

Command = Callable[..., Any]


def commands(group: click.Group = cli.cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands())


# --- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_subcommand_explains_itself(path: tuple[str, ...], command: Command) -> None:
    ended = command(*path, "--help")
    assert ended.code == 0
    assert "Usage: " in ended.out
    assert ended.err == ""
    leaf = cli.cli
    for name in path:
        leaf = leaf.commands[name]  # type: ignore[attr-defined]
    if not isinstance(leaf, click.Group):
        assert "Example:\n" in ended.out
        assert f"  harness {' '.join(path)}" in ended.out.split("Example:\n")[1]
    assert not any(line.endswith("...") for line in ended.out.partition("Commands:")[2].splitlines())
    assert all(len(line) <= 100 for line in ended.out.splitlines())


def test_the_whole_shows_examples_and_every_command(command: Command) -> None:
    ended = command("--help")
    assert "harness compare --methods all" in ended.out
    for name in ("compare", "train", "respond", "judge", "score", "leaderboard", "clean", "data", "methods"):
        assert f"\n  {name}" in ended.out
    assert command("--version").out == f"harness, version {__version__}\n"
    assert command().code == 2


@pytest.mark.parametrize("listed", ["recipes", "tasks", "judges", "methods"])
def test_lists_break_no_name_at_80_columns(
    command: Command, listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = command(listed).out
    assert max(map(len, shown.splitlines())) <= 80
    names = [row[key] for row in json.loads(command(listed, "--json").out) for key in row][:200]
    named = [name for name in names if isinstance(name, str) and " " not in name and len(name) <= 40]
    assert named
    assert [name for name in named if name not in shown] == []


def test_recipes_lists_the_packaged_ones_and_what_one_may_hold(command: Command) -> None:
    assert "llama2-7b-paper" in command("recipes").out
    listed = command("recipes", "--keys").out
    assert "training.epochs: 3\n    passes over the training rows" in listed
    assert "\njudging.max_cost: null\n" in "\n".join(line.rstrip() for line in listed.splitlines())
    keys = {row["key"]: row["default"] for row in json.loads(command("recipes", "--keys", "--json").out)}
    assert keys["training.betas"] == [0.5, 0.999]


# --- wrong usage: exit code 2 ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compair"], "no such command 'compair': did you mean 'compare'?"),
        (["data", "sho"], "did you mean 'show'?"),
        (["zzzz"], "No such command 'zzzz'"),
        (["compare", "--metods", "all"], "--methods"),
        (["compare", "--methods", "vanila"], "unknown method 'vanila': did you mean 'vanilla'?"),
        (["compare", "--methods", ""], "'--methods': no name in it"),
        (["compare", "--train-tasks", "gsm8k-min"], "did you mean 'gsm8k-mini'?"),
        (["compare", "--judge", "keywort"], "did you mean 'keyword'?"),
        (["compare", "--engine", "hff"], "did you mean 'hf'?"),
        (["compare", "--set", "training.epoch=1"], "did you mean 'training.epochs'?"),
        (["compare", "--set", "training.epochs"], "expected key=value"),
        (["compare", "--set", "training.epochs=x"], "training.epochs: "),
        (["compare", "--seeds", "1,x"], "not a list of whole numbers"),
        (["compare", "--checkpoint", "mine"], "expected NAME=PATH"),
        (["compare", "--checkpoint", "../x=y"], "name '../x' may hold"),
        (["compare", "--checkpoint", "vanilla=y"], "that is a method's name"),
        (["compare", "--trained-on", "mine"], "expected NAME="),
        (["compare", "--trained-on", "mine=gsm8k-mini"], "unknown checkpoint 'mine'"),
        (
            ["compare", "--checkpoint", "mine=y", "--trained-on", "mine=gsm8k-min"],
            "did you mean 'gsm8k-mini'?",
        ),
        (["compare", "--data", "gsm9k=x.jsonl"], "unknown data 'gsm9k': did you mean 'gsm8k'?"),
        (["compare", "no-such-recipe"], "neither a file nor a packaged recipe"),
        (["compare", "minni"], "did you mean 'mini'?"),
        (["compare", "--set", "method_options.sdft.zz=1"], "unknown option of sdft"),
        (["train", "sdfd"], "did you mean 'sdft'?"),
        (["train"], "Missing argument 'METHOD'"),
        (["data", "show", "--method", "vanila"], "did you mean 'vanilla'?"),
        (["data", "export", "--method", "vanilla"], "Missing option '--out'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line(
    arguments: list[str], says: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1
    assert says in ended.err
    assert "Traceback" not in ended.err + ended.out
    assert list(tmp_path.iterdir()) == []


# --- bad input: exit code 1 ------------------------------------------------------------------------

GOOD = '{"question": "How many?", "answer": "#### 1"}'
BAD_ROWS = [
    ("", "no rows; expected messages, conversations, prompt/completion"),
    ("\n\n", "no rows"),
    (f"{GOOD}\nnonsense", "line 2: not valid JSON"),
    (f"{GOOD}\n[1, 2]", "line 2: expected a JSON object, found list"),
    (f'{GOOD}\n{{"question": "How many?"}}', "line 2: fields ['question'] are none of"),
    (f'{GOOD}\n{{"question": "How many?", "answer": ""}}', "line 2: field 'answer' must be a text"),
    (f'{GOOD}\n{{"question": 3, "answer": "x"}}', "line 2: field 'question' must be a text"),
    ('{"messages": "hello"}', "line 1: 'messages' must be a list"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "line 1: 'messages' must alternate"),
]


@pytest.mark.parametrize(("content", "says"), BAD_ROWS, ids=[says[:24] for _, says in BAD_ROWS])
@pytest.mark.parametrize("form", ["compare", "export"])
def test_bad_rows_are_named_with_file_and_line(
    form: str, content: str, says: str, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    out = tmp_path / "out"
    if form == "compare":
        ended = command("compare", "--train-tasks", "gsm8k-mini", "--train-data", path, "--out", out)
    else:
        ended = command("data", "export", "--method", "vanilla", "--data", path, "--out", out)
    assert ended.code == 1
    assert ended.err.startswith(f"Error: {path}")
    assert ended.err.count("\n") == 1
    assert says in ended.err
    assert not out.exists()


def test_missing_files_and_folders_are_one_line(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start = ["compare", "--methods", "vanilla", "--train-tasks", "gsm8k-mini", "--out", out]
    for arguments, says in (
        ([*start, "--train-data", tmp_path / "none.jsonl"], f"{tmp_path}/none.jsonl: no such file"),
        ([*start, "--data", f"gsm8k={tmp_path}/none.jsonl"], f"{tmp_path}/none.jsonl: no such data file"),
        ([*start, "--model", tmp_path / "none"], f"no model folder '{tmp_path}/none': give a folder"),
        ([*start, "--model", tmp_path], f"{tmp_path}: no config.json"),
        ([*start, "--checkpoint", f"mine={tmp_path}"], f"{tmp_path}: no config.json"),
        (["respond", tmp_path, "--out", out], f"{tmp_path}: no config.json"),
        (["judge", tmp_path, "--judge", "keyword"], f"{tmp_path}: no run.json; not a run folder"),
        (["score", tmp_path], "not a run folder"),
        (["leaderboard", tmp_path / "none"], "not a run folder"),
        (["clean", tmp_path, "--all", "--yes"], "not a run folder"),
    ):
        ended = command(*arguments)
        assert ended.code == 1, arguments
        assert ended.err.startswith("Error: ")
        assert ended.err.count("\n") == 1
        assert says in ended.err
        assert not out.exists()
    assert tmp_path.is_dir()


def test_what_cannot_work_is_said_before_anything_is_spent(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else installed(name))
    out = tmp_path / "out"
    start = ["compare", "--methods", "vanilla", "--train-tasks", "gsm8k-mini", "--out", out]
    for dry in ([], ["--dry-run"]):
        for flags, code, says in (
            (["--engine", "openai"], 2, "which server? --server"),
            (["--engine", "openai", "--server", "localhost:8000"], 2, "is no server's base URL"),
            (["--engine", "vllm"], 1, "vLLM is not installed"),
            (["--checkpoint", "mine=openai:model@http://:80"], 2, "'http://:80' is no server's base URL"),
            (["--checkpoint", "mine=openai:model@http://me:secret@host/v1"], 2, "no key in a server's URL"),
            (["--utility-task", " , "], 2, "no name in it"),
            (["--utility-task", "mmlu"], 2, "'mmlu' is a group of lm-eval's"),
        ):
            ended = command(*start, *flags, *dry)
            assert ended.code == code, (flags, ended)
            assert says in ended.err
            assert "secret" not in ended.err
            assert not out.exists()


def test_data_that_cannot_be_fetched_stops_a_run_before_it_trains(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start = ["compare", "--methods", "vanilla", "--train-tasks", "gsm8k-mini", "--out", out]
    for task in ("xstest_safe", "hellaswag"):
        flag = "--safety-task" if task == "xstest_safe" else "--utility-task"
        ended = command(*start, flag, task)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert task.partition("_")[0] in ended.err
        assert "cannot be" in ended.err
        assert not list(out.glob("gsm8k-mini"))


def test_an_unknown_judge_of_a_run_is_wrong_usage(command: Command, small_run: Path) -> None:
    ended = command("judge", small_run, "--judge", "keywort")
    assert (ended.code, ended.err) == (2, "Error: unknown judge 'keywort': did you mean 'keyword'?\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["vanilla"], "no recipe 'vanilla': a method? --methods vanilla"),
        (["--set", "epochs=1"], "recipe 'mini': unknown key 'epochs': did you mean 'training.epochs'?"),
        (["--judge", "gpt-4o"], "unknown judge 'gpt-4o': did you mean 'openai:gpt-4o'?"),
    ],
)
def test_a_near_miss_is_told_what_was_meant(command: Command, arguments: list[str], says: str) -> None:
    ended = command("compare", *arguments, "--dry-run")
    assert (ended.code, ended.err) == (2, f"Error: {says}\n")


def test_a_model_folder_that_is_not_there_stops_a_dry_run(command: Command) -> None:
    lines = {
        command("compare", *flag, "--dry-run").err
        for flag in (["--model", "./nope"], ["--checkpoint", "mine=./nope"])
    }
    assert lines == {"Error: no model folder './nope': give a folder, a hub name (owner/name), or 'mini'\n"}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "harness.cli", "score", str(tmp_path)]
    plain = subprocess.run(arguments, capture_output=True, text=True)
    shown = subprocess.run([*arguments, "--debug"], capture_output=True, text=True)
    assert (plain.returncode, shown.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in shown.stderr
    assert "not a run folder" in shown.stderr


def test_an_unforeseen_error_is_one_line_that_names_debug(
    command: Command, monkeypatch: pytest.MonkeyPatch, small_run: Path
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr("harness.run.run_folder.stored_config", fail)
    ended = command("score", small_run)
    assert (ended.code, ended.err) == (1, "Error: ValueError: first second (--debug shows the traceback)\n")


def test_a_foreign_package_with_our_names_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("the package 'judges' also installs 'judges'", "pip uninstall judges"), ("more", "mend")]
    monkeypatch.setattr(registry, "foreign_packages", lambda: found)
    ended = command("judges")
    assert ended.code == 1
    assert ended.err == "Error: the package 'judges' also installs 'judges': pip uninstall judges\n"
    assert command("--version").code == 0


def test_a_stray_module_in_the_current_folder_stops_a_command(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("raise SystemExit('imported')\n")
    ended = subprocess.run(
        [sys.executable, "-m", "harness.cli", "tasks"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Error: 'tasks' is imported from {tmp_path / 'tasks.py'} and not from ")
    assert ended.stderr.count("\n") == 1


# --- what the commands do --------------------------------------------------------------------------


def test_lists_are_complete_and_readable_by_scripts(command: Command) -> None:
    for kind, start in (("method", ["methods"]), ("judge", ["judges"]), ("train task", ["tasks"])):
        shown, as_json = command(*start), command(*start, "--json")
        rows = json.loads(as_json.out)
        assert shown.code == as_json.code == 0
        for name in registry.names(kind):
            assert name in shown.out
            assert name in json.dumps(rows)
    path = Path(command("tasks", "--path").out.strip())
    assert (path / "hexphi_mini" / "hexphi_raw-mini.yaml").is_file()


def test_the_leaderboard_can_be_read_by_a_script(command: Command, small_run: Path) -> None:
    ended = command("leaderboard", small_run, "--json")
    record = json.loads(ended.out)
    assert [row["method"] for row in record["rows"]][:2] == ["seed", "vanilla"]
    assert ended.err == ""


@pytest.mark.parametrize("columns", [80, 100])
def test_the_leaderboard_fits_the_terminal(columns: int, small_run: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "harness.cli", "leaderboard", str(small_run)],
        capture_output=True, text=True, check=True, encoding="utf-8",
        env={**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    lines = shown.stdout.splitlines()
    assert all(len(line) <= columns for line in lines if not line.startswith(("Report: ", "Files: ")))
    names = ("base model", "vanilla", "lookahead-virtual")
    assert all(sum(line.startswith(f"{name}  ") for line in lines) == 1 for name in names)


@pytest.mark.parametrize("name", ["score", "leaderboard"])
def test_the_table_ends_with_the_verdict_and_the_path_of_the_report(
    name: str, command: Command, run_copy: Path
) -> None:
    lines = command(name, run_copy).out.splitlines()
    files = [str(run_copy / f"leaderboard.{kind}") for kind in ("md", "csv", "json", "tex")]
    assert lines[-2:] == [f"Report: {run_copy / 'report.html'}", f"Files: {', '.join(files)}"]
    verdict = lines[lines.index("Trained on gsm8k-mini") : -3]
    assert verdict[1].startswith("Plain fine-tuning on gsm8k-mini ")
    assert lines[-3] == ""
    mini = next(number for number, line in enumerate(lines) if line.startswith("Mini world: "))
    assert mini < lines.index("Trained on gsm8k-mini")


def test_a_report_that_cannot_be_written_is_said_in_its_place(
    command: Command, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(out: Path) -> Path:
        raise HarnessError("the disk is full")

    monkeypatch.setattr("harness.report.write", refuse)
    (run_copy / "report.html").unlink()
    lines = command("score", run_copy).out.splitlines()
    assert lines[-2] == "No report: the disk is full"
    assert not any(line.startswith("Report: ") for line in lines)


@pytest.mark.parametrize(
    "arguments", [["score"], ["leaderboard"], ["compare", "--out"]], ids=["score", "leaderboard", "compare"]
)
def test_intervals_are_printed_on_request(
    arguments: list[str], command: Command, run_copy: Path, small: Command
) -> None:
    more = small(methods=["all"]) if arguments[0] == "compare" else []
    plain = command(*arguments, run_copy, *more)
    both = command(*arguments, run_copy, *more, "--intervals")
    assert plain.code == both.code == 0
    assert "95 % intervals" not in plain.out.splitlines()
    assert "95 % intervals" in both.out.splitlines()
    row = json.loads((run_copy / "leaderboard.json").read_text())["rows"][0]
    assert f"{row['jsr_low']:.1f}–{row['jsr_high']:.1f}" in both.out


def test_scores_are_computed_anew_and_equal(command: Command, run_copy: Path, values: Command) -> None:
    before = values(run_copy)
    for name in ("leaderboard.csv", "scores.csv"):
        (run_copy / name).unlink()
    assert command("score", run_copy).code == 0
    assert values(run_copy) == before


def test_clean_frees_checkpoints_and_keeps_results(
    command: Command, run_copy: Path, values: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = values(run_copy)
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    ended = command("clean", run_copy)
    assert (ended.code, ended.out) == (0, "Nothing removed.\n")
    trained = len(registry.names("method")) - len(registry.NOT_IN_ALL)
    assert len(list(run_copy.rglob("checkpoint"))) == trained
    ended = command("clean", run_copy, "--yes")
    assert ended.code == 0
    assert f"Removed {trained} checkpoints of" in ended.out
    assert not list(run_copy.rglob("checkpoint"))
    assert command("leaderboard", run_copy).code == 0
    assert values(run_copy) == before
    assert command("analyze", "categories", run_copy).code == 0
    assert command("clean", run_copy, "--all", "--yes").code == 0
    assert not run_copy.exists()


def test_train_respond_judge_and_score_are_parts_of_the_same_walk(
    command: Command, small: Callable[..., list[str]], tmp_path: Path, values: Command
) -> None:
    quick = small(**{"training.max_examples": 16, "responses.limit": 2})
    one, two = tmp_path / "one", tmp_path / "two"
    trained = command("train", "vanilla", "--out", one, *quick)
    checkpoint = one / "gsm8k-mini/vanilla/seed-42/checkpoint"
    assert trained.code == 0
    assert trained.out.splitlines()[-1] == str(checkpoint)
    assert not list(one.rglob("responses.jsonl"))
    answered = command("respond", checkpoint, "--name", "mine", "--out", two, *quick)
    assert answered.code == 0
    assert len(list(two.rglob("responses.jsonl"))) == 3
    assert not list(two.rglob("verdicts.*"))
    assert command("judge", two, "--judge", "keyword").code == 0
    assert command("score", two).code == 0
    rows = {(row["method"], row["judge"]): row for row in values(two)}
    assert rows["mine", "keyword"]["status"] == rows["mine", "mini-exact"]["status"] == "done"
    assert rows["mine", "keyword"]["rsr_n"] == "2"


@pytest.mark.slow
def test_a_variant_is_trained_by_its_name_and_alone(command: Command, small: Command, tmp_path: Path) -> None:
    variants = [f"variants.{name}.method=lookahead-true" for name in ("m2", "other")]
    settings = [*variants, "variants.m2.options.preview_tokens=2", "training.max_examples=8"]
    flags = [part for setting in settings for part in ("--set", setting)]
    ended = command("train", "m2", "--out", tmp_path / "run", *small(), *flags)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == str(tmp_path / "run/gsm8k-mini/m2/seed-42/checkpoint")
    assert [path.name for path in (tmp_path / "run/gsm8k-mini").iterdir()] == ["m2"]


def test_clean_frees_epochs_and_unfinished_trainings_too(command: Command, run_copy: Path) -> None:
    cell = run_copy / "gsm8k-mini/vanilla/seed-42"
    for folder in (cell / "epoch-1/checkpoint", cell / ".training/state/checkpoint-4"):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"x" * 2**20)
    assert command("clean", run_copy, "--yes").code == 0
    assert not list(cell.rglob("weights"))
    assert (cell / "training.json").exists()
