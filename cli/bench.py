"""``mkc-fast bench``: latency, throughput, look-up and loading, measured here, and a page that shows the results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Precision, Provider
from mkc_fast.cli.infer import Mode
from mkc_fast.cli.show import console, errors, steps
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.benchmarks.target import Target
    from mkc_fast.benchmarks.throughput import OneByOne

ModelOption = Annotated[
    Path | None, typer.Option(help="Exported model (with --bank), instead of --size.", rich_help_panel=panels.ARTIFACTS)
]
BankOption = Annotated[Path | None, typer.Option(help="Bank (with --model).", rich_help_panel=panels.ARTIFACTS)]
SizeOption = Annotated[
    str,
    typer.Option(
        help="Random weights, made once and kept in the cache: large (the published sizes) or small.",
        rich_help_panel=panels.ARTIFACTS,
    ),
]
EntriesOption = Annotated[
    int, typer.Option(help="K-means models of the random weights.", min=1, rich_help_panel=panels.ARTIFACTS)
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda:<number>.", rich_help_panel=panels.DEVICES)]
ProviderOption = Annotated[
    Provider, typer.Option(help="Of ONNX Runtime; a name is never silently replaced.", rich_help_panel=panels.DEVICES)
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of the arithmetic, as the provider has it.", rich_help_panel=panels.DEVICES)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="Of one operator on the CPU (default: one a core).", min=1, rich_help_panel=panels.DEVICES),
]
BudgetOption = Annotated[
    float, typer.Option(help="Seconds to measure for; what did not fit is said.", min=1, rich_help_panel=panels.RUN)
]
SpeechOption = Annotated[
    Path | None,
    typer.Option(help="A recording to cut utterances of (default: a clip of ours).", rich_help_panel=panels.INPUT),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Write the result to this file, for 'bench report'.", rich_help_panel=panels.OUTPUT)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON instead of a table.", rich_help_panel=panels.OUTPUT)
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Where random weights are kept.", rich_help_panel=panels.ARTIFACTS)
]
WavlmOption = Annotated[
    Path | None,
    typer.Option(help="With --model: its WavLM checkpoint, for the practice.", rich_help_panel=panels.ARTIFACTS),
]
CkptOption = Annotated[
    Path | None,
    typer.Option(help="With --model: its conformer + vocoder checkpoint.", rich_help_panel=panels.ARTIFACTS),
]
KmeansOption = Annotated[
    Path | None, typer.Option(help="With --bank: the list of its k-means models.", rich_help_panel=panels.ARTIFACTS)
]

bench = typer.Typer(
    name="bench",
    no_args_is_help=True,
    help="Measure the engine on this machine, beside the practice of today, and show the results as a page.",
)


def add(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(bench)


@dataclass(frozen=True)
class _Setup:
    """What a command measures, and the checkpoints that the practice would load."""

    target: Target
    checkpoints: dict[str, Path] | None

    def speech(self, recording: Path | None) -> NDArray[np.float32]:
        """The recording, or the clip that comes with the package, at the model's rate."""
        from mkc_fast.engine.audio.read import read_waveform

        rate = self.target.info.sample_rate
        if recording is not None:
            return read_waveform(recording, rate)
        with as_file(files("mkc_fast.cli") / "demo_speech.flac") as clip:
            return read_waveform(clip, rate)


def _set_up(
    model: Path | None,
    bank: Path | None,
    size: str,
    entries: int,
    device: str,
    provider: Provider,
    precision: Precision,
    threads: int | None,
    cache_dir: Path | None,
    given: dict[str, Path | None] | None = None,
) -> _Setup:
    from mkc_fast.benchmarks.target import Target
    from mkc_fast.engine.cache_folder import default_cache
    from mkc_fast.engine.devices import cuda_index
    from mkc_fast.engine.options import EngineOptions

    cuda_index(device)
    if (model is None) != (bank is None):
        raise MkcError("--model and --bank go together")
    checkpoints = {name: path for name, path in (given or {}).items() if path is not None}
    if checkpoints and (model is None or len(checkpoints) < 3):
        raise MkcError("--wavlm-ckpt, --ckpt and --kmeans-scp go together, and with --model and --bank")
    weights = "given"
    if model is None or bank is None:
        from mkc_fast.benchmarks.random_artifacts import random_artifacts

        with steps() as show:
            made = random_artifacts(size, cache_dir or default_cache(), entries, show)
        model, bank, weights = made.model, made.bank, f"random, size {size}"
        checkpoints = {"wavlm_ckpt": made.wavlm, "ckpt": made.ckpt, "kmeans_scp": made.kmeans_scp}
    options = EngineOptions(provider=provider.value, precision=precision.value, threads=threads)
    target = Target(model, bank, device, options, weights)
    return _Setup(target, checkpoints or None)


def _finish(record: dict[str, Any], out: Path | None, as_json: bool, table: Callable[[dict[str, Any]], None]) -> None:
    from mkc_fast.benchmarks.records import write_record

    if out is not None:
        write_record(out, record)
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        table(record)
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
    stride: Annotated[int, typer.Option(help="As in infer.", min=1, rich_help_panel=panels.DRAWS)] = 1,
    lengths: Annotated[
        str, typer.Option(help="Seconds of the utterances.", rich_help_panel=panels.INPUT)
    ] = "1,3,10,30",
    repeats: Annotated[
        int | None,
        typer.Option(help="Warm runs of each (default: what the budget allows).", rich_help_panel=panels.RUN),
    ] = None,
    device: DeviceOption = "cpu",
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

    lengths_s = _numbers("--lengths", lengths)
    setup = _set_up(model, bank, size, entries, device, provider, precision, threads, cache_dir)
    with steps() as show:
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
    from mkc_fast.cli.bench_tables import latency_table

    _finish(record, out, json_, latency_table)


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
            help="Run the practice (PyTorch, scikit-learn) in turn with the engine.",
            rich_help_panel=panels.RUN,
        ),
    ] = False,
    rounds: Annotated[
        int, typer.Option(help="How often each utterance is run by both.", min=1, rich_help_panel=panels.RUN)
    ] = 3,
    modes: Annotated[str, typer.Option(help="Of frame and audio.", rich_help_panel=panels.DRAWS)] = "frame,audio",
    stride: Annotated[int, typer.Option(help="As in infer.", min=1, rich_help_panel=panels.DRAWS)] = 1,
    batches: Annotated[
        str | None,
        typer.Option(help="Padded seconds that run at once (default: 0,30 on a CPU).", rich_help_panel=panels.RUN),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Numbers of worker processes (default: 1,2).", rich_help_panel=panels.RUN)
    ] = None,
    device: DeviceOption = "cpu",
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
    """RTFx on a corpus with LibriSpeech's lengths, by batch and workers; with --baseline beside today's practice."""
    from mkc_fast.benchmarks.throughput import MODES, bench_throughput

    named = [mode.strip() for mode in modes.split(",")]
    chosen = [mode for name in named for mode in MODES if mode == name]
    if len(chosen) != len(named):
        raise MkcError(f"--modes is {modes!r}; expected frame, audio or both")
    batches_s = None if batches is None else _numbers("--batches", batches)
    counts = None if workers is None else [int(count) for count in _numbers("--workers", workers, least=1)]
    if baseline:
        _need_practice()
    given = {"wavlm_ckpt": wavlm_ckpt, "ckpt": ckpt, "kmeans_scp": kmeans_scp}
    setup = _set_up(model, bank, size, entries, device, provider, precision, threads, cache_dir, given)
    practice, products = _practice(setup, device) if baseline else (None, None)
    with steps() as show:
        record = bench_throughput(
            setup.target,
            setup.speech(speech),
            modes=chosen,
            stride=stride,
            batches_s=batches_s,
            workers=counts,
            baseline=practice,
            rounds=rounds,
            products=products,
            budget_s=budget_s,
            progress=show,
        )
    from mkc_fast.cli.bench_tables import throughput_table

    _finish(record, out, json_, throughput_table)


@bench.command()
def lookup(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    frames: Annotated[str, typer.Option(help="Numbers of frames T.", rich_help_panel=panels.INPUT)] = "50,500,5000",
    banks: Annotated[str, typer.Option(help="Numbers of bank entries N.", rich_help_panel=panels.INPUT)] = "1,100,1165",
    strides: Annotated[str, typer.Option(help="Frames that share a draw.", rich_help_panel=panels.DRAWS)] = "1,10",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    budget_s: BudgetOption = 200.0,
    out: OutOption = None,
    json_: JsonOption = False,
    cache_dir: CacheOption = None,
) -> None:
    """Frames a second of the nearest-centroid look-up, beside scikit-learn, PyTorch and FAISS where they are here."""
    from mkc_fast.benchmarks.lookup import bench_lookup
    from mkc_fast.benchmarks.rivals import find_rivals

    grid = [
        [int(number) for number in _numbers(name, text, least=1)]
        for name, text in (("--frames", frames), ("--banks", banks), ("--strides", strides))
    ]
    setup = _set_up(model, bank, size, entries, device, Provider.auto, Precision.auto, threads, cache_dir)
    rivals, missing = find_rivals(device, setup.target.used_threads)
    with steps() as show:
        record = bench_lookup(
            setup.target,
            frames=grid[0],
            entries=grid[1],
            strides=grid[2],
            rivals=rivals,
            missing=missing,
            budget_s=budget_s,
            progress=show,
        )
    from mkc_fast.cli.bench_tables import lookup_table

    _finish(record, out, json_, lookup_table)


@bench.command()
def load(
    model: ModelOption = None,
    bank: BankOption = None,
    size: SizeOption = "large",
    entries: EntriesOption = 100,
    banks: Annotated[
        str, typer.Option(help="Numbers of bank entries N.", rich_help_panel=panels.INPUT)
    ] = "100,1000,1165",
    repeats: Annotated[int, typer.Option(help="Processes started for each.", min=1, rich_help_panel=panels.RUN)] = 3,
    device: DeviceOption = "cpu",
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
    """Time and memory until a bank is ready, beside unpickling its models in every process."""
    from mkc_fast.benchmarks.load import bench_load

    counts = [int(count) for count in _numbers("--banks", banks, least=1)]
    given = {"wavlm_ckpt": wavlm_ckpt, "ckpt": ckpt, "kmeans_scp": kmeans_scp}
    setup = _set_up(model, bank, size, entries, device, provider, precision, threads, cache_dir, given)
    checkpoints, kmeans = setup.checkpoints, []
    missing = _missing_practice()
    if checkpoints is not None and missing is None:
        kmeans = _checked_kmeans(checkpoints["kmeans_scp"])
    with steps() as show:
        record = bench_load(
            setup.target,
            setup.speech(speech),
            kmeans=kmeans,
            checkpoints={name: str(path) for name, path in checkpoints.items()} if kmeans and checkpoints else None,
            entries=counts,
            budget_s=budget_s,
            repeats=repeats,
            progress=show,
        )
    if missing is not None:
        record["cut"].append(f"the practice: it needs {missing}")
    from mkc_fast.cli.bench_tables import load_table

    _finish(record, out, json_, load_table)


@bench.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results written with --out.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the page and pictures go (default: DIR).", rich_help_panel=panels.OUTPUT)
    ] = None,
) -> None:
    """Turn results into one self-contained page and its pictures."""
    try:
        from mkc_fast.benchmarks.report import write_report
    except ImportError as error:
        raise MkcError(f"the report needs {error.name}: pip install 'mkc-fast[bench]'") from None

    for path in write_report(folder, out or folder):
        console.print(str(path), soft_wrap=True)


def _numbers(option: str, text: str, least: float = 0.0) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise MkcError(f"{option} is {text!r}; expected numbers with commas between them") from None
    if any(not least <= number < float("inf") for number in numbers):
        raise MkcError(f"{option} is {text!r}; expected numbers from {least:g} up")
    return numbers


def _missing_practice() -> str | None:
    """What the practice needs and is not here, None if all is."""
    from importlib.util import find_spec

    for module, extra in (("torch", "export"), ("sklearn", "bench"), ("joblib", "bench"), ("threadpoolctl", "bench")):
        if find_spec(module) is None:
            return f"{module}: pip install 'mkc-fast[{extra}]'"
    return None


def _need_practice() -> None:
    missing = _missing_practice()
    if missing is not None:
        raise MkcError(f"--baseline needs {missing}")


def _practice(setup: _Setup, device: str) -> tuple[Callable[[], OneByOne], dict[str, Any]]:
    """A function that loads the baseline, and PyTorch's own matrix product, for the machine's ceiling."""
    if setup.checkpoints is None:
        raise MkcError("--baseline with --model and --bank also needs --wavlm-ckpt, --ckpt and --kmeans-scp")
    from mkc_fast.benchmarks.baseline.pipeline import Baseline, product

    checkpoints, threads = setup.checkpoints, setup.target.used_threads

    def load_baseline() -> OneByOne:
        return Baseline.load(
            checkpoints["wavlm_ckpt"],
            checkpoints["ckpt"],
            checkpoints["kmeans_scp"],
            device=device,
            threads=threads,
            layer=setup.target.info.layer,
        )

    return load_baseline, {"torch": product}


def _checked_kmeans(kmeans_scp: Path) -> list[Path]:
    """The models of a list, each passed by the strict reader, since the practice will unpickle them."""
    from mkc_fast.engine.datasets.path_lists import read_named_paths
    from mkc_fast.export.checkpoints.kmeans import read_kmeans

    paths = [path for _, path in read_named_paths(kmeans_scp)]
    for path in paths:
        read_kmeans(path, shape_only=True)
    return paths
