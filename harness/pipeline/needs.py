"""What would stop a run after its first training and can be found before it: packages that are missing,
methods of others whose own code fails."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from harness.config import RunConfig, TrainingConfig
from harness.contracts import HarnessError, Method
from harness.engines import select
from harness.engines.base import is_here
from harness.judging import session
from harness.plugins import plugin_code, registry
from harness.run import plan
from harness.run.context import RunContext
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.text import shortened
from harness.training import hook_checks, preparation

TRACKERS = {  # any of the modules, and what brings one
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
    "mlflow": (("mlflow",), "mlflow"),
    "trackio": (("trackio",), "trackio"),
}
OURS = "backends."  # the methods of this package
TRIED = 4  # rows that a method is tried with
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def missing(config: RunConfig) -> list[tuple[str, str]]:
    """(what is missing, what to do about it) for everything that this configuration needs and nothing else of
    the installation does."""
    rows = [config.row(name).training for name in plan.methods(config)]
    found = [*_trackers(config.training)] if rows else []
    for row in rows:
        found += _packages(row)
    if config.executor == "ray" and not is_here("ray"):
        found.append(("executor ray: Ray is not installed", "pip install ray, or --executor local"))
    engine = config.judging.engine
    lacking = [one for one in select.engine_class(engine).needs if not is_here(one.module)]
    for package in lacking if lacking and _has_weights(config) else ():
        mend = f"{package.install}, or --set judging.engine=hf"
        found.append((f"judging.engine {engine}: {package.name} is not installed", mend))
    return list(dict.fromkeys(found))


def lines(config: RunConfig) -> list[str]:
    return [f"{what}: {mend}" for what, mend in missing(config)]


def check(config: RunConfig) -> None:
    """Raises HarnessError with everything that is missing."""
    found = lines(config)
    if found:
        raise HarnessError("; ".join(found))


def check_methods(ctx: RunContext, rows: Sequence[str]) -> None:
    """Raises HarnessError for a method whose hooks could not be called, or not where it is to be trained."""
    for row in rows:
        method, settings = ctx.method(row), ctx.config.row(row).training
        several = settings.num_processes > 1 or settings.launcher is not None
        hook_checks.check_signatures(method)
        hook_checks.check_sharding(method, settings, several=several)


def try_out(ctx: RunContext, cells: Sequence[Cell]) -> None:
    """Let each method that is not ours prepare a few rows, before anything is trained: an error of its own
    would otherwise come after the others' trainings. Raises HarnessError with the method and the line."""
    tried: set[tuple[str, str]] = set()
    for cell in cells:
        if cell.kind != "trained" or cell.train_task is None or (cell.method, cell.train_task) in tried:
            continue
        tried.add((cell.method, cell.train_task))
        method = resolve(ctx.config).make_method(cell.method)
        if type(method).prepare is Method.prepare or type(method).__module__.startswith(OURS):
            continue
        task = ctx.train_task(cell)
        given = ctx.examples(task)[:TRIED]
        answers = [example.answer for example in given]

        def generate(conversations: Sequence[Any], answers: list[str] = answers, **options: Any) -> list[str]:
            return [answers[index % len(answers)] for index in range(len(conversations))]

        try:
            method.prepare([*given], preparation.make_context(ctx, task, method, cell, generate))
        except HarnessError:
            raise
        except (Exception, SystemExit) as error:
            raise HarnessError(
                f"method '{cell.method}' cannot prepare rows of {task.name}: {type(error).__name__}: "
                f"{shortened(error, 200)} ({_place(error)})"
            ) from error


def _place(error: BaseException) -> str:
    """The file and line from which an error comes: of a file that the command names, its own last line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return plugin_code.line_of(error) or f"{last.filename}, line {last.lineno}"


def _trackers(settings: TrainingConfig) -> Iterator[tuple[str, str]]:
    here = [name for name in settings.report_to if any(map(is_here, TRACKERS[name][0]))]
    rest = f"--report-to {','.join(here)}" if here else "--set training.report_to=[]"
    for name in settings.report_to:
        if name not in here:
            yield f"tracker {name} is not installed", f"pip install {TRACKERS[name][1]}, or {rest}"


def _packages(settings: TrainingConfig) -> Iterator[tuple[str, str]]:
    several = settings.num_processes > 1
    if several and settings.distributed in ("zero2", "zero3") and not is_here("deepspeed"):
        what = f"distributed {settings.distributed}: DeepSpeed is not installed"
        yield what, "pip install deepspeed, or --distributed fsdp2"
    if settings.tuning == "qlora" and not is_here("bitsandbytes"):
        yield "tuning qlora: bitsandbytes is not installed", "pip install bitsandbytes, or --tuning lora"
    if settings.optimizer == "adamw_8bit" and not is_here("bitsandbytes"):
        mend = "pip install bitsandbytes, or --set training.optimizer=adamw_torch_fused"
        yield "optimizer adamw_8bit: bitsandbytes is not installed", mend
    if settings.liger and not is_here("liger_kernel"):
        mend = "pip install liger-kernel, or --set training.liger=false"
        yield "liger: the package liger-kernel is not installed", mend
    module = FLASH.get(settings.attention)
    if module and not (is_here(module) or is_here("kernels")):
        mend = "pip install kernels, or --set training.attention=auto"
        yield f"attention {settings.attention} is not installed", mend


def _has_weights(config: RunConfig) -> bool:
    """Whether a judge of the run is a model that is loaded here."""
    there = filter(registry.is_judge, config.judges)  # not one of a file that the run alone names
    made = (registry.make_judge(name, session.settings(config)) for name in there)
    return any(judge.model is not None for judge in made)
