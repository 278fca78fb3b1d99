"""``fastgan doctor``: reports what this machine and this build can run, and tests it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastgan import reference
from fastgan._native import BuildInfo, build_info
from fastgan._version import __version__
from fastgan.errors import FastganError
from fastgan.models import DCGANDiscriminator, DCGANGenerator, WGANCritic
from fastgan.ops import check_op, op_paths
from fastgan.ops.backends.describe import backend_facts
from fastgan.ops.cuda_support import cuda_obstacle, driver_version
from fastgan.penalty import wgan_gp_critic_loss


def run(options: argparse.Namespace) -> int:
    """Prints the findings; returns 0 if every check passed, else 1."""
    console = Console(highlight=False, width=None if os.isatty(1) else 100)
    console.print(_facts("versions", _versions()), "")
    info = build_info()
    console.print(_facts("this build", _build(info)), "")
    console.print(_facts("convolution backends", backend_facts()), "")
    table = Table(title="checks", title_justify="left", box=None, pad_edge=False)
    for column in ("what", "on", "path", "result", "note"):
        table.add_column(column, overflow="fold")
    failures = 0
    above = ""
    for what, device, path, note, check in _checks():
        failure = _failure(check) if check is not None else None
        failures += failure is not None
        if check is None:
            result = Text("not here", style="dim")
        elif failure is None:
            result = Text("ok", style="green")
        else:
            result = Text("FAILED", style="bold red")
        # What is said of many ops is said once.
        table.add_row(what, device, path, result, failure or ("" if note == above else note))
        above = note
    console.print(table)
    if failures:
        console.print(f"\n{failures} check(s) failed")
        return 1
    console.print("\neverything that this machine can run works")
    return 0


def _facts(title: str, facts: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _versions() -> dict[str, str]:
    facts = {"fastgan": __version__, "python": platform.python_version()}
    for package in ("torch", "triton", "numpy"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["processor"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            facts[f"GPU {index}"] = f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
        facts["CUDA of torch"] = str(torch.version.cuda)
        driver = driver_version()
        facts["CUDA of the driver"] = "unknown" if driver is None else "{}.{}".format(*driver)
    else:
        facts["GPU"] = "none that torch can use"
    return facts


def _build(info: BuildInfo) -> dict[str, str]:
    if not info.native:
        return {"compiled part": "none: a pure-Python install, the ops run as plain PyTorch"}
    facts = {
        "compiled with": f"{info.cxx_compiler}, torch {info.built_with_torch}",
        "runs with": f"torch {info.torch_target} and later",
        "CPU loops": f"{', '.join(info.cpu_instruction_sets)}; here {info.cpu_instruction_set}",
    }
    if info.cuda:
        facts["CUDA kernels"] = f"{', '.join(info.cuda_architectures)} (nvcc {info.cuda_toolkit})"
    else:
        facts["CUDA kernels"] = f"left out: {info.cuda_left_out_because}"
    obstacle = cuda_obstacle()
    if info.cuda and obstacle is not None:
        facts["CUDA kernels here"] = f"not used: {obstacle}"
    return facts


Check = tuple[str, str, str, str, Callable[[], None] | None]


_PENALTY_PATHS: tuple[Literal["autograd", "fused"], ...] = ("autograd", "fused")


def _checks() -> list[Check]:
    checks: list[Check] = [
        (
            f"op {row.op}",
            row.device,
            row.path,
            row.reason,
            partial(check_op, row.op, row.device),
        )
        for row in op_paths()
        if row.usable
    ]
    missing = Counter((row.device, row.path, row.reason) for row in op_paths() if not row.usable)
    checks += [
        (f"{number} ops", device, path, reason, None)
        for (device, path, reason), number in missing.items()
    ]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        checks += [
            (
                "models",
                device,
                "aten",
                "against fastgan.reference, forward and gradients",
                partial(_check_models, device),
            ),
            *(
                (
                    "gradient penalty",
                    device,
                    path,
                    "against fastgan.reference, float64",
                    partial(_check_penalty, device, path),
                )
                for path in _PENALTY_PATHS
            ),
        ]
    return checks


def _failure(check: Callable[[], None]) -> str | None:
    try:
        with warnings.catch_warnings():
            # The table already has a fallback's reason.
            warnings.simplefilter("ignore")
            check()
    except (FastganError, RuntimeError) as error:
        return " ".join(str(error).split())
    return None


def _compare(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= 1e-9:
        raise FastganError(f"{name} is off by {error:.2g} relative")


def _check_models(device: str) -> None:
    shape: dict[str, Any] = {"nc": 3, "image_size": 32}
    pairs: dict[str, tuple[torch.nn.Module, torch.nn.Module, tuple[int, ...]]] = {
        "DCGANGenerator": (
            DCGANGenerator(nz=8, ngf=8, **shape),
            reference.DCGANGenerator(nz=8, ngf=8, **shape),
            (4, 8, 1, 1),
        ),
        "DCGANDiscriminator": (
            DCGANDiscriminator(ndf=8, **shape),
            reference.DCGANDiscriminator(ndf=8, **shape),
            (4, 3, 32, 32),
        ),
        "WGANCritic": (
            WGANCritic(ndf=8, norm="layer", **shape),
            reference.WGANCritic(ndf=8, norm="layer", **shape),
            (4, 3, 32, 32),
        ),
    }
    random = torch.Generator().manual_seed(0)
    for name, (fused, plain, size) in pairs.items():
        plain.load_state_dict(fused.state_dict())
        input = torch.randn(size, generator=random, dtype=torch.float64).to(device)
        results = []
        for model in (fused.double().to(device), plain.double().to(device)):
            leaf = input.clone().requires_grad_()
            output = model(leaf)
            output.square().sum().backward()
            assert leaf.grad is not None
            results.append((output.detach().flatten(), leaf.grad))
        _compare(f"{name}'s output", results[0][0], results[1][0])
        _compare(f"{name}'s gradient", results[0][1], results[1][1])


def _check_penalty(device: str, path: Literal["autograd", "fused"]) -> None:
    random = torch.Generator().manual_seed(0)
    critic = WGANCritic(nc=1, ndf=8, image_size=16).double().to(device)
    real, fake = (
        torch.randn(4, 1, 16, 16, generator=random, dtype=torch.float64).to(device)
        for _ in range(2)
    )
    eps = torch.rand(4, 1, 1, 1, generator=random, dtype=torch.float64).to(device)
    gradients = []
    for function in (partial(wgan_gp_critic_loss, path=path), reference.wgan_gp_critic_loss):
        critic.zero_grad()
        function(critic, real, fake, eps=eps).loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None])
        )
    _compare("the critic's gradient", *gradients)
