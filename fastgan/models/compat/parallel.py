"""Both repositories' data parallelism: ``ngpu`` replicas."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import data_parallel

__all__ = ["run"]


def run(main: nn.Module, input: Tensor, ngpu: int) -> Tensor:
    """``main(input)``, split over GPUs 0 to ngpu - 1 if the input is on a GPU and ngpu > 1.

    Example:
        >>> import torch
        >>> run(nn.Identity(), torch.ones(2), 1)
        tensor([1., 1.])
    """
    if input.is_cuda and ngpu > 1:
        parallel: Tensor = data_parallel(main, input, range(ngpu))
        return parallel
    output: Tensor = main(input)
    return output
