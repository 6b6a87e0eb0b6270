"""Speech → a cache of features, shard by shard, with the engine's encoder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.atomic_files import atomic_directory, atomic_file
from mkc_fast.engine.audio.read import Recording, read_utterance
from mkc_fast.engine.corpus.plan import lengths_s
from mkc_fast.engine.encoder import Encoder
from mkc_fast.errors import ArgumentError, ListError, MkcError, OutputError, StageError
from mkc_fast.names import CPU
from mkc_fast.text import one_line, printable
from mkc_fast.train.features.cache import (
    CONTENTS,
    DTYPES,
    FACTS_FILE,
    FLOAT32,
    INDEX_FILE,
    CacheFacts,
    Entry,
    encoder_facts,
    shard_file,
)
from mkc_fast.train.speech import IF_THERE, read_speech
from mkc_fast.train.work_folder import work_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike
    from typing import BinaryIO

    from numpy.typing import NDArray

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.options import EngineOptions

# 44 minutes of speech; 0.5 GB with WavLM-Large in float32.
SHARD_FRAMES = 1 << 17
# Of a recording, kept in memory: longer ones are read window by window.
_MOST_IN_MEMORY_S = 600
# A header has this many rows until the true number is known; NumPy's headers have room for either.
_ANY_ROWS = 10**12


@dataclass(frozen=True)
class MadeFeatures:
    """What was made.

    Attributes:
        facts: Of the cache.
        frames: In all.
        kept: Shards that an earlier, interrupted run had made.
    """

    facts: CacheFacts
    frames: int
    kept: int


def make_features(
    model: str | PathLike[str],
    out: str | PathLike[str],
    *,
    audio_list: str | PathLike[str] | None = None,
    data_dirs: Sequence[str | PathLike[str]] = (),
    utt2spk: str | PathLike[str] | None = None,
    dtype: str = FLOAT32,
    shard_frames: int = SHARD_FRAMES,
    device: str = CPU,
    options: EngineOptions | None = None,
    overwrite: bool = False,
    allow_commands: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MadeFeatures:
    """Compute the features of speech, and write them to a directory that ``FeatureCache`` maps.

    Finished shards lie beside ``out`` until all are there, and the same call continues a run that was stopped.

    Args:
        model: Directory made by ``export_model``.
        out: Directory of the cache.
        audio_list: List of ``path`` or ``utt-id path`` a line.
        data_dirs: Kaldi data directories, instead of it.
        utt2spk: List of ``utt-id speaker`` a line, for ``audio_list``. Default: the file ``utt2spk`` beside it, if it
            is there.
        dtype: ``float32``, or ``float16`` for half the size.
        shard_frames: Frames of a shard, about: whole recordings go into one.
        device: Of the encoder, ``cpu`` or ``cuda:<number>``.
        options: Of the encoder.
        overwrite: Replace ``out`` if it holds a cache and nothing else, and start over.
        allow_commands: Run the commands (lines that end in ``|``) of a list.
        progress: Called with frames done and frames in all, as far as headers tell.

    Raises:
        ArgumentError: Not exactly one form of input is given, or a value is not possible.
        ListError: A list is unreadable or contradictory, or no recording could be read.
        ArtifactError: The model is missing or damaged.
        DeviceError: The device is not here.
        OutputError: ``out`` cannot be written, or a run with other settings was interrupted there.
        StageError: A feature is too large for float16.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype is '{printable(dtype)}'; expected one of {', '.join(DTYPES)}")
    if shard_frames < 1:
        raise ArgumentError(f"shard_frames is {shard_frames}; expected at least 1")
    out_path = Path(out)
    if out_path.is_dir() and any(out_path.iterdir()) and not overwrite:
        raise OutputError(f"{out_path}: already there; --overwrite replaces it")
    utterances, speakers = read_speech(audio_list, data_dirs, utt2spk, speakers=IF_THERE, allow_commands=allow_commands)
    encoder = Encoder.load(model, device, options=options)
    info = encoder.info
    frames = [info.frames(int(length * info.sample_rate)) for length in lengths_s(utterances)]
    parts = _parts(frames, shard_frames)
    described = {
        "model": encoder_facts(info).digest,
        "speech": _digest(utterances, speakers),
        "type": dtype,
        "shards": shard_frames,
    }
    work = out_path.absolute().with_name(f"{out_path.name}.making")
    with work_folder(work, described, "shards of an interrupted run", overwrite=overwrite):
        done, total, kept = 0, sum(frames), 0
        shards = []
        for number, part in enumerate(parts):
            shard = _finished(work, number)
            if shard is None:
                report = _reporter(progress, done, total)
                shard = _make(
                    work, number, [utterances[i] for i in part], [frames[i] for i in part], encoder, dtype, report
                )
            else:
                kept += 1
            done += sum(frames[i] for i in part)
            shards.append(shard)
            if progress is not None and total:
                progress(min(done, total), total)
        facts = _gather(work, out_path, shards, utterances, speakers, encoder, dtype)
    shutil.rmtree(work, ignore_errors=True)
    return MadeFeatures(facts, sum(facts.shard_frames), kept)


@dataclass
class _Shard:
    """What is in a shard: of each utterance that could be read its first row and its frames."""

    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return sum(count for _, count in self.rows.values())


def _parts(frames: Sequence[int], shard_frames: int) -> list[list[int]]:
    """Indices of consecutive utterances, with about so many frames together."""
    parts: list[list[int]] = [[]]
    filled = 0
    for index, count in enumerate(frames):
        if parts[-1] and filled + count > shard_frames:
            parts.append([])
            filled = 0
        parts[-1].append(index)
        filled += count
    return parts


def _reporter(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        if progress is not None and total and before + done:
            progress(min(before + done, total), total)

    return report


def _finished(work: Path, number: int) -> _Shard | None:
    """What a shard of an earlier run holds; its notes are written after it."""
    notes = work / f"{number:06d}.json"
    if not notes.is_file() or not (work / shard_file(number)).is_file():
        return None
    said = json.loads(notes.read_text())
    return _Shard({name: (row, count) for name, (row, count) in said["rows"].items()}, said["failed"])


def _make(
    work: Path,
    number: int,
    utterances: Sequence[Utterance],
    frames: Sequence[int],
    encoder: Encoder,
    dtype: str,
    report: Callable[[int], None],
) -> _Shard:
    """Write a shard, and then its notes."""
    shard, path = _Shard(), work / shard_file(number)
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            header = _write_header(file, _ANY_ROWS, encoder.info.dim, dtype)
            for group in encoder.batches(frames):
                _encode([utterances[index] for index in group], encoder, file, header, dtype, shard)
                report(shard.frames)
            file.seek(0)
            if _write_header(file, shard.frames, encoder.info.dim, dtype) != header:
                raise AssertionError("NumPy's headers differ in length")
        with atomic_file(work / f"{number:06d}.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(shard)))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
    return shard


def _write_header(file: BinaryIO, rows: int, dim: int, dtype: str) -> int:
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, described)
    return file.tell()


def _encode(
    utterances: Sequence[Utterance], encoder: Encoder, file: BinaryIO, header: int, dtype: str, shard: _Shard
) -> None:
    """Append the features of utterances that run at once; those that cannot be read are noted."""
    info = encoder.info
    width = info.dim * np.dtype(dtype).itemsize
    read: list[tuple[Utterance, NDArray[np.float32]]] = []
    for utterance in utterances:
        try:
            most = _MOST_IN_MEMORY_S * info.sample_rate
            waveform = read_utterance(utterance, info.sample_rate, info.min_samples, most)
            if not isinstance(waveform, Recording):
                read.append((utterance, waveform))
                continue
            before = count = shard.frames
            for _, part in encoder.parts(waveform.forward()):
                file.write(_as(part, dtype, utterance).tobytes())
                count += len(part)
            shard.rows[utterance.id] = before, count - before
        except StageError:
            raise
        except (MkcError, ValueError) as error:
            # What was written of it is written over.
            file.seek(header + shard.frames * width)
            file.truncate()
            shard.failed[utterance.id] = one_line(str(error), 200)
    if not read:
        return
    for (utterance, _), features in zip(read, encoder.encode_batch([each for _, each in read]), strict=True):
        before = shard.frames
        file.write(_as(features, dtype, utterance).tobytes())
        shard.rows[utterance.id] = before, len(features)


def _as(features: NDArray[np.float32], dtype: str, utterance: Utterance) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        converted = features.astype(dtype)
    if not np.isfinite(converted).all():
        largest = float(np.abs(features).max())
        raise StageError(f"{utterance.shown}: a feature of {largest:.3g} is too large for {dtype}; use {FLOAT32}")
    return converted


def _gather(
    work: Path,
    out: Path,
    shards: Sequence[_Shard],
    utterances: Sequence[Utterance],
    speakers: dict[str, str],
    encoder: Encoder,
    dtype: str,
) -> CacheFacts:
    """Put the shards and the index into the final directory."""
    failed = {name: reason for shard in shards for name, reason in shard.failed.items()}
    full = [number for number, shard in enumerate(shards) if shard.frames]
    if not full:
        first = f"; the first: {next(iter(failed.values()))}" if failed else ""
        raise ListError(f"no recording could be read{first}")
    entries = {entry.id: entry for entry in _entries([shards[number] for number in full], speakers)}
    facts = CacheFacts(
        encoder_facts(encoder.info), dtype, [shards[number].frames for number in full], len(entries), failed
    )
    with atomic_directory(out, replaces=CONTENTS) as temporary:
        for position, number in enumerate(full):
            _link(work / shard_file(number), temporary / shard_file(position))
        with (temporary / INDEX_FILE).open("w", encoding="utf-8") as file:
            for utterance in utterances:
                if utterance.id in entries:
                    file.write(json.dumps(dataclasses.asdict(entries[utterance.id])) + "\n")
        (temporary / FACTS_FILE).write_text(facts.as_json(), encoding="utf-8")
    return facts


def _entries(shards: Sequence[_Shard], speakers: dict[str, str]) -> Iterator[Entry]:
    for position, shard in enumerate(shards):
        for name, (row, count) in shard.rows.items():
            yield Entry(name, speakers.get(name), position, row, count)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, so that the first stays until all are there; move it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        source.rename(target)


def _digest(utterances: Sequence[Utterance], speakers: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for each in utterances:
        place = f"{each.id}\0{each.path.absolute()}\0{each.begin_s}\0{each.end_s}\0{speakers.get(each.id)}\n"
        digest.update(place.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
