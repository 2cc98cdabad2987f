"""Named moments around every rename and removal in a run folder, at which a test lets a process die."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

AT = "HARNESS_CRASH_AT"  # NAME, or NAME FILE, and :N for the N-th time: "stage.moved train:2"
POINTS = (
    "text.written",  # a file's new content stands beside the old one
    "text.replaced",
    "stage.unmarked",  # the marker of what is made anew is gone
    "stage.worked",  # all outputs lie in the scratch folder
    "stage.cleared",  # an output's former folder is gone
    "stage.moved",  # one output is in place
    "stage.collected",  # all are, and the marker is missing
    "journal.row",  # one more row is written down
    "journal.removed",
    "training.emptied",  # another training's restart is gone
    "training.restarted",  # the weights that an interrupted training saved are gone
    "training.collected",  # one folder of weights is in the stage's scratch
    "training.removed",  # the training is done, its restart is gone
    "state.cleared",  # what an interrupted command left of it is gone
    "state.saved",  # transformers' part of a resume state, and the method's
    "state.written",  # its marker stands beside its place
    "state.marked",
    "state.swept",  # an older one is gone
    "epoch.cleared",
    "epoch.saved",
    "epoch.moved",
    "verdicts.unmarked",  # verdicts of other settings no longer count
    "verdicts.forgotten",  # what a judge remembered of its work elsewhere is gone
    "batch.written",  # what is to be remembered of a batch stands beside its place
    "batch.remembered",
    "batch.forgotten",
    "scores.unmarked",  # the table is to be made anew
    "report.removed",  # so is the report
    "part.removed",  # a row, a task or weights that were to be taken out of a run
)
_passed: Counter[str] = Counter()


def point(name: str, path: Path) -> None:
    """Die here by kill -9 where HARNESS_CRASH_AT says so; else nothing happens. ``path``: what is changed, a
    stage's marker or a file. Raises ValueError for an unknown name."""
    wanted = os.environ.get(AT)
    if not wanted:
        return
    moment, _, nth = wanted.partition(":")
    if moment.split()[0] not in POINTS:
        raise ValueError(f"{AT}: no point is called '{moment.split()[0]}'")
    if moment in (name, f"{name} {path.name}"):
        _passed[moment] += 1
        if _passed[moment] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
