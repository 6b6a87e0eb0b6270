"""Opens the graphs on a CPU: as they were prepared for it, and the vocoder in pieces, one a thread."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from mkc_fast import ArtifactError
from mkc_fast.engine.artifacts import CONFORMER_FILE, CPU_VOCODER_FILE, PIECE_REACH, VOCODER_FILE, WAVLM_FILE
from mkc_fast.engine.devices import cores
from mkc_fast.engine.prepared import prepared_graph
from mkc_fast.engine.providers import CPU, FP32, GRAPH_FILES, INT8, ORT_NAMES, Plan, graph_file, session_settings
from mkc_fast.engine.windows import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

CPU_GRAPH_FILES = (WAVLM_FILE, CONFORMER_FILE, CPU_VOCODER_FILE)


class PiecedVocoder:
    """The vocoder's graph for a CPU, run as the plain one is: it is told here how to cut its input."""

    def __init__(self, session: ort.InferenceSession, reach: int, threads: int) -> None:
        self._session = session
        self._reach = reach
        self._threads = threads

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """``waveform`` (B, T * hop) of ``features`` (B, T, D)."""
        taken, kept = pieces(inputs["features"].shape[1], self._threads, self._reach)
        made: list[NDArray[Any]] = self._session.run(outputs, {**inputs, "pieces": taken, "kept": kept})
        return made


def open_on_cpu(
    model: Path, plan: Plan, cache: Path
) -> tuple[ort.InferenceSession, ort.InferenceSession, ort.InferenceSession | PiecedVocoder]:
    """Open WavLM, conformer and vocoder.

    Raises:
        ArtifactError: A graph is damaged.
    """
    wavlm, conformer = (_open(model / graph_file(name, plan.precision), plan, cache) for name in GRAPH_FILES[:2])
    path = model / CPU_VOCODER_FILE
    if plan.precision not in {FP32, INT8} or not path.is_file():
        # A model exported by an earlier version, or of odd upsampling, has the plain graph alone.
        return wavlm, conformer, _open(model / graph_file(VOCODER_FILE, plan.precision), plan, cache)
    session = _open(path, plan, cache)
    return wavlm, conformer, PiecedVocoder(session, _piece_reach(path, session), plan.threads or cores())


def _open(path: Path, plan: Plan, cache: Path) -> ort.InferenceSession:
    """Open a graph as it was prepared, else as it is."""
    if plan.precision in {FP32, INT8}:
        prepared = prepared_graph(path, cache)
        if prepared is not None:
            # What was kept may be damaged, or the cache be cleared at this moment.
            with contextlib.suppress(Exception):
                options = configured(ort.SessionOptions(), plan)
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it has been
                return ort.InferenceSession(str(prepared), options, providers=[ORT_NAMES[CPU]])
    try:
        return ort.InferenceSession(str(path), configured(ort.SessionOptions(), plan), providers=[ORT_NAMES[CPU]])
    except Exception as error:  # ONNX Runtime's errors share no base but this
        said = " ".join(str(error).split())[:160]
        raise ArtifactError(f"{path}: not a usable graph ({said})") from None


def _piece_reach(path: Path, session: ort.InferenceSession) -> int:
    said = session.get_modelmeta().custom_metadata_map.get(PIECE_REACH, "")
    if not (said.isascii() and said.isdecimal() and len(said) <= 4):
        raise ArtifactError(f"{path}: its metadata does not say {PIECE_REACH}; export the model again")
    return int(said)


def configured(options: ort.SessionOptions, plan: Plan) -> ort.SessionOptions:
    """Session options with a plan's settings, on any provider."""
    settings = session_settings(plan)
    for name, value in settings.attributes.items():
        setattr(options, name, value)
    for name, text in settings.entries.items():
        options.add_session_config_entry(name, text)
    return options
