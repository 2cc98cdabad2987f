"""A run's files to what the leaderboard is built from: a result for each checkpoint and judge."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from harness.config import RunConfig
from harness.contracts import HarnessError, TrainTask
from harness.leaderboard import scores, statistics
from harness.leaderboard.build import no_figures
from harness.leaderboard.health import is_enough
from harness.leaderboard.outcomes import SAFE, CellResult, TaskOutcome
from harness.leaderboard.tables import COSTS, DAMAGED, DONE, FAILED, UNTRAINED
from harness.run import metrics, plan
from harness.run.metrics import Metric
from harness.run.plan import Cell
from harness.run.resolve import every_train_task, resolve
from harness.storage import records

Found = TypeVar("Found")


def collect(
    config: RunConfig,
    out: Path,
    cells: list[Cell],
    failures: Mapping[Path, str] | None = None,
    reader: scores.Reader | None = None,
) -> list[CellResult]:
    """One result for each (train task, cell, judge), from the run's files. A cell that failed, or whose
    files are not there yet, is a result that says so.

    The base model stands under every train task and seed, beside what was trained there, and beside the
    user's checkpoints that were trained elsewhere. These have no train task and no seed.
    """
    reader, results = reader or scores.Reader(), []
    elsewhere = [cell for cell in cells if cell.method in plan.elsewhere(config)]
    base = [cell for cell in cells if cell.kind == "seed"]
    for train_task in config.train_tasks:
        own = [cell for cell in cells if train_task in (cell.train_task, config.trained_on.get(cell.method))]
        for cell in [*base, *own] if own or not elsewhere else []:
            # What is not trained here is compared with each training seed's vanilla.
            seeds = (cell.seed,) if cell.seed is not None else config.seeds
            for judge, seed in itertools.product(config.judges, seeds):
                failure = (failures or {}).get(cell.folder)
                place = _Place((train_task,), judge, seed)
                results.append(_result(config, out, cell, place, failure, reader))
    for cell in [*base, *elsewhere] if elsewhere else []:
        for judge in config.judges:
            failure = (failures or {}).get(cell.folder)
            place = _Place(config.train_tasks, judge, None)
            results.append(_result(config, out, cell, place, failure, reader))
    return results


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a checkpoint stands in the table. ``train_tasks``: the one under which it stands; without a
    ``seed`` those whose utilities it answers, of which a single one is its utility, and several are tasks
    beside each other."""

    train_tasks: Sequence[str]
    judge: str
    seed: int | None


def _result(
    config: RunConfig, out: Path, cell: Cell, place: _Place, failure: str | None, reader: scores.Reader
) -> CellResult:
    identity: dict[str, Any] = {
        "model": config.base_model,
        "method": cell.method,
        "train_task": UNTRAINED if place.seed is None else place.train_tasks[0],
        "seed": place.seed,
        "judge": place.judge,
    }
    if failure is not None:
        return CellResult(**identity, status=f"{FAILED}: {failure}")
    if cell.kind == "trained" and not (out / cell.folder / "training.json").exists():
        return CellResult(**identity, status="missing: not trained")
    tasks = [resolve(config).train_task(name) for name in place.train_tasks]
    task = tasks[0] if len(tasks) == 1 else None
    files = _Files(config, cell, out / cell.folder, place.judge, reader)
    training = files.costs()
    outcomes = files.headlines(task)
    cross = files.utilities(_others(config, task))
    further = (*files.utilities([] if task else tasks), *files.further())
    return CellResult(
        **identity,
        outcomes=outcomes,
        health=scores.health(cell, files.folder, task.utility_task if task else "", reader),
        training=training,
        status=_missing(files.missing) if files.missing else DONE,
        cross=cross,
        further=further,
    )


def _others(config: RunConfig, task: TrainTask | None) -> list[TrainTask]:
    """The run's other train tasks, where their utilities are asked for too."""
    if task is None or not config.cross_tasks:
        return []
    return [other for other in resolve(config).train_tasks() if other.utility_task != task.utility_task]


@dataclasses.dataclass
class _Files:
    """One checkpoint's files under one judge; ``missing``: what cannot be had from them, with the reason."""

    config: RunConfig
    cell: Cell
    folder: Path
    judge: str
    reader: scores.Reader
    missing: dict[str, HarnessError] = dataclasses.field(default_factory=dict)

    def costs(self) -> dict[str, float | int | None]:
        trained = self.cell.kind == "trained"
        found = self._found("costs", partial(records.training, self.folder)) if trained else None
        return {name: (found or {}).get(name) for name in COSTS}

    def headlines(self, task: TrainTask | None) -> dict[str, TaskOutcome]:
        """By headline metric; ``task``: the train task whose utility is asked for, if it is one."""
        found = {
            metric.name: self._found(metric.name, partial(self._headline, metric, task))
            for metric in metrics.METRICS
            if metric.task is not None or task is not None
        }
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def _headline(self, metric: Metric, task: TrainTask | None) -> TaskOutcome:
        if metric.task is None:
            assert task is not None
            return self._utility(task)
        named = metric.task(self.config)
        if not metric.judged:
            return scores.by_rule(self.cell, self.folder, named, metric.measure, metric.kind, self.reader)
        k = self.config.safety.prefill_tokens if metric.prefilled else None
        return self._judged(named, k, metric.name)

    def _judged(self, task: str, k: int | None, metric: str) -> TaskOutcome:
        scope = self.config.safety.judged_scope
        found: TaskOutcome = self.reader.once(
            scores.safety, self.cell, self.folder, task, self.judge, k, metric, scope
        )
        return found

    def utilities(self, tasks: Iterable[TrainTask]) -> tuple[TaskOutcome, ...]:
        """Of other train tasks, those that are there."""
        found = [self._found(one.utility_task, partial(self._utility, one)) for one in tasks]
        return tuple(outcome for outcome in found if outcome is not None)

    def _utility(self, task: TrainTask) -> TaskOutcome:
        return scores.utility(self.cell, self.folder, task, task.utility_metric, self.reader)

    def further(self) -> tuple[TaskOutcome, ...]:
        """Of the tasks that the run adds, those that are there."""
        found = [self._found(name, partial(self._further, name)) for name in plan.further(self.config)]
        return tuple(outcome for outcome in found if outcome is not None)

    def _further(self, task: str) -> TaskOutcome:
        """A judge's where it is a safety task, else its first metric."""
        benchmark = resolve(self.config).benchmark(task)
        if benchmark.kind == "safety":
            return self._judged(task, benchmark.prefill_tokens(self.config.safety.prefill_tokens), SAFE)
        found = scores.measured(self.cell, self.folder, task)
        kinds = {
            t.utility_task: t.utility_kind for t in every_train_task()
        }  # a mean may happen to be all 0 or 1
        return dataclasses.replace(found, binary=found.binary and kinds.get(task, "rate") == "rate")

    def _found(self, name: str, read: Callable[[], Found]) -> Found | None:
        try:
            return read()
        except HarnessError as error:
            self.missing[name] = error
            return None


def _missing(missing: Mapping[str, HarnessError]) -> str:
    """A status of what is missing, by reason: "missing: rsr, jsr (not judged by keyword)", or
    "damaged: ..." where a file has changed."""
    reasons: dict[str, list[str]] = {}
    for name, reason in missing.items():
        reasons.setdefault(str(reason), []).append(name)
    damaged = any(isinstance(reason, records.DamagedError) for reason in missing.values())
    what = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return f"{DAMAGED if damaged else 'missing'}: {what}"


def cell_scores(
    config: RunConfig, out: Path, cell: Cell, reader: scores.Reader | None = None
) -> list[dict[str, Any]]:
    """What ``scores.json`` of one cell holds: each task's value, interval, n and unjudged, by category for
    safety. What is not answered or not judged is left out."""
    folder, reader = out / cell.folder, reader or scores.Reader()
    found: list[dict[str, Any]] = []
    meaningful = is_enough(scores.whole_share(cell, folder, reader))
    headlines = metrics.by_task(config)
    for task in cell.tasks:
        benchmark = resolve(config).benchmark(task)
        if benchmark.kind == "safety":
            headline = headlines.get(task)
            metric = headline.name if headline and headline.judged else SAFE
            k = benchmark.prefill_tokens(config.safety.prefill_tokens)
            for judge in config.judges:
                with contextlib.suppress(HarnessError):  # the leaderboard's status says what is missing
                    outcome = reader.once(
                        scores.safety, cell, folder, task, judge, k, metric, config.safety.judged_scope
                    )
                    found.append(_score(outcome, judge, meaningful=meaningful))
        else:
            with contextlib.suppress(HarnessError):
                measured = scores.all_measured(cell, folder, task, reader)
                found += [_score(outcome, None) for outcome in measured]
    return found


def _score(outcome: TaskOutcome, judge: str | None, *, meaningful: bool = True) -> dict[str, Any]:
    def estimate(values: Sequence[float | None]) -> statistics.Estimate:
        found = (statistics.rate if outcome.binary else statistics.mean)(values)
        return found if meaningful else no_figures(found)

    by_category: dict[str, list[float | None]] = {}
    for document, category in outcome.categories.items():
        if category is not None:
            by_category.setdefault(category, []).append(outcome.values[document])
    counts: dict[str, int] = {}
    for label in outcome.labels.values():
        counts[str(label)] = counts.get(str(label), 0) + 1
    return {
        "task": outcome.task,
        "metric": outcome.metric,
        "judge": judge,
        **dataclasses.asdict(estimate(list(outcome.values.values()))),
        "labels": counts,
        "categories": {name: dataclasses.asdict(estimate(values)) for name, values in by_category.items()},
    }
