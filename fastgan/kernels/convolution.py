"""A convolution's forward pass and two gradients, each one kernel with fused prologue and epilogue.

:mod:`fastgan.kernels.fusion` has the formulas, ``docs/kernels.md`` the design. Triton is imported
when the first kernel runs. Calls run on torch's current stream and never wait for the GPU, so CUDA
graphs can capture them after a first call has compiled them. Autograd records nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import ConfigError, DtypeError
from fastgan.kernels.descriptors import described, undescribed_reason
from fastgan.kernels.fusion import (
    ActivationGradient,
    BatchNormGradient,
    BiasActivation,
    GradientSums,
    GradPrologue,
    NormActivation,
    NormActivationGradient,
    PartialStatistics,
    Statistics,
)
from fastgan.kernels.geometry import ConvGeometry
from fastgan.kernels.launch import interpreted
from fastgan.kernels.toolchain import triton_obstacle

if TYPE_CHECKING:
    from fastgan.kernels import plans

Pair = tuple[int, int]
Four = tuple[int, int, int, int]
Pointers = tuple[Tensor | None, ...]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Plans, by everything that they depend on.
_PLANS: dict[tuple[Any, ...], Any] = {}
#: A training run has tens of problems; shapes that never recur shouldn't accumulate.
_MOST_PLANS = 4096


def _planned(key: tuple[Any, ...], make: Callable[[Any], Any]) -> Any:
    """The plan of this key, which ``make`` makes once, by :mod:`fastgan.kernels.plans`."""
    plan = _PLANS.get(key)
    if plan is None:
        # Importing Triton takes a second, and not every machine has it.
        from fastgan.kernels import plans

        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        plan = _PLANS[key] = make(plans)
    return plan


def unsupported_reason(
    geometry: ConvGeometry,
    dtype: torch.dtype,
    groups: int = 1,
    *,
    input_shape: tuple[int, ...] | None = None,
    device: torch.device | None = None,
) -> str | None:
    """Says why the kernels can't run a convolution; None if they can.

    Args:
        geometry: of the convolution.
        dtype: of input and weight.
        groups: as torch's.
        input_shape: (N, C_in, H, W); None skips the checks of sizes.
        device: the input's device; None skips the checks of the device.

    Raises:
        ConfigError: the geometry leaves no output pixel of this input.

    Example:
        >>> unsupported_reason(ConvGeometry((4, 4)), torch.float64)
        'float64'
        >>> unsupported_reason(ConvGeometry((4, 4)), torch.float32, groups=2)
        'groups = 2'
    """
    if groups != 1:
        return f"groups = {groups}"
    if dtype not in DTYPES:
        return str(dtype).removeprefix("torch.")
    if input_shape is not None:
        if len(input_shape) != 4:
            return f"an input of {len(input_shape)} dimensions"
        if input_shape[1] == 0:
            return "0 channels"
        height, width = input_shape[2], input_shape[3]
        output_height, output_width = geometry.output_size((height, width))
        if max(height * width, output_height * output_width) >= 2**31:
            return "an image of 2^31 pixels or more"
    reason = _triton_is_missing()
    if reason is not None or device is None:
        return reason
    return _device_lacks(device)


def no_descriptors_reason(
    which: str,
    geometry: ConvGeometry,
    dtype: torch.dtype,
    weight_shape: tuple[int, ...],
    *,
    input_size: Pair | None = None,
    device: torch.device | None = None,
) -> str | None:
    """Says why ``descriptors=True`` can't run what the kernels can; None if it can.

    Args:
        which: "forward", "input_gradient" or "weight_gradient".
        geometry: of the convolution.
        dtype: of input and weight.
        weight_shape: of four dimensions.
        input_size: (H, W) of its input; None skips the checks of sizes.
        device: the input's device; None skips the checks of the device.
    """
    if device is not None and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        # Those of 12.0 have tensor memory accelerators too, but less than half the shared memory.
        if major not in (9, 10):
            return f"compute capability {major}.{minor}"
    return undescribed_reason(which, geometry, dtype, weight_shape, input_size)


@lru_cache(maxsize=1)
def _triton_is_missing() -> str | None:
    return "triton is not installed" if importlib.util.find_spec("triton") is None else None


@lru_cache(maxsize=64)
def _device_lacks(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None if interpreted() else f"device {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        # Triton has no matrix instructions to compile to.
        return f"compute capability {major}.{minor}"
    return triton_obstacle()


def _capability(device: torch.device) -> Pair:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _float32_precision(dtype: torch.dtype) -> str:
    """float32's precision: TF32 exactly if torch's convolutions may use it."""
    if dtype != torch.float32:
        return "ieee"
    cudnn: Any = torch.backends.cudnn
    # Follows torch.backends.cudnn.allow_tf32 as well as the newer settings.
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


class _Loaded(NamedTuple):
    """An operand and its prologue's tensors, as the kernels take them."""

    operation: tuple[str | None, str, float]
    tensor: Tensor
    pointers: Pointers  # tensor, other, mean, scale, bias, slope, offset
    strides: Four
    key: tuple[Any, ...]


def _strides(tensor: Tensor) -> Four:
    """Strides, with 0 (1 for channels) for dimensions of size 1, which may have any stride."""
    n, c, h, w = tensor.shape
    stride_n, stride_c, stride_h, stride_w = tensor.stride()
    return (
        stride_n if n > 1 else 0,
        stride_c if c > 1 else 1,
        stride_h if h > 1 else 0,
        stride_w if w > 1 else 0,
    )


def _loadable(tensor: Tensor) -> Tensor:
    # The kernels load vectors along contiguous channels. A copy to that layout costs less than
    # scalar loads for every tap; images' few channels form no vectors anyway.
    if tensor.shape[1] > 8 and tensor.stride(1) > 1 and tensor.shape[2] * tensor.shape[3] > 1:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _describable(tensor: Tensor) -> Tensor:
    """Channels-last and aligned to 16 bytes, as descriptors need it."""
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _vector(name: str, vector: Tensor | None, channels: int, like: Tensor) -> Tensor | None:
    if vector is None:
        return None
    _check_placed(name, vector, (channels,), like)
    return vector.contiguous()


def _load(tensor: Tensor, prologue: NormActivation | GradPrologue | None) -> _Loaded:
    tensor = _loadable(tensor)
    channels = tensor.shape[1]
    other = mean = scale = bias = slope = offset = None
    operation: tuple[str | None, str, float]
    if prologue is None:
        operation = (None, "none", 0.0)
    elif isinstance(prologue, NormActivation):
        operation = ("norm_activation", prologue.activation, float(prologue.negative_slope))
        mean, scale, bias = prologue.mean, prologue.scale, prologue.bias
    elif isinstance(prologue, BatchNormGradient):
        operation = ("batch_norm_gradient", "none", 0.0)
        other, mean, scale = prologue.input, prologue.mean, prologue.scale
        slope, offset = prologue.slope, prologue.offset
    else:
        operation = ("activation_gradient", prologue.activation, float(prologue.negative_slope))
        other = prologue.kept
    strides = _strides(tensor)
    if other is not None:
        _check_same("the prologue's tensor", other, tensor.shape, tensor)
        if _strides(other) != strides:
            # The kernels go through both with one set of offsets.
            tensor = tensor.contiguous(memory_format=torch.channels_last)
            other = other.contiguous(memory_format=torch.channels_last)
            strides = _strides(tensor)
    vectors = (
        _vector("the prologue's mean", mean, channels, tensor),
        _vector("the prologue's scale", scale, channels, tensor),
        _vector("the prologue's bias", bias, channels, tensor),
        _vector("the prologue's slope", slope, channels, tensor),
        _vector("the prologue's offset", offset, channels, tensor),
    )
    key = (operation, tensor.shape, strides, tuple(v if v is None else v.dtype for v in vectors))
    return _Loaded(operation, tensor, (tensor, other, *vectors), strides, key)


def _check_placed(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tensor.shape != shape or tensor.get_device() != like.get_device():
        raise ConfigError(
            f"{name} has shape {tuple(tensor.shape)} on {tensor.device}; expected "
            f"{tuple(shape)} on {like.device}"
        )


def _check_same(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    _check_placed(name, tensor, shape, like)
    if tensor.dtype != like.dtype:
        raise DtypeError(f"{name} is {tensor.dtype}; expected {like.dtype}")


def _check_operands(tensor: Tensor, weight: Tensor, geometry: ConvGeometry, channels: int) -> None:
    """Raises unless the tensor fits ``weight``, whose dimension ``channels`` has its channels."""
    if weight.dim() != 4 or weight.shape[2:] != geometry.kernel_size:
        raise ConfigError(
            f"weight has shape {tuple(weight.shape)}; expected four dimensions that end in "
            f"{geometry.kernel_size}"
        )
    if tensor.dim() != 4 or tensor.shape[1] != weight.shape[channels]:
        raise ConfigError(
            f"a tensor of shape {tuple(tensor.shape)} with a weight of shape "
            f"{tuple(weight.shape)}; expected {weight.shape[channels]} channels"
        )
    if tensor.dtype not in DTYPES:
        raise DtypeError(f"a tensor is {tensor.dtype}; expected float32, float16 or bfloat16")
    if weight.dtype != tensor.dtype:
        raise DtypeError(f"weight is {weight.dtype}; expected {tensor.dtype}, as the other tensor")
    if weight.get_device() != tensor.get_device():
        raise ConfigError(f"weight is on {weight.device}; expected {tensor.device}")


def _output(shape: Four, operand: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return torch.empty(
            shape, dtype=operand.dtype, device=operand.device, memory_format=torch.channels_last
        )
    _check_same("out", out, shape, operand)
    if not out.is_contiguous(memory_format=torch.channels_last):
        raise ConfigError(f"out has strides {out.stride()}; expected channels-last memory")
    return out


def _convolve(
    operand: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    scatter: bool,
    output_size: Pair,
    prologue: NormActivation | GradPrologue | None,
    epilogue: BiasActivation | Statistics | NormActivationGradient | ActivationGradient,
    out: Tensor | None,
    descriptors: bool,
) -> tuple[Tensor, Pointers]:
    """The output, and the tiles' reductions: (count, first, second)."""
    if descriptors:
        if prologue is not None:
            raise ConfigError("descriptors is True with a prologue; expected one or the other")
        operand, weight = _describable(operand), _describable(weight)
    loaded = _load(operand, prologue)
    out_channels = weight.shape[1 if scatter else 0]
    output = _output((operand.shape[0], out_channels, *output_size), operand, out)
    other = mean = scale = invstd = None
    operation: tuple[str, str, float]
    if isinstance(epilogue, BiasActivation):
        operation = ("bias_activation", epilogue.activation, float(epilogue.negative_slope))
        bias = epilogue.bias
    elif isinstance(epilogue, Statistics):
        operation = ("statistics", "none", 0.0)
        bias = epilogue.bias
    elif isinstance(epilogue, NormActivationGradient):
        norm = epilogue.norm
        operation = ("norm_activation_gradient", norm.activation, float(norm.negative_slope))
        other, bias, mean = epilogue.input, norm.bias, norm.mean
        scale, invstd = norm.scale, epilogue.invstd
    else:
        operation = ("activation_gradient", epilogue.activation, float(epilogue.negative_slope))
        other, bias = epilogue.kept, None
    if other is not None:
        _check_same("the epilogue's tensor", other, output.shape, output)
        other = other.contiguous(memory_format=torch.channels_last)
    vectors = (
        _vector("the epilogue's bias", bias, out_channels, operand),
        _vector("the epilogue's mean", mean, out_channels, operand),
        _vector("the epilogue's scale", scale, out_channels, operand),
        _vector("the epilogue's invstd", invstd, out_channels, operand),
    )
    precision = _float32_precision(operand.dtype)
    key = (
        scatter,
        descriptors,
        loaded.key,
        weight.shape,
        weight.stride(),
        output_size,
        geometry,
        operand.dtype,
        operand.get_device(),
        operation,
        tuple(v if v is None else v.dtype for v in vectors),
        precision,
    )

    def make(module: Any) -> Any:
        given: dict[str, Any] = {
            "scatter": scatter,
            "input_shape": tuple(operand.shape),
            "weight_shape": tuple(weight.shape),
            "output_size": output_size,
            "geometry": geometry,
            "capability": _capability(operand.device),
            "epilogue": module.Operation(*operation),
        }
        if descriptors:
            return module.plan_by_descriptors(**given)
        return module.plan_convolution(
            **given,
            input_strides=loaded.strides,
            weight_strides=weight.stride(),
            dtype=operand.dtype,
            prologue=module.Operation(*loaded.operation),
            precision=precision,
        )

    plan: plans.ConvolutionPlan = _planned(key, make)
    count = first = second = None
    if operation[0] in ("statistics", "norm_activation_gradient"):
        sums = (plan.tiles, out_channels)
        first = torch.empty(sums, dtype=torch.float32, device=operand.device)
        second = torch.empty(sums, dtype=torch.float32, device=operand.device)
        if operation[0] == "statistics":
            count = torch.empty((plan.tiles,), dtype=torch.float32, device=operand.device)
    stored = (output, other, *vectors, count, first, second)
    if not descriptors:
        plan.launch(*loaded.pointers, weight, *stored)
    elif output.numel() > 0:
        plan.launch(*stored, descriptors=described(plan.layouts, (operand, weight)))
    return output, (count, first, second)


def forward(
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    *,
    prologue: NormActivation | None = None,
    epilogue: BiasActivation | Statistics | ActivationGradient | None = None,
    out: Tensor | None = None,
    descriptors: bool = False,
) -> tuple[Tensor, PartialStatistics | None]:
    """A convolution of ``prologue(input)``, then ``epilogue``.

    Args:
        input: (N, C_in, H, W), float32, float16 or bfloat16, in any strides; channels-last is fast.
        weight: (C_out, C_in, k_h, k_w), or (C_in, C_out, k_h, k_w) if the geometry is transposed;
            of the input's dtype, in any strides; channels-last is fast.
        geometry: of the convolution. Zero padding is zero after the prologue.
        prologue: of the input; None leaves it as it is.
        epilogue: of the output; None is ``BiasActivation()``, the identity. ``ActivationGradient``
            computes the jvp of convolution and activation for a tangent.
        out: where to write the output, channels-last; it may be the epilogue's own tensor, but not
            share memory with ``input`` or ``weight``. None makes a new tensor.
        descriptors: whether the tensor memory accelerator copies the operands, which are made
            channels-last; see :func:`no_descriptors_reason`. Not with a prologue.

    Returns:
        The output, (N, C_out, H', W'), channels-last, of the input's dtype; and with ``Statistics``
        the statistics of its tiles, as stored. A tile may be empty: its count is 0.

    Raises:
        ConfigError: shapes or devices that don't fit (a ValueError).
        DtypeError: dtypes that don't fit (a TypeError).
    """
    _check_operands(input, weight, geometry, 0 if geometry.transposed else 1)
    output, (count, mean, m2) = _convolve(
        input,
        weight,
        geometry,
        geometry.transposed,
        geometry.output_size((input.shape[2], input.shape[3])),
        prologue,
        BiasActivation() if epilogue is None else epilogue,
        out,
        descriptors,
    )
    if count is None or mean is None or m2 is None:
        return output, None
    return output, PartialStatistics(count, mean, m2)


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    input_size: Pair,
    *,
    prologue: GradPrologue | None = None,
    epilogue: NormActivationGradient | ActivationGradient | None = None,
    out: Tensor | None = None,
    descriptors: bool = False,
) -> tuple[Tensor, GradientSums | None]:
    """The gradient of a convolution's input from ``prologue(grad_output)``, then ``epilogue``.

    Args:
        grad_output: (N, C_out, H', W'), float32, float16 or bfloat16, in any strides.
        weight: as in :func:`forward`.
        geometry: of the convolution.
        input_size: (H, W) of its input.
        prologue: of the gradient; None leaves it as it is.
        epilogue: of the result; None leaves it as it is.
        out: where to write the gradient, channels-last; it may be the epilogue's own tensor, but
            not share memory with ``grad_output`` or ``weight``. None makes a new tensor.
        descriptors: as in :func:`forward`.

    Returns:
        The gradient, (N, C_in, H, W), channels-last, of the same dtype; and with
        ``NormActivationGradient`` batch norm's two sums over its tiles, as stored.

    Raises:
        ConfigError: shapes or devices that don't fit (a ValueError).
        DtypeError: dtypes that don't fit (a TypeError).
    """
    _check_operands(grad_output, weight, geometry, 1 if geometry.transposed else 0)
    _check_output_size(grad_output, geometry, input_size)
    output, (_, grad, grad_xhat) = _convolve(
        grad_output,
        weight,
        geometry,
        not geometry.transposed,
        (input_size[0], input_size[1]),
        prologue,
        BiasActivation() if epilogue is None else epilogue,
        out,
        descriptors,
    )
    if grad is None or grad_xhat is None:
        return output, None
    return output, GradientSums(grad, grad_xhat)


def _check_output_size(grad_output: Tensor, geometry: ConvGeometry, input_size: Pair) -> None:
    expected = geometry.output_size((input_size[0], input_size[1]))
    if tuple(grad_output.shape[2:]) != expected:
        raise ConfigError(
            f"grad_output has shape {tuple(grad_output.shape)}; expected {expected[0]}x"
            f"{expected[1]} pixels, from an input of {input_size[0]}x{input_size[1]}"
        )


def weight_gradient(
    input: Tensor,
    grad_output: Tensor,
    geometry: ConvGeometry,
    weight: Tensor,
    *,
    input_prologue: NormActivation | None = None,
    grad_prologue: GradPrologue | None = None,
    with_bias: bool = False,
    dtype: torch.dtype | None = None,
    descriptors: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of a convolution's weight and bias.

    Args:
        input: (N, C_in, H, W), float32, float16 or bfloat16, in any strides.
        grad_output: (N, C_out, H', W'), of the same dtype, in any strides.
        geometry: of the convolution.
        weight: gives shape, dtype and strides of the result; its values aren't read.
        input_prologue: of the input; None leaves it as it is.
        grad_prologue: of the gradient; None leaves it as it is.
        with_bias: whether the bias has a gradient too.
        dtype: of the gradients, which are added up in float32; None is the weight's.
        descriptors: as in :func:`forward`.

    Returns:
        The weight's gradient, and the bias's: the sum of ``grad_prologue(grad_output)`` over all
        but the channels, (C_out,), or None. Bitwise reproducible.

    Raises:
        ConfigError: shapes or devices that don't fit (a ValueError).
        DtypeError: dtypes that don't fit (a TypeError).
    """
    _check_operands(input, weight, geometry, 0 if geometry.transposed else 1)
    _check_operands(grad_output, weight, geometry, 1 if geometry.transposed else 0)
    _check_output_size(grad_output, geometry, (input.shape[2], input.shape[3]))
    if grad_output.shape[0] != input.shape[0]:
        raise ConfigError(
            f"grad_output has {grad_output.shape[0]} samples; expected {input.shape[0]}, as input"
        )
    if input.shape[0] == 0:
        channels = grad_output.shape[1]
        grad_bias = grad_output.new_zeros(channels, dtype=dtype) if with_bias else None
        return torch.zeros_like(weight, dtype=dtype, requires_grad=False), grad_bias
    if descriptors:
        if input_prologue is not None or grad_prologue is not None:
            raise ConfigError("descriptors is True with a prologue; expected one or the other")
        input, grad_output = _describable(input), _describable(grad_output)
    loaded_input = _load(input, input_prologue)
    loaded_grad = _load(grad_output, grad_prologue)
    paired, gathered = (
        (loaded_input, loaded_grad) if geometry.transposed else (loaded_grad, loaded_input)
    )
    grad_weight = torch.empty_like(weight, dtype=dtype, requires_grad=False)
    precision = _float32_precision(input.dtype)
    key = (
        descriptors,
        paired.key,
        gathered.key,
        grad_weight.stride(),
        grad_weight.dtype,
        geometry,
        input.dtype,
        input.get_device(),
        precision,
    )

    def make(module: Any) -> Any:
        given: dict[str, Any] = {
            "paired_shape": tuple(paired.tensor.shape),
            "gathered_shape": tuple(gathered.tensor.shape),
            "weight_strides": grad_weight.stride(),
            "geometry": geometry,
            "capability": _capability(input.device),
        }
        if descriptors:
            return module.plan_weight_gradient_by_descriptors(**given)
        return module.plan_weight_gradient(
            **given,
            paired_strides=paired.strides,
            gathered_strides=gathered.strides,
            dtype=input.dtype,
            paired_prologue=module.Operation(*paired.operation),
            gathered_prologue=module.Operation(*gathered.operation),
            precision=precision,
        )

    plan: plans.ReductionPlan = _planned(key, make)
    result = grad_weight
    if plan.total is not None:
        # Dense like the gradient, so that adding up the splits is a sum of flat vectors.
        result = torch.empty(
            (plan.splits, weight.numel()), dtype=torch.float32, device=weight.device
        )
    if descriptors:
        sides = (paired.tensor, gathered.tensor)
        plan.launch(result, descriptors=described(plan.layouts, sides))
    else:
        plan.launch(*paired.pointers, *gathered.pointers, result)
    if plan.total is not None:
        plan.total(result, grad_weight)
    return grad_weight, _channel_sums(loaded_grad, grad_weight.dtype) if with_bias else None


def _channel_sums(loaded: _Loaded, dtype: torch.dtype) -> Tensor:
    """The operand after its prologue, summed over N, H and W, in ``dtype``."""
    tensor = loaded.tensor
    key = ("channel sums", loaded.key, dtype, tensor.dtype, tensor.get_device())
    plan: plans.ReductionPlan = _planned(
        key,
        lambda module: module.plan_channel_sums(
            shape=tuple(tensor.shape),
            strides=loaded.strides,
            capability=_capability(tensor.device),
            prologue=module.Operation(*loaded.operation),
        ),
    )
    assert plan.total is not None
    channels = tensor.shape[1]
    partial = torch.empty((plan.splits, channels), dtype=torch.float32, device=tensor.device)
    plan.launch(*loaded.pointers, partial)
    total = torch.empty((channels,), dtype=dtype, device=tensor.device)
    plan.total(partial, total)
    return total
