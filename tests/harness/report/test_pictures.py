"""The report's images: dark where we drew them, untouched where not; the opening beside its bottom line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from harness.figures import charts, looks
from harness.leaderboard.bottom_line import bottom_lines
from harness.report import pictures
from tests.harness.leaderboard.test_bottom_line import method
from tests.harness.leaderboard.test_findings import SEED, VANILLA


def svg(uri: str) -> str:
    head, _, body = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(body).decode()


def rows(**more: Any) -> list[dict[str, Any]]:
    found = [SEED, VANILLA, method("sdft", 20.0, 0.0), method("lisa", 10.0, -20.0)]
    return [{**row, "utility_metric": "exact_match", **more} for row in found]


def test_the_opening_is_a_picture_and_its_bottom_line_for_each_train_task() -> None:
    everything = [*rows(), *rows(train_task="talk"), *rows(judge="k")]
    found = pictures.openings(everything, bottom_lines(everything))
    assert [opening.heading for opening in found] == ["Trained on sums", "Trained on talk"]
    for opening in found:
        assert opening.line.method == "sdft"
        assert opening.others == []
        assert opening.image is not None
        assert "base model" in svg(opening.image.light)
        assert looks.DARK["#ffffff"] in svg(opening.image.dark)
        assert "#ffffff" not in svg(opening.image.dark)
        assert opening.image.shape == "narrow"


def test_another_judges_choice_stands_beside_the_first() -> None:
    other = [{**row, "judge": "k"} for row in (SEED, VANILLA, method("lisa", 30.0, 0.0))]
    (opening,) = pictures.openings([*rows(), *other], bottom_lines([*rows(), *other]))
    assert [line.method for line in opening.others] == ["lisa"]


def test_without_figures_the_line_stands_alone() -> None:
    empty = rows(jsr=None, rsr=None, jsr_delta=None, rsr_delta=None)
    (opening,) = pictures.openings(empty, bottom_lines(empty))
    assert opening.image is None
    assert opening.line.choice == "No method's safety can be compared with vanilla's."


def test_a_figure_of_someone_else_stays_as_it_is() -> None:
    text = '<svg xmlns="http://www.w3.org/2000/svg" style="fill: #000000"/>'
    image = pictures._image("t", "c", text.encode())
    assert (svg(image.light), image.dark, image.shape) == (text, "", "")
    assert pictures._image("t", "c", b"\xff\xfe no svg").dark == ""


@pytest.mark.parametrize(("size", "shape"), [((5.2, 4.2), "narrow"), ((8.6, 4.2), "wide"), ((6.6, 4.2), "")])
def test_shapes_go_by_size(size: tuple[float, float], shape: str, tmp_path: Path) -> None:
    figure, _ = charts.canvas("", "", "", size=size)
    charts.save(figure, tmp_path / "a.svg")
    assert pictures._image("", "", (tmp_path / "a.svg").read_bytes()).shape == shape


def test_heat_maps_that_are_100_all_over_are_known(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    table = [
        {"train_task": "a", "metric": metric, "value": value}
        for metric, values in (("rsr", (100.0, 100.0)), ("jsr", (100.0, 99.9)))
        for value in values
    ]
    file = tmp_path / "analysis" / "categories.json"
    file.write_text(json.dumps({"table": [*table, {"train_task": "b", "metric": "rsr", "value": None}]}))
    assert pictures._empty_heat_maps(tmp_path) == {"categories-a-rsr"}
    for damaged in ("[]", "{", '{"table": [1]}', '{"table": null}', '{"table": [{"train_task": []}]}'):
        file.write_text(damaged)
        assert pictures._empty_heat_maps(tmp_path) == set()
