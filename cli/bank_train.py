"""``mkc-fast bank train``: speech → a bank of k-means models."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    SpeakersOption,
)
from mkc_fast.text import printable

if TYPE_CHECKING:
    from mkc_fast.train.bank import Progress


class Few(str, Enum):
    """What becomes of a speaker with too few frames."""

    refuse = "refuse"
    merge = "merge"


def train(
    model: FeaturesModelOption,
    out: OutDirectoryOption,
    audio_scp: AudioListOption = None,
    data_dir: DataDirsOption = None,
    utt2spk: SpeakersOption = None,
    per: Annotated[
        str,
        typer.Option(
            help="One model for each 'speaker', for N speakers together ('group:N'), or for 'all'.",
            rich_help_panel=panels.INPUT,
        ),
    ] = "speaker",
    clusters: Annotated[
        int, typer.Option("--clusters", "-k", help="K of each model.", min=1, rich_help_panel=panels.RUN)
    ] = 1024,
    few: Annotated[
        Few, typer.Option(help="Refuse models with too few frames, or merge them.", rich_help_panel=panels.INPUT)
    ] = Few.refuse,
    min_frames: Annotated[
        int | None,
        typer.Option(
            help="Frames (20 ms) that a model needs at least; as many as clusters without this option.",
            min=1,
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    save_kmeans: Annotated[
        Path | None,
        typer.Option(
            help="Also write each model as a file that the research code loads, into this folder.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw the inertia of each model into this file (.png, .svg).", rich_help_panel=panels.OUTPUT),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the fits repeatable.", rich_help_panel=panels.RUN)] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Models fitted at once; one for each two cores without this option.",
            min=1,
            rich_help_panel=panels.RUN,
        ),
    ] = None,
    device: EncoderDeviceOption = "cpu",
    fit_device: Annotated[
        str | None,
        typer.Option(
            help="Where models are fitted; on cuda:0, several at once. The encoder's device without this option.",
            rich_help_panel=panels.DEVICES,
        ),
    ] = None,
    n_init: Annotated[
        int, typer.Option(help="Starts by k-means++, of which the best is taken.", min=1, rich_help_panel=panels.RUN)
    ] = 20,
    max_iter: Annotated[
        int, typer.Option(help="Passes over the frames, at most.", min=1, rich_help_panel=panels.RUN)
    ] = 100,
    batch_size: Annotated[int, typer.Option(help="Frames of a step.", min=1, rich_help_panel=panels.RUN)] = 2048,
    allow_commands: AllowCommandsOption = False,
    overwrite: OverwriteDirectoryOption = False,
) -> None:
    """Train k-means models on speech, one for each speaker or group of speakers, and make a bank of them.

    The same command continues a training that was interrupted.
    """
    from mkc_fast.train.bank import train_bank
    from mkc_fast.train.kmeans import KMeansSettings
    from mkc_fast.train.picture import draw_inertia

    begin = time.perf_counter()
    with shown_warnings(), counting("frames encoded") as count:

        def show(progress: Progress) -> None:
            if progress.frames_done:
                count(progress.frames_done, progress.frames)

        made = train_bank(
            model,
            out,
            audio_list=audio_scp,
            data_dirs=data_dir or (),
            utt2spk=utt2spk,
            per=per,
            settings=KMeansSettings(clusters, max_iter, batch_size, n_init=n_init),
            few=few.value,
            min_frames=min_frames,
            save_kmeans=save_kmeans,
            seed=seed,
            jobs=jobs,
            device=device,
            fit_device=fit_device,
            overwrite=overwrite,
            allow_commands=allow_commands,
            progress=show,
        )
    frames = sum(entry.frames for entry in made.info.training)
    inertia = sum(entry.inertia * entry.frames for entry in made.info.training) / frames
    kept = f", {made.kept} of them kept from before" if made.kept else ""
    console.print(
        f"{out}: {counted(len(made.info.names), 'model')}{kept}, {frames} frames, inertia {inertia:.4g} a frame, "
        f"{sum(made.empty)} empty clusters, in {time.perf_counter() - begin:.1f} s",
        soft_wrap=True,
    )
    if picture is not None:
        draw_inertia(made.info, picture)
    for name, reason in made.failed.items():
        errors.print(f"failed: {printable(name)}: {reason}", soft_wrap=True, markup=False, highlight=False)
    if made.failed:
        raise typer.Exit(1)
