"""Training curves: each method's loss by optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from harness.figures import charts, looks
from harness.figures.charts import Picture
from harness.run import run_folder
from harness.run.plan import shown_method
from harness.run.resolve import resolve
from harness.storage import records

CURVES = 10  # of one method that are drawn faintly behind their mean


def training(run: Path, task: str, styles: Mapping[str, looks.Look]) -> list[Picture]:
    """The losses of each method on a train task, by step; none where nothing is trained."""
    losses = _losses(run, task)
    known = {name: curves for name, curves in losses.items() if name in styles}
    if not known:
        return []
    title = f"Training curves, trained on {task}"
    figure, axes = charts.canvas(title, "optimizer step", "training loss (nats per token)", size=(6.6, 4.2))
    window = max(1, max(len(curve) for curves in known.values() for curve in curves) // charts.SMOOTHED)
    smooth = {name: charts.running_mean(_mean_curve(curves), window) for name, curves in known.items()}
    order = sorted(smooth, key=lambda name: -smooth[name][-1])  # as the curves lie at their ends
    for place, name in enumerate(order):
        look, curve = styles[name], smooth[name]
        for raw in known[name][:CURVES]:
            axes.plot(range(1, len(raw) + 1), raw, color=look["color"], linewidth=0.5, alpha=0.13, zorder=1)
        every = (place * max(1, len(curve) // (8 * len(order))), max(1, len(curve) // 8))
        label = shown_method(name)
        axes.plot(range(1, len(curve) + 1), curve, **{**look, "markersize": 5}, markevery=every, label=label)
    if all(loss > 0 for curves in known.values() for curve in curves for loss in curve):
        charts.log_scale(axes)  # objectives differ in scale
        # Raw values of single batches would squeeze the curves.
        axes.set_ylim(0.7 * min(map(min, smooth.values())), 1.1 * max(map(max, smooth.values())))
    charts.legend(figure, axes)
    most = max(map(len, known.values()))
    of = ", mean over the seeds" if most > 1 else ""
    caption = (
        f"{title}: each method's own loss per answer token of a global batch{of}. Bold: running mean over "
        f"{window} step{'s' * (window > 1)}; faint: every step. Methods minimise different losses: compare "
        "the shape of the curves, not their height. The legend follows the curves' ends from top to bottom."
    )
    caption += (
        f" Of each method's {most} seeds the first {CURVES} are drawn faintly." if most > CURVES else ""
    )
    return [Picture(f"training-{task}", title, caption, figure)]


def _mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Over the seeds, as far as all of them go."""
    return [fmean(values) for values in zip(*curves, strict=False)]


def _losses(run: Path, task: str) -> dict[str, list[list[float]]]:
    """By method, the losses of each seed that is trained."""
    found: dict[str, list[list[float]]] = {}
    for cell in resolve(run_folder.stored_config(run)).cells():
        folder = run / cell.folder
        if cell.train_task == task and (folder / "train.done.json").exists():
            losses = records.training(folder).get("losses")
            if losses:
                found.setdefault(cell.method, []).append(losses)
    return found
