"""The planned order of the data, and micro-batches that compute each row once, with little padding."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import Encoded
from harness.training import batching
from harness.training.batching import (
    collate,
    deal,
    end_to_end,
    global_batches,
    loss_tokens,
    stand_in,
    taken_apart,
)

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
@pytest.mark.parametrize("rows", [1, 2])
def test_a_device_without_rows_has_a_micro_batch_without_loss(packed: bool, rows: int) -> None:
    idle = stand_in(ROWS[:rows], 3, packed)
    assert (idle.shape, idle.ids, len(idle.targets)) == ((0, 0), [], 0)
    assert idle.mask.shape == torch.Size([0, 0])
    assert idle.inputs["input_ids"].shape == (1, 2)


# --- formulas, each by example ---------------------------------------------------------------------


def row(name: str, length: int) -> Encoded:
    return Encoded(name, list(range(10, 10 + length)), [False] + [True] * (length - 1))


def names(dealt: list[list[list[Encoded]]]) -> list[list[str]]:
    return [["".join(e.id for e in micro) for micro in micros] for micros in dealt]


FOUR = [row("a", 3), row("b", 9), row("c", 4), row("d", 8)]


@pytest.mark.parametrize(
    ("size", "tokens", "batching", "devices", "expected"),
    [
        (4, None, "grouped", 1, [["bdca"]]),
        (2, None, "grouped", 1, [["bd", "ca"]]),
        (3, None, "grouped", 1, [["bdc", "a"]]),
        (3, None, "in-order", 1, [["abc", "d"]]),
        (4, 18, "grouped", 1, [["bd", "ca"]]),  # 2 x 9 as computed, padding included
        (4, 17, "grouped", 1, [["b", "dc", "a"]]),
        (4, 17, "padding-free", 1, [["bd", "ca"]]),  # 9 + 8
        (4, 16, "padding-free", 1, [["b", "dca"]]),
        (4, 21, "padding-free", 1, [["bdc", "a"]]),
        (4, 1, "padding-free", 1, [["b", "d", "c", "a"]]),  # never fewer than one
        (4, None, "grouped", 2, [["bd"], ["ca"]]),  # one micro-batch for two devices: halved
        (4, None, "padding-free", 2, [["bd"], ["ca"]]),
        (3, None, "grouped", 2, [["bdc"], ["a"]]),
        (3, None, "in-order", 2, [["abc"], ["d"]]),
        (2, None, "grouped", 4, [["b"], ["d"], ["c"], ["a"]]),
        (1, None, "grouped", 3, [["b", "a"], ["d", ""], ["c", ""]]),
        (4, None, "grouped", 5, [["b"], ["d"], ["c"], ["a"], [""]]),
        (4, None, "grouped", 3, [["b"], ["ca"], ["d"]]),  # 9, 2 x 4 and 8
        (1, None, "in-order", 2, [["b", "c"], ["d", "a"]]),  # at each step both have much to do or little
    ],
)
def test_how_four_rows_are_dealt(
    size: int, tokens: int | None, batching: Any, devices: int, expected: list[list[str]]
) -> None:
    """b, d, c, a from the longest to the shortest: 9, 8, 4 and 3 tokens."""
    assert names(deal(FOUR, size, tokens, batching, devices)) == expected


def test_the_largest_is_halved_as_it_is_computed() -> None:
    """Padded, two rows of 9 and 1 tokens are 18, and two of 6 are 12."""
    rows = [row("x", 9), Encoded("y", [7], [True]), row("p", 6), row("q", 6)]
    assert names(deal(rows, 2, None, "in-order", 3)) == [["pq"], ["x"], ["y"]]


def test_an_epoch_is_cut_anywhere() -> None:
    rows = [row(letter, 3) for letter in "abcde"]
    batches = global_batches(rows, epochs=2, batch_size=4, seed=3)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    stream = [example.id for batch in batches for example in batch]
    assert sorted(stream[:5]) == sorted(stream[5:]) == list("abcde")
    assert global_batches(rows, 0, 4, 3) == []


def test_tokens_with_loss_are_all_but_a_first() -> None:
    assert loss_tokens(Encoded("x", [1, 2, 3, 4], [True, False, True, True])) == 2
    assert loss_tokens(Encoded("x", [1], [True])) == 0


def test_places_of_padded_and_packed_rows() -> None:
    rows = [
        Encoded("a", [5, 6, 7], [False, True, False]),
        Encoded("b", [8, 9, 10, 11, 12], [True, False, True, False, True]),
        Encoded("c", [13, 14], [False, False]),
    ]
    padded, packed = collate(rows, 3), collate(rows, 3, packed=True)
    assert padded.positions.tolist() == [0, 5 + 1, 5 + 3]  # rows are 5 wide
    assert packed.positions.tolist() == [0, 3 + 1, 3 + 3]
    for batch in (padded, packed):
        assert batch.targets.tolist() == [6, 10, 12]
        assert batch.slots.tolist() == [0, 2, 3]
        assert batch.shape == (3, 2)
        assert batch.mask.tolist() == [[True, False], [True, True], [False, False]]
        assert batch.ids == ["a", "b", "c"]
        flat = batch.inputs["input_ids"].flatten()
        assert flat[batch.positions + 1].tolist() == batch.targets.tolist()
    assert padded.inputs["input_ids"].tolist() == [[5, 6, 7, 3, 3], [8, 9, 10, 11, 12], [13, 14, 3, 3, 3]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1]]
    assert packed.inputs["cu_seq_lens_q"].dtype == torch.int32
    assert packed.inputs["cu_seq_lens_q"].tolist() == [0, 3, 8, 10]
    assert packed.inputs["max_length_q"] == packed.inputs["max_length_k"] == 5


def test_moving_changes_nothing_but_the_place() -> None:
    batch = collate(ROWS, 3, packed=True)
    moved = batch.to("meta")
    for name in ("positions", "targets", "slots", "mask"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(batch, name).shape
    assert moved.inputs["cu_seq_lens_q"].device.type == "meta"
    assert moved.inputs["max_length_q"] == 4
    assert (moved.shape, moved.ids) == (batch.shape, batch.ids)


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=6
    ),
    packed=st.booleans(),
)
def test_each_place_by_a_walk_over_tokens(rows: list[list[tuple[int, bool]]], packed: bool) -> None:
    micro = [
        Encoded(str(n), [token for token, _ in row], [trained for _, trained in row])
        for n, row in enumerate(rows)
    ]
    batch = collate(micro, 100, packed)
    longest = max(map(len, rows))
    laid = [token for row in rows for token, _ in row]
    padded = [[token for token, _ in row] + [100] * (longest - len(row)) for row in rows]
    assert batch.inputs["input_ids"].tolist() == ([laid] if packed else padded)
    flat = batch.inputs["input_ids"].flatten().tolist()
    width = max(sum(trained for _, trained in row[1:]) for row in rows)
    start, walked, mask = 0, [], []
    for number, row in enumerate(rows):
        found = [start + place - 1 for place in range(1, len(row)) if row[place][1]]
        walked += [(place, flat[place + 1], number * width + nth) for nth, place in enumerate(found)]
        mask.append([nth < len(found) for nth in range(width)])
        start += len(row) if packed else longest
    found = zip(batch.positions.tolist(), batch.targets.tolist(), batch.slots.tolist(), strict=True)
    assert [*found] == walked
    assert batch.mask.tolist() == mask
    assert batch.shape == (len(rows), width)
    tensors = (batch.inputs["input_ids"], batch.positions, batch.targets, batch.slots)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


@given(
    shapes=st.lists(
        st.tuples(
            st.sampled_from([torch.int64, torch.int32, torch.bool, torch.float32]),
            st.lists(st.integers(0, 5), max_size=2),
        ),
        max_size=6,
    )
)
def test_what_moves_together_comes_apart_again(shapes: list[tuple[torch.dtype, list[int]]]) -> None:
    tensors = [torch.randint(0, 2, tuple(shape)).to(dtype) for dtype, shape in shapes]
    whole = end_to_end(tensors)
    assert whole.dtype == torch.uint8
    for tensor, found in zip(tensors, taken_apart(whole, tensors), strict=True):
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        assert found.storage_offset() * found.element_size() % 8 == 0


def test_a_gpu_gets_one_copy_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its memory. The bounds, which stand in the inputs twice, travel once."""
    asked: list[tuple[Any, bool, bool]] = []
    own = batching.end_to_end

    class Pinned:
        def __init__(self, whole: torch.Tensor):
            self.whole = whole

        def to(self, device: Any, non_blocking: bool) -> torch.Tensor:
            asked.append((device, non_blocking, self.whole.dtype == torch.uint8))
            return self.whole

    def made(tensors: Any, *, pinned: bool) -> Any:
        flags.append((len(tensors), pinned))
        return Pinned(own(tensors))

    flags: list[tuple[int, bool]] = []
    monkeypatch.setattr(batching, "end_to_end", made)
    for packed, many in ((True, 7), (False, 5)):
        asked.clear()
        flags.clear()
        batch = collate(ROWS, 3, packed)
        moved = batch.to("cuda")
        assert asked == [("cuda", True, True)]
        assert flags == [(many, True)]
        for name in ("positions", "targets", "slots", "mask"):
            assert torch.equal(getattr(moved, name), getattr(batch, name))
        for name, value in batch.inputs.items():
            assert torch.equal(torch.as_tensor(moved.inputs[name]), torch.as_tensor(value))
        assert (moved.shape, moved.ids) == (batch.shape, batch.ids)


def test_a_micro_batch_stays_as_it_was_made() -> None:
    """Padded, where nobody asks for packed rows."""
    for batch in (collate(ROWS, 3), stand_in(ROWS, 3)):
        assert set(batch.inputs) == {"input_ids"}
        with pytest.raises(dataclasses.FrozenInstanceError):
            batch.shape = (9, 9)  # type: ignore[misc]
        assert not hasattr(batch, "__dict__")


def test_rows_of_one_length_keep_their_order_where_devices_are_idle() -> None:
    assert names(deal([row("a", 3), row("b", 3)], 1, None, "grouped", 3)) == [["a"], ["b"], [""]]
