"""A model's or adapter's folder with other tensors than it was saved with, and what loading it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from one_line import one_line
from safetensors.torch import load_file, save_file

from harness.mini import seed_model_path
from harness.models import checkpoints
from harness.models.checkpoints import Checkpoint

WHOLE, ADAPTER = "model.safetensors", "adapter_model.safetensors"
IDS = torch.tensor([[5, 6, 7, 40, 900, 3]])
Names = Callable[[str], str | None]


def renamed(folder: Path, change: Names, file: str = WHOLE) -> Path:
    """The folder with its tensors under other names; without those that ``change`` gives none."""
    found = {change(name): value for name, value in load_file(folder / file).items()}
    save_file({name: value for name, value in found.items() if name}, folder / file, {"format": "pt"})
    return folder


def more(folder: Path, file: str = WHOLE, **tensors: torch.Tensor) -> Path:
    save_file({**load_file(folder / file), **tensors}, folder / file, {"format": "pt"})
    return folder


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


def logp(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(ids).logits.log_softmax(-1)
    return found


def loaded(folder: Path, **options: Any) -> Any:
    return checkpoints.load_model(folder, "float32", "cpu", **options)


def seed_logp() -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logp(AutoModelForCausalLM.from_pretrained(seed_model_path(), dtype=torch.float32))


def refused(folder: Path, **options: Any) -> str:
    """The one line of every way to a folder."""
    base = checkpoints.base_folder(folder) if checkpoints.is_adapter(folder) else None
    ways = (
        lambda: loaded(folder, **options),
        lambda: checkpoints.fit(Checkpoint(folder, base), options.get("kind")),
        lambda: checkpoints.fit_for_vllm(Checkpoint(folder, base), options.get("kind")),
    )
    return one_line(ways, 800)


LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def adapter(place: Path, **options: Any) -> tuple[Path, torch.Tensor]:
    """A saved adapter whose every tensor matters, and what it computed before."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(seed_model_path(), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**{**LORA, **options}))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "lora_magnitude" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(place)
    checkpoints.load_tokenizer(seed_model_path()).save_pretrained(place)
    return place, logp(adapted)


def refused_unread(folder: Path) -> str:
    """The one line of every way to a folder, before anything is loaded."""
    ways = (
        lambda: checkpoints.locate(str(folder)),
        lambda: checkpoints.checkpoint(str(folder)),
        lambda: checkpoints.load_model(folder, "float32", "cpu"),
        lambda: checkpoints.load_model(folder, "float32", "cpu", base=seed_model_path()),
    )
    return one_line(ways, 500)
