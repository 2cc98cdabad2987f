"""The planned order of the data, and micro-batches that compute each row once, with little padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.batching import collate, deal, global_batches, loss_tokens, stand_in
from harness.contracts import Encoded

ROWS = [Encoded("a", [5, 6, 7, 8], [False, False, True, True]), Encoded("b", [9, 4], [False, True])]


def test_every_epoch_is_a_seeded_permutation(encoded: list[Encoded]) -> None:
    batches = global_batches(encoded, epochs=3, batch_size=16, seed=1)
    assert [len(batch) for batch in batches] == [16] * 7 + [8]  # 120 = 3 epochs of 40, laid end to end
    stream = [example.id for batch in batches for example in batch]
    epochs = [stream[start : start + 40] for start in (0, 40, 80)]
    assert all(sorted(epoch) == sorted(example.id for example in encoded) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != [example.id for example in encoded]
    assert batches == global_batches(encoded, 3, 16, seed=1)
    assert batches != global_batches(encoded, 3, 16, seed=2)


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=40),
    size=st.integers(1, 20),
    tokens=st.one_of(st.none(), st.integers(1, 400)),
    batching=st.sampled_from(["grouped", "in-order", "padding-free"]),
    devices=st.integers(1, 5),
)
def test_each_row_is_dealt_once_and_no_limit_is_passed(
    lengths: list[int], size: int, tokens: int | None, batching: str, devices: int
) -> None:
    batch = [Encoded(str(n), [1] * length, [True] * length) for n, length in enumerate(lengths)]
    dealt = deal(batch, size, tokens, batching, devices)  # type: ignore[arg-type]
    assert len(dealt) == devices
    assert len({len(micros) for micros in dealt}) == 1  # no device waits for a step that another never takes
    rows = [example for micros in dealt for micro in micros for example in micro]
    assert sorted(e.id for e in rows) == sorted(e.id for e in batch)
    for micro in (micro for micros in dealt for micro in micros):
        assert len(micro) <= size
        widths = [len(e.input_ids) for e in micro]
        computed = sum(widths) if batching == "padding-free" else max(widths, default=0) * len(widths)
        assert tokens is None or computed <= tokens or len(micro) == 1
    if devices == 1 and batching == "in-order":
        assert rows == batch
    idle = sum(not micro for micros in dealt for micro in micros)
    assert idle == 0 or len(batch) < devices * len(dealt[0])


def test_grouping_by_length_leaves_little_padding(encoded: list[Encoded]) -> None:
    def padding(batching: str) -> int:
        (micros,) = deal(encoded, 8, None, batching)  # type: ignore[arg-type]
        widths = [[len(e.input_ids) for e in micro] for micro in micros]
        return sum(max(row) * len(row) - sum(row) for row in widths)

    assert 0 < padding("grouped") < 0.4 * padding("in-order")


def test_collate_pads_on_the_right_and_finds_what_carries_loss() -> None:
    batch = collate(ROWS, pad_id=3)
    assert set(batch.inputs) == {"input_ids"}  # nothing real sees what stands to its right
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [9, 4, 3, 3]]
    assert batch.positions.tolist() == [1, 2, 4]  # the tokens before 7, 8 and 4
    assert batch.targets.tolist() == [7, 8, 4]
    assert (batch.shape, batch.slots.tolist()) == ((2, 2), [0, 1, 2])
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert batch.ids == ["a", "b"]


def test_collate_lays_rows_end_to_end() -> None:
    batch = collate(ROWS, pad_id=3, packed=True)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.inputs["cu_seq_lens_q"].tolist() == batch.inputs["cu_seq_lens_k"].tolist() == [0, 4, 6]
    assert batch.inputs["max_length_q"] == batch.inputs["max_length_k"] == 4
    assert batch.positions.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [7, 8, 4]


def test_a_first_token_is_never_predicted() -> None:
    row = Encoded("x", [5, 6], [True, True])
    assert loss_tokens(row) == 1
    assert collate([row], 0).targets.tolist() == [6]


@pytest.mark.parametrize("packed", [False, True])
def test_a_device_without_rows_has_a_micro_batch_without_loss(packed: bool) -> None:
    idle = stand_in(ROWS, 3, packed)
    assert (idle.shape, idle.ids, len(idle.targets)) == ((0, 0), [], 0)
    assert idle.mask.shape == torch.Size([0, 0])
    assert idle.inputs["input_ids"].shape == (1, 2)
