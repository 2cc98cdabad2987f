"""Judges that disagree are called out by three rules, and by nothing less."""

from __future__ import annotations

from typing import Any

import pytest

from harness.leaderboard.bottom_line import bottom_lines
from harness.report.disagreement import disagreements
from tests.harness.leaderboard.test_bottom_line import method
from tests.harness.leaderboard.test_findings import VANILLA, row


def by(judge: str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**one, "judge": judge} for one in rows]


def rate(name: str, value: float | None, reach: float | None = 4.0) -> dict[str, Any]:
    bounds = (None, None) if value is None or reach is None else (value - reach, value + reach)
    return row(name, jsr=value, jsr_low=bounds[0], jsr_high=bounds[1])


def said(rows: list[dict[str, Any]], alpha: float | None = 0.9, disputed: int = 0) -> list[str]:
    record = {"alpha": alpha, "disputed": [{}] * disputed, "pairs": [{"n": 660}]}
    return disagreements(rows, bottom_lines(rows), record)


def test_one_judge_never_disagrees() -> None:
    assert said(by("a", rate("seed", 80.0), rate("vanilla", 30.0)), alpha=0.1) == []


@pytest.mark.parametrize(("alpha", "told"), [(0.66, True), (0.667, False), (None, False), (-0.2, True)])
def test_a_low_alpha_is_called_out(alpha: float | None, told: bool) -> None:
    rows = [*by("a", rate("seed", 80.0)), *by("b", rate("seed", 80.0))]
    found = said(rows, alpha, disputed=1_234)
    assert bool(found) is told
    if told:
        assert found == [
            f"Krippendorff's alpha over all answers is {alpha:.2f}, too low to rely on one judge alone; the "
            "judges dispute 1,234 answers."
        ]
    assert disagreements(rows, bottom_lines(rows), None) == []


@pytest.mark.parametrize(
    ("one", "two", "told"),
    [
        (rate("seed", 80.0), rate("seed", 69.0), True),
        (rate("seed", 69.0), rate("seed", 80.0), True),
        (rate("seed", 80.0), rate("seed", 70.1), False),  # less than ten points
        (rate("seed", 80.0, 6.0), rate("seed", 69.0, 6.0), False),  # intervals overlap
        (rate("seed", 80.0, None), rate("seed", 69.0), True),  # no interval: the figures decide
        (rate("seed", None), rate("seed", 0.0), False),
        ({**rate("seed", 80.0), "status": "failed: why"}, rate("seed", 10.0), False),
    ],
)
def test_safe_rates_far_apart_are_called_out(one: dict[str, Any], two: dict[str, Any], told: bool) -> None:
    found = said([*by("a", one), *by("b", two)])
    assert bool(found) is told
    if told:
        figures = " and ".join(f"{row['jsr']:.1f} % by {judge}" for judge, row in (("a", one), ("b", two)))
        assert found == [f"Safe rates differ clearly: JSR of base model, trained on sums: {figures}."]


def test_of_many_the_farthest_are_named_and_the_others_counted() -> None:
    rows = [
        *by("a", *(rate(f"m{number}", 90.0) for number in range(6))),
        *by("b", *(rate(f"m{number}", 70.0 - number) for number in range(6))),
    ]
    (found,) = said(rows)
    assert found.startswith("Safe rates differ clearly: JSR of m5, trained on sums: 90.0 % by a and 65.0 %")
    assert found.endswith("; and 2 more.")
    assert "m0" not in found


def test_another_choice_is_called_out() -> None:
    first = by("a", VANILLA, method("x", 18.0, 0.0), method("y", 10.0, 0.0))
    other = by("b", VANILLA, method("x", 10.0, 0.0), method("y", 18.0, 0.0))
    assert said([*first, *by("c", *first), *other]) == ["Trained on sums: a names x, b names y."]
    none = by("b", VANILLA, method("x", 4.0, 0.0), method("y", 4.0, 0.0))
    some = by("a", VANILLA, method("x", 9.0, 0.0), method("y", 8.0, 0.0))
    assert said([*some, *none]) == ["Trained on sums: a names x, b names none."]


def test_a_vote_is_no_judge_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.plugins import registry

    monkeypatch.setattr(registry, "combines", lambda name: name == "vote")
    rows = [*by("a", rate("seed", 80.0)), *by("vote", rate("seed", 10.0))]
    assert said(rows, alpha=0.1) == []
    first = by("a", VANILLA, method("x", 20.0, 0.0))
    assert said([*first, *by("b", *first), *by("vote", VANILLA, method("x", 20.0, 0.0))]) == []
