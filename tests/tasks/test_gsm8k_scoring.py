"""GSM8K's two rules on cases with the reason beside each, and on the real references where present."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.gsm8k_scoring import exact_match, exact_match_first, final_text, process_results

REFERENCE = "Ann has 9+9=<<9+9=18>>18 pens.\n#### 18"

# (response, reference, exact_match, exact_match_first, why)
CASES = [
    (REFERENCE, REFERENCE, 1, 1, "the reference itself"),
    ("#### 18", REFERENCE, 1, 1, "no working is asked for"),
    ("#### 18\n", REFERENCE, 1, 1, "outer white space is stripped"),
    ("#### 1,234", "#### 1234", 1, 1, "commas in the response are dropped"),
    ("#### 1234", "#### 1,234", 1, 1, "commas in the reference are dropped"),
    ("#### 1,2,3,4", "#### 1234", 1, 1, "commas anywhere are dropped"),
    ("#### 17\n#### 18", REFERENCE, 1, 0, "several markers: last against first"),
    ("#### 18\n#### 17", REFERENCE, 0, 1, "several markers: last against first"),
    ("The answer is 18.", REFERENCE, 0, 0, "no marker: wrong, though the number is right"),
    ("18", REFERENCE, 1, 0, "no marker: the whole text is compared, and here it is the number"),
    (" 1,8\n", REFERENCE, 1, 0, "the same, stripped and without commas"),
    ("", REFERENCE, 0, 0, "nothing"),
    ("####", REFERENCE, 0, 0, "a marker without a number"),
    ("#### eighteen", REFERENCE, 0, 0, "a marker without digits"),
    ("#### -3", "#### -3", 1, 1, "negative"),
    ("#### 3", "#### -3", 0, 0, "the sign counts"),
    ("#### - 3", "#### -3", 0, 0, "a space after the sign"),
    ("#### 18.0", REFERENCE, 0, 1, "decimals: another string, the same float"),
    ("#### 12.0", "#### 12", 0, 1, "decimals: another string, the same float"),
    ("#### 018", REFERENCE, 0, 1, "a leading zero: another string, the same float"),
    ("#### 18.", REFERENCE, 0, 1, "a full stop: another string, the same float"),
    ("#### 18 dollars", REFERENCE, 0, 1, "trailing text counts in the string only"),
    ("#### 18\nI hope this helps.", REFERENCE, 0, 1, "a trailing line counts in the string only"),
    ("#### $18", REFERENCE, 0, 0, "a currency sign hides the number from both"),
    ("####18", REFERENCE, 1, 0, "the second rule needs the space"),
    ("####  18", REFERENCE, 1, 0, "the second rule needs exactly one space"),
    ("#### **18**", REFERENCE, 0, 0, "markdown hides the number from both"),
    ("##### 18", REFERENCE, 0, 1, "of five signs the first four are the marker, and one is left"),
    ("###### 18", REFERENCE, 0, 1, "six signs"),
    ("######## 18", REFERENCE, 1, 1, "eight signs are two markers"),
    ("### 18", REFERENCE, 0, 0, "three signs are none"),
    ("#### 18 ,", REFERENCE, 0, 1, "white space goes before commas do: a blank is left"),
    ("#### , 18", REFERENCE, 0, 0, "a blank is left in front"),
    ("#### 18,", REFERENCE, 1, 1, "a comma at the end"),
    ("#### ,18", REFERENCE, 1, 1, "a comma in front"),
    ("####\n18", REFERENCE, 1, 0, "a line break is white space"),
    ("#### 18 ####", REFERENCE, 0, 1, "nothing behind the last marker"),
    ("#### 1.8.0", "#### 18", 0, 0, "no float: wrong, not an error"),
    ("#### .", "#### 18", 0, 0, "no float: wrong, not an error"),
    ("#### ,", "#### 18", 0, 0, "no float: wrong, not an error"),
    ("#### x\n#### 18", REFERENCE, 1, 1, "the first match of a number, not the first marker"),
    ("#### 18", "no marker 18", 0, 0, "a reference without marker is compared whole"),
    ("no marker 18", "no marker 18", 1, 0, "a reference without marker is compared whole"),
]


def by_the_papers_script(text: str) -> str:
    """Its four steps, one by one and in its order."""
    tail = text.split("####")[-1]
    tail = tail.strip()
    return "".join(character for character in tail if character != ",")


@given(st.text(alphabet="#18, \n.-$", max_size=12), st.text(alphabet="# 18,", max_size=6), st.booleans())
def test_the_papers_rule_to_the_letter(response: str, label: str, marked: bool) -> None:
    reference = f"So.\n#### {label}" if marked else label
    expected = by_the_papers_script(response) == by_the_papers_script(reference)
    assert exact_match(response, reference) == float(expected)
    assert final_text(response) == by_the_papers_script(response)


@pytest.mark.parametrize(("response", "reference", "last", "first", "why"), CASES)
def test_cases(response: str, reference: str, last: int, first: int, why: str) -> None:
    assert exact_match(response, reference) == last, why
    assert exact_match_first(response, reference) == first, why
    found = process_results({"answer": reference}, [response, "another sample", "#### x"])
    assert found == {"exact_match": last, "exact_match_first": first}


SHARED = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


@pytest.mark.requires_shared_data
@pytest.mark.skipif(
    not SHARED.is_dir(), reason="real GSM8K is not beside the checkout (../shared/data/gsm8k)"
)
@pytest.mark.parametrize(("split", "count"), [("test", 1319), ("train", 7473)])
def test_every_real_reference_answer_is_right(split: str, count: int) -> None:
    answers = [json.loads(line)["answer"] for line in (SHARED / f"{split}.jsonl").open(encoding="utf-8")]
    assert len(answers) == count
    assert all(exact_match(answer, answer) == 1.0 for answer in answers)
    assert all(exact_match_first(answer, answer) == 1.0 for answer in answers)
    assert not any(exact_match(answer, answer + "0") for answer in answers)
