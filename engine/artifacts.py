"""The two artifact formats, ``model/`` and ``bank/``: what their JSON says and how a directory is opened."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mkc_fast.engine.atomic_files import Contents, atomic_file, open_regular, sha256_of
from mkc_fast.errors import ArtifactError
from mkc_fast.kernels import HalfCentroids
from mkc_fast.names import FP16, FP32, GRAPH_FILES, GRAPHS, INT8, INT16, VOCODER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# 2: with the size and the digest of every file.
MODEL_FORMAT = 2
BANK_FORMAT = 2
MODEL_FILE = "model.json"
CENTROIDS_FILE, HALF_NORMS_FILE, BANK_FILE = "centroids.npy", "half_norms.npy", "bank.json"
# A copy of the centroids in float16, where one was asked for.
HALF_FILE, HALF_ERRORS_FILE = "centroids_half.npy", "half_errors.npy"
# The vocoder once more, in the form that is fast on a CPU; it takes the frames of its pieces as inputs too.
CPU_VOCODER_FILE = f"{VOCODER}.cpu.onnx"
# In that graph's metadata: frames to either side that a piece needs.
PIECE_REACH = "piece_reach"
# The graphs once more, of the native operators, where those were there at export, in float32 and in whole numbers;
# weights lie beside each, in a .bin.
_NATIVE = "native"
# The graphs once more, in the fused operators that ONNX Runtime has for CUDA, in float32 and in half precision; weights
# lie beside each, in a .bin.
CUDA_SUFFIX, CUDA_HALF_SUFFIX = ".cuda.onnx", f".cuda.{FP16}.onnx"
# The names of a model's files: the graphs, their forms for one precision or device, and weights beside them.
_MODEL_NAMES = re.compile(
    rf"model\.json|({'|'.join(GRAPHS)})(\.(cpu|{_NATIVE}(\.({INT16}|{INT8}))?|(stage\d\.)?cuda(\.{FP16})?|{FP16}|{INT8}))?\.(onnx(\.data)?|bin)"
    rf"|{VOCODER}\.residual\.{FP16}\.npz|\..+\.\d+\.mkc-fast\.tmp"
)
_BANK_NAMES = re.compile(r"bank\.json|centroids(_half)?\.npy|half_(norms|errors)\.npy|\..+\.\d+\.mkc-fast\.tmp")
# The field of both JSON files that has the digest of all others.
_DIGEST = "digest"
# Facts of a model that every graph of it has in its metadata.
GRAPH_FACTS = ("sample_rate", "hop", "min_samples", "dim", "layer", "conformer_layers", "vocoder_reach")
# Fields that say something of the files, not of what is computed.
_NOT_IDENTITY = frozenset({"files", "checks", "warnings", "format_version", "training", "half_exponents"})
# Fields that are left out where they are empty.
_OPTIONAL = frozenset({"training", "half_exponents"})
# Threads that compute digests of an artifact's files.
_THREADS = 4
# The bank.json of 1,165 models of 1,024 clusters, all of them listed as unused, has 15 MB.
_MAX_INFO_BYTES = 1 << 26
# What ends a line, moves a terminal's cursor, or is half a character that no output can encode.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class FileFacts:
    """What the JSON says of a file beside it: its size, and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


# How errors are measured: absolute values and their largest, or root mean squares.
LARGEST, RMS = "largest", "rms"
# What became of a graph that was judged at export.
CHECK_PASSED, CHECK_INEXACT, CHECK_LEFT_OUT = "passed", "inexact", "left out"


@dataclass(frozen=True)
class GraphCheck:
    """How far a graph is from float64, beside what PyTorch's own float32 loses there, on one kind of input.

    Attributes:
        measure: ``LARGEST`` or ``RMS``, of all numbers here.
        inputs: The kind of input on which the graph comes nearest to its bound.
        error: Of the graph, against the PyTorch module in double.
        float32_error: Of the PyTorch module in float32, against the same.
        scale: Of what the module in double gives.
        bound: What the error may be.
        status: ``CHECK_PASSED``; ``CHECK_INEXACT``: past the bound and written all the same, as was asked for; or
            ``CHECK_LEFT_OUT``: past it and not written, since another form of the same graph serves.
    """

    measure: str
    inputs: str
    error: float
    float32_error: float
    scale: float
    bound: float
    status: str


def native_file(file: str, precision: str = FP32) -> str:
    """The native form of a graph's file: ``wavlm.onnx`` → ``wavlm.native.onnx`` or ``wavlm.native.int16.onnx``."""
    return f"{file.removesuffix('.onnx')}.{_NATIVE}{'' if precision == FP32 else f'.{precision}'}.onnx"


def is_native(file: str) -> bool:
    """Whether a graph's file is of the native operators."""
    return f".{_NATIVE}." in file


def cuda_file(file: str, *, half: bool) -> str:
    """The form for CUDA of a graph's file: ``wavlm.onnx`` → ``wavlm.cuda.onnx`` or ``wavlm.cuda.fp16.onnx``."""
    return file.removesuffix(".onnx") + (CUDA_HALF_SUFFIX if half else CUDA_SUFFIX)


def weights_file(graph: Path) -> Path:
    """Where the weights of a native graph, or of one for CUDA, lie."""
    return graph.with_name(graph.name.removesuffix(".onnx") + ".bin")


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
        files: Every other file of the directory, by name; ``write_info`` fills it in.
        checks: How far each graph is from float64, by its file.
        warnings: What every load of the model says, a line each: of graphs further from float64 than passes.
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
    files: dict[str, FileFacts] = field(default_factory=dict)
    checks: dict[str, GraphCheck] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def frames(self, samples: int) -> int:
        """Frames that so many samples give (0 when they are too few)."""
        return max(0, (samples - self.min_samples) // self.hop + 1)

    def whole_frames(self, seconds: float) -> int:
        """Whole frames of so many seconds, as buckets and batches are counted."""
        return math.floor(seconds * self.sample_rate / self.hop)


@dataclass(frozen=True)
class TrainedEntry:
    """How one entry of a bank was trained.

    Attributes:
        utterances: That its features come from.
        frames: Of these.
        inertia: Mean squared distance of a frame to its nearest centroid.
        seconds: That the fit took.
    """

    utterances: int
    frames: int
    inertia: float
    seconds: float


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
        files: Every other file of the directory, by name; ``write_info`` fills it in.
        training: What is known of each entry's training; empty where the models came from elsewhere.
        half_exponents: Of the powers of two in the copy in float16; empty where there is no copy.
    """

    names: list[str]
    num_clusters: list[int]
    sources: list[str]
    unused: list[list[int]]
    duplicates: list[list[int]]
    dim: int
    format_version: int = BANK_FORMAT
    files: dict[str, FileFacts] = field(default_factory=dict)
    training: list[TrainedEntry] = field(default_factory=list)
    half_exponents: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Bank:
    """All k-means models as one stacked tensor, mapped from disk.

    Attributes:
        info: Names and sizes of the N entries.
        centroids: (N, K, D) float32; rows past an entry's own K are 0.
        half_norms: (N, K) float64, half the squared norm of each centroid; +inf on rows past an entry's own K.
        half: A copy in float16, for the look-up on a CPU; None where the bank has none.
    """

    info: BankInfo
    centroids: NDArray[np.float32]
    half_norms: NDArray[np.float64]
    half: HalfCentroids | None = None

    def __len__(self) -> int:
        """The number of entries, N."""
        return len(self.info.names)


_Info = TypeVar("_Info", bound=ModelInfo | BankInfo)


def model_contents(*sources: Path | None) -> Contents:
    """What an exported model's directory may hold, to be replaced by one that is made from ``sources``."""
    return Contents(_MODEL_NAMES, MODEL_FILE, tuple(source for source in sources if source is not None))


def bank_contents(*sources: Path) -> Contents:
    """What a bank's directory may hold, to be replaced by one that is made from ``sources``."""
    return Contents(_BANK_NAMES, BANK_FILE, sources)


def read_model_info(directory: Path) -> ModelInfo:
    """Read ``model.json`` and check that its files are there, each of its size; digests are ``Verification``'s.

    Raises:
        ArtifactError: The directory is missing, incomplete, changed, or of another format version.
    """
    info = _read_info(directory, MODEL_FILE, ModelInfo)
    for name in GRAPH_FILES:
        if name not in info.files:
            raise ArtifactError(f"{directory / MODEL_FILE}: does not list {name}; export the model again")
    _check_sizes(directory, info.files, "export the model again")
    return info


def open_bank(directory: Path) -> Bank:
    """Map a bank; the time and memory it takes do not grow with the number of its entries.

    Its digests are ``Verification``'s.

    Raises:
        ArtifactError: The directory is missing, incomplete, damaged, or of another format version.
    """
    info = _read_info(directory, BANK_FILE, BankInfo)
    for name in (CENTROIDS_FILE, HALF_NORMS_FILE):
        if name not in info.files:
            raise ArtifactError(f"{directory / BANK_FILE}: does not list {name}; build the bank again")
    _check_sizes(directory, info.files, "build the bank again")
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
    return Bank(info, centroids, half_norms, _open_half(directory, info, centroids.shape))


def _open_half(directory: Path, info: BankInfo, shape: tuple[int, ...]) -> HalfCentroids | None:
    if HALF_FILE not in info.files:
        return None
    if HALF_ERRORS_FILE not in info.files:
        raise ArtifactError(f"{directory / BANK_FILE}: does not list {HALF_ERRORS_FILE}; build the bank again")
    values, errors = _map(directory / HALF_FILE, "float16", 3), _map(directory / HALF_ERRORS_FILE, "float64", 2)
    if (values.shape, errors.shape, len(info.half_exponents)) != (shape, shape[:2], shape[0]):
        raise ArtifactError(f"{directory}: {HALF_FILE} and the bank do not fit together; build the bank again")
    return HalfCentroids(values, errors, np.asarray(info.half_exponents))


def read_info(directory: Path) -> ModelInfo | BankInfo:
    """Read ``model.json`` or ``bank.json``, whichever the directory holds, and check the sizes of its files.

    Raises:
        ArtifactError: It holds neither, or what it holds is damaged.
    """
    if (directory / BANK_FILE).exists() and not (directory / MODEL_FILE).exists():
        return open_bank(directory).info
    return read_model_info(directory)


def listed_files(directory: Path, json_file: str) -> dict[str, FileFacts]:
    """The files that ``model.json`` or ``bank.json`` lists, which need not be there.

    Raises:
        ArtifactError: The JSON is missing, damaged, or of another format version.
    """
    kind: type[ModelInfo | BankInfo] = ModelInfo if json_file == MODEL_FILE else BankInfo
    return _read_info(directory, json_file, kind).files


def write_info(directory: Path, info: _Info, files: Mapping[str, FileFacts] | None = None) -> _Info:
    """Write ``model.json`` or ``bank.json`` into a directory, with the size and the digest of every file there.

    Args:
        directory: Holds all its other files already.
        info: What to write; its ``files`` are replaced.
        files: What is known of the files already; default: each is read.

    Returns:
        What was written.

    Raises:
        ArtifactError: A value is beyond its bounds.
        OSError: A file cannot be read or written.
    """
    path = directory / (MODEL_FILE if isinstance(info, ModelInfo) else BANK_FILE)
    if files is None:
        files = _facts_of(sorted(file for file in directory.iterdir() if file.is_file() and file.name != path.name))
    complete = dataclasses.replace(info, files=dict(files))
    check_info(path, complete)
    said = dataclasses.asdict(complete)
    for name in _OPTIONAL & said.keys():
        if not said[name]:
            del said[name]
    said[_DIGEST] = _digest_of(said)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return complete


def check_info(path: Path, info: ModelInfo | BankInfo) -> None:
    """Check that every value is of its type and within its bounds.

    Raises:
        ArtifactError: One is not; the message begins with ``path``.
    """
    _check_fields(path, _rules(type(info)), dataclasses.asdict(info))


def check_dimensions(path: Path, bank: Bank, model: str, info: ModelInfo) -> None:
    """Check that a bank has the dimensions of a model's features.

    Args:
        path: The bank's directory, for the error.
        bank: As it was opened.
        model: What the error calls the model.
        info: Of the model.

    Raises:
        ArtifactError: It has others.
    """
    if bank.info.dim != info.dim:
        raise ArtifactError(f"{path}: has {bank.info.dim} dimensions, {model} has {info.dim}")


def directory_name(path: Path) -> str:
    """The name of an artifact's directory, also where its path is ``.``."""
    return path.name or path.absolute().name


def identity(path: Path) -> str:
    """What tells one artifact from another: a digest of what its JSON says, but for the files.

    A model that was exported again from the same checkpoints, or in another precision too, is the same.

    Raises:
        ArtifactError: The JSON is not readable.
    """
    kind: type[ModelInfo | BankInfo] = ModelInfo if path.name == MODEL_FILE else BankInfo
    said = dataclasses.asdict(_read_info(path.parent, path.name, kind))
    return _digest_of({name: value for name, value in said.items() if name not in _NOT_IDENTITY})[:16]


def graph_metadata(info: ModelInfo) -> dict[str, str]:
    """What every graph of a model has in its metadata, so that ``model.json`` cannot say anything else."""
    return {name: str(getattr(info, name)) for name in GRAPH_FACTS}


def _facts_of(files: list[Path]) -> dict[str, FileFacts]:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        digests = pool.map(sha256_of, files)
        return {file.name: FileFacts(file.stat().st_size, digest) for file, digest in zip(files, digests, strict=True)}


def _check_sizes(directory: Path, files: Mapping[str, FileFacts], repair: str) -> None:
    for name, facts in files.items():
        path = directory / name
        try:
            os.close(open_regular(path))
            size = path.stat().st_size
        except FileNotFoundError:
            raise ArtifactError(f"{directory}: {name} is missing; {repair}") from None
        except OSError as error:
            raise ArtifactError(f"{path}: not a readable regular file ({error.strerror}); {repair}") from None
        if size != facts.bytes:
            raise ArtifactError(f"{path}: has {size} bytes, expected {facts.bytes}; {repair}")


def _read_info(directory: Path, name: str, kind: type[_Info]) -> _Info:
    path = directory / name
    rules, version = _rules(kind), MODEL_FORMAT if kind is ModelInfo else BANK_FORMAT
    repair = "export the model again" if kind is ModelInfo else "build the bank again"
    try:
        if not directory.is_dir():
            raise ArtifactError(f"{directory}: no such directory")
        with os.fdopen(open_regular(path), "rb") as file:
            data = file.read(_MAX_INFO_BYTES + 1)
        if len(data) > _MAX_INFO_BYTES:
            raise ArtifactError(f"{path}: larger than {_MAX_INFO_BYTES} bytes")
        loaded = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{directory}: holds no {name}") from None
    except (OSError, ValueError, RecursionError):
        raise ArtifactError(f"{path}: not readable as JSON") from None
    said = loaded.get("format_version") if isinstance(loaded, dict) else None
    if type(said) is not int or said != version:
        raise ArtifactError(f"{path}: format version {_shown(said)}, this program reads {version}; {repair}")
    missing = [name for name in (*rules, _DIGEST) if name not in loaded and name not in _OPTIONAL]
    if missing:
        raise ArtifactError(f"{path}: lacks {', '.join(missing)}; {repair}")
    _check_fields(path, rules, loaded)
    if loaded[_DIGEST] != _digest_of({name: value for name, value in loaded.items() if name != _DIGEST}):
        raise ArtifactError(f"{path}: was changed after it was written; {repair}")
    made: dict[str, object] = {"files": {name: FileFacts(**facts) for name, facts in loaded["files"].items()}}
    if "checks" in rules:
        made["checks"] = {name: GraphCheck(**check) for name, check in loaded["checks"].items()}
    if "training" in loaded and "training" in rules:
        made["training"] = [TrainedEntry(**entry) for entry in loaded["training"]]
    return kind(**{name: loaded[name] for name in rules if name in loaded} | made)


def _digest_of(said: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


# The rules: what a field must be, in words, and whether a value is that.
_Rule = tuple[str, "Callable[[object], bool]"]


def _number(least: int, most: int) -> _Rule:
    return f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _NO_TEXT.search(value)


def _list_of(rule: _Rule) -> _Rule:
    words, fits = rule
    return f"a list, each {words}", lambda value: isinstance(value, list) and all(map(fits, value))


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


def _is_file_list(value: object) -> bool:
    return isinstance(value, dict) and all(_is_file_name(name) and _are_facts(facts) for name, facts in value.items())


def _is_file_name(name: object) -> bool:
    return _is_text(name) and name not in {"", ".", "..", MODEL_FILE, BANK_FILE} and not set("/\\") & set(str(name))


def _are_facts(facts: object) -> bool:
    return (
        isinstance(facts, dict)
        and facts.keys() == {"bytes", "sha256"}
        and type(facts["bytes"]) is int
        and 0 <= facts["bytes"] <= _MAX_FILE_BYTES
        and isinstance(facts["sha256"], str)
        and _SHA256.fullmatch(facts["sha256"]) is not None
    )


def _is_check_list(value: object) -> bool:
    return isinstance(value, dict) and all(_is_file_name(name) and _is_check(check) for name, check in value.items())


def _is_check(check: object) -> bool:
    if not isinstance(check, dict) or check.keys() != {item.name for item in dataclasses.fields(GraphCheck)}:
        return False
    return (
        check["measure"] in (LARGEST, RMS)
        and check["status"] in (CHECK_PASSED, CHECK_INEXACT, CHECK_LEFT_OUT)
        and _is_text(check["inputs"])
        and all(_is_magnitude(check[name]) for name in ("error", "float32_error", "scale", "bound"))
    )


def _is_magnitude(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _is_training(value: object) -> bool:
    names = {item.name for item in dataclasses.fields(TrainedEntry)}
    return isinstance(value, list) and all(
        isinstance(entry, dict) and entry.keys() == names and all(map(_is_magnitude, entry.values())) for entry in value
    )


_MAX_FILE_BYTES = 1 << 50
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXT: _Rule = ("one line of text", _is_text)
_FILES: _Rule = ("a table of file names with their bytes and sha256", _is_file_list)
# As export.checkpoints limits them, where a checkpoint says them.
_DIM = _number(1, 1 << 20)
_CLUSTERS = _number(0, 1 << 24)
_FORMAT = _number(1, 1 << 10)
_MODEL_RULES: dict[str, _Rule] = {
    "sample_rate": _number(1000, 384_000),
    "hop": _number(1, 1 << 14),
    "min_samples": _number(1, 1 << 20),
    "dim": _DIM,
    "layer": _number(1, 1 << 10),
    "precision": _TEXT,
    "conformer_layers": _number(0, 1 << 10),
    "vocoder_reach": _number(0, 1 << 14),
    "sources": ("a table of text", _are_texts),
    "format_version": _FORMAT,
    "files": _FILES,
    "checks": ("a table of graphs with their errors", _is_check_list),
    "warnings": _list_of(_TEXT),
}
_BANK_RULES: dict[str, _Rule] = {
    "names": _list_of(_TEXT),
    "num_clusters": _list_of(_CLUSTERS),
    "sources": _list_of(_TEXT),
    "unused": _list_of(_list_of(_CLUSTERS)),
    "duplicates": _list_of(_list_of(_CLUSTERS)),
    "dim": _DIM,
    "format_version": _FORMAT,
    "files": _FILES,
    "training": ("a list of what is known of each entry's training", _is_training),
    "half_exponents": _list_of(_number(-200, 200)),
}


def _rules(kind: type[object]) -> dict[str, _Rule]:
    return _MODEL_RULES if kind is ModelInfo else _BANK_RULES


def _check_fields(path: Path, rules: Mapping[str, _Rule], said: Mapping[str, object]) -> None:
    for name, (words, fits) in rules.items():
        if (name in said or name not in _OPTIONAL) and not fits(said[name]):
            raise ArtifactError(f"{path}: {name} is {_shown(said[name])}; expected {words}")


def _shown(value: object) -> str:
    """A value in a message; of a container, whose ``repr`` may be deep, only the kind."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return ascii(value[:40] if isinstance(value, str) else value)[:40]
    return f"a {type(value).__name__}"


def _map(path: Path, dtype: str, ndim: int) -> NDArray[Any]:
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
