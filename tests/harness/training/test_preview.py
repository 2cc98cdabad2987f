"""``harness data show`` and ``export`` tell the truth: the marked tokens are those previewed and trained."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import config
from harness.config import RunConfig
from harness.contracts import Example, HarnessError, Message
from harness.mini import data, seed_model_path
from harness.models import chat
from harness.plugins import registry
from harness.training import preview

TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST]\n' + m['content'].strip() + '\n[/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(seed_model_path())


def resolved(method: str, **overrides: Any) -> RunConfig:
    return config.load("mini", {"methods": [method], "train_tasks": ["gsm8k-mini"], **overrides})


def shown(method: str, index: int = 0, colour: bool = False, **overrides: Any) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        width=100,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=False,
        legacy_windows=False,
    )
    preview.show(resolved(method, **overrides), method, "gsm8k-mini", index, console)
    return out.getvalue()


def counts(text: str) -> dict[str, int]:
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return {
        kind: int(n) for kind, n in re.findall(r"[\[{]?(preview|masked|trained)[\]}]? (\d+) tokens", bare)
    }


def length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


ROW = data.gsm8k("train")[0]
PREFIX = "Let's solve this problem. "


@pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
def test_lookahead_true(tokenizer: Any, colour: bool) -> None:
    text = shown("lookahead-true", colour=colour)
    ids = tokenizer(ROW["answer"], add_special_tokens=False)["input_ids"]
    preview = " The answer begins with: " + tokenizer.decode(ids[:6])
    answer = ROW["answer"] + tokenizer.eos_token
    whole = chat.encode(
        tokenizer,
        Example(
            "x",
            (
                Message("system", "You are a helpful assistant."),
                Message("user", ROW["question"] + preview),
                Message("assistant", ROW["answer"]),
            ),
        ),
    )
    found = counts(text)
    assert found["preview"] == length(tokenizer, preview)
    assert found["trained"] == len(ids) + 1 == sum(whole.trained)
    assert sum(found.values()) == len(whole.input_ids)
    if colour:
        assert f"\x1b[30;43m{preview}\x1b[0m" in text
        assert f"\x1b[1;32m{answer.splitlines()[0]}" in text
        assert f"[{preview}]" not in text
        assert "{" not in text
    else:
        assert f"[{preview}]" in text
        assert "{" + answer + "}" in text
        assert "\x1b" not in text
        assert text.startswith(
            f"<|bos|><|system|>You are a helpful assistant.<|end|><|user|>{ROW['question']}["
        )


def test_a_variant_is_shown_as_its_method_under_its_options() -> None:
    options = {"preview_tokens": 2}
    variants = {"m2": {"method": "lookahead-true", "options": options}}
    text = shown("m2", variants=variants)
    assert text == shown("lookahead-true", method_options={"lookahead-true": options})
    assert counts(text)["preview"] < counts(shown("lookahead-true"))["preview"]
    cut = {"cut": {"method": "vanilla", "training": {"max_length": 64}}}
    assert sum(counts(shown("cut", variants=cut)).values()) == 64


def test_lookahead_virtual(tokenizer: Any) -> None:
    text = shown("lookahead-virtual")
    preview = f" The answer begins with: {PREFIX}"
    assert f"[{preview}]" in text
    assert "{" + PREFIX + ROW["answer"] + tokenizer.eos_token + "}" in text
    assert counts(text)["preview"] == length(tokenizer, preview)
    assert counts(text)["trained"] == length(tokenizer, PREFIX + ROW["answer"]) + 1


def test_vanilla_has_no_preview(tokenizer: Any) -> None:
    text = shown("vanilla", index=2)
    answer = data.gsm8k("train")[2]["answer"]
    assert counts(text)["preview"] == 0
    assert counts(text)["trained"] == length(tokenizer, answer) + 1
    assert "{" + answer + tokenizer.eos_token + "}" in text


def test_the_text_is_whole_where_tokens_split_letters(tmp_path: Path) -> None:
    """One letter can be three tokens, and other tokenizers' words lose their space when decoded alone."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"question": "Wie viele Äpfel, 東京?", "answer": "Drei Äpfel für 東京."}) + "\n"
    )
    text = shown("vanilla", train_data=path)
    assert "Wie viele Äpfel, 東京?" in text
    assert "{Drei Äpfel für 東京.<|end|>}" in text
    assert "\N{REPLACEMENT CHARACTER}" not in text


def test_a_letter_cut_by_a_mark_does_not_repeat_the_text(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss-free beginning can end inside a letter: its first byte is masked, the others are trained."""
    example = Example("x", (Message("user", "Where?"), Message("assistant", "東京.")), loss_free_tokens=1)
    monkeypatch.setattr(preview, "prepared", lambda *args: (tokenizer, [example], [example]))
    text = shown("vanilla")
    assert text.count("Where?") == 1
    assert "{東京.<|end|>}" in text


def test_what_is_cut_is_not_shown(tmp_path: Path) -> None:
    text = shown("vanilla", **{"training.max_length": 60})
    assert sum(counts(text).values()) == 60
    assert "<|end|>}" not in text
    with pytest.raises(HarnessError, match=r"--index 0: its prompt fills max_length 8"):
        shown("vanilla", **{"training.max_length": 8})


def test_preview_under_a_template_that_trims(tokenizer: Any) -> None:
    """Llama 2's own template strips the user turn, so the prefix's last space is not there to be marked."""
    original = Example("x", (Message("user", "         How many?"), Message("assistant", "Four.")))
    changed = original.with_instruction(f"         How many? The answer begins with: {PREFIX}")
    trimming = type(tokenizer).from_pretrained(seed_model_path())
    trimming.chat_template = TRIMMING
    for used, expected in (
        (tokenizer, f" The answer begins with: {PREFIX}"),
        (trimming, " The answer begins with: Let's solve this problem."),
    ):
        ids = chat.encode(used, changed).input_ids
        marked = preview.preview_positions(used, original, changed)
        assert used.decode([ids[i] for i in marked]) == expected
        assert marked == list(range(marked[0], marked[-1] + 1))


def test_no_preview_where_nothing_was_added(tokenizer: Any) -> None:
    original = Example("x", (Message("user", "How many?"), Message("assistant", "Four.")))
    assert preview.preview_positions(tokenizer, original, original) == []
    other = original.with_instruction("Something else")
    assert preview.preview_positions(tokenizer, original, other) == []


def test_index_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Q?", "answer": "A."}) + "\n")
    with pytest.raises(HarnessError, match=r"--index 3: there are 1 rows, counted from 0"):
        shown("vanilla", index=3, train_data=path)
    with pytest.raises(HarnessError, match=r"--index 5000: there are 2,000 rows, counted from 0"):
        shown("vanilla", index=5000)


@pytest.mark.parametrize("method", ["vanilla", "lookahead-true", "lookahead-virtual"])
def test_export_writes_what_is_trained_on(method: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert preview.export(resolved(method), method, "gsm8k-mini", 7, out) == 7
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    task = registry.load("train task", "gsm8k-mini")
    prepared = preview.prepared(resolved(method, **{"training.max_examples": 7}), method, task)[2]
    assert rows == [
        {"messages": [{"role": m.role, "content": m.content} for m in example.messages]}
        for example in prepared
    ]
    question, answer = ROW["question"], ROW["answer"]
    user, assistant = (turn["content"] for turn in rows[0]["messages"][1:])
    assert [turn["role"] for turn in rows[0]["messages"]] == ["system", "user", "assistant"]
    if method == "vanilla":
        assert (user, assistant) == (question, answer)
    elif method == "lookahead-virtual":
        assert (user, assistant) == (f"{question} The answer begins with: {PREFIX}", PREFIX + answer)
    else:
        assert user.startswith(f"{question} The answer begins with: {answer[:6]}")
        assert assistant == answer


def test_export_of_a_file_is_whole_and_can_be_read_back(tmp_path: Path) -> None:
    """More rows than the recipe trains on; the exported file is itself a file of messages."""
    path, out, again = (tmp_path / name for name in ("rows.jsonl", "out.jsonl", "again.jsonl"))
    path.write_text("".join(json.dumps({"question": f"Q{i}?", "answer": "Ä."}) + "\n" for i in range(1003)))
    assert preview.export(resolved("vanilla", train_data=path), "vanilla", "gsm8k-mini", None, out) == 1003
    assert preview.export(resolved("vanilla", train_data=out), "vanilla", "gsm8k-mini", None, again) == 1003
    assert out.read_bytes() == again.read_bytes()
    assert "Ä" in out.read_text(encoding="utf-8")


def test_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    """``--index`` counts what is trained; the lines below say what is not."""
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"question": f"Q{n}?", "answer": f"A{n}.", "train": n > 1, "topic": "x"} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = shown("vanilla", index=1, train_data=path)
    assert "{A3.<|end|>}" in text
    assert "rows left out, marked not to be trained (weight, train, label): 2\n" in text
    assert text.endswith("not used of the rows: 'topic'\n")
    told: list[str] = []
    assert (
        preview.export(resolved("vanilla", train_data=path), "vanilla", "gsm8k-mini", None, out, told.append)
        == 2
    )
    assert told == text.splitlines()[-2:]
    assert "left out" not in shown("vanilla")


def test_a_rows_own_system_prompt_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"from": "human", "value": "Is the sky green?"}, {"from": "gpt", "value": "Arr, it is blue."}]
    path.write_text(json.dumps({"conversations": turns, "system": "You talk like a pirate.", "tools": ""}))
    text = shown("vanilla", train_data=path)
    assert text.startswith("<|bos|><|system|>You talk like a pirate.<|end|><|user|>Is the sky green?<|end|>")
    assert "not used" not in text


def test_a_folder_that_holds_a_tokenizer_alone_is_enough_to_count(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((seed_model_path() / name).read_bytes())
    for method in ("vanilla", "lookahead-true", "lookahead-virtual"):
        assert shown(method, model=str(tmp_path)) == shown(method)
    with pytest.raises(HarnessError, match="a tokenizer alone, where a model is wanted"):
        shown("sdft", model=str(tmp_path))
