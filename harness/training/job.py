"""One training: in this process, or in several under a launcher. All that it needs lies in a job folder.

``python -m harness.training.job FOLDER`` is what the launcher starts, once a device. The folder is written by
the command that waits for it, so it must be visible to all machines of a training on several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError, Method
from harness.models import checkpoints, model_limits
from harness.plugins import plugin_code, plugin_files, registry
from harness.storage.files import Cache, fresh, read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from harness.text import shortened, shown_traceback
from harness.training.measure import cost

POLL_S = 0.5
# All releases of torch take the first; 2.9.1 takes no expandable segments from the second, which is newer.
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """What to train, and where. ``folder``: ``output/`` (the checkpoint) and ``state/`` (for a restart).

    ``options``: the method's; ``identity``: what the base model is, for what is kept of it in ``cache``;
    ``models``: where the models are that the options name.
    """

    folder: Path
    seed_model: Path
    identity: dict[str, Any]
    method: str
    options: dict[str, Any]
    settings: TrainingConfig
    seed: int
    examples: list[Encoded]
    safety_examples: list[Encoded]
    cache: Path
    snapshots: bool = False
    threads: int | None = None
    models: dict[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.folder / "output"


def run(job: TrainJob, on_step: Callable[[int, int], None]) -> dict[str, Any]:
    """Train in this process, one of several where a launcher says so. Returns the trainer's record."""
    import transformers

    from harness.training import adapters, resume, trainer

    transformers.set_seed(job.seed)
    settings = job.settings
    dtype = adapters.load_dtype(settings)
    several = "LOCAL_RANK" in os.environ
    sharded = several and settings.distributed in ("zero3", "fsdp2")
    device: str = settings.device
    if device == "cuda" and several:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    with cost(device) as training, _enough_memory():
        first = "cpu" if sharded else device
        model = checkpoints.load_model(job.seed_model, dtype, first, four_bit=settings.tuning == "qlora")
        checkpoints.settle_sampling(model)
        tokenizer, rows = checkpoints.load_tokenizer(job.seed_model), model_limits.embedding_rows(model)
        for example in (*job.examples, *job.safety_examples):
            model_limits.check_ids(tokenizer, example.input_ids, rows, f"training example '{example.id}'")
        record: dict[str, Any] = trainer.train(
            model,
            tokenizer,
            job.examples,
            make_method(job.method, job.options),
            settings,
            job.seed,
            on_step,
            places=resume.Places(job.output, job.folder / "state", job.folder / "reports"),
            cache=Cache(job.cache),
            identity=job.identity,
            safety_examples=job.safety_examples,
            snapshots=job.snapshots,
            models=job.models,
        )
    record["peak_memory_bytes"] = training.peak_memory_bytes
    return record


def settle_allocator(settings: TrainingConfig, environment: MutableMapping[str, str] = os.environ) -> None:
    """What ``settings`` ask of torch's memory, in the environment of a process that has not started torch.
    What the user has set there stays."""
    if settings.expandable_segments and not any(name in environment for name in ALLOCATOR):
        environment[ALLOCATOR[0]] = "expandable_segments:True"


@contextlib.contextmanager
def _enough_memory() -> Iterator[None]:
    """What smaller micro-batches cannot mend, weights and the optimizer's states, is one line."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise HarnessError(
            "the device has no memory for this training: set training.tuning to lora or qlora, "
            "training.optimizer to adamw_8bit, or train on several devices (training.num_processes)"
        ) from error


def make_method(name: str, options: dict[str, Any]) -> Method:
    """The method with options as a recipe gives them. Raises ValueError for a bad one."""
    from pydantic import TypeAdapter

    method: Method = TypeAdapter(registry.load("method", name)).validate_python(options)
    return method


# --- several processes -----------------------------------------------------------------------------


def launch(job: TrainJob, on_step: Callable[[int, int], None]) -> dict[str, Any]:
    """Train under a launcher and wait. Raises HarnessError with the cause when a process fails."""
    folder = job.folder
    for stale in ("result.json", "progress.json", *(path.name for path in folder.glob("error-*.json"))):
        (folder / stale).unlink(missing_ok=True)
    _write(job)
    _release_device()
    settings = job.settings
    launcher = settings.launcher or (
        f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone "
        f"--nproc-per-node {settings.num_processes}"
    )
    command = [*shlex.split(launcher), "-m", "harness.training.job", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads or 1)}
    settle_allocator(settings, environment)
    log = folder / "log.txt"
    with fresh(log).open("wb") as output:
        try:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        except OSError as error:
            raise HarnessError(f"the launcher '{command[0]}' cannot be started: {error.strerror}") from error
        try:
            done = 0
            while process.poll() is None:
                time.sleep(POLL_S)
                done = _relay(folder, done, on_step)
        finally:
            process.terminate()
            process.wait()
    _relay(folder, done, on_step)
    if process.returncode or not (folder / "result.json").exists():
        raise HarnessError(_cause(folder, process.returncode, log))
    result: dict[str, Any] = read_json(folder / "result.json")
    return result


def _release_device() -> None:
    """Give back the device memory that scoring and rewriting have left reserved in this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _relay(folder: Path, done: int, on_step: Callable[[int, int], None]) -> int:
    try:
        step, steps = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return done
    for reached in range(done + 1, step + 1):
        on_step(reached, steps)
    return max(done, int(step))


def _cause(folder: Path, code: int, log: Path) -> str:
    for file in sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime_ns):  # the first
        return f"{read_json(file)['message']} (log: {log})"
    return f"the training processes ended with exit code {code}: out of memory, or killed (log: {log})"


def _write(job: TrainJob) -> None:
    kept = {"examples": job.examples, "safety_examples": job.safety_examples}
    for name, examples in kept.items():
        write_jsonl_atomic(
            job.folder / f"{name}.jsonl", [dataclasses.asdict(example) for example in examples]
        )
    plain = {
        field.name: getattr(job, field.name) for field in dataclasses.fields(job) if field.name not in kept
    }
    plain |= {name: str(plain[name]) for name in ("folder", "seed_model", "cache")}
    plain["models"] = {name: str(place) for name, place in job.models.items()}
    plain["settings"] = job.settings.model_dump(mode="json")
    plain["named"] = plugin_files.as_json(plugin_files.shipped()._replace(folders=()))
    plain["waiting"] = [socket.gethostname(), os.getpid()]
    write_json_atomic(job.folder / "job.json", plain)


def _read(folder: Path) -> tuple[TrainJob, list[Any]]:
    plain = read_json(folder / "job.json")
    waiting = plain.pop("waiting")
    plugin_files.take(plugin_files.from_json(plain.pop("named")))
    plain |= {name: Path(plain[name]) for name in ("seed_model", "cache")} | {"folder": folder}
    plain["models"] = {name: Path(place) for name, place in plain["models"].items()}
    plain["settings"] = TrainingConfig.model_validate(plain["settings"])
    for name in ("examples", "safety_examples"):
        plain[name] = [Encoded(**row) for row in read_jsonl(folder / f"{name}.jsonl")]
    return TrainJob(**plain), waiting


def main() -> None:
    """A training process: takes the job, trains, and leaves the result (the first one does) or its error."""
    folder = Path(sys.argv[1])
    rank = int(os.environ.get("RANK", "0"))
    job, waiting = _read(folder)
    threading.Thread(target=_end_with, args=tuple(waiting), daemon=True).start()
    try:
        import torch
        import transformers

        if job.threads:
            torch.set_num_threads(job.threads)
        transformers.utils.logging.set_verbosity_error()

        told = 0.0

        def on_step(step: int, steps: int) -> None:
            nonlocal told
            if rank == 0 and (step == steps or time.monotonic() - told > POLL_S):
                told = time.monotonic()
                write_json_atomic(folder / "progress.json", [step, steps])

        result = run(job, on_step)
        peaks: list[int] = [0] * int(os.environ.get("WORLD_SIZE", "1"))
        torch.distributed.all_gather_object(peaks, result["peak_memory_bytes"])
        if rank == 0:
            write_json_atomic(folder / "result.json", {**result, "peak_memory_bytes": max(peaks)})
        with contextlib.suppress(RuntimeError):  # all is written; another may be gone already
            torch.distributed.barrier()
    except BaseException as error:
        print(shown_traceback(), file=sys.stderr)
        said = plugin_code.told(error) or f"{type(error).__name__}: {shortened(error)}"
        message = str(error) if isinstance(error, HarnessError) else said
        write_json_atomic(folder / f"error-{rank}.json", {"message": message})
        os._exit(1)  # the others may wait in a collective for ever; the launcher ends them
    sys.stdout.flush()
    os._exit(0)  # all is written; gloo's threads abort a process that takes itself apart


def _end_with(host: str, pid: int) -> None:
    """End this process when the command that waits for it is gone (seen on its own machine)."""
    import psutil

    while host == socket.gethostname():
        try:
            gone = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            gone = True
        if gone:
            os._exit(1)
        time.sleep(1.0)


if __name__ == "__main__":
    main()
