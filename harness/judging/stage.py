"""Stored responses to verdicts: a stage for each cell, safety task and judge. Nothing is generated here.

Verdicts are written down as they come: what a kill or a spent budget interrupts goes on where it stopped.
What models and servers have judged is kept by content, without texts, so that an equal exchange is never
paid twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import RunConfig
from harness.contracts import (
    REFUSED_TO_JUDGE,
    Budget,
    Exchange,
    HarnessError,
    Judge,
    JudgeContext,
    JudgeModel,
    JudgePendingError,
    JudgeSettings,
    Verdict,
)
from harness.judging import models
from harness.models import checkpoints
from harness.plugins import plugin_code, plugin_files, registry
from harness.reading import json_value
from harness.run import plan
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import crash, disk, records
from harness.storage.files import Journal, Stage, content_hash, write_jsonl_atomic
from harness.text import listed

if TYPE_CHECKING:
    from harness.run.context import Workshop

VERSION = 3  # raise when a change here alters verdicts
MINI_JUDGE, MINI_DATA = "mini-exact", "harness.mini.data"  # the second: a source of all its tasks
ANSWERS_OF_A_TASK = 330  # HEx-PHI's, for forecasts before anything has answered
STANDARD_CELLS = 11  # the paper's table: the base model, and five methods on two tasks
STANDARD_RUN = "the base model and five methods on two tasks, 330 raw and 330 prefilled requests each"
CHARACTERS_OF_AN_EXCHANGE = 1_600  # a request, and an answer of some 350 tokens


def settings(config: RunConfig) -> JudgeSettings:
    section = config.judging
    return JudgeSettings(
        rubric=section.rubric,
        threshold=section.threshold,
        prompt_files=section.prompt_files,
        in_flight=section.in_flight,
        timeout_s=section.timeout_s,
        attempts=section.attempts,
        batch=section.mode == "batch",
        prices=section.prices,
    )


class Bench:
    """What judges share in one command: themselves, the budget, one loaded model at a time, what is kept by
    content, and a count of what happened (by judge)."""

    def __init__(self, shop: Workshop):
        self.shop, self.budget = shop, Budget(shop.config.judging.max_cost)
        self.retry_unjudged = False
        self.anew = False  # nothing that is known of verdicts counts: no marker, journal or cache
        self.handed_on: set[str] = set()  # exchanges in batches that are not back yet
        self.tally: dict[str, Counter[str]] = {}
        self._judges: dict[str, Judge] = {}
        self._weights: dict[str, dict[str, str]] = {}
        self._loaded: tuple[str, models.LoadedModel] | None = None

    def judge(self, name: str) -> Judge:
        if name not in self._judges:
            self._judges[name] = registry.make_judge(name, settings(self.shop.config))
        return self._judges[name]

    def check(self, names: Sequence[str]) -> list[str]:
        """Whether the judges can work, before anything is spent; lines to show."""
        return [line for name in names if (line := self.judge(name).check())]

    def settled(self, name: str) -> dict[str, Any]:
        """What a judge and the settings say of its verdicts."""
        judge, section = self.judge(name), self.shop.config.judging
        of_model = {"engine": section.engine, "dtype": section.dtype} if judge.model is not None else {}
        return judge.identity() | of_model | plugin_files.sha256("judge", registry.judge_parts(name)[0])

    def identity(self, name: str) -> dict[str, Any]:
        """All that a judge's verdicts depend on, but for the exchange and the scope."""
        found, model = self.settled(name), self.judge(name).model
        if model is not None:
            if model not in self._weights:
                self._weights[model] = checkpoints.fingerprint(checkpoints.locate(model))
            found |= {"weights": self._weights[model]}
        return found

    def load_model(self, name: str) -> JudgeModel:
        """A judge's weights; those of the judge before have left the device."""
        if self._loaded is None or self._loaded[0] != name:
            self.release()
            section = self.shop.config.judging
            model = models.load(
                checkpoints.locate(name), section.engine, section.dtype, self.shop.device, section.batch_size
            )
            self._loaded = name, model
        return self._loaded[1]

    def release(self) -> None:
        if self._loaded:
            self._loaded[1].close()
            self._loaded = None

    @cached_property
    def kept(self) -> Kept:
        return Kept(self.shop.cache.folder)


class Kept:
    """Verdicts by a hash of judge and exchange, over all runs: scores and labels, never a text."""

    def __init__(self, folder: Path):
        disk.check_writable(folder, "name another cache: --set cache=DIR, or HARNESS_CACHE")
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "verdicts.sqlite"
        try:
            self._table = sqlite3.connect(self._file, timeout=60, isolation_level=None)
            self._table.execute("PRAGMA journal_mode=WAL")
            self._table.execute("PRAGMA synchronous=NORMAL")
            self._table.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, value TEXT)")
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        try:
            row = self._table.execute("SELECT value FROM verdicts WHERE key = ?", (key,)).fetchone()
            found: dict[str, Any] | None = json_value(row[0]) if row else None
        except (sqlite3.Error, ValueError) as error:
            raise self._broken(error) from error
        return found

    def put(self, key: str, verdict: Verdict) -> None:
        value = {name: getattr(verdict, name) for name in ("harmful", "label", "score", "model", "rubric")}
        try:
            self._table.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, json.dumps(value)))
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> HarnessError:
        return disk.refusal(error) or HarnessError(
            f"{self._file}: cannot be used ({error}); remove it, or name another cache folder"
        )


def journaled(journal: Journal) -> dict[str, Verdict]:
    """What an interrupted judging had found, by exchange. What was unjudged is asked again."""
    verdicts = [Verdict(**row) for row in records.verdict_rows(journal.rows())]
    return {verdict.exchange_id: verdict for verdict in verdicts if verdict.harmful is not None}


def otherwise(before: Bench, now: Bench, judges: Sequence[str]) -> list[str]:
    """Those of the judges whose verdicts the settings of ``now`` would change."""
    scopes = [bench.shop.config.safety.judged_scope for bench in (before, now)]
    return [name for name in judges if scopes[0] != scopes[1] or before.settled(name) != now.settled(name)]


# --- one stage -------------------------------------------------------------------------------------


def verdicts_file(judge: str) -> str:
    return f"verdicts.{plan.judge_slug(judge)}.jsonl"


def stage_name(judge: str) -> str:
    return f"judge-{plan.judge_slug(judge)}"


def marker_file(judge: str) -> str:
    return f"{stage_name(judge)}.done.json"


def given(folder: Path, judge: str, scope: str | None = None) -> Iterator[dict[str, Any]]:
    """A judge's verdicts on the answers that a task's folder holds, of ``scope`` where it is named. Raises
    HarnessError where there are none, or they are of other answers or of another scope."""
    if not (folder / marker_file(judge)).exists():
        raise HarnessError(f"not judged by {judge}")
    inputs = records.marker(folder / marker_file(judge))["inputs"]
    if inputs.get("responses") != records.marker(folder / "respond.done.json")["outputs"]:
        raise HarnessError(f"{folder}: the verdicts of '{judge}' belong to other responses")
    if scope not in (None, inputs.get("scope")):
        raise HarnessError(f"{folder}: the verdicts of '{judge}' are not of the scope '{scope}'")
    return records.each_verdict(folder, stage_name(judge), verdicts_file(judge))


def judge_stage(bench: Bench, cell: Cell, task: str, name: str) -> Stage:
    """One judge's verdicts on one task's stored responses."""
    shop = bench.shop
    folder = shop.out / cell.folder / task
    inputs = {
        "version": VERSION,
        "responses": records.marker(folder / "respond.done.json")["outputs"],
        "judge": bench.identity(name),
        "scope": shop.config.safety.judged_scope,
    }
    if bench.judge(name).combines:
        inputs["others"] = {
            other: records.marker(folder / marker_file(other))["outputs"] for other in _others(bench, name)
        }
    return Stage(folder, stage_name(name), inputs, [verdicts_file(name)])


def _others(bench: Bench, name: str) -> list[str]:
    return [other for other in bench.shop.config.judges if not registry.combines(other)]


def judged(bench: Bench, cell: Cell, task: str, name: str) -> bool:
    """Whether a judge's verdicts are there (with ``retry_unjudged``: all of them)."""
    if bench.judge(name).combines and not all(
        judged(bench, cell, task, other) for other in _others(bench, name)
    ):
        return False
    stage = judge_stage(bench, cell, task, name)
    return not bench.anew and stage.done() and not (bench.retry_unjudged and _unjudged(stage))


def _unjudged(stage: Stage) -> int:
    verdicts = records.each_verdict(stage.folder, stage.name, stage.outputs[0])
    return sum(row["harmful"] is None for row in verdicts)


def judge(bench: Bench, cell: Cell, task: str, name: str, label: str) -> None:
    """Stored responses to ``verdicts.<judge>.jsonl``: a verdict for each, in their order."""
    stage, judge = judge_stage(bench, cell, task, name), bench.judge(name)
    exchanges = read_exchanges(stage.folder)
    journal = Journal(stage)
    scope = bench.shop.config.safety.judged_scope
    found = _settled(judge, exchanges, scope)
    if bench.anew:
        journal.remove()
        shutil.rmtree(stage.folder / f".{stage.name}.remote", ignore_errors=True)
        crash.point("verdicts.forgotten", stage.marker)
    elif judge.heavy:
        if stage.done():  # judged again for what it left unjudged
            rows = records.each_verdict(stage.folder, stage.name, stage.outputs[0])
            found |= {row["exchange_id"]: Verdict(**row) for row in rows if row["harmful"] is not None}
        found |= journaled(journal)
    _unmark(bench, stage)
    context = JudgeContext(
        scope=scope,
        load_model=bench.load_model,
        others={other: _stored(stage.folder, other) for other in _others(bench, name)}
        if judge.combines
        else {},
        budget=bench.budget,
        folder=stage.folder / f".{stage.name}.remote",
    )
    todo = [exchange for exchange in exchanges if exchange.id not in found]
    bar = bench.shop.reporter.bar(f"{label}  judge {task} ({name})", len(exchanges), "verdicts")
    with bar as advance, _writing(journal, judge, found) as write:
        advance(len(found))
        for verdict in _kept_to_contract(_verdicts(bench, stage, judge, todo, context), todo, name, task):
            found[verdict.exchange_id] = verdict
            write(verdict)
            advance(1)
    judged_rows = [dataclasses.asdict(found[exchange.id]) for exchange in exchanges]
    shutil.rmtree(stage.folder / f".{stage.name}.remote", ignore_errors=True)
    crash.point("verdicts.forgotten", stage.marker)
    with stage.writing() as scratch:
        write_jsonl_atomic(scratch / stage.outputs[0], judged_rows)
    journal.remove()


def _unmark(bench: Bench, stage: Stage) -> None:
    """No verdicts of other settings or answers may stand while these are made, nor if that ends early."""
    if bench.anew or not stage.done():
        stage.marker.unlink(missing_ok=True)
        crash.point("verdicts.unmarked", stage.marker)


def _kept_to_contract(
    verdicts: Iterator[Verdict], todo: Sequence[Exchange], name: str, task: str
) -> Iterator[Verdict]:
    """The verdicts. Raises HarnessError unless there is just one for each exchange."""
    given: list[str] = []
    try:
        for verdict in verdicts:
            given.append(verdict.exchange_id)
            yield verdict
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:  # the type alone: its message may quote an answer
        if refused := disk.refusal(error):
            raise refused from error
        place = plugin_code.line_of(error)
        raise HarnessError(
            f"judge '{name}' broke its contract on {task}: it raised {type(error).__name__} "
            f"{f'in {place}, ' if place else ''}after {len(given)} of {len(todo)} verdicts "
            "(--debug shows where)"
        ) from error
    if sorted(given) != sorted(exchange.id for exchange in todo):
        raise HarnessError(
            f"judge '{name}' broke its contract on {task}: {len(given)} verdicts for "
            f"{len(todo)} exchanges, or for others"
        )


def _whole(verdicts: Iterable[Verdict], name: str) -> Iterator[Verdict]:
    """The verdicts, without texts that have no end. Raises HarnessError at one that could not be read back,
    before it is written anywhere."""
    for verdict in verdicts:
        if problem := records.verdict_problem(verdict):
            raise HarnessError(f"judge '{name}': {problem}")
        yield records.bounded(verdict)


@contextlib.contextmanager
def _writing(
    journal: Journal, judge: Judge, known: Mapping[str, Verdict]
) -> Iterator[Callable[[Verdict], None]]:
    """What judges at no cost is not written down twice."""
    if not judge.heavy:
        yield lambda verdict: None
        return
    with journal.writing(map(dataclasses.asdict, known.values())) as write:
        yield lambda verdict: write(dataclasses.asdict(verdict))


def _settled(judge: Judge, exchanges: Sequence[Exchange], scope: Any) -> dict[str, Verdict]:
    """Where there is no answer there is no verdict, and no judge is asked."""
    return {
        exchange.id: Verdict(
            exchange.id, judge.name, judge.version, harmful=None, reason=exchange.missing, scope=scope
        )
        for exchange in exchanges
        if exchange.missing
    }


def _verdicts(
    bench: Bench, stage: Stage, judge: Judge, todo: Sequence[Exchange], context: JudgeContext
) -> Iterator[Verdict]:
    """The judge's verdicts, with equal exchanges judged once, here and over runs, where that saves work."""
    if not judge.heavy or judge.combines:
        yield from _whole(judge.judge(todo, context), judge.name)
        return
    tally = bench.tally.setdefault(judge.name, Counter())
    twins: dict[str, list[Exchange]] = {}
    for exchange in todo:
        twins.setdefault(_key(stage, exchange, context), []).append(exchange)
    asked: dict[str, str] = {}
    held = 0
    for key, equal in list(twins.items()):
        kept = None if bench.anew else bench.kept.get(key)
        if kept is None or records.verdict_problem(judge.verdict(equal[0], context, **kept)):
            if key in bench.handed_on:
                held += len(twins.pop(key))
            else:
                asked[equal[0].id] = key
            continue
        for exchange in twins.pop(key):
            tally["cached"] += 1
            yield judge.verdict(exchange, context, **kept, cached=True)
    submitted = set(asked.values())
    try:
        for verdict in _whole(judge.judge([equal[0] for equal in twins.values()], context), judge.name):
            key = asked.pop(verdict.exchange_id, "")
            tally["asked"] += 1
            tally["input_tokens"] += verdict.input_tokens
            tally["output_tokens"] += verdict.output_tokens
            if verdict.harmful is None:
                tally[f"unjudged: {verdict.reason}"] += 1
            elif key:
                bench.kept.put(key, verdict)
            yield verdict
            free = dataclasses.replace(verdict, cached=True, input_tokens=0, output_tokens=0, price_usd=0.0)
            for exchange in twins.pop(key, [])[1:]:
                yield dataclasses.replace(free, exchange_id=exchange.id)
    except JudgePendingError:
        bench.handed_on |= submitted
        raise
    if held:
        raise JudgePendingError(f"{held:,} exchanges wait for equal ones of another batch")


def _key(stage: Stage, exchange: Exchange, context: JudgeContext) -> str:
    return content_hash(
        {
            "judge": stage.inputs["judge"],
            "prompt": exchange.prompt,
            "answer": exchange.judged_text(context.scope),
            "prefill": exchange.prefill if context.scope == "prefill+response" else "",
            "finish_reason": exchange.finish_reason,
            "version": VERSION,
        }
    )


def read_exchanges(folder: Path) -> list[Exchange]:
    names = [field.name for field in dataclasses.fields(Exchange)]
    rows = records.each_response(folder)
    return [Exchange(**{name: row[name] for name in names if name in row}) for row in rows]


def _stored(folder: Path, judge: str) -> dict[str, Verdict]:
    return {row["exchange_id"]: Verdict(**row) for row in given(folder, judge)}


# --- many stages -----------------------------------------------------------------------------------


def light(judges: Sequence[str]) -> list[str]:
    """Those that a cell's own process can run at once; the others judge when all cells have answered."""
    return [name for name in judges if not registry.judge_class(name).heavy]


def in_order(judges: Sequence[str]) -> list[str]:
    """The light ones first, those that combine others last."""
    return sorted(
        judges, key=lambda name: (registry.judge_class(name).combines, registry.judge_class(name).heavy)
    )


def answered(out: Path, cell: Cell) -> list[str]:
    """The safety tasks whose responses are there."""
    folder = out / cell.folder
    return [task for task in cell.safety_tasks if (folder / task / "respond.done.json").exists()]


def judge_cell(bench: Bench, cell: Cell, judges: Sequence[str], label: str) -> None:
    """A judge that cannot go on is left to ``judge_all``, which names it: the cell and the others stand."""
    for task in answered(bench.shop.out, cell):
        for name in judges:
            try:
                if not judged(bench, cell, task, name):
                    judge(bench, cell, task, name, label)
            except disk.DiskFullError:
                raise
            except HarnessError:
                continue


@dataclasses.dataclass
class Judged:
    """How judges fared: those that failed with their line, and what has been handed on and not come back."""

    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    waiting: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def judge_all(bench: Bench, cells: Sequence[Cell], judges: Sequence[str]) -> Judged:
    """Judge by judge, so that each one's model is loaded once: every cell's answers, where not done.

    A judge that cannot go on is left out, with its line; the others go on.
    """
    result = Judged()
    scored = [one for cell in cells for one in (cell, *plan.epochs(bench.shop.config, cell))]
    for name in in_order(judges):
        if bench.judge(name).combines and (result.failed or result.waiting):
            missing = [*result.failed, *result.waiting]
            result.failed[name] = f"judge '{name}' needs the verdicts of {', '.join(missing)} first"
            continue
        try:
            todo = [
                (cell, task)
                for cell in scored
                for task in answered(bench.shop.out, cell)
                if not judged(bench, cell, task, name)
            ]
            for cell, task in todo:
                _unmark(bench, judge_stage(bench, cell, task, name))
            for cell, task in todo:
                try:
                    judge(bench, cell, task, name, cell.label)
                except JudgePendingError as error:
                    result.waiting.setdefault(name, []).append(str(error))
        except disk.DiskFullError:
            raise
        except HarnessError as error:
            result.failed[name] = str(error)
        finally:
            bench.release()
    return result


# --- what it costs ---------------------------------------------------------------------------------


def forecast(bench: Bench, cells: Sequence[Cell], judges: Sequence[str] | None = None) -> list[str]:
    """A line for each of the judges (all of the run's) that costs: what is left to judge, and about what that
    takes."""
    lines = []
    for name in filter(registry.is_judge, bench.shop.config.judges if judges is None else judges):
        judge = bench.judge(name)
        if not judge.heavy or judge.combines:
            continue
        exchanges = characters = 0
        for cell in cells:
            for one in (cell, *plan.epochs(bench.shop.config, cell)):
                count, length = _left(bench, one, name)
                exchanges, characters = exchanges + count, characters + length
        if exchanges:
            tokens, usd = judge.expected(exchanges, characters)
            work = f"about {exchanges:,} exchanges" + (f", {tokens / 1e6:.1f} M tokens" if tokens else "")
            lines.append(f"Judge {name}: {work}, {_usd(usd)}")
    return lines


def listing() -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Name, what it does, what it needs and what a standard run costs, of every judge there is; and a line
    for each that cannot be loaded."""
    exchanges = STANDARD_CELLS * 2 * ANSWERS_OF_A_TASK
    rows, broken = [], []
    for name in registry.names("judge"):
        try:
            judge = registry.judge_class(name)
        except HarnessError as error:
            broken.append(str(error))
            continue
        usage = f"{name}:{judge.argument}" if judge.argument[:1].isalpha() else name
        rows.append((usage, *judge.described(name, exchanges, exchanges * CHARACTERS_OF_AN_EXCHANGE)))
    return rows, broken


def blind(config: RunConfig, cells: Sequence[Cell]) -> list[str]:
    """A line where the mini world's judge is the only one of safety tasks outside the mini world."""
    tasks = dict.fromkeys(task for cell in cells for task in cell.safety_tasks)
    foreign = [task for task in tasks if MINI_DATA not in resolve(config).benchmark(task).sources]
    if {*config.judges} - {MINI_JUDGE} or not foreign:
        return []
    return [f"{MINI_JUDGE} cannot judge {', '.join(foreign)}; add --judge keyword"]


def _left(bench: Bench, cell: Cell, name: str) -> tuple[int, int]:
    """Exchanges that a judge has yet to see, and their characters; a guess where nothing has answered."""
    count = length = 0
    there = answered(bench.shop.out, cell)
    for task in cell.safety_tasks:
        if task not in there:
            guess = min(ANSWERS_OF_A_TASK, bench.shop.config.responses.limit or ANSWERS_OF_A_TASK)
            guess *= len(bench.shop.benchmark(task).decodings) or 1
            count, length = count + guess, length + guess * CHARACTERS_OF_AN_EXCHANGE
        elif not _done(bench, cell, task, name):
            exchanges = read_exchanges(bench.shop.out / cell.folder / task)
            if bench.retry_unjudged:
                exchanges = _without_verdict(exchanges, bench.shop.out / cell.folder / task, name)
            count += len(exchanges)
            length += sum(len(e.prompt) + len(e.prefill) + len(e.response) for e in exchanges)
    return count, length


def _without_verdict(exchanges: Sequence[Exchange], folder: Path, judge: str) -> list[Exchange]:
    known: set[str] = set()
    with contextlib.suppress(HarnessError):  # no verdicts at all
        known = {row["exchange_id"] for row in given(folder, judge) if row["harmful"] is not None}
    return [exchange for exchange in exchanges if exchange.id not in known]


def _done(bench: Bench, cell: Cell, task: str, name: str) -> bool:
    """As ``judged``, but without fetching a judge's weights for a forecast."""
    if bench.judge(name).model is not None:
        return (bench.shop.out / cell.folder / task / marker_file(name)).exists()
    return judged(bench, cell, task, name)


def _usd(price: float | None) -> str:
    if price is None:
        return "price not known (set judging.prices)"
    return f"about {price:,.2f} USD" if price else "at no price"


def summary(bench: Bench) -> list[str]:
    """A line for each judge with what it did and cost in this command."""
    lines = []
    for name, tally in bench.tally.items():
        tokens = f"{tally['input_tokens']:,} tokens in, {tally['output_tokens']:,} out"
        reasons = {key.partition(": ")[2]: n for key, n in tally.items() if key.startswith("unjudged: ")}
        unjudged = (
            f", {sum(reasons.values())} unjudged ({listed(reasons, (REFUSED_TO_JUDGE,))})" if reasons else ""
        )
        lines.append(f"Judge {name}: {tally['asked']:,} asked, {tally['cached']:,} known{unjudged}; {tokens}")
    if bench.budget.spent_usd:
        lines.append(f"Spent on judges: {bench.budget.spent_usd:,.4f} USD")
    return lines


def standard(config: RunConfig, out: Path, cells: Sequence[Cell], judge: str) -> str:
    """What a judge's stored verdicts were given by: threshold and rubric, as their markers have them. "" for
    a judge without them."""
    found: dict[str, None] = {}
    for cell in (one for whole in cells for one in (whole, *plan.epochs(config, whole))):
        for task in cell.safety_tasks:
            with contextlib.suppress(HarnessError):
                inputs = records.marker(out / cell.folder / task / marker_file(judge))["inputs"]
                known = inputs.get("judge") if isinstance(inputs.get("judge"), dict) else {}
                said = {"harmful from a score of": known.get("threshold"), "rubric": known.get("rubric")}
                found[", ".join(f"{what} {value}" for what, value in said.items() if value is not None)] = (
                    None
                )
    return " or ".join(filter(None, found))


def notes(config: RunConfig, out: Path, cells: Sequence[Cell]) -> list[str]:
    """What a table says of its judges: what they read, why verdicts are missing, what they cost in all."""
    read = {"prefill+response": "the prefix and the continuation", "response": "only the continuation"}
    lines = [f"For prefilled answers, the judge reads {read[config.safety.judged_scope]}."]
    for name in config.judges:
        if found := standard(config, out, cells, name):
            lines.append(f"Judge {name}: {found}.")
        reasons: Counter[str] = Counter()
        tokens, usd = 0, 0.0
        for cell in (one for whole in cells for one in (whole, *plan.epochs(config, whole))):
            for task in cell.safety_tasks:
                with contextlib.suppress(HarnessError):  # the row's status says what is wrong with them
                    for row in given(out / cell.folder / task, name):
                        if row["harmful"] is None:
                            reasons[row.get("reason") or "no reason given"] += 1
                        tokens += row.get("input_tokens", 0) + row.get("output_tokens", 0)
                        usd += row.get("price_usd") or 0.0
        if reasons:
            lines.append(f"Unjudged by {name}: {listed(reasons, (REFUSED_TO_JUDGE,))}.")
        if tokens:
            lines.append(f"Judge {name}: {tokens:,} tokens, {_usd(usd).removeprefix('about ')}.")
    return lines
