"""What an adapter may say of itself, looked at before peft reads it.

Only LoRA whose modules have plain names and whose sizes its own weights have. Anything else may run a regular
expression without end, or have peft fetch other models and read pickles.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.models.checkpoint_limits import ADAPTER_CONFIG, MOST_LAYERS, Tensor, brief, object_of, tensors

MOST_NAMES = 1_000  # of an adapter's list of modules
HIGHEST_RANK = 65_536

_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_PLAIN_BASE = re.compile(r"[^:]{1,4096}|[A-Za-z]:[\\/][^:]{1,4096}")  # no URL; a drive of Windows
_INITS = re.compile(r"gaussian|olora|orthogonal|pissa|pissa_niter_\d{1,2}")
# What else an adapter_config.json may say, because nothing here or in peft's loading looks at it.
_UNUSED = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version",
    "inference_mode", "runtime_config", "megatron_core", "qalora_group_size",
}  # fmt: skip


def check_adapter(folder: Path, weights: str) -> dict[str, Tensor]:
    """Look at an adapter's folder (``weights``: its file): its tensors, by name.

    Raises HarnessError, which names file, key and value, for what is not LoRA with plain names: anything else
    may run a regular expression without end, or have peft fetch other models and read pickles.
    """
    held = tensors([folder / weights])
    path = folder / ADAPTER_CONFIG
    config = object_of(path)
    if config.get("peft_type") != "LORA":
        raise HarnessError(
            f"{path}: peft_type {brief(config.get('peft_type'))} is not loaded, only LORA; "
            "merge the adapter into its model and give that"
        )
    longest = max((side for tensor in held.values() for side in tensor.shape), default=0)
    for key, value in config.items():
        nothing = value is None or value is False or value in ("", [], {})
        if key in _UNUSED or (nothing and key not in _NEVER_NOTHING):
            continue
        if key not in _LORA:
            raise HarnessError(
                f"{path}: {key} {brief(value)} is not loaded; merge the adapter into its model and give that"
            )
        fits, wanted = _LORA[key]
        if not fits(value):
            raise HarnessError(f"{path}: {key} must be {wanted}, not {brief(value)}")
        if (
            key in ("r", "rank_pattern")
            and max(value.values() if isinstance(value, dict) else [value], default=0) > longest
        ):
            raise HarnessError(f"{path}: {key} {brief(value)} is more than its weights have")
    return held


def base_name(folder: Path) -> str:
    """The model that an adapter names as its base. Raises HarnessError where it names none, or none that can
    be one."""
    path = folder / ADAPTER_CONFIG
    named = object_of(path).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise HarnessError(f"{path}: no base_model_name_or_path; of which model is it?")
    if not named.isprintable() or not _PLAIN_BASE.fullmatch(named):
        raise HarnessError(
            f"{path}: base_model_name_or_path {brief(named)} is no folder and no hub name (owner/name)"
        )
    return named


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_PLAIN.fullmatch(value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_NAMES and all(map(_is_name, value))


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 10**9


def _listed(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(one, value))


def _by_name(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and _are_names([*value]) and all(map(one, value.values()))


def _either(*checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(check(value) for check in checks)


def _is_true(value: Any) -> bool:
    return value is True


_NAMES = "plain names of modules (letters, digits, '_', '.', '-'), not a regular expression"
_rank, _layer, _token = _whole(1, HIGHEST_RANK), _whole(0, MOST_LAYERS), _whole(0, 2**31)
# What an adapter may say of itself: a check of the value (None, false and what is empty pass, but for what
# peft computes with), and in words what it must be.
_NEVER_NOTHING = {"r", "rank_pattern", "lora_alpha", "alpha_pattern", "lora_dropout", "bias"}
_LORA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_rank, f"a whole number from 1 to {HIGHEST_RANK}"),
    "rank_pattern": (_by_name(_rank), f"ranks by {_NAMES}"),
    "lora_alpha": (_is_number, "a number"),
    "alpha_pattern": (_by_name(_is_number), f"numbers by {_NAMES}"),
    "lora_dropout": (_is_number, "a number"),
    "target_modules": (_either(_is_name, _are_names), _NAMES),
    "exclude_modules": (_either(_is_name, _are_names), _NAMES),
    "target_parameters": (_are_names, _NAMES),
    "modules_to_save": (_are_names, _NAMES),
    "layers_pattern": (_either(_is_name, _are_names), _NAMES),
    "layers_to_transform": (_either(_layer, _listed(_layer)), "numbers of layers"),
    "trainable_token_indices": (_either(_listed(_token), _by_name(_listed(_token))), "ids of tokens"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "init_lora_weights": (
        lambda value: value is True or (isinstance(value, str) and bool(_INITS.fullmatch(value))),
        "true, gaussian, orthogonal, olora or pissa (others need more than the adapter)",
    ),
    "fan_in_fan_out": (_is_true, "true or false"),
    "use_rslora": (_is_true, "true or false"),
    "use_dora": (_is_true, "true or false"),
    "lora_bias": (_is_true, "true or false"),
    "ensure_weight_tying": (_is_true, "true or false"),
}
