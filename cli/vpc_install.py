"""``mkc-fast vpc install`` and ``remove``: a checkout of a toolkit runs mkc-fast as its own pipeline."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Level, Mode, OnFailure, Precision, Provider
from mkc_fast.cli.run_options import (
    KmeansNumOption,
    LevelOption,
    ModeOption,
    OnFailureOption,
    PadOption,
    PrecisionOption,
    ProviderOption,
    SeedOption,
    StrideOption,
)
from mkc_fast.errors import ArgumentError


class Track(str, Enum):
    """The tracks of 2026; 2024 has one."""

    one = "1"
    two = "2"
    both = "both"


def add(vpc_app: typer.Typer) -> None:
    """Add the commands to the group."""
    vpc_app.command("install")(install)
    vpc_app.command("remove")(remove)


def install(
    checkout: Annotated[Path, typer.Argument(help="Checkout of VoicePrivacy-Challenge-2024 or -2026.")],
    model: Annotated[Path, typer.Option(help="Exported model (from 'export').", rich_help_panel=panels.ARTIFACTS)],
    bank_user: Annotated[
        Path, typer.Option(help="Bank of trials and the sets of emotions.", rich_help_panel=panels.ARTIFACTS)
    ],
    bank_attacker: Annotated[
        Path, typer.Option(help="Bank of enrollments and training sets.", rich_help_panel=panels.ARTIFACTS)
    ],
    mode: ModeOption = Mode.frame,
    stride: StrideOption = 1,
    seed: SeedOption = None,
    kmeans_num: KmeansNumOption = None,
    level: LevelOption = Level.utterance,
    suffix: Annotated[
        str,
        typer.Option(
            "--suffix",
            "--anon-suffix",
            help="Of the directories written beside the sets, and of the config's name.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = "_mkc",
    track: Annotated[
        Track, typer.Option(help="Of 2026, to write a config for.", rich_help_panel=panels.OUTPUT)
    ] = Track.both,
    pad: PadOption = False,
    provider: ProviderOption = Provider.auto,
    precision: PrecisionOption = Precision.auto,
    on_failure: OnFailureOption = OnFailure.stop,
    command: Annotated[
        str | None,
        typer.Option(
            help="What the toolkit runs as mkc-fast (default: the mkc-fast that runs now).", rich_help_panel=panels.RUN
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a pipeline and configs of others, too; 'vpc remove' puts them back.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
) -> None:
    """Make a toolkit's run_anonymization.py anonymize its sets with mkc-fast.

    Prints the path of each config, that of track 1 last. In the checkout, run_anonymization.py takes it as --config.
    """
    from mkc_fast.engine.voiceprivacy import toolkit
    from mkc_fast.engine.voiceprivacy.checkout import recognize
    from mkc_fast.engine.voiceprivacy.config import Settings

    found = recognize(checkout)
    settings = Settings(
        model=model,
        bank_user=bank_user,
        bank_attacker=bank_attacker,
        command=_own_command() if command is None else _given_command(command),
        mode=mode.value,
        stride=stride,
        seed=seed,
        kmeans_num=kmeans_num,
        level=level.value,
        suffix=suffix,
        provider=provider.value,
        precision=precision.value,
        on_failure=on_failure.value,
        pad=pad,
    )
    # 2024 has one track, and no configs of several.
    tracks = None if track is Track.both else (int(track.value),)
    done = toolkit.install(found, settings, tracks=tracks, overwrite=overwrite)
    for note in done.notes:
        print(note, file=sys.stderr)
    for config in done.configs:
        print(config)


def remove(
    checkout: Annotated[Path, typer.Argument(help="Checkout that 'vpc install' wrote into.")],
) -> None:
    """Undo 'vpc install' of all suffixes: the checkout is then as it was before."""
    from mkc_fast.engine.voiceprivacy import toolkit
    from mkc_fast.engine.voiceprivacy.checkout import recognize

    for note in toolkit.remove(recognize(checkout)).notes:
        print(note, file=sys.stderr)


def _own_command() -> list[str]:
    """What started this program, by its absolute path: the script beside the interpreter, or the interpreter."""
    interpreter = os.path.abspath(sys.executable)  # noqa: PTH100 - the link of an environment must stay
    script = Path(interpreter).parent / "mkc-fast"
    return [str(script)] if os.access(script, os.X_OK) else [interpreter, "-m", "mkc_fast"]


def _given_command(command: str) -> list[str]:
    """The words of a command, the first as an absolute path, since the toolkit has another environment."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ArgumentError(f"--command {command}: is no command ({error})") from None
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise ArgumentError(f"--command {command}: there is no such program")
    return [os.path.abspath(program), *words[1:]]  # noqa: PTH100
