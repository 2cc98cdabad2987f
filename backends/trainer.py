"""The one trainer: transformers' Trainer on our own token ids, with a method's hooks at fixed places.

The order of the data is planned ahead, as a list of global batches, so that it is the same for every method,
micro-batch size and number of devices. The loss is a mean over the answer tokens of the global batch.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

from harness.contracts import Encoded, HarnessError, LossInputs, Method, TrainContext

IGNORED = -100  # the label of a token without loss


def global_batches(
    examples: Sequence[Encoded], epochs: int, batch_size: int, seed: int
) -> list[list[Encoded]]:
    """Shuffled epochs laid end to end and cut into batches; only the very last one can be smaller."""
    rng = random.Random(seed)
    stream: list[Encoded] = []
    for _ in range(epochs):
        stream += rng.sample(examples, len(examples))
    return [stream[start : start + batch_size] for start in range(0, len(stream), batch_size)]


def collate(batch: Sequence[Encoded], pad_id: int) -> dict[str, Any]:
    """Pad on the right: input_ids, attention_mask and labels are (B, T)."""
    length = max(len(example.input_ids) for example in batch)
    ids = torch.full((len(batch), length), pad_id)
    attention = torch.zeros((len(batch), length), dtype=torch.long)
    labels = torch.full((len(batch), length), IGNORED)
    for row, example in enumerate(batch):
        tokens = torch.tensor(example.input_ids)
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = torch.where(torch.tensor(example.trained), tokens, IGNORED)
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "labels": labels,
        "ids": [example.id for example in batch],
    }


def target_logp(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the next tokens, float32, and where they carry loss: both (B, T-1)."""
    targets = labels[:, 1:]
    losses = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(targets.shape), targets != IGNORED


@torch.no_grad()
def answer_logp(
    model: Any, examples: Sequence[Encoded], pad_id: int, batch_size: int = 32
) -> list[list[float]]:
    """Each example's log-probabilities of its loss-carrying tokens under ``model``, batched by length."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids))
    found: dict[int, list[float]] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = collate([examples[index] for index in rows], pad_id)
        tensors = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask", "labels")}
        labels = tensors.pop("labels")
        logp, mask = target_logp(model(**tensors, use_cache=False).logits, labels)
        found |= {index: logp[row][mask[row]].tolist() for row, index in enumerate(rows)}
    model.train(was_training)
    return [found[index] for index in range(len(examples))]


class HookedTrainer(transformers.Trainer):
    """transformers' Trainer with the method's loss, on data in its planned order."""

    def __init__(self, *args: Any, method: Method, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.method = method
        self.model_accepts_loss_kwargs = True  # count the global batch's answer tokens for compute_loss
        self.loss_is_scaled_for_ga = True  # and leave the loss as it comes from there

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        labels, ids = inputs.pop("labels"), inputs.pop("ids")
        logp, mask = target_logp(model(**inputs, use_cache=False).logits, labels)
        devices = self.accelerator.num_processes
        step = LossInputs(
            logp=logp,
            mask=mask,
            ids=ids,
            token_count=torch.as_tensor(num_items_in_batch, device=logp.device).clamp(min=1),
            model=model,
            micro_batches=self.current_gradient_accumulation_steps * devices,
        )
        loss: Tensor = self.method.loss(step) * devices
        return loss  # gradients are averaged over devices, ours is a sum


class _Hooks(transformers.TrainerCallback):
    def __init__(self, method: Method, on_step: Callable[[int, float | None], None]):
        self.method, self.on_step = method, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.method.after_step(kwargs["model"], state.global_step)
        self.on_step(state.global_step, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.on_step(state.global_step, logs["loss"])


def train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Encoded],
    method: Method,
    settings: Any,
    seed: int,
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    """Fine-tune ``model`` in place under ``settings`` (config.TrainingConfig) and return the run's record.

    ``on_step(step, steps)`` is called after each optimizer step. Token counts leave padding out; FLOPs are
    the usual 6 N per trained token and 2 N per token of an extra forward pass (Kaplan et al. 2020, §2.1).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    extra_forward_tokens = 0

    def logp(scored_model: Any, scored: Sequence[Encoded]) -> list[list[float]]:
        nonlocal extra_forward_tokens
        extra_forward_tokens += sum(len(example.input_ids) for example in scored)
        return answer_logp(scored_model, scored, pad_id, settings.micro_batch_size)

    context = TrainContext(examples=examples, logp=logp, rng=random.Random(f"{seed} train"))
    method.before_training(model, context)
    batches = method.batches(global_batches(examples, settings.epochs, settings.batch_size, seed), context)
    if any(len(batch) != settings.batch_size for batch in batches[:-1]):  # the stream would be cut elsewhere
        raise HarnessError(
            f"method '{method.name}' broke its contract: all its batches but the last must have "
            f"{settings.batch_size} examples, not {sorted({len(batch) for batch in batches[:-1]})}"
        )
    losses: list[float] = []

    def step_done(step: int, loss: float | None) -> None:
        if loss is None:
            on_step(step, len(batches))
        else:
            if not math.isfinite(loss):
                raise HarnessError(
                    f"training diverged: the loss of step {step} is {loss}; lower training.learning_rate"
                )
            losses.append(loss)

    with tempfile.TemporaryDirectory() as scratch:  # the Trainer insists on a folder; nothing is kept in it
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            num_train_epochs=1,  # all epochs are in the planned batches
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=settings.warmup_steps,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            optim="adamw_torch",
            bf16=settings.dtype == "bfloat16",
            gradient_checkpointing=settings.gradient_checkpointing,
            seed=seed,
            use_cpu=settings.device == "cpu",
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would show the loss before instead
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = HookedTrainer(
            model=model,
            args=arguments,
            train_dataset=[example for batch in batches for example in batch],
            data_collator=lambda batch: collate(batch, pad_id),
            processing_class=tokenizer,
            callbacks=[_Hooks(method, step_done)],
            method=method,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    method.after_training(model)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = sum(len(example.input_ids) for batch in batches for example in batch)
    return {
        "steps": len(batches),
        "train_tokens": tokens,
        "answer_tokens": sum(sum(example.trained) for batch in batches for example in batch),
        "extra_forward_tokens": extra_forward_tokens,
        "train_flops": 6 * parameters * tokens + 2 * parameters * extra_forward_tokens,
        "losses": losses,
        "method": context.record,
    }
