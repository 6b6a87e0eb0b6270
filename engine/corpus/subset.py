"""Which bank entries the frames of a run draw from: all, or one random subset for all folders and workers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mkc_fast.engine.draws import check_entries, draw_entries
from mkc_fast.errors import MkcError, OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.engine.corpus.manifest import Manifest

logger = logging.getLogger("mkc_fast")


def entries_used(kmeans_num: int | None, bank_entries: int) -> int:
    """How many bank entries frames draw from: ``kmeans_num`` of them, but never more than the bank has."""
    if kmeans_num is None:
        return bank_entries
    if kmeans_num > bank_entries:
        logger.warning(
            "kmeans_num is %d, the bank has %d k-means models: all of them are used", kmeans_num, bank_entries
        )
    return len(draw_entries(bank_entries, kmeans_num, 0))


def random_subset(seed: int | None, manifests: Sequence[Manifest], bank_entries: int, num_used: int) -> tuple[int, ...]:
    """The bank entries that frames draw from: one subset for all folders and workers.

    It is drawn from the seed. Without a seed, it is the recorded one of a run that is continued, or a new one.

    Raises:
        OutputError: Folders have recorded draws from different subsets, or a record is no such subset.
    """
    if seed is not None:
        return tuple(draw_entries(bank_entries, num_used, seed).tolist())
    recorded: dict[tuple[int, ...], Manifest] = {}
    for manifest in manifests:
        if manifest.entries is None:
            continue
        try:
            entries = tuple(check_entries(manifest.entries, bank_entries).tolist())  # type: ignore[arg-type]
        except (MkcError, ValueError):
            entries = ()
        if len(entries) != num_used:
            raise OutputError(f"{manifest.path}: damaged; choose another folder or suffix, or --overwrite")
        recorded.setdefault(entries, manifest)
    if len(recorded) > 1:
        first, second = list(recorded.values())[:2]
        raise OutputError(
            f"{second.folder}: its draws are from another random subset than those in {first.folder}; "
            "continue them one by one"
        )
    if not recorded and any(manifest.continues for manifest in manifests):
        logger.warning(
            "without a seed and without recorded draws, this run draws from another random subset of %d k-means models "
            "than the run that it continues",
            num_used,
        )
    return next(iter(recorded), None) or tuple(draw_entries(bank_entries, num_used, None).tolist())
