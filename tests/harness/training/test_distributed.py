"""Weights that will be sharded are scored whole on the device, where its memory holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from backends.constrained_sft import ConstrainedSFT
from harness.contracts import Encoded
from harness.training import agreement, distributed, spent

CPU, CUDA = torch.device("cpu"), torch.device("cuda:1")


class Moving:
    """A model that says where it was sent."""

    def __init__(self, device: torch.device, *, fits: bool = True):
        self.device, self.fits, self.sent = device, fits, list[torch.device]()

    def to(self, device: torch.device) -> None:
        self.sent.append(device)
        if device.type == "cuda" and not self.fits:
            raise torch.OutOfMemoryError
        self.device = device


def test_it_is_there_for_the_block() -> None:
    model = Moving(CPU)
    with pytest.raises(KeyError), distributed.whole_on(CUDA, model):  # noqa: PT012
        assert model.device == CUDA
        raise KeyError
    assert model.device == CPU
    assert model.sent == [CUDA, CPU]


def test_it_stays_where_it_is_without_memory_for_it() -> None:
    model = Moving(CPU, fits=False)
    with distributed.whole_on(CUDA, model):
        assert model.device == CPU
        assert model.sent == [CUDA, CPU]  # what had got there is back


@pytest.mark.parametrize(("home", "device"), [(CPU, CPU), (CUDA, CUDA), (torch.device("cuda:0"), CUDA)])
def test_what_is_where_it_trains_is_not_moved(home: torch.device, device: torch.device) -> None:
    model = Moving(home)
    with distributed.whole_on(device, model):
        assert model.sent == []
    assert model.sent == []


def test_a_training_compares_and_scores_in_the_block(
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    own_choose, own_scores = agreement.choose, spent.SeedLogp.__call__

    class Block:
        def __init__(self, device: torch.device, model: Any):
            assert device == CPU

        def __enter__(self) -> None:
            said.append("there")

        def __exit__(self, *error: object) -> None:
            said.append("back")

    def choose(*given: Any, **named: Any) -> Any:
        said.append("compared")
        return own_choose(*given, **named)

    def scores(self: Any, examples: Any) -> Any:
        said.append("scored")
        return own_scores(self, examples)

    monkeypatch.setattr(distributed, "whole_on", Block)
    monkeypatch.setattr(agreement, "choose", choose)
    monkeypatch.setattr(spent.SeedLogp, "__call__", scores)
    train(make_model(), encoded[:8], ConstrainedSFT(), on_step=lambda step, of: said.append("step"))
    assert said == ["there", "compared", "scored", "back", "step"]
