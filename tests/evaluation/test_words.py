"""Texts are made alike before they are compared, and the edits counted are the fewest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkc_fast.evaluation.intelligibility import TEXT, TRANSCRIPT, measure_intelligibility
from mkc_fast.evaluation.intervals import Bootstrap
from mkc_fast.evaluation.words import edits, normalized

WORDS = st.lists(st.sampled_from(["A", "B", "AB", "C"]), max_size=7)
BOOTSTRAP = Bootstrap(20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't, stop!", "DON'T STOP"),
        ("don\u2019t  stop", "DON'T STOP"),
        ("'tis the dogs' well-known way", "TIS THE DOGS WELL KNOWN WAY"),
        ("at 5 o'clock", "AT 5 O'CLOCK"),
        ("Straße ﬁne", "STRASSE FINE"),
        ("नमस्ते", "नमस्ते"),
        ("<unk> ...", "UNK"),
        ("", ""),
    ],
)
def test_texts_are_made_alike(text: str, expected: str) -> None:
    assert normalized(text) == expected
    assert normalized(expected) == expected


def fewest(reference: list[str] | str, heard: list[str] | str) -> int:
    """The edit distance by its recursion, a row at a time."""
    row = list(range(len(heard) + 1))
    for number, one in enumerate(reference, 1):
        before, row = row, [number]
        for place, other in enumerate(heard):
            row.append(min(before[place] + (one != other), before[place + 1] + 1, row[place] + 1))
    return row[-1]


@given(WORDS, WORDS)
def test_the_edits_are_the_fewest(reference: list[str], heard: list[str]) -> None:
    words, characters = edits(" ".join(reference), " ".join(heard))
    assert (words.errors, words.length) == (fewest(reference, heard), len(reference))
    assert characters.errors == fewest(" ".join(reference), " ".join(heard))
    assert characters.length == len(" ".join(reference))


def test_rates_are_of_all_words_together_against_the_text() -> None:
    text = {"u1": "one two three four", "u2": "five"}
    original = {"u1": "one two three four", "u2": "nine", "u3": "no text"}
    anonymized = {"u1": "one two tree", "u2": "five", "u3": "next"}
    found = measure_intelligibility(original, anonymized, text, BOOTSTRAP)
    assert (found["reference"], found["utterances"], found["utterances_without_text"]) == (TEXT, 2, 1)
    assert found["original"]["wer"]["rate"] == pytest.approx(1 / 5)
    assert found["anonymized"]["wer"]["rate"] == pytest.approx(2 / 5)
    assert found["anonymized"]["wer"]["deletions"] == 1
    assert found["to_transcript"]["wer"]["length"] == 7


def test_without_a_text_the_original_is_the_reference_and_is_itself_without_errors() -> None:
    heard = {"u1": "one two", "u2": "three"}
    found = measure_intelligibility(heard, heard, {}, BOOTSTRAP)
    assert found["reference"] == TRANSCRIPT
    assert "original" not in found
    assert found["to_transcript"]["wer"]["rate"] == found["to_transcript"]["cer"]["rate"] == 0


def test_where_nothing_is_heard_in_the_original_there_is_no_rate() -> None:
    found = measure_intelligibility({"u": ""}, {"u": "one"}, {}, BOOTSTRAP)
    assert found["to_transcript"]["wer"]["rate"] is None
    assert found["to_transcript"]["wer"]["insertions"] == 1
