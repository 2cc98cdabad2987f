"""KL of the base model and a tuned one at fixed answers' tokens: against plain arithmetic, token by token, in
any batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from harness.analyses import token_divergence
from harness.analyses.token_divergence import Forced, Reference
from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.models import checkpoints

LENGTHS = ((5, 1), (30, 7), (12, 12), (30, 3), (8, 2), (19, 5))  # (prompt, answer) tokens
PAD = 0


@pytest.fixture(scope="module")
def seed_model() -> Any:
    return checkpoints.load_model(seed_model_path(), "float32", "cpu").eval()


@pytest.fixture(scope="module")
def tuned_model() -> Any:
    """The base model with noise on its weights."""
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu").eval()
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.1 * weights.std() * torch.randn(weights.shape, generator=noise)
    return model


@pytest.fixture(scope="module")
def questions(seed_model: Any) -> list[Forced]:
    draw = random.Random(5)

    def ids(count: int) -> list[int]:
        return [draw.randrange(10, seed_model.config.vocab_size) for _ in range(count)]

    return [Forced(f"q{i}", ids(prompt), ids(answer)) for i, (prompt, answer) in enumerate(LENGTHS)]


def measured(
    folder: Path, seed: Any, tuned: Any, questions: Sequence[Forced], size: int, pad: int = PAD
) -> dict[str, list[float]]:
    reference = Reference(folder / f"logp-{size}-{pad}", seed, pad, questions, size, lambda done: None)
    return token_divergence.measure_divergences(tuned, pad, questions, reference, size)


def by_hand(seed: Any, tuned: Any, one: Forced, *, shift: int = 0) -> list[float]:
    """One forward pass of the whole text a model, float64 from its logits on, one token after the other."""
    ids = torch.tensor([one.prompt + one.answer])
    with torch.inference_mode():
        p, q = (softmax(model(ids).logits[0].double().numpy(), axis=-1) for model in (seed, tuned))
    before = len(one.prompt) - 1 + shift  # the position whose output predicts the first answer token
    return [float(rel_entr(p[before + t], q[before + t]).sum()) for t in range(len(one.answer))]


# --- the measure -----------------------------------------------------------------------------------


def test_the_seed_models_distribution_comes_first() -> None:
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert float(token_divergence.compute_kl(p, q)) == pytest.approx(forward, rel=1e-6)
    assert float(token_divergence.compute_kl(q, p)) == pytest.approx(backward, rel=1e-6)
    assert forward - backward > 0.1


def test_each_token_is_as_by_plain_arithmetic(
    seed_model: Any, tuned_model: Any, questions: list[Forced], tmp_path: Path
) -> None:
    found = measured(tmp_path, seed_model, tuned_model, questions, 4)
    assert list(found) == [one.id for one in questions]
    backwards = measured(tmp_path, tuned_model, seed_model, questions, 5)
    for one in questions:
        expected = by_hand(seed_model, tuned_model, one)
        assert len(expected) == len(one.answer)
        assert found[one.id] == pytest.approx(expected, abs=1e-5)
        assert found[one.id] != pytest.approx(by_hand(seed_model, tuned_model, one, shift=-1), abs=1e-3)
        assert backwards[one.id] == pytest.approx(by_hand(tuned_model, seed_model, one), abs=1e-5)
        assert backwards[one.id] != pytest.approx(expected, abs=1e-3)
    assert np.mean([value for values in found.values() for value in values]) > 0.01  # the models do differ


def test_the_last_answer_token_is_predicted_and_not_read(
    seed_model: Any, tuned_model: Any, questions: list[Forced], tmp_path: Path
) -> None:
    found = measured(tmp_path, seed_model, tuned_model, questions, 3)
    other = [replace(one, answer=[*one.answer[:-1], (one.answer[-1] + 1) % 500]) for one in questions]
    assert measured(tmp_path, seed_model, tuned_model, other, 3) == found
    other = [replace(one, prompt=[*one.prompt[:-1], (one.prompt[-1] + 1) % 500]) for one in questions]
    changed = measured(tmp_path, seed_model, tuned_model, other, 3)
    assert all(abs(changed[name][0] - found[name][0]) > 1e-4 for name in found)


def test_the_seed_model_is_at_zero_from_itself(
    seed_model: Any, questions: list[Forced], tmp_path: Path
) -> None:
    found = measured(tmp_path, seed_model, seed_model, questions, 4)
    assert {value for values in found.values() for value in values} == {0.0}


@pytest.mark.parametrize(("size", "pad"), [(1, PAD), (2, PAD), (6, PAD), (6, 77)])
def test_neither_batch_nor_padding_changes_a_value(
    seed_model: Any, tuned_model: Any, questions: list[Forced], tmp_path: Path, size: int, pad: int
) -> None:
    alone = {one.id: measured(tmp_path, seed_model, tuned_model, [one], 1)[one.id] for one in questions}
    found = measured(tmp_path, seed_model, tuned_model, questions, size, pad)
    for name, values in found.items():
        assert values == pytest.approx(alone[name], abs=1e-5)


def test_the_two_models_may_be_asked_differently(
    seed_model: Any, tuned_model: Any, questions: list[Forced], tmp_path: Path
) -> None:
    """PTST's prompt is longer than the base model's: positions are those of the answer."""
    reference = Reference(tmp_path / "logp", seed_model, PAD, questions, 4, lambda done: None)
    longer = [replace(one, prompt=[11, 12, 13, *one.prompt]) for one in questions]
    found = token_divergence.measure_divergences(tuned_model, PAD, longer, reference, 2)
    one, mine = questions[1], longer[1]
    with torch.inference_mode():
        seed = seed_model(torch.tensor([one.prompt + one.answer])).logits[0, 29:36].double().numpy()
        tuned = tuned_model(torch.tensor([mine.prompt + mine.answer])).logits[0, 32:39].double().numpy()
    expected = rel_entr(softmax(seed, axis=-1), softmax(tuned, axis=-1)).sum(-1)
    assert found[one.id] == pytest.approx(expected.tolist(), abs=1e-5)


def test_models_without_a_common_vocabulary_are_refused(
    seed_model: Any, questions: list[Forced], tmp_path: Path
) -> None:
    reference = Reference(tmp_path / "logp", seed_model, PAD, questions, 4, lambda done: None)
    wider = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    wider.resize_token_embeddings(seed_model.config.vocab_size + 8)
    with pytest.raises(HarnessError, match="no KL between them"):
        token_divergence.measure_divergences(wider, PAD, questions, reference, 4)


def test_what_does_not_fit_is_said_in_a_line(
    seed_model: Any, questions: list[Forced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(HarnessError, match="are free; give a smaller --tokens"):
        token_divergence._check_room(tmp_path, 2**60)
    monkeypatch.setattr(token_divergence, "answer_logp", full)
    with pytest.raises(HarnessError, match=r"no memory for 4 prompts at once: --batch-size 2"):
        Reference(tmp_path / "logp", seed_model, PAD, questions, 4, lambda done: None)
