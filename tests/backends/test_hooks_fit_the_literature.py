"""The literature's defences fit the hooks: those without a file of their own are sketched here and trained by
the unchanged trainer.

The sketches show that a method needs nothing but its file; they are no reproductions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from backends.vanilla import Vanilla
from harness.contracts import Encoded, Example, Message, Method, PrepareContext, TrainContext
from harness.models import chat
from harness.plugins import registry
from tasks.gsm8k_mini.train import TRAIN_TASK

Weights = dict[str, torch.Tensor]
Train = Callable[..., dict[str, Any]]

SAFE = Example(
    "safe",
    (
        Message("system", "Be brief."),
        Message("user", "How do I steal the lamp?"),
        Message("assistant", "I cannot help with that."),
    ),
)


def copied(model: Any) -> Weights:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def squared_distance(a: Weights, b: Weights) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a)


@pytest.fixture
def prepared(tokenizer: Any, texts: list[Example]) -> Callable[..., list[Encoded]]:
    """(method, rows) -> the token ids that the method trains on, as the train stage makes them."""

    def run(method: Method, rows: int = 8) -> list[Encoded]:
        context = PrepareContext(tokenizer, TRAIN_TASK, lambda *args, **kwargs: [], random.Random(0))
        return [chat.encode(tokenizer, example) for example in method.prepare(texts[:rows], context)]

    return run


# --- Safe LoRA (arXiv 2405.16833) and RESTA (arXiv 2402.11746): edits of the trained weights -------


@dataclass
class SafeProjection(Method):
    """Keeps only the part of each update that lies along aligned - unaligned weights."""

    name = "safe-projection"
    summary = "projects the update onto the alignment direction"
    unaligned: Callable[[], Any] = field(default=lambda: None)  # a folder, in a real method
    seed: Weights = field(default_factory=dict, init=False, repr=False)

    def before_training(self, model: Any, context: TrainContext) -> None:
        self.seed = copied(model)

    def direction(self, name: str) -> torch.Tensor:
        direction = self.seed[name] - dict(self.unaligned().named_parameters())[name].detach()
        return direction / direction.norm().clamp(min=1e-12)

    @torch.no_grad()
    def after_training(self, model: Any, context: Any) -> None:
        for name, value in model.named_parameters():
            along = self.direction(name)
            value.copy_(self.seed[name] + ((value - self.seed[name]) * along).sum() * along)


def test_safe_lora_style_projection(
    make_model: Callable[..., Any], train: Train, prepared: Callable[..., list[Encoded]]
) -> None:
    def unaligned() -> Any:
        return make_model(initializer_range=0.1)

    model, vanilla, method = make_model(), make_model(), SafeProjection(unaligned=unaligned)
    train(model, prepared(method), method)
    train(vanilla, prepared(method), Vanilla())
    for name, value in model.named_parameters():
        seed, along = method.seed[name].double(), method.direction(name).double()
        whole = dict(vanilla.named_parameters())[name].detach().double() - seed
        kept = value.detach().double() - seed
        rounding = 1e-6 * float(seed.norm())
        assert float((kept - (whole * along).sum() * along).norm()) < rounding, name
        if float(whole.norm()) > 10 * rounding:  # else training left it where it was
            assert float((whole - kept).norm()) > rounding, name  # something was cut off


@dataclass
class Resta(Method):
    name = "resta"
    summary = "adds a safety vector to the trained weights"
    gamma: float = 0.5
    vector: float = 1.0  # stands for aligned - unaligned weights
    trained: Weights = field(default_factory=dict, init=False, repr=False)

    @torch.no_grad()
    def after_training(self, model: Any, context: Any) -> None:
        self.trained = copied(model)
        for value in model.parameters():
            value.add_(self.gamma * self.vector)


def test_resta_style_addition(
    make_model: Callable[..., Any], train: Train, prepared: Callable[..., list[Encoded]]
) -> None:
    model, vanilla, method = make_model(), make_model(), Resta()
    train(model, prepared(method), method)
    train(vanilla, prepared(method), Vanilla())
    assert squared_distance(method.trained, copied(vanilla)) == 0
    for name, value in copied(model).items():
        torch.testing.assert_close(value, method.trained[name] + 0.5)


# --- SPPFT (arXiv 2408.17003): the safety layers are frozen ----------------------------------------


@dataclass
class SPPFT(Method):
    name = "sppft"
    summary = "freezes the layers that carry safety"
    frozen: tuple[int, ...] = (1,)

    def before_training(self, model: Any, context: TrainContext) -> None:
        for layer in self.frozen:
            model.model.layers[layer].requires_grad_(False)
        context.record["frozen"] = list(self.frozen)


def test_sppft(make_model: Callable[..., Any], train: Train, prepared: Callable[..., list[Encoded]]) -> None:
    model, seed = make_model(), copied(make_model())
    record = train(model, prepared(SPPFT()), SPPFT())
    assert record["method"] == {"frozen": [1]}
    for name, value in model.named_parameters():
        assert torch.equal(value, seed[name]) == ("layers.1." in name), name


# --- deep alignment (arXiv 2406.05946): recover from a harmful beginning that carries no loss ------


@dataclass
class DeepAlignment(Method):
    """The answer begins with a harmful prefix that is read but not learnt; the refusal after it is."""

    name = "deep-alignment"
    summary = "trains refusals after harmful beginnings"

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        prefix = "Sure, first cut the wire."
        free = len(context.tokenizer(prefix, add_special_tokens=False)["input_ids"])
        turns = (*SAFE.messages[:-1], Message("assistant", f"{prefix} {SAFE.answer}"))
        return [*examples, *(Example(f"deep-{i}", turns, loss_free_tokens=free) for i in range(8))]


def test_deep_alignment(
    make_model: Callable[..., Any],
    train: Train,
    prepared: Callable[..., list[Encoded]],
    tokenizer: Any,
    answer_logp: Callable[..., list[list[float]]],
) -> None:
    examples = prepared(DeepAlignment())
    deep = [example for example in examples if example.id.startswith("deep-")]
    assert len(deep) == 8
    for example in deep:
        kept = [token for token, t in zip(example.input_ids, example.trained, strict=True) if t]
        assert tokenizer.decode(kept) == f" {SAFE.answer}{tokenizer.eos_token}"
        assert "Sure, first cut the wire." in tokenizer.decode(example.input_ids)
    free = deep[0].trained.index(True)
    prefix = Encoded(
        "prefix", deep[0].input_ids, [free - 6 <= i < free for i in range(len(deep[0].input_ids))]
    )
    model = make_model()
    before = [sum(answer_logp(model, [e])[0]) for e in (deep[0], prefix)]
    record = train(model, examples, DeepAlignment(), epochs=8)
    after = [sum(answer_logp(model, [e])[0]) for e in (deep[0], prefix)]
    assert record["answer_tokens"] == 8 * sum(sum(example.trained) for example in examples)
    assert after[0] - before[0] > 5  # the refusal is learnt
    assert after[1] - before[1] < (after[0] - before[0]) / 2  # what stands before it is not


def test_all_are_methods_that_can_be_registered() -> None:
    for method in (SafeProjection, Resta, SPPFT, DeepAlignment):
        promise, kept = registry._PROMISES["method"]
        assert kept(method), promise
