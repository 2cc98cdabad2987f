"""Guards that the harness and plain lm-eval give the same numbers for one checkpoint: utility, raw and
prefilled safety. The checkpoint is the base model with noise on its weights, so that its safe rates are
neither 0 nor 100."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.mini import data, seed_model_path
from harness.models import checkpoints
from harness.storage.files import read_jsonl

GENERATED = ("gsm8k-mini", "samsum-mini", "hexphi_raw-mini", "hexphi_prefill-mini", "overrefusal-mini")
TASKS = (*GENERATED, "hexphi_raw")  # the last from a file in its published format
LIMIT = 24
NOISE = 0.8  # of each weight matrix's own deviation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noisy")
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * NOISE)
    checkpoints.save(model, checkpoints.load_tokenizer(seed_model_path()), folder)
    return folder


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini world's requests in HEx-PHI's format."""
    path = tmp_path_factory.mktemp("data") / "requests.jsonl"
    rows = [{key: row[key] for key in ("instruction", "category")} for row in data.harmful()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, requests: Path
) -> dict[str, dict[str, float]]:
    """The results of ``lm_eval run`` as a user would type it."""
    folder = tmp_path_factory.mktemp("lm-eval")
    tasks = subprocess.run(
        [sys.executable, "-m", "harness.cli", "tasks", "--path"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args",
         f"pretrained={checkpoint},dtype=float32", "--device", "cpu", "--include_path", tasks,
         "--tasks", ",".join(TASKS), "--apply_chat_template", "--limit", str(LIMIT), "--batch_size", "8",
         "--metadata", json.dumps({"data_files": {"hexphi_raw": str(requests)}}),
         "--output_path", str(folder)],
        check=True, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"},
    )  # fmt: skip
    record = json.loads(next(folder.rglob("results_*.json")).read_text(encoding="utf-8"))
    return {
        task: {name.partition(",")[0]: value for name, value in found.items() if isinstance(value, float)}
        for task, found in record["results"].items()
    }


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, requests: Path) -> Path:
    """The same checkpoint answering in the harness (``harness respond``), judged by the rule."""
    from rich.console import Console

    from harness import config
    from harness.pipeline import compare

    out = tmp_path_factory.mktemp("ours") / "run"
    settings: dict[str, Any] = {
        "methods": ["seed"],
        "checkpoints": {"same": str(checkpoint)},
        "safety_tasks": ["overrefusal-mini", "hexphi_raw"],
        "data": {"hexphi_raw": str(requests)},
        "judges": ["keyword"],
        "responses.limit": LIMIT,
        "responses.batch_size": 8,
        "jobs": 1,
    }
    resolved = config.load(None, settings)
    compare.compare(resolved, out, Console(quiet=True), kinds=("checkpoint",))
    return out / "checkpoints" / "same"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_plain_lm_eval_gives_the_same_numbers(
    task: str, plain: dict[str, dict[str, float]], ours: Path, small: Callable[..., Any]
) -> None:
    rows = read_jsonl(ours / task / "responses.jsonl")
    assert len(rows) == LIMIT
    # What is not there is left out here; plain lm-eval cannot, and counts it as not safe.
    assert all(None not in row["metrics"].values() or not row["response"].strip() for row in rows)
    means = {name: sum(row["metrics"][name] or 0.0 for row in rows) / LIMIT for name in rows[0]["metrics"]}
    for name, mean in means.items():
        assert plain[task][name] == pytest.approx(mean, abs=1e-9), (task, name)


@pytest.mark.slow
def test_the_safe_rate_by_rule_is_the_keyword_judges(plain: dict[str, dict[str, float]], ours: Path) -> None:
    verdicts = read_jsonl(ours / "hexphi_raw" / "verdicts.keyword.jsonl")
    rate = sum(not verdict["harmful"] for verdict in verdicts) / LIMIT
    assert plain["hexphi_raw"]["safe"] == pytest.approx(rate)
    assert 0.05 < rate < 0.95
