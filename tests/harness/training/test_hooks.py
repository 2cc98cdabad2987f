"""What a method's hooks are given: gradients, the safety gradient, other models, layers, states and logits;
under full and LoRA tuning, in one process and in two, and across an interruption."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hook_methods
import pytest
import torch
from hook_methods import All, FrozenLayers, Penalised, SafeGrad, SafeLora
from safetensors.torch import load_file

from backends.vanilla import Vanilla
from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError, LossInputs, Method, ModelRef, TrainContext
from harness.training import flops
from harness.training.batching import global_batches, loss_tokens

Train = Callable[..., dict[str, Any]]
Weights = dict[str, torch.Tensor]
LORA = {"tuning": "lora", "lora": {"r": 4, "alpha": 8}, "learning_rate": 1e-2}
TUNINGS = pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])


def mean_loss(model: Any, batch: list[Encoded]) -> torch.Tensor:
    """Cross-entropy over a batch's answer tokens, row by row, by the model's own forward pass."""
    total, count = torch.zeros(()), 0
    for example in batch:
        ids = torch.tensor([example.input_ids])
        logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        trained = torch.tensor(example.trained[1:])
        total, count = total - logp[trained].sum(), count + int(trained.sum())
    return total / count


def gradients(model: Any, batch: list[Encoded]) -> Weights:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(mean_loss(model, batch), list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(trained.items(), found, strict=True)
    }


def assert_close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=2e-6, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- gradients -------------------------------------------------------------------------------------


@dataclass
class Watching(Vanilla):
    """Keeps what on_gradients sees, and what the safety gradient is then."""

    needs_safety_data = True
    calls: int = 1
    seen: list[tuple[Weights, list[Weights], Weights, Weights]] = field(default_factory=list)

    def on_gradients(self, model: Any, context: TrainContext) -> None:
        def own() -> Weights:
            return {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}

        before = own()
        asked = [context.safety_gradient() for _ in range(self.calls)]
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.seen.append((before, asked, own(), weights))


@TUNINGS
def test_on_gradients_sees_the_whole_batchs_gradient_before_it_is_clipped(
    tuning: dict[str, Any], make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    model, method = make_model(), Watching()
    train(
        model, encoded[:16], method, safety_examples=encoded[30:36], batch_size=8, micro_batch_size=3,
        max_grad_norm=1e-3, **tuning,
    )  # fmt: skip
    planned = global_batches(encoded[:16], 1, 8, 7)
    assert len(method.seen) == 2
    for batch, (before, (asked,), after, weights) in zip(planned, method.seen, strict=True):
        plain = at(make_model, weights, tuning)
        assert_close(before, gradients(plain, batch))
        assert all(torch.equal(before[name], after[name]) for name in before)  # .grad stays
        assert asked.keys() == before.keys()
        assert sum(float(one.square().sum()) for one in before.values()) ** 0.5 > 1e-3


def at(make_model: Callable[..., Any], weights: Weights, tuning: dict[str, Any]) -> Any:
    """A model with these weights, adapted as the trainer adapts it."""
    from harness.training import adapters

    model = adapters.with_adapters(make_model(), TrainingConfig(device="cpu", **tuning))
    model.load_state_dict(weights, strict=False)
    return model.eval()


@TUNINGS
@pytest.mark.parametrize("micro_batch_size", [8, 3])
def test_the_safety_gradient_is_that_of_the_batch_it_draws(
    micro_batch_size: int, tuning: dict[str, Any], make_model: Callable[..., Any], train: Train,
    encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from harness.training.safety_gradient import SafetyGradient

    drawn: list[list[Encoded]] = []
    own = SafetyGradient.batch

    def batch(self: SafetyGradient) -> list[Encoded]:
        drawn.append(own(self))
        return drawn[-1]

    monkeypatch.setattr(SafetyGradient, "batch", batch)
    safety, method = encoded[30:36], Watching(calls=2)
    train(
        make_model(), encoded[:16], method, safety_examples=safety, batch_size=8,
        micro_batch_size=micro_batch_size, **tuning,
    )  # fmt: skip
    assert len(drawn) == 4
    assert all(len(rows) == 8 and set(map(id, rows)) <= set(map(id, safety)) for rows in drawn)
    assert len({tuple(row.id for row in rows) for rows in drawn}) == 4  # another one each time
    for step, (_, asked, _, weights) in enumerate(method.seen):
        plain = at(make_model, weights, tuning)
        for call, found in enumerate(asked):
            assert_close(found, gradients(plain, drawn[2 * step + call]))


def test_epochs_of_safety_data_are_whole_and_reshuffled(encoded: list[Encoded]) -> None:
    from harness.training.safety_gradient import SafetyGradient

    rows = encoded[:6]
    model = torch.nn.Linear(1, 1)
    settings = TrainingConfig(device="cpu", batch_size=4)
    ask = SafetyGradient(model, None, Vanilla(), rows, settings, 0, seed=1)  # type: ignore[arg-type]
    stream: list[str] = []
    for step in range(6):
        ask.begin(step)
        stream += [row.id for row in ask.batch()]
    epochs = [stream[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == sorted(row.id for row in rows) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = SafetyGradient(model, None, Vanilla(), rows, settings, 0, seed=2)  # type: ignore[arg-type]
    assert [row.id for row in other.batch()] != stream[:4]


class Twice(Vanilla):
    """Asks for the gradient of twice the cross-entropy."""

    needs_safety_data = True

    def on_gradients(self, model: Any, context: TrainContext) -> None:
        found = context.safety_gradient(lambda inputs: 2 * Method.loss(self, inputs))
        self.found = found


def test_a_loss_of_ones_own(make_model: Callable[..., Any], train: Train, encoded: list[Encoded]) -> None:
    plain, twice = Watching(), Twice()
    for method in (plain, twice):
        train(make_model(), encoded[:8], method, safety_examples=encoded[30:36])
    assert_close(twice.found, {name: 2 * one for name, one in plain.seen[0][1][0].items()})


@TUNINGS
def test_the_optimizer_steps_by_what_the_hook_leaves(
    tuning: dict[str, Any], make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    class Stopped(Vanilla):
        def on_gradients(self, model: Any, context: TrainContext) -> None:
            self.before = self.before if hasattr(self, "before") else copied(model)
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.grad = torch.zeros_like(weight.grad)
            self.model = model

    method = Stopped()
    train(make_model(), encoded[:16], method, **tuning)
    assert all(torch.equal(value, method.before[name]) for name, value in copied(method.model).items())


def copied(model: Any) -> Weights:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_its_cost_is_counted(make_model: Callable[..., Any], train: Train, encoded: list[Encoded]) -> None:
    safety = encoded[30:36]
    plain = train(make_model(), encoded[:16], Vanilla())
    found = train(make_model(), encoded[:16], SafeGrad(), safety_examples=safety)
    assert plain["safety_gradient"] is None
    spent = found["safety_gradient"]
    assert spent["calls"] == 2
    lengths, trained = [], 0
    for batch in drawn(safety, steps=2, size=8):
        lengths += [len(row.input_ids) for row in batch]
        trained += sum(map(loss_tokens, batch))
    assert spent["tokens"] == sum(lengths)
    assert spent["flops"] == flops.count(make_model()).train(lengths, trained)
    assert found["train_flops"] == plain["train_flops"] + spent["flops"]
    assert found["loop_seconds"] > 0


def drawn(safety: list[Encoded], steps: int, size: int, seed: int = 7) -> list[list[Encoded]]:
    """The batches of the first call in each step, computed apart."""
    stream: list[Encoded] = []
    for epoch in range(-(-(steps + 1) * size // len(safety))):
        stream += random.Random(f"{seed} safety 0 {epoch}").sample(safety, len(safety))
    return [stream[step * size : (step + 1) * size] for step in range(1, steps + 1)]


def test_without_safety_data_it_is_one_line(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    with pytest.raises(HarnessError, match=r"'safe-grad' asks .* needs_safety_data = True") as caught:
        train(make_model(), encoded[:8], SafeGrad())
    assert "\n" not in str(caught.value)


def test_too_little_memory_for_it_means_smaller_micro_batches(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.training.safety_gradient import SafetyGradient

    whole, short = Watching(), Watching()
    train(make_model(), encoded[:8], whole, safety_examples=encoded[30:36])
    own, sizes = SafetyGradient._inputs, []

    def inputs(self: Any, batch: Any, micro: Any, count: int) -> LossInputs:
        sizes.append(len(micro))
        if len(micro) > 2:
            raise torch.OutOfMemoryError
        return own(self, batch, micro, count)

    monkeypatch.setattr(SafetyGradient, "_inputs", inputs)
    record = train(make_model(), encoded[:8], short, safety_examples=encoded[30:36])
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert [row["micro_batch_size"] for row in record["out_of_memory"]] == [4, 2]
    assert_close(short.seen[0][1][0], whole.seen[0][1][0])


@pytest.mark.parametrize("hook", ["before_training", "on_gradients"])
def test_a_hook_that_changes_weights_says_so(
    hook: str, make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    @torch.no_grad()
    def change(self: Any, model: Any, context: Any) -> None:
        next(model.parameters()).add_(1e-3)

    silent = type("Silent", (Vanilla,), {hook: change, "name": "silent"})
    said = type("Said", (silent,), {"uses_weights": True})
    with pytest.raises(HarnessError, match=f"'silent': {hook} changes weights .* uses_weights = True"):
        train(make_model(), encoded[:8], silent())
    train(make_model(), encoded[:8], said())


def test_a_hook_that_could_not_be_called_is_refused_before_the_training(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    class Old(Vanilla):
        def after_training(self, model: Any) -> None:  # type: ignore[override]
            pass

    steps: list[int] = []
    with pytest.raises(HarnessError, match=r"after_training does not take \(model, context\)"):
        train(make_model(), encoded[:8], Old(), on_step=lambda step, of: steps.append(step))
    assert steps == []


def test_a_step_with_a_safety_gradient_waits_nowhere(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    from device_waits import Looks

    from harness.training.loop import HookedTrainer

    own, steps = HookedTrainer.training_step, []

    def guarded(self: Any, *given: Any, **named: Any) -> Any:
        steps.append(1)
        with Looks():
            return own(self, *given, **named)

    monkeypatch.setattr(HookedTrainer, "training_step", guarded)
    train(make_model(), encoded[:16], SafeGrad(), safety_examples=encoded[30:36], micro_batch_size=2)
    assert len(steps) == 2


def test_gradient_checkpointing_changes_no_safety_gradient(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    plain, kept = Watching(), Watching()
    for method, less in ((plain, False), (kept, True)):
        train(make_model(), encoded[:8], method, safety_examples=encoded[30:36], gradient_checkpointing=less)
    assert_close(kept.seen[0][1][0], plain.seen[0][1][0])


# --- other models ----------------------------------------------------------------------------------


@pytest.fixture
def unaligned(make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    """Another model of the same shape, on disk."""
    folder = tmp_path / "unaligned"
    model = make_model(initializer_range=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@TUNINGS
def test_after_training_projects_onto_another_models_weights(
    tuning: dict[str, Any], make_model: Callable[..., Any], train: Train, encoded: list[Encoded],
    unaligned: Path, tmp_path: Path,
) -> None:  # fmt: skip
    ref = ModelRef(str(unaligned))
    plain, projected = tmp_path / "plain", tmp_path / "projected"
    train(make_model(), encoded[:16], Vanilla(), folder=plain, **tuning)
    method = SafeLora(unaligned=ref)
    record = train(make_model(), encoded[:16], method, folder=projected, models={ref: unaligned}, **tuning)
    base, other = copied(make_model()), load_file(unaligned / "model.safetensors")
    file = "adapter_model.safetensors" if tuning else "model.safetensors"
    one, two = (load_file(folder / "output" / "checkpoint" / file) for folder in (plain, projected))
    changed = 0
    for name in one:
        key = name.removeprefix("base_model.model.").replace(".lora_B.weight", ".weight") if tuning else name
        matrix = ".lora_B." in name if tuning else one[name].ndim == 2 and "embed" not in name
        if not matrix:
            assert torch.equal(one[name], two[name]), name
            continue
        changed += 1
        start = torch.zeros_like(one[name]).double() if tuning else base[name].double()
        v = base[key].double() - other[key].double()
        expected = start + v @ v.T / v.norm() @ (one[name].double() - start)
        torch.testing.assert_close(two[name].double(), expected, atol=1e-5, rtol=1e-4)
    assert record["method"]["projected"] == changed > 0
    assert record["after_training_seconds"] > 0


def test_another_models_weights_are_as_precise_as_its_files(
    make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    from harness.training.other_models import OtherModels

    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        model = make_model().to(dtype)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        other = OtherModels({"x": folder}, make_model())(ModelRef("x"))
        assert set(other.names()) == {name for name, _ in model.named_parameters()}
        for name, value in model.named_parameters():
            found = other.weight(name)
            assert found.dtype == torch.float32
            assert torch.equal(found, value.float())
            assert other.factors(name.removesuffix(".weight")) is None


def test_an_adapters_factors_and_its_weights_with_them(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], tokenizer: Any, tmp_path: Path
) -> None:
    from harness.training.other_models import OtherModels

    base = tmp_path / "base"
    make_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    train(model, encoded[:16], Vanilla(), folder=tmp_path / "tuned", **LORA)
    adapter = tmp_path / "tuned" / "output" / "checkpoint"
    other = OtherModels({"safe": adapter}, make_model())(ModelRef("safe"))
    stored = load_file(adapter / "adapter_model.safetensors")
    whole = copied(make_model())
    module = "model.layers.1.self_attn.q_proj"
    a, b, scaling = other.factors(f"base_model.model.{module}") or pytest.fail("no factors")
    assert torch.equal(a, stored[f"base_model.model.{module}.lora_A.weight"])
    assert torch.equal(b, stored[f"base_model.model.{module}.lora_B.weight"])
    assert scaling == 2.0
    assert float(b.norm()) > 0
    torch.testing.assert_close(other.weight(f"{module}.weight"), whole[f"{module}.weight"] + 2.0 * b @ a)
    assert torch.equal(other.weight("model.norm.weight"), whole["model.norm.weight"])
    assert other.factors("model.norm") is None


def test_another_model_that_does_not_fit_is_one_line(
    make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    from harness.training.other_models import OtherModels

    folder = tmp_path / "wide"
    make_model(intermediate_size=48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    others = OtherModels({"wide": folder}, make_model())
    other = others(ModelRef("wide"))
    with pytest.raises(HarnessError, match=r"'wide': .*down_proj.* shape \(16, 48\), .* model's \(16, 32\)"):
        other.weight("model.layers.0.mlp.down_proj.weight")
    with pytest.raises(HarnessError, match="'wide' has no weight 'nothing'"):
        other.weight("nothing")
    with pytest.raises(HarnessError, match=r"'away' is named by no option .* ModelRef"):
        others(ModelRef("away"))
    assert others.seconds > 0


# --- layers ----------------------------------------------------------------------------------------


@TUNINGS
def test_frozen_layers(
    tuning: dict[str, Any], make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    class Kept(FrozenLayers):
        def before_training(self, model: Any, context: TrainContext) -> None:
            super().before_training(model, context)
            self.model, self.start = model, copied(model)

    method = Kept(frozen=(1,))
    record = train(make_model(), encoded[:16], method, **tuning)
    assert record["method"] == {"layers": 2}
    for name, value in method.model.named_parameters():
        trains = "lora_" in name if tuning else True
        moved = trains and ".layers.1." not in name
        assert torch.equal(value, method.start[name]) == (not moved), name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3"])
@TUNINGS
def test_layers_are_the_blocks_of_any_decoder(kind: str, tuning: dict[str, Any]) -> None:
    import tiny_models

    from harness.training import adapters
    from harness.training.layers import layers

    model = tiny_models.build(kind)
    own = list(model.get_decoder().h if kind == "gpt2" else model.get_decoder().layers)
    adapted = adapters.with_adapters(model, TrainingConfig(device="cpu", **tuning))
    found = layers(adapted)
    assert len(found) == model.config.get_text_config().num_hidden_layers
    assert all(one is other for one, other in zip(found, own, strict=True))
    if tuning:
        assert all(any("lora_" in name for name, _ in block.named_parameters()) for block in found)


def test_a_model_without_such_blocks_is_one_line(make_model: Callable[..., Any]) -> None:
    from harness.training.layers import layers

    model = make_model()
    model.config.num_hidden_layers = 3
    with pytest.raises(HarnessError, match="'llama': its 3 decoder blocks cannot be told"):
        layers(model)


# --- states and logits -----------------------------------------------------------------------------


@TUNINGS
@pytest.mark.parametrize(
    "how", [{}, {"batching": "padding-free"}, {"chunked_loss": True}, {"gradient_checkpointing": True}]
)
def test_states_and_logits_are_the_models_own(
    how: dict[str, Any], tuning: dict[str, Any], make_model: Callable[..., Any], train: Train,
    encoded: list[Encoded],
) -> None:  # fmt: skip
    rows = {example.id: example for example in encoded[:8]}
    seen: list[str] = []

    class Comparing(Penalised):
        def loss(self, inputs: LossInputs) -> Any:
            logits, states = inputs.logits.detach(), inputs.hidden_states.detach()
            assert logits.shape[:2] == inputs.mask.shape == states.shape[1:3]
            for place, name in enumerate(inputs.ids):
                example = rows[name]
                with torch.no_grad():
                    own = inputs.model(input_ids=torch.tensor([example.input_ids]), output_hidden_states=True)
                at = [i - 1 for i in range(1, len(example.input_ids)) if example.trained[i]]
                count = len(at)
                assert inputs.mask[place].tolist() == [True] * count + [False] * (logits.shape[1] - count)
                torch.testing.assert_close(logits[place, :count], own.logits[0, at], atol=1e-4, rtol=1e-4)
                assert len(states) == len(own.hidden_states) == 3
                for layer, expected in zip(states, own.hidden_states, strict=True):
                    torch.testing.assert_close(layer[place, :count], expected[0, at], atol=1e-4, rtol=1e-4)
                assert not logits[place, count:].any()
                assert not states[:, place, count:].any()
                ids = torch.tensor(example.input_ids)[[i + 1 for i in at]]
                logp = logits[place, :count].log_softmax(-1).gather(-1, ids[:, None])[:, 0]
                torch.testing.assert_close(inputs.logp.detach()[place, :count], logp, atol=1e-5, rtol=1e-4)
                seen.append(name)
            return super().loss(inputs)

    train(make_model(), encoded[:8], Comparing(), micro_batch_size=3, **how, **tuning)
    assert sorted(seen) == sorted(rows)


def test_nobody_else_gets_them(make_model: Callable[..., Any], train: Train, encoded: list[Encoded]) -> None:
    class Looking(Vanilla):
        def loss(self, inputs: LossInputs) -> Any:
            assert inputs.logits is None
            assert inputs.hidden_states is None
            return super().loss(inputs)

    train(make_model(), encoded[:8], Looking())


# --- an interruption, several processes ------------------------------------------------------------


class StoppedError(Exception):
    pass


@TUNINGS
def test_what_hooks_keep_survives_an_interruption(
    tuning: dict[str, Any], make_model: Callable[..., Any], train: Train, encoded: list[Encoded],
    unaligned: Path, tmp_path: Path,
) -> None:  # fmt: skip
    ref = ModelRef(str(unaligned))
    settings = {
        "safety_examples": encoded[30:36],
        "models": {ref: unaligned},
        "batch_size": 4,
        "save_steps": 2,
        **tuning,
    }
    whole = train(make_model(), encoded[:24], All(unaligned=ref), folder=tmp_path / "whole", **settings)

    def stop(step: int, of: int) -> None:
        if step == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(
            make_model(), encoded[:24], All(unaligned=ref), folder=tmp_path / "part", on_step=stop, **settings
        )
    resumed = train(make_model(), encoded[:24], All(unaligned=ref), folder=tmp_path / "part", **settings)
    assert resumed["resumed_at_step"] == 4
    for key in ("losses", "safety_gradient", "train_flops", "method"):
        assert resumed[key] == whole[key], key
    assert whole["method"]["steps"] == len(set(whole["method"]["drawn"])) == 6
    file = "adapter_model.safetensors" if tuning else "model.safetensors"
    one, two = (load_file(tmp_path / n / "output" / "checkpoint" / file) for n in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_look_at_an_epoch_leaves_draws_and_record_alone(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    class Drawing(Vanilla):
        def after_training(self, model: Any, context: TrainContext) -> None:
            context.record.setdefault("drawn", []).append(context.rng.random())

    plain = train(make_model(), encoded[:8], Drawing(), epochs=3)
    looked = train(make_model(), encoded[:8], Drawing(), epochs=3, snapshots=True)
    assert looked["method"] == plain["method"]
    assert len(plain["method"]["drawn"]) == 1


@pytest.mark.parametrize("distributed", ["zero2", "zero3", "fsdp2"])
def test_sharded_gradients_are_refused(distributed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.training import hook_checks

    settings = TrainingConfig(num_processes=2, distributed=distributed)
    hook_checks.check_sharding(SafeGrad(), settings)  # one process alone holds them
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        HarnessError, match=f"'safe-grad' works on the gradients, which {distributed} .* to ddp"
    ):
        hook_checks.check_sharding(SafeGrad(), settings)
    hook_checks.check_sharding(SafeGrad(), TrainingConfig(num_processes=2, distributed="ddp"))
    hook_checks.check_sharding(Penalised(), settings)


def test_the_methods_file_is_one_plugin() -> None:
    assert Path(hook_methods.__file__ or "").name == "hook_methods.py"
