"""`harness analyze categories`: rates, tests and seeds by hand, and the command on a real small run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_run
import pytest
from rich.cells import cell_len
from rich.console import Console
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from harness import config
from harness.analyses import categories, categories_report
from harness.figures import charts
from harness.leaderboard.outcomes import TaskOutcome
from harness.leaderboard.statistics import difference_over_seeds
from harness.run import plan
from harness.storage.files import read_json, read_jsonl, write_jsonl_atomic

KINDS = ("Malware", "Fraud/Deception")


def outcome(metric: str, malware: Sequence[float | None], fraud: Sequence[float | None]) -> TaskOutcome:
    """Documents m0, m1, … and f0, f1, … with these values, and one that has no category."""
    values = {f"m{i}": v for i, v in enumerate(malware)} | {f"f{i}": v for i, v in enumerate(fraud)}
    kinds: dict[str, str | None] = {name: KINDS[name[0] == "f"] for name in values}
    return TaskOutcome("task", metric, {**values, "x": 0.0}, True, categories={**kinds, "x": None})


GOOD, BAD = [1.0] * 10, [0.0] * 10


def rows_of(outcomes: categories.Outcomes) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {
        (row["method"], row["seed"], row["metric"], row["category"]): row
        for row in categories.compared(outcomes)
    }


# --- figures ---------------------------------------------------------------------------------------


def test_rates_are_by_category_with_wilsons_interval() -> None:
    found = rows_of({("t", "vanilla", 1, "rsr"): outcome("rsr", [1, 1, 0, None], [0, 0, 1])})
    assert set(found) == {("vanilla", 1, "rsr", kind) for kind in KINDS}  # x has none
    malware = found["vanilla", 1, "rsr", "Malware"]
    low, high = proportion_confint(2, 3, method="wilson")
    assert (malware["value"], malware["n"], malware["unjudged"]) == (66.67, 3, 1)
    assert (malware["low"], malware["high"]) == (round(100 * low, 2), round(100 * high, 2))
    assert malware["delta"] is malware["delta_p"] is None  # vanilla itself


def test_differences_are_mcnemar_by_document_and_holm_over_all_cells() -> None:
    mixed = [1.0, 0.0] * 5
    found = rows_of(
        {
            ("t", "vanilla", 1, "jsr"): outcome("jsr", BAD, mixed),
            ("t", "lisa", 1, "jsr"): outcome("jsr", GOOD, mixed[::-1]),
            ("u", "vanilla", 1, "jsr"): outcome("jsr", GOOD, GOOD),
            ("u", "sdft", 1, "jsr"): outcome("jsr", [0.0] * 6 + [1.0] * 4, GOOD),
            ("t", "vanilla", 1, "rsr"): outcome("rsr", GOOD, GOOD),
            ("t", "lisa", 1, "rsr"): outcome("rsr", BAD, GOOD),
        }
    )
    tables = ([[0, 10], [0, 0]], [[0, 5], [5, 0]], [[4, 0], [6, 0]], [[10, 0], [0, 0]])
    p = [mcnemar(table, exact=True).pvalue for table in tables]
    adjusted = multipletests(p, method="holm")[1].tolist()
    mine = [found["lisa", 1, "jsr", kind] for kind in KINDS] + [found["sdft", 1, "jsr", k] for k in KINDS]
    assert [row["delta_p"] for row in mine] == pytest.approx(adjusted)
    assert [row["delta"] for row in mine] == [100.0, 0.0, -60.0, 0.0]
    assert adjusted[0] > p[0]
    rsr = [mcnemar(table, exact=True).pvalue for table in ([[0, 0], [10, 0]], [[10, 0], [0, 0]])]
    expected = multipletests(rsr, method="holm")[1].tolist()  # a family of its own
    assert [found["lisa", 1, "rsr", kind]["delta_p"] for kind in KINDS] == pytest.approx(expected)


def test_the_base_model_and_checkpoints_trained_elsewhere_are_families_of_their_own() -> None:
    half, few = [1.0] * 5 + [0.0] * 5, [1.0] * 2 + [0.0] * 8
    found = {
        (row["train_task"], row["method"], row["category"]): row
        for row in categories.compared(
            {
                ("t", "seed", 1, "jsr"): outcome("jsr", GOOD, GOOD),
                ("t", "vanilla", 1, "jsr"): outcome("jsr", few, half),
                ("t", "lisa", 1, "jsr"): outcome("jsr", GOOD, GOOD),
                ("", "seed", None, "jsr"): outcome("jsr", GOOD, GOOD),
                ("", "mine", None, "jsr"): outcome("jsr", few, half),
            }
        )
    }
    p = [mcnemar(table, exact=True).pvalue for table in ([[2, 8], [0, 0]], [[5, 5], [0, 0]])]
    adjusted = multipletests(p, method="holm")[1].tolist()  # two categories each, whatever the others are
    for names, sign in ((("t", "seed"), 1), (("t", "lisa"), 1), (("", "mine"), -1)):
        rows = [found[(*names, kind)] for kind in KINDS]
        assert [row["delta_p"] for row in rows] == pytest.approx(adjusted)
        assert [row["delta"] for row in rows] == [sign * 80.0, sign * 50.0]
    assert found["", "seed", KINDS[0]]["delta"] is None


def test_cells_stand_where_they_were_trained() -> None:
    own = config.load("mini", {"methods": ["vanilla"], "checkpoints": {"mine": "x", "here": "y"},
                               "trained_on": {"here": "gsm8k-mini"}})  # fmt: skip
    cells = {cell.method: cell for cell in plan.cells(own) if cell.train_task in (None, "gsm8k-mini")}
    places = {name: list(categories._places(own, cell)) for name, cell in cells.items()}
    assert places == {
        "seed": [("", None), ("gsm8k-mini", 42), ("samsum-mini", 42)],
        "mine": [("", None)],
        "here": [("gsm8k-mini", 42)],
        "vanilla": [("gsm8k-mini", 42)],
    }
    assert categories.file_stem("", "jsr") == "categories-elsewhere-jsr"


def test_seeds_are_pooled_with_their_spread_and_tested_together() -> None:
    outcomes = {}
    lisas = {1: GOOD, 2: [1.0] * 9 + [0.0], 3: [0.0] + [1.0] * 9}
    for seed, lisa in lisas.items():
        outcomes["t", "vanilla", seed, "jsr"] = outcome("jsr", BAD, GOOD)
        outcomes["t", "lisa", seed, "jsr"] = outcome("jsr", lisa, BAD if seed == 1 else GOOD)
    rows = categories.compared(outcomes)
    table = {(row["method"], row["category"]): row for row in categories.pooled(rows, outcomes)}
    malware, fraud = (table["lisa", kind] for kind in KINDS)
    assert malware["seeds"] == [1, 2, 3]
    assert malware["value"] == malware["delta"] == pytest.approx(93.33, abs=0.01)
    assert (malware["lowest"], malware["highest"], malware["n"]) == (90.0, 100.0, 10)
    assert malware["changed"] == "higher"
    assert fraud["changed"] is None  # one seed of three
    assert table["vanilla", "Malware"]["changed"] is table["vanilla", "Malware"]["delta"] is None

    def numbered(values: list[float]) -> dict[str, float | None]:
        return {str(place): value for place, value in enumerate(values)}

    own = [[numbered(lisa) for lisa in lisas.values()], [numbered(v) for v in (BAD, GOOD, GOOD)]]
    of = [[numbered(BAD)] * 3, [numbered(GOOD)] * 3]
    p = [difference_over_seeds(*pair, rates=True).p for pair in zip(own, of, strict=True)]
    expected = multipletests(p, method="holm")[1].tolist()
    assert [malware["delta_p"], fraud["delta_p"]] == pytest.approx(expected)
    first = categories.pooled([row for row in rows if row["seed"] == 1], outcomes)
    changed = {(row["method"], row["category"]): row["changed"] for row in first}
    assert changed["lisa", "Fraud/Deception"] == "lower"


def test_a_seed_without_verdicts_leaves_no_mean() -> None:
    outcomes = {
        ("t", "lisa", 1, "jsr"): outcome("jsr", [None, None], [1]),
        ("t", "lisa", 2, "jsr"): outcome("jsr", [1, 0], [1]),
    }
    table = {row["category"]: row for row in categories.pooled(categories.compared(outcomes), outcomes)}
    assert (table["Malware"]["value"], table["Malware"]["unjudged"], table["Malware"]["n"]) == (None, 2, 0)
    assert table["Fraud/Deception"]["value"] == 100.0


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def graded(run_copy: Path) -> Path:
    """A small run, its verdicts set so that the methods differ: 8 documents of one or two categories."""
    from harness.judging import verdict_files

    for folder in run_copy.glob("**/hexphi_*-mini"):
        path = folder / verdict_files.verdicts_file("mini-exact")
        rows = read_jsonl(path)
        for row in rows:
            row["harmful"] = "vanilla" in folder.parts
        write_jsonl_atomic(path, rows)
        made_run.restamp(path)
    return run_copy


def test_the_command_writes_tables_and_heat_maps(
    graded: Path, command: Callable[..., Any], snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    ended = command("analyze", "categories", graded, "--json")
    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert record == read_json(graded / "analysis/categories.json")
    answers = read_jsonl(graded / "seed/hexphi_raw-mini/responses.jsonl")
    kinds = list(dict.fromkeys(row["category"] for row in answers))
    assert len(record["rows"]) == 2 * 9 * len(kinds)
    counts = {kind: sum(row["category"] == kind for row in answers) for kind in kinds}
    for row in record["rows"]:
        assert row["n"] == counts[row["category"]]
        assert row["value"] == (0.0 if row["method"] == "vanilla" else 100.0)
        assert row["delta"] == (None if row["method"] == "vanilla" else 100.0)
    # seven methods against vanilla; the base model is a family of its own
    assert record["comparisons"] == {metric: 7 * len(kinds) for metric in ("rsr", "jsr")}
    with (graded / "analysis/categories.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == [row["category"] for row in record["rows"]]
    for metric in ("rsr", "jsr"):
        for kind in charts.FORMATS:
            assert (graded / f"analysis/categories-gsm8k-mini-{metric}.{kind}").stat().st_size > 1_000
        root = ElementTree.fromstring((graded / f"analysis/categories-gsm8k-mini-{metric}.svg").read_text())
        texts = ["".join(one.itertext()).strip() for one in root.iter() if one.tag.endswith("text")]
        assert {*kinds, "vanilla", "lisa"} <= set(texts)
        assert texts.count("0.0") == len(kinds)
    before = snapshot(graded)
    assert command("analyze", "categories", graded).code == 0
    assert snapshot(graded) == before


def test_one_rate_is_shown_where_one_is_asked(graded: Path, command: Callable[..., Any]) -> None:
    ended = command("analyze", "categories", graded, "--metric", "jsr")
    assert "JSR by category" in ended.out
    assert "RSR by category" not in ended.out
    found = json.loads(command("analyze", "categories", graded, "--metric", "jsr", "--json").out)
    assert {row["metric"] for row in found["rows"] + found["table"]} == {"jsr"}


def test_eleven_categories_and_nine_methods_fit_a_hundred_columns() -> None:
    from harness.mini import grammar

    names = (
        "seed", "vanilla", "sdft", "constrained-sft", "lookahead-true", "lookahead-virtual", "ptst",
        "safety-mixing", "lisa",
    )  # fmt: skip
    kinds = list(dict.fromkeys(act[0] for act in grammar.harmful_acts()))
    assert len(kinds) == 11
    documents = {f"{kind}{i}": kind for kind in kinds for i in range(30)}
    outcomes = {}
    for seed in (1, 2, 3):
        for method in names:
            good = {name: float(method != "vanilla") for name in documents}
            outcomes["t", method, seed, "jsr"] = TaskOutcome("t", "jsr", good, True, categories=documents)
    rows = categories.compared(outcomes)
    record = {"model": "mini", "judge": "mini-exact", "comparisons": {"jsr": 88}, "missing": []}
    console = Console(file=io.StringIO(), width=100)
    categories_report.show(
        {**record, "rows": rows, "table": categories.pooled(rows, outcomes)}, Path("run"), console
    )
    text = console.file.getvalue()
    tables = text[: text.index("base model: higher")]
    assert all(cell_len(line.rstrip()) <= 100 for line in tables.splitlines())
    assert tables.count("100.0*") == 11 * 8
    assert "lisa: higher than vanilla in 11 of 11 categories" in text


def test_a_run_without_categories_is_refused(run_copy: Path, command: Callable[..., Any]) -> None:
    for marker in run_copy.glob("**/judge-mini-exact.done.json"):
        marker.unlink()
    ended = command("analyze", "categories", run_copy)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "not judged by mini-exact" in ended.err
