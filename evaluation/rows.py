"""The rows that terminal and page show: each measure of original and anonymized speech, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mkc_fast.evaluation.intelligibility import TEXT
from mkc_fast.evaluation.measures import DURATION, INTELLIGIBILITY, PITCH, PRIVACY, QUALITY
from mkc_fast.evaluation.privacy import IGNORANT, LAZY_INFORMED, ORIGINAL
from mkc_fast.evaluation.quality import SCALES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Row(NamedTuple):
    """A measure: what it is, of which measure, and its values as text."""

    what: str
    original: str
    anonymized: str


ATTACKERS = {IGNORANT: "ignorant attacker", LAZY_INFORMED: "lazy-informed attacker"}
HEAD = ("", "original", "anonymized")


def rows(record: Mapping[str, Any], measure: str) -> list[Row]:
    """The rows of one measure; none if it was not made."""
    made = record["measures"].get(measure)
    return [] if made is None else _ROWS[measure](made)


def _privacy(made: Mapping[str, Any]) -> list[Row]:
    verifications = made["verifications"]
    original = _value(verifications[ORIGINAL], "eer", _hundredths)
    return [
        Row(f"EER, {attacker} (%)", original, _value(verifications[name], "eer", _hundredths))
        for name, attacker in ATTACKERS.items()
    ]


def _intelligibility(made: Mapping[str, Any]) -> list[Row]:
    sides = HEAD[1:] if made["reference"] == TEXT else ()
    against_text = [
        Row(f"{name.upper()}, against the text (%)", *(_value(made[side][name], "rate", _hundredths) for side in sides))
        for name in ("wer", "cer")
        if sides
    ]
    heard = made["to_transcript"]
    return against_text + [
        Row(f"{name.upper()}, against the original (%)", "", _value(heard[name], "rate", _hundredths))
        for name in ("wer", "cer")
    ]


def _quality(made: Mapping[str, Any]) -> list[Row]:
    return [
        Row(f"DNSMOS, {scale}", *(_value(made[side][scale], "mean", _two) for side in HEAD[1:])) for scale in SCALES
    ]


def _pitch(made: Mapping[str, Any]) -> list[Row]:
    return [
        Row("pitch correlation", "", _value(made["correlation"], "mean", _two)),
        Row("pitch shift (semitones)", "", _value(made["semitones"], "mean", _signed)),
        Row("frames voiced alike (%)", "", _value(made["same_voicing"], "mean", _hundredths)),
    ]


def _duration(made: Mapping[str, Any]) -> list[Row]:
    return [Row("duration ratio", "", _value(made["ratio"], "mean", _three))]


_ROWS: dict[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    PRIVACY: _privacy,
    INTELLIGIBILITY: _intelligibility,
    QUALITY: _quality,
    PITCH: _pitch,
    DURATION: _duration,
}


def _value(found: Mapping[str, Any], key: str, shown: Callable[[float], str]) -> str:
    """``12.5 (9.1 to 16.0)``; ``none`` where there is no value."""
    value, interval = found[key], found["interval"]
    if value is None:
        return "none"
    return shown(value) + (f" ({shown(interval[0])} to {shown(interval[1])})" if interval else "")


def percent(share: float) -> str:
    """A share of 1, with one digit."""
    return f"{100 * share:.1f} %"


def _hundredths(share: float) -> str:
    return f"{100 * share:.1f}"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}"


def gaps(record: Mapping[str, Any]) -> list[str]:
    """What the equal error rates do not tell: a verification that was not measured, trials that have no score."""
    made = record["measures"].get(PRIVACY)
    if made is None:
        return []
    reasons = {attacker: made["verifications"][name]["not_measured"] for name, attacker in ATTACKERS.items()}
    found = [f"EER, {attacker}: not measured: {reason}." for attacker, reason in reasons.items() if reason]
    if made["trials_without_score"]:
        found.append(
            f"{made['trials_without_score']:,} more trials have no score in one of the verifications, so they count in "
            "none: a recording is missing or failed, or the speaker's enrolment has nothing but this utterance."
        )
    return found


def notes(record: Mapping[str, Any], measure: str) -> Sequence[str]:
    """What a reader of a measure's numbers must know: the model, the counts, how it was made."""
    made = record["measures"][measure]
    model = made.get("model")
    by = (
        []
        if model is None
        else [
            f"Model: {model['name']}"
            + (f" ({model['package']})" if model["package"] else "")
            + (f", language {model['language']}" if model.get("language") else "")
            + "."
        ]
    )
    if measure == PRIVACY:
        counts = made["verifications"][IGNORANT]
        others = made["most_other_speakers"]
        source = "the list of trials" if made["trials"] == "list" else "every utterance against every speaker"
        if others is not None:
            source = f"every utterance against its speaker and {others} others, which the seed drew"
        by.append(
            f"{counts['targets']:,} target and {counts['nontargets']:,} nontarget trials of {made['speakers']:,} "
            f"speakers, from {source}. Enrolment: {made['enrolment']}; anonymized: {made['enrolment_anonymized']}."
        )
        by += gaps(record)
    elif measure == INTELLIGIBILITY:
        by.append(
            f"{made['utterances']:,} utterances, compared with the {made['reference']}. Before, texts are made alike: "
            f"{made['normalization']}."
        )
    elif measure == PITCH:
        left_out = made["utterances_without_correlation"]
        by.append(
            f"Means of {made['utterances']:,} utterances, over the frames that are voiced in both"
            + (f"; {left_out:,} have too few of these for a correlation." if left_out else ".")
        )
    elif measure == QUALITY:
        by.append(f"Means of {made['utterances']:,} utterances; 1 is bad, 5 excellent.")
    else:
        by.append(f"The mean of utterances; the ratio is {made['least']:.3f} at least and {made['most']:.3f} at most.")
    return by
