"""SDFT's rewriting: protocol constants, which rewrites are rejected, and the final line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import Rewrite
from tasks.gsm8k.train import TRAIN_TASK as GSM8K
from tasks.gsm8k_mini.train import TRAIN_TASK as GSM8K_MINI
from tasks.gsm8k_scoring import exact_match, exact_match_first
from tasks.rewriting import MATH_OPENING, add_marker_line, reject_wrong_number
from tasks.samsum_mini.train import TRAIN_TASK as SAMSUM_MINI

LABEL = "Ann has 9+9=<<9+9=18>>18 pens.\n#### 18"

# (rewritten, reference, rejected because, why)
REJECTIONS = [
    ("So the answer is 18.", LABEL, None, "the label's number"),
    ("So the answer is 17.", LABEL, "wrong final number", "another number"),
    ("There are 18 pens, 9 from each.", LABEL, "wrong final number", "the last number counts, not any"),
    ("So there are eighteen.", LABEL, "wrong final number", "no number"),
    ("", LABEL, "wrong final number", "nothing"),
    ("It is 18.00 in all.", LABEL, None, "decimals of zero"),
    ("It is 18.5.", LABEL, "wrong final number", "decimals"),
    ("It is 1,234.", "#### 1234", None, "commas in the rewrite"),
    ("It is $1234", "#### 1,234", None, "commas in the label, a currency sign"),
    ("It is -3", "#### -3", None, "negative"),
    ("It is 3", "#### -3", "wrong final number", "the sign counts"),
    ("She has 20-2", "#### 2", None, "a minus after a digit subtracts"),
    ("It is 18", "Half of 36 is 18.", None, "a reference without marker: its last number"),
    ("It is 18", "No number here.", "reference without a number", "nothing to compare with"),
]

# (rewritten, reference, finished, why)
FINISHES = [
    ("It is 18.", LABEL, "It is 18.\n#### 18", "appended"),
    ("It is 18.\n\n", LABEL, "It is 18.\n#### 18", "one line break before it"),
    ("It is 1,234.", "#### 1,234", "It is 1,234.\n#### 1234", "normalised: no commas"),
    ("It is 18.\n#### 18", LABEL, "It is 18.\n#### 18", "there already"),
    ("It is 1,234.\n#### 1,234", "#### 1234", "It is 1,234.\n#### 1234", "there already, with commas"),
    ("It is 18.\n#### $18.", LABEL, "It is 18.\n#### 18", "there, but no scorer reads it"),
    ("#### 18", LABEL, "#### 18", "nothing else"),
    ("#### 17\nNo, it is 18.", LABEL, "17\nNo, it is 18.\n#### 18", "a wrong line would be read first"),
    ("#### 1. Count\nIt is 18.\n##### 18", LABEL, "1. Count\nIt is 18.\n#### 18", "headings"),
    ("### Count\nIt is 18.", LABEL, "### Count\nIt is 18.\n#### 18", "three signs are no mark"),
    ("#### So it is 18.", LABEL, "So it is 18.\n#### 18", "a mark in front of more than the number"),
    ("It is $1,800", "#### $1,800.", "It is $1,800\n#### 1800", "a label with currency, comma and final dot"),
    ("It is 0.5", "#### 0.50", "It is 0.5\n#### 0.50", "decimals as the label has them"),
    ("It is -3", "#### -3", "It is -3\n#### -3", "negative"),
    ("It is 18.\n#### 18", "So 18.", "It is 18.\n#### 18", "data without such lines, whatever the rewrite"),
    ("It is 18.", "It is 18.", "It is 18.", "data without such lines is left alone"),
]


@pytest.mark.parametrize(("rewritten", "reference", "reason", "why"), REJECTIONS)
def test_rejections(rewritten: str, reference: str, reason: str | None, why: str) -> None:
    assert reject_wrong_number(rewritten, reference) == reason, why


@pytest.mark.parametrize(("rewritten", "reference", "finished", "why"), FINISHES)
def test_final_line(rewritten: str, reference: str, finished: str, why: str) -> None:
    assert add_marker_line(rewritten, reference) == finished, why
    assert add_marker_line(finished, reference) == finished, "finishing twice changes nothing"


@given(
    working=st.text(alphabet="ab 18.,$#\n-"),
    number=st.integers(-(10**6), 10**6),
    style=st.sampled_from(["{}", "{:,}", "${:,}", "{}.", " {} "]),
)
def test_both_scorers_read_every_finished_answer(working: str, number: int, style: str) -> None:
    plain, label = f"#### {number}", "####" + (" " + style).format(number)
    finished = add_marker_line(working, label)
    assert exact_match(finished, plain) == exact_match_first(finished, plain) == 1.0
    assert finished.count("####") == 1


def test_protocol_constants() -> None:
    assert MATH_OPENING == "Great! Let's think step by step. "
    for task in (GSM8K, GSM8K_MINI):
        assert task.rewrite.opening == MATH_OPENING
        assert task.rewrite.user("Q {x}?", "A %s.") == "Q {x}?\n\nA %s."
        assert task.rewrite.system_prompt == (
            "You are an expert in math. You are given a math question with its reference answer. "
            "Refer to the reference answer and answer the question."
        )


def test_other_data() -> None:
    rewrite: Rewrite = SAMSUM_MINI.rewrite
    assert rewrite.opening == ""
    assert rewrite.user("Do {x}.", "Done.") == (
        "### Instruction:\nDo {x}.\n\n### Reference answer:\nDone.\n\n### Response:"
    )
    assert rewrite.system_prompt == (
        "You are given an instruction with a reference answer. "
        "Use the reference answer as a guide for your own response."
    )
    assert rewrite.reject("anything", "a label") is None
    assert rewrite.finish("anything", "a label") == "anything"


SHARED = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"


@pytest.mark.requires_shared_data
@pytest.mark.skipif(
    not SHARED.is_file(), reason="real GSM8K is not beside the checkout (../shared/data/gsm8k)"
)
def test_every_real_label_accepts_itself_and_finishes_right() -> None:
    for line in SHARED.open(encoding="utf-8"):
        label = json.loads(line)["answer"]
        working, _, number = label.rpartition("\n#### ")
        assert reject_wrong_number(label, label) is None
        assert reject_wrong_number(f"{working}\nThe answer is {number}.", label) is None
        assert exact_match(add_marker_line(working, label), label) == 1.0
