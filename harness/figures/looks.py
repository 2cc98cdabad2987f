"""How a method looks in every figure: colour, mark and line go by its name, never by its place in a list.

The base model and vanilla, against which all others are read, are black and grey; the shipped methods have
looks of their own; for other names (plugins, variants, checkpoints) a hash of the name chooses. Marks differ
throughout, so that figures can be told apart in grey. Each light colour has a counterpart for dark pages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.run.plan import SEED

Look = Mapping[str, Any]

DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (9, 3)), (0, (3, 1)))

# name -> colour, mark, line
_OWN: dict[str, tuple[str, str, Any]] = {
    SEED: ("#000000", "*", (0, (1, 2))),
    "vanilla": ("#6b6b6b", "X", "-"),
    "sdft": ("#0063a6", "o", "-"),
    "constrained-sft": ("#c14a00", "s", "--"),
    "lookahead-true": ("#00795c", "^", "-."),
    "lookahead-virtual": ("#b0407f", "v", (0, (6, 2, 1, 2, 1, 2))),
    "ptst": ("#8a6400", "D", (0, (9, 3))),
    "safety-mixing": ("#5a3fb5", "P", (0, (3, 1))),
    "lisa": ("#7a2415", "p", ":"),
    "deep-alignment": ("#00545c", "8", (0, (5, 1))),
}
_FURTHER_COLOURS = ("#0b6f80", "#5f6a00", "#a3188f", "#1c3580", "#c2272d", "#3f6b3a", "#7d5a7c", "#4a5a6a")
_FURTHER_MARKS = tuple((mark, "full") for mark in "<>dhH") + tuple((mark, "none") for mark in "os^vDP<>dh")
SIZES = {"*": 10, "D": 5.5, "d": 7}  # of marks that would look larger or smaller than the others

BLACK = "#000000"
DARK = {  # light -> dark: what a figure's colours become on a dark page
    "#ffffff": "#161b22",  # the page's --card
    "#000000": "#e6edf3",
    "#6b6b6b": "#a5aeb8",
    "#b0b0b0": "#57606a",
    "#cccccc": "#57606a",
    "#808080": "#8b949e",
    "#0063a6": "#58a6ff",
    "#c14a00": "#ff9457",
    "#00795c": "#2fbf93",
    "#b0407f": "#f28cc4",
    "#8a6400": "#e3b341",
    "#5a3fb5": "#b69cff",
    "#7a2415": "#e8937f",
    "#00545c": "#63d2dc",
    "#0b6f80": "#4cc2d6",
    "#5f6a00": "#b8c24a",
    "#a3188f": "#f07be0",
    "#1c3580": "#8fa8ff",
    "#c2272d": "#ff8080",
    "#3f6b3a": "#85c27d",
    "#7d5a7c": "#cfa6ce",
    "#4a5a6a": "#a3b8cc",
}
CELL_INK = {True: "#010101", False: "#fefefe"}  # of figures on light and on dark cells, on any page
MARK = "safetune-harness figure"  # in an SVG's metadata: its colours are those of this module
_PAINT = re.compile(r"\b(fill|stroke): ?(#[0-9a-fA-F]{6})\b")
_TAG = re.compile(r"<[^<>]*>")


def looks(names: Iterable[str]) -> dict[str, Look]:
    """By name, what matplotlib's ``plot`` takes. A name's colour never depends on the other names, nor does
    its mark, unless two names that we do not ship ask for the same one: then the later in the alphabet has
    the next that is free."""
    wanted = list(dict.fromkeys(names))
    chosen = {name: _look(*_OWN[name]) for name in wanted if name in _OWN}
    taken: set[int] = set()
    for name in sorted(set(wanted) - chosen.keys()):
        number = _hash(name)
        place = next(
            (spot for step in range(len(_FURTHER_MARKS))
             if (spot := (number + step) % len(_FURTHER_MARKS)) not in taken),
            number % len(_FURTHER_MARKS),
        )  # fmt: skip
        taken.add(place)
        mark, fill = _FURTHER_MARKS[place]
        colour = _FURTHER_COLOURS[number // len(_FURTHER_MARKS) % len(_FURTHER_COLOURS)]
        chosen[name] = _look(colour, mark, DASHES[place % len(DASHES)], fill)
    return {name: chosen[name] for name in wanted}


def look(name: str) -> Look:
    return looks([name])[name]


def _look(colour: str, mark: str, line: Any, fill: str = "full") -> Look:
    return {
        "color": colour,
        "marker": mark,
        "fillstyle": fill,
        "linestyle": line,
        "linewidth": 1.4,
        "markersize": SIZES.get(mark, 6.5),
    }


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


# --- dark pages ------------------------------------------------------------------------------------


def themed(svg: str) -> bool:
    """Whether a figure was drawn in this module's colours."""
    return MARK in svg


def dark(svg: str) -> str:
    """A themed figure for a dark page: the paint inside its tags alone is changed, never a name."""
    paint = lambda found: f"{found[1]}: {DARK.get(found[2].lower(), found[2])}"  # noqa: E731
    painted = _TAG.sub(lambda tag: _PAINT.sub(paint, tag[0]), svg)
    return painted.replace("<svg ", f'<svg fill="{DARK[BLACK]}" ', 1)  # black is SVG's default: not written
