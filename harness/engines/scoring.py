"""Log-probabilities of continuations by a loaded transformers model, the logits of no other position made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

AT_ONCE = 256  # positions whose logits are float32 at once
LOGIT_BYTES = 2**30  # of logits in the model's own precision at once
VOCABULARY = 2**18  # no more is taken to be a model's, where its embedding does not tell


@torch.inference_mode()
def logprobs(
    model: Any, pairs: Sequence[tuple[list[int], list[int]]], pad_id: int, embedding_rows: int
) -> list[tuple[float, bool]]:
    """For each (context ids, continuation ids): the continuation's log-probability, and whether each of its
    tokens is the likeliest. ``embedding_rows``: of the model's embedding, what its vocabulary has at most."""
    inputs = _padded([context + continuation for context, continuation in pairs], pad_id)
    width = inputs["input_ids"].shape[1]
    spans = [
        (row * width + len(context) - 1, len(continuation))
        for row, (context, continuation) in enumerate(pairs)
    ]
    before = torch.cat([torch.arange(start, start + length) for start, length in spans])
    device = model.device
    wanted = torch.tensor([token for _, continuation in pairs for token in continuation], device=device)
    logp: list[torch.Tensor] = []
    best: list[torch.Tensor] = []
    done = 0
    size = min(embedding_rows, VOCABULARY) * model.dtype.itemsize
    parts = before.to(device).split(max(1, LOGIT_BYTES // size))
    for logits in _logits(model, parts, **{name: values.to(device) for name, values in inputs.items()}):
        for some in logits.split(AT_ONCE):
            exact, right = some.float(), wanted[done : done + len(some)].to(some.device)
            logp.append(exact.log_softmax(-1).gather(-1, right[:, None])[:, 0])
            best.append(exact.argmax(-1) == right)
            done += len(some)
    lengths = [length for _, length in spans]
    found = zip(torch.cat(logp).cpu().split(lengths), torch.cat(best).cpu().split(lengths), strict=True)
    return [(float(values.sum()), bool(hits.all())) for values, hits in found]


def _padded(rows: Sequence[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Padded on the right, where causal attention never looks."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    attention = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    return {"input_ids": ids, "attention_mask": attention.long()}


def _logits(model: Any, parts: Sequence[torch.Tensor], **inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """(n, V), one part after the other: at the positions of the flattened rows that ``parts`` hold. Where the
    model has an output head to itself, that sees no other position, and only a part's logits are made at
    once: the logits of all are the largest part of a pass."""
    with _layers_once(model):
        for part in parts:
            with _head_at(model, part):
                logits: torch.Tensor = model(**inputs, use_cache=False).logits
            if logits.shape[:2] == inputs["input_ids"].shape:  # a head that uses its weights another way
                yield logits.flatten(0, 1).index_select(0, torch.cat([*parts]))
                return
            yield logits[0]


@contextlib.contextmanager
def _head_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """The output head of ``model``, where it has one to itself, sees ``positions`` of the flattened rows and
    no other, as one row."""

    def select(head: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].flatten(0, 1).index_select(0, positions)[None], *given[1:])

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if isinstance(head, torch.nn.Module) else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


@contextlib.contextmanager
def _layers_once(model: Any) -> Iterator[None]:
    """The layers of ``model`` work at their first call, and any further one, which has the same inputs, gets
    what they made then. So the model's own way from there to logits can be gone for other positions."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # below an adapter
    layers = model.get_decoder() if hasattr(model, "get_decoder") else None
    if layers is None or layers is model:
        yield
        return
    own, before = layers.forward, vars(layers).get("forward")
    made: list[Any] = []

    def forward(*given: Any, **more: Any) -> Any:
        if not made:
            made.append(own(*given, **more))
        return made[0]

    layers.forward = forward
    try:
        yield
    finally:
        del layers.forward
        if before is not None:
            layers.forward = before
