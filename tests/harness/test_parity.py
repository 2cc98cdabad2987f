"""Guards that the harness and plain lm-eval give the same numbers for one checkpoint: utility, raw and
prefilled safety."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.mini import seed_model_path
from harness.store import read_jsonl

TASKS = ("gsm8k-mini", "samsum-mini", "hexphi_raw-mini", "hexphi_prefill-mini")
LIMIT = 24


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The results of ``lm_eval run`` as a user would type it."""
    folder = tmp_path_factory.mktemp("lm-eval")
    tasks = subprocess.run(
        [sys.executable, "-m", "harness.cli", "tasks", "--path"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args",
         f"pretrained={seed_model_path()},dtype=float32", "--device", "cpu", "--include_path", tasks,
         "--tasks", ",".join(TASKS), "--apply_chat_template", "--limit", str(LIMIT), "--batch_size", "8",
         "--output_path", str(folder)],
        check=True, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"},
    )  # fmt: skip
    record = json.loads(next(folder.rglob("results_*.json")).read_text(encoding="utf-8"))
    return {
        task: {name.partition(",")[0]: value for name, value in found.items() if isinstance(value, float)}
        for task, found in record["results"].items()
    }


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint answering in the harness (``harness respond``)."""
    from rich.console import Console

    from harness import comparison, config

    out = tmp_path_factory.mktemp("ours") / "run"
    settings: dict[str, Any] = {
        "methods": ["seed"],
        "checkpoints": {"same": str(seed_model_path())},
        "responses.limit": LIMIT,
        "responses.batch_size": 8,
        "jobs": 1,
    }
    resolved = config.load(None, settings)
    comparison.compare(resolved, out, Console(quiet=True), until="respond", kinds=("checkpoint",))
    return out / "checkpoints" / "same"


@pytest.mark.parametrize("task", TASKS)
def test_plain_lm_eval_gives_the_same_numbers(
    task: str, plain: dict[str, dict[str, float]], ours: Path, small: Callable[..., Any]
) -> None:
    rows = read_jsonl(ours / task / "responses.jsonl")
    assert len(rows) == LIMIT
    means = {name: sum(row["metrics"][name] for row in rows) / LIMIT for name in rows[0]["metrics"]}
    for name, mean in means.items():
        assert plain[task][name] == pytest.approx(mean, abs=1e-9), (task, name)
