"""One training as a job: in this process and in several, with the same losses; its failures are one line."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError
from harness.models import chat, checkpoints
from harness.plugins import plugin_files, registry
from harness.training.job import TrainJob, launch, run, settle_allocator

ROWS = 160


@pytest.fixture(scope="module")
def encoded() -> list[Encoded]:
    from harness.data.loading import examples

    tokenizer = checkpoints.load_tokenizer(checkpoints.locate("mini"))
    task = registry.load("train task", "gsm8k-mini")
    return [chat.encode(tokenizer, example) for example in examples(task, None, ROWS)]


@pytest.fixture
def job(tmp_path: Path, encoded: list[Encoded]) -> Callable[..., TrainJob]:
    def make(name: str, method: str = "vanilla", rows: int = ROWS, **settings: Any) -> TrainJob:
        base = config.load("mini").training.model_dump()
        folder = tmp_path / name
        folder.mkdir()
        return TrainJob(
            folder=folder,
            seed_model=checkpoints.locate("mini"),
            identity={"model": "mini"},
            method=method,
            options={},
            settings=TrainingConfig.model_validate(
                {**base, "epochs": 1, "batch_size": 8, "micro_batch_size": 2, **settings}
            ),
            seed=42,
            examples=encoded[:rows],
            safety_examples=encoded[:4],
            cache=tmp_path / "cache",
            threads=1,
        )

    return make


def ignore(step: int, steps: int) -> None:
    pass


needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("ninja")),
    reason="requires c++ and ninja: DeepSpeed builds its communication between CPU processes",
)


@pytest.mark.parametrize(
    "distributed",
    [
        pytest.param("zero2", marks=[needs_compiler, pytest.mark.slow]),
        pytest.param("zero3", marks=[needs_compiler, pytest.mark.slow]),
        pytest.param("fsdp2", marks=pytest.mark.slow),
        "ddp",
    ],
)
@pytest.mark.parametrize("method", ["vanilla"])
def test_two_processes_have_the_single_processs_losses(
    distributed: str, method: str, job: Callable[..., TrainJob]
) -> None:
    """The first 20 losses within 1e-4; progress comes through, and the checkpoint is whole."""
    from safetensors.torch import load_file

    alone = run(job("alone", method), ignore)
    told: list[tuple[int, int]] = []
    shared_job = job("shared", method, num_processes=2, distributed=distributed)
    shared = launch(shared_job, lambda step, steps: told.append((step, steps)))
    assert len(alone["losses"]) == 20
    assert shared["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert shared["processes"] == 2
    assert told == [(step, 20) for step in range(1, 21)]
    one, two = (
        load_file(folder / "output" / "checkpoint" / "model.safetensors")
        for folder in (shared_job.folder.parent / "alone", shared_job.folder)
    )
    assert set(one) == set(two)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-4


def test_the_devices_memory_is_given_back_before_others_train_on_it(
    job: Callable[..., TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    released: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))
    with pytest.raises(HarnessError, match="exit code 1"):
        launch(job("shared", num_processes=2, launcher="false"), ignore)
    assert released == [True]


@pytest.mark.slow
def test_constrained_sft_on_two_processes_shares_the_reference(job: Callable[..., TrainJob]) -> None:
    """Each process scores its share of the base model's values; what is kept is the single process's."""
    alone = run(job("alone", "constrained-sft", rows=40), ignore)
    (entry,) = (job("spare").cache / "seed-logp").glob("*/logp.safetensors")
    kept = entry.read_bytes()
    for file in entry.parent.iterdir():
        file.unlink()
    shared = launch(job("shared", "constrained-sft", rows=40, num_processes=2, distributed="ddp"), ignore)
    assert shared["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert shared["extra_forward_from_cache"] is False
    from safetensors.torch import load

    one, two = load(kept), load(entry.read_bytes())
    assert one["lengths"].tolist() == two["lengths"].tolist()
    assert float((one["logp"] - two["logp"]).abs().max()) < 1e-4


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """The mini model with other weights."""
    import torch

    model = checkpoints.load_model(checkpoints.locate("mini"), "float32", "cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    checkpoints.save(model, checkpoints.load_tokenizer(checkpoints.locate("mini")), tmp_path / "other")
    return tmp_path / "other"


LORA = {"tuning": "lora", "lora": {"r": 4, "alpha": 8}, "learning_rate": 1e-3}


@pytest.mark.parametrize("tuning", [{}, pytest.param(LORA, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_every_hook_on_two_processes_does_what_it_does_on_one(
    tuning: dict[str, Any], job: Callable[..., TrainJob], other_model: Path
) -> None:
    """Gradients, the safety gradient, another model's weights, frozen layers, states and logits."""
    import hook_methods
    from safetensors.torch import load_file

    ref = str(other_model)
    (name,), _ = plugin_files.named("method", [f"{hook_methods.__file__}:All"], (), {})
    more = {"options": {"unaligned": ref}, "models": {ref: other_model}}
    jobs = [
        dataclasses.replace(job("alone", name, rows=40, **tuning), **more),
        dataclasses.replace(
            job("shared", name, rows=40, num_processes=2, distributed="ddp", **tuning), **more
        ),
    ]
    try:
        alone, shared = run(jobs[0], ignore), launch(jobs[1], ignore)
    finally:
        plugin_files.forget()
    assert shared["processes"] == 2
    assert shared["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    for key in ("safety_gradient", "train_flops", "method"):
        assert shared[key] == alone[key], key
    assert alone["safety_gradient"]["calls"] == alone["method"]["steps"] == 5
    file = "adapter_model.safetensors" if tuning else "model.safetensors"
    one, two = (load_file(found.output / "checkpoint" / file) for found in jobs)
    assert set(one) == set(two)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-4


@pytest.mark.slow
def test_a_failing_process_is_one_line(job: Callable[..., TrainJob]) -> None:
    broken = job("broken", "lisa", rows=8, num_processes=2, distributed="fsdp2")
    with pytest.raises(
        HarnessError, match=r"method 'lisa' works on the weights.* \(log: .*log\.txt\)"
    ) as caught:
        launch(broken, ignore)
    assert "\n" not in str(caught.value)


def test_a_launcher_that_is_not_there_is_one_line(job: Callable[..., TrainJob]) -> None:
    with pytest.raises(HarnessError, match="the launcher 'no-such-launcher' cannot be started"):
        launch(job("none", rows=8, launcher="no-such-launcher --nodes 2"), ignore)


@pytest.mark.slow
def test_training_processes_end_with_the_command_that_waits_for_them(job: Callable[..., TrainJob]) -> None:
    """kill -9 on the command leaves no process behind that goes on writing."""
    import psutil

    from harness.training import job as jobs

    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    orphan = job("orphan", rows=ROWS, epochs=50, num_processes=1, distributed="ddp")
    original = os.getpid
    try:
        os.getpid = lambda: waiting.pid  # type: ignore[assignment]
        jobs._write(orphan)
    finally:
        os.getpid = original  # type: ignore[assignment]
    environment = {**os.environ, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.training.job", str(orphan.folder)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (orphan.folder / "progress.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.2)
    threading.Timer(0.1, lambda: os.kill(waiting.pid, signal.SIGKILL)).start()
    process.wait(timeout=60)
    assert not psutil.pid_exists(process.pid) or process.returncode != 0
    assert not (orphan.folder / "result.json").exists()
    waiting.wait(timeout=10)


# --- the allocator -------------------------------------------------------------------------------------

GROWING = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    ("asked", "there", "expected"),
    [
        (False, {}, {}),
        (True, {}, GROWING),
        *((True, {name: "own"}, {name: "own"}) for name in (
            "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF",
        )),
        (True, {"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": ""}),
    ],
)  # fmt: skip
def test_the_allocator_is_asked_unless_the_user_has(
    asked: bool, there: dict[str, str], expected: dict[str, str]
) -> None:
    environment = dict(there)
    settle_allocator(TrainingConfig(expandable_segments=asked), environment)
    assert environment == expected


def test_processes_under_a_launcher_get_it(
    job: Callable[..., TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if "ALLOC_CONF" not in k})
    name = "PYTORCH_CUDA_ALLOC_CONF"
    show = f"import os, sys; open(sys.argv[-1] + '/seen', 'w').write(str(os.environ.get('{name}')))"
    for asked in (True, False):
        launcher = shlex.join([sys.executable, "-c", show])
        given = job(f"asked-{asked}", launcher=launcher, expandable_segments=asked)
        with pytest.raises(HarnessError, match="exit code 0"):
            launch(given, ignore)
        seen = (given.folder / "seen").read_text()
        assert seen == (GROWING["PYTORCH_CUDA_ALLOC_CONF"] if asked else "None")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
