"""What libraries change in the whole process for the sake of one training, undone behind it.

The process goes on: it trains the next model and answers as this one. torch.compile turns TF32 on, against
the promise of float32; Liger puts its kernels into the modules and classes of an architecture, and thereby
into every model of it that is loaded later.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from harness.contracts import HarnessError
from harness.text import shortened

LIGER = {"fused_linear_cross_entropy": False, "cross_entropy": False}  # the loss is the method's own
ARCHITECTURES = "transformers.models."


# --- float32 ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_precision() -> Iterator[None]:
    """Behind the block float32 products are computed as before it."""
    restore = _precision()
    try:
        yield
    finally:
        restore()


def exact_float32() -> None:
    """float32 products in float32, whatever a library has turned on."""
    for place in _places():
        if place.fp32_precision == "tf32":
            place.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


def takes_tf32() -> bool:
    """Whether a CUDA device may compute float32 products in TF32."""
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # set the newer way
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def _places() -> list[Any]:
    """Where torch (from 2.9 on) keeps the precision of float32 products on a device: of all of them, of
    matrices, of cuDNN."""
    places = [torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn]
    return [place for place in places if hasattr(place, "fp32_precision")]


def _precision() -> Callable[[], None]:
    """What puts back the precision of now. Older ways of setting it come first: they set the newer too."""
    kept = [(place, place.fp32_precision) for place in _places()]
    products = None
    with contextlib.suppress(RuntimeError):  # set the newer way alone
        products = torch.get_float32_matmul_precision()
    convolutions = None if kept else torch.backends.cudnn.allow_tf32

    def restore() -> None:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for place, precision in kept:
            place.fp32_precision = precision

    return restore


# --- Liger -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def liger(model: Any, wanted: bool) -> Iterator[None]:
    """Liger's kernels in ``model`` for the block, if they are wanted, and in no other model behind it."""
    if not wanted:
        yield
        return
    from transformers.integrations.liger import apply_liger_kernel

    kept = [(owner, dict(vars(owner))) for owner in _architectures()]
    try:
        try:
            apply_liger_kernel(model, LIGER)
        except ImportError as error:
            raise HarnessError(
                f"training.liger: liger-kernel cannot be used ({shortened(error, 200)}); pip install -U "
                "liger-kernel, or set training.liger to false"
            ) from error
        yield
    finally:
        for owner, names in kept:
            _put_back(owner, names)


def _architectures() -> list[ModuleType | type]:
    """The modules of transformers' architectures that are loaded, and the classes in them."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(ARCHITECTURES) and type(module) is ModuleType
    ]
    classes = [
        found
        for module in modules
        for found in list(vars(module).values())
        if isinstance(found, type) and found.__module__ == module.__name__
    ]
    return [*modules, *classes]


def _put_back(owner: ModuleType | type, names: dict[str, Any]) -> None:
    now = dict(vars(owner))
    for name in now.keys() - names.keys():
        delattr(owner, name)
    for name, value in names.items():
        if now.get(name, owner) is not value:
            setattr(owner, name, value)
