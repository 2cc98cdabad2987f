"""The comparison before the first step: what it compares, what it takes, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AttentionInterface

from backends.vanilla import Vanilla
from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError
from harness.training import adapters, agreement, attention, begun, own_logp
from harness.training.attention import CAUSAL
from harness.training.logprobs import TargetHead
from harness.training.setting import Setting, list_candidates

PACKED = Setting(CAUSAL, "padding-free", 64)
PADDED = Setting(CAUSAL, "grouped", 64)


def rows(*lengths: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for number, length in enumerate(lengths or (30, 9, 22, 14, 17)):
        ids = torch.randint(3, tiny_models.VOCABULARY, (length,), generator=generator).tolist()
        made.append(Encoded(str(number), ids, [False] * 3 + [True] * (length - 3)))
    return made


def chosen(
    model: Any,
    examples: Sequence[Encoded] | None = None,
    *,
    begun: Setting | None = None,
    **changes: Any,
) -> agreement.Agreement:
    settings = TrainingConfig(**{"device": "cpu", "batching": "padding-free"} | changes)
    adapters.without_dropout(model)
    base, model = model, adapters.with_adapters(model, settings)
    head = TargetHead(model)
    return agreement.choose(model, base, head, examples or rows(), 0, settings, begun)


@pytest.fixture
def off_by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``off_by(packed=0.3, padded=0.0)``: how far the trainer's values then are from the model's own."""

    def set_to(**by_setting: float) -> None:
        exact = own_logp.compute_trained

        def shifted(model: Any, head: Any, some: Any, pad_id: int, setting: Setting) -> list[torch.Tensor]:
            alone = setting.micro_batch_size == 1
            name = "packed" if setting.batching == "padding-free" else "alone" if alone else "padded"
            shift = by_setting.get(name if setting.attention == CAUSAL or alone else "own", 0.0)
            return [values + shift for values in exact(model, head, some, pad_id, setting)]

        monkeypatch.setattr(own_logp, "compute_trained", shifted)

    return set_to


# --- what is compared ------------------------------------------------------------------------------


def test_settings_come_from_the_fastest_to_the_slowest_each_once() -> None:
    assert list_candidates(PACKED, "sdpa") == [
        PACKED,
        PADDED,
        Setting("sdpa", "grouped", 64),
        Setting("sdpa", "grouped", 1),
    ]
    assert list_candidates(Setting(CAUSAL, "in-order", 8), "eager") == [
        Setting(CAUSAL, "in-order", 8),
        Setting("eager", "in-order", 8),
        Setting("eager", "in-order", 1),
    ]
    assert list_candidates(Setting("sdpa", "grouped", 1), "sdpa") == [Setting("sdpa", "grouped", 1)]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((5, 9, 7, 6, 8, 4, 10), [10, 8, 6, 4]),
        ((5, 9, 7), [9, 7, 7, 5]),
        ((5, 9), [9, 9, 5, 5]),
        ((5,), [5] * 4),
        ((4, 6, 8, 10), [10, 8, 6, 4]),
    ],
)
def test_rows_are_spread_from_the_longest_to_the_shortest(
    lengths: tuple[int, ...], expected: list[int]
) -> None:
    found = own_logp.sample(rows(*lengths))
    assert [len(row.input_ids) for row in found] == expected
    assert len({id(row) for row in found}) == 4


def test_rows_without_loss_do_not_count_where_others_have_some() -> None:
    silent = [replace(row, id="silent", trained=[False] * len(row.trained)) for row in rows()]
    assert {row.id for row in own_logp.sample([*silent, *rows(8, 6)])} == {"0", "1"}
    assert all(row.trained == [True] * len(row.input_ids) for row in own_logp.sample(silent))
    with pytest.raises(HarnessError, match="no training row has two tokens"):
        own_logp.sample([Encoded("x", [5], [True])])


def test_the_difference_is_a_mean_over_tokens_of_distances() -> None:
    found = [torch.tensor([-1.0, -2.0]), torch.tensor([-5.0])]
    expected = [torch.tensor([-1.5, -1.5]), torch.tensor([-3.0])]
    assert own_logp.mean_difference(found, expected) == pytest.approx((0.5 + 0.5 + 2.0) / 3)
    assert math.isnan(own_logp.mean_difference([torch.tensor([math.nan])], [torch.tensor([0.0])]))


def test_a_models_own_values_are_those_of_its_forward_pass() -> None:
    model = tiny_models.build("llama")
    ids = rows()[0].input_ids
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
        found = own_logp.compute_alone(model, ids, [1, 4, 29])
    assert found.tolist() == pytest.approx(
        [logp[place - 1, ids[place]].item() for place in (1, 4, 29)], abs=1e-5
    )


# --- what is taken ---------------------------------------------------------------------------------


def test_the_recipes_setting_where_it_agrees() -> None:
    model = tiny_models.build("llama").train()
    found = chosen(model)
    assert found.setting == PACKED
    record = found.record
    assert record["difference"] < 1e-6
    assert record["asked"] == record["taken"]
    assert (record["rejected"], record["rows"], record["limit"]) == ([], 4, 1e-4)
    assert record["tokens"] == 27 + 19 + 11 + 6
    assert record["training_noise"] == 0.0
    assert record["seconds"] > 0
    assert model.training  # as it was
    assert model.config._attn_implementation == CAUSAL


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_the_limit_of_each_precision(off_by: Any, dtype: str, limit: float) -> None:
    off_by(packed=0.8 * limit)
    near = chosen(tiny_models.build("llama"), rows(*[30] * 4), dtype=dtype)
    assert near.setting == PACKED
    off_by(packed=3 * limit)
    far = chosen(tiny_models.build("llama"), rows(*[30] * 4), dtype=dtype)
    assert far.setting == PADDED
    assert far.record["rejected"][0]["difference"] > limit


def test_each_further_setting_in_turn_and_then_none(off_by: Any) -> None:
    off_by(packed=0.3)
    assert chosen(tiny_models.build("llama")).setting == PADDED
    off_by(packed=0.3, padded=math.nan)
    found = chosen(tiny_models.build("llama"))
    assert found.setting == Setting("sdpa", "grouped", 64)
    off_by(own=0.2)
    model = tiny_models.build("llama")
    found = chosen(model)
    assert found.setting == Setting("sdpa", "grouped", 1)
    assert model.config._attn_implementation == "sdpa"
    assert all(math.isfinite(one["difference"]) for one in found.record["rejected"] if "difference" in one)
    assert [
        round(one["difference"], 3) for one in found.record["rejected"] if one["attention"] == "sdpa"
    ] == [0.2]
    off_by(alone=0.25)
    with pytest.raises(
        HarnessError, match=r"'llama' cannot be trained here: .*0\.0001 nats.* differs by 0\.25 nats a token"
    ):
        chosen(tiny_models.build("llama"))


@pytest.fixture
def leaking() -> Iterator[None]:
    """Our attention as if it took a packed row for one."""

    def leaks(module: Any, query: Any, key: Any, value: Any, *given: Any, **kwargs: Any) -> Any:
        kwargs.pop("cu_seq_lens_q", None)
        return attention.causal_attention(module, query, key, value, *given, **kwargs)

    AttentionInterface.register(CAUSAL, leaks)
    yield
    AttentionInterface.register(CAUSAL, attention.causal_attention)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_rows_that_see_each_other_are_not_packed(leaking: None, way: str) -> None:
    found = chosen(tiny_models.build("llama"), tuning=way)
    assert found.setting == PADDED
    assert found.record["rejected"][0]["difference"] > 0.05


def test_one_row_that_comes_twice_in_a_batch_is_packed_with_itself(leaking: None) -> None:
    assert chosen(tiny_models.build("llama"), rows(20)).setting == PADDED


@pytest.mark.parametrize(
    ("name", "changes", "own"),
    [
        ("gpt_oss", {}, "eager"),  # sinks
        ("bloom", {}, "eager"),  # ALiBi
        ("mpt", {}, "eager"),
        ("falcon", {"alibi": True}, None),
        ("gemma2", {}, "eager"),  # soft-capping, although at these weights it says nothing
        ("gemma2", {"attn_logit_softcapping": 0.5}, "eager"),
        ("llama4_text", {}, "sdpa"),  # chunks
    ],
)
def test_what_a_mask_free_attention_would_drop(name: str, changes: dict[str, Any], own: str | None) -> None:
    for batching in ("padding-free", "grouped", "in-order"):
        found = chosen(tiny_models.build(name, **changes), batching=batching)
        assert found.setting.attention == own or own is None
        assert found.setting.attention != CAUSAL
        assert found.setting.batching == ("in-order" if batching == "in-order" else "grouped")
        assert found.record["difference"] < 1e-5


@pytest.mark.parametrize("name", ["mamba", "jamba", "qwen3_next", "lfm2", "stablelm"])
def test_layers_that_carry_something_on(name: str) -> None:
    """Recurrent and convolutional layers, and attention that never hears of the rows' lengths."""
    found = chosen(tiny_models.build(name))
    if found.setting.batching == "padding-free":  # transformers tells this one's convolution
        assert name == "lfm2"
    else:
        assert found.setting == PADDED
        assert found.record["rejected"][0]["difference"] > 0.01


def test_rows_within_the_window_need_no_window() -> None:
    """Chunks of 8 tokens and rows of at most 8: attention without chunks is right there."""
    assert chosen(tiny_models.build("llama4_text"), rows(8, 7, 6, 5)).setting == PACKED


def test_no_memory_for_all_rows_leaves_out_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, tried = own_logp.compute_trained, []

    def scarce(model: Any, head: Any, some: Any, *given: Any) -> Any:
        tried.append([len(row.input_ids) for row in some])
        if sum(tried[-1]) > most:
            raise torch.OutOfMemoryError
        return exact(model, head, some, *given)

    monkeypatch.setattr(own_logp, "compute_trained", scarce)
    most = 30
    assert chosen(tiny_models.build("llama"), rows(30, 20, 14, 9)).setting == PACKED
    assert tried == [[30, 20, 14, 9], [20, 14, 9], [14, 9]]
    most = 20
    with pytest.raises(HarnessError, match="no memory for two rows at once"):
        chosen(tiny_models.build("llama"), rows(30, 20, 14, 9))


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "xlnet", "electra"])
def test_a_model_that_looks_ahead(name: str) -> None:
    with pytest.raises(HarnessError, match=rf"'{name}' is no causal language model .* nats a token; choose"):
        chosen(tiny_models.build(name))


def test_the_same_architecture_as_a_decoder() -> None:
    assert chosen(tiny_models.build("bert", is_decoder=True)).record["difference"] < 1e-5


def test_rows_longer_than_the_model() -> None:
    model = tiny_models.build("gpt2", n_positions=16)
    with pytest.raises(HarnessError, match=r"'gpt2': transformers' own implementation fails .* of up to 30"):
        chosen(model)


def test_values_that_are_no_numbers() -> None:
    model = tiny_models.build("llama")
    model.lm_head.weight.data[5] = math.inf
    with pytest.raises(HarnessError, match=r"'llama': its log-probabilities .* are no finite numbers"):
        chosen(model)


def test_an_attention_that_is_not_installed() -> None:
    with pytest.raises(HarnessError, match=r"training\.attention flash_attention_2 is not installed"):
        chosen(tiny_models.build("llama"), attention="flash_attention_2")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"liger": True}, r"with Liger's kernels its .* nats a token\); set training\.liger to"),
        ({"compile": True}, r"with compiled layers its .* nats a token\); set training\.compile to"),
        (
            {"liger": True, "compile": True},
            r"Liger's kernels and compiled layers its .*; set training\.liger and training\.compile to",
        ),
    ],
)
def test_kernels_that_come_later_are_compared_too(asked: dict[str, bool], said: str, off_by: Any) -> None:
    model = tiny_models.build("llama")
    settings = TrainingConfig(device="cpu", batching="padding-free", **asked)
    head = TargetHead(model)
    agreed = agreement.choose(model, model, head, rows(), 0, settings)
    agreement.confirm(agreed, model, head, 0, settings)
    model.model.norm.weight.data *= 1.01  # stands for a kernel
    with pytest.raises(HarnessError, match=said):
        agreement.confirm(agreed, model, head, 0, settings)


# --- a training that is begun ----------------------------------------------------------------------


def test_what_is_kept_for_a_restart(tmp_path: Path) -> None:
    assert begun.begun_under(tmp_path) is None
    begun.keep(PADDED, tmp_path / "state")
    assert begun.begun_under(tmp_path / "state") == PADDED
    for torn in ("", '{"attention": "sdpa"', '{"attention": "sdpa"}', "[]"):
        (tmp_path / "state" / begun.FILE).write_text(torn)
        assert begun.begun_under(tmp_path / "state") is None


def test_a_begun_training_goes_on_under_its_setting_or_not_at_all(off_by: Any) -> None:
    alone = Setting("sdpa", "grouped", 1)
    assert chosen(tiny_models.build("llama"), begun=alone).setting == alone
    off_by(packed=0.3)
    with pytest.raises(
        HarnessError,
        match=r"'llama': this training was begun under attention harness_causal, batching pad",
    ):
        chosen(tiny_models.build("llama"), begun=PACKED)


def test_the_trainer_takes_says_and_keeps_it(
    make_model: Callable[..., Any], train: Any, encoded: list[Encoded], tmp_path: Path, leaking: None
) -> None:
    settings = {"batching": "padding-free", "batch_size": 8}
    record = train(make_model(), encoded[:16], Vanilla(), folder=tmp_path, **settings)
    assert record["agreement"]["taken"]["batching"] == "grouped"
    assert record["padding_tokens"] > 0
    assert begun.begun_under(tmp_path / "state") == Setting(CAUSAL, "grouped", 8)
    begun.keep(Setting("sdpa", "grouped", 1), tmp_path / "state")
    again = train(make_model(), encoded[:16], Vanilla(), folder=tmp_path, **settings)
    assert again["agreement"]["taken"]["micro_batch_size"] == 1
    assert again["padding_tokens"] == 0
    assert again["losses"] == pytest.approx(record["losses"], abs=1e-5)
    plain = train(make_model(), encoded[:16], Vanilla(), batching="grouped", batch_size=8)
    assert plain["losses"] == record["losses"]


def test_safety_rows_are_compared_too(
    make_model: Callable[..., Any], train: Any, encoded: list[Encoded]
) -> None:
    """The longest row may be one of them."""
    ordered = sorted(encoded, key=lambda example: len(example.input_ids))
    small = train(make_model(), ordered[:8], Vanilla())
    whole = train(make_model(), ordered[:8], Vanilla(), safety_examples=ordered[-1:])
    assert whole["agreement"]["tokens"] > small["agreement"]["tokens"]


# --- several processes -----------------------------------------------------------------------------


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``group(rank, sent)``: one of two processes; what the first one sends is ``sent``."""

    def join(rank: int, sent: Any = None) -> list[Any]:
        seen: list[Any] = []

        def broadcast(values: list[Any], src: int) -> None:
            assert src == 0
            if rank:
                values[0] = sent
            seen.append(values[0])

        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
        return seen

    return join


def test_the_first_process_decides_for_all(group: Callable[..., list[Any]]) -> None:
    threads = torch.get_num_threads()
    agreed = agreement.Agreement(PADDED, {}, [], [])
    followed: list[Setting] = []
    seen = group(0)
    assert begun.shared(lambda: agreed, followed.append) is agreed
    assert seen == [agreed]
    assert torch.get_num_threads() == threads

    def never() -> agreement.Agreement:
        raise AssertionError

    group(1, agreed)
    assert begun.shared(never, followed.append) is agreed
    assert followed == [PADDED, PADDED]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_refusal_is_that_of_all(rank: int, group: Callable[..., list[Any]]) -> None:
    def refuse() -> agreement.Agreement:
        raise HarnessError("no such model")

    seen = group(rank, "no such model")
    with pytest.raises(HarnessError, match="no such model"):
        begun.shared(refuse, lambda setting: None)
    assert seen == ["no such model"]


def test_following_puts_the_attention_in_force() -> None:
    model = tiny_models.build("llama")
    agreement.follow(model, PACKED)
    assert model.config._attn_implementation == CAUSAL
    with pytest.raises(HarnessError, match="processes of one training differ: the architecture has eager"):
        agreement.follow(tiny_models.build("bloom"), PADDED)
