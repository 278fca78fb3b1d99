"""The fused penalty of a critic in DistributedDataParallel, in two processes on the CPU."""

from __future__ import annotations

from pathlib import Path

import penalty_processes
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_gradients_are_averaged_over_processes(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        penalty_processes.run, args=(2, str(tmp_path)), nprocs=2, start_method="spawn"
    )
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
