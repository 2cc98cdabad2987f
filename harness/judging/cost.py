"""What judging takes: forecast before it, said after it and under the table."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.config import RunConfig
from harness.config.base_recipe import MINI_DATA
from harness.contracts import REFUSED_TO_JUDGE, Exchange, HarnessError
from harness.judging import stage, verdict_files
from harness.judging.session import JudgeSession
from harness.plugins import registry
from harness.run import plan
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage import records
from harness.text import listed

MINI_JUDGE = "mini-exact"
ANSWERS_OF_A_TASK = 330  # HEx-PHI's, for forecasts before anything has answered
STANDARD_CELLS = 11  # the paper's table: the base model, and five methods on two tasks
STANDARD_RUN = "the base model and five methods on two tasks, 330 raw and 330 prefilled requests each"
CHARACTERS_OF_AN_EXCHANGE = 1_600  # a request, and an answer of some 350 tokens


def forecast(session: JudgeSession, cells: Sequence[Cell], judges: Sequence[str] | None = None) -> list[str]:
    """A line for each of the judges (all of the run's) that costs: what is left to judge, and about what that
    takes."""
    lines = []
    for name in filter(registry.is_judge, session.ctx.config.judges if judges is None else judges):
        judge = session.judge(name)
        if not judge.heavy or judge.combines:
            continue
        exchanges = characters = 0
        for cell in cells:
            for one in (cell, *plan.epochs(session.ctx.config, cell)):
                count, length = _left(session, one, name)
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


def find_unjudgeable(config: RunConfig, cells: Sequence[Cell]) -> list[str]:
    """A line where the mini world's judge is the only one of safety tasks outside the mini world."""
    tasks = dict.fromkeys(task for cell in cells for task in cell.safety_tasks)
    foreign = [task for task in tasks if MINI_DATA not in resolve(config).benchmark(task).sources]
    if {*config.judges} - {MINI_JUDGE} or not foreign:
        return []
    return [f"{MINI_JUDGE} cannot judge {', '.join(foreign)}; add --judge keyword"]


def _left(session: JudgeSession, cell: Cell, name: str) -> tuple[int, int]:
    """Exchanges that a judge has yet to see, and their characters; a guess where nothing has answered."""
    count = length = 0
    there = verdict_files.answered(session.ctx.out, cell)
    for task in cell.safety_tasks:
        if task not in there:
            guess = min(ANSWERS_OF_A_TASK, session.ctx.config.responses.limit or ANSWERS_OF_A_TASK)
            guess *= len(session.ctx.benchmark(task).decodings) or 1
            count, length = count + guess, length + guess * CHARACTERS_OF_AN_EXCHANGE
        elif not _done(session, cell, task, name):
            exchanges = verdict_files.read_exchanges(session.ctx.out / cell.folder / task)
            if session.retry_unjudged:
                exchanges = _without_verdict(exchanges, session.ctx.out / cell.folder / task, name)
            count += len(exchanges)
            length += sum(len(e.request) + len(e.prefill) + len(e.response) for e in exchanges)
    return count, length


def _without_verdict(exchanges: Sequence[Exchange], folder: Path, judge: str) -> list[Exchange]:
    known: set[str] = set()
    with contextlib.suppress(HarnessError):  # no verdicts at all
        known = {
            row["exchange_id"]
            for row in verdict_files.read_verdicts(folder, judge)
            if row["harmful"] is not None
        }
    return [exchange for exchange in exchanges if exchange.id not in known]


def _done(session: JudgeSession, cell: Cell, task: str, name: str) -> bool:
    """As ``judged``, but without fetching a judge's weights for a forecast."""
    if session.judge(name).model is not None:
        return (session.ctx.out / cell.folder / task / verdict_files.marker_file(name)).exists()
    return stage.is_judged(session, cell, task, name)


def _usd(price: float | None) -> str:
    if price is None:
        return "price not known (set judging.prices)"
    return f"about {price:,.2f} USD" if price else "at no price"


def summary(session: JudgeSession) -> list[str]:
    """A line for each judge with what it did and cost in this command."""
    lines = []
    for name, tally in session.tally.items():
        tokens = f"{tally['input_tokens']:,} tokens in, {tally['output_tokens']:,} out"
        reasons = {key.partition(": ")[2]: n for key, n in tally.items() if key.startswith("unjudged: ")}
        unjudged = (
            f", {sum(reasons.values())} unjudged ({listed(reasons, (REFUSED_TO_JUDGE,))})" if reasons else ""
        )
        lines.append(f"Judge {name}: {tally['asked']:,} asked, {tally['cached']:,} known{unjudged}; {tokens}")
    if session.budget.spent_usd:
        lines.append(f"Spent on judges: {session.budget.spent_usd:,.4f} USD")
    return lines


def standard(config: RunConfig, out: Path, cells: Sequence[Cell], judge: str) -> str:
    """What a judge's stored verdicts were given by: threshold and rubric, as their markers have them. "" for
    a judge without them."""
    found: dict[str, None] = {}
    for cell in (one for whole in cells for one in (whole, *plan.epochs(config, whole))):
        for task in cell.safety_tasks:
            with contextlib.suppress(HarnessError):
                inputs = records.marker(out / cell.folder / task / verdict_files.marker_file(judge))["inputs"]
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
                    for row in verdict_files.read_verdicts(out / cell.folder / task, name):
                        if row["harmful"] is None:
                            reasons[row.get("reason") or "no reason given"] += 1
                        tokens += row.get("input_tokens", 0) + row.get("output_tokens", 0)
                        usd += row.get("price_usd") or 0.0
        if reasons:
            lines.append(f"Unjudged by {name}: {listed(reasons, (REFUSED_TO_JUDGE,))}.")
        if tokens:
            lines.append(f"Judge {name}: {tokens:,} tokens, {_usd(usd).removeprefix('about ')}.")
    return lines
