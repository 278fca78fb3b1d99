"""The vanilla GAN: Goodfellow et al. 2014, arXiv 1406.2661.

Equation 1:    min_G max_D V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]

Algorithm 1 ascends V in the discriminator's parameters and descends it in the generator's.
Section 3 advises the generator to maximise log D(G(z)) instead, which has the same fixed point
and strong gradients while the discriminator is winning: the non-saturating loss, the default.

Each loss is here twice: on probabilities D, as in the paper, and on logits l with D =
sigmoid(l), where log D = -softplus(-l) cannot underflow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.reference.conditional import append_labels, call


class MLPGenerator(nn.Module):
    """G(z): two hidden layers of ReLU as in section 5, tanh for images in [-1, 1].

    Args:
        nz: length of the noise vector.
        hidden: width of both hidden layers.
        nc: image channels.
        image_size: image height and width.
        num_classes: None, or the number of labels the generator is conditioned on.

    Shapes: z (N, nz) or (N, nz, 1, 1), labels int64 (N,) -> (N, nc, image_size, image_size).

    Example:
        >>> MLPGenerator(nz=4, hidden=8, nc=1, image_size=8)(torch.zeros(2, 4)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        nz: int = 100,
        hidden: int = 512,
        nc: int = 1,
        image_size: int = 28,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_shape = (nc, image_size, image_size)
        self.main = nn.Sequential(
            nn.Linear(nz + (num_classes or 0), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, nc * image_size * image_size),
            nn.Tanh(),
        )
        for layer in self.main:
            if isinstance(layer, nn.Linear):
                # He et al. 2015, equation 10: variance 2 / fan_in, biases 0.
                nn.init.normal_(layer.weight, 0.0, (2 / layer.in_features) ** 0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(z), or G(z|y)."""
        z = z.flatten(1)
        if self.num_classes is not None and labels is not None:
            z = append_labels(z, labels, self.num_classes)
        images: Tensor = self.main(z)
        return images.view(-1, *self.image_shape)


class MLPDiscriminator(nn.Module):
    """D(x): two hidden layers with dropout, leaky ReLU where the paper has maxout.

    Args:
        nc: image channels.
        hidden: width of both hidden layers.
        image_size: image height and width.
        output: "probability" for D(x) in (0, 1), "logits" for its logit.
        num_classes: None, or the number of labels the discriminator is conditioned on.

    Shapes: images (N, nc, image_size, image_size), labels int64 (N,) -> (N,).

    Example:
        >>> MLPDiscriminator(nc=1, hidden=8, image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        nc: int = 1,
        hidden: int = 512,
        image_size: int = 28,
        output: str = "probability",
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.main = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(nc * image_size * image_size + (num_classes or 0), hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.5),
            nn.Linear(hidden, 1),
        )
        if output == "probability":
            self.main.append(nn.Sigmoid())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x), or D(x|y)."""
        x = images.flatten(1)
        if self.num_classes is not None and labels is not None:
            x = append_labels(x, labels, self.num_classes)
        scores: Tensor = self.main(x)
        return scores.squeeze(1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-V(D, G) of equation 1: -mean log D(x) - mean log(1 - D(G(z))).

    Args:
        real: D(x), probabilities, any shape.
        fake: D(G(z)), probabilities, any shape.

    Returns:
        A scalar. Logarithms are cut at -100, as in ``F.binary_cross_entropy``.

    Raises:
        RuntimeError: from torch, for values outside [0, 1].

    Example:
        >>> half = torch.full((4,), 0.5)
        >>> round(discriminator_loss(half, half).item(), 4)  # 2 log 2, section 4.1
        1.3863
    """
    return F.binary_cross_entropy(real, torch.ones_like(real)) + F.binary_cross_entropy(
        fake, torch.zeros_like(fake)
    )


def discriminator_loss_with_logits(real: Tensor, fake: Tensor) -> Tensor:
    """:func:`discriminator_loss` of sigmoid(real) and sigmoid(fake).

    Args:
        real: logit of D(x), any shape.
        fake: logit of D(G(z)), any shape.

    Returns:
        A scalar.

    Example:
        >>> round(discriminator_loss_with_logits(torch.zeros(4), torch.zeros(4)).item(), 4)
        1.3863
    """
    return F.binary_cross_entropy_with_logits(
        real, torch.ones_like(real)
    ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def generator_loss(fake: Tensor, *, objective: str = "non-saturating") -> Tensor:
    """What the generator descends.

    Args:
        fake: D(G(z)), probabilities, any shape.
        objective: "non-saturating", -mean log D(G(z)) (section 3), or "minimax",
            mean log(1 - D(G(z))) (equation 1).

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown objective.

    Example:
        >>> half = torch.full((4,), 0.5)
        >>> round(generator_loss(half).item(), 4)
        0.6931
        >>> round(generator_loss(half, objective="minimax").item(), 4)
        -0.6931
    """
    if objective == "non-saturating":
        return F.binary_cross_entropy(fake, torch.ones_like(fake))
    if objective == "minimax":
        return -F.binary_cross_entropy(fake, torch.zeros_like(fake))
    raise ValueError(f"objective is {objective!r}; expected 'non-saturating' or 'minimax'")


def generator_loss_with_logits(fake: Tensor, *, objective: str = "non-saturating") -> Tensor:
    """:func:`generator_loss` of sigmoid(fake).

    Args:
        fake: logit of D(G(z)), any shape.
        objective: as in :func:`generator_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown objective.

    Example:
        >>> round(generator_loss_with_logits(torch.zeros(4)).item(), 4)
        0.6931
    """
    if objective == "non-saturating":
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    if objective == "minimax":
        return -F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    raise ValueError(f"objective is {objective!r}; expected 'non-saturating' or 'minimax'")


class DiscriminatorStep(NamedTuple):
    """What a discriminator step saw, before its update; detached scalars."""

    loss: Tensor
    """-V(D, G)."""
    real_score: Tensor
    """mean D(x), the probability."""
    fake_score: Tensor
    """mean D(G(z)), the probability."""


class GeneratorStep(NamedTuple):
    """What a generator step saw, before its update; detached scalars."""

    loss: Tensor
    """The loss that was descended."""
    fake_score: Tensor
    """mean D(G(z)), the probability; for a critic mean f(G(z))."""


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module | None = None
) -> None:
    """A step of the optimiser down the loss; only ``network`` gets gradients, by default all."""
    optimizer.zero_grad()
    loss.backward(inputs=None if network is None else list(network.parameters()))
    optimizer.step()


def _logits_or_refuse(output: str) -> bool:
    if output not in ("probability", "logits"):
        raise ValueError(f"output is {output!r}; expected 'probability' or 'logits'")
    return output == "logits"


def discriminator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    labels: Tensor | None = None,
    output: str = "probability",
) -> DiscriminatorStep:
    """One step of Algorithm 1's inner loop: ascend V in the discriminator's parameters.

    With ``labels`` it is the step of Mirza's equation 2: real and generated images share them.

    Args:
        generator: G, left as it is but for its batch norms' running statistics.
        discriminator: D.
        optimizer: of the discriminator's parameters.
        real: a batch of real images, (N, C, H, W).
        noise: z, the generator's input.
        labels: None, or int64 (N,).
        output: what the discriminator returns, "probability" or "logits".

    Returns:
        Loss and scores from before the update, detached.

    Raises:
        ValueError: an unknown ``output``.

    Example:
        >>> G, D = MLPGenerator(nz=2, hidden=4, image_size=4), MLPDiscriminator(1, 4, 4)
        >>> step = discriminator_step(G, D, torch.optim.SGD(D.parameters(), lr=0.1),
        ...                           torch.ones(3, 1, 4, 4), torch.zeros(3, 2))
        >>> step._fields
        ('loss', 'real_score', 'fake_score')
    """
    with_logits = _logits_or_refuse(output)
    with torch.no_grad():
        fake = call(generator, noise, labels)
    real_output = call(discriminator, real, labels)
    fake_output = call(discriminator, fake, labels)
    criterion = discriminator_loss_with_logits if with_logits else discriminator_loss
    loss = criterion(real_output, fake_output)
    descend(optimizer, loss)
    if with_logits:
        real_output, fake_output = real_output.sigmoid(), fake_output.sigmoid()
    return DiscriminatorStep(
        loss.detach(), real_output.detach().mean(), fake_output.detach().mean()
    )


def generator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    noise: Tensor,
    *,
    labels: Tensor | None = None,
    output: str = "probability",
    objective: str = "non-saturating",
) -> GeneratorStep:
    """The step of Algorithm 1's outer loop: descend in the generator's parameters.

    Args:
        generator: G.
        discriminator: D; no gradient is added to its parameters.
        optimizer: of the generator's parameters.
        noise: z, the generator's input.
        labels: None, or int64 (N,).
        output: what the discriminator returns, "probability" or "logits".
        objective: "non-saturating" or "minimax", see :func:`generator_loss`.

    Returns:
        Loss and score from before the update, detached.

    Raises:
        ValueError: an unknown ``output`` or ``objective``.

    Example:
        >>> G, D = MLPGenerator(nz=2, hidden=4, image_size=4), MLPDiscriminator(1, 4, 4)
        >>> step = generator_step(G, D, torch.optim.SGD(G.parameters(), lr=0.1),
        ...                       torch.zeros(3, 2))
        >>> step.loss.requires_grad
        False
    """
    with_logits = _logits_or_refuse(output)
    fake_output = call(discriminator, call(generator, noise, labels), labels)
    criterion = generator_loss_with_logits if with_logits else generator_loss
    loss = criterion(fake_output, objective=objective)
    descend(optimizer, loss, generator)
    if with_logits:
        fake_output = fake_output.sigmoid()
    return GeneratorStep(loss.detach(), fake_output.detach().mean())
