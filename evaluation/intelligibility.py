"""Intelligibility: the word and character error rates of original and of anonymized speech with one recognizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mkc_fast.evaluation.words import NORMALIZATION, Edits, edits, normalized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mkc_fast.evaluation.intervals import Bootstrap

TEXT, TRANSCRIPT = "text", "transcript of the original"


def measure_intelligibility(
    original: Mapping[str, str], anonymized: Mapping[str, str], text: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Error rates, for the record.

    With texts, both are compared with these, over the utterances that have one. The anonymized speech is also compared
    with what was heard in the original; without texts, that is all there is.

    Args:
        original: What was heard in the original speech, by utterance.
        anonymized: The same of the anonymized speech.
        text: What was said.
        bootstrap: For the intervals.
    """
    heard = {name: normalized(words) for name, words in original.items() if name in anonymized}
    said = {name: normalized(text[name]) for name in heard if name in text}
    found: dict[str, Any] = {
        "reference": TEXT if said else TRANSCRIPT,
        "normalization": NORMALIZATION,
        "utterances": len(said or heard),
        "utterances_without_text": len(heard) - len(said) if said else 0,
        "to_transcript": _rates(heard, anonymized, bootstrap),
    }
    if said:
        found |= {"original": _rates(said, original, bootstrap), "anonymized": _rates(said, anonymized, bootstrap)}
    return found


def _rates(references: Mapping[str, str], heard: Mapping[str, str], bootstrap: Bootstrap) -> dict[str, Any]:
    pairs = [edits(reference, normalized(heard[name])) for name, reference in references.items()]
    return {
        "wer": _rate([words for words, _ in pairs], bootstrap),
        "cer": _rate([characters for _, characters in pairs], bootstrap),
    }


def _rate(counted: Sequence[Edits], bootstrap: Bootstrap) -> dict[str, Any]:
    errors, lengths = [each.errors for each in counted], [each.length for each in counted]
    return {
        "rate": sum(errors) / sum(lengths) if sum(lengths) else None,
        "interval": bootstrap.of_ratio(errors, lengths),
        "substitutions": sum(each.substitutions for each in counted),
        "deletions": sum(each.deletions for each in counted),
        "insertions": sum(each.insertions for each in counted),
        "length": sum(lengths),
    }
