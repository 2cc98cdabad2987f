"""leaderboard.tex: its structure, its ranks by hand, and names that would break out; where there is a
pdflatex, that it fits a page of ``article``."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import changed, result

from harness.contracts import UsageError
from harness.leaderboard.build import build
from harness.leaderboard.latex import LINES, document, escaped
from harness.leaderboard.outcomes import CellResult, TaskOutcome
from harness.leaderboard.tables import SINGLE_SEED_LINE, UNTRAINED
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


Cells = dict[str, list[str]]  # method -> its cells, a difference behind its figure; "" -> intervals


def tables(frame: pd.DataFrame, **more: Any) -> list[dict[str, Cells]]:
    """Each table's blocks by their headings, after a check of the structure."""
    text = document(frame, title="T", **more)
    assert balanced(text)
    bodies = re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", text, re.DOTALL)
    assert len(re.findall(r"\\begin\{tabular\}", text)) == len(bodies)
    return [blocks(body) for body in bodies]


def blocks(body: str) -> dict[str, Cells]:
    columns = re.search(r"\\begin\{tabular\}\{(?:l|p\{11em\})((?:r@\{\}l)+)\}", body)
    assert columns
    metrics = columns[1].count("r@{}l")
    head, _, rest = body.partition("\\midrule\n")
    assert len(re.findall(r"\\multicolumn\{2\}\{c\}", head)) == metrics
    found: dict[str, Cells] = {}
    for line in rest.split("\n\\bottomrule")[0].replace("\\midrule\n", "").split("\n"):
        assert line.endswith(" \\\\")
        line = line.removesuffix(" \\\\")
        if heading := re.fullmatch(r"\\multicolumn\{(\d+)\}\{l\}\{\\emph\{(.*)\}\}", line):
            assert int(heading[1]) == 1 + 2 * metrics
            assert heading[2] not in found
            block = found.setdefault(heading[2], {})
            continue
        name, *cells = (one.strip() for one in re.split(r"(?<!\\)&", line))
        spanned = [re.fullmatch(r"\\multicolumn\{2\}\{c\}\{(.*)\}", cell) for cell in cells]
        if all(spanned):
            block.setdefault("", []).extend(one[1] for one in spanned if one)
            continue
        assert len(cells) == 2 * metrics
        assert name not in block
        block[name] = [f"{a} {b}".strip() for a, b in zip(cells[::2], cells[1::2], strict=True)]
    return found


def only(frame: pd.DataFrame, **more: Any) -> list[Cells]:
    """The blocks of the only table."""
    (table,) = tables(frame, **more)
    return list(table.values())


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
            changed(cell("lisa", 80, 40, 30), rsr=outcome(80, unjudged=2)),
        ]
    )


def test_best_is_bold_second_underlined_and_the_base_model_neither(frame: pd.DataFrame) -> None:
    (table,) = only(frame)
    marks = {
        method: [re.match(r"\\(textbf|underline)", one) for one in cells] for method, cells in table.items()
    }
    shown = {method: [mark and mark[1] for mark in found] for method, found in marks.items()}
    assert shown == {
        "base model": [None, None, None],
        "vanilla": [None, None, "textbf"],  # two are best: neither is second, nor is the next
        "sdft": ["textbf", "underline", None],
        "lookahead-true": ["textbf", "textbf", "textbf"],
        "lisa": [None, None, None],
    }


def test_two_may_be_second() -> None:
    methods = {"vanilla": 90, "sdft": 80, "lisa": 80, "ptst": 70}
    (table,) = only(build([cell(name, safe, 50, 50) for name, safe in methods.items()]))
    marked = [name for name, cells in table.items() if cells[0].startswith("\\underline")]
    assert marked == ["sdft", "lisa"]


def test_one_method_alone_is_no_best() -> None:
    (table,) = only(build([cell("seed", 100, 99, 10), cell("vanilla", 90, 20, 60)]))
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
    (table,) = only(changed)
    assert table["sdft"][1] == rf"\underline{{50.00}} \,{{\scriptsize$+30.00{shown}$}}"
    text = document(changed, title="T")
    star = "{*}: a difference, counting all comparisons of its family (p \\textless{} 0.05 after Holm)."
    alone = "\\dag{}: a difference taken alone (its interval excludes 0), but not counting its family."
    assert [star in text, alone in text] == ["*" in shown, "dagger" in shown]


def test_differences_are_small_signed_and_starred(frame: pd.DataFrame) -> None:
    (table,) = only(frame)
    assert table["sdft"][1] == r"\underline{50.00} \,{\scriptsize$+30.00^{*}$}"
    assert table["lookahead-true"][2] == r"\textbf{60.00} \,{\scriptsize$+0.00$}"
    assert table["lisa"][2] == r"30.00 \,{\scriptsize$-30.00^{*}$}"
    assert "a difference, counting all comparisons of its family" in document(frame, title="T")
    assert table["vanilla"][1] == "20.00"
    assert table["lisa"][0].startswith(r"80.00\textsuperscript{(2?)} \,")


def test_intervals_stand_below_where_wanted(frame: pd.DataFrame) -> None:
    (table,) = only(frame, intervals=True)
    low, high = frame.loc[frame["method"] == "seed", ["rsr_low", "rsr_high"]].iloc[0]
    assert table[""][0] == f"{{\\scriptsize [{low:.2f}, {high:.2f}]}}"
    assert len(table[""]) == 3 * len(frame)
    assert "" not in only(frame)[0]


def test_several_train_tasks_are_averaged_as_in_the_paper() -> None:
    cells = [
        cell(method, rsr, rsr - 10, skill, train_task=task)
        for task, offset in (("gsm8k", 0), ("samsum", -20))
        for method, rsr, skill in (("vanilla", 80 + offset, 40), ("sdft", 90 + offset, 30 - offset))
    ]
    gsm8k, samsum, average = only(build(cells))
    assert list(tables(build(cells))[0]) == ["gsm8k", "samsum", "Average"]
    assert gsm8k["sdft"][0] == r"\textbf{90.00} \,{\scriptsize$+10.00^{*}$}"
    assert samsum["sdft"][0] == r"\textbf{70.00} \,{\scriptsize$+10.00^{*}$}"
    assert average["sdft"] == [
        r"\textbf{80.00} \,{\scriptsize$+10.00$}",
        r"\textbf{70.00} \,{\scriptsize$+10.00$}",
        r"40.00 \,{\scriptsize$+0.00$}",
    ]
    missing = build([*cells[:-1], cell("sdft", 1, 1, 1, train_task="samsum", status="failed: x")])
    _, samsum, average = only(missing)
    assert samsum["sdft"] == average["sdft"] == ["--"] * 3
    assert "sdft on samsum failed: x." in document(missing, title="T")


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
    assert list(table) == ["gsm8k", "samsum", "Average", "trained elsewhere"]
    assert table["Average"]["vanilla"][0] == "80.00"
    assert [name for name, rows in table.items() if "mine" in rows] == ["trained elsewhere"]
    assert table["trained elsewhere"]["mine"][0] == r"45.00 \,{\scriptsize$-50.00^{*}$}"
    assert table["trained elsewhere"]["bad"] == ["--"] * 3
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


def two_tasks(*, intervals: bool = False, names: tuple[str, ...] = ("sdft", "lookahead-virtual")) -> str:
    """As wide as figures get: three digits, differences with marks, unjudged answers."""
    cells = [
        changed(
            cell(name, safe, 100 - safe, 50, train_task=task, further=(extra,)),
            rsr=outcome(safe, unjudged=12),
        )
        for task in ("gsm8k", "samsum")
        for extra in (outcome(70, task="xstest_refusals"),)
        for name, safe in (("seed", 100), ("vanilla", 0), *((name, 100) for name in names))
    ]
    return document(build(cells), title="T", notes=["A note of some length. " * 9], intervals=intervals)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
@pytest.mark.parametrize("intervals", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ("sdft", "constrained-sft", "lookahead-true", "lookahead-virtual", "ptst", "safety-mixing", "lisa"),
        ("a_name/of_a-checkpoint.that_nobody-would_type-twice_1", "x" * 60, SPECIAL + "{" * 40),
    ],
)
def test_two_train_tasks_fit_a_page_of_article(
    tmp_path: Path, names: tuple[str, ...], intervals: bool
) -> None:
    (tmp_path / "t.tex").write_text(two_tasks(names=names, intervals=intervals), encoding="utf-8")
    (tmp_path / "m.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage[T1]{fontenc}"
        "\\begin{document}\\input{t}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "m.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
    log = (tmp_path / "m.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "Float too large" not in log


def test_columns_choose_the_metrics() -> None:
    extra = tuple(outcome(70, task=f"task-{i}") for i in range(2))
    frame = build([cell(name, 90, 50, 40, further=extra) for name in ("vanilla", "sdft")])
    (table,) = tables(frame, columns=["task-1", "jsr", "jsr"])
    assert table["gsm8k"]["vanilla"] == ["70.00", "50.00"]
    assert len(tables(frame, columns=["rsr", "jsr", "utility", "task-0"])) == 2
    with pytest.raises(UsageError, match="--columns asr: there are rsr, jsr, utility, task-0, task-1"):
        document(frame, title="T", columns=["jsr", "asr"])


def test_what_is_longer_than_a_page_goes_on_in_another_table() -> None:
    methods = [f"m{i}" for i in range(LINES // 2 - 1)]  # a block with them takes as many lines and a heading
    cells = [cell(m, 90, 50, 40, train_task=task) for task in ("a", "b", "c") for m in methods]
    frame = build(cells)
    assert [list(table) for table in tables(frame)] == [["a", "b"], ["c", "Average"]]
    text = document(frame, title="T")
    assert text.count("(continued below)") == text.count(SINGLE_SEED_LINE) == 1
    more = build([*cells, cell("one more", 90, 50, 40, train_task="a")])
    assert list(tables(more)[0]) == ["a"]
    many = tables(build([cell(f"m{i}", 90, 50, 40) for i in range(2 * LINES)]))
    assert [len(table["gsm8k"]) for table in many] == [LINES - 1, LINES - 1, 2]


def test_of_several_seeds_the_means_are_shown() -> None:
    cells = [cell(m, 80 + 2 * s, 50, 50, seed=s) for m in ("vanilla", "sdft") for s in (1, 2, 3)]
    (table,) = only(build(cells))
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
    (table,) = only(build(cells), notes=[name])
    assert len(table) == 2
