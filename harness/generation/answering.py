"""A checkpoint's answers to one task: an engine is asked, document by document, and rows come back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import finish
from harness.contracts import Exchange, HarnessError
from harness.data.benchmarks import Benchmark
from harness.engines.base import Completion, Engine
from harness.generation import lm_tasks, splits
from harness.run.context import RunContext
from harness.storage.files import Journal, ListHash

if TYPE_CHECKING:
    from harness.engines.lm import Asking

OUT_OF_MEMORY = "out_of_memory"  # to how many prompts at once an engine had to come down
AT_ONCE = 10_000  # documents that lm-eval holds in memory
GENERATES = "generate_until"  # lm-eval's word for a task whose answers are written, not chosen
SystemPrompt = Callable[[str | None], str | None]  # may change the task's own


def respond_rows(
    ctx: RunContext, engine: Engine, benchmark: Benchmark, label: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that ``answer`` gives, and its record."""
    rows: list[dict[str, Any]] = []
    return rows, answer(ctx, engine, benchmark, label, rows.append)


def answer(
    ctx: RunContext,
    engine: Engine,
    benchmark: Benchmark,
    label: str,
    take: Callable[[dict[str, Any]], object],
    journal: Journal | None = None,
    system_prompt: SystemPrompt = lambda own: own,
) -> dict[str, Any]:
    """Let the engine answer a task. ``take`` gets a row for each answer (the Exchange, its document and
    sample, its tokens and the document's metrics); the record of what was asked comes back: source, number
    and hash of the documents. At most AT_ONCE documents are in work at a time."""
    lm_task = lm_tasks.open_task(ctx, engine, benchmark)
    settings = ctx.config.responses
    chosen = splits.choose(lm_task.eval_docs, benchmark, settings)
    if not chosen:
        raise HarnessError(f"task '{benchmark.name}' has no documents")
    asked = _Asked(ctx, engine, benchmark, lm_task, label, system_prompt, journal.rows() if journal else [])
    kept = journal.writing(asked.stored) if journal else contextlib.nullcontext(lambda row: None)
    with ctx.reporter.bar(label, len(chosen) * asked.repeats, "answers") as advance, kept as write:
        for start in range(0, len(chosen), AT_ONCE):
            for row in asked.rows(list(chosen[start : start + AT_ONCE]), start, advance, write):
                take(row)
    ctx.clock["generation"] += asked.seconds
    asked.note_absent_metrics()
    record = {
        "task": benchmark.name,
        "version": benchmark.version,
        "source": lm_tasks.source(ctx, benchmark),
        "documents": len(chosen),
        **asked.record(),
    }
    if settings.part != "all":
        record["part"] = settings.part
        record["parts"] = splits.count_parts(lm_task.eval_docs, benchmark, settings)
    return record


class _Asked:
    """What has been asked of a task so far, and what became of it. ``stored``: the journal's rows of an
    interrupted run, which are not asked again."""

    def __init__(
        self,
        ctx: RunContext,
        engine: Engine,
        benchmark: Benchmark,
        lm_task: Any,
        label: str,
        system_prompt: SystemPrompt,
        stored: list[dict[str, Any]],
    ):
        self._ctx, self._engine, self._benchmark, self._lm_task = ctx, engine, benchmark, lm_task
        self._label, self._system_prompt, self.stored = label, system_prompt, stored
        self.repeats = max(1, int(lm_task.get_config("repeats") or 1))
        self.seconds = 0.0
        self._known, self._came_down_to = _ids(stored), tuple(_came_down_to(stored))
        self._documents, self._ids = ListHash(), set[str]()
        self._missing, self._metrics, self._unscored = Counter[str](), set[str](), 0

    def rows(
        self,
        places: list[int],
        start: int,
        advance: Callable[[int], object],
        write: Callable[[dict[str, Any]], object],
    ) -> Iterator[dict[str, Any]]:
        """The rows of the documents at ``places``, the first of which is the ``start``-th that is asked."""
        from harness.engines.lm import TaskModel

        asking = self._asking(len(places), start * self.repeats, advance, write)
        model = TaskModel(self._engine, asking)
        samples = lm_tasks.evaluate(model, self._lm_task, self._benchmark, places)
        self.seconds, self._came_down_to = self.seconds + model.seconds, model.came_down_to
        for sample in samples:
            self._metrics |= sample["metrics"].keys()
            self._unscored += not sample["metrics"]
            self._documents.add(json.loads(json.dumps(sample["doc"], default=str)))
        numbers = {place: number for number, place in enumerate(places)}  # lm-eval counts what it asks
        for sample in samples:
            answers = self._answers(model.completions, sample, numbers[sample["doc_id"]])
            for row in self._rows(sample, answers):
                if row["id"] in self._ids:
                    raise HarnessError(
                        f"task '{self._benchmark.name}': two documents have the same id; "
                        "verdicts are joined by it"
                    )
                self._ids.add(row["id"])
                yield row
        self._missing.update(filter(None, map(_missing, model.completions.values())))

    def record(self) -> dict[str, Any]:
        """Of task.json: what was asked, what has no answer or score, and how memory went."""
        found: dict[str, Any] = {"sha256": self._documents.hexdigest(), "missing": dict(self._missing)}
        if self._unscored:
            found["unscored"] = {self._benchmark.unscored: self._unscored}
        if self._came_down_to:
            found[OUT_OF_MEMORY] = [*self._came_down_to]
        return found

    def note_absent_metrics(self) -> None:
        """Tell of metrics that the task names and its scores do not have."""
        named = [metric["metric"] for metric in self._lm_task.get_config("metric_list") or ()]
        absent = [name for name in named if name not in self._metrics]
        if absent and not self._benchmark.foreign:
            found = ", ".join(sorted(self._metrics))
            note = f"metric_list names {', '.join(absent)}, but the scores are {found}"
            self._ctx.reporter.send(("note", None, f"task '{self._benchmark.name}': {note}"))

    def _asking(
        self,
        documents: int,
        first: int,
        advance: Callable[[int], object],
        write: Callable[[dict[str, Any]], object],
    ) -> Asking:
        """How the next ``documents`` are asked; ``first``: the number of their first request among all."""
        from harness.engines.lm import Asking

        numbers = range(first, first + documents * self.repeats)
        return Asking(
            system_prompt=self._system_prompt,
            decodings=self._benchmark.decodings,
            takes_messages=not self._benchmark.foreign,
            thinking=self._ctx.config.responses.thinking,
            known={number - first: self._known[number] for number in numbers if number in self._known},
            came_down_to=self._came_down_to,
            on_progress=advance if self._lm_task.OUTPUT_TYPE == GENERATES else lambda done: None,
            on_fewer=lambda prompts: write({OUT_OF_MEMORY: prompts}),
            on_note=lambda line: self._ctx.reporter.send(("note", None, f"{self._label}  {line}")),
            on_answers=lambda answers: write({str(first + place): ids for place, ids in answers.items()}),
        )

    def _answers(
        self, completions: Mapping[tuple[str, int, int], Completion], sample: Mapping[str, Any], number: int
    ) -> list[Completion]:
        """The completions of one document's samples; none where its answers are chosen."""
        if self._lm_task.OUTPUT_TYPE != GENERATES:
            return []
        count = len(sample["resps"][0])
        return [completions[self._benchmark.name, number, place] for place in range(count)]

    def _rows(self, sample: Mapping[str, Any], completions: Sequence[Completion]) -> Iterator[dict[str, Any]]:
        """The rows of one document: of each sample, or of the answer that was chosen."""
        exchange = self._exchange(sample)
        shared = {"document": exchange.id, "metrics": sample["metrics"]}
        if self._lm_task.OUTPUT_TYPE != GENERATES:
            scores = [response[0] for response in sample["filtered_resps"]]
            best = max(range(len(scores)), key=lambda index: scores[index])
            chosen = dataclasses.replace(exchange, response=str(sample["arguments"][best][1]))
            yield _row(chosen, 0, None, **shared)
            return
        answers = [
            dataclasses.replace(
                exchange,
                id=exchange.id if len(completions) == 1 else f"{exchange.id}#{number}",
                response=completion.text,
                finish_reason=completion.finish_reason,
                reasoning=completion.reasoning,
                unavailable=completion.unavailable,
            )
            for number, completion in enumerate(completions)
        ]
        if any(answer.missing for answer in answers):
            lower = {name for name, higher in self._lm_task.higher_is_better().items() if not higher}
            shared["metrics"] = _without_answer(self._benchmark, sample["metrics"], lower)
        for number, (answer, completion) in enumerate(zip(answers, completions, strict=True)):
            yield _row(answer, number, completion.tokens, **shared)

    def _exchange(self, sample: Mapping[str, Any]) -> Exchange:
        """What one document asks, as a judge sees it, without an answer yet."""
        document, own = sample["doc"], not self._benchmark.foreign
        shown = _context(sample["arguments"][0][0])
        turns = (own and document.get("messages")) or json.loads(shown)
        return Exchange(
            id=str(document.get("id", sample["doc_id"]) if own else sample["doc_id"]),
            task=self._benchmark.name,
            category=_category(self._benchmark, document),
            system=self._system_prompt(turns[0]["content"] if turns[0]["role"] == "system" else None),
            prompt=_prompt(turns),
            prefill=document.get("prefill") or "",
            response="",
            finish_reason="stop",
            goal=_goal(self._benchmark, document),
        )


def _goal(benchmark: Benchmark, document: Mapping[str, Any]) -> str | None:
    """The harmful request behind what is sent, where a document of a judged task names it (``goal``). Other
    tasks may call anything so. Raises HarnessError for what is no text."""
    goal = None if benchmark.foreign or benchmark.kind == "utility" else document.get("goal")
    if goal is None or (isinstance(goal, str) and goal.strip()):
        return goal
    raise HarnessError(
        f"task '{benchmark.name}': a document's goal is no text; give the request itself, or leave goal out"
    )


def _category(benchmark: Benchmark, document: Mapping[str, Any]) -> str | None:
    """A document's category; lm-eval's own tasks may call anything so. Raises HarnessError for what is no
    text."""
    category = document.get("category")
    if category is None or isinstance(category, str):
        return category
    if benchmark.foreign:
        return None
    raise HarnessError(
        f"task '{benchmark.name}': a document's category is {type(category).__name__}; "
        "give a text, or leave it out"
    )


def _row(exchange: Exchange, sample: int, tokens: int | None, document: str, metrics: Any) -> dict[str, Any]:
    """An exchange as it is stored: where there is no goal, as before there were any."""
    row = dataclasses.asdict(exchange)
    if exchange.goal is None:
        del row["goal"]
    return {**row, "document": document, "sample": sample, "tokens": tokens, "metrics": metrics}


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
