"""Tells from facts what keeps a provider from a device, and which command repairs it; pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mkc_fast.engine.sessions.gpu_facts import TENSORRT_LIBRARIES, needed_libraries, version_numbers
from mkc_fast.engine.sessions.providers import ORT_NAMES, TITLES
from mkc_fast.extras import CPU_EXTRA, CUDA12_EXTRA, CUDA13_EXTRA, install_command
from mkc_fast.names import CPU

if TYPE_CHECKING:
    from mkc_fast.engine.sessions.gpu_facts import GpuFacts

# A CUDA build for 13 has no code for GPUs before Turing, and no driver of 12 runs it.
_LEAST_CAPABILITY = {13: (7, 5)}
_LEAST_DRIVER = {12: "525", 13: "580"}


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot be used, and the command that repairs it (None where no command does)."""

    reason: str
    repair: str | None = None


def is_broken_release(version: str) -> bool:
    """Whether pyproject.toml excludes this release of ONNX Runtime."""
    numbers = version_numbers(version)
    return numbers < (1, 20) or numbers[:2] == (1, 25) or numbers[:3] in {(1, 24, 1), (1, 26, 0)}


def obstacle(facts: GpuFacts, provider: str, index: int | None) -> Obstacle | None:
    """What keeps a provider from a device, the first thing first; None if nothing does, as far as facts go."""
    runtime, said = facts.runtime, facts.driver
    extra = fitting_extra(facts, index)
    install = install_command(extra)
    if not runtime.installed:
        return Obstacle("ONNX Runtime is not installed", install_command(extra if said.found else CPU_EXTRA))
    if runtime.problem:
        again = "pip install --force-reinstall --no-deps onnxruntime" + ("-gpu" if said.found else "")
        return Obstacle(f"onnxruntime does not import ({runtime.problem})", again)
    if is_broken_release(runtime.version):
        upgrade = install_command(extra if said.found else CPU_EXTRA, upgrade=True)
        return Obstacle(f"onnxruntime {runtime.version} is a release known to be broken", upgrade)
    if provider == CPU:
        return None
    if not said.found:
        return Obstacle("there is no NVIDIA driver (libcuda.so.1)")
    if index is None or index >= len(said.gpus):
        return Obstacle(said.problem or f"cuda:{index} is not here; the driver shows {len(said.gpus)} GPU(s)")
    if ORT_NAMES[provider] not in runtime.providers:
        return Obstacle(
            f"the installed onnxruntime {runtime.version} is built without {TITLES[provider]}",
            f"pip uninstall -y onnxruntime && {install}",
        )
    major, gpu = runtime.cuda_major, said.gpus[index]
    if major and said.cuda and said.cuda[0] < major:
        return Obstacle(
            f"onnxruntime {runtime.version} is built for CUDA {major}, the driver runs CUDA up to "
            f"{said.cuda[0]}.{said.cuda[1]}",
            f"{install}, or update the driver to {_LEAST_DRIVER.get(major, 'a newer one')} or later",
        )
    if major and (0, 0) < gpu.capability < _LEAST_CAPABILITY.get(major, (0, 0)):
        return Obstacle(
            f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}, CUDA {major} begins at 7.5",
            install,
        )
    needed = needed_libraries(provider, runtime)
    missing = [library.name for library in facts.libraries if library.problem and library.name in needed]
    if missing:
        packages = [] if set(missing) <= set(TENSORRT_LIBRARIES) else [f"'mkc-fast[{extra}]'"]
        packages += [f"'tensorrt-cu{major}>=10,<11'"] if set(missing) & set(TENSORRT_LIBRARIES) else []
        return Obstacle(f"{', '.join(missing)} cannot be loaded", f"pip install {' '.join(packages)}")
    return None


def fitting_extra(facts: GpuFacts, index: int | None) -> str:
    """The extra of pyproject.toml that fits the driver and the GPU."""
    said = facts.driver
    gpu = said.gpus[index] if index is not None and index < len(said.gpus) else None
    old_gpu = gpu is not None and (0, 0) < gpu.capability < _LEAST_CAPABILITY[13]
    return CUDA12_EXTRA if old_gpu or (said.cuda and said.cuda < (13, 0)) else CUDA13_EXTRA
