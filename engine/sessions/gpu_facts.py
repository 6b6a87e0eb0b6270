"""What decides whether a GPU can be used: its driver, the ONNX Runtime that is installed, and the shared libraries."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import re
import site
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.devices import Driver, driver
from mkc_fast.errors import RuntimeMissingError
from mkc_fast.names import CPU, CUDA, TENSORRT
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

# TensorRT's libraries; the providers of all releases since 1.18 are linked against those of TensorRT 10.
NVINFER = "libnvinfer.so.10"
TENSORRT_LIBRARIES = (NVINFER, "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
# Where NVIDIA's installers put the toolkit.
INSTALLED = Path("/usr/local")


@dataclass(frozen=True)
class Runtime:
    """The ONNX Runtime that Python imports.

    Attributes:
        version: Empty if it does not import.
        cuda: The CUDA that it was built for, as ``13.0``; None for a build without.
        providers: Those it was built with, by its own names.
        problem: Why it does not import, None if it does.
        installed: Whether it is there at all.
    """

    version: str = ""
    cuda: str | None = None
    providers: tuple[str, ...] = ()
    problem: str | None = None
    installed: bool = True

    @property
    def cuda_major(self) -> int | None:
        """13 of ``13.0``."""
        match = re.match(r"\d+", self.cuda or "")
        return int(match[0]) if match else None


@dataclass(frozen=True)
class Library:
    """A shared library, tried.

    Attributes:
        name: As the loader knows it.
        version: As its own functions say; None where they say nothing.
        problem: Why it does not load, None if it does.
    """

    name: str
    version: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class GpuFacts:
    """What decides whether a GPU can be used."""

    driver: Driver
    runtime: Runtime
    libraries: tuple[Library, ...] = ()

    def library_version(self, name: str) -> str | None:
        """Of a library that was tried."""
        return next((library.version for library in self.libraries if library.name == name), None)


def read_runtime() -> Runtime:
    """The ONNX Runtime that Python imports; libraries that its build needs are loaded on the way."""
    try:
        from mkc_fast.onnx_runtime import ort
    except RuntimeMissingError:
        return Runtime(problem="it is not installed", installed=False)
    except Exception as error:  # a broken installation can raise anything
        return Runtime(problem=f"{type(error).__name__}: {one_line(str(error), 200)}")
    cuda = getattr(ort, "cuda_version", "") or None
    if cuda and hasattr(ort, "preload_dlls"):
        # ONNX Runtime's own search, which also registers a CUDA provider that comes as a plug-in. What it prints where
        # a library is missing, `obstacle` says in one line.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    return Runtime(ort.__version__, cuda, tuple(ort.get_available_providers()))


def load_library(name: str) -> Library:
    """Load a library and leave it loaded, for ONNX Runtime and CuPy to find.

    The order is that of CuPy, which uses cuda-pathfinder: pip's packages, conda, the system's loader, then the folders
    that environment variables name, and the usual folders of the CUDA toolkit. A file of that name that does not load
    is passed over, and its error is the one that is told if no other loads.
    """
    problem = ""
    for path in (*_files(library_folders(), name), name, *_files(toolkit_folders(), name)):
        try:
            return Library(name, library_version(name, ctypes.CDLL(path)))
        except OSError as error:
            problem = str(error) if path != name else problem or str(error)
    return Library(name, problem=problem)


def _files(folders: list[Path], name: str) -> list[str]:
    return [str(folder / name) for folder in folders if (folder / name).is_file()]


def library_folders() -> list[Path]:
    """Where pip and conda put NVIDIA's libraries: these come before the system's loader.

    pip's packages are beside ONNX Runtime, in every folder of ``sys.path``, or in one of Python's own. ONNX Runtime
    itself looks only beside itself. With ``pip install --target``, or in an environment that sees the packages of
    another, the libraries lie elsewhere.
    """
    places: list[Path] = []
    spec = importlib.util.find_spec("onnxruntime")
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parents[1])
    places += [Path(place) for place in sys.path if place]
    places += map(Path, [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])])
    folders = []
    for place in dict.fromkeys(places):
        with contextlib.suppress(OSError):  # a folder that may not be read; archives and files have no such folders
            folders += [*sorted(place.glob("nvidia/*/lib")), place / "tensorrt_libs"]
    conda = os.environ.get("CONDA_PREFIX")
    return folders + (_of_root(Path(conda)) if conda else [])


def toolkit_folders() -> list[Path]:
    """Where CUDA's toolkit and cuDNN are if the system's loader does not know: these come after it.

    The folders of ``CUDNN_PATH``, ``CUDA_PATH`` and ``CUDA_HOME``, then ``cuda`` and ``cuda-*`` in ``/usr/local``, the
    newest first.
    """
    roots = [Path(value) for name in ("CUDNN_PATH", "CUDA_PATH", "CUDA_HOME") if (value := os.environ.get(name))]
    with contextlib.suppress(OSError):
        installed = sorted(INSTALLED.glob("cuda-*"), key=lambda path: version_numbers(path.name), reverse=True)
        roots += [INSTALLED / "cuda", *installed]
    return [folder for root in dict.fromkeys(roots) for folder in _of_root(root)]


def _of_root(root: Path) -> list[Path]:
    """The folders with libraries of a toolkit, or of conda's environment."""
    with contextlib.suppress(OSError):
        return [root / "lib64", root / "lib", *sorted(root.glob("targets/*-linux/lib"))]
    return []


def library_version(name: str, library: Any) -> str | None:
    """What a loaded library says of its version; None where it says nothing."""
    with contextlib.suppress(AttributeError):
        if name.startswith("libcudart."):
            number = ctypes.c_int()
            return _dotted(number.value, 1000, 10) if library.cudaRuntimeGetVersion(ctypes.byref(number)) == 0 else None
        if name.startswith("libcudnn."):
            library.cudnnGetVersion.restype = ctypes.c_size_t
            return _dotted(library.cudnnGetVersion(), 10000, 100, 1)
        if name == NVINFER:
            return _dotted(library.getInferLibVersion(), 10000, 100, 1)
    return None


def _dotted(number: int, *units: int) -> str:
    parts = []
    for unit in units:
        part, number = divmod(number, unit)
        parts.append(str(part))
    return ".".join(parts)


@dataclass(frozen=True)
class GpuProbes:
    """Where these facts come from; a test puts another machine's here.

    Attributes:
        driver: What the GPU's driver says.
        runtime: The ONNX Runtime that Python imports.
        library: Loads a shared library.
    """

    driver: Callable[[], Driver] = driver
    runtime: Callable[[], Runtime] = read_runtime
    library: Callable[[str], Library] = load_library


def gather_gpu_facts(providers: tuple[str, ...] = (TENSORRT, CUDA), probes: GpuProbes | None = None) -> GpuFacts:
    """What decides whether these providers can use a GPU; the libraries that they need are loaded on the way."""
    probes = probes or GpuProbes()
    runtime = probes.runtime()
    names = [name for provider in providers for name in needed_libraries(provider, runtime)]
    libraries = tuple(map(probes.library, dict.fromkeys(sorted(names, key=_load_order))))
    return GpuFacts(probes.driver(), runtime, libraries)


def needed_libraries(provider: str, runtime: Runtime) -> tuple[str, ...]:
    """The shared libraries without which a provider does not load, or does not compute a convolution (on Linux)."""
    major = runtime.cuda_major
    if provider == CPU or major is None or not sys.platform.startswith("linux"):
        return ()
    names = [f"libcublasLt.so.{major}", f"libcublas.so.{major}", f"libcudart.so.{major}"]
    # Since 1.28 cuDNN, cuFFT and NVRTC are loaded when first used. Convolutions use cuDNN; nothing here uses cuFFT.
    # With NVRTC CuPy compiles the look-up's kernels.
    names += ["libcurand.so.10", "libcudnn.so.9", f"libnvrtc.so.{major}"]
    if version_numbers(runtime.version) < (1, 28):
        names += [f"libcufft.so.{major - 1}"]
    return (*names, *TENSORRT_LIBRARIES) if provider == TENSORRT else tuple(names)


def _load_order(name: str) -> bool:
    """TensorRT's after CUDA's, which they are linked against."""
    return name in TENSORRT_LIBRARIES


def version_numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch number of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
