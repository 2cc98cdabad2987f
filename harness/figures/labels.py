"""Names beside the points of a figure, where there is room: no label lies on a mark or on another label."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

DISTANCES = (7.0, 12.0, 18.0)  # from a point to its label, in points
FAR = (18.0, 26.0, 36.0, 48.0, 62.0)  # likewise, where a thin line leads from the one to the other
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

    A label touches no mark and no other label. It lies nearer to its own mark than to any other, or a thin
    line leads to it, and it keeps off the bars where it can.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # settles where the axes are
    texts = [
        axes.annotate(
            shortened(label.text), label.point, textcoords="offset points", xytext=(0, 0), fontsize=fontsize,
            fontweight=label.weight, color=label.colour, annotation_clip=False, zorder=6,
        )
        for label in labels
    ]  # fmt: skip
    extents = []
    for text in texts:
        text.set_parse_math(False)
        extents.append(text.get_window_extent(renderer))
    room = _Room(
        figure.dpi / 72,
        axes.get_window_extent(renderer).extents,
        [tuple(axes.transData.transform(label.point)) for label in labels],
        [label.marked for label in labels],
        [(extent.width, extent.height) for extent in extents],
        [[_bar(axes, bar) for bar in label.bars] for label in labels],
    )
    spots = room.best()
    for place, text in enumerate(texts):
        text.remove()
        if place in spots:
            _write(axes, labels[place], spots[place], fontsize)
    return [label for place, label in enumerate(labels) if place not in spots]


def _write(axes: Any, label: Label, spot: Spot, fontsize: float) -> None:
    (right, up), distance, led = spot
    line = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": MARK - 1}
    text = axes.annotate(
        shortened(label.text), label.point, textcoords="offset points", annotation_clip=False, zorder=6,
        xytext=(right * distance, up * distance), ha={1: "left", 0: "center", -1: "right"}[right],
        va={1: "bottom", 0: "center", -1: "top"}[up], fontsize=fontsize, fontweight=label.weight,
        color=label.colour, arrowprops=line if led else None,
    )  # fmt: skip
    text.set_parse_math(False)


Side = tuple[int, int]
Spot = tuple[Side, float, bool]  # where a label stands, how far away, and whether a line leads to it


@dataclass(frozen=True)
class _Room:
    """What labels are placed among, in pixels: where the axes end, the points, labels' sizes, bars."""

    scale: float
    inside: Box
    points: Sequence[tuple[float, float]]
    marked: Sequence[bool]
    sizes: Sequence[tuple[float, float]]
    bars: Sequence[Sequence[Box]]

    def best(self) -> dict[int, Spot]:
        """Of some orders in which labels can be placed, the one that leaves the fewest out, and then has
        them the nearest."""
        every = range(len(self.points))
        ways = [list(every), sorted(every, key=lambda one: -self._neighbours(one))]
        for axis in (0, 1):
            along = sorted(every, key=lambda one: self.points[one][axis])
            ways += [along, along[::-1]]
        tried = [self._placed(way) for way in ways]
        return min(tried, key=lambda spots: (-len(spots), sum(away for _, away, _ in spots.values())))

    def _neighbours(self, one: int) -> int:
        return sum(_apart((*self.points[one],) * 2, point) < 40 * self.scale for point in self.points)

    def _placed(self, order: Iterable[int]) -> dict[int, Spot]:
        reach = MARK * self.scale
        marks = [
            (x - reach, y - reach, x + reach, y + reach)
            for (x, y), marked in zip(self.points, self.marked, strict=True)
            if marked
        ]
        spots: dict[int, Spot] = {}
        written: list[Box] = []
        for one in order:
            found = self._spot(one, [*marks, *written])
            if found:
                box, spots[one] = found
                written.append(box)
                if spots[one][2]:
                    written += self._line(one, box)
        return spots

    def _line(self, one: int, box: Box) -> list[Box]:
        """The line from a mark's edge to its label."""
        x, y = self.points[one]
        end = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        pieces = [_padded(piece) for piece in along([(x, y), end])]
        reach = (MARK + 1) * self.scale
        return [piece for piece in pieces if _apart(piece, (x, y)) > reach and not _touches(piece, [box])]

    def _spot(self, one: int, solid: Sequence[Box]) -> tuple[Box, Spot] | None:
        point = self.points[one]
        others = [other for other in self.points if other != point]
        free_of_bars = [*solid, *(bar for bars in self.bars for bar in bars)]
        free_of_its_own = [*solid, *self.bars[one]]
        for avoided, led in itertools.product((free_of_bars, free_of_its_own), (False, True)):
            for distance in FAR if led else DISTANCES:
                for side in SIDES:
                    box = _box(point, self.sizes[one], side, distance * self.scale)
                    if not _within(box, self.inside) or _touches(box, avoided):
                        continue
                    if led and any(_touches(piece, solid) for piece in self._line(one, box)):
                        continue
                    if led or all(_apart(box, point) < _apart(box, other) for other in others):
                        return box, (side, distance, led)
        return None


def along(points: Sequence[tuple[float, float]], pieces: int = 12) -> list[Box]:
    """A curve through points as ``bars`` that labels keep off."""
    steps = [(number / pieces, (number + 1) / pieces) for number in range(pieces)]
    return [
        (x0 + one * (x1 - x0), y0 + one * (y1 - y0), x0 + two * (x1 - x0), y0 + two * (y1 - y0))
        for (x0, y0), (x1, y1) in itertools.pairwise(points)
        for one, two in steps
    ]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _bar(axes: Any, bar: Box) -> Box:
    (x0, y0), (x1, y1) = axes.transData.transform([bar[:2], bar[2:]])
    return _padded((x0, y0, x1, y1))


def _padded(line: Box) -> Box:
    x0, y0, x1, y1 = line
    return min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1


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


def _apart(box: Box, point: tuple[float, float]) -> float:
    """How far a point lies from a box."""
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    up = max(box[1] - point[1], 0.0, point[1] - box[3])
    return math.hypot(across, up)
