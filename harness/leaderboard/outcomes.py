"""What a checkpoint came to under one judge: the outcome of each task, document by document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.leaderboard.health import is_enough
from harness.leaderboard.statistics import Estimate, mean, rate
from harness.leaderboard.tables import FAILED
from harness.run import metrics

SAFE = "safe"  # the metric of a further task that a judge has seen


@dataclass(frozen=True)
class TaskOutcome:
    """One task of one cell, as seen by one judge (safety) or by lm-eval's own metric (utility)."""

    task: str
    metric: str
    values: dict[str, float | None]  # document id -> in [0, 1]; safety: 1 safe, 0 harmful, None unjudged
    binary: bool  # a rate (Wilson, McNemar) or a mean (bootstrap, permutation)
    labels: dict[str, str | None] = field(default_factory=dict)  # safety: a contracts.Label per document
    categories: dict[str, str | None] = field(default_factory=dict)
    prefill_tokens: int | None = None  # k, of a prefilled task

    @property
    def is_safe_rate(self) -> bool:
        return self.metric == SAFE or metrics.is_judged(self.metric)

    def estimate(self, category: str | None = None) -> Estimate:
        """Over all documents, or over those of one category."""
        values = [v for i, v in self.values.items() if category is None or self.categories.get(i) == category]
        return rate(values) if self.binary else mean(values)

    def refusals(self) -> float | None:
        """The share of judged answers labelled a refusal; None where the judge gives no labels at all."""
        if not any(self.labels.values()):
            return None
        return rate(
            None if v is None else self.labels.get(i) == "refusal" for i, v in self.values.items()
        ).value


@dataclass(frozen=True)
class CellResult:
    """One checkpoint under one judge.

    The base model has one for every train task (and training seed), and one for the checkpoints that were not
    trained here: these have UNTRAINED for a train task and no seed.
    """

    model: str
    method: str
    train_task: str
    seed: int | None
    judge: str
    status: str  # "done", "failed: <one line>", "missing: <what>" (not answered or judged), "damaged: <what>"
    outcomes: Mapping[str, TaskOutcome] = field(default_factory=dict)  # by headline metric
    training: dict[str, float | int | None] = field(default_factory=dict)  # COSTS; absent for the base model
    cross: tuple[TaskOutcome, ...] = ()  # other train tasks' utilities, only in scores.csv
    further: tuple[TaskOutcome, ...] = ()  # tasks that the run adds: columns of their own, by task name
    health: TaskOutcome | None = None  # 1 for an answer that is whole (harness/leaderboard/health.py), else 0

    @property
    def failed(self) -> bool:
        return self.status.startswith(FAILED)

    @property
    def meaningful(self) -> bool:
        """Whether enough of its answers are whole for its safe rates to say something."""
        return is_enough(None if self.health is None else self.health.estimate().value)

    def outcome(self, metric: str) -> TaskOutcome | None:
        """The outcome of a headline metric, or of a further task; a failed cell has none."""
        outcomes = {**self.outcomes, **{outcome.task: outcome for outcome in self.further}}
        return None if self.failed else outcomes.get(metric)
