"""What must hold on a GPU: functions of a ``small.Place`` that raise where it does not, and return figures.

pytest runs them as tests (test_gpu.py, ``make test-gpu``), and ``python -m gpu.runner`` where there is none,
each in a process of its own. On a CPU the same functions run too (test_checks.py), so that a mistake in a
check shows before a GPU is rented.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from gpu import reference, small
from gpu.small import Place
from torch.utils._python_dispatch import TorchDispatchMode

from harness.contracts import Encoded, Exchange, JudgeContext, Message
from harness.mini import data, seed_model_path
from harness.models import chat, checkpoints
from harness.training import trainer

TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2}  # nats a token, of any of the six to eight losses
QUANTIZED = 0.5  # nats a token: 4-bit weights are another model
TIE = 1e-3  # between two logits that another order of sums may swap
CLOSE = 1e-3  # of probabilities and divergences in float32
BYTES = 2**20


class NotHereError(Exception):
    """What a check needs is not on this machine; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """``limit_s``: seconds that it may take on a GPU. ``needs``: importable names beside torch, transformers,
    accelerate and pydantic. ``only``: "cuda" where a CPU has nothing like it."""

    work: Callable[[Place], dict[str, Any]]
    limit_s: float = 30.0
    needs: tuple[str, ...] = ()
    only: str | None = None

    def run(self, place: Place) -> dict[str, Any]:
        """Raises NotHereError where something is missing, and whatever the check finds wrong."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise NotHereError(f"{', '.join(missing)} not installed")
        if self.only and not place.device.startswith(self.only):
            raise NotHereError(f"needs {self.only}")
        try:
            return self.work(place)
        finally:
            gc.collect()
            with contextlib.suppress(RuntimeError):  # of a device that the check has broken
                torch.cuda.empty_cache()


# --- losses ---------------------------------------------------------------------------------------------


def apart(found: Sequence[float], name: str) -> float:
    """The largest difference of losses from the CPU's float32 ones."""
    expected = reference.read()[name]
    assert len(found) == len(expected), f"{len(found)} losses, and {len(expected)} on the CPU"
    return max(abs(one - other) for one, other in zip(found, expected, strict=True))


def held(record: dict[str, Any], name: str, tolerance: float, batching: str) -> dict[str, Any]:
    """Losses near the CPU's, in the batching that was asked for and under our attention."""
    taken = record["agreement"]["taken"]
    rejected = record["agreement"]["rejected"]
    assert (taken["batching"], taken["attention"]) == (batching, "harness_causal"), f"rejected: {rejected}"
    difference = apart(record["losses"], name)
    assert difference <= tolerance, f"losses {difference:.2g} from the CPU's: {record['losses']}"
    return {"difference": difference, "tolerance": tolerance, "agreement": record["agreement"]["difference"]}


def matrix(place: Place, *, family: str, tuning: str, batching: str, dtype: str) -> dict[str, Any]:
    record = small.train(place, family, batching=batching, dtype=dtype, **small.TUNINGS[tuning])
    return held(record, f"{family} {tuning}", TOLERANCE[dtype], batching)


def method(place: Place, *, name: str) -> dict[str, Any]:
    record = small.train(place, method=name, batching="padding-free", dtype="bfloat16")
    return held(record, name, TOLERANCE["bfloat16"], "padding-free")


def kernels(
    place: Place, *, tuning: str = "full", batching: str = "padding-free", **settings: Any
) -> dict[str, Any]:
    """A setting for speed on: the losses are those without."""
    changes = small.TUNINGS[tuning] | settings
    record = small.train(place, batching=batching, dtype="bfloat16", **changes)
    return held(record, f"llama {tuning}", TOLERANCE["bfloat16"], batching)


def qlora(place: Place) -> dict[str, Any]:
    """On 4-bit weights: near the losses on whole ones, and falling."""
    folder = place.folder / "model"
    checkpoints.save(small.model_of("llama", "cpu"), small.tokenizer_of(), folder)
    loaded = checkpoints.load_model(folder, "bfloat16", place.device, four_bit=True)
    settings = small.TUNINGS["lora"] | {"tuning": "qlora"}
    found = small.train(place, model=loaded, batching="padding-free", dtype="bfloat16", **settings)["losses"]
    difference = apart(found, "llama lora")
    assert difference <= QUANTIZED, f"losses {difference:.2g} from those on whole weights"
    assert found[-1] < found[0]
    return {"difference": difference, "tolerance": QUANTIZED}


def two_devices(place: Place) -> dict[str, Any]:
    """DeepSpeed's ZeRO-2 over two devices, through the command line."""
    if place.cuda and torch.cuda.device_count() < 2:
        raise NotHereError("needs two CUDA devices")
    return compare(place, methods="vanilla", extra=["--num-processes", "2", "--distributed", "zero2"])


# --- inside a step --------------------------------------------------------------------------------------


class _Waits(TorchDispatchMode):
    """On a CPU: what a GPU would have to be waited for, refused."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.strip("_") in {name.strip("_") for name in self.READS}:
            raise RuntimeError(f"a step waits for the device: {func}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_waiting(place: Place, warm_up: int) -> Iterator[list[int]]:
    """Training steps after the first ``warm_up`` raise where they wait for the device: forward and backward
    passes, clipping, optimizer and schedule. Yields the numbers of the steps that were watched."""
    begin, end = trainer.HookedTrainer.training_step, trainer.StepCallback.on_step_end
    watched: list[int] = []
    waits = contextlib.ExitStack()

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= warm_up:
            watched.append(self.state.global_step + 1)
            if place.cuda:
                torch.cuda.set_sync_debug_mode("error")
            else:
                waits.enter_context(_Waits())
        return begin(self, *args, **kwargs)

    def on_step_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        release()
        return end(self, *args, **kwargs)

    def release() -> None:
        if place.cuda:
            torch.cuda.set_sync_debug_mode("default")
        waits.close()

    trainer.HookedTrainer.training_step = training_step  # type: ignore[method-assign]
    trainer.StepCallback.on_step_end = on_step_end  # type: ignore[method-assign]
    try:
        yield watched
    finally:
        release()
        trainer.HookedTrainer.training_step = begin  # type: ignore[method-assign]
        trainer.StepCallback.on_step_end = end  # type: ignore[method-assign]


def no_waiting(
    place: Place, *, name: str, batching: str, tuning: str = "full", **more: Any
) -> dict[str, Any]:
    settings = {"batching": batching, "dtype": "bfloat16", **small.TUNINGS[tuning], **more}
    with without_waiting(place, warm_up=3) as watched:
        small.train(place, method=name, **settings)
    assert watched == [4, 5, 6]
    return {"steps": len(watched)}


class _StopError(Exception):
    """Stands for a kill in the middle of a training."""


def resumed(place: Place, *, dtype: str, batching: str) -> dict[str, Any]:
    """A training that was stopped and goes on ends as one that was not: with the same bits where two
    uninterrupted ones have the same, else as near as losses must be."""
    settings: dict[str, Any] = {"dtype": dtype, "batching": batching, "save_steps": 2}
    folders = {name: place.folder / name for name in ("whole", "again", "part")}

    def stop(step: int, steps: int) -> None:
        if step == 5:
            raise _StopError

    with _repeatable(place):
        found = {name: small.train(place, folder=folders[name], **settings) for name in ("whole", "again")}
        with contextlib.suppress(_StopError):
            small.train(place, folder=folders["part"], on_step=stop, **settings)
        found["part"] = small.train(place, folder=folders["part"], **settings)
    assert found["part"]["resumed_at_step"] == 4
    repeatable = _same(folders["whole"], folders["again"])
    same = _same(folders["whole"], folders["part"]) and found["part"]["losses"] == found["whole"]["losses"]
    difference = max(
        abs(a - b) for a, b in zip(found["part"]["losses"], found["whole"]["losses"], strict=True)
    )
    assert same or not repeatable, f"a resumed training has other bits; losses differ by {difference:.2g}"
    assert difference <= TOLERANCE[dtype]
    return {"two whole trainings have the same bits": repeatable, "resumed has": same, "losses": difference}


def _same(one: Path, other: Path) -> bool:
    first, second = small.weights(one), small.weights(other)
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@contextlib.contextmanager
def _repeatable(place: Place) -> Iterator[None]:
    """The same sums in the same order, where a device has such kernels."""
    if not place.cuda:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# --- memory ---------------------------------------------------------------------------------------------


# Rows of a micro-batch, tokens of each, and a vocabulary whose logits fill gigabytes.
ON_CUDA: tuple[int, int, dict[str, Any]] = (32, 512, {"vocab_size": 16_384})


def out_of_memory(place: Place) -> dict[str, Any]:
    """Where a micro-batch does not fit, half of it is taken, which the record says, and losses stay."""
    size, tokens, model = ON_CUDA if place.cuda else (8, 24, {})
    generator = torch.Generator().manual_seed(1)
    rows = [
        Encoded(
            str(number),
            torch.randint(3, 400, (tokens,), generator=generator).tolist(),
            [False] * 4 + [True] * (tokens - 4),
        )
        for number in range(2 * size)
    ]

    def run(micro_batch: int) -> tuple[dict[str, Any], int]:
        if place.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        record = small.train(
            place,
            model=small.model_of("llama", place.device, **model),
            rows=rows,
            epochs=1,
            batch_size=size,
            micro_batch_size=micro_batch,
        )
        return record, torch.cuda.max_memory_reserved() if place.cuda else 0

    half, half_bytes = run(size // 2)
    whole, whole_bytes = run(size)
    assert (half["out_of_memory"], whole["out_of_memory"]) == ([], [])
    if place.cuda:
        assert whole_bytes > 1.3 * half_bytes, "the two sizes take the same memory: this check is too small"
    with _room_for(place, size // 2, (half_bytes + whole_bytes) // 2):
        cut, _ = run(size)
    assert cut["out_of_memory"] == [{"step": 1, "micro_batch_size": size // 2}]
    difference = max(abs(a - b) for a, b in zip(cut["losses"], whole["losses"], strict=True))
    assert difference <= TOLERANCE["float32"]
    return {"MiB whole": whole_bytes // BYTES, "MiB half": half_bytes // BYTES, "losses": difference}


@contextlib.contextmanager
def _room_for(place: Place, examples: int, limit: int) -> Iterator[None]:
    """``limit`` bytes of a GPU's memory, or a CPU that acts as if more than so many examples did not fit."""
    if place.cuda:
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    loss = trainer.HookedTrainer.micro_batch_loss

    def limited(self: Any, model: Any, micro: Any, step: Any) -> Any:
        if len(micro.ids) > examples:
            raise torch.OutOfMemoryError("as a GPU says it")
        return loss(self, model, micro, step)

    trainer.HookedTrainer.micro_batch_loss = limited  # type: ignore[method-assign]
    try:
        yield
    finally:
        trainer.HookedTrainer.micro_batch_loss = loss  # type: ignore[method-assign]


# --- answers --------------------------------------------------------------------------------------------


def prompts(tokenizer: Any, count: int = 12) -> list[list[int]]:
    asked = [row["question"] for row in data.gsm8k("test")[:count]]
    return [
        chat.token_ids(
            tokenizer,
            chat.render(tokenizer, [Message("user", question)], generation_prompt=True),
        )
        for question in asked
    ]


def mini(device: str) -> Any:
    return checkpoints.load_model(seed_model_path(), "float32", device).eval()


def margin(model: Any, ids: Sequence[int], one: int, other: int) -> float:
    """How far the logits of two next tokens are apart."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0, -1].float()
    return float((logits[one] - logits[other]).abs())


def alike(model: Any, asked: Sequence[list[int]], found: Sequence[list[int]], expected: Any) -> int:
    """How many answers are the expected ones. Raises where one leaves the other but at a tie."""
    equal = 0
    for prompt, one, other in zip(asked, found, expected, strict=True):
        if one == other:
            equal += 1
            continue
        place = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        assert place is not None, "one answer ends where the other goes on"
        gap = margin(model, prompt + one[:place], one[place], other[place])
        assert gap < TIE, f"another token than on the CPU, {gap:.2g} apart in the CPU's logits"
    return equal


def answers(place: Place, **settings: Any) -> dict[str, Any]:
    """Greedy answers of engine hf in float32: the CPU's, one prompt at a time."""
    from harness.engines.base import Request
    from harness.engines.hf import HFEngine

    if settings.keys() - signature(HFEngine).parameters.keys():
        raise NotHereError("the engine has no such setting")
    tokenizer = small.tokenizer_of()
    asked = prompts(tokenizer)
    found = HFEngine(mini(place.device), tokenizer, 4, **settings).generate(asked, Request(48))
    expected = HFEngine(mini("cpu"), tokenizer, 1).generate(asked, Request(48))
    return {"answers": len(asked), "equal": alike(mini("cpu"), asked, found, expected)}


def vllm_answers(place: Place) -> dict[str, Any]:
    from harness.config import ResponsesConfig
    from harness.engines.base import Request
    from harness.engines.hf import HFEngine
    from harness.engines.vllm import VLLMEngine
    from harness.models.checkpoints import Checkpoint

    tokenizer = small.tokenizer_of()
    asked = prompts(tokenizer)
    settings = ResponsesConfig(gpu_memory=0.3, max_context=512)
    engine = VLLMEngine.open(Checkpoint(seed_model_path()), settings, place.device)
    try:
        found = engine.generate(asked, Request(48))
    finally:
        engine.close()
    expected = HFEngine(mini("cpu"), tokenizer, 1).generate(asked, Request(48))
    return {"answers": len(asked), "equal": alike(mini("cpu"), asked, found, expected)}


def divergence(place: Place) -> dict[str, Any]:
    """KL(base || tuned) at each token of fixed answers: the CPU's."""
    from harness.analyses import token_divergence as kl

    tokenizer = small.tokenizer_of()
    questions = [
        kl.Forced(str(number), prompt, chat.token_ids(tokenizer, "Sure, here is what to do."))
        for number, prompt in enumerate(prompts(tokenizer))
    ]

    def values(device: str, size: int) -> torch.Tensor:
        base, tuned = mini(device), mini(device)
        with torch.no_grad():
            for weight in tuned.parameters():
                weight.mul_(1.1)
        found = [
            kl.compute_kl(*(kl.answer_logp(model, batch, 0) for model in (base, tuned))).cpu()
            for batch in kl.make_batches(questions, size)
        ]
        return torch.cat(found)

    here, there = values(place.device, 4), values("cpu", 4)
    difference = float((here - there).abs().max())
    assert float(there.mean()) > 10 * CLOSE
    assert difference <= CLOSE, f"divergences {difference:.2g} nats from the CPU's"
    return {"tokens": len(here), "mean": float(here.mean()), "difference": difference}


def judge(place: Place) -> dict[str, Any]:
    """A local judge's scores: the CPU's."""
    from harness.contracts import JudgeSettings
    from harness.judging import models
    from judges.local import LocalJudge

    file = place.folder / "guard.yaml"
    file.write_text(small.GUARD, encoding="utf-8")
    one = LocalJudge.configured(str(file), str(seed_model_path()), JudgeSettings())
    exchanges = [
        Exchange(f"{number}", "task", None, None, row["instruction"], "", answer, "stop")
        for number, row in enumerate(data.harmful()[:8])
        for answer in ("Sure, take it.", "I will not help with that.")
    ]

    def scores(device: str, size: int) -> list[float | None]:
        model = models.load(seed_model_path(), "hf", "float32", device, size)
        try:
            found = one.judge(exchanges, JudgeContext(load_model=lambda name: model))
            return [verdict.score for verdict in found]
        finally:
            model.close()

    here, there = scores(place.device, 4), scores("cpu", 1)
    assert len(here) == len(there) == len(exchanges)
    assert not [score for score in (*here, *there) if score is None]
    difference = max(abs((a or 0.0) - (b or 0.0)) for a, b in zip(here, there, strict=True))
    assert difference <= CLOSE, f"scores {difference:.2g} from the CPU's"
    return {"verdicts": len(here), "difference": difference}


# --- the whole way --------------------------------------------------------------------------------------

COMPARED = {
    "training.max_examples": 32, "training.epochs": 1, "training.batch_size": 16, "responses.limit": 8,
    "training.micro_batch_size": 16, "jobs": 1,
}  # fmt: skip


def compare(place: Place, *, methods: str, extra: Sequence[str] = ()) -> dict[str, Any]:
    """``harness compare`` on the mini world, answers by engine hf and the leaderboard included."""
    out = place.folder / "run"
    command = [
        sys.executable,
        "-m",
        "harness",
        "compare",
        "--methods",
        methods,
        "--train-tasks",
        "gsm8k-mini",
    ]
    command += ["--engine", "hf", "--out", str(out), "--set", f"training.device={place.device}", *extra]
    for key, value in COMPARED.items():
        command += ["--set", f"{key}={value}"]
    places = {"HARNESS_CACHE": str(place.folder / "cache"), "HARNESS_STATE": str(place.folder / "state")}
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | places)
    said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
    assert ended.returncode == 0, " | ".join(said[-3:])
    with (out / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["status"] for row in rows} == {"done"}
    assert all(row["utility"] and row["rsr"] and row["jsr"] for row in rows)
    return {"rows": len(rows)}


# The packages that a whole command imports beside those of a training.
WHOLE = ("lm_eval", "click", "rich", "statsmodels", "matplotlib", "tenacity", "datasets", "pandas", "peft")

CHECKS: dict[str, Check] = {
    **{
        f"{family} {tuning} {batching}": Check(
            functools.partial(matrix, family=family, tuning=tuning, batching=batching, dtype="bfloat16"),
            needs=("peft",) if tuning == "lora" else (),
        )
        for family in small.FAMILIES
        for tuning in small.TUNINGS
        for batching in small.BATCHINGS
    },
    "llama full grouped float32": Check(
        functools.partial(matrix, family="llama", tuning="full", batching="grouped", dtype="float32")
    ),
    **{name: Check(functools.partial(method, name=name)) for name in small.METHODS},
    "no waiting grouped": Check(functools.partial(no_waiting, name="vanilla", batching="grouped")),
    "no waiting padding-free": Check(functools.partial(no_waiting, name="vanilla", batching="padding-free")),
    "no waiting chunked loss": Check(
        functools.partial(no_waiting, name="vanilla", batching="padding-free", chunked_loss=True)
    ),
    "no waiting lora": Check(
        functools.partial(no_waiting, name="vanilla", batching="padding-free", tuning="lora"),
        needs=("peft",),
    ),
    "no waiting constrained-sft": Check(
        functools.partial(no_waiting, name="constrained-sft", batching="padding-free")
    ),
    "no waiting lisa": Check(functools.partial(no_waiting, name="lisa", batching="padding-free")),
    "resumed float32": Check(functools.partial(resumed, dtype="float32", batching="grouped")),
    "resumed padding-free": Check(functools.partial(resumed, dtype="bfloat16", batching="padding-free")),
    "out of memory": Check(out_of_memory),
    "answers": Check(answers, needs=("lm_eval",)),
    "answers static cache": Check(
        functools.partial(answers, static_cache=True), limit_s=60, needs=("lm_eval",), only="cuda"
    ),
    "answers continuous": Check(functools.partial(answers, continuous=True), limit_s=60, needs=("lm_eval",)),
    "answers without cuDNN": Check(
        functools.partial(answers, cudnn_attention=False), needs=("lm_eval",), only="cuda"
    ),
    "divergence": Check(divergence, needs=("lm_eval",)),
    "local judge": Check(judge),
    "compile": Check(functools.partial(kernels, compile=True), limit_s=90),
    "compile grouped": Check(functools.partial(kernels, compile=True, batching="grouped"), limit_s=90),
    "compile lora": Check(
        functools.partial(kernels, compile=True, tuning="lora", adapter_casts=False),
        limit_s=90,
        needs=("peft",),
        only="cuda",
    ),
    "chunked loss": Check(functools.partial(kernels, chunked_loss=True)),
    "no cudnn attention": Check(functools.partial(kernels, cudnn_attention=False, batching="grouped")),
    "no adapter casts": Check(
        functools.partial(kernels, tuning="lora", adapter_casts=False), needs=("peft",)
    ),
    "liger": Check(functools.partial(kernels, liger=True), needs=("liger_kernel",), only="cuda"),
    "qlora": Check(qlora, needs=("peft", "bitsandbytes"), only="cuda"),
    "vllm": Check(vllm_answers, limit_s=90, needs=("vllm", "lm_eval")),
    "deepspeed": Check(two_devices, limit_s=90, needs=("deepspeed", *WHOLE), only="cuda"),
    "compare": Check(functools.partial(compare, methods="vanilla,sdft"), limit_s=100, needs=WHOLE),
}
