"""The forms of corpora that ``infer --input`` takes; each is recognized by its inputs and has a module of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from mkc_fast.engine.datasets.cuts import CutManifest, is_cut_manifest, read_cut_manifest
from mkc_fast.engine.datasets.folders import read_folders
from mkc_fast.engine.datasets.jsonl import JsonlManifests, read_manifests
from mkc_fast.engine.datasets.path_lists import AudioList
from mkc_fast.engine.datasets.shar import Shar, is_shar, read_shar
from mkc_fast.engine.datasets.speakers import with_draw_ids
from mkc_fast.engine.datasets.tables import Columns, Table, is_table, read_table
from mkc_fast.engine.datasets.tar_shards import TarShards, expanded, is_pattern, read_tar_shards
from mkc_fast.engine.storage.addresses import is_address, place_of, read_entry
from mkc_fast.errors import ArgumentError, ListError
from mkc_fast.names import FILES, HUGGING_FACE, JSONL, LHOTSE, SHAR, SPEAKER, UTTERANCE, WEBDATASET
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mkc_fast.engine.datasets.dataset import Dataset
    from mkc_fast.engine.storage.addresses import Address
    from mkc_fast.names import InputForm, Level


_Read = TypeVar("_Read", JsonlManifests, TarShards, CutManifest, Shar, Table)


@dataclass(frozen=True)
class Asked:
    """What a form is told beside its inputs.

    Attributes:
        out: The output folder.
        level: Which utterances share a draw.
        utt2spk: A list of speakers, if one is given.
        allow_commands: Admit recordings that are another command's output.
        columns: Of tables.
        remote: The address of the output folder, if it is at one; ``out`` is a working folder then.
    """

    out: Path
    level: Level = UTTERANCE
    utt2spk: Path | None = None
    allow_commands: bool = False
    columns: Columns = field(default_factory=Columns)
    remote: Address | None = None

    @property
    def by_speaker(self) -> bool:
        """Whether the form itself is to say who speaks."""
        return self.level == SPEAKER and self.utt2spk is None


@dataclass(frozen=True)
class Form:
    """A form of corpora.

    Attributes:
        name: As ``--input-form`` has it.
        recognizes: Whether an input is of this form; it may look at the file system.
        read: Reads inputs of this form.
    """

    name: InputForm
    recognizes: Callable[[str], bool]
    read: Callable[[Sequence[str], Asked], Dataset]


def _read_folders(inputs: Sequence[str], asked: Asked) -> Dataset:
    utterances = [name for text in inputs for name in (expanded(text) if is_pattern(text) else [text])]
    found = read_folders(utterances, asked.out, asked.remote)
    beside = Path(inputs[0]) / "utt2spk"
    utt2spk = asked.utt2spk or (beside if len(inputs) == 1 and beside.is_file() else None)
    return AudioList(with_draw_ids(found, asked.level, utt2spk), asked.out)


def _read_manifests(inputs: Sequence[str], asked: Asked) -> Dataset:
    dataset, speakers = read_manifests([place_of(text) for text in inputs], asked.out, asked.remote)
    return _at_level(dataset, asked, speakers)


def _read_tar_shards(inputs: Sequence[str], asked: Asked) -> Dataset:
    return _at_level(read_tar_shards(inputs, asked.out, asked.remote), asked)


def _read_cuts(inputs: Sequence[str], asked: Asked) -> Dataset:
    path = Path(_only(inputs, "a CutSet"))
    dataset = read_cut_manifest(path, asked.out, allow_commands=asked.allow_commands, by_speaker=asked.by_speaker)
    return dataset if asked.by_speaker else _at_level(dataset, asked)


def _read_shar(inputs: Sequence[str], asked: Asked) -> Dataset:
    dataset = read_shar(Path(_only(inputs, "Shar")), asked.out, by_speaker=asked.by_speaker)
    return dataset if asked.by_speaker else _at_level(dataset, asked)


def _read_table(inputs: Sequence[str], asked: Asked) -> Dataset:
    dataset = read_table([Path(text) for text in inputs], asked.out, asked.columns, by_speaker=asked.by_speaker)
    return dataset if asked.by_speaker else _at_level(dataset, asked)


def _at_level(dataset: _Read, asked: Asked, speakers: Mapping[str, str] | None = None) -> _Read:
    """A dataset whose utterances share draws as the level says."""
    return replace(dataset, utterances=with_draw_ids(dataset.utterances, asked.level, asked.utt2spk, speakers))


def _only(inputs: Sequence[str], what: str) -> str:
    if len(inputs) > 1:
        raise ArgumentError(f"{what} is one input, and here are {len(inputs)}; run once for each")
    return inputs[0]


def _is_manifest(text: str) -> bool:
    return text.lower().endswith((".jsonl", ".json")) and not os.path.isdir(text)  # noqa: PTH112


def _is_tar(text: str) -> bool:
    ending = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
    return text.lower().endswith(ending) and not os.path.isdir(text)  # noqa: PTH112


# The first that recognizes an input reads it; files and folders are what nothing else recognizes.
FORMS: Final = (
    Form(LHOTSE, is_cut_manifest, _read_cuts),
    Form(SHAR, is_shar, _read_shar),
    Form(HUGGING_FACE, is_table, _read_table),
    Form(WEBDATASET, _is_tar, _read_tar_shards),
    Form(JSONL, _is_manifest, _read_manifests),
    Form(FILES, lambda _: True, _read_folders),
)
# The forms that are read and written at addresses (s3://…), too.
_AT_ADDRESSES: Final = frozenset({WEBDATASET, JSONL, FILES})
FORM_NAMES: Final = tuple(form.name for form in FORMS)


def read_inputs(inputs: Sequence[str], asked: Asked, form: str | None = None) -> Dataset:
    """Read inputs of one form.

    Args:
        inputs: Files, folders and patterns.
        asked: What the form is told beside them.
        form: One of ``FORM_NAMES``. Default: as each input is recognized.

    Raises:
        ArgumentError: There is no input, the form is unknown, or inputs are of several forms.
        ListError: An input cannot be read.
        OutputError: The output folder cannot be used.
    """
    if not inputs or not all(inputs):
        raise ArgumentError("no input is given, or its name is empty")
    if form is not None and form not in FORM_NAMES:
        raise ArgumentError(f"input_form is {form!r}; expected one of {', '.join(FORM_NAMES)}")
    inputs = [read_entry(text) if is_address(text) else text for text in inputs]
    chosen = {text: next(each for each in FORMS if form in {None, each.name} and (form or each.recognizes(text)))
              for text in inputs}  # fmt: skip
    for text, each in chosen.items():
        if asked.remote is not None and each.name not in _AT_ADDRESSES:
            raise ArgumentError(f"{asked.remote}: the form {each.name} is written into folders, not to addresses")
        if is_address(text) and each.name not in _AT_ADDRESSES:
            raise ListError(f"{printable(text, 300)}: the form {each.name} is read from paths, not from addresses")
    names = {each.name for each in chosen.values()}
    if len(names) > 1:
        shown = ", ".join(f"{printable(text, 100)} ({each.name})" for text, each in chosen.items())
        raise ArgumentError(f"inputs of several forms: {shown}; give those of one, or say which with input_form")
    return chosen[inputs[0]].read(list(inputs), asked)
