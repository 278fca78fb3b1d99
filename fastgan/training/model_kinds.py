"""One row for each ``--model``, with its paper's defaults, and the settings of single models.

Nothing here imports torch, so that the command line starts quickly.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastgan.training.options import LARGEST_DEPTH, LARGEST_WIDTH, option

DEFAULT_MODEL = "dcgan"


class ModelKind(NamedTuple):
    """A model.

    Attributes:
        generator: the class as "module:name". Its arguments are fields of
            :class:`fastgan.training.TrainConfig` and :mod:`fastgan.training.networks`'s description
            of the data.
        discriminator: the class as "module:name", with such arguments.
        defaults: defaults of unset settings.
        reads: settings that this model reads and some others ignore.
        batch_norm: whether one of its networks has batch norm.
        updater: the class with both networks' updates, as "module:name".
        pictures: the class that draws the grids, as "module:name".
        pairs: "paired" or "unpaired" for translation between two sets of images.
        refuses: settings that are errors for this model.
        draws_labels: whether its labels are drawn from ``categories``, and not the data's.
        cures: advice on divergence and on vanishing gradients. It names settings in ``reads``.
    """

    generator: str
    discriminator: str
    defaults: Mapping[str, Any]
    reads: tuple[str, ...]
    batch_norm: bool = True
    updater: str = "fastgan.training.updates:GANUpdater"
    pictures: str = "fastgan.training.outputs:SampleWriter"
    pairs: str = ""
    refuses: tuple[str, ...] = ()
    draws_labels: bool = False
    cures: tuple[str, str] = (
        "a lower --lr is the usual cure",
        "a lower --lr-d or --model wgan-gp is the usual cure",
    )


def named(name: str) -> Any:
    """The class that a row names as "module:name"."""
    return pkgutil.resolve_name(name)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings that single models have."""

    nw: int | None = option(
        None,
        "stylegan2: length of the style vectors; by default nz",
        at_least=1,
        at_most=LARGEST_WIDTH,
    )
    mapping_layers: int = option(
        8, "stylegan2: layers from noise to style vectors", at_least=1, at_most=LARGEST_DEPTH
    )
    blocks: int | None = option(
        None,
        "cyclegan: residual blocks of a generator; by default 9 from 256 pixels on, else 6",
        at_least=1,
        at_most=LARGEST_DEPTH,
    )
    categories: int = option(
        10,
        "infogan: values of the categorical code, drawn as labels",
        at_least=1,
        at_most=LARGEST_WIDTH,
    )
    codes: int = option(2, "infogan: continuous codes, the first numbers of the noise", at_least=0)
    info_weight: float = option(
        1.0, "infogan: weight of the categorical code's mutual information with images", at_least=0
    )
    code_weight: float = option(0.1, "infogan: likewise the continuous codes'", at_least=0)
    clip: float = option(0.01, "wgan: the critic's weights are kept within [-clip, clip]", above=0)
    clip_when: str = option(
        "after",
        "wgan: clip after each critic update (the paper), or before its forward pass (the authors'"
        " code)",
        ("after", "before"),
    )
    gp_weight: float = option(10.0, "wgan-gp: weight of the gradient penalty", at_least=0)
    cycle_weight: float = option(10.0, "cyclegan: weight of the cycle loss", at_least=0)
    identity_weight: float = option(
        0.5, "cyclegan: weight of the identity loss, as a factor of the cycle loss's", at_least=0
    )
    l1_weight: float = option(100.0, "pix2pix: weight of the L1 loss", at_least=0)
    path_length: float | None = option(
        None, "stylegan2: weight of the generator's path length penalty; 0 for none", at_least=0
    )
    path_length_every: int = option(
        4,
        "stylegan2: penalise path lengths only every so many updates, by as many times the weight",
        at_least=1,
    )
    path_length_decay: float = option(
        0.01,
        "stylegan2: weight of each new path length in the target average",
        at_least=0,
        at_most=1,
    )
    path_length_shrink: int = option(
        2, "stylegan2: factor by which the path lengths' batch is smaller", at_least=1
    )
    style_mixing: float = option(
        0.9,
        "stylegan2: probability that a generated image has the styles of two noise vectors",
        at_least=0,
        at_most=1,
    )


_NOISE = ("nz", "noise")
_WIDTHS = (*_NOISE, "ngf", "ndf")
_PENALTIES = ("r1", "r2")
_STYLES = (
    *("nw", "mapping_layers", "style_mixing"),
    *("path_length", "path_length_every", "path_length_decay", "path_length_shrink"),
)
_DCGAN = (*_WIDTHS, "critic_norm", "projection")
_PAIRS = ("ngf", "ndf", "critic_norm", "data_a", "data_b")
_NOT_FOR_PAIRS = (
    *("data", "conditional", "projection", "r1", "r2", "orthogonal", "one_stage"),
    *("augment", "accumulate"),
)

#: Radford et al. 2015, section 4: Adam, 2e-4, beta1 0.5, minibatches of 128, uniform Z.
_RADFORD = {
    "batch_size": 128,
    "optimizer": "adam",
    "lr": 2e-4,
    "beta1": 0.5,
    "noise": "uniform",
    "n_critic": 1,
}

MODEL_KINDS: dict[str, ModelKind] = {
    # Goodfellow et al. 2014: stochastic gradient descent with momentum (section 5 and the
    # authors' settings: minibatches of 100, rate 0.1, momentum 0.5), uniform noise.
    "gan": ModelKind(
        "fastgan.models.mlp:MLPGenerator",
        "fastgan.models.mlp:MLPDiscriminator",
        {
            "batch_size": 100,
            "optimizer": "sgd",
            "lr": 0.1,
            "beta1": 0.5,
            "noise": "uniform",
            "n_critic": 1,
        },
        reads=(*_NOISE, *_PENALTIES),
        batch_norm=False,
    ),
    "dcgan": ModelKind(
        "fastgan.models.dcgan:DCGANGenerator",
        "fastgan.models.dcgan:DCGANDiscriminator",
        _RADFORD,
        reads=(*_DCGAN, *_PENALTIES),
    ),
    # Mirza & Osindero 2014 for the conditioning and the noise, Radford et al. for the rest.
    "cgan": ModelKind(
        "fastgan.models.dcgan:DCGANGenerator",
        "fastgan.models.dcgan:DCGANDiscriminator",
        {**_RADFORD, "conditional": True},
        reads=(*_DCGAN, *_PENALTIES),
    ),
    # Odena et al. 2017, appendix A; the noise as Radford et al.
    "acgan": ModelKind(
        "fastgan.models.dcgan:DCGANGenerator",
        "fastgan.models.acgan:ACGANDiscriminator",
        {**_RADFORD, "batch_size": 100, "conditional": True},
        reads=(*_WIDTHS, "critic_norm"),
        updater="fastgan.training.acgan:ACGANUpdater",
        refuses=("projection", "r1", "r2"),
    ),
    # Chen et al. 2016, appendix C: D's rate and G's; codes as on MNIST; the rest as the DCGAN.
    "infogan": ModelKind(
        "fastgan.models.dcgan:DCGANGenerator",
        "fastgan.models.infogan:InfoGANDiscriminator",
        {**_RADFORD, "lr_g": 1e-3, "conditional": True},
        reads=(*_WIDTHS, "critic_norm", "categories", "codes", "info_weight", "code_weight"),
        updater="fastgan.training.infogan:InfoGANUpdater",
        refuses=("projection", "r1", "r2"),
        draws_labels=True,
    ),
    # Arjovsky et al. 2017, Algorithm 1.
    "wgan": ModelKind(
        "fastgan.models.dcgan:DCGANGenerator",
        "fastgan.models.wgan:WGANCritic",
        {
            "batch_size": 64,
            "optimizer": "rmsprop",
            "lr": 5e-5,
            "noise": "normal",
            "n_critic": 5,
            "loss": "wasserstein",
        },
        reads=(*_DCGAN, "clip", "clip_when"),
        refuses=("r1", "r2"),
        cures=(
            "a lower --lr or a smaller --clip is the usual cure",
            "a smaller --clip narrows the critic's gradients, a larger one may help",
        ),
    ),
    # Gulrajani et al. 2017, Algorithm 1.
    "wgan-gp": ModelKind(
        "fastgan.models.dcgan:DCGANGenerator",
        "fastgan.models.wgan:WGANCritic",
        {
            "batch_size": 64,
            "optimizer": "adam",
            "lr": 1e-4,
            "beta1": 0.0,
            "beta2": 0.9,
            "noise": "normal",
            "n_critic": 5,
            "loss": "wasserstein",
            "critic_norm": "none",
        },
        reads=(*_DCGAN, *_PENALTIES, "gp_weight", "penalty_every"),
        cures=(
            "a lower --lr or a larger --gp-weight is the usual cure",
            "a lower --lr-d or a larger --gp-weight is the usual cure",
        ),
    ),
    # Miyato et al. 2018, section 4 and appendix B.4.
    "sngan": ModelKind(
        "fastgan.models.sngan:SNGANGenerator",
        "fastgan.models.sngan:SNGANDiscriminator",
        {
            "batch_size": 64,
            "optimizer": "adam",
            "lr": 2e-4,
            "beta1": 0.0,
            "beta2": 0.9,
            "noise": "normal",
            "n_critic": 5,
            "loss": "hinge",
        },
        reads=(*_WIDTHS, *_PENALTIES),
    ),
    # Brock et al. 2018, section 3 and appendix C, with an eighth of the batch of 2,048.
    "biggan": ModelKind(
        "fastgan.models.biggan:BigGANGenerator",
        "fastgan.models.biggan:BigGANDiscriminator",
        {
            "batch_size": 256,
            "optimizer": "adam",
            "lr": 2e-4,
            "lr_g": 5e-5,
            "beta1": 0.0,
            "noise": "normal",
            "n_critic": 2,
            "loss": "hinge",
            "orthogonal": 1e-4,
        },
        reads=(*_WIDTHS, *_PENALTIES),
    ),
    # Karras et al. 2020, appendix B; gamma as for faces of 1024 pixels.
    "stylegan2": ModelKind(
        "fastgan.models.stylegan2:StyleGAN2Generator",
        "fastgan.models.stylegan2:StyleGAN2Discriminator",
        {
            "batch_size": 32,
            "optimizer": "adam",
            "lr": 2e-3,
            "beta1": 0.0,
            "beta2": 0.99,
            "noise": "normal",
            "n_critic": 1,
            "r1": 10.0,
            "penalty_every": 16,
            "path_length": 2.0,
        },
        reads=(*_WIDTHS, "r1", "penalty_every", *_STYLES),
        batch_norm=False,
        updater="fastgan.training.style_updates:StyleGAN2Updater",
        refuses=("r2", "one_stage"),
    ),
    # Huang et al. 2025, as for faces of 64 pixels, without annealing.
    "r3gan": ModelKind(
        "fastgan.models.r3gan:R3GANGenerator",
        "fastgan.models.r3gan:R3GANDiscriminator",
        {
            "batch_size": 256,
            "optimizer": "adam",
            "lr": 2e-4,
            "beta1": 0.0,
            "beta2": 0.99,
            "noise": "normal",
            "n_critic": 1,
            "loss": "relativistic",
            "r1": 2.0,
            "r2": 2.0,
        },
        reads=(*_WIDTHS, *_PENALTIES),
        batch_norm=False,
    ),
    # Zhu et al. 2017, section 4 and appendix 7.1.
    "cyclegan": ModelKind(
        "fastgan.models.cyclegan:CycleGANGenerator",
        "fastgan.models.cyclegan:CycleGANDiscriminator",
        {
            "data_a": "digits",
            "data_b": "digit-outlines",
            "batch_size": 1,
            "optimizer": "adam",
            "lr": 2e-4,
            "lr_decay": "half",
            "beta1": 0.5,
            "n_critic": 1,
            "loss": "least-squares",
            "critic_norm": "instance",
        },
        reads=(*_PAIRS, "blocks", "cycle_weight", "identity_weight"),
        batch_norm=False,
        updater="fastgan.training.translation:CycleGANUpdater",
        pictures="fastgan.training.translation:TranslationWriter",
        pairs="unpaired",
        refuses=_NOT_FOR_PAIRS,
    ),
    # Isola et al. 2017, section 3.3 and appendix 6.2.
    "pix2pix": ModelKind(
        "fastgan.models.pix2pix:UNetGenerator",
        "fastgan.models.pix2pix:Pix2PixDiscriminator",
        {
            "data_a": "digit-outlines",
            "data_b": "digits",
            "batch_size": 1,
            "optimizer": "adam",
            "lr": 2e-4,
            "beta1": 0.5,
            "n_critic": 1,
            "critic_norm": "instance",
        },
        reads=(*_PAIRS, "l1_weight"),
        batch_norm=False,
        updater="fastgan.training.translation:Pix2PixUpdater",
        pictures="fastgan.training.translation:TranslationWriter",
        pairs="paired",
        refuses=_NOT_FOR_PAIRS,
    ),
}
