"""mkc-fast: fast, exact multi-k-means voice anonymization.

The public API is ``Anonymizer``, ``anonymize_corpus`` and ``EngineOptions`` (here), and ``export_model`` and
``build_bank`` (in ``mkc_fast.export``). Importing this package loads neither torch nor onnxruntime nor cupy, and
switches ONNX Runtime's telemetry off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkc_fast import telemetry as _telemetry
from mkc_fast.errors import (
    ArgumentError,
    ArtifactError,
    AudioError,
    BankError,
    CheckpointError,
    DeviceError,
    DeviceMemoryError,
    DownloadError,
    InexactError,
    ListError,
    LostDeviceError,
    MkcError,
    OutputError,
    RuntimeMissingError,
    StageError,
    StoppedError,
    WriteError,
)

if TYPE_CHECKING:
    from mkc_fast.engine.anonymizer import Anonymizer, Result
    from mkc_fast.engine.corpus.anonymize import anonymize_corpus
    from mkc_fast.engine.corpus.status import Summary
    from mkc_fast.engine.options import EngineOptions

_telemetry.switch_off()  # before anything here can import ONNX Runtime, and inherited by every process started here

__version__ = "0.1.0"

__all__ = [
    "Anonymizer",
    "ArgumentError",
    "ArtifactError",
    "AudioError",
    "BankError",
    "CheckpointError",
    "DeviceError",
    "DeviceMemoryError",
    "DownloadError",
    "EngineOptions",
    "InexactError",
    "ListError",
    "LostDeviceError",
    "MkcError",
    "OutputError",
    "Result",
    "RuntimeMissingError",
    "StageError",
    "StoppedError",
    "Summary",
    "WriteError",
    "__version__",
    "anonymize_corpus",
]


def __dir__() -> list[str]:
    return sorted(__all__)  # with the names that are loaded when first asked for, and without what is only imported


def __getattr__(name: str) -> object:
    if name in {"Anonymizer", "Result"}:
        from mkc_fast.engine import anonymizer

        return getattr(anonymizer, name)
    if name == "anonymize_corpus":
        from mkc_fast.engine.corpus.anonymize import anonymize_corpus

        return anonymize_corpus
    if name == "Summary":
        from mkc_fast.engine.corpus.status import Summary

        return Summary
    if name == "EngineOptions":
        from mkc_fast.engine.options import EngineOptions

        return EngineOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
