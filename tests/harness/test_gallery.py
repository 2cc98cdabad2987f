"""The run's figures: every method is in them, labelled, with its interval; the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_run
import pytest

from harness import figures, gallery
from harness.contracts import HarnessError

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


def test_three_figures_in_three_formats_with_every_method(run: Path, tmp_path: Path) -> None:
    written = gallery.write(run, tmp_path)
    stems = ["safety-utility-gsm8k-mini", "cost-safety-gsm8k-mini", "training-gsm8k-mini"]
    assert [path.name for path in written] == [f"{stem}.{kind}" for stem in stems for kind in figures.FORMATS]
    for stem in stems:
        trained = METHODS[1:] if stem.startswith("training") else METHODS
        assert {*trained} <= {*texts(tmp_path / f"{stem}.svg")}, stem
        assert (tmp_path / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_trained_elsewhere_have_a_picture_of_their_own(run: Path, tmp_path: Path) -> None:
    here = gallery.leaderboard_rows(run)
    changed = change(run, tmp_path / "changed", lambda row: None)
    record = json.loads((changed / "leaderboard.json").read_text())
    record["rows"] += [row | {"train_task": "", "seed": ""} for row in here if row["method"] != "vanilla"]
    (changed / "leaderboard.json").write_text(json.dumps(record))
    names = [picture.name for picture in gallery.draw(changed)]
    assert "safety-utility-elsewhere" in names
    assert len(set(names)) == len(names)
    gallery.write(changed, tmp_path / "drawn")
    drawn = " ".join(texts(tmp_path / "drawn/safety-utility-elsewhere.svg"))
    assert "trained elsewhere" in drawn


def test_axes_say_what_and_in_which_unit(run: Path) -> None:
    pictures = {picture.name: picture for picture in gallery.draw(run)}
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
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("optimizer step", "training loss (nats a token)")


def test_points_and_bars_are_the_leaderboards(run: Path) -> None:
    rows = {row["method"]: row for row in gallery.leaderboard_rows(run)}
    picture = next(p for p in gallery.draw(run) if p.name.startswith("safety-utility"))
    panel = picture.figure.axes[1]
    drawn = {tuple(bars[0].get_xydata()[0]): bars for bars in panel.containers}
    assert {*drawn} == {(row["utility"], row["jsr"]) for row in rows.values()}
    row = rows["sdft"]
    spans = [lines.get_segments()[0] for lines in drawn[row["utility"], row["jsr"]][2]]
    assert spans[0][:, 0].tolist() == pytest.approx([row["utility_low"], row["utility_high"]])
    assert spans[1][:, 1].tolist() == pytest.approx([row["jsr_low"], row["jsr_high"]])


def test_the_front_holds_what_nothing_surpasses() -> None:
    points = {"a": (1.0, 9.0), "b": (5.0, 5.0), "c": (4.0, 5.0), "d": (9.0, 1.0), "e": (1.0, 8.0)}
    assert gallery.front(points) == ["a", "b", "d"]
    assert gallery.front({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == ["a", "b"]
    assert gallery.front({}) == []


def test_a_method_that_failed_is_named_and_not_drawn(run: Path, tmp_path: Path) -> None:
    def fail(row: dict[str, Any]) -> None:
        if row["method"] == "sdft":
            row |= {"status": "failed: no memory", "jsr": None, "rsr": None, "utility": None}

    picture = gallery.draw(change(run, tmp_path / "failed", fail))[0]
    assert "Not drawn, for want of figures: sdft." in picture.caption
    assert len(picture.figure.axes[0].containers) == len(METHODS) - 1


def test_without_intervals_there_are_no_bars(run: Path, tmp_path: Path) -> None:
    picture = gallery.draw(
        change(run, tmp_path / "bare", lambda row: row.update(jsr_low=None, jsr_high=None))
    )[0]
    bars = [container[2] for container in picture.figure.axes[1].containers]
    assert [len(lines) for lines in bars] == [1] * len(METHODS)  # of utility alone
    assert "where there are any" in picture.caption


def test_a_method_looks_the_same_everywhere_and_unlike_the_others() -> None:
    looks = [
        tuple(figures.style(number)[part] for part in ("color", "marker", "fillstyle"))
        for number in range(2 * len(figures.COLOURS))
    ]
    assert len({*looks}) == len(looks)
    lines = [(figures.style(n)["color"], figures.style(n)["linestyle"]) for n in range(16)]
    assert len({*lines}) == 16


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (gallery.write(run, tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_curve_is_smoothed_by_what_came_before() -> None:
    assert gallery._running_mean([4.0, 2.0, 0.0, 6.0], 2) == [4.0, 3.0, 1.0, 3.0]


def test_no_leaderboard_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(HarnessError, match=r"leaderboard\.json: no such file"):
        gallery.draw(tmp_path)
    (tmp_path / "leaderboard.json").write_text("[]")
    with pytest.raises(HarnessError, match="not a leaderboard"):
        gallery.draw(tmp_path)


def test_the_command_names_its_files(run: Path, tmp_path: Path, command: Any) -> None:
    ended = command("figures", run, "--out", tmp_path)
    assert ended.code == 0
    assert ended.out.splitlines()[0] == str(tmp_path / "safety-utility-gsm8k-mini.svg")
