"""How figures look: colours, marks and lines that all can tell apart, grey included; SVG, PDF and PNG that
are the same for the same values. And the two figures that training draws."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.store import fresh
from harness.text import printable

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999933",
)  # Okabe-Ito
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
FORMATS = ("svg", "pdf", "png")
_POWER = re.compile(r"|\$\\mathdefault\{[-−0-9.^{} \\times]*\}\$")  # matplotlib's own, of a logarithmic axis


def style(number: int) -> dict[str, Any]:
    """How the series of that number is drawn: colour, mark and line, each telling it from its neighbours.
    The second eight have hollow marks and another line."""
    again = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "fillstyle": "none" if again % 2 else "full",
        "linestyle": LINES[(number + again) % len(LINES)],
        "linewidth": 1.2,
        "markersize": 5,
    }


def canvas(title: str, x: str, y: str, *, size: tuple[float, float] = (6, 4)) -> tuple[Any, Any]:
    """An empty figure and its axes; ``size`` in inches."""
    figure, (axes,) = panels([(title, x, y)], size=size)
    return figure, axes


def panels(
    labels: Sequence[tuple[str, str, str]], *, title: str = "", size: tuple[float, float] = (8, 3.6)
) -> tuple[Any, list[Any]]:
    """An empty figure with axes side by side, one for each (title, x, y); ``size`` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    found = []
    for place, (heading, x, y) in enumerate(labels, 1):
        axes = figure.add_subplot(1, len(labels), place)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        found.append(axes)
    return figure, found


def files(folder: Path, stem: str) -> list[Path]:
    """Where a figure goes, in each of FORMATS."""
    return [folder / f"{stem}.{kind}" for kind in FORMATS]


def _as_text(figure: Any) -> None:
    """Names are text whatever they hold: no formula between dollar signs, no character that SVG has not."""
    from matplotlib.text import Text

    def shown(text: str) -> str:
        return "\n".join(map(printable, text.split("\n")))

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if [*map(shown, labels)] != labels:  # they are written anew as they are drawn
                axis.set_ticklabels([*map(shown, labels)])
    for text in figure.findobj(Text):
        text.set_text(shown(text.get_text()))
        if not _POWER.fullmatch(text.get_text()):
            text.set_parse_math(False)


def save(figure: Any, *paths: Path) -> None:
    """Write a figure to each path in its suffix's format (FORMATS), the same bytes for the same values."""
    import matplotlib

    _as_text(figure)
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    for path in paths:
        kind = path.suffix.removeprefix(".")
        with matplotlib.rc_context({"svg.hashsalt": "safetune-harness", "svg.fonttype": "none"}):
            figure.savefig(fresh(path), format=kind, metadata=undated[kind], dpi=200)


def loss_curve(losses: Sequence[float], title: str, path: Path) -> None:
    """The training loss, mean over the answer tokens of each global batch, by optimizer step."""
    figure, axes = canvas(title, "optimizer step", "loss a token (nats)")
    axes.plot(range(1, len(losses) + 1), losses, color=COLOURS[0], linewidth=1)
    save(figure, path)


def trajectories(points: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> None:
    """Each method's way through (utility, prefilled safe rate), in percent, epoch by epoch: methods are to
    be compared where their utility is the same."""
    figure, axes = canvas(title, "utility (%)", "prefilled safe rate, JSR (%)")
    for number, (method, way) in enumerate(points.items()):
        axes.plot(
            [utility for utility, _ in way],
            [jsr for _, jsr in way],
            **style(number),
            label=method,
        )
        for epoch, place in enumerate(way, 1):
            axes.annotate(str(epoch), place, textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.legend(fontsize=7, frameon=False)
    save(figure, path)
