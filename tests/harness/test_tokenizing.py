"""Guards that a tokenizer from outside ends in a right value or one line: panics, endless templates."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import tokenizing
from harness.contracts import Example, HarnessError, Message
from harness.mini import seed_model_path
from harness.models import chat, checkpoints
from tasks import prefill

TURNS = (Message("user", "Hello"), Message("assistant", "Hi"))
BACKTRACKS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
PANICS = "a" * 5_000 + "!"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(seed_model_path(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")
    return folder


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(depth):
        found = {"type": "Sequence", "normalizers": [found]}
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # a panic
        {"pre_tokenizer": {**BACKTRACKS, "pattern": {"Regex": "(a"}}},
        {"normalizer": nested(300)},
        {"model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"added_tokens": [{"id": -1, "content": "x"}]},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_a_damaged_tokenizer_is_one_line(changes: dict[str, Any], folder: Path) -> None:
    edit(folder, **changes)
    for load in (
        checkpoints.load_tokenizer,
        lambda path: prefill.load_tokenizer("t", {"tokenizer": str(path)}),
    ):
        with pytest.raises(HarnessError, match="tokenizer") as told:
            load(folder)
        assert str(folder) in str(told.value)
        assert str(told.value).isprintable()


@pytest.mark.parametrize(
    "use",
    [
        lambda tokenizer: tokenizer(PANICS),
        lambda tokenizer: tokenizer([PANICS, "b"], padding=True),
        lambda tokenizer: tokenizer.encode(PANICS),
        lambda tokenizer: tokenizer.tokenize(PANICS),
        lambda tokenizer: tokenizer.apply_chat_template([{"role": "user", "content": PANICS}]),
        lambda tokenizer: chat.prompt_ids(tokenizer, [Message("user", PANICS)]),
        lambda tokenizer: chat.encode(
            tokenizer, Example("e", (Message("user", "Hello"), Message("assistant", PANICS)))
        ),
    ],
)
def test_a_panic_at_a_text_is_one_line(use: Callable[[Any], Any], folder: Path) -> None:
    edit(folder, pre_tokenizer=BACKTRACKS)
    for tokenizer in (
        checkpoints.load_tokenizer(folder),
        prefill.load_tokenizer("t", {"tokenizer": str(folder)}),
    ):
        with pytest.raises(HarnessError, match="its tokenizer breaks off") as told:
            use(tokenizer)
        assert str(folder) in str(told.value)


def test_ctrl_c_and_ordinary_errors_pass() -> None:
    for error in (KeyboardInterrupt, SystemExit, ValueError, HarnessError):
        with pytest.raises(error), tokenizing.panics_told("x"):
            raise error("y")


def test_a_guarded_tokenizer_is_the_same(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(folder)
    held = checkpoints.load_tokenizer(folder)
    assert isinstance(held, type(plain))
    assert held("Hello there")["input_ids"] == plain("Hello there")["input_ids"]
    held.save_pretrained(tmp_path / "again")
    plain.save_pretrained(tmp_path / "plain")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert copy.deepcopy(held).decode([5, 6]) == plain.decode([5, 6])


# --- templates -------------------------------------------------------------------------------------

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='aaaa') %}{% for _ in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (ENDLESS, "takes over 0.2 s"),
        ("{{ 'a' * 10**11 }}", "takes over 0 GiB of memory"),
        ("{{ 'a'.ljust(10**11) }}", "takes over 0 GiB of memory"),
        ("{{ [1] * 10**10 }}", "takes over 0 GiB of memory"),
        (DOUBLING, "takes over 0"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if", "refuses"),
        ("{{ messages[99].content.x }}", "refuses"),
    ],
    ids=lambda text: text[:30],
)
def test_a_template_takes_neither_for_ever_nor_all_memory(
    template: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "RENDER_S", 0.2)
    monkeypatch.setattr(tokenizing, "RENDER_BYTES", 2**29)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = checkpoints.load_tokenizer(folder)
    with pytest.raises(HarnessError, match=says) as told:
        chat.render(tokenizer, TURNS, generation_prompt=False)
    assert str(told.value).isprintable()


def test_limits_are_gone_behind_a_template(folder: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    running = signal.getitimer(signal.ITIMER_REAL)[0] > 0  # a test's own limit
    for template in ("{{ messages[0].content }}", "{{ 1 // 0 }}"):
        tokenizer = checkpoints.load_tokenizer(folder)
        tokenizer.chat_template = template
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        except ZeroDivisionError:
            assert "//" in template
        assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
        assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == running


def test_templates_render_in_threads_too(folder: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(folder)
    found: list[str] = []
    thread = threading.Thread(
        target=lambda: found.append(chat.render(tokenizer, TURNS, generation_prompt=False))
    )
    thread.start()
    thread.join()
    assert found == [chat.render(tokenizer, TURNS, generation_prompt=False)]
