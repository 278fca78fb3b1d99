"""The kinds of data that ``--data`` names: a row each, read by the command line and the loader."""

from __future__ import annotations

from typing import NamedTuple


class DataKind(NamedTuple):
    """A kind of data.

    Attributes:
        form: the argument of ``--data``: a name, or a name, a colon and a path.
        loader: module of :mod:`fastgan.data` and its function.
        image_size: the default: the set's size rounded up to a power of two, or 64, as in the DCGAN
            paper, without a fixed size.
        reports_progress: whether the loader takes ``progress``.
    """

    form: str
    loader: str
    image_size: int = 64
    reports_progress: bool = False


DATA_KINDS = {
    kind.form.partition(":")[0]: kind
    for kind in (
        DataKind("digits", "digits.load_digits", 16),
        DataKind("digit-outlines", "digits.load_digit_outlines", 16),
        DataKind("folder:DIR", "folder.load_folder", reports_progress=True),
        DataKind("idx:DIR", "idx.load_idx", 32),
        DataKind("cifar10:DIR", "cifar10.load_cifar10", 32),
        DataKind("npz:FILE", "npz.load_npz"),
    )
}
