"""A DCGAN training script in the style of pytorch/examples, moved over by one import line.

before:  class Generator(nn.Module): ...    (and Discriminator, and weights_init)
after:   from fastgan.models.compat.pytorch_examples import Discriminator, Generator, weights_init

Everything below the import is what such a script has always looked like. The images are random,
so that it runs anywhere in seconds: put a DataLoader of 64x64 images in [-1, 1] in their place.

    python examples/drop_in_dcgan.py
"""

from __future__ import annotations

import torch
from torch import nn, optim

from fastgan.models.compat.pytorch_examples import Discriminator, Generator, weights_init


def main(iterations: int = 3, batch_size: int = 8, nz: int = 100, width: int = 16) -> None:
    """Trains both networks for a few iterations and prints the losses."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataloader = [torch.rand(batch_size, 3, 64, 64) * 2 - 1 for _ in range(iterations)]

    netG = Generator(1, nz=nz, ngf=width).to(device)
    netG.apply(weights_init)
    netD = Discriminator(1, ndf=width).to(device)
    netD.apply(weights_init)

    criterion = nn.BCELoss()
    optimizerD = optim.Adam(netD.parameters(), lr=0.0002, betas=(0.5, 0.999))
    optimizerG = optim.Adam(netG.parameters(), lr=0.0002, betas=(0.5, 0.999))

    for i, data in enumerate(dataloader):
        # Discriminator: maximise log D(x) + log(1 - D(G(z))).
        real = data.to(device)
        ones = torch.ones(real.size(0), device=device)
        zeros = torch.zeros_like(ones)
        noise = torch.randn(real.size(0), nz, 1, 1, device=device)
        fake = netG(noise)
        netD.zero_grad()
        lossD = criterion(netD(real), ones) + criterion(netD(fake.detach()), zeros)
        lossD.backward()
        optimizerD.step()

        # Generator: maximise log D(G(z)).
        netG.zero_grad()
        lossG = criterion(netD(fake), ones)
        lossG.backward()
        optimizerG.step()
        print(f"[{i + 1}/{iterations}] Loss_D: {lossD.item():.4f} Loss_G: {lossG.item():.4f}")


if __name__ == "__main__":
    main()
