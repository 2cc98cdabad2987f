"""The leaderboard in a terminal: a row is a line, no figure is cut, and what has no figure says so."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leaderboard_rows import (
    METHODS,
    against,
    answering,
    cell,
    elsewhere,
    failed,
    five_comparisons,
    outcome,
    printed,
    reference,
    widest,
)
from outcomes import changed
from outcomes import outcome as made
from rich.cells import cell_len
from rich.console import Console

from harness.leaderboard.build import build
from harness.leaderboard.outcomes import CellResult, TaskOutcome
from harness.leaderboard.show import render, render_verdict
from harness.leaderboard.tables import SINGLE_SEED_LINE, further_tasks, records
from harness.run import metrics

SHOWN = ("base model", *METHODS[1:])
FLAGS = st.text("10?", min_size=1, max_size=8)


def lines_of(text: str, name: str) -> list[list[str]]:
    """The words behind a row's name, in every table that has it (prose has no two blanks)."""
    rows = [line for line in text.splitlines() if line.startswith(f"{name} ") and "  " in line]
    return [row[len(name) :].split() for row in rows]


def heads(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("method ")]


def refusing(method: str, safe: int, refusals: int) -> CellResult:
    """Of 20 plainly asked requests, so many answered safely and so many refused."""
    labels = {f"d{number}": "refusal" if number < refusals else "compliance" for number in range(20)}
    return cell(method, rsr=made("1" * safe + "0" * (20 - safe), labels=labels))


# --- one line a row --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 101, 140])
def test_a_row_is_one_line_with_every_figure(width: int) -> None:
    text = printed(build(widest("gsm8k-mini", "samsum-mini")), width)
    assert max(map(cell_len, text.splitlines())) <= width
    head = "method Δ JSR JSR refusals Δ RSR RSR refusals Δ utility utility train s"
    if width == 80:
        head = "method Δ JSR JSR refusals Δ RSR RSR Δ utility utility"
    if width == 101:
        head = "method Δ JSR JSR refusals Δ RSR RSR refusals Δ utility utility"
    assert heads(text) == [head] * 2
    names = SHOWN if width > 80 else ("base model", "vanilla", "sdft")
    for name in names:
        lost = name in ("sdft", "lookahead-virtual")
        delta = [] if name == "vanilla" else ["-100.0*" if lost else "+0.0"]
        rate = "0.0" if lost else "100.0"
        refusals = ["100.0"] if width > 80 else []
        seconds = ["31.3"] if width == 140 and name != "base model" else []
        judged = [*delta, rate, "(12?)"]
        row = [*judged, "100.0", *judged, *refusals, *delta, rate, *seconds]
        assert lines_of(text, name) == [row, row]


def test_a_name_is_shortened_in_the_middle_and_told_in_full_below() -> None:
    lines = printed(build(widest("gsm8k-mini")), 80).splitlines()
    assert "lookah…irtual -100.0*   0.0 (12?)    100.0 -100.0*   0.0 (12?)   -100.0*     0.0" in lines
    assert "lookah…irtual is lookahead-virtual" in lines
    assert not any(line.startswith("vanilla is") for line in lines)


def test_a_shortened_name_is_the_same_in_all_tables() -> None:
    name = "a-checkpoint-with-a-long-name-of-step-2000"
    cells = [cell(m, further=(replace(reference(), task="xstest"),)) for m in ("vanilla", name)]
    text = printed(build(cells), 80, intervals=True)
    (told,) = [line for line in text.splitlines() if line.endswith(f" is {name}")]
    short = told.partition(" is ")[0]
    assert "…" in short
    assert len(lines_of(text, short)) == len(heads(text)) >= 4


def test_figures_are_right_aligned() -> None:
    frame = build([cell("vanilla", rsr=outcome("1" * 10)), cell("sdft", rsr=outcome("0" * 9 + "?"))])
    rows = [line for line in printed(frame).splitlines() if line.startswith(("vanilla", "sdft"))]
    assert rows[0].index("100.0") + len("100.0") == rows[1].index("0.0 (1?)") + len("0.0")


def test_the_base_model_and_vanilla_come_first() -> None:
    frame = build([cell(name) for name in ("aaa", "sdft", "vanilla", "seed")])
    frame = frame.iloc[::-1].reset_index(drop=True)  # whatever the order of the file
    names = [
        line.split("  ")[0] for line in printed(frame).splitlines() if re.search(r"^[a-z ]+  .*\d\.\d", line)
    ]
    assert names[:2] == ["base model", "vanilla"]
    assert sorted(names[2:]) == ["aaa", "sdft"]


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from([*METHODS, "ptst", "my-checkpoint"]),
        st.tuples(FLAGS, FLAGS, FLAGS, st.booleans()),
        min_size=1,
    ),
    st.sampled_from([80, 120]),
    st.booleans(),
    st.booleans(),
)
def test_whatever_the_figures_they_are_whole_and_on_their_rows_line(
    rows: dict[str, tuple[str, str, str, bool]], width: int, further: bool, intervals: bool
) -> None:
    cells = [
        cell(name, utility=outcome(utility.replace("?", "1")), rsr=outcome(rsr), jsr=outcome(jsr))
        if done
        else failed(name)
        for name, (utility, rsr, jsr, done) in rows.items()
    ]
    if further:
        raw = {one.method: one.outcome("rsr") for one in cells}
        cells = [
            replace(one, further=(replace(found, task="xstest"),)) if (found := raw[one.method]) else one
            for one in cells
        ]
    frame = build(cells)
    text = printed(frame, width, intervals=intervals)
    assert max(map(cell_len, text.splitlines())) <= width
    measured = (*metrics.names(), *further_tasks(map(str, frame.columns)))
    for row in records(frame):
        name = "base model" if row["method"] == "seed" else str(row["method"])
        shown = lines_of(text, name)
        if str(row["status"]).startswith("failed"):
            assert ["failed:", "out", "of", "memory"] in shown
            continue
        words = [word.rstrip("*†") for line in shown for word in line]
        for metric in measured:
            assert row[metric] is None or f"{row[metric]:.1f}" in words
            delta = row[f"{metric}_delta"]
            assert delta is None or f"{round(delta, 1) + 0.0:+.1f}" in words
            if (count := row.get(f"{metric}_unjudged")) and metric != "utility":
                assert f"({count}?)" in words
            low = row[f"{metric}_low"]
            assert not intervals or low is None or any(word.startswith(f"{low:.1f}–") for word in words)
        main = [line for line in shown if len(line) >= 3]
        assert main


@pytest.mark.parametrize("width", [20, 40, 60])
def test_on_a_narrow_terminal_further_tables_take_what_has_no_room(width: int) -> None:
    cells = [*widest("gsm8k-mini"), replace(widest("gsm8k-mini")[0], method="my-own-method-" * 5)]
    text = printed(build(cells), width)
    columns = [name for head in heads(text) for name in re.findall(r"Δ \w+|\w+", head) if name != "method"]
    if width < 60:
        assert columns == ["Δ JSR", "JSR", "refusals", "Δ RSR", "RSR", "refusals", "Δ utility", "utility"]
    assert {"Δ JSR", "JSR", "Δ RSR", "RSR", "Δ utility", "utility"} <= {*columns}
    assert text.count("-100.0*") == 3 * 2
    assert text.count("(12?)") == 2 * 7
    if width >= 40:
        assert max(map(cell_len, text.splitlines())) <= width


# --- what has no figure ----------------------------------------------------------------------------


def test_a_failed_row_says_so_on_its_line_and_in_full_below() -> None:
    short = printed(build([cell("vanilla"), failed("sdft")]))
    assert lines_of(short, "sdft") == [["failed:", "out", "of", "memory"]]
    why = "failed: CUDA ran out of memory while it tried to allocate 3.2 GiB; lower training.micro_batch_size"
    lines = printed(build([cell("vanilla"), cell("sdft", status=why)]), 80).splitlines()
    (row,) = [line for line in lines if re.match("sdft {3,}", line)]
    assert cell_len(row) <= 80
    assert row.endswith("…")
    assert f"sdft {why}" in " ".join(lines)


def test_a_rate_that_means_nothing_says_so_in_one_line() -> None:
    frame = build([answering("vanilla", "1111"), answering("sdft", "1000"), answering("lisa", "1111")])
    text = printed(frame, 80)
    assert lines_of(text, "sdft")[0] == [*["not", "meaningful"] * 2, "+0.0", "50.0", "31.3"]
    (row,) = [line for line in text.splitlines() if re.match("sdft  ", line)]
    vanilla = next(line for line in text.splitlines() if line.startswith("vanilla"))
    assert row.index("not meaningful") + len("not meaningful") == vanilla.index("25.0") + len("25.0")
    lonely = printed(build([answering("sdft", "1000")]), 80)  # without a column of differences before it
    assert lines_of(lonely, "sdft")[0][:4] == ["not", "meaningful"] * 2


def test_unjudged_are_shown_with_what_they_could_change() -> None:
    # 6 of 8 judged are safe, 2 are unjudged
    text = printed(build([cell("vanilla"), cell("sdft", rsr=outcome("11111100??"))]))
    assert "75.0 (2?)" in text
    assert "RSR if the unjudged answers were all harmful, or all safe: sdft 60.0–80.0" in text.splitlines()
    nothing = printed(build([cell("sdft", rsr=outcome("??"))]))
    assert "- (2?)" in nothing
    assert "RSR if the unjudged answers were all harmful, or all safe: sdft 0.0–100.0" in nothing.splitlines()
    assert "(2?): 2 answers could not be judged" in text


def test_what_was_not_measured_has_no_column() -> None:
    text = printed(build([cell("vanilla", utility=None), cell("sdft", utility=None)]))
    assert "utility" not in heads(text)[0]
    assert heads(text)[0].startswith("method Δ JSR JSR Δ RSR RSR")


@pytest.mark.parametrize(("safe", "column"), [(19, True), (18, False)])
def test_refusals_of_plain_requests_are_always_shown_where_safe_answers_may_be_rubbish(
    safe: int, column: bool
) -> None:
    # 17 of 20 refuse: with 19 safe ones, 10 points are worth a column that has little room
    cells = [refusing("vanilla", 20, 20), refusing("lookahead-virtual", safe, 17)]
    cells = [changed(one, jsr=made("1" * 8 + "0" * 8 + "?" * 10, prefill_tokens=3)) for one in cells]
    assert heads(printed(build(cells), 70))[0].endswith("RSR refusals Δ utility utility") is column


# --- blocks ----------------------------------------------------------------------------------------


def test_intervals_come_on_request_in_tables_of_their_own() -> None:
    frame = build([cell("vanilla", rsr=reference()), cell("sdft", rsr=against(3, 2))])
    plain, more = printed(frame, 80), printed(frame, 80, intervals=True)
    row = records(frame)[1]
    low, high = row["rsr_delta_low"], row["rsr_delta_high"]
    rate, least = f"{row['rsr_low']:.1f}–{row['rsr_high']:.1f}", f"{row['rsr_mde']:.1f}"
    assert "95 % intervals" in more.splitlines()
    assert any(
        [f"{low:+.1f}", "to", f"{high:+.1f}", least, rate] == line[-5:] for line in lines_of(more, "sdft")
    )
    assert rate not in plain
    assert f"{low:+.1f} to" not in plain
    assert more.startswith(plain[: plain.index("\n\nA single")])  # the first tables stay as they are
    assert "95 % intervals: harness leaderboard RUN --intervals, and in the files." in plain.splitlines()
    assert "--intervals" not in more
    assert "detectable: a true difference of this size would have got its * four times in five." in " ".join(
        more.split()
    )


def test_further_tasks_have_a_further_table() -> None:
    tasks = ("xstest", "hexphi_k1")
    cells = [
        cell(m, further=tuple(replace(reference(), task=task) for task in tasks)) for m in ("vanilla", "sdft")
    ]
    text = printed(build(cells), 80)
    assert heads(text)[1] == "method Δ xstest Δ hexphi_k1"
    assert lines_of(text, "sdft")[1] == ["+0.0", "50.0", "+0.0", "50.0"]


def test_a_papers_figures_have_a_further_table() -> None:
    paper = {("gsm8k", "sdft", "exact"): {"utility": 34.32, "jsr": 20.0}}
    text = printed(build([cell("vanilla"), cell("sdft")], paper), 80)
    assert heads(text)[1] == "method JSR vs paper paper utility vs paper paper"
    assert lines_of(text, "sdft")[1] == ["+5.0", "20.0", "+15.7", "34.3"]


def test_two_judges_have_a_table_each() -> None:
    text = printed(build([cell(m, judge=judge) for judge in ("a", "b") for m in ("vanilla", "sdft")]), 80)
    assert [line for line in text.splitlines() if "judged by" in line] == [
        "trained on gsm8k · judged by a",
        "trained on gsm8k · judged by b",
    ]
    assert len(heads(text)) == 2


def test_several_seeds_are_shown_by_their_means() -> None:
    cells = [
        cell(method, seed=seed, rsr=outcome("1110" if seed == 1 else "1010"))
        for seed in (1, 2)
        for method in ("vanilla", "sdft")
    ]
    text = printed(build(cells))
    assert SINGLE_SEED_LINE not in text
    assert "Means over 2 seeds; each seed is in leaderboard.csv." in text.splitlines()
    assert [row[:4] for row in lines_of(text, "sdft")] == [["+0.0", "25.0", "+0.0", "62.5"]]


# --- legend ----------------------------------------------------------------------------------------


def test_the_legend_explains_what_is_shown() -> None:
    notes = ["These figures are a toy's.", "[red]And this is no markup.[/red]"]
    plain = printed(build([cell("vanilla"), cell("sdft")]), notes=notes)
    assert SINGLE_SEED_LINE in plain.splitlines()
    assert set(notes) <= set(plain.splitlines())
    assert "Δ: points from vanilla on the same prompts." in plain.splitlines()
    star, alone = "* is a difference, counting all comparisons", "† is one only when taken alone"
    explained = {
        number: [
            words for words in (star, alone) if words in printed(build(five_comparisons()[:number]), 200)
        ]
        for number in (1, 2, 6)
    }
    assert explained == {1: [], 2: [star], 6: [alone]}  # no mark is explained that is not there
    assert "could not be judged" not in plain
    assert "Δ" not in printed(build([cell("sdft")]))  # nothing was compared
    assert "JSR (k = 3) on 4 · RSR on 4 · utility safe on 4" in plain


@pytest.mark.parametrize("seeds", [(42,), (1, 2)])
def test_the_legend_is_short(seeds: Sequence[int]) -> None:
    cells = [
        cell(method, seed=seed, rsr=flags)
        for seed in seeds
        for method, flags in (("seed", against(6, 0)), ("vanilla", reference()), ("sdft", against(9, 0)))
    ]
    lines = printed(build(cells), 80).splitlines()
    legend = lines[
        next(i for i, line in enumerate(lines) if line.startswith(("A single seed", "Means over"))) :
    ]
    assert len(legend) <= 6


def test_the_legend_says_what_is_compared_with_what() -> None:
    own = [elsewhere("seed"), elsewhere("mine")]
    alone = printed(build(own))
    assert "Δ: points from the base model on the same prompts." in alone.splitlines()
    assert "trained elsewhere, compared with the base model · judged by exact" in alone.splitlines()
    assert lines_of(alone, "mine")[0][:2] == ["+0.0", "25.0"]
    both = printed(build([cell("vanilla"), cell("sdft"), *own]), 140)
    assert (
        "Δ: points from vanilla on the same prompts; checkpoints trained elsewhere: against the base model."
    ) in both.splitlines()


# --- terminals -------------------------------------------------------------------------------------


def test_a_terminal_without_unicode_can_show_it() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    cells = [*widest("gsm8k-mini"), replace(widest("gsm8k-mini")[0], method="日本")]
    render(build(cells), console, title="Müller", notes=["né"], intervals=True)
    text = raw.getvalue().decode("ascii")
    assert "98.7-100.0" in text
    assert "M?ller" in text
    assert "lookah~irtual is lookahead-virtual" in text.splitlines()
    vanilla, japanese = (
        next(line for line in text.splitlines() if line.startswith(n)) for n in ("vanilla", "??")
    )
    assert vanilla.index("100.0") == japanese.index("100.0")
    render_verdict(build(cells), console)
    assert "Trained on gsm8k-mini" in raw.getvalue().decode("ascii").splitlines()


def test_wide_characters_keep_the_columns_straight() -> None:
    lines = printed(build([cell("vanilla"), cell("日本語")])).splitlines()
    rows = [line for line in lines if line.startswith(("vanilla", "日本語"))]
    assert len({cell_len(line[: line.rindex("50.0")]) for line in rows}) == 1


def test_colour_adds_to_the_mark_and_never_replaces_it() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard")
    render(build(widest("gsm8k-mini")), console, title="Title")
    assert re.search("\x1b\\[31m *-100.0\\*", file.getvalue())
    assert "\x1b" not in printed(build(widest("gsm8k-mini")))


# --- the verdict -----------------------------------------------------------------------------------


def said(cells: Sequence[CellResult], width: int = 500) -> list[str]:
    file = io.StringIO()
    render_verdict(build(cells), Console(file=file, width=width))
    return file.getvalue().splitlines()


def of_judge(judge: str, sdft: TaskOutcome, lisa: TaskOutcome) -> list[CellResult]:
    rows = {"seed": against(10, 0), "vanilla": reference(), "sdft": sdft, "lisa": lisa}
    return [cell(name, judge=judge, jsr=values) for name, values in rows.items()]


def test_the_verdict_is_two_sentences_a_train_task() -> None:
    lines = said(of_judge("exact", against(10, 0), reference()))
    assert lines[:3] == [
        "",
        "Trained on gsm8k",
        "Plain fine-tuning on gsm8k lowers JSR from 100.0 to 50.0 % and leaves utility at 50.0 %.",
    ]
    assert lines[3].startswith("sdft keeps the most safety at vanilla's utility: JSR +50.0 points")
    assert len(lines) == 4


def test_a_second_judge_speaks_where_it_names_another_method() -> None:
    first = of_judge("a", against(10, 0), reference())
    same = said([*first, *of_judge("b", against(9, 0), reference())])
    assert [line[:16] for line in same] == ["", "Trained on gsm8k", "Plain fine-tunin", "sdft keeps the m"]
    other = said([*first, *of_judge("b", reference(), against(10, 0))])
    assert other[1] == "Trained on gsm8k, judged by a"
    assert other[4].startswith("Judged by b: lisa keeps the most safety at vanilla's utility")
    assert len(other) == 5


def test_a_run_without_anything_to_compare_has_no_verdict() -> None:
    assert said([elsewhere("seed")]) == []


def test_runs_that_share_a_train_task_have_no_verdict_together() -> None:
    others = [cell(method, train_task="other") for method in ("vanilla", "sdft")]
    frame = build([*of_judge("exact", against(10, 0), reference()), *others])
    file = io.StringIO()
    runs = ["a", "a", "b", "b", "b", "b"]
    render_verdict(frame.assign(run=runs), Console(file=file, width=80))
    assert file.getvalue().splitlines()[1] == "Trained on other"
    assert "gsm8k" not in file.getvalue()


def test_methods_named_by_their_run_are_compared_with_its_own_vanilla() -> None:
    frame = build(of_judge("exact", against(10, 0), reference()))
    named = frame.assign(run="a", method=[f"{name} (a)" for name in frame["method"]])
    file = io.StringIO()
    render_verdict(named, Console(file=file, width=500))
    assert file.getvalue().splitlines() == said(of_judge("exact", against(10, 0), reference()))
    text = printed(named)
    assert lines_of(text, "base model (a)")
    assert text.index("base model (a)") < text.index("vanilla (a)") < text.index("sdft (a)")


def test_a_row_without_any_figure_has_its_status_once() -> None:
    status = "missing: utility, rsr, jsr (not answered)"
    frame = build([cell("vanilla"), cell("sdft", utility=None, rsr=None, jsr=None, status=status)])
    text = printed(frame)
    assert text.count(status) == 1
    assert lines_of(text, "sdft") == [status.split()]
