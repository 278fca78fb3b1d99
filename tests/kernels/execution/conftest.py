"""Tests that run the kernels: on the GPU if there is one, else in Triton's interpreter.

Whether Triton compiles or interprets is settled when it is first imported. So where there is no GPU
nothing is collected here, but in the process that tests/kernels/test_in_the_interpreter.py starts
with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest
import torch

from fastgan.ops.backends.few_channels import FewChannels

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def full_float32():
    """float32 as it is: eager's errors are what ours are compared with, so both without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def images_are_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU CUDA kernels go before Triton's for few channels; these tests are of the latter."""
    monkeypatch.setattr(FewChannels, "unsupported_reason", lambda self, problem: "not tested here")


@pytest.fixture(autouse=True, scope="session")
def interpreter_is_quick() -> Iterator[None]:
    """Keeps ``triton.language`` patched between launches, a third of the interpreter's time.

    It replaces the language's functions by NumPy's at each launch and again, to no effect, at each
    call of one ``triton.jit`` function by another.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    class Patched:
        def restore(self) -> None:
            """Nothing: the session's end restores."""

    patch_language = interpreter._patch_lang
    scopes: dict[int, object] = {}

    def patch_once(function) -> Patched:
        # By module: what is patched are the names of the language that its globals hold.
        module = id(function.__globals__)
        if module not in scopes:
            scopes[module] = patch_language(function)
        return Patched()

    builder = interpreter.interpreter_builder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        # Half of the time: whether integers overflow is computed, and asserted in debugging alone.
        quick = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
        patch.setattr(builder, "options", quick)
        yield
    for scope in reversed(scopes.values()):
        scope.restore()


@pytest.fixture(scope="module")
def few_programs() -> Iterator[None]:
    """Has the interpreter take large tiles, since its time goes by programs and steps.

    For tests of whole networks; test_convolutions.py has the tiles of the tables.
    """
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            # Imported here: Triton must not be where nothing is collected.
            from fastgan.kernels import plans
            from fastgan.kernels.tiles import Tile

            patch.setattr(plans, "tile_for", lambda problem, capability: Tile(64, 32, 128, 4, 1))
            patch.setattr("fastgan.kernels.convolution._PLANS", {})
        yield


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # The interpreter multiplies bfloat16 wrongly in tl.dot (seen with Triton 3.7.1).
    if "dtype" in metafunc.fixturenames:
        dtypes = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
        metafunc.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).split(".")[1])
