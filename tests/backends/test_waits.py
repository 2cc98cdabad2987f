"""A training step waits for its device nowhere: what it computes there is looked at every ten steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import kernel_stand_in
import pytest
import tiny_models
import torch
from device_waits import Copies, Looks, WaitError, far_away

from harness.config import TrainingConfig
from harness.contracts import Encoded, LossInputs, Method
from harness.plugins import registry
from harness.training import adapters, attention, batching, trainer
from harness.training.attention import CAUSAL
from harness.training.logprobs import TargetHead

METHODS = list(registry.METHODS)
FAMILIES = {"llama": {}, "qwen3": {}, "gemma3_text": {"sliding_window": 6, "num_key_value_heads": 1}}
SETTINGS = [
    {"batching": "grouped", "dtype": "float32"},
    {"batching": "padding-free", "dtype": "bfloat16"},
    {"batching": "grouped", "dtype": "bfloat16", "tuning": "lora"},
]


@pytest.fixture(autouse=True)
def _on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_stand_in.put_in(monkeypatch)


def prepared(name: str, model: Any) -> Method:
    """A method in the middle of a training, as one is that goes on after an interruption: what its state
    holds lies on the CPU."""
    method: Method = registry.load("method", name)()
    if name == "constrained-sft":
        method.reference = {row.id: [-1.0] * (len(row.input_ids) - 2) for row in tiny_models.rows()}  # type: ignore[attr-defined]
    if name == "lisa":
        method.done, method.steps = 5, 10  # type: ignore[attr-defined]
        anchor = {n: torch.zeros(w.shape) for n, w in model.named_parameters() if w.requires_grad}
        method.anchor = anchor  # type: ignore[attr-defined]
    return method


def step_far_away(model: Any, method: Method, settings: Any) -> None:
    """Forwards and backwards over a micro-batch, as the trainer does it. There is no autocast far away."""
    head = TargetHead(model)
    given = batching.collate(tiny_models.rows(), 0, settings.batching == "padding-free")
    micro = given.to(far_away)
    logp = head.logp(model, micro)
    loss = method.loss(
        LossInputs(logp=logp, mask=micro.mask, ids=micro.ids, token_count=33, model=model, micro_batches=2)
    )
    assert loss.shape == ()
    loss.backward()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s.values()))
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("name", METHODS)
def test_no_method_waits_for_the_device(
    name: str, family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_precision", lambda states: states.dtype)
    given = TrainingConfig(**settings, device="cpu")
    model = tiny_models.build(family, **FAMILIES[family])
    model.set_attn_implementation(CAUSAL)
    model = adapters.with_adapters(model, given).to(far_away)
    method = prepared(name, model)
    waits = contextlib.nullcontext() if name != "lisa" else pytest.raises(WaitError)
    with waits, Copies():  # Lisa's anchor comes from the CPU in the first step after a restart
        step_far_away(model, method, given)
    if name == "lisa":
        with Copies():
            method.after_step(model, 5)
            method.anchor = {n: w.to(far_away) for n, w in method.anchor.items()}  # type: ignore[attr-defined]
            step_far_away(model, method, given)


def test_lisas_anchor_moves_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_precision", lambda states: states.dtype)
    model = tiny_models.build("llama").to(far_away)
    model.set_attn_implementation(CAUSAL)
    method: Any = prepared("lisa", model)
    step_far_away(model, method, TrainingConfig(device="cpu"))
    assert {anchor.device.type for anchor in method.anchor.values()} == {"meta"}


@pytest.mark.parametrize(
    "waits",
    [
        lambda logp: logp.sum().item(),
        lambda logp: float(logp.sum()),
        lambda logp: bool(logp.sum() > 0),
        lambda logp: logp.tolist(),
        lambda logp: logp[logp > 0],
        lambda logp: logp.nonzero(),
        lambda logp: logp.cpu(),
        lambda logp: torch.as_tensor(3, device=logp.device),
        lambda logp: torch.tensor([1.0], device=logp.device),
        lambda logp: torch.ones(3).to(logp.device),
        lambda logp: logp.copy_(torch.ones(2, 2)),
        lambda logp: torch.where(logp > 0)[0],
        lambda logp: logp.masked_select(logp > 0),
    ],
)
def test_what_waits_is_found(waits: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises((WaitError, RuntimeError, NotImplementedError)), Copies():
        waits(torch.ones(2, 2, device=far_away))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s.values()))
@pytest.mark.parametrize("name", METHODS)
def test_no_step_of_the_trainer_looks_at_a_value(
    name: str,
    settings: dict[str, Any],
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the micro-batches' forward passes to the clipped gradients, in every step of a real training."""
    if registry.load("method", name).prepares_with == "rewrites":
        pytest.skip("it trains as vanilla does")
    steps = 0

    def guarded(own: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, *given: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            with Looks():
                return own(self, *given, **named)

        return run

    for part in ("training_step", "_clip_grad_norm", "_get_grad_norm"):
        monkeypatch.setattr(trainer.HookedTrainer, part, guarded(getattr(trainer.HookedTrainer, part)))
    model = make_model(num_key_value_heads=1)
    train(
        model, encoded[:12], registry.load("method", name)(), safety_examples=encoded[30:36],
        batch_size=4, micro_batch_size=2, **settings,
    )  # fmt: skip
    assert steps == 3 * 3


def test_a_look_in_a_step_is_found(
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Looking(registry.load("method", "vanilla")):  # type: ignore[misc]
        def loss(self, inputs: LossInputs) -> Any:
            loss = super().loss(inputs)
            return loss if float(loss.detach()) > 0 else -loss

    own = trainer.HookedTrainer.training_step

    def guarded(self: Any, *given: Any, **named: Any) -> Any:
        with Looks():
            return own(self, *given, **named)

    monkeypatch.setattr(trainer.HookedTrainer, "training_step", guarded)
    with pytest.raises(WaitError, match="_local_scalar_dense"):
        train(make_model(), encoded[:8], Looking())
