"""The shared trainer is the recipe's optimisation, whatever the micro-batch size, with hooks in order."""

from __future__ import annotations

import math
import random
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backends.constrained_sft import ConstrainedSFT
from backends.lisa import Lisa
from backends.vanilla import Vanilla
from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError, LossInputs, Method, TrainContext
from harness.training import arguments, hook_checks, logprobs, step_probe, trainer
from harness.training.batching import global_batches
from harness.training.logprobs import TargetHead, answer_logp

Weights = dict[str, torch.Tensor]
Train = Callable[..., dict[str, Any]]


def distance(a: Weights, b: Weights) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_the_planned_order_is_the_trained_order(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    """For every micro-batch size: the same stream, so that methods and machines differ in nothing else."""
    expected = [e.id for batch in global_batches(encoded[:12], 2, 4, seed=7) for e in batch]
    for micro in (1, 2, 4):
        method = Recorder()
        settings = {"epochs": 2, "batch_size": 4, "micro_batch_size": micro}
        train(make_model(), encoded[:12], method, batching="in-order", **settings)
        assert [name for inputs in method.seen for name in inputs.ids] == expected
        grouped = Recorder()
        train(make_model(), encoded[:12], grouped, **settings)
        trained = [name for inputs in grouped.seen for name in inputs.ids]
        batches = [trained[start : start + 4] for start in range(0, 24, 4)]
        planned = [expected[start : start + 4] for start in range(0, 24, 4)]
        assert [sorted(batch) for batch in batches] == [sorted(batch) for batch in planned]


# --- the optimisation ------------------------------------------------------------------------------


def plain_torch_loop(
    model: Any, batches: list[list[Encoded]], learning_rate: float
) -> tuple[list[float], list[float]]:
    """RECIPE §2 without the harness: AdamW (0.5, 0.999), linear decay to 0, clip 1.0. Losses and norms."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.5, 0.999), eps=1e-8, weight_decay=0.0
    )
    losses, norms = [], []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / len(batches))
        optimizer.zero_grad()
        tokens = sum(sum(example.trained) for example in batch)
        total = torch.zeros(())
        for example in batch:  # one row at a time: no padding anywhere
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
            logp = torch.log_softmax(logits.float(), dim=-1)
            for position in range(1, len(example.input_ids)):
                if example.trained[position]:
                    total = total - logp[position - 1, example.input_ids[position]]
        loss = total / tokens
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def test_equals_a_plain_torch_loop(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    weights: Callable[[Any], Weights],
) -> None:
    """Five steps, the last on a ragged batch, with gradients over and under the clip norm."""
    examples = encoded[:9]
    ours, theirs = make_model(), make_model()
    record = train(ours, examples, Vanilla(), epochs=2, batch_size=4, micro_batch_size=2, learning_rate=3e-3)
    batches = global_batches(examples, 2, 4, seed=7)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 2]
    losses, norms = plain_torch_loop(theirs, batches, 3e-3)
    assert max(norms) > 1.2  # else the clip would not be tested
    assert record["losses"] == pytest.approx(losses, abs=1e-5)
    assert distance(weights(ours), weights(theirs)) < 1e-5
    assert distance(weights(ours), weights(make_model())) > 3e-3


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """``scarce(4)``: a device whose memory does to train on 4 examples at once, found out in the
    middle of the backward pass. The list that is returned gets how many were tried."""

    def limit(most: int) -> list[int]:
        tried: list[int] = []
        logp = TargetHead.logp

        class OutOfMemory(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
                return values.clone()

            @staticmethod
            def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
                raise torch.OutOfMemoryError

        def run(head: TargetHead, model: Any, micro: Any) -> torch.Tensor:
            tried.append(len(micro.ids))
            if len(micro.ids) > most:
                hook = model.get_output_embeddings().register_forward_pre_hook(
                    lambda module, given: (OutOfMemory.apply(given[0]), *given[1:])
                )
                try:
                    return logp(head, model, micro)
                finally:
                    hook.remove()
            return logp(head, model, micro)

        monkeypatch.setattr(TargetHead, "logp", run)
        return tried

    return limit


@pytest.mark.parametrize("batching", ["grouped", "in-order"])
def test_out_of_memory_means_smaller_micro_batches_and_the_same_training(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    weights: Callable[[Any], Weights],
    scarce: Callable[[int], list[int]],
    batching: str,
) -> None:
    """The gradients of the attempt that failed half way are dropped: the last micro-batches of the first step
    are the ones that do not fit."""
    settings = {"batch_size": 16, "micro_batch_size": 5, "batching": batching}
    plain, short = make_model(), make_model()
    whole = train(plain, encoded[:25], Vanilla(), **settings)
    tried = scarce(2)
    record = train(short, encoded[:25], Vanilla(), **settings)
    assert whole["out_of_memory"] == []
    assert record["out_of_memory"] == [{"step": 1, "micro_batch_size": 2}]
    assert tried[:2] == [5, 2]
    assert max(tried[1:]) == 2
    assert record["losses"] == pytest.approx(whole["losses"], abs=1e-5)
    assert distance(weights(plain), weights(short)) < 1e-5


def test_a_restart_cuts_the_steps_as_the_interrupted_training_did(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    weights: Callable[[Any], Weights],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Out of memory at steps 4 and 6, by chance: when it goes on from step 2 there is memory enough, and the
    micro-batches are nonetheless those of an uninterrupted training, to the bit."""
    settings = {"epochs": 2, "batch_size": 8, "micro_batch_size": 4, "save_steps": 2}
    logp, cut = TargetHead.logp, []
    failing = {4: 4, 6: 2}  # step: micro-batches of this size do not fit

    def run(folder: Path, *, stop: int | None = None, scarce: bool = True) -> tuple[dict[str, Any], Weights]:
        done, model = 0, make_model()
        cut.clear()

        def on_step(step: int, of: int) -> None:
            nonlocal done
            done = step
            if step == stop:
                raise StopError

        def sometimes(head: TargetHead, model: Any, micro: Any) -> torch.Tensor:
            cut.append((done + 1, len(micro.ids)))
            if scarce and len(micro.ids) == failing.get(done + 1):
                raise torch.OutOfMemoryError
            return logp(head, model, micro)

        monkeypatch.setattr(TargetHead, "logp", sometimes)
        record = train(model, encoded[:32], Vanilla(), folder=folder, on_step=on_step, **settings)
        return record, weights(model)

    whole, trained = run(tmp_path / "whole")
    assert whole["out_of_memory"] == [
        {"step": 4, "micro_batch_size": 2},
        {"step": 6, "micro_batch_size": 1},
    ]
    with pytest.raises(StopError):
        run(tmp_path / "part", stop=7)
    state = tmp_path / "part" / "state"
    for newer in ("checkpoint-4", "checkpoint-6"):
        assert not (state / newer).exists() or newer == "checkpoint-6"
    with (state / "out-of-memory.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "micro_')  # a line that was being written
    again, resumed = run(tmp_path / "part", scarce=False)
    assert again["resumed_at_step"] == 6
    assert again["out_of_memory"] == whole["out_of_memory"]
    assert {size for step, size in cut} == {1}
    assert again["losses"] == whole["losses"]
    assert all(torch.equal(resumed[name], trained[name]) for name in trained)
    shutil.rmtree(state / "checkpoint-6", ignore_errors=True)
    afresh, begun = run(tmp_path / "part", scarce=False)  # its states are gone, what it learnt is not
    assert afresh["resumed_at_step"] is None or afresh["resumed_at_step"] == 8
    assert all(torch.equal(begun[name], trained[name]) for name in trained)


def test_a_restart_from_before_the_halving_cuts_larger_until_then(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "out-of-memory.jsonl").write_text(
        '\n{"step": 3, "micro_batch_size": 2}\n\n{"step": 2, "mic\n{"step": "x"}\n[3]\n', encoding="utf-8"
    )
    sizes: list[int] = []
    logp = TargetHead.logp

    def watch(head: TargetHead, model: Any, micro: Any) -> torch.Tensor:
        sizes.append(len(micro.ids))
        return logp(head, model, micro)

    monkeypatch.setattr(TargetHead, "logp", watch)
    record = train(make_model(), encoded[:32], Vanilla(), folder=tmp_path, batch_size=8, micro_batch_size=4)
    assert sizes == [4, 4, 4, 4, *[2] * 8]
    assert record["out_of_memory"] == [{"step": 3, "micro_batch_size": 2}]


def test_padding_is_counted_as_the_steps_were_cut(encoded: list[Encoded]) -> None:
    settings = TrainingConfig(batching="in-order", micro_batch_size=4, batch_size=4)
    steps = trainer.Steps([encoded[:4], encoded[4:8]], settings, 0, 0, 1)

    def padding(rows: list[Encoded]) -> int:
        lengths = [len(row.input_ids) for row in rows]
        return max(lengths) * len(lengths) - sum(lengths)

    assert steps.padding() == padding(encoded[:4]) + padding(encoded[4:8])
    steps.cut_smaller(1, 2)
    cut = padding(encoded[4:6]) + padding(encoded[6:8])
    assert steps.padding() == padding(encoded[:4]) + cut


@pytest.mark.parametrize("devices", [0, 1, 2, 8])
def test_one_process_uses_one_device(devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would wrap the model for all that it sees (nn.DataParallel)."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # they are counted and not touched
    places = trainer.Places(tmp_path, tmp_path, tmp_path)
    for device in ("cuda", "cpu"):
        told = arguments.training_arguments(TrainingConfig(device=device), 1, places)
        assert told.n_gpu == (min(1, devices) if device == "cuda" else 0)
        assert told.parallel_mode.value == "not_parallel"


def test_gradients_of_a_failed_attempt_do_not_count(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    weights: Callable[[Any], Weights],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two micro-batches have been added up when the third does not fit."""
    settings = {"batch_size": 16, "micro_batch_size": 4}
    plain, short = make_model(), make_model()
    whole = train(plain, encoded[:16], Vanilla(), **settings)
    logp, calls = TargetHead.logp, []

    def third_fails(head: TargetHead, model: Any, micro: Any) -> torch.Tensor:
        calls.append(len(micro.ids))
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return logp(head, model, micro)

    monkeypatch.setattr(TargetHead, "logp", third_fails)
    record = train(short, encoded[:16], Vanilla(), **settings)
    assert calls == [4, 4, 4, *[2] * 8]
    assert record["losses"] == pytest.approx(whole["losses"], abs=1e-5)
    assert distance(weights(plain), weights(short)) < 1e-5


def test_no_memory_for_one_example_is_one_line(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], scarce: Callable[[int], list[int]]
) -> None:
    tried = scarce(0)
    with pytest.raises(
        HarnessError, match=r"no memory to train on one example: set training\.gradient_checkp"
    ):
        train(make_model(), encoded[:8], Vanilla(), batch_size=8)
    assert tried == [8, 4, 2, 1]


def test_the_seed_models_values_need_no_more_memory_than_there_is(
    make_model: Callable[..., Any],
    encoded: list[Encoded],
    answer_logp: Callable[..., list[list[float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = answer_logp(make_model(), encoded[:9], micro_batch_size=9)
    logp, tried = TargetHead.logp, []

    def scarce(head: TargetHead, model: Any, micro: Any) -> torch.Tensor:
        tried.append(len(micro.ids))
        if len(micro.ids) > 3:
            raise torch.OutOfMemoryError
        return logp(head, model, micro)

    monkeypatch.setattr(TargetHead, "logp", scarce)
    found = answer_logp(make_model(), encoded[:9], micro_batch_size=9)
    assert max(tried) == 9
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("make_method", [Vanilla, ConstrainedSFT, lambda: ConstrainedSFT(min_weight=1e-3)])
def test_micro_batches_do_not_matter(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    make_method: Callable[[], Method],
    weights: Callable[[Any], Weights],
) -> None:
    """16 x 1, 4 x 4, 1 x 16: a mean over the global batch's tokens; the second batch is ragged (9 rows)."""
    results = []
    for micro in (16, 4, 1):
        model = make_model()
        record = train(model, encoded[:25], make_method(), batch_size=16, micro_batch_size=micro)
        results.append((record["losses"], weights(model)))
    assert len(results[0][0]) == 2
    for losses, trained in results[1:]:
        assert losses == pytest.approx(results[0][0], abs=1e-5)
        assert distance(trained, results[0][1]) < 1e-5


def test_same_seed_same_bits(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    weights: Callable[[Any], Weights],
) -> None:
    runs = []
    for seed in (1, 1, 2):
        model = make_model()
        torch.manual_seed(random.randrange(2**31))  # what happened before in the process does not matter
        record = train(model, encoded[:16], Vanilla(), seed=seed, micro_batch_size=4)
        runs.append((weights(model), record["losses"]))
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])
    assert runs[0][1] == runs[1][1]
    assert distance(runs[0][0], runs[2][0]) > 0


@pytest.mark.parametrize(
    ("model_options", "settings"),
    [({"attention_dropout": 0.9}, {}), ({}, {"gradient_checkpointing": True})],
    ids=["dropout is off", "gradient checkpointing"],
)
def test_changes_nothing(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    model_options: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    base = train(make_model(), encoded[:16], Vanilla())
    changed = train(make_model(**model_options), encoded[:16], Vanilla(), **settings)
    assert changed["losses"] == pytest.approx(base["losses"], abs=1e-5)


def test_dropout_layers_are_off(train: Train, encoded: list[Encoded], tokenizer: Any) -> None:
    """GPT-2's dropout is in layers of their own, where Llama's is an attribute of the attention."""
    from transformers import GPT2Config, GPT2LMHeadModel

    losses = []
    for rate in (0.0, 0.9):
        torch.manual_seed(0)
        small = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=256,
            resid_pdrop=rate,
            embd_pdrop=rate,
            attn_pdrop=rate,
        )
        losses.append(train(GPT2LMHeadModel(small), encoded[:8], Vanilla(), micro_batch_size=4)["losses"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# --- the hooks -------------------------------------------------------------------------------------


@dataclass
class Recorder(Vanilla):
    """Vanilla that writes down what the trainer asks of it."""

    events: list[Any] = field(default_factory=list)
    seen: list[LossInputs] = field(default_factory=list)
    model_weights: list[Weights] = field(default_factory=list)
    insert: list[Encoded] = field(default_factory=list)

    def _keep(self, model: Any) -> None:
        self.model_weights.append({n: p.detach().clone() for n, p in model.named_parameters()})

    def before_training(self, model: Any, context: TrainContext) -> None:
        self.events.append(("before_training", len(context.examples)))
        self._keep(model)
        context.record["said"] = "before"

    def batches(self, batches: list[list[Encoded]], context: TrainContext) -> list[list[Encoded]]:
        self.events.append(("batches", len(batches)))
        return [new for batch in batches for new in (batch, self.insert)] if self.insert else batches

    def loss(self, inputs: LossInputs) -> Any:
        self.events.append("loss")
        self.seen.append(inputs)
        return super().loss(inputs)

    def after_step(self, model: Any, step: int) -> None:
        self.events.append(("after_step", step))
        self._keep(model)

    def after_training(self, model: Any, context: Any) -> None:
        self.events.append("after_training")
        self._keep(model)


def test_hooks_are_called_in_order(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    weights: Callable[[Any], Weights],
) -> None:
    method, model = Recorder(), make_model()
    record = train(model, encoded[:6], method, batch_size=4, micro_batch_size=2)
    assert method.events == [
        ("before_training", 6),
        ("batches", 2),
        "loss",
        "loss",
        ("after_step", 1),
        "loss",
        ("after_step", 2),
        "after_training",
    ]
    seed, first, second, last = method.model_weights
    assert distance(seed, weights(make_model())) == 0
    assert distance(first, seed) > 0
    assert distance(second, first) > 0
    assert distance(last, second) == 0
    assert record["method"] == {"said": "before"}


def test_loss_inputs_say_what_they_promise(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    """Seven rows as 4 + 3, two at a time: the last global batch has micro-batches of 2 and 1."""
    method, model = Recorder(), make_model()
    train(model, encoded[:7], method, batch_size=4, micro_batch_size=2)
    assert [len(inputs.ids) for inputs in method.seen] == [2, 2, 2, 1]
    assert [inputs.micro_batches for inputs in method.seen] == [2, 2, 2, 2]
    by_id = {example.id: example for example in encoded}
    answers = [[sum(by_id[name].trained) for name in inputs.ids] for inputs in method.seen]
    assert [int(inputs.token_count) for inputs in method.seen] == [
        sum(answers[0] + answers[1]),
        sum(answers[0] + answers[1]),
        sum(answers[2] + answers[3]),
        sum(answers[2] + answers[3]),
    ]
    for inputs, counts in zip(method.seen, answers, strict=True):
        assert inputs.mask.sum(dim=1).tolist() == counts
        assert inputs.logp.shape == inputs.mask.shape
        assert inputs.logp.dtype == torch.float32
        assert inputs.model is model


def test_a_second_data_stream(make_model: Callable[..., Any], train: Train, encoded: list[Encoded]) -> None:
    """``batches`` interleaves four rows of its own: they are trained on, counted, and in the schedule."""
    own = encoded[30:34]
    method = Recorder(insert=own)
    record = train(make_model(), encoded[:8], method, batch_size=4, batching="in-order")
    assert record["steps"] == 4
    planned = global_batches(encoded[:8], 1, 4, seed=7)
    assert [inputs.ids for inputs in method.seen] == [
        [e.id for e in batch] for batch in (planned[0], own, planned[1], own)
    ]
    trained_on = [*encoded[:8], *own, *own]
    assert record["train_tokens"] == sum(len(e.input_ids) for e in trained_on)
    assert len(record["losses"]) == 4
    *_, third, fourth, end = method.model_weights  # end: after_training
    assert distance(third, fourth) > 0
    assert distance(fourth, end) == 0


def test_batches_of_another_size_are_refused(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    """Ten rows end in a batch of two: what is inserted after it would silently be cut elsewhere."""
    with pytest.raises(
        HarnessError, match=r"method 'vanilla' broke its contract: .* 4 examples, not \[2, 4\]"
    ):
        train(make_model(), encoded[:10], Recorder(insert=encoded[30:34]), batch_size=4)


def test_counts(make_model: Callable[..., Any], train: Train, encoded: list[Encoded]) -> None:
    examples, model = encoded[:10], make_model()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = 2 * sum(len(example.input_ids) for example in examples)
    answers = 2 * sum(sum(example.trained) for example in examples)
    record = train(model, examples, Vanilla(), epochs=2)
    assert (record["steps"], len(record["losses"])) == (3, 3)
    assert record["train_tokens"] == tokens
    assert record["answer_tokens"] == answers
    assert record["extra_forward_tokens"] == 0
    assert record["parameters"] == parameters
    assert record["extra_forward_flops"] == 0
    lengths = sorted(len(example.input_ids) for example in examples)
    assert record["padding_tokens"] > 0
    assert train(make_model(), examples, Vanilla(), batching="padding-free")["padding_tokens"] == 0
    assert train(make_model(), examples, Vanilla(), micro_batch_size=1)["padding_tokens"] == 0
    whole = train(make_model(), examples, Vanilla(), batch_size=10, micro_batch_size=10)
    assert whole["padding_tokens"] == 10 * lengths[-1] - sum(lengths)
    constrained = train(make_model(), examples, ConstrainedSFT(), epochs=2)
    assert constrained["extra_forward_tokens"] == tokens // 2
    assert constrained["train_flops"] == record["train_flops"]
    assert 0.25 < constrained["extra_forward_flops"] / (record["train_flops"] / 2) < 0.4  # forward: a third


def test_progress_is_told_once_a_step(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    told: list[tuple[int, int]] = []
    train(
        make_model(), encoded[:10], Vanilla(), batch_size=4, on_step=lambda step, of: told.append((step, of))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_loss_that_is_no_number_ends_the_training(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    @dataclass
    class Diverges(Vanilla):
        def loss(self, inputs: LossInputs) -> Any:
            return super().loss(inputs) * (math.nan if encoded[3].id in inputs.ids else 1.0)

    with pytest.raises(HarnessError, match=r"training diverged: the loss of step \d is nan; lower"):
        train(make_model(), encoded[:12], Diverges(), batch_size=4, micro_batch_size=4)


# --- tokens without loss ---------------------------------------------------------------------------


@pytest.mark.parametrize("make_method", [Vanilla, ConstrainedSFT])
def test_rows_without_any_loss_do_no_harm(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    make_method: Callable[[], Method],
    weights: Callable[[Any], Weights],
) -> None:
    """All-masked micro-batches and (last) a whole global batch of them: no NaN, no weight in the mean."""
    silent = [
        Encoded(f"silent-{i}", e.input_ids, [False] * len(e.trained)) for i, e in enumerate(encoded[:4])
    ]

    @dataclass
    class InOrder(make_method):  # type: ignore[valid-type, misc]
        def batches(self, batches: list[list[Encoded]], context: TrainContext) -> list[list[Encoded]]:
            return [[encoded[0], silent[0], encoded[1], silent[1]], silent]

        def loss(self, inputs: LossInputs) -> Any:
            loss = super().loss(inputs)
            assert torch.isfinite(loss)
            assert (loss == 0) == (not inputs.mask.any())
            return loss

    model = make_model()
    record = train(model, [*encoded[:2], *silent], InOrder(), batch_size=4, micro_batch_size=1)
    assert all(math.isfinite(loss) for loss in record["losses"])
    assert record["losses"][1] == 0.0
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    alone = train(make_model(), encoded[:2], make_method(), batch_size=2, micro_batch_size=1)
    assert record["losses"][0] == pytest.approx(alone["losses"][0], abs=1e-5)
    assert record["answer_tokens"] == alone["answer_tokens"]


def test_loss_free_tokens_are_read_but_not_learnt(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    """An answer's first tokens without loss: the loss is the mean over the rest alone."""
    example = encoded[0]
    first = example.trained.index(True)
    freed = Encoded("freed", example.input_ids, [t and i >= first + 4 for i, t in enumerate(example.trained)])
    model = make_model()
    settings = TrainingConfig(device="cpu")
    (values,) = answer_logp(model, TargetHead(model), [example], 0, settings)
    record = train(make_model(), [freed], Vanilla(), batch_size=1, micro_batch_size=1)
    assert record["losses"] == pytest.approx([-sum(values[4:]) / len(values[4:])], abs=1e-4)
    assert record["answer_tokens"] == len(values) - 4
    assert record["train_tokens"] == len(example.input_ids)


# --- tuning modes ----------------------------------------------------------------------------------


LORA = {"tuning": "lora", "lora": {"r": 4, "alpha": 8}}


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("make_method", [Vanilla, ConstrainedSFT])
def test_sixty_four_rows_however_they_are_cut(
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    make_method: Callable[[], Method],
    tuning: dict[str, Any],
) -> None:
    """64 x 1, 8 x 8, 1 x 64 and packed: the same first 20 losses within 1e-5."""
    runs = []
    cuts: list[dict[str, Any]] = [{"micro_batch_size": size} for size in (64, 8, 1)]
    cuts += [{"micro_batch_tokens": 700}, {"batching": "padding-free", "micro_batch_size": 16}]
    for cut in cuts:
        record = train(make_model(), encoded, make_method(), epochs=32, batch_size=64, **tuning, **cut)
        assert record["steps"] == 20
        runs.append(record["losses"])
    assert runs[0][19] < runs[0][0] - 1e-3
    for losses in runs[1:]:
        assert losses == pytest.approx(runs[0], abs=1e-5)


def test_adapters_are_saved_in_pefts_format_and_the_base_is_not_touched(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], weights: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    model = make_model()
    before = weights(model)
    record = train(model, encoded[:16], Vanilla(), folder=tmp_path, learning_rate=0.05, **LORA)
    folder = tmp_path / "output" / "checkpoint"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in folder.iterdir()}
    assert not list(tmp_path.rglob("*.bin"))
    after = {name.replace(".base_layer", ""): value for name, value in weights(model).items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    loaded = PeftModel.from_pretrained(make_model(), folder)
    batch = torch.tensor([encoded[0].input_ids])
    assert not torch.allclose(loaded(batch).logits, make_model()(batch).logits, atol=1e-3)
    assert record["train_flops"] < train(make_model(), encoded[:16], Vanilla())["train_flops"]


def test_bfloat16_trains_near_float32_and_is_saved_so(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], tmp_path: Path
) -> None:
    exact = train(make_model(), encoded[:16], Vanilla())
    low = train(make_model(), encoded[:16], Vanilla(), dtype="bfloat16", folder=tmp_path)
    assert low["losses"] == pytest.approx(exact["losses"], rel=0.02)
    assert low["losses"] != exact["losses"]
    saved = load_file(tmp_path / "output" / "checkpoint" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


# --- stopped and resumed ---------------------------------------------------------------------------


class StopError(Exception):
    """Stands for kill -9: nothing of the process survives it but its files."""


METHODS: dict[str, Callable[[], Method]] = {
    "vanilla": Vanilla,
    "constrained-sft": ConstrainedSFT,
    "lisa": lambda: Lisa(rho=3.0, safety_steps=1, user_steps=2),
}


@pytest.mark.parametrize(
    ("name", "tuning"),
    [
        pytest.param("vanilla", {}, id="vanilla-full"),
        pytest.param("constrained-sft", LORA, id="constrained-sft-lora"),
        *(
            pytest.param(name, tuning, id=f"{name}-{'lora' if tuning else 'full'}", marks=pytest.mark.slow)
            for name, tuning in (
                *(("vanilla", LORA), ("constrained-sft", {})),
                *(("lisa", {}), ("lisa", LORA)),
            )
        ),
    ],
)
def test_a_resumed_training_ends_with_the_same_bits(
    name: str,
    tuning: dict[str, Any],
    make_model: Callable[..., Any],
    train: Train,
    encoded: list[Encoded],
    tmp_path: Path,
) -> None:
    settings = {
        "epochs": 3, "batch_size": 8, "micro_batch_size": 4, "save_steps": 4, "seed": 3,
        "safety_examples": encoded[30:36], "snapshots": True, **tuning,
    }  # fmt: skip
    whole = train(make_model(), encoded[:24], METHODS[name](), folder=tmp_path / "whole", **settings)

    def stop(step: int, of: int) -> None:
        if step == 7:
            raise StopError

    part = tmp_path / "part"
    with pytest.raises(StopError):
        train(make_model(), encoded[:24], METHODS[name](), folder=part, on_step=stop, **settings)
    states = sorted(path.name for path in (part / "state").glob("checkpoint-*"))
    assert states == ["checkpoint-4"]  # disk use is bounded: one state
    torn = part / "state" / "checkpoint-6"  # one that was being written, without its marker
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    (tmp_path / "mine").mkdir()
    (part / "state" / "checkpoint-8").symlink_to(tmp_path / "mine")  # in the way of the next one
    shutil.rmtree(part / "cache", ignore_errors=True)  # the base model is asked again
    resumed = train(make_model(), encoded[:24], METHODS[name](), folder=part, **settings)
    assert (whole["resumed_at_step"], resumed["resumed_at_step"]) == (None, 4)
    assert resumed["losses"] == whole["losses"]
    assert not list((tmp_path / "mine").iterdir())
    file = "adapter_model.safetensors" if tuning else "model.safetensors"
    for folder in ("output/checkpoint", "state/epoch-1", "state/epoch-2"):
        one, two = (load_file(tmp_path / run / folder / file) for run in ("whole", "part"))
        assert set(one) == set(two)
        assert all(torch.equal(one[key], two[key]) for key in one), folder
    first, second = (load_file(tmp_path / "whole" / f"state/epoch-{e}" / file) for e in (1, 2))
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_the_seed_models_values_are_kept_and_read_again(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], tmp_path: Path
) -> None:
    """Over seeds, epochs and learning rates: one entry; other rows or another precision: their own."""
    settings = {"cache": tmp_path / "cache", "micro_batch_size": 4}
    methods = [ConstrainedSFT() for _ in range(5)]
    cold = train(make_model(), encoded[:16], methods[0], **settings)
    warm = train(make_model(), encoded[:16], methods[1], seed=9, epochs=2, learning_rate=1e-4, **settings)
    assert (cold["extra_forward_from_cache"], warm["extra_forward_from_cache"]) == (False, True)
    assert methods[0].reference == methods[1].reference
    assert warm["extra_forward_seconds"] == cold["extra_forward_seconds"] > 0  # charged as when it was made
    assert warm["extra_forward_flops"] == cold["extra_forward_flops"] > 0
    for changes, rows in (({}, encoded[1:17]), ({"dtype": "bfloat16"}, encoded[:16])):
        record = train(make_model(), rows, methods[2], **settings, **changes)
        assert record["extra_forward_from_cache"] is False
    entries = list((tmp_path / "cache" / "seed-logp").iterdir())
    assert len(entries) == 3
    for entry in entries:
        (entry / "logp.safetensors").write_bytes(b"torn")
    again = train(make_model(), encoded[:16], methods[4], **settings)
    assert again["extra_forward_from_cache"] is False
    assert methods[4].reference == methods[0].reference


def test_no_reference_model_stays_in_memory(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    """While the loop runs there is one model, and its values were there before the optimizer."""
    import gc

    from transformers import PreTrainedModel

    def models() -> list[Any]:
        gc.collect()
        return [thing for thing in gc.get_objects() if PreTrainedModel in type(thing).__mro__]

    before = models()  # held: no new one gets the id of an old one
    known = {id(model) for model in before}
    counts: set[int] = set()

    @dataclass
    class Counts(ConstrainedSFT):
        def after_step(self, model: Any, step: int) -> None:
            counts.add(sum(id(model) not in known for model in models()))

    train(make_model(), encoded[:16], Counts())
    assert counts == {2}  # LlamaForCausalLM and the LlamaModel in it


def test_a_method_that_works_on_weights_is_refused_where_they_are_sharded(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingConfig(num_processes=2, distributed="fsdp2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for method in (Lisa(), Recorder()):
        with pytest.raises(HarnessError, match=r"works on the weights, which fsdp2 .* zero2 or ddp"):
            hook_checks.check_sharding(method, settings)
    hook_checks.check_sharding(ConstrainedSFT(), settings)


def test_packing_needs_a_fused_attention(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded]
) -> None:
    with pytest.raises(HarnessError, match="padding-free needs a fused attention, not 'eager'"):
        train(make_model(), encoded[:4], Vanilla(), batching="padding-free", attention="eager")


def test_reports_go_to_the_runs_folder(
    make_model: Callable[..., Any], train: Train, encoded: list[Encoded], tmp_path: Path
) -> None:
    train(make_model(), encoded[:16], Vanilla(), folder=tmp_path, batch_size=1, report_to=["tensorboard"])
    assert list((tmp_path / "reports").glob("events.out.tfevents.*"))


class Evil:
    """What a pickle of it does when it is read: leaves a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_stopped_trainings_state_runs_nothing(
    file: str, make_model: Callable[..., Any], train: Train, encoded: list[Encoded], tmp_path: Path
) -> None:
    settings = {"epochs": 2, "batch_size": 8, "micro_batch_size": 8, "save_steps": 2}

    def stop(step: int, of: int) -> None:
        if step == 3:
            raise StopError

    with pytest.raises(StopError):
        train(make_model(), encoded[:16], Vanilla(), folder=tmp_path, on_step=stop, **settings)
    state = tmp_path / "state" / "checkpoint-2"
    if file == "pytorch_model.bin":
        (state / "model.safetensors").unlink()
    else:
        assert (state / file).is_file()
    torch.save({"a": Evil(tmp_path / "mark")}, state / file)
    with pytest.raises(Exception, match=r"(?i)weights.only|safetensors"):
        train(make_model(), encoded[:16], Vanilla(), folder=tmp_path, **settings)
    assert not (tmp_path / "mark").exists()


# --- a forecast's optimizer ----------------------------------------------------------------------------


class EightBit(torch.optim.AdamW):
    """As bitsandbytes has it: one class for each number of bits."""

    def __init__(self, params: Any, lr: float, weight_decay: float, optim_bits: int):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.bits = optim_bits


class NotHere(EightBit):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("no kernel for this device")


@pytest.mark.parametrize("there", [EightBit, NotHere, None])
def test_a_forecast_times_the_recipes_optimizer(
    there: Any, make_model: Callable[..., Any], tokenizer: Any, encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where its package is missing or fails here, torch's stands in; the weights stay as they are."""
    package = types.ModuleType("bitsandbytes")
    package.optim = types.SimpleNamespace(AdamW=there)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package if there else None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package.optim if there else None)
    model = make_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    settings = TrainingConfig(optimizer="adamw_8bit", weight_decay=0.1, device="cpu", chunked_loss=True)
    probe = step_probe.StepProbe(model, tokenizer, settings)
    probe.passes(encoded[:2])
    probe.update()
    assert type(probe._optimizer) is (EightBit if there is EightBit else torch.optim.AdamW)
    assert getattr(probe._optimizer, "bits", 8) == 8
    assert probe._head.token_logp is logprobs.chunked_logp
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is not None


@pytest.mark.parametrize(("name", "fused"), [("adamw_torch_fused", True), ("adamw_torch", False)])
def test_torchs_own_optimizer_is_fused_where_the_recipe_says_so(name: str, fused: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    found = step_probe.optimizer_like(TrainingConfig(optimizer=name), [weight])
    assert (type(found), found.defaults["fused"]) == (torch.optim.AdamW, fused)
