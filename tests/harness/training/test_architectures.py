"""Every causal architecture of the installed transformers that can be built small: it trains as its own
implementation has it, under both batchings, in full and with adapters, or is refused for a named reason.
"""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from backends.vanilla import Vanilla
from harness.config import TrainingConfig
from harness.contracts import Encoded, HarnessError, LossInputs
from harness.storage.files import Cache
from harness.training import adapters, agreement, trainer
from harness.training.batching import collate, deal, loss_tokens
from harness.training.logprobs import TargetHead

pytestmark = pytest.mark.slow

WAYS = [(tuning, batching) for tuning in ("full", "lora") for batching in ("padding-free", "grouped")]
STEPS = 2
REASONS = {
    "it looks at later tokens": r"is no causal language model as it is configured",
    "peft has no adapters for it": r"takes no adapters",
    "no setting agrees": r"cannot be trained here: under no attention and batching",
    "its own implementation fails": r"transformers' own implementation fails on training rows",
}
# Architectures whose losses cannot be compared beyond the first, or not even that.
NOISY = {"phimoe"}  # its router draws at random in training
CHAOTIC = {"hrm_text"}  # a gradient of 258, which a rounding of 1e-5 turns
Step = Callable[[Any], torch.Tensor]


class Tokenizer:
    """All that the trainer wants of one."""

    pad_token_id, eos_token_id = 0, 2

    def save_pretrained(self, folder: Any) -> None:
        pass


@dataclass
class Outcome:
    """Of an architecture: why it was not built; what was taken; ours and plain losses; why it was refused."""

    unbuilt: str = ""
    taken: dict[tuple[str, str], agreement.Setting] = field(default_factory=dict)
    differences: dict[tuple[str, str], float] = field(default_factory=dict)
    losses: dict[tuple[str, str], tuple[list[float], list[float]]] = field(default_factory=dict)
    noise: dict[tuple[str, str], float | None] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    trainer_losses: list[float] = field(default_factory=list)


def rows() -> list[Encoded]:
    """Four rows of 8 to 38 tokens: three pass the windows and chunks of 8 tokens."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(4):
        length = 8 + 10 * number
        ids = torch.randint(3, tiny_models.VOCABULARY, (length,), generator=generator).tolist()
        made.append(Encoded(str(number), ids, [False] * 4 + [True] * (length - 4)))
    return made


def plain_loss(model: Any) -> torch.Tensor:
    """Mean over all answer tokens, each row alone through the model and nothing of ours."""
    total, tokens = torch.zeros(()), 0
    for row in rows():
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
        logp = torch.log_softmax(logits.float(), dim=-1)
        for place in range(1, len(row.input_ids)):
            if row.trained[place]:
                total, tokens = total - logp[place - 1, row.input_ids[place]], tokens + 1
    return total / tokens


def our_loss(head: TargetHead, settings: Any) -> Step:
    """The trainer's, of one global batch."""
    packed = settings.batching == "padding-free"
    (micros,) = deal(rows(), settings.micro_batch_size, None, settings.batching)
    count = sum(map(loss_tokens, rows()))

    def loss(model: Any) -> torch.Tensor:
        total = torch.zeros(())
        for micro in (collate(micro, 0, packed) for micro in micros):
            logp = head.logp(model, micro)
            total = total + Vanilla().loss(LossInputs(logp, micro.mask, micro.ids, count, model, len(micros)))
        return total

    return loss


def trained(model: Any, loss: Step) -> list[float]:
    """A few steps of plain gradient descent, clipped; the losses before each and after the last."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    found = []
    model.train()
    for _ in range(STEPS):
        value = loss(model)
        found.append(value.item())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        return [*found, loss(model).item()]


def in_the_trainer(model: Any, folder: Path) -> list[float]:
    """The losses of the real trainer under its packaged batching."""
    settings = TrainingConfig(
        device="cpu", batching="padding-free", batch_size=4, epochs=2, learning_rate=1e-4
    )
    record = trainer.train(
        model,
        Tokenizer(),
        rows(),
        Vanilla(),
        settings,
        1,
        lambda step, steps: None,
        places=trainer.Places(folder / "output", folder / "state", folder / "reports"),
        cache=Cache(folder / "cache"),
        identity={},
    )
    return list(record["losses"])


def tried(name: str, folder: Path) -> Outcome:
    found = Outcome()
    try:
        built = tiny_models.build(name)
    except Exception as error:
        found.unbuilt = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        return found
    plain: dict[str, list[float]] = {}
    ours: dict[tuple[str, agreement.Setting], list[float]] = {}  # one setting is one training
    for way in WAYS:
        settings = TrainingConfig(device="cpu", tuning=way[0], batching=way[1], lora={"r": 2, "alpha": 4})
        try:
            base = copy.deepcopy(built)
            adapters.without_dropout(base)
            torch.manual_seed(0)
            model = adapters.with_adapters(base, settings)
            untouched = copy.deepcopy(model)
            head = TargetHead(model)
            agreed = agreement.choose(model, base, head, rows(), 0, settings)
            found.taken[way], found.differences[way] = agreed.setting, agreed.record["difference"]
            found.noise[way] = agreed.record["training_noise"]
            same = (way[0], agreed.setting)
            if same not in ours:
                ours[same] = trained(model, our_loss(head, agreed.setting.over(settings)))
        except HarnessError as error:
            found.refused[way] = str(error)
            continue
        if way[0] not in plain:
            plain[way[0]] = trained(untouched, plain_loss)
        found.losses[way] = (ours[same], plain[way[0]])
    if ("full", "padding-free") in found.taken:
        found.trainer_losses = in_the_trainer(built, folder / name)
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.HookedTrainer, "save_weights", lambda trainer, folder: None)
        folder = tmp_path_factory.mktemp("trainings")
        yield {name: tried(name, folder) for name in tiny_models.NAMES}


def test_enough_architectures_are_built_and_trained(outcomes: dict[str, Outcome]) -> None:
    built = [name for name, found in outcomes.items() if not found.unbuilt]
    whole = [name for name in built if len(outcomes[name].losses) == len(WAYS)]
    for name, found in outcomes.items():
        print(f"{name:24} {found.unbuilt or '; '.join(map(str, dict.fromkeys(found.taken.values())))}")
    assert len(built) >= 120
    assert len(whole) >= 100
    assert {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"} <= {
        *whole
    }
    assert {"bloom", "falcon", "gpt_oss", "mamba2", "jamba", "llama4_text", "gpt2", "opt"} <= {*whole}


def test_what_is_taken_agrees(outcomes: dict[str, Outcome]) -> None:
    apart = {
        name: way for name, found in outcomes.items() for way in found.differences.items() if way[1] > 1e-4
    }
    assert not apart


def test_training_mode_is_evaluation_mode_but_for_routers(outcomes: dict[str, Outcome]) -> None:
    """No dropout is left on, whatever an architecture calls it."""
    for name, found in outcomes.items():
        for noise in found.noise.values():
            assert noise is not None, name
            assert noise <= 1e-4 or name in NOISY


def test_losses_are_those_of_each_row_alone(outcomes: dict[str, Outcome]) -> None:
    """The first is the agreement; the last, after two steps, says that the gradients agree as well."""
    wrong = []
    for name, found in outcomes.items():
        for way, (ours, plain) in found.losses.items():
            assert all(map(math.isfinite, ours))
            if name in NOISY:
                continue
            far = [abs(one - other) for one, other in zip(ours, plain, strict=True)]
            if name in CHAOTIC:
                far, plain = far[:1], [plain[0], math.inf]
            if far[0] > 1e-4 or max(far) > 5e-3 or abs(plain[-1] - plain[0]) < 10 * far[-1]:
                wrong.append((name, way, ours, plain))
    assert not wrong


def test_the_real_trainer_begins_there(outcomes: dict[str, Outcome]) -> None:
    wrong = []
    for name, found in outcomes.items():
        if found.trainer_losses and name not in NOISY:
            assert len(found.trainer_losses) == 2
            assert all(map(math.isfinite, found.trainer_losses))
            first = found.losses["full", "padding-free"][1][0]
            if abs(found.trainer_losses[0] - first) > 1e-4:
                wrong.append((name, found.trainer_losses, first))
    assert not wrong


def test_each_refusal_has_a_reason(outcomes: dict[str, Outcome]) -> None:
    by_reason: dict[str, set[str]] = defaultdict(set)
    for name, found in outcomes.items():
        for line in found.refused.values():
            assert "\n" not in line
            assert f"'{name}'".replace("-", "_") in line.replace("-", "_")
            (reason,) = [why for why, pattern in REASONS.items() if re.search(pattern, line)]
            by_reason[reason].add(name)
    for reason, names in by_reason.items():
        print(f"{reason}: {', '.join(sorted(names))}")
    assert {"bert", "roberta", "electra"} <= by_reason["it looks at later tokens"]
    assert sum(map(len, by_reason.values())) <= 40


def test_packing_is_taken_where_it_is_right_and_nowhere_else(outcomes: dict[str, Outcome]) -> None:
    def taken(names: Sequence[str]) -> set[str]:
        return {outcomes[name].taken["full", "padding-free"].batching for name in names}

    assert taken(["llama", "qwen2", "qwen3", "gemma3_text", "phi3", "mixtral", "gpt2"]) == {"padding-free"}
    recurrent = ["mamba", "mamba2", "jamba", "bamba", "qwen3_next", "falcon_mamba"]
    assert taken([*recurrent, "bloom", "falcon", "mpt", "gpt_oss", "llama4_text", "stablelm"]) == {"grouped"}
    assert outcomes["gpt_oss"].taken["full", "grouped"].attention == "eager"  # sinks
    assert outcomes["gemma2"].taken["full", "padding-free"].attention == "eager"  # soft-capping
    assert outcomes["llama4_text"].taken["full", "grouped"].attention == "sdpa"  # chunks
