"""Guards the walk as a whole: a run is extended and never mixed, nothing is done twice, a failed cell takes
no other with it, and the same seed gives the same leaderboard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from harness.config import trust
from harness.contracts import Exchange, HarnessError, Judge, JudgeContext, Method, Verdict
from harness.judging import stage as judging
from harness.models import checkpoints
from harness.pipeline import compare, outcome
from harness.run import plan, run_folder
from harness.run.context import RunContext
from harness.storage.files import read_json, write_json_atomic

QUICK = {"methods": ["vanilla"], "training.max_examples": 16, "responses.limit": 3}
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, Any]) -> Path:
    """Vanilla alone, smaller than small. Read only: copy it to change it."""
    import harness

    folder = tmp_path_factory.mktemp("quick") / "run"
    harness.compare(out=folder, **{**small_settings, **QUICK})
    return folder


@pytest.fixture
def quick_copy(quick_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(quick_run, tmp_path / "quick")
    return tmp_path / "quick"


@pytest.fixture
def run_quick(run_small: Run) -> Run:
    return lambda out, **overrides: run_small(out, **{**QUICK, **overrides})


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(checkpoints, "load_model", refuse)
    monkeypatch.setattr(RunContext, "engine", refuse)


def markers(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("*/**/*.done.json")}


# --- nothing twice ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_model")
def test_a_finished_run_says_so_at_once_and_shows_the_leaderboard(
    run_copy: Path, command: Run, small: Run, snapshot: Run
) -> None:
    before = snapshot(run_copy)
    ended = command("compare", "--methods", "all", "--out", run_copy, *small())
    assert ended.code == 0
    assert " ".join(ended.out.split()).startswith(f"Nothing to do: all 9 cells of {run_copy} are done.")
    assert "lookahead-virtual" in ended.out
    assert str(run_copy / "leaderboard.csv") in ended.out
    after = snapshot(run_copy)
    assert {name for name in after if after[name] != before.get(name)} <= {"run.json"}
    assert read_json(run_copy / "run.json")["timing"]  # of the run that did the work


def test_the_python_api_returns_the_leaderboard(quick_copy: Path, run_quick: Run) -> None:
    frame = run_quick(quick_copy)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["method"]) == ["seed", "vanilla"]
    assert set(frame["status"]) == {"done"}
    assert frame["rsr"].between(0, 100).all()


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_writes_nothing_and_prints_the_plan(
    tmp_path: Path, command: Run, small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare.forecast.Forecast(1, seconds=1.0)
    monkeypatch.setattr(compare.forecast, "forecast", lambda *_: found)
    ended = command("compare", "--methods", "vanilla", "--dry-run", "--out", tmp_path / "run", *small())
    assert ended.code == 0
    assert not (tmp_path / "run").exists()
    heading = "model mini; device cpu; engine hf; precision float32; judged by mini-exact\n"
    assert ended.out.startswith(heading)
    assert "learning_rate" not in ended.out
    assert "2 of 2 cells to do" in ended.out
    assert "Estimated time: about 1 s" in ended.out
    given = ["compare", "--methods", "vanilla", "--dry-run", "--out", tmp_path / "run", *small()]
    settings, _, planned = command(*given, "--show-config").out.partition("\n\n")
    assert yaml.safe_load(settings)["training"]["learning_rate"] == 0.0005
    assert planned.partition("\n")[0] == ended.out.partition("\n")[0]
    alone = command("compare", "--show-config")
    assert (alone.code, "add --dry-run" in alone.err) == (2, True)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_leaderboard(
    quick_run: Path, tmp_path: Path, run_quick: Run, values: Run
) -> None:
    run_quick(tmp_path / "again")
    assert values(tmp_path / "again") == values(quick_run)
    cell = "gsm8k-mini/vanilla/seed-42"
    one, two = (
        read_json(folder / cell / "train.done.json")["outputs"] for folder in (quick_run, tmp_path / "again")
    )
    weights = "checkpoint/model.safetensors"
    assert one[weights] == two[weights]


# --- extending -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_methods_judges_and_tasks_extend_a_run(quick_copy: Path, run_quick: Run) -> None:
    before = markers(quick_copy)
    more = {"methods": ["lookahead-true"], "judges": ["keyword"], "train_tasks": ["samsum-mini"]}
    frame = run_quick(quick_copy, **more)
    after = markers(quick_copy)
    # The base model has one more task to answer; nothing that was there was done again.
    assert {name: after[name] for name in before} == before
    assert set(frame["method"]) == {"seed", "vanilla", "lookahead-true"}
    assert set(frame["train_task"]) == {"gsm8k-mini", "samsum-mini"}
    assert set(frame["judge"]) == {"mini-exact", "keyword"}
    assert set(frame["status"]) == {"done"}
    assert len(frame) == 3 * 2 * 2
    assert run_folder.stored_config(quick_copy).methods == ("seed", "vanilla", "lookahead-true")


@pytest.mark.slow
def test_variants_extend_a_run_as_rows_of_their_own(quick_copy: Path, run_quick: Run) -> None:
    before = markers(quick_copy)
    frame = run_quick(quick_copy, variants={"m2": M2}).set_index("method")
    assert list(frame.index) == ["seed", "vanilla", "m2"]
    assert {name: time for name, time in markers(quick_copy).items() if name in before} == before
    cells = (quick_copy / f"gsm8k-mini/{row}/seed-42" for row in ("vanilla", "m2"))
    plain, variant = (read_json(cell / "training.json") for cell in cells)
    assert (plain["method"]["name"], variant["method"]["name"]) == ("vanilla", "lookahead-true")
    assert variant["train_tokens"] > 2 * plain["train_tokens"]  # twice the epochs, and the preview
    assert frame.loc["m2", ["utility_delta", "rsr_delta", "jsr_delta"]].notna().all()
    stored = run_folder.stored_config(quick_copy)
    assert (stored.methods, [*stored.variants]) == (("seed", "vanilla"), ["m2"])


@pytest.mark.usefixtures("no_model")
def test_a_stored_variant_stays_and_another_comes_beside_it(quick_copy: Path) -> None:
    from harness import config

    stored = run_folder.stored_config(with_variant(quick_copy)).model_dump(mode="json")
    trust.remember(config.RunConfig.model_validate(stored), quick_copy, None)  # the user's own run
    m3 = {"m3": {"method": "lookahead-true", "options": {"preview_tokens": 3}}}
    wanted = config.RunConfig.model_validate({**stored, "variants": m3})
    joined = run_folder.join(RunContext(wanted, quick_copy))
    assert plan.methods(joined) == ["vanilla", "m2", "m3"]
    assert joined.row("m2").options == {"preview_tokens": 2}


@pytest.mark.slow
def test_seeds_extend_a_run_and_give_mean_rows(quick_copy: Path, run_quick: Run) -> None:
    before = markers(quick_copy)
    frame = run_quick(quick_copy, seeds=[7])
    assert {name: time for name, time in markers(quick_copy).items() if name in before} == before
    assert list(zip(frame["method"], frame["seed"], strict=True)) == [
        (method, seed) for method in ("seed", "vanilla") for seed in ("7", "42", "mean")
    ]
    assert run_folder.stored_config(quick_copy).seeds == (42, 7)
    one, two = (read_json(quick_copy / f"gsm8k-mini/vanilla/seed-{seed}/training.json") for seed in (7, 42))
    assert one["seed"] != two["seed"]
    assert one["method"] == two["method"]


def test_a_checkpoint_from_elsewhere_and_cross_tasks(
    quick_copy: Path, small_run: Path, run_quick: Run
) -> None:
    checkpoint = small_run / "gsm8k-mini/vanilla/seed-42/checkpoint"
    given = {"methods": ["seed"], "checkpoints": {"mine": str(checkpoint)}}
    frame = run_quick(quick_copy, **given).set_index(["method", "train_task"])
    assert list(frame.index) == [
        *(("seed", "gsm8k-mini"), ("vanilla", "gsm8k-mini")),
        *(("seed", ""), ("mine", "")),  # nothing says where it was trained: against the base model
    ]
    mine = frame.loc[("mine", "")]
    assert mine["status"] == "done"
    assert pd.isna(mine["train_tokens"])
    again = run_quick(quick_copy, **given, trained_on={"mine": "gsm8k-mini"})
    assert list(again["method"]) == ["seed", "vanilla", "mine"]
    assert run_folder.stored_config(quick_copy).trained_on == {"mine": "gsm8k-mini"}
    assert set(again["train_task"]) == {"gsm8k-mini"}
    assert list(run_quick(quick_copy)["train_task"]) == ["gsm8k-mini"] * 3  # it stays declared
    with pytest.raises(HarnessError, match="no model folder"):
        run_quick(quick_copy, checkpoints={"other": "./nowhere"})
    assert "other" not in run_folder.stored_config(quick_copy).checkpoints


@pytest.mark.usefixtures("no_model")
def test_judging_again_generates_nothing_and_adds_rows(run_copy: Path, command: Run, values: Run) -> None:
    before = values(run_copy)
    kept = {p: p.stat().st_mtime_ns for p in run_copy.rglob("responses.jsonl")}
    ended = command("judge", run_copy, "--judge", "keyword")
    assert ended.code == 0
    after = values(run_copy)
    assert [row for row in after if row["judge"] == "mini-exact"] == before
    assert [row["method"] for row in after if row["judge"] == "keyword"] == [row["method"] for row in before]
    assert {p: p.stat().st_mtime_ns for p in run_copy.rglob("responses.jsonl")} == kept
    assert command("judge", run_copy, "--judge", "keyword").code == 0


@pytest.mark.usefixtures("no_model")
def test_a_judge_that_fails_does_not_become_the_runs(run_copy: Path, command: Run, plugin: Run) -> None:
    from harness.contracts import Judge

    class Raising(Judge):
        name = "raising"
        summary = ""

        def judge(self, exchanges: Any, context: Any) -> Any:
            raise RuntimeError("text")

    plugin("judge", "raising", Raising)
    ended = command("judge", run_copy, "--judge", "raising")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "judge 'raising' broke its contract" in ended.err
    assert run_folder.stored_config(run_copy).judges == ("mini-exact",)


@pytest.mark.parametrize(
    ("engine", "method", "step", "jobs"),
    [
        ("vllm", "vanilla", "train", 2),
        ("vllm", "sdft", "train", 1),  # its rewrites come from the engine
        ("vllm", "vanilla", "respond", 1),
        ("hf", "sdft", "respond", 2),
    ],
)
def test_vllm_has_one_engine_for_all(tmp_path: Path, engine: str, method: str, step: Any, jobs: int) -> None:
    from harness import config

    made = config.load(None, {"methods": [method], "engine": engine, "jobs": 2})
    cells = [cell for cell in plan.cells(made) if cell.kind == "trained"]
    assert compare._jobs(RunContext(made, tmp_path), step, cells) == jobs


# --- refusing --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.epochs=2", "training.epochs: 1 there, 2 here"),
        ("training.max_examples=31", "training.max_examples: 32 there, 31 here"),
        ("responses.limit=9", "responses.limit: 8 there, 9 here"),
        ("safety.prefill_tokens=5", "safety.prefill_tokens: 3 there, 5 here"),
        ("threads=2", "threads: 1 there, 2 here"),
        (
            "method_options.lookahead-true.preview_tokens=4",
            "method_options.lookahead-true: {} there, {'preview_tokens': 4} here",
        ),
    ],
)
def test_another_budget_is_refused_with_what_differs(
    run_copy: Path, command: Run, small: Run, snapshot: Run, setting: str, says: str
) -> None:
    before = snapshot(run_copy)
    ended = command("compare", "--methods", "all", "--out", run_copy, *small(), "--set", setting)
    assert ended.code == 1
    refused = f"{run_copy} holds a run of another configuration; choose another --out."
    assert ended.err == f"Error: {refused} What differs: {says}\n"
    assert snapshot(run_copy) == before


@pytest.mark.usefixtures("no_model")
def test_another_model_or_other_data_is_refused(
    run_copy: Path, small_run: Path, command: Run, small: Run, snapshot: Run, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "How?", "completion": "So."}\n', encoding="utf-8")
    before = snapshot(run_copy)
    other_model = small_run / "gsm8k-mini/vanilla/seed-42/checkpoint"
    for flags, says in (
        (["--model", other_model], "What differs: model: "),
        (["--train-data", rows], "train_data: None there, "),
    ):
        ended = command("compare", "--methods", "all", "--out", run_copy, *small(), *flags)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert says in ended.err
        assert snapshot(run_copy) == before


M2 = {"method": "lookahead-true", "options": {"preview_tokens": 2}, "training": {"epochs": 2}}


def with_variant(folder: Path) -> Path:
    """As if the run had had the variant from the beginning."""
    record = read_json(folder / "run.json")
    record["config"]["variants"] = {"m2": M2}
    write_json_atomic(folder / "run.json", record)
    return folder


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "vanilla", "options": {}}, "variants.m2.method: lookahead-true there, vanilla here"),
        ({"options": {}}, "variants.m2.options: {'preview_tokens': 2} there, {} here"),
        ({"training": {"epochs": 3}}, "variants.m2.training.epochs: 2 there, 3 here"),
        ({"training": {}}, "variants.m2.training.epochs: 2 there, 1 here"),
    ],
)
def test_another_variant_of_the_same_name_is_refused(
    quick_copy: Path, run_quick: Run, snapshot: Run, change: dict[str, Any], says: str
) -> None:
    before = snapshot(with_variant(quick_copy))
    with pytest.raises(HarnessError, match="What differs: ") as refused:
        run_quick(quick_copy, variants={"m2": M2 | change})
    assert says in str(refused.value)
    assert snapshot(quick_copy) == before


@pytest.mark.usefixtures("no_model")
def test_options_of_a_stored_variants_method_are_refused(quick_copy: Path, run_quick: Run) -> None:
    with_variant(quick_copy)
    with pytest.raises(
        HarnessError, match=r"method_options\.lookahead-true: {} there, {'connector': ' x '} here"
    ):
        run_quick(quick_copy, method_options={"lookahead-true": {"connector": " x "}})


def test_options_of_a_stored_method_are_refused_whichever_methods_are_asked_for(
    run_copy: Path, command: Run, small: Run, snapshot: Run
) -> None:
    before = snapshot(run_copy)
    changed = ("--methods", "vanilla", "--set", "method_options.lookahead-true.preview_tokens=2")
    ended = command("compare", "--out", run_copy, *small(), *changed)
    assert ended.code == 1
    assert "method_options.lookahead-true: {} there, {'preview_tokens': 2} here" in ended.err
    assert snapshot(run_copy) == before


@pytest.mark.usefixtures("no_model")
def test_data_of_a_task_that_is_new_to_the_run_extends_it(run_copy: Path, small: Run, tmp_path: Path) -> None:
    from harness import config

    rows = tmp_path / "test.jsonl"
    rows.write_text('{"question": "How many?", "answer": "#### 1"}\n', encoding="utf-8")
    stored = run_folder.stored_config(run_copy).model_dump(mode="json")
    wanted = {**stored, "train_tasks": ["gsm8k-mini", "gsm8k"], "data": {"gsm8k": str(rows)}}
    joined = run_folder.join(RunContext(config.RunConfig.model_validate(wanted), run_copy))
    assert joined.train_tasks == ("gsm8k-mini", "gsm8k")
    rows.write_text('{"question": "How few?", "answer": "#### 1"}\n', encoding="utf-8")
    with pytest.raises(HarnessError, match=r"data\.gsm8k: [0-9a-f]{12}… there"):
        run_folder.join(RunContext(config.RunConfig.model_validate(wanted), run_copy))


def test_a_second_command_on_the_same_run_gets_one_line(
    run_copy: Path, tmp_path: Path, command: Run, small: Run, snapshot: Run
) -> None:
    """Every command that writes there, or reads what another one may be writing."""
    before = snapshot(run_copy)
    said = f"Error: {run_copy}: another harness command is at work on this run; wait for it to end\n"
    with FileLock(run_copy / ".lock"):
        for arguments in (
            ["compare", "--methods", "all", "--out", run_copy, *small()],
            ["train", "vanilla", "--out", run_copy, *small()],
            ["respond", "mini", "--name", "mine", "--out", run_copy],
            ["sweep", "prefill-depth", "--run", run_copy],
            ["judge", run_copy, "--judge", "keyword"],
            ["score", run_copy],
            ["leaderboard", run_copy],
            ["leaderboard", run_copy, "--json"],
            ["report", run_copy],
            ["figures", run_copy],
            ["analyze", "categories", run_copy],
            ["analyze", "kl", run_copy],
            ["clean", run_copy, "--yes"],
            ["card", run_copy, "vanilla"],
            ["gate", run_copy, "--min-rsr", "50"],
        ):
            ended = command(*arguments)
            assert (ended.code, ended.err) == (1, said), arguments
        with run_folder.lock(tmp_path / "tuned"):
            flags = ["--utility-floor", "1", "--out", tmp_path / "tuned", *small()]
            ended = command("tune", *flags)
            assert (ended.code, ended.err.count("\n")) == (1, 1)
            assert "another harness tune is at work here" in ended.err
    assert snapshot(run_copy) == before
    assert command("compare", "--methods", "all", "--out", run_copy, *small()).code == 0


@pytest.mark.usefixtures("no_model")
def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, command: Run, small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    ended = command("compare", "--methods", "vanilla", "--out", tmp_path / "file" / "run", *small())
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "cannot be written (Not a directory); choose another --out" in ended.err
    if os.geteuid() == 0:  # root may write anywhere
        real = Path.mkdir

        def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
            if path.name == "locked":
                raise PermissionError(13, "Permission denied")
            real(path, *arguments, **options)

        monkeypatch.setattr(Path, "mkdir", mkdir)
    else:
        (tmp_path / "locked").mkdir(mode=0o555)
    ended = command("compare", "--methods", "vanilla", "--out", tmp_path / "locked", *small())
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "cannot be written (Permission denied); choose another --out" in ended.err


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"config": {"nonsense": 1}}'])
def test_a_broken_record_is_one_line(run_copy: Path, command: Run, small: Run, content: str) -> None:
    (run_copy / "run.json").write_text(content, encoding="utf-8")
    for arguments in (["score", run_copy], ["compare", "--methods", "all", "--out", run_copy, *small()]):
        ended = command(*arguments)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert str(run_copy / "run.json") in ended.err


@pytest.mark.slow
def test_a_method_is_trained_alone_whatever_the_run_has_left(
    quick_copy: Path, command: Run, small: Run
) -> None:
    (vanilla,) = quick_copy.glob("*/vanilla/seed-*")
    (vanilla / "train.done.json").unlink()
    flags = small(**{key: value for key, value in QUICK.items() if key != "methods"})
    assert command("train", "lookahead-true", "--out", quick_copy, *flags).code == 0
    assert len([*quick_copy.glob("*/lookahead-true/seed-*/train.done.json")]) == 1
    assert not (vanilla / "train.done.json").exists()


def test_what_is_laid_over_a_configuration_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness
    from harness import config
    from harness.leaderboard import tables

    given: list[Any] = []
    monkeypatch.setattr(compare, "compare", lambda resolved, *_: given.append(resolved))
    monkeypatch.setattr(tables, "read", lambda out: None)
    made = config.load("mini", {"training.epochs": 7})
    harness.compare(made, methods=["vanilla"], out=tmp_path, **{"training.batch_size": 3})
    assert (given[0].methods, given[0].training.epochs, given[0].training.batch_size) == (("vanilla",), 7, 3)


# --- failing ---------------------------------------------------------------------------------------


def test_a_judge_that_fails_is_named_beside_a_cell_that_does() -> None:
    judged = judging.Judged({"a": "a has no key"}, {"b": ["batch 1 is submitted"]})
    assert outcome.unfinished(judged) == [
        "a has no key",
        "judging goes on elsewhere; the same command collects it later. b: batch 1 is submitted",
    ]
    assert outcome.unfinished(judging.Judged()) == []


@pytest.mark.slow
def test_a_failed_cell_takes_no_other_with_it_and_is_mended_by_the_same_command(
    tmp_path: Path, command: Run, small: Run, plugin: Run, values: Run, quick_run: Path
) -> None:
    @dataclass
    class Broken(Method):
        name = "broken"
        summary = ""

        def after_training(self, model: Any, context: Any) -> None:
            raise ValueError("no such luck")

    @dataclass
    class Mended(Method):
        name = "broken"
        summary = ""

    class Mute(Judge):
        name = "mute"
        summary = ""

        def judge(self, exchanges: Iterable[Exchange], context: JudgeContext) -> Iterator[Verdict]:
            raise HarnessError("mute has no voice")

    plugin("method", "broken", Broken)
    plugin("judge", "mute", Mute)
    out = tmp_path / "run"
    flags = small(**{key: value for key, value in QUICK.items() if key != "methods"})
    arguments = ["compare", "--methods", "broken,vanilla", "--out", out, *flags]
    both = command(*arguments, "--out", tmp_path / "both", "--judge", "mini-exact,mute")
    assert both.err == (
        "Error: 1 of 3 cells failed. mute has no voice. The same command tries the failed ones again.\n"
    )
    ended = command(*arguments)
    assert ended.code == 1
    assert (
        ended.err
        == "Error: 1 of 3 cells failed; the others are done. The same command tries the failed ones again.\n"
    )
    assert "Traceback" not in ended.out
    status = {row["method"]: row["status"] for row in values(out)}
    assert status["seed"] == status["vanilla"] == "done"
    assert status["broken"].startswith("failed: ValueError: no such luck (traceback: ")
    assert "no such luck" in (out / "gsm8k-mini/broken/seed-42/error.log").read_text(encoding="utf-8")

    command("leaderboard", out)  # shows the same cause, and forgets nothing
    assert {row["method"]: row["status"] for row in values(out)} == status

    kept = markers(out)
    plugin("method", "broken", Mended)
    assert command(*arguments).code == 0
    rows = {row["method"]: row for row in values(out)}
    assert {row["status"] for row in rows.values()} == {"done"}
    assert {name: markers(out)[name] for name in kept} == kept
    assert not (out / "gsm8k-mini/broken/seed-42/error.log").exists()
    # What was mended is vanilla under another name, and gives vanilla's numbers.
    same = ("utility", "rsr", "jsr", "train_tokens")
    assert [rows["broken"][name] for name in same] == [rows["vanilla"][name] for name in same]
    assert [rows["vanilla"][name] for name in same] == [values(quick_run)[1][name] for name in same]


def test_the_python_api_raises_when_a_cell_fails(quick_copy: Path, run_quick: Run, plugin: Run) -> None:
    @dataclass
    class Broken(Method):
        name = "broken"
        summary = ""

        def after_training(self, model: Any, context: Any) -> None:
            raise HarnessError("the cause and the mend")

    plugin("method", "broken", Broken)
    with pytest.raises(outcome.CellsFailedError, match="1 of 3 cells failed"):
        run_quick(quick_copy, methods=["broken"])
    from harness.leaderboard import tables

    status = tables.read(quick_copy).set_index("method")["status"]
    assert status["broken"] == "failed: the cause and the mend"
    assert not (quick_copy / "gsm8k-mini/broken/seed-42/checkpoint").exists()


def test_a_folder_with_other_files_becomes_no_run(tmp_path: Path, command: Run, small: Run) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ended = command("compare", "--methods", "vanilla", "--out", tmp_path, *small())
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "holds other files (notes.txt) and no run" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_cleaning_a_whole_run_leaves_the_users_own_files(run_copy: Path, command: Run) -> None:
    (run_copy / "notes.txt").write_text("mine")
    assert command("clean", run_copy, "--all", "--yes").code == 0
    assert [path.name for path in run_copy.iterdir()] == ["notes.txt"]
