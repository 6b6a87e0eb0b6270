"""The sets of the VoicePrivacy Challenge 2024 and 2026: their names, and whose bank anonymizes each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from mkc_fast.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

# Who anonymizes a set: the users whose speech is published, or the attacker, who enrolls speakers and trains on
# speech that he anonymized himself.
Role = Literal["user", "attacker"]
USER: Final = "user"
ATTACKER: Final = "attacker"

# A training set has no subsets; neither have the sets of emotions.
_TRAINING = "train"


@dataclass(frozen=True)
class Group:
    """Sets that a toolkit's config lists together.

    Attributes:
        data: What the names of its sets begin with; the name of its only set, if it has no subsets.
        enrolls: Ends of the names of the enrollment sets.
        trials: Ends of the names of the trial sets.
    """

    data: str
    enrolls: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()

    @property
    def roles(self) -> dict[str, Role]:
        """The role of each set, by name, in the toolkits' order."""
        if not self.enrolls and not self.trials:
            return {self.data: ATTACKER if self.data.startswith(_TRAINING) else USER}
        trials: dict[str, Role] = {self.data + end: USER for end in self.trials}
        return {**trials, **{self.data + end: ATTACKER for end in self.enrolls}}


def divided(groups: Sequence[Group], present: Collection[str]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Groups of the sets that are there, and groups of the others; all are the first if none is there.

    Args:
        groups: Of a track.
        present: Names of sets that are there.
    """
    if not any(name in present for group in groups for name in group.roles):
        return tuple(groups), ()
    parts: list[list[Group]] = [[], []]
    for group in groups:
        if not group.enrolls and not group.trials:
            parts[group.data not in present].append(group)
            continue
        for part, there in zip(parts, (True, False), strict=True):
            enrolls = tuple(end for end in group.enrolls if (group.data + end in present) == there)
            trials = tuple(end for end in group.trials if (group.data + end in present) == there)
            if enrolls or trials:
                part.append(Group(group.data, enrolls, trials))
    return tuple(parts[0]), tuple(parts[1])


def _with_trials(names: Iterable[str], *trials: str) -> tuple[Group, ...]:
    return tuple(Group(name, ("_enrolls",), trials) for name in names)


def _librispeech(*trials: str) -> tuple[Group, ...]:
    return (
        Group("IEMOCAP_dev"),
        Group("IEMOCAP_test"),
        *_with_trials(("libri_dev", "libri_test"), *trials),
        Group("train-clean-360"),
    )


_LANGUAGES = ("en", "de", "fr", "es", "ja", "cn")
_TRACKS: dict[tuple[int, int], tuple[Group, ...]] = {
    (2024, 1): _librispeech("_trials_f", "_trials_m"),
    (2026, 1): _librispeech("_trials_mixed"),
    (2026, 2): (
        *_with_trials((f"{language}_{part}" for language in _LANGUAGES for part in ("dev", "test")), "_trials_mixed"),
        Group("emodata_track2_dev"),
        Group("emodata_track2_test"),
        Group("train_english"),
        Group("train_german"),
        Group("train_spanish"),
        Group("train_french"),
    ),
}
_ROLES: dict[str, Role] = {
    name: role for groups in _TRACKS.values() for group in groups for name, role in group.roles.items()
}

# What the script that uploads a submission of 2026's track 1 wants each anonymized directory to hold, in bytes.
LEAST_BYTES: dict[str, int] = {
    "libri_dev_enrolls": 7_324_598,
    "libri_dev_trials_mixed": 455_295_386,
    "libri_test_enrolls": 86_805_881,
    "libri_test_trials_mixed": 416_608_014,
    "IEMOCAP_dev": 418_919_757,
    "IEMOCAP_test": 388_856_264,
    "train-clean-360": 41_937_610_246,
}


def groups(year: int, track: int) -> tuple[Group, ...]:
    """The sets of a track as a toolkit's config lists them; 2024 has track 1 only.

    Raises:
        ArgumentError: There is no such year or track.
    """
    if (year, track) not in _TRACKS:
        known = ", ".join(f"{there} track {number}" for there, number in _TRACKS)
        raise ArgumentError(f"VoicePrivacy {year} track {track} is not known; expected one of {known}")
    return _TRACKS[year, track]


def known_sets(year: int, track: int) -> tuple[str, ...]:
    """The names of all sets of a track, which are those of their folders; 2024 has track 1 only.

    Raises:
        ArgumentError: There is no such year or track.
    """
    return tuple(name for group in groups(year, track) for name in group.roles)


def is_set(name: str) -> bool:
    """Whether a name is exactly that of a set of any year and track; ``libri_dev_enrolls_mcadams`` is not."""
    return name in _ROLES


def likely_role(name: str) -> Role | None:
    """The role of a set, also of one with another name, by how that begins and ends; None if neither says."""
    if is_set(name):
        return role_of(name)
    if name.endswith("_enrolls") or name.startswith(_TRAINING):
        return ATTACKER
    if "_trials" in name or name.startswith(("IEMOCAP", "emodata")):
        return USER
    return None


def role_of(name: str) -> Role | None:
    """Who anonymizes a set: the attacker enrollments and training sets, the users all others; None if unknown."""
    return _ROLES.get(name)
