"""Fixtures that all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch
from host_harness import HostHarness

#: Programs for tests to run, not modules to look for docstrings in.
collect_ignore_glob = ["compat/users_code/*"]

_DEVICES = [
    "cpu",
    *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []),
]


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine: a test that takes it runs on the GPU too, if there is one."""
    return torch.device(request.param)


@pytest.fixture(autouse=True, scope="session")
def auto_precision_is_fp32() -> Iterator[None]:
    """``precision="auto"`` is fp32 on every processor and GPU: float32 is what references are in.

    Tests of bf16 ask for it, and those of "auto" set what the machine is fast at. Processes that a
    test starts ask for fp32 themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgan.training.precision.bf16_is_fast", lambda device: False)
        yield


@pytest.fixture(autouse=True)
def default_interrupt() -> Iterator[None]:
    """Ctrl-C and hangups as in a person's shell: background jobs and nohup ignore them."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def cuda() -> torch.device:
    """A CUDA device, for tests of what only CUDA has; they say so where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: torch finds none on this machine")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> HostHarness:
    """What runs CUDA kernels on the host, with each of them compiled once for all tests."""
    return HostHarness.of_session(tmp_path_factory)


@pytest.fixture(autouse=True, scope="module")
def small_layers_are_fused() -> Iterator[None]:
    """Tests' layers are small, and what they ask about is the fused path.

    Tests of what is left to torch say so themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgan.nn.stretch.LEAVE_TO_TORCH", False)
        yield
