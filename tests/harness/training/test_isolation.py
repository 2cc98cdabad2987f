"""What one training asks of its libraries stays that training's: TF32, and Liger's kernels."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from backends.vanilla import Vanilla
from harness.contracts import Encoded
from harness.training import isolation

NEWER = hasattr(torch.backends, "fp32_precision")


@pytest.fixture(autouse=True)
def _behind() -> Iterator[None]:
    with isolation.own_precision():
        yield


def precision() -> list[Any]:
    """As torch keeps it from 2.9 on, and before."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if NEWER:
        return [place.fp32_precision for place in (torch.backends, matmul, cudnn)]
    return [matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()]


def the_older_way() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def the_newer_way() -> None:
    if NEWER:
        torch.backends.fp32_precision = "tf32"
    else:
        the_older_way()


def both() -> None:
    """As transformers does and then accelerate."""
    the_newer_way()
    the_older_way()


def by_products() -> None:
    torch.set_float32_matmul_precision("high")


WAYS = [the_older_way, the_newer_way, both, by_products]


@pytest.mark.parametrize("turn_on", WAYS)
def test_float32_is_exact_whichever_way_tf32_came(turn_on: Callable[[], None]) -> None:
    assert not isolation.takes_tf32()
    turn_on()
    assert isolation.takes_tf32()
    isolation.exact_float32()
    assert not isolation.takes_tf32()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("before", [lambda: None, *WAYS])
@pytest.mark.parametrize("turn_on", [*WAYS, isolation.exact_float32])
def test_behind_it_all_is_as_before(turn_on: Callable[[], None], before: Callable[[], None]) -> None:
    before()
    kept = precision()
    with pytest.raises(KeyError), isolation.own_precision():  # noqa: PT012
        turn_on()
        raise KeyError
    assert precision() == kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_that_turns_tf32_on(
    dtype: str,
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.compile's helpers do so when the arguments and when the trainer are made. In float32 no step
    sees it, and behind either training it is off."""
    from harness.training import arguments, trainer

    seen: list[bool] = []

    class Turning(trainer.HookedTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            both()

    class Watching(Vanilla):
        def before_training(self, model: Any, context: Any) -> None:
            seen.append(isolation.takes_tf32())

        def loss(self, inputs: Any) -> Any:
            seen.append(isolation.takes_tf32())
            return super().loss(inputs)

    own = arguments.training_arguments

    def turning(*args: Any) -> Any:
        both()
        return own(*args)

    monkeypatch.setattr(arguments, "training_arguments", turning)
    monkeypatch.setattr(trainer, "HookedTrainer", Turning)
    train(make_model(), encoded[:8], Watching(), dtype=dtype)
    assert set(seen) == {dtype == "bfloat16"}
    assert not isolation.takes_tf32()


# --- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("allowed", [True, False])
def test_cudnns_attention_is_as_before(before: bool, allowed: bool) -> None:
    cuda = torch.backends.cuda
    kept = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(before)
    try:
        with pytest.raises(KeyError), isolation.cudnn_attention(allowed):  # noqa: PT012
            assert cuda.cudnn_sdp_enabled() == (before and allowed)
            cuda.enable_cudnn_sdp(not before)
            raise KeyError
        assert cuda.cudnn_sdp_enabled() == before
    finally:
        cuda.enable_cudnn_sdp(kept)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_training_leaves_cudnns_attention_alone(
    allowed: bool, make_model: Callable[..., Any], train: Callable[..., Any], encoded: list[Encoded]
) -> None:
    """From the comparison before its first step on, and no longer than it lasts."""
    seen: list[bool] = []

    class Watching(Vanilla):
        def before_training(self, model: Any, context: Any) -> None:
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())

        def loss(self, inputs: Any) -> Any:
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            return super().loss(inputs)

    before = torch.backends.cuda.cudnn_sdp_enabled()
    train(make_model(), encoded[:8], Watching(), cudnn_attention=allowed)
    assert seen == [before and allowed] * 2
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


# --- Liger -----------------------------------------------------------------------------------------


@pytest.fixture
def patches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """liger-kernel as its own patches have it: a function and a class of the module for every model of the
    kind, a method of a class, and the modules of the model."""
    from transformers.models.llama import modeling_llama

    asked: list[dict[str, Any]] = []
    rotate = modeling_llama.apply_rotary_pos_emb

    def rotated(*given: Any, **named: Any) -> Any:
        asked[-1]["rotations"] += 1
        return rotate(*given, **named)

    def apply(model: Any, **options: Any) -> None:
        asked.append({"model": model, "options": options, "rotations": 0})
        modeling_llama.apply_rotary_pos_emb = rotated
        modeling_llama.LlamaRMSNorm = type("LigerRMSNorm", (torch.nn.Module,), {})
        modeling_llama.LlamaMLP.forward = lambda self, x: self.down_proj(
            self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        )
        modeling_llama.LlamaMLP.added = 1
        modeling_llama.liger_added = 1

    fake = types.ModuleType("liger_kernel.transformers")
    fake._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    whole = types.ModuleType("liger_kernel")
    whole.__path__ = []
    monkeypatch.setitem(sys.modules, "liger_kernel", whole)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    from transformers.integrations import liger

    monkeypatch.setattr(liger, "is_liger_kernel_available", lambda: True)
    return asked


@pytest.mark.parametrize("fails", [False, True])
def test_ligers_kernels_are_in_one_training_alone(
    fails: bool,
    patches: list[dict[str, Any]],
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    encoded: list[Encoded],
) -> None:
    from transformers.models.llama import modeling_llama

    def stop(step: int, of: int) -> None:
        if fails:
            raise KeyError("stopped")

    before = dict(vars(modeling_llama))
    methods = dict(vars(modeling_llama.LlamaMLP))
    model = make_model()
    if fails:
        with pytest.raises(KeyError, match="stopped"):
            train(model, encoded[:8], Vanilla(), liger=True, on_step=stop)
    else:
        train(model, encoded[:8], Vanilla(), liger=True)
    (asked,) = patches
    assert asked["model"] is model
    assert asked["options"] == {"fused_linear_cross_entropy": False, "cross_entropy": False}
    assert asked["rotations"] == 2 * 2  # layers, in the comparison and in the step
    assert dict(vars(modeling_llama)) == before
    assert dict(vars(modeling_llama.LlamaMLP)) == methods


def test_ligers_kernels_are_compared_before_the_first_step(
    patches: list[dict[str, Any]],
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they compute otherwise is refused, and no step is taken."""
    from harness.contracts import HarnessError

    fake = sys.modules["liger_kernel.transformers"]
    apply = fake._apply_liger_kernel_to_instance

    def wrong(model: Any, **options: Any) -> None:
        apply(model, **options)
        model.model.norm.weight.data *= 1.5

    monkeypatch.setattr(fake, "_apply_liger_kernel_to_instance", wrong)
    steps: list[int] = []
    with pytest.raises(HarnessError, match="with Liger's kernels its log-probabilities are not those"):
        train(make_model(), encoded[:8], Vanilla(), liger=True, on_step=lambda step, of: steps.append(step))
    assert steps == []


def test_a_liger_of_another_time_is_one_line(
    patches: list[dict[str, Any]],
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.6 imports from transformers what version 5 no longer has."""
    from harness.contracts import HarnessError

    monkeypatch.delattr(sys.modules["liger_kernel.transformers"], "_apply_liger_kernel_to_instance")
    with pytest.raises(HarnessError, match=r"^training\.liger: liger-kernel cannot be used \(cannot import"):
        train(make_model(), encoded[:8], Vanilla(), liger=True)


def test_without_liger_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_architectures", lambda: pytest.fail("looked"))
    with isolation.liger(object(), False):
        pass
