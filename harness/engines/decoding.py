"""One batch of prompts, continued by transformers' own ``generate``; rows leave it when their answers end.

An answer that does not end would hold its whole batch. So ``generate`` is called in pieces: a piece ends when
a share of its rows has ended, these are dropped from the key-value cache, and the others go on. When that
happens depends on the tokens alone, so that one batch gives the same answers each time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from harness.contracts import HarnessError

LEAVING = 1 / 4  # of a piece's rows: so many that have ended leave together
STEP = 256  # tokens: the length of a static cache is a multiple of it, so that few are compiled
# Layers of a cache that hold keys and values by row and nothing else. Others have further states.
REDUCIBLE = ("DynamicLayer", "DynamicSlidingWindowLayer")


class Drawing(NamedTuple):
    """How the tokens of a batch are drawn."""

    temperature: float
    top_p: float
    seed: int


class Sampling(NamedTuple):
    """The draws of a part of a batch: the ``places`` of its rows among the ``of`` rows of the whole. What is
    drawn for a row does not depend on the part."""

    drawing: Drawing
    places: Sequence[int]
    of: int


class Decoder:
    """Continues prompts with ``model``. ``static``: with a cache of fixed length, which transformers compiles
    on CUDA (on a CPU it only costs). ``whole``: why rows stay in a batch to its end; None where they leave.
    """

    def __init__(self, model: Any, stop_ids: Collection[int], pad_id: int, *, static: bool = False):
        self._model, self._static = model, static
        self._stop_ids, self._pad_id = sorted(stop_ids), pad_id
        self.whole = "its cache has a fixed length" if static else _state_elsewhere(model)

    def answers(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """The continuation of each prompt up to its first stop token, that included."""
        if self.whole is None:
            found = self._in_pieces(
                _Rows(prompts, self._pad_id, self._model.device), max_new_tokens, sampling
            )
            if found is not None:
                return found
        rows = _Rows(prompts, self._pad_id, self._model.device)
        draws = None if sampling is None else _Draws(sampling, self._model.device)
        cache = self._fixed(rows.width + max_new_tokens) if self._static else None
        self._piece(rows, max_new_tokens, draws, cache, enough=len(prompts))
        return self._cut(rows)

    def _in_pieces(
        self, rows: _Rows, max_new_tokens: int, sampling: Sampling | None
    ) -> list[list[int]] | None:
        """None where rows cannot leave: ``whole`` says why from then on."""
        found: dict[int, list[int]] = {}
        end, cache = rows.width + max_new_tokens, None
        draws = None if sampling is None else _Draws(sampling, self._model.device)
        while True:
            enough = math.ceil(LEAVING * len(rows.places))
            cache = self._piece(rows, end - rows.ids.shape[1], draws, cache, enough)
            answers = self._cut(rows)
            ended = [answer[-1] in self._stop_ids or rows.ids.shape[1] == end for answer in answers]
            found |= {
                place: answer for place, answer, done in zip(rows.places, answers, ended, strict=True) if done
            }
            if all(ended):
                return [answer for _, answer in sorted(found.items())]
            self.whole = _irreducible(cache, rows.ids.shape[1] - 1)
            if self.whole is not None:
                return None
            kept = torch.tensor([row for row, done in enumerate(ended) if not done], device=rows.ids.device)
            rows.keep(kept)
            cache.batch_select_indices(kept)
            if draws is not None:
                draws.keep(kept)

    def _piece(self, rows: _Rows, max_new_tokens: int, draws: _Draws | None, cache: Any, enough: int) -> Any:
        """Continue ``rows`` until ``enough`` of them have ended; the cache comes back."""
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._stop_ids,
            pad_token_id=self._pad_id,
            return_dict_in_generate=True,
        )
        output = self._model.generate(
            input_ids=rows.ids,
            attention_mask=rows.attention,
            generation_config=config,
            logits_processor=LogitsProcessorList() if draws is None else draws.chain(),
            stopping_criteria=StoppingCriteriaList([_Ended(self._stop_ids, rows.ids, enough)]),
            **({} if cache is None else {"past_key_values": cache}),
        )
        rows.grown(output.sequences)
        if draws is not None:
            draws.check()
        return output.past_key_values

    def _cut(self, rows: _Rows) -> list[list[int]]:
        """What has been generated in each row, up to its first stop token."""
        return [_until(ids, self._stop_ids) for ids in rows.ids[:, rows.width :].tolist()]

    def _fixed(self, tokens: int) -> StaticCache:
        """A cache whose length depends on its batch alone. One that transformers makes is as long as the
        longest before it, and a resumed run has other batches before it."""
        model = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            name = type(model).__name__
            raise HarnessError(f"{name} takes no cache of fixed length: set responses.static_cache=false")
        config = model.config.get_text_config(decoder=True)
        return StaticCache(config=config, max_cache_len=math.ceil(tokens / STEP) * STEP)


class _Rows:
    """The rows of a batch that still go on. ``ids`` (B, T) with prompts padded on the left to ``width``,
    ``attention`` (B, T), ``places`` (B) among the batch's prompts."""

    def __init__(self, prompts: Sequence[list[int]], pad_id: int, device: torch.device):
        self.places = list(range(len(prompts)))
        self.width = max(map(len, prompts))
        ids = torch.full((len(prompts), self.width), pad_id)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, self.width - len(prompt) :] = torch.tensor(prompt)
            attention[row, self.width - len(prompt) :] = 1
        self.ids, self.attention = ids.to(device), attention.to(device)

    def grown(self, ids: Tensor) -> None:
        new = self.attention.new_ones(len(ids), ids.shape[1] - self.ids.shape[1])
        self.ids, self.attention = ids, torch.cat([self.attention, new], dim=1)

    def keep(self, kept: Tensor) -> None:
        self.ids, self.attention = self.ids[kept], self.attention[kept]
        self.places = [self.places[row] for row in kept.tolist()]


class _Ended(StoppingCriteria):
    """Ends a piece when ``enough`` of its rows have ended. Nothing here waits for the device."""

    def __init__(self, stop_ids: Sequence[int], ids: Tensor, enough: int):
        self._stop_ids, self._enough = torch.tensor(stop_ids, device=ids.device), enough
        self._ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        self._ended |= torch.isin(input_ids[:, -1], self._stop_ids)
        return (self._ended.sum() >= self._enough).expand(len(self._ended))


class _Draws(LogitsProcessor):
    """Scores whose largest is the token that ``torch.multinomial`` would draw for the row in its whole batch:
    the largest of p / q, where q is exponentially distributed. So rows may leave, and a batch may be decoded
    in parts, without a change in what is drawn for the others."""

    def __init__(self, sampling: Sampling, device: torch.device):
        self._sampling = sampling
        self._rows = torch.tensor(sampling.places, device=device)
        self._generator = torch.Generator(device).manual_seed(sampling.drawing.seed)
        self._numbers = torch.ones((), dtype=torch.bool, device=device)

    def chain(self) -> LogitsProcessorList:
        temperature, top_p, _ = self._sampling.drawing
        return LogitsProcessorList(
            [
                *([TemperatureLogitsWarper(temperature)] if temperature != 1 else []),
                *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
                self,
            ]
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = scores.new_empty(self._sampling.of, scores.shape[1]).exponential_(generator=self._generator)
        likely = scores.softmax(dim=-1)
        self._numbers &= likely.isfinite().all()
        return likely / noise[self._rows]

    def keep(self, kept: Tensor) -> None:
        self._rows = self._rows[kept]

    def check(self) -> None:
        """Raises HarnessError for a model whose probabilities are no numbers."""
        if not self._numbers:
            raise HarnessError("the model's probabilities are no numbers: its weights may be damaged")


def _until(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    return ids if end is None else ids[: end + 1]


def _state_elsewhere(model: Any) -> str | None:
    """Why rows cannot leave a batch of ``model``, where that shows before it has a cache."""
    if getattr(model, "_is_stateful", False):
        return f"{type(model).__name__} has states besides keys and values"
    if any(hasattr(module, "rope_deltas") for module in model.modules()):
        return f"{type(model).__name__} keeps positions by row"
    return None


def _irreducible(cache: Any, tokens: int) -> str | None:
    """Why rows of a cache of so many tokens cannot be dropped; None where they can."""
    if not hasattr(cache, "batch_select_indices") or not hasattr(cache, "layers"):
        return f"its cache is of another kind ({type(cache).__name__})"
    strange = sorted({type(layer).__name__ for layer in cache.layers} - {*REDUCIBLE})
    if strange:
        return f"its cache has layers of another kind ({', '.join(strange)})"
    if cache.get_seq_length() != tokens:
        return "its cache does not hold the whole text"
    return None
