"""Training speed beside TRL's SFTTrainer: the same model, rows, order, precision, optimizer and global batch.

    make bench                                      # CPU: a small Llama in float32
    python tests/bench/train_speed.py --size 1b --dtype bfloat16 --device cuda --micro-batch 16

Each trainer runs in a process of its own, one after the other, several times; what is printed is the median
of real (not padding) tokens a second after the first steps (``--warm-up``), as ratios to TRL's settings, the
same over the whole training (compiling included), peak memory, and the largest difference of the losses.
Lengths follow GSM8K's and SAMSum's under Llama-2's tokenizer.

Ours takes any key of a recipe's section training (``--set compile=true``), and with ``--each`` trains under
several in one process, each a line of figures:

    --contender ours --each "" --each chunked_loss=true --each "compile=true chunked_loss=true"

Utilisation (MFU) is printed by two counts of the same steps: training/flops.py's, which counts the output
head on loss-carrying tokens alone and attention's square, and 6 N a token (adapters: 4 N), as most published
figures have it. TRL's packing (``trl packing``) trains on whole packs, in other batches: its losses are not
ours, and its tokens are counted by the share of steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# (prompt, answer) tokens of the published rows: mean and standard deviation, log-normal.
LENGTHS = {"gsm8k": ((96, 29), (136, 62)), "samsum": ((185, 104), (32, 16))}
SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4},
    "25m": {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 8, "num_attention_heads": 6},
    "110m": {
        "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 10, "num_attention_heads": 12,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256,
    },
}  # fmt: skip
CONTENDERS = ("ours", "trl padded", "trl padding-free")
FURTHER = ("trl packing",)
PACK = 2048  # tokens of one of TRL's packs


def rows(dataset: str, count: int, vocabulary: int) -> list[tuple[list[int], int]]:
    """(token ids, prompt length) of each row, the same on every machine."""
    import numpy as np

    generator = np.random.default_rng(0)

    def lengths(mean: float, deviation: float) -> Any:
        spread = np.log(1 + (deviation / mean) ** 2)
        drawn = generator.lognormal(np.log(mean) - spread / 2, np.sqrt(spread), count)
        return drawn.clip(8, 900).astype(int)

    prompts, answers = (lengths(*moments) for moments in LENGTHS[dataset])
    ids = random.Random(0)
    return [
        ([ids.randrange(3, vocabulary) for _ in range(prompt + answer)], int(prompt))
        for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True)
    ]


def model_of(options: argparse.Namespace, device: str | None = None) -> Any:
    """Random weights, drawn on the device: the same for every contender there. Frozen ones are loaded in the
    computation's precision, as ours are."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    base = {"vocab_size": 32_000, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlamaConfig(**{**base, **SIZES[options.size]})
    dtype = torch.float32 if options.tuning == "full" else getattr(torch, options.dtype)
    torch.manual_seed(0)
    with torch.device(device or options.device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def settings_of(options: argparse.Namespace) -> Any:
    from harness.config import TrainingConfig, parse_setting

    return TrainingConfig.model_validate(
        {
            "epochs": 1,
            "batch_size": options.batch,
            "micro_batch_size": options.our_micro_batch or options.micro_batch,
            "batching": options.batching,
            "learning_rate": 1e-4,
            "betas": (0.9, 0.999),
            "dtype": options.dtype,
            "device": options.device,
            "tuning": options.tuning,
            "lora": {"r": 16, "alpha": 32},
            "gradient_checkpointing": options.checkpointing,
            **dict(map(parse_setting, options.set)),
        }
    )


class Clock:
    """Seconds from the end of step number ``warm_up`` to the end of the last, the device waited for at these
    two alone."""

    def __init__(self, device: str, warm_up: int):
        self.device, self.warm_up = device, warm_up
        self.marks, self.steps, self.peak_bytes = list[float](), 0, 0

    def __call__(self, step: int, steps: int) -> None:
        self.steps = steps
        if step not in (min(self.warm_up, steps - 1), steps):
            return
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        self.peak_bytes = peak_bytes(self.device)

    @property
    def seconds(self) -> float:
        return self.marks[-1] - self.marks[0]

    @property
    def watched(self) -> int:
        """Steps in that time."""
        return self.steps - min(self.warm_up, self.steps - 1)


def peak_bytes(device: str) -> int:
    """What this process has taken at most: of a GPU by torch's allocator, of a CPU's memory as a whole."""
    if device == "cpu":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import torch

    return int(torch.cuda.max_memory_allocated())


def utilisation(options: argparse.Namespace, data: list[tuple[list[int], int]], seconds: float) -> Any:
    """Of so many seconds for these rows: FLOP/s by both counts, and the shares of the device's peak where it
    is known."""
    import torch

    from harness.training import adapters, flops

    model = model_of(options, "meta")
    if options.tuning != "full":
        model = adapters.with_adapters(model, settings_of(options))
    lengths = [len(ids) for ids, _ in data]
    ours = flops.count(model).train(lengths, sum(len(ids) - prompt for ids, prompt in data))
    weights = sum(p.numel() for p in model.parameters())
    by_n = (6 if options.tuning == "full" else 4) * weights * sum(lengths)
    name = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
    peak = flops.peak(name, options.dtype)
    return {
        "parameters": weights,
        "tflops": ours / seconds / 1e12,
        "tflops_by_n": by_n / seconds / 1e12,
        "mfu": flops.mfu(ours, seconds, peak) if peak else None,
        "mfu_by_n": flops.mfu(by_n, seconds, peak) if peak else None,
    }


def ours(options: argparse.Namespace, data: list[tuple[list[int], int]]) -> dict[str, Any]:
    from backends.vanilla import Vanilla
    from harness.contracts import Encoded
    from harness.storage.files import Cache
    from harness.training import trainer

    examples = [
        Encoded(str(n), ids, [False] * prompt + [True] * (len(ids) - prompt))
        for n, (ids, prompt) in enumerate(data)
    ]
    clock, settings = Clock(options.device, options.warm_up), settings_of(options)
    trainer.global_batches = (
        lambda examples, epochs, size, seed: [  # in the order given
            examples[start : start + size] for start in range(0, len(examples), size)
        ]
    )
    trainer.HookedTrainer.save_weights = lambda self, folder: None  # nobody reads them
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        record = trainer.train(
            model_of(options),
            Tokenizer(),
            examples,
            Vanilla(),
            settings,
            0,
            clock,
            places=trainer.Places(folder / "output", folder / "state", folder / "reports"),
            cache=Cache(folder / "cache"),
            identity={},
        )
    taken, cuts = record["agreement"]["taken"], record["out_of_memory"]
    return {
        "losses": record["losses"],
        "seconds": clock.seconds,
        "whole_seconds": record["loop_seconds"],
        "steps": clock.watched,
        "peak_memory_bytes": clock.peak_bytes,
        "setting": ", ".join([f"{taken['batching']}, micro-batch {settings.micro_batch_size}", *options.set])
        + "".join(f", {cut['micro_batch_size']} from step {cut['step']} on (memory)" for cut in cuts),
    }


class Tokenizer:
    """What the trainers ask of a tokenizer when the rows are token ids already."""

    pad_token_id, eos_token_id, bos_token_id = 0, 2, 1
    pad_token, eos_token = "<pad>", "</s>"

    def save_pretrained(self, folder: Any) -> None:
        pass


def flash(options: argparse.Namespace) -> str | None:
    """The attention that keeps TRL's packed rows apart; None: the model's own."""
    if options.device == "cpu":
        return None
    return options.flash or ("flash_attention_2" if find_spec("flash_attn") else "sdpa")


def trl(options: argparse.Namespace, data: list[tuple[list[int], int]], how: str) -> dict[str, Any]:
    import torch
    import transformers
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Watch(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.clock, self.losses = Clock(options.device, options.warm_up), list[float]()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.clock(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    model, attention = model_of(options), flash(options)
    if attention and how != "padded":
        model.set_attn_implementation(attention)
    liger = how == "packing" and find_spec("liger_kernel") is not None
    size = options.micro_batch
    if how == "packing":  # as many tokens in a step as the others' batches have
        packs = sum(len(ids) for ids, _ in data) / len(data) * options.batch / PACK
        size = max(1, round(packs))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    watch = Watch()
    peft_config = None
    if options.tuning == "lora":
        from peft import LoraConfig

        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = InOrder(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                num_train_epochs=1,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=1 if how == "packing" else options.batch // size,
                learning_rate=1e-4,
                lr_scheduler_type="linear",
                adam_beta2=0.999,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                bf16=options.dtype == "bfloat16",
                use_cpu=options.device == "cpu",
                gradient_checkpointing=options.checkpointing,
                completion_only_loss=True,
                padding_free=how != "padded",
                packing=how == "packing",
                use_liger_kernel=liger,
                max_length=PACK if how == "packing" else None,
                logging_steps=1 if options.device == "cpu" else 10,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(
                [
                    {"input_ids": ids, "completion_mask": [0] * prompt + [1] * (len(ids) - prompt)}
                    for ids, prompt in data
                ]
            ),
            processing_class=tokenizer_for_trl(),
            peft_config=peft_config,
            callbacks=[watch],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        begun = time.perf_counter()
        trainer.train()
        whole = time.perf_counter() - begun
    return {
        "losses": [] if how == "packing" else watch.losses,
        "seconds": watch.clock.seconds,
        "whole_seconds": whole,
        "steps": watch.clock.watched,
        "peak_memory_bytes": watch.clock.peak_bytes,
        "share": watch.clock.watched / watch.clock.steps if how == "packing" else None,
        "setting": f"{how}, micro-batch {size}"
        + (f", {attention}" if attention and how != "padded" else "")
        + (", Liger" if liger else ""),
    }


def tokenizer_for_trl() -> Any:
    """TRL wants a real one; it is asked for its padding alone."""
    from transformers import AutoTokenizer

    from harness.mini import seed_model_path

    return AutoTokenizer.from_pretrained(seed_model_path())


def measure(options: argparse.Namespace) -> None:
    from harness.training.job import settle_allocator

    settle_allocator(settings_of(options))
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    vocabulary = SIZES[options.size].get("vocab_size", 32_000)
    data = rows(options.dataset, options.rows, int(vocabulary))
    failed, given = [], options.set
    for more in options.each or [""]:
        options.set = [*given, *more.split()]
        try:
            print("RESULT " + json.dumps(figures(options, data)), flush=True)
        except Exception as error:  # the others' figures are no worse for it
            if not options.each:
                raise
            traceback.print_exc()
            failed.append(f"{more or 'usual'}: {type(error).__name__}: {error}")
        gc.collect()
        if options.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if failed:
        sys.exit("; ".join(" ".join(one.split())[:200] for one in failed))


def figures(options: argparse.Namespace, data: list[tuple[list[int], int]]) -> dict[str, Any]:
    """One contender's: ``seconds``, ``tokens`` and shares of the peak without the first steps, and under
    ``whole`` with them."""
    if options.contender == "ours":
        found = ours(options, data)
    else:
        found = trl(options, data, options.contender.removeprefix("trl "))
    timed = data[options.batch * min(options.warm_up, -(-len(data) // options.batch) - 1) :]
    share, whole_s = found.pop("share", None), found.pop("whole_seconds")
    tokens = sum(len(ids) for ids, _ in data)
    found["tokens"] = tokens * share if share else sum(len(ids) for ids, _ in timed)
    seconds = found["seconds"] / (share or 1.0)  # packs hold all rows: for so many seconds, all of them
    found |= utilisation(options, data if share else timed, seconds)
    whole = {"seconds": whole_s, "tokens": tokens, **utilisation(options, data, whole_s)}
    return {"contender": options.contender, **found, "whole": whole}


def compare(options: argparse.Namespace, arguments: list[str]) -> None:
    """Run every contender in turn, ``repeats`` times, and print the medians side by side."""
    contenders = (
        CONTENDERS if options.device == "cpu" else (*CONTENDERS, *FURTHER)
    )  # a CPU keeps no packs apart
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name in contenders:
            command = [sys.executable, __file__, *arguments, "--contender", name]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if done.returncode or not lines:
                reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
                print(f"{name}: cannot run here ({reason[:200]})")
                continue
            found[name].append(json.loads(lines[-1].removeprefix("RESULT ")))
    speeds = {
        name: statistics.median(run["tokens"] / run["seconds"] for run in runs)
        for name, runs in found.items()
        if runs
    }
    print(
        f"\nLlama {options.size}, {options.tuning} tuning, {options.dtype} on {options.device}, "
        f"{options.rows} rows of {options.dataset}'s lengths, global batch {options.batch}, "
        f"micro-batch {options.micro_batch} (ours: {options.our_micro_batch or options.micro_batch}, "
        f"{options.batching}), {options.threads or 'all'} threads, median of {options.repeats}"
    )
    for name, speed in speeds.items():
        losses = found[name][0]["losses"]
        same = found["ours"][0]["losses"]
        apart = max((abs(a - b) for a, b in zip(losses, same, strict=False)), default=0.0)
        note = f"largest difference of losses to ours {apart:.1e}" if name != "ours" else ""
        first, whole = found[name][0], found[name][0]["whole"]
        count = "6N" if options.tuning == "full" else "4N"
        if first["mfu"]:
            note += f"  MFU {first['mfu']:.1%}, by {count} {first['mfu_by_n']:.1%}"
            note += f" (whole {whole['mfu']:.1%}, by {count} {whole['mfu_by_n']:.1%})"
        note += f"  whole {whole['tokens'] / whole['seconds']:,.0f} tokens/s"
        note += f"  peak {first['peak_memory_bytes'] / 1e9:.1f} GB"
        print(
            f"  {name:17s} {speed:9,.0f} real tokens/s   ours / it = {speeds['ours'] / speed:5.2f}   {note}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="25m")
    parser.add_argument("--dataset", choices=LENGTHS, default="gsm8k")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--our-micro-batch", type=int, help="ours, where another one is better")
    parser.add_argument("--batching", choices=["grouped", "padding-free", "in-order"], default="grouped")
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--flash", help="TRL's attention for packed rows on a GPU")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="ours: a setting")
    parser.add_argument("--each", action="append", metavar="SETTINGS", help="ours: train once under each")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the clock begins")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contender", choices=(*CONTENDERS, *FURTHER), help="measure this one, here")
    options = parser.parse_args()
    if options.contender:
        measure(options)
    else:
        compare(options, sys.argv[1:])


if __name__ == "__main__":
    main()
