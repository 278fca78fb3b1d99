"""A gradient penalty under mixed precision, of any critic: python examples/penalty_under_amp.py"""

import torch
from torch import nn

import fastgan


def main(steps: int = 3) -> float:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    critic = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 4, 2, 1), nn.Flatten()
    ).to(device)
    optimizer = fastgan.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    for _ in range(steps):
        real, fake = torch.rand(2, 8, 3, 16, 16, device=device) * 2 - 1
        with torch.autocast(device.type, dtype=dtype):
            loss, terms = fastgan.discriminator_loss(critic, real, fake, gp=10.0, r1=1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return float(terms["gp"])


if __name__ == "__main__":
    print(f"penalty: {main():.4f}")
