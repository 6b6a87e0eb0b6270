"""``mkc-fast features``: speech → a cache of features."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.run_options import AllowCommandsOption
from mkc_fast.cli.show import console, counted, counting, errors, shown_warnings
from mkc_fast.cli.train_options import (
    AudioListOption,
    DataDirsOption,
    EncoderDeviceOption,
    FeaturesModelOption,
    OutDirectoryOption,
    OverwriteDirectoryOption,
)
from mkc_fast.text import printable


class Number(str, Enum):
    """How a number is stored."""

    float32 = "float32"
    float16 = "float16"


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("features")(features)


def features(
    model: FeaturesModelOption,
    out: OutDirectoryOption,
    audio_scp: AudioListOption = None,
    data_dir: DataDirsOption = None,
    utt2spk: Annotated[
        Path | None,
        typer.Option(
            help="List of 'utt-id speaker' a line, for --audio-scp; the file beside it, if any, without this option.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    dtype: Annotated[
        Number, typer.Option(help="How a number is stored.", rich_help_panel=panels.OUTPUT)
    ] = Number.float32,
    shard_frames: Annotated[
        int | None,
        typer.Option(
            help="Frames (20 ms) of a file, about; 131072 without this option. A run that was interrupted keeps whole "
            "files.",
            min=1,
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    device: EncoderDeviceOption = "cpu",
    batch_s: Annotated[
        float | None,
        typer.Option(
            help="Padded seconds of audio that run at once; 0 runs each recording alone.",
            min=0,
            rich_help_panel=panels.RUN,
        ),
    ] = None,
    allow_commands: AllowCommandsOption = False,
    overwrite: OverwriteDirectoryOption = False,
) -> None:
    """Compute the features of speech and write them to a cache for training.

    The same command continues a run that was interrupted.
    """
    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.train.features.make import SHARD_FRAMES, make_features

    begin = time.perf_counter()
    with shown_warnings(), counting("frames encoded") as count:
        made = make_features(
            model,
            out,
            audio_list=audio_scp,
            data_dirs=data_dir or (),
            utt2spk=utt2spk,
            dtype=dtype.value,
            shard_frames=shard_frames or SHARD_FRAMES,
            device=device,
            options=EngineOptions(batch_s=batch_s),
            overwrite=overwrite,
            allow_commands=allow_commands,
            progress=count,
        )
    kept = f" ({made.kept} kept from before)" if made.kept else ""
    console.print(
        f"{out}: {counted(made.facts.utterances, 'utterance')}, {made.frames} frames in "
        f"{counted(len(made.facts.shard_frames), 'file')}{kept}, in {time.perf_counter() - begin:.1f} s",
        soft_wrap=True,
    )
    for name, reason in made.facts.failed.items():
        errors.print(f"failed: {printable(name)}: {reason}", soft_wrap=True, markup=False, highlight=False)
    if made.facts.failed:
        raise typer.Exit(1)
