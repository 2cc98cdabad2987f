"""Other models whose weights a method asks for: loaded by the harness, handed out tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.contracts import HarnessError, ModelRef
from harness.models import checkpoints
from harness.training.layers import plain_name


class OtherModels:
    """What ``TrainContext.model`` calls. ``folders``: where the models that the method's options name are;
    ``seconds``: what all loading has taken. Nothing is kept: what a method lets go of is freed."""

    def __init__(self, folders: Mapping[str, Path], model: Any):
        self.folders, self.model = folders, model
        self.seconds = 0.0

    def __call__(self, ref: ModelRef) -> OtherModel:
        if ref not in self.folders:
            raise HarnessError(
                f"model '{ref}' is named by no option of the method: give the option the type ModelRef"
            )
        start = time.perf_counter()
        found = OtherModel(str(ref), self.folders[ref], self.model)
        self.seconds += time.perf_counter() - start
        return found


class OtherModel:
    """A model's weights in the CPU's memory, as precise as its files. Of an adapter, ``weight`` gives its
    base's weights with the adapter's in them, and ``factors`` the adapter's own.

    ``trained``: the model in training, on whose device tensors are handed out, and whose shapes they have.
    """

    def __init__(self, name: str, folder: Path, trained: Any):
        self.name = name
        self._device: Callable[[], Any] = lambda: trained.device
        self._shapes = {plain_name(key): one for key, one in trained.named_parameters(remove_duplicate=False)}
        adapter = checkpoints.is_adapter(folder)
        of_files = {tensor.dtype for tensor in checkpoints.check(folder).values()}
        dtype = "bfloat16" if of_files == {"BF16"} and not adapter else "float32"
        model = checkpoints.load_model(folder, dtype, "cpu")
        self._factors: dict[str, tuple[Tensor, Tensor, float]] = {}
        if adapter:
            self._factors = _factors_of(model)
            model = model.merge_and_unload()
        self._names = [key for key, _ in model.named_parameters()]
        every = model.named_parameters(remove_duplicate=False)  # tied weights go by either name
        self._weights = {key: one.detach() for key, one in every}

    def names(self) -> list[str]:
        """The names of all its weights, without an adapter's wrapping; of tied ones the first."""
        return self._names

    def weight(self, name: str) -> Tensor:
        """One weight in float32 on the training's device, by its name in this model or in the one that is
        trained, which may have adapters around it. Raises HarnessError where there is none of that shape."""
        plain = plain_name(name)
        if plain not in self._weights:
            raise HarnessError(
                f"model '{self.name}' has no weight '{plain}': is it of the trained model's kind?"
            )
        found, own = self._weights[plain], self._shapes.get(plain)
        if own is not None and own.is_floating_point() and own.shape != found.shape:
            raise HarnessError(
                f"model '{self.name}': its weight '{plain}' has the shape {tuple(found.shape)}, and the "
                f"trained model's {tuple(own.shape)}; name a model of the same architecture"
            )
        moved: Tensor = found.to(self._device(), torch.float32)
        return moved

    def factors(self, module: str) -> tuple[Tensor, Tensor, float] | None:
        """An adapter's (A, B, scaling) at a module, whose weight it changes by scaling * B A; None where it
        has none there, and of a model that is no adapter."""
        found = self._factors.get(plain_name(module))
        if found is None:
            return None
        a, b, scaling = found
        return a.to(self._device(), torch.float32), b.to(self._device(), torch.float32), scaling


def _factors_of(model: Any) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Those of a loaded peft model, by the names of its plain modules."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "scaling"):
            for key in module.lora_A:
                a, b = module.lora_A[key].weight, module.lora_B[key].weight
                found[plain_name(name)] = a.detach().clone(), b.detach().clone(), float(module.scaling[key])
    return found
