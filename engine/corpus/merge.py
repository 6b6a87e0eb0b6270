"""Joins the shards of a corpus: their outputs move into one folder, their manifests become one.

The call may be killed at any point; the same call then continues. First the joined manifest is written. Then the
outputs are moved, one by one. When all are there, a data directory is completed. At last the shards' folders are
removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.atomic_files import atomic_file, remove_temporaries
from mkc_fast.engine.corpus.anonymize import DEFAULT_SUFFIX, open_corpus
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, dumped, locked_manifest, read_entries
from mkc_fast.engine.corpus.provenance import PROVENANCE_FILE, read_provenance, replace_provenance
from mkc_fast.engine.datasets.kaldi import AUDIO_FOLDER, DataDirectory
from mkc_fast.engine.datasets.shards import Shard, find_shards
from mkc_fast.errors import OutputError
from mkc_fast.names import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from mkc_fast.engine.datasets.dataset import Dataset

# Of the first line of a shard's manifest, what is not the same in all.
_OWN = ("shard", "ran")


@dataclass(frozen=True)
class Merged:
    """What was joined.

    Attributes:
        out: The folder of all; of a data directory the directory.
        shards: How many shards the corpus had.
        utterances: All of them.
        moved: Outputs that this call moved.
        silenced: Outputs that are silence.
    """

    out: str
    shards: int
    utterances: int
    moved: int
    silenced: int


@dataclass(frozen=True)
class _Part:
    """A shard that holds utterances, with its manifest, read."""

    shard: Shard
    ids: list[str]
    folder: Path
    audio_dir: Path
    header: dict[str, Any]
    ran: list[dict[str, Any]]
    entries: dict[str, dict[str, Any]]


def merge_corpus(
    *,
    audio_list: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    data_dirs: Sequence[str | PathLike[str]] = (),
    anon_suffix: str = DEFAULT_SUFFIX,
    results_dir: str = AUDIO_FOLDER,
    allow_commands: bool = False,
    allow_mixed: bool = False,
) -> list[Merged]:
    """Join the shards that ``infer --shard`` or ``vpc run --shard`` has written.

    Args:
        audio_list: The list that all shards were given.
        out: The output folder that all shards were given.
        data_dirs: Or the data directories.
        anon_suffix: Of the anonymized directories.
        results_dir: Name of the folder of recordings in them.
        allow_commands: As for the shards.
        allow_mixed: Join outputs of devices, precisions or versions that are not equal to the last bit.

    Returns:
        What was joined, a folder each.

    Raises:
        ArgumentError: Not exactly one form of input is given.
        ListError: A list is unreadable or contradictory.
        OutputError: Shards are missing, not finished, still at work or of other settings, or a folder cannot be
            written.
    """
    corpus = open_corpus(
        audio_list=audio_list,
        out=out,
        data_dirs=data_dirs,
        anon_suffix=anon_suffix,
        allow_commands=allow_commands,
        audio_folder=results_dir,
    )
    return [merge_dataset(dataset, allow_mixed=allow_mixed) for dataset in corpus.datasets]


def merge_dataset(dataset: Dataset, *, allow_mixed: bool = False) -> Merged:
    """Join the shards of a dataset; as ``merge_corpus``."""
    try:
        return _merge(dataset, allow_mixed)
    except OSError as error:
        raise OutputError(f"{error.filename or dataset.out}: cannot be written ({error.strerror})") from None


def _merge(dataset: Dataset, allow_mixed: bool) -> Merged:
    final, ids = dataset.record_dir / MANIFEST_FILE, [utterance.id for utterance in dataset.utterances]
    found = find_shards(dataset.out)
    with contextlib.ExitStack() as locks:
        for folder in (dataset.record_dir, *found.values()):
            if (folder / MANIFEST_FILE).exists():
                locks.enter_context(locked_manifest(folder))
        # Shards that still hold outputs are not joined, however complete the folder is: it may be of another run.
        done = None if _hold_outputs(dataset, found, ids) else _finished(final, dataset.audio_dir, ids)
        moved = 0
        if done is None:
            parts = _read(dataset, found, ids)
            text, done = _joined(dataset, parts, allow_mixed)
            _write_manifest(dataset, final, text)
            _write_provenance(dataset, parts, done)
            moved = _move(dataset, parts, done)
        dataset.finish({name: dataset.audio_dir / str(entry["file"]) for name, entry in done.items()})
        count = max((shard.count for shard in found), default=0)
        for folder in found.values():
            _remove(folder, dataset)
    silenced = sum(1 for entry in done.values() if entry.get("silence"))
    return Merged(str(dataset.out), count, len(ids), moved, silenced)


def _finished(manifest: Path, audio_dir: Path, ids: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """The entries of a joined manifest, if all outputs are in their place."""
    if not manifest.exists():
        return None
    _, _, entries = read_entries(manifest)
    if all(name in entries and _is_written(audio_dir, entries[name]) for name in ids):
        return {name: entries[name] for name in ids}
    return None


def _hold_outputs(dataset: Dataset, found: Mapping[Shard, Path], ids: Sequence[str]) -> bool:
    """Whether an output is still in a shard's folder."""
    folders = [folder for each in found.values() if (folder := _audio_dir(dataset, each)).is_dir()]
    names = {f"{name}.{suffix}" for name in ids for suffix in FORMATS} if folders else set()
    return any(path.name in names for folder in folders for path in folder.iterdir())


def _audio_dir(dataset: Dataset, folder: Path) -> Path:
    """Where the outputs of a shard are in its folder."""
    return folder / dataset.audio_dir.name if isinstance(dataset, DataDirectory) else folder


def _read(dataset: Dataset, found: Mapping[Shard, Path], ids: Sequence[str]) -> list[_Part]:
    """The manifests of all shards that hold an utterance."""
    counts = sorted({shard.count for shard in found})
    if not counts:
        raise OutputError(f"{dataset.out}: there are no shards of it; expected {dataset.out}.shard-1-of-…")
    if len(counts) > 1:
        shown = " and ".join(f"shard-*-of-{count}" for count in counts)
        raise OutputError(f"{dataset.out}: there are shards of two divisions, {shown}; remove one")
    held: dict[Shard, list[str]] = {}
    for name in ids:
        held.setdefault(Shard.of(name, counts[0]), []).append(name)
    parts = []
    for shard in sorted(held, key=lambda shard: shard.number):
        folder = shard.folder(dataset.out)
        manifest = folder / MANIFEST_FILE
        if not manifest.exists():
            raise OutputError(f"{folder}: the shard {shard} is not there; run it first")
        header, ran, entries = read_entries(manifest)
        if header.get("shard") != [shard.number, shard.count]:
            raise OutputError(f"{manifest}: is not of the shard {shard}")
        parts.append(_Part(shard, held[shard], folder, _audio_dir(dataset, folder), header, ran, entries))
    return parts


def _joined(dataset: Dataset, parts: Sequence[_Part], allow_mixed: bool) -> tuple[str, dict[str, dict[str, Any]]]:
    """The text of the joined manifest and its entries, which are checked; in the order of the dataset."""
    first = parts[0]
    header = {key: value for key, value in first.header.items() if key not in _OWN}
    ran: list[dict[str, Any]] = []
    for part in parts:
        for key in {**header, **part.header}:
            if key not in _OWN and part.header.get(key) != header.get(key):
                raise OutputError(
                    f"{part.folder}: its outputs were made with {key} {part.header.get(key)}, those of {first.folder} "
                    f"with {header.get(key)}"
                )
        ran += [each for each in part.ran if each not in ran]
    if len(ran) > 1 and not allow_mixed:
        names = sorted({key for each in ran for key in each if any(other.get(key) != each.get(key) for other in ran)})
        raise OutputError(
            f"{dataset.out}: its shards were computed with other {', '.join(names)}, which is not equal to the last "
            "bit; --allow-mixed joins them"
        )
    part_of = {name: part for part in parts for name in part.ids}
    missing, failed = [], []
    entries: dict[str, dict[str, Any]] = {}
    for utterance in dataset.utterances:
        name, part = utterance.id, part_of[utterance.id]
        entry = part.entries.get(name, {})
        if entry.get("silence"):
            entry = {**entry, **_silence_of(dataset, part, name)}
        if "error" in entry and not entry.get("silence"):
            failed.append(name)
        elif not (_is_written(part.audio_dir, entry) or _is_written(dataset.audio_dir, entry)):
            missing.append(name)
        else:
            number = entry.get("ran", 0)
            at = ran.index(part.ran[number]) if isinstance(number, int) and number < len(part.ran) else 0
            made = {key: value for key, value in entry.items() if key != "ran"}
            entries[name] = {**made, "ran": at} if at else made
    for names, what in ((missing, "not finished"), (failed, "failed")):
        if names:
            others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            shards = {part_of[name].shard for name in names}
            again = ", ".join(str(shard) for shard in sorted(shards, key=lambda shard: shard.number))
            raise OutputError(f"{dataset.out}: {names[0]}{others} {what}; run the shard {again} again")
    lines = [dumped({**header, "ran": ran[0]})]
    lines += [dumped({"type": "ran", "ran": each}) for each in ran[1:]]
    lines += [dumped(entry) for entry in entries.values()]
    return "".join(f"{line}\n" for line in lines), entries


def _silence_of(dataset: Dataset, part: _Part, name: str) -> dict[str, Any]:
    """The file and size of silence, which a manifest does not record: the next run is to try the recording again."""
    for suffix in FORMATS:
        for folder in (part.audio_dir, dataset.audio_dir):
            path = folder / f"{name}.{suffix}"
            if path.is_file():
                return {"file": path.name, "bytes": path.stat().st_size}
    return {}


def _is_written(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether an output is in a folder with the recorded size; of a recording that failed none is recorded."""
    file, size = entry.get("file"), entry.get("bytes")
    if not isinstance(file, str) or not isinstance(size, int):
        return False
    try:
        return (folder / file).stat().st_size == size
    except OSError:
        return False


def _write_manifest(dataset: Dataset, final: Path, text: str) -> None:
    """Write the joined manifest, unless another one is there."""
    if final.exists():
        if final.read_bytes() != text.encode("utf-8", "surrogateescape"):
            raise OutputError(f"{final}: there is another manifest; move its folder away, or remove the shards")
        return
    if dataset.audio_dir.is_dir():
        names = {utterance.id for utterance in dataset.utterances}
        strange = next((path for path in dataset.audio_dir.iterdir() if path.stem in names), None)
        if strange is not None:
            raise OutputError(f"{strange}: there is an output already, and no run recorded here has written it")
    dataset.record_dir.mkdir(parents=True, exist_ok=True)
    dataset.audio_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(final) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def _write_provenance(dataset: Dataset, parts: Sequence[_Part], entries: Mapping[str, Mapping[str, Any]]) -> None:
    if not dataset.described:
        return
    contents = [content for part in parts if (content := read_provenance(part.folder)) is not None]
    if contents:
        ran = [each for content in contents for each in content["ran"]]
        joined = {
            **contents[0],
            "utterances": len(entries),
            "silence": sum(1 for entry in entries.values() if entry.get("silence")),
            "ran": [each for number, each in enumerate(ran) if each not in ran[:number]],
        }
        replace_provenance(dataset.record_dir, joined)


def _move(dataset: Dataset, parts: Sequence[_Part], entries: Mapping[str, Mapping[str, Any]]) -> int:
    """Move the outputs that are still in the shards' folders; returns how many."""
    moved = 0
    remove_temporaries(dataset.audio_dir)
    for part in parts:
        for name in part.ids:
            file = str(entries[name]["file"])
            source, target = part.audio_dir / file, dataset.audio_dir / file
            if source.exists():
                _rename(source, target)
                moved += 1
    return moved


def _rename(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)
        source.unlink()


def _remove(folder: Path, dataset: Dataset) -> None:
    """Remove a shard's folder, the manifest last; what is none of its files stays, and so does the folder then."""
    with contextlib.suppress(OSError):
        if isinstance(dataset, DataDirectory):
            remove_temporaries(folder / dataset.audio_dir.name)
            (folder / dataset.audio_dir.name).rmdir()
        remove_temporaries(folder)
        (folder / PROVENANCE_FILE).unlink(missing_ok=True)
        if set(os.listdir(folder)) <= {MANIFEST_FILE}:  # noqa: PTH208
            (folder / MANIFEST_FILE).unlink(missing_ok=True)
            folder.rmdir()
