"""WGAN-GP as a LightningModule: fastgan's networks, penalty and optimisers in Lightning's loop."""

import lightning
import torch
from torch.utils.data import DataLoader

import fastgan
from fastgan.models import DCGANGenerator, WGANCritic


class WGANGP(lightning.LightningModule):
    automatic_optimization = False  # two optimisers, as Lightning has GANs

    def __init__(self) -> None:
        super().__init__()
        self.generator = DCGANGenerator(nz=32, ngf=8, nc=1, image_size=16)
        self.critic = WGANCritic(ndf=8, nc=1, image_size=16)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks = (self.generator, self.critic)
        return [fastgan.optim.Adam(m.parameters(), lr=1e-4, betas=(0.0, 0.9)) for m in networks]

    def training_step(self, real: torch.Tensor, index: int) -> None:
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 32, device=self.device))
        loss, _, penalty = fastgan.wgan_gp_critic_loss(self.critic, real, fake.detach())
        opt_d.zero_grad()
        self.manual_backward(loss)
        opt_d.step()
        if index % 5 == 0:
            opt_g.zero_grad()
            self.manual_backward(-self.critic(fake).mean())
            opt_g.step()
        self.log("penalty", penalty)


def main(batches: int = 6) -> lightning.Trainer:
    images = torch.rand(8 * batches, 1, 16, 16) * 2 - 1
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=1, enable_progress_bar=False, **off)
    trainer.fit(WGANGP(), DataLoader(images, batch_size=8))
    return trainer


if __name__ == "__main__":
    print(main().callback_metrics)
