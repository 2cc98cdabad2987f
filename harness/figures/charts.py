"""Figures as SVG, PDF and PNG, the same bytes for the same values; and the two figures that training draws.
How a method looks is in looks.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.figures import looks
from harness.figures.labels import Label, along, place_labels, shortened
from harness.run.plan import shown_method
from harness.storage.files import fresh
from harness.text import printable

FORMATS = ("svg", "pdf", "png")
SMOOTHED = 20  # a curve's running mean takes one step in so many
_POWER = re.compile(r"|\$\\mathdefault\{[-−0-9.^{} \\times]*\}\$")  # matplotlib's own, of a logarithmic axis


@dataclass(frozen=True)
class Picture:
    """One figure: ``name`` is its file's stem, ``caption`` says in words what it shows."""

    name: str
    title: str
    caption: str
    figure: Any


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
    svg = {"Date": None, "Description": looks.MARK}
    undated: dict[str, Any] = {"svg": svg, "pdf": {"CreationDate": None}, "png": {}}
    for path in paths:
        kind = path.suffix.removeprefix(".")
        with matplotlib.rc_context({"svg.hashsalt": "safetune-harness", "svg.fonttype": "none"}):
            figure.savefig(fresh(path), format=kind, metadata=undated[kind], dpi=200)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Over each value and those before it."""
    return [
        sum(part) / len(part)
        for end in range(1, len(values) + 1)
        if (part := values[max(0, end - window) : end])
    ]


def loss_curve(losses: Sequence[float], title: str, path: Path) -> None:
    """The training loss, mean over the answer tokens of each global batch, by optimizer step: as it is, and
    smoothed."""
    figure, axes = canvas(title, "optimizer step", "loss per token (nats)")
    steps = range(1, len(losses) + 1)
    window = max(1, len(losses) // SMOOTHED)
    axes.plot(steps, losses, color="#808080", linewidth=0.8, alpha=0.5)
    axes.plot(steps, running_mean(losses, window), color=looks.BLACK, linewidth=1.4)
    save(figure, path)


def trajectories(points: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> None:
    """Each method's way through (utility, prefilled safe rate), in percent, epoch by epoch: methods are to
    be compared where their utility is the same. Names and epochs stand beside the points, where there is
    room."""
    figure, axes = canvas(title, "utility (%)", "prefilled safe rate, JSR (%)")
    styles = looks.looks(points)
    labels = []
    for method, way in points.items():
        xs, ys = [utility for utility, _ in way], [jsr for _, jsr in way]
        axes.plot(xs, ys, **styles[method], label=shown_method(method))
        curve, colour = along(way), styles[method]["color"]
        labels += [Label(place, str(epoch), curve, colour=colour) for epoch, place in enumerate(way, 1)]
    legend(figure, axes)
    place_labels(figure, axes, labels, fontsize=8)
    save(figure, path)


def faint_bars(look: looks.Look) -> dict[str, Any]:
    """How the interval bars of a mark are drawn: thinner and fainter than the mark."""
    from matplotlib.colors import to_rgba

    return {"ecolor": to_rgba(look["color"], 0.55), "elinewidth": 0.9, "capsize": 2}


def log_scale(axes: Any) -> None:
    """A logarithmic y axis with plain figures beside it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: Any, *axes: Any, below: bool = False) -> None:
    """One for all panels, on their right or ``below`` them; each name once. None where nothing is named."""
    entries: dict[str, Any] = {}
    for one in axes:
        for handle, name in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if entries:
        names = [shortened(name).replace("$", r"\$") for name in entries]
        where = {"loc": "outside lower center", "ncols": 3} if below else {"loc": "outside right upper"}
        figure.legend([*entries.values()], names, **where, fontsize=8, frameon=False)
