"""``mkc-fast train vocoder``: speech → a vocoder's checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.export import load_exporter
from mkc_fast.cli.run_options import AllowCommandsOption
from mkc_fast.cli.show import console, counting, shown_warnings


def vocoder(
    model: Annotated[
        Path, typer.Option(help="Exported model, whose encoder gives the features.", rich_help_panel=panels.ARTIFACTS)
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.", rich_help_panel=panels.OUTPUT)],
    steps: Annotated[int, typer.Option(help="Steps, in all.", min=1, rich_help_panel=panels.RUN)],
    audio_scp: Annotated[
        Path | None,
        typer.Option(help="List of recordings, 'path' or 'utt-id path' a line.", rich_help_panel=panels.INPUT),
    ] = None,
    data_dir: Annotated[
        list[Path] | None, typer.Option(help="Kaldi data directory; may be repeated.", rich_help_panel=panels.INPUT)
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Cache of the recordings' features, made by 'features'.", rich_help_panel=panels.INPUT),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(
            help="Train on features that the model's conformer restores from entries of this bank.",
            rich_help_panel=panels.ARTIFACTS,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint whose vocoder is trained further.", rich_help_panel=panels.ARTIFACTS),
    ] = None,
    segment_frames: Annotated[
        int, typer.Option(help="Frames (20 ms) of the parts that are taken.", min=4, rich_help_panel=panels.RUN)
    ] = 25,
    batch: Annotated[int, typer.Option(help="Parts of a step, of each GPU.", min=1, rich_help_panel=panels.RUN)] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=panels.RUN)] = 2e-4,
    save_every: Annotated[
        int, typer.Option(help="Steps after which the state is saved.", min=1, rich_help_panel=panels.RUN)
    ] = 1000,
    seed: Annotated[
        int | None, typer.Option(help="Makes the training repeatable.", rich_help_panel=panels.DRAWS)
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="cpu or cuda:N. Under torchrun, each process takes a GPU of its own.", rich_help_panel=panels.DEVICES
        ),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Of PyTorch on a CPU; one a core without this option.", min=1, rich_help_panel=panels.DEVICES
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write TensorBoard's events here.", rich_help_panel=panels.OUTPUT)
    ] = None,
    allow_commands: AllowCommandsOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint.", rich_help_panel=panels.OUTPUT)
    ] = False,
) -> None:
    """Train HiFi-GAN's generator to make speech of features.

    The same command continues a training that was interrupted, and with more --steps one that is finished.
    """
    load_exporter()  # which says what is missing
    from mkc_fast.train.vocoder.settings import VocoderSettings
    from mkc_fast.train.vocoder.train import LOG_FILE, train_vocoder

    begin = time.perf_counter()
    with shown_warnings(), counting("steps") as count:
        made = train_vocoder(
            model,
            out,
            steps=steps,
            audio_list=audio_scp,
            data_dirs=data_dir or (),
            features=features,
            bank=bank,
            init=init,
            settings=VocoderSettings(segment_frames, batch, learning_rate, save_every=save_every),
            seed=seed,
            device=device,
            threads=threads,
            tensorboard=tensorboard,
            overwrite=overwrite,
            allow_commands=allow_commands,
            progress=count,
        )
    console.print(
        f"{out}: {made.steps} steps, mel spectrograms differ by {made.mel:.3f}, in {time.perf_counter() - begin:.1f} s"
        f"; log in {out}.training/{LOG_FILE}",
        soft_wrap=True,
    )
