"""From a recipe that aligns its base model to one whose base model is aligned.

Requests are split (requests.py), refusals written (refusals.py), and a method that trains on safety data is
trained on them beside harmless rows: by the train stage that trains all methods, as a run of its own. The
checkpoint is kept by content in the cache, so that all rows, seeds and runs share it. What holds harmful
text stays in the run folder: the split, and the unaligned model's own answers, which open prefilled attacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.alignment import refusals
from harness.alignment.requests import HarmfulRequest, read, split
from harness.config import AlignmentConfig, RunConfig, TrainingConfig
from harness.config.values import lay_over
from harness.console.progress import Reporter
from harness.contracts import Message, NotFetchedError, UsageError
from harness.data import loading
from harness.generation import lm_tasks
from harness.models import checkpoints
from harness.openings import AFFIRMATION, write_openings
from harness.run import run_folder
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import records
from harness.storage.files import Stage, write_json_atomic, write_jsonl_atomic
from harness.text import cut, one_line
from harness.training import preparation
from harness.training import stage as training

FOLDER = run_folder.ALIGNMENT
HELD_OUT, REFUSALS = "held-out.jsonl", "refusals.jsonl"
RECORD = "alignment.json"
KIND = "aligned"  # in the cache
CHECKPOINT = "checkpoint"
DATA = "requests"  # the name under which the tasks requests_* read their file
TASK = "alpaca"  # the train task whose prompts the rows are learnt under
UNALIGNED = "unaligned"  # the row of the model before its alignment
VERSION = 1
OPENING_TOKENS = 32  # of a harmful answer that opens prefilled attacks; attacks use fewer


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A base model that an alignment has made: its checkpoint, and its training's record."""

    config: AlignmentConfig
    epochs: int
    folder: Path
    record: Mapping[str, Any]

    def line(self, model: str) -> str:
        """What was done and what it cost, for people."""
        record = self.record
        return (
            f"Aligned {model} by {self.config.method}: {record['examples']:,} rows x {self.epochs} "
            f"epoch{'s' * (self.epochs > 1)}, {record['train_seconds'] / 60:.1f} min, "
            f"{record['train_flops'] / 1e15:.3g} PFLOPs"
        )


def wanted(config: RunConfig) -> dict[str, AlignmentConfig]:
    """How the base models of rows are aligned: the run's own under "", others under a variant's name. One of
    method None is no alignment."""
    found = {"": config.alignment} if config.alignment.method else {}
    for name, variant in config.variants.items():
        if variant.alignment:
            usual = config.alignment.model_dump()
            if variant.alignment.get("method", usual["method"]) != usual["method"]:
                usual["options"] = {}  # of another method
            found[name] = AlignmentConfig.model_validate(lay_over(usual, variant.alignment))
    return found


def apply(config: RunConfig, out: Path, reporter: Reporter | None = None) -> tuple[RunConfig, list[Aligned]]:
    """The configuration with aligned base models, and these, made where they are not there yet. Raises
    HarnessError."""
    rows = wanted(config)
    if not rows:
        return config, []
    place = out / FOLDER
    split_files = _Split(config, place, opened=True)
    split_files.make(reporter)
    made = {key: _align(config, one, place, reporter) for key, one in _distinct(rows).items()}
    done = [*made.values()]
    lines = [one.line(config.model) for one in done]
    write_json_atomic(place / RECORD, {"lines": lines, "alignments": [_recorded(one) for one in done]})
    models = {key: str(one.folder) for key, one in made.items()}
    return _with_models(config, models, split_files.held_out), done


def find(config: RunConfig, out: Path) -> RunConfig | None:
    """What ``apply`` would return, where everything is made; nothing is written."""
    place = out / FOLDER
    if not (place / RECORD).is_file():
        return None
    split_files = _Split(config, place, opened=True)
    if not split_files.stage.done():
        return None
    homes = {key: _at_home(config, one, place) for key, one in _distinct(wanted(config)).items()}
    if not all(training.train_stage(*home).done() for home in homes.values()):
        return None
    models = {key: str(ctx.out / CHECKPOINT) for key, (ctx, _) in homes.items()}
    return _with_models(config, models, split_files.held_out)


def provisional(config: RunConfig, place: Path) -> RunConfig:
    """The configuration as after its alignments, with the unaligned model in their place and one opening for
    all held-out requests, for a plan: nothing is trained or written by a model. ``place``: for the files."""
    rows = wanted(config)
    if not rows:
        return config
    for row, one in rows.items():
        if one.method is not None:
            inner, cell = _inner(config, one, Path("refusals"), place)
            if not resolve(inner).method(cell.method).needs_safety_data:
                where = f"variants.{row}.alignment.method" if row else "alignment.method"
                raise UsageError(f"{where}: '{cell.method}' trains on no refusals; deep-alignment does")
            ctx = RunContext(inner, place)
            with contextlib.suppress(NotFetchedError):  # a run fetches them
                ctx.examples(ctx.train_task(TASK))
    split_files = _Split(config, place, opened=False)
    split_files.make(None)
    return _with_models(config, dict.fromkeys(_distinct(rows), config.model), split_files.held_out)


def find_trainings(config: RunConfig, place: Path) -> list[tuple[RunContext, Cell]]:
    """The alignments' trainings, to be forecast, on the files that ``provisional`` left in ``place``."""
    made = [_inner(config, one, place / REFUSALS, place) for one in _distinct(wanted(config)).values()]
    return [(RunContext(inner, place), cell) for inner, cell in made]


def notes(out: Path) -> list[str]:
    """What a run's tables say of its alignment."""
    if not (out / FOLDER / RECORD).is_file():
        return []
    return [f"{cut(one_line(line), 300)}." for line in records.alignment(out / FOLDER / RECORD)["lines"]]


def _recorded(one: Aligned) -> dict[str, Any]:
    costs = ("examples", "train_seconds", "train_flops", "peak_memory_bytes")
    return {
        "method": one.config.method,
        "settings": one.config.model_dump(mode="json"),
        "checkpoint": str(one.folder),
        **{name: one.record[name] for name in costs if name in one.record},
    }


def _key(one: AlignmentConfig) -> str:
    return one.model_dump_json()


def _distinct(rows: Mapping[str, AlignmentConfig]) -> dict[str, AlignmentConfig]:
    """The alignments, each once, by content."""
    return {_key(one): one for one in rows.values() if one.method is not None}


def _with_models(config: RunConfig, models: Mapping[str, str], held_out: Path | None) -> RunConfig:
    """The configuration with each row's base model, ``models`` by alignment, and a row of its own for each
    base model that is not the run's."""
    rows, update = wanted(config), dict[str, Any]()
    shown, variants = dict(config.checkpoints), dict(config.variants)
    known: set[str] = set()
    if own := rows.pop("", None):
        known.add(_key(own))
        folder = Path(config.model)
        name = folder.name if folder.is_dir() else config.model  # a path is nobody's business
        update = {"model": models[_key(own)], "aligned": f"{name}, aligned by {own.method}"}
        shown.setdefault(UNALIGNED, config.model)
    for row, one in rows.items():
        base = models.get(_key(one), config.model)
        variants[row] = variants[row].model_copy(update={"model": base, "alignment": {}})
        if one.method is not None and _key(one) not in known:
            known.add(_key(one))
            shown.setdefault(f"{row}-base", base)
    update |= {"alignment": AlignmentConfig(), "variants": variants, "checkpoints": shown}
    if held_out:
        update["data"] = {DATA: held_out, **config.data}
    return config.model_copy(update=update)


# --- requests --------------------------------------------------------------------------------------


class _Split:
    """The files of the split: refusals, and the held-out requests where the run asks them. ``opened``: with
    answers of the unaligned model, else with one opening for all."""

    def __init__(self, config: RunConfig, place: Path, *, opened: bool):
        settings = config.alignment
        asks = any(_reads_requests(config, task) for task in _tasks(config)) and DATA not in config.data
        self._config, self._place, self._opened = config, place, opened
        self.held_out = place / HELD_OUT if asks else None
        inputs: dict[str, Any] = {
            "version": VERSION,
            "requests": [loading.data_hash(Path(name).expanduser()) for name in settings.requests],
            "held_out": settings.held_out if asks else 0,
            "seed": settings.seed,
            "evaluated": sorted({*_evaluated(config, place, fetched=opened)}),
        }
        if asks and opened:
            ctx = _unaligned(config, place, None)
            inputs |= {"seed_model": ctx.seed_fingerprint, "device": ctx.device}
            inputs["libraries"] = ctx.libraries
        self.stage = Stage(place, "split", inputs, [REFUSALS, *([HELD_OUT] if asks else [])])

    def make(self, reporter: Reporter | None) -> None:
        if self.stage.done():
            return
        settings, inputs = self._config.alignment, self.stage.inputs
        parts = split(read(settings.requests), inputs["held_out"], inputs["evaluated"], settings.seed)
        openings = [AFFIRMATION] * len(parts.held_out)
        if self._opened and parts.held_out:
            openings = _openings(_unaligned(self._config, self._place, reporter), parts.held_out)
        with self.stage.writing() as scratch:
            rows = refusals.rows([one.text for one in parts.aligned], settings.seed)
            write_jsonl_atomic(scratch / REFUSALS, rows)
            if self.held_out:
                asked = zip(parts.held_out, openings, strict=True)
                write_jsonl_atomic(scratch / HELD_OUT, _documents(asked))


def _unaligned(config: RunConfig, place: Path, reporter: Reporter | None) -> RunContext:
    """A context of the unaligned model whose cache is in the run folder: it keeps what that model writes."""
    update = {"alignment": AlignmentConfig(), "variants": {}, "cache": (place / "cache").absolute()}
    return RunContext(config.model_copy(update=update), place, reporter)


def _tasks(config: RunConfig) -> list[str]:
    return list(dict.fromkeys(task for cell in resolve(config).cells() for task in cell.tasks))


def _reads_requests(config: RunConfig, task: str) -> bool:
    return resolve(config).benchmark(task).local_data == DATA


def _evaluated(config: RunConfig, place: Path, *, fetched: bool) -> Iterator[str]:
    """The harmful requests that the run asks besides those that are to be held out. ``fetched``: what is not
    here is an error, and else left out."""
    ctx = _unaligned(config, place, None)
    if not (fetched or checkpoints.is_here(config.model)):
        return
    for task in _tasks(config):
        benchmark = ctx.benchmark(task)
        held_out = benchmark.local_data == DATA and DATA not in config.data
        if benchmark.kind != "safety" or benchmark.counted or benchmark.foreign or held_out:
            continue
        try:
            documents = lm_tasks.load(ctx, benchmark, str(ctx.seed_folder)).eval_docs
        except NotFetchedError:
            if fetched:
                raise
            continue
        yield from (text for text in documents["instruction"] if isinstance(text, str))


def _openings(ctx: RunContext, asked: Sequence[HarmfulRequest]) -> list[str]:
    """The beginning of a harmful answer to each request, as the unaligned model writes it."""
    system = ctx.train_task(TASK).system_prompt
    turns = [(Message("system", system), Message("user", one.text)) for one in asked]
    generate = preparation.make_generate(ctx, "openings of harmful answers", None, {})
    return write_openings(generate, turns, OPENING_TOKENS)[0]


def _documents(asked: Iterable[tuple[HarmfulRequest, str]]) -> Iterator[dict[str, str]]:
    for number, (one, opening) in enumerate(asked):
        document = {"id": f"held-out-{number:04d}", "instruction": one.text, "harmful_answer": opening}
        yield document | ({"category": one.category} if one.category else {})


# --- training --------------------------------------------------------------------------------------


def _inner(config: RunConfig, one: AlignmentConfig, safety_data: Path, place: Path) -> tuple[RunConfig, Cell]:
    """The alignment's training as that of a run: its configuration, and its only cell."""
    assert one.method is not None
    training = TrainingConfig.model_validate(lay_over(config.training.model_dump(), one.training))
    inner = config.model_copy(
        update={
            "alignment": AlignmentConfig(),
            "cache": (place / "cache").absolute(),
            "checkpoints": {},
            "columns": {},
            "eval_every_epoch": False,
            "method_options": {one.method: one.options},
            "methods": (one.method,),
            "mix": {},
            "safety_data": str(safety_data),
            "seeds": (one.seed,),
            "train_data": {TASK: one.harmless} if one.harmless else None,
            "train_tasks": (TASK,),
            "trained_on": {},
            "training": training,
            "variants": {},
        }
    )
    return inner, Cell("trained", one.method, TASK, one.seed, Path("."), ())


def _at_home(
    config: RunConfig, one: AlignmentConfig, place: Path, reporter: Reporter | None = None
) -> tuple[RunContext, Cell]:
    """The alignment's training where its result is kept: in the cache, by content."""
    inner, cell = _inner(config, one, place / REFUSALS, place)
    identity = training.train_stage(RunContext(inner, place), cell).identity
    home = RunContext(config, place).cache.folder / KIND / identity[:32]
    return RunContext(inner, home, reporter), cell


def _align(config: RunConfig, one: AlignmentConfig, place: Path, reporter: Reporter | None) -> Aligned:
    """The checkpoint in the cache, trained where it is not there."""
    ctx, cell = _at_home(config, one, place, reporter)
    ctx.out.mkdir(parents=True, exist_ok=True)
    with FileLock(ctx.out / ".lock"):
        if not training.train_stage(ctx, cell).done():
            ctx.import_libraries()
            training.import_trainer(ctx)
            training.train(ctx, cell, f"alignment · {one.method}")
    epochs = ctx.config.training.epochs
    return Aligned(one, epochs, ctx.out / CHECKPOINT, records.training(ctx.out))
