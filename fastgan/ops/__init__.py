"""The ops under ``torch.ops.fastgan``: one file each, with all that Python has to say about it.

Importing this package loads the compiled part, where there is one, and registers the rest: fake
kernels, what autograd should do, and a plain-PyTorch kernel for every device that the build has no
kernel of its own for. :func:`fastgan.ops.paths.op_paths` says which op runs where.
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
# When CUDA is initialised, if it isn't: asking a GPU before would keep processes from forking.
torch.cuda._lazy_call(lambda: _replacements.append(replace_cuda_kernels()))

__all__ = ["OpPath", "bn_act", "check_op", "clip_tensors_", "op_path", "op_paths"]
