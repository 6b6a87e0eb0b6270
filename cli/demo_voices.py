"""``mkc-fast demo``: speech through the small set of models that is shipped, and a page to listen to it."""

from __future__ import annotations

import base64
import io
import lzma
import shutil
import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from mkc_fast.cli.demo_steps import PUBLISHED, Row, anonymize_clip, make_artifacts, timed, timing_table
from mkc_fast.cli.show import console, steps
from mkc_fast.names import AUDIO, FRAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.engine.anonymizer import Result
    from mkc_fast.engine.artifacts import ModelInfo

PAGE = "demo.html"
_IS_NOT = (
    "The models of this demo were trained on synthetic speakers only, in hours on two processor cores. They show how "
    "the method works. They protect nobody."
)


@dataclass(frozen=True)
class _Clip:
    name: str
    file: str
    prefix: str
    about: str
    words: str


_CLIPS = (
    _Clip(
        "A recording",
        "demo_set/recording.flac",
        "",
        "John F. Kennedy, 1961. The speech is in the public domain. No model of the demo heard him, or any person.",
        "And so, my fellow Americans, ask not what your country can do for you",
    ),
    _Clip(
        "A synthetic speaker",
        "demo_set/held_out.flac",
        "synthetic_",
        "A speaker whom training never heard, with a sentence that it never heard.",
        "We are justified in our present confidence",
    ),
)


@dataclass(frozen=True)
class Listened:
    """A clip as the page shows it.

    Attributes:
        name: Of the clip.
        about: Whose speech it is.
        words: That are said.
        players: The name of each version, and its FLAC file in base64.
        picture: PNG in base64.
    """

    name: str
    about: str
    words: str
    players: Sequence[tuple[str, str]]
    picture: str


def run_voices(out: Path) -> None:
    """Run everything on the shipped set, into a prepared directory."""
    from mkc_fast import Anonymizer
    from mkc_fast.cli.picture import draw

    begin = time.perf_counter()
    rows: list[Row] = []
    shown: list[Listened] = []
    with steps() as show, as_file(files("mkc_fast.cli")) as package:
        step = timed(show, rows)
        made = package / "demo_set"
        wavlm, ckpt = (_unpacked(made / f"{name}.pt.xz", out) for name in ("wavlm", "conformer_vocoder"))
        info, bank = make_artifacts(wavlm, ckpt, made / "kmeans.scp", out, step)
        with Anonymizer.load(out / "model", out / "bank") as anonymizer:
            for clip in _CLIPS:
                waveform, results = anonymize_clip(
                    anonymizer, package / clip.file, out, step, name=clip.name.lower(), prefix=clip.prefix
                )
                picture = draw(f"mkc-fast demo: {clip.name.lower()}", waveform, results, info, len(bank.names))
                (out / f"{clip.prefix}demo.png").write_bytes(picture)
                shown.append(_listened(clip, waveform, results, info, picture))
        with step("page to listen") as tell:
            (out / PAGE).write_text(build_page(shown), encoding="utf-8")
            tell(str(out / PAGE))
    timing_table(rows, time.perf_counter() - begin)
    names = ", ".join(f"{clip.prefix}{name}.wav" for clip in _CLIPS for name in ("original", AUDIO, FRAME))
    pictures = ", ".join(f"{clip.prefix}demo.png" for clip in _CLIPS)
    console.print(
        f"\nOpen {out / PAGE} and listen. In {out}: {names}, {pictures}, the checkpoints, model/, bank/", soft_wrap=True
    )
    console.print(f"{_IS_NOT} {PUBLISHED}", soft_wrap=True)


def _unpacked(packed: Path, out: Path) -> Path:
    checkpoint = out / packed.stem
    with lzma.open(packed) as compressed, checkpoint.open("wb") as file:
        shutil.copyfileobj(compressed, file)
    return checkpoint


def build_page(clips: Sequence[Listened]) -> str:
    """The page as text; sound and pictures are in it, and it loads nothing."""
    from mkc_fast.pages.content import templates

    return templates("mkc_fast.cli").get_template("listen.html").render(clips=clips, is_not=_IS_NOT)


def _listened(
    clip: _Clip, waveform: NDArray[np.float32], results: Mapping[str, Result], info: ModelInfo, picture: bytes
) -> Listened:
    versions = {"original": waveform, "audio mode": results[AUDIO].waveform, "frame mode": results[FRAME].waveform}
    players = [(name, _flac(samples, info.sample_rate)) for name, samples in versions.items()]
    return Listened(clip.name, clip.about, clip.words, players, base64.b64encode(picture).decode())


def _flac(samples: NDArray[np.float32], rate: int) -> str:
    import soundfile

    held = io.BytesIO()
    soundfile.write(held, samples, rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(held.getvalue()).decode()
