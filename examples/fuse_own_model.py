"""Fuse a model of your own, and see what became of its layers: python examples/fuse_own_model.py"""

import torch
from torch import Tensor, nn

import fastgan


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(torch.relu(self.norm(x)))


def main() -> fastgan.Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), Residual(32), Residual(32)).eval()
    x = torch.rand(4, 3, 32, 32)
    before = model(x)
    torch.testing.assert_close(fastgan.fuse(model)(x), before, atol=1e-4, rtol=1e-4)
    return fastgan.explain(model, x)


if __name__ == "__main__":
    print(main())
