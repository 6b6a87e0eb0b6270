"""``bench tensorrt``: engines, correctness against the CPU, and speed beside the CUDA provider, in one file to report.

No TensorRT has run this. Whoever has one gets a record of what works and what does not.
"""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.gpu.bench import one_line_of, rounded
from mkc_fast.benchmarks.gpu.correctness import cases_of, compared
from mkc_fast.benchmarks.gpu.latency import timed_single
from mkc_fast.benchmarks.gpu.throughput import timed_batches
from mkc_fast.benchmarks.records import context
from mkc_fast.benchmarks.timing import Budget
from mkc_fast.benchmarks.utterances import count_for, cut, draw_lengths
from mkc_fast.engine.anonymizer import Anonymizer
from mkc_fast.engine.devices import cuda_index, driver
from mkc_fast.engine.options import EngineOptions, default_batch_s
from mkc_fast.engine.sessions.gpu_facts import NVINFER, gather_gpu_facts
from mkc_fast.engine.sessions.providers import resolve_precision
from mkc_fast.engine.sessions.tensorrt import build_engines, check_warm
from mkc_fast.names import CPU, CUDA, TENSORRT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.benchmarks.target import Target

CHECKED_S = (0.4, 1.0, 3.0, 10.0, 20.0)
LENGTHS_S = (1.0, 3.0, 10.0)


def bench_tensorrt(
    target: Target,
    speech: NDArray[np.float32],
    *,
    checked_s: Sequence[float] = CHECKED_S,
    lengths_s: Sequence[float] = LENGTHS_S,
    corpus_s: float = 600.0,
    runs: int = 30,
    budget_s: float = 1800.0,
    progress: Callable[[str], None] = lambda _: None,
    save: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Build TensorRT's engines anew, compare with the CPU, and measure beside the CUDA provider.

    Args:
        target: On a CUDA device; its provider is not looked at.
        speech: (S,) float32 at the model's rate.
        checked_s: Seconds of the recordings that are compared with the CPU.
        lengths_s: Seconds of the utterances whose latency is measured.
        corpus_s: Seconds of audio of a throughput run.
        runs: Timed runs of each utterance.
        budget_s: Seconds; what would begin after them is left out, and ``cut`` says so.
        progress: Called with a line as each part begins.
        save: Called with the record after every part: a crash of TensorRT then leaves what was found before.

    Returns:
        The record: ``parts`` by name. One that failed has ``failed`` with the error; the others go on.

    Raises:
        DeviceError: There is no TensorRT here that can be used: why, and the command that repairs it.
    """
    options = replace(target.options, provider=TENSORRT)
    check_warm(target.device, options)
    facts, budget = gather_gpu_facts((TENSORRT,)), Budget(budget_s)
    record: dict[str, Any] = {
        "bench": "tensorrt",
        **context(),
        "target": replace(target, options=options).described(),
        "tensorrt": facts.library_version(NVINFER),
        "driver": facts.driver.version,
        "onnxruntime_cuda": facts.runtime.cuda,
        "libraries": {library.name: library.problem or library.version or "loaded" for library in facts.libraries},
        "budget_s": budget_s,
        "cut": budget.cut,
        "parts": {},
    }
    parts: dict[str, Any] = record["parts"]

    def part(name: str, work: Callable[[], dict[str, Any]]) -> bool:
        progress(name)
        if budget.allows(1, name):
            begin = time.perf_counter()
            try:
                parts[name] = {**rounded(work()), "part_s": rounded(time.perf_counter() - begin)}
            except Exception as error:  # what comes after may work
                parts[name] = {"failed": one_line_of(error), "part_s": rounded(time.perf_counter() - begin)}
        save(record)
        return "failed" not in parts.get(name, {"failed": ""})

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        built = replace(options, cache=Path(cache))
        if part("engines, built", partial(_built, target, built, progress)):
            part("engines, found again", partial(_built, target, built, progress))
            _measure(part, target, speech, built, checked_s, lengths_s, corpus_s, runs)
        else:
            budget.cut.append("everything else: there are no engines")
    save(record)
    return record


def _built(target: Target, options: EngineOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each graph, and the engines that lie in the cache after it."""
    lines: list[tuple[str, float]] = []

    def seen(line: str) -> None:
        lines.append((line, time.perf_counter()))
        progress(line)

    chosen = build_engines(target.model, target.device, options, progress=seen)
    ends = [at for _, at in lines[1:]] + [time.perf_counter()]
    assert options.cache is not None
    files = [path for path in (options.cache / "tensorrt").rglob("*") if path.is_file()]
    return {
        "chosen": chosen,
        "seconds": {line: end - at for (line, at), end in zip(lines, ends, strict=True)},
        "files_mb": {path.name: path.stat().st_size / 1e6 for path in sorted(files)},
    }


def _measure(
    part: Callable[[str, Callable[[], dict[str, Any]]], bool],
    target: Target,
    speech: NDArray[np.float32],
    options: EngineOptions,
    checked_s: Sequence[float],
    lengths_s: Sequence[float],
    corpus_s: float,
    runs: int,
) -> None:
    rate, batch_s = target.info.sample_rate, default_batch_s(target.device)
    lengths = sorted(draw_lengths(count_for(corpus_s, least=1)), reverse=True)
    corpus = [cut(speech, seconds, rate, seed) for seed, seconds in enumerate(lengths)]
    opened: list[Anonymizer] = []

    def load(how: EngineOptions) -> dict[str, Any]:
        opened.clear()
        gc.collect()  # the last one's engines and arenas
        opened.append(Anonymizer.load(target.model, target.bank, target.device, options=how))
        return {"chosen": opened[0].chosen, "placement": opened[0]._sessions.placement}

    def check(how: EngineOptions) -> dict[str, Any]:
        cpu = Anonymizer.load(target.model, target.bank, CPU, cache=how.cache)
        cases = cases_of(cpu, [cut(speech, seconds, rate, seed) for seed, seconds in enumerate(checked_s)])
        return compared(opened[0], cpu, cases, how.precision)

    # What `auto` comes to depends on the GPU; CUDA is then measured in the same precision.
    precision = resolve_precision(TENSORRT, options.precision, driver().gpus[cuda_index(target.device) or 0])
    for provider in (TENSORRT, CUDA):
        how = replace(options, provider=provider, precision=precision)
        if not part(f"{provider}, loaded", partial(load, how)):
            continue
        if provider == TENSORRT:
            part(f"{provider}, beside the CPU", partial(check, how))
        part(f"{provider}, throughput", partial(timed_batches, opened[0], corpus, batch_s, precision))
        for index, seconds in enumerate(lengths_s):
            waveform = cut(speech, seconds, rate, index)
            part(f"{provider}, {seconds:g} s alone", partial(timed_single, opened[0], waveform, runs, precision))
