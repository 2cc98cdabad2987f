"""The stages of one cell: train, respond, judge. Each reads and writes files, and is skipped when done."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from harness import benchmarks, chat, data, figures, judging, models, plan, registry
from harness.config import RunConfig
from harness.contracts import (
    Encoded,
    Example,
    Exchange,
    HarnessError,
    Method,
    TrainTask,
    UsageError,
)
from harness.job import TrainJob, launch, run
from harness.measure import cost
from harness.plan import Cell
from harness.preparation import prepare
from harness.progress import Reporter
from harness.store import (
    Cache,
    Stage,
    content_hash,
    file_hash,
    read_json,
    write_json_atomic,
    write_jsonl_atomic,
)

TRAIN_VERSION = 2  # raise when a change here or in the trainer alters results
RESPOND_VERSION = 1
Step = Literal["train", "respond", "judge", "leaderboard"]
NO_EFFECT = ("save_steps", "report_to", "launcher", "peak_tflops")  # training keys that change no result
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "lm-eval", "rouge-score")


class Workshop:
    """What the cells of one run share: the seed model, its tokenizer, the data, the tasks; made when needed.

    ``clock`` adds up seconds by kind of work, for the overhead that the harness itself costs.
    """

    def __init__(self, config: RunConfig, out: Path, reporter: Reporter | None = None):
        self.config, self.out, self.reporter = config, out, reporter or Reporter()
        self.clock: dict[str, float] = {"imports": 0.0, "training": 0.0, "generation": 0.0}
        self._imported = False
        self._noted: set[Path] = set()
        self._examples: dict[str, list[Example]] = {}
        self._example_hashes: dict[str, str] = {}

    @cached_property
    def seed_folder(self) -> Path:
        return models.locate(self.config.model)

    @cached_property
    def seed_fingerprint(self) -> dict[str, str]:
        return models.fingerprint(self.seed_folder)

    @cached_property
    def libraries(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in LIBRARIES}

    @cached_property
    def device(self) -> str:
        return models.device(self.config.training.device)

    @cached_property
    def seed_tokenizer(self) -> Any:
        return models.load_tokenizer(self.seed_folder)

    def import_libraries(self) -> None:
        """Import what training and scoring need, in one place, so that its seconds are known."""
        if self._imported:
            return
        self._imported = True
        start = time.perf_counter()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; ours say more
        import torch
        import transformers

        for module in ("lm_eval.evaluator", "lm_eval.tasks"):
            importlib.import_module(module)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        for name in ("lm_eval", "lm-eval"):
            logging.getLogger(name).setLevel(logging.ERROR)
        registry.load("engine", self.config.engine)
        registry.load_object(registry.TRAINER)
        self.clock["imports"] += time.perf_counter() - start

    def examples(self, train_task: TrainTask) -> list[Example]:
        if train_task.name not in self._examples:
            self._examples[train_task.name] = data.examples(
                train_task,
                self.config.train_data,
                self.config.training.max_examples,
                self.config.columns,
                self.config.mix,
            )
        return self._examples[train_task.name]

    def examples_hash(self, train_task: TrainTask) -> str:
        if train_task.name not in self._example_hashes:
            rows = [dataclasses.asdict(example) for example in self.examples(train_task)]
            self._example_hashes[train_task.name] = content_hash(rows)
        return self._example_hashes[train_task.name]

    def engine(self, folder: Path) -> Any:
        """The engine with the checkpoint in ``folder`` loaded."""
        base = self.seed_folder if folder.is_relative_to(self.out) else None  # of an adapter trained here
        model = models.load_model(folder, self.config.responses.dtype, self.device, base=base)
        tokenizer = models.load_tokenizer(folder)
        if folder not in self._noted and not chat.has_system_role(tokenizer):
            self._noted.add(folder)
            note = (
                f"{folder}: its chat template has no system role; system prompts open the user turn instead"
            )
            self.reporter.send(("note", None, note))
        return registry.load("engine", self.config.engine)(model, tokenizer, self.config.responses.batch_size)

    def safety_examples(self, train_task: TrainTask) -> list[Example]:
        """The recipe's safety data as training examples. Raises UsageError where there are none."""
        return data.safety_examples(train_task, self.config.safety_data)

    @cached_property
    def cache(self) -> Cache:
        return Cache(Path(self.config.cache or os.environ.get("HARNESS_CACHE") or "results/cache").absolute())

    def load_task(self, name: str, tokenizer_folder: Path) -> Any:
        """lm-eval's task dictionary for one of our tasks."""
        from lm_eval.tasks import TaskManager

        values: dict[str, Any] = {
            "tokenizer": str(tokenizer_folder),
            "data_files": {task: str(path) for task, path in self.config.data.items()},
            "token_exact": True,  # our engines take ids
        }
        if benchmarks.get(name).prefilled:
            values["prefill_tokens"] = self.config.safety.prefill_tokens
        manager = TaskManager(
            include_path=[str(folder) for folder in registry.task_folders()],
            include_defaults=False,
            metadata=values,
        )
        return manager.load([name])


def make_method(config: RunConfig, name: str) -> Method:
    """The method with the recipe's options. Raises UsageError for an option that it does not have."""
    method_class = registry.load("method", name)
    options = config.method_options.get(name, {})
    known = [field.name for field in dataclasses.fields(method_class) if field.init]
    for option in options:
        if option not in known:
            raise registry.unknown(f"option of {name}", option, known)
    from pydantic import TypeAdapter, ValidationError

    try:
        method: Method = TypeAdapter(method_class).validate_python(options)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(["method_options", name, *map(str, problem["loc"])])
        raise UsageError(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from error
    return method


# --- train -----------------------------------------------------------------------------------------


def train_stage(shop: Workshop, cell: Cell) -> Stage:
    """The training of a cell, with all that its result depends on."""
    assert cell.train_task is not None
    task: TrainTask = registry.load("train task", cell.train_task)
    method = make_method(shop.config, cell.method)
    options = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}  # type: ignore[arg-type]
    inputs = {
        "version": TRAIN_VERSION,
        "seed_model": shop.seed_fingerprint,
        "examples": shop.examples_hash(task),
        "train_task": {"name": task.name, "version": task.version, "max_length": task.max_length},
        "rewrite": [
            task.rewrite.system_prompt,
            task.rewrite.user("instruction", "answer"),
            task.rewrite.opening,
            task.rewrite.max_tokens,
        ],
        "method": {"name": cell.method, "version": method.version, "options": options},
        "training": shop.config.training.model_dump(mode="json", exclude=set(NO_EFFECT))
        | {"device": shop.device},
        "snapshots": shop.config.eval_every_epoch,
        "generation": {"batch_size": shop.config.responses.batch_size, "dtype": shop.config.responses.dtype},
        "seed": cell.seed,
        "libraries": shop.libraries,
    }
    if method.needs_safety_data:
        inputs["safety_examples"] = content_hash([dataclasses.asdict(e) for e in shop.safety_examples(task)])
    epochs = range(1, shop.config.training.epochs) if shop.config.eval_every_epoch else ()
    snapshots = [f"epoch-{epoch}" for epoch in epochs]
    folder = cell.folder.parent if cell.kind == "epoch" else cell.folder
    outputs = ["checkpoint", "training.json", "loss.svg", *snapshots]
    return Stage(shop.out / folder, "train", inputs, outputs)


def train(shop: Workshop, cell: Cell, label: str) -> None:
    """Seed model and data to ``checkpoint/`` and ``training.json``.

    What a restart needs lies in ``.training/`` until the stage is done.
    """
    assert cell.train_task is not None
    assert cell.seed is not None
    task: TrainTask = registry.load("train task", cell.train_task)
    method = make_method(shop.config, cell.method)
    settings = shop.config.training.model_copy(update={"device": shop.device})
    stage = train_stage(shop, cell)
    folder = job_folder(stage)

    def work(scratch: Path) -> None:
        tokenizer = shop.seed_tokenizer
        with cost() as preparation:
            prepared, record = prepare(shop, task, method, cell, label)
        if not prepared:
            given = len(shop.examples(task))
            raise HarnessError(f"method '{cell.method}': prepare returned no examples ({given:,} given)")
        max_length = settings.max_length or task.max_length
        encoded, lengths = encode_all(tokenizer, prepared, max_length, settings.too_long)
        if any(lengths.values()):
            shop.reporter.send(("note", None, _length_note(label, len(prepared), max_length, lengths)))
        safety = shop.safety_examples(task) if method.needs_safety_data else []
        job = TrainJob(
            folder=folder,
            seed_model=shop.seed_folder,
            identity={"model": shop.seed_fingerprint, "libraries": shop.libraries, "device": shop.device},
            method=cell.method,
            options=shop.config.method_options.get(cell.method, {}),
            settings=settings,
            seed=cell.seed or 0,
            examples=encoded,
            safety_examples=encode_all(tokenizer, safety, max_length, settings.too_long)[0] if safety else [],
            cache=shop.cache.folder,
            snapshots=shop.config.eval_every_epoch,
            threads=shop.config.threads,
        )
        shutil.rmtree(job.output, ignore_errors=True)
        several = settings.num_processes > 1 or settings.launcher
        steps = -(-len(encoded) * settings.epochs // settings.batch_size)
        start = time.perf_counter()
        with shop.reporter.bar(f"{label}  train", steps, "steps") as advance:
            result = (launch if several else run)(job, lambda step, of: advance(1))
        shop.clock["training"] += time.perf_counter() - start
        _collect_weights(shop, job, scratch)
        figures.loss_curve(result["losses"], f"{cell.label}: loss by step", scratch / "loss.svg")
        nothing = {"prompt_tokens": 0, "generated_tokens": 0, "seconds": 0.0, "peak_memory_bytes": 0}
        made = record.pop("preparation", nothing)
        result["method"] = {"name": cell.method, **record, **result["method"]}
        preparation_flops = result["forward_flops_per_token"] * (
            made["prompt_tokens"] + made["generated_tokens"]
        )
        preparation_flops += result.pop("extra_forward_flops")
        preparation_s = made["seconds"] + result["extra_forward_seconds"]
        result["train_flops"] += preparation_flops
        result["peak_memory_bytes"] = max(
            result["peak_memory_bytes"], preparation.peak_memory_bytes, made["peak_memory_bytes"]
        )
        write_json_atomic(
            scratch / "training.json",
            {
                "train_task": cell.train_task,
                "seed": cell.seed,
                "examples": len(prepared),
                **lengths,
                **result,
                "train_seconds": round(result["loop_seconds"] + preparation_s, 3),
                "preparation_seconds": round(preparation_s, 3),
                "preparation_flops": preparation_flops,
                "preparation": made,
            },
        )

    stage.run(work)
    shutil.rmtree(folder, ignore_errors=True)


def _length_note(label: str, examples: int, max_length: int, lengths: dict[str, int]) -> str:
    """What did not fit, in one line: a training that silently learns half an answer helps no one."""
    return (
        f"{label}  of {examples:,} examples {lengths['truncated_examples']:,} lost their answer's end and "
        f"{lengths['dropped_examples']:,} were left out at max_length {max_length} (training.too_long)"
    )


def job_folder(stage: Stage) -> Path:
    """Where a training keeps what a restart needs; emptied when it belongs to another training."""
    folder = stage.folder / ".training"
    owner = folder / "identity.json"
    if not (owner.is_file() and read_json(owner) == stage.identity):
        shutil.rmtree(folder, ignore_errors=True)
        write_json_atomic(owner, stage.identity)
    return folder


def _collect_weights(shop: Workshop, job: TrainJob, scratch: Path) -> None:
    """The checkpoint, merged if the recipe says so, and the epochs' into the stage's outputs."""
    found = {"checkpoint": job.output / "checkpoint"}
    found |= {f"{path.name}/checkpoint": path for path in sorted((job.folder / "state").glob("epoch-*"))}
    for name, source in found.items():
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if job.settings.merge:
            models.merge(shop.seed_folder, source, job.settings.dtype, target)
        else:
            os.replace(source, target)


def encode_all(
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int,
    too_long: Literal["cut", "leave-out"] = "cut",
) -> tuple[list[Encoded], dict[str, int]]:
    """Token ids of all examples. Those over ``max_length`` lose their answer's end ("cut"), or are left out
    whole ("leave-out", or when nothing of the answer would remain). Returns the counts of both."""
    whole = [chat.encode(tokenizer, example) for example in examples]
    keep = max_length if too_long == "cut" else None
    cut = [
        chat.truncate(encoded, max_length) if keep or len(encoded.input_ids) <= max_length else None
        for encoded in whole
    ]
    kept = [encoded for encoded in cut if encoded is not None]
    if not kept:
        raise HarnessError(
            f"no training example fits into max_length {max_length}: raise training.max_length"
        )
    dropped = len(whole) - len(kept)
    truncated = sum(len(encoded.input_ids) > max_length for encoded in whole) - dropped
    return kept, {"truncated_examples": truncated, "dropped_examples": dropped}


# --- respond ---------------------------------------------------------------------------------------


def checkpoint_folder(shop: Workshop, cell: Cell) -> Path:
    if cell.kind == "seed":
        return shop.seed_folder
    if cell.kind == "checkpoint":
        return models.locate(shop.config.checkpoints[cell.method])
    return shop.out / cell.folder / "checkpoint"


def respond_stage(shop: Workshop, cell: Cell, task: str) -> Stage:
    """The answers of a cell's checkpoint to one task's documents."""
    if cell.kind == "seed":
        weights: dict[str, str] = shop.seed_fingerprint
    elif cell.kind == "checkpoint":
        weights = models.fingerprint(checkpoint_folder(shop, cell))
    else:
        hashes = train_stage(shop, cell).output_hashes()
        place = f"{cell.folder.name}/checkpoint/" if cell.kind == "epoch" else "checkpoint/"
        weights = {name: value for name, value in hashes.items() if name.startswith(place)}
    benchmark = benchmarks.get(task)
    settings = shop.config.responses
    inputs: dict[str, Any] = {
        "version": RESPOND_VERSION,
        "weights": weights,
        "task": {"name": task, "version": benchmark.version, "content": benchmark.content()},
        "engine": shop.config.engine,
        "responses": settings.model_dump(mode="json"),
        "device": shop.device,
        "libraries": shop.libraries,
    }
    if benchmark.prefilled:
        inputs["prefill_tokens"] = shop.config.safety.prefill_tokens
    if task in shop.config.data:
        inputs["data"] = data_hash(shop.config.data[task])
    if cell.train_task is not None:
        method = make_method(shop.config, cell.method)
        probes: list[str | None] = [None, "the task's own"]
        changed = [method.inference_system_prompt(own) for own in probes]
        if changed != probes:
            inputs["inference_system_prompt"] = changed
    return Stage(shop.out / cell.folder / task, "respond", inputs, ["responses.jsonl"])


def respond(shop: Workshop, cell: Cell, tasks: Sequence[str], label: str) -> None:
    """Checkpoint to ``<task>/responses.jsonl``, through lm-eval; the checkpoint is loaded once for all."""
    folder = checkpoint_folder(shop, cell)
    engine = shop.engine(folder)
    if cell.train_task is not None:
        engine.system_prompt = make_method(shop.config, cell.method).inference_system_prompt
    for task in tasks:

        def work(scratch: Path, task: str = task) -> None:
            rows = respond_rows(shop, engine, task, folder, f"{label}  respond {task}")
            write_jsonl_atomic(scratch / "responses.jsonl", rows)

        respond_stage(shop, cell, task).run(work)


def respond_rows(shop: Workshop, engine: Any, task: str, folder: Path, label: str) -> list[dict[str, Any]]:
    """One row a document: the Exchange, its token count and lm-eval's per-document metrics."""
    from lm_eval.evaluator import evaluate

    loaded = shop.load_task(task, folder)
    lm_task = loaded["tasks"][task]
    if lm_task.get_config("num_fewshot"):
        raise HarnessError(f"task '{task}' asks for few-shot examples; the harness scores zero-shot")
    lm_task.set_config(key="num_fewshot", value=0)
    limit = shop.config.responses.limit
    documents = len(lm_task.eval_docs)
    engine.seconds = 0.0
    shown = min(documents, limit or documents)
    with shop.reporter.bar(label, shown, "answers") as advance:
        engine.on_progress = advance
        engine.completions.clear()
        try:
            results = evaluate(
                lm=engine,
                task_dict=loaded,
                limit=limit,
                bootstrap_iters=0,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
            )
        except (HarnessError, MemoryError):
            raise
        except Exception as error:  # where, and the type alone: its message may quote an answer
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise HarnessError(
                f"task '{task}' cannot be scored: {type(error).__name__} in {Path(last.filename).name}, "
                f"line {last.lineno} (--debug shows it)"
            ) from error
    shop.clock["generation"] += engine.seconds
    rows = []
    for sample in results["samples"][task]:
        document = sample["doc"]
        turns = json.loads(sample["arguments"][0][0])
        completion = engine.completions[task, sample["doc_id"]]
        exchange = Exchange(
            id=str(document.get("id", sample["doc_id"])),
            task=task,
            category=document.get("category"),
            system=_system(engine, turns),
            prompt=next(turn["content"] for turn in reversed(turns) if turn["role"] == "user"),
            prefill=document.get("prefill") or "",
            response=completion.text,
            finish_reason=completion.finish_reason,
        )
        measured = {name: sample[name] for name in sample["metrics"]}
        rows.append({**dataclasses.asdict(exchange), "tokens": completion.tokens, "metrics": measured})
    if len({row["id"] for row in rows}) < len(rows):
        raise HarnessError(f"task '{task}': two documents have the same id; verdicts are joined by it")
    return rows


def _system(engine: Any, turns: list[dict[str, str]]) -> str | None:
    system: str | None = engine.system_prompt(turns[0]["content"] if turns[0]["role"] == "system" else None)
    return system


def data_hash(path: Path) -> str:
    if not path.is_file():
        raise HarnessError(f"{path}: no such data file")
    return file_hash(path)


# --- one cell --------------------------------------------------------------------------------------


def pending(shop: Workshop, cell: Cell, until: Step = "respond") -> bool:
    """Whether a cell has a training or answers that are not done, up to ``until``."""
    if cell.kind == "trained" and not train_stage(shop, cell).done():
        return True
    if until == "train":
        return False
    scored = [cell, *plan.epochs(shop.config, cell)]
    return not all(respond_stage(shop, one, task).done() for one in scored for task in one.tasks)


def unjudged(bench: judging.Bench, cell: Cell) -> bool:
    """Whether a judge's verdicts on a cell's answers are missing. The answers are there."""
    return not all(
        judging.judged(bench, one, task, name)
        for one in (cell, *plan.epochs(bench.shop.config, cell))
        for task in judging.safety_tasks(one)
        for name in bench.shop.config.judges
    )


def run_cell(shop: Workshop, cell: Cell, label: str, until: Step = "leaderboard") -> None:
    """Train, respond, and judge with those that need no model or server, each where it is not done."""
    if cell.kind == "trained" and not train_stage(shop, cell).done():
        train(shop, cell, label)
    if until == "train":
        return
    for one in (cell, *plan.epochs(shop.config, cell)):
        name = f"{label} · epoch {one.epoch}" if one.epoch else label
        unanswered = [task for task in one.tasks if not respond_stage(shop, one, task).done()]
        if unanswered:
            respond(shop, one, unanswered, name)
        if until != "respond":
            judging.judge_cell(judging.Bench(shop), one, judging.light(shop.config.judges), name)
