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
from harness.training.setup import Setup
from harness.training.spent import Spent
from harness.training.steps import Steps

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
    setup, base = _make_ready(model, tokenizer, examples, method, settings, seed, places, safety_examples)
    before = time.perf_counter()
    told = arguments.training_arguments(settings, seed, places)  # joins the other processes, if there are any
    agreed, spent, context = _call_before_training(setup, base, told, cache, identity, models or {})
    batches = _plan_batches(setup, context)
    spent.set_up_s = time.perf_counter() - before

    trainer = _make_trainer(setup, spent, context, told, batches, on_step, snapshots)
    _run(trainer, setup, spent, agreed, told)
    return {**spent.record(trainer), "agreement": agreed.record, "method": context.record}


def _make_ready(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Encoded],
    method: Method,
    settings: TrainingConfig,
    seed: int,
    places: Places,
    safety_examples: Sequence[Encoded],
) -> tuple[Setup, Any]:
    """The model as it will be trained, with all that its training needs, and the model inside adapters."""
    arguments.check_batching(settings)
    hook_checks.check_signatures(method)
    adapters.without_dropout(model)
    model.config.use_cache = False
    base, model = model, adapters.with_adapters(model, settings)
    pad_id = arguments.filler_id(model, tokenizer)
    saving.rehearse(model, tokenizer, settings)
    head = TargetHead(model, chunked=settings.chunked_loss)
    setup = Setup(model, tokenizer, method, settings, seed, places, pad_id, head, examples, safety_examples)
    return setup, base


def _call_before_training(
    setup: Setup,
    base: Any,
    told: transformers.TrainingArguments,
    cache: Cache,
    identity: dict[str, Any],
    models: Mapping[str, Path],
) -> tuple[agreement.Agreement, Spent, TrainContext]:
    """Choose attention and batching, and let the method act on the untouched base model."""
    arguments.keep_float32(setup.settings)
    if not setup.settings.cudnn_attention:
        torch.backends.cuda.enable_cudnn_sdp(False)
    with distributed.whole_on(told.device, setup.model):
        agreed = _choose_setting(setup, base, told)
        setup.settings = agreed.setting.over(setup.settings)
        spent = Spent(setup, cache, identity, models)
        context = _make_context(setup, spent)
        with hook_checks.weights_unchanged(setup.method, setup.model, "before_training"):
            setup.method.before_training(setup.model, context)
        hook_checks.check_record(setup.method, context.record)
    spent.prepared()
    return agreed, spent, context


def _plan_batches(setup: Setup, context: TrainContext) -> list[list[Encoded]]:
    """The global batches, as the method changes them."""
    settings = setup.settings
    planned = global_batches(setup.examples, settings.epochs, settings.batch_size, setup.seed)
    batches = setup.method.batches(planned, context)
    hook_checks.check_batches(setup.method, batches, settings.batch_size)
    hook_checks.check_sharding(setup.method, settings)
    return batches


def _choose_setting(setup: Setup, base: Any, told: transformers.TrainingArguments) -> agreement.Agreement:
    """Under which attention and batching the training takes place; kept for a restart of it."""
    begun = begun_under(setup.places.state)
    rows = [*setup.examples, *setup.safety_examples]

    def choose() -> agreement.Agreement:
        return agreement.choose(setup.model, base, setup.head, rows, setup.pad_id, setup.settings, begun)

    found = shared(choose, lambda setting: agreement.follow(base, setting))
    if begun is None and told.process_index == 0:
        keep(found.setting, setup.places.state)
    return found


def _make_context(setup: Setup, spent: Spent) -> TrainContext:
    """What the method's hooks are handed."""
    return TrainContext(
        examples=setup.examples,
        seed_logp=spent.seed_logp,
        rng=random.Random(f"{setup.seed} train"),
        safety_examples=setup.safety_examples,
        safety_gradient=spent.safety,
        model=spent.others,
        layers=layers,
    )


def _make_trainer(
    setup: Setup,
    spent: Spent,
    context: TrainContext,
    told: transformers.TrainingArguments,
    batches: Sequence[Sequence[Encoded]],
    on_step: OnStep,
    snapshots: bool,
) -> HookedTrainer:
    """The trainer, at the step at which an interrupted training saved its state last."""
    settings, epochs = setup.settings, setup.settings.epochs
    ends = {round(len(batches) * epoch / epochs): epoch for epoch in range(1, epochs)}
    callback = StepCallback(on_step, ends if snapshots else {})
    with arguments.where_reports_go(setup.places.reports):
        trainer = HookedTrainer(
            model=setup.model,
            args=told,
            train_dataset=Steps(batches, settings, setup.pad_id, told.process_index, told.world_size),
            data_collator=lambda batch: batch,
            processing_class=setup.tokenizer,
            callbacks=[callback],
            method=setup.method,
            context=context,
            head=setup.head,
            safety=spent.safety,
            settings=settings,
            places=setup.places,
        )
    arguments.keep_float32(settings)
    callback.trainer = trainer
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.take_up(resume.resume_state(setup.places.state, callback.epoch_ends))
    return trainer


def _run(
    trainer: HookedTrainer,
    setup: Setup,
    spent: Spent,
    agreed: agreement.Agreement,
    told: transformers.TrainingArguments,
) -> None:
    """Train to the end and save the weights."""
    setup.head.enter(setup.model)
    with _kernels(setup.model, setup.head, setup.settings):
        here = setup.model.device.type == told.device.type  # weights to be sharded wait on the CPU
        if setup.settings.liger or (setup.settings.compile and here):
            agreement.confirm(agreed, setup.model, setup.head, setup.pad_id, setup.settings)
        spent.loop_s = _take_steps(trainer)
        spent.after_s = _call_after_training(trainer)
        hook_checks.check_record(trainer.method, trainer.context.record)
        trainer.save_weights(setup.places.output / "checkpoint")


def _take_steps(trainer: HookedTrainer) -> float:
    """Train to the last step; the seconds of all steps, those before an interruption included."""
    trainer.started = time.perf_counter()
    trainer.train(resume_from_checkpoint=trainer.resumed_from)
    trainer.look_at_losses()
    return trainer.seconds()


def _call_after_training(trainer: HookedTrainer) -> float:
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
