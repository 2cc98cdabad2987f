"""Finds where a training step would wait for a device: on the CPU nothing shows it.

``far_away`` stands in for a device by torch's meta device, which has shapes and no values: whatever has to
look at a value there fails by itself. ``Copies`` adds what would wait without needing a value: a blocking
copy from the CPU to the device, such as a tensor made there from a number. ``Looks`` finds the looks at
values in a step on the CPU, where they work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

far_away = torch.device("meta")
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)
LOOKS = {
    *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_static", "masked_select", "equal"),
    *("unique_dim", "_unique", "_unique2", "unique_consecutive", "allclose", "argwhere", "bincount"),
}


class WaitError(AssertionError):
    """Where something waits for the device."""


class Copies(TorchFunctionMode):
    """Raises WaitError where a tensor is made on another device than the CPU from Python's values, or copied
    from the CPU to it while the CPU waits."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in MAKERS and _is_far(kwargs.get("device")):
            raise WaitError(f"{function.__name__} makes a tensor on the device out of a value")
        made = function(*args, **kwargs)
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if source is not None and isinstance(made, torch.Tensor) and function is not torch.Tensor.copy_:
            moved = source.device.type == "cpu" and made.device.type != "cpu" and _moves(function)
            if moved and not kwargs.get("non_blocking", False):
                raise WaitError(f"{function.__name__} copies to the device and waits")
        if function is torch.Tensor.copy_ and source is not None:
            other = args[1]
            if other.device != source.device and not kwargs.get("non_blocking", False):
                raise WaitError("copy_ copies between devices and waits")
        return made


class Looks(TorchDispatchMode):
    """Raises WaitError where a value of a tensor is looked at, or a shape depends on values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in LOOKS or _picks_by_truth(name, args):
            raise WaitError(f"{function} looks at values")
        return function(*args, **(kwargs or {}))


def _is_far(device: Any) -> bool:
    return device is not None and torch.device(device).type != "cpu"


def _moves(function: Any) -> bool:
    return function in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.type, torch.Tensor.to_dense)


def _picks_by_truth(name: str, args: Any) -> bool:
    """Indexing by a mask: as many places as it has true values."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        return False
    return any(isinstance(at, torch.Tensor) and at.dtype in (torch.bool, torch.uint8) for at in args[1])
