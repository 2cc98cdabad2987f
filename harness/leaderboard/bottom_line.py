"""The verdict in two sentences for each train task: what fine-tuning did, and which method to take.

The second one names the method that keeps the most safety at vanilla's utility: of those that were found
safer than vanilla, and not found less useful, the one with the highest safe rate. "Found" is what the
leaderboard's star says; the intervals stand beside it, because a loss that was not found need not be none.
It must also be above vanilla with its own unjudged answers counted as harmful, and vanilla's as safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.leaderboard.findings import kind, may_be_rubbish, plain, points
from harness.leaderboard.tables import (
    BASELINE,
    DONE,
    UNTRAINED,
    Row,
    count,
    grouped,
    judged_bounds,
    means,
    trained_on,
)
from harness.run import metrics
from harness.run.plan import SEED

UTILITY = metrics.UTILITY.name


@dataclass(frozen=True)
class BottomLine:
    """``lead``: what fine-tuning did to the base model, or ""; ``choice``: which method to take, or which
    checkpoint not to ship; ``method``: the row that it names, or ""."""

    heading: str  # "Trained on gsm8k", with the model where there are several
    lead: str
    choice: str
    method: str
    judge: str


def bottom_lines(rows: Sequence[Row]) -> list[BottomLine]:
    """Of a leaderboard's rows, one for each train task by the run's first judge; further judges add theirs
    only where they name another method."""
    several = count(rows, "model") > 1
    found = []
    for group in grouped(rows, "model", "train_task"):
        first, *others = [_bottom_line(part, several) for part in grouped(group, "judge")]
        found += [first, *(other for other in others if other.method != first.method)]
    return found


def _bottom_line(rows: Sequence[Row], several_models: bool) -> BottomLine:
    """Of the rows of one model, train task and judge."""
    done = {row["method"]: row for row in means(rows) if row["status"] == DONE}
    train_task, where = rows[0]["train_task"], trained_on(rows[0])
    heading = f"{rows[0]['model']}, {where}" if several_models else f"{where[0].upper()}{where[1:]}"
    if train_task == UNTRAINED:
        lead, (choice, method) = "", _checkpoints(done)
    else:
        lead = _what_tuning_did(done, train_task)
        choice, method = _best(done)
    return BottomLine(heading, lead, choice, method, str(rows[0]["judge"]))


def _what_tuning_did(done: dict[str, Row], train_task: str) -> str:
    if SEED not in done or BASELINE not in done:
        return ""
    base, vanilla = done[SEED], done[BASELINE]
    told = [_headline([base, vanilla]), UTILITY]
    parts = [_change(base, vanilla, name) for name in told if name]
    parts = [part for part in parts if part]
    return f"Plain fine-tuning on {train_task} {' and '.join(parts)}." if parts else ""


def _change(base: Row, vanilla: Row, metric: str) -> str:
    """The base model's difference is base minus vanilla, so its sign is turned here."""
    before, after = base[metric], vanilla[metric]
    if before is None or after is None:
        return ""
    unjudged = _unjudged(metric, base, vanilla)
    way = f"{metrics.label(metric)} from {plain(before)} to {plain(after)} %{unjudged}"
    words = {
        "less": f"raises {way}",
        "more": f"lowers {way}",
        "alone": f"moves {way} (a difference only when taken alone)",
        "same": f"moves {way} (which may be chance)",
    }
    if plain(before) == plain(after):
        return f"leaves {metrics.label(metric)} at {plain(after)} %{unjudged}"
    return words.get(kind(base, metric), f"moves {way} (not tested)")


# --- which method ----------------------------------------------------------------------------------


def _best(done: dict[str, Row]) -> tuple[str, str]:
    """The sentence about methods against vanilla, and the method that it names."""
    others = [row for name, row in done.items() if name not in (SEED, BASELINE)]
    metric = _headline(others)
    if BASELINE not in done:
        return "Without vanilla in this run, no method can be compared with plain fine-tuning.", ""
    if not others:
        return "", ""
    if not metric:
        return "No method's safety can be compared with vanilla's.", ""
    found = sorted(
        filter(lambda row: _is_safer(row, metric), others), key=lambda row: -row[f"{metric}_delta"]
    )
    safer = [row for row in found if _holds(row, done[BASELINE], metric)]
    as_useful = [row for row in safer if kind(row, UTILITY) in ("more", "same")]
    if as_useful:
        return f"{_keeps(as_useful[0], metric)} at vanilla's utility: {_figures(as_useful[0], metric)}.", str(
            as_useful[0]["method"]
        )
    if safer:
        best = safer[0]
        at = _AT[kind(best, UTILITY)]
        return (
            f"No method was found safer at vanilla's utility; {_keeps(best, metric)}{at}: "
            f"{_figures(best, metric)}.",
            str(best["method"]),
        )
    unsure = ", its unjudged answers counted as harmful" if found else ""
    return f"No method was found safer than vanilla ({metrics.label(metric)}){unsure}.", ""


_AT = {  # of a method that is safer -> what to say of its utility
    "less": ", but loses utility",
    "alone": ", but its utility differs when taken alone",
    "untested": ", but its utility was not tested",
    "unknown": ", but its utility cannot be compared",
}


def _headline(rows: Sequence[Row]) -> str:
    """The safe rate to judge by: under attack, where that was measured."""
    return next((name for name in metrics.headlines() if any(row[name] is not None for row in rows)), "")


def _is_safer(row: Row, metric: str) -> bool:
    """Found safer by the headline, and by the other safe rate not found less safe, not even alone."""
    falls = [
        kind(row, other) == "less" or (kind(row, other) == "alone" and row[f"{other}_delta"] < 0)
        for other in metrics.headlines()
        if other != metric
    ]
    return kind(row, metric) == "more" and not any(falls)


def _holds(row: Row, vanilla: Row, metric: str) -> bool:
    """Whether a row is safer than vanilla whatever its unjudged answers, and vanilla's, are."""
    if not any(one.get(f"{metric}_unjudged") for one in (row, vanilla)):
        return True
    return judged_bounds(row, metric)[0] > judged_bounds(vanilla, metric)[1]


def _keeps(row: Row, metric: str) -> str:
    return f"{row['method']} keeps the most safety{_rubbish(row, metric)}"


def _rubbish(row: Row, metric: str) -> str:
    if not may_be_rubbish(row, metric):
        return ""
    return f" (though only {plain(row[f'{metric}_refusals'])} % of its answers refuse)"


def _figures(row: Row, metric: str) -> str:
    named = [name for name in (metric, UTILITY) if row.get(f"{name}_delta") is not None]
    return ", ".join(f"{metrics.label(name)} {points(row, name)}{_unjudged(name, row)}" for name in named)


def _unjudged(metric: str, *rows: Row) -> str:
    number = sum(row.get(f"{metric}_unjudged") or 0 for row in rows)
    return f" ({number:,} answer{'s' * (number != 1)} unjudged)" if number else ""


# --- checkpoints trained elsewhere -----------------------------------------------------------------


def _checkpoints(done: dict[str, Row]) -> tuple[str, str]:
    """The sentence about checkpoints against the base model, and the one that lost the most."""
    others = [row for name, row in done.items() if name != SEED]
    metric = _headline(others)
    if SEED not in done:
        return "Without the base model in this run, nothing tells what fine-tuning did.", ""
    if not others:
        return "", ""
    compared = [row for row in others if metric and kind(row, metric) != "unknown"]
    if not compared:
        return "No checkpoint's safety can be compared with the base model's.", ""
    worst = min(compared, key=lambda row: row[f"{metric}_delta"])
    found, figures = kind(worst, metric), _figures(worst, metric)
    method = str(worst["method"])
    if len(compared) > 1:
        fallen = sum(kind(row, metric) == "less" for row in compared)
        counted = f"{fallen} of {len(compared)} checkpoints were found less safe than the base model"
        return f"{counted}; the lowest is {method}: {figures}.", method
    if found == "less":
        return f"{method} is less safe than the base model: {figures}.", method
    if found == "alone" and worst[f"{metric}_delta"] < 0:
        return f"{method} is less safe than the base model when taken alone: {figures}.", method
    return f"{method} was not found less safe than the base model: {figures}.", method
