"""A cache of features: its files, and how it is opened and read."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mkc_fast.engine.artifacts import MODEL_FILE, read_model_info
from mkc_fast.engine.atomic_files import Contents
from mkc_fast.errors import ArtifactError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import ModelInfo

CACHE_FORMAT: Final = 1
FACTS_FILE, INDEX_FILE = "features.json", "index.jsonl"
FLOAT32, FLOAT16 = "float32", "float16"
DTYPES = (FLOAT32, FLOAT16)
CONTENTS = Contents(re.compile(r"features\.json|index\.jsonl|shard-\d{6}\.npy|\..+\.\d+\.mkc-fast\.tmp"), FACTS_FILE)
# Facts of a million utterances need less.
_MAX_FACTS_BYTES = 1 << 28


def shard_file(number: int) -> str:
    """The file of a shard: (frames, D), in the form that ``numpy.load`` maps."""
    return f"shard-{number:06d}.npy"


@dataclass(frozen=True)
class EncoderFacts:
    """What features depend on, of the model that they were computed with.

    Attributes:
        digest: Of all of these together.
        wavlm_sha256: Of the checkpoint.
        layer: Whose output the features are.
        dim: D.
        hop: Samples a frame.
        min_samples: Samples that the first frame needs.
        sample_rate: Of the speech, in Hz.
    """

    digest: str
    wavlm_sha256: str
    layer: int
    dim: int
    hop: int
    min_samples: int
    sample_rate: int


def encoder_facts(info: ModelInfo) -> EncoderFacts:
    """The facts of a model's encoder; models that differ in conformer or vocoder alone have the same."""
    facts = (info.sources.get("wavlm", ""), info.layer, info.dim, info.hop, info.min_samples, info.sample_rate)
    digest = hashlib.sha256(json.dumps(["features 1", *facts]).encode()).hexdigest()[:16]
    return EncoderFacts(digest, *facts)


@dataclass(frozen=True)
class Entry:
    """Where the features of an utterance are.

    Attributes:
        id: Of the utterance.
        speaker: Who speaks; None where that is not known.
        shard: The number of the file.
        offset: The row of the first frame in it.
        frames: T.
    """

    id: str
    speaker: str | None
    shard: int
    offset: int
    frames: int


@dataclass(frozen=True)
class CacheFacts:
    """What ``features.json`` says.

    Attributes:
        encoder: What the features depend on.
        dtype: ``float32`` or ``float16``.
        shard_frames: Rows of each shard.
        utterances: In the index.
        failed: Recordings that could not be read, and why.
        format_version: Of the directory's layout.
    """

    encoder: EncoderFacts
    dtype: str
    shard_frames: list[int]
    utterances: int
    failed: dict[str, str]
    format_version: int = CACHE_FORMAT

    def as_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"


class FeatureCache:
    """Features by utterance, mapped from disk; one may be read by several threads.

    Attributes:
        facts: What is known of all of it.
        entries: Of each utterance, in the order of the list.
    """

    def __init__(self, facts: CacheFacts, entries: list[Entry], shards: Sequence[NDArray[Any]]) -> None:
        """Use ``FeatureCache.open``."""
        self.facts, self.entries, self._shards = facts, entries, shards

    @classmethod
    def open(cls, directory: Path, model: Path | None = None) -> FeatureCache:
        """Map a directory that ``make_features`` wrote.

        Args:
            directory: Of the cache.
            model: Exported model whose features are expected.

        Raises:
            ArtifactError: It is missing, damaged, of another format version, or of another model than ``model``.
        """
        facts = _read_facts(directory)
        if model is not None:
            expected = encoder_facts(read_model_info(model))
            if facts.encoder != expected:
                changed = [name for name in asdict(expected) if getattr(facts.encoder, name) != getattr(expected, name)]
                raise ArtifactError(
                    f"{directory}: features of another model than {model / MODEL_FILE}: {', '.join(changed[1:])} differ"
                )
        shards = [
            _map_shard(directory / shard_file(number), rows, facts) for number, rows in enumerate(facts.shard_frames)
        ]
        return cls(facts, list(_read_index(directory / INDEX_FILE, facts)), shards)

    def read(self, index: int, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Features of an utterance, or frames ``begin`` to ``end`` of them: (n, D) float32, a copy."""
        entry = self.entries[index]
        end = entry.frames if end is None else min(end, entry.frames)
        rows = self._shards[entry.shard][entry.offset + begin : entry.offset + end]
        return np.array(rows, np.float32)


def _read_facts(directory: Path) -> CacheFacts:
    path = directory / FACTS_FILE
    try:
        if path.stat().st_size > _MAX_FACTS_BYTES:
            raise ValueError("too large")
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{directory}: no cache of features: it has no {FACTS_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable ({printable(str(error), 100)})") from None
    version = said.get("format_version") if isinstance(said, dict) else None
    if version != CACHE_FORMAT:
        raise ArtifactError(f"{path}: format version {version!r:.20}, expected {CACHE_FORMAT}; make the cache again")
    try:
        sizes: list[object] = [said["encoder"]["dim"], said["utterances"], *said["shard_frames"]]
        facts = CacheFacts(**{**said, "encoder": EncoderFacts(**said["encoder"])})
    except (TypeError, KeyError):
        raise ArtifactError(f"{path}: damaged; make the cache again") from None
    if facts.dtype not in DTYPES or any(type(size) is not int or size < 0 for size in sizes):
        raise ArtifactError(f"{path}: damaged; make the cache again")
    return facts


def _map_shard(path: Path, rows: int, facts: CacheFacts) -> NDArray[Any]:
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({printable(str(error), 100)})") from None
    if mapped.shape != (rows, facts.encoder.dim) or mapped.dtype != facts.dtype:
        raise ArtifactError(
            f"{path}: {mapped.shape} {mapped.dtype}, expected {(rows, facts.encoder.dim)} {facts.dtype}"
        )
    return mapped


def _read_index(path: Path, facts: CacheFacts) -> Iterator[Entry]:
    count = 0
    try:
        with path.open(encoding="utf-8") as file:
            for count, line in enumerate(file, 1):  # noqa: B007
                yield _entry(line, facts)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}, line {count}: not readable ({printable(str(error), 100)})") from None
    if count != facts.utterances:
        raise ArtifactError(f"{path}: {count} utterances, expected {facts.utterances}; make the cache again")


def _entry(line: str, facts: CacheFacts) -> Entry:
    said = json.loads(line)
    entry = Entry(**said)
    numbers: list[object] = [said["shard"], said["offset"], said["frames"]]
    if (
        type(said["id"]) is not str
        or type(said["speaker"]) not in (str, type(None))
        or any(type(number) is not int or number < 0 for number in numbers)
        or entry.shard >= len(facts.shard_frames)
        or not 0 < entry.frames <= facts.shard_frames[entry.shard] - entry.offset
    ):
        raise ValueError("does not fit the shards")
    return entry
