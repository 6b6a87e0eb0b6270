"""mkc-fast: fast, exact multi-k-means voice anonymization.

The public API is ``Anonymizer`` and ``anonymize_corpus`` (here), and ``export_model`` and ``build_bank`` (in
``mkc_fast.export``). Importing this package loads neither torch nor onnxruntime nor cupy, and switches ONNX Runtime's
telemetry off.
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
    "InexactError",
    "ListError",
    "LostDeviceError",
    "MkcError",
    "OutputError",
    "Result",
    "RuntimeMissingError",
    "StageError",
    "StoppedError",
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
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
