"""transformers as an engine: batched greedy decoding on ids, sorted by length, left-padded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from harness.engines.base import IdEngine


class HFEngine(IdEngine):
    """``model`` is a loaded causal language model, ``tokenizer`` its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int):
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        eos = model.generation_config.eos_token_id
        declared = eos if isinstance(eos, list) else [eos]
        self._stop_ids = {token for token in [*declared, tokenizer.eos_token_id] if token is not None}
        self._pad_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
        # generate() fills what a call leaves open from the model's own configuration, which may sample,
        # penalise repetition or forbid an early end: nothing of it may reach a greedy answer.
        model.generation_config = GenerationConfig()

    @property
    def stop_ids(self) -> set[int]:
        return self._stop_ids

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        config = GenerationConfig(
            **(sampling if temperature > 0 else {"do_sample": False}),
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self._stop_ids),
            pad_token_id=self._pad_id,
        )
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            width = max(len(prompts[index]) for index in rows)
            ids = torch.full((len(rows), width), self._pad_id)
            attention = torch.zeros((len(rows), width), dtype=torch.long)
            for row, index in enumerate(rows):
                ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
                attention[row, width - len(prompts[index]) :] = 1
            with _own_draws(seed + start, self.model.device) if temperature > 0 else contextlib.nullcontext():
                output = self.model.generate(
                    input_ids=ids.to(self.model.device),
                    attention_mask=attention.to(self.model.device),
                    generation_config=config,
                )
            for index, generated in zip(rows, output[:, width:].tolist(), strict=True):
                found[index] = self._until_stop(generated)
            self.on_progress(len(rows))
        return [found[index] for index in range(len(prompts))]

    def _until_stop(self, ids: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(ids) if token in self._stop_ids), None)
        return ids if end is None else ids[: end + 1]


@contextlib.contextmanager
def _own_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Random draws from ``seed``, and the process's own state (CPU and ``device``) as it was afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
