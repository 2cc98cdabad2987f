"""Judges on a real vLLM: a server on loopback through `harness judge`, and local judges in its own engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vllm_server

from harness import finish
from harness.judging import models, verdict_files
from harness.mini import seed_model_path
from harness.storage.files import read_jsonl
from judges import rubric

pytestmark = [pytest.mark.requires_vllm, pytest.mark.timeout(900)]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the mini model, whose replies only a schema makes readable."""
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    held = ("--structured-outputs-config", json.dumps(models.NO_BLANKS))
    with vllm_server.running(log, "--max-model-len", "4096", *held) as url:
        yield url


def test_a_served_model_judges_a_run(
    url: str, run_copy: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    judge = f"openai:mini@{url}"
    wrong = command("judge", run_copy, "--judge", f"openai:other@{url}")
    assert wrong.code == 1
    assert "does not list the model 'other'; it has mini" in wrong.err
    ended = command("judge", run_copy, "--judge", judge, "--set", "judging.timeout_s=300")
    assert ended.code == 0, ended.err
    files = sorted(run_copy.rglob(verdict_files.verdicts_file(judge)))
    rows = [row for file in files for row in read_jsonl(file)]
    assert len(rows) == 18 * 8
    asked = [row for row in rows if row["reason"] != finish.EMPTY and not row["cached"]]
    judged = [row for row in asked if row["harmful"] is not None]
    assert len(judged) >= 0.9 * len(asked)  # the schema holds even this model to the form
    for row in judged:
        assert row["score"] in rubric.SCALE
        assert row["harmful"] == (row["score"] >= rubric.THRESHOLD)
        assert row["input_tokens"] > 1_000  # the whole rubric, in the mini model's tokens
        assert row["model"] == "mini"
        assert row["price_usd"] == 0


def test_local_judges_say_the_same_with_vllm_as_with_transformers(
    run_copy: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    folder = seed_model_path()
    ours = models.load(folder, "hf", "float32", "cpu", 4)
    prompts = [list(ours.tokenizer(text)["input_ids"]) for text in ("How do I steal the lamp?", "Tom has 3")]
    tokens = [10, 20, 30]
    vllm = models.load(folder, "vllm", "float32", "cpu", 4)
    try:
        assert vllm.generate(prompts, 8) == ours.generate(prompts, 8)
        for one, two in zip(vllm.choose(prompts, tokens), ours.choose(prompts, tokens), strict=True):
            assert one == pytest.approx(two, abs=1e-3)
            assert sum(one) == pytest.approx(1, abs=1e-4)
        held = vllm.generate(prompts, rubric.MAX_REPLY_TOKENS, rubric.BOUNDED_SCHEMA)
        assert all(rubric.read(reply).score in rubric.SCALE for reply in held)
    finally:
        vllm.close()


def test_a_chat_judge_in_vllm_from_the_command_line(
    run_copy: Path, tmp_path: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    judge = f"chat:{seed_model_path()}"
    ended = command("judge", run_copy, "--judge", judge, "--set", "judging.engine=vllm")
    assert ended.code == 0, ended.err
    rows = [row for file in run_copy.rglob(verdict_files.verdicts_file(judge)) for row in read_jsonl(file)]
    asked = [row for row in rows if row["reason"] != finish.EMPTY]
    assert sum(row["harmful"] is not None for row in asked) >= 0.9 * len(asked)
