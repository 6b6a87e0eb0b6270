"""Loads ``torch.save`` files of tensors and plain data, without executing anything in them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import torch

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.pickles import Refused, Source, StrictUnpickler, check_key, encode_latin1
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

# Of the pickle that says what tensors there are: 0.1 MB for WavLM Large.
_MAX_PICKLE_BYTES = 1 << 26
# Of the list of an archive's files, 0.04 MB for WavLM Large; and of one that holds neither the pickle nor weights, such
# as a version's number.
_MAX_DIRECTORY_BYTES = 1 << 22
_MAX_NOTE_BYTES = 1 << 16


def load_torch(path: Path) -> dict[str, Any]:
    """Load a ``torch.save`` file with ``weights_only=True``.

    Raises:
        CheckpointError: The file is missing, empty, damaged, no dict, or holds objects beyond tensors and plain data.
    """
    if not is_file(path):
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        with path.open("rb") as file:
            _check_pickles(path, file, size)
            file.seek(0)
            zipped = file.read(4) == _ZIP_MAGIC
        # Mapped rather than read: of WavLM Large's 24 layers only the first 6 are ever touched.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Refused as refused:
        raise CheckpointError(
            f"{path}: refused: it needs {refused}, and only tensors and plain data are loaded"
        ) from None
    except EOFError:
        raise CheckpointError(f"{path}: truncated or damaged") from None
    except pickle.UnpicklingError:  # torch's text advises to load it unsafely
        raise CheckpointError(f"{path}: not a checkpoint of tensors and plain data alone") from None
    except MemoryError:
        raise CheckpointError(f"{path}: refused: it asks for more memory than there is") from None
    except Exception as error:  # torch raises many types on damaged files, and none may become a traceback
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({first_line(error)})") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a dict, found {type(loaded).__name__}")
    return loaded


def is_file(path: Path) -> bool:
    """Whether there is a regular file; also False for a path that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def first_line(error: Exception) -> str:
    """The first line of an error's text, printable; its type if it has no text."""
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__)


class _Opaque:
    """Stands in for a tensor, a storage, a dtype and the like."""

    def __init__(self, *_: object) -> None:
        pass


def _make_container(items: object = None) -> dict[Any, Any] | list[Any]:
    """What ``OrderedDict()``, ``Counter({...})`` and ``set([...])`` make, nearly."""
    if items is None:
        return {}
    if type(items) is not dict and type(items) is not list:
        raise Refused("an unusual container")
    for key in items:
        check_key(key)
    return items


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Opaque,
    ("torch._utils", "_rebuild_tensor"): _Opaque,
    ("torch._utils", "_rebuild_parameter"): _Opaque,
    ("torch._utils", "_rebuild_parameter_with_state"): _Opaque,
    ("torch._tensor", "_rebuild_from_type_v2"): _Opaque,
    ("torch", "Size"): _Opaque,
    ("torch", "device"): _Opaque,
    ("collections", "OrderedDict"): _make_container,
    ("collections", "Counter"): _make_container,
    **{(module, "set"): _make_container for module in ("builtins", "__builtin__")},
    ("_codecs", "encode"): encode_latin1,
}
# Named by tensors of a class of their own; to call them is to ask for memory that nothing is stored in.
_CLASSES = (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"))
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class _CheckpointUnpickler(StrictUnpickler):
    """Walks through a checkpoint's pickle without making a tensor, and refuses what no state dict needs.

    ``torch.load`` with ``weights_only=True`` executes nothing either, but a few bytes have it fill the memory
    (``bytearray(10**12)``), never end (the hash of a tuple that holds itself twice, 50 levels deep; keys that collide)
    or, before 2.10, write where it must not (CVE-2026-24747).
    """

    names: ClassVar[Mapping[tuple[str, str], object]] = {
        **_FUNCTIONS,
        **{name: _Opaque() for name in _CLASSES},
        **{("torch", f"{storage}Storage"): _Opaque() for storage in _STORAGES},
        **{("torch", dtype): _Opaque() for dtype in _DTYPES},
    }
    functions: ClassVar[Collection[object]] = _FUNCTIONS.values()

    def __init__(self, source: Source, max_elements: int) -> None:
        super().__init__(source, _MAX_PICKLE_BYTES)
        self.dispatch[pickle.BINPERSID[0]] = type(self)._persistent
        self.elements: dict[str, int] = {}
        self.elements_left = max_elements

    def _persistent(self) -> None:
        """Take ``("storage", type, key, location, number of elements)``; old files add a None."""
        reference = self.stack.pop()
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
            raise Refused("a reference to something outside")
        key, count = reference[2], reference[4]
        if type(key) is not str or type(count) is not int or reference[5:] not in ((), (None,)):
            raise Refused("a storage of unknown form")
        if self.elements.get(key, count) != count:
            raise Refused("a storage of two sizes")
        if key not in self.elements:
            self.elements[key] = count
            self.elements_left -= count
        if count < 0 or self.elements_left < 0:
            raise Refused("more weights than the file holds")
        self.stack.append(_Opaque())

    def build(self, target: object, state: object) -> None:
        # Anything else in the state of an OrderedDict would take the place of its methods.
        if not (isinstance(target, dict) and isinstance(state, dict) and state.keys() <= {"_metadata"}):
            super().build(target, state)


_ZIP_MAGIC = b"PK\x03\x04"
_FOREIGN = "torch.save did not write it"


def _check_pickles(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a checkpoint that ``torch.load`` should not be given."""
    if file.read(4) == _ZIP_MAGIC:
        # Read before anything is made of it: an archive may list a million files in a few bytes each.
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end is None:
            raise ValueError(_FOREIGN)
        if end[5] > _MAX_DIRECTORY_BYTES:
            raise Refused("an archive of more files than weights need")
        entries = zipfile.ZipFile(file).infolist()
        # torch.save compresses nothing, and what is looked at here must be what torch.load reads.
        if len({entry.filename.lower() for entry in entries}) < len(entries) or any(e.compress_type for e in entries):
            raise Refused("an archive that torch.save would not write")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        notes = (e for e in entries if not e.filename.endswith("data.pkl") and "/data/" not in e.filename)
        if any(note.file_size > _MAX_NOTE_BYTES for note in notes):  # torch.load reads some of them whole
            raise Refused("an archive that torch.save would not write")
        if not pickles:
            raise ValueError(_FOREIGN)
        # torch.load finds the pickle with a reader of its own, which must mean the same bytes.
        reader: Any = torch._C.PyTorchFileReader(str(path))  # whose methods are not all in its type
        meant = reader.get_record_offset("data.pkl"), reader.get_record_size("data.pkl")
        found = []
        for entry in pickles:
            file.seek(entry.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
            found.append((file.tell(), entry.file_size))
            _CheckpointUnpickler(Source(file, min(entry.file_size, _MAX_PICKLE_BYTES)), size).load()
        if meant not in found:
            raise Refused("an archive that two readers take for two")
        return
    # Before 1.6, torch.save wrote five pickles in a row, then the weights: a number, two of versions, the checkpoint
    # and the order of its storages.
    file.seek(0)
    source = Source(file, size)
    magic = _CheckpointUnpickler(source, size).load()
    if magic != torch.serialization.MAGIC_NUMBER:
        raise ValueError(_FOREIGN)
    *_, keys = (_CheckpointUnpickler(source, size).load() for _ in range(4))
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise Refused("storages of unknown form")
