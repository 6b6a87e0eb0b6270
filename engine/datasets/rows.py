"""Reads recordings that lie in rows of Parquet files."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from mkc_fast.errors import AudioError, MkcError
from mkc_fast.extras import required
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from mkc_fast.engine.datasets.dataset import Utterance

# Rows are read by row group, of 100 rows in the files of Hugging Face. As many as the memory for them holds are kept,
# since batches take utterances of similar lengths from several.
_MOST_BYTES = 1 << 29
_lock = threading.Lock()
_held: OrderedDict[tuple[str, int, int, int, str], Any] = OrderedDict()


def row_bytes(utterance: Utterance) -> bytes:
    """The encoded recording of an utterance that is a row of a Parquet file.

    Raises:
        AudioError: The file cannot be read, or the row has no recording.
    """
    assert utterance.row is not None
    group, row, column = utterance.row
    try:
        # One thread reads at a time: the others mostly wait for the same row group.
        with _lock:
            value = _column(str(utterance.file), group, column)[row]
        for name in column.split(".")[1:]:
            value = value[name]
        content = value.as_py()
    except MkcError as error:
        raise AudioError(f"{utterance.shown}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
        raise AudioError(f"{utterance.shown}: cannot be read ({one_line(str(error), 120)})") from None
    if not isinstance(content, bytes):
        raise AudioError(f"{utterance.shown}: the row has no recording")
    return content


def _column(path: str, group: int, column: str) -> Any:
    """A column of a row group, from memory if it was read not long ago."""
    with required("a Parquet file", "pyarrow"):
        from pyarrow import parquet

    facts = os.stat(path)  # noqa: PTH116 - as text, as utterances have it
    key = path, facts.st_mtime_ns, facts.st_size, group, column
    found = _held.get(key)
    if found is None:
        with parquet.ParquetFile(path) as file:
            found = file.read_row_group(group, columns=[column]).column(0)
        _held[key] = found
    _held.move_to_end(key)
    while len(_held) > 1 and sum(each.nbytes for each in _held.values()) > _MOST_BYTES:
        _held.popitem(last=False)
    return found
