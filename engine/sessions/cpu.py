"""Opens the graphs on a CPU: those of native operators, else ONNX Runtime's own.

Of the latter: as they were prepared and kept, and the vocoder in pieces, one a thread.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias

from mkc_fast.engine.artifacts import CPU_VOCODER_FILE, PIECE_REACH, native_file
from mkc_fast.engine.devices import cores
from mkc_fast.engine.sessions.prepared import prepared_graph
from mkc_fast.engine.sessions.providers import ORT_NAMES, Plan, graph_file, session_settings, stage_precision
from mkc_fast.engine.windows import pieces
from mkc_fast.errors import ArtifactError
from mkc_fast.kernels.cpu.loader import DOMAIN, instruction_set, native_library, register
from mkc_fast.names import CONFORMER_FILE, CPU, FP32, GRAPH_FILES, INT8, MIXED, VOCODER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import ort
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

CPU_GRAPH_FILES = (WAVLM_FILE, CONFORMER_FILE, CPU_VOCODER_FILE)


class PiecedVocoder:
    """The vocoder's graph for a CPU, run as the plain one is: it is told here how to cut its input."""

    def __init__(self, session: ort.InferenceSession, reach: int, threads: int) -> None:
        self.session = session
        self._reach = reach
        self._threads = threads

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[NDArray[Any]]:
        """``waveform`` (B, T * hop) of ``features`` (B, T, D)."""
        taken, kept = pieces(inputs["features"].shape[1], self._threads, self._reach)
        made: list[NDArray[Any]] = self.session.run(outputs, {**inputs, "pieces": taken, "kept": kept})
        return made


class NativeSession:
    """A graph of native operators, run as any other; a damaged one, whose sizes do not fit, is refused when it runs."""

    def __init__(self, session: ort.InferenceSession, path: Path) -> None:
        self.session = session
        self._path = path

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[NDArray[Any]]:
        """As ``InferenceSession.run``.

        Raises:
            ArtifactError: An operator was given what it cannot take.
        """
        try:
            made: list[NDArray[Any]] = self.session.run(outputs, inputs)
        except Exception as error:  # ONNX Runtime's errors share no base but this
            if f"{DOMAIN} " not in str(error) or "out of memory" in str(error):
                raise
            raise _unusable(self._path, str(error).rpartition("Status Message: ")[2]) from None
        return made


def _unusable(path: Path, said: str) -> ArtifactError:
    return ArtifactError(f"{path}: not a usable graph ({one_line(said, 160)})")


Session: TypeAlias = "ort.InferenceSession | NativeSession"


def open_on_cpu(model: Path, plan: Plan, cache: Path) -> tuple[Session, Session, Session | PiecedVocoder]:
    """Open WavLM, conformer and vocoder: of native operators where both are here, else as ONNX Runtime's own.

    Raises:
        ArtifactError: A graph is damaged.
    """
    wavlm, conformer = (
        _open_native(model, name, plan) or _open(model / graph_file(name, plan.precision), plan, cache)
        for name in GRAPH_FILES[:2]
    )
    vocoder = _open_native(model, VOCODER_FILE, plan)
    if vocoder is not None:
        return wavlm, conformer, vocoder
    path = model / cpu_graph(model, VOCODER_FILE, plan.precision)
    session = _open(path, plan, cache)
    if path.name != CPU_VOCODER_FILE:
        return wavlm, conformer, session
    return wavlm, conformer, PiecedVocoder(session, _piece_reach(path, session), plan.threads or cores())


def cpu_graph(model: Path, name: str, precision: str) -> str:
    """The file that a stage, named by its plain graph, is opened from on a CPU."""
    if uses_native(model, name, precision):
        return native_file(name)
    # A model of odd upsampling has the plain vocoder alone.
    fits = name == VOCODER_FILE and stage_precision(name, precision) == FP32
    if fits and (model / CPU_VOCODER_FILE).is_file():
        return CPU_VOCODER_FILE
    return graph_file(name, precision)


def uses_native(model: Path, name: str, precision: str) -> bool:
    """Whether a stage runs on native operators: they are here, the model has its graph, and it is of this precision."""
    fits = stage_precision(name, precision) == FP32
    return fits and native_library() is not None and (model / native_file(name)).is_file()


def operators_used(model: Path, precision: str) -> str:
    """In words: which operators the stages run on, and if not on native ones, why."""
    native = [name for name in GRAPH_FILES if uses_native(model, name, precision)]
    if len(native) == len(GRAPH_FILES):
        return f"native operators ({instruction_set()})"
    if native:
        return f"native operators ({instruction_set()}) in {', '.join(name.removesuffix('.onnx') for name in native)}"
    if native_library() is None:
        return "no native operators (not built here, see mkc-fast doctor)"
    if precision not in {FP32, INT8, MIXED}:
        return "no native operators (they are float32)"
    return "no native operators (the model was exported where there were none; export it again)"


def _open_native(model: Path, name: str, plan: Plan) -> NativeSession | None:
    if not uses_native(model, name, plan.precision):
        return None
    path = model / native_file(name)
    options = configured(ort.SessionOptions(), plan)
    # Its nodes are fused already, and ONNX Runtime would copy weights that it maps otherwise.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    register(options)
    return NativeSession(_session(path, options), path)


def _session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=[ORT_NAMES[CPU]])
    except Exception as error:  # ONNX Runtime's errors share no base but this
        raise _unusable(path, str(error)) from None


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
    return _session(path, configured(ort.SessionOptions(), plan))


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
