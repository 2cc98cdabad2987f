"""What is wrong with a recipe, in one line that names the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import (
    ValidationError,
)

ELSEWHERE = {  # what other trainers and engines call a key, and we do not
    **dict.fromkeys(("lr", "learning_rates"), "learning_rate"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("bs", "global_batch_size", "train_batch_size", "effective_batch_size"), "batch_size"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_batch_size", "mbs"), "micro_batch_size"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler", "lr_schedule"), "schedule"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "seq_len", "model_max_length", "cutoff_len"), "max_length"
    ),
    **dict.fromkeys(("max_samples", "max_train_samples", "n_examples"), "max_examples"),
    **dict.fromkeys(("adam_betas", "adam_beta1", "adam_beta2"), "betas"),
    **dict.fromkeys(("clip", "grad_clip", "max_norm", "gradient_clipping"), "max_grad_norm"),
    **dict.fromkeys(("optim",), "optimizer"),
    **dict.fromkeys(("precision", "torch_dtype", "bf16", "fp16"), "dtype"),
    **dict.fromkeys(("torch_compile",), "compile"),
    **dict.fromkeys(("use_liger_kernel",), "liger"),
    **dict.fromkeys(("attn_implementation", "attn"), "attention"),
    **dict.fromkeys(("finetuning_type", "peft", "adapter"), "tuning"),
    **dict.fromkeys(("rank", "lora_r", "lora_rank"), "r"),
    **dict.fromkeys(("lora_alpha",), "alpha"),
    **dict.fromkeys(("lora_dropout",), "dropout"),
    **dict.fromkeys(("lora_target", "lora_target_modules"), "target_modules"),
    **dict.fromkeys(("nproc", "nproc_per_node", "num_gpus", "gpus"), "num_processes"),
    **dict.fromkeys(("tp", "tensor_parallel_size"), "tensor_parallel"),
    **dict.fromkeys(("dp", "data_parallel_size"), "data_parallel"),
    **dict.fromkeys(("gpu_memory_utilization",), "gpu_memory"),
    **dict.fromkeys(("max_model_len",), "max_context"),
    **dict.fromkeys(("model_name", "model_path", "model_name_or_path", "base_model"), "model"),
    **dict.fromkeys(("method",), "methods"),
    **dict.fromkeys(("train_task", "tasks"), "train_tasks"),
    **dict.fromkeys(("judge",), "judges"),
    **dict.fromkeys(("seed",), "seeds"),
    **dict.fromkeys(("dataset", "train_file", "data_path"), "train_data"),
    **dict.fromkeys(("output_dir", "run_name"), "name"),
}


def first_problem(
    error: ValidationError, section: Any, within: tuple[str, ...] = (), keys: Sequence[str] = ()
) -> str:
    """pydantic's first finding in a section as one line, with the nearest known key for an unknown one.
    ``within``: where the section stands; ``keys``: all that a recipe may hold, dotted."""
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    path = [*within, *place]
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{'.'.join(path)}: {message}" if path else message
    for part in place[:-1]:
        named = not hasattr(section, "model_fields")  # a section for each name, as in variants
        section = get_args(section)[1] if named else section.model_fields[part].annotation
    known = list(section.model_fields)
    meant = _meant(path, known, keys)
    hint = f"did you mean '{meant}'?" if meant else f"known: {', '.join(known)}"
    return f"unknown key '{'.'.join(path)}': {hint}"


def _meant(path: Sequence[str], known: Sequence[str], keys: Sequence[str]) -> str | None:
    """The key that an unknown one most likely stands for, in its own section or in another: one of the same
    name, one that other trainers call so or whose initials it has, or one that is spelled alike."""
    *sections, last = path
    elsewhere = () if sections[:1] == ["variants"] else keys
    everywhere = {key.rpartition(".")[2]: key for key in reversed(elsewhere)}  # the first of a name
    if last in everywhere:
        return everywhere[last]
    here = {name: ".".join([*sections, name]) for name in known}
    for find, cutoff in ((_called, 0.0), (_spelled, 0.5)):
        for places, least in ((here, cutoff), (everywhere, 0.8)):
            found = find(last, [*places], least)
            if found:
                return places[found]
    return None


def _called(name: str, known: Sequence[str], cutoff: float) -> str | None:
    plain = name.lower().replace("-", "_")
    other = ELSEWHERE.get(plain)
    if other in known:
        return other
    initials = ("".join(word[0] for word in one.split("_")) for one in known)
    return next((one for one, short in zip(known, initials, strict=True) if short == plain != one), None)


def _spelled(name: str, known: Sequence[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=cutoff)), None)
