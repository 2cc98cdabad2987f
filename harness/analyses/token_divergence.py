"""KL(base || tuned) at each token of fixed answers, and its means.

Both models read the same answer, teacher-forced, and neither writes. Token t's distribution is the one that
predicts it. The base model's log-probabilities wait in a file: float32, 4 bytes a token of the vocabulary and
of the answers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.contracts import HarnessError
from harness.leaderboard.statistics import mean

FIRST = (2, 4, 6, 8)  # tokens over which the paper takes the mean


@dataclass(frozen=True, slots=True)
class Forced:
    """A request and the beginning of a fixed answer to it, as token ids."""

    id: str
    prompt: list[int]
    answer: list[int]


def compute_kl(seed: Any, tuned: Any) -> Any:
    """KL(base || tuned) in nats, (N,), from float32 log-probabilities (N, V)."""
    from torch.nn.functional import kl_div

    return kl_div(tuned, seed, reduction="none", log_target=True).sum(-1).clamp_min(0)


def answer_logp(model: Any, batch: Sequence[Forced], pad_id: int) -> Any:
    """float32 (N, V): the log-probabilities of the whole vocabulary at every answer token of the batch, one
    answer after the other. Logits are made from the first answer's beginning on alone."""
    import torch

    rows = [one.prompt + one.answer[:-1] for one in batch]  # the last token is predicted, not read
    width, first = max(map(len, rows)), min(len(one.prompt) for one in batch) - 1
    ids = torch.full((len(rows), width), pad_id)
    for row, tokens in enumerate(rows):  # padding on the right, where causal attention never looks
        ids[row, : len(tokens)] = torch.tensor(tokens)
    attention = (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()
    with torch.inference_mode():
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=attention.to(model.device),
            use_cache=False,
            logits_to_keep=width - first,
        ).logits[:, first - width :]  # (B, width - first, V)
        spans = [
            logits[row, len(one.prompt) - 1 - first : len(rows[row]) - first] for row, one in enumerate(batch)
        ]
        return torch.cat(spans).float().log_softmax(-1)


def make_batches(questions: Sequence[Forced], size: int) -> list[list[Forced]]:
    """Of like length, so that little is padded."""
    ordered = sorted(questions, key=lambda one: (len(one.prompt), len(one.answer), one.id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


class Reference:
    """The base model's log-probabilities at every answer token, in a file: (answer tokens, V) float32."""

    def __init__(self, file: Path, model: Any, pad_id: int, questions: Sequence[Forced], size: int,
                 advance: Callable[[int], None]):  # fmt: skip
        import numpy as np

        self._start: dict[str, int] = {}
        self._table: Any = None
        tokens = sum(len(one.answer) for one in questions)
        filled = 0
        for batch in make_batches(questions, size):
            logp = _run_forward(model, batch, pad_id).cpu().numpy()
            if self._table is None:
                _check_room(file.parent, 4 * tokens * logp.shape[1])
                self._table = np.memmap(file, np.float32, "w+", shape=(tokens, logp.shape[1]))
            self._table[filled : filled + len(logp)] = logp
            for one in batch:
                self._start[one.id] = filled
                filled += len(one.answer)
            advance(len(batch))

    def rows(self, batch: Sequence[Forced]) -> Any:
        """Of a batch's answers, one after the other, (N, V)."""
        import numpy as np
        import torch

        spans = [self._table[self._start[one.id] :][: len(one.answer)] for one in batch]
        return torch.from_numpy(np.concatenate(spans))


def measure_divergences(
    model: Any,
    pad_id: int,
    questions: Sequence[Forced],
    reference: Reference,
    size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """KL(base || model) in nats at each answer token, by question. Raises HarnessError where the two models
    have no common vocabulary."""
    found = {}
    for batch in make_batches(questions, size):
        tuned = _run_forward(model, batch, pad_id)
        seed = reference.rows(batch)
        if seed.shape != tuned.shape:
            raise HarnessError(
                f"it predicts {tuned.shape[1]:,} tokens, the base model {seed.shape[1]:,}: no KL between them"
            )
        values = compute_kl(seed.to(tuned.device), tuned).cpu()
        for one, part in zip(batch, values.split([len(one.answer) for one in batch]), strict=True):
            found[one.id] = part.tolist()
        advance(len(batch))
    return {one.id: found[one.id] for one in questions}


def _run_forward(model: Any, batch: Sequence[Forced], pad_id: int) -> Any:
    import torch

    try:
        return answer_logp(model, batch, pad_id)
    except torch.OutOfMemoryError:
        pass
    smaller = f"--batch-size {len(batch) // 2}" if len(batch) > 1 else "--dtype bfloat16"
    raise HarnessError(f"the device has no memory for {len(batch)} prompts at once: {smaller}")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise HarnessError(
            f"{folder}: the base model's log-probabilities take {needed / 2**30:.1f} GiB for a while and "
            f"{free / 2**30:.1f} GiB are free; give a smaller --tokens"
        )


def summarize(values: Mapping[str, Sequence[float]], tokens: int) -> dict[str, Any]:
    """``n`` prompts; ``positions``: the mean KL at each, over the prompts whose answers reach it; ``first``:
    over the first k tokens, the mean of the prompts' own means (of what a shorter answer has)."""
    every = list(values.values())
    positions: list[dict[str, Any]] = [
        {"position": place + 1, **_estimate(one[place] for one in every if len(one) > place)}
        for place in range(tokens)
    ]
    first: list[dict[str, Any]] = [
        {"tokens": k, **_estimate(fmean(one[:k]) for one in every)} for k in FIRST if k <= tokens
    ]
    return {"n": len(every), "positions": positions, "first": first}


def _estimate(values: Iterable[float]) -> dict[str, Any]:
    found = asdict(mean(values))
    del found["unjudged"]
    return found
