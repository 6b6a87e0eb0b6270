"""``mkc-fast demo --random``: the whole path on random weights, in the published formats and, if asked for, sizes."""

from __future__ import annotations

import time
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from mkc_fast.cli.demo_steps import PUBLISHED, Row, anonymize_clip, make_artifacts, timed, timing_table
from mkc_fast.cli.show import console, steps

if TYPE_CHECKING:
    from pathlib import Path

_ENTRIES = 32


def run_random(out: Path, size: str) -> None:
    """Make checkpoints and run everything on them, into a prepared directory."""
    from mkc_fast import Anonymizer
    from mkc_fast.cli.picture import draw
    from mkc_fast.export.random_checkpoints import write_checkpoints

    begin = time.perf_counter()
    rows: list[Row] = []
    with steps() as show:
        step = timed(show, rows)
        with step("random checkpoints") as tell:
            made = write_checkpoints(out / "checkpoints", size=size, num_kmeans=_ENTRIES)
            tell(f"{size}, in the published formats")
        info, bank = make_artifacts(made.wavlm, made.ckpt, made.kmeans_scp, out, step)
        with (
            as_file(files("mkc_fast.cli") / "demo_speech.flac") as clip,
            Anonymizer.load(out / "model", out / "bank") as anonymizer,
        ):
            waveform, results = anonymize_clip(anonymizer, clip, out, step)
        with step("picture") as tell:
            title = "mkc-fast demo --random: random weights make noise, not speech"
            (out / "demo.png").write_bytes(draw(title, waveform, results, info, len(bank.names)))
            tell(str(out / "demo.png"))
    timing_table(rows, time.perf_counter() - begin)
    console.print(
        f"\nIn {out}: original.wav, audio.wav, frame.wav, demo.png, model/, bank/, checkpoints/", soft_wrap=True
    )
    console.print("This was noise, not speech: the weights are random. " + PUBLISHED, soft_wrap=True)
