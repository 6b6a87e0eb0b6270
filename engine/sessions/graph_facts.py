"""Checks that opened graphs are of the model that ``model.json`` describes, and tells which files they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mkc_fast.engine.artifacts import (
    CUDA_HALF_SUFFIX,
    CUDA_SUFFIX,
    MODEL_FILE,
    graph_metadata,
    is_native,
    weights_file,
)
from mkc_fast.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.engine.artifacts import FileFacts, ModelInfo
    from mkc_fast.engine.sessions.opening import Sessions

# Of each stage: what its graph takes at least, and what it gives.
_ENDS = (
    ({"waveform", "lengths"}, "features"),
    ({"features", "lengths"}, "restored"),
    ({"features"}, "waveform"),
)
# Values with D as their last axis.
_OF_DIM = ("features", "restored")


def check_graphs(model: Path, info: ModelInfo, sessions: Sessions) -> None:
    """Check the graphs that were opened from files: their inputs, outputs, sizes, and what their metadata says.

    Raises:
        ArtifactError: One is of another stage or model than ``model.json`` says.
    """
    stages = (sessions.wavlm, sessions.conformer, sessions.vocoder)
    for file, session, (given, made) in zip(sessions.files, stages, _ENDS, strict=False):
        _check(model / file, info, getattr(session, "session", session), given, made)


def _check(path: Path, info: ModelInfo, session: Any, given: set[str], made: str) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = {value.name for value in inputs}
    if not given <= names or made not in {value.name for value in outputs}:
        takes, gives = ", ".join(sorted(names)), ", ".join(value.name for value in outputs)
        raise ArtifactError(
            f"{path}: makes {ascii(gives[:60])[1:-1]} of {ascii(takes[:60])[1:-1]}; expected {made} of "
            f"{', '.join(sorted(given))}; export the model again"
        )
    for value in (*inputs, *outputs):
        last = value.shape[-1] if value.shape else None
        if value.name in _OF_DIM and isinstance(last, int) and last != info.dim:
            raise ArtifactError(f"{path}: {value.name} have {last} dimensions; {MODEL_FILE} says {info.dim}")
    said = session.get_modelmeta().custom_metadata_map
    for name, expected in graph_metadata(info).items():
        if name not in said:
            raise ArtifactError(f"{path}: its metadata does not say {name}; export the model again")
        if said[name] != expected:
            raise ArtifactError(f"{path}: is of {name} {ascii(said[name][:20])[1:-1]}; {MODEL_FILE} says {expected}")


def files_of(model: Path, info: ModelInfo, graphs: tuple[str, ...]) -> dict[str, FileFacts]:
    """What ``model.json`` says of these graphs' files, and of the weights beside them.

    Raises:
        ArtifactError: It does not list a file that would be read.
    """
    found = {}
    for graph in graphs:
        beside = [f"{graph}.data"]
        if is_native(graph) or graph.endswith((CUDA_SUFFIX, CUDA_HALF_SUFFIX)):
            beside.append(weights_file(model / graph).name)
        for name in (graph, *(other for other in beside if (model / other).exists())):
            if name not in info.files:
                raise ArtifactError(f"{model / name}: not listed in {MODEL_FILE}; export the model again")
            found[name] = info.files[name]
    return found
