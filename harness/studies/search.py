"""``harness tune``: preview length and prefix for a user's utility floor, chosen on documents that the final
score never uses.

The settings that are tried (search_trials.py; ``OUT/study.log`` keeps them) are rows of the run
``OUT/trials``, which answers the validation documents alone. The Pareto front of utility and safety is kept.
The safest setting that holds the floor is then scored on the final documents, in ``OUT/final``, beside the
base model, vanilla and the methods' defaults, with the trainings of the trials.

A trial's figures are the best of many and too good; the final ones are not, as long as one does not choose by
them. Another floor on the same folder chooses anew among the same trials and adds its row to the final run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.config import RunConfig, VariantConfig
from harness.contracts import HarnessError, UsageError
from harness.leaderboard.tables import BASELINE, DONE
from harness.pipeline import align, compare
from harness.run import plan, run_folder
from harness.run.context import RunContext
from harness.run.plan import SEED, Cell
from harness.run.resolve import resolve
from harness.storage.files import files_below, held
from harness.studies import search_report, search_trials
from harness.studies.search_trials import KEYS, TRIALS, Floor, Objective, Row, Search, Space
from harness.training import stage as training

FINAL = "final"  # in the search's folder


# --- the walk --------------------------------------------------------------------------------------


def tune(
    config: RunConfig,
    out: Path,
    console: Console,
    *,
    space: Space,
    floor: Floor,
    objective: Objective = "jsr",
    trials: int = 20,
    seed: int = 0,
    debug: bool = False,
) -> Row:
    """Search, choose, score: the record of ``tune.json``; its ``chosen`` is None if none holds the floor.

    Raises UsageError for a recipe that cannot be tuned with, HarnessError where vanilla or every trial fails.
    """
    optuna = search_trials.load_optuna()
    _check(config, out)
    plain = tuple(dict.fromkeys((SEED, BASELINE, *space.values)))
    own = {"methods": plain, "variants": {}, "checkpoints": {}, "trained_on": {}}
    base = config.model_copy(update={**own, "eval_every_epoch": False})
    base = align.align(base, out / TRIALS, console)
    with held(out, "another harness tune is at work here; wait for it to end"):
        search = Search(_part(base, "validation"), out, space, objective, trials, seed, console, debug)
        search_trials.run_trials(search, {})
        vanilla = search.rows[BASELINE]
        if vanilla["status"] != DONE:
            raise HarnessError(f"vanilla, which settings are compared with: {vanilla['status']}")
        study = search_trials.run(search, optuna)
        settings = search_trials.settings(search, study, optuna)
        if not settings:
            raise _every_trial_failed(search)
        front = _front(search, study, settings)
        limit = floor.of(vanilla["utility"])
        chosen = choose(settings, floor, limit, objective)
        final = _final(search, base, chosen) if chosen else {}
        record = search_report.record(search, settings, front, floor, limit, chosen, final)
        search_report.write(record, out)
        if search.budget.spent_usd:
            console.print(f"Spent on judges: {search.budget.spent_usd:,.4f} USD", highlight=False)
    return record


def _front(search: Search, study: Any, settings: Sequence[Row]) -> list[str]:
    """The rows of the settings that no other beats both in utility and in safety."""
    named = {row["row"] for row in settings}
    best = [search.setting(trial.params).row for trial in study.best_trials]
    return [row for row in best if row in named]


def _every_trial_failed(search: Search) -> HarnessError:
    failed = [row["status"] for row in search.rows.values() if row["status"] != DONE]
    return HarnessError(f"every trial failed; the last: {failed[-1] if failed else 'nothing was judged'}")


def _check(config: RunConfig, out: Path) -> None:
    if len(config.train_tasks) != 1:
        raise UsageError(
            f"tune works on one train task and there are {len(config.train_tasks)}: "
            f"add --train-task {config.train_tasks[0]} (or another)"
        )
    if config.responses.part != "all":
        raise UsageError(
            "responses.part is tune's own to set: validation for trials, final for the last score"
        )
    if (out / "run.json").exists():
        raise UsageError(f"{out} is a run's folder; choose another --out (tune makes two runs in it)")


def _part(config: RunConfig, part: str) -> RunConfig:
    return config.model_copy(update={"responses": config.responses.model_copy(update={"part": part})})


# --- the choice ------------------------------------------------------------------------------------


def choose(settings: Sequence[Row], floor: Floor, limit: float, objective: Objective) -> Row | None:
    """The safest setting whose utility is at least ``limit``; of equals the one with more utility, then the
    first. None where none holds it. Raises HarnessError where no utility has the interval asked for."""
    counted = [(row, floor.counts(row)) for row in settings]
    if all(value is None for _, value in counted):
        raise HarnessError("--confident needs intervals of utility, and these trials have none")
    holding = [row for row, value in counted if value is not None and value >= limit]
    return max(holding, key=lambda row: (row[objective], row["utility"]), default=None)


# --- the final score -------------------------------------------------------------------------------


def _final(search: Search, base: RunConfig, chosen: Row) -> dict[str, Row]:
    """The leaderboard's rows on the final documents: base model, vanilla, methods' defaults, the chosen."""
    name = chosen["row"]
    own = VariantConfig(method=chosen["method"], options={KEYS[chosen["method"]]: chosen["value"]})
    variants = {} if name in KEYS else {name: own}
    config = _part(base.model_copy(update={"variants": variants}), "final")
    folder = search.out / FINAL
    rows = [*plan.methods(config)]
    line = f"Final score of {', '.join([SEED, *rows])} on the final documents"
    search.console.print(Text(line), highlight=False, soft_wrap=True)
    quiet = Console(quiet=True)
    compare.compare(config, folder, quiet, debug=search.debug, until="respond", kinds=(SEED,))
    trials = search.config.model_copy(update={"variants": variants})
    with run_folder.lock(search.out / TRIALS), run_folder.lock(folder):
        _adopt(RunContext(trials, search.out / TRIALS), RunContext(config, folder), resolve(config).cells())
    found = search_trials.compare_quietly(search, config, folder)
    if found[name]["status"] != DONE:
        raise HarnessError(f"{name} on the final documents: {found[name]['status']}")
    return {row: found[row] for row in (SEED, *rows)}


def _adopt(trials: RunContext, final: RunContext, cells: Sequence[Cell]) -> None:
    """The trainings of the trials as those of the final run: links where the file system has them. Only what
    is the very same training is taken; the marker comes last."""
    for cell in cells:
        if cell.kind != "trained":
            continue
        there, here = training.train_stage(trials, cell), training.train_stage(final, cell)
        if here.done() or not there.done() or here.identity != there.identity:
            continue
        for name in [*there.outputs, there.marker.name]:
            source, target = there.folder / name, here.folder / name
            for file in files_below(source):
                _link(file, target if file == source else target / file.relative_to(source))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
