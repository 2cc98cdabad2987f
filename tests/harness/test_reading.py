"""Guards what JSON and YAML from outside may hold; tests/fuzz has the inputs that have broken readers."""

from __future__ import annotations

from typing import Any

import fuzz_targets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.reading import DEEPEST, LARGEST_YAML, json_value, yaml_value

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_ordinary_values_are_read_as_they_are(value: Any) -> None:
    import json

    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert json_value(text) == json_value(text.encode()) == value
    assert yaml_value(yaml.safe_dump(value)) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested too deeply"),
        ('"\\ud800"', "not valid Unicode"),
        ('{"a": "\\udc00"}', "not valid Unicode"),
        ("9" * 5_000, "4300 digits"),
        ("{", "line 1 column 2"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_json_that_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        json_value(text)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert json_value('"\\ud83d\\ude42"') == "🙂"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", r"key 'a' is there twice \(line 3\)"),
        ("x: {a: 1, 'a': 2}", "key 'a' is there twice"),
        (fuzz_targets.LAUGHS, "stand for more than can be read"),
        (fuzz_targets.MERGES, "stand for more than can be read"),
        ("a: &a [*a]", "stand for more than can be read"),
        ("[" * 10_000, "nested too deeply"),
        ("- " * 10_000, "nested too deeply"),
        ("? " * 10_000, "nested too deeply"),
        ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("!!bool x", "not what its tag says"),
        ("!!timestamp x", "not what its tag says"),
        ("2001-99-99", "month must be in"),
        ("0b_", "invalid literal"),
        ("9" * 5_000, "4300 digits"),
        ('"\\ud800"', "not valid Unicode"),
        ("#" * (LARGEST_YAML + 1), "larger than 256 KiB"),
        ("a: [", "expected the node content"),
    ],
)
def test_yaml_that_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        yaml_value(text)
    assert "\n" not in str(error.value)


def test_anchors_and_merges_are_taken() -> None:
    text = "base: &base {a: 1, b: 2}\none: {<<: *base, b: 3}\ntwo: *base"
    assert yaml_value(text) == {"base": {"a": 1, "b": 2}, "one": {"a": 1, "b": 3}, "two": {"a": 1, "b": 2}}
