"""Figures are SVG, the same for the same values, and hold every point."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from harness.figures import charts


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        charts.loss_curve([3.0, 2.0, 1.5], "loss", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    charts.loss_curve([3.0, 2.0, 1.4], "loss", tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "two.svg").read_bytes()


def test_every_method_and_epoch_is_drawn(tmp_path: Path) -> None:
    ways = {"vanilla": [(10.0, 80.0), (50.0, 40.0)], "lisa": [(20.0, 90.0), (40.0, 70.0)]}
    charts.trajectories(ways, "by epoch", tmp_path / "ways.svg")
    root = ElementTree.fromstring((tmp_path / "ways.svg").read_text())
    texts = ["".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")]
    assert {"vanilla", "lisa", "by epoch", "utility (%)"} <= set(texts)
    assert texts.count("2") >= 2
