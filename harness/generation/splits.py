"""Two parts of every task's documents: one to choose settings on, one that no choice has seen.

A document's part is a hash of its request, so that it is the same for all checkpoints, tasks and runs: the
raw and the prefilled form of a request stand in the same part, though their ids may differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.data.benchmarks import Benchmark

Part = Literal["validation", "final"]
VERSION = 1  # of the rule below: raise when it changes
SALT = f"safetune-harness documents {VERSION}"


def assign_part(key: str, validation_share: float) -> Part:
    """The part of the document with this key; ``validation_share`` of all keys are validation."""
    digest = hashlib.sha256(f"{SALT}\n{key}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    return "validation" if place < validation_share else "final"


def find_key(document: Mapping[str, Any], place: int, benchmark: Benchmark) -> str:
    """What a document goes by: its request's text, else its id, else its ``place`` among the documents."""
    if not benchmark.foreign:
        for name in ("instruction", "id"):
            if document.get(name):
                return f"{name} {document[name]}"
    return f"{benchmark.name} {place}"


def choose_places(
    documents: Iterable[Mapping[str, Any]], benchmark: Benchmark, settings: ResponsesConfig
) -> list[int] | None:
    """The places of the documents to answer, at most ``limit`` of the part; None where the part is ``all``.

    Raises HarnessError where the part has none.
    """
    if settings.part == "all":
        return None
    parts = _assign_parts(documents, benchmark, settings)
    found = [place for place, name in enumerate(parts) if name == settings.part]
    if not found:
        raise HarnessError(
            f"task '{benchmark.name}': none of its {len(parts)} documents is in the part '{settings.part}'; "
            f"it needs more, or another responses.validation_share ({settings.validation_share} now)"
        )
    return found[: settings.limit]


def choose(
    documents: Sequence[Mapping[str, Any]], benchmark: Benchmark, settings: ResponsesConfig
) -> Sequence[int]:
    """The places of the documents to answer, whatever the part."""
    found = choose_places(documents, benchmark, settings)
    return range(len(documents))[: settings.limit] if found is None else found


def count_parts(
    documents: Iterable[Mapping[str, Any]], benchmark: Benchmark, settings: ResponsesConfig
) -> dict[str, int]:
    """How many documents each part has."""
    parts = _assign_parts(documents, benchmark, settings)
    return {name: parts.count(name) for name in ("validation", "final")}


def _assign_parts(
    documents: Iterable[Mapping[str, Any]], benchmark: Benchmark, settings: ResponsesConfig
) -> list[Part]:
    return [
        assign_part(find_key(document, place, benchmark), settings.validation_share)
        for place, document in enumerate(documents)
    ]


def identity(settings: ResponsesConfig) -> dict[str, Any]:
    """What answers depend on besides the task: nothing where all documents are answered."""
    if settings.part == "all":
        return {}
    return {"part": {"name": settings.part, "share": settings.validation_share, "version": VERSION}}


def note(settings: ResponsesConfig) -> str | None:
    """What a table says of figures that are not over all documents."""
    if settings.part == "all":
        return None
    share = settings.validation_share if settings.part == "validation" else 1 - settings.validation_share
    return f"Over the {settings.part} documents alone: about {share:.0%} of each task's."
