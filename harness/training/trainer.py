"""The one trainer: transformers' Trainer on our own token ids, with a method's hooks at fixed places.

An item of its data set is a whole optimizer step: this device's micro-batches of one planned global batch
(batching.py). So the loss is a mean over the answer tokens of the global batch whatever the micro-batches and
devices are, and a resumed training goes on at exactly the step where it stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.contracts import Encoded, HarnessError, LossInputs, Method, TrainContext
from harness.storage import crash
from harness.training import adapters, agreement, attention, distributed, flops, isolation, saving
from harness.training.batching import MicroBatch, collate, deal, global_batches, loss_tokens, stand_in
from harness.training.logprobs import TargetHead, autocast
from harness.training.seed_logp import SeedLogp

LOSS_INTERVAL = 10  # steps between two looks at the losses: each look waits for the device
SAVE_INTERVAL_S = 600.0  # between two resume states, where the recipe does not say
MARKER = "complete.json"  # written last into a resume state
METHOD_STATE = "method.safetensors"
OUT_OF_MEMORY = "out-of-memory.jsonl"  # a line for each time that micro-batches had to become smaller


@dataclass(frozen=True)
class Places:
    """Where a training reads and writes. ``output``: the checkpoint, and ``epoch-N`` folders beside it;
    ``state``: what a restart needs, kept until the training is done; ``reports``: for ``report_to``."""

    output: Path
    state: Path
    reports: Path


@dataclass(frozen=True)
class Step:
    """One optimizer step on this device: its micro-batches, and the counts of the global batch."""

    index: int
    micro_batches: list[MicroBatch]
    token_count: int
    global_micro_batches: int


class Steps(Dataset[Step]):
    """Planned global batches as this device's steps, made when they are asked for."""

    def __init__(
        self, batches: Sequence[Sequence[Encoded]], settings: Any, pad_id: int, rank: int, devices: int
    ):
        self.batches, self.settings, self.pad_id = batches, settings, pad_id
        self.rank, self.devices = rank, devices
        self.smaller: list[tuple[int, int]] = []  # from which step on (from 0) at most how many examples

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Step:
        batch, packed = self.batches[index], self.settings.batching == "padding-free"
        mine = self.dealt(index)[self.rank]
        return Step(
            index=index,
            micro_batches=[
                collate(micro, self.pad_id, packed) if micro else stand_in(batch, self.pad_id, packed)
                for micro in mine
            ],
            token_count=max(1, sum(loss_tokens(example) for example in batch)),
            global_micro_batches=len(mine) * self.devices,
        )

    def dealt(self, index: int) -> list[list[list[Encoded]]]:
        """A step's micro-batches, by device."""
        settings = self.settings
        sizes = [size for step, size in self.smaller if step <= index]
        size = min(sizes, default=settings.micro_batch_size)
        batch, tokens = self.batches[index], settings.micro_batch_tokens
        return deal(batch, size, tokens, settings.batching, self.devices)

    def cut_smaller(self, index: int, size: int) -> None:
        """From step ``index`` on at most ``size`` examples in a micro-batch; the loss is the same."""
        self.smaller.append((index, size))


class HookedTrainer(transformers.Trainer):
    """transformers' Trainer with the method's loss. ``step_losses`` are the finished steps' losses."""

    def __init__(self, *args: Any, method: Method, head: TargetHead, places: Places, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.method, self.head, self.places = method, head, places
        self.step_losses: list[float] = []
        self.steps_before, self.seconds_before = 0, 0.0  # of the trainings that this one resumes
        self.started = time.perf_counter()
        self.out_of_memory: list[dict[str, int]] = []  # steps at which micro-batches had to become smaller
        self._pending: list[Tensor] = []

    def get_train_dataloader(self) -> DataLoader[Step]:
        # Not prepared by accelerate: the steps are this device's already.
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=lambda steps: steps[0])

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        step: Step = inputs
        model.train()
        while (total := self._gradients(model, step)) is None:
            step = self._cut_smaller(step)
        self._pending.append(total)
        return total

    def _gradients(self, model: Any, step: Step) -> Tensor | None:
        """Add up a step's gradients; its loss, or None where the device's memory did not do."""
        with contextlib.suppress(torch.OutOfMemoryError):
            return self._backward(model, step)
        return None  # out here the failed attempt's tensors are free

    def _cut_smaller(self, step: Step) -> Step:
        """The step in smaller micro-batches, without gradients yet. Raises HarnessError if it cannot be."""
        largest = max(len(micro.ids) for micro in step.micro_batches)
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
        self.model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.train_dataset.cut_smaller(step.index, largest // 2)
        self.out_of_memory.append({"step": step.index + 1, "micro_batch_size": largest // 2})
        with (self.places.state / OUT_OF_MEMORY).open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(self.out_of_memory[-1])}\n")  # an interrupted one may lack its end
        smaller: Step = self.train_dataset[step.index]
        return smaller

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
            logp = self.head.logp(model, micro)
            loss: Tensor = self.method.loss(
                LossInputs(
                    logp=logp,
                    mask=micro.mask,
                    ids=micro.ids,
                    token_count=step.token_count,
                    model=self.model,
                    micro_batches=step.global_micro_batches,
                )
            )
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
            written = {"losses": self.step_losses, "seconds": self.seconds()}
            (folder / f"{MARKER}.new").write_text(json.dumps(written), encoding="utf-8")
            crash.point("state.written", folder)
            os.replace(folder / f"{MARKER}.new", folder / MARKER)
            crash.point("state.marked", folder)
            for other in folder.parent.glob("checkpoint-*"):
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
                    crash.point("state.swept", other)
        self.accelerator.wait_for_everyone()

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

    settings: Any = None


class _Hooks(transformers.TrainerCallback):
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
        with saving.finished(trainer.method, trainer.model):
            trainer.save_weights(scratch)
        if trainer.is_world_process_zero():
            crash.point("epoch.saved", folder)
            os.replace(scratch, folder)
            crash.point("epoch.moved", folder)


def resume_state(folder: Path, epoch_ends: Mapping[int, int]) -> Path | None:
    """The newest complete resume state below ``folder``; none past the end of an epoch (by step) whose
    weights are gone: a kill while they were moved into the stage's outputs takes them along."""
    lost = [step for step, epoch in epoch_ends.items() if not (folder / f"epoch-{epoch}").is_dir()]
    complete = {
        int(file.parent.name.rpartition("-")[2]): file.parent
        for file in folder.glob(f"checkpoint-*/{MARKER}")
    }
    usable = [step for step in complete if all(step < end for end in lost)]
    return complete[max(usable)] if usable else None


def smaller_before(folder: Path) -> list[dict[str, int]]:
    """When an interrupted training with its state in ``folder`` ran out of memory, so that one that goes on
    there cuts the same steps the same way. Half a line was being written when it ended."""
    found = []
    file = folder / OUT_OF_MEMORY
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            found.append({name: int(row[name]) for name in ("step", "micro_batch_size")})
    return found


@isolation.own_precision()
@isolation.cudnn_attention()
def train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Encoded],
    method: Method,
    settings: Any,
    seed: int,
    on_step: Callable[[int, int], None],
    *,
    places: Places,
    cache: Any,
    identity: dict[str, Any],
    safety_examples: Sequence[Encoded] = (),
    snapshots: bool = False,
) -> dict[str, Any]:
    """Fine-tune ``model`` under ``settings`` (config.TrainingConfig), save it, and return the run's record.

    ``model``: the loaded base model; ``cache`` (storage.files.Cache) and ``identity`` keep the base model's
    log-probabilities; ``snapshots``: save each epoch's weights too. Called by each process of a training.
    ``on_step(step, steps)`` is called after each optimizer step. Raises HarnessError when the loss diverges,
    and for a model that no setting trains as its own implementation has it (agreement.py).
    """
    _check_batching(settings)
    adapters.without_dropout(model)
    model.config.use_cache = False
    base, model = model, adapters.with_adapters(model, settings)
    pad_id = _pad_id(model, tokenizer)
    saving.rehearse(model, tokenizer, settings)
    head = TargetHead(model, chunked=settings.chunked_loss)

    before = time.perf_counter()
    arguments = _arguments(settings, seed, places)  # joins the other processes, if there are any
    _keep_float32(settings)
    if not settings.cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(False)
    with distributed.whole_on(arguments.device, model):
        begun = agreement.begun_under(places.state)
        agreed = agreement.shared(
            lambda: agreement.choose(
                model, base, head, [*examples, *safety_examples], pad_id, settings, begun=begun
            ),
            lambda setting: agreement.follow(base, setting),
        )
        settings = agreed.setting.over(settings)
        if begun is None and arguments.process_index == 0:
            agreement.keep(agreed.setting, places.state)
        kept_under = {**identity, "setting": [settings.attention, settings.batching, *_rounding(settings)]}
        seed_logp = SeedLogp(model, head, pad_id, settings, cache, kept_under)
        context = TrainContext(
            examples=examples,
            seed_logp=seed_logp,
            rng=random.Random(f"{seed} train"),
            safety_examples=safety_examples,
        )
        method.before_training(model, context)
    costs = flops.count(model)  # which layers are trained is settled now
    planned = global_batches(examples, settings.epochs, settings.batch_size, seed)
    batches = method.batches(planned, context)
    _check_batches(method, batches, settings.batch_size)
    _check_sharding(method, settings)
    before_s = time.perf_counter() - before

    ends = {round(len(batches) * epoch / settings.epochs): epoch for epoch in range(1, settings.epochs)}
    hooks = _Hooks(on_step, ends if snapshots else {})
    steps = Steps(batches, settings, pad_id, arguments.process_index, arguments.world_size)
    with _where_reports_go(places.reports):
        trainer = HookedTrainer(
            model=model,
            args=arguments,
            train_dataset=steps,
            data_collator=lambda batch: batch,
            processing_class=tokenizer,
            callbacks=[hooks],
            method=method,
            head=head,
            places=places,
        )
    _keep_float32(settings)
    trainer.settings, trainer.out_of_memory = settings, smaller_before(places.state)
    for fewer in trainer.out_of_memory:
        steps.cut_smaller(fewer["step"] - 1, fewer["micro_batch_size"])
    hooks.trainer = trainer
    trainer.remove_callback(transformers.PrinterCallback)
    resumed = resume_state(places.state, hooks.epoch_ends)
    if resumed:
        stored = json.loads((resumed / MARKER).read_text(encoding="utf-8"))
        trainer.step_losses, trainer.seconds_before = stored["losses"], stored["seconds"]
        trainer.steps_before = len(trainer.step_losses)
        if (resumed / METHOD_STATE).exists():
            method.load_state(load_file(resumed / METHOD_STATE))
    head.enter(model)
    with _kernels(model, head, settings):
        here = model.device.type == arguments.device.type  # weights to be sharded wait on the CPU
        if settings.liger or (settings.compile and here):
            agreement.confirm(agreed, model, head, pad_id, settings)
        trainer.started = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        trainer.look_at_losses()
        seconds = trainer.seconds()
        method.after_training(trainer.model)
        trainer.save_weights(places.output / "checkpoint")

    lengths = [len(example.input_ids) for batch in batches for example in batch]
    trained = sum(loss_tokens(example) for batch in batches for example in batch)
    scored = [len(example.input_ids) for example in seed_logp.scored]
    reference = costs.forward(scored, sum(loss_tokens(example) for example in seed_logp.scored))
    train_flops = costs.train(lengths, trained)
    return {
        "steps": len(batches),
        "parameters": costs.parameters,
        "forward_flops_per_token": costs.forward([1], 1),
        "resumed_at_step": trainer.steps_before or None,
        "processes": arguments.world_size,
        "train_tokens": sum(lengths),
        "answer_tokens": trained,
        "padding_tokens": _padding(steps),
        "extra_forward_tokens": seed_logp.forward_tokens,
        "extra_forward_seconds": round(seed_logp.seconds, 3),
        "extra_forward_from_cache": seed_logp.from_cache if seed_logp.scored else None,
        "train_flops": train_flops,
        "extra_forward_flops": reference,
        "loop_seconds": round(seconds, 3),
        "set_up_seconds": round(before_s, 3),
        "tokens_per_second": round(sum(lengths) / seconds, 1),
        **_utilisation(settings, train_flops, seconds, arguments.world_size),
        "losses": trainer.step_losses,
        "out_of_memory": trainer.out_of_memory,
        "agreement": agreed.record,
        "method": context.record,
    }


@contextlib.contextmanager
def _kernels(model: Any, head: TargetHead, settings: Any) -> Iterator[None]:
    """For the block, what a training computes with beside its model's own code."""
    with (
        isolation.liger(model, settings.liger),
        isolation.compiled(model, head, settings.compile),
        adapters.adapter_casts(model, settings),
    ):
        yield


def _rounding(settings: Any) -> list[str]:
    """The settings under which the same log-probabilities are rounded otherwise than without them."""
    asked = {"chunked_loss": settings.chunked_loss, "no cudnn_attention": not settings.cudnn_attention}
    return [name for name, wanted in asked.items() if wanted]


class StepProbe:
    """The parts of a training's steps, each alone, to be timed for a forecast. The weights stay as they are.

    ``model`` gets ``settings``' adapters and the attention that they ask for. It is not compared with the
    model's own implementation (agreement.py), which takes longer than a forecast may.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: Any):
        _check_batching(settings)
        adapters.without_dropout(model)
        asked = attention.CAUSAL if settings.attention == "auto" else settings.attention
        with contextlib.suppress(Exception):  # the training refuses it, or takes another
            attention.use(model, asked)
        self.model, self.settings = adapters.with_adapters(model, settings), settings
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._packed = (
            settings.batching == "padding-free"
            and attention.in_force(model).name == attention.CAUSAL
            and attention.no_kernel_for(model, settings) is None
        )
        self._pad_id = _pad_id(model, tokenizer)
        self._head = TargetHead(self.model, chunked=settings.chunked_loss)
        self._costs = flops.count(self.model)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer_like(settings, self._trained)
        self.model.train()
        self.layers = self._layers()

    def _layers(self) -> int:
        """How many layers a pass may be cut to the first of; 0 where the model runs all of them whatever its
        configuration says."""
        config, ran = self.model.config.get_text_config(), list[int]()
        blocks = getattr(self.model.get_decoder(), "layers", ())
        hooks = [block.register_forward_pre_hook(lambda *given: ran.append(1)) for block in blocks]
        with contextlib.suppress(Exception), self._cut_to(1), torch.no_grad():
            self.model(input_ids=torch.full((1, 1), self._pad_id, device=self.model.device))
        for hook in hooks:
            hook.remove()
        return int(config.num_hidden_layers) if len(ran) == 1 else 0

    @contextlib.contextmanager
    def _cut_to(self, layers: int) -> Iterator[None]:
        """Hugging Face's decoders run as many of their layers as their configuration counts."""
        config = self.model.config.get_text_config()
        whole = config.num_hidden_layers
        config.num_hidden_layers = layers
        try:
            yield
        finally:
            config.num_hidden_layers = whole

    def micro_batches(self, batch: Sequence[Encoded], settings: Any) -> list[list[Encoded]]:
        """A global batch as one device takes it under ``settings``."""
        padded = settings.batching == "padding-free" and not self._packed
        batching: Any = "grouped" if padded else settings.batching
        dealt = deal(batch, settings.micro_batch_size, settings.micro_batch_tokens, batching)
        return [micro for micro in dealt[0] if micro]

    def passes(self, micro: Sequence[Encoded], layers: int | None = None) -> None:
        """One micro-batch forwards and backwards, through the first ``layers`` alone where they are given."""
        inputs = collate(micro, self._pad_id, self._packed).to(self.model.device)
        with self._cut_to(layers) if layers else contextlib.nullcontext():
            with autocast(self.model, self.settings), self._kernels():
                loss = -self._head.logp(self.model, inputs).sum() / max(1, len(inputs.targets))
            loss.backward()

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        """Those of the settings but Liger's, and nothing compiled: that takes longer than a forecast may."""
        with (
            isolation.cudnn_attention(self.settings.cudnn_attention),
            adapters.adapter_casts(self.model, self.settings),
        ):
            yield

    def update(self) -> None:
        """What ends a step. The gradients stay, so that the next one has as much to do."""
        torch.nn.utils.clip_grad_norm_(self._trained, self.settings.max_grad_norm or 1.0)
        self._optimizer.step()

    def flops(self, micro: Sequence[Encoded], layers: int | None = None) -> int:
        """Of ``passes`` with the same arguments, padding included where there is any."""
        lengths = [len(example.input_ids) for example in micro]
        computed = lengths if self._packed else [max(lengths)] * len(lengths)
        whole = self._costs.train(computed, sum(map(loss_tokens, micro)))
        left_out = 1 - layers / self.layers if layers else 0.0
        return whole - round(left_out * self._costs.train(computed, 0))

    @staticmethod
    def cut(example: Encoded, tokens: int) -> Encoded:
        """The last ``tokens`` tokens of an example."""
        return replace(example, input_ids=example.input_ids[-tokens:], trained=example.trained[-tokens:])


def optimizer_like(settings: Any, trained: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a training under ``settings``, which changes nothing. Where its package is missing
    (the training then says so), or fails on this device, torch's own stands in."""
    if settings.optimizer == "adamw_8bit":
        with contextlib.suppress(Exception):
            from bitsandbytes.optim import AdamW

            first = torch.nn.Parameter(torch.zeros(8192, device=trained[0].device))
            first.grad = torch.zeros_like(first)
            AdamW([first], lr=0.0, weight_decay=0.0, optim_bits=8).step()
            found: torch.optim.Optimizer = AdamW(trained, lr=0.0, weight_decay=0.0, optim_bits=8)
            return found
    return torch.optim.AdamW(
        trained, lr=0.0, weight_decay=0.0, fused=settings.optimizer == "adamw_torch_fused"
    )


def _pad_id(model: Any, tokenizer: Any) -> int:
    """What fills a micro-batch's rows, which nothing reads: the tokenizer's token, if the model embeds it."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found) if found is not None and found < model.get_input_embeddings().weight.shape[0] else 0


def _arguments(settings: Any, seed: int, places: Places) -> transformers.TrainingArguments:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if settings.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed, where installed, warns that it found none
    arguments = transformers.TrainingArguments(
        output_dir=str(places.state),
        num_train_epochs=1,  # all epochs are in the planned batches
        per_device_train_batch_size=1,  # one planned step
        gradient_accumulation_steps=1,  # the step does it itself
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        bf16=settings.dtype == "bfloat16",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=seed,
        use_cpu=settings.device == "cpu",
        logging_strategy="steps",
        logging_steps=LOSS_INTERVAL,
        logging_nan_inf_filter=False,  # it would show the loss before instead
        save_strategy="no",  # _Hooks says when
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **(distributed.arguments(settings) if several else {}),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # transformers would spread one process over all devices
    return arguments


def _keep_float32(settings: Any) -> None:
    """float32 means float32: libraries turn TF32 on when the arguments and when the trainer are made."""
    if settings.dtype == "float32":
        isolation.exact_float32()


def _check_batching(settings: Any) -> None:
    if settings.batching == "padding-free" and settings.attention in attention.UNFUSED:
        raise HarnessError(
            f"training.batching padding-free needs a fused attention, not '{settings.attention}': "
            "set training.batching to grouped"
        )


def _check_batches(method: Method, batches: Sequence[Sequence[Encoded]], size: int) -> None:
    if any(len(batch) != size for batch in batches[:-1]):
        raise HarnessError(
            f"method '{method.name}' broke its contract: all its batches but the last must have "
            f"{size} examples, not {sorted({len(batch) for batch in batches[:-1]})}"
        )


def _check_sharding(method: Method, settings: Any) -> None:
    hooks = ("after_step", "after_training")
    touches = method.uses_weights or any(getattr(type(method), h) is not getattr(Method, h) for h in hooks)
    sharded = settings.distributed in ("zero3", "fsdp2") and "WORLD_SIZE" in os.environ
    if touches and sharded:
        raise HarnessError(
            f"method '{method.name}' works on the weights, which {settings.distributed} holds in no process "
            "whole: set training.distributed to zero2 or ddp"
        )


def _padding(steps: Steps) -> int:
    """Computed tokens that are no example's, over all devices and steps."""
    if steps.settings.batching == "padding-free":
        return 0
    total = 0
    for index in range(len(steps)):
        for micro in itertools.chain.from_iterable(steps.dealt(index)):
            lengths = [len(example.input_ids) for example in micro]
            total += max(lengths, default=0) * len(lengths) - sum(lengths)
    return total


def _utilisation(settings: Any, train_flops: float, seconds: float, devices: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if settings.device.startswith("cuda") else "cpu"
    listed = flops.peak(name, settings.dtype, tf32=isolation.takes_tf32())
    peak = settings.peak_tflops * 1e12 if settings.peak_tflops else listed
    return {
        "device": name,
        "peak_tflops": peak / 1e12 if peak else None,
        "mfu": round(flops.mfu(train_flops, seconds, peak * devices), 4) if peak else None,
    }


@contextlib.contextmanager
def _where_reports_go(folder: Path) -> Iterator[None]:
    """TensorBoard takes its folder from the environment alone."""
    before = os.environ.get("TENSORBOARD_LOGGING_DIR")
    os.environ["TENSORBOARD_LOGGING_DIR"] = before or str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TENSORBOARD_LOGGING_DIR"]
