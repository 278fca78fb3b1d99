"""What every op's registration from Python has in common.

The stable ABI defines ops and their kernels from C++ but can't reach autograd, fake kernels or
version counters; these come from here. In a pure-Python install the schema does too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from fastgan import _native
from fastgan._util.recording import is_recording
from fastgan.explaining.fallback import warn_once
from fastgan.ops.cuda_support import NO_COMPILED_PART, cuda_obstacle

__all__ = [
    "NAMESPACE",
    "call_counting_writes",
    "call_if_accepted",
    "calls_its_function",
    "library",
    "register_fallback",
    "register_function",
    "register_in_place",
    "replace_cuda_kernels",
]

NAMESPACE = "fastgan"

#: Kept for the life of the process: when it goes, its registrations go too.
library = torch.library.Library(NAMESPACE, "FRAGMENT")

#: By name, what :func:`register_fallback` has registered.
_fallbacks: dict[str, Callable[..., Any]] = {}


def calls_its_function(x: object) -> bool:
    """Whether an op's autograd function is called without the dispatcher.

    The dispatcher's way round by Python takes as long as an op itself does on small maps; but
    subclasses, compilers and the penalty's tape see ops alone.
    """
    return type(x) is torch.Tensor and not torch.compiler.is_compiling() and not is_recording()


def define_if_absent(schema: str) -> None:
    """Defines the op from Python where there is no compiled part that has done so."""
    if not _native.load():
        library.define(schema)


def register_fallback(name: str, kernel: Callable[..., Any]) -> None:
    """Plain PyTorch for every device that the build has no kernel for; warns once per device.

    Registered for the key that torch asks after a device's own, so a compiled kernel goes first.
    `kernel` takes the op's arguments, the first of them a tensor or a list of tensors.
    """

    def fallback(first: torch.Tensor | list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        for tensor in [first] if isinstance(first, torch.Tensor) else first[:1]:
            device_type = tensor.device.type
            warn_once(
                f"fastgan::{name} runs as plain PyTorch on {device_type}: "
                f"{why_no_kernel(device_type)}",
                stacklevel=3,
            )
        return kernel(first, *args, **kwargs)

    _fallbacks[name] = fallback
    library.impl(name, fallback, "CompositeExplicitAutograd")


def replace_cuda_kernels() -> torch.library.Library | None:
    """Where the compiled CUDA kernels can't run, puts plain PyTorch in their place.

    Called when torch initialises CUDA.

    Returns:
        What holds the replacements, as long as it lives; None where nothing is replaced.
    """
    if cuda_obstacle() is None:
        return None
    replacements = torch.library.Library(NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        # torch warns of any kernel that takes another's place.
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously")
        for name, fallback in _fallbacks.items():
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CUDA"):
                replacements.impl(name, fallback, "CUDA")
    return replacements


def register_function(op: torch._ops.OpOverload, function: type[torch.autograd.Function]) -> None:
    """Makes `function`, which takes the op's arguments, its part under autograd.

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


def why_no_kernel(device_type: str) -> str:
    """Why this build has no kernel for a kind of device."""
    if device_type == "cuda":
        return cuda_obstacle() or "it has a kernel for CPUs alone"
    if not _native.load():
        return NO_COMPILED_PART
    return "fastgan has kernels for the CPU and for CUDA only"


def register_in_place(
    op: torch._ops.OpOverload, written: Callable[[Sequence[Any]], Iterable[torch.Tensor]]
) -> None:
    """Autograd's part for an op that writes tensors or lists of them, and has no gradient.

    As torch's own in-place ops do, it counts the writes, so that a backward pass which needs the
    overwritten values raises instead of using the new ones. Unlike them it has no derivative: where
    autograd would have to record it, it raises, so that no gradient is ever lost in silence. What
    the op returns, if anything, must be new.

    It stands at ADInplaceOrView and not at Autograd because torch passes through the former in
    inference mode too, where a write to an ordinary tensor must be counted as well.

    Args:
        op: writes its arguments, has no gradient.
        written: given the op's arguments, the tensors that this call writes.
    """
    name = op._schema.name
    below = torch._C._after_ADInplaceOrView_keyset
    redispatch = op.redispatch

    def tensors_of(args: Sequence[Any]) -> Iterator[torch.Tensor]:
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
        torch.autograd.graph.increment_version(written(args))
        return redispatch(keyset & below, *args)

    library.impl(op._schema.name.partition("::")[2], kernel, "ADInplaceOrView", with_keyset=True)


def call_counting_writes(
    op: torch._ops.OpOverload, written: Iterable[Sequence[torch.Tensor]], *args: Any
) -> None:
    """Calls an op of :func:`register_in_place`, counting its writes ahead of the call.

    For fastgan's own calls, which mean no-grad mode and no forward-mode tangents: what the op would
    do below the dispatcher in Python takes as long as the rest of a small network's step. Where
    something traces, the op is called in the ordinary way.
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
    """As :func:`call_counting_writes`, for an op that may refuse; whether it took the call.

    The op must check its arguments before its first write, as all of fastgan's do, so that a
    refused call has changed nothing and counts no write.
    """
    try:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            op(*args)
    except RuntimeError:
        return False
    torch._C._increment_version(written)
    return True
