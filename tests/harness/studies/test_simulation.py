"""Guards the simulation that chose the intervals: runs are what a setting says, a wrong interval shows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm

from harness.leaderboard.spread import Spread
from harness.studies import family_simulation, simulation
from harness.studies.family_simulation import FamilySetting
from harness.studies.simulation import Coverage, Setting, coverage, seed_effect, settings, simulate


def found(setting: Setting, runs: int = 300, n: int = 330) -> Coverage:
    return coverage(setting, runs=runs, n=n, rng=np.random.default_rng(11))


@pytest.mark.parametrize(
    "setting",
    [
        Setting("rate", 0.02),
        Setting("rate", 0.5),
        Setting("rate", 0.9, 0.9),
        Setting("rate", 0.8, None, 3, 0.02),
        Setting("rate", 0.5, None, 5, 0.05),
        Setting("rate", 0.6, 0.5, 3, 0.0),
        Setting("rate", 0.6, 0.5, 3, 0.05),
        Setting("mean", 0.5, None, 3, 0.02),
        Setting("mean", 0.55, 0.5, 5, 0.02),
    ],
)
def test_intervals_hold_the_truth(setting: Setting) -> None:
    assert 91 <= found(setting).coverage <= 99  # 300 runs: 1.3 points of standard error


def test_unjudged_answers_do_not_spoil_them() -> None:
    assert 90 <= found(Setting("rate", 0.6, 0.5, 3, 0.02, 0.1), runs=100, n=100).coverage <= 99.5


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("deviation", [0.02, 0.05])
def test_the_seeds_deviate_as_the_setting_says(rate: float, deviation: float) -> None:
    own = 2.0
    spread = seed_effect(rate, deviation, own)
    seeds = np.random.default_rng(0).standard_normal(200_000) * spread
    rates = norm.cdf((norm.ppf(rate) * np.sqrt(own + spread**2) + seeds) / np.sqrt(own))
    assert rates.mean() == pytest.approx(rate, abs=0.001)
    assert rates.std() == pytest.approx(deviation, rel=0.02)
    assert seed_effect(rate, 0.0, own) == 0.0


@pytest.mark.parametrize("figure", ["rate", "mean"])
def test_answers_have_the_rate_and_share_their_documents(figure: Any) -> None:
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((400, 200, 1))
    setting = Setting(figure, 0.3, None, 2, 0.02, unjudged=0.1)
    answers = simulation.answers(setting, 0.3, documents, rng)
    assert np.isnan(answers).mean() == pytest.approx(0.1, abs=0.01)
    assert np.nanmean(answers) == pytest.approx(0.3, abs=0.005)
    both = answers[~np.isnan(answers).any(axis=2)]
    assert np.corrcoef(both.T)[0, 1] > 0.25


def test_an_interval_that_is_too_narrow_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("rate", 0.5, None, 3, 0.05)
    whole = found(setting)
    monkeypatch.setattr(Spread, "quantile", lambda self, alpha=0.05: 1.96)
    narrow = found(setting)
    assert narrow.coverage < 90 < whole.coverage
    assert narrow.width < whole.width
    assert (narrow.outside, Coverage(95.0, 1).outside, Coverage(97.5, 1).outside) == ("below", "", "above")


def test_the_default_settings_are_those_asked_for() -> None:
    chosen = settings()
    assert len(set(chosen)) == len(chosen)
    for seeds in (1, 3, 5):
        for deviation in (0.0, 0.02, 0.05) if seeds > 1 else (0.0,):
            mine = [s for s in chosen if (s.seeds, s.seed_deviation, s.unjudged) == (seeds, deviation, 0)]
            rates = [s.rate for s in mine if s.figure == "rate" and s.baseline is None]
            assert (min(rates), max(rates), len(rates)) == (0.02, 0.98, 13)
            assert any(s.baseline == s.rate for s in mine)
            assert {s.figure for s in mine} == {"rate", "mean"}


def test_the_same_seed_gives_the_same_table_and_files(tmp_path: Path) -> None:
    chosen = [Setting("rate", 0.98, None, 5, 0.05), Setting("rate", 0.5)]
    first, second = (simulate(chosen, runs=200, n=330, seed=3) for _ in range(2))
    assert first.equals(second)
    assert not first.equals(simulate(chosen, runs=200, n=330, seed=4))
    assert first["outside"].tolist() == ["below", ""]
    table = simulation.make_table(first)
    other = replace(table, name="-more", title="More")
    simulation.write([table, other], tmp_path / "coverage.csv", "harness simulate")
    assert (tmp_path / "coverage-more.csv").read_text() == (tmp_path / "coverage.csv").read_text()
    rows = list(csv.DictReader((tmp_path / "coverage.csv").open()))
    assert (rows[0]["rate"], rows[0]["seed_sd"], rows[0]["outside"], rows[1]["baseline"]) == (
        "98.0",
        "5.0",
        "below",
        "",
    )
    text = (tmp_path / "coverage.md").read_text()
    assert text.index("## Coverage of each interval alone") < text.index("## More")
    assert "`harness simulate`" in text
    assert "1 of 2 settings hold 93 to 97 %." in text
    console = Console(record=True, width=100)
    simulation.show(table, console)
    assert "below" in console.export_text()


def test_the_command_prints_rows_and_writes_them(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "settings", lambda: [Setting("rate", 0.5)])
    monkeypatch.setattr(family_simulation, "settings", lambda: [FamilySetting("rate", 0.6, 0.5, 1)])
    few = ("simulate", "--runs", 50, "--family-runs", 5)
    ended = command(*few, "--json", "--out", tmp_path / "c.csv")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [(row["rate"], row["n"]) for row in found["intervals"]] == [(50.0, 330)]
    assert [(row["rate"], row["differing"]) for row in found["families"]] == [(60.0, 1)]
    text = (tmp_path / "c.md").read_text()
    assert "harness simulate --runs 50 --family-runs 5" in text
    assert "Families of 14 comparisons" in text
    assert (tmp_path / "c-families.csv").is_file()
    shown = " ".join(command(*few).out.split())  # however the lines are broken
    assert "of 1 settings hold" in shown
    assert "Power of max-T" in shown
    assert command("simulate", "--runs", 0).code == 2
