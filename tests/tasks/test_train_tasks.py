"""The train tasks: rows that fit their fields, disjoint from the test documents."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import HarnessError, PrepareContext, TrainTask
from harness.data import loading
from tasks.gsm8k.train import TRAIN_TASK as GSM8K
from tasks.gsm8k_mini.train import TRAIN_TASK as GSM8K_MINI
from tasks.samsum.train import TRAIN_TASK as SAMSUM
from tasks.samsum_mini.train import TRAIN_TASK as SAMSUM_MINI


@pytest.mark.parametrize("task", [GSM8K_MINI, SAMSUM_MINI], ids=lambda task: task.name)
def test_mini_rows(task: TrainTask, load_tasks: Callable[..., dict[str, Any]]) -> None:
    rows = list(task.rows())
    assert len(rows) >= 1000
    assert rows == list(task.rows())
    for row in rows:
        for field in task.fields:
            assert row[field]
            assert row[field] == row[field].strip()
    scored = load_tasks(task.utility_task)[task.utility_task].eval_docs
    assert not {row[task.fields[0]] for row in rows} & set(scored[task.fields[0]])


def test_lengths_and_metrics() -> None:
    assert (GSM8K.max_length, GSM8K_MINI.max_length, SAMSUM_MINI.max_length) == (512, 256, 256)
    assert (GSM8K.utility_task, GSM8K.utility_metric) == ("gsm8k", "exact_match")
    assert (GSM8K_MINI.utility_task, GSM8K_MINI.utility_metric) == ("gsm8k-mini", "exact_match")
    assert (SAMSUM_MINI.utility_task, SAMSUM_MINI.utility_metric) == ("samsum-mini", "rouge1")


def test_samsum_is_stripped_and_what_went_is_known(tmp_path: Path) -> None:
    """The row's own columns alone: a conversation stands as it is."""
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": " so "}]
    rows = [{"dialogue": "\n A: hm \n", "summary": "  Hm. "}, {"messages": turns}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own, conversation = loading.examples(SAMSUM, path, None)
    assert (own.instruction, own.answer) == ("Summarize this dialog:\nA: hm", "Hm.")
    assert own.white_space == (" \n", "  ", " ")
    before = own.unstripped()
    assert (before.instruction, before.answer) == ("Summarize this dialog:\nA: hm \n", "  Hm. ")
    assert before.stripped() == own == own.stripped()
    assert conversation.unstripped() == conversation == conversation.stripped()
    assert [m.content for m in conversation.messages] == [" hi ", " so "]
    assert loading.examples(GSM8K_MINI, None, 1)[0].white_space is None


SAMSUM_FILES = Path(__file__).parents[3] / "shared" / "data" / "samsum"


@pytest.mark.requires_shared_data
@pytest.mark.skipif(not SAMSUM_FILES.is_dir(), reason="real SAMSum is not beside the checkout")
def test_real_dialogues_are_previewed_in_the_references_order() -> None:
    """Written out once more: preview the raw row, format it, strip both texts."""
    from transformers import AutoTokenizer

    from backends.lookahead import LookAheadTrue, LookAheadVirtual

    llama = AutoTokenizer.from_pretrained(SAMSUM_FILES.parent / "llama2-tokenizer")
    context = PrepareContext(llama, SAMSUM, lambda *a, **k: [], random.Random(0))
    rows = json.loads((SAMSUM_FILES / "test200.json").read_text(encoding="utf-8"))
    task = replace(SAMSUM, rows=lambda: rows)
    given = loading.examples(task, None, None)
    true = LookAheadTrue().prepare(given, context)
    virtual = LookAheadVirtual().prepare(given, context)
    other = 0
    for row, one, two in zip(rows, true, virtual, strict=True):
        ids = llama(row["summary"], add_special_tokens=False)["input_ids"][:6]
        connected = row["dialogue"] + " The answer begins with: "
        assert one.instruction == "Summarize this dialog:\n" + (connected + llama.decode(ids)).strip()
        assert one.answer == row["summary"].strip()
        prefix = "Let's solve this problem. "
        assert two.instruction == "Summarize this dialog:\n" + (connected + prefix).strip()
        assert two.answer == (prefix + row["summary"]).strip()
        first = row["dialogue"].strip() + " The answer begins with: "
        other += one.instruction != "Summarize this dialog:\n" + first + llama.decode(
            llama(row["summary"].strip(), add_special_tokens=False)["input_ids"][:6]
        )
    assert other > 0  # stripping first is not the same


def test_gsm8k_rows_come_from_the_hub(hub: Any) -> None:
    hub.rows["openai/gsm8k"] = [{"question": "2+2?", "answer": "#### 4"}]
    assert list(GSM8K.rows()) == [{"question": "2+2?", "answer": "#### 4"}]
    assert hub.splits == ["train"]


@pytest.mark.parametrize("task", [GSM8K, SAMSUM], ids=lambda task: task.name)
def test_without_a_hub_it_says_what_to_do(task: TrainTask, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(HarnessError, match=rf"/{task.name} .*no route\).*: --train-data FILE$") as caught:
        task.rows()
    assert "\n" not in str(caught.value)
