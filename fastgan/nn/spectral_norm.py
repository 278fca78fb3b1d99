"""Spectral norm of all weights of a module at once: Miyato et al. 2018, arXiv 1802.05957.

u <- W v / ||W v||,   v <- W^T u / ||W^T u||,   sigma = u^T W v,   weight = W / sigma

u and v are constants, so that grad_W = grad_weight / sigma - <grad_weight, W> / sigma^2 u v^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as _TorchSpectralNorm

from fastgan.errors import ConfigError
from fastgan.nn import unseen
from fastgan.nn.waiting import hooks_on_saved

__all__ = ["FusedSpectralNorm", "spectral_norm"]

Module = TypeVar("Module", bound=nn.Module)
Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]

#: Iterations on the first weights, as in ``torch.nn.utils.parametrizations.spectral_norm``.
_FIRST_ITERATIONS = 15

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def spectral_norm(module: Module, *, n_power_iterations: int = 1, eps: float = 1e-12) -> Module:
    """Divides the weights of all linear, embedding and convolution layers by their largest
    singular values.

    Parameters, buffers and values are those of ``torch.nn.utils.parametrizations.spectral_norm``
    on each layer; ``state_dict`` interchanges. Here all are computed at once when the module's
    forward pass begins, in training as one autograd node, instead of one by one when layers read
    their weights. Each forward pass makes ``n_power_iterations`` in training, none in eval mode.

    Args:
        module: changed in place.
        n_power_iterations: at least 1.
        eps: lower bound of the divisors.

    Returns:
        The same module.

    Raises:
        ConfigError: ``n_power_iterations`` below 1 (a ValueError).

    Example:
        >>> critic = spectral_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 1)))
        >>> list(critic.state_dict())[:2]
        ['0.bias', '0.parametrizations.weight.original']
        >>> critic = critic.eval()
        >>> round(torch.linalg.matrix_norm(critic[2].weight, 2).item(), 3)
        1.0
    """
    if n_power_iterations < 1:
        raise ConfigError(f"n_power_iterations is {n_power_iterations}; expected at least 1")
    for layer in list(module.modules()):
        if isinstance(layer, _LAYERS) and not parametrize.is_parametrized(layer, "weight"):
            dim = int(isinstance(layer, _TRANSPOSED))
            norm = _SpectralNorm(layer.weight, dim, n_power_iterations, eps)
            parametrize.register_parametrization(layer, "weight", norm)
    module.register_forward_pre_hook(_compute_all)
    module.register_forward_hook(_forget_all, always_call=True)
    return module


class _Norm:
    """One weight's norm. Attributes and buffers have the names of torch's class."""

    dim: int
    eps: float
    n_power_iterations: int
    training: bool
    _u: Tensor
    _v: Tensor

    _strides: tuple[int, ...] | None = None
    _order: list[int] | None = None

    def order(self, weight: Tensor) -> list[int] | None:
        """The output channels' dimension, and the others in memory order; None if that is their
        order."""
        strides = weight.stride()
        if strides != self._strides:
            others = [each for each in range(len(strides)) if each != self.dim]
            order = [self.dim, *sorted(others, key=lambda each: -strides[each])]
            self._order = None if order == list(range(len(order))) else order
            self._strides = strides
        return self._order

    def matrix(self, weight: Tensor, order: list[int] | None) -> Tensor:
        """(output channels, everything else), as a view if the output channels come first."""
        return (weight if order is None else weight.permute(order)).flatten(1)

    def right(self, weight: Tensor, order: list[int] | None) -> Tensor:
        """v with the dimensions of the matrix's columns, a view of the buffer."""
        if order is None:
            return self._v
        sizes = [size for each, size in enumerate(weight.shape) if each != self.dim]
        return self._v.view(sizes).permute([each - (each > self.dim) for each in order[1:]])


class _SpectralNorm(_Norm, nn.Module):
    """A norm that is computed with all others of a module."""

    def __init__(self, weight: Tensor, dim: int, iterations: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.n_power_iterations = iterations
        self.eps = eps
        #: The normalised weight while the module's forward runs.
        self.computed: Tensor | None = None
        rows = weight.size(dim)
        self.register_buffer("_u", weight.new_empty(rows))
        self.register_buffer("_v", weight.new_empty(weight.numel() // rows))
        if weight.is_meta:  # on the meta device, where torch takes seconds
            return
        with torch.no_grad():
            for vector in (self._u, self._v):
                vector.normal_(0, 1)
                vector.div_(vector.norm().clamp_min(eps))
            # In torch's order, so that the same seed gives bitwise the same vectors.
            _iterate([self], [weight.contiguous()], _FIRST_ITERATIONS)

    def forward(self, weight: Tensor) -> Tensor:
        if self.computed is not None:
            return self.computed
        if weight.is_meta:
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            if self.training:
                _iterate([self], [weight.detach().contiguous()], self.n_power_iterations)
            return _divided([self], *_kept([self], [weight]), [weight])[0]

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning a weight sets the unnormalised one."""
        return value


class FusedSpectralNorm(_Norm, _TorchSpectralNorm):
    """Torch's parametrization with a backward pass in one node: the same values and buffers.

    In training it passes over the weight three times, torch's eight times.

    Example:
        >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)).double().eval()
        >>> norm, weight = layer.parametrizations.weight[0], layer.weight
        >>> norm.__class__ = FusedSpectralNorm
        >>> torch.allclose(layer.weight, weight)
        True
    """

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by its largest singular value; in training after a power iteration."""
        if weight.dim() < 2 or weight.is_complex() or _is_traced() or hooks_on_saved() is not None:
            return super().forward(weight)  # checkpoints iterate again, at each order of gradients
        pending = unseen.current()
        if pending is None:
            return _normalized([self], [weight])[0]
        pending.produce((weight,))
        with pending.unwatched():
            return _normalized([self], [weight])[0]


def _is_traced() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


@torch.no_grad()
def _iterate(
    norms: Sequence[_Norm], weights: Tensors, iterations: int
) -> tuple[list[Tensor], list[Tensor], Tensors]:
    """Updates all weights' buffers.

    Returns:
        For each weight copies of u and v, v in the order of the matrix's columns, and sigma.
    """
    eps = norms[0].eps
    orders = [norm.order(weight) for norm, weight in zip(norms, weights, strict=True)]
    given = list(zip(norms, weights, orders, strict=True))
    matrices = [norm.matrix(weight, order) for norm, weight, order in given]
    rights = [norm.right(weight, order) for norm, weight, order in given]
    us, vs = [norm._u for norm in norms], [right.flatten() for right in rights]
    for _ in range(iterations):
        us, _ = _unit([torch.mv(matrix, v) for matrix, v in zip(matrices, vs, strict=True)], eps)
        vs, lengths = _unit(
            [torch.mv(matrix.mT, u) for matrix, u in zip(matrices, us, strict=True)], eps
        )
    columns = [
        v if right.dim() == 1 else v.view(right.shape) for v, right in zip(vs, rights, strict=True)
    ]
    torch._foreach_copy_([*(norm._u for norm in norms), *rights], [*us, *columns])
    # u^T W v = (W^T u)^T v
    return us, vs, lengths


def _unit(vectors: list[Tensor], eps: float) -> tuple[list[Tensor], Tensors]:
    """Normalises vectors in place, and returns their products with the original ones."""
    lengths = torch._foreach_norm(vectors)
    bounded = torch._foreach_clamp_min(lengths, eps)
    torch._foreach_div_(vectors, bounded)
    return vectors, torch._foreach_mul(lengths, torch._foreach_div(lengths, bounded))


def _normalized(norms: Sequence[_Norm], weights: Tensors) -> Tensors:
    # Autocast would round the products, and sigma with them.
    with torch.autocast(weights[0].device.type, enabled=False):
        if not norms[0].training:
            return _divided(norms, *_kept(norms, weights), weights)
        detached = [weight.detach() for weight in weights]
        us, vs, sigmas = _iterate(norms, detached, norms[0].n_power_iterations)
        if _is_traced():
            return _divided(norms, us, vs, weights)
        return _Divided.apply(norms, us, vs, sigmas, *weights)  # type: ignore[no-any-return, no-untyped-call]


def _kept(norms: Sequence[_Norm], weights: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    """u and v, copies: the next pass in training changes the buffers, perhaps before a backward."""
    rights = [
        norm.right(weight, norm.order(weight)) for norm, weight in zip(norms, weights, strict=True)
    ]
    return [norm._u.clone() for norm in norms], [right.flatten().clone() for right in rights]


def _divided(
    norms: Sequence[_Norm],
    us: Tensors,
    vs: Tensors,
    weights: Tensors,
) -> list[Tensor]:
    """The weights divided by u^T W v, each in torch's own ops."""
    return [
        weight / torch.dot(u, torch.mv(norm.matrix(weight, norm.order(weight)), v))
        for norm, u, v, weight in zip(norms, us, vs, weights, strict=True)
    ]


class _Divided(torch.autograd.Function):
    """All weights, divided by their sigmas, as one node."""

    @staticmethod
    def forward(
        ctx: Any,
        norms: Sequence[_Norm],
        us: Tensors,
        vs: Tensors,
        sigmas: Tensors,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.norms = norms
        ctx.save_for_backward(*us, *vs, *sigmas, *weights)
        return tuple(torch._foreach_div(weights, sigmas))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        count, tensors = len(ctx.norms), ctx.saved_tensors  # checkpoints unpack them once
        saved = [tensors[start * count : (start + 1) * count] for start in range(4)]
        wanted = zip(ctx.norms, *saved, grads, ctx.needs_input_grad[4:], strict=True)
        chosen = [each for each in wanted if each[-2] is not None and each[-1]]
        if not chosen:
            return (None,) * (4 + count)
        norms, us, vs, sigmas, weights, given, _ = map(list, zip(*chosen, strict=True))
        if torch.is_grad_enabled():
            divided = _divided(norms, us, vs, weights)
            left = iter(torch.autograd.grad(divided, weights, given, create_graph=True))
        else:
            left = iter(_gradients(norms, us, vs, sigmas, weights, given))
        return (
            *(None,) * 4,
            *(
                next(left) if grad is not None and needed else None
                for grad, needed in zip(grads, ctx.needs_input_grad[4:], strict=True)
            ),
        )


def _gradients(
    norms: Sequence[_Norm],
    us: Tensors,
    vs: Tensors,
    sigmas: Tensors,
    weights: Tensors,
    grads: Tensors,
) -> list[Tensor]:
    orders = [norm.order(weight) for norm, weight in zip(norms, weights, strict=True)]
    products, matrices = [], []
    for norm, weight, grad, order in zip(norms, weights, grads, orders, strict=True):
        matrix, of_grad = norm.matrix(weight, order), norm.matrix(grad, order)
        matrices.append(of_grad)
        products.append(torch.dot(of_grad.reshape(-1), matrix.reshape(-1)))
    scaled = torch._foreach_mul(us, torch._foreach_neg(torch._foreach_div(products, sigmas)))
    sums = list(map(torch.addr, matrices, scaled, vs))
    torch._foreach_div_(sums, sigmas)
    return [
        each.view_as(weight) if order is None else _laid_back(each, weight, order)
        for each, weight, order in zip(sums, weights, orders, strict=True)
    ]


def _laid_back(matrix: Tensor, weight: Tensor, order: list[int]) -> Tensor:
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return matrix.view([weight.shape[each] for each in order]).permute(inverse)


def _parametrized(module: nn.Module) -> list[tuple[_SpectralNorm, Tensor]]:
    """The norms within a module, with the weights they belong to."""
    norms = []
    for each in module.modules():
        if isinstance(each, parametrize.ParametrizationList):
            first: Any = each[0]
            if isinstance(first, _SpectralNorm):
                norms.append((first, each.original))
    return norms


def _compute_all(module: nn.Module, args: Any) -> None:
    # Layers may be in eval mode while others train, and may have norms from separate calls.
    groups: dict[Any, list[tuple[_SpectralNorm, Tensor]]] = {}
    for norm, weight in _parametrized(module):
        if not weight.is_meta:
            key = norm.training, norm.n_power_iterations, norm.eps
            groups.setdefault(key, []).append((norm, weight))
    for group in groups.values():
        norms, weights = zip(*group, strict=True)
        for norm, weight in zip(norms, _normalized(norms, weights), strict=True):
            norm.computed = weight


def _forget_all(module: nn.Module, args: Any, output: Any) -> None:
    for norm, _ in _parametrized(module):
        norm.computed = None
