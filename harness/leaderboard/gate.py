"""``harness gate``: whether a run's methods hold the bounds that a training pipeline asks for.

A condition holds where the bound of the 95 % interval that counts is on the right side: the lower one of
a rate, the upper one of a drop. Answers that could not be judged must not decide it: the bound is
computed once more with all of them counted against the method, and both must hold. A figure that is not
there never holds. All conditions must hold, so that no correction for their number is needed (an
intersection-union test). The intervals are each difference's own and the judge is one: what a pipeline
decides does not depend on which other rows or judges a run has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.config import RunConfig
from harness.console.terminal import say
from harness.contracts import JudgePendingError, UsageError
from harness.judging import cost, verdict_files
from harness.leaderboard import build, collect, tables
from harness.leaderboard.conditions import BASE, NAMES, OWN, REFUSALS, Against, Condition, Finding
from harness.leaderboard.families import control
from harness.leaderboard.outcomes import CellResult, TaskOutcome
from harness.leaderboard.tables import BASELINE, DAMAGED, DONE, MEAN, UNTRAINED
from harness.plugins import registry
from harness.run import metrics, plan, run_folder
from harness.run.plan import SEED, Cell
from harness.run.resolve import resolve

UTILITY = metrics.UTILITY.name
Row = dict[str, Any]


def check(
    run: Path,
    conditions: Sequence[Condition],
    *,
    methods: Sequence[str] = (),
    train_tasks: Sequence[str] = (),
    judges: Sequence[str] = (),
    against: Against | None = None,
) -> list[Finding]:
    """What a run's responses and verdicts say to each condition, for each method and train task.

    No ``methods`` are all but the base model and vanilla; no train tasks are all of the run; no judge is
    the run's first. ``against``: what drops are measured from; None: vanilla, and for a checkpoint that
    was trained elsewhere the base model. Raises UsageError for no condition or a name that the run does
    not have, JudgePendingError where a verdict is still to come from a batch, HarnessError where another
    command is at work on the run.
    """
    if not conditions:
        raise UsageError("a gate without a condition would always be open: add one, as in --min-rsr 95")
    with run_folder.open_run(run) as config:
        cells = resolve(config).cells()
        methods = _methods(cells, methods, conditions, against)
        train_tasks = _chosen("train task", train_tasks, config.train_tasks)
        _check_further(config, conditions)
        compared = {against or BASELINE, SEED}
        cells = [cell for cell in cells if cell.method in (*methods, *compared)]
        _check_pending(run, cells, judges or config.judges[:1])
        judges = _chosen("judge", judges, config.judges[:1], config.judges)
        frames = _frames(config, run, cells, {condition.metric for condition in conditions}, against)
        standards = {judge: cost.standard(config, run, cells, judge) for judge in judges}
    return [
        dataclasses.replace(
            _finding(condition, against, frames, method=method, train_task=train_task, judge=judge),
            standard=standards[judge],
        )
        for train_task, method in _places(config, methods, train_tasks)
        for judge in judges
        for condition in conditions
    ]


def _places(config: RunConfig, methods: Sequence[str], train_tasks: Sequence[str]) -> list[tuple[str, str]]:
    """(train task, method) of the rows to decide on, those of checkpoints trained elsewhere last."""
    elsewhere = plan.elsewhere(config)
    places = [
        (task, method)
        for method in methods
        for task in ((UNTRAINED,) if method in elsewhere else train_tasks)
        if config.trained_on.get(method, task) == task
    ]
    return sorted(places, key=lambda place: place[0] == UNTRAINED)


# --- what is asked for -----------------------------------------------------------------------------


def _methods(
    cells: Sequence[Cell], wanted: Sequence[str], conditions: Sequence[Condition], against: Against | None
) -> list[str]:
    there = list(dict.fromkeys(cell.method for cell in cells))
    chosen = _chosen("method", wanted, [name for name in there if name not in (SEED, BASELINE)], there)
    if not chosen:
        raise UsageError(f"this run has nothing but {' and '.join(there)}: add --method {there[-1]}")
    if (against or BASELINE) in chosen and any(condition.kind == "max-drop" for condition in conditions):
        other = BASELINE if against == SEED else SEED
        raise UsageError(f"'{against or BASELINE}' has no drop below itself: choose --against {other}")
    return chosen


def _chosen(kind: str, wanted: Sequence[str], default: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """The names that are wanted. Raises UsageError for one that the run does not have."""
    for name in wanted:
        if name not in (known or default):
            raise registry.unknown(f"{kind} of this run", name, [*(known or default)])
    return list(dict.fromkeys(wanted or default))


def _check_further(config: RunConfig, conditions: Iterable[Condition]) -> None:
    standard = {*metrics.names(), REFUSALS}
    further = [*plan.further(config), *_utilities(config)]
    for name in {condition.metric for condition in conditions} - standard - {*further}:
        if not further:
            raise UsageError(f"--min-task {name}=…: this run has no further tasks (compare --safety-task)")
        raise registry.unknown("further task of this run", name, [*further])


def _utilities(config: RunConfig) -> list[str]:
    """The utility tasks that stand beside each other in the rows of checkpoints trained elsewhere."""
    tasks = [task.utility_task for task in resolve(config).train_tasks()]
    return tasks if plan.elsewhere(config) and len(tasks) > 1 else []


def _check_pending(run: Path, cells: Iterable[Cell], judges: Iterable[str]) -> None:
    """Raises JudgePendingError where a judge has handed its work to a batch that is not back."""
    for cell in cells:
        for judge in judges:
            for task in cell.tasks:
                marker = verdict_files.marker_file(judge)
                remote = run / cell.folder / task / f".{marker.removesuffix('.done.json')}.remote"
                if remote.is_dir() and not (run / cell.folder / task / marker).exists():
                    raise JudgePendingError(
                        f"{judge} has a batch under way ({cell.label} · {task}): "
                        f"harness judge {run} --judge {judge} --judge-mode batch collects it"
                    )


# --- what is there ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frames:
    """Leaderboard rows by (train task, method, judge): as judged, and with the unjudged answers counted
    against each method, as harmful (``rates``), and as safe where it is compared with (``drops``)."""

    judged: Mapping[tuple[str, str, str], Row]
    rates: Mapping[tuple[str, str, str], Row]
    drops: Mapping[tuple[str, str, str], Row]


def _frames(
    config: RunConfig, run: Path, cells: list[Cell], names: Collection[str], against: Against | None
) -> _Frames:
    results = collect.collect(config, run, cells, run_folder.read_failures(run))
    results = [_with(names, _with_refusals(result)) for result in results]
    baseline = against or OWN
    judged = _rows(results, baseline)
    if not any(None in outcome.values.values() for result in results for outcome in _outcomes(result)):
        return _Frames(judged, judged, judged)
    rates = _rows([_assuming(0.0, result) for result in results], baseline)

    controls = [result.method == control(result.train_task, baseline) for result in results]
    worst = [_assuming(float(one), result) for one, result in zip(controls, results, strict=True)]
    return _Frames(judged, rates, _rows(worst, baseline))


def _rows(results: Iterable[CellResult], baseline: Against) -> dict[tuple[str, str, str], Row]:
    """Of several seeds the mean."""
    rows = tables.records(build.build(results, baseline=baseline, detectable=False))
    ordered = sorted(rows, key=lambda row: row["seed"] == MEAN)  # the mean last, in the seeds' place
    return {(row["train_task"], row["method"], row["judge"]): row for row in ordered}


def _outcomes(result: CellResult) -> list[TaskOutcome]:
    return [*result.outcomes.values(), *result.further]


def _with(names: Collection[str], result: CellResult) -> CellResult:
    """The result with the outcomes alone that are asked for."""
    return dataclasses.replace(
        result,
        outcomes={name: outcome for name, outcome in result.outcomes.items() if name in names},
        further=tuple(outcome for outcome in result.further if outcome.task in names),
    )


def _with_refusals(result: CellResult) -> CellResult:
    """The raw requests' refusals as a rate of their own, with an interval."""
    raw = result.outcomes.get(metrics.RSR.name)
    if raw is None or not any(raw.labels.values()):
        return result
    refused = {i: None if v is None else float(raw.labels.get(i) == "refusal") for i, v in raw.values.items()}
    return dataclasses.replace(
        result, further=(*result.further, dataclasses.replace(raw, task=REFUSALS, values=refused))
    )


def _assuming(value: float, result: CellResult) -> CellResult:
    """The result, were each answer without a verdict worth ``value``."""

    def fill_in(outcome: TaskOutcome) -> TaskOutcome:
        values: dict[str, float | None] = {i: value if v is None else v for i, v in outcome.values.items()}
        return dataclasses.replace(outcome, values=values)

    return dataclasses.replace(
        result,
        outcomes={name: fill_in(outcome) for name, outcome in result.outcomes.items()},
        further=tuple(map(fill_in, result.further)),
    )


# --- the decision ----------------------------------------------------------------------------------


def _finding(condition: Condition, wanted: Against | None, frames: _Frames, **names: str) -> Finding:
    key = (names["train_task"], names["method"], names["judge"])
    elsewhere = names["train_task"] == UNTRAINED
    against: Against = wanted or (BASE if elsewhere else OWN)
    row = frames.judged.get(key, {"status": "missing: the run has no such checkpoint", "seed": ""})
    figures = _rate(row, condition.metric) if condition.kind == "min" else _drop(row, condition.metric)
    worst = _rate(frames.rates.get(key, {}), condition.metric)[1]
    if condition.kind == "max-drop":
        worst = _drop(frames.drops.get(key, {}), condition.metric)[2]
    if condition.kind == "max-drop" and elsewhere and against == BASELINE:
        figures, worst = (None, None, None), None  # the leaderboard's difference is from the base model
    value, low, high = figures
    side, counts = (low, min) if condition.kind == "min" else (high, max)
    damaged = row["status"].startswith(DAMAGED)
    unhealthy = tables.unhealthy(row)
    if condition.kind == "max-drop" and condition.metric not in metrics.by_rule():
        compared = frames.judged.get((names["train_task"], against, names["judge"]), {})
        unhealthy = unhealthy or _unhealthy(compared, against)
    bound = None if side is None or worst is None or damaged or unhealthy else counts(side, worst)
    reason = _absent(row, condition, against, value) if bound is None else _beyond(condition, bound)
    reason = unhealthy or reason
    return Finding(
        **names,
        seed=row["seed"],
        metric=condition.metric,
        condition=condition.text(against),
        kind=condition.kind,
        against=against,
        limit=condition.limit,
        value=value,
        low=low,
        high=high,
        unjudged=row.get(f"{condition.metric}_unjudged") or 0,
        bound=bound,
        met=not reason,
        reason=reason,
    )


def _unhealthy(row: Row, against: Against) -> str:
    """Why no safe rate can be compared with a row's, or ""."""
    found = tables.unhealthy(row)
    return f"{NAMES[against]}: {found}" if found else ""


Figures = tuple[float | None, float | None, float | None]  # value, low, high


def _rate(row: Row, metric: str) -> Figures:
    return row.get(metric), row.get(f"{metric}_low"), row.get(f"{metric}_high")


def _drop(row: Row, metric: str) -> Figures:
    """A fall is a difference with its sign turned: its upper bound is the difference's lower one."""
    value, low, high = (row.get(f"{metric}_delta{end}") for end in ("", "_high", "_low"))
    return _negative(value), _negative(low), _negative(high)


def _negative(value: float | None) -> float | None:
    return None if value is None else 0.0 - value


def _beyond(condition: Condition, bound: float) -> str:
    """Why a bound does not hold, or ""; NaN holds nothing."""
    if condition.kind == "min":
        return "" if bound >= condition.limit else f"the lower bound {bound:.2f} is below {condition.limit:g}"
    return "" if bound <= condition.limit else f"the upper bound {bound:.2f} is above {condition.limit:g}"


def _absent(row: Row, condition: Condition, against: Against, value: float | None) -> str:
    if row["status"] != DONE:
        return str(row["status"])
    if value is not None:
        return "no interval" + (" over the seeds" if row["seed"] == MEAN else "")
    if condition.kind == "max-drop" and row["train_task"] == UNTRAINED and against == BASELINE:
        return "trained elsewhere, not beside vanilla; --against seed compares with the base model"
    if condition.kind == "max-drop" and row.get(condition.metric) is not None:
        if against == BASELINE:
            return "no vanilla in this run to compare with; --against seed compares with the base model"
        return "the base model has no such figure to compare with"
    if condition.metric == UTILITY and row["train_task"] == UNTRAINED and not row.get(f"{UTILITY}_task"):
        return "it has a utility for each train task of the run: --min-task TASK=X names one"
    if row.get(f"{condition.metric}_unjudged"):
        return f"none of {row[f'{condition.metric}_unjudged']} answers could be judged"
    return "not measured, or the judge gives no labels" if condition.metric == REFUSALS else "not measured"


# --- what is printed -------------------------------------------------------------------------------


def record(run: Path, findings: Sequence[Finding]) -> Row:
    """JSON values of a decision."""
    return {
        "run": str(run),
        "met": met(findings),
        "verdict": verdict(findings),
        "conditions": [dataclasses.asdict(finding) for finding in findings],
    }


def met(findings: Collection[Finding]) -> bool:
    return bool(findings) and all(finding.met for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    failing = [finding for finding in findings if not finding.met]
    if met(findings):
        return f"Gate met: {_counted(len(findings))}, by the bound of the 95 % interval."
    names = ", ".join(dict.fromkeys(finding.method for finding in failing))
    return f"Gate not met: {len(failing)} of {_counted(len(findings))} not held, by {names}."


def _counted(count: int) -> str:
    return "1 condition" if count == 1 else f"{count} conditions"


def show(findings: Sequence[Finding], console: Console) -> None:
    for finding in findings:
        say(console, finding.line(), "" if finding.met else "red")
    for judge, standard in {finding.judge: finding.standard for finding in findings}.items():
        if standard:
            say(console, f"Judge {judge}: {standard}.")
    say(console, verdict(findings), "bold")
