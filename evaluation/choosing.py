"""Which models listen: those that are given, or else those of installed packages; what is missing is said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mkc_fast.errors import MkcError
from mkc_fast.evaluation.listening import Models
from mkc_fast.evaluation.measures import INTELLIGIBILITY, PITCH, PRIVACY, QUALITY, Measure
from mkc_fast.evaluation.models import Function
from mkc_fast.evaluation.pitch import SwiftF0
from mkc_fast.evaluation.quality import Dnsmos
from mkc_fast.evaluation.recognizers import PocketSphinx, Whisper
from mkc_fast.evaluation.resemblyzer import Resemblyzer
from mkc_fast.evaluation.verifiers import OnnxVerifier
from mkc_fast.extras import missing_packages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.evaluation.models import Model

    Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class Given:
    """Models that the caller gives.

    Attributes:
        asv: A verifier as an ONNX file.
        asr: A recognizer as a folder of Whisper's files.
        language: For that recognizer.
        verifier: A function of a waveform (S,) at 16 kHz that gives an embedding, in place of ``asv``.
        recognizer: A function of such a waveform that gives words, in place of ``asr``.
        quality: A function that gives three ratings.
        pitch: A function that gives Hz of each frame, 0 where it is not voiced.
    """

    asv: Path | None = None
    asr: Path | None = None
    language: str | None = "en"
    verifier: Callable[[Waveform], Waveform] | None = None
    recognizer: Callable[[Waveform], str] | None = None
    quality: Callable[[Waveform], NDArray[np.float64]] | None = None
    pitch: Callable[[Waveform], Waveform] | None = None


def asked_for(only: Collection[str], given: Given) -> set[str]:
    """The measures that were asked for by name, or by giving a model for them."""
    models = {
        PRIVACY: given.asv or given.verifier,
        INTELLIGIBILITY: given.asr or given.recognizer,
        QUALITY: given.quality,
        PITCH: given.pitch,
    }
    return {*only, *(measure for measure, model in models.items() if model is not None)}


def choose_models(
    measures: Collection[Measure], only: Collection[str], given: Given
) -> tuple[Models, dict[Measure, str]]:
    """The models of the measures, and why a measure cannot be made, by measure.

    Args:
        measures: To make.
        only: Those that were asked for by name; so is one whose model is given.
        given: Models of the caller.

    Raises:
        MkcError: A measure that was asked for cannot be made.
    """
    asked = asked_for(only, given)
    choices = {
        PRIVACY: ("verifier", _verifier),
        INTELLIGIBILITY: ("recognizer", _recognizer),
        QUALITY: ("quality", _quality),
        PITCH: ("pitch", _pitch),
    }
    models: dict[str, Any] = {}
    without: dict[Measure, str] = {}
    for measure in measures:
        if measure not in choices:
            continue
        field, choose = choices[measure]
        chosen = choose(given)
        if not isinstance(chosen, str):
            models[field] = chosen
        elif measure in asked:
            raise MkcError(f"{measure} needs {chosen}")
        else:
            without[measure] = f"needs {chosen}"
    return Models(**models), without


def _verifier(given: Given) -> Model[Waveform] | str:
    if given.verifier is not None:
        return Function(given.verifier, _name_of(given.verifier))
    if given.asv is not None:
        return missing_packages("onnxruntime", "onnx") or OnnxVerifier(given.asv)
    missing = missing_packages("torch", "webrtcvad", "resemblyzer")
    return Resemblyzer() if missing is None else f"{missing}; or --asv FILE.onnx"


def _recognizer(given: Given) -> Model[str] | str:
    if given.recognizer is not None:
        return missing_packages("jiwer") or Function(given.recognizer, _name_of(given.recognizer))
    if given.asr is not None:
        return missing_packages("jiwer", "faster_whisper") or Whisper(given.asr, given.language)
    return missing_packages("jiwer", "pocketsphinx") or PocketSphinx()


def _quality(given: Given) -> Model[NDArray[np.float64]] | str:
    if given.quality is not None:
        return Function(given.quality, _name_of(given.quality))
    return missing_packages("onnxruntime", "speechmos") or Dnsmos()


def _pitch(given: Given) -> Model[Waveform] | str:
    if given.pitch is not None:
        return Function(given.pitch, _name_of(given.pitch))
    return missing_packages("onnxruntime", "swift_f0") or SwiftF0()


def _name_of(function: Callable[..., object]) -> str:
    return f"function {getattr(function, '__name__', type(function).__name__)}"
