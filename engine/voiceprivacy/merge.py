"""Joins the shards of all sets in a folder, which ``vpc run --shard`` has written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.corpus.anonymize import DEFAULT_SUFFIX
from mkc_fast.engine.corpus.merge import merge_dataset
from mkc_fast.engine.datasets.kaldi import AUDIO_FOLDER, read_data_directory
from mkc_fast.engine.datasets.shards import parsed_folder
from mkc_fast.engine.voiceprivacy.experiment import checkout_of
from mkc_fast.errors import ListError

if TYPE_CHECKING:
    from os import PathLike

    from mkc_fast.engine.corpus.merge import Merged


def merge_sets(
    data: str | PathLike[str],
    *,
    anon_suffix: str = DEFAULT_SUFFIX,
    results_dir: str = AUDIO_FOLDER,
    allow_commands: bool = False,
    allow_mixed: bool = False,
) -> list[Merged]:
    """Join the shards of every data directory in a folder that has shards.

    Args:
        data: The folder, ``data`` of a checkout.
        anon_suffix: Of the anonymized directories. In a grid, those of all pairs begin with it.
        results_dir: Name of the folder of recordings in them.
        allow_commands: As for the shards.
        allow_mixed: As for ``merge_corpus``.

    Raises:
        ListError: There are no shards, or a list is unreadable.
        OutputError: As for ``merge_corpus``.
    """
    folder = Path(data)
    checkout = checkout_of(folder)
    if checkout is None:
        folder = folder.absolute()
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise ListError(f"{folder}: cannot be read ({error.strerror})") from None
    outs = sorted({parsed[0] for name in names if (parsed := parsed_folder(name)) is not None})
    merged = []
    for out in outs:
        # The longest, since the name of a set may be the beginning of another's.
        originals = [name for name in names if out.startswith(name + anon_suffix)]
        if originals:
            name = max(originals, key=len)
            directory = read_data_directory(
                folder / name, out.removeprefix(name), allow_commands=allow_commands, audio_folder=results_dir
            )
            merged.append(merge_dataset(replace(directory, relative_to=checkout), allow_mixed=allow_mixed))
    if not merged:
        raise ListError(f"{folder}: has no shards of directories whose names end in {anon_suffix}")
    return merged
