"""Anonymizes WebDataset shards in a pipeline of Ray Data, and writes shards again."""

from __future__ import annotations

import argparse
import io
import sys
from typing import Any

import soundfile

from mkc_fast.engine.cluster import AnonymizeBatch, RayCluster


def to_row(sample: dict[str, Any], ending: str) -> dict[str, Any]:
    """A row for AnonymizeBatch: the recording as ``bytes``, its key as ``id``; the other members stay as they are."""
    return {"id": sample.pop("__key__"), "bytes": sample.pop(ending), **sample}


def to_sample(row: dict[str, Any]) -> dict[str, Any]:
    """The sample that is written: the speech as a FLAC file, and the other members."""
    audio, rate, error = row.pop("audio"), int(row.pop("sampling_rate")), row.pop("error")
    del row["bank_ids"]  # whoever knows them can attack better
    content = io.BytesIO()
    if not error:
        soundfile.write(content, audio, rate, format="FLAC", subtype="PCM_16")
    # What begins with two underscores is not written.
    return {"__key__": row.pop("id"), "__error__": error, "flac": content.getvalue(), **row}


def main() -> int:
    """Anonymize the shards; returns 1 if a recording failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+", help="tar files, on paths that all machines see")
    parser.add_argument("--out", required=True, help="another folder, for the shards that are written")
    parser.add_argument("--model", required=True, help="directory made by mkc-fast export, or its address")
    parser.add_argument("--bank", required=True, help="directory made by mkc-fast bank build, or its address")
    parser.add_argument("--audio", default="flac", help="the ending of the recordings (default: flac)")
    parser.add_argument("--seed", type=int, help="repeatable draws")
    parser.add_argument("--ray", default="auto", help="local, auto, or the address of a cluster")
    parser.add_argument("--workers", type=int, default=1, help="how many actors anonymize")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each of them")
    given = parser.parse_args()

    # Ray Data keeps rows in Ray's object store. The class switches Ray's usage statistics off, too.
    with RayCluster(given.ray, object_store_bytes=512 << 20):
        import ray

        ray.data.DataContext.get_current().enable_progress_bars = False
        artifacts = {"model": given.model, "bank": given.bank, "seed": given.seed}
        rows = ray.data.read_webdataset(given.shards, decoder=None)
        samples = (
            rows.map(to_row, fn_args=[given.audio])
            .map_batches(
                AnonymizeBatch,
                fn_constructor_kwargs=artifacts,
                batch_size=16,
                concurrency=given.workers,
                num_cpus=1,
                num_gpus=given.gpus or None,
            )
            .map(to_sample)
            .materialize()  # computed once, for both of what follows
        )
        failed = samples.filter(lambda sample: bool(sample["__error__"])).select_columns(["__key__", "__error__"])
        samples.filter(lambda sample: not sample["__error__"]).write_webdataset(given.out, encoder=None)
        failures, total = failed.take_all(), samples.count()
    for failure in failures:
        print(f"failed: {failure['__key__']}: {failure['__error__']}", file=sys.stderr)
    print(f"{total - len(failures)} of {total} recordings anonymized")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
