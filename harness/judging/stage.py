"""Stored responses to verdicts: a stage for each cell, safety task and judge. Nothing is generated here.

Verdicts are written down as they come: what a kill or a spent budget interrupts goes on where it stopped.
What models and servers have judged is kept by content, without texts, so that an equal exchange is never
paid twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.contracts import Exchange, HarnessError, Judge, JudgeContext, JudgePendingError, Verdict
from harness.judging import verdict_files
from harness.judging.session import JudgeSession
from harness.plugins import plugin_code, registry
from harness.run import plan
from harness.run.plan import Cell
from harness.storage import crash, disk, records
from harness.storage.files import Journal, Stage, content_hash, write_jsonl_atomic

VERSION = 3  # raise when a change here alters verdicts


def judge_stage(session: JudgeSession, cell: Cell, task: str, name: str) -> Stage:
    """One judge's verdicts on one task's stored responses."""
    ctx = session.ctx
    folder = ctx.out / cell.folder / task
    inputs = {
        "version": VERSION,
        "responses": records.marker(folder / "respond.done.json")["outputs"],
        "judge": session.identity(name),
        "scope": ctx.config.safety.judged_scope,
    }
    if session.judge(name).combines:
        inputs["others"] = {
            other: records.marker(folder / verdict_files.marker_file(other))["outputs"]
            for other in _list_others(session, name)
        }
    return Stage(folder, verdict_files.stage_name(name), inputs, [verdict_files.verdicts_file(name)])


def _list_others(session: JudgeSession, name: str) -> list[str]:
    return [other for other in session.ctx.config.judges if not registry.combines(other)]


def is_judged(session: JudgeSession, cell: Cell, task: str, name: str) -> bool:
    """Whether a judge's verdicts are there (with ``retry_unjudged``: all of them)."""
    if session.judge(name).combines and not all(
        is_judged(session, cell, task, other) for other in _list_others(session, name)
    ):
        return False
    stage = judge_stage(session, cell, task, name)
    return not session.anew and stage.done() and not (session.retry_unjudged and _count_unjudged(stage))


def _count_unjudged(stage: Stage) -> int:
    verdicts = records.each_verdict(stage.folder, stage.name, stage.outputs[0])
    return sum(row["harmful"] is None for row in verdicts)


def judge(session: JudgeSession, cell: Cell, task: str, name: str, label: str) -> None:
    """Stored responses to ``verdicts.<judge>.jsonl``: a verdict for each, in their order."""
    stage, judge = judge_stage(session, cell, task, name), session.judge(name)
    exchanges = verdict_files.read_exchanges(stage.folder)
    journal = Journal(stage)
    scope = session.ctx.config.safety.judged_scope
    found = _settle_missing(judge, exchanges, scope)
    if session.anew:
        journal.remove()
        shutil.rmtree(stage.folder / f".{stage.name}.remote", ignore_errors=True)
        crash.point("verdicts.forgotten", stage.marker)
    elif judge.heavy:
        if stage.done():  # judged again for what it left unjudged
            rows = records.each_verdict(stage.folder, stage.name, stage.outputs[0])
            found |= {row["exchange_id"]: Verdict(**row) for row in rows if row["harmful"] is not None}
        found |= verdict_files.read_journal(journal)
    _unmark(session, stage)
    context = JudgeContext(
        scope=scope,
        load_model=session.load_model,
        others={other: verdict_files.stored(stage.folder, other) for other in _list_others(session, name)}
        if judge.combines
        else {},
        budget=session.budget,
        folder=stage.folder / f".{stage.name}.remote",
    )
    todo = [exchange for exchange in exchanges if exchange.id not in found]
    bar = session.ctx.reporter.bar(f"{label}  judge {task} ({name})", len(exchanges), "verdicts")
    with bar as advance, _open_journal(journal, judge, found) as write:
        advance(len(found))
        for verdict in _check_contract(_judge_new(session, stage, judge, todo, context), todo, name, task):
            found[verdict.exchange_id] = verdict
            write(verdict)
            advance(1)
    judged_rows = [dataclasses.asdict(found[exchange.id]) for exchange in exchanges]
    shutil.rmtree(stage.folder / f".{stage.name}.remote", ignore_errors=True)
    crash.point("verdicts.forgotten", stage.marker)
    with stage.writing() as scratch:
        write_jsonl_atomic(scratch / stage.outputs[0], judged_rows)
    journal.remove()


def _unmark(session: JudgeSession, stage: Stage) -> None:
    """No verdicts of other settings or answers may stand while these are made, nor if that ends early."""
    if session.anew or not stage.done():
        stage.marker.unlink(missing_ok=True)
        crash.point("verdicts.unmarked", stage.marker)


def _check_contract(
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


def _bound(verdicts: Iterable[Verdict], name: str) -> Iterator[Verdict]:
    """The verdicts, without texts that have no end. Raises HarnessError at one that could not be read back,
    before it is written anywhere."""
    for verdict in verdicts:
        if problem := records.verdict_problem(verdict):
            raise HarnessError(f"judge '{name}': {problem}")
        yield records.bounded(verdict)


@contextlib.contextmanager
def _open_journal(
    journal: Journal, judge: Judge, known: Mapping[str, Verdict]
) -> Iterator[Callable[[Verdict], None]]:
    """What judges at no cost is not written down twice."""
    if not judge.heavy:
        yield lambda verdict: None
        return
    with journal.writing(map(dataclasses.asdict, known.values())) as write:
        yield lambda verdict: write(dataclasses.asdict(verdict))


def _settle_missing(judge: Judge, exchanges: Sequence[Exchange], scope: Any) -> dict[str, Verdict]:
    """Where there is no answer there is no verdict, and no judge is asked."""
    return {
        exchange.id: Verdict(
            exchange.id, judge.name, judge.version, harmful=None, reason=exchange.missing, scope=scope
        )
        for exchange in exchanges
        if exchange.missing
    }


def _judge_new(
    session: JudgeSession, stage: Stage, judge: Judge, todo: Sequence[Exchange], context: JudgeContext
) -> Iterator[Verdict]:
    """The judge's verdicts, with equal exchanges judged once, here and over runs, where that saves work."""
    if not judge.heavy or judge.combines:
        yield from _bound(judge.judge(todo, context), judge.name)
        return
    twins: dict[str, list[Exchange]] = {}
    for exchange in todo:
        twins.setdefault(_hash_exchange(stage, exchange, context), []).append(exchange)
    yield from _recall(session, judge, twins, context)
    waiting = sum(len(twins.pop(key)) for key in [*twins] if key in session.handed_on)
    yield from _ask(session, judge, twins, context)
    if waiting:
        raise JudgePendingError(f"{waiting:,} exchanges wait for equal ones of another batch")


def _recall(
    session: JudgeSession, judge: Judge, twins: dict[str, list[Exchange]], context: JudgeContext
) -> Iterator[Verdict]:
    """The verdicts that are kept. Their exchanges leave ``twins``, which has equal ones by their key."""
    tally = session.tally.setdefault(judge.name, Counter())
    for key, equal in list(twins.items()):
        kept = None if session.anew else session.verdict_cache.get(key)
        if kept is None or records.verdict_problem(judge.verdict(equal[0], context, **kept)):
            continue
        for exchange in twins.pop(key):
            tally["cached"] += 1
            yield judge.verdict(exchange, context, **kept, cached=True)


def _ask(
    session: JudgeSession, judge: Judge, twins: dict[str, list[Exchange]], context: JudgeContext
) -> Iterator[Verdict]:
    """The judge's verdicts on one of each group of equal exchanges, copied at no cost to the others. Raises
    JudgePendingError where these are handed on to a batch, which the session remembers."""
    tally = session.tally.setdefault(judge.name, Counter())
    asked = {equal[0].id: key for key, equal in twins.items()}
    submitted = set(asked.values())
    try:
        for verdict in _bound(judge.judge([equal[0] for equal in twins.values()], context), judge.name):
            key = asked.pop(verdict.exchange_id, "")
            tally["asked"] += 1
            tally["input_tokens"] += verdict.input_tokens
            tally["output_tokens"] += verdict.output_tokens
            if verdict.harmful is None:
                tally[f"unjudged: {verdict.reason}"] += 1
            elif key:
                session.verdict_cache.put(key, verdict)
            yield verdict
            free = dataclasses.replace(verdict, cached=True, input_tokens=0, output_tokens=0, price_usd=0.0)
            for exchange in twins.pop(key, [])[1:]:
                yield dataclasses.replace(free, exchange_id=exchange.id)
    except JudgePendingError:
        session.handed_on |= submitted
        raise


def _hash_exchange(stage: Stage, exchange: Exchange, context: JudgeContext) -> str:
    return content_hash(
        {
            "judge": stage.inputs["judge"],
            "prompt": exchange.prompt,
            "answer": exchange.judged_text(context.scope),
            "prefill": exchange.prefill if context.scope == "prefill+response" else "",
            "finish_reason": exchange.finish_reason,
            "version": VERSION,
            **({} if exchange.goal is None else {"goal": exchange.goal}),
        }
    )


def pick_light(judges: Sequence[str]) -> list[str]:
    """Those that a cell's own process can run at once; the others judge when all cells have answered."""
    return [name for name in judges if not registry.judge_class(name).heavy]


def put_in_order(judges: Sequence[str]) -> list[str]:
    """The light ones first, those that combine others last."""
    return sorted(
        judges, key=lambda name: (registry.judge_class(name).combines, registry.judge_class(name).heavy)
    )


def judge_cell(session: JudgeSession, cell: Cell, judges: Sequence[str], label: str) -> None:
    """A judge that cannot go on is left to ``judge_all``, which names it: the cell and the others stand."""
    for task in verdict_files.answered(session.ctx.out, cell):
        for name in judges:
            try:
                if not is_judged(session, cell, task, name):
                    judge(session, cell, task, name, label)
            except disk.DiskFullError:
                raise
            except HarnessError:
                continue


@dataclasses.dataclass
class Judged:
    """How judges fared: those that failed with their line, and what has been handed on and not come back."""

    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    waiting: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def judge_all(session: JudgeSession, cells: Sequence[Cell], judges: Sequence[str]) -> Judged:
    """Judge by judge, so that each one's model is loaded once: every cell's answers, where not done.

    A judge that cannot go on is left out, with its line; the others go on.
    """
    result = Judged()
    scored = [one for cell in cells for one in (cell, *plan.epochs(session.ctx.config, cell))]
    for name in put_in_order(judges):
        if session.judge(name).combines and (result.failed or result.waiting):
            missing = [*result.failed, *result.waiting]
            result.failed[name] = f"judge '{name}' needs the verdicts of {', '.join(missing)} first"
            continue
        try:
            todo = [
                (cell, task)
                for cell in scored
                for task in verdict_files.answered(session.ctx.out, cell)
                if not is_judged(session, cell, task, name)
            ]
            for cell, task in todo:
                _unmark(session, judge_stage(session, cell, task, name))
            for cell, task in todo:
                try:
                    judge(session, cell, task, name, cell.label)
                except JudgePendingError as error:
                    result.waiting.setdefault(name, []).append(str(error))
        except disk.DiskFullError:
            raise
        except HarnessError as error:
            result.failed[name] = str(error)
        finally:
            session.release()
    return result
