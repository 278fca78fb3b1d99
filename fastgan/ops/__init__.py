"""The ops under ``torch.ops.fastgan``: one file each.

Importing this package loads the compiled part, if there is one, and registers the rest: fake
kernels, autograd formulas, and plain-PyTorch kernels for devices without a compiled one.
:func:`fastgan.ops.paths.op_paths` lists which op runs where.
"""

from __future__ import annotations

import torch

from fastgan import _native

_native.load()

from fastgan.ops.bn_act import bn_act  # noqa: E402 - ops must be defined to be completed
from fastgan.ops.clip_tensors import clip_tensors_  # noqa: E402
from fastgan.ops.paths import OpPath, check_op, op_path, op_paths  # noqa: E402
from fastgan.ops.registration import replace_cuda_kernels  # noqa: E402

_replacements: list[torch.library.Library | None] = []
# Deferred until CUDA is initialised: initialising it here would prevent forking.
torch.cuda._lazy_call(lambda: _replacements.append(replace_cuda_kernels()))

__all__ = ["OpPath", "bn_act", "check_op", "clip_tensors_", "op_path", "op_paths"]
