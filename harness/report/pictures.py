"""The report's figures: each as an image for light pages and one for dark pages, with its caption.

A figure is an image in which nothing runs (``data:``), whatever names are in it. Those that this version
drew have colours for dark pages; any other stays as it is, on white.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analyses import categories, shared
from harness.contracts import HarnessError
from harness.figures import charts, looks
from harness.figures.charts import Picture
from harness.leaderboard.bottom_line import BottomLine
from harness.leaderboard.tables import Row, grouped
from harness.report import plots
from harness.storage.files import read_json

ANALYSES = (  # figures that other commands leave in a run: how their files begin, title, caption, command
    (
        "kl-safety",
        "Divergence against safety",
        "Each method's divergence from the base model against its safe rates.",
        "",
    ),
    (
        "kl",
        "Divergence from the base model",
        "KL(base ‖ tuned) by answer token, on harmful requests: how far a method moves from the base model.",
        "harness analyze kl RUN",
    ),
    (
        "categories",
        "Safe rates by category",
        "Categories down, methods across: the lighter, the safer.",
        "harness analyze categories RUN",
    ),
    (
        "sweep",
        "Sweep",
        "Safety and utility by the value that was varied.",
        "harness sweep preview-length --run RUN",
    ),
    (
        "budget",
        "Training budgets",
        "Safety against utility over learning rates and epochs. Numbers: epochs; lr: the learning rate.",
        "harness sweep budget --learning-rates 5e-4,1e-3",
    ),
    (
        "matched",
        "Safety at matched utility",
        "Each method's safety where its utility equals the others': curves through its trainings and epochs.",
        "harness analyze matched RUN",
    ),
    (
        "epochs",
        "By epoch",
        "Each method's path through utility and prefilled safe rate. Numbers: epochs.",
        "",
    ),
)

WIDE = 1.8  # times as wide as high
NARROW = 400  # pt
_SIZE = re.compile(r'<svg [^>]*?width="(\d{1,5}(?:\.\d{1,9})?)pt" height="(\d{1,5}(?:\.\d{1,9})?)pt"')


@dataclass(frozen=True)
class Image:
    """``light`` and ``dark``: an SVG as a data URI; ``dark`` is "" where there is none. ``shape``:
    "wide", where panels stand side by side; "narrow", what fits a phone; else ""."""

    title: str
    caption: str
    light: str
    dark: str
    shape: str


@dataclass(frozen=True)
class Opening:
    """What the page opens with, for one train task: the picture (None: nothing to draw) and what follows
    from it. ``others``: judges whose bottom line names another method."""

    heading: str
    image: Image | None
    line: BottomLine
    others: list[BottomLine]


def openings(rows: Sequence[Row], lines: Sequence[BottomLine]) -> list[Opening]:
    """One for each model and train task, in the rows' order; ``lines``: bottom_lines(rows)."""
    drawn: dict[tuple[str, str], Image] = {}
    for of_model in grouped(rows, "model"):
        found = plots.overview(of_model)
        for task, image in zip(found, _images([*found.values()]), strict=True):
            drawn[of_model[0]["model"], task] = image
    by_heading: dict[str, list[BottomLine]] = {}
    for line in lines:
        by_heading.setdefault(line.heading, []).append(line)
    places = [(group[0]["model"], group[0]["train_task"]) for group in grouped(rows, "model", "train_task")]
    return [
        Opening(heading, drawn.get(place), said[0], said[1:])
        for place, (heading, said) in zip(places, by_heading.items(), strict=True)
    ]


def images(run: Path) -> list[Image]:
    """The run's own figures but those that it opens with, then those in its ``analysis`` folder."""
    found = _images(plots.evidence(run))
    empty = _empty_heat_maps(run)
    for path in analyses(run):
        if path.stem in empty:
            continue
        about = next(((title, text) for stem, title, text, _ in ANALYSES if path.stem.startswith(stem)), None)
        title, caption = about or (path.stem, "")
        found.append(_image(title, f"{caption} ({path.stem})", path.read_bytes()))
    return found


def analyses(run: Path) -> list[Path]:
    return [*sorted(run.glob("epochs-*.svg")), *sorted((run / shared.FOLDER).glob("*.svg"))]


def _empty_heat_maps(run: Path) -> set[str]:
    """The figures of categories on which all is at 100 %: they show nothing."""
    try:
        table = read_json(run / shared.FOLDER / "categories.json")["table"]
        values: dict[str, list[Any]] = {}
        for row in table:
            values.setdefault(categories.file_stem(row["train_task"], row["metric"]), []).append(row["value"])
    except (HarnessError, KeyError, TypeError):  # not there, or not ours
        return set()
    return {stem for stem, found in values.items() if all(value == 100 for value in found)}


def missing(run: Path) -> list[dict[str, str]]:
    """What other commands would add, and which."""
    there = [path.stem for path in analyses(run)]
    return [
        {"what": title, "command": command}
        for stem, title, _, command in ANALYSES
        if command and not any(name.startswith(stem) for name in there)
    ]


def _images(pictures: Sequence[Picture]) -> list[Image]:
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "figure.svg"
        for picture in pictures:
            charts.save(picture.figure, path)
            found.append(_image(picture.title, picture.caption, path.read_bytes()))
    return found


def _image(title: str, caption: str, svg: bytes) -> Image:
    text = svg.decode("utf-8", "replace")
    dark = _data_uri(looks.dark(text).encode()) if looks.themed(text) else ""
    return Image(title, caption, _data_uri(svg), dark, _shape(text))


def _shape(svg: str) -> str:
    size = _SIZE.search(svg)
    if size is None:
        return ""
    width, height = float(size[1]), float(size[2])
    return "narrow" if width <= NARROW else "wide" if width > WIDE * height else ""


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
