"""The two artifact formats, ``model/`` and ``bank/``: what their JSON says and how a directory is opened."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mkc_fast import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL_FORMAT = 1
BANK_FORMAT = 1
WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE, MODEL_FILE = "wavlm.onnx", "conformer.onnx", "vocoder.onnx", "model.json"
CENTROIDS_FILE, HALF_NORMS_FILE, BANK_FILE = "centroids.npy", "half_norms.npy", "bank.json"


@dataclass(frozen=True)
class ModelInfo:
    """What ``model.json`` says.

    Attributes:
        sample_rate: Of input and output, in Hz.
        hop: Samples a frame, of the encoder and of the vocoder alike.
        min_samples: Samples that the first frame needs; S samples give ``(S - min_samples) // hop + 1`` frames.
        dim: D, dimensions of a feature.
        layer: The WavLM layer whose output the features are.
        precision: Of the graphs' weights and arithmetic.
        conformer_layers: 0 where the checkpoint held a vocoder alone; ``restore`` then changes nothing.
        vocoder_reach: Frames to either side that can change a frame's samples.
        sources: SHA-256 of each source file, by role.
        format_version: Of this directory's layout.
    """

    sample_rate: int
    hop: int
    min_samples: int
    dim: int
    layer: int
    precision: str
    conformer_layers: int
    vocoder_reach: int
    sources: dict[str, str]
    format_version: int = MODEL_FORMAT

    def frames(self, samples: int) -> int:
        """Frames that so many samples give (0 when they are too few)."""
        return max(0, (samples - self.min_samples) // self.hop + 1)


@dataclass(frozen=True)
class BankInfo:
    """What ``bank.json`` says.

    Attributes:
        names: Of the N entries.
        num_clusters: K of each entry.
        sources: SHA-256 of each entry's source file.
        unused: Clusters of each entry that no training frame fell into, as far as its model says.
        duplicates: Clusters of each entry equal to one of a lower id; they are never chosen.
        dim: D, dimensions of a centroid.
        format_version: Of this directory's layout.
    """

    names: list[str]
    num_clusters: list[int]
    sources: list[str]
    unused: list[list[int]]
    duplicates: list[list[int]]
    dim: int
    format_version: int = BANK_FORMAT


@dataclass(frozen=True)
class Bank:
    """All k-means models as one stacked tensor, mapped from disk.

    Attributes:
        info: Names and sizes of the N entries.
        centroids: (N, K, D) float32; rows past an entry's own K are 0.
        half_norms: (N, K) float64, half the squared norm of each centroid; +inf on rows past an entry's own K.
    """

    info: BankInfo
    centroids: NDArray[np.float32]
    half_norms: NDArray[np.float64]

    def __len__(self) -> int:
        """The number of entries, N."""
        return len(self.info.names)


_Info = TypeVar("_Info", ModelInfo, BankInfo)


def read_model_info(directory: Path) -> ModelInfo:
    """Read ``model.json`` and check that the graphs are there.

    Raises:
        ArtifactError: The directory is missing, incomplete, or of another format version.
    """
    info = _read_info(directory, MODEL_FILE, ModelInfo, MODEL_FORMAT)
    for name in (WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE):
        if not (directory / name).is_file():
            raise ArtifactError(f"{directory}: {name} is missing; export the model again")
    return info


def open_bank(directory: Path) -> Bank:
    """Map a bank; the time and memory it takes do not grow with the number of its entries.

    Raises:
        ArtifactError: The directory is missing, incomplete, damaged, or of another format version.
    """
    info = _read_info(directory, BANK_FILE, BankInfo, BANK_FORMAT)
    centroids = _map(directory / CENTROIDS_FILE, "float32", 3)
    half_norms = _map(directory / HALF_NORMS_FILE, "float64", 2)
    entries, clusters, dim = centroids.shape
    found = (entries, entries, entries, (entries, clusters), dim)
    said = (len(info.names), len(info.num_clusters), len(info.sources), half_norms.shape, info.dim)
    if (
        found != said
        or not entries
        or len(info.unused) != entries
        or len(info.duplicates) != entries
        or any(not 0 < k <= clusters for k in info.num_clusters)
    ):
        raise ArtifactError(f"{directory}: {BANK_FILE} and the arrays do not fit together; build the bank again")
    return Bank(info, centroids, half_norms)


def write_info(directory: Path, info: ModelInfo | BankInfo) -> None:
    """Write ``model.json`` or ``bank.json`` into a directory being made."""
    name = MODEL_FILE if isinstance(info, ModelInfo) else BANK_FILE
    (directory / name).write_text(json.dumps(dataclasses.asdict(info), indent=1) + "\n", encoding="utf-8")


def _read_info(directory: Path, name: str, kind: type[_Info], version: int) -> _Info:
    path = directory / name
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory")
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{directory}: holds no {name}") from None
    except (OSError, ValueError, RecursionError):
        raise ArtifactError(f"{path}: not readable as JSON") from None
    if not isinstance(loaded, dict) or loaded.get("format_version") != version:
        found = loaded.get("format_version") if isinstance(loaded, dict) else None
        raise ArtifactError(f"{path}: format version {found}, this program reads {version}; make the directory again")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    missing = [field for field in fields if field not in loaded]
    if missing:
        raise ArtifactError(f"{path}: lacks {', '.join(missing)}")
    for field, annotation in fields.items():
        _check_type(path, field, str(annotation), loaded[field])
    return kind(**{field: loaded[field] for field in fields})


def _check_type(path: Path, field: str, annotation: str, value: Any) -> None:
    fits = {
        "int": lambda v: type(v) is int and v >= 0,
        "str": lambda v: isinstance(v, str),
        "list[str]": lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v),
        "list[int]": lambda v: isinstance(v, list) and all(type(item) is int for item in v),
        "list[list[int]]": lambda v: isinstance(v, list) and all(isinstance(item, list) for item in v),
        "dict[str, str]": lambda v: isinstance(v, dict) and all(isinstance(item, str) for item in v.values()),
    }[annotation]
    if not fits(value):
        raise ArtifactError(f"{path}: {field} is not of type {annotation}")


def _map(path: Path, dtype: str, ndim: int) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; build the bank again") from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ArtifactError(f"{path}: not a readable array ({str(error).splitlines()[0][:100]})") from None
    if (
        not isinstance(array, np.memmap)
        or array.dtype != np.dtype(dtype)
        or array.ndim != ndim
        or not array.flags.c_contiguous
    ):
        raise ArtifactError(f"{path}: expected {ndim} axes of {dtype}, found {array.shape} of {array.dtype}")
    return array
