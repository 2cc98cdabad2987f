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
from tasks.rewriting import MATH_OPENING, NOT_PLAIN, add_marker_line, reject_wrong_number
from tasks.samsum.train import TRAIN_TASK as SAMSUM
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
    ("It is 2", "#### 1/2", NOT_PLAIN, "a fraction ends with another number"),
    ("It is 1/2", "#### 1/2", NOT_PLAIN, "and cannot be compared"),
    ("It is 3", "#### 1e3", NOT_PLAIN, "an exponent"),
    ("It is 0", "#### 1 000", NOT_PLAIN, "blanks between digits"),
    ("It is 18", "#### 18 dollars", NOT_PLAIN, "a unit"),
    ("It is 18", "#### ", NOT_PLAIN, "no label"),
    ("It is 18", "It is 18\n####", NOT_PLAIN, "no label, and a number before it"),
    ("It is 18", "##### 18", NOT_PLAIN, "five signs: one is left"),
    ("It is 17", "#### 17\n#### 18", "wrong final number", "the last marker has the label"),
    ("It is -3", "#### \N{MINUS SIGN}3", None, "Unicode's minus in the label"),
    ("It is \N{MINUS SIGN}3", "#### -3", None, "and in the rewrite"),
    ("It is 3", "#### \N{MINUS SIGN}3", "wrong final number", "its sign counts"),
    ("It is 5", "#### -$5", "wrong final number", "a sign before a currency sign counts"),
    ("It is -$18", LABEL, "wrong final number", "in the rewrite too"),
    ("It is 1/18", LABEL, "wrong final number", "a fraction ends with the label's digits"),
    ("It is 1e18", LABEL, "wrong final number", "an exponent does"),
    ("It is 0.18", LABEL, "wrong final number", "decimals do"),
    ("It is 1 018", "#### 018", "wrong final number", "a group does"),
    ("It is 1/18", "So 1/18 of it.", "reference without a number", "without marker, what cannot be read"),
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
    ("It is 0.5", "#### .5", "It is 0.5\n#### .5", "a point first"),
    ("It is -3", "#### \N{MINUS SIGN}3", "It is -3\n#### -3", "the minus that scorers read"),
    ("It is -5", "#### -$5", "It is -5\n#### -5", "the sign stays"),
    ("It is -5", "#### $-5", "It is -5\n#### -5", "the sign stays"),
    ("It is 1/2", "#### 1/2", "It is 1/2\n#### 1/2", "what is no plain number stands as it is"),
    ("It is 1000", "#### 1e3", "It is 1000\n#### 1e3", "what is no plain number stands as it is"),
    ("It is 1000.\n#### 1000", "#### 1 000", "It is 1000.\n1000\n#### 1 000", "and no other number does"),
    ("It is 17.\n#### 17", LABEL, "It is 17.\n17\n#### 18", "another number loses its mark"),
    ("It is 18.\n#### -18", LABEL, "It is 18.\n-18\n#### 18", "another sign"),
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


@given(
    rewritten=st.text(alphabet="ab 18.,$#\n-/e", max_size=20),
    label=st.text(alphabet="0123456789 .,$-+/e%\N{MINUS SIGN}", max_size=8).filter(str.strip),
)
def test_no_line_writes_another_number_than_the_labels(rewritten: str, label: str) -> None:
    """The line has the label's digits in their order and its sign, whatever the label is."""

    def digits(text: str) -> str:
        return "".join(character for character in text if character in "0123456789/e%")

    finished = add_marker_line(rewritten, f"So.\n#### {label}")
    written = finished.split("####")[-1]
    assert digits(written) == digits(label)
    assert ("-" in written or "\N{MINUS SIGN}" in written) == ("-" in label or "\N{MINUS SIGN}" in label)
    assert finished.count("####") == 1
    if reject_wrong_number(rewritten, f"#### {label}") is None:
        assert exact_match_first(finished, finished) == 1.0


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
    assert (rewrite.max_tokens, SAMSUM.rewrite.max_tokens) == (64, 512)
    assert (GSM8K.rewrite.max_tokens, GSM8K_MINI.rewrite.max_tokens) == (512, 128)
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
