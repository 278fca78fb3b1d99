"""The models of ``--model``, a row each, with the paper's defaults.

Nothing here imports torch, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple


class ModelKind(NamedTuple):
    """A model.

    Attributes:
        generator: a class of :mod:`fastgan.models`; its arguments are fields of
            :class:`fastgan.training.TrainConfig` and :mod:`fastgan.training.networks`'s description
            of the data.
        discriminator: likewise.
        defaults: defaults of unset settings.
        reads: settings that it reads and some other models ignore.
        batch_norm: whether one of its networks has batch norm.
        updater: module of :mod:`fastgan.training` and its class with both networks' updates.
        pictures: likewise, the class that draws the grids.
        pairs: "paired" or "unpaired" for translation between two sets of images.
        refuses: settings that are errors for this model.
        draws_labels: whether its labels are drawn from ``categories``, and not the data's.
    """

    generator: str
    discriminator: str
    defaults: Mapping[str, Any]
    reads: tuple[str, ...]
    batch_norm: bool = True
    updater: str = "updates.GANUpdater"
    pictures: str = "outputs.SampleWriter"
    pairs: str = ""
    refuses: tuple[str, ...] = ()
    draws_labels: bool = False


def named(name: str) -> Any:
    """Imports a class given by its module of :mod:`fastgan.training`."""
    module, _, of_class = name.partition(".")
    return getattr(importlib.import_module(f"fastgan.training.{module}"), of_class)


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

MODEL_KINDS: Mapping[str, ModelKind] = types.MappingProxyType(
    {
        # Goodfellow et al. 2014: stochastic gradient descent with momentum (section 5 and the
        # authors' settings: minibatches of 100, rate 0.1, momentum 0.5), uniform noise.
        "gan": ModelKind(
            "MLPGenerator",
            "MLPDiscriminator",
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
        # Radford et al. 2015, section 4: Adam, 2e-4, beta1 0.5, minibatches of 128, uniform Z.
        "dcgan": ModelKind(
            "DCGANGenerator",
            "DCGANDiscriminator",
            {
                "batch_size": 128,
                "optimizer": "adam",
                "lr": 2e-4,
                "beta1": 0.5,
                "noise": "uniform",
                "n_critic": 1,
            },
            reads=(*_DCGAN, *_PENALTIES),
        ),
        # Mirza & Osindero 2014 for the conditioning and the noise, Radford et al. for the rest.
        "cgan": ModelKind(
            "DCGANGenerator",
            "DCGANDiscriminator",
            {
                "batch_size": 128,
                "optimizer": "adam",
                "lr": 2e-4,
                "beta1": 0.5,
                "noise": "uniform",
                "n_critic": 1,
                "conditional": True,
            },
            reads=(*_DCGAN, *_PENALTIES),
        ),
        # Odena et al. 2017, appendix A; the noise as Radford et al.
        "acgan": ModelKind(
            "DCGANGenerator",
            "ACGANDiscriminator",
            {
                "batch_size": 100,
                "optimizer": "adam",
                "lr": 2e-4,
                "beta1": 0.5,
                "noise": "uniform",
                "n_critic": 1,
                "conditional": True,
            },
            reads=(*_WIDTHS, "critic_norm"),
            updater="acgan.ACGANUpdater",
            refuses=("projection", "r1", "r2"),
        ),
        # Chen et al. 2016, appendix C: D's rate and G's; codes as on MNIST; the rest as the DCGAN.
        "infogan": ModelKind(
            "DCGANGenerator",
            "InfoGANDiscriminator",
            {
                "batch_size": 128,
                "optimizer": "adam",
                "lr": 2e-4,
                "lr_g": 1e-3,
                "beta1": 0.5,
                "noise": "uniform",
                "n_critic": 1,
                "conditional": True,
            },
            reads=(*_WIDTHS, "critic_norm", "categories", "codes", "info_weight", "code_weight"),
            updater="infogan.InfoGANUpdater",
            refuses=("projection", "r1", "r2"),
            draws_labels=True,
        ),
        # Arjovsky et al. 2017, Algorithm 1.
        "wgan": ModelKind(
            "DCGANGenerator",
            "WGANCritic",
            {
                "batch_size": 64,
                "optimizer": "rmsprop",
                "lr": 5e-5,
                "noise": "normal",
                "n_critic": 5,
                "loss": "wasserstein",
            },
            reads=(*_DCGAN, "clip", "clip_when"),
        ),
        # Gulrajani et al. 2017, Algorithm 1.
        "wgan-gp": ModelKind(
            "DCGANGenerator",
            "WGANCritic",
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
        ),
        # Miyato et al. 2018, section 4 and appendix B.4.
        "sngan": ModelKind(
            "SNGANGenerator",
            "SNGANDiscriminator",
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
            "BigGANGenerator",
            "BigGANDiscriminator",
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
            "StyleGAN2Generator",
            "StyleGAN2Discriminator",
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
            updater="style_updates.StyleGAN2Updater",
            refuses=("r2", "one_stage"),
        ),
        # Huang et al. 2025, as for faces of 64 pixels, without annealing.
        "r3gan": ModelKind(
            "R3GANGenerator",
            "R3GANDiscriminator",
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
            "CycleGANGenerator",
            "CycleGANDiscriminator",
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
            updater="translation.CycleGANUpdater",
            pictures="translation.TranslationWriter",
            pairs="unpaired",
            refuses=_NOT_FOR_PAIRS,
        ),
        # Isola et al. 2017, section 3.3 and appendix 6.2.
        "pix2pix": ModelKind(
            "UNetGenerator",
            "Pix2PixDiscriminator",
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
            updater="translation.Pix2PixUpdater",
            pictures="translation.TranslationWriter",
            pairs="paired",
            refuses=_NOT_FOR_PAIRS,
        ),
    }
)
