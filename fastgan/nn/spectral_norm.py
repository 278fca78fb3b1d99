"""Spectral norm of all weights of a module at once: Miyato et al. 2018, arXiv 1802.05957.

u <- W v / ||W v||,   v <- W^T u / ||W^T u||,   sigma = u^T W v,   weight = W / sigma
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastgan.errors import ConfigError

__all__ = ["spectral_norm"]

Module = TypeVar("Module", bound=nn.Module)

#: Iterations on the first weights, as in ``torch.nn.utils.parametrizations.spectral_norm``.
_FIRST_ITERATIONS = 15

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def spectral_norm(module: Module, *, n_power_iterations: int = 1, eps: float = 1e-12) -> Module:
    """Divides the weights of all linear, embedding and convolution layers by their largest
    singular values.

    Parameters, buffers and values are those of ``torch.nn.utils.parametrizations.spectral_norm``
    on each layer; ``state_dict`` interchanges. What differs is when they are computed: all at
    once, when the module's forward pass begins, and not one by one as layers read their weights.
    In training each forward pass makes ``n_power_iterations``, in eval mode none.

    Args:
        module: changed in place.
        n_power_iterations: at least 1.
        eps: lower bound of the norms that are divided by.

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


class _SpectralNorm(nn.Module):
    """One weight's norm. The buffers have the names that torch's have."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, dim: int, iterations: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.iterations = iterations
        self.eps = eps
        #: The normalised weight while the module's forward runs.
        self.computed: Tensor | None = None
        rows = weight.size(dim)
        self.register_buffer("_u", weight.new_empty(rows))
        self.register_buffer("_v", weight.new_empty(weight.numel() // rows))
        if weight.is_meta:  # no values to compute, and torch takes seconds for them
            return
        with torch.no_grad():
            for vector in (self._u, self._v):
                vector.normal_(0, 1)
                vector.div_(vector.norm().clamp_min(eps))
            _iterate([self], [self.matrix(weight)], _FIRST_ITERATIONS)

    def matrix(self, weight: Tensor) -> Tensor:
        """(output channels, everything else)."""
        return weight.transpose(0, self.dim).flatten(1)

    def forward(self, weight: Tensor) -> Tensor:
        if self.computed is not None:
            return self.computed
        if weight.is_meta:
            return weight
        return _normalized([self], [weight])[0]

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning a weight sets the unnormalised one."""
        return value


@torch.no_grad()
def _iterate(norms: Sequence[_SpectralNorm], matrices: Sequence[Tensor], iterations: int) -> None:
    for _ in range(iterations):
        for name in ("_u", "_v"):
            vectors = [getattr(norm, name) for norm in norms]
            for norm, matrix, vector in zip(norms, matrices, vectors, strict=True):
                if name == "_u":
                    torch.mv(matrix, norm._v, out=vector)
                else:
                    torch.mv(matrix.mT, norm._u, out=vector)
            lengths = torch._foreach_norm(vectors)
            torch._foreach_clamp_min_(lengths, norms[0].eps)
            torch._foreach_div_(vectors, lengths)


def _normalized(norms: Sequence[_SpectralNorm], weights: Sequence[Tensor]) -> list[Tensor]:
    # Autocast would round the products, and sigma with them.
    with torch.autocast(weights[0].device.type, enabled=False):
        matrices = [norm.matrix(weight) for norm, weight in zip(norms, weights, strict=True)]
        if norms[0].training:
            _iterate(norms, [matrix.detach() for matrix in matrices], norms[0].iterations)
        found = []
        for norm, matrix, weight in zip(norms, matrices, weights, strict=True):
            # Copies: the next forward pass changes the buffers, perhaps before this one's backward.
            u, v = norm._u.clone(), norm._v.clone()
            found.append(weight / torch.dot(u, torch.mv(matrix, v)))
        return found


def _parametrized(module: nn.Module) -> list[tuple[_SpectralNorm, Tensor]]:
    """The norms within a module, with the weights they belong to."""
    found = []
    for each in module.modules():
        if isinstance(each, parametrize.ParametrizationList):
            first: Any = each[0]
            if isinstance(first, _SpectralNorm):
                found.append((first, each.original))
    return found


def _compute_all(module: nn.Module, args: Any) -> None:
    norms, weights = zip(*_parametrized(module), strict=True)
    if weights[0].is_meta:
        return
    for norm, weight in zip(norms, _normalized(norms, weights), strict=True):
        norm.computed = weight


def _forget_all(module: nn.Module, args: Any, output: Any) -> None:
    for norm, _ in _parametrized(module):
        norm.computed = None
