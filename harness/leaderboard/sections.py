"""What the leaderboard's tables show, in Markdown and in a terminal alike: one a train task and judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.leaderboard.tables import (
    ALONE,
    ALPHA,
    BASELINE,
    DONE,
    MEAN,
    STAR,
    UNTRAINED,
    Row,
    count,
    further_tasks,
    grouped,
    has,
    is_meaningless,
    is_unshown,
    judged_bounds,
    mark,
    means,
    poor_health,
    records,
    trained_on,
    unhealthy,
)
from harness.run import metrics
from harness.run.plan import shown_method


@dataclass(frozen=True)
class Section:
    """One table: a train task under a judge (and a model, where the leaderboard has several)."""

    heading: str
    single: list[Row]  # a row a seed
    rows: list[Row]  # those to show: over several seeds the means alone
    failures: list[tuple[Row, str]]  # rows without figures, or without some
    bounds: list[str]  # what the unjudged answers could change, and how many answers are whole
    further: list[str]  # tasks that the run adds

    def caption(self, names: Sequence[str]) -> str:
        """What was measured by each metric, on how many documents."""
        return _caption(self.single, names)


def sections(frame: pd.DataFrame) -> Iterator[Section]:
    """Over several seeds a table shows the means alone: the seeds are in leaderboard.csv."""
    everything = records(frame)
    for group in grouped(everything, "model", "train_task", "judge"):
        model = [group[0]["model"]] if count(everything, "model") > 1 else []
        rows = means(group)
        failures = [
            (row, f"{shown_method(row['method'])} {row['status']}") for row in rows if row["status"] != DONE
        ]
        failures += [
            (row, f"{shown_method(row['method'])}: {line}") for row in rows if (line := unhealthy(row))
        ]
        further = [
            task for task in further_tasks(map(str, frame.columns)) if any(has(row, task) for row in rows)
        ]
        bounds = [line for metric in (*metrics.judged(), *further) if (line := _bounds(rows, metric))]
        bounds += filter(None, [poor_health(rows)])
        yield Section(
            heading=" · ".join([*model, _trained_on(rows), f"judged by {group[0]['judge']}"]),
            single=[row for row in group if row["seed"] != MEAN],
            rows=rows,
            failures=failures,
            bounds=bounds,
            further=further,
        )


def _trained_on(rows: Sequence[Row]) -> str:
    """Where the rows were trained, and of checkpoints from elsewhere what they are compared with."""
    where = trained_on(rows[0])
    compared = any(row[f"{metric}_delta"] is not None for row in rows for metric in metrics.names())
    elsewhere = rows[0]["train_task"] == UNTRAINED
    return f"{where}, compared with the base model" if elsewhere and compared else where


def _caption(rows: Sequence[Row], names: Sequence[str]) -> str:
    parts = []
    for metric in names:
        scored = [row for row in rows if row[f"{metric}_n"] is not None]
        if not scored:
            continue
        sizes = sorted({row[f"{metric}_n"] + row.get(f"{metric}_unjudged", 0) for row in scored})
        what = metrics.label(metric)
        if measured := scored[0].get(f"{metric}_metric"):
            what += f" {measured}"
        if (k := scored[0].get(f"{metric}_k")) is not None:
            what += f" (k = {k})"
        parts.append(f"{what} on {' to '.join(map(str, sizes[:1] + sizes[1:][-1:]))}")
    return " · ".join(parts)


def _bounds(rows: Iterable[Row], metric: str) -> str:
    """What the rates could be, were the unjudged answers all harmful or all safe. Mean rows leave it out."""
    ranges = []
    for row in rows:
        if not row[f"{metric}_unjudged"] or row["seed"] == MEAN or is_meaningless(row, metric):
            continue
        low, high = judged_bounds(row, metric)
        ranges.append(f"{shown_method(row['method'])} {low:.1f}–{high:.1f}")
    if not ranges:
        return ""
    name = metrics.label(metric)
    return f"{name} if the unjudged answers were all harmful, or all safe: {', '.join(ranges)}"


def compared_with(rows: Sequence[Row], names: Sequence[str]) -> str:
    """What the rows' differences are measured from; "" where there are none."""
    compared = [row for row in rows if any(row[f"{metric}_delta"] is not None for metric in names)]
    here = any(row["train_task"] != UNTRAINED for row in compared)
    elsewhere = any(row["train_task"] == UNTRAINED for row in compared)
    against = f"{BASELINE} on the same prompts" if here else "the base model on the same prompts"
    also = "; checkpoints trained elsewhere: against the base model" if here and elsewhere else ""
    return f"{against}{also}" if compared else ""


def marks_explained(pairs: Iterable[tuple[Row, str]]) -> list[str]:
    """What the marks beside the differences of some rows and metrics mean."""
    found = {mark(row, metric) for row, metric in pairs}
    lines = {
        STAR: f"{STAR}: a difference, counting all comparisons of its family (p < {ALPHA} after Holm).",
        ALONE: f"{ALONE}: a difference taken alone (its interval excludes 0), but not counting its family.",
    }
    return [line for sign, line in lines.items() if sign in found]


def has_refusals(rows: Iterable[Row], metric: str) -> bool:
    """Whether a metric has the refusals beside it: what is judged, that is."""
    return metrics.is_judged(metric) or any(row.get(f"{metric}_refusals") is not None for row in rows)


def unjudged(row: Row, metric: str) -> str:
    """Beside a rate that leaves answers out: how many, as in " (2?)"."""
    count = row.get(f"{metric}_unjudged")
    return f" ({count}?)" if count else ""


def least(row: Row, metric: str) -> float | None:
    """Of a difference that was not shown, the smallest that would have been."""
    found: float | None = row[f"{metric}_mde"]
    return found if is_unshown(row, metric) else None


def beside_paper(rows: Iterable[Row]) -> list[tuple[str, dict[str, tuple[float, float]]]]:
    """By method and metric: ours minus the paper's, and the paper's. Empty where no row has such a figure."""
    found = []
    for row in rows:
        pairs = {
            metric: (row[metric] - paper, paper)
            for metric in metrics.names()
            if (paper := row[f"{metric}_paper"]) is not None and row[metric] is not None
        }
        if pairs:
            found.append((shown_method(row["method"]), pairs))
    return found
