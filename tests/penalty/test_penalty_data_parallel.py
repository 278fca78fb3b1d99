"""Fused modules, and the fused penalty, in DistributedDataParallel: in two processes on the CPU."""

from __future__ import annotations

from pathlib import Path

import penalty_processes
import pytest
import torch.distributed as dist
import torch.multiprocessing

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes note what they have checked; starting them takes the time."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(
        penalty_processes.run, args=(2, str(folder)), nprocs=2, start_method="spawn"
    )
    return folder


@pytest.mark.parametrize("checked", ["fused", "done"], ids=["fused modules", "fused penalty"])
def test_gradients_are_averaged_over_processes(folder: Path, checked: str) -> None:
    found = {path.name for path in folder.glob(f"{checked}-*")}
    assert found == {f"{checked}-0", f"{checked}-1"}
