"""The cells of a run: which checkpoints there will be, and on what each is scored."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.config import RunConfig
from harness.contracts import UsageError
from harness.data import benchmarks
from harness.data.benchmarks import Benchmark
from harness.engines import select
from harness.plugins import registry
from harness.run import metrics

SEED = "seed"
BASE_MODEL = "base model"  # what people read for the row ``seed``
PHRASES = {"keyword", "keyword-published"}  # judges that look for phrases
RULES = {*PHRASES, "structure"}  # and those that go by other rules
CellKind = Literal["seed", "checkpoint", "trained", "epoch"]


@dataclass(frozen=True)
class Cell:
    """One checkpoint of the comparison. ``folder`` is relative to the run's."""

    kind: CellKind
    method: str
    train_task: str | None  # None: not trained here, a row under every train task
    seed: int | None
    folder: Path
    tasks: tuple[str, ...]  # lm-eval tasks it answers
    safety: frozenset[str] = frozenset()  # which of its run's tasks judges judge
    utility_task: str = ""  # by which what it was trained on is measured
    epoch: int | None = None  # of an "epoch": weights from the middle of a training, in a folder below it

    @property
    def safety_tasks(self) -> list[str]:
        """Those of its tasks that judges judge."""
        return [task for task in self.tasks if task in self.safety]

    @property
    def label(self) -> str:
        """What people read."""
        parts = [
            self.train_task,
            shown_method(self.method),
            f"seed {self.seed}" if self.seed is not None else None,
        ]
        parts.append(f"epoch {self.epoch}" if self.epoch is not None else None)
        return " · ".join(part for part in parts if part)


def shown_method(method: str) -> str:
    """A row's method as people read it; of several runs the run's name stands behind it."""
    name, bracket, run = method.partition(" (")
    return f"{BASE_MODEL if name == SEED else name}{bracket}{run}"


def job_count(config: RunConfig, cells: int, cores: int | None = None) -> int:
    """How many workers: as many as asked for, or as the cores (this machine's) hold when the recipe fixes
    their threads."""
    wanted = config.jobs
    if wanted is None:
        on_cpu = config.training.device == "cpu"
        cores = cores or os.cpu_count() or 1
        wanted = cores // config.threads if config.threads and on_cpu else 1
    return max(1, min(wanted, cells))


def epochs(config: RunConfig, cell: Cell) -> list[Cell]:
    """The weights at the end of each epoch but the last, where the run scores them: parts of their cell."""
    if cell.kind != "trained" or not config.eval_every_epoch:
        return []
    return [
        replace(cell, kind="epoch", folder=cell.folder / f"epoch-{epoch}", epoch=epoch)
        for epoch in range(1, config.row(cell.method).training.epochs)
    ]


def methods(config: RunConfig) -> list[str]:
    """The trained rows of a run: its methods, where ``all`` stands for every one that is installed, then its
    variants. Checks the names."""
    known = list(dict.fromkeys([*registry.names("method"), *config.code.methods]))
    for name, variant in config.variants.items():
        if name.lower() in (*known, SEED, "all"):
            raise UsageError(f"variants.{name}: that is a method's name; choose another")
        if variant.method not in known:
            raise registry.unknown(f"method of variants.{name},", variant.method, known)
    chosen: list[str] = []
    apart = (*registry.RESERVED, *registry.NOT_IN_ALL)
    for name in config.methods:
        if name == "all":
            chosen += [own for own in registry.installed_names("method") if own not in apart]
        elif name == SEED or name in config.variants:
            continue  # always there
        elif name in known:
            chosen.append(name)
        else:
            raise registry.unknown("method", name, [*known, *config.variants, SEED, "all"])
    for name in config.method_options:
        if name not in known:
            raise registry.unknown("method", name, known)
    return list(dict.fromkeys([*chosen, *config.variants]))


def check_judges(judges: Sequence[str]) -> None:
    """Raises UsageError for names that are unknown or share a file."""
    slugs: dict[str, str] = {}
    for name in judges:
        registry.judge_parts(name)
        taken = slugs.setdefault(judge_slug(name), name)
        if taken != name:
            raise UsageError(f"judges '{taken}' and '{name}' would write the same file; leave one out")
    if any(registry.judge_parts(name)[0] == "vote" for name in judges) and len(judges) < 3:
        raise UsageError("judge 'vote' combines others: name two or more beside it, as in --judge a,b,c,vote")


def judge_slug(judge: str) -> str:
    """A judge's name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", judge).strip(".-")[:150]


def elsewhere(config: RunConfig) -> set[str]:
    """The user's checkpoints that were trained on none of the run's train tasks."""
    return {*config.checkpoints} - {*config.trained_on}


def further(config: RunConfig) -> tuple[str, ...]:
    """The tasks that every checkpoint answers besides those of the headline metrics. A group
    stands for its members."""
    groups = benchmarks.groups()
    wanted = (*config.utility_tasks, *config.safety_tasks, *config.set_files)
    names = [member for name in wanted for member in groups.get(name, [name])]
    headline = metrics.by_task(config)
    return tuple(name for name in dict.fromkeys(names) if name not in headline)


def limited(cell: Cell, only: Collection[str]) -> Cell:
    """The cell with some of its tasks (groups by their members); all of them where ``only`` is empty."""
    groups = benchmarks.groups()
    wanted = [member for name in only for member in groups.get(name, [name])]
    return replace(cell, tasks=tuple(task for task in cell.tasks if task in wanted)) if wanted else cell


def _check_tasks(config: RunConfig, utilities: Mapping[str, str], find: Callable[[str], Benchmark]) -> None:
    """Raises UsageError for tasks that do not exist or are not of the kind that is asked for. ``find``:
    the task of a name."""
    groups = benchmarks.groups()

    def kinds(names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            for member in groups.get(name, [name]):
                yield member, find(member).kind

    safety = (config.safety.raw_task, config.safety.prefill_task)
    for task in (*utilities.values(), *safety):
        find(task)
    for task, kind in kinds(safety):
        if kind != "safety":
            raise UsageError(f"task '{task}' is no safety task (its YAML's metadata.kind says so)")
    for key, task, opened in zip(("raw_task", "prefill_task"), safety, (False, True), strict=True):
        if find(task).prefilled != opened:
            what = "opens no answer, so that its safe rate is no JSR" if opened else "opens answers: no RSR"
            raise UsageError(f"safety.{key}: task '{task}' {what}")
    for task, kind in kinds(config.utility_tasks):
        if kind == "safety":
            raise UsageError(f"task '{task}' is a safety task: --safety-task {task}")
    for task, kind in kinds(config.safety_tasks):
        if kind == "utility":
            raise UsageError(f"task '{task}' is a utility task: --utility-task {task}; metadata.kind says so")
    files = {benchmark.local_data for benchmark in benchmarks.installed().values()}
    for name in config.set_files:
        if name in benchmarks.installed() or name in groups or name in files or name in config.code.tasks:
            option = "--safety-set" if name in config.safety_sets else "--utility-set"
            raise UsageError(f"{option} {name}=…: that is a task's name; choose another")
    readers = {name: benchmark.local_data for name, benchmark in benchmarks.installed().items()}
    for name in config.data:
        if name in readers.values():
            continue
        if name not in readers:
            raise registry.unknown("data", name, [given for given in readers.values() if given])
        wanted = readers[name]
        reads = f"reads --data {wanted}=…" if wanted else "makes its own documents and takes no file"
        raise UsageError(f"--data {name}=…: task '{name}' {reads}")


def check_train_data(config: RunConfig) -> None:
    """Raises UsageError where it is not clear whose the rows are, or nothing trains on them."""
    tasks, given = config.train_tasks, config.train_data
    if isinstance(given, str) and len(tasks) > 1:
        raise UsageError(
            f"train_data is for one train task and there are {len(tasks)}: say whose it is "
            f"(--train-data {tasks[0]}={given}), or add --train-tasks {tasks[0]} (or another)"
        )
    by_task = {"train_data": given if isinstance(given, dict) else {}}
    by_task["columns"] = {name: "" for name, columns in config.columns.items() if isinstance(columns, dict)}
    for key, named in by_task.items():
        for name in named:
            if name not in registry.names("train task"):
                raise registry.unknown(f"train task of {key},", name, tasks)
            if name not in tasks:
                raise UsageError(
                    f"{key} names '{name}', and the run does not train on it: leave it out, or add "
                    f"--train-tasks {','.join([*tasks, name])}"
                )
            if key == "columns" and not config.train_source(name):
                raise UsageError(
                    f"columns names '{name}', which trains on its own rows: add --train-data {name}=FILE"
                )


def heading(
    config: RunConfig, cells: Sequence[Cell], device: str, engines: Sequence[str], judged: bool
) -> str:
    """The plan's first line: model, device, engine, precision and judge."""
    own = [config.checkpoints[cell.method] for cell in cells if cell.kind == "checkpoint"]
    alone = own and not any(cell.kind in ("seed", "trained") for cell in cells)
    model = ", ".join(dict.fromkeys(own)) if alone else config.base_model
    trains, answers = config.training.dtype, config.responses.dtype
    trained = any(cell.kind == "trained" for cell in cells)
    precision = answers if trains == answers or not trained else f"{trains} in training, {answers} in answers"
    parts = [f"model {model}", f"device {device}", f"engine{'s' * (len(engines) > 1)} {', '.join(engines)}"]
    parts += [f"precision {precision}", *([f"judged by {', '.join(config.judges)}"] if judged else [])]
    return "; ".join(parts)


def by_rule(config: RunConfig) -> list[str]:
    """What verdicts are worth where only rules judge, and how to get better ones."""
    names = {judge: judge.partition(":")[0] for judge in config.judges}
    if not {*names.values()} <= RULES:
        return []
    other = (
        "" if len(config.judges) > 1 else "; --judge keyword,keyword-published:FILE adds the papers' own list"
    )
    said = "good for a first look, not for a decision. "
    said += f"Better: --judge llama-guard-3 (a GPU), or --judge openai:gpt-4o (OPENAI_API_KEY){other}"
    phrases = [judge for judge, name in names.items() if name in PHRASES]
    if not phrases:
        return [f"{', '.join(names)}: goes by an answer's form, and reads no meaning: {said}"]
    return [
        f"{', '.join(phrases)}: looks for refusal phrases, no more. An answer that refuses and then "
        f"complies counts as safe, harmless rubbish as harmful: {said}"
    ]


def cells(config: RunConfig) -> list[Cell]:
    """All cells, the base model's first. Raises UsageError for unknown names."""
    trained = methods(config)
    utilities = {name: registry.load("train task", name).utility_task for name in config.train_tasks}
    find = functools.cache(functools.partial(benchmarks.get, sets=config.own_tasks))
    _check_tasks(config, utilities, find)
    engines = [*registry.names("engine"), select.AUTO]
    if config.engine not in engines:
        raise registry.unknown("engine", config.engine, engines)
    rows = {SEED, *registry.names("method"), *map(str.lower, [*config.code.methods, *config.variants])}
    taken = [name for name in config.checkpoints if name.lower() in rows]
    if taken:
        raise UsageError(f"--checkpoint {min(taken)}=…: that is a method's name; choose another")

    for name, task in config.trained_on.items():
        if name not in config.checkpoints:
            raise registry.unknown("checkpoint", name, [*config.checkpoints])
        if task not in config.train_tasks:
            raise registry.unknown("train task of this run", task, [*config.train_tasks])
    check_train_data(config)
    every_utility = tuple(dict.fromkeys(utilities.values()))
    shared = (*metrics.by_task(config), *further(config))
    every = dict.fromkeys((*every_utility, *shared))
    judged = frozenset(task for task in every if find(task).kind == "safety")

    def cell(kind: CellKind, method: str, place: Path, utility: Sequence[str], **trained: Any) -> Cell:
        tasks = tuple(dict.fromkeys((*utility, *shared)))
        return Cell(kind, method, folder=place, tasks=tasks, safety=judged, **trained)

    found = [cell("seed", SEED, Path(SEED), every_utility, train_task=None, seed=None)]
    for name in config.checkpoints:
        place = Path("checkpoints") / name
        found.append(cell("checkpoint", name, place, every_utility, train_task=None, seed=None))
    for train_task in config.train_tasks:
        own = every_utility if config.cross_tasks else (utilities[train_task],)
        for method in trained:
            for seed in config.seeds:
                place = Path(train_task) / method / f"seed-{seed}"
                one = cell("trained", method, place, own, train_task=train_task, seed=seed)
                found.append(replace(one, utility_task=utilities[train_task]))
    return found
