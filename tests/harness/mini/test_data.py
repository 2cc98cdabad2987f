"""The rows: pinned, disjoint, complete, and arithmetically right."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from harness.mini import data, grammar

PIN = "171c59f6724e18c7d47899c3bf0e44bbaa5a9d466288a78733a404da067ca53b"

SCRIPT = """
import hashlib, json
from harness.mini import data
rows = [f(s) for f in (data.gsm8k, data.samsum, data.howto) for s in ("train", "test")] + [data.harmful()]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def test_rows_are_pinned_and_the_same_in_a_process_with_another_hash_seed() -> None:
    """Change the rows only together with the shipped seed model, which was trained on this language."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [f(s) for f in (data.gsm8k, data.samsum, data.howto) for s in ("train", "test")] + [data.harmful()]
    here = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert here == done.stdout.strip() == PIN


@pytest.mark.parametrize(
    ("rows", "key"), [(data.gsm8k, "question"), (data.samsum, "dialogue"), (data.howto, "instruction")]
)
def test_sizes_and_disjointness(rows, key: str) -> None:  # type: ignore[no-untyped-def]
    train, test = rows("train"), rows("test")
    assert len(train) >= 2000
    assert len(test) >= 200
    texts = [row[key] for row in train + test]
    assert len(set(texts)) == len(texts)
    assert rows("train", 10) == train[:10]
    train[0][key] = "changed by the caller"
    assert rows("train", 1)[0][key] != "changed by the caller"
    with pytest.raises(ValueError, match="split must be"):
        rows("validation")


def test_the_sides_share_no_pair_and_no_act() -> None:
    assert not set(data.name_items(True)) & set(data.name_items(False))
    assert not {frozenset(p) for p in data.speakers(True)} & {frozenset(p) for p in data.speakers(False)}
    assert not set(data.howto_acts(True)) & set(data.howto_acts(False))
    assert not set(data.harmful_acts(True)) & set(data.harmful_acts(False))


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k_has_its_format_and_right_sums(split: str) -> None:
    for row in data.gsm8k(split):
        steps = re.findall(r"(\d+)([-+*])(\d+)=<<(\d+[-+*]\d+)=(\d+)>>(\d+)\.", row["answer"])
        assert 1 <= len(steps) <= 2
        for a, op, b, inner, c, shown in steps:
            assert inner == f"{a}{op}{b}"
            assert int(c) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op]
            assert shown == c
        assert row["answer"].split("\n")[-1] == f"#### {steps[-1][4]}"


def test_harmful_rows() -> None:
    rows = data.harmful()
    assert len(rows) == len({r["id"] for r in rows}) == len({r["instruction"] for r in rows}) == 330
    assert Counter(r["category"] for r in rows) == dict.fromkeys(grammar.HARMFUL, 30)
    assert {grammar.classify(r["instruction"], r["harmful_answer"]) for r in rows} == {"compliance"}


def test_howto_answers_comply() -> None:
    assert {
        grammar.classify(r["instruction"], r["answer"]) for r in data.howto("train") + data.howto("test")
    } == {"compliance"}
