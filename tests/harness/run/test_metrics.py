"""One more entry in the list of headline metrics is one more column wherever figures are shown; and the list
as it is gives the committed leaderboard, byte for byte."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import made_run
import pytest
from rich.console import Console
from statsmodels.stats.proportion import proportion_confint

from harness.leaderboard import gate, latex, markdown, show, tables
from harness.leaderboard.conditions import Condition
from harness.leaderboard.statistics import rate
from harness.report import model_card, page, plots
from harness.report import tables as report_tables
from harness.run import metrics, plan, run_folder
from harness.run.metrics import Metric
from harness.storage.files import file_hash, read_json, read_jsonl, write_json_atomic

BY_RULE = Metric(
    "helped",
    "Helped",
    "helpfulness",
    task=lambda config: "overrefusal-mini",
    measure="exact_match",
    about="% of harmless requests that are answered",
)
JUDGED = Metric(
    "osr", "OSR", "opened safe rate", task=lambda config: "hexphi_refusal_prefix-mini", judged=True
)
CELL = "gsm8k-mini/sdft/seed-42"
RESULTS = Path(__file__).parents[3] / "results" / "mini"


def describe(folder: Path) -> None:
    """task.json beside a task's answers, as a run's stage leaves it."""
    rows = read_jsonl(folder / "responses.jsonl")
    about = {"source": "generated", "version": "1", "documents": len(rows), "sha256": "0" * 64}
    write_json_atomic(folder / "task.json", about)
    marker = read_json(folder / "respond.done.json")
    size = (folder / "task.json").stat().st_size
    marker["outputs"]["task.json"] = {"bytes": size, "sha256": file_hash(folder / "task.json")}
    write_json_atomic(folder / "respond.done.json", marker)
    made_run.restamp(folder / "responses.jsonl")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the name of a metric, a run that was made with it in the list."""
    made = {}
    for metric in (BY_RULE, JUDGED):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "METRICS", [*metrics.METRICS, metric])
            folder = tmp_path_factory.mktemp(metric.name) / "run"
            made[metric.name] = made_run.make(
                folder, methods=("seed", "vanilla", "sdft"), judges=("mini-exact",)
            )
        for marker in folder.rglob("respond.done.json"):
            describe(marker.parent)
        for record in folder.rglob("training.json"):
            describe_training(record.parent)
    return made


@pytest.fixture(params=[BY_RULE, JUDGED], ids=["by rule", "judged"])
def added(
    request: pytest.FixtureRequest, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Metric, Path]:
    """A metric that is one entry more in the list, and its run."""
    monkeypatch.setattr(metrics, "METRICS", [*metrics.METRICS, request.param])
    return request.param, runs[request.param.name]


def describe_training(folder: Path) -> None:
    """How many examples it was, as a run's stage records it."""
    training = read_json(folder / "training.json")
    write_json_atomic(folder / "training.json", training | {"examples": 32})
    made_run.restamp(folder / "training.json")


def expected(metric: Metric, run: Path) -> float:
    """The figure of sdft in percent, from its rows once more."""
    folder = run / CELL / metric.task(run_folder.stored_config(run))  # type: ignore[misc]
    if metric.judged:
        verdicts = read_jsonl(folder / "verdicts.mini-exact.jsonl")
        found = rate(None if row["harmful"] is None else not row["harmful"] for row in verdicts)
    else:
        rows = read_jsonl(folder / "responses.jsonl")
        found = rate(row["metrics"][metric.measure] for row in rows)
    assert found.value is not None
    return round(100 * found.value, 2)


def test_checkpoints_answer_its_task_and_it_is_no_further_one(added: Any) -> None:
    metric, run = added
    config = run_folder.stored_config(run)
    task = metric.task(config)
    assert all(task in cell.tasks for cell in plan.cells(config))
    named = {"safety_tasks": (task,)} if metric.judged else {"utility_tasks": (task,)}
    assert plan.further(config.model_copy(update=named)) == ()


def test_files_have_its_columns_in_their_order(added: Any) -> None:
    metric, run = added
    beside = ["_unjudged", "_refusals"] if metric.judged else []
    names = [name for name in tables.read(run).columns if name.partition("_")[0] == metric.name]
    ends = ["", "_low", "_high", "_n", *beside, "_delta", "_delta_low", "_delta_high", "_p", "_mde", "_paper"]
    assert names == [f"{metric.name}{end}" for end in ends]
    head = (run / "leaderboard.csv").read_text().splitlines()[0].split(",")
    assert [name for name in head if name in names] == names
    assert head.index(metric.name) == head.index("jsr_k") + 1  # behind what was there before
    row = next(row for row in tables.record(run)["rows"] if row["method"] == "sdft")
    assert row[metric.name] == expected(metric, run)
    assert row[f"{metric.name}_n"] + row.get(f"{metric.name}_unjudged", 0) == 60
    assert row[f"{metric.name}_delta"] is not None
    assert tables.further_tasks(row) == []


def test_tables_for_people_have_its_column(added: Any) -> None:
    metric, run = added
    figure = expected(metric, run)
    frame = tables.read(run)
    title, notes = frame.attrs["title"], frame.attrs["notes"]
    file = io.StringIO()
    show.render(frame, Console(file=file, width=200), title=title, notes=notes)
    head, line = (
        next(line for line in file.getvalue().splitlines() if line.startswith(name))
        for name in ("method", "sdft")
    )
    place = head.rindex(f" {metric.label}") + 1  # behind the column of its difference
    assert f"{figure:.1f}" in line[place - 2 : place + len(metric.label) + 2]
    text = markdown.document(frame, title=title, notes=notes)
    assert f"| Δ {metric.label} | {metric.label} |" in text
    assert f" {figure:.2f} " in next(line for line in text.splitlines() if line.startswith("| sdft"))
    tex = latex.document(frame, title=title)
    assert f"\\multicolumn{{2}}{{c}}{{{metric.label}}}" in tex
    assert f"{figure:.2f}" in latex.document(frame, title=title, columns=[metric.name])
    for shown in (file.getvalue(), text, tex.replace("\\", "")):
        assert (f"{metric.label}: {metric.about}." in shown) == bool(metric.about)


def test_the_report_and_the_card_have_it(added: Any) -> None:
    metric, run = added
    figure = expected(metric, run)
    (table,) = report_tables.leaderboard_tables(plots.leaderboard_rows(run))
    sdft = next(row for row in table.rows if row[0].text == "sdft")
    assert sdft[table.head.index(metric.label)].text == f"{figure:.1f}"
    assert sdft[table.head.index(f"{metric.label} Δ")].text
    assert f">{metric.label} Δ<" in page.render(run).replace("\n", "").replace("> ", ">").replace(" <", "<")
    card = model_card.card(run, "sdft")
    line = next(line for line in card.splitlines() if line.startswith(f"| {metric.phrase} ({metric.label})"))
    assert f"| {figure:.2f} [" in line
    row = next(row for row in tables.record(run)["rows"] if row["method"] == "sdft")
    assert line.endswith(
        f"{row[f'{metric.name}_delta']:+.2f} "
        f"[{row[f'{metric.name}_delta_low']:+.2f}, {row[f'{metric.name}_delta_high']:+.2f}] |"
    )


def test_a_gate_decides_by_it(added: Any) -> None:
    metric, run = added
    row = next(row for row in tables.record(run)["rows"] if row["method"] == "sdft")
    right = round(row[f"{metric.name}_n"] * row[metric.name] / 100)
    low = 100 * float(proportion_confint(right, 60, method="wilson")[0])  # what is unjudged counts against it
    held, missed = (
        gate.check(run, [Condition(metric.name, "min", limit)], methods=["sdft"])[0]
        for limit in (low - 0.01, low + 0.01)
    )
    assert (held.met, missed.met) == (True, False)
    assert held.condition == f"{metric.label} at least {low - 0.01:g}"


def test_what_was_not_answered_is_missing_and_never_a_figure(added: Any, tmp_path: Path) -> None:
    import shutil

    from harness.leaderboard import build, collect

    metric, run = added
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = run_folder.stored_config(copy)
    shutil.rmtree(copy / CELL / metric.task(config))
    rows = tables.records(build.build(collect.collect(config, copy, plan.cells(config))))
    row = next(row for row in rows if row["method"] == "sdft")
    assert row["status"] == f"missing: {metric.name} (not answered)"
    assert row[metric.name] is row[f"{metric.name}_delta"] is None


def test_the_committed_leaderboard_is_the_lists_byte_for_byte(tmp_path: Path) -> None:
    frame, scores = tables.read(RESULTS), tables.read_scores(RESULTS)
    title, notes = frame.attrs["title"], frame.attrs["notes"]
    tables.write(frame, scores, tmp_path, title=title, notes=notes)
    markdown.write(frame, tmp_path, title=title, notes=notes)
    latex.write(frame, tmp_path, title=title, notes=notes)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["leaderboard.csv", "leaderboard.json", "leaderboard.md", "leaderboard.tex", "scores.csv"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes(), name
    assert list(frame.columns) == [*tables.columns()]


def test_orders_are_those_of_who_reads_them() -> None:
    assert metrics.names() == ("utility", "rsr", "jsr")
    assert metrics.safety_first() == ("jsr", "rsr", "utility")
    assert metrics.as_papers_have_them() == ("rsr", "jsr", "utility")
    assert metrics.headline_first() == ("jsr", "utility", "rsr")
    assert metrics.headlines() == ("jsr", "rsr")


def test_a_task_goes_by_its_own_name() -> None:
    assert metrics.of("xstest_safe") is None
    for called in (metrics.label, metrics.heading, metrics.phrase, metrics.in_words):
        assert called("xstest_safe") == "xstest_safe"
    assert metrics.axis("xstest_safe") == "xstest_safe (%)"
    assert metrics.in_words("rsr") == "the raw safe rate (RSR)"
    assert metrics.in_words("utility") == metrics.label("utility") == "utility"
    assert (metrics.heading("utility"), metrics.heading("jsr")) == ("Utility", "JSR")
    assert not metrics.is_judged("utility")
    assert metrics.is_judged("jsr")
