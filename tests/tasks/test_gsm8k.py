"""The real gsm8k on local files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError
from tasks.gsm8k.functions import dataset


def test_local_file_through_lm_eval(
    load_tasks: Callable[..., dict[str, Any]], canned_lm: Any, gsm8k_file: Path
) -> None:
    from lm_eval.evaluator import evaluate

    tasks = load_tasks("gsm8k", data_files={"gsm8k": str(gsm8k_file)})
    assert [doc["id"] for doc in tasks["gsm8k"].eval_docs] == ["gsm8k-test-0000", "gsm8k-test-0001"]
    lm = canned_lm(lambda doc: "So it is\n#### 1234.0" if "Ann" in doc["question"] else "#### -3")
    found = evaluate(lm, tasks, apply_chat_template=True, bootstrap_iters=0)["results"]["gsm8k"]
    assert found["exact_match,none"] == 0.5
    assert found["exact_match_first,none"] == 1.0


def test_own_ids_and_further_fields(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 7, "question": "q", "answer": "#### 1", "more": {"x": [1]}}\n')
    assert dataset(data_files={"gsm8k": str(path)})["test"].to_list() == [
        {"id": "7", "question": "q", "answer": "#### 1"}
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"question": "q", "answer": "#### 1"}\n{"question": \n', "line 2: not valid JSON"),
        ('{"question": "q"}\n', "line 1: needs a text field 'answer'"),
        ('{"question": 3, "answer": "a"}\n', "line 1: needs a text field 'question'"),
        ("[1]\n", "line 1: needs a text field 'question'"),
        ('{"question": " ", "answer": "a"}\n', "line 1: needs a text field 'question'"),
        ('{"question": "q", "answer": "1"}\n', "line 1: 'answer' needs its last line '#### NUMBER'"),
        ('{"question": "q", "answer": "1\\n####"}\n', "line 1: 'answer' needs its last line '#### NUMBER'"),
        ('{"question": "q", "answer": "1\\n#### ,"}\n', "line 1: 'answer' needs its last line '#### NUMBER'"),
        ('{"id": 1, "question": "q", "answer": "#### 1"}\n' * 2, "two rows have the same id '1'"),
        ("", "no rows"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(HarnessError, match=complaint):
        dataset(data_files={"gsm8k": str(path)})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="absent"):
        dataset(data_files={"gsm8k": str(tmp_path / "absent.jsonl")})


def test_data_files_must_be_a_mapping() -> None:
    with pytest.raises(HarnessError, match="data_files"):
        dataset(data_files="test.jsonl")


SHARED = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.mark.requires_shared_data
@pytest.mark.skipif(
    not SHARED.is_file(), reason="real GSM8K is not beside the checkout (../shared/data/gsm8k)"
)
def test_real_references_score_one(load_tasks: Callable[..., dict[str, Any]], canned_lm: Any) -> None:
    from lm_eval.evaluator import evaluate

    tasks = load_tasks("gsm8k", data_files={"gsm8k": str(SHARED)})
    lm = canned_lm(lambda doc: doc["answer"])
    found = evaluate(lm, tasks, apply_chat_template=True, bootstrap_iters=0)["results"]["gsm8k"]
    assert found["sample_len"] == 1319
    assert found["exact_match,none"] == found["exact_match_first,none"] == 1.0
