"""fastgan's networks and fused optimisers in a loop of your own: a WGAN, as in Arjovsky et al."""

import torch

from fastgan.models import DCGANGenerator, WGANCritic
from fastgan.optim import RMSprop


def main(steps: int = 3, n_critic: int = 2) -> float:
    torch.manual_seed(0)
    generator = DCGANGenerator(nz=32, ngf=16, nc=3, image_size=32)
    critic = WGANCritic(ndf=16, nc=3, image_size=32, norm="batch")
    opt_g = RMSprop(generator.parameters(), lr=5e-5)
    opt_d = RMSprop(critic.parameters(), lr=5e-5, clip=0.01)  # step and clip in one pass
    for _ in range(steps):
        for _ in range(n_critic):
            real = torch.rand(16, 3, 32, 32) * 2 - 1  # a batch of your images, in [-1, 1]
            fake = generator(torch.randn(16, 32)).detach()
            opt_d.zero_grad()
            estimate = critic(real).mean() - critic(fake).mean()
            (-estimate).backward()
            opt_d.step()
        opt_g.zero_grad()
        (-critic(generator(torch.randn(16, 32))).mean()).backward()
        opt_g.step()
    return estimate.item()


if __name__ == "__main__":
    print(f"Wasserstein estimate: {main():.4f}")
