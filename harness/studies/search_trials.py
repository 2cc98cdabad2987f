"""The search of ``harness tune``: Optuna proposes settings, each is trained and scored as a row of one run.

Both objectives, utility and a safe rate, are maximised. Where there are trials for all settings, all are
tried and nothing is proposed. Proposals come from a multi-objective TPE with a random source of its own for
each trial, so that a search that was killed ends as one that was not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from harness import config as configuration
from harness.config import RunConfig, VariantConfig
from harness.console.progress import Display
from harness.contracts import Budget, HarnessError, UsageError
from harness.leaderboard import tables
from harness.leaderboard.tables import DONE, MEAN
from harness.pipeline import compare
from harness.pipeline.outcome import CellsFailedError
from harness.run.context import quiet
from harness.run.resolve import resolve
from harness.storage.files import content_hash
from harness.studies.sweeps import PREFIXES, SWEEPS, slug

Objective = Literal["jsr", "rsr"]
Row = dict[str, Any]
KEYS = {sweep.method: sweep.key for sweep in SWEEPS.values() if sweep.method}  # what is tuned of each method
METHODS = tuple(KEYS)
ROUND = 4  # settings proposed together, so that jobs have work; fixed, so that jobs change no proposal
PATIENCE = 25  # proposals of known settings in a row, after which a search ends
TRIALS, STUDY = "trials", "study.log"  # in the search's folder


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


def nearest(settings: Sequence[Row], floor: Floor) -> Row:
    """The setting that comes nearest to a floor that none holds."""
    return max(settings, key=lambda row: floor.counts(row) or 0.0)


@dataclass
class Search:
    """What a search works on."""

    config: RunConfig  # of the trials' run
    out: Path
    space: Space
    objective: Objective
    trials: int
    seed: int
    console: Console
    debug: bool = False
    rows: dict[str, Row] = field(default_factory=dict)  # leaderboard rows of the trials' run
    budget: Budget = field(init=False)  # of the judges, in this command

    def __post_init__(self) -> None:
        self.budget = Budget(self.config.judging.max_cost)

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
        own = getattr(resolve(self.config).method(method), key)
        return Setting(method if value == own else row_name(method, value), method, value)


def row_name(method: str, value: int | str) -> str:
    """``lookahead-true-m4``; of a prefix its first letters and a hash, since two may begin alike."""
    if isinstance(value, int):
        return f"{method}-m{value}"
    return "-".join(filter(None, [method, slug(value, 12), hashlib.sha256(value.encode()).hexdigest()[:6]]))


def load_optuna() -> Any:
    quiet()  # before Optuna loads tqdm
    try:
        import optuna
    except ImportError:
        raise HarnessError("harness tune needs Optuna: pip install 'safetune-harness[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# --- trials ----------------------------------------------------------------------------------------


def run_trials(search: Search, settings: dict[str, Setting]) -> None:
    """Train and score settings on the validation documents; what is done is not done again."""
    variants = {
        row: VariantConfig(method=one.method, options={KEYS[one.method]: one.value})
        for row, one in settings.items()
        if row not in KEYS
    }
    config = search.config.model_copy(update={"variants": variants})
    search.rows = compare_quietly(search, config, search.out / TRIALS)


def compare_quietly(search: Search, config: RunConfig, folder: Path) -> dict[str, Row]:
    """The leaderboard's rows of a comparison, by name; a failed one says so in its status."""
    config = configuration.changed(config, {}, "tune")
    try:
        compare.compare(config, folder, Console(quiet=True), debug=search.debug, budget=search.budget)
    except CellsFailedError as error:
        if not (folder / "leaderboard.json").is_file():
            raise HarnessError(str(error)) from error
    return leaderboard_rows(folder, config)


def leaderboard_rows(folder: Path, config: RunConfig) -> dict[str, Row]:
    """A run's leaderboard rows by the first judge, the mean where there are several seeds."""
    records = tables.records(tables.read(folder))
    mine = [r for r in records if (r["train_task"], r["judge"]) == (config.train_tasks[0], config.judges[0])]
    ordered = sorted(mine, key=lambda row: row["seed"] == MEAN)
    return {row["method"]: row for row in ordered}


def _open_study(search: Search, optuna: Any) -> Any:
    """The stored search of this space and objective, with the settings that are tried before any proposal:
    all, where there are trials for all; else the methods' own; and those that were told and are gone."""
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
    enqueued = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
    waiting = [trial.system_attrs["fixed_params"] for trial in enqueued]
    for params in _gone(search, study, optuna):
        if params not in waiting:
            study.enqueue_trial(params)
    return study


def _gone(search: Search, study: Any, optuna: Any) -> list[Row]:
    """The parameters of settings that were told and that the trials' run has no more (``harness clean``)."""
    running = {search.setting(trial.params).row for trial in _trials(study, optuna, "RUNNING")}
    told = {search.setting(t.params).row: t.params for t in _trials(study, optuna, "COMPLETE", "FAIL")}
    return [params for row, params in told.items() if row not in running and row not in search.rows]


def run(search: Search, optuna: Any) -> Any:
    """Ask for settings and tell their figures until there are as many as wanted. A killed search goes on:
    what was asked and not told comes first."""
    study = _open_study(search, optuna)
    _tell_recovered(search, study, optuna)
    waiting = _trials(study, optuna, "RUNNING")
    told = {search.setting(trial.params).row for trial in _trials(study, optuna, "COMPLETE", "FAIL")}
    known = {search.setting(trial.params).row for trial in waiting} | (told & search.rows.keys())
    with Display(search.console, search.wanted, "trials") as display:
        for _ in known:
            display.cell_done()
        while waiting := [*waiting, *_ask(search, study, optuna, known, ROUND - len(waiting))]:
            new = {one.row: one for one in (search.setting(trial.params) for trial in waiting)}
            run_trials(search, new)
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


def settings(search: Search, study: Any, optuna: Any) -> list[Row]:
    """The leaderboard rows of all settings that were tried and have figures, in the order of their trials."""
    found: dict[str, Row] = {}
    for trial in _trials(study, optuna, "COMPLETE"):
        one = search.setting(trial.params)
        if _figures(search, one.row) is None:  # its run is gone, and it failed or was not tried again
            continue
        named = {"row": one.row, "method": one.method, "value": one.value, "trial": trial.number}
        found.setdefault(one.row, {**search.rows[one.row], **named})
    return list(found.values())
