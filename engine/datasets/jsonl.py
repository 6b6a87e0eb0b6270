"""JSONL manifests as NeMo has them: ``audio_filepath``, ``duration`` and ``offset`` a line, and any other fields."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.durations import lengths_of
from mkc_fast.engine.datasets.kinds import ending_of, sound
from mkc_fast.engine.datasets.lines import OWN_FOLDER, PathResolver, check_id, check_regular, numbered_lines
from mkc_fast.engine.storage.addresses import Address, is_address
from mkc_fast.engine.storage.reading import object_size, opened_place
from mkc_fast.errors import ListError, OutputError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mkc_fast.engine.datasets.shards import Shard
    from mkc_fast.engine.storage.addresses import Place

_logger = logging.getLogger("mkc_fast")
AUDIO_FOLDER = "audio"
# NeMo's names of the path, then that of the metadata beside folders of audio on the Hugging Face Hub.
_PATHS = ("audio_filepath", "audio_filename", "audio_file", "file_name")
_SPEAKERS = ("speaker", "speaker_id", "spk_id")
# A line may hold an embedding, but no recording.
_MOST_LINE_BYTES = 1 << 24


@dataclass(frozen=True)
class _Source:
    """A manifest that was read.

    Attributes:
        path: Where it is: a file or an object.
        state: Its size and time, by which a change is noticed.
        lines: The position in ``utterances`` that each of its lines is about; several lines may be about one.
    """

    path: Place
    state: tuple[int, int]
    lines: array[int]


@dataclass(frozen=True)
class JsonlManifests:
    """The recordings of JSONL manifests, and manifests of their outputs: a ``Dataset``.

    Attributes:
        utterances: Each recording, or part of one, once; several lines may be about it.
        out: The output folder: the manifests by their names, and the folder ``audio``.
        sources: The manifests; none where this is a part of the corpus.
        remote: The address of the output folder, if it is at one; ``out`` is a working folder then.
    """

    utterances: list[Utterance]
    out: Path
    sources: tuple[_Source, ...] = ()
    remote: Address | None = None

    @property
    def audio_dir(self) -> Path:
        """The folder ``audio`` in ``out``."""
        return self.out / AUDIO_FOLDER

    @property
    def record_dir(self) -> Path:
        """A hidden folder in ``out``: the manifests there have names of their own."""
        return self.out / OWN_FOLDER

    @property
    def described(self) -> bool:
        """Yes."""
        return True

    @property
    def groups(self) -> None:
        """None: each output stays a file of its own."""
        return None

    def part(self, shard: Shard) -> JsonlManifests:
        """The utterances of a shard; ``merge`` writes the manifests."""
        return JsonlManifests([each for each in self.utterances if shard.holds(each.id)], shard.folder(self.out))

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Write the manifests of the outputs, each under the name of its source: see ``_rewritten``."""
        if not self.sources:
            return
        lengths = lengths_of({name: self._place_of(path, name) for name, path in outputs.items()})
        for source in self.sources:
            if _state(source.path) != source.state:
                raise OutputError(f"{source.path}: was changed during the run; run the same command again")
            target = self.out / source.path.name
            try:
                with atomic_file(target) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
                    for position, (_, line) in zip(source.lines, _lines(source.path), strict=True):
                        utterance = self.utterances[position]
                        path = outputs[utterance.id]
                        place, length = self._place_of(path, utterance.id), lengths.get(utterance.id)
                        file.write(_rewritten(line, place, _below(path, utterance.id), length) + "\n")
            except OSError as error:
                raise OutputError(f"{target}: cannot be written ({error.strerror})") from None

    def _place_of(self, output: Path, utterance_id: str) -> Place:
        """Where an output is, which the run names by a path in ``out``."""
        return output if self.remote is None else self.remote / _below(output, utterance_id)

    def unfinish(self) -> None:
        """Remove the manifests of the outputs: without them, nothing is trained on a part."""
        for source in self.sources:
            target = self.out / source.path.name
            try:
                target.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{target}: cannot be removed ({error.strerror})") from None


def read_manifests(
    paths: Sequence[Place], out: Path, remote: Address | None = None
) -> tuple[JsonlManifests, dict[str, str]]:
    """Read manifests, all of whose outputs go into one folder.

    A line is an object with ``audio_filepath``, and perhaps ``duration`` and ``offset`` in seconds: without an offset
    the recording is read from its beginning, without a duration to its end, as NeMo does. Relative paths are against
    the working directory, else against the manifest's folder. An id is the path below the folder that all recordings
    share, without its ending; with an ``offset``, begin and end follow it in milliseconds. Lines with the same
    recording, offset and duration share an output.

    Args:
        paths: The manifests, files or objects; their names differ.
        out: The output folder.
        remote: Its address, if it is at one.

    Returns:
        The dataset, and the speaker of each utterance whose line has one.

    Raises:
        ListError: A manifest is unreadable or empty, a line has another form, two recordings would have one output, or
            two manifests have one name.
        OutputError: A manifest would be replaced.
    """
    by_name: dict[str, Place] = {}
    for path in paths:
        if by_name.setdefault(path.name, path) is not path:
            raise ListError(f"{path} and {by_name[path.name]}: would have one name in the output folder")
        if path == (remote and remote / path.name):
            raise OutputError(f"{path}: is in the output folder, and would be replaced; choose another")
        with contextlib.suppress(OSError):
            if isinstance(path, Path) and (out / path.name).samefile(path):
                raise OutputError(f"{path}: is in the output folder, and would be replaced; choose another")
    files: dict[str, str] = {}  # each path once: many lines may name it
    keys: dict[tuple[str, float, float | None, bool], int] = {}
    first: list[tuple[Place, int]] = []
    spoken: dict[int, str] = {}
    sources = []
    kept: dict[str, str] = {}
    for path in paths:
        state, lines, resolver = _state(path), array("Q"), PathResolver(path)
        for number, line in _lines(path):
            entry = _parsed(line, path, number)
            where = f"{path}, line {number}"
            text = os.path.expanduser(_text_of(entry, where))  # noqa: PTH111
            file = resolver.resolve(text)
            file = file if is_address(file) else os.path.abspath(file)  # noqa: PTH100
            file = files.setdefault(file, file)
            begin_s, end_s, is_part = _bounds(entry, where)
            position = keys.setdefault((file, begin_s, end_s, is_part), len(keys))
            if position == len(first):
                first.append((path, number))
            speaker = next((entry[name] for name in _SPEAKERS if name in entry), None)
            if speaker is not None and spoken.setdefault(position, str(speaker)) != str(speaker):
                raise ListError(f"{where}: the recording has another speaker above")
            for name in entry.keys() - kept.keys():
                value = entry[name]
                if name not in _PATHS and isinstance(value, str) and ending_of(value) in sound():
                    kept[name] = value
            lines.append(position)
        if not lines:
            raise ListError(f"{path}: the manifest is empty")
        sources.append(_Source(path, state, lines))
    for name, value in kept.items():
        _logger.warning(
            "the field %r is copied, and may name a recording that is not anonymized: %s",
            printable(name),
            printable(value, 100),
        )
    utterances, speakers = _named(keys, first, spoken)
    return JsonlManifests(utterances, out, tuple(sources), remote), speakers


def _named(
    keys: Mapping[tuple[str, float, float | None, bool], int],
    first: Sequence[tuple[Place, int]],
    spoken: Mapping[int, str],
) -> tuple[list[Utterance], dict[str, str]]:
    """The utterances by the paths below the folder that all share, and their speakers by id."""
    folders = {os.path.dirname(_below_root(file)) for file, *_ in keys}  # noqa: PTH120
    root = os.path.commonpath(folders) if folders else ""
    cut = len(root.rstrip("/")) + 1
    utterances, ids = [], dict[str, int]()
    for (file, begin_s, end_s, is_part), position in keys.items():
        name = os.path.splitext(_below_root(file)[cut:])[0]  # noqa: PTH122
        if is_part:
            end = "end" if end_s is None else f"{round(1000 * end_s):07d}"
            name = f"{name}-{round(1000 * begin_s):07d}-{end}"
        path, number = first[position]
        check_id(name, f"{path}, line {number}")
        earlier = ids.setdefault(name, position)
        if earlier != position:
            above, line = first[earlier]
            raise ListError(
                f"{path}, line {number}: would have the same output as line {line} of {above}, {printable(name)}; "
                "rename one of the recordings, or give the lines an 'offset'"
            )
        utterances.append(Utterance(name, file, begin_s, end_s))
    return utterances, {utterances[position].id: speaker for position, speaker in spoken.items()}


def _below_root(file: str) -> str:
    """An absolute path as it is; ``/s3/bucket/key`` of the address ``s3://bucket/key``."""
    return f"/{file.replace('://', '/', 1)}" if is_address(file) else file


def _lines(path: Place) -> Iterator[tuple[int, str]]:
    """The lines of a manifest with their numbers, without blank ones.

    Raises:
        ListError: It cannot be read, or a line is too long.
    """
    try:
        if isinstance(path, Path):
            check_regular(path)
        with opened_place(path, ListError) as file:
            for number, line in numbered_lines(file, str(path), _MOST_LINE_BYTES, "too long for a line of a manifest"):
                try:
                    # The first may begin with a byte order mark.
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    raise ListError(f"{path}, line {number}: not UTF-8") from None
                if text:
                    yield number, text
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror})") from None


def _state(path: Place) -> tuple[int, int]:
    """A file's size and time; of an object the size alone."""
    if isinstance(path, Address):
        return object_size(path.url, ListError), 0
    try:
        found = path.stat()
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_size, found.st_mtime_ns


def _parsed(line: str, path: Place, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise ListError(f"{path}, line {number}: expected an object of JSON, found {printable(line, 80)}")
    return entry


def _text_of(entry: Mapping[str, Any], where: str) -> str:
    """The path of a line."""
    value = next((entry[name] for name in _PATHS if name in entry), None)
    if not isinstance(value, str) or not value or "\0" in value:
        found = "none" if value is None else printable(repr(value), 80)
        raise ListError(f"{where}: expected the path of a recording in 'audio_filepath', found {found}")
    return value


def _bounds(entry: Mapping[str, Any], where: str) -> tuple[float, float | None, bool]:
    """Begin and end of a line's part of its recording, in seconds; and whether it says that it is a part."""
    offset, duration = entry.get("offset"), entry.get("duration")
    for name, value in (("offset", offset), ("duration", duration)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < math.inf):
            raise ListError(f"{where}: {name} is {printable(repr(value), 40)}; expected seconds from 0 up")
    if duration is not None and not duration:
        raise ListError(f"{where}: duration is 0")
    begin_s = float(offset or 0.0)
    return begin_s, None if duration is None else begin_s + float(duration), offset is not None


def _below(output: Path, utterance_id: str) -> str:
    """The path of an output below the output folder."""
    return f"{AUDIO_FOLDER}/{utterance_id}{output.suffix}"


def _rewritten(line: str, place: Place, relative: str, length: tuple[int, int] | None) -> str:
    """A line about an output: its path, its duration and an offset of 0; the other fields as they are, in their order.

    A relative path stays relative, now to the folder of the manifest; an address becomes an absolute path.
    """
    entry = json.loads(line)
    key = next(name for name in _PATHS if name in entry)
    absolute = is_address(entry[key]) or os.path.isabs(os.path.expanduser(entry[key]))  # noqa: PTH111, PTH117
    whole = str(place) if isinstance(place, Address) else os.path.abspath(place)  # noqa: PTH100
    entry[key] = whole if absolute else relative
    if "duration" in entry and length is not None:
        entry["duration"] = round(length[0] / length[1], 6)
    if entry.get("offset") is not None:
        entry["offset"] = 0.0
    text = json.dumps(entry, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8
        text = json.dumps(entry)
    return text
