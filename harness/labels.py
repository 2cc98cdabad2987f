"""Names beside the points of a figure, where there is room: no label lies on a mark or on another label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

DISTANCES = (7.0, 12.0, 18.0, 26.0)  # from a point to its label, in points
SIDES = (  # where a label stands, as (right, up), best first
    *((1, 0), (-1, 0), (0, 1), (0, -1)),
    *((1, 1), (1, -1), (-1, 1), (-1, -1)),
)
MARK = 5.0  # half a mark's width, in points
LONGEST = 40  # letters of a name


@dataclass(frozen=True)
class Label:
    """``text`` beside ``point`` (data coordinates); ``bars``: further lines (x0, y0, x1, y1) that it should
    not lie on; ``marked``: there is a mark at the point."""

    point: tuple[float, float]
    text: str
    bars: Sequence[tuple[float, float, float, float]] = ()
    marked: bool = True
    weight: str = "normal"
    colour: str = "#000000"


Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def place_labels(figure: Any, axes: Any, labels: Sequence[Label], *, fontsize: float = 9) -> list[Label]:
    """Write the labels into the axes, whose limits are set; those for which there is no room are returned.

    A label goes where it touches no mark, no other label and no bar; else where it touches bars alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # settles where the axes are
    scale = figure.dpi / 72
    inside = axes.get_window_extent(renderer).extents
    places = [axes.transData.transform(label.point) for label in labels]
    reach = MARK * scale
    marks = [
        (x - reach, y - reach, x + reach, y + reach)
        for label, (x, y) in zip(labels, places, strict=True)
        if label.marked
    ]
    bars = [_bar(axes, bar) for label in labels for bar in label.bars]
    written: list[Box] = []
    left = []
    for label, (x, y) in zip(labels, places, strict=True):
        text = axes.annotate(
            shortened(label.text), label.point, textcoords="offset points", xytext=(0, 0), fontsize=fontsize,
            fontweight=label.weight, color=label.colour, annotation_clip=False, zorder=6,
        )  # fmt: skip
        text.set_parse_math(False)
        extent = text.get_window_extent(renderer)
        size = (extent.width, extent.height)
        spot = _spot((x, y), size, scale, inside, [*marks, *written], bars)
        if spot is None:
            text.remove()
            left.append(label)
            continue
        box, (right, up), distance = spot
        written.append(box)
        text.set_position((right * distance, up * distance))
        text.set_horizontalalignment({1: "left", 0: "center", -1: "right"}[right])
        text.set_verticalalignment({1: "bottom", 0: "center", -1: "top"}[up])
    return left


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _bar(axes: Any, bar: Box) -> Box:
    (x0, y0), (x1, y1) = axes.transData.transform([bar[:2], bar[2:]])
    return min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1


def _spot(
    at: tuple[float, float],
    size: tuple[float, float],
    scale: float,
    inside: Box,
    solid: Sequence[Box],
    bars: Sequence[Box],
) -> tuple[Box, tuple[int, int], float] | None:
    for avoided in ([*solid, *bars], solid):
        for distance in DISTANCES:
            for side in SIDES:
                box = _box(at, size, side, distance * scale)
                if _within(box, inside) and not _touches(box, avoided):
                    return box, side, distance
    return None


def _box(at: tuple[float, float], size: tuple[float, float], side: tuple[int, int], away: float) -> Box:
    edges = []
    for place, width, way in zip(at, size, side, strict=True):
        start = {1: place + away, 0: place - width / 2, -1: place - away - width}[way]
        edges.append((start, start + width))
    (x0, x1), (y0, y1) = edges
    return x0, y0, x1, y1


def _within(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _touches(box: Box, others: Iterable[Box]) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
