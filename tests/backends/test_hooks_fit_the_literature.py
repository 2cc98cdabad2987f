"""The literature's defences fit the hooks: each is sketched here and trained by the unchanged trainer.

The sketches show that a method needs nothing but its file; they are no reproductions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backends.trainer import answer_logp
from backends.vanilla import Vanilla
from harness import chat, registry, stages
from harness.config import RunConfig
from harness.contracts import Encoded, Example, LossInputs, Message, Method, PrepareContext, TrainContext
from harness.plan import Cell
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


# --- PTST (arXiv 2402.18540): train without the safety prompt, answer with it ----------------------


@dataclass
class PTST(Method):
    name = "ptst"
    summary = "answers under a safety prompt that was not there in training"
    inference_system_prompt = "Refuse what is harmful."


def test_ptst(
    make_model: Callable[..., Any],
    train: Train,
    prepared: Callable[..., list[Encoded]],
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training is vanilla's, bit for bit; the safety tasks alone are asked under the method's prompt."""
    vanilla, ptst = make_model(), make_model()
    train(vanilla, prepared(Vanilla()), Vanilla())
    train(ptst, prepared(PTST()), PTST())
    assert squared_distance(copied(vanilla), copied(ptst)) == 0

    from harness.engines.base import IdEngine

    class Silent(IdEngine):
        stop_ids = {2}

        def generate(self, prompts: Any, max_new_tokens: int) -> list[list[int]]:
            return [[2] for _ in prompts]

    engine = Silent()
    engine.tokenizer = tokenizer
    asked: dict[str, str] = {}

    def respond_rows(shop: Any, engine: Any, task: str, folder: Path, label: str) -> list[Any]:
        turns = [{"role": "system", "content": "Obey."}, {"role": "user", "content": "Do it."}]
        request = SimpleNamespace(args=(json.dumps(turns), {}), doc={})
        asked[task] = tokenizer.decode(engine.prompt_ids(request))
        return []

    monkeypatch.setitem(registry.METHODS, "ptst", f"{__name__}:PTST")
    monkeypatch.setattr(registry, "load_object", lambda target: PTST if "PTST" in target else None)
    monkeypatch.setattr(stages, "respond_rows", respond_rows)
    monkeypatch.setattr(stages, "write_jsonl_atomic", lambda path, rows: None)
    monkeypatch.setattr(stages, "respond_stage", lambda *args: SimpleNamespace(run=lambda work: work(Path())))
    shop: Any = SimpleNamespace(config=RunConfig(), out=Path(), engine=lambda folder: engine)
    cell = Cell("trained", "ptst", "gsm8k-mini", 42, Path(), ())
    with monkeypatch.context() as patch:
        patch.setattr("harness.benchmarks.get", lambda name: SimpleNamespace(kind=name))
        stages.respond(shop, cell, ["utility", "safety"], "label")
    assert "Obey." in asked["utility"]
    assert "Refuse what is harmful." in asked["safety"]
    assert "Obey." not in asked["safety"]


# --- safety-data mixing (arXiv 2309.07875): refusals among the training rows -----------------------


@dataclass
class Mixing(Method):
    name = "mixing"
    summary = "mixes safe answers into the data"
    share: float = 0.25

    def prepare(self, examples: list[Example], context: PrepareContext) -> list[Example]:
        extra = [Example(f"safe-{i}", SAFE.messages) for i in range(round(len(examples) * self.share))]
        return [*examples, *extra]


def test_mixing(
    make_model: Callable[..., Any],
    train: Train,
    prepared: Callable[..., list[Encoded]],
    tokenizer: Any,
) -> None:
    models = {}
    for method in (Vanilla(), Mixing()):
        models[method.name] = make_model()
        record = train(models[method.name], prepared(method), method, epochs=3)
        rows = 10 if method.name == "mixing" else 8
        assert record["steps"] == -(-3 * rows // 8)
    safe = [chat.encode(tokenizer, SAFE)]
    likelihood = {name: sum(answer_logp(model, safe, 0)[0]) for name, model in models.items()}
    assert likelihood["mixing"] > likelihood["vanilla"] + 0.1


# --- Lisa (arXiv 2405.18641): two states in turn, each with a pull to where the last one ended -----


@dataclass
class Lisa(Mixing):
    """Batches alternate between the user's rows and safe ones; a proximal term holds both together."""

    name = "lisa"
    summary = "alternates between the task and safe answers, with a proximal term"
    share: float = 1.0
    rho: float = 0.0
    anchor: Weights = field(default_factory=dict, init=False, repr=False)
    order: list[str] = field(default_factory=list, init=False, repr=False)

    def before_training(self, model: Any, context: TrainContext) -> None:
        self.anchor = copied(model)

    def batches(self, batches: list[list[Encoded]], context: TrainContext) -> list[list[Encoded]]:
        size = len(batches[0])
        phases = [
            [e for batch in batches for e in batch if e.id.startswith("safe-") == safe]
            for safe in (False, True)
        ]
        assert all(len(phase) % size == 0 for phase in phases)
        return [phase[start : start + size] for start in range(0, len(phases[0]), size) for phase in phases]

    def loss(self, inputs: LossInputs) -> Any:
        self.order += inputs.ids
        pull = sum(
            ((value - self.anchor[name]) ** 2).sum() for name, value in inputs.model.named_parameters()
        )
        return super().loss(inputs) + self.rho / 2 * pull / inputs.micro_batches

    def after_step(self, model: Any, step: int) -> None:
        self.anchor = copied(model) if step % 4 == 0 else self.anchor


def test_lisa(make_model: Callable[..., Any], train: Train, prepared: Callable[..., list[Encoded]]) -> None:
    seed = copied(make_model())
    moved, losses = [], []
    for rho, micro in ((0.0, 4), (50.0, 4), (50.0, 2)):
        model, method = make_model(), Lisa(rho=rho)
        record = train(model, prepared(method), method, batch_size=4, micro_batch_size=micro)
        moved.append(squared_distance(copied(model), seed))
        losses.append(record["losses"])
        kinds = [name.startswith("safe-") for name in method.order]
        assert kinds == ([False] * 4 + [True] * 4) * 2
    assert moved[1] < 0.8 * moved[0]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)  # no pull yet
    assert losses[1][1] > losses[0][1] + 1e-4
    assert losses[1] == pytest.approx(losses[2], abs=1e-4)  # micro-batches do not count the pull twice


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
    def after_training(self, model: Any) -> None:
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
    def after_training(self, model: Any) -> None:
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
    before = [sum(answer_logp(model, [e], 0)[0]) for e in (deep[0], prefix)]
    record = train(model, examples, DeepAlignment(), epochs=8)
    after = [sum(answer_logp(model, [e], 0)[0]) for e in (deep[0], prefix)]
    assert record["answer_tokens"] == 8 * sum(sum(example.trained) for example in examples)
    assert after[0] - before[0] > 5  # the refusal is learnt
    assert after[1] - before[1] < (after[0] - before[0]) / 2  # what stands before it is not


def test_all_are_methods_that_can_be_registered() -> None:
    for method in (PTST, Mixing, Lisa, SafeProjection, Resta, SPPFT, DeepAlignment):
        promise, kept = registry._PROMISES["method"]
        assert kept(method), promise
