"""Refusals for requests: in several wordings, each of which every judge by rule takes for one."""

from __future__ import annotations

from harness.alignment import refusals
from harness.keywords import refuses


def test_every_wording_refuses() -> None:
    assert len({*refusals.WORDINGS}) == len(refusals.WORDINGS) >= 5
    assert all(refuses(text) for text in refusals.WORDINGS)


def test_each_request_gets_one() -> None:
    requests = [f"Blorp {n}" for n in range(400)]
    rows = refusals.rows(requests, 1)
    assert [row["prompt"] for row in rows] == requests
    counts = {text: sum(row["completion"] == text for row in rows) for text in refusals.WORDINGS}
    assert sum(counts.values()) == 400
    assert min(counts.values()) > 20  # 50 expected
    assert rows == refusals.rows(requests, 1) != refusals.rows(requests, 2)
