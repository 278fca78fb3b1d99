"""Says how each op runs on each kind of device, and checks that it works there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastgan import _native
from fastgan.errors import ConfigError
from fastgan.ops import (  # imported to define their ops
    adversarial_loss,  # noqa: F401
    bias_act,  # noqa: F401
    bn_act,  # noqa: F401
    clip_tensors,  # noqa: F401
    few_channels,  # noqa: F401
    filtered_lrelu,  # noqa: F401
    optimizer_steps,  # noqa: F401
    patches,  # noqa: F401
    penalty_mix,  # noqa: F401
    penalty_norm,  # noqa: F401
    penalty_tangent,  # noqa: F401
    sample_norm,  # noqa: F401
    upfirdn2d,  # noqa: F401
    winograd,  # noqa: F401
)
from fastgan.ops.cuda_support import cuda_obstacle
from fastgan.ops.define import DEFINED
from fastgan.ops.registration import NAMESPACE, why_no_kernel

#: For each op, a function that runs it on a device and raises FastganError on a wrong value.
_CHECKS: dict[str, Callable[[torch.device | str], None]] = {
    name: op.check for name, op in DEFINED.items()
}


#: The beginnings of ops that are used on one kind of device, where on others other code does the
#: same.
_ONE_DEVICE = {
    **dict.fromkeys(("patch_", "sample_norm_", "winograd_"), "cpu"),
    "few_channels_": "cuda",
}


@dataclass(frozen=True)
class OpPath:
    """How an op runs on a kind of device.

    Attributes:
        op: the op's name under ``torch.ops.fastgan``.
        device: its kind: ``"cpu"``, ``"cuda"`` or another of torch's.
        path: ``"cpu"`` or ``"cuda"`` for a kernel of fastgan's own, ``"aten"`` for plain PyTorch.
        usable: whether this machine and this torch have such a device.
        reason: the kernel's target, or why there is none.
    """

    op: str
    device: str
    path: str
    usable: bool
    reason: str


def op_paths() -> list[OpPath]:
    """The paths of every op on every kind of device that it supports.

    Example:
        >>> from fastgan.ops import op_paths
        >>> paths = {(row.op, row.device): row.path for row in op_paths()}
        >>> paths["adam_step_", "cpu"] in ("cpu", "aten")
        True
    """
    return [
        op_path(op, device)
        for op in _CHECKS
        for device in ("cpu", "cuda")
        if all(device == only for start, only in _ONE_DEVICE.items() if op.startswith(start))
    ]


def op_path(op: str, device: str) -> OpPath:
    """The path of an op on a kind of device.

    Args:
        op: the op's name under ``torch.ops.fastgan``, such as ``"adam_step_"``.
        device: the kind, a ``torch.device``'s ``type``.

    Raises:
        ConfigError: there is no such op.

    Example:
        >>> from fastgan.ops import op_path
        >>> op_path("adam_step_", "mps").reason.startswith("fastgan has kernels for the CPU and")
        True
    """
    _check_name(op)
    usable = device != "cuda" or torch.cuda.is_available()
    is_replaced = device == "cuda" and cuda_obstacle() is not None
    if (
        is_replaced
        or device not in ("cpu", "cuda")
        or not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", device.upper())
    ):
        return OpPath(op, device, "aten", usable, why_no_kernel(op, device))
    info = _native.build_info()
    if device == "cpu":
        reason = f"C++, {info.cpu_instruction_set}"
    else:
        reason = f"CUDA {info.cuda_toolkit}, {' '.join(info.cuda_architectures)}"
        reason += "" if usable else "; torch finds no CUDA device here"
    return OpPath(op, device, device, usable, reason)


def check_op(op: str, device: torch.device | str) -> None:
    """Runs `op` on `device` and compares with its formula; takes milliseconds.

    Args:
        op: the op's name under ``torch.ops.fastgan``, such as ``"adam_step_"``.
        device: where to run it.

    Raises:
        ConfigError: there is no such op.
        FastganError: a value is wrong.
        RuntimeError: torch or CUDA can't run it there.

    Example:
        >>> from fastgan.ops import check_op
        >>> check_op("adam_step_", "cpu")
    """
    _check_name(op)
    _CHECKS[op](device)


def _check_name(op: str) -> None:
    if op not in _CHECKS:
        raise ConfigError(f"op is {op!r}; expected one of {', '.join(_CHECKS)}")
