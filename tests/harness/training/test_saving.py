"""Guards what is saved: it is tried before the first step, and an epoch's weights are those of a finished
training, which leaves no trace in the training that goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backends.vanilla import Vanilla
from harness.contracts import Encoded, HarnessError, TrainContext
from harness.models import checkpoints
from harness.training import saving

Train = Callable[..., dict[str, Any]]
CONTEXT = TrainContext([], seed_logp=lambda examples: [], rng=random.Random(0))


@dataclass
class Halved(Vanilla):
    """Saves half of what was trained, and draws from every source of chance on the way."""

    calls: list[int] = field(default_factory=list)

    def after_training(self, model: Any, context: Any) -> None:
        self.calls.append(1)
        torch.rand(3), random.random(), np.random.rand()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
                parameter.requires_grad_(False)


class Swapped(Vanilla):
    def after_training(self, model: Any, context: Any) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)


def test_an_epochs_weights_are_those_of_a_finished_training(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], tmp_path: Path
) -> None:
    plain, halved = tmp_path / "plain", tmp_path / "halved"
    train(make_model(), encoded[:8], Vanilla(), epochs=3, batch_size=4, snapshots=True, folder=plain)
    train(make_model(), encoded[:8], Halved(), epochs=3, batch_size=4, snapshots=True, folder=halved)
    for epoch in (1, 2):
        own, half = (
            load_file(next(place.rglob(f"epoch-{epoch}/model.safetensors"))) for place in (plain, halved)
        )
        assert own.keys() == half.keys()
        assert all(torch.equal(half[name], own[name] * 0.5) for name in own)


def test_looking_at_epochs_leaves_no_trace_in_the_end(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    with_epochs, without = make_model(), make_model()
    method = Halved()
    records = [
        train(model, encoded[:8], method, epochs=2, batch_size=4, snapshots=snapshots)
        for model, snapshots in ((with_epochs, True), (without, False))
    ]
    assert records[0]["losses"] == records[1]["losses"]
    first, second = with_epochs.state_dict(), without.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert method.calls == [1, 1]  # an epoch's was a copy's


def test_behind_the_block_everything_is_as_it_was(make_model: Callable[..., Any]) -> None:
    model, method = make_model(), Halved()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    drawn = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with saving.finished(method, model, CONTEXT):
        inside = {name: value.clone() for name, value in model.state_dict().items()}
    assert (torch.rand(1), random.random(), np.random.rand()) == drawn
    assert all(torch.equal(inside[name], before[name] * 0.5) for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert method.calls == []


def test_weights_that_are_replaced_cannot_be_given_back(make_model: Callable[..., Any]) -> None:
    with (
        pytest.raises(HarnessError, match="after_training replaces weights"),
        saving.finished(Swapped(), make_model(), CONTEXT),
    ):
        pass


def test_what_could_not_be_saved_is_found_before_the_first_step(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    model = make_model()
    model.generation_config.temperature, model.generation_config.num_beams = 0.5, 0
    steps: list[int] = []
    with pytest.raises(HarnessError, match="could not be saved") as told:
        train(model, encoded[:4], Vanilla(), on_step=lambda step, of: steps.append(step))
    assert "\n" not in str(told.value)
    assert steps == []


def test_older_chat_models_sample_and_are_saved_so(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    model.generation_config.temperature, model.generation_config.top_p = 0.9, 0.6
    checkpoints.settle_sampling(model)
    assert "do_sample" in caplog.text
    train(model, encoded[:4], Vanilla())
    settings = model.generation_config
    assert (settings.temperature, settings.top_p, settings.do_sample) == (0.9, 0.6, True)


def test_settings_that_can_be_saved_stay_as_they_are(
    make_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    before = model.generation_config.to_dict()
    checkpoints.settle_sampling(model)
    assert model.generation_config.to_dict() == before
    assert not caplog.text


def test_an_adapter_that_cannot_be_merged_is_found_before_the_first_step(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora.layer import Linear

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no merging here")

    lora = {"tuning": "lora", "lora": {"r": 2, "target_modules": ["q_proj"]}}
    monkeypatch.setattr(Linear, "merge", refuse)
    with pytest.raises(HarnessError, match="no merging here"):
        train(make_model(), encoded[:4], Vanilla(), merge=True, **lora)
    train(make_model(), encoded[:4], Vanilla(), merge=False, **lora)


def test_trying_the_merge_changes_no_weight(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    lora = {"tuning": "lora", "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}
    tried, plain = (
        train(make_model(), encoded[:8], Vanilla(), merge=merge, **lora) for merge in (True, False)
    )
    assert tried["losses"] == plain["losses"]
