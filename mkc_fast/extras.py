"""Which extra of mkc-fast installs each optional package, and the errors that say so."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CPU_EXTRA: Final = "cpu"
CUDA12_EXTRA: Final = "cuda12"
CUDA13_EXTRA: Final = "cuda13"
EXPORT_EXTRA: Final = "export"
BENCH_EXTRA: Final = "bench"
TRAIN_EXTRA: Final = "train"
TENSORBOARD_EXTRA: Final = "tensorboard"
DOWNLOAD_EXTRA: Final = "download"
AV_EXTRA: Final = "av"
PARQUET_EXTRA: Final = "parquet"
RAY_EXTRA: Final = "ray"
REMOTE_EXTRA: Final = "remote"
EVALUATE_EXTRA: Final = "evaluate"
WHISPER_EXTRA: Final = "whisper"
# By the name that Python imports: the package's name in a message, and its extra in pyproject.toml.
_PACKAGES = {
    "onnxruntime": ("ONNX Runtime", CPU_EXTRA),
    "cupy": ("CuPy", CUDA13_EXTRA),
    "torch": ("PyTorch", EXPORT_EXTRA),
    "onnx": ("onnx", EXPORT_EXTRA),
    "onnxscript": ("onnxscript", EXPORT_EXTRA),
    "yaml": ("PyYAML", EXPORT_EXTRA),
    "matplotlib": ("matplotlib", EXPORT_EXTRA),
    "sklearn": ("scikit-learn", TRAIN_EXTRA),
    "joblib": ("joblib", TRAIN_EXTRA),
    "threadpoolctl": ("threadpoolctl", TRAIN_EXTRA),
    "tensorboard": ("TensorBoard", TENSORBOARD_EXTRA),
    "faiss": ("FAISS", BENCH_EXTRA),
    "jinja2": ("Jinja2", EXPORT_EXTRA),
    "psutil": ("psutil", BENCH_EXTRA),
    "gdown": ("gdown", DOWNLOAD_EXTRA),
    "av": ("PyAV", AV_EXTRA),
    "pyarrow": ("pyarrow", PARQUET_EXTRA),
    "ray": ("Ray", RAY_EXTRA),
    "fsspec": ("fsspec", REMOTE_EXTRA),
    "jiwer": ("JiWER", EVALUATE_EXTRA),
    "pocketsphinx": ("PocketSphinx", EVALUATE_EXTRA),
    "speechmos": ("speechmos", EVALUATE_EXTRA),
    "webrtcvad": ("webrtcvad", EVALUATE_EXTRA),
    "faster_whisper": ("faster-whisper", WHISPER_EXTRA),
}
# Packages of which only the weights are used. They are in no extra: one depends on a package that needs a compiler and
# an old setuptools, the other on ONNX Runtime for CPUs, which must not be installed beside that for GPUs.
_WITHOUT_DEPENDENCIES = {"resemblyzer": "resemblyzer", "swift_f0": "swift-f0"}
EXPORT_MODULES: Final = ("torch", "onnx", "onnxscript")


def install_command(*extras: str, upgrade: bool = False) -> str:
    """The command that installs extras: ``pip install 'mkc-fast[cpu,export]'``."""
    return f"pip install {'--upgrade ' if upgrade else ''}'mkc-fast[{','.join(extras)}]'"


def missing_packages(*modules: str) -> str | None:
    """Which of these modules are not installed, and the command that installs them; None if all are.

    The command also installs ONNX Runtime where that is missing.
    """
    missing = [module for module in modules if not _is_installed(module)]
    alone = [_WITHOUT_DEPENDENCIES[module] for module in missing if module in _WITHOUT_DEPENDENCIES]
    missing = [module for module in missing if module not in _WITHOUT_DEPENDENCIES]
    parts = [_missing_extras(missing)] if missing else []
    parts += [f"{', '.join(alone)}: pip install --no-deps {' '.join(alone)}"] if alone else []
    return "; ".join(parts) or None


def _missing_extras(missing: Sequence[str]) -> str:
    """Missing packages of extras, and the command that installs them."""
    titles = ", ".join(_PACKAGES[module][0] for module in missing)
    extras = list(dict.fromkeys(_PACKAGES[module][1] for module in missing))
    if not _is_installed("onnxruntime") and not {CPU_EXTRA, CUDA13_EXTRA} & set(extras):
        extras.insert(0, CPU_EXTRA)
    return f"{titles}: {install_command(*extras)}"


@contextmanager
def required(what: str, *modules: str, otherwise: str = "") -> Iterator[None]:
    """Run a block of imports; a package that is missing there becomes one line that says what to install.

    Args:
        what: What needs the packages, as the message begins.
        modules: What the block imports from optional packages.
        otherwise: How to do without them, for the end of the message.

    Raises:
        MkcError: A package is not installed, or cannot be imported.
    """
    missing = missing_packages(*modules)
    if missing is not None:
        raise MkcError(f"{what} needs {missing}{otherwise}")
    try:
        yield
    except ImportError as error:
        if isinstance(error, MkcError):
            raise
        raise MkcError(f"{what} needs {error.name or 'a package'}, which cannot be imported: {error}") from None


def _is_installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return find_spec(module) is not None
