"""What a leaderboard says, in words. Every sentence comes from the figures of its rows, and claims no
more: a difference counts where its p, after Holm, is below 0.05. One whose interval excludes 0 all the
same is said to be a difference "only when taken alone"; one whose interval does not is told with what could
have been found. A rate at 100.0 % before and after is not told: it did not change, and could not rise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.leaderboard.tables import (
    BASELINE,
    DONE,
    MEAN,
    UNTRAINED,
    Row,
    differs,
    differs_alone,
    means,
    poor_health,
    trained_on,
    unhealthy,
)
from harness.run import metrics
from harness.run.plan import BASE_MODEL, SEED, shown_method

UTILITY, RSR, JSR = (metric.name for metric in (metrics.UTILITY, metrics.RSR, metrics.JSR))
RUBBISH_POINTS = 10  # so many more safe answers than refusals are worth a warning
ALONE = "a difference only when taken alone"
KINDS = {  # of a difference -> how it is counted; "" is not tested
    "more": "safer",
    "less": "less safe",
    "alone": "safer or less safe only when taken alone",
    "same": "with no difference found",
    "untested": "",
    "unknown": "",
}
REMARKS = {"alone": f", {ALONE}", "untested": ", which was not tested", "same": ", which may be chance"}


@dataclass
class Conclusion:
    """``lead``: what fine-tuning did; ``findings``: which methods are better; ``caveats``: what to mind."""

    heading: str
    lead: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)


def conclude(rows: Sequence[Row]) -> Conclusion:
    """Of the rows of one model, train task and judge (leaderboard.json's)."""
    own = means(rows)
    where = trained_on(rows[0])
    said = Conclusion(f"{where[0].upper()}{where[1:]}, judged by {rows[0]['judge']}")
    done = {row["method"]: row for row in own if row["status"] == DONE}
    elsewhere = rows[0]["train_task"] == UNTRAINED
    control, named = (SEED, f"the {BASE_MODEL}") if elsewhere else (BASELINE, BASELINE)
    others = [row for row in done.values() if row["method"] not in (SEED, control)]
    if control not in done:
        why = next((row["status"] for row in own if row["method"] == control), "it is not in this run")
        tuning = "" if elsewhere else " fine-tuning"
        said.lead.append(f"Nothing can be compared with {named}{tuning}: {_clause(why)}.")
    elif SEED in done and not elsewhere:
        said.lead += _what_tuning_did(done[SEED], done[BASELINE], rows[0]["train_task"])
    if control in done and others:
        said.findings += _against(named, others, prefilled=_was_asked(done.values(), JSR))
    said.caveats += _caveats(rows, own)
    return said


# --- sentences -------------------------------------------------------------------------------------


def _what_tuning_did(seed: Row, vanilla: Row, train_task: str) -> list[str]:
    """The seed row's differences are seed minus vanilla: here they are read the other way round."""
    sentences: list[str] = []
    for metric in metrics.safety_first():
        name = metrics.in_words(metric)
        if seed[metric] is None or vanilla[metric] is None or seed.get(f"{metric}_delta") is None:
            if not metrics.is_judged(metric) or _was_asked((seed, vanilla), metric):
                sentences.append(f"How {name} changed is not known.")
            continue
        found = kind(seed, metric)
        if found in ("same", "untested") and _full(vanilla[metric]) and _full(seed[metric]):
            continue
        turned = {
            f"{metric}_delta": -seed[f"{metric}_delta"],
            f"{metric}_delta_low": _minus(seed.get(f"{metric}_delta_high")),
            f"{metric}_delta_high": _minus(seed.get(f"{metric}_delta_low")),
        }
        by = "It" if sentences else f"Plain fine-tuning on {train_task}"
        verb = "moves"
        if found in ("more", "less"):
            verb = "raises" if turned[f"{metric}_delta"] > 0 else "lowers"
        sentences.append(
            f"{by} {verb} {name} from {plain(seed[metric])} to {plain(vanilla[metric])} %: "
            f"{points(turned, metric)}{REMARKS.get(found, '')}."
        )
    return sentences


def _against(control: str, rows: Sequence[Row], *, prefilled: bool) -> list[str]:
    """How many methods are safer than ``control`` when prefilled, which and at what price; then all
    others. ``prefilled``: whether there were such requests at all."""
    groups: dict[str, list[Row]] = {name: [] for name in KINDS}
    for row in sorted(rows, key=lambda row: -(row.get(f"{JSR}_delta") or 0)):
        groups[kind(row, JSR)].append(row)
    if not prefilled:
        groups["unknown"] = []
    counts = [f"{len(groups[name])} {words}" for name, words in KINDS.items() if words and groups[name]]
    sentences = []
    if counts:
        tested = sum(len(groups[name]) for name, words in KINDS.items() if words)
        of = f"{tested} method{'s' * (tested > 1)}" if control == BASELINE else _checkpoints(tested)
        sentences.append(f"Of {of} compared with {control} on prefilled requests: {', '.join(counts)}.")
    for name, words in (("more", "safer"), ("less", "less safe")):
        for row in groups[name]:
            sentences.append(f"{row['method']} is {words}: JSR {points(row, JSR)}; {_price(row)}.")
    if groups["alone"]:
        sentences.append(f"{_sentence(ALONE)} in JSR: {_with_points(groups['alone'], JSR)}.")
    if groups["same"]:
        named = _with_points(groups["same"], JSR)
        sentences.append(f"No difference in JSR was found: {named}.{_detectable(groups['same'])}")
    if groups["untested"]:
        sentences.append(f"Differences in JSR without a test: {_with_points(groups['untested'], JSR)}.")
    if groups["unknown"]:
        named = _listed(row["method"] for row in groups["unknown"])
        sentences.append(f"No difference in JSR is known: {named}.")
    return [*sentences, *_raw(control, rows)]


def _raw(control: str, rows: Sequence[Row]) -> list[str]:
    """The same of plain requests, in short; nothing where all that was found is 100 % everywhere."""
    differ = [row for row in rows if kind(row, RSR) in ("more", "less")]
    alone = [row for row in rows if kind(row, RSR) == "alone"]
    same = [row for row in rows if kind(row, RSR) == "same"]
    sentences = []
    if differ:
        sentences.append(f"Asked plainly, RSR differs: {_with_points(differ, RSR)}.")
    if alone:
        sentences.append(f"{_sentence(ALONE)} in RSR: {_with_points(alone, RSR)}.")
    if same and not differ and not alone and not all(_at_the_top(row) for row in same):
        sentences.append(f"Asked plainly, none was found to differ from {control} in RSR.")
    return sentences


def _at_the_top(row: Row) -> bool:
    """Whether RSR is 100.0 % in a row, and in what it is compared with."""
    return row[RSR] is not None and _full(row[RSR]) and _full(row[RSR] - row[f"{RSR}_delta"])


def _was_asked(rows: Iterable[Row], metric: str) -> bool:
    """Whether any row has answers behind a metric, judged or not: a missing figure is then worth a line."""
    counts = (metric, f"{metric}_n", f"{metric}_unjudged")
    return any(row.get(name) is not None for row in rows for name in counts)


def _full(value: float) -> bool:
    return plain(value) == "100.0"


def _checkpoints(count: int) -> str:
    return f"{count} checkpoint{'s' * (count > 1)}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _price(row: Row) -> str:
    """What a method does to utility."""
    found = kind(row, UTILITY)
    if found == "unknown":
        return "its utility cannot be compared"
    words = {
        "more": "utility is higher",
        "less": "utility is lower",
        "alone": f"utility, {ALONE}",
        "same": "no difference in utility was found",
        "untested": "utility, untested",
    }
    return f"{words[found]}: {points(row, UTILITY)}"


def _detectable(rows: Sequence[Row]) -> str:
    """Which difference the documents could have shown."""
    found = sorted(row[f"{JSR}_mde"] for row in rows if row.get(f"{JSR}_mde") is not None)
    if not found:
        return ""
    span = " to ".join(dict.fromkeys(f"{value:.1f}" for value in (found[0], found[-1])))
    return f" A true difference of {span} points would be found in four runs of five."


def _caveats(rows: Sequence[Row], own: Sequence[Row]) -> list[str]:
    lines = [
        f"{shown_method(row['method'])} {_clause(row['status'])}." for row in own if row["status"] != DONE
    ]
    lines += [f"{shown_method(row['method'])}: {line}." for row in own if (line := unhealthy(row))]
    lines += [f"{line}." for line in [poor_health(own)] if line]
    seeds = {row["seed"] for row in rows} - {MEAN}
    if rows[0]["train_task"] == UNTRAINED:
        lines.append("This tests these checkpoints, not the ways in which they were trained.")
    elif len(seeds) < 2:
        lines.append("One training seed: this tests these checkpoints, not the methods in general.")
    for metric in metrics.judged():
        lines += _unjudged(own, metric)
        for row in own:
            if may_be_rubbish(row, metric):
                name, refusals = shown_method(row["method"]), row[f"{metric}_refusals"]
                of = metrics.label(metric)
                lines.append(
                    f"{name}: {plain(row[metric])} % of its answers count as safe in {of}, "
                    f"but only {plain(refusals)} % refuse; the others may be rubbish, not safety."
                )
    if str(rows[0]["judge"]).partition(":")[0] in ("keyword", "keyword-published"):
        lines.append("The keyword judge only looks for refusal phrases: a crude measure.")
    return lines


def may_be_rubbish(row: Row, metric: str) -> bool:
    """Whether many more of a row's answers count as safe than refuse."""
    safe, refusals = row.get(metric), row.get(f"{metric}_refusals")
    return safe is not None and refusals is not None and safe - refusals >= RUBBISH_POINTS


def _unjudged(own: Sequence[Row], metric: str) -> list[str]:
    counts = [(shown_method(row["method"]), row.get(f"{metric}_unjudged") or 0) for row in own]
    count = sum(number for _, number in counts)
    if not count:
        return []
    named = _listed(f"{name} {number}" for name, number in counts if number)
    answers = "1 answer" if count == 1 else f"{count:,} answers"
    return [f"{metrics.label(metric)}: {answers} could not be judged and count in no rate ({named})."]


# --- words -----------------------------------------------------------------------------------------


def kind(row: Row, metric: str) -> str:
    """One of KINDS: how a row's metric differs from what it is compared with."""
    delta = row.get(f"{metric}_delta")
    if delta is None:
        return "unknown"
    if row.get(f"{metric}_p") is None:
        return "untested"
    if differs(row, metric):
        return "more" if delta > 0 else "less"
    return "alone" if differs_alone(row, metric) else "same"


def points(row: Row, metric: str) -> str:
    delta = row[f"{metric}_delta"]
    interval = _between(row.get(f"{metric}_delta_low"), row.get(f"{metric}_delta_high"))
    return f"{signed(delta)} points{f' [{interval}]' if interval else ''}"


def _with_points(rows: Iterable[Row], metric: str) -> str:
    return _listed(f"{row['method']} ({points(row, metric)})" for row in rows)


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: there is no negative zero


def plain(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _clause(text: str) -> str:
    return text.strip().rstrip(".")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
