"""Plain lm-eval's other two ways to a model, vLLM and a server, give the harness's numbers; and the harness's
own two through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vllm_server

from harness.mini import data, seed_model_path
from harness.plugins import registry
from harness.storage.files import read_json, read_jsonl

pytestmark = [pytest.mark.requires_vllm, pytest.mark.timeout(900)]
LIMIT = 24
TASKS = ("gsm8k-mini", "hexphi_raw-mini", "hexphi_prefill-mini", "hexphi_raw")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server.running(tmp_path_factory.mktemp("server") / "vllm.log") as url:
        yield url


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """The mini world's requests in HEx-PHI's format."""
    path = tmp_path / "requests.jsonl"
    rows = [{key: row[key] for key in ("instruction", "category")} for row in data.harmful()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ours(command: Run, out: Path, requests: Path, *flags: str) -> dict[str, dict[str, float]]:
    """The means of ``harness respond``, by task and metric."""
    checkpoint, *flags = flags
    ended = command(
        "respond", checkpoint, "--tasks", ",".join(TASKS), "--data", f"hexphi_raw={requests}",
        "--name", "same", "--out", out, "--set", f"responses.limit={LIMIT}", *flags,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = {}
    for task in TASKS:
        rows = read_jsonl(out / "checkpoints" / "same" / task / "responses.jsonl")
        assert len(rows) == LIMIT
        found[task] = {m: sum(row["metrics"][m] for row in rows) / LIMIT for m in rows[0]["metrics"]}
    return found


def plain(folder: Path, requests: Path, *model: str, **environment: str) -> dict[str, dict[str, float]]:
    """The results of ``lm_eval run`` as a user would type it."""
    files = json.dumps({"data_files": {"hexphi_raw": str(requests)}})
    ended = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *model, "--include_path", str(registry.task_folders()[0]),
         "--tasks", ",".join(TASKS), "--apply_chat_template", "--limit", str(LIMIT), "--metadata", files,
         "--output_path", str(folder)],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3_000:]
    record = json.loads(next(folder.rglob("results_*.json")).read_text(encoding="utf-8"))
    return {
        task: {name.partition(",")[0]: value for name, value in found.items() if isinstance(value, float)}
        for task, found in record["results"].items()
    }


def same(one: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> None:
    for task, metrics in one.items():
        for metric, value in metrics.items():
            assert other[task][metric] == pytest.approx(value, abs=1e-9), (task, metric)


def test_a_server_gives_plain_lm_eval_the_numbers_that_it_gives_us(
    url: str, tmp_path: Path, requests: Path, command: Run
) -> None:
    model = f"openai:mini@{url}"
    found = ours(command, tmp_path / "run", requests, model, "--tokenizer", str(seed_model_path()))
    marker = read_json(tmp_path / "run/checkpoints/same/gsm8k-mini/respond.done.json")
    assert marker["inputs"]["engine"] == {"name": "openai"}
    arguments = (
        f"model=mini,tokenizer={seed_model_path()},base_url={url}/completions,tokenized_requests=True,"
    )
    arguments += "tokenizer_backend=huggingface,max_length=4096,num_concurrent=8"
    same(
        found,
        plain(tmp_path / "plain", requests, "--model", "local-completions", "--model_args", arguments),
    )


def test_vllm_gives_plain_lm_eval_the_numbers_that_it_gives_us(
    tmp_path: Path, requests: Path, command: Run
) -> None:
    found = ours(command, tmp_path / "run", requests, str(seed_model_path()), "--engine", "vllm")
    # lm-eval asks for the version of a distribution called vllm; the one for CPUs has another name
    shim = tmp_path / "site" / "vllm-0.32.0+cpu.dist-info"
    shim.mkdir(parents=True)
    (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    arguments = f"pretrained={seed_model_path()},dtype=float32,enforce_eager=True,max_model_len=4096"
    environment = {
        "PYTHONPATH": str(shim.parent), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    same(
        found,
        plain(tmp_path / "plain", requests, "--model", "vllm", "--model_args", arguments, **environment),
    )


def test_one_engine_answers_for_all_adapters_of_a_run_and_for_their_base(
    tmp_path: Path, command: Run, small: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.engines.vllm import VLLMEngine

    opened: list[str] = []
    open_engine = VLLMEngine.open.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, checkpoint: Any, *more: Any) -> Any:
        opened.append(checkpoint.name)
        return open_engine(cls, checkpoint, *more)

    monkeypatch.setattr(VLLMEngine, "open", classmethod(counted))
    flags = ["--methods", "vanilla,lookahead-true", "--tuning", "lora", *small()]
    for engine in ("hf", "vllm"):
        ended = command("compare", "--engine", engine, "--out", tmp_path / engine, *flags)
        assert ended.code == 0, ended.err
    assert len(opened) == 1, opened
    answers = {
        engine: [
            row["response"]
            for path in sorted((tmp_path / engine).rglob("responses.jsonl"))
            for row in read_jsonl(path)
        ]
        for engine in ("hf", "vllm")
    }
    assert len(answers["hf"]) == len(answers["vllm"]) == 3 * 3 * 8
    assert sum(a == b for a, b in zip(answers["hf"], answers["vllm"], strict=True)) >= 71
