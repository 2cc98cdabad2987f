"""Log-probabilities come from the positions that count, in float32, whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.config import TrainingConfig
from harness.contracts import Encoded
from harness.training import logprobs
from harness.training.attention import CAUSAL, use
from harness.training.batching import collate
from harness.training.logprobs import TargetHead, autocast, chunked_logp, token_logp


def expected(model: Any, example: Encoded) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].double()
    return [
        torch.log_softmax(logits[position - 1], dim=-1)[token].item()
        for position, (token, trained) in enumerate(zip(example.input_ids, example.trained, strict=True))
        if trained
    ]


@pytest.mark.parametrize("batching", ["grouped", "in-order"])
def test_one_number_an_answer_token_whatever_the_batch(
    batching: str, make_model: Callable[..., Any], encoded: list[Encoded], answer_logp: Callable[..., Any]
) -> None:
    model = make_model().train()
    found = answer_logp(model, encoded[:9], batching=batching, micro_batch_size=4)
    assert model.training  # left as it was
    for example, values in zip(encoded[:9], found, strict=True):
        assert values == pytest.approx(expected(model, example), abs=1e-4)


def test_the_same_example_twice(
    make_model: Callable[..., Any], encoded: list[Encoded], answer_logp: Callable[..., Any]
) -> None:
    one, two = answer_logp(make_model(), [encoded[0], encoded[0]])
    assert one == two


def test_the_head_sees_what_counts_and_later_everything_again(
    make_model: Callable[..., Any], encoded: list[Encoded]
) -> None:
    model = make_model()
    head, batch = TargetHead(model), collate(encoded[:3], 0)
    widths: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: widths.append(tuple(output.shape)))
    logp = head.logp(model, batch)
    assert widths == [(1, len(batch.targets), 1400)]
    assert logp.shape == batch.mask.shape
    assert ((logp != 0) == batch.mask).all()
    assert model(**batch.inputs).logits.shape[:2] == batch.inputs["input_ids"].shape


def test_the_models_own_scaling_of_logits_is_kept(encoded: list[Encoded]) -> None:
    """Gemma 2 caps its logits behind the head."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    small = Gemma2Config(
        vocab_size=1400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(small).eval()
    values = TargetHead(model).logp(model, collate(encoded[:1], 0))[0].tolist()
    assert values == pytest.approx(expected(model, encoded[0]), abs=1e-5)
    model.config.final_logit_softcapping = None
    assert values != pytest.approx(expected(model, encoded[0]), abs=1e-2)


def test_log_softmax_is_taken_in_float32(make_model: Callable[..., Any], encoded: list[Encoded]) -> None:
    model = make_model().to(torch.bfloat16)
    batch = collate(encoded[:2], 0)
    logp = TargetHead(model).logp(model, batch)
    assert logp.dtype == torch.float32
    with torch.no_grad():
        logits = model(**batch.inputs).logits.flatten(0, 1)[batch.positions].double()
    exact = torch.log_softmax(logits, dim=-1).gather(1, batch.targets[:, None])[:, 0]
    assert logp[batch.mask].tolist() == pytest.approx(exact.tolist(), abs=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_head_that_no_hook_reaches(
    rows: int, make_model: Callable[..., Any], encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that names no head, or uses its weights another way: all logits, then those that count."""
    wanted = TargetHead(make_model()).logp(make_model(), collate(encoded[:rows], 0))
    model = make_model()
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    for packed in (False, True) if rows == 1 else (False,):
        found = TargetHead(model).logp(model, collate(encoded[:rows], 0, packed))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_values_of_tokens_stand_row_by_row(make_model: Callable[..., Any], encoded: list[Encoded]) -> None:
    model = make_model()
    head, batch = TargetHead(model), collate(encoded[:3], 0)
    flat, laid_out = head.target_logp(model, batch), head.logp(model, batch)
    assert flat.shape == batch.targets.shape
    assert torch.equal(laid_out[batch.mask], flat)
    assert not laid_out[~batch.mask].any()


def test_no_logits_where_no_token_counts(make_model: Callable[..., Any], encoded: list[Encoded]) -> None:
    silent = Encoded("silent", encoded[0].input_ids, [False] * len(encoded[0].input_ids))
    model = make_model()
    head = TargetHead(model)
    assert head.logp(model, collate([silent], 0)).shape == (1, 0)
    mixed = head.logp(model, collate([silent, encoded[1]], 0))
    assert not mixed[0].any()
    assert mixed[1].tolist() == pytest.approx(expected(model, encoded[1]), abs=1e-4)


@pytest.mark.parametrize(("batching", "rows"), [("grouped", 4), ("in-order", 4), ("padding-free", 1)])
def test_rows_are_scored_as_training_lays_them_out(
    batching: str,
    rows: int,
    make_model: Callable[..., Any],
    encoded: list[Encoded],
    answer_logp: Callable[..., Any],
) -> None:
    """Four rows, or one that holds all four; nothing is kept for a backward pass or for a next token."""
    model, calls = make_model(), []
    use(model, CAUSAL)
    forward = model.forward

    def watched(*given: Any, **named: Any) -> Any:
        calls.append((named["input_ids"].shape[0], torch.is_grad_enabled(), named["use_cache"]))
        return forward(*given, **named)

    model.forward = watched
    found = answer_logp(model, encoded[:4], batching=batching, micro_batch_size=4)
    assert calls == [(rows, False, False)]
    for example, values in zip(encoded[:4], found, strict=True):
        assert values == pytest.approx(expected(make_model(), example), abs=1e-4)


def test_what_else_a_head_is_given_reaches_it() -> None:
    """The states of the tokens that count are its first argument; a second one stays as it is."""

    class Head(torch.nn.Module):
        def forward(self, states: torch.Tensor, factor: float) -> torch.Tensor:
            return states * factor

    class Model:
        head = Head()

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

        def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            states = torch.nn.functional.one_hot((input_ids + 1) % 10, 10).float()
            return SimpleNamespace(logits=self.head(states, 3.0))

    row = Encoded("row", [5, 6, 7, 9], [False, True, True, True])
    model = Model()
    found = TargetHead(model).target_logp(model, collate([row], 0)).tolist()
    others = math.log(math.exp(3.0) + 9)  # e^3 for a token's successor, e^0 for each other of ten
    assert found == pytest.approx([3.0 - others, 3.0 - others, -others])


def test_scoring_learns_nothing_and_leaves_the_mode(
    make_model: Callable[..., Any], encoded: list[Encoded], answer_logp: Callable[..., Any]
) -> None:
    for training in (False, True):
        model = make_model(attention_dropout=0.5).train(training)
        found = answer_logp(model, encoded[:4], micro_batch_size=3)
        assert model.training is training
        for example, values in zip(encoded, found, strict=False):
            assert values == pytest.approx(expected(model.eval(), example), abs=1e-4)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_that_does_for_no_row_is_told(
    make_model: Callable[..., Any],
    encoded: list[Encoded],
    answer_logp: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def none(head: Any, model: Any, micro: Any) -> Any:
        sizes.append(len(micro.ids))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TargetHead, "logp", none)
    with pytest.raises(torch.OutOfMemoryError):
        answer_logp(make_model(), encoded[:5], micro_batch_size=5)
    assert sizes == [5, 3, 2, 1]


def test_a_head_that_loses_a_row_is_not_believed(
    make_model: Callable[..., Any],
    encoded: list[Encoded],
    answer_logp: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TargetHead, "logp", lambda head, model, micro: torch.zeros(1, 3))
    with pytest.raises(ValueError, match="shorter"):
        answer_logp(make_model(), encoded[:2])


@pytest.mark.parametrize(
    ("dtype", "expected_dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_precision_of_training(
    dtype: str, expected_dtype: torch.dtype, make_model: Callable[..., Any]
) -> None:
    """Whether it comes from a configuration or is spelt anew, as what another process sends is."""
    model = make_model()
    for settings in (TrainingConfig(dtype=dtype), SimpleNamespace(dtype="".join(dtype))):
        with autocast(model, settings):
            assert model(torch.tensor([[5, 6]])).logits.dtype == expected_dtype


# --- in chunks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_in_chunks_is_the_whole_one(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows at a time; values and gradients in double precision, by another formula."""
    monkeypatch.setattr(logprobs, "CHUNK", 8 * 50 + 3)
    torch.manual_seed(0)
    given = (torch.randn(rows, 50) * 20).to(dtype)
    targets, above = torch.randint(0, 50, (rows,)), torch.randn(rows)
    exact = given.double().requires_grad_()
    wanted = torch.log_softmax(exact, 1)[torch.arange(rows), targets]
    (wanted * above).sum().backward()
    assert exact.grad is not None
    for how in (token_logp, chunked_logp):
        logits = given.clone().requires_grad_()
        found = how(logits, targets)
        assert (found.dtype, found.shape) == (torch.float32, (rows,))
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-6)
        (found * above).sum().backward()
        assert logits.grad is not None
        assert logits.grad.dtype == dtype
        within = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(logits.grad.double(), exact.grad, atol=within / 10, rtol=within)


def test_logits_far_from_zero_stay_numbers() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4]], requires_grad=True)
    found = chunked_logp(logits, torch.tensor([1, 2]))
    assert found.tolist() == pytest.approx([-6e4, -math.log(3)], rel=1e-6)
    found.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 1, 0], [-1 / 3, -1 / 3, 2 / 3]]))


def test_in_chunks_no_second_copy_of_the_logits_is_kept() -> None:
    """For the backward pass: the logits as they are, the targets and two numbers a row."""
    logits = torch.randn(40, 64, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        chunked_logp(logits, torch.zeros(40, dtype=torch.long))
    assert sorted(tensor.numel() for tensor in kept) == [40, 40, 40, 40 * 64]
    assert {tensor.dtype for tensor in kept if tensor.numel() > 40} == {torch.bfloat16}


# --- within a model's own forward pass ------------------------------------------------------------------


def test_logits_are_no_result_of_a_wrapped_model(
    make_model: Callable[..., Any], encoded: list[Encoded]
) -> None:
    """accelerate's mixed precision makes float32 of all that a model returns: once its head has entered it,
    these are the log-probabilities alone. Whoever else calls the model gets its logits."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # what an earlier training left
    batch, model = collate(encoded[:3], 0), make_model()
    head, seen = TargetHead(model), list[torch.dtype]()
    expected = head.logp(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head.logp(model, batch)
    assert not torch.equal(rounded, expected)

    def watched(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return token_logp(logits, targets)

    head.token_logp = watched
    for enters, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        model = make_model()
        model.get_output_embeddings().register_forward_pre_hook(head._select)
        if enters:
            head.enter(model)
        wrapped = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
        seen.clear()
        assert torch.equal(head.logp(wrapped, batch), rounded)
        assert seen == [dtype]
        logits = wrapped(**batch.inputs).logits
        assert logits.shape[:2] == batch.inputs["input_ids"].shape
        assert [*model.state_dict()] == [*make_model().state_dict()]
    AcceleratorState._reset_state(reset_partial_state=True)
