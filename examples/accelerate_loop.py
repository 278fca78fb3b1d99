"""WGAN-GP in a loop of Hugging Face's accelerate: accelerate launch examples/accelerate_loop.py"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import fastgan
from fastgan.models import DCGANGenerator, WGANCritic


def main(batches: int = 6, n_critic: int = 5) -> float:
    accelerator = Accelerator()
    generator = DCGANGenerator(nz=32, ngf=8, nc=1, image_size=16)
    critic = WGANCritic(ndf=8, nc=1, image_size=16)
    adam = {"lr": 1e-4, "betas": (0.0, 0.9)}
    opt_g, opt_d = (fastgan.optim.Adam(m.parameters(), **adam) for m in (generator, critic))
    images = DataLoader(torch.rand(8 * batches, 1, 16, 16) * 2 - 1, batch_size=8)
    generator, critic, opt_g, opt_d, images = accelerator.prepare(
        generator, critic, opt_g, opt_d, images
    )
    for index, real in enumerate(images):
        fake = generator(torch.randn(len(real), 32, device=accelerator.device))
        loss, _, penalty = fastgan.wgan_gp_critic_loss(critic, real, fake.detach())
        opt_d.zero_grad()
        accelerator.backward(loss)
        opt_d.step()
        if index % n_critic == 0:
            opt_g.zero_grad()
            accelerator.backward(-critic(fake).mean())
            opt_g.step()
    return penalty.item()


if __name__ == "__main__":
    print(f"penalty: {main():.4f}")
