"""Figures that pages under docs/ quote, computed again."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from harness import config
from harness.leaderboard import detectable, statistics
from harness.studies import family_simulation

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
BOTH, GAINED, LOST, N = 84, 74, 39, 330


def test_the_worked_example_of_the_statistics_page() -> None:
    values = {str(i): i < BOTH + GAINED for i in range(N)}
    baseline = {str(i): i < BOTH or BOTH + GAINED <= i < BOTH + GAINED + LOST for i in range(N)}
    found = statistics.paired_rate_difference(values, baseline)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert f"safe on {sum(baseline.values())} ({100 * sum(baseline.values()) / N:.1f} %)" in PAGE
    assert f"the method on {sum(values.values())} ({100 * sum(values.values()) / N:.1f} %)" in PAGE
    assert f"({GAINED} − {LOST}) / {N} = {100 * found.value:.1f} points" in PAGE
    assert f"gives {100 * found.low:.1f} to {100 * found.high:.1f}." in PAGE
    assert f"p = {found.p:.4f}." in PAGE


def test_its_star_and_power() -> None:
    others = [1e-6] * 8 + [0.5] * 5
    level = statistics.holm_levels([0.0013, *others])[0]
    assert level == pytest.approx(0.05 / 6)
    assert "0.05 / (14 − 8) = 0.0083" in PAGE
    alone = statistics.holm_levels([0.0013, *[0.5] * 13])[0]
    assert alone == pytest.approx(0.05 / 14)
    assert "0.05 / 14 = 0.0036" in PAGE
    least = detectable.of_rates(GAINED + LOST, N, level)
    assert least is not None
    assert f"a true difference of {100 * least:.1f} points gets a star in 80 %" in PAGE


def test_the_false_stars_are_those_of_the_simulation() -> None:
    frame = pd.read_csv(ROOT / "results/coverage-families.csv")
    said = family_simulation.summary(frame)
    assert said in (ROOT / "results/coverage.md").read_text(encoding="utf-8")
    assert "1 seed 2.6 (5); 3 seeds 8.1 (15); 5 seeds 4.4 (7)" in said
    for share in ("in 2.6 % of runs with one", "in 4.4 % with five", "three seeds it is 8.1 %", "up to 15 %"):
        assert share in PAGE.replace("\n  ", " ")


# --- docs/gpu.md ---------------------------------------------------------------------------------------


def test_each_setting_for_speed_is_on_the_page_as_it_is_not_by_default() -> None:
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+): (\S+)` \|", page, re.MULTILINE)
    fields = config.TrainingConfig.model_fields
    assert {*config.LATER, "compile", "liger", "expandable_segments"} <= {key for key, _ in named}
    for key, value in named:
        _, parsed = config.parse_setting(f"training.{key}={value}")
        settings = config.load("mini", {f"training.{key}": parsed}).training
        assert getattr(settings, key) == parsed != fields[key].default
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert all("not on a GPU yet" in line for line in lines if "`batching" not in line)
