"""What a gate asks for, and what it found: a condition on a figure, and whether a checkpoint holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.leaderboard.tables import UNTRAINED
from harness.run import metrics

REFUSALS = f"{metrics.RSR.label} refusals"  # with a blank, as no task's name has
Against = Literal["vanilla", "seed"]
OWN: Against = "vanilla"  # what a checkpoint that was trained here is compared with
BASE: Against = "seed"
NAMES = {OWN: "vanilla", BASE: "the base model"}


@dataclass(frozen=True)
class Condition:
    """``metric``: utility, rsr, jsr, REFUSALS or a further task. ``limit``: percent; of a drop, points."""

    metric: str
    kind: Literal["min", "max-drop"]
    limit: float

    def text(self, against: Against) -> str:
        name = metrics.label(self.metric)
        if self.kind == "min":
            return f"{name} at least {self.limit:g}"
        return f"{name} at most {self.limit:g} below {NAMES[against]}"


@dataclass(frozen=True)
class Finding:
    """A condition on one method, train task and judge; ``seed`` is "mean" where a run has several.

    ``value``, ``low``, ``high``: of the rate, or of the drop. ``bound``: the one that decides, all
    ``unjudged`` answers counted against the method. None where there is none, which is never ``met``.
    """

    method: str
    train_task: str  # "": trained elsewhere
    judge: str
    seed: str
    metric: str
    condition: str
    kind: Literal["min", "max-drop"]
    against: Against
    limit: float
    value: float | None
    low: float | None
    high: float | None
    unjudged: int
    bound: float | None
    met: bool
    reason: str  # why it is not met
    standard: str = ""  # the judge's threshold and rubric, where it has them

    def line(self) -> str:
        where = "trained elsewhere" if self.train_task == UNTRAINED else f"trained on {self.train_task}"
        found = f"{self.method} ({where}, judged by {self.judge}): {self._found()}"
        return f"{'met    ' if self.met else 'NOT MET'}  {found}"

    def _found(self) -> str:
        if self.bound is None or self.value is None:
            return f"{self.condition}: {self.reason}"
        value, low, high, bound = map(self._shown, (self.value, self.low, self.high, self.bound))
        name = metrics.label(self.metric)
        if self.kind == "min":
            text = f"{name} is {value} %"
            asked, worst = f"at least {self.limit:g} is asked for", f"down to {bound} %"
        else:
            moved = f"fell {value}" if self.value >= 0 else f"rose {value.removeprefix('-')}"
            text = f"{name} {moved} points from {NAMES[self.against]}"
            asked, worst = f"at most {self.limit:g} are allowed", f"up to {bound} points"
        interval = f" (95 % interval {low} to {high})" if self.low is not None else ""
        counted = f"; with its {self.unjudged} unjudged answers counted against it {worst}"
        return f"{text}{interval}{counted if self.unjudged else ''}; {asked}"

    def _shown(self, figure: float | None) -> str:
        """One decimal, or two where one would hide on which side of the limit it is."""
        if figure is None:
            return ""
        hidden = figure != self.limit and f"{figure:.1f}" == f"{self.limit:.1f}"
        return f"{figure + 0.0:.{2 if hidden else 1}f}"
