"""Classes under the names, signatures and ``state_dict`` keys of well-known repositories.

Change the import line and keep the script:

- :mod:`fastgan.models.compat.pytorch_examples`: the DCGAN of pytorch/examples;
- :mod:`fastgan.models.compat.wasserstein_gan`: the models of martinarjovsky/WassersteinGAN.

The same seed gives the same weights, and checkpoints load both ways.
"""
