"""Finds out what this machine can run a model with, and how to repair what does not work.

Facts are gathered by ``Probes``, verdicts on them are pure functions: a test can tell of any machine.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.devices import Driver, cores, driver, parse_device
from mkc_fast.engine.sessions.providers import (
    CPU,
    CUDA,
    FP16,
    FP32,
    GPU_AUTO_PRECISION,
    GRAPH_FILES,
    ORT_NAMES,
    TENSORRT,
    TITLES,
    Plan,
    cuda_options,
    graph_file,
    refusal,
)
from mkc_fast.errors import MkcError
from mkc_fast.kernels.cpu.loader import instruction_set
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OK, NOTE, FAULT = "ok", "note", "fault"
# TensorRT's libraries; the providers of all releases since 1.18 are linked against those of TensorRT 10.
NVINFER = "libnvinfer.so.10"
_TENSORRT_LIBRARIES = (NVINFER, "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
# A CUDA build for 13 has no code for GPUs before Turing, and no driver of 12 runs it.
_LEAST_CAPABILITY = {13: (7, 5)}
_LEAST_DRIVER = {12: "525", 13: "580"}
# A convolution and a matrix product on ones: 3 taps, then 6 times 3. With it a provider shows that it computes, with
# cuDNN and cuBLAS, before a model is at hand. Made with onnx.helper; tests/engine/test_doctor.py reads it back.
_PROBE_GRAPH = base64.b64decode(
    "CAgSADq1AQoPCgF4CgF3EgFjIgRDb252ChEKAWMKAW0SAXkiBk1hdE11bBIFcHJvYmUqGQgBCAEIAxABQgF3SgwAAIA/AACAPwAAgD8qOwgGCAIQAUIB"
    "bUowAACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAIA/WhcKAXgSEgoQCAESDAoCCAEKAggBCgIICGIXCgF5EhIKEAgB"
    "EgwKAggBCgIIAQoCCAJCBAoAEBE="
)
_PROBE_RESULT = 18.0


@dataclass(frozen=True)
class Runtime:
    """The ONNX Runtime that Python imports.

    Attributes:
        version: Empty if it does not import.
        cuda: The CUDA that it was built for, as ``13.0``; None for a build without.
        providers: Those it was built with, by its own names.
        problem: Why it does not import, None if it does.
    """

    version: str = ""
    cuda: str | None = None
    providers: tuple[str, ...] = ()
    problem: str | None = None

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


_NO_OPERATORS = (
    "native ones for CPUs are not here: installing mkc-fast builds them, given g++ and an x86-64 CPU with AVX2; "
    "a CPU works without them, slower"
)


@dataclass(frozen=True)
class Host:
    """The machine around the GPUs; memory is what this process may have, in bytes.

    ``operators`` is the instruction set of the native operators, empty where they are not built or not for this CPU.
    """

    system: str
    python: str
    cores: int
    memory_bytes: int
    available_bytes: int
    operators: str = ""


@dataclass(frozen=True)
class GpuFacts:
    """What decides whether a GPU can be used."""

    driver: Driver
    runtime: Runtime
    libraries: tuple[Library, ...] = ()

    def library_version(self, name: str) -> str | None:
        """Of a library that was tried."""
        return next((library.version for library in self.libraries if library.name == name), None)


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot be used, and the command that repairs it (None where no command does)."""

    reason: str
    mend: str | None = None


def _runtime() -> Runtime:
    try:
        from mkc_fast.onnx_runtime import ort
    except Exception as error:  # a broken installation can raise anything
        return Runtime(problem=f"{type(error).__name__}: {one_line(str(error), 200)}")
    cuda = getattr(ort, "cuda_version", "") or None
    if cuda and hasattr(ort, "preload_dlls"):
        # ONNX Runtime's own search, which also registers a CUDA provider that comes as a plug-in. What it prints where
        # a library is missing, `obstacle` says in one line.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    return Runtime(ort.__version__, cuda, tuple(ort.get_available_providers()))


def _load_library(name: str) -> Library:
    """Load a library and leave it loaded, for ONNX Runtime to find: first from pip's packages, as it does itself."""
    folders: list[Path] = []
    spec = importlib.util.find_spec("onnxruntime")
    if spec is not None and spec.origin is not None:
        packages = Path(spec.origin).parents[1]
        folders = [*sorted(packages.glob("nvidia/*/lib")), packages / "tensorrt_libs"]
    problem = ""
    for path in [*(str(folder / name) for folder in folders if (folder / name).is_file()), name]:
        try:
            return Library(name, _version_of(name, ctypes.CDLL(path)))
        except OSError as error:
            problem = str(error)
    return Library(name, problem=problem)


def _version_of(name: str, library: Any) -> str | None:
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


def _distributions() -> dict[str, tuple[tuple[str, str], ...]]:
    found = importlib.metadata.packages_distributions()
    return {
        package: tuple((name, importlib.metadata.version(name)) for name in sorted(set(found.get(package, []))))
        for package in ("onnxruntime", "cupy", "torch", "tensorrt")
    }


def _module_version(name: str) -> str:
    """What a module says of itself and of the library under it; it raises what importing it raises."""
    module = importlib.import_module(name)
    beneath = getattr(module, "__libsndfile_version__", None) or getattr(module, "__libsoxr_version__", None)
    return f"{module.__version__}" + (f" over {beneath}" if beneath else "")


def _host() -> Host:
    memory = available = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        available = int(match[1]) * 1024 if match else available
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    system, python = platform.platform(terse=True), platform.python_version()
    return Host(system, python, cores(), memory, min(memory, available), instruction_set())


def _compute(provider: str, index: int | None) -> str | None:
    """Compute something small on a provider and nowhere else; what went wrong, None if nothing did."""
    import numpy as np

    from mkc_fast.onnx_runtime import ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    providers: list[tuple[str, dict[str, str]]] = [(ORT_NAMES[CPU], {})]
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(ORT_NAMES[CUDA], cuda_options(Plan(CUDA, FP32, index)))]
        if provider == TENSORRT:
            providers.insert(0, (ORT_NAMES[TENSORRT], {"device_id": str(index)}))
    try:
        session = ort.InferenceSession(_PROBE_GRAPH, options, providers=providers, enable_fallback=0)
        (result,) = session.run(["y"], {"x": np.ones((1, 1, 8), np.float32)})
    except Exception as error:
        return one_line(str(error), 300)
    return None if (result == _PROBE_RESULT).all() else f"it computes {result.tolist()} where 18 is right"


@dataclass(frozen=True)
class Probes:
    """Where facts come from; a test puts another machine's here.

    Attributes:
        driver: What the GPU's driver says.
        runtime: The ONNX Runtime that Python imports.
        library: Loads a shared library.
        distributions: Installed packages, (name, version), by what they are imported as.
        module: Version of a module; raises what importing it raises.
        host: The machine around the GPUs.
        compute: Tries a provider on a device; what went wrong, None if nothing did.
    """

    driver: Callable[[], Driver] = driver
    runtime: Callable[[], Runtime] = _runtime
    library: Callable[[str], Library] = _load_library
    distributions: Callable[[], Mapping[str, tuple[tuple[str, str], ...]]] = _distributions
    module: Callable[[str], str] = _module_version
    host: Callable[[], Host] = _host
    compute: Callable[[str, int | None], str | None] = _compute


def gather_gpu_facts(providers: tuple[str, ...] = (TENSORRT, CUDA), probes: Probes | None = None) -> GpuFacts:
    """What decides whether these providers can use a GPU; the libraries that they need are loaded on the way."""
    probes = probes or Probes()
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
    if _numbers(runtime.version) < (1, 28):
        names += [f"libcufft.so.{major - 1}"]
    return (*names, *_TENSORRT_LIBRARIES) if provider == TENSORRT else tuple(names)


def _load_order(name: str) -> bool:
    """TensorRT's after CUDA's, which they are linked against."""
    return name in _TENSORRT_LIBRARIES


def is_broken_release(version: str) -> bool:
    """Whether pyproject.toml excludes this release of ONNX Runtime."""
    numbers = _numbers(version)
    return numbers < (1, 20) or numbers[:2] == (1, 25) or numbers[:3] in {(1, 24, 1), (1, 26, 0)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def obstacle(facts: GpuFacts, provider: str, index: int | None) -> Obstacle | None:
    """What keeps a provider from a device, the first thing first; None if nothing does, as far as facts go."""
    runtime, said = facts.runtime, facts.driver
    extra = _extra(facts, index)
    install = f"pip install 'mkc-fast[{extra}]'"
    if runtime.problem:
        again = "pip install --force-reinstall --no-deps onnxruntime" + ("-gpu" if said.found else "")
        return Obstacle(f"onnxruntime does not import ({runtime.problem})", again)
    if is_broken_release(runtime.version):
        upgrade = f"pip install --upgrade 'mkc-fast[{extra}]'" if said.found else "pip install --upgrade mkc-fast"
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
        packages = [] if set(missing) <= set(_TENSORRT_LIBRARIES) else [f"'mkc-fast[{extra}]'"]
        packages += [f"'tensorrt-cu{major}>=10,<11'"] if set(missing) & set(_TENSORRT_LIBRARIES) else []
        return Obstacle(f"{', '.join(missing)} cannot be loaded", f"pip install {' '.join(packages)}")
    return None


def _extra(facts: GpuFacts, index: int | None) -> str:
    """The extra of pyproject.toml that fits the driver and the GPU."""
    said = facts.driver
    gpu = said.gpus[index] if index is not None and index < len(said.gpus) else None
    old_gpu = gpu is not None and (0, 0) < gpu.capability < _LEAST_CAPABILITY[13]
    return "cuda12" if old_gpu or (said.cuda and said.cuda < (13, 0)) else "cuda13"


@dataclass(frozen=True)
class Finding:
    """One fact with its judgement.

    Attributes:
        topic: What was looked at.
        found: What was there.
        status: ``ok``; ``note``: worth knowing; ``fault``: inference does not work, or cannot be trusted.
        mend: The command that repairs it, None where none is needed or none does.
    """

    topic: str
    found: str
    status: str = OK
    mend: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a provider would be used, and why, or why not and how to repair that."""

    provider: str
    used: bool
    reason: str
    mend: str | None = None


@dataclass(frozen=True)
class Report:
    """What ``mkc-fast doctor`` shows.

    Attributes:
        device: That was looked at.
        ok: Whether inference works on it.
        findings: In the order of reading.
        verdicts: One for each provider, the fastest first.
    """

    device: str
    ok: bool
    findings: tuple[Finding, ...] = field(default_factory=tuple)
    verdicts: tuple[Verdict, ...] = field(default_factory=tuple)


def examine(
    device: str | None = None, model: Path | None = None, bank: Path | None = None, probes: Probes | None = None
) -> Report:
    """Find out whether inference would work, and with what.

    Args:
        device: ``cpu`` or ``cuda:<number>``; default: what ``mkc-fast infer`` takes, the GPUs if there are any.
        model: Directory to check: its graphs are opened on the device.
        bank: Directory to check; with ``model``, half a second of noise is anonymized as well.
        probes: Where facts come from.

    Raises:
        DeviceError: ``device`` is no device's name.
    """
    probes = probes or Probes()
    facts = gather_gpu_facts(probes=probes)
    device = device or ("cuda:0" if facts.driver.gpus else CPU)
    index = parse_device(device)
    verdicts = _verdicts(facts, index)
    used = next((verdict.provider for verdict in verdicts if verdict.used), None)
    findings = [
        *_hardware(probes.host(), facts.driver),
        *_packages(facts, probes.distributions(), index),
        *_cuda_libraries(facts, index),
        *(_module(probes, name) for name in ("soundfile", "soxr")),
    ]
    if used is not None:
        failed = probes.compute(used, index)
        text = f"{TITLES[used]} computes on {device}" if failed is None else f"{TITLES[used]} fails: {failed}"
        findings.append(Finding("trial", text, OK if failed is None else FAULT))
    works = used is not None and all(finding.status != FAULT for finding in findings)
    artifacts = _artifacts(device if works else None, model, bank)
    works = works and all(finding.status != FAULT for finding in artifacts)
    return Report(device, works, (*findings, *artifacts), verdicts)


def _verdicts(facts: GpuFacts, index: int | None) -> tuple[Verdict, ...]:
    """For each provider, whether ``provider="auto", precision="auto"`` takes it."""
    verdicts: list[Verdict] = []
    for provider in (TENSORRT, CUDA, CPU):
        if (provider == CPU) != (index is None):
            # Not of the device looked at; say so, unless it could not be used even if asked for.
            hindrance = obstacle(facts, provider, 0 if index is None else index)
            reason = "the device is cpu" if index is None else "it would be taken with --device cpu"
            verdicts.append(
                Verdict(provider, False, hindrance.reason, hindrance.mend)
                if hindrance
                else Verdict(provider, False, reason)
            )
            continue
        hindrance = obstacle(facts, provider, index)
        if hindrance:
            verdicts.append(Verdict(provider, False, hindrance.reason, hindrance.mend))
        elif any(verdict.used for verdict in verdicts):
            verdicts.append(Verdict(provider, False, "a faster one is taken"))
        elif index is not None and (why := _not_by_itself(provider, facts, index)):
            verdicts.append(Verdict(provider, False, why))
        else:
            precision = FP32 if index is None else GPU_AUTO_PRECISION
            verdicts.append(Verdict(provider, True, f"it is the fastest that works here, in {precision}"))
    return tuple(verdicts)


def _not_by_itself(provider: str, facts: GpuFacts, index: int) -> str | None:
    """Why a provider that is ready is taken only when asked for by name."""
    reason = refusal(provider, GPU_AUTO_PRECISION, facts.driver.gpus[index])
    return f"ready, but only taken when asked for: {reason}" if reason and provider == TENSORRT else reason


def _hardware(host: Host, said: Driver) -> list[Finding]:
    memory = f"{host.memory_bytes / 2**30:.1f} GiB of memory, {host.available_bytes / 2**30:.1f} GiB free"
    findings = [
        Finding("machine", f"{host.system}, Python {host.python}"),
        Finding("CPU", f"{host.cores} core(s), {memory}"),
        Finding("operators", f"native ones for CPUs, with {host.operators}")
        if host.operators
        else Finding("operators", _NO_OPERATORS, NOTE),
    ]
    if not said.found:
        return [*findings, Finding("GPU", "no NVIDIA driver; the CPU is used", NOTE)]
    runs = f", runs CUDA up to {said.cuda[0]}.{said.cuda[1]}" if said.cuda else ""
    findings.append(Finding("driver", f"NVIDIA {said.version or 'of unknown version'}{runs}"))
    if said.problem:
        findings.append(Finding("GPU", f"none: {said.problem}", NOTE))
    for gpu in said.gpus:
        size = f"{gpu.memory_bytes / 2**30:.1f} GiB, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        findings.append(Finding(f"cuda:{gpu.index}", f"{gpu.name}, {size}"))
    return findings


def _packages(
    facts: GpuFacts, installed: Mapping[str, tuple[tuple[str, str], ...]], index: int | None
) -> list[Finding]:
    runtime, extra = facts.runtime, _extra(facts, index)
    packages = installed.get("onnxruntime", ())
    findings = []
    if len(packages) > 1:
        names = [name for name, _ in packages]
        findings.append(
            Finding(
                "onnxruntime",
                f"{' and '.join(_listed(packages))} are installed together, and each overwrote files of the other",
                FAULT,
                f"pip uninstall -y {' '.join(names)} && pip install 'mkc-fast"
                + (f"[{extra}]'" if facts.driver.gpus else "'"),
            )
        )
    hindrance = obstacle(facts, CPU, None)
    built = f"built for CUDA {runtime.cuda}" if runtime.cuda else "built without CUDA"
    providers = ", ".join(title for name, title in TITLES.items() if ORT_NAMES[name] in runtime.providers)
    if hindrance:
        findings.append(Finding("onnxruntime", hindrance.reason, FAULT, hindrance.mend))
    else:
        package = packages[0][0] if len(packages) == 1 else "onnxruntime"
        findings.append(Finding("onnxruntime", f"{package} {runtime.version}, {built}, with {providers}"))
    return [*findings, *_cupy(facts, installed.get("cupy", ()), extra, index), *_torch(installed.get("torch", ()))]


def _cupy(facts: GpuFacts, packages: tuple[tuple[str, str], ...], extra: str, index: int | None) -> list[Finding]:
    """CuPy runs the look-up's kernels on a GPU, and there is no GPU run without; on the CPU it is not used."""
    said, install = facts.driver, f"pip install 'mkc-fast[{extra}]'"
    bad = NOTE if index is None else FAULT
    if not packages:
        return [Finding("cupy", "not installed, and runs on a GPU need it", bad, install)] if said.gpus else []
    text = " and ".join(_listed(packages))
    if len(packages) > 1:
        names = " ".join(name for name, _ in packages)
        return [Finding("cupy", f"{text} overwrote each other", bad, f"pip uninstall -y {names} && {install}")]
    match = re.search(r"cuda(\d\d)x?$", packages[0][0])
    major = int(match[1]) if match else None
    again = f"pip uninstall -y {packages[0][0]} && {install}"
    if major and said.cuda and said.cuda[0] < major:
        return [Finding("cupy", f"{text}, but the driver runs CUDA up to {said.cuda[0]}.{said.cuda[1]}", bad, again)]
    if major and facts.runtime.cuda_major and major != facts.runtime.cuda_major:
        return [Finding("cupy", f"{text}, but onnxruntime is built for CUDA {facts.runtime.cuda_major}", NOTE, again)]
    return [Finding("cupy", text)]


def _torch(packages: tuple[tuple[str, str], ...]) -> list[Finding]:
    return [Finding("torch", f"{' and '.join(_listed(packages))} (for export alone)")] if packages else []


def _listed(packages: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"{name} {version}" for name, version in packages]


def _cuda_libraries(facts: GpuFacts, index: int | None) -> list[Finding]:
    """The libraries of each provider; that one is missing matters where there is a GPU for it."""
    findings = []
    for topic, chosen in (
        ("CUDA libraries", [lib for lib in facts.libraries if lib.name not in _TENSORRT_LIBRARIES]),
        ("TensorRT libraries", [lib for lib in facts.libraries if lib.name in _TENSORRT_LIBRARIES]),
    ):
        there = [f"{lib.name} {lib.version or ''}".strip() for lib in chosen if not lib.problem]
        missing = [lib.name for lib in chosen if lib.problem]
        if not chosen or not (facts.driver.gpus or there):
            continue  # nobody needs them, and there are none
        parts = [", ".join(there), f"cannot be loaded: {', '.join(missing)}" if missing else ""]
        hindrance = obstacle(facts, TENSORRT if "TensorRT" in topic else CUDA, index or 0) if missing else None
        text = "; ".join(filter(None, parts))
        findings.append(Finding(topic, text, NOTE if missing else OK, hindrance.mend if hindrance else None))
    return findings


def _module(probes: Probes, name: str) -> Finding:
    try:
        return Finding(name, probes.module(name))
    except Exception as error:  # soundfile raises OSError without libsndfile
        reason = f"does not import ({type(error).__name__}: {one_line(str(error), 160)})"
        return Finding(name, reason, FAULT, f"pip install --force-reinstall {name}")


def _artifacts(device: str | None, model: Path | None, bank: Path | None) -> list[Finding]:
    """The directories given, read, and run on a device unless it is None."""
    from mkc_fast.engine.artifacts import open_bank, read_model_info

    findings = []
    if model is not None:
        try:
            info = read_model_info(model)
            half = all((model / graph_file(graph, FP16)).is_file() for graph in GRAPH_FILES)
            precisions = f"{info.precision}{' and fp16' if half else ''}"
            findings.append(Finding("model", f"{model}: D = {info.dim}, layer {info.layer}, {precisions}"))
            findings += [Finding("precision", warning, NOTE) for warning in info.warnings]
        except MkcError as error:
            findings.append(Finding("model", str(error), FAULT))
    if bank is not None:
        try:
            opened = open_bank(bank)
            findings.append(Finding("bank", f"{bank}: {len(opened)} models, D = {opened.info.dim}"))
        except MkcError as error:
            findings.append(Finding("bank", str(error), FAULT))
    if model is not None and device is not None and all(finding.status != FAULT for finding in findings):
        findings.append(_trial(device, model, bank))
    return findings


def _trial(device: str, model: Path, bank: Path | None) -> Finding:
    """Open the graphs on a device; with a bank, anonymize half a second of noise."""
    import numpy as np

    from mkc_fast.engine.anonymizer import Anonymizer
    from mkc_fast.engine.sessions.opening import open_sessions

    try:
        if bank is None:
            return Finding("graphs", open_sessions(model, device).chosen)
        anonymizer = Anonymizer.load(model, bank, device)
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, anonymizer.info.sample_rate // 2)
        result = anonymizer.anonymize(noise.astype(np.float32), seed=0, utterance_id="doctor")
    except Exception as error:
        text = str(error) if isinstance(error, MkcError) else f"{type(error).__name__}: {error}"
        return Finding("inference", one_line(text, 300), FAULT)
    seconds = sum(result.stage_seconds.values())
    finite = bool(np.isfinite(result.waveform).all())
    text = f"0.5 s of noise anonymized in {seconds:.2f} s on {device}"
    return Finding("inference", text if finite else "the waveform is not finite", OK if finite else FAULT)
