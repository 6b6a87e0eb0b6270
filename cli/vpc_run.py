"""``mkc-fast vpc run``: all sets of VoicePrivacy in a folder, each from the bank of its role."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Format, Level, Mode, OnFailure, Precision, Provider
from mkc_fast.cli.run_options import (
    AllowCommandsOption,
    AllowMixedOption,
    BatchSecondsOption,
    FormatOption,
    GpusOption,
    JsonOption,
    KmeansNumOption,
    LevelOption,
    MaxWindowOption,
    ModeOption,
    NumProcOption,
    OnFailureOption,
    OverwriteOption,
    PadOption,
    PrecisionOption,
    PrivateManifestOption,
    ProviderOption,
    QuietOption,
    RecordDrawsOption,
    SeedOption,
    ShardOption,
    StrideOption,
    TimeoutOption,
)
from mkc_fast.cli.running import decoders_off_stdout, signals
from mkc_fast.cli.show import console, counted, shown_warnings
from mkc_fast.cli.vpc_options import (
    BankAttackerOption,
    BankUserOption,
    DataArgument,
    DataOption,
    LevelOfOption,
    RoleOfOption,
    SetOption,
    SuffixOption,
    data_of,
    levels_of,
    roles_of,
)
from mkc_fast.engine.options import DEFAULT_WINDOW_S, EngineOptions
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.engine.voiceprivacy.experiment import Experiment, SetResult

EXIT_FAILED = 1  # a set is not complete
_TABLE_WIDTH = 400


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    model: Annotated[Path, typer.Option(help="Exported model (from 'export').", rich_help_panel=panels.ARTIFACTS)],
    data: DataArgument = None,
    data_option: DataOption = None,
    bank_user: BankUserOption = None,
    bank_attacker: BankAttackerOption = None,
    set_: SetOption = None,
    role_of: RoleOfOption = None,
    allow_commands: AllowCommandsOption = False,
    anon_suffix: SuffixOption = "_mkc",
    results_dir: Annotated[
        str,
        typer.Option(help="Folder of recordings in each anonymized directory.", rich_help_panel=panels.OUTPUT),
    ] = "wav",
    format_: FormatOption = Format.wav,
    pad: PadOption = False,
    mode: ModeOption = Mode.frame,
    stride: StrideOption = 1,
    seed: SeedOption = None,
    level: LevelOption = Level.utterance,
    level_of: LevelOfOption = None,
    kmeans_num: KmeansNumOption = None,
    record_draws: RecordDrawsOption = False,
    gpus: GpusOption = None,
    provider: ProviderOption = Provider.auto,
    precision: PrecisionOption = Precision.auto,
    num_proc: NumProcOption = None,
    batch_seconds: BatchSecondsOption = None,
    max_window_seconds: MaxWindowOption = DEFAULT_WINDOW_S,
    timeout_seconds: TimeoutOption = 900.0,
    on_failure: OnFailureOption = OnFailure.stop,
    shard: ShardOption = None,
    overwrite: OverwriteOption = False,
    allow_mixed: AllowMixedOption = False,
    private_manifest: PrivateManifestOption = False,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> int:
    """Anonymize all sets of VoicePrivacy in a folder; run the same command again to continue.

    Enrollments and training sets are anonymized from the attacker's bank, all other sets from the users' bank.
    The models are loaded once for all sets. With several banks of a role, each pair of banks gets directories of
    its own, whose suffix ends in the names of both, and every set is computed once for each bank.
    """
    from mkc_fast.cli.watch import as_dict, watching
    from mkc_fast.engine.corpus.anonymize import anonymize_corpus, default_devices
    from mkc_fast.engine.corpus.run import check_fit
    from mkc_fast.engine.datasets.shards import Shard
    from mkc_fast.engine.devices import cuda_index
    from mkc_fast.engine.voiceprivacy.experiment import open_experiment

    devices = gpus or default_devices()
    for device in devices:
        cuda_index(device)
    if not bank_user or not bank_attacker:
        raise MkcError("give --bank-user and --bank-attacker; both may be the same bank")
    experiment = open_experiment(
        data_of(data, data_option),
        bank_user=bank_user,
        bank_attacker=bank_attacker,
        names=set_ or (),
        roles=roles_of(role_of),
        level=level.value,
        levels=levels_of(level_of),
        anon_suffix=anon_suffix,
        results_dir=results_dir,
        audio_format=format_.value,
        allow_commands=allow_commands,
        shard=None if shard is None else Shard.parse(shard),
        overwrite=overwrite,
    )
    for bank in {each.bank for each in experiment.sets}:
        check_fit(model, bank)
    if not quiet:
        _announce(experiment, mode.value, stride, seeded=seed is not None)
    with signals() as signalled, watching(quiet=quiet or json_, as_json=False, where=[]) as watch:
        with decoders_off_stdout(), shown_warnings():
            summary = anonymize_corpus(
                model,
                experiment.sets[0].bank,
                corpus=experiment,
                mode=mode.value,
                stride=stride,
                seed=seed,
                kmeans_num=kmeans_num,
                pad=pad,
                record_draws=record_draws,
                devices=devices,
                num_proc=num_proc,
                options=EngineOptions(
                    provider=provider.value,
                    precision=precision.value,
                    batch_s=batch_seconds,
                    max_window_s=max_window_seconds,
                ),
                timeout_s=timeout_seconds,
                overwrite=overwrite,
                allow_mixed=allow_mixed,
                private_manifest=private_manifest,
                on_failure=on_failure.value,
                progress=watch,
                stopped=lambda: bool(signalled),
            )
        watch.end()
    results = experiment.results(summary, num_proc or len(devices))
    if json_:
        print(json.dumps({**as_dict(summary), "sets": [dataclasses.asdict(each) for each in results]}))
    elif not quiet:
        _show(results)
    incomplete = [each for each in results if not each.complete]
    if summary.interrupted:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 128 + signalled[0]
    if incomplete:
        names = ", ".join(each.name for each in incomplete)
        print(
            f"not complete, and without a wav.scp: {names}. Run the command again once all recordings can be read, or "
            "with --on-failure copy-silence",
            file=sys.stderr,
        )
        return EXIT_FAILED
    return 0


def _announce(experiment: Experiment, mode: str, stride: int, *, seeded: bool) -> None:
    count = sum(len(each.directory.utterances) for each in experiment.sets)
    draws = "repeatable, from the seed" if seeded else "from the system's entropy, not repeatable"
    print(
        f"{counted(len(experiment.sets), 'set')}, {counted(count, 'recording')}, {mode} mode, stride {stride}; draws "
        f"{draws}",
        file=sys.stderr,
    )
    if experiment.left_out:
        print(
            f"left out, since no set of VoicePrivacy has such a name: {', '.join(experiment.left_out)} (--set NAME "
            "anonymizes one)",
            file=sys.stderr,
        )


def _show(results: Sequence[SetResult]) -> None:
    """The table at the end: a line for each set, and their sum."""
    from rich.table import Table

    table = Table("set", box=None)
    for name in ("utterances", "hours", "bank", "RTFx", "failed"):
        table.add_column(name, justify="left" if name == "bank" else "right")
    for each in results:
        rtfx = f"{each.rtfx:.1f}" if each.rtfx else "-"
        table.add_row(
            Path(each.out).name, f"{each.utterances:,}", f"{each.hours:.2f}", each.bank, rtfx, str(each.failed)
        )
    table.add_section()
    table.add_row(
        "all",
        f"{sum(each.utterances for each in results):,}",
        f"{sum(each.hours for each in results):.2f}",
        "",
        "",
        str(sum(each.failed for each in results)),
    )
    # As wide as it is: names that differ at their ends must not be cut.
    console.print(table, width=max(console.width, _TABLE_WIDTH), crop=False, soft_wrap=True)
