"""Which keys of a configuration act on this machine, and when a stored run may set them.

A recipe is trusted as a script is: the user names it. The configuration in a run folder may be anybody's, so
a key that acts (runs a command, reads or writes files, asks a server or the hub, changes what counts as
harmful) is taken from there only where the command at hand names it too, or where this user has made a run
with the same values: then a record outside the run folder says so. It holds hashes, and belongs to the user.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.config import RunConfig, load, meanings
from harness.contracts import HarnessError, UsageError
from harness.storage.files import content_hash, write_text_atomic
from harness.text import LEFT_OUT, one_line, without_keys

Step = Literal["train", "respond", "judge"]
TRAIN: frozenset[Step] = frozenset({"train"})
RESPOND: frozenset[Step] = frozenset({"respond"})
JUDGE: frozenset[Step] = frozenset({"judge"})
WORK = TRAIN | RESPOND
ALL = WORK | JUDGE

# Key -> the steps that take it. Every key of RunConfig stands here or in INERT; a test fails for a new one.
ACTING: Mapping[str, frozenset[Step]] = {
    "model": WORK,  # reads a folder, or fetches from the hub with the user's token
    "method_options": WORK,  # a plugin's option may name anything
    "variants": WORK,
    "train_tasks": WORK,  # their data may come from the hub
    "train_data": TRAIN,  # reads a file, or fetches a data set
    "mix": TRAIN,
    "alignment.method": WORK,  # its training, and what a plugin's options may name
    "alignment.options": WORK,
    "alignment.training": WORK,  # a launcher is in it
    "alignment.requests": WORK,  # reads files
    "alignment.harmless": WORK,
    "safety_data": TRAIN,
    "data": RESPOND,
    "utility_tasks": RESPOND,  # lm-eval's tasks fetch their data
    "safety_tasks": RESPOND,
    "safety_sets": RESPOND,
    "utility_sets": RESPOND,
    "checkpoints": RESPOND,  # reads folders, asks the hub or servers
    "judges": JUDGE,  # get exchanges and a key, or read files
    "threads": WORK,  # processes and threads without bound
    "jobs": WORK,
    "executor": WORK,  # connects to a cluster
    "cache": ALL,  # writes there
    "training.launcher": TRAIN,  # a command
    "training.num_processes": TRAIN,
    "training.report_to": TRAIN,  # sends to trackers under the user's account
    "responses.server": RESPOND,  # gets the prompts and a key
    "responses.tokenizer": RESPOND,
    "responses.in_flight": RESPOND,
    "responses.tensor_parallel": RESPOND,
    "responses.data_parallel": RESPOND,
    "safety.raw_task": RESPOND,  # what RSR and JSR measure
    "safety.prefill_task": RESPOND,
    "safety.prefill_tokens": RESPOND,
    "judging.mode": JUDGE,  # batch: believes what the run's folder remembers of one
    "judging.rubric": JUDGE,  # reads a file and sends it; changes verdicts
    "judging.threshold": JUDGE,  # changes verdicts
    "judging.prompt_files": JUDGE,
    "judging.in_flight": JUDGE,
    "judging.prices": JUDGE,  # prices of 0 would disarm --max-cost
    "ray.address": WORK,  # gets the whole work, as code
    "ray.storage": WORK,  # is written to and read from
    "ray.cpus_per_cell": WORK,
    "ray.gpus_per_cell": WORK,
}
COUNTS = ("threads", "jobs", "training.num_processes", "ray.cpus_per_cell")  # up to this machine's cores
# What costs time or says what a run is, and neither leaves this machine nor touches it.
INERT = frozenset(
    {
        *("name", "note", "paper", "methods", "columns", "seeds", "engine"),
        *("cross_tasks", "eval_every_epoch", "trained_on"),
        *("aligned", "alignment.held_out", "alignment.seed"),
        *("training.epochs", "training.learning_rate", "training.batch_size", "training.schedule"),
        *("training.warmup_steps", "training.betas", "training.weight_decay", "training.max_grad_norm"),
        *("training.max_examples", "training.max_length", "training.too_long", "training.tuning"),
        *("training.lora.r", "training.lora.alpha", "training.lora.target_modules", "training.merge"),
        "training.lora.dropout",
        *("training.dtype", "training.device", "training.micro_batch_size", "training.micro_batch_tokens"),
        *("training.batching", "training.attention", "training.optimizer", "training.distributed"),
        *("training.gradient_checkpointing", "training.compile", "training.liger"),
        *("training.chunked_loss", "training.cudnn_attention", "training.adapter_casts"),
        "training.expandable_segments",
        *("training.save_steps", "training.peak_tflops"),
        *("responses.dtype", "responses.limit", "responses.part", "responses.validation_share"),
        *("responses.thinking", "responses.batch_size", "responses.static_cache", "responses.gpu_memory"),
        *("responses.max_context", "responses.timeout_s"),
        *("responses.continuous", "responses.cudnn_attention"),
        "safety.judged_scope",  # both values are published protocols, and every table names the one it has
        *("judging.engine", "judging.dtype", "judging.batch_size", "judging.timeout_s"),
        *("judging.attempts", "judging.max_cost"),
        "ray.retries",
    }
)
STATE = "HARNESS_STATE"  # the environment variable that names the folder of this user's record


def check(
    config: RunConfig,
    stored: RunConfig,
    out: Path,
    named: Collection[str] | RunConfig,
    steps: Collection[Step],
) -> None:
    """Raises UsageError where ``config`` has acting keys that only the run in ``out`` asks for.

    ``stored``: that run's own configuration. ``named``: the keys that this command sets, or the
    configuration that it would have without the run. ``steps``: what the command does.
    """
    asked = {} if owned(stored) else _asked(config, named, steps)
    if asked:
        shown = ", ".join(f"{key}={_short(value)}" for key, value in asked.items())
        again = " ".join(f"--set {key}=…" for key in asked)
        raise UsageError(
            f"{out / 'run.json'} asks for {shown}, and no run of yours has the same settings: repeat on the "
            f"command line what you want ({again}), or null for none"
        )


def _asked(config: RunConfig, named: Collection[str] | RunConfig, steps: Collection[Step]) -> dict[str, Any]:
    """The acting keys of ``config``, with their values, that are neither named, nor the default, nor the
    embedded world's (``harness compare`` alone), which needs nothing from outside."""
    now, allowed = _values(config), [_values(RunConfig()), _values(load("mini"))]
    allowed += [_values(named)] if isinstance(named, RunConfig) else []
    given = () if isinstance(named, RunConfig) else named
    return {
        key: now[key]
        for key, taken_by in ACTING.items()
        if taken_by.intersection(steps)
        and not any(key == name or key.startswith(f"{name}.") for name in given)
        and not _among(now[key], [one[key] for one in allowed])
        and not (key in COUNTS and now[key] <= (os.cpu_count() or 1))
    }


def _among(value: Any, allowed: Sequence[Any]) -> bool:
    """Whether a value, or each part of a list or mapping, is one of those allowed."""
    if isinstance(value, dict):
        return all(any((one or {}).get(name) == part for one in allowed) for name, part in value.items())
    if isinstance(value, list):
        return all(any(part in (one or []) for one in allowed) for part in value)
    return value in allowed


def owned(config: RunConfig) -> bool:
    """Whether this user has made a run with these values of all acting keys. Not if a key stood in the
    launcher: it was left out of the record, so that different launchers look the same there."""
    return LEFT_OUT not in (config.training.launcher or "") and (_folder() / _identity(config)).is_file()


def remember(config: RunConfig, out: Path, stored: RunConfig | None) -> None:
    """Note that this user has made a run with these values: a new one, or one that was the user's before
    (``stored``). A stranger's run never becomes one's own, however much of it a command has named. Where the
    note cannot be written, the user will be asked to repeat them."""
    if stored is not None and not owned(stored):
        return
    note = _folder() / _identity(config)
    with contextlib.suppress(OSError, HarnessError):
        if not note.is_file():
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text_atomic(note, f"{out.absolute()}\n")


def _folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.environ.get(STATE) or f"{base}/safetune-harness").expanduser() / "runs"


def _identity(config: RunConfig) -> str:
    values = _values(config)
    later = {"utility_sets": {}} | {key: now for key, now, _ in meanings() if key.startswith("alignment.")}
    for key, usual in later.items():  # as in records from before there were any
        if values[key] == (list(usual) if isinstance(usual, tuple) else usual):
            del values[key]
    for variant in values["variants"].values():
        for key in ("model", "alignment"):
            if not variant[key]:
                del variant[key]
    return content_hash({key: values[key] for key in ACTING if key in values})


def _values(config: RunConfig) -> dict[str, Any]:
    """JSON values by dotted key, as a run's record holds them. Files with code are left out: what a record
    says of them is taken by no command, from no run (plugin_files.py)."""
    flat: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", config.model_dump(mode="json", exclude={"code"}))]
    keys = {key for key, _, _ in meanings()}
    while waiting:
        prefix, section = waiting.pop()
        for name, value in section.items():
            key = f"{prefix}{name}"
            if key in keys:
                flat[key] = value
            else:
                waiting.append((f"{key}.", value))
    return flat


def _short(value: Any) -> str:
    text = one_line(without_keys(json.dumps(value, ensure_ascii=False)))
    return text if len(text) <= 80 else f"{text[:79]}…"
