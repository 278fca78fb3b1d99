"""From a critic to a :class:`~fastgan.penalty.plan.Plan`, by ``torch.fx``.

The critic's forward is traced once per input shape. A proxy here knows its shape, dtype and
device, so checks of the input run as they would; a branch on a tensor's *values* can't be followed
and is refused, as is any operation that isn't known to be linear or piecewise linear and to keep
samples apart. What doesn't depend on the images (label planes, scaled weights) is not looked into:
it is recorded, and computed by the critic's own code at every call.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastgan.errors import FastganError
from fastgan.penalty.activated_steps import beside_convolutions, covered
from fastgan.penalty.conversion import FUNCTIONS, METHODS, MODULES, Conversion, Refused
from fastgan.penalty.plan import (
    REPARAMETRISING_HOOKS,
    Attribute,
    Constant,
    Plan,
    PlannedStep,
    layout_for,
    moving_parameters,
)

__all__ = ["trace"]


def trace(critic: nn.Module, method: str, images: Tensor, arguments: Sequence[Any]) -> Plan:
    """The plan of ``critic.method(images, *arguments)``.

    Args:
        critic: any module.
        method: "forward" or "scores".
        images: only their shape, dtype and device are used.
        arguments: further arguments; tensors may differ in value between calls.

    Raises:
        Refused: naming the layer that no fused pass takes.
    """
    if method in vars(critic):
        raise Refused(f"its {method} was replaced on the object itself")
    for name, module in critic.named_modules():
        _refuse_hooks(name, module)
    tracer = _Tracer(images, arguments)
    tracer.traced_func_name = method
    try:
        with torch.enable_grad():
            tracer.trace(critic)
    except (Refused, FastganError):
        raise  # what the critic says of its input, it says on every path
    except Exception as error:  # whatever the critic's code does with a proxy
        message = " ".join(str(error).split())
        raise Refused(f"torch.fx can't trace its {method}: {message}") from error
    return tracer.plan(moving_parameters(critic))


def _refuse_hooks(name: str, module: nn.Module) -> None:
    hooks = {
        "forward hook": module._forward_hooks,
        "backward hook": module._backward_hooks,
        "backward pre-hook": module._backward_pre_hooks,
        "forward pre-hook": {
            key: hook
            for key, hook in module._forward_pre_hooks.items()
            if not (isinstance(hook, REPARAMETRISING_HOOKS) and _layer_class(module) is not None)
        },
    }
    for kind, registered in hooks.items():
        if registered:
            raise Refused(f"{_titled(name, type(module).__name__)} has a {kind}")


def _titled(layer: str, kind: str) -> str:
    return f"layer {layer!r} ({kind})" if layer else kind


def _layer_class(module: nn.Module) -> type[nn.Module] | None:
    """The torch.nn class whose forward ``module`` runs, if it is one we know."""
    if "forward" in vars(module):
        return None
    for known in MODULES:
        if isinstance(module, known) and type(module).forward is known.forward:
            return known
    return None


def _is_chain(module: nn.Module) -> bool:
    """Whether it is an ``nn.Sequential`` that only *runs* its children in another way."""
    return isinstance(module, nn.Sequential) and getattr(module, "fused_sequential", False)


def _chain(module: nn.Module, input: Any) -> Any:
    for child in module.children():
        input = child(input)
    return input


class _ShapedProxy(fx.Proxy):
    """A proxy that answers what is fixed by the input's shape, dtype and device."""

    @property
    def _example(self) -> Tensor:
        example = self.node.meta.get("example")
        if not isinstance(example, Tensor):
            raise Refused(f"the shape of {self.node.name!r} isn't known before it is computed")
        return example

    @property
    def shape(self) -> torch.Size:
        return self._example.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._example.dtype

    @property
    def ndim(self) -> int:
        return self._example.dim()

    @property
    def device(self) -> torch.device:
        tracer = self.tracer
        assert isinstance(tracer, _Tracer)
        return tracer.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def size(self, dim: int | None = None) -> Any:
        return self._example.size() if dim is None else self._example.size(dim)

    def dim(self) -> int:
        return self._example.dim()

    def numel(self) -> int:
        return self._example.numel()

    def is_floating_point(self) -> bool:
        return self._example.is_floating_point()

    def __len__(self) -> int:
        return self._example.size(0)

    # Without these, Python would make x = x + y of x += y, which other names of x don't see.

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


#: Functions that make a tensor out of numbers, the same one at every call.
_DETERMINISTIC_FACTORIES = {
    torch.arange,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.tensor,
    torch.zeros,
}


class _NoHiddenInputs(torch.overrides.TorchFunctionMode):
    """Refuses computation during the trace whose result would be baked into the plan."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        seen: list[Any] = []
        fx.node.map_aggregate((args, kwargs), lambda leaf: seen.append(leaf))
        symbolic = any(isinstance(leaf, fx.Proxy) for leaf in seen)
        concrete = any(isinstance(leaf, Tensor) for leaf in seen)
        reads_metadata = getattr(func, "__name__", "") in ("__get__", "size", "dim", "numel")
        if not symbolic and not reads_metadata:
            name = getattr(func, "__name__", str(func))
            if concrete:
                raise Refused(
                    f"its forward computes {name} of a tensor that is neither parameter, buffer "
                    "nor argument"
                )
            if func not in _DETERMINISTIC_FACTORIES:
                raise Refused(f"its forward calls {name}, which may differ from call to call")
        return func(*args, **kwargs)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, images: Tensor, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.images = images
        self.arguments = arguments
        self.device = images.device
        self.batch = images.size(0)
        self.values: dict[fx.Node, int] = {}
        self.replaced: dict[fx.Node, fx.Node] = {}
        self.stale: set[fx.Node] = set()
        self.memory: dict[fx.Node, fx.Node] = {}
        self.steps: list[PlannedStep] = []
        self.slots: list[Attribute | Constant] = []
        self.constants: list[fx.Node] = []
        self.output: fx.Node | None = None
        self.describing = False
        self.ambient = self._modes()

    def _modes(self) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled(self.device.type)

    # How torch.fx is told what to look into.

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if _layer_class(m) is not None:
            return True
        builtin = type(m).__module__.startswith("torch.nn") and "forward" not in vars(m)
        return builtin and not isinstance(m, nn.Sequential)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if _is_chain(m):
            return super().call_module(m, lambda x: _chain(m, x), args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        self.ambient = (True, self.ambient[1])
        placeholder = self.create_proxy("placeholder", "images", (), {})
        node = placeholder.node
        node.meta["example"] = _meta_like(self.images)
        self.values[node] = 0
        self.memory[node] = node
        args: list[Any] = [self.root, placeholder]
        for position, argument in enumerate(self.arguments):
            if isinstance(argument, Tensor):
                given = self.create_proxy("placeholder", f"argument{position}", (), {})
                given.node.meta["example"] = _meta_like(argument)
                given.node.meta["position"] = position
                self.constants.append(given.node)
                args.append(given)
            else:
                args.append(argument)

        function = inspect.unwrap(root_fn)
        if self.traced_func_name == "forward" and _is_chain(self.root):
            function = _chain

        def within_mode(*inputs: Any) -> Any:
            with _NoHiddenInputs():
                return function(*inputs)

        return within_mode, args

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ShapedProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            name = self.tensor_attrs.get(a)
            if name is not None:
                return self._attribute(name, a)
            if not any(a is buffer for buffer in self.root.buffers()):
                return a  # made by the forward itself, from numbers
        return super().create_arg(a)

    def _attribute(self, name: str, tensor: Tensor) -> fx.Node:
        """A plain tensor attribute, read again at every call."""
        node = super().create_node("get_attr", name, (), {})
        node.meta["example"] = _meta_like(tensor)
        self.constants.append(node)
        return node

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> fx.Proxy:
        if self._modes() != self.ambient:
            raise Refused(f"{self._layer()} changes the grad or autocast mode")
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        if kind not in ("placeholder", "get_attr"):
            self._record(proxy.node)
        return proxy

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "get_attr":
            path, _, attribute = str(target).rpartition(".")
            held = self.root.get_submodule(path)
            tensor = held._parameters.get(attribute, held._buffers.get(attribute))
            if tensor is not None:
                node.meta["example"] = _meta_like(tensor)
            self.constants.append(node)
        if kind == "output":
            (result,) = args[0]
            self.output = result if isinstance(result, fx.Node) else None
        return node

    # What is made of the recorded nodes.

    def _layer(self) -> str:
        path = self.scope.module_path
        kind = self.scope.module_type or type(self.root)
        return _titled(path, getattr(kind, "__name__", str(kind)))

    def _record(self, node: fx.Node) -> None:
        for used in node.all_input_nodes:
            if used in self.stale:
                raise Refused(
                    f"{self._layer()} uses a tensor that another view of it has changed in place"
                )
        if not any(used in self.values for used in node.all_input_nodes):
            self.constants.append(node)
            node.meta["example"] = self._constant_example(node)
            return
        self._convert(node)

    def _constant_example(self, node: fx.Node) -> Any:
        """Shape and dtype of a constant; None where only computing it would tell."""

        def example(structure: Any) -> Any:
            def one(leaf: Any) -> Any:
                if isinstance(leaf, fx.Node):
                    return leaf.meta.get("example")
                if isinstance(leaf, Tensor):
                    return _meta_like(leaf)
                if isinstance(leaf, torch.device):
                    return torch.device("meta")
                return leaf

            return fx.node.map_aggregate(structure, one)

        try:
            with _quiet():
                args, kwargs = example(node.args), example(node.kwargs)
                if node.op == "call_function" and callable(node.target):
                    return node.target(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                module = self.root.get_submodule(str(node.target))
                if isinstance(module, nn.Embedding):
                    return torch.empty(*args[0].shape, module.embedding_dim, device="meta")
        except (RuntimeError, TypeError, AttributeError, NotImplementedError):
            return None
        return None

    def _slot(self, source: Attribute | Constant) -> int:
        if source not in self.slots:
            self.slots.append(source)
        return self.slots.index(source)

    def _convert(self, node: fx.Node) -> None:
        conversion = self._conversion(node)
        if conversion is None:
            return
        step, operands, parameters, examples, in_place = conversion
        inputs = []
        for operand in operands:
            while operand in self.replaced:
                operand = self.replaced[operand]
            inputs.append(operand)
        with _quiet():
            taken = [n.meta["example"] for n in inputs]
            # Shapes are what is looked for; which dtypes mix is for the run itself to say.
            alike = [
                None if e is None else e.to(taken[0].dtype) if e.is_floating_point() else e
                for e in examples
            ]
            example = step.example(taken, alike)
        if example.dim() == 0 or example.size(0) != self.batch:
            raise Refused(
                f"{self._describe(node)} gives shape {tuple(example.shape)}: it doesn't keep the "
                "samples apart"
            )
        self.steps.append(
            PlannedStep(
                step=step,
                layer=str(node.target) if node.op == "call_module" else self.scope.module_path,
                kind=self._kind(node),
                inputs=tuple(self.values[n] for n in inputs),
                parameters=tuple(None if p is None else self._slot(p) for p in parameters),
                shape=tuple(example.shape[1:]),
                covered=covered(step, examples, self.device, taken[0].dtype),
            )
        )
        node.meta["example"] = example
        self.values[node] = len(self.steps)
        self.memory[node] = node if step.fresh else self.memory[inputs[0]]
        if in_place:
            changed = inputs[0]
            if self.memory[changed] is self.memory[next(iter(self.values))]:
                raise Refused(f"{self._describe(node)} changes the images in place")
            self.stale |= {
                other
                for other, root in self.memory.items()
                if root is self.memory[changed] and other is not changed and other is not node
            }
            self.replaced[changed] = node
            self.memory[node] = self.memory[changed]

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.root.get_submodule(str(node.target))).__name__
        return getattr(node.target, "__name__", str(node.target))

    def _describe(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return _titled(str(node.target), self._kind(node))
        return f"{self._kind(node)} in {self._layer()}"

    def _conversion(self, node: fx.Node) -> Conversion | None:
        def is_live(leaf: Any) -> bool:
            return isinstance(leaf, fx.Node) and leaf in self.values

        if node.op == "call_module":
            path = str(node.target)
            module = self.root.get_submodule(path)
            known = _layer_class(module)
            if known is None:
                raise Refused(
                    f"{self._describe(node)} is neither linear nor piecewise linear, or mixes "
                    "samples"
                )
            if len(node.args) != 1 or node.kwargs:
                raise Refused(f"{self._describe(node)} is called with more than one argument")
            try:
                with _quiet():
                    return MODULES[known](module, path, node.args[0])
            except Refused as refusal:
                raise Refused(f"{self._describe(node)}: {refusal}") from None
        table: dict[Any, Any] = FUNCTIONS if node.op == "call_function" else METHODS
        function = table.get(node.target)
        if function is None:
            raise Refused(
                f"{self._describe(node)} isn't known to be linear or piecewise linear and to "
                "keep samples apart"
            )
        try:
            with _quiet():
                result: Conversion | None = function(node, is_live)
        except Refused as refusal:
            raise Refused(f"{self._describe(node)}: {refusal}") from None
        return result

    def plan(self, moving: str | None) -> Plan:
        output = self.output
        while output in self.replaced:
            output = self.replaced[output]
        if output is None or output not in self.values:
            raise Refused("its output isn't one tensor that depends on the images")
        example = output.meta["example"]
        if example.numel() != self.batch:
            raise Refused(
                f"it returns shape {tuple(example.shape)} for {self.batch} samples; expected one "
                "score per sample"
            )
        last = self.values[output]
        if last == 0:
            raise Refused("its output is its input")
        return _pruned(self, last, moving)


def _pruned(tracer: _Tracer, last: int, moving: str | None) -> Plan:
    """The plan of those steps that the scores depend on, renumbered."""
    needed = {last}
    for value in range(last, 0, -1):
        if value in needed:
            needed |= set(tracer.steps[value - 1].inputs)
    numbers = {0: 0}
    steps: list[PlannedStep] = []
    for value in sorted(needed - {0}):
        planned = tracer.steps[value - 1]
        numbers[value] = len(steps) + 1
        planned.inputs = tuple(numbers[v] for v in planned.inputs)
        steps.append(planned)
    beside_convolutions(steps)
    used_twice: dict[int, str] = {}
    for planned in steps:
        for slot in planned.parameters:
            if slot is None:
                continue
            if slot in used_twice and moving is not None:
                raise Refused(f"layer {planned.layer!r} is used twice, and {moving}")
            used_twice[slot] = planned.layer
    return Plan(
        input_shape=tuple(tracer.images.shape[1:]),
        steps=steps,
        slots=tracer.slots,
        constants=tracer.constants,
        moving=moving,
        channels_last=layout_for(tracer.images.dtype, steps),
    )


def _quiet() -> Any:
    """No autograd and no function modes while shapes are worked out."""
    return torch._C.DisableTorchFunction()


def _meta_like(tensor: Tensor) -> Tensor:
    with _quiet():
        return torch.empty_like(tensor, device="meta")
