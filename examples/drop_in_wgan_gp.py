"""A WassersteinGAN script whose critic is penalised instead of clipped.

    before:  import models.dcgan as dcgan
    after:   import fastgan.models.compat.wasserstein_gan as dcgan

The original's critics return the mean of a batch, which has no gradient per sample; fastgan's
also have ``scores(x)``, one score per sample, and ``wgan_gp_critic_loss`` finds it by itself.
The images are random, so that it runs anywhere in seconds.

    python examples/drop_in_wgan_gp.py
"""

from __future__ import annotations

import torch
from torch import optim

import fastgan
import fastgan.models.compat.wasserstein_gan as dcgan


def main(iterations: int = 2, critic_steps: int = 5, batch_size: int = 8, nz: int = 100) -> None:
    """Trains both networks for a few iterations and prints the Wasserstein estimate."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    netG = dcgan.DCGAN_G(32, nz, 3, 16, 1).to(device)
    # Without batch norm: the penalty is per sample, and batch norm couples samples.
    netD = dcgan.DCGAN_D_nobn(32, nz, 3, 16, 1).to(device)
    optimizerD = optim.Adam(netD.parameters(), lr=1e-4, betas=(0.0, 0.9))
    optimizerG = optim.Adam(netG.parameters(), lr=1e-4, betas=(0.0, 0.9))

    for i in range(iterations):
        for _ in range(critic_steps):
            real = torch.rand(batch_size, 3, 32, 32, device=device) * 2 - 1
            with torch.no_grad():
                fake = netG(torch.randn(batch_size, nz, 1, 1, device=device))
            netD.zero_grad()
            loss, wasserstein, penalty = fastgan.wgan_gp_critic_loss(netD, real, fake)
            loss.backward()
            optimizerD.step()

        netG.zero_grad()
        lossG = -netD(netG(torch.randn(batch_size, nz, 1, 1, device=device)))
        lossG.backward()
        optimizerG.step()
        print(
            f"[{i + 1}/{iterations}] wasserstein: {wasserstein.item():.4f} "
            f"penalty: {penalty.item():.4f}"
        )


if __name__ == "__main__":
    main()
