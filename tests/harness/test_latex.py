"""leaderboard.tex without a TeX at hand: its structure, its ranks by hand, and names that would break out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import result

from harness.latex import document, escaped
from harness.leaderboard import CellResult, TaskOutcome, build
from harness.tables import SINGLE_SEED_LINE, UNTRAINED
from harness.text import one_line

SPECIAL = "\\{}$&#_%^~<>|\"[]*-`'?!,Δ·–"


def outcome(safe: int, of: int = 100, *, unjudged: int = 0, task: str = "raw") -> TaskOutcome:
    values: dict[str, float | None] = {f"d{i}": float(i < safe) for i in range(of)}
    values |= {f"u{i}": None for i in range(unjudged)}
    return TaskOutcome(task, "safe", values, True, prefill_tokens=3 if task == "pre" else None)


def cell(method: str, rsr: int, jsr: int, skill: int, **more: Any) -> CellResult:
    defaults: dict[str, Any] = {
        "utility": outcome(skill, task="skill"),
        "rsr": outcome(rsr),
        "jsr": outcome(jsr, task="pre"),
    }
    return result(method, **(defaults | more))


def tables(frame: pd.DataFrame, **more: Any) -> list[dict[str, list[str]]]:
    """Each table's cells by method (the interval rows under ""), after a check of the structure."""
    text = document(frame, title="T", **more)
    assert balanced(text)
    found = []
    for body in re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", text, re.DOTALL):
        columns = re.search(r"\\begin\{tabular\}\{l(r+)\}", body)
        assert columns
        lines = re.search(r"\\midrule\n(.*)\n\\bottomrule", body, re.DOTALL)
        assert lines
        rows: dict[str, list[str]] = {}
        for line in lines[1].split("\n"):
            assert line.endswith(" \\\\")
            name, *cells = re.split(r"(?<!\\)&", line.removesuffix(" \\\\"))
            assert len(cells) == len(columns[1])
            rows.setdefault(name.strip(), []).extend(one.strip() for one in cells)
        head = body.split("\\midrule")[0]
        spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d+)\}", head)]
        assert sum(spans) == len(columns[1])
        rules = re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", head)
        assert [int(last) - int(first) + 1 for first, last in rules] == spans
        assert [int(rules[0][0]), int(rules[-1][1])] == [2, 1 + len(columns[1])]
        found.append(rows)
    assert len(re.findall(r"\\begin\{tabular\}", text)) == len(found)
    return found


def balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def plain(text: str) -> str:
    """What TeX would print of an escaped text; fails where something is a command of its own."""
    names = {
        "textbackslash": "\\",
        "textasciicircum": "^",
        "textasciitilde": "~",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
        "textquotedbl": '"',
        "textperiodcentered": "·",
    }
    printed = ""
    token = re.compile(
        r"\\(?P<name>[a-z]+)\{\}|\\(?P<sign>[{}$&#_%])|(?P<delta>\$\\Delta\$)"
        r"|\{(?P<single>[\[\]*\-`'?!,])\}|(?P<dash>--)|(?P<plain>[^\\{}$&#_%^~<>|\"\[\]*`'?!])"
    )
    place = 0
    while place < len(text):
        match = token.match(text, place)
        assert match, text[place:]
        name = match["name"]
        printed += names[name] if name else match["sign"] or match["single"] or match["plain"] or ""
        printed += "Δ" if match["delta"] else "–" if match["dash"] else ""
        place = match.end()
    return printed


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return build(
        [
            cell("seed", 100, 99, 10),
            cell("vanilla", 90, 20, 60),
            cell("sdft", 95, 50, 40),
            cell("lookahead-true", 95, 60, 60),
            replace(cell("lisa", 80, 40, 30), rsr=outcome(80, unjudged=2)),
        ]
    )


def test_best_is_bold_second_underlined_and_the_seed_model_neither(frame: pd.DataFrame) -> None:
    (table,) = tables(frame)
    marks = {
        method: [re.match(r"\\(textbf|underline)", one) for one in cells] for method, cells in table.items()
    }
    shown = {method: [mark and mark[1] for mark in found] for method, found in marks.items()}
    assert shown == {
        "seed": [None, None, None],
        "vanilla": [None, None, "textbf"],  # two are best: neither is second, nor is the next
        "sdft": ["textbf", "underline", None],
        "lookahead-true": ["textbf", "textbf", "textbf"],
        "lisa": [None, None, None],
    }


def test_two_may_be_second() -> None:
    methods = {"vanilla": 90, "sdft": 80, "lisa": 80, "ptst": 70}
    (table,) = tables(build([cell(name, safe, 50, 50) for name, safe in methods.items()]))
    marked = [name for name, cells in table.items() if cells[0].startswith("\\underline")]
    assert marked == ["sdft", "lisa"]


def test_one_method_alone_is_no_best() -> None:
    (table,) = tables(build([cell("seed", 100, 99, 10), cell("vanilla", 90, 20, 60)]))
    assert table["vanilla"] == ["90.00", "20.00", "60.00"]


@pytest.mark.parametrize(
    ("p", "low", "shown"),
    [
        (0.049, 0.01, "^{*}"),
        (0.049, -0.01, "^{*}"),
        (0.05, 0.01, "^{\\dagger}"),
        (0.05, -0.01, ""),
    ],
)
def test_the_star_is_holms_and_the_dagger_the_intervals(
    frame: pd.DataFrame, p: float, low: float, shown: str
) -> None:
    ends = {"p": 1.0, "delta_low": -99.0, "delta_high": 99.0}
    changed = frame.assign(**{f"{m}_{end}": x for m in ("rsr", "jsr", "utility") for end, x in ends.items()})
    changed.loc[frame["method"] == "sdft", ["jsr_p", "jsr_delta_low"]] = [p, low]
    (table,) = tables(changed)
    assert table["sdft"][1] == rf"\underline{{50.00}}\,{{\scriptsize$+30.00{shown}$}}"
    text = document(changed, title="T")
    star = "{*}: a difference, counting all comparisons of its family (p \\textless{} 0.05 after Holm)."
    alone = "\\dag{}: a difference taken alone (its interval excludes 0), but not counting its family."
    assert [star in text, alone in text] == ["*" in shown, "dagger" in shown]


def test_differences_are_small_signed_and_starred(frame: pd.DataFrame) -> None:
    (table,) = tables(frame)
    assert table["sdft"][1] == r"\underline{50.00}\,{\scriptsize$+30.00^{*}$}"
    assert table["lookahead-true"][2] == r"\textbf{60.00}\,{\scriptsize$+0.00$}"
    assert table["lisa"][2] == r"30.00\,{\scriptsize$-30.00^{*}$}"
    assert "a difference, counting all comparisons of its family" in document(frame, title="T")
    assert table["vanilla"][1] == "20.00"
    assert table["lisa"][0].startswith(r"80.00\textsuperscript{(2?)}\,")


def test_intervals_stand_below_where_wanted(frame: pd.DataFrame) -> None:
    (table,) = tables(frame, intervals=True)
    low, high = frame.loc[frame["method"] == "seed", ["rsr_low", "rsr_high"]].iloc[0]
    assert table[""][0] == f"{{\\scriptsize [{low:.2f}, {high:.2f}]}}"
    assert len(table[""]) == 3 * len(frame)
    assert "" not in tables(frame)[0]


def test_several_train_tasks_are_averaged_as_in_the_paper() -> None:
    cells = [
        cell(method, rsr, rsr - 10, skill, train_task=task)
        for task, offset in (("gsm8k", 0), ("samsum", -20))
        for method, rsr, skill in (("vanilla", 80 + offset, 40), ("sdft", 90 + offset, 30 - offset))
    ]
    (table,) = tables(build(cells))
    assert len(table["sdft"]) == 9
    assert table["sdft"][6:] == [
        r"\textbf{80.00}\,{\scriptsize$+10.00$}",
        r"\textbf{70.00}\,{\scriptsize$+10.00$}",
        r"\textbf{40.00}\,{\scriptsize$+0.00$}",
    ]
    missing = [*cells[:-1], cell("sdft", 1, 1, 1, train_task="samsum", status="failed: x")]
    (table,) = tables(build(missing))
    assert table["sdft"][3:] == ["--"] * 6
    assert "sdft on samsum failed: x." in document(build(missing), title="T")


def test_checkpoints_trained_elsewhere_stand_beside_the_train_tasks_and_in_no_average() -> None:
    cells = [
        cell(method, rsr, 50, 50, train_task=task)
        for task in ("gsm8k", "samsum")
        for method, rsr in (("seed", 95), ("vanilla", 80))
    ]
    own = {"train_task": UNTRAINED, "seed": None}
    cells += [
        cell("seed", 95, 50, 50, **own),
        cell("mine", 45, 50, 50, **own),
        cell("bad", 1, 1, 1, **own, status="failed: x"),
    ]
    frame = build(cells)
    (table,) = tables(frame)
    text = document(frame, title="T")
    assert "\\multicolumn{3}{c}{Average} & \\multicolumn{3}{c}{trained elsewhere}" in text
    assert table["vanilla"][6] == "80.00"
    assert table["vanilla"][9:] == ["--"] * 3
    assert table["mine"][:9] == ["--"] * 9
    assert table["mine"][9] == r"45.00\,{\scriptsize$-50.00^{*}$}"
    assert "bad failed: x." in text
    assert "safe (trained elsewhere)" in text
    assert "(of those trained elsewhere: against the base model)." in text


def test_each_model_and_judge_and_further_task_has_its_place() -> None:
    extra = tuple(outcome(70, task=f"task-{i}") for i in range(4))
    cells = [
        cell(method, 90, 50, 50, model=model, judge=judge, further=extra)
        for model in ("a", "b")
        for judge in ("x", "y")
        for method in ("vanilla", "sdft")
    ]
    text = document(build(cells), title="T", notes=["A 100 % note & more"])
    assert text.count("\\begin{table*}") == 2 * 2 * 3  # the standard one, three further tasks, one more
    assert text.count("Model: b.") == text.count("Judged by y.") == 6
    assert "A 100 \\% note \\& more" in text
    assert SINGLE_SEED_LINE in text


def test_of_several_seeds_the_means_are_shown() -> None:
    cells = [cell(m, 80 + 2 * s, 50, 50, seed=s) for m in ("vanilla", "sdft") for s in (1, 2, 3)]
    (table,) = tables(build(cells))
    assert "84.00" in table["sdft"][0]
    assert SINGLE_SEED_LINE not in document(build(cells), title="T")


@given(st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(codec="utf-8")), max_size=30))
@settings(max_examples=300, deadline=None)
def test_a_name_is_text_whatever_it_holds(name: str) -> None:
    text = escaped(name)
    assert balanced(text)
    assert plain(text) == one_line(name)
    assert "\n" not in text


@given(st.text(st.one_of(st.sampled_from(SPECIAL), st.characters(codec="utf-8")), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_hostile_names_leave_the_structure_whole(name: str) -> None:
    cells = [cell(m, 90, 50, 50, train_task=name, judge=name, model=name) for m in ("vanilla", f"x{name}")]
    (table,) = tables(build(cells), notes=[name])
    assert len(table) == 2
