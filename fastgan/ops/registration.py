"""Shared code of the ops' registration from Python.

The compiled part has only kernels: schemas, and what the stable ABI can't register (autograd
formulas, fake kernels, version counting), are registered here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from fastgan import _native
from fastgan._util.recording import is_recording
from fastgan.explaining.fallback import warn_once
from fastgan.ops.cuda_support import NO_COMPILED_PART, cuda_obstacle

NAMESPACE = "fastgan"

#: The only reasons for plain PyTorch that are an op's own.
FOR_CPUS_ALONE = "it has a kernel for CPUs alone"
FOR_GPUS_ALONE = "it has a kernel for GPUs alone"

#: Kept for the life of the process, like its registrations.
library = torch.library.Library(NAMESPACE, "FRAGMENT")

#: Name -> kernel registered by :func:`register_fallback`.
_fallbacks: dict[str, Callable[..., Any]] = {}


def calls_its_function(x: object) -> bool:
    """Whether an op's autograd function is called without the dispatcher.

    The dispatcher's detour through Python takes as long as an op on small maps; but subclasses,
    compilers and the penalty's tape see only ops.
    """
    return type(x) is torch.Tensor and not torch.compiler.is_compiling() and not is_recording()


def is_transformed(name: str) -> bool:
    """Whether torch.func or forward-mode autograd transforms a call, which then is plain PyTorch.

    Compiled ops have rules for neither. Warns once for each op.
    """
    if torch.compiler.is_compiling() or (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    ):
        return False
    warn_once(
        f"fastgan::{name} runs as plain PyTorch under torch.func and forward-mode autograd: it has "
        "no rules for them",
        stacklevel=3,
    )
    return True


def register_fallback(name: str, kernel: Callable[..., Any]) -> None:
    """Registers plain PyTorch for all devices without a kernel; warns once per device and reason.

    Registered for the key after a device's own, so compiled kernels take precedence.
    `kernel` takes the op's arguments, the first of them a tensor or a list of tensors.
    """

    def fallback(first: torch.Tensor | list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        given = (first, *args)
        if any(given[place] is None for place in places_of_tensors() if place < len(given)):
            raise RuntimeError(f"fastgan::{name} was given None where it takes a tensor")
        for tensor in [first] if isinstance(first, torch.Tensor) else first[:1]:
            device_type = tensor.device.type
            reason = why_no_kernel(name, device_type)
            is_its_own = reason in (FOR_CPUS_ALONE, FOR_GPUS_ALONE)
            ops = f"fastgan::{name} runs" if is_its_own else "fastgan's ops run"
            warn_once(f"{ops} as plain PyTorch on {device_type}: {reason}", stacklevel=3)
        return kernel(first, *args, **kwargs)

    @functools.cache
    def places_of_tensors() -> list[int]:
        schema = getattr(torch.ops.fastgan, name).default._schema
        kinds = [isinstance(each.type, torch.TensorType) for each in schema.arguments]
        return [place for place, is_tensor in enumerate(kinds) if is_tensor]

    _fallbacks[name] = fallback
    library.impl(name, fallback, "CompositeExplicitAutograd")


def replace_cuda_kernels() -> torch.library.Library | None:
    """Replaces the compiled CUDA kernels by plain PyTorch if they can't run.

    Called when torch initialises CUDA.

    Returns:
        A library that must stay alive for the replacements; None if nothing is replaced.
    """
    if cuda_obstacle() is None:
        return None
    replacements = torch.library.Library(NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        # torch warns about replaced kernels.
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously")
        for name, fallback in _fallbacks.items():
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CUDA"):
                replacements.impl(name, fallback, "CUDA")
    return replacements


def register_function(op: torch._ops.OpOverload, function: type[torch.autograd.Function]) -> None:
    """Makes `function`, with the op's arguments, its autograd implementation.

    The function calls ops under ``torch._C._AutoDispatchBelowAutograd()``.
    """
    below = torch._C._after_autograd_keyset
    redispatch = op.redispatch
    forward_ad = torch.autograd.forward_ad

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        recorded = torch.is_grad_enabled() and any(
            isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args
        )
        if recorded or forward_ad._current_level >= 0:
            return function.apply(*args)
        return redispatch(keyset & below, *args)

    library.impl(op._schema.name.partition("::")[2], kernel, "Autograd", with_keyset=True)


def why_no_kernel(op: str, device_type: str) -> str:
    """Says why this build has no kernel of an op for a kind of device."""
    if device_type == "cuda":
        return cuda_obstacle() or FOR_CPUS_ALONE
    if not _native.load():
        return NO_COMPILED_PART
    if device_type == "cpu" and not torch._C._dispatch_has_kernel_for_dispatch_key(
        f"{NAMESPACE}::{op}", "CPU"
    ):
        return FOR_GPUS_ALONE
    return "fastgan has kernels for the CPU and for CUDA only"


def register_in_place(
    op: torch._ops.OpOverload, written: Callable[[Sequence[Any]], Iterable[torch.Tensor]]
) -> None:
    """Registers the autograd behaviour of an op that writes tensors and has no gradient.

    Like torch's in-place ops it increments version counters, so that a backward pass that needs the
    overwritten values raises. It has no derivative: it raises if autograd would have to record it,
    so no gradient is lost silently. Returned tensors must be new.

    It is registered at ADInplaceOrView, not Autograd, because the former also runs in inference
    mode, where writes to ordinary tensors must be counted, too.

    Args:
        op: writes its arguments, has no gradient.
        written: given the op's arguments, the tensors that this call writes.
    """
    name = op._schema.name
    below = torch._C._after_ADInplaceOrView_keyset
    redispatch = op.redispatch

    def tensors_of(args: Iterable[Any]) -> Iterator[torch.Tensor]:
        for arg in args:
            if isinstance(arg, torch.Tensor):
                yield arg
            elif isinstance(arg, (list, tuple)):
                yield from (tensor for tensor in arg if isinstance(tensor, torch.Tensor))

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if torch.is_grad_enabled():
            for tensor in tensors_of(args):
                if tensor.requires_grad:
                    raise RuntimeError(
                        f"{name}: a tensor requires grad, and the op has no gradient; call it "
                        "under torch.no_grad()"
                    )
        if torch.autograd.forward_ad._current_level >= 0:
            for tensor in tensors_of(args):
                if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
                    raise RuntimeError(
                        f"{name}: a tensor carries a forward-mode tangent, which the op lacks"
                    )
        # The op itself refuses None in a tensor's place.
        torch.autograd.graph.increment_version(tensors_of(written(args)))
        return redispatch(keyset & below, *args)

    library.impl(op._schema.name.partition("::")[2], kernel, "ADInplaceOrView", with_keyset=True)


def call_counting_writes(
    op: torch._ops.OpOverload, written: Iterable[Sequence[torch.Tensor]], *args: Any
) -> None:
    """Calls an op of :func:`register_in_place`, incrementing version counters first.

    For fastgan's own calls in no-grad mode without forward-mode tangents: the dispatcher's Python
    code takes as long as the rest of a small network's step. Under tracing the op is called
    normally.
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            op(*args)
        return
    for tensors in written:
        if tensors:
            torch._C._increment_version(tensors)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        op(*args)


def call_if_accepted(
    op: torch._ops.OpOverload, written: Sequence[torch.Tensor], *args: Any
) -> bool:
    """As :func:`call_counting_writes`, for an op that may refuse; returns whether it accepted.

    The op must check its arguments before its first write, as all of fastgan's do, so that a
    refused call changes nothing.
    """
    try:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            op(*args)
    except RuntimeError:
        return False
    torch._C._increment_version(written)
    return True
