"""A user's script: two processes, a step of each network with its penalty. Prints the losses."""

import os
import sys

import torch
import torch.distributed as dist

import fastgan.compat.torch_utils_ops as ops

ops.install("torch_utils.ops")

from networks import Discriminator, Generator, path_length_penalty, r1_penalty  # noqa: E402


def step(rank):
    torch.manual_seed(0)
    generator, discriminator = Generator(), Discriminator()
    if rank is not None:
        parallel = torch.nn.parallel.DistributedDataParallel
        critic = parallel(discriminator)
    else:
        critic = discriminator
    z = torch.randn(4, 16)
    mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    real, noise = torch.randn(4, 3, 16, 16)[mine], torch.randn(4, 3, 16, 16)[mine]
    loss = (
        r1_penalty(critic, real) + torch.nn.functional.softplus(critic(generator(z[mine]))).mean()
    )
    loss.backward()
    path_length_penalty(generator, z[mine], noise).backward()
    return discriminator.first[0].weight.grad, generator.up[0].weight.grad


def main(folder):
    torch.set_num_threads(1)
    whole = step(None)
    child = os.fork()
    rank = 0 if child else 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    of_critic, of_generator = step(rank)
    dist.all_reduce(of_generator)
    torch.testing.assert_close(of_critic, whole[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(of_generator / 2, whole[1], rtol=1e-3, atol=1e-5)
    dist.destroy_process_group()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("trained")


if __name__ == "__main__":
    main(sys.argv[1])
