"""Small models, rows and trainings for a GPU's checks: the same numbers go in on every device and release.

Weights are drawn on the CPU by a parameter's name, so that neither a library's order of initialisation nor a
device's random numbers reach them.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from backends.vanilla import Vanilla
from harness.config import TrainingConfig
from harness.contracts import Encoded, Example, Message, Method, PrepareContext
from harness.mini import data, seed_model_path
from harness.models import chat
from harness.plugins import registry
from harness.storage.files import Cache
from harness.training import adapters, trainer

ROWS, SAFETY_ROWS = 24, 6
GUARD = """
summary: the mini model as a guard
render:
  messages: [{role: user, content: "{request}"}, {role: assistant, content: "{answer}"}]
read:
  choice: ["I", "Sure"]
"""
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {  # each with grouped-query attention
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
}
TUNINGS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"tuning": "lora", "lora": {"r": 8, "alpha": 16}}}
BATCHINGS = ("grouped", "padding-free")
METHODS: dict[str, dict[str, Any]] = {  # beside vanilla, with options under which three steps tell them apart
    "constrained-sft": {}, "lookahead-true": {}, "lookahead-virtual": {}, "sdft": {}, "ptst": {},
    "safety-mixing": {"share": 0.2}, "lisa": {"rho": 3.0, "safety_steps": 1, "user_steps": 2},
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3, "schedule": "constant",
    "batching": "grouped", "dtype": "float32",
}  # fmt: skip


@dataclass
class Place:
    """Where a check works: a device, and an empty folder of its own."""

    device: str
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count()

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def fresh(self) -> Path:
        return self.folder / f"training-{next(self._numbers)}"


def tokenizer_of() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(seed_model_path())


def model_of(family: str, device: str, dtype: str = "float32", **changes: Any) -> Any:
    """A random model of three layers with the mini world's vocabulary, its weights in ``dtype``."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer_of()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"vocab_size": len(tokenizer), **SIZES, **FAMILIES[family], **special, **changes}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **sizes), dtype=getattr(torch, dtype)
    )
    draw(model, lambda name: not name.endswith(("norm.weight", "bias")))
    return model.to(device)


def draw(model: Any, which: Callable[[str], bool], deviation: float = 0.12) -> None:
    """Give the parameters whose names ``which`` takes the values that their names stand for."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if which(name):
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)


def texts(count: int = ROWS) -> list[Example]:
    """Conversations of the mini world, of different lengths."""
    return [
        Example(
            f"row-{number}",
            (
                Message("system", "Be brief."),
                Message("user", row["question"]),
                Message("assistant", row["answer"]),
            ),
        )
        for number, row in enumerate(data.gsm8k("train", count))
    ]


def refusals(count: int = SAFETY_ROWS) -> list[Example]:
    return [
        Example(f"safe-{n}", (Message("user", row["instruction"]), Message("assistant", "I will not help.")))
        for n, row in enumerate(itertools.islice(data.harmful(), count))
    ]


def prepared(method: Method, tokenizer: Any) -> list[Encoded]:
    """The rows as ``method`` has them; what the base model would rewrite is said in fixed words."""
    given = texts()

    def rewrites(conversations: Sequence[Sequence[Message]], **_: Any) -> list[str]:
        return [f"Let us see. {example.answer}" for example in given[: len(conversations)]]

    context = PrepareContext(
        tokenizer=tokenizer,
        train_task=registry.load("train task", "gsm8k-mini"),
        generate=rewrites,
        rng=random.Random(0),
        safety_examples=refusals(),
    )
    return [chat.encode(tokenizer, example) for example in method.prepare(given, context)]


@dataclass
class Drawn(Vanilla):
    """Vanilla whose adapters begin with the same numbers on every device."""

    uses_weights: ClassVar[bool] = True

    def before_training(self, model: Any, context: Any) -> None:
        draw(model, lambda name: "lora_A" in name)


def method_of(name: str) -> Method:
    if name == "vanilla":
        return Drawn()
    made: Method = registry.load_object(registry.METHODS[name])(**METHODS[name])
    return made


def train(
    place: Place,
    family: str = "llama",
    method: str = "vanilla",
    *,
    model: Any = None,
    rows: Sequence[Encoded] | None = None,
    folder: Path | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
    **changes: Any,
) -> dict[str, Any]:
    """The trainer's record of six steps (``SETTINGS``) of a small model; ``changes``: of the settings."""
    tokenizer, one = tokenizer_of(), method_of(method)
    settings = TrainingConfig.model_validate(SETTINGS | {"device": place.device} | changes)
    where = folder or place.fresh()
    torch.manual_seed(0)
    return trainer.train(
        model if model is not None else model_of(family, place.device, adapters.load_dtype(settings)),
        tokenizer,
        rows if rows is not None else prepared(one, tokenizer),
        one,
        settings,
        7,
        on_step,
        places=trainer.Places(where / "output", where / "state", where / "reports"),
        cache=Cache(place.folder / "cache"),
        identity={"model": family, "method": method},
        safety_examples=[chat.encode(tokenizer, example) for example in refusals()],
    )


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """What a training left, by name."""
    from safetensors.torch import load_file

    files = sorted((folder / "output" / "checkpoint").glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}
