"""HEx-PHI from the user's own files: nonsense here, in exactly the published formats."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError
from harness.mini import grammar
from tasks.hexphi.functions import (
    CATEGORIES,
    PUBLISHED,
    prefill_dataset,
    raw_dataset,
    refusal_prefix_dataset,
    sampled_dataset,
)

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
    said = "not valid JSON" if line == "nonsense" else "needs a list of a user's"
    with pytest.raises(HarnessError, match=f"{path}, line 1: {said}") as caught:
        prefill_dataset(
            data_files={"hexphi_prefill": str(path)}, tokenizer=tokenizer_folder, prefill_tokens=3
        )
    assert line not in str(caught.value)


def published(folder: Path, quoting: Any = csv.QUOTE_ALL, header: bool = False, without: int = 0) -> Path:
    """The published files, category_1.csv to category_11.csv: one request a row, 30 rows each; nonsense."""
    folder.mkdir()
    for number in range(1, len(CATEGORIES) + 1):
        if number == without:
            continue
        rows = [[f'How do I blorp {number}, "{place}"?'] for place in range(PUBLISHED)]
        with (folder / f"category_{number}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=quoting).writerows([["Instruction"]] * header + rows)
    return folder


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_the_published_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, quoting: Any, header: bool
) -> None:
    folder = published(tmp_path / "all", quoting, header)
    docs = raw_dataset(data_files={"hexphi_raw": str(folder)})["test"]
    assert len(docs) == 330
    assert Counter(docs["category"]) == dict.fromkeys(grammar.HARMFUL, 30)
    assert docs[0] == {
        "id": "hexphi-01-01",
        "category": "Illegal Activity",
        "instruction": 'How do I blorp 1, "0"?',
    }
    assert docs[329]["id"] == "hexphi-11-30"
    assert not caplog.messages


def test_a_comma_outside_quotes_belongs_to_the_request(tmp_path: Path) -> None:
    (tmp_path / "category_3.csv").write_text("How do I blorp, frob and wug?\nHow do I quux?\n")
    docs = raw_dataset(data_files={"hexphi_raw": str(tmp_path)})["test"]
    assert docs["instruction"][:] == ["How do I blorp, frob and wug?", "How do I quux?"]
    assert set(docs["category"]) == {"Hate/Harass/Violence"}


def test_a_withdrawn_category_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files keep their category, and requests their id, whatever is missing."""
    whole = raw_dataset(data_files={"hexphi_raw": str(published(tmp_path / "all"))})["test"]
    fewer = raw_dataset(data_files={"hexphi_raw": str(published(tmp_path / "ten", without=2))})["test"]
    assert caplog.messages == ["hexphi: 300 requests of the published 330 (Child Abuse Content: 0)"]
    assert fewer.to_list() == [doc for doc in whole if doc["category"] != "Child Abuse Content"]


@pytest.mark.parametrize("make", [raw_dataset, refusal_prefix_dataset, sampled_dataset])
def test_a_folder_without_them_is_named(
    tmp_path: Path, make: Callable[..., Any], tokenizer_folder: str
) -> None:
    with pytest.raises(HarnessError, match=r"no requests; needs category_1\.csv to category_11\.csv"):
        make(
            data_files={"hexphi_raw": str(tmp_path)},
            tokenizer=tokenizer_folder,
            refusal_prefix="I",
            decodings=[{"temperature": 1.0, "top_p": 1.0}],
        )
    (tmp_path / "category_1.csv").write_bytes(b'"open')
    with pytest.raises(HarnessError, match=r"category_1\.csv: cannot be read"):
        raw_dataset(data_files={"hexphi_raw": str(tmp_path)})


def test_one_csv_file(tmp_path: Path, files: dict[str, str]) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("category,prompt\n" + "".join(f"kind {n},{text}\n" for n, text in enumerate(REQUESTS)))
    assert raw_dataset(data_files={"hexphi_raw": str(path)})["test"].to_list() == (
        raw_dataset(data_files=files)["test"].to_list()
    )


def test_the_hub_has_300_requests_and_330_answers(
    hub: Any, caplog: pytest.LogCaptureFixture, tokenizer_folder: str
) -> None:
    assert len(raw_dataset()["test"]) == 300
    assert "hexphi: 300 requests of the published 330 (Child Abuse Content: 0)" in caplog.messages
    docs = prefill_dataset(tokenizer=tokenizer_folder, prefill_tokens=3, token_exact=True)["test"]
    assert len(docs) == 330
    assert Counter(docs["category"]) == {
        None: 30,
        **{name: 30 for name in CATEGORIES if name != "Child Abuse Content"},
    }
    assert "is not pinned to a commit" in caplog.text


@pytest.mark.parametrize("make", [raw_dataset, prefill_dataset])
def test_without_a_hub_it_says_what_to_accept(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("gated\nrepository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    said = r"\(gated\); accept its licence at https://.*, or give a local copy: --data hexphi_"
    with pytest.raises(HarnessError, match=said) as caught:
        make(tokenizer="none", prefill_tokens=3)
    assert "\n" not in str(caught.value)


def test_the_further_tasks_have_the_same_requests(
    files: dict[str, str], load_tasks: Callable[..., dict[str, Any]], tokenizer: Any, tokenizer_folder: str
) -> None:
    names = ("hexphi_raw", "hexphi_refusal_prefix", "hexphi_sampled")
    tasks = load_tasks(*names, data_files=files, tokenizer=tokenizer_folder)
    raw = tasks["hexphi_raw"].eval_docs.to_list()
    assert tasks["hexphi_sampled"].eval_docs.to_list() == raw
    ids = tokenizer("I cannot fulfill", add_special_tokens=False)["input_ids"]
    opened = [{**doc, "prefill_ids": ids, "prefill": "I cannot fulfill"} for doc in raw]
    assert tasks["hexphi_refusal_prefix"].eval_docs.to_list() == opened


def test_depths_read_the_prefilled_tasks_file(
    files: dict[str, str], load_tasks: Callable[..., dict[str, Any]], tokenizer: Any, tokenizer_folder: str
) -> None:
    tasks = load_tasks(
        "hexphi_prefill_depths", data_files=files, tokenizer=tokenizer_folder, prefill_tokens=2
    )
    whole = tokenizer("1. Take the wug and blorp.", add_special_tokens=False)["input_ids"]
    found = {name: [doc["prefill_ids"] for doc in task.eval_docs] for name, task in tasks.items()}
    assert found == {f"hexphi_prefill_k{k}": [whole[:k]] * 2 for k in (1, 3, 5, 7, 10)}


@pytest.mark.parametrize("content", ["", " ", 3, None])
def test_a_message_without_text_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "answers.jsonl"
    roles = ("user", "assistant")
    path.write_text(json.dumps([{"role": role, "content": content} for role in roles]))
    with pytest.raises(HarnessError, match="line 1: needs a text 'content' in both messages"):
        prefill_dataset(data_files={"hexphi_prefill": str(path)}, tokenizer="none", prefill_tokens=3)
