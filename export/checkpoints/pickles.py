"""An unpickler for untrusted files: it imports nothing, calls only what it is given, and ends in bounded time.

A pickle can name any function and have it called. Here each name that a file has reason to hold maps to an inert
stand-in, every other name is refused, and opcodes that could reach further are not implemented. Work is counted in
steps, and no single step is long, so that Ctrl-C is heard within one.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

BLOCK_BYTES = 1 << 18
_SMALL_BYTES = 1 << 16  # a value of more may be passed over
_RESERVE_BYTES = 1 << 21  # of what may be held, for small values
_MAX_FRAME_BYTES = 1 << 20  # picklers end a frame at 64 KB, and put larger values outside
# Python's hash of a number is known to everybody, and equal for numbers that differ by a multiple of 2**61 - 1. Below
# this no two integers have one. Real ones are counters, or (in optimizers' states of old) addresses of 48 bits.
_MAX_NUMBER = 1 << 60
# Even distinct hashes can be chosen so that each key is tried at the places of all others, which takes 1 ns a place. So
# many places are one step, in a dict of numbers, and in one of texts, whose hashes are random unless PYTHONHASHSEED is
# set: a dict can have 22,000 numbers or 120,000 texts.
_PLACES = {True: 1 << 8, False: 1 << 13}
_MEMO_GAP = 1 << 10  # picklers count on from 0 or 1
_NOT_LATIN1 = re.compile(rb"[\xc4-\xff]")  # in UTF-8, the first byte of a character past U+00FF


class Refused(Exception):
    """Why a pickle was not read."""


class Stopped(Exception):
    """Reading was told to stop."""


def never() -> bool:
    """False: reading goes on to its end."""
    return False


class Skipped:
    """Stands in for a value that was passed over, since it is large and nothing here needs it."""

    def __init__(self, size: int | None) -> None:
        """Note its bytes, where they are known."""
        self.size = size


def encode_latin1(text: object = None, encoding: object = "latin1") -> bytes | Skipped:
    """What ``_codecs.encode`` does for bytes in pickles of protocol 2."""
    if encoding != "latin1" or not isinstance(text, (str, Skipped)):
        raise Refused("an unknown encoding")
    return text.encode("latin1") if isinstance(text, str) else Skipped(None)


class Source:
    """A file that never gives more than it holds, so that no length in a pickle asks for memory that is not there."""

    def __init__(
        self, file: BinaryIO, size: int, stopped: Callable[[], bool] = never, *, inflated_from: int | None = None
    ) -> None:
        """Prepare to read.

        Args:
            file: What to read.
            size: How many bytes of it at most.
            stopped: Asked between blocks; once true, ``Stopped`` is raised.
            inflated_from: Size of the compressed file, if this is one: then ``size`` is what that explains.
        """
        self._file = file
        self._left = size
        self._stopped = stopped
        self._inflated_from = inflated_from

    def read(self, count: int) -> bytes:
        if count < 0:
            raise EOFError
        self._take(count)
        if self._stopped():
            raise Stopped
        data = self._file.read(count)
        if len(data) != count:
            raise EOFError
        return data

    def blocks(self, count: int) -> Iterable[bytes]:
        """So many bytes, in blocks."""
        if count > self._left:
            self._take(count)
        while count > 0:
            block = self.read(min(count, BLOCK_BYTES))
            count -= len(block)
            yield block

    def _take(self, count: int) -> None:
        if count > self._left:
            if self._inflated_from is None:
                raise EOFError
            raise Refused(f"more data than {self._inflated_from} compressed bytes explain")
        self._left -= count

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 4096))
        if not line.endswith(b"\n"):
            raise EOFError
        self._take(len(line))
        return line

    def skip(self, count: int) -> None:
        """Pass over so many bytes."""
        if count < 0:
            raise EOFError
        if self._file.seekable():
            self._take(count)
            self._file.seek(count, io.SEEK_CUR)
        else:
            for _ in self.blocks(count):
                pass

    def drain(self) -> None:
        """Read what is left, which checks the sum at the end of a compressed file."""
        while block := self._file.read(BLOCK_BYTES):
            self._take(len(block))
            if self._stopped():
                raise Stopped


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
    max_steps: ClassVar[int] = 1_000_000  # of a checkpoint with its optimizer's state: some 300,000

    def __init__(
        self, source: Source, may_hold: int, *, skips: bool = False, stopped: Callable[[], bool] = never
    ) -> None:
        """Prepare to load.

        Args:
            source: The pickle.
            may_hold: Bytes of texts and the like that it may have in memory.
            skips: Pass over large values that would be more, instead of refusing them.
            stopped: Asked often; once true, ``Stopped`` is raised.
        """
        super().__init__(source, encoding="latin1")
        self.source = source
        self.steps = 0
        self.stopped = stopped
        self._may_hold = may_hold
        self._skips = skips
        codes = [getattr(pickle, name)[0] for name in self._OPCODES]
        handlers = {code: _Unpickler.dispatch[code] for code in codes}
        kind = type(self)
        own = {
            pickle.REDUCE: kind._reduce,
            pickle.NEWOBJ: kind._new,
            pickle.NEWOBJ_EX: kind._new_ex,
            pickle.BUILD: kind._build,
            pickle.FRAME: kind._frame,
            pickle.LONG4: kind._long4,
            pickle.STRING: kind._old_line,
            pickle.UNICODE: kind._line,
            pickle.BINSTRING: kind._old_text,
            pickle.BINBYTES: kind._bytes4,
            pickle.BINBYTES8: kind._bytes8,
            pickle.BYTEARRAY8: kind._bytes8,
            pickle.BINUNICODE: kind._text4,
            pickle.BINUNICODE8: kind._text8,
            pickle.PUT: kind._put,
            pickle.BINPUT: kind._put1,
            pickle.LONG_BINPUT: kind._put4,
            pickle.DICT: kind._dict,
            pickle.SETITEM: kind._set_item,
            pickle.SETITEMS: kind._set_items,
        }
        handlers.update({code[0]: handler for code, handler in own.items()})
        self.dispatch = _Counted(self, handlers)

    def spend(self, steps: int) -> None:
        """Count work done; a step is an opcode, or as long as one takes."""
        before, self.steps = self.steps, self.steps + steps
        if self.steps > self.max_steps:
            raise Refused("a stream without end")
        if before >> 8 != self.steps >> 8 and self.stopped():
            raise Stopped

    def hold(self, size: int) -> None:
        """Count memory taken."""
        self._may_hold -= size
        if self._may_hold < 0:
            raise Refused("more data in one place than it has reason to hold")

    def share(self, other: StrictUnpickler) -> None:
        """Go on with another's counts."""
        self.steps, self._may_hold = other.steps, other._may_hold

    def find_class(self, module: str, name: str) -> object:
        found = self.names.get((module, name))
        if found is None:
            raise Refused(printable(f"{module}.{name}"))
        return found

    def persistent_load(self, pid: object) -> object:  # noqa: ARG002
        raise Refused("a reference to something outside")

    # Values

    def _value(self, size: int, copies: int = 1) -> bytes | None:
        """So many bytes, or None for a large value that is passed over; ``copies`` of it may be made."""
        framed = self._unframer.current_frame is not None
        if self._skips and not framed and size > _SMALL_BYTES and size * copies > self._may_hold - _RESERVE_BYTES:
            self.source.skip(size)
            return None
        self.hold(size)
        data: bytes = self.read(size)
        return data

    def _frame(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > _MAX_FRAME_BYTES:
            raise Refused("a frame of unusual size")
        self._unframer.load_frame(size)

    def _long4(self) -> None:
        size = struct.unpack("<i", self.read(4))[0]
        if not 0 <= size <= _SMALL_BYTES:
            raise Refused("a number of unusual size")
        self.stack.append(pickle.decode_long(self.read(size)))

    def _push_bytes(self, size: int) -> None:
        data = self._value(size)
        self.stack.append(Skipped(size) if data is None else data)

    def _push_text(self, size: int) -> None:
        data = self._value(size, copies=2)
        if data is None:
            self.stack.append(Skipped(None))
            return
        if _NOT_LATIN1.search(data):  # then Python takes up to four bytes a character
            self.hold(3 * size)
        self.stack.append(str(data, "utf-8", "surrogatepass"))

    def _line(self) -> None:
        _Unpickler.load_unicode(self)
        self.hold(len(self.stack[-1]) * (1 if self.stack[-1].isascii() else 4))

    def _old_line(self) -> None:
        _Unpickler.load_string(self)
        self.hold(len(self.stack[-1]))

    def _old_text(self) -> None:
        size = struct.unpack("<i", self.read(4))[0]
        data = self._value(size, copies=2)
        self.stack.append(Skipped(size) if data is None else str(data, "latin1"))

    def _bytes4(self) -> None:
        self._push_bytes(int.from_bytes(self.read(4), "little"))

    def _bytes8(self) -> None:
        self._push_bytes(int.from_bytes(self.read(8), "little"))

    def _text4(self) -> None:
        self._push_text(int.from_bytes(self.read(4), "little"))

    def _text8(self) -> None:
        self._push_text(int.from_bytes(self.read(8), "little"))

    # The memo, a dict whose keys the file chooses

    def _put(self) -> None:
        self._remember(int(self.readline()[:-1]))

    def _put1(self) -> None:
        self._remember(self.read(1)[0])

    def _put4(self) -> None:
        self._remember(int.from_bytes(self.read(4), "little"))

    def _remember(self, place: int) -> None:
        if not 0 <= place <= len(self.memo) + _MEMO_GAP:
            raise Refused("a memo that no pickler counts so")
        self.memo[place] = self.stack[-1]

    # Calls and instances

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(arguments, tuple):
            raise Refused("a call without arguments")
        if not any(function is known for known in self.functions):
            raise Refused("a call of something that is no function")
        self._weigh(arguments)
        self.stack[-1] = function(*arguments)

    def _weigh(self, value: object, depth: int = 4) -> None:
        """Count what a call may do with an argument, which can be used again and again, and copied each time."""
        if isinstance(value, str):
            self.spend(len(value) >> 8)
            if len(value) > _SMALL_BYTES:
                self.hold(len(value))
        elif isinstance(value, (tuple, list, dict)) and depth:
            self.spend(len(value) >> 3)
            if not isinstance(value, tuple):  # a set or dict may be made of it
                numbers = any(type(key) is not str for key in value)
                self.spend(len(value) ** 2 // _PLACES[numbers])
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, (str, tuple, list, dict)):
                    self._weigh(item, depth - 1)

    def _new(self) -> None:
        self.stack.pop()  # arguments, which no class here takes
        self.stack.append(self.instance_of(self.stack.pop()))

    def _new_ex(self) -> None:
        self.stack.pop()
        self._new()

    def instance_of(self, kind: object) -> object:  # noqa: ARG002
        """A stand-in for a new instance."""
        raise Refused("an instance of something unknown")

    def _build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def build(self, target: object, state: object) -> None:  # noqa: ARG002
        """Set the state of a stand-in."""
        raise Refused("a state for something that has none")

    # Dicts

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
        if type(target) is not dict or len(items) % 2:
            raise Refused("an unusual dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            self.spend(len(target) // _PLACES[type(key) is not str])
            target[key] = value


def check_key(key: object) -> None:
    """Refuse what a dict or set of plain data has no reason to hold; a tuple may take for ever to hash.

    Raises:
        Refused: It is of another type than text, bytes, number or None, or a number too large.
    """
    kind = type(key)
    if kind is str or kind is bool or kind is bytes or key is None:
        return
    if (kind is int or (kind is float and math.isfinite(key))) and -_MAX_NUMBER < key < _MAX_NUMBER:  # type: ignore[arg-type, operator]
        return
    raise Refused("an unusual key of a dict")


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
