"""What libraries change in the whole process for the sake of one training, undone behind it.

The process goes on: it trains the next model and answers as this one. Libraries turn TF32 on, against the
promise of float32; torch.compile keeps what it has compiled; Liger puts its kernels into the modules and
classes of an architecture, and thereby into every model of it that is loaded later.
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
BACKEND = "inductor"  # torch.compile's own
COMPILER = ("torch._dynamo", "torch._inductor")  # whose errors are no training's
VARIANTS = 64  # of a layer: its kind of attention, a batch of one row or of several, training or not


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


# --- attention -------------------------------------------------------------------------------------


@contextlib.contextmanager
def cudnn_attention(allowed: bool = True) -> Iterator[None]:
    """For the block, torch's attention leaves cuDNN's kernel alone unless it is allowed; behind it all is as
    before, whatever the block has set."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before and allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


# --- torch.compile ---------------------------------------------------------------------------------


@contextlib.contextmanager
def compiled(model: Any, head: Any, wanted: bool) -> Iterator[None]:
    """For the block, the decoder layers of ``model`` and the loss of ``head`` (logprobs.TargetHead) compiled,
    if that is wanted. The layers are compiled in place, so that weights keep their names.

    Not the whole model: a method looks into it, layers are alike and compiled once, and the library's path
    to it turns TF32 on. Raises HarnessError where it cannot be done.
    """
    if not wanted:
        yield
        return
    layers, own = decoder_layers(model), head.token_logp
    if not layers:
        raise HarnessError(
            f"training.compile: model type '{model.config.model_type}' has no decoder layers that could be "
            "told from its other modules; set training.compile to false"
        )
    try:
        for layer in layers:
            layer.compile(dynamic=True, backend=BACKEND)
        if head.can_be_compiled:
            head.token_logp = torch.compile(own, dynamic=True, backend=BACKEND)
        with _many_variants():
            yield
    except Exception as error:
        if not type(error).__module__.startswith(COMPILER):
            raise
        raise HarnessError(
            f"training.compile: torch cannot compile this model here ({type(error).__name__}: "
            f"{shortened(error, 200)}); set training.compile to false"
        ) from error
    finally:
        head.token_logp = own
        for layer in layers:
            layer._compiled_call_impl = None
        torch._dynamo.reset()


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The layers that transformers checkpoints or shards one by one, whichever it says of an architecture;
    none within another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    names = {*(getattr(model, "_no_split_modules", None) or ())}
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():  # outer ones come first
        within = any(name.startswith(f"{outer}.") for outer in found)
        if not within and (isinstance(module, GradientCheckpointingLayer) or type(module).__name__ in names):
            found[name] = module
    return [*found.values()]


@contextlib.contextmanager
def _many_variants() -> Iterator[None]:
    """Layers share their code, and torch compiles one code at most eight times before it goes on uncompiled:
    less than the kinds of layers and of batches may be."""
    import torch._dynamo.config as limits

    name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"
    with limits.patch({name: max(VARIANTS, getattr(limits, name))}):
        yield


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
