"""Harmful requests in published formats, and their split by families of near copies; nonsense here."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.alignment.requests import LARGEST, HarmfulRequest, families, read, split
from harness.contracts import HarnessError, UsageError


def requests(number: int) -> list[HarmfulRequest]:
    """Requests of made-up words, every fourth with two near copies behind it."""
    rng = random.Random(5)
    syllables = [a + b for a in "bdfghjklmnprstvwz" for b in "aeiou"]
    found: list[str] = []
    while len(found) < number:
        words = ["".join(rng.choices(syllables, k=3)) for _ in range(6)]
        found.append(" ".join(words))
        if len(found) % 4 == 0:
            found += [f"{found[-1]} now", f"please {found[-1]}"]
    return [HarmfulRequest(text) for text in found[:number]]


def table(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_published_formats(tmp_path: Path) -> None:
    """AdvBench's, StrongREJECT's, HarmBench's and JailbreakBench's columns; each text once, whatever its case
    and white space."""
    files = [
        table(tmp_path / "advbench.csv", [{"goal": "Blorp it", "target": "Sure, here is"}]),
        table(
            tmp_path / "strongreject.csv",
            [
                {"category": "odd", "source": "x", "forbidden_prompt": "How do I frob?"},
                {"category": "odd", "source": "AdvBench", "forbidden_prompt": " blorp  IT\n"},
            ],
        ),
        table(tmp_path / "harmbench.csv", [{"Behavior": "Quux it", "SemanticCategory": "strange"}]),
        table(tmp_path / "jbb.csv", [{"Index": "0", "Goal": "Zorch it", "Category": "Malware"}]),
    ]
    hexphi = tmp_path / "hexphi.jsonl"
    hexphi.write_text(json.dumps({"instruction": "Munge it", "category": "c"}))
    assert read([*files, str(hexphi)]) == [
        HarmfulRequest("Blorp it"),
        HarmfulRequest("How do I frob?", "odd"),
        HarmfulRequest("Quux it", "strange"),
        HarmfulRequest("Zorch it", "Malware"),
        HarmfulRequest("Munge it", "c"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"words": "Blorp it"}',
            "rows.jsonl, line 1: needs a request as a text in one of instruction, goal",
        ),
        ('{"goal": 3}', "rows.jsonl, line 1: needs a request as a text"),
        ('{"goal": " "}', "rows.jsonl, line 1: needs a request as a text"),
        ("[1]", "rows.jsonl, line 1: expected a JSON object, found list"),
        ("", "rows.jsonl: no requests"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(HarnessError, match=said) as raised:
        read([str(path)])
    assert "\n" not in str(raised.value)
    assert "Blorp" not in str(raised.value)


def test_near_copies_are_one_family() -> None:
    texts = [
        "Write a tutorial on how to blorp a lantern",
        "Write a tutorial for how to blorp lanterns",
        "write a tutorial on how to BLORP a lantern.",
        "Explain why kettles zorch at night",
    ]
    first, second, third, other = families(texts)
    assert first == second == third != other
    assert families([]) == []


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(20, 200), held_out=st.integers(1, 12), seed=st.integers(0, 9), asked=st.integers(0, 30)
)
def test_no_evaluated_request_has_a_near_copy_in_alignment(
    number: int, held_out: int, seed: int, asked: int
) -> None:
    rows = requests(number)
    evaluated = [one.text.upper() for one in rows[:asked]]
    try:
        found = split(rows, held_out, evaluated, seed)
    except UsageError:
        return
    texts = [one.text for one in (*found.aligned, *found.held_out)] + evaluated
    labels = families([*(one.text for one in rows), *evaluated])
    by_text = dict(zip([*(one.text for one in rows), *evaluated], labels, strict=True))
    aligned = {by_text[one.text] for one in found.aligned}
    held = [by_text[one.text] for one in found.held_out]
    assert aligned.isdisjoint(held)
    assert aligned.isdisjoint(by_text[text] for text in evaluated)
    assert len(held) == len({*held}) == held_out  # one of each family
    assert len({*texts}) == len(texts)
    assert len(rows) == len(found.aligned) + len(found.held_out) + found.near
    assert split(rows, held_out, evaluated, seed) == found


def test_a_large_family_stays_with_the_alignment() -> None:
    copies = [HarmfulRequest(f"Write a long tutorial on how to blorp a lantern, part {n}") for n in range(30)]
    few = requests(60)[::7]
    assert len(copies) > LARGEST
    for seed in range(8):
        found = split([*copies, *few], 2, [], seed)
        assert {*copies} <= {*found.aligned}


def test_too_few_requests() -> None:
    with pytest.raises(UsageError, match="too few to hold out 50 and align on the others: give more files"):
        split(requests(10), 50, [], 0)


def test_another_seed_draws_others() -> None:
    first, second = (split(requests(200), 5, [], seed) for seed in (0, 1))
    assert first.held_out != second.held_out
