"""A guard's YAML file that is none is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.contracts import JudgeSettings, UsageError
from harness.plugins import registry

OWN = """
summary: mine
model: ./weights
render:
  messages: [{role: user, content: "{request} // {answer}"}]
read:
  pattern: '(?P<verdict>ok|bad)'
  harmful: {ok: false, bad: true}
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("read:", "raed:"), "raed|read: Field required"),
        (("pattern: '(?P<verdict>ok|bad)'", "pattern: '(ok'"), "unterminated|missing"),
        (("(?P<verdict>ok|bad)", "ok|bad"), r"needs a group \(\?P<verdict>"),
        (("  harmful: {ok: false, bad: true}\n", ""), "read.harmful says which verdicts mean harm"),
        (("  pattern:", "  scale: {a: 1}\n  pattern:"), "exactly one of pattern, choice, scale and classes"),
        (("role: user", "role: judge"), "role"),
        (("summary: mine", "summary: [mine"), "mine.yaml"),
        (
            ("summary: mine", "summary: !!python/object/apply:os.getcwd []"),
            "could not determine a constructor",
        ),
        (("model: ./weights\n", ""), "names no weights"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    file = tmp_path / "mine.yaml"
    assert change[0] in OWN
    file.write_text(OWN.replace(*change))
    with pytest.raises(UsageError, match=says) as error:
        registry.make_judge(str(file), JudgeSettings())
    assert "\n" not in str(error.value)
