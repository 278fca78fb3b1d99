"""How many kernels an iteration launches on a GPU, counted without one.

Triton's kernels are counted where they would be launched, and don't run; the rest is counted as
torch dispatches it, views and new memory apart. A lower number is a change to write down here.
"""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import losses
from fastgan.kernels import convolution, launch
from fastgan.penalty import fused, rule
from fastgan.penalty.critics import Joining
from fastgan.training import TrainConfig
from fastgan.training.iteration import Iteration, MetricTotals, Shape
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.optimizer_kinds import build_optimizer
from fastgan.training.updates import GANUpdater

pytest.importorskip("triton", reason="Triton is a dependency on Linux only")

#: Of a step of 64x64 images in bf16: one update of the critic, and one of the generator.
LAUNCHES = {"dcgan": 108, "wgan": 108, "wgan-gp": 106}

LAUNCHES_NOTHING = {
    *("_local_scalar_dense", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach"),
    *("empty", "empty_like", "empty_strided", "expand", "new_empty", "new_empty_strided"),
    *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t"),
    *("transpose", "unbind", "unsqueeze", "view"),
}


class Counted(TorchDispatchMode):
    """Counts what computes, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, name = func._schema.name.split("::")
        nothing = namespace == "profiler" or name in LAUNCHES_NOTHING
        if not nothing and not (args and result is args[0] and name == "to"):
            self.counts[name] += 1
        return result


@pytest.mark.parametrize("model", LAUNCHES)
def test_an_iteration_launches_no_more_than_it_did(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()

    def count(kernel: launch.Launch, *pointers: object) -> None:
        counted.counts["triton"] += 1

    monkeypatch.setattr(launch.Launch, "__call__", count)
    monkeypatch.setattr(convolution, "interpreted", lambda: True)
    # Kernels that don't run give no scores that could agree.
    learnt = Joining(tries=0, joined=True)
    monkeypatch.setattr(fused, "joining", lambda *_: learnt)
    monkeypatch.setattr(rule, "sums_in_pieces", lambda _: False)
    monkeypatch.setattr(losses, "FEW_SCORES", -1)
    convolution._device_lacks.cache_clear()
    settings = {"image_size": 64, "batch_size": 2, "ngf": 8, "ndf": 8, "nz": 8, "ema_decay": 0.0}
    config = TrainConfig(out="", model=model, precision="bf16", n_critic=1, **settings).resolved()
    shape = DataShape("images", 3, 64)
    networks = [
        make(config, shape).to(memory_format=torch.channels_last)
        for make in (build_generator, build_discriminator)
    ]
    optimizers = [build_optimizer(config, network, 1e-4) for network in networks]
    updater = GANUpdater(
        config, *networks, *optimizers, None, torch.device("cpu"), torch.Generator()
    )
    iteration = Iteration(updater, None, MetricTotals())
    batch = torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last), None
    try:
        for _ in range(2):
            iteration.run([batch], Shape((True,), measured=False))
        counted.counts.clear()
        with counted:
            iteration.run([batch], Shape((True,), measured=False))
    finally:
        convolution._device_lacks.cache_clear()
    assert sum(counted.counts.values()) <= LAUNCHES[model], counted.counts
    # Batches are counted in the norms' own launches: two passes of G an iteration, three of D.
    for network, passes in zip(networks, (2, 3), strict=True):
        counts = [int(each) for name, each in network.named_buffers() if "num_batches" in name]
        assert counts == [3 * passes] * len(counts)
    assert len(counts) == (0 if model == "wgan-gp" else 3)
