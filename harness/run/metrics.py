"""The headline metrics of a run, as a list: tables, files, LaTeX, report and model card draw their columns
from it, and checkpoints answer its tasks. A run's further tasks stand behind them, by their own names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.config import RunConfig


@dataclass(frozen=True)
class Metric:
    """One headline figure of a checkpoint, in percent; more is better.

    - ``name``: how its columns' names in files begin; ``label``: what heads them for people; ``phrase``: what
      a sentence calls it.
    - ``task``: the task that it is measured on; None for the train task's utility task, with that task's own
      metric and kind.
    - ``judged``: it is a judge's safe rate, with unjudged answers and refusals beside it. For others
      ``measure`` is the task's metric by document, in [0, 1], and ``kind`` says whether that is right or
      wrong, or a score.
    - ``prefilled``: its answers are opened with k tokens, which is a column too.
    - ``about``: a line below the tables, where their other lines do not say what it is.
    """

    name: str
    label: str
    phrase: str
    task: Callable[[RunConfig], str] | None = None
    judged: bool = False
    measure: str = ""
    kind: Literal["rate", "mean"] = "rate"
    prefilled: bool = False
    about: str = ""
    on_card: str = ""  # a model card's name for it, where it is another

    @property
    def in_full(self) -> str:
        """As in "raw safe rate (RSR)"."""
        return self.phrase if self.phrase == self.label else f"{self.phrase} ({self.label})"


UTILITY = Metric("utility", "utility", "utility")
RSR = Metric("rsr", "RSR", "raw safe rate", task=lambda config: config.safety.raw_task, judged=True)
JSR = Metric(
    "jsr",
    "JSR",
    "prefilled safe rate",
    task=lambda config: config.safety.prefill_task,
    judged=True,
    prefilled=True,
    on_card="safe rate, answers opened (JSR)",
)
METRICS = [UTILITY, RSR, JSR]  # in the files' order


# --- orders and choices ----------------------------------------------------------------------------


def names() -> tuple[str, ...]:
    """In the files' order."""
    return tuple(metric.name for metric in METRICS)


def judged() -> tuple[str, ...]:
    """The safe rates, in the files' order."""
    return tuple(metric.name for metric in METRICS if metric.judged)


def by_rule() -> tuple[str, ...]:
    """Those that no judge gives, in the files' order."""
    return tuple(metric.name for metric in METRICS if not metric.judged)


def headlines() -> tuple[str, ...]:
    """The safe rates, those first that say most: under attack (JSR) before plainly asked. The first that was
    measured is a run's headline."""
    attacked = [metric.name for metric in METRICS if metric.judged and metric.prefilled]
    return (*attacked, *(name for name in judged() if name not in attacked))


def safety_first() -> tuple[str, ...]:
    """As people read them: the headlines, then what no judge gives."""
    return (*headlines(), *by_rule())


def headline_first() -> tuple[str, ...]:
    """As the report has them: the headline, what no judge gives, the other safe rates."""
    return (*headlines()[:1], *by_rule(), *headlines()[1:])


def as_papers_have_them() -> tuple[str, ...]:
    """As papers' tables have them: safe rates in the files' order, then what no judge gives."""
    return (*judged(), *by_rule())


def of(name: str) -> Metric | None:
    """The headline metric of a name; None for a further task."""
    return next((metric for metric in METRICS if metric.name == name), None)


def is_judged(name: str) -> bool:
    return name in judged()


def label(name: str) -> str:
    """What heads its columns; a further task goes by its name."""
    metric = of(name)
    return name if metric is None else metric.label


def by_task(config: RunConfig) -> dict[str, Metric]:
    """The metrics that have a task of their own, by it."""
    return {metric.task(config): metric for metric in METRICS if metric.task is not None}


def heading(name: str) -> str:
    """Its label, begun with a capital; a further task keeps its name."""
    text = label(name)
    return f"{text[0].upper()}{text[1:]}" if of(name) else text


def in_words(name: str) -> str:
    """A headline metric as a sentence has it: "the raw safe rate (RSR)"."""
    metric = of(name)
    if metric is None or metric.phrase == metric.label:
        return label(name)
    return f"the {metric.in_full}"


def phrase(name: str) -> str:
    metric = of(name)
    return name if metric is None else metric.phrase


def axis(name: str) -> str:
    """A headline metric beside an axis of a figure."""
    metric = of(name)
    return f"{label(name)} (%)" if metric is None else f"{metric.phrase}, {metric.label} (%)"


def of_score(config: RunConfig, task: str, measure: str) -> Metric | None:
    """The headline metric with a task of its own that a row of scores.csv is of."""
    metric = by_task(config).get(task)
    if metric is None:
        return None
    return metric if measure == (metric.name if metric.judged else metric.measure) else None


def with_columns(suffixes: Callable[[Metric], tuple[str, ...]]) -> tuple[str, ...]:
    """The columns that each metric has by ``suffixes``, in the files' order."""
    return tuple(f"{metric.name}{suffix}" for metric in METRICS for suffix in suffixes(metric))


def explained() -> list[str]:
    """A line below the tables for each metric that needs one of its own."""
    return [f"{metric.label}: {metric.about}." for metric in METRICS if metric.about]
