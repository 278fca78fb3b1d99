"""Which layers and functions the fused pass takes, and as which step.

One table each for modules, functions and tensor methods. An entry gives a :data:`Conversion`, or
raises :class:`Refused` with the reason. Whatever isn't in a table is refused.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastgan.penalty import bent_steps as bent
from fastgan.penalty import curved_steps as curved
from fastgan.penalty import linear_steps as linear
from fastgan.penalty.plan import Attribute, Constant
from fastgan.penalty.steps import Step

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "Conversion", "Refused"]

Source = Attribute | Constant
Conversion = tuple[Step, list[fx.Node], list[Source | None], list[Tensor | None], bool]
"""The step, the nodes it takes, where its parameters are, their shapes as meta tensors, and
whether the original changes its input in place."""

aten = torch.ops.aten
IsLive = Callable[[Any], bool]


class Refused(Exception):
    """Why a critic can't take the fused pass."""


# Activations ---------------------------------------------------------------------------------


def _relu() -> Step:
    return bent.Activation(
        "relu",
        F.relu,
        torch.relu_,
        lambda grad, output, out: aten.threshold_backward.grad_input(
            grad, output, 0, grad_input=out
        ),
        fusion=("relu", 0.0),
    )


def _leaky_relu(slope: float) -> Step:
    if slope < 0:
        return bent.MaskedActivation(
            "leaky_relu",
            lambda x: F.leaky_relu(x, slope),
            lambda x: torch.full_like(x, slope).masked_fill_(x > 0, 1),
        )
    return bent.Activation(
        "leaky_relu",
        lambda x: F.leaky_relu(x, slope),
        lambda x: aten.leaky_relu_(x, slope),
        lambda grad, output, out: aten.leaky_relu_backward.grad_input(
            grad, output, slope, True, grad_input=out
        ),
        fusion=("leaky_relu", float(slope)),
    )


@functools.cache
def _rounded(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=dtype).item())


def _hardtanh(low: float, high: float) -> Step:
    return bent.Activation(
        "hardtanh",
        lambda x: F.hardtanh(x, low, high),
        lambda x: aten.hardtanh_(x, low, high),
        # A value that was cut lies on the bound now, where the derivative is 0 as well; but not if
        # the output's dtype rounds the bound towards zero, to where it is 1.
        lambda grad, output, out: aten.hardtanh_backward.grad_input(
            grad, output, low, high, grad_input=out
        ),
        lambda dtype: (
            dtype in (torch.float32, torch.float64)
            or (_rounded(low, dtype) <= low and _rounded(high, dtype) >= high)
        ),
    )


def _abs() -> Step:
    return bent.MaskedActivation("abs", torch.abs, torch.sgn)


def _tanh() -> Step:
    return curved.SmoothActivation(
        "tanh", torch.tanh, lambda y: 1 - y * y, lambda y: 2 * y * (y * y - 1)
    )


def _sigmoid() -> Step:
    return curved.SmoothActivation(
        "sigmoid", torch.sigmoid, lambda y: y * (1 - y), lambda y: y * (1 - y) * (1 - 2 * y)
    )


def _softplus(beta: float, threshold: float) -> Step:
    def first(x: Tensor) -> Tensor:
        return torch.where(x * beta > threshold, 1.0, torch.sigmoid(beta * x))

    def second(x: Tensor) -> Tensor:
        slope = torch.sigmoid(beta * x)
        return torch.where(x * beta > threshold, 0.0, beta * slope * (1 - slope))

    return curved.SmoothActivation(
        "softplus", lambda x: F.softplus(x, beta, threshold), first, second, from_output=False
    )


# Modules -------------------------------------------------------------------------------------

Builder = Callable[[Any, str, Any], "Conversion | None"]


def _plain(step: Step, node: fx.Node, in_place: bool = False) -> Conversion:
    return step, [node], [], [], in_place


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _numbers(value: Any, count: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * count


def _convolution_step(
    shape: Sequence[int],
    weight: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    transposed: bool = False,
    output_padding: Any = 0,
) -> Step:
    """``shape`` is the input's, with the batch."""
    count = len(weight) - 2
    if len(shape) != count + 2:
        raise Refused(f"the input has {len(shape)} dimensions; expected {count + 2}")
    stride, dilation = _numbers(stride, count), _numbers(dilation, count)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (taps - 1) for d, taps in zip(dilation, weight[2:], strict=True)]
        if any(t % 2 for t in total):
            raise Refused("padding 'same' with an even kernel pads one side more than the other")
        padding = [t // 2 for t in total]
    padding = _numbers(padding, count)
    full = list(weight[2:]) == list(shape[2:]) and not transposed and groups == 1
    if full and not any(padding) and all(d == 1 for d in dilation):
        return linear.FullConvolution()
    return linear.Convolution(
        stride, padding, dilation, transposed, _numbers(output_padding, count), groups
    )


def _convolution_module(module: Any, path: str, node: fx.Node) -> Conversion:
    if module.padding_mode != "zeros":
        raise Refused(f"padding_mode is {module.padding_mode!r}; only 'zeros' is taken")
    channels = (module.out_channels, module.in_channels // module.groups)
    if module.transposed:
        channels = (module.in_channels, module.out_channels // module.groups)
    weight = _meta(*channels, *module.kernel_size)
    step = _convolution_step(
        node.meta["example"].shape,
        weight.shape,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.transposed,
        module.output_padding,
    )
    bias = None if module.bias is None else Attribute(path, "bias")
    return (
        step,
        [node],
        [Attribute(path, "weight"), bias],
        [weight, None if bias is None else _meta(module.out_channels)],
        False,
    )


def _linear_module(module: nn.Linear, path: str, node: fx.Node) -> Conversion:
    bias = None if module.bias is None else Attribute(path, "bias")
    return (
        linear.Linear(),
        [node],
        [Attribute(path, "weight"), bias],
        [
            _meta(module.out_features, module.in_features),
            None if bias is None else _meta(module.out_features),
        ],
        False,
    )


def _batch_norm_module(module: Any, path: str, node: fx.Node) -> Conversion:
    if module.training or module.running_mean is None or module.running_var is None:
        raise Refused("batch norm in training mode couples the samples of a batch")
    vector = _meta(module.num_features)
    affine = (module.weight is not None, module.bias is not None)
    return (
        linear.BatchNorm(module.eps),
        [node],
        [
            Attribute(path, "weight") if affine[0] else None,
            Attribute(path, "bias") if affine[1] else None,
            Attribute(path, "running_mean"),
            Attribute(path, "running_var"),
        ],
        [vector if affine[0] else None, vector if affine[1] else None, vector, vector],
        False,
    )


def _prelu_module(module: nn.PReLU, path: str, node: fx.Node) -> Conversion:
    return bent.PReLU(), [node], [Attribute(path, "weight")], [_meta(module.num_parameters)], False


def _dropout_module(module: Any, path: str, node: fx.Node) -> Conversion:
    if module.training and module.p > 0:
        raise Refused("dropout in training mode draws another mask for every forward pass")
    return _identity(module, path, node)


def _max_pool_module(module: nn.MaxPool2d, path: str, node: fx.Node) -> Conversion:
    if module.return_indices:
        raise Refused("return_indices is set")
    _check_maps(node)
    return _plain(
        _max_pool(
            module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        ),
        node,
    )


def _check_maps(node: fx.Node) -> None:
    shape = tuple(node.meta["example"].shape)
    if len(shape) != 4:
        raise Refused(f"the input has shape {shape}; only (N, C, H, W) is taken")


def _max_pool(
    kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Step:
    kernel = _numbers(kernel, 2)
    stride = kernel if stride is None or stride == [] else _numbers(stride, 2)
    return bent.MaxPool2d(kernel, stride, _numbers(padding, 2), _numbers(dilation, 2), ceil_mode)


def _average_pool(
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Step:
    kernel = _numbers(kernel, 2)
    stride = kernel if stride is None or stride == [] else _numbers(stride, 2)
    return linear.AveragePool(
        kernel, stride, _numbers(padding, 2), ceil_mode, count_include_pad, divisor_override
    )


def _of_module(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module's forward on a copy without hooks, holding no reference to the original."""
    settings = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    forward = type(module).forward
    bare = type(module).__new__(type(module))
    nn.Module.__init__(bare)
    for name, value in settings.items():
        object.__setattr__(bare, name, value)
    return lambda x: forward(bare, x)


def _group_norm_step(op: str, example: Tensor, groups: int, eps: float) -> Step:
    if example.dim() < 2 or example.size(1) % groups:
        raise Refused(f"{groups} groups don't divide shape {tuple(example.shape)}")
    return curved.GroupNorm(op, groups, eps)


def _affine(module: Any, path: str) -> tuple[list[Source | None], list[Tensor | None]]:
    """The sources and shapes of a norm's weight and bias."""
    vectors = [getattr(module, name) for name in ("weight", "bias")]
    sources: list[Source | None] = [
        None if vector is None else Attribute(path, name)
        for name, vector in zip(("weight", "bias"), vectors, strict=True)
    ]
    return sources, [None if vector is None else _meta(*vector.shape) for vector in vectors]


def _group_norm_module(module: nn.GroupNorm, path: str, node: fx.Node) -> Conversion:
    step = _group_norm_step("group_norm", node.meta["example"], module.num_groups, module.eps)
    return step, [node], *_affine(module, path), False


def _instance_norm_module(module: Any, path: str, node: fx.Node) -> Conversion:
    example = node.meta["example"]
    module._check_input_dim(example)
    if example.dim() == module._get_no_batch_dim():
        raise Refused(f"shape {tuple(example.shape)} has no batch dimension")
    if module.track_running_stats:
        if module.training or module.running_mean is None:
            raise Refused("instance norm in training mode moves its running statistics")
        return _batch_norm_module(module, path, node)
    step = _group_norm_step("instance_norm", example, example.size(1), module.eps)
    return step, [node], *_affine(module, path), False


def _layer_norm_step(example: Tensor, shape: Sequence[int], eps: float) -> Step:
    if list(example.shape[1:][-len(shape) :]) != list(shape):
        raise Refused(f"normalized_shape {tuple(shape)} doesn't fit {tuple(example.shape)}")
    return curved.LayerNorm(shape, eps)


def _layer_norm_module(module: nn.LayerNorm, path: str, node: fx.Node) -> Conversion:
    step = _layer_norm_step(node.meta["example"], module.normalized_shape, module.eps)
    return step, [node], *_affine(module, path), False


def _linear_map_module(op: str) -> Builder:
    def build(module: nn.Module, path: str, node: fx.Node) -> Conversion:
        return _plain(linear.LinearMap(op, _of_module(module), fresh=True), node)

    return build


def _reshape_to(node: fx.Node, output: Sequence[int]) -> Conversion:
    example = node.meta["example"]
    if not output or output[0] != example.size(0):
        raise Refused(f"it takes shape {tuple(example.shape)} to {tuple(output)}, across samples")
    return _plain(linear.Reshape(output[1:]), node)


def _reshape_module(module: nn.Module, path: str, node: fx.Node) -> Conversion:
    example = torch.empty_like(node.meta["example"])
    return _reshape_to(node, _of_module(module)(example).shape)


def _identity(module: nn.Module, path: str, node: fx.Node) -> Conversion:
    return _plain(linear.Reshape(node.meta["example"].shape[1:]), node)


MODULES: dict[type[nn.Module], Builder] = {
    nn.Conv1d: _convolution_module,
    nn.Conv2d: _convolution_module,
    nn.Conv3d: _convolution_module,
    nn.ConvTranspose1d: _convolution_module,
    nn.ConvTranspose2d: _convolution_module,
    nn.ConvTranspose3d: _convolution_module,
    nn.Linear: _linear_module,
    nn.BatchNorm1d: _batch_norm_module,
    nn.BatchNorm2d: _batch_norm_module,
    nn.BatchNorm3d: _batch_norm_module,
    nn.GroupNorm: _group_norm_module,
    nn.InstanceNorm1d: _instance_norm_module,
    nn.InstanceNorm2d: _instance_norm_module,
    nn.InstanceNorm3d: _instance_norm_module,
    nn.LayerNorm: _layer_norm_module,
    nn.Tanh: lambda m, path, node: _plain(_tanh(), node),
    nn.Sigmoid: lambda m, path, node: _plain(_sigmoid(), node),
    nn.Softplus: lambda m, path, node: _plain(_softplus(m.beta, m.threshold), node),
    nn.ReLU: lambda m, path, node: _plain(_relu(), node, m.inplace),
    nn.LeakyReLU: lambda m, path, node: _plain(_leaky_relu(m.negative_slope), node, m.inplace),
    nn.Hardtanh: lambda m, path, node: _plain(_hardtanh(m.min_val, m.max_val), node, m.inplace),
    nn.ReLU6: lambda m, path, node: _plain(_hardtanh(0.0, 6.0), node, m.inplace),
    nn.PReLU: _prelu_module,
    nn.MaxPool2d: _max_pool_module,
    nn.AvgPool2d: lambda m, path, node: _plain(
        _average_pool(
            m.kernel_size,
            m.stride,
            m.padding,
            m.ceil_mode,
            m.count_include_pad,
            m.divisor_override,
        ),
        node,
    ),
    nn.AvgPool1d: _linear_map_module("avg_pool1d"),
    nn.AvgPool3d: _linear_map_module("avg_pool3d"),
    nn.AdaptiveAvgPool1d: _linear_map_module("adaptive_avg_pool1d"),
    nn.AdaptiveAvgPool2d: _linear_map_module("adaptive_avg_pool2d"),
    nn.AdaptiveAvgPool3d: _linear_map_module("adaptive_avg_pool3d"),
    nn.Upsample: _linear_map_module("upsample"),
    nn.UpsamplingNearest2d: _linear_map_module("upsample"),
    nn.UpsamplingBilinear2d: _linear_map_module("upsample"),
    nn.PixelShuffle: _linear_map_module("pixel_shuffle"),
    nn.PixelUnshuffle: _linear_map_module("pixel_unshuffle"),
    nn.ZeroPad2d: _linear_map_module("pad"),
    nn.ReflectionPad2d: _linear_map_module("pad"),
    nn.ReplicationPad2d: _linear_map_module("pad"),
    nn.Flatten: _reshape_module,
    nn.Unflatten: _reshape_module,
    nn.Identity: _identity,
    nn.Dropout: _dropout_module,
    nn.Dropout1d: _dropout_module,
    nn.Dropout2d: _dropout_module,
    nn.Dropout3d: _dropout_module,
}


# Functions and methods -----------------------------------------------------------------------

Function = Callable[[fx.Node, IsLive], "Conversion | None"]


def _bound(node: fx.Node, *names: str, **defaults: Any) -> dict[str, Any]:
    """The call's arguments by name; ``names`` and ``defaults`` in the function's own order."""
    order = [*names, *defaults]
    if len(node.args) > len(order):
        raise Refused("it is called with arguments that aren't known here")
    found = {**defaults, **dict(zip(order, node.args, strict=False))}
    for name, value in node.kwargs.items():
        if name not in order:
            raise Refused(f"argument {name} isn't known here")
        found[name] = value
    if len(found) != len(order):
        raise Refused("an argument is missing")
    return {name: found[name] for name in order}


def _nodes_in(structure: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.node.map_arg(structure, nodes.append)
    return nodes


def _only_input_is_live(arguments: dict[str, Any], is_live: IsLive, name: str = "input") -> fx.Node:
    for key, value in arguments.items():
        if key != name and _nodes_in(value):
            raise Refused(f"argument {key} is computed")
    node = arguments[name]
    if not is_live(node):
        raise Refused(f"argument {name} doesn't depend on the images")
    assert isinstance(node, fx.Node)
    return node


def _source(value: Any, is_live: IsLive, what: str) -> tuple[Source | None, Tensor | None]:
    if value is None:
        return None, None
    if is_live(value):
        raise Refused(f"{what} depends on the images")
    if not isinstance(value, fx.Node):
        raise Refused(f"{what} is neither a parameter, a buffer nor computed from one")
    example = value.meta.get("example")
    if not isinstance(example, Tensor):
        raise Refused(f"the shape of {what} isn't known before it is computed")
    return Constant(value), example


def _convolution_function(transposed: bool) -> Function:
    def convert(node: fx.Node, is_live: IsLive) -> Conversion:
        names = ("input", "weight")
        if transposed:
            given = _bound(
                node,
                *names,
                bias=None,
                stride=1,
                padding=0,
                output_padding=0,
                groups=1,
                dilation=1,
            )
        else:
            given = _bound(node, *names, bias=None, stride=1, padding=0, dilation=1, groups=1)
        weight, weight_example = _source(given["weight"], is_live, "the weight")
        bias, bias_example = _source(given["bias"], is_live, "the bias")
        if not is_live(given["input"]) or weight_example is None:
            raise Refused("the input doesn't depend on the images")
        step = _convolution_step(
            given["input"].meta["example"].shape,
            weight_example.shape,
            given["stride"],
            given["padding"],
            given["dilation"],
            given["groups"],
            transposed,
            given.get("output_padding", 0),
        )
        return step, [given["input"]], [weight, bias], [weight_example, bias_example], False

    return convert


def _linear_function(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "input", "weight", bias=None)
    weight, weight_example = _source(given["weight"], is_live, "the weight")
    bias, bias_example = _source(given["bias"], is_live, "the bias")
    if not is_live(given["input"]):
        raise Refused("the input doesn't depend on the images")
    return (
        linear.Linear(),
        [given["input"]],
        [weight, bias],
        [weight_example, bias_example],
        False,
    )


def _batch_norm_function(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(
        node,
        "input",
        "running_mean",
        "running_var",
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
    )
    if given["training"]:
        raise Refused("batch norm in training mode couples the samples of a batch")
    sources = [
        _source(given[name], is_live, name)
        for name in ("weight", "bias", "running_mean", "running_var")
    ]
    if not is_live(given["input"]):
        raise Refused("the input doesn't depend on the images")
    return (
        linear.BatchNorm(given["eps"]),
        [given["input"]],
        [source for source, _ in sources],
        [example for _, example in sources],
        False,
    )


def _group_norm_function(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "input", "num_groups", weight=None, bias=None, eps=1e-5)
    example = _live_input(given, is_live).meta["example"]
    step = _group_norm_step("group_norm", example, given["num_groups"], given["eps"])
    return step, [given["input"]], *_affine_arguments(given, is_live), False


def _layer_norm_function(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "input", "normalized_shape", weight=None, bias=None, eps=1e-5)
    example = _live_input(given, is_live).meta["example"]
    step = _layer_norm_step(example, given["normalized_shape"], given["eps"])
    return step, [given["input"]], *_affine_arguments(given, is_live), False


def _instance_norm_function(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(
        node,
        "input",
        running_mean=None,
        running_var=None,
        weight=None,
        bias=None,
        use_input_stats=True,
        momentum=0.1,
        eps=1e-5,
    )
    example = _live_input(given, is_live).meta["example"]
    if given["running_mean"] is not None or not given["use_input_stats"]:
        raise Refused("instance norm with running statistics is taken as a module only")
    step = _group_norm_step("instance_norm", example, example.size(1), given["eps"])
    return step, [given["input"]], *_affine_arguments(given, is_live), False


def _live_input(given: dict[str, Any], is_live: IsLive) -> fx.Node:
    if not is_live(given["input"]):
        raise Refused("the input doesn't depend on the images")
    assert isinstance(given["input"], fx.Node)
    return given["input"]


def _affine_arguments(
    given: dict[str, Any], is_live: IsLive
) -> tuple[list[Source | None], list[Tensor | None]]:
    found = [_source(given[name], is_live, f"the {name}") for name in ("weight", "bias")]
    return [source for source, _ in found], [example for _, example in found]


def _prelu_function(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "input", "weight")
    weight, example = _source(given["weight"], is_live, "the weight")
    if not is_live(given["input"]):
        raise Refused("the input doesn't depend on the images")
    return bent.PReLU(), [given["input"]], [weight], [example], False


def _activation(
    build: Callable[..., Step], in_place: bool | None = None, **defaults: Any
) -> Function:
    """``in_place`` None: the call's own ``inplace`` argument says."""

    def convert(node: fx.Node, is_live: IsLive) -> Conversion:
        settings = dict(defaults)
        if in_place is None:
            settings["inplace"] = False
        given = _bound(node, "input", **settings)
        input = _only_input_is_live(given, is_live)
        changes = given.pop("inplace") if in_place is None else in_place
        del given["input"]
        return _plain(build(*given.values()), input, bool(changes))

    return convert


def _pool(build: Callable[..., Step], **defaults: Any) -> Function:
    def convert(node: fx.Node, is_live: IsLive) -> Conversion:
        given = _bound(node, "input", "kernel_size", **defaults)
        input = _only_input_is_live(given, is_live)
        del given["input"]
        if given.pop("return_indices", False):
            raise Refused("return_indices is set")
        if build is _max_pool:
            _check_maps(input)
        return _plain(build(*given.values()), input)

    return convert


def _call_with_first(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The call as a function of its first argument."""
    args, kwargs = node.args[1:], dict(node.kwargs)
    if node.op == "call_method":
        name = str(node.target)
        return lambda x: getattr(x, name)(*args, **kwargs)
    target: Any = node.target
    return lambda x: target(x, *args, **kwargs)


def _input_of(node: fx.Node, is_live: IsLive) -> fx.Node:
    """The first argument, the others being plain numbers."""
    if not node.args or not is_live(node.args[0]):
        raise Refused("its first argument doesn't depend on the images, or is named")
    others = _nodes_in((node.args[1:], dict(node.kwargs)))
    tensors: list[Any] = []
    fx.node.map_aggregate(
        (node.args[1:], dict(node.kwargs)),
        lambda leaf: tensors.append(leaf) if isinstance(leaf, Tensor) else None,
    )
    if others or tensors:
        raise Refused("an argument other than the first is a tensor")
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _output_example(node: fx.Node, input: fx.Node) -> Tensor:
    with torch._C.DisableTorchFunction():
        return _call_with_first(node)(input.meta["example"])


def _reshape(node: fx.Node, is_live: IsLive) -> Conversion:
    input = _input_of(node, is_live)
    return _reshape_to(input, _output_example(node, input).shape)


def _permutation(node: fx.Node, is_live: IsLive) -> Conversion:
    input = _input_of(node, is_live)
    example = input.meta["example"]
    # Strides that name their dimensions: where has the batch gone?
    labelled = torch.empty_strided(
        example.shape, [10**k for k in range(example.dim(), 0, -1)], device="meta"
    )
    with torch._C.DisableTorchFunction():
        moved = _call_with_first(node)(labelled)
    if moved.stride(0) != labelled.stride(0):
        raise Refused("it moves the batch dimension")
    return _plain(linear.LinearMap("permute", _call_with_first(node)), input)


def _reduction(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "input", dim=None, keepdim=False, dtype=None)
    input = _only_input_is_live(given, is_live)
    rank = input.meta["example"].dim()
    dims = given["dim"]
    dims = list(range(rank)) if dims is None else dims
    dims = [dims] if isinstance(dims, int) else list(dims) or list(range(rank))
    if any(d % rank == 0 for d in dims):
        raise Refused("it reduces over the batch")
    name = getattr(node.target, "__name__", str(node.target))
    return _plain(linear.LinearMap(name, _reduce_by(name, dims, given), fresh=True), input)


def _reduce_by(name: str, dims: list[int], given: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    reduce: Any = getattr(torch, name)
    keepdim, dtype = given["keepdim"], given["dtype"]
    return lambda x: reduce(x, dim=dims, keepdim=keepdim, dtype=dtype)


def _linear_map(op: str, *, fresh: bool = True) -> Function:
    def convert(node: fx.Node, is_live: IsLive) -> Conversion:
        input = _input_of(node, is_live)
        return _plain(linear.LinearMap(op, _call_with_first(node), fresh=fresh), input)

    return convert


def _pad(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "input", "pad", mode="constant", value=None)
    input = _only_input_is_live(given, is_live)
    if given["mode"] == "constant" and given["value"] not in (None, 0, 0.0):
        raise Refused(f"it pads with {given['value']}, not with zeros")
    if len(given["pad"]) // 2 >= input.meta["example"].dim():
        raise Refused("it pads the batch")
    pad, mode = list(given["pad"]), given["mode"]
    return _plain(linear.LinearMap("pad", lambda x: F.pad(x, pad, mode), fresh=True), input)


def _getitem(node: fx.Node, is_live: IsLive) -> Conversion:
    input = _input_of(node, is_live)
    index: Any = node.args[1]
    pieces = index if isinstance(index, tuple) else (index,)
    keeps_batch = (
        pieces[0] == slice(None)
        if pieces[0] is not Ellipsis
        else (len([p for p in pieces[1:] if p is not None]) < input.meta["example"].dim())
    )
    if not keeps_batch or not all(
        isinstance(p, (int, slice, type(None), type(Ellipsis))) for p in pieces
    ):
        raise Refused(f"index {index!r} doesn't keep the whole batch first")
    return _plain(linear.LinearMap("getitem", lambda x: x[index]), input)


def _dropout(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "input", p=0.5, training=True, inplace=False)
    input = _only_input_is_live(given, is_live)
    if given["training"] and given["p"] > 0:
        raise Refused("dropout in training mode draws another mask for every forward pass")
    return _plain(linear.Reshape(input.meta["example"].shape[1:]), input)


def _as_is(node: fx.Node, is_live: IsLive) -> Conversion:
    input = _input_of(node, is_live)
    return _plain(linear.Reshape(input.meta["example"].shape[1:]), input)


def _cast(dtype: torch.dtype | None) -> Function:
    """``dtype`` None: the method is ``to``, and its arguments say."""

    def convert(node: fx.Node, is_live: IsLive) -> Conversion:
        input = _input_of(node, is_live)
        wanted = dtype
        if wanted is None:
            given = [*node.args[1:], *node.kwargs.values()]
            dtypes = [a for a in given if isinstance(a, torch.dtype)]
            if len(dtypes) != 1 or len(given) != 1:
                raise Refused("only to(dtype) is taken")
            (wanted,) = dtypes
        if not wanted.is_floating_point:
            raise Refused(f"it casts to {wanted}")
        return _plain(linear.Cast(wanted), input)

    return convert


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _addition(sign: float, *, in_place: bool = False, reflected: bool = False) -> Function:
    def convert(node: fx.Node, is_live: IsLive) -> Conversion:
        given = _bound(node, "input", "other", alpha=1)
        left, right = given["input"], given["other"]
        factors = (1.0, sign * given["alpha"])
        if reflected:
            left, right = right, left
        if is_live(left) and is_live(right):
            shapes = [tuple(term.meta["example"].shape) for term in (left, right)]
            if len(shapes[0]) != len(shapes[1]):
                raise Refused(
                    f"it adds shapes {shapes[0]} and {shapes[1]}, whose batches don't meet"
                )
            return linear.Sum("add", factors), [left, right], [], [], in_place
        live, other = (left, right) if is_live(left) else (right, left)
        live_factor, other_factor = factors if is_live(left) else factors[::-1]
        if in_place and not is_live(left):
            raise Refused("it changes a tensor in place that doesn't depend on the images")
        if _is_number(other):
            return _plain(linear.Sum("add", [live_factor], other_factor * other), live, in_place)
        source, example = _source(other, is_live, "the other term")
        assert example is not None
        _same_shape(live, example)
        step = linear.TensorShift("add", other_factor, live_factor)
        return step, [live], [source], [example], in_place

    return convert


def _same_shape(live: fx.Node, example: Tensor) -> None:
    shape = live.meta["example"].shape
    if torch.broadcast_shapes(shape, example.shape) != shape:
        raise Refused(f"it broadcasts shape {tuple(shape)} to a larger one")


def _multiplication(*, divide: bool = False, in_place: bool = False) -> Function:
    def convert(node: fx.Node, is_live: IsLive) -> Conversion:
        given = _bound(node, "input", "other")
        left, right = given["input"], given["other"]
        if is_live(left) and is_live(right):
            raise Refused("it multiplies two tensors that both depend on the images")
        if (divide or in_place) and not is_live(left):
            raise Refused("it divides by a tensor that depends on the images")
        live, other = (left, right) if is_live(left) else (right, left)
        if _is_number(other):
            if divide:
                return _plain(linear.LinearMap("div", lambda x: x / other, fresh=True), live)
            return _plain(linear.Sum("mul", [float(other)]), live, in_place)
        source, example = _source(other, is_live, "the other factor")
        assert example is not None
        _same_shape(live, example)
        return (
            linear.TensorScaling("div" if divide else "mul", divide=divide),
            [live],
            [source],
            [example],
            in_place,
        )

    return convert


def _negation(node: fx.Node, is_live: IsLive) -> Conversion:
    return _plain(linear.Sum("neg", [-1.0]), _input_of(node, is_live))


def _concatenation(node: fx.Node, is_live: IsLive) -> Conversion:
    given = _bound(node, "tensors", dim=0)
    pieces = list(given["tensors"])
    inputs = [piece for piece in pieces if is_live(piece)]
    rank = inputs[0].meta["example"].dim()
    dim = given["dim"] % rank
    if dim == 0:
        raise Refused("it lays batches end to end")
    sources: list[Source | None] = []
    examples: list[Tensor | None] = []
    widths = []
    for piece in pieces:
        if is_live(piece):
            widths.append(piece.meta["example"].size(dim))
            continue
        source, example = _source(piece, is_live, "a piece")
        assert example is not None
        sources.append(source)
        examples.append(example)
        widths.append(example.size(dim))
    step = linear.Concatenation(dim, [not is_live(p) for p in pieces], widths)
    return step, inputs, sources, examples, False


FUNCTIONS: dict[Any, Function] = {
    F.conv1d: _convolution_function(False),
    F.conv2d: _convolution_function(False),
    F.conv3d: _convolution_function(False),
    F.conv_transpose1d: _convolution_function(True),
    F.conv_transpose2d: _convolution_function(True),
    F.conv_transpose3d: _convolution_function(True),
    F.linear: _linear_function,
    F.batch_norm: _batch_norm_function,
    F.group_norm: _group_norm_function,
    F.layer_norm: _layer_norm_function,
    F.instance_norm: _instance_norm_function,
    F.prelu: _prelu_function,
    F.relu: _activation(_relu),
    torch.relu: _activation(_relu, False),
    torch.relu_: _activation(_relu, True),
    F.leaky_relu: _activation(_leaky_relu, negative_slope=0.01),
    F.leaky_relu_: _activation(_leaky_relu, True, negative_slope=0.01),
    F.hardtanh: _activation(_hardtanh, min_val=-1.0, max_val=1.0),
    F.relu6: _activation(lambda: _hardtanh(0.0, 6.0)),
    torch.tanh: _activation(_tanh, False),
    torch.sigmoid: _activation(_sigmoid, False),
    F.tanh: _activation(_tanh, False),
    F.sigmoid: _activation(_sigmoid, False),
    F.softplus: _activation(_softplus, False, beta=1, threshold=20),
    torch.abs: _activation(_abs, False),
    operator.abs: _activation(_abs, False),
    F.max_pool2d: _pool(
        _max_pool, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ),
    torch.max_pool2d: _pool(_max_pool, stride=None, padding=0, dilation=1, ceil_mode=False),
    F.avg_pool2d: _pool(
        _average_pool,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ),
    F.adaptive_avg_pool2d: _linear_map("adaptive_avg_pool2d"),
    F.interpolate: _linear_map("interpolate"),
    F.pixel_shuffle: _linear_map("pixel_shuffle"),
    F.pixel_unshuffle: _linear_map("pixel_unshuffle"),
    F.pad: _pad,
    F.dropout: _dropout,
    torch.flatten: _reshape,
    torch.reshape: _reshape,
    torch.squeeze: _reshape,
    torch.unsqueeze: _reshape,
    torch.permute: _permutation,
    torch.transpose: _permutation,
    torch.mean: _reduction,
    torch.sum: _reduction,
    torch.cat: _concatenation,
    torch.concat: _concatenation,
    torch.add: _addition(1.0),
    torch.sub: _addition(-1.0),
    torch.mul: _multiplication(),
    torch.div: _multiplication(divide=True),
    torch.neg: _negation,
    operator.add: _addition(1.0),
    operator.iadd: _addition(1.0, in_place=True),
    operator.sub: _addition(-1.0),
    operator.isub: _addition(-1.0, in_place=True),
    operator.mul: _multiplication(),
    operator.imul: _multiplication(in_place=True),
    operator.truediv: _multiplication(divide=True),
    operator.neg: _negation,
    operator.getitem: _getitem,
}

METHODS: dict[Any, Function] = {
    "abs": _activation(_abs, False),
    "add": _addition(1.0),
    "add_": _addition(1.0, in_place=True),
    "bfloat16": _cast(torch.bfloat16),
    "clone": _linear_map("clone"),
    "contiguous": _as_is,
    "div": _multiplication(divide=True),
    "double": _cast(torch.float64),
    "flatten": _reshape,
    "float": _cast(torch.float32),
    "half": _cast(torch.float16),
    "mean": _reduction,
    "mul": _multiplication(),
    "mul_": _multiplication(in_place=True),
    "neg": _negation,
    "permute": _permutation,
    "relu": _activation(_relu, False),
    "relu_": _activation(_relu, True),
    "reshape": _reshape,
    "sigmoid": _activation(_sigmoid, False),
    "squeeze": _reshape,
    "sub": _addition(-1.0),
    "sub_": _addition(-1.0, in_place=True),
    "sum": _reduction,
    "tanh": _activation(_tanh, False),
    "to": _cast(None),
    "transpose": _permutation,
    "unflatten": _reshape,
    "unsqueeze": _reshape,
    "view": _reshape,
}
