"""How far a tuned model has moved from the base model, token by token of fixed answers to harmful requests.

KL(p_seed || p_tuned) of the next-token distributions, teacher-forced: both models read the same answer, and
neither writes. Each is asked as it is scored: with its own chat template, and under its method's own system
prompt (PTST's differs from the base model's). Token t's distribution is the one that predicts it.
Source: the LookAhead Tuning paper, §2.4 (eq. 4) and Fig. 3, after arXiv 2406.05946, §2.

One model is on the device at a time: the base model's log-probabilities wait on disk (float32, 4 bytes a
token of the vocabulary and of the answers), and are gone when the command ends. What is kept are ids and
numbers.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.analyses.shared import FOLDER
from harness.analyses.token_divergence import Forced, Reference, measure_divergences, summarize
from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.data import loading
from harness.generation import lm_tasks, splits
from harness.generation import stage as generation
from harness.models import checkpoints
from harness.models.checkpoints import Checkpoint
from harness.run import plan
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import records
from harness.storage.files import Stage, read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from harness.training import stage as training

VERSION = 2
FILES = ("divergences.jsonl", "summary.json")
ENGINE = "hf"  # what gives whole distributions
Answers = Literal["harmful", "seed"]


@dataclass(frozen=True, slots=True)
class Settings:
    """``answers``: the harmful ones behind the prefilled task, or the base model's own to the raw task;
    ``tokens`` of each; ``dtype`` of the weights (the divergence itself is float32)."""

    answers: Answers = "harmful"
    tokens: int = 32
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """What its files are called."""
        return "kl" if self.answers == "harmful" else f"kl-{self.answers}"


def list_cells(config: RunConfig) -> list[Cell]:
    """The checkpoints that are compared with the base model."""
    return [cell for cell in resolve(config).cells() if cell.kind in ("checkpoint", "trained")]


def make_run_context(config: RunConfig, out: Path, settings: Settings) -> RunContext:
    """A RunContext with prefills of ``tokens``, so that a prefilled task gives the harmful answers."""
    update: dict[str, Any] = {
        "engine": ENGINE,
        "safety": config.safety.model_copy(update={"prefill_tokens": settings.tokens}),
        "responses": config.responses.model_copy(update={"dtype": settings.dtype}),
    }
    return RunContext(config.model_copy(update=update), out)


def find_task(config: RunConfig, answers: Answers) -> str:
    """The task whose requests are asked. Raises HarnessError where it has no harmful answers."""
    if answers == "seed":
        return config.safety.raw_task
    task = config.safety.prefill_task
    if not resolve(config).benchmark(task).counted:
        raise HarnessError(f"task '{task}' has no harmful answers to read: add --answers seed")
    return task


def make_stage(ctx: RunContext, cell: Cell, settings: Settings) -> Stage:
    """One checkpoint's divergences. Raises HarnessError where the checkpoint cannot be compared."""
    config = ctx.config
    benchmark = resolve(config).benchmark(find_task(config, settings.answers))
    inputs: dict[str, Any] = {
        "version": VERSION,
        "settings": asdict(settings),
        "seed_model": ctx.seed_fingerprint,
        "weights": _hash_weights(ctx, cell),
        "system_prompts": [training.system_prompt(config, cell)(own) for own in (None, "the task's own")],
        "task": {"name": benchmark.name, "version": benchmark.version, "content": benchmark.content},
        "data": {name: loading.data_hash(file) for name, file in lm_tasks.files(ctx, benchmark).items()},
        "limit": config.responses.limit,
        "device": ctx.device,
        "libraries": ctx.libraries,
    }
    inputs |= splits.identity(config.responses)
    if settings.answers == "seed":
        marker = ctx.out / plan.SEED / benchmark.name / "respond.done.json"
        inputs["answers"] = records.marker(marker)["outputs"]
    return Stage(ctx.out / FOLDER / settings.name / cell.folder, "kl", inputs, FILES)


def _hash_weights(ctx: RunContext, cell: Cell) -> dict[str, str]:
    """The hashes of a checkpoint's files, those of a trained one as its training has left them."""
    if cell.kind == "trained":
        marker = ctx.out / cell.folder / "train.done.json"
        if not marker.is_file():
            raise HarnessError("not trained yet")
        outputs = records.marker(marker)["outputs"]
        return {name: file["sha256"] for name, file in outputs.items() if name.startswith("checkpoint/")}
    checkpoint = generation.checkpoint_of(ctx, cell)
    if checkpoint.folder is None:
        raise HarnessError("it is on a server, which gives no whole distributions")
    return checkpoints.fingerprint(checkpoint.folder, checkpoint.base)


def measure(ctx: RunContext, settings: Settings, size: int) -> tuple[dict[Cell, Stage], dict[Cell, str]]:
    """The divergences of a run's checkpoints, those that are there already left as they are: their stages,
    and why others have none.

    Raises HarnessError where the base model itself cannot be asked.
    """
    find_task(ctx.config, settings.answers)
    found: dict[Cell, Stage] = {}
    missing: dict[Cell, str] = {}
    for cell in list_cells(ctx.config):
        try:
            found[cell] = make_stage(ctx, cell, settings)
            _check_there(ctx, cell, found[cell])
        except HarnessError as error:
            found.pop(cell, None)
            missing[cell] = str(error)
    pending = [cell for cell, one in found.items() if not one.done()]
    if pending:
        ctx.import_libraries()
        with _open_base_model(ctx, settings, size) as ask:
            for cell in pending:
                try:
                    found[cell].run(lambda scratch, cell=cell: ask(cell, scratch))  # type: ignore[misc]
                except HarnessError as error:
                    del found[cell]
                    missing[cell] = str(error)
    return found, missing


def _check_there(ctx: RunContext, cell: Cell, one: Stage) -> None:
    folder = ctx.out / cell.folder / "checkpoint"
    if cell.kind == "trained" and not folder.is_dir() and not one.done():
        raise HarnessError(f"{folder} is gone (harness clean?); the run's own compare trains it anew")


@contextlib.contextmanager
def _open_base_model(
    ctx: RunContext, settings: Settings, size: int
) -> Iterator[Callable[[Cell, Path], None]]:
    """Ask the base model; the function that is yielded asks a cell's and writes its divergences."""
    scratch = ctx.out / FOLDER / f".{settings.name}.seed"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    from harness.engines.lm import Asking, TaskModel

    try:
        with _open_engine(ctx, ctx.seed_checkpoint) as engine:
            model = TaskModel(engine)
            requests = _build_requests(ctx, engine, model, settings)
            answers = _find_answers(ctx, engine, model, requests, settings)
            vocabulary = engine.tokenizer.get_vocab()
            questions = [_force(engine, model, requests[name], name, ids) for name, ids in answers.items()]
            with ctx.reporter.bar("base model", len(questions), "answers") as advance:
                pad = engine.tokenizer.pad_token_id or 0
                reference = Reference(scratch / "logp", engine.model, pad, questions, size, advance)

        def ask(cell: Cell, folder: Path) -> None:
            with _open_engine(ctx, generation.checkpoint_of(ctx, cell)) as engine:
                if engine.tokenizer.get_vocab() != vocabulary:
                    raise HarnessError("its tokenizer is not the base model's: no KL between them")
                model = TaskModel(engine, Asking(system_prompt=training.system_prompt(ctx.config, cell)))
                mine = [_force(engine, model, requests[name], name, ids) for name, ids in answers.items()]
                pad = engine.tokenizer.pad_token_id or 0
                with ctx.reporter.bar(cell.label, len(mine), "answers") as advance:
                    values = measure_divergences(engine.model, pad, mine, reference, size, advance)
            write_jsonl_atomic(folder / FILES[0], [{"id": name, "kl": kl} for name, kl in values.items()])
            write_json_atomic(folder / FILES[1], summarize(values, settings.tokens))

        yield ask
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _open_engine(ctx: RunContext, checkpoint: Checkpoint) -> Iterator[Any]:
    """A checkpoint's weights and tokenizer, on the device while the block runs."""
    from harness.engines.hf import HFEngine

    engine = HFEngine.open(checkpoint, ctx.config.responses, ctx.device)
    try:
        yield engine
    finally:
        engine.close()


def _build_requests(ctx: RunContext, engine: Any, model: Any, settings: Settings) -> dict[str, Any]:
    """lm-eval's request for each document that the run answers of the task, by the document's id."""
    config = ctx.config
    benchmark = resolve(config).benchmark(find_task(config, settings.answers))
    lm_task = lm_tasks.open_task(ctx, engine, benchmark)
    lm_task.build_all_requests(
        samples=splits.choose(lm_task.eval_docs, benchmark, config.responses),
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=model.apply_chat_template,
    )
    return {str(request.doc.get("id", request.doc_id)): request for request in lm_task.instances}


def _find_answers(
    ctx: RunContext, engine: Any, model: Any, requests: Mapping[str, Any], settings: Settings
) -> dict[str, list[int]]:
    """The fixed answers' first tokens by document; one that is empty has no token to look at."""
    if settings.answers == "harmful":
        found = {name: model.prefill_ids(request) for name, request in requests.items()}
    else:
        from harness.models import chat

        folder = ctx.out / plan.SEED / ctx.config.safety.raw_task
        stored = {row["document"]: row["response"] for row in reversed(records.responses(folder))}
        found = {name: chat.token_ids(engine.tokenizer, stored.get(name, "")) for name in requests}
    answers = {name: ids[: settings.tokens] for name, ids in found.items() if ids}
    if not answers:
        raise HarnessError("there are no answers to read: all are empty")
    return answers


def _force(engine: Any, model: Any, request: Any, name: str, answer: list[int]) -> Forced:
    from harness.models import chat

    prompt = chat.prompt_ids(engine.tokenizer, model.conversation(request), answering=True)
    return Forced(name, prompt, answer)


def read_divergences(one: Stage) -> dict[str, list[float]]:
    """A checkpoint's divergences in nats: document's id -> KL at each answer token."""
    return {row["id"]: row["kl"] for row in read_jsonl(one.folder / FILES[0])}


def read_summary(one: Stage) -> dict[str, Any]:
    """A checkpoint's means, as ``summarize`` gives them."""
    found: dict[str, Any] = read_json(one.folder / FILES[1])
    return found
