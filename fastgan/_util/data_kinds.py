"""The kinds of data that ``--data`` names: a row each, read by the command line and the loader."""

from __future__ import annotations

from typing import NamedTuple


class DataKind(NamedTuple):
    """A kind of data.

    Attributes:
        form: the argument of ``--data``: a name, or a name, a colon and a path.
        loader: module of :mod:`fastgan.data` and its function, which reads a path, if the form has
            one, into :class:`fastgan.data.source.ImageArrays`.
        image_size: the default: the set's size rounded up to a power of two, or 64, as in the DCGAN
            paper, without a fixed size.
        options: arguments of :func:`fastgan.data.load_data` for a function that makes the source
            itself.
    """

    form: str
    loader: str
    image_size: int = 64
    options: tuple[str, ...] = ()


DATA_KINDS = {
    kind.form.partition(":")[0]: kind
    for kind in (
        DataKind("digits", "digits.load_digits", 16),
        DataKind(
            "digit-outlines", "digits.load_digit_outlines", 16, options=("image_size", "channels")
        ),
        DataKind(
            "folder:DIR",
            "folder.load_folder",
            options=("name", "image_size", "channels", "in_memory", "progress"),
        ),
        DataKind("idx:DIR", "idx.load_idx", 32),
        DataKind("cifar10:DIR", "cifar10.load_cifar10", 32),
        DataKind("npz:FILE", "npz.load_npz"),
    )
}
