"""The one trainer: transformers' Trainer on our own token ids, with a method's hooks at fixed places.

An item of its data set is a whole optimizer step (steps.py): this device's micro-batches of one planned
global batch (batching.py). So the loss is a mean over the answer tokens of the global batch whatever the
micro-batches and devices are, and a resumed training goes on at exactly the step where it stopped.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.config import TrainingConfig
from harness.contracts import Encoded, Method, TrainContext
from harness.storage.files import Cache
from harness.training import (
    adapters,
    agreement,
    arguments,
    distributed,
    hook_checks,
    isolation,
    resume,
    saving,
)
from harness.training.batching import global_batches
from harness.training.begun import begun_under, keep, shared
from harness.training.layers import layers
from harness.training.logprobs import TargetHead
from harness.training.loop import HookedTrainer, StepCallback
from harness.training.resume import Places
from harness.training.spent import Spent
from harness.training.steps import Steps
from harness.training.work import Work

OnStep = Callable[[int, int], None]


@isolation.own_precision()
@isolation.cudnn_attention()
def train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Encoded],
    method: Method,
    settings: TrainingConfig,
    seed: int,
    on_step: OnStep,
    *,
    places: Places,
    cache: Cache,
    identity: dict[str, Any],
    safety_examples: Sequence[Encoded] = (),
    snapshots: bool = False,
    models: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Fine-tune ``model`` under ``settings``, save it, and return the run's record.

    ``model``: the loaded base model; ``cache`` and ``identity`` keep the base model's log-probabilities;
    ``snapshots``: save each epoch's weights too; ``models``: where those are that the method's options name.
    Called by each process of a training. ``on_step(step, steps)`` is called after each optimizer step. Raises
    HarnessError when the loss diverges, and for a model that no setting trains as its own implementation has
    it (agreement.py).
    """
    work, base = _ready(model, tokenizer, examples, method, settings, seed, places, safety_examples)
    before = time.perf_counter()
    told = arguments.training_arguments(settings, seed, places)  # joins the other processes, if there are any
    agreed, spent, context = _before_training(work, base, told, cache, identity, models or {})
    batches = _batches(work, context)
    spent.set_up_s = time.perf_counter() - before

    trainer = _trainer(work, spent, context, told, batches, on_step, snapshots)
    work.head.enter(work.model)
    with _kernels(work.model, work.head, work.settings):
        here = work.model.device.type == told.device.type  # weights to be sharded wait on the CPU
        if work.settings.liger or (work.settings.compile and here):
            agreement.confirm(agreed, work.model, work.head, work.pad_id, work.settings)
        spent.loop_s = _trained(trainer)
        spent.after_s = _after_training(trainer)
        hook_checks.check_record(method, context.record)
        trainer.save_weights(places.output / "checkpoint")
    return {**spent.record(trainer), "agreement": agreed.record, "method": context.record}


def _ready(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Encoded],
    method: Method,
    settings: TrainingConfig,
    seed: int,
    places: Places,
    safety_examples: Sequence[Encoded],
) -> tuple[Work, Any]:
    """The model as it will be trained, with all that its training needs, and the model inside adapters."""
    arguments.check_batching(settings)
    hook_checks.check_signatures(method)
    adapters.without_dropout(model)
    model.config.use_cache = False
    base, model = model, adapters.with_adapters(model, settings)
    pad_id = arguments.filler_id(model, tokenizer)
    saving.rehearse(model, tokenizer, settings)
    head = TargetHead(model, chunked=settings.chunked_loss)
    work = Work(model, tokenizer, method, settings, seed, places, pad_id, head, examples, safety_examples)
    return work, base


def _before_training(
    work: Work,
    base: Any,
    told: transformers.TrainingArguments,
    cache: Cache,
    identity: dict[str, Any],
    models: Mapping[str, Path],
) -> tuple[agreement.Agreement, Spent, TrainContext]:
    """Choose attention and batching, and let the method act on the untouched base model."""
    arguments.keep_float32(work.settings)
    if not work.settings.cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(False)
    with distributed.whole_on(told.device, work.model):
        agreed = _agreed(work, base, told)
        work.settings = agreed.setting.over(work.settings)
        spent = Spent(work, cache, identity, models)
        context = _context(work, spent)
        with hook_checks.weights_unchanged(work.method, work.model, "before_training"):
            work.method.before_training(work.model, context)
        hook_checks.check_record(work.method, context.record)
    spent.prepared()
    return agreed, spent, context


def _batches(work: Work, context: TrainContext) -> list[list[Encoded]]:
    """The global batches, as the method changes them."""
    settings = work.settings
    planned = global_batches(work.examples, settings.epochs, settings.batch_size, work.seed)
    batches = work.method.batches(planned, context)
    hook_checks.check_batches(work.method, batches, settings.batch_size)
    hook_checks.check_sharding(work.method, settings)
    return batches


def _agreed(work: Work, base: Any, told: transformers.TrainingArguments) -> agreement.Agreement:
    """Under which attention and batching the training takes place; kept for a restart of it."""
    begun = begun_under(work.places.state)
    rows = [*work.examples, *work.safety_examples]
    found = shared(
        lambda: agreement.choose(work.model, base, work.head, rows, work.pad_id, work.settings, begun=begun),
        lambda setting: agreement.follow(base, setting),
    )
    if begun is None and told.process_index == 0:
        keep(found.setting, work.places.state)
    return found


def _context(work: Work, spent: Spent) -> TrainContext:
    """What the method's hooks are handed."""
    return TrainContext(
        examples=work.examples,
        seed_logp=spent.seed_logp,
        rng=random.Random(f"{work.seed} train"),
        safety_examples=work.safety_examples,
        safety_gradient=spent.safety,
        model=spent.others,
        layers=layers,
    )


def _trainer(
    work: Work,
    spent: Spent,
    context: TrainContext,
    told: transformers.TrainingArguments,
    batches: Sequence[Sequence[Encoded]],
    on_step: OnStep,
    snapshots: bool,
) -> HookedTrainer:
    """The trainer, at the step at which an interrupted training saved its state last."""
    settings, epochs = work.settings, work.settings.epochs
    ends = {round(len(batches) * epoch / epochs): epoch for epoch in range(1, epochs)}
    callback = StepCallback(on_step, ends if snapshots else {})
    with arguments.where_reports_go(work.places.reports):
        trainer = HookedTrainer(
            model=work.model,
            args=told,
            train_dataset=Steps(batches, settings, work.pad_id, told.process_index, told.world_size),
            data_collator=lambda batch: batch,
            processing_class=work.tokenizer,
            callbacks=[callback],
            method=work.method,
            context=context,
            head=work.head,
            safety=spent.safety,
            settings=settings,
            places=work.places,
        )
    arguments.keep_float32(settings)
    callback.trainer = trainer
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.take_up(resume.resume_state(work.places.state, callback.epoch_ends))
    return trainer


def _trained(trainer: HookedTrainer) -> float:
    """Train to the end; the seconds of all steps, those before an interruption included."""
    trainer.started = time.perf_counter()
    trainer.train(resume_from_checkpoint=trainer.resumed_from)
    trainer.look_at_losses()
    return trainer.seconds()


def _after_training(trainer: HookedTrainer) -> float:
    """The method's last hook, and its seconds."""
    start = time.perf_counter()
    trainer.safety.begin(len(trainer.steps) + 1)
    trainer.method.after_training(trainer.model, trainer.context)
    return time.perf_counter() - start


@contextlib.contextmanager
def _kernels(model: Any, head: TargetHead, settings: TrainingConfig) -> Iterator[None]:
    """For the block, what a training computes with beside its model's own code."""
    with (
        isolation.liger(model, settings.liger),
        isolation.compiled(model, head, settings.compile),
        adapters.adapter_casts(model, settings),
    ):
        yield
