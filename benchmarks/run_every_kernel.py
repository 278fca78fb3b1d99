"""Runs every CUDA op and every Triton kernel once or a few times, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python benchmarks/run_every_kernel.py [--device cpu|cuda]

Each op's own check (``fastgan doctor`` runs it too), then layers of odd sizes forward and backward
in every dtype, whole models, and the critic loss. Values are looked at only as far as the ops' own
checks do: tests compare them. cuDNN runs nowhere, so that what a sanitizer reports is ours or
torch's.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch

import fastgan
from fastgan import functional, models
from fastgan.activations import ACTIVATIONS
from fastgan.ops import check_op, op_paths

#: Batch, channels in, channels out, size: of one pixel, of one and three channels, of sizes that no
#: tile divides, and one that several tiles cover.
SHAPES = ((1, 1, 1, 1), (2, 3, 5, 7), (3, 100, 33, 4), (4, 40, 72, 8))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run_layers(device: torch.device) -> int:
    count = 0
    functions = (functional.conv_transpose2d_bn_act, functional.conv2d_bn_act)
    for function, dtype, shape in itertools.product(functions, DTYPES, SHAPES):
        batch, channels_in, channels_out, size = shape
        transposed = function is functional.conv_transpose2d_bn_act
        ends = (channels_in, channels_out) if transposed else (channels_out, channels_in)
        # One pixel a channel has no variance: batch norm needs two.
        kernel, stride, padding = (4, 2, 1) if size > 1 else (3, 1, 1)
        training = batch * size * size > 4
        input = torch.randn(batch, channels_in, size, size, device=device, dtype=dtype)
        weight = torch.randn(*ends, kernel, kernel, device=device, dtype=dtype) / 16
        norm_dtype = torch.float32 if training else dtype
        norm = {"device": device, "dtype": norm_dtype}
        leaves = [
            input.contiguous(memory_format=torch.channels_last).requires_grad_(),
            weight.contiguous(memory_format=torch.channels_last).requires_grad_(),
            torch.ones(channels_out, requires_grad=True, **norm),
            torch.zeros(channels_out, requires_grad=True, **norm),
        ]
        for activation in ACTIVATIONS:
            output = function(
                leaves[0],
                leaves[1],
                bn_weight=leaves[2],
                bn_bias=leaves[3],
                running_mean=torch.zeros(channels_out, **norm),
                running_var=torch.ones(channels_out, **norm),
                training=training,
                stride=stride,
                padding=padding,
                activation=activation,
            )
            output.float().square().mean().backward()
            count += 1
    return count


def run_models(device: torch.device) -> int:
    generator = models.DCGANGenerator(nz=10, ngf=8, nc=3, image_size=16).to(device)
    discriminator = models.DCGANDiscriminator(nc=3, ndf=8, image_size=16).to(device)
    critics = [
        models.WGANCritic(nc=3, ndf=8, image_size=16, norm=norm).to(device)
        for norm in ("none", "layer")
    ]
    for dtype in DTYPES:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            images = generator(torch.randn(3, 10, device=device))
            scores = discriminator(images)
        scores.float().mean().backward()
        for critic in critics:
            real, fake = torch.randn(2, 3, 3, 16, 16, device=device).unbind(0)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = fastgan.wgan_gp_critic_loss(critic, real, fake).loss
            loss.backward()
    return len(DTYPES) * (2 + len(critics))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    # Convolutions that aren't ours then take kernels of torch's own.
    torch.backends.cudnn.enabled = False
    ops = [row.op for row in op_paths() if row.device == device.type and row.usable]
    for op in ops:
        check_op(op, device)
    layers, networks = run_layers(device), run_models(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"ran {len(ops)} ops, {layers} layers, {networks} passes of models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
