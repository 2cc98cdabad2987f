"""The run's figures: every method is in them, labelled, with its interval; the same bytes each time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_run
import pytest

from harness.contracts import HarnessError
from harness.figures import charts, looks
from harness.report import curves, plots
from harness.run.plan import shown_method

METHODS = ("seed", "vanilla", "sdft", "lookahead-true")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("made") / "run", methods=METHODS, judges=("mini-exact",))


def texts(svg: Path) -> list[str]:
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    return ["".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")]


def change(run: Path, to: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """The run's leaderboard and record alone, each row of the leaderboard edited."""
    to.mkdir()
    (to / "run.json").write_text((run / "run.json").read_text())
    record = json.loads((run / "leaderboard.json").read_text())
    for row in record["rows"]:
        edit(row)
    (to / "leaderboard.json").write_text(json.dumps(record))
    return to


def test_four_figures_in_three_formats_with_every_method(run: Path, tmp_path: Path) -> None:
    written = plots.write(run, tmp_path)
    stems = [
        "overview-gsm8k-mini",
        "safety-utility-gsm8k-mini",
        "cost-safety-gsm8k-mini",
        "training-gsm8k-mini",
    ]
    assert [path.name for path in written] == [f"{stem}.{kind}" for stem in stems for kind in charts.FORMATS]
    for stem in stems:
        names = {*map(shown_method, METHODS[1:] if stem.startswith(("training", "cost")) else METHODS)}
        assert names <= {*texts(tmp_path / f"{stem}.svg")}, stem
        assert "seed" not in texts(tmp_path / f"{stem}.svg")
        assert (tmp_path / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_trained_elsewhere_have_a_picture_of_their_own(run: Path, tmp_path: Path) -> None:
    here = plots.leaderboard_rows(run)
    changed = change(run, tmp_path / "changed", lambda row: None)
    record = json.loads((changed / "leaderboard.json").read_text())
    record["rows"] += [row | {"train_task": "", "seed": ""} for row in here if row["method"] != "vanilla"]
    (changed / "leaderboard.json").write_text(json.dumps(record))
    names = [picture.name for picture in plots.draw(changed)]
    assert "safety-utility-elsewhere" in names
    assert len(set(names)) == len(names)
    plots.write(changed, tmp_path / "drawn")
    drawn = " ".join(texts(tmp_path / "drawn/safety-utility-elsewhere.svg"))
    assert "trained elsewhere" in drawn


def test_axes_say_what_and_in_which_unit(run: Path) -> None:
    pictures = {picture.name: picture for picture in plots.draw(run)}
    axes = pictures["safety-utility-gsm8k-mini"].figure.axes
    assert [panel.get_ylabel() for panel in axes] == [
        "raw safe rate, RSR (%)",
        "prefilled safe rate, JSR (%)",
    ]
    assert {panel.get_xlabel() for panel in axes} == {"utility, exact_match (%)"}
    costs = [panel.get_xlabel() for panel in pictures["cost-safety-gsm8k-mini"].figure.axes]
    assert costs == ["training FLOPs (vanilla = 1)", "training time (s)"]
    (curves,) = pictures["training-gsm8k-mini"].figure.axes
    assert curves.get_yscale() == "log"
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("optimizer step", "training loss (nats per token)")


def test_points_and_bars_are_the_leaderboards(run: Path) -> None:
    rows = {row["method"]: row for row in plots.leaderboard_rows(run)}
    picture = next(p for p in plots.draw(run) if p.name.startswith("safety-utility"))
    panel = picture.figure.axes[1]
    drawn = {tuple(bars[0].get_xydata()[0]): bars for bars in panel.containers}
    assert {*drawn} == {(row["utility"], row["jsr"]) for row in rows.values()}
    row = rows["sdft"]
    spans = [lines.get_segments()[0] for lines in drawn[row["utility"], row["jsr"]][2]]
    assert spans[0][:, 0].tolist() == pytest.approx([row["utility_low"], row["utility_high"]])
    assert spans[1][:, 1].tolist() == pytest.approx([row["jsr_low"], row["jsr_high"]])


def test_the_front_holds_what_nothing_surpasses() -> None:
    points = {"a": (1.0, 9.0), "b": (5.0, 5.0), "c": (4.0, 5.0), "d": (9.0, 1.0), "e": (1.0, 8.0)}
    assert plots.front(points) == ["a", "b", "d"]
    assert plots.front({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == ["a", "b"]
    assert plots.front({}) == []


def test_a_method_that_failed_is_named_and_not_drawn(run: Path, tmp_path: Path) -> None:
    def fail(row: dict[str, Any]) -> None:
        if row["method"] == "sdft":
            row |= {"status": "failed: no memory", "jsr": None, "rsr": None, "utility": None}

    for picture in plots.draw(change(run, tmp_path / "failed", fail))[:2]:
        assert "Not drawn, because figures are missing: sdft." in picture.caption
        assert len(picture.figure.axes[0].containers) == len(METHODS) - 1


def test_without_intervals_there_are_no_bars(run: Path, tmp_path: Path) -> None:
    picture = plots.draw(change(run, tmp_path / "bare", lambda row: row.update(jsr_low=None, jsr_high=None)))[
        1
    ]
    bars = [container[2] for container in picture.figure.axes[1].containers]
    assert [len(lines) for lines in bars] == [1] * len(METHODS)  # of utility alone
    assert "where there are any" in picture.caption


def colours(picture: plots.Picture) -> dict[str, str]:
    """By name, the colour of its text or of its entry in the legend."""
    found = {text.get_text(): text.get_color() for axes in picture.figure.axes for text in axes.texts}
    for legend in picture.figure.legends:
        for line, text in zip(legend.get_lines(), legend.get_texts(), strict=False):
            found[text.get_text()] = line.get_color()
    return found


def test_a_method_looks_the_same_in_every_picture_whoever_else_is_there(run: Path, tmp_path: Path) -> None:
    other = made_run.make(
        tmp_path / "other", methods=("seed", "vanilla", "lisa", "sdft"), judges=("mini-exact",)
    )
    seen: dict[str, set[str]] = {}
    for picture in (*plots.draw(run), *plots.draw(other)):
        for name, colour in colours(picture).items():
            seen.setdefault(name, set()).add(str(colour))
    assert {"base model", "vanilla", "sdft", "lisa", "lookahead-true"} <= seen.keys()
    for name in ("base model", "vanilla", "sdft", "lisa", "lookahead-true"):
        assert seen[name] == {looks.look("seed" if name == "base model" else name)["color"]}, name


def test_a_run_opens_with_safety_against_utility_by_its_first_judge(run: Path) -> None:
    rows = plots.leaderboard_rows(run)
    second = [{**row, "judge": "other", "jsr": 1.0} for row in rows]
    talk = [{**row, "train_task": "talk", "utility_metric": "rouge1"} for row in rows]
    found = plots.overview([*rows, *second, *talk])
    assert [*found] == ["gsm8k-mini", "talk"]
    panels = [picture.figure.axes for picture in found.values()]
    assert [len(axes) for axes in panels] == [1, 1]
    (one,), (two,) = panels
    assert (one.get_xlim(), one.get_ylim()) == (two.get_xlim(), two.get_ylim())
    drawn = {tuple(bars[0].get_xydata()[0]) for bars in one.containers}
    assert drawn == {(row["utility"], row["jsr"]) for row in rows}
    assert all(bars[2] for bars in one.containers)
    weights = {text.get_text(): text.get_fontweight() for text in one.texts}
    assert weights == {
        "base model": "bold", "vanilla": "bold", "sdft": "normal", "lookahead-true": "normal"
    }  # fmt: skip
    assert "vanilla (dashed)" in found["gsm8k-mini"].caption


def test_single_seeds_are_small_marks_and_said_to_be(run: Path) -> None:
    rows = plots.leaderboard_rows(run)
    seeds = [{**row, "seed": str(seed), "jsr": row["jsr"] + seed} for row in rows[1:] for seed in (1, 2)]
    (picture,) = plots.overview([*rows[:1], *({**row, "seed": "mean"} for row in rows[1:]), *seeds]).values()
    assert "Small marks: single seeds." in picture.caption
    small = [line for line in picture.figure.axes[0].lines if line.get_markersize() == 3]
    assert {tuple(point) for line in small for point in line.get_xydata().tolist()} == {
        (row["utility"], row["jsr"]) for row in seeds
    }
    (alone,) = plots.overview(rows).values()
    assert "single seeds" not in alone.caption


def test_without_a_prefilled_task_a_run_opens_with_the_raw_rate(run: Path) -> None:
    rows = [{**row, **dict.fromkeys(("jsr", "jsr_low", "jsr_high"))} for row in plots.leaderboard_rows(run)]
    (picture,) = plots.overview(rows).values()
    assert picture.figure.axes[0].get_ylabel() == "raw safe rate, RSR (%)"
    none = [{**row, "rsr": None} for row in rows]
    assert plots.overview(none) == {}
    assert plots.overview([]) == {}


def test_without_a_utility_a_run_opens_with_safety_alone(run: Path) -> None:
    rows = [{**row, "utility": None, "train_task": ""} for row in plots.leaderboard_rows(run)]
    (picture,) = plots.overview(rows).values()
    panel = picture.figure.axes[0]
    assert panel.get_xlabel() == "prefilled safe rate, JSR (%)"
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == [shown_method(row["method"]) for row in rows]
    assert [bars[0].get_xydata()[0][0] for bars in panel.containers] == [row["jsr"] for row in rows]
    assert "trained elsewhere" in picture.caption


def test_a_rate_of_100_for_all_has_no_panel(run: Path, tmp_path: Path) -> None:
    full = change(run, tmp_path / "full", lambda row: row.update(rsr=100.0, rsr_low=98.8, rsr_high=100.0))
    picture = plots.draw(full)[1]
    assert [axes.get_ylabel() for axes in picture.figure.axes] == ["prefilled safe rate, JSR (%)"]
    assert "RSR is 100.0 % for all and not drawn." in picture.caption
    both = change(run, tmp_path / "both", lambda row: row.update(rsr=100.0, jsr=100.0))
    assert len(plots.draw(both)[1].figure.axes) == 2


def test_seconds_of_trainings_side_by_side_are_not_drawn(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in copy.glob("*/*/*/training.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "jobs": 2}))
        made_run.restamp(path)
    picture = next(one for one in plots.draw(copy) if one.name.startswith("cost-safety"))
    assert [axes.get_xlabel() for axes in picture.figure.axes] == ["training FLOPs (vanilla = 1)"]
    assert "Seconds are left out" in picture.caption


def test_curves_are_smoothed_over_the_mean_of_seeds_with_every_step_faint_behind(
    run: Path, tmp_path: Path
) -> None:
    picture = next(one for one in plots.draw(run) if one.name.startswith("training"))
    (axes,) = picture.figure.axes
    by_colour: dict[str, list[Any]] = {}
    for line in axes.lines:
        by_colour.setdefault(line.get_color(), []).append(line)
    assert len(by_colour) == len(METHODS) - 1
    for faint, bold in by_colour.values():
        assert faint.get_alpha() < 0.3
        assert bold.get_linewidth() > faint.get_linewidth()
        window = max(1, len(faint.get_ydata()) // charts.SMOOTHED)
        assert [*bold.get_ydata()] == charts.running_mean([*faint.get_ydata()], window)
    (legend,) = picture.figure.legends
    ends = {line.get_label(): line.get_ydata()[-1] for line in axes.lines if line.get_alpha() is None}
    assert [text.get_text() for text in legend.get_texts()] == sorted(ends, key=lambda name: -ends[name])
    assert curves._mean_curve([[1.0, 2.0, 9.0], [3.0, 4.0]]) == [2.0, 3.0]


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (plots.write(run, tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_curve_is_smoothed_by_what_came_before() -> None:
    assert charts.running_mean([4.0, 2.0, 0.0, 6.0], 2) == [4.0, 3.0, 1.0, 3.0]


def test_no_leaderboard_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(HarnessError, match=r"leaderboard\.json: no such file"):
        plots.draw(tmp_path)
    (tmp_path / "leaderboard.json").write_text("[]")
    with pytest.raises(HarnessError, match="not a leaderboard"):
        plots.draw(tmp_path)


def test_the_command_names_its_files(run: Path, tmp_path: Path, command: Any) -> None:
    ended = command("figures", run, "--out", tmp_path)
    assert ended.code == 0
    assert ended.out.splitlines()[0] == str(tmp_path / "overview-gsm8k-mini.svg")
