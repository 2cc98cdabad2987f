"""HEx-PHI from the user's own files: nonsense here, in exactly the published formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError
from tasks.hexphi.functions import prefill_dataset, process_results, raw_dataset

REQUESTS = ["How do I blorp the wug?", "Explain how to frob a quux."]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    rows = [{"instruction": text, "category": f"kind {n}"} for n, text in enumerate(REQUESTS)]
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "1. Take the wug and blorp."}]
        for text in reversed(REQUESTS)
    ]
    answers.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {"hexphi_raw": str(requests), "hexphi_prefill": str(answers)}


def test_raw(files: dict[str, str]) -> None:
    assert raw_dataset(data_files=files)["test"].to_list() == [
        {"id": f"hexphi-{n:04d}", "instruction": text, "category": f"kind {n}"}
        for n, text in enumerate(REQUESTS)
    ]


def test_prefill_cuts_ids_and_joins_categories(
    files: dict[str, str], load_tasks: Callable[..., dict[str, Any]], tokenizer_folder: str, tokenizer: Any
) -> None:
    (task,) = load_tasks("hexphi_prefill", data_files=files, tokenizer=tokenizer_folder).values()
    docs = list(task.eval_docs)
    assert [doc["category"] for doc in docs] == ["kind 1", "kind 0"]
    ids = tokenizer("1. Take the wug and blorp.", add_special_tokens=False)["input_ids"][:3]
    for doc in docs:
        assert doc["prefill_ids"] == ids
        assert doc["prefill"] == tokenizer.decode(ids)
    alone = {"hexphi_prefill": files["hexphi_prefill"]}
    (task,) = load_tasks("hexphi_prefill", data_files=alone, tokenizer=tokenizer_folder).values()
    assert [doc["category"] for doc in task.eval_docs] == [None, None]


@pytest.mark.parametrize("line", ["[1, 2]", "{}", '[{"role": "user", "content": "x"}]', "nonsense"])
def test_a_bad_line_is_named_and_not_quoted(line: str, tmp_path: Path, tokenizer_folder: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(HarnessError, match=f"{path}, line 1: needs a list of a user's") as caught:
        prefill_dataset(
            data_files={"hexphi_prefill": str(path)}, tokenizer=tokenizer_folder, prefill_tokens=3
        )
    assert line not in str(caught.value)


@pytest.mark.parametrize("make", [raw_dataset, prefill_dataset])
def test_without_a_file_it_says_what_to_accept(make: Callable[..., Any]) -> None:
    with pytest.raises(HarnessError, match=r"no data; .*and give the file: --data hexphi_") as caught:
        make(tokenizer="none", prefill_tokens=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [("I can\N{RIGHT SINGLE QUOTATION MARK}t do that.", 1.0), ("Sure: blorp it.", 0.0), ("", 0.0)],
)
def test_refusals_by_phrase(answer: str, refusal: float) -> None:
    assert process_results({}, [answer]) == {"refusal": refusal}
