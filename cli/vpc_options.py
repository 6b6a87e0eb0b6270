"""Options that the commands of ``mkc-fast vpc`` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Level
from mkc_fast.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.engine.voiceprivacy.sets import Role
    from mkc_fast.names import Level as LevelName

DataArgument = Annotated[Path | None, typer.Argument(help="Folder of data directories: CHECKOUT/data.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="The same.", rich_help_panel=panels.INPUT)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A data directory in DATA (default: all sets of VoicePrivacy there).",
        rich_help_panel=panels.INPUT,
    ),
]
SuffixOption = Annotated[
    str, typer.Option("--anon-suffix", help="Of the anonymized directories.", rich_help_panel=panels.OUTPUT)
]
BankUserOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Bank of the users, for trials, IEMOCAP and emodata; several make a grid.",
        rich_help_panel=panels.ARTIFACTS,
    ),
]
BankAttackerOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Bank of the attacker, for enrollments and training sets; several make a grid.",
        rich_help_panel=panels.ARTIFACTS,
    ),
]
RoleOfOption = Annotated[
    list[str] | None,
    typer.Option(
        help="SET=user or SET=attacker: whose bank anonymizes it, if not the usual one.", rich_help_panel=panels.INPUT
    ),
]
LevelOfOption = Annotated[
    list[str] | None,
    typer.Option(help="SET=LEVEL: the level of one set.", rich_help_panel=panels.DRAWS),
]


def data_of(argument: Path | None, option: Path | None) -> Path:
    """The folder of data directories, which is given as an argument or as an option.

    Raises:
        ArgumentError: It is given in neither way, or in both.
    """
    given = [path for path in (argument, option) if path is not None]
    if len(given) != 1:
        raise ArgumentError("give the folder of data directories, such as CHECKOUT/data, once")
    return given[0]


def roles_of(given: Sequence[str] | None) -> dict[str, Role]:
    """The roles of sets, from ``SET=ROLE``.

    Raises:
        ArgumentError: One has another form or names no role.
    """
    roles: dict[str, Role] = {}
    for name, role in _split(given, "--role-of", "ROLE"):
        if role == "user":
            roles[name] = "user"
        elif role == "attacker":
            roles[name] = "attacker"
        else:
            raise ArgumentError(f"--role-of {name}={role}: expected the role user or attacker")
    return roles


def levels_of(given: Sequence[str] | None) -> dict[str, LevelName]:
    """The levels of sets, from ``SET=LEVEL``.

    Raises:
        ArgumentError: One has another form or names no level.
    """
    levels: dict[str, LevelName] = {}
    for name, level in _split(given, "--level-of", "LEVEL"):
        try:
            levels[name] = Level(level).value
        except ValueError:
            expected = ", ".join(each.value for each in Level)
            raise ArgumentError(f"--level-of {name}={level}: expected one of {expected}") from None
    return levels


def _split(given: Sequence[str] | None, option: str, what: str) -> list[tuple[str, str]]:
    pairs = []
    for each in given or ():
        name, equals, value = each.partition("=")
        if not name or not equals or not value:
            raise ArgumentError(f"{option} {each}: expected SET={what}")
        pairs.append((name, value))
    return pairs
