"""What a training has cost: tokens, FLOPs and seconds, by what they were spent on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.config import TrainingConfig
from harness.storage.files import Cache
from harness.training import arguments, flops, isolation
from harness.training.batching import loss_tokens
from harness.training.loop import HookedTrainer
from harness.training.other_models import OtherModels
from harness.training.safety_gradient import SafetyGradient
from harness.training.seed_logp import SeedLogp
from harness.training.setup import Setup


class Spent:
    """Counts what a method's hooks ask for besides the steps, and the seconds of each part of a training."""

    def __init__(self, setup: Setup, cache: Cache, identity: dict[str, Any], models: Mapping[str, Path]):
        settings = setup.settings
        rounding = arguments.rounding(settings)
        kept_under = {**identity, "setting": [settings.attention, settings.batching, *rounding]}
        self.model, self.settings = setup.model, settings
        self.seed_logp = SeedLogp(setup.model, setup.head, setup.pad_id, settings, cache, kept_under)
        self.safety = SafetyGradient(
            setup.model, setup.head, setup.method, setup.safety_examples, settings, setup.pad_id, setup.seed
        )
        self.others = OtherModels(models, setup.model)
        self.set_up_s = self.loop_s = self.after_s = self.loading_s = 0.0

    def prepared(self) -> None:
        """The untouched model's hook has run: which layers are trained is settled now."""
        self.costs = flops.count(self.model)
        self.loading_s = self.others.seconds  # what is loaded later is in the seconds of its hook

    def record(self, trainer: HookedTrainer) -> dict[str, Any]:
        """The training's record for training.json, but for what the method and the comparison say."""
        batches, devices = trainer.steps.batches, trainer.args.world_size
        lengths = [len(example.input_ids) for batch in batches for example in batch]
        trained = sum(loss_tokens(example) for batch in batches for example in batch)
        scored = self.seed_logp.scored
        train_flops = self.costs.train(lengths, trained) + self.safety.spent["flops"]
        return {
            "steps": len(batches),
            "parameters": self.costs.parameters,
            "forward_flops_per_token": self.costs.forward([1], 1),
            "resumed_at_step": trainer.steps_before or None,
            "processes": devices,
            "train_tokens": sum(lengths),
            "answer_tokens": trained,
            "padding_tokens": trainer.steps.padding(),
            "safety_gradient": self.safety.spent if self.safety.spent["calls"] else None,
            "extra_forward_tokens": self.seed_logp.forward_tokens,
            "extra_forward_seconds": round(self.seed_logp.seconds, 3),
            "extra_forward_from_cache": self.seed_logp.from_cache if scored else None,
            "train_flops": train_flops,
            "extra_forward_flops": self.costs.forward(
                [len(example.input_ids) for example in scored], sum(map(loss_tokens, scored))
            ),
            "loop_seconds": round(self.loop_s, 3),
            "set_up_seconds": round(self.set_up_s, 3),
            "other_models_seconds": round(self.loading_s, 3),
            "after_training_seconds": round(self.after_s, 3),
            "tokens_per_second": round(sum(lengths) / self.loop_s, 1),
            **_utilisation(self.settings, train_flops, self.loop_s, devices),
            "losses": trainer.step_losses,
            "out_of_memory": trainer.out_of_memory,
        }


def _utilisation(
    settings: TrainingConfig, train_flops: float, seconds: float, devices: int
) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if settings.device.startswith("cuda") else "cpu"
    listed = flops.peak(name, settings.dtype, tf32=isolation.takes_tf32())
    peak = settings.peak_tflops * 1e12 if settings.peak_tflops else listed
    return {
        "device": name,
        "peak_tflops": peak / 1e12 if peak else None,
        "mfu": round(flops.mfu(train_flops, seconds, peak * devices), 4) if peak else None,
    }
