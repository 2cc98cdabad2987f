"""`harness analyze kl`: means, intervals and correlations by hand, and the command on a real small run."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console
from scipy.stats import pearsonr, spearmanr

from harness.analyses import divergence, divergence_report
from harness.analyses.divergence_report import average, correlate, correlations
from harness.analyses.token_divergence import summarize
from harness.figures import charts
from harness.leaderboard import statistics
from harness.storage.files import read_json, read_jsonl

VALUES = {"a": [1.0, 3.0, 5.0], "b": [2.0, 2.0, 8.0], "c": [6.0]}


# --- figures ---------------------------------------------------------------------------------------


def test_positions_are_over_the_answers_that_reach_them() -> None:
    found = summarize(VALUES, 4)
    assert found["n"] == 3
    positions = found["positions"]
    assert [one["position"] for one in positions] == [1, 2, 3, 4]
    assert [one["value"] for one in positions] == [3.0, 2.5, 6.5, None]
    assert [one["n"] for one in positions] == [3, 2, 2, 0]
    interval = statistics.mean([1.0, 2.0, 6.0])
    assert (positions[0]["low"], positions[0]["high"]) == (interval.low, interval.high)


def test_the_first_k_tokens_are_a_mean_over_prompts() -> None:
    first = {one["tokens"]: one for one in summarize(VALUES, 4)["first"]}
    assert set(first) == {2, 4}  # no more than were read
    assert first[2]["value"] == pytest.approx((2 + 2 + 6) / 3)
    assert first[4]["value"] == pytest.approx((3 + 4 + 6) / 3)
    interval = statistics.mean([3.0, 4.0, 6.0])
    assert (first[4]["low"], first[4]["high"], first[4]["n"]) == (interval.low, interval.high, 3)


def checkpoint(method: str, task: str | None, kl: float, rsr: float | None, **more: Any) -> dict[str, Any]:
    values = {"train_task": task, "method": method, "seed": 1, "rsr": rsr, "jsr": 10.0}
    return {**values, **summarize({"a": [kl, kl]}, 2), **more}


def test_seeds_are_averaged_and_their_spread_is_kept() -> None:
    rows = [checkpoint("lisa", "t", 1.0, 90.0), checkpoint("lisa", "t", 4.0, 80.0, seed=2)]
    (row,) = average([*rows])
    assert (row["seeds"], row["rsr"], row["jsr"]) == ([1, 2], 85.0, 10.0)
    assert row["first"] == [{"tokens": 2, "value": 2.5, "lowest": 1.0, "highest": 4.0}]
    assert row["positions"][1] == {"position": 2, "value": 2.5, "lowest": 1.0, "highest": 4.0}
    rows[1]["rsr"] = None
    assert average(rows)[0]["rsr"] is None  # half a mean would say something else


def test_correlations_and_their_intervals() -> None:
    pairs = [(0.1, 99.0), (0.2, 80.0), (0.4, 85.0), (0.9, 40.0), (2.0, 41.0), (0.3, 70.0)]
    found = correlate(pairs)
    x, y = zip(*pairs, strict=True)
    pearson = pearsonr(x, y)
    assert found["pearson"]["value"] == pytest.approx(pearson.statistic)
    interval = pearson.confidence_interval(0.95)
    assert found["pearson"]["low"] == pytest.approx(interval.low)
    assert found["pearson"]["high"] == pytest.approx(interval.high)
    rho = spearmanr(x, y).statistic
    assert found["spearman"]["value"] == pytest.approx(rho)
    assert rho < 0
    reach = 1.959964 * math.sqrt((1 + rho**2 / 2) / 3)
    assert found["spearman"]["low"] == pytest.approx(math.tanh(math.atanh(rho) - reach), rel=1e-5)
    assert found["spearman"]["high"] == pytest.approx(math.tanh(math.atanh(rho) + reach), rel=1e-5)
    assert (found["n"], found["reason"]) == (6, None)


def test_what_has_no_correlation_says_why() -> None:
    few = correlate([(0.1, 1.0), (0.2, 2.0), (0.3, 3.0)])
    assert few == {"spearman": None, "pearson": None, "n": 3, "reason": "needs 4 checkpoints, has 3"}
    same = correlate([(0.1, 100.0), (0.2, 100.0), (0.3, 100.0), (0.5, 100.0)])
    assert (same["spearman"], same["reason"]) == (None, "all 4 checkpoints have the same safe rate")
    assert correlate([(0.1, float(i)) for i in range(4)])["reason"] == "all 4 checkpoints have the same KL"
    perfect = correlate([(float(i), 90.0 - i) for i in range(5)])
    assert perfect["pearson"]["value"] == pytest.approx(-1)
    assert perfect["spearman"] == {"value": pytest.approx(-1), "low": None, "high": None}


def test_correlations_are_over_all_and_within_each_train_task() -> None:
    rows = [
        checkpoint(f"m{i}", task, kl=i + 1.0 + base, rsr=90.0 - i + 10 * base)
        for task, base in (("t", 0.0), ("u", 9.0))
        for i in range(4)
    ]
    rows.append(checkpoint("mine", None, kl=2.5, rsr=None))
    found = {(one["train_task"], one["metric"]): one for one in correlations(rows)}
    assert set(found) == set(itertools.product((None, "t", "u"), ("rsr", "jsr")))
    assert found["t", "rsr"]["pearson"]["value"] == pytest.approx(-1)
    assert found["u", "rsr"]["spearman"]["value"] == pytest.approx(-1)
    assert found[None, "rsr"]["pearson"]["value"] > 0.9  # of the train tasks, not of the methods
    assert found[None, "rsr"]["n"] == 8  # the one without a rate is left out
    assert found[None, "jsr"]["reason"] == "all 9 checkpoints have the same safe rate"
    alone = correlations(rows[:4])
    assert {one["train_task"] for one in alone} == {None}


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def analyzed(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run whose divergences have been measured. Read only."""
    import shutil

    folder = tmp_path_factory.mktemp("analyzed") / "run"
    shutil.copytree(small_run, folder)
    settings = divergence.Settings(tokens=10)
    divergence_report.kl(folder, settings, Console(quiet=True), batch_size=4)
    return folder


@pytest.mark.slow
def test_the_record_holds_what_the_files_say(analyzed: Path) -> None:
    record = read_json(analyzed / "analysis/kl.json")
    assert (record["answers"], record["tokens"], record["dtype"]) == ("harmful", 10, "float32")
    assert (record["task"], record["judge"], record["missing"]) == ("hexphi_prefill-mini", "mini-exact", [])
    leaderboard = {row["method"]: row for row in read_json(analyzed / "leaderboard.json")["rows"]}
    for row in record["rows"]:
        folder = analyzed / f"analysis/kl/gsm8k-mini/{row['method']}/seed-42"
        values = {one["id"]: one["kl"] for one in read_jsonl(folder / "divergences.jsonl")}
        assert row["n"] == len(values) == 8
        fourth = [kl[3] for kl in values.values()]
        assert row["positions"][3]["value"] == pytest.approx(sum(fourth) / 8)
        assert row["positions"][3]["low"] <= row["positions"][3]["value"] <= row["positions"][3]["high"]
        assert [one["tokens"] for one in row["first"]] == [2, 4, 6, 8]
        assert (row["rsr"], row["jsr"]) == tuple(leaderboard[row["method"]][name] for name in ("rsr", "jsr"))
    assert len(record["correlations"]) == 2 * 4
    assert {one["n"] for one in record["correlations"]} == {8}


def test_the_csv_is_the_record(analyzed: Path) -> None:
    record = read_json(analyzed / "analysis/kl.json")
    with (analyzed / "analysis/kl.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * (10 + 4)
    mine = [row for row in rows if (row["method"], row["figure"], row["tokens"]) == ("sdft", "first", "4")]
    own = next(row for row in record["rows"] if row["method"] == "sdft")["first"][1]
    assert [(float(r["value"]), float(r["low"]), float(r["high"]), int(r["n"])) for r in mine] == [
        (own["value"], own["low"], own["high"], own["n"])
    ]


def test_the_figures_show_every_method(analyzed: Path) -> None:
    methods = {row["method"] for row in read_json(analyzed / "analysis/kl.json")["rows"]}
    for stem in ("kl", "kl-safety"):
        for kind in charts.FORMATS:
            assert (analyzed / f"analysis/{stem}.{kind}").stat().st_size > 1_000
        root = ElementTree.fromstring((analyzed / f"analysis/{stem}.svg").read_text())
        texts = {"".join(one.itertext()).strip() for one in root.iter() if one.tag.endswith("text")}
        assert methods <= texts


def test_no_text_of_a_request_or_an_answer_is_anywhere(analyzed: Path) -> None:
    from harness.mini import data

    written = [
        path.read_text(encoding="utf-8")
        for path in (analyzed / "analysis").rglob("*")
        if path.suffix in (".json", ".jsonl", ".csv", ".svg")
    ]
    assert len(written) > 10
    record = read_json(analyzed / "analysis/kl.json")
    console = Console(file=io.StringIO(), width=100)
    divergence_report.show(record, analyzed, console)
    for row in data.harmful()[:8]:
        for text in (row["instruction"], row["harmful_answer"]):
            assert not any(text in one for one in [*written, console.file.getvalue()])


def test_the_tables_fit_a_hundred_columns(analyzed: Path) -> None:
    record = read_json(analyzed / "analysis/kl.json")
    console = Console(file=io.StringIO(), width=100)
    divergence_report.show(record, Path("run"), console)
    text = console.file.getvalue()
    tables = text[: text.index("KL(base || tuned)")]
    assert all(cell_len(line.rstrip()) <= 100 for line in tables.splitlines())
    row = next(row for row in record["means"] if row["method"] == "lookahead-true")
    line = next(line for line in text.splitlines() if line.startswith("lookahead-true"))
    assert line.split()[1:5] == [f"{one['value']:.3f}" for one in row["first"]]


def test_the_command_again_does_nothing_and_prints_the_same(
    analyzed: Path,
    command: Callable[..., Any],
    snapshot: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(divergence, "_open_base_model", never)
    before = snapshot(analyzed)
    ended = command("analyze", "kl", analyzed, "--tokens", 10, "--json")
    assert (ended.code, json.loads(ended.out)) == (0, read_json(analyzed / "analysis/kl.json"))
    assert snapshot(analyzed) == before
    ended = command("analyze", "kl", analyzed, "--tokens", 10)
    assert ended.code == 0
    assert "correlation of the mean KL over the first k tokens" in ended.out


def test_bad_input_is_one_line(
    analyzed: Path, run_copy: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    import shutil

    ended = command("analyze", "kl", analyzed, "--judge", "nobody")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "its judges: mini-exact" in ended.err
    assert command("analyze", "kl", tmp_path / "nowhere").code == 1
    for checkpoint_folder in run_copy.glob("*/*/seed-42/checkpoint"):
        shutil.rmtree(checkpoint_folder)
    ended = command("analyze", "kl", run_copy)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "is gone (harness clean?)" in ended.err


@pytest.mark.parametrize(("part", "noted"), [("all", False), ("final", True)])
def test_figures_over_a_part_of_the_documents_say_so(part: str, noted: bool) -> None:
    from harness import config

    settings = config.load("mini", {"responses.part": part})
    notes = divergence_report._make_record(settings, divergence.Settings(), "mini-exact", {}, {}, {})["notes"]
    assert ("Over the final documents alone: about 60% of each task's." in notes) is noted
