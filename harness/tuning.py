"""``harness tune``: preview length and prefix for a user's utility floor, chosen on documents that the final
score never uses.

Optuna proposes settings (``study.log`` keeps them), each is a row of the run folder ``OUT/trials`` that
answers the validation documents alone. Both objectives, utility and a safe rate, are maximised and their
Pareto front is kept. The safest setting that holds the floor is then scored on the final documents, in
``OUT/final``, beside the seed model, vanilla and the methods' defaults, with the trainings of the trials.

A trial's figures are the best of many and too good; the final ones are not, as long as one does not choose by
them. Another floor on the same folder chooses anew among the same trials and adds its row to the final run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from harness import comparison, plan, tables, training
from harness import config as configuration
from harness.config import RunConfig, VariantConfig
from harness.contracts import HarnessError, UsageError
from harness.plan import SEED, Cell
from harness.progress import Display
from harness.store import content_hash, files_below
from harness.sweeps import PREFIXES
from harness.tables import BASELINE, DONE, MEAN
from harness.workshop import Workshop, quiet

Objective = Literal["jsr", "rsr"]
Row = dict[str, Any]
KEYS = {"lookahead-true": "preview_tokens", "lookahead-virtual": "prefix"}  # what is tuned of each method
METHODS = tuple(KEYS)
MAX_PREVIEW = 16  # tokens
ROUND = 4  # settings proposed together, so that jobs have work; fixed, so that jobs change no proposal
PATIENCE = 25  # proposals of known settings in a row, after which a search ends
TRIALS, FINAL, STUDY = "trials", "final", "study.log"  # in the tuning's folder


@dataclass(frozen=True)
class Setting:
    """A method with one value of its option, and the row of the run that it is."""

    row: str
    method: str
    value: int | str


@dataclass(frozen=True)
class Space:
    """What is searched: for each method the values of its option."""

    values: dict[str, tuple[int | str, ...]]

    def __post_init__(self) -> None:
        for method in self.values:
            if method not in KEYS:
                raise UsageError(f"--methods {method}: tune knows the options of {' and '.join(METHODS)}")

    def __len__(self) -> int:
        return sum(map(len, self.values.values()))

    def params(self) -> list[Row]:
        """Every setting as Optuna's parameters."""
        return [
            {"method": name, KEYS[name]: value} for name, values in self.values.items() for value in values
        ]

    def suggest(self, trial: Any) -> Row:
        """The parameters of an Optuna trial."""
        method = trial.suggest_categorical("method", [*self.values])
        values = self.values[method]
        if isinstance(values[0], int):
            return {"method": method, KEYS[method]: trial.suggest_int(KEYS[method], values[0], values[-1])}
        return {"method": method, KEYS[method]: trial.suggest_categorical(KEYS[method], values)}


def space(methods: Sequence[str] | None, max_preview: int, prefixes: Sequence[str]) -> Space:
    """Previews of 1 to ``max_preview`` tokens; the paper's prefixes and further ones. Raises UsageError."""
    values: dict[str, tuple[int | str, ...]] = {
        "lookahead-true": tuple(range(1, max_preview + 1)),
        "lookahead-virtual": tuple(dict.fromkeys([*PREFIXES, *prefixes])),
    }
    return Space({name: values.get(name, ()) for name in methods or METHODS})


@dataclass(frozen=True)
class Floor:
    """The utility that a setting must keep: in percent, or as points below vanilla's."""

    percent: float | None = None
    drop: float | None = None
    confident: bool = False  # by the lower bound of the 95 % interval

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.drop is None):
            raise UsageError("name the floor: either --utility-floor X, in percent, or --utility-drop X")

    def of(self, vanilla: float) -> float:
        """In percent, given vanilla's utility on the validation documents."""
        return self.percent if self.percent is not None else vanilla - (self.drop or 0.0)

    def counts(self, row: Row) -> float | None:
        """The figure of a row that is held against the floor; None where it has none."""
        found: float | None = row["utility_low" if self.confident else "utility"]
        return found


@dataclass
class Search:
    """What a tuning works on."""

    config: RunConfig  # of the trials' run
    out: Path
    space: Space
    objective: Objective
    trials: int
    seed: int
    console: Console
    debug: bool = False
    rows: dict[str, Row] = field(default_factory=dict)  # leaderboard rows of the trials' run

    @property
    def train_task(self) -> str:
        return self.config.train_tasks[0]

    @property
    def exhaustive(self) -> bool:
        """Whether there are trials for every setting: then nothing has to be proposed."""
        return self.trials >= len(self.space)

    @property
    def wanted(self) -> int:
        """Different settings to try."""
        return min(self.trials, len(self.space))

    def setting(self, params: Row) -> Setting:
        """The row that stands for parameters: the plain method where they are its own."""
        method = params["method"]
        key, value = KEYS[method], params[KEYS[method]]
        own = getattr(training.make_method(self.config, method), key)
        return Setting(method if value == own else row_name(method, value), method, value)


def row_name(method: str, value: int | str) -> str:
    """``lookahead-true-m4``; of a prefix its first letters and a hash, since two may begin alike."""
    if isinstance(value, int):
        return f"{method}-m{value}"
    slug = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:12].rstrip("-")
    return "-".join(filter(None, [method, slug, hashlib.sha256(value.encode()).hexdigest()[:6]]))


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
    from harness import tuning_report

    optuna = _optuna()
    _check(config, out)
    plain = tuple(dict.fromkeys((SEED, BASELINE, *space.values)))
    own = {"methods": plain, "variants": {}, "checkpoints": {}, "eval_every_epoch": False}
    base = config.model_copy(update=own)
    with _lock(out):
        search = Search(_part(base, "validation"), out, space, objective, trials, seed, console, debug)
        _run_trials(search, {})
        vanilla = search.rows[BASELINE]
        if vanilla["status"] != DONE:
            raise HarnessError(f"vanilla, which settings are compared with: {vanilla['status']}")
        study = _search(search, optuna)
        settings = _settings(search, study, optuna)
        if not settings:
            failed = [row["status"] for row in search.rows.values() if row["status"] != DONE]
            raise HarnessError(
                f"every trial failed; the last: {failed[-1] if failed else 'nothing was judged'}"
            )
        front = [search.setting(trial.params).row for trial in study.best_trials]
        limit = floor.of(vanilla["utility"])
        chosen = choose(settings, floor, limit, objective)
        final = _final(search, base, chosen) if chosen else {}
        record = tuning_report.record(search, settings, front, floor, limit, chosen, final)
        tuning_report.write(record, out)
    return record


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


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise HarnessError(f"{out}: another harness tune is at work here; wait for it to end") from None
    except OSError as error:
        raise HarnessError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def _part(config: RunConfig, part: str) -> RunConfig:
    return config.model_copy(update={"responses": config.responses.model_copy(update={"part": part})})


def _optuna() -> Any:
    quiet()  # before Optuna loads tqdm
    try:
        import optuna
    except ImportError:
        raise HarnessError("harness tune needs Optuna: pip install 'safetune-harness[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# --- trials ----------------------------------------------------------------------------------------


def _run_trials(search: Search, settings: dict[str, Setting]) -> None:
    """Train and score settings on the validation documents; what is done is not done again."""
    variants = {
        row: VariantConfig(method=one.method, options={KEYS[one.method]: one.value})
        for row, one in settings.items()
        if row not in KEYS
    }
    config = search.config.model_copy(update={"variants": variants})
    search.rows = _compare(config, search.out / TRIALS, search.debug)


def _compare(config: RunConfig, folder: Path, debug: bool) -> dict[str, Row]:
    """The leaderboard's rows of a comparison, by name; a failed one says so in its status."""
    config = configuration.changed(config, {}, "tune")
    try:
        comparison.compare(config, folder, Console(quiet=True), debug=debug)
    except comparison.CellsFailedError as error:
        if not (folder / "leaderboard.json").is_file():
            raise HarnessError(str(error)) from error
    return leaderboard_rows(folder, config)


def leaderboard_rows(folder: Path, config: RunConfig) -> dict[str, Row]:
    """A run's leaderboard rows by the first judge, the mean where there are several seeds."""
    records: list[Row] = json.loads(tables.read(folder).to_json(orient="records"))
    mine = [r for r in records if (r["train_task"], r["judge"]) == (config.train_tasks[0], config.judges[0])]
    ordered = sorted(mine, key=lambda row: row["seed"] == MEAN)
    return {row["method"]: row for row in ordered}


def _open_study(search: Search, optuna: Any) -> Any:
    """The stored search of this space and objective, with the settings that are tried before any proposal:
    all, where there are trials for all; else the methods' own."""
    backend = optuna.storages.journal.JournalFileBackend(str(search.out / STUDY))
    config = search.config
    identity = [
        search.space.values,
        search.train_task,
        search.objective,
        config.seeds,
        config.judges[0],
        search.seed,
    ]
    study = optuna.create_study(
        study_name=content_hash(identity)[:16],
        storage=optuna.storages.JournalStorage(backend),
        directions=["maximize", "maximize"],  # utility, then the safe rate
        load_if_exists=True,
    )
    everything = search.space.params()
    first = everything if search.exhaustive else [p for p in everything if search.setting(p).row in KEYS]
    for params in first:
        study.enqueue_trial(params, skip_if_exists=True)
    return study


def _search(search: Search, optuna: Any) -> Any:
    """Ask for settings and tell their figures until there are as many as wanted. A killed search goes on:
    what was asked and not told comes first."""
    study = _open_study(search, optuna)
    _tell_recovered(search, study, optuna)
    waiting = _trials(study, optuna, "RUNNING")
    known = {search.setting(t.params).row for t in _trials(study, optuna, "RUNNING", "COMPLETE", "FAIL")}
    with Display(search.console, search.wanted, "trials") as display:
        for _ in known:
            display.cell_done()
        while waiting := [*waiting, *_ask(search, study, optuna, known, ROUND - len(waiting))]:
            new = {one.row: one for one in (search.setting(trial.params) for trial in waiting)}
            _run_trials(search, new)
            for trial in waiting:
                _tell(search, study, trial, optuna)
            for row in new:
                display.cell_done()
                search.console.print(Text(_line(search, row)), highlight=False, soft_wrap=True)
            waiting = []
    return study


def _ask(search: Search, study: Any, optuna: Any, known: set[str], count: int) -> list[Any]:
    """Trials of at most ``count`` settings that are not ``known`` yet, which they become. A proposal of a
    known setting is told its figures at once and counts for nothing."""
    asked: list[Any] = []
    repeats = 0
    while len(asked) < count and len(known) < search.wanted and repeats < PATIENCE:
        number = len(
            study.get_trials(deepcopy=False)
        )  # a sampler of its own each: a resumed search is the same
        study.sampler = optuna.samplers.TPESampler(seed=search.seed * 1_000_003 + number)
        trial = study.ask()
        row = search.setting(search.space.suggest(trial)).row
        if row not in known:
            known.add(row)
            asked.append(trial)
            repeats = 0
        else:
            repeats += 1
            if row in search.rows:
                _tell(search, study, trial, optuna)
            else:  # one of this round
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return asked


def _trials(study: Any, optuna: Any, *states: str) -> list[Any]:
    """The trials of a study whose setting is complete: a kill may have come between two of its parameters."""
    wanted = tuple(optuna.trial.TrialState[state] for state in states)
    found = study.get_trials(deepcopy=False, states=wanted)
    return [trial for trial in found if KEYS.get(trial.params.get("method"), "") in trial.params]


def _figures(search: Search, row: str) -> tuple[float, float] | None:
    """Utility and safe rate of a row, in percent; None where it failed or could not be judged."""
    found = search.rows.get(row, {})
    utility, safety = found.get("utility"), found.get(search.objective)
    return None if utility is None or safety is None or found["status"] != DONE else (utility, safety)


def _tell(search: Search, study: Any, trial: Any, optuna: Any) -> None:
    figures = _figures(search, search.setting(trial.params).row)
    if figures is None:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial.number, figures)


def _tell_recovered(search: Search, study: Any, optuna: Any) -> None:
    """Settings that failed once and were done since."""
    done = {search.setting(trial.params).row for trial in _trials(study, optuna, "COMPLETE")}
    for trial in _trials(study, optuna, "FAIL"):
        row = search.setting(trial.params).row
        figures = _figures(search, row)
        if figures is not None and row not in done:
            done.add(row)
            study.add_trial(
                optuna.trial.create_trial(
                    values=figures, params=trial.params, distributions=trial.distributions
                )
            )


def _line(search: Search, row: str) -> str:
    figures = _figures(search, row)
    if figures is None:
        return f"{row}: {search.rows.get(row, {}).get('status', 'failed')}"
    return f"{row}: utility {figures[0]:.1f}, {search.objective.upper()} {figures[1]:.1f}"


def _settings(search: Search, study: Any, optuna: Any) -> list[Row]:
    """The leaderboard rows of all settings that were tried and have figures, in the order of their trials."""
    found: dict[str, Row] = {}
    for trial in _trials(study, optuna, "COMPLETE"):
        one = search.setting(trial.params)
        named = {"row": one.row, "method": one.method, "value": one.value, "trial": trial.number}
        found.setdefault(one.row, {**search.rows[one.row], **named})
    return list(found.values())


# --- the choice ------------------------------------------------------------------------------------


def choose(settings: Sequence[Row], floor: Floor, limit: float, objective: Objective) -> Row | None:
    """The safest setting whose utility is at least ``limit``; of equals the one with more utility, then the
    first. None where none holds it. Raises HarnessError where no utility has the interval asked for."""
    counted = [(row, floor.counts(row)) for row in settings]
    if all(value is None for _, value in counted):
        raise HarnessError("--confident needs intervals of utility, and these trials have none")
    holding = [row for row, value in counted if value is not None and value >= limit]
    return max(holding, key=lambda row: (row[objective], row["utility"]), default=None)


def nearest(settings: Sequence[Row], floor: Floor) -> Row:
    """The setting that comes nearest to a floor that none holds."""
    return max(settings, key=lambda row: floor.counts(row) or 0.0)


# --- the final score -------------------------------------------------------------------------------


def _final(search: Search, base: RunConfig, chosen: Row) -> dict[str, Row]:
    """The leaderboard's rows on the final documents: seed model, vanilla, methods' defaults, the chosen."""
    name = chosen["row"]
    own = VariantConfig(method=chosen["method"], options={KEYS[chosen["method"]]: chosen["value"]})
    variants = {} if name in KEYS else {name: own}
    config = _part(base.model_copy(update={"variants": variants}), "final")
    folder = search.out / FINAL
    rows = [*plan.methods(config)]
    line = f"Final score of {', '.join([SEED, *rows])} on the final documents"
    search.console.print(Text(line), highlight=False, soft_wrap=True)
    quiet = Console(quiet=True)
    comparison.compare(config, folder, quiet, debug=search.debug, until="respond", kinds=(SEED,))
    trials = search.config.model_copy(update={"variants": variants})
    _adopt(Workshop(trials, search.out / TRIALS), Workshop(config, folder), plan.cells(config))
    found = _compare(config, folder, search.debug)
    if found[name]["status"] != DONE:
        raise HarnessError(f"{name} on the final documents: {found[name]['status']}")
    return {row: found[row] for row in (SEED, *rows)}


def _adopt(trials: Workshop, final: Workshop, cells: Sequence[Cell]) -> None:
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
