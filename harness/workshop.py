"""What the cells of one run share: the seed model, its tokenizer, data, tasks and engines."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import time
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import benchmarks, chat, data, models, registry
from harness.config import RunConfig
from harness.contracts import (
    Example,
    TrainTask,
)
from harness.progress import Reporter
from harness.store import (
    Cache,
    content_hash,
)

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "lm-eval", "rouge-score")


class Workshop:
    """What the cells of one run share: the seed model, its tokenizer, the data, the tasks; made when needed.

    ``clock`` adds up seconds by kind of work, for the overhead that the harness itself costs.
    """

    def __init__(self, config: RunConfig, out: Path, reporter: Reporter | None = None):
        self.config, self.out, self.reporter = config, out, reporter or Reporter()
        self.clock: dict[str, float] = {"imports": 0.0, "training": 0.0, "generation": 0.0}
        self._imported = False
        self._noted: set[Path] = set()
        self._examples: dict[str, list[Example]] = {}
        self._example_hashes: dict[str, str] = {}

    @cached_property
    def seed_folder(self) -> Path:
        return models.locate(self.config.model)

    @cached_property
    def seed_fingerprint(self) -> dict[str, str]:
        return models.fingerprint(self.seed_folder)

    @cached_property
    def libraries(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in LIBRARIES}

    @cached_property
    def device(self) -> str:
        return models.device(self.config.training.device)

    @cached_property
    def seed_tokenizer(self) -> Any:
        return models.load_tokenizer(self.seed_folder)

    def import_libraries(self) -> None:
        """Import what training and scoring need, in one place, so that its seconds are known."""
        if self._imported:
            return
        self._imported = True
        start = time.perf_counter()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; ours say more
        import torch
        import transformers

        for module in ("lm_eval.evaluator", "lm_eval.tasks"):
            importlib.import_module(module)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        for name in ("lm_eval", "lm-eval"):
            logging.getLogger(name).setLevel(logging.ERROR)
        registry.load("engine", self.config.engine)
        registry.load_object(registry.TRAINER)
        self.clock["imports"] += time.perf_counter() - start

    def examples(self, train_task: TrainTask) -> list[Example]:
        if train_task.name not in self._examples:
            self._examples[train_task.name] = data.examples(
                train_task,
                self.config.train_data,
                self.config.training.max_examples,
                self.config.columns,
                self.config.mix,
            )
        return self._examples[train_task.name]

    def examples_hash(self, train_task: TrainTask) -> str:
        if train_task.name not in self._example_hashes:
            rows = [dataclasses.asdict(example) for example in self.examples(train_task)]
            self._example_hashes[train_task.name] = content_hash(rows)
        return self._example_hashes[train_task.name]

    def engine(self, folder: Path) -> Any:
        """The engine with the checkpoint in ``folder`` loaded."""
        base = self.seed_folder if folder.is_relative_to(self.out) else None  # of an adapter trained here
        model = models.load_model(folder, self.config.responses.dtype, self.device, base=base)
        tokenizer = models.load_tokenizer(folder)
        if folder not in self._noted and not chat.has_system_role(tokenizer):
            self._noted.add(folder)
            note = (
                f"{folder}: its chat template has no system role; system prompts open the user turn instead"
            )
            self.reporter.send(("note", None, note))
        return registry.load("engine", self.config.engine)(model, tokenizer, self.config.responses.batch_size)

    def safety_examples(self, train_task: TrainTask) -> list[Example]:
        """The recipe's safety data as training examples. Raises UsageError where there are none."""
        return data.safety_examples(train_task, self.config.safety_data)

    @cached_property
    def cache(self) -> Cache:
        return Cache(Path(self.config.cache or os.environ.get("HARNESS_CACHE") or "results/cache").absolute())

    def load_task(self, name: str, tokenizer_folder: Path) -> Any:
        """lm-eval's task dictionary for one of our tasks."""
        from lm_eval.tasks import TaskManager

        values: dict[str, Any] = {
            "tokenizer": str(tokenizer_folder),
            "data_files": {task: str(path) for task, path in self.config.data.items()},
            "token_exact": True,  # our engines take ids
        }
        if benchmarks.get(name).prefilled:
            values["prefill_tokens"] = self.config.safety.prefill_tokens
        manager = TaskManager(
            include_path=[str(folder) for folder in registry.task_folders()],
            include_defaults=False,
            metadata=values,
        )
        return manager.load([name])
