"""What the cells of one run share: the base model, its tokenizer, data, tasks and engines."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import RunConfig
from harness.console.progress import Reporter
from harness.contracts import Example, HarnessError, Method, NotFetchedError, TrainTask
from harness.data import loading
from harness.data.benchmarks import Benchmark
from harness.engines import engine_checks, select
from harness.models import chat, checkpoints, devices
from harness.models.checkpoints import Checkpoint
from harness.plugins import registry
from harness.rows import Unused
from harness.run.plan import Cell
from harness.run.resolve import resolve
from harness.storage.files import Cache, content_hash

if TYPE_CHECKING:
    from harness.engines.base import Engine

CLOCK = ("imports", "engine start", "tasks", "training", "generation")  # kinds of work, in seconds
AUTO = "auto"  # a precision that the device decides
RETRIES = "huggingface_hub.utils._http"  # what logs each try; the last one's error says the same in one line
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "lm-eval", "rouge-score")


def version_of(package: str) -> str:
    """A package's version: by its metadata, or where that is not there (a source tree on PYTHONPATH) by what
    it says itself. Raises HarnessError where neither does."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    with contextlib.suppress(ImportError):
        found = getattr(importlib.import_module(package.replace("-", "_")), "__version__", None)
        if isinstance(found, str) and found:
            return found
    raise HarnessError(
        f"the package {package} is not installed, or does not say its version: pip install {package}"
    )


@dataclasses.dataclass(frozen=True)
class OtherModel:
    """A model besides the base model: where it is, what it is by content, and the bytes of its weights, those
    of an adapter's base included."""

    folder: Path
    sha256: str
    size: int


class RunContext:
    """What the cells of one run share: the base model, its tokenizer, the data, the tasks; made when needed.

    ``clock`` adds up seconds by kind of work, for the overhead that the harness itself costs; ``jobs``: how
    many workers run at once.
    """

    def __init__(self, config: RunConfig, out: Path, reporter: Reporter | None = None):
        self.config, self.out, self.reporter = config, out, reporter or Reporter()
        self.config = self._precise(config)
        self.clock: dict[str, float] = dict.fromkeys(CLOCK, 0.0)
        self.jobs = 1
        self._noted: set[Checkpoint] = set()
        self._engine: tuple[tuple[str, Checkpoint], Engine] | None = None
        self._examples: dict[str, list[Example]] = {}
        self._unused: dict[str, Unused] = {}
        self._example_hashes: dict[tuple[str, str], str] = {}
        self._other_models: dict[str, OtherModel] = {}
        self._based: dict[str, RunContext] = {}

    def _precise(self, config: RunConfig) -> RunConfig:
        """The configuration with the precision that ``dtype: auto`` stands for on the run's device."""
        auto = {name: one for name, one in config.variants.items() if one.training.get("dtype") == AUTO}
        if not auto and AUTO not in (config.training.dtype, config.responses.dtype):
            return config
        update: dict[str, Any] = {}
        for key in ("training", "responses"):
            section = getattr(config, key)
            dtype = devices.dtype(section.dtype, self.device)
            update[key] = section.model_copy(update={"dtype": dtype})
        settled = {"dtype": devices.dtype(AUTO, self.device)}
        update["variants"] = config.variants | {
            name: one.model_copy(update={"training": {**one.training, **settled}})
            for name, one in auto.items()
        }
        return config.model_copy(update=update)

    def of(self, row: str) -> RunContext:
        """This context, with the base model that a row starts from."""
        model = self.config.row(row).model
        if model is None or model == self.config.model:
            return self
        if model not in self._based:
            self._based[model] = RunContext(self.config.model_copy(update={"model": model}), self.out)
        other = self._based[model]
        other.reporter, other.clock, other.jobs = self.reporter, self.clock, self.jobs  # as they are now
        return other

    def cells(self) -> list[Cell]:
        return resolve(self.config).cells()

    def method(self, row: str) -> Method:
        return resolve(self.config).method(row)

    def train_task(self, of: Cell | str) -> TrainTask:
        return resolve(self.config).train_task(of)

    def benchmark(self, task: str) -> Benchmark:
        return resolve(self.config).benchmark(task)

    @cached_property
    def seed_folder(self) -> Path:
        """Raises HarnessError where the recipe aligns its model first: before, it is another base model."""
        if self.config.alignment.method:
            raise HarnessError(
                "this recipe aligns its base model first: harness align with the same options, and here "
                "--model CHECKPOINT --set alignment.method=null"
            )
        return checkpoints.locate(self.config.model)

    @cached_property
    def seed_fingerprint(self) -> dict[str, str]:
        return checkpoints.fingerprint(self.seed_folder)

    def other_model(self, name: str) -> OtherModel:
        """A model that a method's option names. Raises HarnessError where it cannot be had."""
        if name not in self._other_models:
            if name.startswith(checkpoints.SERVER):
                raise HarnessError(f"'{name}': a method reads a model's weights, which no server gives")
            found = checkpoints.checkpoint(name)
            assert found.folder is not None
            content = content_hash(checkpoints.fingerprint(found.folder, found.base))
            folders = [found.folder, *([found.base] if found.base else [])]
            weights = [file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")]
            self._other_models[name] = OtherModel(found.folder, content, sum(weights))
        return self._other_models[name]

    @cached_property
    def libraries(self) -> dict[str, str]:
        return {name: version_of(name) for name in LIBRARIES}

    @cached_property
    def device(self) -> str:
        return devices.device(self.config.training.device)

    @cached_property
    def seed_tokenizer(self) -> Any:
        return checkpoints.load_tokenizer(checkpoints.tokenizer_folder(self.config.model))

    @cached_property
    def engine_name(self) -> str:
        """The engine of the answers: the recipe's, or with ``auto`` what is installed and fits."""
        named = self.config.engine
        return named if select.is_named(named) else choose_engine(self)

    @cached_property
    def server_engine_name(self) -> str:
        """The engine of checkpoints that a server has."""
        return select.for_servers(self.engine_name)

    def import_libraries(self) -> None:
        """Import what scoring needs, in one place, so that its seconds are known."""
        start = time.perf_counter()
        quiet()
        with without("sklearn", "scipy"):  # both load them, seconds each, for what nobody here calls
            import nltk  # noqa: F401 (ROUGE's stemmer)
            import torch
            import transformers
            from transformers import AutoModelForCausalLM  # noqa: F401 (what brings it in)

            select.engine_class(self.engine_name).import_libraries()
        importlib.import_module("lm_eval.evaluator")
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.clock["imports"] += time.perf_counter() - start

    def examples(self, train_task: TrainTask) -> list[Example]:
        if train_task.name not in self._examples:
            unused = Unused()
            try:
                self._examples[train_task.name] = loading.examples(
                    train_task,
                    self.config.train_source(train_task.name),
                    self.config.training.max_examples,
                    self.config.columns_of(train_task.name),
                    self.config.mix,
                    unused,
                )
            except NotFetchedError as error:
                raise NotFetchedError(self._by_task(str(error), train_task.name)) from error
            self._unused[train_task.name] = unused
        return self._examples[train_task.name]

    def _by_task(self, line: str, train_task: str) -> str:
        """Advice that says whose the rows are, where there are several train tasks."""
        several = len(self.config.train_tasks) > 1
        return line.replace("--train-data FILE", f"--train-data {train_task}=FILE") if several else line

    def unused(self, train_task: TrainTask) -> Unused:
        """What of the rows of ``examples`` is not trained."""
        self.examples(train_task)
        return self._unused[train_task.name]

    def examples_hash(self, train_task: TrainTask) -> str:
        return self._hash("own", train_task, self.examples)

    def safety_examples_hash(self, train_task: TrainTask) -> str:
        return self._hash("safety", train_task, self.safety_examples)

    def _hash(self, kind: str, train_task: TrainTask, examples: Callable[[TrainTask], list[Example]]) -> str:
        key = kind, train_task.name
        if key not in self._example_hashes:
            rows = [dataclasses.asdict(example) for example in examples(train_task)]
            self._example_hashes[key] = content_hash(rows)
        return self._example_hashes[key]

    def engine(self, checkpoint: Checkpoint) -> Engine:
        """The engine, answering as ``checkpoint``: the open one where it can switch, else a new one."""
        name = self.server_engine_name if checkpoint.server else self.engine_name
        start = time.perf_counter()
        key = name, checkpoint
        if self._engine and self._engine[0] != key:
            if self._engine[0][0] == name and self._engine[1].use(checkpoint):
                self._engine = key, self._engine[1]
            else:
                self.release()
        if self._engine is None:
            opened = select.engine_class(name).open(checkpoint, self.config.responses, self.device)
            engine_checks.check_opened(name, opened)
            self._engine = key, opened
        engine = self._engine[1]
        self.clock["engine start"] += time.perf_counter() - start
        if checkpoint not in self._noted and engine.takes_ids and not chat.has_system_role(engine.tokenizer):
            self._noted.add(checkpoint)
            note = (
                f"{checkpoint.name}: its chat template has no system role; system prompts open the user turn "
                "instead"
            )
            self.reporter.send(("note", None, note))
        return engine

    @cached_property
    def seed_checkpoint(self) -> Checkpoint:
        return checkpoints.checkpoint(str(self.seed_folder))

    def release(self) -> None:
        """Give back what engines hold, a device's memory above all."""
        if self._engine is not None:
            self._engine[1].close()
            self._engine = None
        for other in self._based.values():
            other.release()

    def safety_examples(self, train_task: TrainTask, unused: Unused | None = None) -> list[Example]:
        """The recipe's safety data as training examples. Raises UsageError where there are none."""
        return loading.safety_examples(train_task, self.config.safety_data, unused)

    @cached_property
    def cache(self) -> Cache:
        return Cache(Path(self.config.cache or os.environ.get("HARNESS_CACHE") or "results/cache").absolute())

    def load_task(self, name: str, tokenizer: str | None) -> Any:
        """One lm-eval task, with the documents that it has under ``tokenizer`` (a folder)."""
        from lm_eval.tasks import TaskManager

        benchmark = self.benchmark(name)
        files = {**self.config.data, **self.config.set_files}
        values: dict[str, Any] = {
            "data_files": {task: str(path) for task, path in files.items()},
            "token_exact": True,  # our engines take ids
            "name": name,
        }
        if tokenizer is not None:
            values["tokenizer"] = tokenizer
        if benchmark.counted:
            values["prefill_tokens"] = benchmark.prefill_tokens(self.config.safety.prefill_tokens)
        folders = [benchmark.path.parent] if benchmark.foreign else registry.task_folders()
        manager = TaskManager(
            include_path=[str(folder) for folder in folders], include_defaults=False, metadata=values
        )
        found = manager.load([benchmark.task])["tasks"][benchmark.task]
        found.set_config(key="task", value=name)  # a safety set goes by the user's name
        return found


def quiet() -> None:
    """No bars and notes of the libraries; ours say more. Before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("lm_eval", "lm-eval", RETRIES):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Installed packages that are not to be found while others are imported."""
    hidden = [package for package in packages if package not in sys.modules]
    for package in hidden:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for package in hidden:
            sys.modules.pop(package, None)


def choose_engine(ctx: RunContext) -> str:
    """The engine that suits the run's base model on its device."""

    def weights() -> int | None:
        if not checkpoints.is_here(ctx.config.model):
            return None
        return sum(file.stat().st_size for file in ctx.seed_folder.glob("*.safetensors"))

    return select.chosen(ctx.config.responses, ctx.device, weights)
