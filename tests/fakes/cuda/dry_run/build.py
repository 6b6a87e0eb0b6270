"""Builds the stub libraries, for the ONNX Runtime and the CuPy that are installed.

``python -m tests.fakes.cuda.dry_run.build FOLDER`` fails where they cannot be built.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "stubs"
RUNTIME, DRIVER, CUDNN = "libcudart.so.13", "libcuda.so.1", "libcudnn.so.9"
# Those that others are linked against come first.
LIBRARIES = {
    RUNTIME: "runtime.c",
    DRIVER: "driver.c",
    "libcublasLt.so.13": "cublaslt.c",
    "libcublas.so.13": "cublas.c",
    CUDNN: "cudnn.c",
    "libcurand.so.10": None,
}
ONNXRUNTIME = "1.31."
_COMPILE = ("gcc", "-O1", "-Wall", "-fPIC", f"-I{SOURCES}")
# Functions that make, describe or ask about something, and compute nothing.
_QUIET = re.compile("Init|Get|Set|Finalize|Destroy|Derive")
_NOT_SUPPORTED = 801  # of the runtime and of the driver


class CannotBuildError(Exception):
    """The stubs cannot be built here: why."""


@dataclass(frozen=True)
class Stubs:
    """The folder that holds the libraries."""

    folder: Path

    def environment(self, log: Path, memory_mb: int | None = None) -> dict[str, str]:
        """Variables with which a program, and the programs that it starts, run over the stubs.

        Args:
            log: The file that gets a line for each call.
            memory_mb: What the device has; default: 78 GiB.
        """
        made = {"LD_PRELOAD": str(self.folder / "preload.so"), "CUDA_DRY_RUN_LOG": str(log)}
        return made if memory_mb is None else made | {"CUDA_DRY_RUN_MEMORY_MB": str(memory_mb)}


def build(folder: Path) -> Stubs:
    """Build the stubs into a folder.

    Raises:
        CannotBuildError: Something that is needed is not here.
        RuntimeError: The compiler refuses the sources.
    """
    provider = _provider()
    include = _include_folder()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _undefined([provider, *_cupy_modules()])
    if RUNTIME not in wanted:
        raise CannotBuildError(
            f"the installed onnxruntime-gpu is not built for CUDA 13: {provider} does not want {RUNTIME}"
        )
    wanted[DRIVER] = {name for name in wanted.get("", ()) if re.match("cu[A-Z]", name)}
    wanted[CUDNN] = _names_in(provider, rb"cudnn[A-Z]\w+")
    with tempfile.TemporaryDirectory() as work:
        for library, source in LIBRARIES.items():
            _build_library(folder, Path(work), library, source, wanted.get(library, set()), include)
    _run(
        *_COMPILE, "-shared", SOURCES / "preload.c", "-o", folder / "preload.so", "-ldl", "-Wl,-rpath,$ORIGIN",
        "-Wl,--no-as-needed", *(folder / library for library in LIBRARIES),
    )  # fmt: skip
    return Stubs(folder)


def _build_library(folder: Path, work: Path, library: str, source: str | None, wanted: set[str], include: Path) -> None:
    objects = []
    if source:
        objects.append(work / f"{library}.written.o")
        _run(*_COMPILE, f"-I{include}", "-c", SOURCES / source, "-o", objects[0])
    rest = sorted(wanted - _defined(objects))
    generated = work / f"{library}.c"
    lines = ['#include "libraries.h"', *(_generic(name, library) for name in rest)]
    generated.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # The provider wants symbols in a version that has the library's name.
    versions = work / f"{library}.versions"
    versions.write_text(f"{library} {{ global: *; }};\n", encoding="utf-8")
    _run(
        *_COMPILE, "-shared", generated, *objects, "-o", folder / library, "-lpthread", f"-Wl,-soname,{library}",
        f"-Wl,--version-script={versions}", "-Wl,-rpath,$ORIGIN",
        *([folder / RUNTIME] if library != RUNTIME else []),
    )  # fmt: skip


def _generic(name: str, library: str) -> str:
    """A function that is not written out."""
    if library in {RUNTIME, DRIVER}:
        return f"LACKS({name}, {_NOT_SUPPORTED})"
    if "Create" in name:
        return f"CREATES({name})"
    if _QUIET.search(name):
        return f"SUCCEEDS({name})"
    return f'COMPUTES("{"gemm" if "gemm" in name.lower() else "library"}", {name})'


def _provider() -> Path:
    """The CUDA provider of the installed ONNX Runtime."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CannotBuildError(f"the stubs are for Linux on x86-64, this is {sys.platform} on {platform.machine()}")
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise CannotBuildError(f"{tool} is not on PATH")
    try:
        version = importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        raise CannotBuildError("onnxruntime-gpu is not installed") from None
    if not version.startswith(ONNXRUNTIME):
        raise CannotBuildError(f"the stubs are for onnxruntime-gpu {ONNXRUNTIME}*, installed is {version}")
    spec = importlib.util.find_spec("onnxruntime")
    path = Path(spec.origin if spec and spec.origin else "", "..", "capi", "libonnxruntime_providers_cuda.so")
    path = Path(os.path.normpath(path))
    if not path.is_file():
        raise CannotBuildError(f"the installed onnxruntime has no CUDA provider at {path}")
    return path


def _include_folder() -> Path:
    """Where the headers of CUDA 13's runtime are."""
    check = "#include <cuda.h>\n#include <cuda_runtime_api.h>\n#if CUDART_VERSION / 1000 != 13\n#error\n#endif\n"
    for folder in _include_candidates():
        command = ["gcc", f"-I{folder}", "-fsyntax-only", "-x", "c", "-"]
        if subprocess.run(command, input=check, text=True, capture_output=True, check=False).returncode == 0:
            return folder
    raise CannotBuildError("no headers of CUDA 13: put nvcc on PATH, or pip install 'cuda-toolkit[cudart,crt]==13.*'")


def _include_candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        yield Path(place, "cu13", "include")
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parents[1] / "include"
        # It may be a script that calls another one.
        said = subprocess.run([nvcc, "-x", "cu", "--dryrun", os.devnull], capture_output=True, text=True, check=False)
        for top in re.findall(r"TOP=(.*)", said.stderr):
            yield Path(top, "include")


def _cupy_modules() -> list[Path]:
    """CuPy's modules that are linked against libraries that the stubs stand for."""
    spec = importlib.util.find_spec("cupy_backends")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "cuda" / "libs"
    return sorted(path for name in ("cublas", "curand") for path in folder.glob(f"{name}.*.so"))


def _undefined(files: Sequence[Path]) -> dict[str, set[str]]:
    """Symbols that files want, by the version that they want them in."""
    found: dict[str, set[str]] = {}
    for line in _run("nm", "-D", "--undefined-only", "--with-symbol-versions", *files).splitlines():
        if " U " in line:
            name, _, version = line.split()[-1].partition("@")
            found.setdefault(version, set()).add(name)
    return found


def _defined(objects: Sequence[Path]) -> set[str]:
    if not objects:
        return set()
    return {line.split()[-1] for line in _run("nm", "--defined-only", *objects).splitlines() if " T " in line}


def _names_in(file: Path, pattern: bytes) -> set[str]:
    """Strings of a file: it looks up cuDNN's functions by name."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {name.decode() for name in re.findall(rb"\0(" + pattern + rb")(?=\0)", data)}


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # No reason to skip a test: everything that is needed is here.
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    build(Path(sys.argv[1]))
