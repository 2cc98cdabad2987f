"""What transformers' Trainer and the rest of the process are told before a training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from harness.config import TrainingConfig
from harness.contracts import HarnessError
from harness.training import attention, distributed, isolation
from harness.training.resume import Places

LOSS_INTERVAL = 10  # steps between two looks at the losses: each look waits for the device


def training_arguments(settings: TrainingConfig, seed: int, places: Places) -> transformers.TrainingArguments:
    """A training's, which joins the other processes of it where a launcher has started some."""
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
        save_strategy="no",  # loop.StepCallback says when
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **(distributed.arguments(settings) if several else {}),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # transformers would spread one process over all devices
    return arguments


def keep_float32(settings: TrainingConfig) -> None:
    """float32 means float32: libraries turn TF32 on when the arguments and when the trainer are made."""
    if settings.dtype == "float32":
        isolation.exact_float32()


def check_batching(settings: TrainingConfig) -> None:
    """Raises HarnessError for rows that are to be packed under an attention that cannot tell them apart."""
    if settings.batching == "padding-free" and settings.attention in attention.UNFUSED:
        raise HarnessError(
            f"training.batching padding-free needs a fused attention, not '{settings.attention}': "
            "set training.batching to grouped"
        )


def rounding(settings: TrainingConfig) -> list[str]:
    """The settings under which the same log-probabilities are rounded otherwise than without them."""
    asked = {"chunked_loss": settings.chunked_loss, "no cudnn_attention": not settings.cudnn_attention}
    return [name for name, wanted in asked.items() if wanted]


def filler_id(model: Any, tokenizer: Any) -> int:
    """What fills a micro-batch's rows, which nothing reads: the tokenizer's token, if the model embeds it."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found) if found is not None and found < model.get_input_embeddings().weight.shape[0] else 0


@contextlib.contextmanager
def where_reports_go(folder: Path) -> Iterator[None]:
    """TensorBoard takes its folder from the environment alone."""
    before = os.environ.get("TENSORBOARD_LOGGING_DIR")
    os.environ["TENSORBOARD_LOGGING_DIR"] = before or str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TENSORBOARD_LOGGING_DIR"]
