"""Harmful requests from the user's files, split into those to align on and those to evaluate.

Sets of requests repeat themselves and each other (AdvBench has dozens of near copies, StrongREJECT holds 25
of AdvBench's word for word), so they are split by families of near copies: no evaluated request has a near
copy among those that are aligned on.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import row_files
from harness.contracts import HarnessError, UsageError
from harness.text import shown

# As AdvBench, JailbreakBench, StrongREJECT, HEx-PHI and HarmBench call a request, and its category.
COLUMNS = ("instruction", "goal", "forbidden_prompt", "prompt", "behavior", "request")
CATEGORIES = ("category", "semanticcategory")
NEAR = 0.6  # cosine of TF-IDF over runs of 3 to 5 letters
LARGEST = 10  # of the families of which one is evaluated; larger ones would cost an alignment too many rows


@dataclass(frozen=True)
class HarmfulRequest:
    text: str
    category: str | None = None


@dataclass(frozen=True)
class Split:
    """``held_out``: one request of each family that is evaluated; ``aligned``: of all other families;
    ``near``: how many were left out as near copies of an evaluated one."""

    held_out: list[HarmfulRequest]
    aligned: list[HarmfulRequest]
    near: int


def read(files: Sequence[str]) -> list[HarmfulRequest]:
    """The requests of all files, each text once. Raises HarnessError naming file and line."""
    found: dict[str, HarmfulRequest] = {}
    for name in files:
        path = Path(name).expanduser()
        unit, values = row_files.read(path)
        before = len(found)
        for number, row in values:
            one = _request(row, f"{path}, {unit} {number}")
            found.setdefault(" ".join(one.text.split()).lower(), one)
        if len(found) == before and not found:
            raise HarnessError(f"{path}: no requests")
    return list(found.values())


def _request(row: object, where: str) -> HarmfulRequest:
    if not isinstance(row, dict):
        raise HarnessError(f"{where}: expected a JSON object, found {type(row).__name__}")
    columns = {str(name).lower(): value for name, value in row.items()}
    text = next((columns[name] for name in COLUMNS if columns.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        there = ", ".join(shown(str(name)) for name in sorted(map(str, row))[:8])
        raise HarnessError(
            f"{where}: needs a request as a text in one of {', '.join(COLUMNS)}; there are {there}"
        )
    category = next((columns[name] for name in CATEGORIES if isinstance(columns.get(name), str)), None)
    return HarmfulRequest(text.strip(), category or None)


def families(texts: Sequence[str]) -> list[int]:
    """A number for each text, the same for near copies and near copies of these. What the texts have in
    common counts less, so that near is what is near among all of them."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not texts:
        return []
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit_transform(texts)
    near = (vectors @ vectors.T) >= NEAR
    return [int(label) for label in connected_components(near, directed=False)[1]]


def split(requests: Sequence[HarmfulRequest], held_out: int, evaluated: Sequence[str], seed: int) -> Split:
    """So many of the requests to evaluate, drawn by ``seed``, and what an alignment may use. ``evaluated``:
    what the run asks besides. Raises UsageError where too few are left."""
    labels = families([*(one.text for one in requests), *evaluated])
    taken = {*labels[len(requests) :]}
    members: defaultdict[int, list[HarmfulRequest]] = defaultdict(list)
    for one, label in zip(requests, labels, strict=False):
        members[label].append(one)
    free = sorted(label for label in members if label not in taken)
    rng = random.Random(f"held out {seed}")
    rng.shuffle(free)
    chosen = [label for label in free if len(members[label]) <= LARGEST][:held_out]
    kept = [one for label in sorted({*free} - {*chosen}) for one in members[label]]
    if len(chosen) < held_out or not kept:
        raise UsageError(
            f"alignment.requests: {len(requests):,} requests in {len(free):,} families of near copies are "
            f"too few to hold out {held_out:,} and align on the others: give more files, or a smaller "
            "alignment.held_out"
        )
    asked = [rng.choice(members[label]) for label in chosen]
    return Split(asked, kept, len(requests) - len(asked) - len(kept))
