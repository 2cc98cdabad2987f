"""Guards the figures and tables of sweeps: every point with its interval, and nothing where there is none."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.studies import sweep_points, sweep_report

Point = dict[str, Any]


def point(
    row: str, figures: tuple[float | None, ...], method: str | None = None, **coordinates: Any
) -> Point:
    """``figures``: utility, RSR, JSR; intervals reach 2 down and 1 up."""
    found = {
        "train_task": "gsm8k-mini",
        "judge": "mini-exact",
        "seed": "42",
        "row": row,
        "method": method or row,
    }
    found |= coordinates | dict.fromkeys(sweep_points.MEASURES)
    for metric, value in zip(sweep_points.METRICS, figures, strict=True):
        if value is not None:
            found |= {
                metric: value,
                f"{metric}_low": value - 2,
                f"{metric}_high": value + 1,
                f"{metric}_n": 9,
            }
    return found | {"status": "failed: why" if figures[0] is None else "done"}


def record(name: str, points: list[Point], references: list[Point] | None = None) -> dict[str, Any]:
    return {
        "sweep": name,
        "axis": "m",
        "model": "mini",
        "judges": ["mini-exact"],
        "notes": ["A note."],
        "points": points,
        "references": references or [],
    }


def curves(figure: Any, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    axes = figure.axes[panel]
    return {
        curve.get_label(): [(x, y) for x, y in curve.lines[0].get_xydata().tolist() if not math.isnan(y)]
        for curve in axes.containers
    }


def bars(figure: Any, direction: int = -1, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Where each curve's interval bars begin and end: upright ones, or (0) level ones."""
    axes = figure.axes[panel]
    along = 0 if direction == 0 else 1
    return {
        curve.get_label(): [
            (float(segment[0][along]), float(segment[1][along]))
            for segment in curve.lines[2][direction].get_segments()
            if len(segment)  # a gap has none
        ]
        for curve in axes.containers
    }


LENGTHS = [
    point("true-m1", (10.0, 90.0, 50.0), "true", value=1),
    point("true-m4", (8.0, 95.0, 60.0), "true", value=4),
    point("true-m12", (None, None, None), "true", value=12),
]
REFERENCES = [point("seed", (5.0, 99.0, 80.0)), point("vanilla", (12.0, 80.0, 40.0))]


def test_values_are_curves_and_references_lines() -> None:
    figure = sweep_report.by_value(LENGTHS, REFERENCES, "m", "here")
    assert [axes.get_title() for axes in figure.axes] == ["utility", "RSR", "JSR"]
    assert [curves(figure, panel) for panel in range(3)] == [
        {"true": [(1, 10.0), (4, 8.0)]},
        {"true": [(1, 90.0), (4, 95.0)]},
        {"true": [(1, 50.0), (4, 60.0)]},
    ]
    assert bars(figure, panel=2)["true"] == [(48.0, 51.0), (58.0, 61.0)]
    levels = [
        (line.get_label(), line.get_ydata()[0])
        for axes in figure.axes
        for line in axes.lines
        if list(line.get_xdata()) == [0, 1]
    ]
    names, values = zip(*levels, strict=True)
    assert names == ("base model", "vanilla") * 3
    assert values == (5.0, 12.0, 99.0, 80.0, 80.0, 40.0)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "4", "12"]


def test_texts_stand_side_by_side_in_their_order() -> None:
    points = [point(str(n), (1.0 * n, 50.0, 50.0), "virtual", value="x" * 40 + str(n)) for n in range(3)]
    figure = sweep_report.by_value(points, [], "prefix", "here")
    assert curves(figure)["virtual"] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert all(len(text.get_text()) == 24 for text in figure.axes[0].get_xticklabels())


def test_several_methods_have_curves_of_their_own() -> None:
    points = [point(m, (1.0, 2.0, 3.0), m, value=v) for m in ("one", "two") for v in (1, 2)]
    figure = sweep_report.by_value(points, [], "m", "here")
    assert [[*curves(figure, panel)] for panel in range(3)] == [["one", "two"]] * 3
    assert curves(figure, 2)["two"] == [(1, 3.0), (2, 3.0)]


def test_depths_are_a_curve_a_row() -> None:
    points = [
        point(row, (0.0, 0.0, jsr - k), value=k)
        for row, jsr in (("seed", 90.0), ("vanilla", 50.0))
        for k in (1, 3)
    ]
    figure = sweep_report.by_depth(points, "k", "here")
    assert curves(figure) == {"base model": [(1, 89.0), (3, 87.0)], "vanilla": [(1, 49.0), (3, 47.0)]}


def test_a_budget_is_a_curve_a_training_with_its_learning_rate_and_epochs() -> None:
    points = [
        point("a", (20.0, 85.0, 45.0), "vanilla", learning_rate=1e-3, epoch=2),
        point("a", (30.0, 80.0, 40.0), "vanilla", learning_rate=1e-3, epoch=1),
        point("b", (25.0, 83.0, 41.0), "vanilla", learning_rate=2e-3, epoch=1),
        point("c", (15.0, 99.0, 70.0), "sdft", learning_rate=1e-3, epoch=1),
        point("d", (None, None, None), "sdft", learning_rate=2e-3, epoch=1),
    ]
    figure = sweep_report.by_utility(points, REFERENCES[:1], "jsr", "here")
    drawn = [
        (curve.get_label(), curve.lines[0].get_xydata().tolist(), curve.lines[0].get_color())
        for curve in figure.axes[0].containers
    ]
    assert [(name, way) for name, way, _ in drawn] == [
        ("base model", [[5.0, 80.0]]),
        ("vanilla", [[30.0, 40.0], [20.0, 45.0]]),  # by epoch
        ("vanilla", [[25.0, 41.0]]),
        ("sdft", [[15.0, 70.0]]),
    ]
    assert drawn[1][2] == drawn[2][2] != drawn[3][2]
    written = sorted(text.get_text() for text in figure.axes[0].texts)
    assert written == sorted(
        ["base model", "1", "lr 0.001, epoch 2", "lr 0.002, epoch 1", "lr 0.001, epoch 1"]
    )
    assert bars(figure, 0)["sdft"] == [(13.0, 16.0)]
    assert curves(sweep_report.by_utility(points, [], "rsr", "here"))["sdft"] == [(15.0, 99.0)]


def test_a_mean_without_an_interval_has_no_bar() -> None:
    bare = point("a", (10.0, 90.0, 50.0), value=1) | {"jsr_low": None, "jsr_high": None}
    assert bars(sweep_report.by_value([bare], [], "m", "here"), panel=2)["a"] == [(50.0, 50.0)]


def test_files_are_the_same_for_the_same_points(tmp_path: Path) -> None:
    files = [sweep_report.write(record("preview-length", LENGTHS, REFERENCES), tmp_path / n) for n in "ab"]
    assert [path.name for path in files[0]] == [
        *("sweep-preview-length.json", "sweep-preview-length.csv"),
        *(f"sweep-preview-length-gsm8k-mini.{kind}" for kind in ("svg", "pdf", "png")),
    ]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()


def shown(found: dict[str, Any], width: int = 80) -> str:
    file = io.StringIO()
    sweep_report.show(found, Console(file=file, width=width))
    assert all(len(line) <= width for line in file.getvalue().splitlines() if "trained on" not in line)
    return file.getvalue()


def test_the_table_names_values_intervals_and_failures() -> None:
    text = shown(record("preview-length", LENGTHS, REFERENCES))
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "10.0", "90.0", "50.0"] in lines
    assert ["8.0-11.0", "88.0-91.0", "48.0-51.0"] in lines
    assert ["12", "-", "-", "-"] in lines
    assert ["vanilla", "12.0", "80.0", "40.0"] in lines
    assert "true-m12 failed: why" in text
    assert "A note." in text


def test_the_depth_table_is_rows_by_depths() -> None:
    points = [point(row, (0.0, 0.0, 50.0 + k), value=k) for row in ("seed", "v") for k in (1, 3, 5, 7, 10)]
    lines = [line.split() for line in shown(record("prefill-depth", points)).splitlines()]
    assert ["base", "model", "51.0", "53.0", "55.0", "57.0", "60.0"] in lines
    assert ["v", "51.0", "53.0", "55.0", "57.0", "60.0"] in lines


def test_over_several_seeds_the_means_are_shown() -> None:
    seeds = [
        LENGTHS[0] | {"seed": seed, "jsr": jsr} for seed, jsr in (("1", 40.0), ("2", 60.0), ("mean", 50.5))
    ]
    text = shown(record("preview-length", seeds))
    assert "50.5" in text
    assert "40.0" not in text
    assert "Means over the seeds." in text
    only = sweep_points.shown(seeds, "gsm8k-mini", "mini-exact")
    assert [one["seed"] for one in only] == ["mean"]
    assert sweep_points.shown(seeds, "gsm8k-mini", "keyword") == []


@pytest.mark.parametrize("several", [False, True])
def test_a_method_is_named_where_there_are_several(several: bool) -> None:
    points = [*LENGTHS, point("other", (1.0, 2.0, 3.0), "other", value=1)] if several else LENGTHS
    assert ("method" in shown(record("preview-length", points, REFERENCES))) is several
