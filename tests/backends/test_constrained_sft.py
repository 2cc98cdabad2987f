"""Constrained SFT is the paper's objective (eq. 2-3): value, gradient, positions, reference."""

from __future__ import annotations

import dataclasses
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from backends import constrained_sft
from backends.constrained_sft import ConstrainedSFT, constrained_loss, token_betas
from backends.vanilla import Vanilla
from harness.contracts import Encoded, LossInputs, TrainContext
from harness.models import chat


def beta_at(position: int) -> float:
    """RECIPE §3, written out: the 1-based position in the answer to b_t."""
    return 0.5 if position == 1 else 2.0 if position <= 5 else 0.1


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """logp, ref_logp (B, T) float64 and a mask with prompts of different lengths, gaps and padding."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 14))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 2.0, 20.0]))
    logp, ref_logp = (
        -scale * torch.rand(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    return logp, ref_logp, mask.view(rows, columns)


def closed_form(
    logp: Tensor, ref_logp: Tensor, mask: Tensor, min_weight: float = 0.0
) -> tuple[float, Tensor]:
    """The mean of -(2/b) log sigmoid(b d) and its gradient -w/n, token by token in plain Python."""
    value, gradient = 0.0, torch.zeros_like(logp)
    count = max(int(mask.sum()), 1)
    for row in range(mask.shape[0]):
        position = 0
        for column in range(mask.shape[1]):
            if not mask[row, column]:
                continue
            position += 1
            b, d = beta_at(position), float(logp[row, column] - ref_logp[row, column])
            value += 2 / b * math.log1p(math.exp(-b * d)) / count
            gradient[row, column] = -max(2 * (1 - sigmoid(b * d)), min_weight) / count
    return value, gradient


def test_a_recipes_options_are_read() -> None:
    """By pydantic, by the types of the fields that are options; others are no business of a recipe's."""
    read = TypeAdapter(ConstrainedSFT).validate_python({"min_weight": None})
    assert read == ConstrainedSFT()
    assert TypeAdapter(ConstrainedSFT).validate_python({"min_weight": 2}).min_weight == 2
    with pytest.raises(ValidationError):
        TypeAdapter(ConstrainedSFT).validate_python({"min_weight": "many"})
    assert repr(ConstrainedSFT()) == (
        "ConstrainedSFT(beta=0.1, first_factor=5.0, early_factor=20.0, early_tokens=5, min_weight=None)"
    )
    options = [field.name for field in dataclasses.fields(ConstrainedSFT) if field.init]
    assert options == [
        "beta",
        "first_factor",
        "early_factor",
        "early_tokens",
        "min_weight",
    ]


@given(cases())
@settings(max_examples=150, deadline=None)
def test_value_and_gradient_equal_the_closed_form(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logp, ref_logp, mask = case
    logp.requires_grad_()
    loss = constrained_loss(logp, ref_logp, mask)
    loss.backward()
    value, gradient = closed_form(logp.detach(), ref_logp, mask)
    assert loss.dtype == torch.float64
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=1e-12, abs=1e-12)
    assert logp.grad is not None
    assert (logp.grad - gradient).abs().max() < 1e-9


@given(cases(), st.sampled_from([1e-3, 0.5, 1.5]))
@settings(max_examples=60, deadline=None)
def test_min_weight_clamps_the_gradient_from_below(
    case: tuple[Tensor, Tensor, Tensor], min_weight: float
) -> None:
    logp, ref_logp, mask = case
    logp.requires_grad_()
    constrained_loss(logp, ref_logp, mask, min_weight=min_weight).backward()
    assert logp.grad is not None
    expected = closed_form(logp.detach(), ref_logp, mask, min_weight)[1]
    assert (logp.grad - expected).abs().max() < 1e-9


def test_the_clamp_holds_where_the_weight_would_vanish() -> None:
    """d = 20 at a token with b = 2: w = 2 sigmoid(-40), far under SvD's 1e-3."""
    logp = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    ref_logp = torch.full((1, 2), -20.0, dtype=torch.float64)
    constrained_loss(logp, ref_logp, torch.ones(1, 2, dtype=torch.bool), min_weight=1e-3).backward()
    assert logp.grad is not None
    assert logp.grad[0, 1].item() == pytest.approx(-1e-3 / 2, abs=1e-12)


def test_betas_go_by_position_in_the_answer() -> None:
    """The same answer after prompts of 0, 3 and 6 tokens and with gaps: b is read off the gradient."""
    mask = torch.zeros(4, 14, dtype=torch.bool)
    mask[0, :8] = mask[1, 3:11] = mask[2, 6:14] = True
    mask[3, [1, 2, 5, 6, 9, 10, 12, 13]] = True
    difference = 0.7
    logp = torch.zeros(4, 14, dtype=torch.float64, requires_grad=True)
    constrained_loss(logp, logp.detach() - difference, mask, token_count=1).backward()
    assert logp.grad is not None
    weight = -logp.grad[mask].view(4, 8) / 2  # 1 - sigmoid(b d)
    betas = torch.log(1 / weight - 1) / difference
    expected = torch.tensor([0.5, 2.0, 2.0, 2.0, 2.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    assert (betas - expected).abs().max() < 1e-9


def test_at_the_seed_model_the_gradient_is_sfts() -> None:
    torch.manual_seed(1)
    logp = -torch.rand(3, 9, dtype=torch.float64)
    mask = torch.rand(3, 9) < 0.6
    constrained, plain = logp.clone().requires_grad_(), logp.clone().requires_grad_()
    constrained_loss(constrained, logp, mask).backward()
    inputs = LossInputs(plain, mask, [], mask.sum(), None, 1)
    Vanilla().loss(inputs).backward()
    assert constrained.grad is not None
    assert plain.grad is not None
    assert (constrained.grad - plain.grad).abs().max() < 1e-12
    assert plain.grad.abs().max() > 0


@pytest.mark.parametrize("min_weight", [None, 1e-3])
def test_nothing_to_train_on_is_zero(min_weight: float | None) -> None:
    logp = torch.randn(2, 5, requires_grad=True)
    loss = constrained_loss(
        logp, torch.randn(2, 5), torch.zeros(2, 5, dtype=torch.bool), min_weight=min_weight
    )
    loss.backward()
    assert loss.item() == 0.0
    assert logp.grad is not None
    assert (logp.grad == 0).all()


@pytest.mark.parametrize("min_weight", [None, 1e-3])
@pytest.mark.parametrize("rubbish", [-math.inf, math.inf, math.nan, 1e30])
def test_what_is_masked_out_cannot_matter(rubbish: float, min_weight: float | None) -> None:
    torch.manual_seed(2)
    mask = torch.tensor([[False, True, True, False], [False, False, True, False]])
    logp, ref_logp = -torch.rand(2, 4, dtype=torch.float64), -torch.rand(2, 4, dtype=torch.float64)
    results = []
    for fill in (0.0, rubbish):
        given_logp = logp.masked_fill(~mask, fill).requires_grad_()
        loss = constrained_loss(given_logp, ref_logp.masked_fill(~mask, -fill), mask, min_weight=min_weight)
        loss.backward()
        assert given_logp.grad is not None
        results.append((loss.item(), given_logp.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][~mask] == 0).all()


def test_token_count_makes_micro_batches_add_up() -> None:
    torch.manual_seed(3)
    logp, ref_logp = -torch.rand(4, 9, dtype=torch.float64), -torch.rand(4, 9, dtype=torch.float64)
    mask = torch.rand(4, 9) < torch.tensor([[0.2], [0.9], [0.5], [0.7]])
    whole = constrained_loss(logp, ref_logp, mask)
    parts = [
        constrained_loss(logp[i : i + 1], ref_logp[i : i + 1], mask[i : i + 1], token_count=mask.sum())
        for i in range(4)
    ]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item(), abs=1e-12)
    assert constrained_loss(logp, ref_logp, mask, token_count=2 * int(mask.sum())).item() == pytest.approx(
        whole.item() / 2, abs=1e-12
    )


def test_each_row_meets_the_reference_of_its_own_example() -> None:
    """Rows in another order than the examples', with answers of different lengths."""
    lengths = {"a": (2, 7), "b": (4, 3), "c": (1, 5), "d": (3, 1)}
    reference = {
        name: [-(i + 1.0) - 0.01 * t for t in range(lengths[name][1])] for i, name in enumerate(lengths)
    }
    examples = [
        Encoded(name, list(range(1 + prompt + answer)), [False] * (1 + prompt) + [True] * answer)
        for name, (prompt, answer) in lengths.items()
    ]
    method = ConstrainedSFT()
    method.before_training(
        "base model",
        TrainContext(
            examples,
            seed_logp=lambda scored: [reference[example.id] for example in scored],
            rng=random.Random(0),
        ),
    )
    torch.manual_seed(4)
    for ids in (["d", "a", "c"], ["b"], ["c", "c", "b", "a"]):
        mask = torch.zeros(len(ids), 10, dtype=torch.bool)
        expected_ref = torch.zeros(len(ids), 10, dtype=torch.float64)
        for row, name in enumerate(ids):
            answer = lengths[name][1]
            mask[row, :answer] = True
            expected_ref[row, :answer] = torch.tensor(reference[name], dtype=torch.float64)
        logp = -torch.rand(len(ids), 10, dtype=torch.float64)
        loss = method.loss(LossInputs(logp, mask, ids, 11, None, 1))
        expected = closed_form(logp, expected_ref, mask)[0] * int(mask.sum()) / 11
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_options_reach_the_loss() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    logp = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    method = ConstrainedSFT(beta=0.3, first_factor=2.0, early_factor=7.0, early_tokens=3)
    method.reference = {"x": [-1.0] * 4}
    method.loss(LossInputs(logp, mask, ["x"], 1, None, 1)).backward()
    assert logp.grad is not None
    betas = torch.log(2 / -logp.grad - 1)
    assert betas[0].tolist() == pytest.approx([0.6, 2.1, 2.1, 0.3])


@pytest.mark.parametrize("min_weight", [None, 1e-3, 0.5])
def test_the_methods_clamp_reaches_the_loss(min_weight: float | None) -> None:
    """d = 20 at the second token, where b = 2: without a clamp its gradient is all but 0."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    logp = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    method = ConstrainedSFT(min_weight=min_weight)
    method.reference = {"x": [-20.0, -20.0]}
    method.loss(LossInputs(logp, mask, ["x"], 1, None, 1)).backward()
    assert logp.grad is not None
    weights = [2 / (1 + math.exp(0.5 * 20)), 2 / (1 + math.exp(2 * 20))]
    assert (-logp.grad[0]).tolist() == pytest.approx([max(w, min_weight or 0.0) for w in weights], rel=1e-9)
    assert ConstrainedSFT().min_weight is None


def test_float32_and_the_surrogates_value() -> None:
    """The value with a clamp is -w log p, w held constant; a loss has the precision of ``logp``."""
    logp, ref_logp = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -2.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = constrained_loss(logp, ref_logp, mask, min_weight=1e-3)
    weights = [2 * (1 - sigmoid(0.5 * 1)), 2 * (1 - sigmoid(2.0 * -1))]
    assert loss.item() == pytest.approx((weights[0] * 1 + weights[1] * 3) / 2, rel=1e-6)
    assert loss.dtype == constrained_loss(logp, ref_logp, mask).dtype == torch.float32


def test_betas_alone() -> None:
    mask = torch.tensor([[False, True, True, False, True, True, True, True, True]])
    found = token_betas(mask)
    assert found.dtype == torch.float64
    assert found[mask].tolist() == pytest.approx([0.5, 2.0, 2.0, 2.0, 2.0, 0.1, 0.1])
    changed = token_betas(mask, beta=1.0, first_factor=3.0, early_factor=2.0, early_tokens=2)
    assert changed[mask].tolist() == pytest.approx([3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert (ConstrainedSFT().beta, ConstrainedSFT().first_factor) == (0.1, 5.0)
    assert (ConstrainedSFT().early_factor, ConstrainedSFT().early_tokens) == (20.0, 5)


def test_the_objective_is_called_by_names() -> None:
    """Each tensor may be named, and what is an option must be."""
    logp, mask = torch.tensor([[-1.0]]), torch.ones(1, 1, dtype=torch.bool)
    loss = constrained_loss(logp=logp, ref_logp=logp - 0.5, mask=mask)
    assert loss.item() == pytest.approx(closed_form(logp, logp - 0.5, mask)[0])
    with pytest.raises(TypeError, match="positional argument"):
        constrained_loss(logp, logp, mask, 2)  # type: ignore[misc]


def test_planning_a_run_waits_for_no_torch() -> None:
    """Which methods there are is known from their modules, and torch takes seconds."""
    code = "import sys; from backends.constrained_sft import ConstrainedSFT; print('torch' in sys.modules)"
    root = Path(constrained_sft.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_given_betas_are_taken() -> None:
    logp = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    betas = torch.tensor([[3.0]])
    constrained_loss(logp, logp.detach() - 1.0, mask, betas=betas).backward()
    assert logp.grad is not None
    assert -logp.grad.item() == pytest.approx(2 * (1 - sigmoid(3.0)))


def test_a_generator_of_references_that_loses_one_is_not_believed() -> None:
    examples = [Encoded(name, [1, 2], [False, True]) for name in "ab"]
    with pytest.raises(ValueError, match="shorter"):
        ConstrainedSFT().before_training(
            None, TrainContext(examples, seed_logp=lambda scored: [[-1.0]], rng=random.Random(0))
        )


def test_reference_is_the_untouched_models_even_after_training(
    make_model: Callable[..., Any],
    train: Callable[..., dict[str, Any]],
    encoded: list[Encoded],
    answer_logp: Callable[..., list[list[float]]],
) -> None:
    """Some answers are cut by max_length, and batches come shuffled; one number an answer token is kept."""
    shortest = min(len(example.input_ids) for example in encoded)
    examples = [cut for e in encoded[:24] if (cut := chat.truncate(e, shortest + 5)) is not None]
    assert len({len(example.input_ids) for example in examples}) > 1
    assert any(len(cut.input_ids) < len(e.input_ids) for cut, e in zip(examples, encoded, strict=False))
    method, model = ConstrainedSFT(), make_model()
    record = train(model, examples, method, epochs=2, micro_batch_size=2)
    untouched = answer_logp(make_model(), examples)
    tuned = answer_logp(model, examples)
    moved = 0.0
    for example, before, after in zip(examples, untouched, tuned, strict=True):
        assert len(method.reference[example.id]) == sum(example.trained)
        assert method.reference[example.id] == pytest.approx(before, abs=1e-4)
        moved = max(moved, *(abs(a - b) for a, b in zip(before, after, strict=True)))
    assert moved > 0.05  # so that a reference taken from the tuned model would have failed above
    # At d = 0 each token's value is (2 / b_t) log 2: the first step's loss is known exactly.
    from harness.training.batching import global_batches

    first = global_batches(examples, 2, 8, 7)[0]
    values = [2 / beta_at(t + 1) * math.log(2) for e in first for t in range(sum(e.trained))]
    assert record["losses"][0] == pytest.approx(sum(values) / len(values), rel=1e-5)
