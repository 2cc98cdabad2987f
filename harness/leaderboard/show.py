"""The leaderboard in a terminal: safety first, one line a row, intervals on request, and the verdict.

A row is one line at any width: the base model and vanilla first. What has no figure says so in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harness.console.columns import Block, Column, TextCell, fits, shortened, tables
from harness.leaderboard.bottom_line import bottom_lines
from harness.leaderboard.findings import may_be_rubbish
from harness.leaderboard.health import NOT_MEANINGFUL
from harness.leaderboard.sections import (
    Section,
    beside_paper,
    compared_with,
    has_refusals,
    least,
    sections,
    unjudged,
)
from harness.leaderboard.tables import (
    ALONE,
    BASELINE,
    DONE,
    MEAN,
    METHOD_ORDER,
    SINGLE_SEED_LINE,
    STAR,
    UNTRAINED,
    Row,
    count,
    further_tasks,
    grouped,
    is_failed,
    is_meaningless,
    mark,
    one_decimal,
    records,
)
from harness.run import metrics
from harness.run.plan import shown_method
from harness.text import one_line

INTERVALS = "95 % intervals"
_ASCII = str.maketrans({"Δ": "d", "†": "+", "–": "-", "−": "-", "·": "|", "─": "-", "…": "~"})

Say = Callable[[str], str]  # a text from outside, as this terminal can show it in as many characters


def render(
    frame: pd.DataFrame, console: Console, *, title: str, notes: Sequence[str] = (), intervals: bool = False
) -> None:
    """Print the leaderboard: a table for each train task and judge, and what its marks mean."""
    say = (lambda text: _ascii(one_line(text))) if console.options.ascii_only else one_line
    _show(console, [Text(one_line(title), style="bold")])
    for section in sections(frame):
        _show(console, [Text(), Text(one_line(section.heading), style="bold")])
        _show(console, [Text(one_line(section.caption(metrics.safety_first())))])
        rows = sorted(section.rows, key=_place)
        _show_tables(console, section, rows, say, intervals=intervals)
        partly = [line for row, line in section.failures if not _has_words(row, section.further)]
        _show(console, [Text(one_line(line), style="yellow") for line in partly])
        _show(console, [Text(one_line(line), style="yellow") for line in section.bounds])
    _show(
        console, [Text(), *(Text(one_line(line)) for line in [*_legend(frame, intervals=intervals), *notes])]
    )


def render_verdict(frame: pd.DataFrame, console: Console) -> None:
    """Print what the leaderboard comes to, for each train task: what tuning did, and what to take."""
    found = bottom_lines([row for group in _of_one_run(frame) for row in group])
    told = ""  # the heading above
    for line in found:
        said = [text for text in ("" if line.heading == told else line.lead, line.choice) if text]
        if said and line.heading != told:
            judges = len([other for other in found if other.heading == line.heading])
            heading = f"{line.heading}, judged by {line.judge}" if judges > 1 else line.heading
            _show(console, [Text(), Text(one_line(heading), style="bold")])
        elif said:
            said = [f"Judged by {line.judge}: {' '.join(said)}"]
        told = line.heading if said else told
        _show(console, [Text(one_line(text)) for text in said])


def _of_one_run(frame: pd.DataFrame) -> Iterator[list[Row]]:
    """Rows that were compared with each other: where several runs are merged, a train task that one has."""
    for group in grouped(records(frame), "model", "train_task"):
        if len({row.get("run") for row in group}) == 1:
            run = f" ({group[0].get('run')})"  # behind the methods of runs that were not measured alike
            yield [row | {"method": row["method"].removesuffix(run)} for row in group]


def _place(row: Row) -> int:
    """The base model and vanilla come first; of several runs, the run's name stands behind theirs."""
    name = str(row["method"]).partition(" (")[0]
    return {METHOD_ORDER[0]: 0, BASELINE: 1}.get(name, 2)


# --- lines -----------------------------------------------------------------------------------------


def _ascii(text: str) -> str:
    """For a terminal that shows nothing else: as many characters."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def _show(console: Console, lines: Iterable[Text]) -> None:
    """Lines that are wrapped between words."""
    for line in lines:
        _print(console, line)


def _print(console: Console, line: Text, *, whole: bool = False) -> None:
    """``whole``: of a table, which runs over rather than lose figures."""
    if console.options.ascii_only:
        line = Text(_ascii(line.plain), line.style, spans=line.spans)
    for part in [line] if whole else line.wrap(console, console.width):
        part.rstrip()
        console.print(part, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def _show_tables(
    console: Console, section: Section, rows: Sequence[Row], say: Say, *, intervals: bool
) -> None:
    names = _names(rows, say)
    words = {i: (say(row["status"]), "red") for i, row in enumerate(rows) if _has_words(row, section.further)}
    further = _blocks(rows, section.further)
    sets = [_main(rows, names, console.width), *([further] if further else [])]
    alike = _alike(names, sets, console.width)
    full: dict[str, str] = {}
    cut: set[int] = set()
    for blocks in sets:
        for table in tables(alike, blocks, console.width, words):
            _show_table(console, table.lines)
            full |= {short: name for short, name in zip(table.names, names, strict=True) if short != name}
            cut.update(table.cut)
    if beside := beside_paper(rows):
        for table in tables([say(name) for name, _ in beside], _paper(beside), console.width):
            _show_table(console, table.lines)
    if intervals:
        _show(console, [Text(), Text(INTERVALS, style="bold")])
        blocks = _intervals(rows, (*metrics.safety_first(), *section.further))
        for table in tables(alike, blocks, console.width, dense=False):
            _show_table(console, table.lines)
    _show(console, [Text(f"{short} is {name}") for short, name in full.items()])
    _show(console, [Text(f"{names[i]} {say(rows[i]['status'])}", style="red") for i in sorted(cut)])


def _alike(names: Sequence[str], sets: Iterable[Sequence[Block]], width: int) -> list[str]:
    """The names as the table with the least room for them has them: so all tables have them alike."""
    rooms = [max(map(cell_len, table.names)) for blocks in sets for table in tables(names, blocks, width)]
    return shortened(names, min(rooms))


def _show_table(console: Console, lines: Sequence[Text]) -> None:
    _print(console, Text())
    for line in lines:
        _print(console, line, whole=True)


def _has_words(row: Row, further: Sequence[str]) -> bool:
    """Whether a row has no figure at all."""
    figures = (
        row.get(f"{metric}{end}")
        for metric in (*metrics.names(), *further)
        for end in ("", "_n", "_unjudged")
    )
    return is_failed(row) or (row["status"] != DONE and not any(figure is not None for figure in figures))


def _names(rows: Sequence[Row], say: Say) -> list[str]:
    """Methods as people read them, with the seed where one would stand there twice."""
    methods = [row["method"] for row in rows]
    return [
        say(shown_method(row["method"]))
        + (f" seed {row['seed']}" if methods.count(row["method"]) > 1 and row["seed"] else "")
        for row in rows
    ]


# --- columns ---------------------------------------------------------------------------------------


def _main(rows: Sequence[Row], names: Sequence[str], width: int) -> list[Block]:
    """The metrics that there are, and as much beside them as has room: RSR's refusals (always where many
    safe answers refuse nothing), seconds of training."""
    measured = [metric for metric in metrics.safety_first() if _is_measured(rows, metric)]
    less = [
        _block(rows, metric, refusals=metric != metrics.RSR.name or _any_rubbish(rows, metric))
        for metric in measured
    ]
    more = [_block(rows, metric) for metric in measured]
    for blocks in ([*more, *_seconds(rows)], more):
        if fits(names, blocks, width):
            return blocks
    return less if len(tables(names, less, width)) == 1 else more


def _blocks(rows: Sequence[Row], names: Iterable[str]) -> list[Block]:
    return [_block(rows, metric) for metric in names if _is_measured(rows, metric)]


def _is_measured(rows: Iterable[Row], metric: str) -> bool:
    return any(row.get(f"{metric}{end}") is not None for row in rows for end in ("", "_n", "_unjudged"))


def _any_rubbish(rows: Iterable[Row], metric: str) -> bool:
    return any(may_be_rubbish(row, metric) for row in rows)


def _block(rows: Sequence[Row], metric: str, *, refusals: bool = True) -> Block:
    """A metric's columns: what it differs by, what it is, and how many answers refuse."""
    name = metrics.label(metric)
    columns = []
    if any(row[f"{metric}_delta"] is not None for row in rows):
        head = f"Δ {name}" if metrics.of(metric) else "Δ"
        columns.append(Column(head, [_delta(row, metric) for row in rows]))
    values = [_value(row, metric) for row in rows]
    least = 0
    if any(cell.spans for cell in values):
        least = len(NOT_MEANINGFUL) - (1 + columns[0].width if columns else 0)
    columns.append(Column(name, values, least))
    refused = (
        [TextCell(one_decimal(row[f"{metric}_refusals"])) for row in rows]
        if has_refusals(rows, metric)
        else []
    )
    if refusals and any(cell.text for cell in refused):
        columns.append(Column("refusals", refused))
    return columns


def _seconds(rows: Sequence[Row]) -> list[Block]:
    seconds = [TextCell(one_decimal(row["train_seconds"])) for row in rows]
    return [[Column("train s", seconds)]] if any(cell.text for cell in seconds) else []


def _value(row: Row, metric: str) -> TextCell:
    if is_meaningless(row, metric):
        return TextCell(NOT_MEANINGFUL, style="yellow", spans=True)
    return TextCell(one_decimal(row[metric]) or "-", unjudged(row, metric))


def _delta(row: Row, metric: str) -> TextCell:
    delta, sign = row[f"{metric}_delta"], mark(row, metric)
    if delta is None:
        return TextCell()
    return TextCell(_signed(delta), sign, ("green" if delta > 0 else "red") if sign == STAR else "")


def _paper(beside: Sequence[tuple[str, dict[str, tuple[float, float]]]]) -> list[Block]:
    """Ours minus a paper's figure, and the paper's."""
    blocks: list[Block] = []
    for metric in metrics.safety_first():
        pairs = [found.get(metric) for _, found in beside]
        if any(pairs):
            ours = Column(
                f"{metrics.label(metric)} vs paper", [TextCell(_signed(p[0]) if p else "") for p in pairs]
            )
            blocks.append([ours, Column("paper", [TextCell(one_decimal(p[1]) if p else "") for p in pairs])])
    return blocks


def _intervals(rows: Sequence[Row], names: Iterable[str]) -> list[Block]:
    """The intervals of what the first tables show, and the differences that would have been found."""
    blocks: list[Block] = []
    for metric in names:
        name = metrics.label(metric)
        columns = [
            Column(f"Δ {name}", [TextCell(_span(row, f"{metric}_delta", _signed, " to ")) for row in rows]),
            Column("detectable", [TextCell(one_decimal(least(row, metric))) for row in rows]),
            Column(name, [TextCell(_span(row, metric, one_decimal, "–")) for row in rows]),
        ]
        if block := [column for column in columns if any(cell.text for cell in column.cells)]:
            blocks.append(block)
    return blocks


def _span(row: Row, name: str, figure: Callable[[float], str], between: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None or high is None else f"{figure(low)}{between}{figure(high)}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"


# --- legend ----------------------------------------------------------------------------------------


def _legend(frame: pd.DataFrame, *, intervals: bool) -> list[str]:
    """What the printed tables need, and no more."""
    everything = records(frame)
    averages = [row for row in everything if row["seed"] == MEAN]
    rows = averages or everything
    names = (*metrics.names(), *further_tasks(map(str, frame.columns)))
    lines = []
    if averages:
        seeds = count((row for row in everything if row["seed"] != MEAN), "seed")
        lines.append(f"Means over {seeds} seeds; each seed is in leaderboard.csv.")
    elif any(row["train_task"] != UNTRAINED for row in rows):
        lines.append(SINGLE_SEED_LINE)
    if any(_is_measured(rows, metric) for metric in metrics.judged()):
        lines.append(
            "JSR, RSR: % of safe answers to harmful requests, with the start of a harmful answer given (JSR) "
            "or not (RSR); refusals: % that refuse."
        )
    lines += metrics.explained()
    if against := compared_with(everything, names):
        lines.append(f"Δ: points from {against}{_marks(everything, names)}.")
    if any(unjudged(row, metric) for row in rows for metric in names):
        lines.append("(2?): 2 answers could not be judged; the rate leaves them out.")
    if not intervals:
        lines.append(f"{INTERVALS}: harness leaderboard RUN --intervals, and in the files.")
    elif any(least(row, metric) is not None for row in rows for metric in names):
        lines.append(
            f"detectable: a true difference of this size would have got its {STAR} four times in five."
        )
    return lines


def _marks(rows: Sequence[Row], names: Sequence[str]) -> str:
    found = {mark(row, metric) for row in rows for metric in names}
    words = {
        STAR: f"; {STAR} is a difference, counting all comparisons",
        ALONE: f"; {ALONE} is one only when taken alone",
    }
    return "".join(text for sign, text in words.items() if sign in found)
