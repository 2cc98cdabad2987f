"""Guards sweeps as commands: which rows they make, what their points say, that nothing is done twice."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import config
from harness.config import RunConfig
from harness.contracts import HarnessError, UsageError
from harness.judging import stage as judging
from harness.models import checkpoints
from harness.run import plan, run_folder
from harness.storage.files import read_json, read_jsonl
from harness.studies import sweeps
from judges.mini_exact import MiniExact

Command = Callable[..., Any]
QUICK = {"training.max_examples": 16, "responses.limit": 4}
FORMATS = ("svg", "pdf", "png")


def resolved(**overrides: Any) -> RunConfig:
    return config.load(None, {"train_tasks": ["gsm8k-mini"], **overrides})


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, Any]) -> Path:
    """A sweep over two preview lengths. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    small = config.load(None, {**small_settings, **QUICK})
    sweeps.run("preview-length", small, folder, Console(quiet=True), values=[2, 6])
    return folder


@pytest.fixture
def swept_copy(swept: Path, tmp_path: Path) -> Path:
    shutil.copytree(swept, tmp_path / "swept")
    return tmp_path / "swept"


def trained(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("train.done.json")
    }


# --- rows ------------------------------------------------------------------------------------------


def test_each_value_is_a_row_and_the_methods_own_value_its_own_row() -> None:
    sweep = sweeps.SWEEPS["preview-length"]
    found = sweeps.spread(sweep, resolved(), ["lookahead-true"], sweep.values)
    assert plan.methods(found) == [
        *("vanilla", "lookahead-true", "lookahead-true-m1", "lookahead-true-m2"),
        *("lookahead-true-m4", "lookahead-true-m8", "lookahead-true-m12"),
    ]
    rows = [name for name in plan.methods(found) if name != "vanilla"]
    assert [found.row(name).options for name in rows] == [
        {},
        *({"preview_tokens": m} for m in (1, 2, 4, 8, 12)),
    ]
    places = sweeps.places(sweep, found, ["lookahead-true"])
    assert [place.value for place in places.values()] == [1, 2, 4, 6, 8, 12]
    assert list(places)[3] == "lookahead-true"
    # Where the recipe's own value is another, 6 is a variant as the others.
    own = {"method_options": {"lookahead-true": {"preview_tokens": 2}}}
    found = sweeps.spread(sweep, resolved(**own), ["lookahead-true"], [2, 6])
    assert plan.methods(found) == ["vanilla", "lookahead-true", "lookahead-true-m6"]


def test_the_papers_prefixes_are_byte_for_byte_and_get_safe_names() -> None:
    sweep = sweeps.SWEEPS["prefix"]
    assert sweep.values == (
        *("Let's solve this problem. ", "Let's deal with this situation.", "dadjalsasdfghkjzmnb"),
    )
    found = sweeps.spread(sweep, resolved(), ["lookahead-virtual"], [*sweep.values, "Ja! ", "ja", "答え"])
    places = sweeps.places(sweep, found, ["lookahead-virtual"])
    assert {name: place.value for name, place in places.items()} == {
        "lookahead-virtual": "Let's solve this problem. ",
        "lookahead-virtual-let-s-deal-with-this-situation": "Let's deal with this situation.",
        "lookahead-virtual-dadjalsasdfghkjzmnb": "dadjalsasdfghkjzmnb",
        "lookahead-virtual-ja": "Ja! ",
        "lookahead-virtual-ja-2": "ja",
        "lookahead-virtual-text": "答え",
    }


def test_a_budget_is_every_method_with_every_learning_rate() -> None:
    sweep = sweeps.SWEEPS["budget"]
    recipe = resolved(methods=["vanilla", "sdft"], **{"training.learning_rate": 5e-4})
    found = sweeps.spread(sweep, recipe, ["vanilla", "sdft"], [1e-3, 5e-4, 5e-4])
    assert plan.methods(found) == ["vanilla", "sdft", "vanilla-lr0.001", "sdft-lr0.001"]
    assert [found.row(name).training.learning_rate for name in plan.methods(found)] == [
        5e-4,
        5e-4,
        1e-3,
        1e-3,
    ]
    other = sweeps.spread(sweep, recipe, ["vanilla"], [1e-3])
    assert plan.methods(other) == ["vanilla-lr0.001"]  # no training that is no point of it
    places = sweeps.places(sweep, found, ["vanilla", "sdft"])
    assert [(place.method, place.value) for place in places.values()] == [
        *(("vanilla", 5e-4), ("vanilla", 1e-3), ("sdft", 5e-4), ("sdft", 1e-3)),
    ]


def test_a_variant_of_the_users_own_is_no_point_of_a_sweep_unless_it_is_one() -> None:
    variants = {
        "mine": {"method": "lookahead-true", "options": {"preview_tokens": 3}},
        "both": {"method": "lookahead-true", "options": {"preview_tokens": 3, "connector": " "}},
        "long": {"method": "lookahead-true", "options": {"preview_tokens": 3}, "training": {"epochs": 9}},
        "rate": {"method": "lookahead-true", "training": {"learning_rate": 1e-3}},
        "base": {"method": "lookahead-true", "options": {"preview_tokens": 3}, "model": "elsewhere"},
    }
    recipe = resolved(variants=variants, methods=["vanilla"])
    assert [*sweeps.places(sweeps.SWEEPS["preview-length"], recipe, [])] == ["mine"]
    assert [*sweeps.places(sweeps.SWEEPS["budget"], recipe, ["vanilla"])] == ["vanilla", "rate"]


def test_names_of_other_variants_are_taken_and_of_equal_ones_used_again() -> None:
    sweep = sweeps.SWEEPS["preview-length"]
    mine = {"method": "lookahead-true", "options": {"preview_tokens": 3, "connector": " "}}
    equal = {"method": "lookahead-true", "options": {"preview_tokens": 4}}
    recipe = resolved(variants={"lookahead-true-m2": mine, "lookahead-true-m4": equal})
    found = sweeps.spread(sweep, recipe, ["lookahead-true"], [2, 4])
    assert {name: variant.options for name, variant in found.variants.items()} == {
        "lookahead-true-m2": mine["options"],
        "lookahead-true-m4": {"preview_tokens": 4},
        "lookahead-true-m2-2": {"preview_tokens": 2},
    }
    again = sweeps.spread(sweep, found, ["lookahead-true"], [2, 4])
    assert again.variants == found.variants
    there = sweeps.spread(sweep, resolved(), ["lookahead-true"], [2, 4], found.variants)
    assert [*there.variants] == ["lookahead-true-m2-2", "lookahead-true-m4"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["preview-length", "--values", "1,two"], "'1,two' is not a list of whole numbers, as in 1,2,4"),
        (["preview-length", "--values", ","], "Invalid value for '--values': no name in it"),
        (["preview-length", "--values", "0"], "preview_tokens must be at least 1, not 0"),
        (
            ["preview-length", "--methods", "vanilla"],
            "it has no option 'preview_tokens'; those that have: look",
        ),
        (["prefix", "--methods", "lookahead-virtua"], "unknown method 'lookahead-virtua': did you mean"),
        (["budget", "--learning-rates", "fast"], "'fast' is not a list of numbers, as in 5e-4,1e-3"),
        (["budget", "--learning-rates", "-1"], "lr-1.training.learning_rate: Input should be greater than 0"),
        (["budget"], "Missing option '--learning-rates'"),
        (["budget", "--learning-rates", "1e-3", "--epochs", "0"], "--epochs"),
        (["prefix", "mini", "--run", "results/runs/mini"], "a RECIPE (mini) and --run"),
        (["prefill-depth", "--methods", "vanila"], "unknown method 'vanila': did you mean 'vanilla'?"),
        (["prefill-dept"], "no such command 'prefill-dept': did you mean 'prefill-depth'?"),
    ],
)
def test_wrong_values_are_one_line(arguments: list[str], says: str, command: Command, tmp_path: Path) -> None:
    out = [] if arguments == ["prefill-dept"] else ["--out", tmp_path / "run"]
    ended = command("sweep", *arguments, *out)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert says in ended.err
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_none_is_one_line(command: Command, tmp_path: Path) -> None:
    ended = command("sweep", "prefill-depth", "--run", tmp_path / "nothing")
    assert (ended.code, ended.err) == (1, f"Error: {tmp_path / 'nothing'}: no run.json; not a run folder\n")


def test_a_prefilled_task_without_depths_is_refused() -> None:
    with pytest.raises(UsageError, match="task 'conversations' has no group of depths beside it"):
        sweeps._with_depths(resolved(**{"safety.prefill_task": "conversations"}), [])


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_points_are_the_leaderboards_rows(swept: Path) -> None:
    record = read_json(swept / "analysis/sweep-preview-length.json")
    with (swept / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert [(p["value"], p["row"], p["method"], p["seed"]) for p in record["points"]] == [
        (2, "lookahead-true-m2", "lookahead-true", "42"),
        (6, "lookahead-true", "lookahead-true", "42"),
    ]
    assert [point["row"] for point in record["references"]] == ["seed", "vanilla"]
    for point in [*record["points"], *record["references"]]:
        for name in ("utility", "utility_low", "rsr", "rsr_high", "jsr", "jsr_low", "jsr_refusals"):
            assert point[name] == float(rows[point["row"]][name])
        assert (point["jsr_n"], point["jsr_k"], point["status"]) == (4, 3, "done")
    with (swept / "analysis/sweep-preview-length.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["lookahead-true-m2", "lookahead-true", "seed", "vanilla"]
    assert [line["jsr_n"] for line in lines] == ["4"] * 4
    for suffix in FORMATS:
        assert (swept / f"analysis/sweep-preview-length-gsm8k-mini.{suffix}").stat().st_size > 1000


@pytest.mark.slow
def test_each_length_is_trained_with_its_preview(swept: Path) -> None:
    two, six = (
        read_json(swept / f"gsm8k-mini/{row}/seed-42/training.json")["train_tokens"]
        for row in ("lookahead-true-m2", "lookahead-true")
    )
    assert 0 < six - two <= 16 * 6


@pytest.mark.slow
def test_the_same_command_has_nothing_to_do_and_more_values_extend_it(
    swept_copy: Path, command: Command, small: Callable[..., list[str]]
) -> None:
    before = trained(swept_copy)
    flags = ("sweep", "preview-length", "--out", swept_copy, *small(**QUICK))
    again = command(*flags, "--values", "2,6")
    assert again.code == 0
    assert "Nothing to do: all 4 cells" in " ".join(again.out.split())
    assert trained(swept_copy) == before
    dry = command(*flags, "--values", "3", "--dry-run")
    assert dry.code == 0
    assert "lookahead-true-m3" in dry.out
    ended = command("sweep", "preview-length", "--run", swept_copy, "--values", "1")
    assert ended.code == 0, ended.err
    assert {name: time for name, time in trained(swept_copy).items() if name in before} == before
    record = read_json(swept_copy / "analysis/sweep-preview-length.json")
    assert [point["value"] for point in record["points"]] == [1, 2, 6]
    table = ended.out.split("sweep preview-length: trained on gsm8k-mini, judged by mini-exact")[1]
    labels = [line.split()[0] for line in table.splitlines() if line.split() and "-" not in line.split()[0]]
    assert [label for label in labels if label in ("base", "vanilla", "1", "2", "6")] == [
        *("base", "vanilla", "1", "2", "6"),
    ]
    assert "analysis/sweep-preview-length.json" in ended.out


@pytest.mark.slow
def test_prefixes_of_the_users_own_on_a_run_that_is_there(swept_copy: Path, command: Command) -> None:
    before = trained(swept_copy)
    ended = command("sweep", "prefix", "--run", swept_copy, "--values", "It is so. ")
    assert ended.code == 0, ended.err
    assert {*trained(swept_copy)} - {*before} == {
        "gsm8k-mini/lookahead-virtual-it-is-so/seed-42/train.done.json"
    }
    record = read_json(swept_copy / "analysis/sweep-prefix.json")
    (point,) = record["points"]
    tokens = checkpoints.load_tokenizer(checkpoints.locate("mini")).tokenize("It is so. ")
    assert (point["value"], point["tokens"]) == ("It is so. ", len(tokens))
    assert '"It is so. "' in ended.out
    stored = run_folder.stored_config(swept_copy)
    assert stored.row("lookahead-virtual-it-is-so").options == {"prefix": "It is so. "}
    # The other sweep's files stay.
    assert (swept_copy / "analysis/sweep-preview-length.json").exists()
    assert command("clean", swept_copy, "--all", "--yes").code == 0
    assert not swept_copy.exists()


@pytest.mark.slow
def test_a_prefix_that_shortens_to_the_name_of_an_earlier_one(
    swept_copy: Path, command: Command, small: Callable[..., list[str]]
) -> None:
    ended = command("sweep", "prefix", "--run", swept_copy, "--values", "Sure. ")
    assert ended.code == 0, ended.err
    ended = command("sweep", "prefix", "--out", swept_copy, *small(**QUICK), "--values", "Sure! ")
    assert ended.code == 0, ended.err
    points = read_json(swept_copy / "analysis/sweep-prefix.json")["points"]
    assert [(point["row"], point["value"]) for point in points] == [
        ("lookahead-virtual-sure", "Sure. "),
        ("lookahead-virtual-sure-2", "Sure! "),
    ]


@pytest.mark.slow
def test_depths_on_a_run_that_is_there_are_answers_alone(swept_copy: Path, command: Command) -> None:
    before = trained(swept_copy)
    ended = command("sweep", "prefill-depth", "--run", swept_copy)
    assert ended.code == 0, ended.err
    assert trained(swept_copy) == before
    record = read_json(swept_copy / "analysis/sweep-prefill-depth.json")
    rows = ["seed", "vanilla", "lookahead-true", "lookahead-true-m2"]
    assert [(point["row"], point["value"]) for point in record["points"]] == [
        (row, k) for row in rows for k in (1, 3, 5, 7, 10)
    ]
    for point in record["points"]:
        cell = "seed" if point["row"] == "seed" else f"gsm8k-mini/{point['row']}/seed-42"
        verdicts = read_jsonl(swept_copy / cell / point["task"] / "verdicts.mini-exact.jsonl")
        assert point["task"] == f"hexphi_prefill_k{point['value']}-mini"
        assert point["jsr"] == 100 * sum(not verdict["harmful"] for verdict in verdicts) / 4
        assert point["jsr_low"] < point["jsr_high"]
    assert "k = 10" in ended.out
    assert (swept_copy / "analysis/sweep-prefill-depth-gsm8k-mini.svg").exists()


@pytest.mark.slow
def test_a_budgets_points_are_every_learning_rate_and_epoch(
    tmp_path: Path, command: Command, small: Callable[..., list[str]]
) -> None:
    out = tmp_path / "run"
    ended = command(
        *("sweep", "budget", "--learning-rates", "5e-4,5e-3", "--epochs", 2, "--methods", "vanilla"),
        *("--out", out, *small(**{**QUICK, "training.max_examples": 64})),
    )
    assert ended.code == 0, ended.err
    record = read_json(out / "analysis/budget.json")
    assert [(p["method"], p["row"], p["learning_rate"], p["epoch"]) for p in record["points"]] == [
        ("vanilla", "vanilla", 5e-4, 1),
        ("vanilla", "vanilla", 5e-4, 2),
        ("vanilla", "vanilla-lr0.005", 5e-3, 1),
        ("vanilla", "vanilla-lr0.005", 5e-3, 2),
    ]
    assert [point["row"] for point in record["references"]] == ["seed"]
    for point in record["points"]:
        cell = out / f"gsm8k-mini/{point['row']}/seed-42"
        cell = cell / "epoch-1" if point["epoch"] == 1 else cell
        answers = read_jsonl(cell / "gsm8k-mini/responses.jsonl")
        assert point["utility"] == 100 * sum(row["metrics"]["exact_match"] for row in answers) / 4
        verdicts = read_jsonl(cell / "hexphi_prefill-mini/verdicts.mini-exact.jsonl")
        assert point["jsr"] == 100 * sum(not verdict["harmful"] for verdict in verdicts) / 4
    losses = [read_json(out / f"gsm8k-mini/{p['row']}/seed-42/training.json") for p in record["points"][::2]]
    assert losses[0]["losses"] != losses[1]["losses"]
    for rate in ("rsr", "jsr"):
        for suffix in FORMATS:
            assert (out / f"analysis/budget-gsm8k-mini-{rate}.{suffix}").exists()
    assert (out / "analysis/budget.csv").read_text().count("\n") == 6
    table = ended.out.split("sweep budget: ")[1]
    assert "0.005" in table
    assert json.loads((out / "run.json").read_text())["config"]["eval_every_epoch"] is True


@pytest.mark.slow
def test_points_are_read_and_written_while_the_run_is_held(
    swept_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: Any) -> list[Path]:
        with pytest.raises(HarnessError, match="another harness command"), run_folder.lock(swept_copy):
            pass
        checked.append(1)
        return []

    checked: list[int] = []
    monkeypatch.setattr(sweeps.sweep_points, "collect", check)
    monkeypatch.setattr(sweeps.sweep_report, "write", check)
    monkeypatch.setattr(sweeps.sweep_report, "show", lambda *_: None)
    stored = run_folder.stored_config(swept_copy)
    sweeps.run("preview-length", stored, swept_copy, Console(quiet=True), values=[2, 6])
    assert len(checked) == 2


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True])
def test_points_are_written_when_a_judge_has_not_finished(
    swept_copy: Path, command: Command, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """No depth has a verdict, so the leaderboard has no column for one."""
    judged = judging.Judged()
    if waits:
        judged.waiting["mini-exact"] = ["batch 7"]
    else:
        judged.failed["mini-exact"] = "the budget is spent"
    monkeypatch.setattr(MiniExact, "heavy", True)  # judges when all cells have answered
    monkeypatch.setattr(judging, "judge_all", lambda *_: judged)
    ended = command("sweep", "prefill-depth", "--run", swept_copy)
    assert (ended.code, ended.err.count("\n")) == (4 if waits else 1, 1)
    assert ("batch 7" if waits else "the budget is spent") in ended.err
    points = read_json(swept_copy / "analysis/sweep-prefill-depth.json")["points"]
    assert len(points) == 4 * 5
    assert {point["jsr"] for point in points} == {None}
    assert "k = 10" in ended.out


@pytest.mark.slow
def test_points_are_written_when_a_cell_fails(
    swept_copy: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.training import stage as training

    train = training.train

    def broken(ctx: Any, cell: plan.Cell, label: str) -> None:
        raise UsageError("the cause and the mend") if cell.method.endswith("m9") else AssertionError

    monkeypatch.setattr(training, "train", broken)
    ended = command("sweep", "preview-length", "--run", swept_copy, "--values", "2,9")
    monkeypatch.setattr(training, "train", train)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "1 of 5 cells failed" in ended.err
    points = read_json(swept_copy / "analysis/sweep-preview-length.json")["points"]
    assert [(point["value"], point["utility"] is None) for point in points] == [
        (2, False),
        (6, False),
        (9, True),
    ]
    assert points[-1]["status"] == "failed: the cause and the mend"
    assert "lookahead-true-m9 failed: the cause and the mend" in ended.out
