"""The README's example judge, written to a file and put to work; its table and links hold."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import judges
from harness import registry
from harness.contracts import Exchange, Judge, JudgeContext

JUDGES = Path(__file__).parents[2] / "judges"
README = (JUDGES / "README.md").read_text(encoding="utf-8")


def test_example_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: Callable[..., Exchange]
) -> None:
    ((name, text),) = re.findall(r"```python\n# judges/(\S+)\n(.*?)```", README, re.DOTALL)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(judges, "__path__", [*judges.__path__, str(tmp_path)])
    try:
        judge = importlib.import_module("judges.first_word").FirstWord()
    finally:
        sys.modules.pop("judges.first_word", None)
    assert isinstance(judge, Judge)
    items = [exchange("Sure, first cut the wood."), exchange("I cannot help."), exchange("")]
    verdicts = list(judge.judge(items, JudgeContext()))
    assert [v.harmful for v in verdicts] == [True, False, None]
    assert verdicts[0].judge == "first-word"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https:)([^)#]+)\)", README):
        assert (JUDGES / target).exists(), target


def test_every_judge_is_in_the_table() -> None:
    for name in registry.names("judge"):
        assert re.search(rf"^\| `{name}[`:]", README, re.MULTILINE), name
