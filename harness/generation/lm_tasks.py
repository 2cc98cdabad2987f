"""A task in lm-eval's hands: loaded with its functions and documents, checked, and evaluated."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError, NotFetchedError
from harness.data import benchmarks
from harness.data.benchmarks import Benchmark
from harness.engines.base import Engine
from harness.run.context import RunContext
from harness.storage import disk
from harness.text import printable

FEWSHOT_SEED = 1234  # lm-eval's own: the same examples are shown there
RETURNS = (
    "its data function must take **metadata and return {split: datasets.Dataset} with rows in it, and its "
    "YAML name that split (test_split: test)"
)


def check_documents(ctx: RunContext, tasks: Iterable[str]) -> None:
    """Load tasks' functions, and fetch what they read from the hub, before anything is spent. Raises
    HarnessError where either cannot be had."""
    for task in tasks:
        benchmark = ctx.benchmark(task)
        check_functions(benchmark)
        if benchmark.foreign or (benchmark.hub and benchmark.local_data not in ctx.config.data):
            load(ctx, benchmark, str(ctx.seed_folder))


def check_functions(benchmark: Benchmark) -> None:
    """Raises HarnessError where a task's YAML cannot be loaded with its functions. No document is read, so
    the error's own words can be shown."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        load_yaml(benchmark.path, resolve_func=True)
    except Exception as error:
        reasons = [error, *([error.__cause__] if isinstance(error.__cause__, ImportError) else [])]
        said = ": ".join(" ".join(str(reason).split()) for reason in reasons)
        raise HarnessError(
            f"task '{benchmark.name}' cannot be loaded: {type(error).__name__}: {said}"
        ) from error


def open_task(ctx: RunContext, engine: Engine, benchmark: Benchmark) -> Any:
    """The lm-eval task, with its documents under the engine's tokenizer."""
    if benchmark.prefilled and not engine.takes_ids:
        raise HarnessError(
            f"task '{benchmark.name}' opens answers with exact tokens, and there is no tokenizer of this "
            "server's model here: add --tokenizer FOLDER, if the server takes token ids"
        )
    start = time.perf_counter()
    lm_task = load(ctx, benchmark, engine.tokenizer_name if engine.takes_ids else None)
    if not lm_task.get_config("num_fewshot"):
        lm_task.set_config(key="num_fewshot", value=0)
    lm_task.set_fewshot_seed(seed=FEWSHOT_SEED)
    ctx.clock["tasks"] += time.perf_counter() - start
    return lm_task


def load(ctx: RunContext, benchmark: Benchmark, tokenizer: str | None) -> Any:
    """The lm-eval task with its documents. Raises HarnessError in one line."""
    try:
        lm_task = ctx.load_task(benchmark.name, tokenizer)
        documents = lm_task.eval_docs
        several = len(documents) > 1
    except (HarnessError, MemoryError):
        raise
    except Exception as error:
        if benchmark.hub and isinstance(error, OSError):  # the hub's errors are, FileNotFoundError too
            raise NotFetchedError(
                f"task '{benchmark.name}': its data cannot be fetched ({type(error).__name__}); is the hub "
                "reachable, and a gated data set's licence accepted (hf auth login)?"
            ) from error
        check_functions(benchmark)
        raise _unusable(benchmark, "loaded", error) from error
    _check_text(lm_task, benchmark, documents[0] if several else {})
    of_all = lm_task.doc_iterator

    def picked(*, samples: Any = None, **whole: Any) -> Any:
        return enumerate(_chosen(documents, samples)) if samples else of_all(**whole)

    lm_task.doc_iterator = picked  # lm-eval's own compares every document with every place
    return lm_task


def evaluate(model: Any, lm_task: Any, benchmark: Benchmark, places: list[int]) -> list[dict[str, Any]]:
    """lm-eval's samples of what ``model`` answers: one for each document of ``places``, its metrics under
    ``metrics``, those of further filters as ``metric@filter``."""
    from lm_eval import evaluator

    name = benchmark.name
    try:
        results = evaluator.evaluate(
            lm=model,
            task_dict={"tasks": {name: lm_task}},
            samples={name: places},
            bootstrap_iters=0,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    except (HarnessError, MemoryError):
        raise
    except Exception as error:
        raise _unusable(benchmark, "scored", error) from error
    found: dict[Any, dict[str, Any]] = {}
    for sample in results["samples"][name]:
        first = sample["doc_id"] not in found
        kept = found.setdefault(sample["doc_id"], {**sample, "metrics": {}})
        for metric in sample["metrics"]:
            value = sample[metric]
            if isinstance(value, (bool, int, float)):
                kept["metrics"][metric if first else f"{metric}@{sample['filter']}"] = float(value)
    if not any(sample["metrics"] for sample in found.values()):
        why = f" ({benchmark.unscored})" if benchmark.unscored != Benchmark.unscored else ""
        raise HarnessError(f"task '{name}' has no metric that is a number for any document{why}")
    return list(found.values())


def _check_text(lm_task: Any, benchmark: Benchmark, document: Mapping[str, Any]) -> None:
    """Raises HarnessError where a task's text names no column: lm-eval would ask every document the name
    itself. ``document``: one of several; {} where there is one."""
    text, columns = lm_task.get_config("doc_to_text"), [*document]
    if not (isinstance(text, str) and document) or text in columns or "messages" in columns:
        return
    constant = "{{" not in text and "{%" not in text
    if constant and (text.isidentifier() or not benchmark.foreign):
        shown = ", ".join(printable(str(name))[:40] for name in columns[:12])
        raise HarnessError(
            f"task '{benchmark.name}': doc_to_text '{printable(text)[:60]}' is no column ({shown}) and has "
            "no {{column}} in it, so that every document would be asked this text"
        )


def _chosen(documents: Any, places: list[int]) -> Iterable[Mapping[str, Any]]:
    """Of a data set or a list."""
    if hasattr(documents, "select"):
        chosen: Iterable[Mapping[str, Any]] = documents.select(places)
        return chosen
    return [documents[place] for place in places]


def _unusable(benchmark: Benchmark, what: str, error: Exception) -> HarnessError:
    """Where (in the task's own files, if it went through them), and the type alone: the error's message may
    quote an answer."""
    refused = disk.refusal(error)
    if refused:
        return refused
    frames = traceback.extract_tb(error.__traceback__)
    home = benchmark.path.parent.resolve()
    own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(home)]
    last = (own or frames)[-1]
    hint = "" if own or what != "loaded" or benchmark.foreign else f"; {RETURNS}"
    return HarnessError(
        f"task '{benchmark.name}' cannot be {what}: {type(error).__name__} in {Path(last.filename).name}, "
        f"line {last.lineno}{hint} (--debug shows it)"
    )


def source(ctx: RunContext, benchmark: Benchmark) -> str:
    file = files(ctx, benchmark).get(benchmark.local_data or "")
    if file is not None:
        return f"file {file.name}"
    if benchmark.folder is not None and not benchmark.hub:
        return f"folder {benchmark.folder.name}"
    return f"hub {benchmark.hub}" if benchmark.hub else "generated"


def files(ctx: RunContext, benchmark: Benchmark) -> dict[str, Path]:
    """The user's files that a task may read: its own, and those of the tasks in its folder (a prefilled
    request's category stands in the raw task's file)."""
    sets = ctx.config.set_files
    if benchmark.name in sets:
        return {benchmark.local_data or "": sets[benchmark.name]}
    near = {one.name for one in benchmarks.installed().values() if one.path.parent == benchmark.path.parent}
    return {name: file for name, file in ctx.config.data.items() if name in near | {benchmark.local_data}}
