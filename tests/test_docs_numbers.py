"""Numbers in the docs are those of the benchmark results that they cite (see benchmarks/cited.py)."""

from __future__ import annotations

import re

import pytest

from benchmarks.cited import DOCS, MARKER, RESULTS, ROOT, agrees, cited_numbers, disagreements, rewritten, value_at


@pytest.mark.parametrize("doc", DOCS)
def test_numbers_agree_with_the_results_that_they_cite(doc: str) -> None:
    text = (ROOT / doc).read_text()
    assert cited_numbers(text)
    assert disagreements(text) == []


@pytest.mark.parametrize("doc", DOCS)
def test_a_changed_number_is_noticed_and_mended(doc: str) -> None:
    text = (ROOT / doc).read_text()
    for cited in cited_numbers(text):
        digit = next(place for place in range(cited.start, len(text)) if text[place] in "123456789")
        changed = text[:digit] + str(int(text[digit]) % 9 + 1) + text[digit + 1 :]
        assert len(disagreements(changed)) == 1, f"{cited} can be changed unnoticed"
        assert disagreements(rewritten(changed)) == []


@pytest.mark.parametrize("doc", DOCS)
def test_every_paragraph_that_links_a_result_cites_its_numbers(doc: str) -> None:
    for paragraph in (ROOT / doc).read_text().split("\n\n"):
        linked = set(re.findall(r"results/([\w/-]+\.json)\)", paragraph))
        prose = re.sub(r"\(\S*?\)", "", MARKER.sub("", paragraph))
        if linked and re.search(r"\d(?:\.\d+)? ?(?:s|GB|MB|ms|%|times|dB)\b|RTFx \d", prose):
            assert linked <= {cited.file for cited in cited_numbers(paragraph)}, paragraph


def test_every_linked_result_is_there() -> None:
    for doc in DOCS:
        for name in re.findall(r"results/([\w/-]+\.(?:json|png|html))", (ROOT / doc).read_text()):
            assert (RESULTS / name).is_file(), f"{doc} links {name}"


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("2.7", 2.69, True),
        ("2.7", 2.6, False),
        ("91", 90.66, True),
        ("2,500", 2480.0, True),
        ("2,500", 2440.0, False),
        ("568", 567.9, True),
        ("568", 569.0, False),
        ("100", 99.97, True),
        ("100", 94.0, False),
        ("0.79", 0.7934, True),
    ],
)
def test_rounding_is_to_the_digits_that_are_written(text: str, value: float, expected: bool) -> None:
    assert agrees(text, value) is expected


def test_items_are_found_by_their_values() -> None:
    record = {"cases": [{"n": 1, "stride": 1, "rate": 5}, {"n": 1, "stride": 10, "rate": 6}]}
    assert value_at(record, "cases[n=1,stride=10].rate") == 6
    with pytest.raises(ValueError, match="values to unpack"):
        value_at(record, "cases[n=1].rate")


def test_a_wrong_citation_is_an_error() -> None:
    with pytest.raises(KeyError):
        disagreements("RTFx 2<!-- full_size_cpu.json: results.infer_frame.speed -->")
    with pytest.raises(ValueError, match="no number"):
        disagreements("RTFx <!-- full_size_cpu.json: results.infer_frame.rtfx -->")
