"""Numbers in the docs are those of the benchmark results that they cite.

A measured number is followed by a comment that readers do not see: ``2.7 s<!-- full_size_cpu.json:
results.bank_build_100.seconds -->``; ``* 1000`` after the path changes the unit. It must be the result, rounded to as
many digits as the text gives.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ("README.md", "benchmarks/README.md")
_MARKER = re.compile(r"<!--\s*(?P<file>[\w-]+\.json):\s*(?P<path>[^>*]+?)\s*(?:\*\s*(?P<factor>[\d.e-]+)\s*)?-->")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\.?\"([^\"]+)\"")


@dataclass(frozen=True)
class Cited:
    """A number in a text and what it cites."""

    text: str
    start: int
    file: str
    path: str
    factor: float


def cited_numbers(text: str) -> list[Cited]:
    found = []
    for marker in _MARKER.finditer(text):
        before = text[max(0, marker.start() - 40) : marker.start()]
        numbers = list(_NUMBER.finditer(before.rpartition("-->")[2]))
        assert numbers, f"no number before {marker.group()}"
        offset = marker.start() - len(before.rpartition("-->")[2])
        found.append(
            Cited(
                numbers[-1].group(),
                offset + numbers[-1].start(),
                marker["file"],
                marker["path"],
                float(marker["factor"] or 1),
            )
        )
    return found


def value_at(record: Any, path: str) -> float:
    """What ``a.b[0]."odd key"`` leads to."""
    rest = path
    while rest:
        step = _STEP.match(rest)
        assert step, f"cannot follow {path!r} at {rest!r}"
        rest = rest[step.end() :]
        record = record[int(step[2])] if step[2] is not None else record[step[1] or step[3]]
    return float(record)


def agrees(text: str, value: float) -> bool:
    """Whether a number as written is the value, rounded to the digits that are written."""
    digits = text.replace(",", "")
    if "." in digits:
        return math.isclose(round(value, len(digits.split(".")[1])), float(digits), abs_tol=1e-12)
    significant = len(digits.strip("0")) or 1
    return any(
        math.isclose(float(f"{value:.{count}g}"), float(digits), abs_tol=1e-12)
        for count in range(significant, len(digits) + 1)
    )


def disagreements(text: str, results: Path = RESULTS) -> list[str]:
    wrong = []
    for cited in cited_numbers(text):
        value = value_at(json.loads((results / cited.file).read_text()), cited.path) * cited.factor
        if not agrees(cited.text, value):
            wrong.append(f"{cited.text} is said, {cited.file} has {value:g} at {cited.path}")
    return wrong


@pytest.mark.parametrize("doc", DOCS)
def test_numbers_agree_with_the_results_that_they_cite(doc: str) -> None:
    text = (ROOT / doc).read_text()
    assert cited_numbers(text)
    assert disagreements(text) == []


@pytest.mark.parametrize("doc", DOCS)
def test_a_changed_number_is_noticed(doc: str) -> None:
    text = (ROOT / doc).read_text()
    for cited in cited_numbers(text):
        digit = next(place for place in range(cited.start, len(text)) if text[place] in "123456789")
        changed = str(int(text[digit]) % 9 + 1)
        assert disagreements(text[:digit] + changed + text[digit + 1 :]), f"{cited} can be changed unnoticed"


@pytest.mark.parametrize("doc", DOCS)
def test_every_paragraph_that_links_a_result_cites_numbers_of_it(doc: str) -> None:
    for paragraph in (ROOT / doc).read_text().split("\n\n"):
        linked = set(re.findall(r"results/([\w-]+\.json)\)", paragraph))
        prose = _MARKER.sub("", re.sub(r"\(\S*?\)", "", paragraph))
        if linked and re.search(r"\d(?:\.\d+)? ?(s|GB|MB|ms|%|times|dB|RTFx)\b", prose):
            assert linked <= {cited.file for cited in cited_numbers(paragraph)}, paragraph


def test_every_linked_result_is_there() -> None:
    for doc in DOCS:
        for name in re.findall(r"results/([\w-]+\.(?:json|png|html))", (ROOT / doc).read_text()):
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


def test_a_wrong_citation_is_an_error() -> None:
    with pytest.raises(KeyError):
        disagreements("RTFx 2<!-- full_size_cpu.json: results.infer_frame.speed -->")
