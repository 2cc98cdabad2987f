"""Whether a recipe's models, documents and training rows are here and whole, or can be had from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from harness.config import RunConfig
from harness.contracts import HarnessError
from harness.data import loading
from harness.generation import lm_tasks
from harness.models import checkpoints
from harness.pipeline import other_models
from harness.pipeline.checkup.finding import Finding
from harness.run import plan
from harness.run.context import RunContext


def check_models(ctx: RunContext) -> Iterator[Finding]:
    config = ctx.config
    for name in dict.fromkeys([config.model, *config.checkpoints.values(), *other_models.named(config)]):
        if not (name.startswith(checkpoints.SERVER) or checkpoints.is_here(name)):
            yield ask_hub(name, "model")
        elif not name.startswith(checkpoints.SERVER):
            yield _check_whole(name)


def _check_whole(name: str) -> Finding:
    """Whether a folder's tensors are its model's, or an adapter's its base's, by their names and shapes."""
    try:
        checkpoint = checkpoints.checkpoint(name)
        assert checkpoint.folder is not None
        found = checkpoints.fit(checkpoint)
        stops = checkpoints.declared_stops(checkpoint.base or checkpoint.folder)
        rows = {"rows": found.rows} if found else {}
        checkpoints.stop_ids(stops, checkpoints.load_tokenizer(checkpoint.folder), **rows)
    except HarnessError as error:
        return Finding("fail", "model", str(error), "give a whole model, or save it again")
    notes = "; ".join(found.notes) if found else "its weights are looked at only when they are loaded"
    if notes:
        return Finding("warn", "model", notes, "look whether that is what you want to measure")
    return Finding("pass", "model", f"{name} is here and whole: {checkpoint.folder}")


def check_documents(ctx: RunContext) -> Iterator[Finding]:
    """Local files are read (by line); data sets of the hub are asked for."""
    tasks = dict.fromkeys(task for cell in ctx.cells() for task in cell.tasks)
    asked: dict[str, Finding] = {}
    for task in tasks:
        benchmark = ctx.benchmark(task)
        if lm_tasks.files(ctx, benchmark) and checkpoints.is_here(ctx.config.model):
            ctx.load_task(task, str(ctx.seed_folder))
        elif benchmark.hub:
            path = benchmark.hub.partition("@")[0]
            asked.setdefault(path, ask_hub(path, "dataset", benchmark.local_data))
    yield from asked.values()
    if not any(finding.status != "pass" for finding in asked.values()):
        yield Finding("pass", "evaluation data", f"{len(tasks)} tasks have theirs, or can fetch it")


def check_rows(ctx: RunContext) -> Iterator[Finding]:
    """What is trained on: files are read, by line and column; data sets of the hub are asked for."""
    config = ctx.config
    methods = [ctx.method(name) for name in plan.methods(config)]
    if not methods:
        return
    sources = row_sources(config)
    for one in dict.fromkeys(filter(None, sources)):
        named = loading.HUB_NAME.fullmatch(one) if is_of_hub(one) else None
        if named:
            yield ask_hub(named["name"], "dataset")
    for task in config.train_tasks:
        train_task = ctx.train_task(task)
        source = config.train_source(task)
        if (source and not is_of_hub(source)) or config.columns_of(task):
            yield Finding("pass", f"rows of {task}", f"{len(ctx.examples(train_task)):,} from {source}")
        if any(method.needs_safety_data for method in methods) and not is_of_hub(config.safety_data):
            ctx.safety_examples(train_task)


def row_sources(config: RunConfig) -> list[str | None]:
    """Where the rows of a run's trainings come from; None: a train task's own, which may be on the hub."""
    given = [config.train_source(task) for task in config.train_tasks]
    return [*given, *config.mix, *([config.safety_data] if config.safety_data else [])]


def is_of_hub(source: str | None) -> bool:
    return source is not None and source != checkpoints.MINI and not loading.is_local(source)


def ask_hub(name: str, kind: Literal["model", "dataset"], local: str | None = None) -> Finding:
    """Whether the hub gives it to this user."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{'datasets/' * (kind == 'dataset')}{name}"
    own = f"--data {local}=FILE" if local else "a local folder for --model" if kind == "model" else ""
    or_own = f", or {own}" if own else ""
    try:
        HfApi().auth_check(name, repo_type=kind)
    except GatedRepoError:
        mend = f"accept its licence at {page}, then hf auth login{or_own}"
        return Finding("fail", f"{kind} {name}", "gated, and not open to you", mend)
    except RepositoryNotFoundError:
        mend = f"look whether the name is right, and hf auth login if it is private{or_own}"
        return Finding("fail", f"{kind} {name}", "not on the hub, or not for you", mend)
    except Exception as error:
        mend = f"look at the network (HF_HUB_OFFLINE?){or_own}"
        return Finding("warn", f"{kind} {name}", f"the hub could not be asked ({type(error).__name__})", mend)
    return Finding("pass", f"{kind} {name}", "the hub gives it to you")
