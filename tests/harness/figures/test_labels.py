"""Labels touch neither marks nor each other; what has no room is handed back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.figures import charts
from harness.figures.labels import Label, along, place_labels, shortened


def drawn(points: list[tuple[float, float]], texts: list[str]) -> tuple[Any, Any, list[Label]]:
    figure, axes = charts.canvas("", "x", "y", size=(5.2, 4.2))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    labels = [Label(point, text) for point, text in zip(points, texts, strict=True)]
    return figure, axes, place_labels(figure, axes, labels)


def boxes(figure: Any, axes: Any) -> list[Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in axes.texts:
        text.update_positions(renderer)
    return [Text.get_window_extent(text, renderer) for text in axes.texts]


def overlap(one: Any, two: Any) -> bool:
    return bool(
        min(one.x1, two.x1) - max(one.x0, two.x0) > 0.5 and min(one.y1, two.y1) - max(one.y0, two.y0) > 0.5
    )


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=9))
def test_labels_lie_apart_inside_and_off_the_marks(points: list[tuple[float, float]]) -> None:
    texts = [f"method-{number}" for number in range(len(points))]
    figure, axes, left = drawn(points, texts)
    written = {text.get_text() for text in axes.texts}
    assert written | {label.text for label in left} == {*texts}
    assert not written & {label.text for label in left}
    found = boxes(figure, axes)
    assert not any(overlap(one, two) for one, two in itertools.combinations(found, 2))
    inside = axes.get_window_extent()
    for box in found:
        assert box.x0 >= inside.x0 - 1
        assert box.x1 <= inside.x1 + 1
        for x, y in axes.transData.transform(points):
            assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1)


def test_each_label_is_nearest_to_its_own_mark_or_has_a_line_to_it() -> None:
    points = [(50.0, 50.0), (52.0, 51.0), (51.0, 47.0), (54.0, 49.0)]
    figure, axes, left = drawn(points, ["one", "two", "three", "four"])
    assert left == []
    for text, box in zip(axes.texts, boxes(figure, axes), strict=True):
        own = ["one", "two", "three", "four"].index(text.get_text())
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        distances = [
            max(abs(x - middle[0]) - box.width / 2, 0) ** 2 + max(abs(y - middle[1]) - box.height / 2, 0) ** 2
            for x, y in axes.transData.transform(points)
        ]
        assert text.arrow_patch is not None or min(range(4), key=distances.__getitem__) == own


def test_what_has_no_room_is_handed_back_in_its_order() -> None:
    _, axes, left = drawn([(50.0, 50.0)] * 60, [f"a-rather-long-name-{number}" for number in range(60)])
    assert left
    assert len(axes.texts) + len(left) == 60
    numbers = [int(label.text.rpartition("-")[2]) for label in left]
    assert numbers == sorted(numbers)
    _, axes, left = drawn([(50.0, 50.0)], ["x" * 500])
    assert [text.get_text() for text in axes.texts] == [shortened("x" * 500)]
    assert len(shortened("x" * 500)) == 40


def test_bars_and_curves_are_kept_clear_where_there_is_room() -> None:
    figure, axes = charts.canvas("", "x", "y")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    bar = (20.0, 50.0, 80.0, 50.0)
    place_labels(figure, axes, [Label((50.0, 50.0), "name", [bar, (50.0, 20.0, 50.0, 80.0)])])
    (box,) = boxes(figure, axes)
    (_, y), (x, _) = axes.transData.transform([(20.0, 50.0), (50.0, 20.0)])
    assert not box.y0 < y < box.y1
    assert not box.x0 < x < box.x1


def test_a_curve_is_cut_into_short_pieces() -> None:
    pieces = along([(0.0, 0.0), (10.0, 20.0), (10.0, 0.0)], pieces=2)
    assert pieces == [
        (0.0, 0.0, 5.0, 10.0), (5.0, 10.0, 10.0, 20.0), (10.0, 20.0, 10.0, 10.0), (10.0, 10.0, 10.0, 0.0),
    ]  # fmt: skip
    assert along([(1.0, 1.0)]) == []


@pytest.mark.parametrize("name", ["$x^2$", "a_b", "$", "<b>"])
def test_names_are_no_formulas(name: str) -> None:
    _, axes, _ = drawn([(50.0, 50.0)], [name])
    assert axes.texts[0].get_text() == name
    assert not axes.texts[0].get_parse_math()
