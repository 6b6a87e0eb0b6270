"""``mkc-fast bench``: latency, throughput, look-up, precisions and loading, measured here, and a page of results."""

# ruff: noqa: TC001 - Typer reads annotations at run time

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.bench_options import (
    BankOption,
    BanksOption,
    BudgetOption,
    CacheOption,
    CkptOption,
    DeviceOption,
    EntriesOption,
    JsonOption,
    KmeansOption,
    ModelOption,
    OutOption,
    PrecisionOption,
    ProviderOption,
    SizeOption,
    SpeechOption,
    StrideOption,
    ThreadsOption,
    WavlmOption,
)
from mkc_fast.cli.choices import Mode, Precision, Provider
from mkc_fast.cli.show import console, errors, steps
from mkc_fast.errors import MkcError
from mkc_fast.names import CPU

if TYPE_CHECKING:
    from mkc_fast.benchmarks.setup import Artifacts
    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.names import Mode as DrawMode
    from mkc_fast.names import Precision as PrecisionName

bench = typer.Typer(
    name="bench",
    no_args_is_help=True,
    help="Measure the engine on this machine, compare it with the baseline, and show the results as a page.",
)


def add(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(bench)


def _options(provider: Provider, precision: Precision, threads: int | None) -> EngineOptions:
    from mkc_fast.engine.options import EngineOptions

    return EngineOptions(provider=provider.value, precision=precision.value, threads=threads)


def _finish(record: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Write the result where it should go, and print it."""
    from mkc_fast.benchmarks.records import write_record
    from mkc_fast.cli.bench_tables import TABLES

    if out is not None:
        write_record(out, record)
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        TABLES[record["bench"]](record)
        for line in record["cut"]:
            console.print(f"cut: {line}", soft_wrap=True)
    if out is not None:
        errors.print(f"written: {out}", soft_wrap=True)


@bench.command()
def latency(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    mode: Annotated[Mode, typer.Option(help="As in infer.", rich_help_panel=panels.DRAWS)] = Mode.frame,
    stride: StrideOption = 1,
    lengths: Annotated[
        str, typer.Option(help="Seconds of the utterances.", rich_help_panel=panels.INPUT)
    ] = "1,3,10,30",
    repeats: Annotated[
        int | None,
        typer.Option(help="Warm runs of each (default: what the budget allows).", rich_help_panel=panels.RUN),
    ] = None,
    device: DeviceOption = CPU,
    provider: ProviderOption = Provider.auto,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    speech: SpeechOption = None,
    budget_s: BudgetOption = 180.0,
    out: OutOption = None,
    json_: JsonOption = False,
    cache_dir: CacheOption = None,
) -> None:
    """One utterance at a time: p50, p95 and p99 by length and stage, first call and warm, and start-up."""
    from mkc_fast.benchmarks.latency import bench_latency
    from mkc_fast.benchmarks.setup import Artifacts

    lengths_s = _numbers("--lengths", lengths)
    artifacts = Artifacts(model, bank, size, entries, cache=cache_dir)
    with steps() as show:
        setup = artifacts.set_up(device, _options(provider, precision, threads), show)
        record = bench_latency(
            setup.target,
            setup.speech(speech),
            lengths_s=lengths_s,
            mode=mode.value,
            stride=stride,
            budget_s=budget_s,
            repeats=repeats,
            progress=show,
        )
    _finish(record, out, json_)


@bench.command()
def throughput(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Run the baseline (PyTorch, scikit-learn) in turn with the engine.",
            rich_help_panel=panels.RUN,
        ),
    ] = False,
    rounds: Annotated[
        int, typer.Option(help="How often both run each utterance.", min=1, rich_help_panel=panels.RUN)
    ] = 3,
    modes: Annotated[str, typer.Option(help="Of frame and audio.", rich_help_panel=panels.DRAWS)] = "frame,audio",
    stride: StrideOption = 1,
    batches: Annotated[
        str | None,
        typer.Option(help="Padded seconds that run at once (default: 0,30 on a CPU).", rich_help_panel=panels.RUN),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Numbers of worker processes (default: 1,2).", rich_help_panel=panels.RUN)
    ] = None,
    device: DeviceOption = CPU,
    provider: ProviderOption = Provider.auto,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    wavlm_ckpt: WavlmOption = None,
    ckpt: CkptOption = None,
    kmeans_scp: KmeansOption = None,
    speech: SpeechOption = None,
    budget_s: BudgetOption = 330.0,
    out: OutOption = None,
    json_: JsonOption = False,
    cache_dir: CacheOption = None,
) -> None:
    """RTFx on a corpus with LibriSpeech's lengths, by batch and workers; with --baseline also the baseline's."""
    from mkc_fast.benchmarks.throughput import bench_throughput

    chosen = _modes(modes)
    batches_s = None if batches is None else _numbers("--batches", batches)
    counts = None if workers is None else _counts("--workers", workers)
    artifacts = _beside_baseline(baseline, model, bank, size, entries, wavlm_ckpt, ckpt, kmeans_scp, cache_dir)
    with steps() as show:
        setup = artifacts.set_up(device, _options(provider, precision, threads), show)
        record = bench_throughput(
            setup.target,
            setup.speech(speech),
            modes=chosen,
            stride=stride,
            batches_s=batches_s,
            workers=counts,
            baseline=setup.checkpoints if baseline else None,
            rounds=rounds,
            budget_s=budget_s,
            progress=show,
        )
    _finish(record, out, json_)


@bench.command()
def lookup(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    frames: Annotated[str, typer.Option(help="Numbers of frames T.", rich_help_panel=panels.INPUT)] = "50,500,5000",
    banks: BanksOption = "1,100,1165",
    strides: Annotated[str, typer.Option(help="Frames that share a draw.", rich_help_panel=panels.DRAWS)] = "1,10",
    device: DeviceOption = CPU,
    threads: ThreadsOption = None,
    budget_s: BudgetOption = 200.0,
    out: OutOption = None,
    json_: JsonOption = False,
    cache_dir: CacheOption = None,
) -> None:
    """Frames a second of the nearest-centroid look-up, compared with scikit-learn, PyTorch and FAISS, if installed."""
    from mkc_fast.benchmarks.lookup import bench_lookup
    from mkc_fast.benchmarks.setup import Artifacts

    frame_counts, bank_sizes = _counts("--frames", frames), _counts("--banks", banks)
    frames_per_draw = _counts("--strides", strides)
    artifacts = Artifacts(model, bank, size, entries, cache=cache_dir)
    with steps() as show:
        setup = artifacts.set_up(device, _options(Provider.auto, Precision.auto, threads), show)
        record = bench_lookup(
            setup.target,
            frames=frame_counts,
            entries=bank_sizes,
            strides=frames_per_draw,
            budget_s=budget_s,
            progress=show,
        )
    _finish(record, out, json_)


@bench.command()
def precision(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    audio: Annotated[
        list[Path] | None,
        typer.Option(help="Recordings to compare on (default: the demo's clip).", rich_help_panel=panels.INPUT),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Of each recording that are used.", min=1.0, rich_help_panel=panels.INPUT)
    ] = 10.0,
    precisions: Annotated[
        str, typer.Option(help="Which to compare with float32.", rich_help_panel=panels.RUN)
    ] = "mixed,int16,int8",
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Time all of them in turn with the baseline (PyTorch, scikit-learn), too.",
            rich_help_panel=panels.RUN,
        ),
    ] = False,
    rounds: Annotated[
        int, typer.Option(help="How often each is timed in turn with float32.", min=1, rich_help_panel=panels.RUN)
    ] = 3,
    threads: ThreadsOption = None,
    wavlm_ckpt: WavlmOption = None,
    ckpt: CkptOption = None,
    kmeans_scp: KmeansOption = None,
    budget_s: BudgetOption = 600.0,
    out: OutOption = None,
    json_: JsonOption = False,
    cache_dir: CacheOption = None,
) -> None:
    """The precisions of a CPU beside float32: errors by stage, cluster ids, SNR of the waveform, and time."""
    from mkc_fast.benchmarks.cpu_precision import bench_precision

    chosen = _precisions(precisions)
    artifacts = _beside_baseline(baseline, model, bank, size, entries, wavlm_ckpt, ckpt, kmeans_scp, cache_dir)
    with steps() as show:
        setup = artifacts.set_up(CPU, _options(Provider.auto, Precision.auto, threads), show)
        recordings: list[Path | None] = [*audio] if audio else [None]
        longest = int(seconds * setup.target.info.sample_rate)
        record = bench_precision(
            setup.target,
            [setup.speech(path)[:longest] for path in recordings],
            precisions=chosen,
            baseline=setup.checkpoints if baseline else None,
            rounds=rounds,
            budget_s=budget_s,
            progress=show,
        )
    _finish(record, out, json_)


@bench.command()
def load(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    banks: BanksOption = "100,1000,1165",
    repeats: Annotated[int, typer.Option(help="Processes started for each.", min=1, rich_help_panel=panels.RUN)] = 3,
    device: DeviceOption = CPU,
    provider: ProviderOption = Provider.auto,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    wavlm_ckpt: WavlmOption = None,
    ckpt: CkptOption = None,
    kmeans_scp: KmeansOption = None,
    speech: SpeechOption = None,
    budget_s: BudgetOption = 240.0,
    out: OutOption = None,
    json_: JsonOption = False,
    cache_dir: CacheOption = None,
) -> None:
    """Time and memory until a bank is ready, compared with unpickling its models in every process."""
    from mkc_fast.benchmarks.load import bench_load
    from mkc_fast.benchmarks.setup import Artifacts

    counts = _counts("--banks", banks)
    artifacts = Artifacts(model, bank, size, entries, wavlm_ckpt, ckpt, kmeans_scp, cache_dir)
    with steps() as show:
        setup = artifacts.set_up(device, _options(provider, precision, threads), show)
        record = bench_load(
            setup.target,
            setup.speech(speech),
            checkpoints=setup.checkpoints,
            entries=counts,
            budget_s=budget_s,
            repeats=repeats,
            progress=show,
        )
    _finish(record, out, json_)


@bench.command()
def tensorrt(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    device: DeviceOption = "cuda:0",
    precision: PrecisionOption = Precision.auto,
    speech: SpeechOption = None,
    budget_s: BudgetOption = 1800.0,
    out: OutOption = None,
    json_: JsonOption = False,
    cache_dir: CacheOption = None,
) -> None:
    """TensorRT's engines built anew, compared with the CPU, and measured beside the CUDA provider."""
    from mkc_fast.benchmarks.records import write_record
    from mkc_fast.benchmarks.setup import Artifacts
    from mkc_fast.benchmarks.tensorrt import bench_tensorrt
    from mkc_fast.engine.sessions.tensorrt import check_warm

    options = _options(Provider.tensorrt, precision, None)
    check_warm(device, options)  # before random weights are made
    artifacts = Artifacts(model, bank, size, entries, cache=cache_dir)
    with steps() as show:
        setup = artifacts.set_up(device, options, show)
        record = bench_tensorrt(
            setup.target,
            setup.speech(speech),
            budget_s=budget_s,
            progress=show,
            save=lambda found: write_record(out, found) if out is not None else None,
        )
    _finish(record, out, json_)


@bench.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results written with --out.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the page and pictures go (default: DIR).", rich_help_panel=panels.OUTPUT)
    ] = None,
) -> None:
    """Turn results into one self-contained page and its pictures."""
    from mkc_fast.extras import required

    with required("the report", "matplotlib", "jinja2"):
        from mkc_fast.benchmarks.report import write_report

    for path in write_report(folder, out or folder):
        console.print(str(path), soft_wrap=True)


def _beside_baseline(
    baseline: bool,
    model: Path | None,
    bank: Path | None,
    size: str,
    entries: int,
    wavlm_ckpt: Path | None,
    ckpt: Path | None,
    kmeans_scp: Path | None,
    cache: Path | None,
) -> Artifacts:
    """The artifacts; with ``baseline`` what it needs has to be there, too."""
    from mkc_fast.benchmarks.setup import Artifacts, missing_for_baseline

    missing = missing_for_baseline() if baseline else None
    if missing is not None:
        raise MkcError(f"--baseline needs {missing}")
    if baseline and model is not None and None in (wavlm_ckpt, ckpt, kmeans_scp):
        raise MkcError("--baseline with --model and --bank also needs --wavlm-ckpt, --ckpt and --kmeans-scp")
    return Artifacts(model, bank, size, entries, wavlm_ckpt, ckpt, kmeans_scp, cache)


def _numbers(option: str, text: str, least: float = 0.0) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise MkcError(f"{option} is {text!r}; expected numbers with commas between them") from None
    if any(not least <= number < float("inf") for number in numbers):
        raise MkcError(f"{option} is {text!r}; expected numbers from {least:g} up")
    return numbers


def _counts(option: str, text: str) -> list[int]:
    return [int(number) for number in _numbers(option, text, least=1)]


def _precisions(text: str) -> list[PrecisionName]:
    chosen = [name.strip() for name in text.split(",")]
    known = {"mixed", "int16", "int8"}
    if not set(chosen) <= known:
        raise MkcError(f"--precisions {text}: expected some of mixed, int16, int8")
    return chosen  # type: ignore[return-value]


def _modes(text: str) -> list[DrawMode]:
    from mkc_fast.benchmarks.throughput import MODES

    named = [mode.strip() for mode in text.split(",")]
    chosen = [mode for name in named for mode in MODES if mode == name]
    if len(chosen) != len(named):
        raise MkcError(f"--modes is {text!r}; expected frame, audio or both")
    return chosen
