"""transformers' Trainer with a method's hooks at fixed places: in a step, and behind one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from harness.config import TrainingConfig
from harness.contracts import HarnessError, Method, TrainContext
from harness.storage import crash
from harness.training import resume, saving
from harness.training.arguments import LOSS_INTERVAL
from harness.training.batching import MicroBatch
from harness.training.distributed import free_cached
from harness.training.hook_checks import check_loss, check_state, overrides, weights_unchanged
from harness.training.logprobs import TargetHead
from harness.training.resume import MARKER, METHOD_STATE, Places
from harness.training.safety_gradient import SafetyGradient
from harness.training.steps import Step, Steps

SAVE_INTERVAL_S = 600.0  # between two resume states, where the recipe does not say


class HookedTrainer(transformers.Trainer):
    """transformers' Trainer with the method's loss. ``step_losses`` are the finished steps' losses."""

    def __init__(
        self,
        *args: Any,
        method: Method,
        context: TrainContext,
        head: TargetHead,
        safety: SafetyGradient,
        settings: TrainingConfig,
        places: Places,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.method, self.context, self.head, self.safety = method, context, head, safety
        self.settings, self.places = settings, places
        self.step_losses: list[float] = []
        self.steps_before, self.seconds_before = 0, 0.0  # of the trainings that this one resumes
        self.started = time.perf_counter()
        self.out_of_memory: list[dict[str, int]] = []  # steps at which micro-batches had to become smaller
        self.resumed_from: str | None = None  # the folder of a resume state
        self._pending: list[Tensor] = []
        safety.steps, safety.on_memory = self.steps, self.note_smaller

    @property
    def steps(self) -> Steps:
        steps: Steps = self.train_dataset
        return steps

    def get_train_dataloader(self) -> DataLoader[Step]:
        # Not prepared by accelerate: the steps are this device's already.
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=lambda steps: steps[0])

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        step: Step = inputs
        model.train()
        while (total := self._gradients(model, step)) is None:
            step = self._cut_smaller(step)
        self._pending.append(total)
        if overrides(self.method, "on_gradients"):
            self.safety.begin(step.index + 1)
            with weights_unchanged(self.method, self.model, "on_gradients"):
                self.method.on_gradients(self.model, self.context)
        return total

    def _gradients(self, model: Any, step: Step) -> Tensor | None:
        """Add up a step's gradients; its loss, or None where the device's memory did not do."""
        with contextlib.suppress(torch.OutOfMemoryError):
            return self._backward(model, step)
        return None  # out here the failed attempt's tensors are free

    def _cut_smaller(self, step: Step) -> Step:
        """The step in smaller micro-batches, without gradients yet. Raises HarnessError if it cannot be."""
        self.note_smaller(step.index, max(len(micro.ids) for micro in step.micro_batches))
        self.model.zero_grad()
        free_cached()
        return self.steps[step.index]

    def note_smaller(self, index: int, largest: int) -> None:
        """From step ``index`` on, micro-batches of half of the ``largest`` examples that did not fit. Raises
        HarnessError where they cannot be smaller."""
        if self.accelerator.num_processes > 1:  # the others wait in a collective
            raise HarnessError(
                f"a device has no memory to train on {largest} examples at once: lower "
                "training.micro_batch_size (the loss stays the same)"
            )
        if largest == 1:
            raise HarnessError(
                "the device has no memory to train on one example: set training.gradient_checkpointing, "
                "lower training.max_length, or set training.tuning to lora or qlora"
            )
        self.steps.cut_smaller(index, largest // 2)
        self.out_of_memory.append({"step": index + 1, "micro_batch_size": largest // 2})
        resume.note_smaller(self.places.state, self.out_of_memory[-1])

    def _backward(self, model: Any, step: Step) -> Tensor:
        total = torch.zeros((), device=self.args.device)
        for number, micro in enumerate(step.micro_batches, 1):
            last = number == len(step.micro_batches)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last or self.sharded_by_deepspeed else self.hold_sync(model):
                loss = self.micro_batch_loss(model, micro.to(self.args.device), step)
                self.accelerator.backward(loss, **self.backward_options)
            total += loss.detach()
        return total

    def micro_batch_loss(self, model: Any, micro: MicroBatch, step: Step) -> Tensor:
        devices = self.accelerator.num_processes
        with self.compute_loss_context_manager():
            inputs = self.head.loss_inputs(
                model,
                micro,
                self.method,
                token_count=step.token_count,
                micro_batches=step.global_micro_batches,
                plain_model=self.model,
            )
            loss: Tensor = self.method.loss(inputs)
            check_loss(self.method, loss)
        scaled: Tensor = loss * devices  # gradients are averaged over devices, ours is a sum
        return scaled

    @property
    def sharded_by_deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    @property
    def backward_options(self) -> dict[str, Any]:
        return {"scale_wrt_gas": False} if self.sharded_by_deepspeed else {}

    def hold_sync(self, model: Any) -> Any:
        return self.accelerator.no_sync(model)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # flops.py counts them

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> None:
        return None  # a step carries its own counts

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def look_at_losses(self) -> None:
        """Fetch the losses of the steps since the last look. Raises HarnessError when one is no number."""
        if not self._pending:
            return
        losses = self.accelerator.reduce(torch.stack(self._pending), reduction="mean").tolist()
        first = len(self.step_losses) + 1
        self._pending = []
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise HarnessError(
                    f"training diverged: the loss of step {step} is {loss}; lower training.learning_rate"
                )
        self.step_losses += losses

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's resume state, the method's, and last the marker that makes it count; only then are
        older ones removed."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():  # what an interrupted command left there, links too
            if folder.is_symlink():
                folder.unlink()
                crash.point("state.cleared", folder)
            shutil.rmtree(folder, ignore_errors=True)
            crash.point("state.cleared", folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.look_at_losses()
        if self.is_world_process_zero():
            tensors = {name: value.contiguous() for name, value in self.method.state().items()}
            if tensors:
                save_file(tensors, folder / METHOD_STATE)
            crash.point("state.saved", folder)
            (folder / f"{MARKER}.new").write_text(json.dumps(self._kept()), encoding="utf-8")
            crash.point("state.written", folder)
            os.replace(folder / f"{MARKER}.new", folder / MARKER)
            crash.point("state.marked", folder)
            for other in folder.parent.glob("checkpoint-*"):
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
                    crash.point("state.swept", other)
        self.accelerator.wait_for_everyone()

    def _kept(self) -> dict[str, Any]:
        """What a restart needs besides the state of transformers and the method's."""
        return {
            "losses": self.step_losses,
            "seconds": self.seconds(),
            "draws": resume.draws(self.context.rng),
            "record": self.context.record,
            "safety_gradient": self.safety.spent,
        }

    def take_up(self, folder: Path | None) -> None:
        """Go on from a resume state; None: from the beginning. The hooks before the training have run."""
        self.out_of_memory = resume.smaller_before(self.places.state)
        for fewer in self.out_of_memory:
            self.steps.cut_smaller(fewer["step"] - 1, fewer["micro_batch_size"])
        if folder is None:
            return
        self.resumed_from = str(folder)
        kept = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        self.step_losses, self.seconds_before = kept["losses"], kept["seconds"]
        self.steps_before = len(self.step_losses)
        if "draws" in kept:  # not in a state from before there were hooks that need it
            resume.draw_on(self.context.rng, kept["draws"])
            self.context.record.update(kept["record"])
            self.safety.spent = kept["safety_gradient"]
        if (folder / METHOD_STATE).exists():
            self.method.load_state(load_file(folder / METHOD_STATE))

    def save_weights(self, folder: Path) -> None:
        """The whole weights (or the adapter) as safetensors, in training's precision; by all processes."""
        sharded = self.sharded_by_deepspeed or self.is_fsdp_enabled
        state = self.accelerator.get_state_dict(self.model_wrapped) if sharded else self.model.state_dict()
        if self.is_world_process_zero():
            tied = getattr(self.model, "_tied_weights_keys", None) or {}
            if sharded and self.model.config.tie_word_embeddings:  # gathered, they are no longer one tensor
                state = {name: value for name, value in state.items() if name not in tied}
            dtype, full = getattr(torch, self.settings.dtype), self.settings.tuning == "full"
            state = {
                name: value.to(dtype) if full and value.is_floating_point() else value
                for name, value in state.items()
            }
            self.model.save_pretrained(folder, state_dict=state)
            self.processing_class.save_pretrained(folder)
            for file in folder.iterdir():  # safetensors writes files that only their owner can read
                file.chmod(0o644)
        self.accelerator.wait_for_everyone()


class StepCallback(transformers.TrainerCallback):
    """The method's hook after a step, snapshots of epochs, looks at the losses, and when to save."""

    def __init__(self, on_step: Callable[[int, int], None], epoch_ends: Mapping[int, int]):
        self.on_step, self.epoch_ends = on_step, epoch_ends
        self.trainer: HookedTrainer | None = None
        self.save_every = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        assert trainer is not None
        step, steps = state.global_step, state.max_steps
        trainer.method.after_step(trainer.model, step)
        if step == trainer.steps_before + 1:
            check_state(trainer.method, trainer.method.state())  # now, and not at the first save
        if step % LOSS_INTERVAL == 0 or step == steps:
            trainer.look_at_losses()
        self.save_every = self.save_every or self._interval(trainer, step)
        if self.save_every and step % self.save_every == 0 and step < steps:
            control.should_save = True
        if step in self.epoch_ends and step < steps:
            self._snapshot(trainer, trainer.places.state / f"epoch-{self.epoch_ends[step]}")
        self.on_step(step, steps)

    def _interval(self, trainer: HookedTrainer, step: int) -> int:
        """Steps between two resume states; all processes take the first one's clock."""
        if trainer.settings.save_steps:
            return int(trainer.settings.save_steps)
        if step % LOSS_INTERVAL:
            return 0
        elapsed = torch.tensor(time.perf_counter() - trainer.started, device=trainer.args.device)
        seconds = float(trainer.accelerator.gather(elapsed[None])[0].item())
        return max(1, round(SAVE_INTERVAL_S * (step - trainer.steps_before) / max(seconds, 1e-9)))

    @staticmethod
    def _snapshot(trainer: HookedTrainer, folder: Path) -> None:
        scratch = folder.with_name(f".{folder.name}.partial")
        if trainer.is_world_process_zero():
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            crash.point("epoch.cleared", folder)
        trainer.accelerator.wait_for_everyone()
        with saving.finished(trainer.method, trainer.model, trainer.context):
            trainer.save_weights(scratch)
        if trainer.is_world_process_zero():
            crash.point("epoch.saved", folder)
            os.replace(scratch, folder)
            crash.point("epoch.moved", folder)
