"""Datasets of Hugging Face in local files, Parquet or Arrow: rows are utterances, and the output is Parquet.

Only pyarrow is imported, never ``datasets`` or ``huggingface_hub``, so that nothing can ask the hub for anything.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.grouped import GroupedDataset, SourceFile
from mkc_fast.engine.datasets.lines import check_id
from mkc_fast.engine.draws import speaker_draw
from mkc_fast.errors import ListError, OutputError
from mkc_fast.extras import required
from mkc_fast.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

AUDIO_COLUMN, SPEAKER_COLUMN = "audio", "speaker_id"
_SUFFIXES = frozenset({".parquet", ".arrow"})
_ROWS_AT_ONCE = 100  # as Hugging Face groups rows with audio
# A row group is read as a whole.
_MOST_GROUP_BYTES = 1 << 31
_MAX_JSON = 1 << 26
_HUGGING_FACE = b"huggingface"


@dataclass(frozen=True)
class Columns:
    """What tables have in which column.

    Attributes:
        audio: Recordings. Default: the column with the Audio feature, else ``audio``.
        id: Utterance ids. Default: the file's name and the row's number are the id.
        speaker: Speakers.
    """

    audio: str | None = None
    id: str | None = None
    speaker: str = SPEAKER_COLUMN


@dataclass(frozen=True)
class Table(GroupedDataset[SourceFile]):
    """Local files of a dataset of Hugging Face: each gets a Parquet file of its name in ``out``.

    The manifest of the run is in a hidden folder: ``load_dataset`` would take it for data.

    Attributes:
        column: The column with the recordings.
    """

    column: str = AUDIO_COLUMN

    def name(self, group: int) -> str:
        """The name of its output."""
        return self.sources[group].name

    def files(self, group: int) -> Sequence[Path]:
        """Its output."""
        return [self.out / self.sources[group].name]

    def complete(self, group: int, outputs: Mapping[str, Path]) -> None:
        """Write the rows of a file with the anonymized recordings; all other columns are kept."""
        source = self.sources[group]
        (target,) = self.files(group)
        try:
            with atomic_file(target) as temporary:
                _write(source, self.column, self.of_group(group), outputs, temporary)
        except OSError as error:
            raise OutputError(f"{target}: cannot be read or written ({error.strerror or error})") from None
        except (ValueError, LookupError, TypeError, ListError) as error:
            raise OutputError(
                f"{source.path}: changed during the run, or cannot be written as Parquet ({one_line(str(error), 120)})"
            ) from None


def is_table(text: str) -> bool:
    """Whether an input is a dataset: a Parquet or Arrow file, or a folder that holds some or was saved to disk."""
    path = Path(text)
    if not path.is_dir():
        return path.suffix in _SUFFIXES
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return True
    return any(True for pattern in ("*.parquet", "*/*.parquet") for _ in path.glob(pattern))


def read_table(paths: Sequence[Path], out: Path, columns: Columns, *, by_speaker: bool = False) -> Table:
    """Read local files of a dataset: Parquet, or what ``save_to_disk`` has written. Nothing is written.

    A recording is the ``bytes`` of an Audio feature, a file that its ``path`` names, or a binary value. Parquet files
    are read by row group; of Arrow files only the recordings that are asked for are read.

    Args:
        paths: Files, or folders, which are searched for ``.parquet`` files.
        out: The output folder.
        columns: What they have in which column.
        by_speaker: The rows of a speaker share their draws.

    Raises:
        ListError: A file is unreadable or has no such column or other columns with audio, there are no rows, or an id
            is there twice or cannot name a file.
        MkcError: pyarrow is missing.
    """
    with required("a dataset in Parquet or Arrow files", "pyarrow"):
        import pyarrow as pa
    utterances: list[Utterance] = []
    sources: list[SourceFile] = []
    ids: set[str] = set()
    names: set[str] = set()
    used = first = ""
    for path, below in _files(paths):
        name = str(Path(below).with_suffix(".parquet"))
        if name in names:
            raise ListError(f"{path}: another file of the dataset has this name, too")
        names.add(name)
        begin = len(utterances)
        try:
            used = _audio_column(path, _schema(path), columns.audio)
            if first and used != first:
                raise ListError(f"{path}: its recordings are in the column {used}, those of other files in {first}")
            first = used
            rows = _sources(path, used)
            labels = _values(path, columns.id) if columns.id is not None else None
            speakers = _values(path, columns.speaker) if by_speaker else None
            for number, source in enumerate(rows):
                where = f"{path}, row {number}"
                label = f"{below.rpartition('.')[0]}/{number:06d}" if labels is None else str(next(labels))
                check_id(label, where)
                if label in ids:
                    raise ListError(f"{where}: the id '{printable(label)}' is there twice")
                ids.add(label)
                draw_id = None
                if speakers is not None and (draw_id := next(speakers)) is None:
                    raise ListError(f"{where}: has no {columns.speaker}; the level speaker needs it")
                utterances.append(
                    replace(source, id=label, draw_id=None if draw_id is None else speaker_draw(str(draw_id)))
                )
        except (ListError, OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
            if isinstance(error, ListError):
                raise error if str(error).startswith(str(path)) else ListError(f"{path}: {error}") from None
            reason = getattr(error, "strerror", None) or str(error)
            raise ListError(f"{path}: cannot be read ({one_line(reason, 120)})") from None
        sources.append(SourceFile(path, name, begin, len(utterances)))
    if not utterances:
        raise ListError(f"{paths[0] if paths else out}: holds no rows in .parquet files or in what save_to_disk writes")
    return Table(utterances, out, sources, used)


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The files of a dataset, and the path of each below the folder that was given."""
    for path in paths:
        if path.is_dir():
            yield from _files_of(path, "")
        elif not path.is_file():
            raise ListError(f"{path}: no such file")
        elif path.suffix not in _SUFFIXES:
            raise ListError(f"{path}: expected a .parquet or .arrow file, or a folder of them")
        else:
            yield path, path.name


def _files_of(folder: Path, below: str) -> Iterator[tuple[Path, str]]:
    if (folder / "dataset_dict.json").is_file():
        for split in _json(folder / "dataset_dict.json").get("splits") or []:
            check_id(str(split), str(folder / "dataset_dict.json"))
            yield from _files_of(folder / str(split), f"{below}{split}/")
    elif (folder / "state.json").is_file():
        state = _json(folder / "state.json")
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise ListError(f"{folder}: has an order of its own; flatten_indices() and save_to_disk() apply it")
        for each in state.get("_data_files") or []:
            name = str(each.get("filename")) if isinstance(each, dict) else ""
            check_id(name, str(folder / "state.json"))
            yield folder / name, below + name
    else:
        found = sorted(each for each in folder.rglob("*.parquet") if each.is_file())
        for each in found:
            inside = each.relative_to(folder)
            if not any(part.startswith(".") for part in inside.parts):
                yield each, below + str(inside)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ListError(f"{path}: cannot be read as JSON")
    return said


def _schema(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    if path.suffix == ".parquet":
        return parquet.read_schema(path)
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        return stream.schema


def _features(schema: Any) -> dict[str, Any]:
    """The features of Hugging Face, by column, as far as the file tells them."""
    try:
        said = json.loads((schema.metadata or {}).get(_HUGGING_FACE, b"{}"))
        features = said["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _audio_column(path: Path, schema: Any, asked: str | None) -> str:
    """The column with the recordings."""
    heard = [
        name
        for name, feature in _features(schema).items()
        if isinstance(feature, dict) and feature.get("_type") in {"Audio", "Video"}
    ]
    column = asked or (heard[0] if len(heard) == 1 else AUDIO_COLUMN)
    columns = ", ".join(schema.names)
    if column not in schema.names:
        raise ListError(f"{path}: has no column {printable(column)}; it has {printable(columns, 200)}")
    others = [name for name in heard if name != column]
    if others:
        raise ListError(
            f"{path}: the column {printable(others[0])} has audio, too, which would stay as it is; remove it first, as "
            "with remove_columns"
        )
    _leaf(schema, column)
    return column


def _leaf(schema: Any, column: str) -> str:
    """The part of a column that has the recordings: ``audio.bytes`` of an Audio feature."""
    import pyarrow as pa

    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{column}.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column
    raise ListError(f"the column {printable(column)} is {printable(str(kind), 80)}; expected bytes, or bytes and path")


def _sources(path: Path, column: str) -> Iterator[Utterance]:
    """Each row as an utterance without its id."""
    if path.suffix == ".arrow":
        yield from _arrow_sources(path, column)
        return
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        leaf = _leaf(file.schema_arrow, column)
        facts = file.metadata
        for group in range(facts.num_row_groups):
            of_group = facts.row_group(group)
            chunks = [of_group.column(number) for number in range(of_group.num_columns)]
            chunk = next(each for each in chunks if each.path_in_schema == leaf)
            if chunk.total_uncompressed_size > _MOST_GROUP_BYTES:
                raise ListError(
                    f"a row group has {chunk.total_uncompressed_size >> 30} GiB of recordings; write the file again "
                    f"with row groups of {_ROWS_AT_ONCE} rows"
                )
            nulls = chunk.statistics.null_count if chunk.statistics is not None else None
            files: list[str | None] = [None] * of_group.num_rows
            if nulls and leaf != column:
                files = _named_files(file.read_row_group(group, columns=[column]).column(0))
            for row, name in enumerate(files):
                if name is None:
                    yield Utterance("", str(path), row=(group, row, leaf))
                else:
                    yield Utterance("", _beside(path, name))


def _named_files(column: Any) -> list[str | None]:
    """For each row the file that it names, where it has no bytes."""
    found: list[str | None] = []
    for value in column:
        said = value.as_py() if value.is_valid else {}
        name = said.get("path")
        found.append(name if said.get("bytes") is None and isinstance(name, str) else None)
    return found


def _beside(path: Path, name: str) -> str:
    """A file that a row names: against the working directory, else beside the file with the row."""
    if "://" in name or "::" in name:
        raise ListError(f"the path {printable(name)} is an address; only local files are read")
    return name if os.path.isabs(name) or os.path.exists(name) else str(path.parent / name)  # noqa: PTH110, PTH117


def _arrow_sources(path: Path, column: str) -> Iterator[Utterance]:
    """The values of an Arrow file lie in it as they are, so that a recording is a part of the file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        begin = whole.address
        for batch in pa.ipc.open_stream(whole):
            field = batch.schema.get_field_index(column)
            values = batch.column(field)
            leaf = _leaf(batch.schema, column)
            names: list[str | None] = [None] * batch.num_rows
            if leaf != column:
                if values.field("bytes").null_count:
                    names = _named_files(values)
                values = values.field("bytes")
            _, ends, data = values.buffers()
            wide = pa.types.is_large_binary(values.type)
            offsets = np.frombuffer(ends, np.int64 if wide else np.int32, offset=0)[values.offset :]
            first = 0 if data is None else data.address - begin
            if data is not None and not 0 <= first <= len(whole) - len(data):
                raise ListError("its values are compressed; write it as Parquet")
            for row, name in enumerate(names):
                start, end = int(offsets[row]), int(offsets[row + 1])
                if name is not None:
                    yield Utterance("", _beside(path, name))
                elif not 0 <= start <= end or first + end > len(whole):
                    raise ListError("damaged")
                else:
                    yield Utterance("", str(path), span=(first + start, end - start))


def _values(path: Path, column: str) -> Iterator[Any]:
    """The values of a column, row by row."""
    names = _schema(path).names
    if column not in names:
        raise ListError(f"has no column {printable(column)}; it has {printable(', '.join(names), 200)}")
    for batch in _batches(path, [column]):
        yield from batch.column(0).to_pylist()


def _batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """The rows of a file, a few at a time, of these columns or parts of columns."""
    import pyarrow as pa
    from pyarrow import parquet

    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(_ROWS_AT_ONCE, columns=list(columns), use_threads=False)
        return
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
        for batch in stream:
            for begin in range(0, batch.num_rows, _ROWS_AT_ONCE):
                rows = batch.slice(begin, _ROWS_AT_ONCE)
                yield rows.select([name.partition(".")[0] for name in columns])


def _write(
    source: SourceFile, column: str, utterances: Sequence[Utterance], outputs: Mapping[str, Path], target: Path
) -> None:
    """Write a file's rows with other recordings."""
    import pyarrow as pa
    from pyarrow import parquet

    assert isinstance(source.path, Path)
    schema = _schema(source.path)
    struct = _leaf(schema, column) != column
    others = [name for name in schema.names if name != column]
    asked = [
        *others,
        *([f"{column}.path"] if struct and schema.field(column).type.get_field_index("path") >= 0 else []),
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    fields = [pa.field(column, kind) if name == column else schema.field(name) for name in schema.names]
    made = pa.schema(fields, metadata=_metadata(schema, column))
    compression = dict.fromkeys(others, "snappy") | {f"{column}.bytes" if struct else column: "none"}
    done = 0
    with parquet.ParquetWriter(target, made, compression=compression, use_dictionary=others) as writer:
        for batch in _batches(source.path, asked) if asked else _counted(len(utterances)):
            rows = utterances[done : done + batch.num_rows]
            if len(rows) != batch.num_rows:
                raise ValueError("it has more rows")
            done += len(rows)
            said = batch.column(batch.schema.get_field_index(column)).to_pylist() if len(asked) > len(others) else []
            names = [(each or {}).get("path") for each in said] or [None] * len(rows)
            values: list[Any] = []
            for utterance, name in zip(rows, names, strict=True):
                output = outputs[utterance.id]
                content = output.read_bytes()
                shown = os.path.splitext(os.path.basename(name or utterance.id))[0] + output.suffix  # noqa: PTH119, PTH122
                values.append({"bytes": content, "path": shown} if struct else content)
            columns = {name: batch.column(batch.schema.get_field_index(name)) for name in others}
            columns[column] = pa.array(values, kind)
            writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=made))
    if done != len(utterances):
        raise ValueError("it has fewer rows")


def _counted(rows: int) -> Iterator[Any]:
    """As many rows, without columns."""
    import pyarrow as pa

    for begin in range(0, rows, _ROWS_AT_ONCE):
        yield pa.record_batch([pa.nulls(min(_ROWS_AT_ONCE, rows - begin))], names=["none"])


def _metadata(schema: Any, column: str) -> dict[bytes, bytes]:
    """What the file says of itself: its features, with the rate of the outputs."""
    kept = {name: value for name, value in (schema.metadata or {}).items() if name != _HUGGING_FACE}
    features = _features(schema)
    if features:
        feature = features.get(column)
        if isinstance(feature, dict) and feature.get("sampling_rate") is not None:
            features[column] = {**feature, "sampling_rate": 16_000}
        kept[_HUGGING_FACE] = json.dumps({"info": {"features": features}}).encode()
    return kept
