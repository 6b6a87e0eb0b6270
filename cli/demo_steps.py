"""What the demos share: their steps, timed in a table at the end, a clip in both modes, and where real weights are."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from mkc_fast.cli.show import console
from mkc_fast.names import AUDIO, FRAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.engine.anonymizer import Anonymizer, Result
    from mkc_fast.engine.artifacts import BankInfo, ModelInfo

Row = tuple[str, str, float]
Step = AbstractContextManager["Callable[[str], None]"]

_SEED = 7
PUBLISHED = """\
For anonymization, get the published checkpoints.
They belong to their owners and carry their own terms; read those first.
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


def timed(show: Callable[[str], None], rows: list[Row]) -> Callable[[str], Step]:
    """A function that runs a block as a step; the block says what came of it, and ``rows`` gets a row."""

    @contextmanager
    def step(title: str) -> Iterator[Callable[[str], None]]:
        start = time.perf_counter()
        text: list[str] = []
        show(title)
        yield text.append
        rows.append((title, "; ".join(text), time.perf_counter() - start))

    return step


def make_artifacts(
    wavlm: Path, ckpt: Path, kmeans_scp: Path, out: Path, step: Callable[[str], Step]
) -> tuple[ModelInfo, BankInfo]:
    """Make ``model/`` and ``bank/`` of checkpoints, each as a step."""
    from mkc_fast.export import build_bank, export_model

    with step("export to ONNX") as tell:
        info = export_model(wavlm, ckpt, out / "model", overwrite=True)
        graphs = len(list((out / "model").glob("*.onnx")))
        tell(f"{graphs} graphs, as exact as PyTorch's float32")
    with step("bank of k-means models") as tell:
        bank = build_bank(kmeans_scp, out / "bank", overwrite=True)
        tell(f"{len(bank.names)} models of {bank.num_clusters[0]} clusters")
    return info, bank


def anonymize_clip(
    anonymizer: Anonymizer,
    clip: Path,
    out: Path,
    step: Callable[[str], Step],
    *,
    name: str = "anonymize",
    prefix: str = "",
) -> tuple[NDArray[np.float32], dict[str, Result]]:
    """Anonymize a clip in both modes, each as a step, and write ``original.wav``, ``audio.wav`` and ``frame.wav``.

    Returns:
        Its waveform, and the result of each mode.
    """
    from mkc_fast.engine.audio.read import read_waveform
    from mkc_fast.engine.audio.write import write_waveform

    info = anonymizer.info
    waveform = read_waveform(clip, info.sample_rate, info.min_samples)
    seconds = len(waveform) / info.sample_rate
    write_waveform(out / f"{prefix}original.wav", waveform, info.sample_rate)
    results = {}
    for mode in (AUDIO, FRAME):
        with step(f"{name}, {mode} mode") as tell:
            start = time.perf_counter()
            result = results[mode] = anonymizer.anonymize(waveform, mode, seed=_SEED, utterance_id="demo")
            write_waveform(out / f"{prefix}{mode}.wav", result.waveform, info.sample_rate)
            rtfx = seconds / (time.perf_counter() - start)
            tell(f"{seconds:.1f} s of speech, models used: {len(set(result.bank_ids.tolist()))}, RTFx {rtfx:.0f}")
    return waveform, results


def timing_table(rows: list[Row], seconds: float) -> None:
    """Print the steps."""
    from rich.table import Table

    table = Table("step", "what", "seconds", box=None)
    table.columns[2].justify = "right"
    for title, text, taken in rows:
        table.add_row(title, text, f"{taken:.1f}")
    table.add_row("in all", "", f"{seconds:.1f}")
    console.print(table)
