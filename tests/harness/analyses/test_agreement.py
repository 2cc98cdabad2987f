"""Guards what is said of judges: published examples, planted error rates that must be found again, and files
that are not as they must be."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness.analyses import agreement
from harness.contracts import HarnessError
from harness.pipeline import rejudge
from harness.storage.files import read_jsonl, write_jsonl_atomic

Run = Callable[..., Any]


def key(number: int, cell: str = "seed") -> agreement.Key:
    return cell, "hexphi_raw", f"e{number}"


def of(*values: bool | None) -> dict[agreement.Key, bool | None]:
    return {key(number): value for number, value in enumerate(values)}


# --- between judges --------------------------------------------------------------------------------


def test_cohens_kappa_of_a_published_table() -> None:
    """Cohen's kappa on 50 proposals: 20 both yes, 15 both no, 5 and 10 apart: agreement 0.7, kappa 0.4."""
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    pair = agreement.between("a", "b", {"a": of(*first), "b": of(*second)})
    assert (pair.n, pair.agreement, pair.kappa) == (50, 0.7, pytest.approx(0.4))
    assert pair.confusion == {
        "harmful, harmful": 20,
        "harmful, safe": 5,
        "safe, harmful": 10,
        "safe, safe": 15,
    }
    assert pair.kappa_low is not None
    assert pair.kappa_low < 0.4 < (pair.kappa_high or 0)


def test_what_one_did_not_judge_is_not_compared() -> None:
    verdicts = {"a": of(True, None, False, True), "b": of(True, True, None, False)}
    pair = agreement.between("a", "b", verdicts)
    assert (pair.n, pair.agreement) == (2, 0.5)
    assert agreement.disputed(verdicts) == [key(3)]
    nothing = agreement.between("a", "b", {"a": of(None), "b": of(True)})
    assert (nothing.n, nothing.agreement, nothing.kappa) == (0, None, None)


def test_kappa_is_none_where_nothing_varies() -> None:
    same = agreement.between("a", "b", {"a": of(True, True), "b": of(True, True)})
    assert (same.agreement, same.kappa) == (1.0, None)
    assert agreement.alpha({"a": of(True, True), "b": of(True, True)}) is None
    assert agreement.alpha({"a": of(True, False)}) is None
    assert agreement.alpha({"a": of(True, None), "b": of(None, False)}) is None


@pytest.mark.filterwarnings("error")
def test_a_judge_that_always_says_the_same_is_no_warning() -> None:
    keys = [("seed", "raw", str(number)) for number in range(4)]
    always, never = dict.fromkeys(keys, True), dict.fromkeys(keys, False)
    pair = agreement.between("a", "b", {"a": always, "b": {**never, keys[0]: True}})
    assert (pair.agreement, pair.kappa) == (0.25, 0.0)


def test_krippendorffs_alpha_of_his_binary_example() -> None:
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example A: 0.095."""
    one = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    two = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    verdicts = {"a": of(*map(bool, one)), "b": of(*map(bool, two))}
    assert agreement.alpha(verdicts) == pytest.approx(0.095, abs=5e-4)


# --- against people --------------------------------------------------------------------------------


def test_rogan_gladen_by_hand() -> None:
    """p = 0.30, Se = 0.80, Sp = 0.90: (0.30 + 0.90 - 1) / (0.80 + 0.90 - 1) = 0.2857."""
    estimate, low, high = agreement.rogan_gladen(300, 1_000, 80, 100, 90, 100)
    assert estimate == pytest.approx(0.2 / 0.7)
    assert low is not None
    assert high is not None
    assert low < 0.2 / 0.7 < high
    wide = agreement.rogan_gladen(30, 100, 8, 10, 9, 10)
    assert (wide[2] or 0) - (wide[1] or 0) > high - low


def test_a_perfect_test_needs_no_correction() -> None:
    estimate, low, high = agreement.rogan_gladen(30, 100, 5_000, 5_000, 5_000, 5_000)
    assert estimate == pytest.approx(0.3)
    assert (low, high) == (pytest.approx(0.217, abs=0.01), pytest.approx(0.397, abs=0.01))  # Agresti-Coull's


@pytest.mark.parametrize(
    "counts",
    [(3, 10, 0, 0, 5, 5), (3, 10, 5, 5, 0, 0), (0, 0, 5, 5, 5, 5), (3, 10, 1, 4, 3, 4), (3, 10, 0, 4, 1, 4)],
)
def test_no_correction_where_the_labels_show_nothing(counts: tuple[int, ...]) -> None:
    assert agreement.rogan_gladen(*counts) == (None, None, None)


@given(st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_a_correction_is_a_rate_within_its_interval(numbers: list[int]) -> None:
    n = [numbers[0] + numbers[1], numbers[2] + numbers[3], numbers[4] + numbers[5]]
    estimate, low, high = agreement.rogan_gladen(numbers[0], n[0], numbers[2], n[1], numbers[4], n[2])
    assert (low is None) == (high is None)
    if estimate is not None:
        assert 0 <= estimate <= 1
    if low is not None and high is not None:
        assert 0 <= low <= high <= 1


@pytest.mark.parametrize("prevalence", [0.05, 0.3, 0.7])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.9, 0.95), (0.7, 0.8)])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    prevalence: float, sensitivity: float, specificity: float
) -> None:
    """2,000 simulated studies: 330 judged, 100 labels; 95 % nominal, and never far above."""
    draws = np.random.default_rng(0)
    held = known = 0
    for _ in range(2_000):
        harmful = draws.binomial(330, prevalence)
        found = draws.binomial(harmful, sensitivity) + draws.binomial(330 - harmful, 1 - specificity)
        labelled = max(2, draws.binomial(100, max(prevalence, 0.2)))
        true_positive = draws.binomial(labelled, sensitivity)
        true_negative = draws.binomial(100 - labelled, specificity)
        _, low, high = agreement.rogan_gladen(
            int(found), 330, int(true_positive), labelled, int(true_negative), 100 - labelled
        )
        if low is None or high is None:
            continue
        known += 1
        held += low <= prevalence <= high
    assert known > 1_900
    assert 0.93 <= held / known <= 0.995


@settings(deadline=None, max_examples=10, derandomize=True)  # the tolerances are 4 standard errors
@given(st.integers(0, 10_000))
def test_planted_error_rates_are_found_again(seed: int) -> None:
    """Judges with known error rates on 3,000 exchanges of a known harm rate, a third of them labelled."""
    draws = random.Random(seed)
    rates = {"a": 0.2, "b": 0.6}
    truth = {key(number, cell): draws.random() < rates[cell] for cell in rates for number in range(1_500)}
    planted = {"strict": (0.95, 0.80), "lax": (0.70, 0.97)}
    labels = {one: truth[one] for one in draws.sample(list(truth), 1_000)}
    for judge, (sensitivity, specificity) in planted.items():
        given = {
            one: (draws.random() < sensitivity) if harmful else (draws.random() >= specificity)
            for one, harmful in truth.items()
        }
        found = agreement.accuracy(judge, given, labels)
        assert found.recall.value == pytest.approx(sensitivity, abs=0.1)
        assert found.specificity.value == pytest.approx(specificity, abs=0.1)
        for row in agreement.corrected(judge, given, labels):
            safe = 1 - sum(harmful for one, harmful in truth.items() if one[0] == row.cell) / 1_500
            assert row.corrected == pytest.approx(safe, abs=0.13)
            assert abs(row.safe - safe) > 0.02 or abs((row.corrected or 0) - safe) < 0.13


def test_accuracy_counts_what_was_not_judged_apart() -> None:
    labels = {key(number): harmful for number, harmful in enumerate([True, True, False, False, True])}
    found = agreement.accuracy("j", of(True, False, True, False, None), labels)
    assert (found.n, found.unjudged) == (4, 1)
    assert (found.precision.value, found.recall.value, found.specificity.value) == (0.5, 0.5, 0.5)
    assert found.confusion == {"harmful, harmful": 1, "harmful, safe": 1, "safe, harmful": 1, "safe, safe": 1}


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_judges(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with a second judge and the vote. Read only."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(small_run, folder)
    rejudge.judge_again(folder, ["keyword", "vote"], Console(quiet=True))
    return folder


def test_a_run_from_template_to_corrected_rates(two_judges: Path, tmp_path: Path, command: Run) -> None:
    plain = command("agreement", two_judges)
    assert plain.code == 0, plain.err
    assert "Krippendorff's alpha over all of them" in plain.out
    assert all(len(line) <= 100 for line in plain.out.splitlines())
    labels = tmp_path / "labels.jsonl"
    assert command("agreement", two_judges, "--template", labels, "--sample", "60").code == 0
    rows = read_jsonl(labels)
    assert len(rows) == 60
    assert set(rows[0]) == {"cell", "task", "exchange_id", "harmful"}
    assert command("agreement", two_judges, "--template", labels).code == 2  # no label is overwritten
    exact = agreement.collect(two_judges)["mini-exact"]
    for row in rows:
        row["harmful"] = exact[row["cell"], row["task"], row["exchange_id"]]
    write_jsonl_atomic(labels, rows)
    record = json.loads(command("agreement", two_judges, "--labels", labels, "--json").out)
    by_judge = {row["judge"]: row for row in record["accuracy"]}
    assert by_judge["mini-exact"]["recall"]["value"] == 1.0
    assert set(by_judge) == {"mini-exact", "keyword", "vote"}
    assert [pair["judges"] for pair in record["pairs"]] == [["mini-exact", "keyword"]]
    assert record["labels"]["n"] == 60
    for row in record["corrected"]:
        if row["judge"] == "mini-exact":
            assert row["corrected"] == pytest.approx(row["safe"])
    shown = command("agreement", two_judges, "--labels", labels)
    assert "Safe rates corrected for the judge's errors" in shown.out
    for file in two_judges.rglob("responses.jsonl"):
        for row in read_jsonl(file):
            assert row["prompt"] not in plain.out + shown.out


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"cell": "seed"}'], "line 1: no 'task'"),
        (["{"], "line 1: not valid JSON"),
        (
            ['{"cell": "seed", "task": "t", "exchange_id": "x", "harmful": true}'],
            "the run has no exchange seed / t",
        ),
        (
            ['{"cell": "seed", "task": "t", "exchange_id": "x", "harmful": "yes"}'],
            "must be true, false or null",
        ),
        (['{"cell": "seed", "task": "t", "exchange_id": "x", "harmful": null}'], "no line has a label"),
        ([], "no line has a label"),
    ],
)
def test_labels_that_are_none(
    two_judges: Path, tmp_path: Path, command: Run, lines: list[str], says: str
) -> None:
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    ended = command("agreement", two_judges, "--labels", tmp_path / "labels.jsonl")
    assert ended.code in (1, 2)
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_one_judge_alone_agrees_with_nobody(small_run: Path) -> None:
    with pytest.raises(HarnessError, match="only 'mini-exact' has judged it; add another"):
        agreement.analyse(small_run)
