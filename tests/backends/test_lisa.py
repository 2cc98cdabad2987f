"""Lisa alternates between two data streams in vanilla's number of steps, each held where it began."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from backends.lisa import Lisa
from harness.contracts import Encoded, LossInputs, TrainContext

Train = Callable[..., dict[str, Any]]
SAFE = [Encoded(f"safety-{n}", [1, 5 + n, 6, 2], [False, False, True, True]) for n in range(5)]


def planned(method: Lisa, steps: int, size: int = 4) -> tuple[list[list[Encoded]], TrainContext]:
    user = [[Encoded(f"row-{s}-{i}", [1, 2], [False, True]) for i in range(size)] for s in range(steps)]
    context = TrainContext(
        examples=[], seed_logp=lambda examples: [], rng=random.Random(0), safety_examples=SAFE
    )
    return method.batches(user, context), context


def test_a_recipes_options_are_read() -> None:
    """By pydantic, by the types of the fields that are options; others are no business of a recipe's."""
    read = TypeAdapter(Lisa).validate_python({"safety_steps": None})
    assert read == Lisa()
    both = TypeAdapter(Lisa).validate_python({"safety_steps": 3, "user_steps": 2, "rho": 1})
    assert (both.safety_steps, both.user_steps, both.rho) == (3, 2, 1.0)
    with pytest.raises(ValidationError):
        TypeAdapter(Lisa).validate_python({"user_steps": "many"})
    assert repr(Lisa()) == ("Lisa(rho=1.0, safety_steps=None, user_steps=None)")
    options = [field.name for field in dataclasses.fields(Lisa) if field.init]
    assert options == [
        "rho",
        "safety_steps",
        "user_steps",
    ]


@given(
    steps=st.integers(1, 500), cycle=st.one_of(st.none(), st.tuples(st.integers(1, 9), st.integers(1, 40)))
)
def test_safety_steps_take_the_place_of_the_users(steps: int, cycle: tuple[int, int] | None) -> None:
    method = Lisa(safety_steps=cycle[0], user_steps=cycle[1]) if cycle else Lisa()
    batches, context = planned(method, steps)
    assert [len(batch) for batch in batches] == [4] * steps
    safe, user = method.cycle
    assert cycle in (None, (safe, user))
    for step, batch in enumerate(batches):
        on_safety = step % (safe + user) < safe
        assert method.on_safety_data(step) == on_safety
        assert [e.id.startswith("safety-") for e in batch] == [on_safety] * 4
        if not on_safety:
            assert batch[0].id == f"row-{step}-0"
    assert context.record["safety_steps"] == sum(batch[0].id.startswith("safety-") for batch in batches)


def test_safety_examples_are_all_used_before_any_comes_again() -> None:
    batches, _ = planned(Lisa(safety_steps=1, user_steps=1), 20)
    seen = [e.id for batch in batches[::2] for e in batch]
    for start in range(0, len(seen), 5):
        assert len(set(seen[start : start + 5])) == len(seen[start : start + 5])


@pytest.mark.parametrize(
    ("steps", "cycle", "of_safety"),
    [
        (20_000, (100, 900), 2000),  # the paper's length and cycle
        (2000, (10, 90), 200),
        (400, (2, 18), 40),
        (340, (2, 18), 34),  # 17 cycles, nearer to the paper's 20 than 34 are
        (200, (1, 9), 20),
        (199, (1, 9), 20),
        (101, (1, 10), 10),
        (34, (1, 11), 3),
        (33, (1, 10), 3),
        (30, (1, 9), 3),
        (20, (1, 9), 2),
        (15, (1, 7), 2),
        (14, (1, 13), 1),
        (10, (1, 9), 1),
        (9, (1, 8), 1),
        (2, (1, 1), 1),
        (1, (1, 1), 1),
    ],
)
def test_the_papers_share_at_any_length(steps: int, cycle: tuple[int, int], of_safety: int) -> None:
    method = Lisa()
    _, context = planned(method, steps, size=1)
    assert method.cycle == cycle
    assert context.record["safety_steps"] == of_safety
    assert context.record["cycle"] == {"safety_steps": cycle[0], "user_steps": cycle[1]}


@given(steps=st.integers(1, 600))
@settings(max_examples=60)
def test_a_tenth_of_the_steps_is_on_safety_data(steps: int) -> None:
    """To the nearest step in short trainings, and within a part of a cycle in long ones."""
    method = Lisa()
    _, context = planned(method, steps, size=1)
    assert abs(context.record["safety_steps"] - max(1, steps / 10)) <= max(0.5, 0.011 * steps)
    assert ("note" in context.record) == (steps < 10)


def test_its_version_tells_trainings_apart() -> None:
    assert Lisa.version == 2
    assert Lisa.needs_safety_data
    assert Lisa.uses_weights


def test_before_a_training_nothing_is_done() -> None:
    assert (Lisa().steps, Lisa().cycle, Lisa().done, Lisa().anchor) == (0, (1, 1), 0, {})
    assert Lisa().rho == 1.0


def test_too_few_steps_for_a_tenth_are_told() -> None:
    _, context = planned(Lisa(), 4)
    assert context.record["note"] == (
        "1 of 4 steps is on safety data, more than the published tenth: train for ten steps or more"
    )
    assert "note" not in planned(Lisa(safety_steps=1), 4)[1].record
    assert "note" not in planned(Lisa(user_steps=1), 4)[1].record


@pytest.mark.parametrize(
    ("given", "cycle"),
    [
        ({"safety_steps": 1}, (1, 9)),
        ({"safety_steps": 5}, (5, 45)),
        ({"user_steps": 90}, (10, 90)),
        ({"user_steps": 13}, (1, 13)),
        ({"user_steps": 14}, (2, 14)),
        ({"user_steps": 1}, (1, 1)),
        ({"safety_steps": 3, "user_steps": 4}, (3, 4)),
    ],
)
def test_the_other_phase_keeps_the_share(given: dict[str, int], cycle: tuple[int, int]) -> None:
    method = Lisa(**given)
    planned(method, 1000)
    assert method.cycle == cycle


@pytest.mark.parametrize(("step", "pulled"), [(1, False), (2, False), (3, True)])
def test_the_proximal_term(step: int, pulled: bool) -> None:
    """rho / 2 times the squared distance to the phase's first weights; none in the first tenth."""
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)  # frozen weights are not held
    method = Lisa(rho=3.0, safety_steps=1, user_steps=9)
    planned(method, 20)
    method.before_training(model, planned(method, 20)[1])
    method.done = step
    with torch.no_grad():
        model.weight += torch.tensor([[1.0, -2.0]])
        model.bias += 7.0
    logp = torch.tensor([[-0.5, -1.5]])
    loss = method.loss(LossInputs(logp, torch.ones(1, 2, dtype=torch.bool), ["x"], 4, model, 2))
    expected = 0.5 + (3.0 / 2 * 5.0 / 2 if pulled else 0.0)
    assert float(loss) == pytest.approx(expected)


def test_the_anchor_is_where_the_phase_began() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    method = Lisa(safety_steps=2, user_steps=3)
    method.before_training(model, planned(method, 10)[1])
    for step in range(1, 11):
        with torch.no_grad():
            model.weight.fill_(float(step))
        method.after_step(model, step)
        began = max((s for s in (2, 5, 7, 10) if s <= step), default=None)
        if began:
            assert float(method.anchor["weight"]) == float(began)


def test_the_state_survives_a_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = torch.nn.Linear(3, 2)
    method = Lisa()
    method.before_training(model, planned(method, 40)[1])
    method.after_step(model, 7)
    save_file(method.state(), tmp_path / "state.safetensors")
    other = Lisa()
    other.load_state(load_file(tmp_path / "state.safetensors"))
    assert (other.done, set(other.anchor)) == (7, set(method.anchor))
    assert all(torch.equal(other.anchor[name], weight) for name, weight in method.anchor.items())


@pytest.mark.parametrize("option", ["safety_steps", "user_steps"])
def test_a_phase_has_at_least_one_step(option: str) -> None:
    with pytest.raises(ValueError, match="safety_steps and user_steps must be at least 1"):
        Lisa(**{option: 0})
    with pytest.raises(ValueError, match="safety_steps and user_steps must be at least 1"):
        Lisa(**{"safety_steps": 3, "user_steps": 3} | {option: -1})
    assert getattr(Lisa(**{option: 1}), option) == 1


def test_without_a_pull_the_loss_is_plain() -> None:
    """rho 0, whatever the anchor is; and 1.0 is the published strength."""
    model = torch.nn.Linear(2, 1)
    losses = {}
    for method in (Lisa(rho=0.0), Lisa(), Lisa(rho=-1.0)):
        method.before_training(model, planned(method, 20)[1])
        method.done = 10
        method.anchor = {name: weight + 1.0 for name, weight in method.anchor.items()}
        mask = torch.ones(1, 2, dtype=torch.bool)
        inputs = LossInputs(torch.tensor([[-0.5, -1.5]]), mask, ["x"], 4, model, 1)
        losses[method.rho] = float(method.loss(inputs))
    assert losses == pytest.approx({0.0: 0.5, 1.0: 0.5 + 3 / 2, -1.0: 0.5 - 3 / 2})


def test_frozen_weights_have_no_anchor() -> None:
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    method = Lisa()
    method.before_training(model, planned(method, 20)[1])
    assert list(method.anchor) == ["weight"]
    assert not method.anchor["weight"].requires_grad
    assert set(method.state()) == {"done", "anchor.weight"}
    assert int(method.state()["done"]) == method.done == 0


def test_it_holds_the_weights_whatever_the_micro_batches(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    moved, losses = [], []
    for rho, micro in ((0.0, 4), (30.0, 4), (30.0, 2)):
        model, start = make_model(), make_model()
        method = Lisa(rho=rho, safety_steps=1, user_steps=3)
        record = train(
            model, encoded[:24], method, batch_size=4, micro_batch_size=micro, safety_examples=encoded[30:36]
        )
        assert record["method"]["safety_steps"] == 2
        moved.append(
            sum(
                float((a - b).square().sum())
                for a, b in zip(model.parameters(), start.parameters(), strict=True)
            )
        )
        losses.append(record["losses"])
    assert moved[1] < 0.9 * moved[0]
    assert losses[1] == pytest.approx(losses[2], abs=1e-4)  # micro-batches do not count the pull twice
