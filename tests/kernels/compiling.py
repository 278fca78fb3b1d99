"""Compiles a launch for any GPU, and reads the compiler's results."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastgan.kernels.launch import Launch

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Compiled:
    """What came of it.

    Attributes:
        cubin: the file with the machine code.
        registers: per thread.
        stack: bytes per thread: registers that were spilled.
        shared: bytes per program.
        tensor_memory: columns per program, on sm_100.
        ptx: the PTX.
        ttir: Triton's own code, before anything of the GPU is in it.
    """

    cubin: Path
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    ptx: str
    ttir: str


@dataclass(frozen=True)
class Described:
    """Stands for a tensor descriptor: its dtype, and what one step copies."""

    dtype: torch.dtype
    block: tuple[int, ...]


def compile_for(
    launch: Launch,
    pointers: list[torch.dtype | Described | None],
    architecture: int,
    folder: Path,
) -> Compiled:
    """Compiles as a launch with aligned tensors of these dtypes would; None is no tensor."""
    kernel = launch.kernel
    values = [*pointers, *launch.arguments]
    assert len(values) == len(kernel.params)
    signature: dict[str, str] = {}
    constants: dict[str, object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, (parameter, value) in enumerate(zip(kernel.params, values, strict=True)):
        specialised = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, torch.dtype):
            signature[parameter.name] = TYPES[value]
        elif isinstance(value, Described):
            signature[parameter.name] = f"tensordesc<{TYPES[value.dtype][1:]}{list(value.block)}>"
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, torch.dtype) or (specialised and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=launch.options,
    )
    cubin = folder / f"{compiled.hash[:16]}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    found = {name: int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}
    return Compiled(
        cubin=cubin,
        registers=found["REG"],
        stack=found["STACK"] + found["LOCAL"],
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        ptx=compiled.asm["ptx"],
        ttir=compiled.asm["ttir"],
    )
