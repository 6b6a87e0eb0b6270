"""Lhotse's cuts: reads a CutSet manifest (``cuts.jsonl.gz``), and writes one whose cuts are the anonymized recordings.

Lhotse itself needs torch. Its manifests are JSON in a documented form, which is read and written here.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.durations import lengths_of
from mkc_fast.engine.datasets.lines import PathResolver, check_id, check_regular, numbered_lines
from mkc_fast.engine.draws import speaker_draw
from mkc_fast.errors import ListError, OutputError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mkc_fast.engine.datasets.shards import Shard

CUTS_FILE = "cuts.jsonl.gz"
_AUDIO_FOLDER = "recordings"
_MAX_LINE = 1 << 24  # a cut with the alignment of an hour has 2 MB
_AT_ONCE = 4096
# Half a sample at 16 kHz, in seconds.
_SAME_S = 0.5 / 16000


@dataclass(frozen=True)
class CutManifest:
    """A CutSet to anonymize: a ``Dataset``.

    Attributes:
        path: The manifest.
        utterances: Its cuts, in their order.
        out: The output folder: ``recordings/`` and, last, ``cuts.jsonl.gz``.
    """

    path: Path
    utterances: list[Utterance]
    out: Path

    @property
    def audio_dir(self) -> Path:
        """``recordings`` in the output folder."""
        return self.out / _AUDIO_FOLDER

    @property
    def record_dir(self) -> Path:
        """The output folder itself."""
        return self.out

    @property
    def described(self) -> bool:
        """Yes."""
        return True

    @property
    def groups(self) -> None:
        """None: each output stays a file of its own."""
        return None

    def part(self, shard: Shard) -> CutManifest:
        """The cuts of a shard; ``merge`` writes the manifest."""
        return CutManifestShard(
            self.path, [each for each in self.utterances if shard.holds(each.id)], shard.folder(self.out)
        )

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Write ``cuts.jsonl.gz``: every cut in its place, of the recording that was written for it."""
        manifest = self.out / CUTS_FILE
        try:
            with atomic_file(manifest) as temporary, temporary.open("wb") as file:
                write_lines(file, self._cuts(outputs))
        except OSError as error:
            raise OutputError(f"{manifest}: cannot be written ({error.strerror})") from None

    def unfinish(self) -> None:
        """Remove ``cuts.jsonl.gz``."""
        manifest = self.out / CUTS_FILE
        try:
            manifest.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{manifest}: cannot be removed ({error.strerror})") from None

    def _cuts(self, outputs: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        block: list[dict[str, Any]] = []
        for number, cut in read_cuts(self.path):
            if cut.get("id") not in outputs:
                raise OutputError(f"{self.path}, line {number}: changed during the run; run the same command again")
            block.append(cut)
            if len(block) == _AT_ONCE:
                yield from _anonymized(block, outputs)
                block = []
        yield from _anonymized(block, outputs)


class CutManifestShard(CutManifest):
    """A shard of a CutSet: recordings and their manifest of a run, without cuts."""

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Do nothing: ``merge`` writes the cuts."""


def read_cut_manifest(path: Path, out: Path, *, allow_commands: bool = False, by_speaker: bool = False) -> CutManifest:
    """Read a CutSet manifest, ``.jsonl`` or ``.jsonl.gz``, of MonoCuts whose recordings are files.

    Relative paths are against the working directory, as in Lhotse, else against the manifest's folder. Of a recording
    with several channels the cut's channel is read. Nothing is written.

    Args:
        path: The manifest.
        out: The output folder.
        allow_commands: Admit sources of the type ``command``; the commands are not run here.
        by_speaker: The cuts of a speaker share their draws; each cut has one in its supervisions.

    Raises:
        ListError: The manifest is unreadable or empty, a cut is of another kind, has an id that is there twice or
            cannot name a file, or a recording has another source.
    """
    utterances: list[Utterance] = []
    ids: set[str] = set()
    resolver = PathResolver(path)
    for number, cut in read_cuts(path):
        where = f"{path}, line {number}"
        utterance = utterance_of(cut, where, by_speaker=by_speaker)
        recording, source, channel = _source(cut, where)
        if source.get("type") == "file" and isinstance(source.get("source"), str):
            file = resolver.resolve(source["source"])
            utterance = replace(utterance, file=file, channel=channel)
        elif source.get("type") == "command" and isinstance(source.get("source"), str):
            if not allow_commands:
                raise ListError(
                    f"{where}: a command, which is run only with --allow-commands: {printable(source['source'])}"
                )
            utterance = replace(utterance, file=printable(source["source"]), command=source["source"], channel=channel)
        else:
            raise ListError(
                f"{where}: its recording has the source type {printable(str(source.get('type')))}; expected file"
            )
        if _is_whole(utterance, recording):
            utterance = replace(utterance, begin_s=0.0, end_s=None)
        if utterance.id in ids:
            raise ListError(f"{where}: the id '{printable(utterance.id)}' is there twice")
        ids.add(utterance.id)
        utterances.append(utterance)
    if not utterances:
        raise ListError(f"{path}: the list is empty")
    return CutManifest(path, utterances, out)


def is_cut_manifest(text: str) -> bool:
    """Whether an input is a CutSet: a compressed manifest, or one whose first line is a cut."""
    path = Path(text)
    if not text.endswith((".jsonl", ".jsonl.gz")) or not path.is_file():
        return False
    try:
        first = next(read_cuts(path), (0, {}))[1]
    except ListError:
        first = {}
    return text.endswith(".gz") or {"id", "recording", "start"} <= first.keys()


def read_cuts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The cuts of a manifest with the numbers of their lines, one by one.

    Raises:
        ListError: It is unreadable, or a line is no object or longer than 16 MB.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ListError(f"{path}: expected cuts as .jsonl or .jsonl.gz; 'lhotse copy' converts others")
    try:
        check_regular(path)
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in numbered_lines(file, str(path), _MAX_LINE, "longer than 16 MB, which is no cut"):
                yield number, _object(line, f"{path}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ListError(f"{path}: cannot be read ({printable(reason, 120)})") from None


def utterance_of(cut: Mapping[str, Any], where: str, *, by_speaker: bool) -> Utterance:
    """A cut's id, part and draws; its file is for the caller to add.

    Raises:
        ListError: It is no MonoCut, or a value is missing or not possible.
    """
    kind = cut.get("type", "MonoCut")
    if kind not in {"MonoCut", "Cut"}:
        raise ListError(
            f"{where}: a {printable(str(kind), 40)}; expected a MonoCut: save mixed and multi-channel cuts first, as "
            "with CutSet.save_audios"
        )
    name, begin, length = cut.get("id"), cut.get("start"), cut.get("duration")
    if not isinstance(name, str):
        raise ListError(f"{where}: has no id")
    check_id(name, where)
    if not (_is_number(begin) and _is_number(length) and 0 <= begin < math.inf and 0 < length < math.inf):
        raise ListError(f"{where}: expected start >= 0 and duration > 0 in seconds")
    draw_id = None
    if by_speaker:
        said = cut.get("supervisions") or []
        speakers = {str(each.get("speaker")) for each in said if isinstance(each, dict) and each.get("speaker")}
        if len(speakers) != 1:
            raise ListError(f"{where}: has {len(speakers) or 'no'} speakers; the level speaker needs one for each cut")
        draw_id = speaker_draw(speakers.pop())
    return Utterance(name, "", float(begin), float(begin) + float(length), draw_id=draw_id)


def channel_of(cut: Mapping[str, Any], channels: object, where: str) -> int | None:
    """Which channel of a file with these channels a cut has; None of a file with one.

    Raises:
        ListError: It has none of them.
    """
    asked = cut.get("channel", 0)
    if isinstance(asked, list) and len(asked) == 1:
        asked = asked[0]
    if not isinstance(channels, list) or asked not in channels or isinstance(asked, bool):
        raise ListError(f"{where}: has the channel {printable(str(asked), 40)}, which its recording has not")
    return None if len(channels) == 1 else channels.index(asked)


def anonymized_cut(
    cut: Mapping[str, Any], source: Mapping[str, object], samples: int, sample_rate: int
) -> dict[str, Any]:
    """A cut of its anonymized recording: all fields, without what is data of the original speech.

    Features, and arrays and recordings among the custom fields, are left out: they would be a leak.

    Args:
        cut: As it was.
        source: Where the recording is, as Lhotse has it.
        samples: Of the recording.
        sample_rate: Of the recording, in Hz.
    """
    made = {name: value for name, value in cut.items() if name != "features"}
    recording = new_recording(cut["id"], source, samples, sample_rate)
    made.update(start=0, duration=recording["duration"], channel=0, recording=recording)
    said = cut.get("supervisions")
    if isinstance(said, list):
        made["supervisions"] = [
            _without_data({**each, "recording_id": cut["id"], "channel": 0}) for each in said if isinstance(each, dict)
        ]
    return _without_data(made)


def new_recording(name: str, source: Mapping[str, object], samples: int, sample_rate: int) -> dict[str, Any]:
    """A recording of one channel, as Lhotse has it."""
    return {
        "id": name,
        "sources": [{"channels": [0], **source}],
        "sampling_rate": sample_rate,
        "num_samples": samples,
        "duration": samples / sample_rate,
        "channel_ids": [0],
    }


def write_lines(file: BinaryIO, objects: Iterator[dict[str, Any]]) -> None:
    """Write objects as lines of JSON, compressed; without a time or a name, so that equal objects give equal bytes."""
    with gzip.GzipFile("", "wb", 6, file, mtime=0) as lines:
        for each in objects:
            lines.write(json.dumps(each, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")


def _anonymized(cuts: list[dict[str, Any]], outputs: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    paths = {cut["id"]: outputs[cut["id"]] for cut in cuts}
    lengths = lengths_of(paths)
    for cut in cuts:
        name = cut["id"]
        if name not in lengths:
            raise OutputError(f"{paths[name]}: was written and cannot be read")
        yield anonymized_cut(cut, {"type": "file", "source": str(paths[name])}, *lengths[name])


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ListError(f"{where}: expected an object in JSON, found {printable(line[:80].decode(errors='replace'))}")
    return found


def _source(cut: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any], int | None]:
    """A cut's recording, the source that has its channel, and which of the source's channels it is."""
    recording = cut.get("recording")
    if not isinstance(recording, dict) or not isinstance(recording.get("sources"), list):
        raise ListError(f"{where}: has no recording")
    if recording.get("transforms"):
        raise ListError(f"{where}: its recording has transforms; save its audio first, as with CutSet.save_audios")
    sources = [each for each in recording["sources"] if isinstance(each, dict)]
    for source in sources:
        if len(sources) == 1 or cut.get("channel", 0) in (source.get("channels") or []):
            return recording, source, channel_of(cut, source.get("channels"), where)
    raise ListError(f"{where}: no source of its recording has the channel {printable(str(cut.get('channel')), 40)}")


def _is_whole(utterance: Utterance, recording: Mapping[str, Any]) -> bool:
    """Whether a cut is all of its recording."""
    length, end = recording.get("duration"), utterance.end_s
    return not utterance.begin_s and _is_number(length) and end is not None and end > length - _SAME_S


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _without_data(item: dict[str, Any]) -> dict[str, Any]:
    """A cut or a supervision without the custom fields that point to data."""
    custom = item.get("custom")
    if not isinstance(custom, dict):
        return item
    return {**item, "custom": {name: value for name, value in custom.items() if not _is_data(value)}}


def _is_data(value: object) -> bool:
    """Whether a custom field is a manifest of a recording, of features or of an array."""
    if not isinstance(value, dict):
        return False
    inner = value.get("array")
    return "sources" in value or "storage_path" in value or (isinstance(inner, dict) and "storage_path" in inner)
