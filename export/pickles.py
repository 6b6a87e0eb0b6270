"""An unpickler for untrusted files: it imports nothing, calls only what it is given, and ends in bounded time.

A pickle can name any function and have it called. Here each name that a file has reason to hold maps to an inert
stand-in, every other name is refused, and opcodes that could reach further are not implemented.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# A k-means model has some 200 opcodes, a checkpoint with its optimizer's state some 300,000. No single value of either
# is near the other bound: K = 4096, D = 4096 in float64 is 134 MB, and a checkpoint's tensors are not in its pickle.
_MAX_OPCODES = 1_000_000
MAX_VALUE_BYTES = 1 << 28
BLOCK_BYTES = 1 << 18

PLAIN_KEYS = frozenset({str, int, bytes, float, bool, type(None)})  # of dicts; a tuple may take forever to hash


class Refused(Exception):
    """Why a pickle was not read."""


def printable(text: str) -> str:
    """A text out of an untrusted file, short and fit for a terminal."""
    return repr(text[:120])[1:-1]


def encode_latin1(text: object = None, encoding: object = "latin1") -> bytes:
    """What ``_codecs.encode`` does for bytes in pickles of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("an unknown encoding")
    return text.encode("latin1")


class Source:
    """A file that never gives more than it holds, so that no length in a pickle asks for memory that is not there."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, count: int) -> bytes:
        if not 0 <= count <= min(self._left, MAX_VALUE_BYTES):
            raise EOFError
        self._left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise EOFError
        return data

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 4096))
        if not line.endswith(b"\n"):
            raise EOFError
        self._left -= len(line)
        return line

    def skip(self, count: int) -> None:
        """Pass over so many bytes."""
        if not self._file.seekable():
            while count > 0:
                count -= len(self.read(min(count, BLOCK_BYTES)))
        elif count > self._left:
            raise EOFError
        else:
            self._left -= count
            self._file.seek(count, io.SEEK_CUR)

    def drain(self) -> None:
        """Read what is left, which checks the sum at the end of a compressed file."""
        while block := self._file.read(min(self._left, BLOCK_BYTES)):
            self._left -= len(block)


_Unpickler: Any = pickle._Unpickler  # whose attributes are not in its type


class StrictUnpickler(_Unpickler):  # type: ignore[misc]
    """The standard library's unpickler in Python, reduced to the opcodes that plain data has.

    ``names`` are all that a pickle may name; those that are ``functions`` may be called. How much a pickle can do is
    bounded too: a short one could otherwise run for years or fill the memory, without executing anything.
    """

    # Left out: INST and OBJ (old-style classes), EXT1-4 (registered extensions), PERSID and BINPERSID (references to
    # outside), NEXT_BUFFER and READONLY_BUFFER (data from outside), sets (to hash a tuple nested in itself n times
    # takes 2**n steps).
    _OPCODES: ClassVar[tuple[str, ...]] = (
        "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT",
        "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE",
        "SHORT_BINUNICODE", "BINUNICODE8", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "EMPTY_LIST",
        "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET",
        "LONG_BINGET", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD",
    )  # fmt: skip

    names: ClassVar[Mapping[tuple[str, str], object]] = {}
    functions: ClassVar[Collection[object]] = ()

    def __init__(self, source: Source) -> None:
        super().__init__(source, encoding="latin1")
        self.source = source
        self.steps = 0
        codes = [getattr(pickle, name)[0] for name in self._OPCODES]
        handlers = {code: _Unpickler.dispatch[code] for code in codes}
        kind = type(self)
        own = {
            pickle.REDUCE: kind._reduce,
            pickle.NEWOBJ: kind._new,
            pickle.NEWOBJ_EX: kind._new_ex,
            pickle.BUILD: kind._build,
            pickle.BYTEARRAY8: kind._bytes,
            pickle.DICT: kind._dict,
            pickle.SETITEM: kind._set_item,
            pickle.SETITEMS: kind._set_items,
        }
        handlers.update({code[0]: handler for code, handler in own.items()})
        self.dispatch = _Counted(self, handlers)

    def spend(self, steps: int) -> None:
        """Count work done; a step is an opcode, or as long as one takes."""
        self.steps += steps
        if self.steps > _MAX_OPCODES:
            raise Refused("a stream without end")

    def find_class(self, module: str, name: str) -> object:
        found = self.names.get((module, name))
        if found is None:
            raise Refused(printable(f"{module}.{name}"))
        return found

    def persistent_load(self, pid: object) -> object:  # noqa: ARG002
        raise Refused("a reference to something outside")

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(arguments, tuple):
            raise Refused("a call without arguments")
        if not any(function is known for known in self.functions):
            raise Refused("a call of something that is no function")
        for argument in arguments:  # each of which can be used again and again, and made into new memory each time
            if isinstance(argument, str):
                self.spend(len(argument) >> 8)
            elif isinstance(argument, (list, dict)):
                self.spend(len(argument))
        self.stack[-1] = function(*arguments)

    def _new(self) -> None:
        self.stack.pop()  # arguments, which no class here takes
        self.stack.append(self.instance_of(self.stack.pop()))

    def _new_ex(self) -> None:
        self.stack.pop()
        self._new()

    def _bytes(self) -> None:
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set(self.stack[-1], items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._set(self.stack[-1], items)

    def _set(self, target: object, items: list[Any]) -> None:
        keys = items[::2]
        if type(target) is not dict or len(items) % 2 or not all(type(key) in PLAIN_KEYS for key in keys):
            raise Refused("an unusual dict")
        target.update(zip(keys, items[1::2], strict=True))

    def instance_of(self, kind: object) -> object:  # noqa: ARG002
        """A stand-in for a new instance."""
        raise Refused("an instance of something unknown")

    def _build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def build(self, target: object, state: object) -> None:  # noqa: ARG002
        """Set the state of a stand-in."""
        raise Refused("a state for something that has none")


class _Counted(dict[int, Any]):
    """The opcode table; refuses unknown opcodes and streams without end."""

    def __init__(self, reader: StrictUnpickler, handlers: dict[int, Any]) -> None:
        super().__init__(handlers)
        self._reader = reader

    def __getitem__(self, code: int) -> Any:
        self._reader.spend(1)
        if code not in self:
            raise Refused(f"the opcode {bytes([code])!r}")
        return super().__getitem__(code)
