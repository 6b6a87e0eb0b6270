"""What the checks of a VoicePrivacy folder find."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Status = Literal["ok", "note", "problem"]
OK: Final = "ok"
NOTE: Final = "note"
PROBLEM: Final = "problem"


@dataclass(frozen=True)
class Finding:
    """One fact with its judgement.

    Attributes:
        status: ``ok``; ``note``: worth knowing; ``problem``: the run or the evaluation will fail.
        where: The set, or what else it is about.
        text: What was found, and what to do, in one line.
    """

    status: Status
    where: str
    text: str


@dataclass
class Report:
    """What was found.

    Attributes:
        findings: In the order in which they were made.
        sets: What is known of each set.
        rtfx: Measured on these devices; None if it was not measured.
        hours_left: Hours of computation that are left at that speed; None if it was not measured.
    """

    findings: list[Finding] = field(default_factory=list)
    sets: list[SetState] = field(default_factory=list)
    rtfx: float | None = None
    hours_left: float | None = None

    @property
    def problems(self) -> list[Finding]:
        """The findings for which something will fail."""
        return [each for each in self.findings if each.status == PROBLEM]

    def add(self, status: Status, where: str, text: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(status, where, text))


@dataclass(frozen=True)
class SetState:
    """What is known of a set.

    Attributes:
        name: Of the set.
        role: ``user`` or ``attacker``, or None if it is not known.
        utterances: Of the set; 0 if its lists cannot be read.
        audio_s: Seconds of audio, as far as headers tell.
        anonymized: Whether its anonymized directory is complete.
    """

    name: str
    role: str | None
    utterances: int
    audio_s: float
    anonymized: bool
