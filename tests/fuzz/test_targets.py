"""Any bytes lead to a value or to one line: each fuzz target on inputs that have broken readers, on made-up
ones, and on good ones with something wrong in them. tests/fuzz/fuzz.py goes on from here with coverage."""

from __future__ import annotations

import fuzz_targets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = [
    pytest.mark.parametrize("name", fuzz_targets.TARGETS),
    pytest.mark.timeout(300),  # a hang ends here
]
LOOSE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_a_good_input_is_taken(name: str) -> None:
    assert fuzz_targets.run(name, fuzz_targets.good()[name])


def test_what_has_broken_readers(name: str) -> None:
    for content in fuzz_targets.HOSTILE:
        fuzz_targets.run(name, content)


@LOOSE
@given(
    content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes(name: str, content: bytes) -> None:
    fuzz_targets.run(name, content)


@LOOSE
@given(draws=st.data())
def test_good_inputs_with_something_wrong(name: str, draws: st.DataObject) -> None:
    content = fuzz_targets.good()[name]
    for _ in range(draws.draw(st.integers(1, 3))):
        start = draws.draw(st.integers(0, len(content)))
        end = draws.draw(st.integers(start, min(len(content), start + 12)))
        content = content[:start] + draws.draw(st.sampled_from(fuzz_targets.SPLICED)) + content[end:]
    fuzz_targets.run(name, content)
