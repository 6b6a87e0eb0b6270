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
from mkc_fast.cli.train_options import (
    AudioListOption,
    Bf16Option,
    DataDirsOption,
    EncoderModelOption,
    LearningRateOption,
    OutCheckpointOption,
    OverwriteCheckpointOption,
    SaveEveryOption,
    SeedOption,
    TensorboardOption,
    TrainingDeviceOption,
)


def vocoder(
    model: EncoderModelOption,
    out: OutCheckpointOption,
    steps: Annotated[int, typer.Option(help="Steps, in all.", min=1, rich_help_panel=panels.RUN)],
    audio_scp: AudioListOption = None,
    data_dir: DataDirsOption = None,
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
    stft: Annotated[
        float,
        typer.Option(help="Weight of the loss of spectra of three resolutions.", min=0, rich_help_panel=panels.RUN),
    ] = 0.0,
    spectral_steps: Annotated[
        int, typer.Option(help="First steps, without discriminators.", min=0, rich_help_panel=panels.RUN)
    ] = 0,
    learning_rate: LearningRateOption = 2e-4,
    bf16: Bf16Option = False,
    save_every: SaveEveryOption = 1000,
    seed: SeedOption = None,
    device: TrainingDeviceOption = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Of PyTorch on a CPU; one a core without this option.", min=1, rich_help_panel=panels.DEVICES
        ),
    ] = None,
    tensorboard: TensorboardOption = None,
    allow_commands: AllowCommandsOption = False,
    overwrite: OverwriteCheckpointOption = False,
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
            settings=VocoderSettings(
                segment_frames,
                batch,
                learning_rate,
                stft=stft,
                spectral_steps=spectral_steps,
                bf16=bf16,
                save_every=save_every,
            ),
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
