"""The report of ``mkc-fast doctor``: what this machine can run a model with, and how to repair what does not work.

Facts are gathered by ``Probes``, verdicts on them are pure functions: a test can tell of any machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mkc_fast.engine.artifacts import open_bank, read_model_info
from mkc_fast.engine.devices import Driver, parse_device
from mkc_fast.engine.machine import Host, installed_packages, module_version, read_host
from mkc_fast.engine.sessions.gpu_facts import TENSORRT_LIBRARIES, GpuFacts, GpuProbes, gather_gpu_facts
from mkc_fast.engine.sessions.probe import try_provider
from mkc_fast.engine.sessions.providers import ORT_NAMES, TITLES, graph_file, refusal
from mkc_fast.engine.sessions.support import fitting_extra, obstacle
from mkc_fast.errors import MkcError
from mkc_fast.extras import CPU_EXTRA, install_command
from mkc_fast.names import CPU, CUDA, FP16, FP32, GRAPH_FILES, TENSORRT
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

OK, NOTE, FAULT = "ok", "note", "fault"
_NO_OPERATORS = (
    "native ones for CPUs are not here: installing mkc-fast builds them, given g++ and an x86-64 CPU with AVX2; "
    "a CPU works without them, slower"
)


@dataclass(frozen=True)
class Probes(GpuProbes):
    """Where all facts of a report come from; a test puts another machine's here.

    Attributes:
        distributions: Installed packages, (name, version), by what they are imported as.
        module: Version of a module; raises what importing it raises.
        host: The machine around the GPUs.
        compute: Tries a provider on a device; what went wrong, None if nothing did.
    """

    distributions: Callable[[], Mapping[str, tuple[tuple[str, str], ...]]] = installed_packages
    module: Callable[[str], str] = module_version
    host: Callable[[], Host] = read_host
    compute: Callable[[str, int | None], str | None] = try_provider


@dataclass(frozen=True)
class Finding:
    """One fact with its judgement.

    Attributes:
        topic: What was looked at.
        found: What was there.
        status: ``ok``; ``note``: worth knowing; ``fault``: inference does not work, or cannot be trusted.
        repair: The command that repairs it, None where none is needed or none does.
    """

    topic: str
    found: str
    status: str = OK
    repair: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a provider would be used, and why, or why not and how to repair that."""

    provider: str
    used: bool
    reason: str
    repair: str | None = None


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
            problem = obstacle(facts, provider, 0 if index is None else index)
            reason = "the device is cpu" if index is None else "it would be taken with --device cpu"
            verdicts.append(
                Verdict(provider, False, problem.reason, problem.repair)
                if problem
                else Verdict(provider, False, reason)
            )
            continue
        problem = obstacle(facts, provider, index)
        if problem:
            verdicts.append(Verdict(provider, False, problem.reason, problem.repair))
        elif any(verdict.used for verdict in verdicts):
            verdicts.append(Verdict(provider, False, "a faster one is taken"))
        elif index is not None and (why := _not_by_itself(provider, facts, index)):
            verdicts.append(Verdict(provider, False, why))
        else:
            precision = FP32 if index is None else "mixed where the model has graphs for it, else fp32"
            verdicts.append(Verdict(provider, True, f"it is the fastest that works here, in {precision}"))
    return tuple(verdicts)


def _not_by_itself(provider: str, facts: GpuFacts, index: int) -> str | None:
    """Why a provider that is ready is taken only when asked for by name."""
    reason = refusal(provider, FP32, facts.driver.gpus[index])
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
    runtime, extra = facts.runtime, fitting_extra(facts, index)
    packages = installed.get("onnxruntime", ())
    findings = []
    if len(packages) > 1:
        names = [name for name, _ in packages]
        findings.append(
            Finding(
                "onnxruntime",
                f"{' and '.join(_listed(packages))} are installed together, and each overwrote files of the other",
                FAULT,
                f"pip uninstall -y {' '.join(names)} && {install_command(extra if facts.driver.gpus else CPU_EXTRA)}",
            )
        )
    problem = obstacle(facts, CPU, None)
    built = f"built for CUDA {runtime.cuda}" if runtime.cuda else "built without CUDA"
    providers = ", ".join(title for name, title in TITLES.items() if ORT_NAMES[name] in runtime.providers)
    if problem:
        findings.append(Finding("onnxruntime", problem.reason, FAULT, problem.repair))
    else:
        package = packages[0][0] if len(packages) == 1 else "onnxruntime"
        findings.append(Finding("onnxruntime", f"{package} {runtime.version}, {built}, with {providers}"))
    return [*findings, *_cupy(facts, installed.get("cupy", ()), extra, index), *_torch(installed.get("torch", ()))]


def _cupy(facts: GpuFacts, packages: tuple[tuple[str, str], ...], extra: str, index: int | None) -> list[Finding]:
    """CuPy runs the look-up's kernels on a GPU, and there is no GPU run without; on the CPU it is not used."""
    said, install = facts.driver, install_command(extra)
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
        ("CUDA libraries", [lib for lib in facts.libraries if lib.name not in TENSORRT_LIBRARIES]),
        ("TensorRT libraries", [lib for lib in facts.libraries if lib.name in TENSORRT_LIBRARIES]),
    ):
        there = [f"{lib.name} {lib.version or ''}".strip() for lib in chosen if not lib.problem]
        missing = [lib.name for lib in chosen if lib.problem]
        if not chosen or not (facts.driver.gpus or there):
            continue  # not needed, and not there
        parts = [", ".join(there), f"cannot be loaded: {', '.join(missing)}" if missing else ""]
        problem = obstacle(facts, TENSORRT if "TensorRT" in topic else CUDA, index or 0) if missing else None
        text = "; ".join(filter(None, parts))
        findings.append(Finding(topic, text, NOTE if missing else OK, problem.repair if problem else None))
    return findings


def _module(probes: Probes, name: str) -> Finding:
    try:
        return Finding(name, probes.module(name))
    except Exception as error:  # soundfile raises OSError without libsndfile
        reason = f"does not import ({type(error).__name__}: {one_line(str(error), 160)})"
        return Finding(name, reason, FAULT, f"pip install --force-reinstall {name}")


def _artifacts(device: str | None, model: Path | None, bank: Path | None) -> list[Finding]:
    """The directories given, read, and run on a device unless it is None."""
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
    # These import ONNX Runtime, which may be what does not work.
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
