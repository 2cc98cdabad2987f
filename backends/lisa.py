"""Lisa, lazy safety alignment: alternate between safety data and the user's, each held near the other's
weights (arXiv 2405.18641, alg. 1; git-disl/Lisa).

A cycle is some steps on safety data and then more on the user's. Either phase adds a proximal term,
(rho/2) ||w - w_0||^2 over the trained weights, to the weights w_0 at which it began. As in the reference
code, safety steps take the place of the user's (the number of steps is vanilla's), and the first tenth of the
training has no proximal term.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.contracts import Encoded, LossInputs, Method, TrainContext

CYCLES = 20  # the paper: 20,000 steps in cycles of 100 + 900
USER_STEPS = 9  # for each safety step
WITHOUT_PROXIMAL = 0.1  # of all steps


@dataclass
class Lisa(Method):
    """``safety_steps``, ``user_steps``: of a cycle; None: the paper's proportions, a tenth of each cycle on
    safety data, and 20 cycles in all (fewer in under 200 steps, so that the share stays a tenth). Of one that
    is given, the other keeps the share. ``rho``: strength of the proximal term."""

    name = "lisa"
    summary = "alternates between safety data and the user's, with a proximal term"
    version = 2  # 1 had more than a tenth on safety data under 200 steps, half of them under 34
    needs_safety_data = True
    uses_weights = True

    rho: float = 1.0
    safety_steps: int | None = None
    user_steps: int | None = None
    steps: int = field(default=0, init=False, repr=False)  # of the whole training
    cycle: tuple[int, int] = field(default=(1, 1), init=False, repr=False)  # safety steps, user steps
    done: int = field(default=0, init=False, repr=False)  # optimizer steps so far
    anchor: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # w_0 by name

    def __post_init__(self) -> None:
        if any(steps is not None and steps < 1 for steps in (self.safety_steps, self.user_steps)):
            raise ValueError("safety_steps and user_steps must be at least 1")

    def before_training(self, model: Any, context: TrainContext) -> None:
        self._drop_anchor(model)

    def batches(self, batches: list[list[Encoded]], context: TrainContext) -> list[list[Encoded]]:
        """The user's batches, with safety examples in place of those that fall into safety phases."""
        self.steps = len(batches)
        self.cycle = self._cycle()
        stream: list[Encoded] = []

        def safety_batch(size: int) -> list[Encoded]:
            while len(stream) < size:
                stream.extend(context.rng.sample(context.safety_examples, len(context.safety_examples)))
            taken = stream[:size]
            del stream[:size]
            return taken

        planned = [
            safety_batch(len(batch)) if self.on_safety_data(step) else batch
            for step, batch in enumerate(batches)
        ]
        context.record["cycle"] = {"safety_steps": self.cycle[0], "user_steps": self.cycle[1]}
        of_safety = sum(map(self.on_safety_data, range(self.steps)))
        context.record["safety_steps"] = of_safety
        if self.steps <= USER_STEPS and not (self.safety_steps or self.user_steps):
            context.record["note"] = (
                f"{of_safety} of {self.steps} steps is on safety data, more than the published tenth: "
                "train for ten steps or more"
            )
        return planned

    def _cycle(self) -> tuple[int, int]:
        """The steps of a cycle on safety data and on the user's: as many cycles as make a tenth of all steps
        safety steps, where the options don't say otherwise."""
        if self.safety_steps is not None:
            return self.safety_steps, self.user_steps or USER_STEPS * self.safety_steps
        if self.user_steps is not None:
            return max(1, round(self.user_steps / USER_STEPS)), self.user_steps
        tenth = self.steps / (1 + USER_STEPS)
        safety_steps = max(1, round(tenth / CYCLES))
        cycles = max(1, round(tenth / safety_steps))
        return safety_steps, max(1, -(-self.steps // cycles) - safety_steps)

    def on_safety_data(self, step: int) -> bool:
        """Whether step number ``step``, from 0, is on safety data. A cycle begins with them."""
        return step % sum(self.cycle) < self.cycle[0]

    def loss(self, inputs: LossInputs) -> Any:
        task_loss = super().loss(inputs)
        if self.rho == 0 or self.done <= WITHOUT_PROXIMAL * self.steps:
            return task_loss
        distance = sum(
            (weight - self._anchor(name, weight)).square().sum()
            for name, weight in inputs.model.named_parameters()
            if weight.requires_grad
        )
        return task_loss + self.rho / 2 * distance / inputs.micro_batches

    def _anchor(self, name: str, weight: Any) -> Any:
        """Where the phase began. A resumed training reads it to the CPU: it moves to the device once."""
        if self.anchor[name].device != weight.device:
            self.anchor[name] = self.anchor[name].to(weight.device)
        return self.anchor[name]

    def after_step(self, model: Any, step: int) -> None:
        self.done = step
        if self.on_safety_data(step) != self.on_safety_data(step - 1):  # the next step begins a phase
            self._drop_anchor(model)

    def _drop_anchor(self, model: Any) -> None:
        self.anchor = {
            name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
        }

    def state(self) -> dict[str, Any]:
        import torch

        return {"done": torch.tensor(self.done), **{f"anchor.{n}": w for n, w in self.anchor.items()}}

    def load_state(self, tensors: Any) -> None:
        self.done = int(tensors["done"])
        self.anchor = {name.removeprefix("anchor."): w for name, w in tensors.items() if name != "done"}
