"""Tables of measured values in the docs, made from the committed results.

python -m mkc_fast.benchmarks.measured [--write] [--repository DIR]

Works on the clone that the working directory is in, since only a clone has docs and results. A generated table stands
between ``<!-- measured:begin NAME -->`` and ``<!-- measured:end -->``. Without an option this prints which tables
differ from the results, and exits with 1 if any does; ``--write`` rewrites them. No value is typed by hand. Each row
names the processor and the result file that it comes from.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mkc_fast.benchmarks.common import RESULTS, repository
from mkc_fast.names import AUDIO, ENCODE, FP16, FP32, FRAME, INT8, INT16, MIXED, RESTORE, VOCODE

DOCS = ("README.md", "docs/benchmarks.md", "docs/demo.md")
# An index page shows README.md without the repository around it, so there are no relative links in it.
WITHOUT_LINKS = frozenset({"README.md"})
_BLOCK = re.compile(r"(<!-- measured:begin (?P<name>\w+) -->\n).*?(<!-- measured:end -->)", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]\"]+)|\[(\d+)\]|\.?\"([^\"]+)\"|\[([^\]]+)\]")
_NO_VALUE = "not measured"


@dataclass(frozen=True)
class Value:
    """A number of a result file.

    Attributes:
        path: Where it is in the file, as ``value_at`` reads it.
        unit: What follows it.
        digits: Significant digits that are shown.
        factor: What it is multiplied with, to change its unit.
    """

    path: str
    unit: str = ""
    digits: int = 3
    factor: float = 1.0


@dataclass(frozen=True)
class Row:
    """A line of a table: what was measured, its values, and the result file of all of them."""

    what: str
    values: tuple[Value | None, ...]
    file: str


@dataclass(frozen=True)
class Table:
    """A generated table; columns for the processor and the result file are added to its own."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


_THROUGHPUT, _XEON, _LATENCY, _LOAD = "throughput.json", "xeon/throughput.json", "latency.json", "load.json"
_LOOKUP, _GRAPHS, _HALF, _CPU = "lookup.json", "cpu_graphs.json", "precision.json", "cpu_precision.json"
_FULL, _LONG, _BATCHES = "full_size_cpu.json", "long_recordings.json", "cpu_batches.json"
_WORKERS, _WIDTHS = "workers.json", "widths.json"
_DRIVER, _SIMULATION, _FAULTS = "cluster_driver.json", "cluster_simulation.json", "cluster_faults.json"
_OVERHEAD, _HEARD, _SMALL_SET = "cluster_overhead.json", "heard.json", "small_set.json"
_OURS_AND_BASELINE = ("what", "mkc-fast", "baseline", "baseline ÷ mkc-fast, in time")


def _beside(what: str, path: str, file: str, *, unit: str = "", digits: int = 3, factor: float = 1.0) -> Row:
    """Ours beside the baseline's; ``{}`` in the path stands for whose."""
    return Row(what, tuple(Value(path.format(whose), unit, digits, factor) for whose in ("ours", "practice")), file)


def _compared(what: str, file: str, mode: str) -> Row:
    at = f"comparison.modes[mode={mode}]"
    values = Value(f"{at}.ours_rtfx", " RTFx"), Value(f"{at}.practice_rtfx", " RTFx"), Value(f"{at}.ratio")
    return Row(what, values, file)


def _looked_up(entries: int, frames: int, stride: int) -> Row:
    at = f"cases[entries={entries},frames={frames},stride={stride}].frames_a_second"
    names = (
        "mkc-fast native",
        "mkc-fast native, from float16",
        "scikit-learn predict",
        "PyTorch cdist, grouped",
        "FAISS flat, grouped",
    )
    what = f"{entries:,} {'entry' if entries == 1 else 'entries'}, {frames:,} frames, stride {stride}"
    return Row(what, tuple(Value(f'{at}."{name}"') for name in names), _LOOKUP)


def _stage(what: str, stage: str) -> Row:
    at = f"stages.{stage}"
    pieces = Value(f'{at}."onnxruntime, in pieces".median_s', " s") if stage == VOCODE else None
    native = (Value(f'{at}."native, {kind}".median_s', " s") for kind in ("AVX-512", "AVX2"))
    return Row(what, (Value(f"{at}.onnxruntime.median_s", " s"), pieces, *native), _GRAPHS)


def _driver(what: str, where: str, rows: int, batch_s: float) -> Row:
    at = f"cases[where={where},rows={rows},batch_s={batch_s}]"
    values = (
        Value(f"{at}.driver_us", " µs"),
        Value(f"{at}.main_thread_us", " µs"),
        Value(f"{at}.gpus_fed", "", 2),
        Value(f"{at}.start_up_s", " s", 2),
        Value(f"{at}.peak_mb", " MB"),
    )
    return Row(what, values, _DRIVER)


def _simulated(workers: int) -> Row:
    at = f"cases[workers={workers}]"
    values = (
        Value(f"{at}.wanted_a_second"),
        Value(f"{at}.recorded_a_second"),
        Value(f"{at}.workers_busy", " %", 2, 100),
        Value(f"{at}.runner_us", " µs"),
    )
    return Row(f"{workers} GPUs", values, _SIMULATION)


def _asked(what: str, path: str, unit: str = "", factor: float = 1.0) -> Row:
    return Row(what, (Value(path, unit, 3, factor),), _SIMULATION)


def _agreement(what: str, file: str, within: str = "") -> Row:
    snr = f'{within}waveform_snr."conformer and vocoder, from the same cluster ids, frame mode".snr_db'
    return Row(what, (Value(f"{within}cluster_ids.frame.agreement", "", 4), Value(snr, " dB")), file)


def _sixteen_bits(file: str) -> Table:
    return Table(
        ("SNR against float32", "restored features", "waveform, vocoder alone rounded", "waveform, both rounded"),
        tuple(
            Row(
                name,
                (
                    Value(f"roundings.{name}.restored_snr_db", " dB"),
                    Value(f'roundings.{name}.waveform_snr_db."vocoder alone"', " dB"),
                    Value(f"roundings.{name}.waveform_snr_db.both", " dB"),
                ),
                file,
            )
            for name in ("bfloat16", "int16")
        ),
    )


def _heard(what: str, mode: str, precision: str) -> Row:
    at = f"heard.{mode}.{precision}"
    values = [Value(f"{at}.eer_{whose}.eer", " %", 3, 100) for whose in ("ignorant", "lazy_informed")]
    return Row(what, (*values, Value(f"{at}.wer_anonymized.rate", " %", 3, 100)), _HEARD)


def _original_heard() -> Row:
    at = f"heard.{AUDIO}.{FP32}"
    eer = Value(f"{at}.eer_original.eer", " %", 3, 100)
    return Row("original", (eer, eer, Value(f"{at}.wer_original.rate", " %", 3, 100)), _HEARD)


def _times(precision: str) -> Row:
    stages = ("all", ENCODE, RESTORE, VOCODE)
    values = tuple(Value(f"precisions.{precision}.times.fp32_divided_by_it.{stage}") for stage in stages)
    return Row(f"`--precision {precision}`", values, _CPU)


TABLES = {
    "summary": Table(
        ("what", "mkc-fast", "baseline"),
        (
            _beside(
                "frame mode, stride 1, one recording at a time",
                "comparison.modes[mode=frame].{}_rtfx",
                _THROUGHPUT,
                unit=" RTFx",
            ),
            _beside(
                "audio mode, one recording at a time", "comparison.modes[mode=audio].{}_rtfx", _THROUGHPUT, unit=" RTFx"
            ),
            _beside("process start to the first output of 10 s", "start_up.{}.ready_s", _LOAD, unit=" s"),
            _beside("1,165 k-means models ready", "cases[entries=1165].{}.ready_s", _LOAD, unit=" s", digits=2),
            _beside(
                "memory of these models", "cases[entries=1165].{}.pss_mb", _LOAD, unit=" GB", digits=2, factor=1e-3
            ),
            Row(
                "latency of 1 s of speech, median",
                (Value("cases[length_s=1.0].warm_s.all.p50", " s", 2), None),
                _LATENCY,
            ),
            Row("peak memory, a recording of 80 s", (Value("results.80_s_full_size.peak_gb", " GB", 2), None), _LONG),
        ),
    ),
    "comparison": Table(
        _OURS_AND_BASELINE,
        (
            _compared("frame mode, stride 1", _THROUGHPUT, FRAME),
            _compared("audio mode", _THROUGHPUT, AUDIO),
            _compared("frame mode, stride 1, without the native operators", _XEON, FRAME),
            _compared("audio mode, without the native operators", _XEON, AUDIO),
        ),
    ),
    "rounds": Table(
        ("ratio by round", "first", "second", "third"),
        tuple(
            Row(
                f"{mode} mode",
                tuple(Value(f"comparison.modes[mode={mode}].ratio_by_round[{n}]") for n in range(3)),
                _THROUGHPUT,
            )
            for mode in (FRAME, AUDIO)
        ),
    ),
    "floor": Table(
        ("what", "value"),
        (
            Row(
                "matrix products of 2,048 by 2,048, float32, best library",
                (Value("ceilings.gemm_gflops.fp32", " GFLOP/s"),),
                _THROUGHPUT,
            ),
            Row(
                "RTFx at that rate, layers as published",
                (Value("ceilings.gemm_gflops.fp32", "", 2, 1 / 82.8),),
                _THROUGHPUT,
            ),
            Row(
                "frame mode, share of that rate reached",
                (Value("device_only.cases[mode=frame,batch_s=0.0].utilization"),),
                _THROUGHPUT,
            ),
            Row(
                "largest difference of a sample from the baseline's",
                (Value("comparison.largest_difference", "", 2),),
                _THROUGHPUT,
            ),
            Row("matrix products, best library", (Value("ceilings.gemm_gflops.fp32", " GFLOP/s"),), _XEON),
            Row("matrix products, ONNX Runtime", (Value("ceilings.gemm_by.onnxruntime", " GFLOP/s"),), _XEON),
        ),
    ),
    "latency": Table(
        ("length of the recording", "median", "95th percentile", "99th percentile"),
        tuple(
            Row(
                f"{length} s",
                tuple(Value(f"cases[length_s={length}.0].warm_s.all.{p}", " s") for p in ("p50", "p95", "p99")),
                _LATENCY,
            )
            for length in (1, 3, 10, 30)
        ),
    ),
    "start_up": Table(
        ("10 s of speech", "from the start of the process", "warm, median"),
        tuple(
            Row(
                f"`--precision {precision}`",
                (Value("start_up.median_s.ready_s", " s"), Value("cases[length_s=10.0].warm_s.all.p50", " s")),
                file,
            )
            for precision, file in ((FP32, "latency_fp32.json"), (INT16, "latency_int16.json"))
        ),
    ),
    "loading": Table(
        ("what", "mkc-fast", "baseline"),
        (
            _beside("process start to the first output of 10 s", "start_up.{}.ready_s", _LOAD, unit=" s"),
            *(
                _beside(
                    f"{entries:,} models ready", f"cases[entries={entries}].{{}}.ready_s", _LOAD, unit=" s", digits=2
                )
                for entries in (100, 1000, 1165)
            ),
            _beside("memory of 1,165 models, one process", "cases[entries=1165].{}.pss_mb", _LOAD, unit=" MB"),
            _beside(
                "memory of 1,165 models, two processes",
                "cases[entries=1165].{}_two_processes.pss_mb_in_all",
                _LOAD,
                unit=" MB",
            ),
        ),
    ),
    "lookup": Table(
        (
            "frames a second",
            "mkc-fast",
            "mkc-fast, float16 copy",
            "scikit-learn, frame by frame",
            "PyTorch, grouped by entry",
            "FAISS, grouped by entry",
        ),
        (
            _looked_up(1, 500, 1),
            _looked_up(1, 5000, 1),
            _looked_up(100, 500, 1),
            _looked_up(100, 5000, 1),
            _looked_up(1165, 500, 1),
            _looked_up(1165, 5000, 1),
        ),
    ),
    "full_size": Table(
        ("what", "time", "peak memory"),
        (
            Row(
                "`export`", (Value("results.export.seconds", " s", 2), Value("results.export.peak_gb", " GB", 2)), _FULL
            ),
            Row(
                "`bank build` of 100 models",
                (Value("results.bank_build_100.seconds", " s", 2), Value("results.bank_build_100.peak_gb", " GB", 2)),
                _FULL,
            ),
            Row(
                "opening a bank of 1,165 models",
                (
                    Value("results.open_bank_1165.open_seconds", " ms", 2, 1000),
                    Value("results.open_bank_1165.peak_gb", " GB", 2),
                ),
                _FULL,
            ),
            Row(
                "`infer`, a recording of 80 s",
                (Value("results.80_s_full_size.wall_s", " s"), Value("results.80_s_full_size.peak_gb", " GB", 2)),
                _LONG,
            ),
            Row(
                "`infer`, a recording of two hours, small model",
                (
                    Value("results.two_hours_small_model.wall_s", " s"),
                    Value("results.two_hours_small_model.peak_gb", " GB", 2),
                ),
                _LONG,
            ),
        ),
    ),
    "batches": Table(
        ("four utterances at once, time of each ÷ its time alone", "value"),
        tuple(Row(f"{length} s", (Value(f'results."{length} s".ratio', "", 2),), _BATCHES) for length in (1, 3)),
    ),
    "operators": Table(
        (
            "10 s of speech",
            "ONNX Runtime's operators",
            "the same, in pieces",
            "native, AVX-512",
            "native, held to AVX2",
        ),
        (_stage("WavLM", ENCODE), _stage("conformer", RESTORE), _stage("vocoder", VOCODE)),
    ),
    "opening": Table(
        ("what", "value"),
        (
            Row("opening native graphs", (Value("open.native_s", " s", 2),), _GRAPHS),
            Row("opening ONNX Runtime's graphs as exported", (Value("open.as_exported_s", " s", 2),), _GRAPHS),
            Row("opening them as kept in the cache folder", (Value("open.as_prepared_s", " s", 2),), _GRAPHS),
            Row("memory of one process, native graphs", (Value("memory.native.one_process_mb", " MB"),), _GRAPHS),
            Row("memory that a second process adds", (Value("memory.native.second_adds_mb", " MB", 2),), _GRAPHS),
        ),
    ),
    "precision": Table(
        (
            "random weights, frame mode",
            "cluster ids equal to float32's",
            "SNR against float32, from the same cluster ids",
        ),
        (
            _agreement("`--precision mixed` on a CPU", _CPU, "precisions.mixed."),
            _agreement("`--precision int16`", _CPU, "precisions.int16."),
            _agreement("`--precision int8`", _CPU, "precisions.int8."),
            _agreement("half precision (`--precision fp16`), on a CPU", _HALF),
            _agreement("graphs for CUDA, `--precision mixed`, rounded as on a GPU", "precision_cuda_mixed.json"),
            _agreement("graphs for CUDA, `--precision fp16`, rounded as on a GPU", "precision_cuda_fp16.json"),
        ),
    ),
    "sixteen_bits": _sixteen_bits("sixteen_bits.json"),
    "small_set_sixteen_bits": _sixteen_bits("small_set_sixteen_bits.json"),
    "heard": Table(
        ("held-out speakers and sentences", "EER, ignorant attacker", "EER, lazy-informed attacker", "WER"),
        (
            _original_heard(),
            _heard("audio mode", AUDIO, FP32),
            _heard("frame mode, stride 1", FRAME, FP32),
        ),
    ),
    "heard_precision": Table(
        ("the small set", "EER, ignorant attacker", "EER, lazy-informed attacker", "WER"),
        tuple(
            _heard(f"{mode} mode, `--precision {precision}`", mode, precision)
            for mode in (AUDIO, FRAME)
            for precision in (FP32, MIXED, INT16, INT8, FP16)
        ),
    ),
    "heard_agreement": Table(
        (
            "the small set, frame mode",
            "cluster ids equal to float32's",
            "SNR against float32, from the same cluster ids",
        ),
        tuple(
            _agreement(f"`--precision {precision}`", _HEARD, f"beside_float32.{precision}.")
            for precision in (MIXED, INT16, INT8, FP16)
        ),
    ),
    "small_set": Table(
        ("training of the small set", "hours", "what came of it"),
        (
            Row(
                "encoder",
                (Value("hours.encoder", "", 2), Value("phones_right", " % of phones right", 3, 100)),
                _SMALL_SET,
            ),
            Row("features", (Value("hours.features", "", 2), Value("frames", " frames", 4)), _SMALL_SET),
            Row("k-means models", (Value("hours.bank", "", 2), Value("models", " models", 2)), _SMALL_SET),
            Row(
                "conformer", (Value("hours.conformer", "", 2), Value("error_less", " % less error", 3, 100)), _SMALL_SET
            ),
            Row("vocoder, on spectra", (Value("hours.start", "", 2), Value("steps.start", " steps", 4)), _SMALL_SET),
            Row(
                "vocoder, on features",
                (Value("hours.vocoder_of_features", "", 2), Value("steps.vocoder_of_features", " steps", 3)),
                _SMALL_SET,
            ),
            Row(
                "vocoder, on restored features",
                (Value("hours.vocoder", "", 2), Value("steps.vocoder", " steps", 3)),
                _SMALL_SET,
            ),
            Row(
                "vocoder, with discriminators",
                (
                    Value("hours.vocoder_with_discriminators", "", 2),
                    Value("steps.vocoder_with_discriminators", " steps", 3),
                ),
                _SMALL_SET,
            ),
        ),
    ),
    "precision_baseline": Table(
        (
            "10 s of speech, baseline's time ÷ its time",
            "frame mode, stride 1: first round",
            "second",
            "third",
            "audio mode: first round",
            "second",
            "third",
        ),
        tuple(
            Row(
                f"`--precision {name}`",
                tuple(
                    Value(f"beside_the_baseline.{mode}.baseline_divided_by_it.{name}[{index}]")
                    for mode in ("frame", "audio")
                    for index in range(3)
                ),
                _CPU,
            )
            for name in ("fp32", "mixed", "int16", "int8")
        ),
    ),
    "ceilings": Table(
        ("what the processor does at most", "float32", "int16", "int8"),
        (
            Row(
                "products in registers, GFLOP/s",
                tuple(Value(f"ceilings.gemm_gflops.{name}") for name in ("fp32", "int16", "int8")),
                _CPU,
            ),
        ),
    ),
    "shares": Table(
        ("share of that, as the layers are written", "WavLM", "conformer", "vocoder"),
        tuple(
            Row(
                f"`--precision {name}`",
                tuple(
                    Value(f"precisions.{name}.share_of_ceiling.{stage}", " %", 3, 100.0)
                    for stage in (ENCODE, RESTORE, VOCODE)
                ),
                _CPU,
            )
            for name in ("mixed", "int16", "int8")
        ),
    ),
    "whole_numbers": Table(
        ("10 s of speech, float32's time ÷ its time", "whole pass", "WavLM", "conformer", "vocoder"),
        (_times("mixed"), _times("int16"), _times("int8")),
    ),
    "widths": Table(
        ("native operators, the slowest case of all widths", "times as fast", "by processor time"),
        tuple(
            Row(what, (Value(f"least.{key}.times_as_fast"), Value(f"least.{key}.processor_times_as_fast")), _WIDTHS)
            for what, key in (
                ("residual blocks of one stage, 2 to 512 channels", "blocks"),
                ("whole vocoders, 16 to 512 channels", "vocoders"),
                ("WavLM and conformers, 64 to 256 dimensions", "encoders"),
            )
        ),
    ),
    "cluster_overhead": Table(
        ("two workers, full size, audio mode", "Ray ÷ local", "first round", "second", "third"),
        tuple(
            Row(what, (Value(f"{key}.ratio"), *(Value(f"ratios.{name}[{n}]") for n in range(3))), _OVERHEAD)
            for what, key, name in (
                ("time from the first worker that is ready to the last output", "time", "work_s"),
                ("processor time of all processes", "processor", "processor_s"),
            )
        ),
    ),
    "cluster_driver": Table(
        (
            "workers that do nothing",
            "processor time for each recording",
            "main thread",
            "GPUs fed",
            "start-up",
            "memory",
        ),
        (
            _driver("local, 1,000,000 recordings, in batches", "local", 1_000_000, 240.0),
            _driver("Ray, 1,000,000 recordings, in batches", "ray", 1_000_000, 240.0),
            _driver("local, 20,000 recordings, one at a time", "local", 20_000, 0.0),
            _driver("Ray, 20,000 recordings, one at a time", "ray", 20_000, 0.0),
        ),
    ),
    "cluster_simulation": Table(
        ("simulated", "recordings a second that they could do", "recorded", "GPUs busy", "runner's time for each"),
        tuple(_simulated(workers) for workers in (8, 16, 32, 64, 128, 256, 512)),
    ),
    "cluster_asked": Table(
        ("what", "value"),
        (
            _asked("512 GPUs ask: recordings a second", "asked.recordings_a_second"),
            _asked("512 GPUs ask: cores for the runner, without Ray's messages", "asked.runner_cores"),
            _asked("512 GPUs ask: files created and renamed a second", "asked.calls_a_second.create"),
            _asked("512 GPUs ask: files opened for reading a second", "asked.calls_a_second.open"),
            _asked("512 GPUs ask: bytes written a second, WAV", "asked.bytes_written_a_second", " GB", 1e-9),
            _asked("512 GPUs ask: lines of the manifest a second", "asked.manifest_bytes_a_second", " MB", 1e-6),
            _asked("alone: lines of the manifest a second", "alone.manifest_lines_a_second"),
            _asked("alone: the same, each written by itself", "alone.manifest_lines_a_second_one_at_a_time"),
            _asked("alone: writes a second that wait for this disk (fsync)", "alone.fsyncs_a_second"),
            _asked("alone: headers read a second, page cache", "alone.headers_a_second"),
            _asked("alone: files made and renamed a second, one process, this disk", "alone.files_made_a_second"),
        ),
    ),
    "cluster_faults": Table(
        ("three nodes, a node killed, the command killed and run again", "value"),
        (
            Row("recordings", (Value("recordings", "", 4),), _FAULTS),
            Row("outputs equal to the local run's", (Value("equal", "", 4),), _FAULTS),
            Row("recorded before the command was killed", (Value("first.recorded_before_the_kill", "", 4),), _FAULTS),
            Row("found there when it was run again", (Value("again.present", "", 4),), _FAULTS),
            Row("failed", (Value("again.failed"),), _FAULTS),
        ),
    ),
    "scaling": Table(
        ("what", "RTFx"),
        (
            Row("one worker of two threads", (Value("results.workers.counts[0].rtfx"),), _WORKERS),
            Row("two workers on the same cores", (Value("results.workers.counts[1].rtfx"),), _WORKERS),
            Row(
                "reading and writing alone, a core, FLAC 16 kHz",
                (Value("results.host.cases[0].rtfx_per_worker_cpu_s"),),
                _WORKERS,
            ),
            Row(
                "reading and writing alone, a core, FLAC 44.1 kHz stereo",
                (Value("results.host.cases[1].rtfx_per_worker_cpu_s"),),
                _WORKERS,
            ),
            Row(
                "reading and writing alone, a core, WAV",
                (Value("results.host.cases[2].rtfx_per_worker_cpu_s"),),
                _WORKERS,
            ),
        ),
    ),
}


def value_at(record: Any, path: str) -> float:
    """What ``a.b[0]."odd key"[n=100,stride=1]`` leads to; the last is the one item of a list with these values."""
    rest = path
    while rest:
        step = _STEP.match(rest)
        if step is None:
            raise ValueError(f"cannot follow {path!r} at {rest!r}")
        rest = rest[step.end() :]
        if step[4] is not None:
            wanted = dict(part.split("=") for part in step[4].split(","))
            (record,) = (item for item in record if all(str(item[key]) == value for key, value in wanted.items()))
        else:
            record = record[int(step[2])] if step[2] is not None else record[step[1] or step[3]]
    return float(record)


def shown(value: float, digits: int) -> str:
    """A number with so many significant digits, without an exponent: 5.80, 457, 2,280."""
    if value == 0:
        return "0"
    after_point = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, after_point):,.{max(0, after_point)}f}"


def table_text(name: str, results: Path, *, links: bool = True) -> str:
    """The Markdown of a table.

    Args:
        name: A key of ``TABLES``.
        results: The folder of the result files.
        links: Link the result files; else their names are shown.
    """
    table = TABLES[name]
    columns = (*table.columns, "processor", "result")
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in table.rows:
        file = row.file
        record = _loaded(results / file)
        cells = [_cell(record, value) for value in row.values]
        machine = record["machine"]
        result = f"[{file}](../benchmarks/results/{file})" if links else f"`{file}`"
        lines.append(_line([row.what, *cells, f"{_processor(machine['cpu'])}, {machine['cores']} cores", result]))
    return "\n".join(lines) + "\n"


def rewritten(text: str, results: Path, *, links: bool = True) -> str:
    """The text with every generated table made again."""
    return _BLOCK.sub(lambda block: block[1] + table_text(block["name"], results, links=links) + block[3], text)


def table_names(text: str) -> list[str]:
    """The generated tables of a text."""
    return [block["name"] for block in _BLOCK.finditer(text)]


def without_tables(text: str) -> str:
    """What of a text is written by hand."""
    return _BLOCK.sub("", text)


@cache
def _loaded(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _cell(record: Any, value: Value | None) -> str:
    if value is None:
        return _NO_VALUE
    return shown(value_at(record, value.path) * value.factor, value.digits) + value.unit


def _processor(name: str) -> str:
    return re.sub(r"\(R\)|\(TM\)| Processor| CPU", "", name).strip()


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the tables")
    parser.add_argument("--repository", type=Path, default=repository(), metavar="DIR", help="a clone of mkc-fast")
    args = parser.parse_args()
    root: Path | None = args.repository
    if root is None:
        parser.error("the working directory is not in a clone of mkc-fast: give --repository")
    stale = []
    for name in DOCS:
        text = (root / name).read_text(encoding="utf-8")
        new = rewritten(text, root / RESULTS, links=name not in WITHOUT_LINKS)
        if new != text and args.write:
            (root / name).write_text(new, encoding="utf-8")
        elif new != text:
            stale.append(name)
    for name in stale:
        print(f"{name}: its tables differ from the results; run python -m mkc_fast.benchmarks.measured --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
