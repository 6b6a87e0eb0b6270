"""``mkc-fast vpc check``: what will fail in a run or an evaluation, before and after the days of work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Level, Precision, Provider
from mkc_fast.cli.run_options import AllowCommandsOption, GpusOption, LevelOption, PrecisionOption, ProviderOption
from mkc_fast.cli.show import console, shown_warnings, steps
from mkc_fast.cli.vpc_options import DataArgument, DataOption, RoleOfOption, SetOption, SuffixOption, data_of, roles_of
from mkc_fast.engine.options import EngineOptions
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from mkc_fast.engine.voiceprivacy.findings import Report

EXIT_PROBLEMS = 1


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check")(check)


def check(
    data: DataArgument = None,
    data_option: DataOption = None,
    set_: SetOption = None,
    role_of: RoleOfOption = None,
    anon_suffix: SuffixOption = "_mkc",
    model: Annotated[
        Path | None, typer.Option(help="Exported model (from 'export').", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    bank_user: Annotated[Path | None, typer.Option(help="Bank of the users.", rich_help_panel=panels.ARTIFACTS)] = None,
    bank_attacker: Annotated[
        Path | None, typer.Option(help="Bank of the attacker.", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    level: LevelOption = Level.utterance,
    allow_commands: AllowCommandsOption = False,
    gpus: GpusOption = None,
    provider: ProviderOption = Provider.auto,
    precision: PrecisionOption = Precision.auto,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Compute some seconds to estimate the hours.", rich_help_panel=panels.RUN
        ),
    ] = True,
    allow_mixed: Annotated[
        bool,
        typer.Option("--allow-mixed", help="Only note sets that do not belong together.", rich_help_panel=panels.RUN),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.", rich_help_panel=panels.RUN)] = False,
) -> int:
    """Say what will fail: in a run over the sets that are not anonymized, in the evaluation of those that are.

    Of a set to anonymize it reads the lists and the header of every recording. With the model and the banks it also
    checks these and the disk, and measures for how many hours the work will go on. Of an anonymized set it checks
    what the toolkits demand, and whether all sets belong to one experiment.
    """
    from mkc_fast.engine.voiceprivacy.check import check_data

    with shown_warnings(), steps() as progress:
        report = check_data(
            data_of(data, data_option),
            names=set_ or (),
            roles=roles_of(role_of),
            anon_suffix=anon_suffix,
            model=model,
            bank_user=bank_user,
            bank_attacker=bank_attacker,
            level=level.value,
            devices=gpus,
            options=EngineOptions(provider=provider.value, precision=precision.value),
            allow_commands=allow_commands,
            allow_mixed=allow_mixed,
            measure=probe,
            progress=progress,
        )
    if json_:
        print(json.dumps({**dataclasses.asdict(report), "problems": len(report.problems)}))
    else:
        _show(report)
    return EXIT_PROBLEMS if report.problems else 0


def _show(report: Report) -> None:
    for each in report.findings:
        console.print(one_line(f"{each.status:<8} {each.where}: {each.text}"), soft_wrap=True)
    count = len(report.problems)
    console.print("no problem found" if not count else f"{count} problem{'s' * (count > 1)}")
