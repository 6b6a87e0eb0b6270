"""The record of an evaluation as one HTML page that loads nothing; every value is escaped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mkc_fast.evaluation.figures import CAPTIONS, draw
from mkc_fast.evaluation.measures import DURATION, INTELLIGIBILITY, MEASURES, PITCH, PRIVACY, QUALITY
from mkc_fast.evaluation.privacy import ORIGINAL
from mkc_fast.evaluation.rows import ATTACKERS, HEAD, notes, percent, rows
from mkc_fast.pages.content import Table, templates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TITLES = {
    PRIVACY: "Privacy",
    INTELLIGIBILITY: "Intelligibility",
    QUALITY: "Quality",
    PITCH: "Pitch",
    DURATION: "Duration",
}
_MOST_FAILED = 100  # recordings that the page names


@dataclass(frozen=True)
class Section:
    """A measure: its picture, what it shows, the numbers, and what to know about them."""

    title: str
    picture: str | None
    caption: str
    table: Table
    notes: Sequence[str]


def build_page(record: Mapping[str, Any]) -> str:
    """The page as text; every picture is in it.

    Args:
        record: As ``make_record`` makes it.
    """
    pictures = {name: base64.b64encode(content).decode() for name, content in draw(record).items()}
    sections = [
        Section(
            _TITLES[measure],
            pictures.get(measure),
            CAPTIONS.get(measure, ""),
            Table(HEAD, [tuple(row) for row in rows(record, measure)]),
            notes(record, measure),
        )
        for measure in MEASURES
        if measure in record["measures"]
    ]
    failed = list(record["failed"].items())
    return (
        templates("mkc_fast.evaluation")
        .get_template("evaluation.html")
        .render(
            record=record,
            what=summary(record),
            tiles=_tiles(record),
            sections=sections,
            missing=Table(("measure", "why it was not made"), list(record["not_measured"].items()), left=2),
            failed=Table(("utterance", "why"), failed[:_MOST_FAILED], left=2),
            more_failed=max(0, len(failed) - _MOST_FAILED),
            models=_models(record),
        )
    )


def summary(record: Mapping[str, Any]) -> str:
    """What was compared, in a line."""
    counts = record["recordings"]
    speakers = f" of {counts['speakers']:,} speakers" if counts["speakers"] else ""
    return (
        f"{counts['heard']:,} of {counts['utterances']:,} utterances{speakers}: {counts['anonymized']} beside "
        f"{counts['original']}"
    )


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A few numbers to see first, each with what it is."""
    made = record["measures"]
    tiles = []
    if PRIVACY in made:
        found = made[PRIVACY]["verifications"]
        titles = {ORIGINAL: "EER of original speech", **{name: f"EER, {who}" for name, who in ATTACKERS.items()}}
        tiles += [
            (percent(found[name]["eer"]), title) for name, title in titles.items() if found[name]["eer"] is not None
        ]
    if INTELLIGIBILITY in made:
        part = made[INTELLIGIBILITY]
        named = [("original", "of original speech"), ("anonymized", "of anonymized speech")]
        tiles += [
            (percent(part[side]["wer"]["rate"]), f"WER {text}")
            for side, text in named
            if side in part and part[side]["wer"]["rate"] is not None
        ]
        if "original" not in part and part["to_transcript"]["wer"]["rate"] is not None:
            tiles.append((percent(part["to_transcript"]["wer"]["rate"]), "WER, beside what is heard in the original"))
    if QUALITY in made and made[QUALITY]["anonymized"]["overall"]["mean"] is not None:
        before, after = (made[QUALITY][side]["overall"]["mean"] for side in HEAD[1:])
        tiles.append((f"{after:.2f}", f"DNSMOS, overall; original {before:.2f}"))
    if PITCH in made and made[PITCH]["correlation"]["mean"] is not None:
        tiles.append((f"{made[PITCH]['correlation']['mean']:.2f}", "pitch correlation"))
    return tiles


def _models(record: Mapping[str, Any]) -> Table:
    found = []
    for measure, part in record["measures"].items():
        model = part.get("model")
        if model is not None:
            files = model["files"] or [{"name": "", "sha256": ""}]
            found += [
                (measure if place == 0 else "", model["name"] if place == 0 else "", file["name"], file["sha256"])
                for place, file in enumerate(files)
            ]
    return Table(("measure", "model", "file", "SHA-256"), found, left=4)
