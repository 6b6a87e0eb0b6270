"""The config that makes a toolkit anonymize the sets of a track with mkc-fast, in HyperPyYAML."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.draws import check_draw
from mkc_fast.errors import ArgumentError
from mkc_fast.names import AUTO, FRAME, LEVELS, ON_FAILURE, PRECISIONS, PROVIDERS, STOP, UTTERANCE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mkc_fast.engine.voiceprivacy.sets import Group
    from mkc_fast.names import Level, Mode, OnFailure, Precision, Provider

# The toolkits' scripts put it into folders' names, shell words and JSON. YAML must not read it as a number.
_SUFFIX = re.compile(r"_[A-Za-z0-9][\w.-]*|-[A-Za-z][\w.-]*", re.ASCII)

# HyperPyYAML writes a config out and reads it again, and loses these.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]|  ")


@dataclass(frozen=True)
class Settings:
    """How the sets are anonymized.

    Attributes:
        model: Exported model.
        bank_user: Bank of trials and other sets of the users.
        bank_attacker: Bank of enrollments and training sets.
        command: What runs mkc-fast, as a list of words; the first is an absolute path.
        mode: How bank entries are drawn.
        stride: Frames that share a draw in frame mode.
        seed: For repeatable draws.
        kmeans_num: Size of the random subset of each bank.
        level: Which utterances share a draw, where the config's lists do not say it.
        suffix: Of the directories written beside the sets, and of the config's name.
        provider: Of ONNX Runtime.
        precision: Of the arithmetic.
        on_failure: What becomes of a recording that fails.
        pad: Fill outputs' ends with silence.

    Raises:
        ArgumentError: A value is not possible, or a path cannot be written in YAML.
    """

    model: Path
    bank_user: Path
    bank_attacker: Path
    command: Sequence[str]
    mode: Mode = FRAME
    stride: int = 1
    seed: int | None = None
    kmeans_num: int | None = None
    level: Level = UTTERANCE
    suffix: str = "_mkc"
    provider: Provider = AUTO
    precision: Precision = AUTO
    on_failure: OnFailure = STOP
    pad: bool = False

    def __post_init__(self) -> None:
        check_draw(self.mode, self.stride, self.seed)
        for name, value, known in (
            ("level", self.level, LEVELS),
            ("provider", self.provider, PROVIDERS),
            ("precision", self.precision, PRECISIONS),
            ("on_failure", self.on_failure, ON_FAILURE),
        ):
            if value not in known:
                raise ArgumentError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if self.kmeans_num is not None and self.kmeans_num < 1:
            raise ArgumentError(f"kmeans_num is {self.kmeans_num}; expected a whole number from 1 up")
        if not _SUFFIX.fullmatch(self.suffix):
            raise ArgumentError(
                f"suffix is {self.suffix!r}; expected '_' or '-', a letter, and then letters, digits, '.', '_' or '-'"
            )
        for text in (*map(str, (self.model, self.bank_user, self.bank_attacker)), *self.command):
            if _UNWRITABLE.search(text):
                raise ArgumentError(
                    f"{text}: has a backslash, a control character, two spaces in a row or bytes that are not UTF-8, "
                    "which a toolkit does not read back; rename it"
                )

    @property
    def config_name(self) -> str:
        """The name of the config's file."""
        return f"anon{self.suffix}.yaml"


def config_text(settings: Settings, groups: Sequence[Group], left_out: Sequence[Group] = ()) -> str:
    """The text of the config of a track, in ASCII.

    Args:
        settings: How the sets are anonymized.
        groups: The track's sets.
        left_out: Further sets, which are written as comments.
    """
    values: dict[str, Any] = {
        "command": shlex.join(settings.command),
        "model": os.path.abspath(settings.model),  # noqa: PTH100 - also takes '..' out
        "bank_user": os.path.abspath(settings.bank_user),  # noqa: PTH100
        "bank_attacker": os.path.abspath(settings.bank_attacker),  # noqa: PTH100
        "mode": settings.mode,
        "stride": settings.stride,
        "seed": settings.seed,
        "kmeans_num": settings.kmeans_num,
        "level": settings.level,
        "provider": settings.provider,
        "precision": settings.precision,
        "on_failure": settings.on_failure,
        "pad": settings.pad,
    }
    lines = [
        "# Written by `mkc-fast vpc install`. `mkc-fast vpc remove` removes it again.",
        "data_dir: data",
        "results_dir: wav",
        "",
        "pipeline: template",
        f"anon_suffix: {_scalar(settings.suffix)}",
        "",
        "# Sets that are taken out of this list are not anonymized.",
        "datasets:",
    ]
    for group in groups:
        lines += _entry(group)
    if left_out:
        lines.append("# These were not in the folder of data when this was written:")
        lines += [f"# {line}" for group in left_out for line in _entry(group)]
    lines += [
        "",
        "modules:",
        "  anon_suffix: !ref <anon_suffix>",
        *(f"  {key}: {_scalar(value)}" for key, value in values.items()),
        "  # Lists of sets, or of names above, that have another level. A set in several lists has the first of these:",
        f"  # anon_level_spk: [{groups[0].data}]",
        f"  # anon_level_utt: [{groups[0].data}]",
        f"  # anon_level_constant: [{groups[0].data}]",
        "  # Whose bank anonymizes a set that is none of the challenge's:",
        "  # roles: {my_set: user}",
    ]
    return "\n".join(lines) + "\n"


def _entry(group: Group) -> list[str]:
    """The lines of a group in the list of sets."""
    lines = [f"  - name: {group.data}", f"    data: {group.data}"]
    if group.enrolls:
        lines.append(f"    enrolls: [{', '.join(group.enrolls)}]")
    if group.trials:
        lines.append(f"    trials: [{', '.join(group.trials)}]")
    return lines


def _scalar(value: object) -> str:
    """A value in YAML: text in double quotes, with all but printable ASCII escaped, whatever encoding reads it."""
    if value is None:
        return "null"
    if not isinstance(value, str):
        return str(value).lower()
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if character in '"\\':
        return "\\" + character
    if 0x20 <= code < 0x7F:
        return character
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
