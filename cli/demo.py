"""``mkc-fast demo``: the whole path on random weights, from checkpoints to a picture, on any machine."""

from __future__ import annotations

import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.demo_steps import timed, timing_table
from mkc_fast.cli.demo_train import run_training
from mkc_fast.cli.export import load_exporter
from mkc_fast.cli.show import console, steps
from mkc_fast.errors import MkcError, OutputError
from mkc_fast.names import AUDIO, FRAME

_ENTRIES = 32
_SEED = 7
_SOURCES = """\
This was noise, not speech: the weights are random. For speech, get the published checkpoints. They belong to their
owners and carry their own terms; read those first.
  WavLM-Large (Microsoft; this copy by the authors of kNN-VC)
    https://github.com/bshall/knn-vc/releases/download/v0.1/WavLM-Large.pt
    license: https://github.com/microsoft/UniSpeech/blob/main/LICENSE
  conformer + vocoder, and k-means models (the authors of arXiv 2508.07086), on Google Drive
    https://drive.google.com/file/d/1E9NDTnsQp73bHu1Xn8-aTdPDqq1w0K5x
    https://drive.google.com/file/d/1pQx_nFZ-Y7v7B_NCGAheAyJ9UNzhyNda
    license of their code: https://creativecommons.org/licenses/by-nc/4.0/
This shows the terms, asks once, and downloads them:
  mkc-fast download wavlm conformer kmeans --out ckpt/
Then:
  mkc-fast export --wavlm-ckpt ckpt/WavLM-Large.pt --ckpt ckpt/librispeech_conformer_e_50.pth --out model/
  mkc-fast bank build --kmeans-scp ckpt/kmeans/kmeans_user.scp --out bank/
  mkc-fast infer --mode frame --model model/ --bank bank/ --audio-scp audio.scp --output-dir anonymized/"""


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    size: Annotated[
        str, typer.Option(help="small, or large: the published sizes (6 GB of disk).", rich_help_panel=panels.INPUT)
    ] = "small",
    out: Annotated[Path, typer.Option(help="Directory to make.", rich_help_panel=panels.OUTPUT)] = Path(
        "mkc-fast-demo"
    ),
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Train on synthetic speakers instead: a bank and a conformer, for an encoder of random weights.",
            rich_help_panel=panels.RUN,
        ),
    ] = False,
) -> None:
    """Run everything once with random weights: checkpoints, export, bank, both modes, a table and a picture."""
    if size not in {"small", "large"}:
        raise MkcError(f"size is {size!r}; expected small or large")
    export_model = load_exporter()
    if train:
        if size != "small":
            raise MkcError("size large cannot be trained here; leave --train or --size out")
        _prepare(out)
        run_training(out)
        return
    from mkc_fast import Anonymizer
    from mkc_fast.cli.picture import draw
    from mkc_fast.engine.audio.read import read_waveform
    from mkc_fast.engine.audio.write import write_waveform
    from mkc_fast.export import build_bank
    from mkc_fast.export.random_checkpoints import write_checkpoints

    begin = time.perf_counter()
    rows: list[tuple[str, str, float]] = []
    _prepare(out)
    with steps() as show:
        step = timed(show, rows)
        with step("random checkpoints") as tell:
            made = write_checkpoints(out / "checkpoints", size=size, num_kmeans=_ENTRIES)
            tell(f"{size}, in the published formats")
        with step("export to ONNX") as tell:
            info = export_model(made.wavlm, made.ckpt, out / "model", overwrite=True)
            graphs = len(list((out / "model").glob("*.onnx")))
            tell(f"{graphs} graphs, as exact as PyTorch's float32")
        with step("bank of k-means models") as tell:
            bank = build_bank(made.kmeans_scp, out / "bank", overwrite=True)
            tell(f"{len(bank.names)} models of {bank.num_clusters[0]} clusters")
        with as_file(files("mkc_fast.cli") / "demo_speech.flac") as clip:
            waveform = read_waveform(clip, info.sample_rate, info.min_samples)
        seconds = len(waveform) / info.sample_rate
        anonymizer = Anonymizer.load(out / "model", out / "bank")
        results = {}
        for mode in (FRAME, AUDIO):
            with step(f"anonymize, {mode} mode") as tell:
                start = time.perf_counter()
                result = results[mode] = anonymizer.anonymize(waveform, mode, seed=_SEED, utterance_id="demo")
                write_waveform(out / f"{mode}.wav", result.waveform, info.sample_rate)
                rtfx = seconds / (time.perf_counter() - start)
                tell(f"{seconds:.1f} s of speech, {len(set(result.bank_ids.tolist()))} models used, RTFx {rtfx:.0f}")
        write_waveform(out / "original.wav", waveform, info.sample_rate)
        with step("picture") as tell:
            draw(out / "demo.png", waveform, results, info, len(bank.names))
            tell(str(out / "demo.png"))
    timing_table(rows, time.perf_counter() - begin)
    console.print(
        f"\nIn {out}: original.wav, frame.wav, audio.wav, demo.png, model/, bank/, checkpoints/", soft_wrap=True
    )
    console.print(_SOURCES, soft_wrap=True)


def _prepare(out: Path) -> None:
    """Make the directory, unless it holds something else."""
    marker = out / ".mkc-fast-demo"
    if out.exists() and not marker.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: holds something else; choose another directory with --out")
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
