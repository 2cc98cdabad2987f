"""Figures of a run, as SVG that is the same for the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def loss_curve(losses: Sequence[float], title: str, path: Path) -> None:
    """The training loss, mean over the answer tokens of each global batch, by optimizer step."""
    figure, axes = _figure(title, "optimizer step", "loss a token (nats)")
    axes.plot(range(1, len(losses) + 1), losses, color=COLOURS[0], linewidth=1)
    _save(figure, path)


def trajectories(points: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> None:
    """Each method's way through (utility, prefilled safe rate), in percent, epoch by epoch: methods are to
    be compared where their utility is the same."""
    figure, axes = _figure(title, "utility (%)", "prefilled safe rate, JSR (%)")
    for number, (method, way) in enumerate(points.items()):
        axes.plot(
            [utility for utility, _ in way],
            [jsr for _, jsr in way],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1,
            label=method,
        )
        for epoch, place in enumerate(way, 1):
            axes.annotate(str(epoch), place, textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.legend(fontsize=7, frameon=False)
    _save(figure, path)


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "safetune-harness", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
