"""The two artifact formats, ``model/`` and ``bank/``: what their JSON says and how a directory is opened."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mkc_fast import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MODEL_FORMAT = 1
BANK_FORMAT = 1
WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE, MODEL_FILE = "wavlm.onnx", "conformer.onnx", "vocoder.onnx", "model.json"
CENTROIDS_FILE, HALF_NORMS_FILE, BANK_FILE = "centroids.npy", "half_norms.npy", "bank.json"
# The vocoder once more, in the form that is fast on a CPU; it takes the frames of its pieces as inputs too.
CPU_VOCODER_FILE = "vocoder.cpu.onnx"
# In that graph's metadata: frames to either side that a piece needs.
PIECE_REACH = "piece_reach"
# The graphs once more, of the native operators, where those were there at export; weights lie beside each, in a .bin.
NATIVE_SUFFIX = ".native.onnx"
# The bank.json of 1,165 models of 1,024 clusters, all of them listed as unused, has 15 MB.
_MAX_INFO_BYTES = 1 << 26
# What ends a line, moves a terminal's cursor, or is half a character that no output can encode.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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
    if 0 in (info.sample_rate, info.hop, info.min_samples, info.dim):
        raise ArtifactError(f"{directory / MODEL_FILE}: sample_rate, hop, min_samples and dim must not be 0")
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
    try:
        if not directory.is_dir():
            raise ArtifactError(f"{directory}: no such directory")
        if path.exists() and not path.is_file():  # a pipe may never begin, a device never end
            raise ArtifactError(f"{path}: not a regular file")
        if path.stat().st_size > _MAX_INFO_BYTES:
            raise ArtifactError(f"{path}: larger than {_MAX_INFO_BYTES} bytes")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{directory}: holds no {name}") from None
    except (OSError, ValueError, RecursionError):
        raise ArtifactError(f"{path}: not readable as JSON") from None
    if not isinstance(loaded, dict) or loaded.get("format_version") != version:
        found = repr(loaded.get("format_version") if isinstance(loaded, dict) else None)[:20]
        raise ArtifactError(f"{path}: format version {found}, this program reads {version}; make the directory again")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    missing = [field for field in fields if field not in loaded]
    if missing:
        raise ArtifactError(f"{path}: lacks {', '.join(missing)}")
    for field, annotation in fields.items():
        _check_type(path, field, str(annotation), loaded[field])
    return kind(**{field: loaded[field] for field in fields})


def _is_int(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _NO_TEXT.search(value)


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _check_type(path: Path, field: str, annotation: str, value: object) -> None:
    checks: dict[str, Callable[[object], bool]] = {
        "int": _is_int,
        "str": _is_text,
        "list[str]": lambda v: _is_list(v, _is_text),
        "list[int]": lambda v: _is_list(v, _is_int),
        "list[list[int]]": lambda v: _is_list(v, lambda item: _is_list(item, _is_int)),
        "dict[str, str]": lambda v: isinstance(v, dict) and all(map(_is_text, [*v, *v.values()])),
    }
    if not checks[annotation](value):
        raise ArtifactError(f"{path}: {field} is not of type {annotation}")


def _map(path: Path, dtype: str, ndim: int) -> NDArray[Any]:
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: not a regular file")
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, "r")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; build the bank again") from None
    except Exception as error:  # a damaged header can raise nearly anything
        raise ArtifactError(f"{path}: not a readable array ({type(error).__name__})") from None
    if array.dtype != np.dtype(dtype) or array.ndim != ndim or not array.flags.c_contiguous:
        found = f"{array.shape} of {array.dtype}"[:100]
        raise ArtifactError(f"{path}: expected {ndim} axes of {dtype} in C order, found {found}")
    return array
