"""Reads pickles as data: lists, tuples, dictionaries, numbers, text, bytes and named records.

A pickle is a program for a small stack machine. This machine leaves out the dangerous half: names
must be in the caller's table, or the file is refused; nothing is imported, and no function of the
file is called. Values are bounded before they are built. A nested value can't grow any more, so
there are no cycles, and each value's depth and size (shared parts counted each time) are known when
it is made: printing, comparing or copying it takes time linear in the file's length.

``pickletools.genops`` of the standard library splits the bytes into operations.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from fastgan._util.reading import parsing
from fastgan.errors import FastganError

MAX_DEPTH = 40
"""Deepest nesting of containers; a checkpoint has eight."""

# Most values per byte of pickle, shared ones counted each time: an optimiser state's key has a
# dozen letters and takes two bytes when repeated.
_EXPANSION = 64
_BASE_SIZE = 2**16

_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_BYTE_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


class Record:
    """The record of a call in a pickle.

    Attributes:
        name: the called name.
        arguments: its arguments.
        state: the state set afterwards, or ``None``.
    """

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None


class _Name:
    """A name on the stack: its entry in the table."""

    def __init__(self, text: str, meaning: Any) -> None:
        self.text = text
        self.meaning = meaning


class _Cell:
    """A value on the stack or in the memo, with its size and depth."""

    __slots__ = ("depth", "sealed", "size", "value")

    def __init__(self, value: Any, size: int = 1, depth: int = 0) -> None:
        self.value = value
        self.size = size
        self.depth = depth
        self.sealed = False


class _Refused(Exception):
    """The pickle contains an operation that data doesn't need."""


def load_plain_pickle(
    content: bytes,
    what: str,
    *,
    kind: type[FastganError],
    names: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads a pickle that holds only data; never runs code from it.

    Args:
        content: the whole pickle, of any protocol.
        what: how messages refer to it.
        kind: the error to raise.
        names: (module, name) -> :class:`Record`, for a record of the call; a function, which is
            called; or a constant.
        persistent: resolves references to outside the pickle; by default they are refused.

    Returns:
        Plain Python values; text of Python 2, and bytearrays, as bytes.

    Raises:
        FastganError: of that ``kind``: truncated, corrupt, too deep, too large for its length,
            or naming anything that isn't data.

    Example:
        >>> import pickle
        >>> from fastgan.errors import DataError
        >>> load_plain_pickle(pickle.dumps({"a": [1, 2.5]}), "it", kind=DataError, names={})
        {'a': [1, 2.5]}
    """
    with parsing(f"{what}: truncated or corrupt pickle", kind):
        try:
            return _Machine(len(content), names, persistent).run(content)
        except _Refused as refused:
            raise kind(f"{what}: refused pickle: {refused}") from refused


class _Machine:
    def __init__(
        self,
        length: int,
        names: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self._names = names
        self._persistent = persistent
        self._most = _BASE_SIZE + _EXPANSION * length
        self._made = 0
        self._stack: list[_Cell] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Cell] = {}

    def run(self, content: bytes) -> Any:
        """Runs all operations, and returns the last one's value."""
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "STOP":
                return self._pop().value
            self._step(operation.name, argument)
        raise ValueError("no end")

    # What is on the stack -------------------------------------------------------------------------

    def _push(self, value: Any, size: int = 1, depth: int = 0) -> None:
        self._push_cell(_Cell(value, size, depth))

    def _push_cell(self, cell: _Cell) -> None:
        if cell.size > self._most:
            raise _Refused("it stands for far more than it is long")
        if cell.depth > MAX_DEPTH:
            raise _Refused(f"values within values, deeper than {MAX_DEPTH}")
        self._stack.append(cell)

    def _pop(self) -> _Cell:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("the stack is empty")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[_Cell]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _hold(self, value: Any, items: list[_Cell]) -> None:
        """Push a container made of ``items``."""
        for item in items:
            item.sealed = True
        size = 1 + sum(item.size for item in items)
        self._push(value, size, 1 + max((item.depth for item in items), default=0))

    def _fill(self, items: list[_Cell], kind: type[list[Any]] | type[dict[Any, Any]]) -> None:
        """Put ``items`` into the list or dictionary on top."""
        cell = self._pop()
        # Items first: one may be the container itself.
        for item in items:
            item.sealed = True
        if type(cell.value) is not kind or cell.sealed:
            raise _Refused("it adds to a value that takes no more")
        values = [item.value for item in items]
        if isinstance(cell.value, list):
            cell.value.extend(values)
        else:
            cell.value.update(_pairs(values))
        cell.size += sum(item.size for item in items)
        cell.depth = max([cell.depth, *(1 + item.depth for item in items)])
        self._push_cell(cell)

    # Operations -----------------------------------------------------------------------------------

    def _step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _NUMBERS:
            if isinstance(argument, int) and argument.bit_length() > 128:
                raise _Refused("a number of more than 128 bits")
            self._push(argument)
        elif name in _BYTE_TEXTS:
            self._push(argument.encode("latin-1"), 1 + len(argument))
        elif name in _TEXTS or name in _BYTES:
            self._push(bytes(argument) if name in _BYTES else argument, 1 + len(argument))
        elif name in _EMPTY:
            self._push(_EMPTY[name](), 1, 1)
        elif name in _GETS:
            self._stack.append(self._memo[int(argument)])
        elif name in _PUTS or name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else int(argument)] = self._stack[-1]
        elif name in _TUPLES:
            items = [self._pop() for _ in range(_TUPLES[name])][::-1]
            self._hold(tuple(item.value for item in items), items)
        elif name in ("TUPLE", "LIST", "DICT"):
            self._make(name)
        elif name in ("APPEND", "SETITEM"):
            items = [self._pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
            self._fill(items, list if name == "APPEND" else dict)
        elif name in ("APPENDS", "SETITEMS"):
            self._fill(self._pop_to_mark(), list if name == "APPENDS" else dict)
        else:
            self._rarer(name, argument)

    def _make(self, name: str) -> None:
        items = self._pop_to_mark()
        values = [item.value for item in items]
        make: Callable[[list[Any]], Any] = tuple
        if name != "TUPLE":
            make = list if name == "LIST" else _pairs
        self._hold(make(values), items)

    def _rarer(self, name: str, argument: Any) -> None:
        if name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "GLOBAL":
            module, _, named = argument.partition(" ")
            self._push(self._name(module, named))
        elif name == "STACK_GLOBAL":
            named, module = self._pop().value, self._pop().value
            self._push(self._name(module, named))
        elif name == "REDUCE":
            arguments, called = self._pop(), self._pop()
            self._call(called.value, arguments)
        elif name == "BUILD":
            self._build(self._pop())
        elif name in ("PERSID", "BINPERSID"):
            reference = _Cell(argument) if name == "PERSID" else self._pop()
            if self._persistent is None:
                raise _Refused("it refers to something outside the file")
            self._push(self._persistent(reference.value))
        elif name == "POP":
            if self._marks and self._marks[-1] == len(self._stack):
                self._marks.pop()
            else:
                self._pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"it uses {name}, which data doesn't need")

    def _name(self, module: Any, name: Any) -> _Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that isn't text")
        if (module, name) not in self._names:
            raise _Refused(
                f"it names {module}.{name}, which is code, not data: a careless reader could run"
                " code of the file's"
            )
        return _Name(f"{module}.{name}", self._names[module, name])

    def _call(self, name: Any, arguments: _Cell) -> None:
        if not (isinstance(name, _Name) and isinstance(arguments.value, tuple)):
            raise _Refused("it calls a value")
        if name.meaning is Record:
            arguments.sealed = True
            record = Record(name.text, arguments.value)
            self._push(record, 1 + arguments.size, 1 + arguments.depth)
            return
        if not callable(name.meaning):
            raise _Refused(f"{name.text} is called; expected it as a type only")
        made = name.meaning(*map(_meaning, arguments.value))
        if isinstance(made, (bytes, str)):
            # Each call makes a new value, and all of them count.
            self._made += len(made)
            if self._made > self._most:
                raise _Refused("it stands for far more than it is long")
        self._push(made, arguments.size, arguments.depth)

    def _build(self, state: _Cell) -> None:
        cell = self._pop()
        state.sealed = True
        if isinstance(cell.value, Record) and not cell.sealed:
            cell.value.state = state.value
        elif type(cell.value) is not dict:  # attributes of a dictionary are ignored
            raise _Refused("it sets attributes")
        cell.size += state.size
        cell.depth = max(cell.depth, 1 + state.depth)
        self._push_cell(cell)


def _meaning(value: Any) -> Any:
    return value.meaning if isinstance(value, _Name) else value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    keys = values[::2]
    for key in keys:
        # Text and numbers only: hashing a tuple visits all its elements.
        if type(key) not in (str, bytes, int):
            raise _Refused(f"{type(key).__name__} as a dictionary's key")
    return dict(zip(keys, values[1::2], strict=True))
