"""Errors of words and characters of what a recognizer heard, after both texts are made comparable."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from mkc_fast.extras import required

NORMALIZATION = (
    "Unicode NFKC, upper case; apostrophes inside words are kept, all else that is no letter, digit or combining mark "
    "separates words; numbers are not spelled out"
)
_APOSTROPHES = str.maketrans(dict.fromkeys("‘’ʼ´`", "'"))  # noqa: RUF001 - these are what is replaced


@dataclass(frozen=True)
class Edits:
    """How one text differs from its reference, in words or in characters.

    Attributes:
        substitutions: Of the reference's.
        deletions: Of the reference's.
        insertions: Beside the reference's.
        length: Of the reference.
    """

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def errors(self) -> int:
        """All of them together."""
        return self.substitutions + self.deletions + self.insertions


def normalized(text: str) -> str:
    """Text in the form in which it is compared: see ``NORMALIZATION``; words are separated by one space."""
    plain = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).upper()
    kept = "".join(each if each == "'" or unicodedata.category(each)[0] in "LMN" else " " for each in plain)
    return " ".join(filter(None, (word.strip("'") for word in kept.split())))


def edits(reference: str, heard: str) -> tuple[Edits, Edits]:
    """The fewest edits from a reference to what was heard: of words, and of characters with the spaces.

    Args:
        reference: Normalized.
        heard: Normalized.
    """
    with required("counting errors of words", "jiwer"):
        import jiwer
    words = jiwer.process_words([reference], [heard])
    characters = jiwer.process_characters([reference], [heard])
    return (
        Edits(words.substitutions, words.deletions, words.insertions, len(reference.split())),
        Edits(characters.substitutions, characters.deletions, characters.insertions, len(reference)),
    )
