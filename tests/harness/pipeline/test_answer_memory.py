"""Guards the plan's line about checkpoints that answer side by side: what they take by formula, and whether
that is free."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import config
from harness.config import ResponsesConfig
from harness.mini import seed_model_path
from harness.pipeline import answer_memory, compare, estimate
from harness.run import plan
from harness.run.context import RunContext
from harness.training import memory

BILLION = memory.architecture(  # Llama-3.2-1B
    {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "vocab_size": 128256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    }
)


def context_at(out: Path, **settings: Any) -> RunContext:
    checkpoints = {name: str(seed_model_path()) for name in ("one", "two")}
    return RunContext(config.load("mini", {"methods": ["seed"], "checkpoints": checkpoints} | settings), out)


def test_the_formula_is_weights_a_cache_and_what_one_pass_needs() -> None:
    found = answer_memory.answering_bytes(BILLION, ResponsesConfig(dtype="bfloat16"), 1024)
    weights = 2 * 1.236e9
    cache = 64 * 1024 * 16 * 2 * (8 * 64) * 2  # rows, tokens, layers, keys and values, 8 heads of 64, bytes
    read = 64 * 1024 * (2 * 2048 + 2 * 8192) * 2
    assert found == pytest.approx(weights + cache + read + 1.5e9, rel=0.01)
    few = answer_memory.answering_bytes(BILLION, ResponsesConfig(dtype="bfloat16", batch_size=1), 8)
    scores = (2 + 8) * 128256
    assert few == pytest.approx(weights + 8 * 16 * 2 * 512 * 2 + scores + 1.5e9, rel=0.001)
    whole = answer_memory.answering_bytes(BILLION, ResponsesConfig(dtype="float32"), 1024)
    assert whole - 1.5e9 == pytest.approx(2 * (found - 1.5e9))


def test_what_answers_side_by_side_on_a_gpu_is_summed_and_held_against_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(free: float, *, here: bool = True, **settings: Any) -> str | None:
        run_context = context_at(tmp_path, **settings)
        monkeypatch.setattr(estimate, "on_cuda", lambda context_at: here)
        monkeypatch.setattr(estimate, "free_memory", lambda context_at: free)
        return answer_memory.line(run_context, plan.cells(run_context.config))

    known = memory.find("", seed_model_path())
    assert known is not None
    alone = answer_memory.answering_bytes(known, ResponsesConfig(batch_size=128), 1024)
    assert str(line(2.1 * alone, jobs=2)).endswith("are free here: they fit")
    short = str(line(1.9 * alone, jobs=2))
    assert "2 checkpoints that answer side by side" in short
    assert f"about {estimate.gigabytes(2 * alone)} " in short
    assert short.endswith("they do NOT fit (--jobs 1 would)")
    assert "--jobs 2 would" in str(line(2.9 * alone, jobs=3))
    assert "--jobs 1 would" in str(line(0.5 * alone, jobs=3))
    assert line(1.0, jobs=1) is None
    assert line(1.0, jobs=2, here=False) is None
    assert line(1.0, jobs=2, engine="vllm") is None
    assert line(1.0, jobs=2, executor="ray") is None


def test_the_plan_has_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_memory, "line", lambda context_at, cells: f"Memory: of {len(cells)} cells")
    shown = io.StringIO()
    asked = context_at(tmp_path / "run", jobs=2).config
    compare.compare(asked, tmp_path / "run", Console(file=shown, width=120), dry_run=True)
    assert "Memory: of 3 cells" in shown.getvalue()
