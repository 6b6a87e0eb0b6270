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
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, dumped, locked_manifest, read_entries, read_groups
from mkc_fast.engine.corpus.outputs import Outputs
from mkc_fast.engine.corpus.provenance import PROVENANCE_FILE, read_provenance, replace_provenance
from mkc_fast.engine.datasets.dataset import files_of
from mkc_fast.engine.datasets.kaldi import AUDIO_FOLDER
from mkc_fast.engine.datasets.shards import Shard, find_shards
from mkc_fast.engine.storage.addresses import Address, place_of
from mkc_fast.errors import OutputError
from mkc_fast.names import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from mkc_fast.engine.datasets.dataset import Dataset
    from mkc_fast.engine.datasets.tables import Columns

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
class _Place:
    """Where the files of a shard are, or those of all.

    Attributes:
        out: The output folder.
        audio_dir: Of the outputs, in ``out``.
        record_dir: Of the manifest.
    """

    out: Path
    audio_dir: Path
    record_dir: Path


@dataclass(frozen=True)
class _Part:
    """A shard that holds utterances, with its manifest, read."""

    shard: Shard
    ids: list[str]
    place: _Place
    header: dict[str, Any]
    ran: list[dict[str, Any]]
    entries: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, int]]


def merge_corpus(
    *,
    audio_list: str | PathLike[str] | None = None,
    input: str | PathLike[str] | Sequence[str | PathLike[str]] = (),  # noqa: A002 - as the command has it
    input_form: str | None = None,
    columns: Columns | None = None,
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
        input: Or the inputs.
        input_form: As for the shards.
        columns: As for the shards.
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
    if out is not None and isinstance(place_of(out), Address):
        raise OutputError(f"{place_of(out)}: shards are joined in folders, not at addresses")
    corpus = open_corpus(
        audio_list=audio_list,
        input=input,
        input_form=input_form,
        columns=columns,
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
    whole, ids = _Place(dataset.out, dataset.audio_dir, dataset.record_dir), [each.id for each in dataset.utterances]
    final = dataset.record_dir / MANIFEST_FILE
    found = _places(dataset)
    with contextlib.ExitStack() as locks:
        for place in (whole, *found.values()):
            if (place.record_dir / MANIFEST_FILE).exists():
                locks.enter_context(locked_manifest(place.record_dir))
        # Shards that still hold outputs are not joined, however complete the folder is: it may be of another run.
        done = None if any(_existing(dataset, place) for place in found.values()) else _finished(dataset, final, ids)
        moved = 0
        if done is None:
            parts = _read(dataset, found, ids)
            text, done = _joined(dataset, parts, allow_mixed)
            _write_manifest(dataset, final, text)
            _write_provenance(dataset, parts, done)
            moved = _move(dataset, parts, done)
        dataset.finish({name: dataset.audio_dir / str(entry.get("file")) for name, entry in done.items()})
        count = max((shard.count for shard in found), default=0)
        for place in found.values():
            _remove(place)
    silenced = sum(1 for entry in done.values() if entry.get("silence"))
    return Merged(str(dataset.out), count, len(ids), moved, silenced)


def _places(dataset: Dataset) -> dict[Shard, _Place]:
    """The folders of shards beside the output folder."""
    found = find_shards(dataset.out)
    if not found:
        return {}
    # All are laid out alike.
    part = dataset.part(next(iter(found)))
    audio, record = part.audio_dir.relative_to(part.out), part.record_dir.relative_to(part.out)
    return {shard: _Place(folder, folder / audio, folder / record) for shard, folder in found.items()}


def _existing(dataset: Dataset, place: _Place) -> Path | None:
    """An output in a folder, under the name of any utterance or group."""
    for suffix in FORMATS if place.audio_dir.is_dir() else ():
        output = next(Outputs(dataset.utterances, place.audio_dir, f".{suffix}").existing(), None)
        if output is not None:
            return output
    files = (place.out / file.relative_to(dataset.out) for file in files_of(dataset.groups))
    return next((file for file in files if file.exists()), None)


def _finished(dataset: Dataset, manifest: Path, ids: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """The entries of a joined manifest, if all outputs are in their place."""
    if not manifest.exists():
        return None
    _, _, entries = read_entries(manifest)
    groups = dataset.groups
    if groups is not None:
        recorded = read_groups(manifest)
        names = [groups.name(group) for group in range(len(groups))]
        there = all(_are_written(dataset.out, recorded.get(name)) for name in names) and entries.keys() >= set(ids)
    else:
        there = all(name in entries and _is_written(dataset.audio_dir, entries[name]) for name in ids)
    return {name: entries[name] for name in ids} if there else None


def _read(dataset: Dataset, found: Mapping[Shard, _Place], ids: Sequence[str]) -> list[_Part]:
    """The manifests of all shards that hold an utterance."""
    counts = sorted({shard.count for shard in found})
    if not counts:
        raise OutputError(f"{dataset.out}: there are no shards of it; expected {dataset.out}.shard-1-of-…")
    if len(counts) > 1:
        shown = " and ".join(f"shard-*-of-{count}" for count in counts)
        raise OutputError(f"{dataset.out}: there are shards of two divisions, {shown}; remove one")
    held: dict[Shard, list[str]] = {}
    for position, name in enumerate(ids):
        held.setdefault(_shard_of(dataset, position, name, counts[0]), []).append(name)
    parts = []
    for shard in sorted(held, key=lambda shard: shard.number):
        place = found.get(shard)
        manifest = None if place is None else place.record_dir / MANIFEST_FILE
        if place is None or manifest is None or not manifest.exists():
            raise OutputError(f"{shard.folder(dataset.out)}: the shard {shard} is not there; run it first")
        header, ran, entries = read_entries(manifest)
        if header.get("shard") != [shard.number, shard.count]:
            raise OutputError(f"{manifest}: is not of the shard {shard}")
        groups = {} if dataset.groups is None else read_groups(manifest)
        parts.append(_Part(shard, held[shard], place, header, ran, entries, groups))
    return parts


def _shard_of(dataset: Dataset, position: int, name: str, count: int) -> Shard:
    if dataset.groups is None:
        return Shard.of(name, count)
    return Shard.of_group(dataset.groups.of(position), count)


def _joined(dataset: Dataset, parts: Sequence[_Part], allow_mixed: bool) -> tuple[str, dict[str, dict[str, Any]]]:
    """The text of the joined manifest and its entries, which are checked; in the order of the dataset."""
    first = parts[0]
    header = {key: value for key, value in first.header.items() if key not in _OWN}
    ran: list[dict[str, Any]] = []
    for part in parts:
        for key in {**header, **part.header}:
            if key not in _OWN and part.header.get(key) != header.get(key):
                raise OutputError(
                    f"{part.place.out}: its outputs were made with {key} {part.header.get(key)}, those of "
                    f"{first.place.out} with {header.get(key)}"
                )
        ran += [each for each in part.ran if each not in ran]
    if len(ran) > 1 and not allow_mixed:
        names = sorted({key for each in ran for key in each if any(other.get(key) != each.get(key) for other in ran)})
        raise OutputError(
            f"{dataset.out}: its shards were computed with other {', '.join(names)}, which is not equal to the last "
            "bit; --allow-mixed joins them"
        )
    part_of = {name: part for part in parts for name in part.ids}
    groups, complete = _joined_groups(dataset, parts)
    missing, failed = [], []
    entries: dict[str, dict[str, Any]] = {}
    for position, utterance in enumerate(dataset.utterances):
        name, part = utterance.id, part_of[utterance.id]
        entry = part.entries.get(name, {})
        if entry.get("silence"):
            entry = {**entry, **_silence_of(dataset, part, name)}
        if "error" in entry and not entry.get("silence"):
            failed.append(name)
        elif not (
            (entry and dataset.groups.of(position) in complete)
            if dataset.groups is not None
            else (_is_written(part.place.audio_dir, entry) or _is_written(dataset.audio_dir, entry))
        ):
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
    lines += [dumped({"type": "group", "group": name, "files": sizes}) for name, sizes in groups.items()]
    return "".join(f"{line}\n" for line in lines), entries


def _joined_groups(dataset: Dataset, parts: Sequence[_Part]) -> tuple[dict[str, dict[str, int]], set[int]]:
    """The files of each group that is complete, by its name; and the numbers of these groups."""
    groups, found, complete = dataset.groups, dict[str, dict[str, int]](), set[int]()
    for group in range(len(groups) if groups is not None else 0):
        assert groups is not None
        name = groups.name(group)
        for part in parts:
            sizes = part.groups.get(name)
            if _are_written(part.place.out, sizes) or _are_written(dataset.out, sizes):
                found[name] = sizes or {}
                complete.add(group)
    return found, complete


def _are_written(out: Path, sizes: Mapping[str, int] | None) -> bool:
    """Whether the files of a group are in an output folder, with the recorded sizes."""
    return bool(sizes) and all(_is_written(out, {"file": file, "bytes": size}) for file, size in (sizes or {}).items())


def _silence_of(dataset: Dataset, part: _Part, name: str) -> dict[str, Any]:
    """The file and size of silence, which a manifest does not record: the next run is to try the recording again."""
    for suffix in FORMATS:
        for folder in (part.place.audio_dir, dataset.audio_dir):
            path = folder / f"{name}.{suffix}"
            if path.is_file():
                return {"file": f"{name}.{suffix}", "bytes": path.stat().st_size}
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
    strange = _existing(dataset, _Place(dataset.out, dataset.audio_dir, dataset.record_dir))
    if strange is not None:
        raise OutputError(f"{strange}: there is an output already, and no run recorded here has written it")
    dataset.record_dir.mkdir(parents=True, exist_ok=True)
    dataset.audio_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(final) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def _write_provenance(dataset: Dataset, parts: Sequence[_Part], entries: Mapping[str, Mapping[str, Any]]) -> None:
    if not dataset.described:
        return
    contents = [content for part in parts if (content := read_provenance(part.place.record_dir)) is not None]
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
    """Move the outputs, or the files of groups, that are still in the shards' folders; returns how many."""
    moved = 0
    made: set[Path] = set()
    for part in parts:
        if dataset.groups is None:
            names = (str(entries[name]["file"]) for name in part.ids)
            pairs = ((part.place.audio_dir / name, dataset.audio_dir / name) for name in names)
        else:
            names = (file for sizes in part.groups.values() for file in sizes)
            pairs = ((part.place.out / name, dataset.out / name) for name in names)
        for source, target in pairs:
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                remove_temporaries(target.parent)
                made.add(target.parent)
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


def _remove(place: _Place) -> None:
    """Remove a shard's folder, the manifest last; what is none of its files stays, and so does the folder then."""
    manifest = place.record_dir / MANIFEST_FILE
    with contextlib.suppress(OSError):
        (place.record_dir / PROVENANCE_FILE).unlink(missing_ok=True)
        stays = False
        for folder, _, _ in os.walk(place.out, topdown=False):
            remove_temporaries(Path(folder))
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106
            if os.path.isdir(folder):  # noqa: PTH112
                names = set(os.listdir(folder))  # noqa: PTH208
                own = {MANIFEST_FILE} if Path(folder) == place.record_dir else set()
                above = {place.record_dir.name} if Path(folder) == place.record_dir.parent else set()
                stays = stays or not names <= own | above
        if not stays:
            manifest.unlink(missing_ok=True)
            place.record_dir.rmdir()
            if place.out != place.record_dir:
                place.out.rmdir()
