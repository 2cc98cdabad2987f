"""Guards the rules by which text from outside is shown, kept, and made a file's name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.text import (
    LEFT_OUT,
    csv_cell,
    cut,
    is_name,
    is_word,
    listed,
    one_line,
    printable,
    shown,
    shown_traceback,
    shown_words,
    whole,
    without_keys,
)

KEY = "planted-key-0123456789"


@given(st.text())
def test_a_line_is_one_and_prints(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(printable(text)) == len(text)
    assert printable(line) == line


def test_ordinary_text_stays() -> None:
    assert one_line(" Größe Δ 3–4 中文 🙂 ") == "Größe Δ 3–4 中文 🙂"


@pytest.mark.parametrize(
    "sign", ["\x1b", "\x07", "\r", "\n", "\x9b", "\u202e", "\u2066", "\u2028", "\ud800", "\0"]
)
def test_what_steers_is_a_blank(sign: str) -> None:
    assert one_line(f"a{sign}b") == "a b"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r\n+", " -", "＝", "＠", "\u200b="])
def test_no_text_is_a_formula_and_numbers_are_numbers(start: str) -> None:
    assert csv_cell(f"{start}1").startswith("'")
    assert csv_cell("a=1") == "a=1"
    assert [csv_cell(value) for value in (-1.5, 2, None, True)] == [-1.5, 2, None, True]


@given(st.text(max_size=120))
def test_a_name_is_plain(name: str) -> None:
    assert is_name(name) <= (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None)


def test_names_of_methods_tasks_and_models_are_names() -> None:
    for name in ("lookahead-true", "hexphi_raw-mini", "my-model_v1.2", "7b", "a" * 100):
        assert is_name(name)


@pytest.mark.parametrize(
    "word",
    ["insufficient_quota", "messages[0].content", "meta-llama/Llama-3.1-8B", "ft:gpt-4o:org::id", "m@1+2"],
)
def test_what_servers_call_things_is_a_word(word: str) -> None:
    assert is_word(word)


@pytest.mark.parametrize(
    "value",
    ["", "two words", "\x1b[2J", "a\n", "http://evil.example", "//evil", "x" * 101, "е", None, 7, ["a"], {}],
)
def test_anything_else_is_none(value: Any) -> None:
    assert not is_word(value)
    assert shown_words([value, "a", value, *"bcdefg"]) == "a, b, c, d, e"
    assert shown_words([value], 1) == ""


def test_a_cut_is_marked_with_what_there_was() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd" * 1000, 3) == "abc (cut: it had 4,000 characters)"


@pytest.mark.parametrize("variable", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET", "DB_PASSWORD"])
def test_the_environments_keys_are_left_out(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, KEY)
    assert without_keys(f"a {KEY}b {KEY}") == f"a {LEFT_OUT}b {LEFT_OUT}"
    try:
        raise ValueError(f"the header was {KEY}\x1b[2J")
    except ValueError:
        told = shown_traceback()
    assert "Traceback" in told
    assert KEY not in told
    assert "\x1b" not in told


def test_settings_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "short")
    monkeypatch.setenv("PLACE", "results/runs/mini")
    text = "short results/runs/mini http://localhost:8000/v1 tokens: 5, check OPENAI_API_KEY"
    assert without_keys(text) == text


def test_half_a_character_is_a_question_mark() -> None:
    assert whole("a\ud800b🙂") == "a?b🙂"


def test_reasons_are_listed_by_frequency_but_for_what_is_always_shown() -> None:
    counts = {"a": 5, "b": 4, "c": 3, "rare": 1}
    assert listed(counts) == "5 a; 4 b; 3 c; 1 others"
    assert listed(counts, ("rare",)) == "1 rare; 5 a; 4 b; 3 others"
    assert listed({"only": 2}) == "2 only"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("goal", "'goal'"),
        (0.5, "'0.5'"),
        ("x" * 40, f"'{'x' * 40}'"),
        ("x" * 1041, "(1,041 characters)"),
        ("a\x1b[2J\n", "'a [2J '"),
        (["goal"], "(list)"),
        (None, "(NoneType)"),
    ],
)
def test_a_value_from_outside_is_shown_if_it_is_short(value: object, said: str) -> None:
    assert shown(value) == said
