"""The untouched base model's log-probabilities of training answers: computed once, kept by content.

One float32 number a loss-carrying token. They are computed before there is an optimizer, shared among the
processes of a training, and stored under what they depend on: base model, token ids, precision. Every epoch,
seed and restart reads the same values, and no reference model stays in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file, save_file

from harness.config import TrainingConfig
from harness.contracts import Encoded
from harness.storage.files import Cache
from harness.training.logprobs import TargetHead, answer_logp

KIND = "seed-logp"
VERSION = 1
FILE = "logp.safetensors"


class SeedLogp:
    """What ``TrainContext.seed_logp`` calls. ``forward_tokens``, ``seconds``: what all calls cost when they
    were computed, be it now or in an earlier run; ``from_cache``: whether all were there already.

    ``identity``: what the model is (weights, tokenizer, libraries).
    """

    def __init__(
        self,
        model: Any,
        head: TargetHead,
        pad_id: int,
        settings: TrainingConfig,
        cache: Cache,
        identity: dict[str, Any],
    ):
        self.model, self.head, self.pad_id, self.settings = model, head, pad_id, settings
        self.cache, self.identity = cache, identity
        self.forward_tokens, self.seconds, self.from_cache = 0, 0.0, True
        self.scored: list[Encoded] = []

    def __call__(self, examples: Sequence[Encoded]) -> list[list[float]]:
        self.scored += examples
        self.forward_tokens += sum(len(example.input_ids) for example in examples)
        inputs = {
            "version": VERSION,
            "seed_model": self.identity,
            "precision": [self.settings.dtype, self.settings.tuning == "qlora"],
            "examples": _digest(examples),
        }
        found = self.cache.entry(KIND, inputs, [FILE]).done()
        if _several():
            found = _from_first(found)
        self.from_cache &= found
        if found:
            folder = self.cache.fetch(KIND, inputs, [FILE], _missing)[0]
        else:
            start = time.perf_counter()
            values = self._compute(examples)
            made_in = time.perf_counter() - start

            def write(scratch: Path) -> None:
                flat = torch.tensor([value for row in values for value in row], dtype=torch.float32)
                lengths = torch.tensor([len(row) for row in values])
                seconds = torch.tensor(made_in, dtype=torch.float64)
                save_file({"logp": flat, "lengths": lengths, "seconds": seconds}, scratch / FILE)

            if _rank() == 0:
                self.cache.fetch(KIND, inputs, [FILE], write)
            if _several():
                torch.distributed.barrier()
            folder = self.cache.entry(KIND, inputs, [FILE]).folder
        stored = load_file(folder / FILE)
        self.seconds += stored["seconds"].item()
        return [row.tolist() for row in stored["logp"].split(stored["lengths"].tolist())]

    def _compute(self, examples: Sequence[Encoded]) -> list[list[float]]:
        """Each process scores its share; all get all."""
        world = torch.distributed.get_world_size() if _several() else 1
        mine = answer_logp(self.model, self.head, examples[_rank() :: world], self.pad_id, self.settings)
        if world == 1:
            return mine
        shares: list[list[list[float]]] = [[] for _ in range(world)]
        torch.distributed.all_gather_object(shares, mine)
        dealt = itertools.chain.from_iterable(itertools.zip_longest(*shares))
        return [values for values in dealt if values is not None]


def _digest(examples: Sequence[Encoded]) -> str:
    """What the values belong to: all token ids, and which carry loss."""
    rows = [[example.input_ids, [int(flag) for flag in example.trained]] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _missing(scratch: Path) -> None:
    raise RuntimeError("the stored values vanished while they were read")


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _several() else 0


def _from_first(value: bool) -> bool:
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
