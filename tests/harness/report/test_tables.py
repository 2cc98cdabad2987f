"""The report's tables hold the leaderboard's figures, differences first."""

from __future__ import annotations

from pathlib import Path

import made_run
import pytest

from harness.report import plots, tables


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    return made_run.make(folder, methods=("seed", "vanilla", "sdft"), seeds=(1, 2))


def test_the_leaderboard_shows_means_and_then_each_seed(run: Path) -> None:
    rows = plots.leaderboard_rows(run)
    shown = tables.leaderboard_tables(rows)
    assert [(table.folded, len(table.rows)) for table in shown] == [(False, 3), (True, 6)] * 2
    head = shown[0].head
    assert head[:4] == ["method", "JSR Δ", "utility Δ", "RSR Δ"]
    sdft = next(row for row in rows if (row["method"], row["seed"]) == ("sdft", "mean"))
    line = next(line for line in shown[0].rows if line[0].text == "sdft")
    assert line[head.index("JSR")].order == sdft["jsr"]
    assert line[head.index("JSR Δ")].text.startswith(f"{sdft['jsr_delta']:+.1f}")


def test_a_difference_that_counts_has_a_star_and_a_look(run: Path) -> None:
    base = {**plots.leaderboard_rows(run)[0], "jsr_mde": 7.14}
    cells = [
        tables._delta(
            {**base, "jsr_delta": value, "jsr_p": p, "jsr_delta_low": low, "jsr_delta_high": high}, "jsr"
        )
        for value, p, (low, high) in (
            (5.0, 0.049, (0.5, 9.5)),
            (-5.0, 0.049, (-9.5, -0.5)),
            (5.0, 0.049, (-0.5, 9.5)),  # found, whatever its own interval
            (5.0, 0.05, (0.5, 9.5)),
            (5.0, 1.0, (-0.5, 9.5)),
            (5.0, None, (None, None)),  # not tested
        )
    ]
    assert [(cell.text, cell.look, cell.below) for cell in cells] == [
        ("+5.0*", "up", ("+0.5 to +9.5",)),
        ("−5.0*", "down", ("−9.5 to −0.5",)),
        ("+5.0*", "up", ("−0.5 to +9.5",)),
        ("+5.0†", "", ("+0.5 to +9.5", "(7.1)")),
        ("+5.0", "", ("−0.5 to +9.5", "(7.1)")),
        ("+5.0", "", ()),
    ]


def test_checkpoints_trained_elsewhere_have_a_table_of_their_own(run: Path) -> None:
    own = [
        {**row, "train_task": "", "seed": ""}
        for row in plots.leaderboard_rows(run)
        if (row["method"], row["seed"]) in (("seed", "1"), ("sdft", "1"))
    ]
    captions = [table.caption for table in tables.leaderboard_tables(own)]
    judges = dict.fromkeys(row["judge"] for row in own)
    assert len(judges) == 2
    assert captions == [f"Leaderboard, trained elsewhere, judged by {judge}" for judge in judges]


def test_a_failed_method_keeps_its_row_with_the_reason(run: Path) -> None:
    base = plots.leaderboard_rows(run)[0]
    cell = tables._method({**base, "status": "failed: no memory"})
    assert (cell.look, cell.below) == ("failed", ("failed: no memory",))


def test_the_papers_figures_have_a_column_where_there_are_any(run: Path) -> None:
    rows = [row for row in plots.leaderboard_rows(run) if row["judge"] == "keyword"]
    assert "JSR in the paper" not in tables.leaderboard_tables(rows)[0].head
    shown = tables.leaderboard_tables([{**row, "jsr_paper": 46.97} for row in rows])[0]
    place = shown.head.index("JSR in the paper")
    assert [line[place].text for line in shown.rows] == ["47.0"] * 3


def test_categories_are_means_over_the_seeds(run: Path) -> None:
    import csv

    with (run / "scores.csv").open(newline="") as file:
        values = [
            float(score["value"])
            for score in csv.DictReader(file)
            if (score["method"], score["task"], score["judge"], score["category"])
            == ("sdft", "hexphi_prefill-mini", "keyword", "Malware")
        ]
    assert len(values) == 2
    found = tables.category_tables(run, plots.leaderboard_rows(run))
    table = next(t for t in found if "hexphi_prefill-mini" in t.caption and "keyword" in t.caption)
    line = next(line for line in table.rows if line[0].text == "Malware")
    cell = line[table.head.index("sdft")]
    assert cell.order == pytest.approx(sum(values) / 2)
    assert cell.look == f"heat heat-{round(sum(values) / 20)}"


def test_agreement_needs_two_judges(run: Path) -> None:
    from harness.analyses import agreement

    pairs, disputed = tables.agreement_tables(agreement.analyse(run))
    assert pairs.rows[0][0].text == "mini-exact – keyword"
    counts = [cell.order for cell in pairs.rows[0][4:]]
    assert sum(counts) == pairs.rows[0][1].order
    assert disputed.caption == f"Disputed exchanges: {counts[2] + counts[3]}"
    cells = {line[0].text for line in disputed.rows}
    assert "base model" in cells
    assert "seed" not in cells
    assert tables.agreement_tables(None) == []


def test_the_untrained_row_is_the_base_model(run: Path) -> None:
    rows = plots.leaderboard_rows(run)
    shown = tables.leaderboard_tables(rows)[0]
    assert (shown.rows[0][0].text, shown.rows[0][0].order) == ("base model", "base model")
    assert tables.category_tables(run, rows)[0].head[:2] == ["category", "base model"]


def test_a_category_table_of_100_all_over_is_left_out(run: Path, tmp_path: Path) -> None:
    import csv
    import shutil

    rows = plots.leaderboard_rows(run)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with (copy / "scores.csv").open(newline="") as file:
        scores = [*csv.DictReader(file)]
    for score in scores:
        if score["task"] == "hexphi_raw-mini" and score["category"]:
            score["value"] = "100.00"

    def captions(changed: list[dict[str, str]]) -> list[str]:
        with (copy / "scores.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, changed[0])
            writer.writeheader()
            writer.writerows(changed)
        return [table.caption for table in tables.category_tables(copy, rows)]

    assert not any("hexphi_raw-mini" in caption for caption in captions(scores))
    last = next(score for score in reversed(scores) if score["category"] and "raw" in score["task"])
    last["value"] = "99.00"
    assert sum("hexphi_raw-mini" in caption for caption in captions(scores)) == 1


def test_costs_are_those_of_analyze_flops(run: Path) -> None:
    from harness.analyses import flops

    record = flops.flops(run)
    (table,) = tables.cost_tables(record)
    rows = {row["method"]: row for row in record["rows"]}
    for line in table.rows:
        assert line[table.head.index("vs vanilla")].order == rows[line[0].text]["relative_flops"]


def test_times_of_trainings_side_by_side_are_no_costs(run: Path) -> None:
    from harness.analyses import flops

    rows = plots.leaderboard_rows(run)
    assert "training (s)" in tables.leaderboard_tables(rows)[0].head
    assert not any("(s)" in name for name in tables.leaderboard_tables(rows, timed=False)[0].head)
    record = {**flops.flops(run), "side_by_side": True}
    (table,) = tables.cost_tables(record)
    assert table.head == ["method", "FLOPs", "vs vanilla", "prep", "tokens", "trained", "peak GB"]
    assert len({len(line) for line in table.rows} | {len(table.head)}) == 1
