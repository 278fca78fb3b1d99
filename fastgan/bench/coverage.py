"""Counts third-party networks' layers that are fused or run on a selected backend.

    python -m fastgan.bench.coverage

runs the networks of :mod:`fastgan.bench.styles`, and counts convolutions, linear layers and norms.
A layer is covered if it runs fused, on the fastest measured backend (which may be torch's), or on
torch's because it takes less time than selecting could save.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fastgan.bench.styles import STYLES
from fastgan.explaining.report import Row
from fastgan.nn import fuse
from fastgan.nn.calls import CHOSEN
from fastgan.nn.placement import placements

_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm),
)


class Coverage(NamedTuple):
    """The covered layers of a network.

    Attributes:
        layers: the number of layers.
        left: uncovered layers, and why.
    """

    layers: int
    left: tuple[Row, ...]


def coverage(network: nn.Module, *args: torch.Tensor) -> Coverage:
    """Runs a fused network once, and counts.

    Args:
        network: any module; it is fused in place.
        args: its arguments.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3).double())
        >>> coverage(network[:2], torch.ones(1, 3, 8, 8))
        Coverage(layers=1, left=())
    """
    layers = {name for name, module in network.named_modules() if isinstance(module, _LAYERS)}
    rows = [row for row in placements(fuse(network), *args) if row.layer in layers]
    left = (row for row in rows if row.path == "aten" and not row.reason.startswith(CHOSEN))
    return Coverage(len(layers), tuple(left))


def main() -> None:
    """Prints a line for each network, the layers that are left, and the share of all."""
    layers = covered = 0
    for name, (network, shape) in STYLES.items():
        torch.manual_seed(0)
        result = coverage(network(64), torch.randn(16, *shape))
        layers += result.layers
        covered += result.layers - len(result.left)
        print(f"{name:18s} {result.layers - len(result.left):3d} of {result.layers:3d}")
        for row in result.left:
            print(f"    {row.layer} {row.op}: {row.reason}")
    print(f"{'all':18s} {covered:3d} of {layers:3d}: {covered / layers:.0%}")


if __name__ == "__main__":
    main()
