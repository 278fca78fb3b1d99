"""Reading a pickle as data: lists, dictionaries, numbers, text, bytes and arrays of bytes.

A pickle is a program that may call anything. This reader runs it on stand-ins: the few names
numpy's arrays need resolve to inert records defined here, every other name is refused, and no
code of numpy or of the file ever runs. The records are checked and turned into arrays afterwards.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastgan.data.limits import one_line
from fastgan.errors import DataError

__all__ = ["ArrayRecord", "load_plain_pickle", "to_byte_array"]


class _DtypeRecord:
    """Stands for a dtype: remembers its code."""

    def __init__(self, *arguments: object) -> None:
        self.code = arguments[0] if arguments else None

    def __setstate__(self, state: object) -> None:
        """Pass over byte order and alignment: nothing that single bytes have."""


class ArrayRecord:
    """Stands for an array: the state numpy would have been given, unchecked."""

    def __init__(self, *_: object) -> None:
        """Pass over the arguments: the state that follows says all."""
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state


def _record_of_buffer(*arguments: object) -> ArrayRecord:
    """Stand for ``_frombuffer``, by which numpy writes arrays in protocol 5."""
    if len(arguments) != 4:
        raise pickle.UnpicklingError("an array written with other than four parts")
    content, dtype, shape, order = arguments
    record = ArrayRecord()
    plain = bytes(content) if isinstance(content, bytearray) else content
    record.state = (1, shape, dtype, order == "F", plain)
    return record


def _no_bytes(*arguments: object) -> bytes:
    """Stand for ``bytes``, by which Python 3 writes empty bytes in old protocols."""
    if arguments:
        raise pickle.UnpicklingError("bytes is called; expected it for empty bytes only")
    return b""


def _encode(*arguments: object) -> bytes:
    """Stand for ``_codecs.encode``, by which Python 3 writes bytes in old protocols."""
    if len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1":
        return arguments[0].encode("latin1")
    raise pickle.UnpicklingError("_codecs.encode is called for something other than bytes")


def _refuse_call(*_: object) -> None:
    raise pickle.UnpicklingError("numpy.ndarray is called; expected it as a type only")


class _StandIn:
    """What a name in a pickle resolves to: it can be called, and nothing else.

    Not the function or class itself, whose attributes a hostile pickle could set.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets attributes of a name")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(ArrayRecord),
    ("numpy._core.multiarray", "_reconstruct"): _StandIn(ArrayRecord),
    ("numpy.core.numeric", "_frombuffer"): _StandIn(_record_of_buffer),
    ("numpy._core.numeric", "_frombuffer"): _StandIn(_record_of_buffer),
    ("numpy", "ndarray"): _StandIn(_refuse_call),
    ("numpy", "dtype"): _StandIn(_DtypeRecord),
    ("_codecs", "encode"): _StandIn(_encode),
    ("builtins", "bytes"): _StandIn(_no_bytes),
    ("__builtin__", "bytes"): _StandIn(_no_bytes),
}

# The C unpickler grows its memo to the largest number named; real ones count up from 0.
_MEMO_OPERATIONS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        """Resolve a name to its stand-in, or refuse."""
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is code, not data")
        return stand_in

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to outside the file."""
        raise pickle.UnpicklingError("it refers to something outside the file")


def load_plain_pickle(content: bytes, what: str) -> Any:
    """Read a pickle that holds only data; never runs code from it.

    Args:
        content: the whole pickle, of any protocol.
        what: how messages refer to it.

    Returns:
        Plain Python values; text of Python 2 as bytes; each array an :class:`ArrayRecord`.

    Raises:
        DataError: truncated, corrupt, or naming anything that isn't data.
    """
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in _MEMO_OPERATIONS and int(argument or 0) > len(content):
                raise DataError(f"{what}: corrupt pickle: memo number {argument}")
        return _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(f"{what}: refused or corrupt pickle: {one_line(error)}") from error
    except Exception as error:
        # A hostile pickle can make the unpickler raise nearly anything.
        raise DataError(
            f"{what}: truncated or corrupt pickle: {type(error).__name__}: {one_line(error)}"
        ) from error


def to_byte_array(value: object, what: str) -> npt.NDArray[np.uint8]:
    """Turn a record of a uint8 array into the array, having checked all it says.

    Raises:
        DataError: not a record of a C-ordered uint8 array whose bytes match its shape.
    """
    state = value.state if isinstance(value, ArrayRecord) else None
    if not (isinstance(state, tuple) and len(state) == 5):
        raise DataError(f"{what}: {type(value).__name__} found; expected an array of bytes")
    _, shape, dtype, fortran, content = state
    if not (isinstance(dtype, _DtypeRecord) and dtype.code in ("u1", b"u1")):
        code = dtype.code if isinstance(dtype, _DtypeRecord) else None
        raise DataError(f"{what}: an array of dtype {code!r}; expected u1 (unsigned byte)")
    if not (
        isinstance(shape, tuple)
        and all(type(size) is int and size >= 0 for size in shape)
        and isinstance(content, bytes)
        and len(content) == math.prod(shape)
    ):
        raise DataError(f"{what}: an array whose bytes don't match its shape {shape!r}")
    flat = np.frombuffer(content, dtype=np.uint8)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
