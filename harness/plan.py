"""The cells of a run: which checkpoints there will be, and on what each is scored."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness import benchmarks, registry
from harness.config import RunConfig
from harness.contracts import UsageError

SEED = "seed"
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
    sets: tuple[str, ...] = ()  # those of them that are safety sets of the user's own
    epoch: int | None = None  # of an "epoch": weights from the middle of a training, in a folder below it

    @property
    def label(self) -> str:
        parts = [self.train_task, self.method, f"seed {self.seed}" if self.seed is not None else None]
        parts.append(f"epoch {self.epoch}" if self.epoch is not None else None)
        return " · ".join(part for part in parts if part)


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
    known = registry.names("method")
    for name, variant in config.variants.items():
        if name.lower() in (*known, SEED, "all"):
            raise UsageError(f"variants.{name}: that is a method's name; choose another")
        if variant.method not in known:
            raise registry.unknown(f"method of variants.{name},", variant.method, known)
    chosen: list[str] = []
    for name in config.methods:
        if name == "all":
            chosen += known
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


def further(config: RunConfig) -> tuple[str, ...]:
    """The tasks that every checkpoint answers besides its own utility and the two safety tasks. A group
    stands for its members."""
    groups = benchmarks.groups()
    wanted = (*config.utility_tasks, *config.safety_tasks, *config.safety_sets)
    names = [member for name in wanted for member in groups.get(name, [name])]
    standard = (config.safety.raw_task, config.safety.prefill_task)
    return tuple(name for name in dict.fromkeys(names) if name not in standard)


def limited(cell: Cell, only: Collection[str]) -> Cell:
    """The cell with some of its tasks (groups by their members); all of them where ``only`` is empty."""
    groups = benchmarks.groups()
    wanted = [member for name in only for member in groups.get(name, [name])]
    return replace(cell, tasks=tuple(task for task in cell.tasks if task in wanted)) if wanted else cell


def _check_tasks(config: RunConfig, utilities: Mapping[str, str]) -> None:
    """Raises UsageError for tasks that do not exist, or are not of the kind that they are asked for."""
    groups = benchmarks.groups()

    def kinds(names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            for member in groups.get(name, [name]):
                yield member, benchmarks.get(member, config.safety_sets).kind

    safety = (config.safety.raw_task, config.safety.prefill_task)
    for task in (*utilities.values(), *safety):
        benchmarks.get(task)
    for task, kind in kinds(safety):
        if kind != "safety":
            raise UsageError(f"task '{task}' is no safety task (its YAML's metadata.kind says so)")
    for key, task, opened in zip(("raw_task", "prefill_task"), safety, (False, True), strict=True):
        if benchmarks.get(task).prefilled != opened:
            what = "opens no answer, so that its safe rate is no JSR" if opened else "opens answers: no RSR"
            raise UsageError(f"safety.{key}: task '{task}' {what}")
    for task, kind in kinds(config.utility_tasks):
        if kind == "safety":
            raise UsageError(f"task '{task}' is a safety task: --safety-task {task}")
    for task, kind in kinds(config.safety_tasks):
        if kind == "utility":
            raise UsageError(f"task '{task}' is a utility task: --utility-task {task}")
    files = {benchmark.local_data for benchmark in benchmarks.installed().values()}
    for name in config.safety_sets:
        if name in benchmarks.installed() or name in groups or name in files:
            raise UsageError(f"--safety-set {name}=…: that is a task's name; choose another")
    readers = {name: benchmark.local_data for name, benchmark in benchmarks.installed().items()}
    for name in config.data:
        if name in readers.values():
            continue
        if name not in readers:
            raise registry.unknown("data", name, [given for given in readers.values() if given])
        wanted = readers[name]
        reads = f"reads --data {wanted}=…" if wanted else "makes its own documents and takes no file"
        raise UsageError(f"--data {name}=…: task '{name}' {reads}")


def cells(config: RunConfig) -> list[Cell]:
    """All cells, the seed model's first. Raises UsageError for unknown names."""
    trained = methods(config)
    utilities = {name: registry.load("train task", name).utility_task for name in config.train_tasks}
    _check_tasks(config, utilities)
    safety = (config.safety.raw_task, config.safety.prefill_task)
    engines = [*registry.names("engine"), "auto"]
    if config.engine not in engines:
        raise registry.unknown("engine", config.engine, engines)
    rows = {SEED, *registry.names("method"), *(name.lower() for name in config.variants)}
    taken = [name for name in config.checkpoints if name.lower() in rows]
    if taken:
        raise UsageError(f"--checkpoint {min(taken)}=…: that is a method's name; choose another")

    for name, task in config.trained_on.items():
        if name not in config.checkpoints:
            raise registry.unknown("checkpoint", name, [*config.checkpoints])
        if task not in config.train_tasks:
            raise registry.unknown("train task of this run", task, [*config.train_tasks])
    if config.train_data and len(config.train_tasks) > 1:
        raise UsageError(
            f"train_data is for one train task and there are {len(config.train_tasks)}: "
            f"add --train-tasks {config.train_tasks[0]} (or another)"
        )
    every_utility = tuple(dict.fromkeys(utilities.values()))
    sets = tuple(config.safety_sets)

    def cell(kind: CellKind, method: str, place: Path, utility: Sequence[str], **trained: Any) -> Cell:
        tasks = tuple(dict.fromkeys((*utility, *safety, *further(config))))
        return Cell(kind, method, folder=place, tasks=tasks, sets=sets, **trained)

    found = [cell("seed", SEED, Path(SEED), every_utility, train_task=None, seed=None)]
    for name in config.checkpoints:
        place = Path("checkpoints") / name
        found.append(cell("checkpoint", name, place, every_utility, train_task=None, seed=None))
    for train_task in config.train_tasks:
        own = every_utility if config.cross_tasks else (utilities[train_task],)
        for method in trained:
            for seed in config.seeds:
                place = Path(train_task) / method / f"seed-{seed}"
                found.append(cell("trained", method, place, own, train_task=train_task, seed=seed))
    return found
