"""Opens the graphs on a CPU: those of native operators, else ONNX Runtime's own.

Of the latter: as they were prepared and kept, and the vocoder in pieces, one a thread.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias

from mkc_fast.engine.artifacts import CPU_VOCODER_FILE, PIECE_REACH, is_native, native_file
from mkc_fast.engine.devices import cores
from mkc_fast.engine.sessions.prepared import prepared_graph
from mkc_fast.engine.sessions.providers import ORT_NAMES, Plan, graph_file, session_settings, stage_precision
from mkc_fast.engine.windows import pieces
from mkc_fast.errors import ArtifactError, DeviceError
from mkc_fast.kernels.cpu.loader import DOMAIN, instruction_set, native_library, register
from mkc_fast.names import CONFORMER_FILE, CPU, FP16, FP32, GRAPH_FILES, INT8, INT16, MIXED, VOCODER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import ort
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# What the stages are in, in the precisions that have whole numbers.
_IN_WHOLE = {
    MIXED: {WAVLM_FILE: FP32, CONFORMER_FILE: INT16, VOCODER_FILE: INT16},
    INT16: {WAVLM_FILE: INT16, CONFORMER_FILE: INT16, VOCODER_FILE: INT16},
    INT8: {WAVLM_FILE: INT8, CONFORMER_FILE: INT8, VOCODER_FILE: INT16},
}
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
    wavlm, conformer, vocoder = (
        _open_native(path, plan) if is_native(path.name) else _open(path, plan, cache)
        for path in (model / cpu_graph(model, name, plan.precision) for name in GRAPH_FILES)
    )
    path = model / cpu_graph(model, VOCODER_FILE, plan.precision)
    if path.name != CPU_VOCODER_FILE:
        return wavlm, conformer, vocoder
    reach = _piece_reach(path, vocoder)
    return wavlm, conformer, PiecedVocoder(vocoder, reach, plan.threads or cores())


def cpu_graph(model: Path, name: str, precision: str) -> str:
    """The file that a stage, named by its plain graph, is opened from on a CPU."""
    in_whole = _whole_numbers(model, precision)
    # A stage that the export left in float32, since it would be too inexact or the operators do not take it, stays so.
    own = FP32 if in_whole else stage_precision(name, precision)
    forms = (_IN_WHOLE[precision][name], FP32) if in_whole else (own,)
    if native_library() is not None:
        for form in forms:
            if form in {FP32, INT16, INT8} and (model / native_file(name, form)).is_file():
                return native_file(name, form)
    # A model of odd upsampling has the plain vocoder alone.
    if name == VOCODER_FILE and own == FP32 and (model / CPU_VOCODER_FILE).is_file():
        return CPU_VOCODER_FILE
    return name if in_whole else graph_file(name, precision)


def uses_native(model: Path, name: str, precision: str) -> bool:
    """Whether a stage runs on native operators: they are here, and the model has its graph in this precision."""
    return is_native(cpu_graph(model, name, precision))


def _whole_numbers(model: Path, precision: str) -> bool:
    """Whether a precision is computed in whole numbers: the operators are here, and the model was exported for it.

    The vocoder does not tell: it is in int16 for int8, too.
    """
    if precision not in _IN_WHOLE or native_library() is None:
        return False
    form = INT8 if precision == INT8 else INT16
    return any((model / native_file(name, form)).is_file() for name in (WAVLM_FILE, CONFORMER_FILE))


def missing_on_cpu(model: Path, precision: str) -> tuple[list[str], str]:
    """Files that a precision lacks on a CPU, and the option of ``export`` that makes them.

    Raises:
        DeviceError: It needs the native operators, and they are not here.
    """
    if _whole_numbers(model, precision):
        return [], ""
    if precision == INT16 and native_library() is None:
        raise DeviceError("precision int16 needs the native operators, which are not built here (see mkc-fast doctor)")
    files = [graph_file(name, precision) for name in GRAPH_FILES]
    missing = [file for file in files if not (model / file).is_file()]
    if native_library() is not None and precision in _IN_WHOLE and (missing or precision == INT16):
        whole = [native_file(name, form) for name, form in _IN_WHOLE[precision].items() if form != FP32]
        missing = [file for file in whole if not (model / file).is_file()]
    return missing, {MIXED: "--int16", INT16: "--int16", INT8: "--int8", FP16: "--half"}.get(precision, "")


def operators_used(model: Path, precision: str) -> str:
    """In words: which operators the stages run on, and if not on native ones, why."""
    native = [name for name in GRAPH_FILES if uses_native(model, name, precision)]
    used = f"native operators ({instruction_set()}{stage_forms(model, precision)})"
    if len(native) == len(GRAPH_FILES):
        return used
    if native:
        return f"{used} in {', '.join(name.removesuffix('.onnx') for name in native)}"
    if native_library() is None:
        return "no native operators (not built here, see mkc-fast doctor)"
    if precision == FP16:
        return "no native operators (they have no float16)"
    return "no native operators (the model was exported where there were none; export it again)"


def stage_forms(model: Path, precision: str) -> str:
    """In words: what each stage computes in, where it is whole numbers in some; empty where all are float32."""
    if not _whole_numbers(model, precision):
        return ""
    forms = stage_precisions(model, precision)
    said = (f"{name.removesuffix('.onnx')} {form}" for name, form in forms.items())
    return f"; {', '.join(said)}"


def stage_precisions(model: Path, precision: str) -> dict[str, str]:
    """What the products of each stage, named by its plain graph, are computed in on a CPU."""
    files = {name: cpu_graph(model, name, precision) for name in GRAPH_FILES}
    return {
        name: next((form for form in (INT16, INT8, FP16) if f".{form}." in file), FP32) for name, file in files.items()
    }


def _open_native(path: Path, plan: Plan) -> NativeSession:
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
