"""What would fail in a run over the sets of VoicePrivacy: lists, recordings, speakers, banks, disk space, hours."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.anonymizer import Anonymizer
from mkc_fast.engine.artifacts import BANK_FILE, identity, read_model_info
from mkc_fast.engine.audio.read import read_utterance
from mkc_fast.engine.corpus.plan import lengths_s
from mkc_fast.engine.corpus.run import check_fit
from mkc_fast.engine.datasets.kaldi import left_behind, read_data_directory
from mkc_fast.engine.datasets.speakers import read_utt2spk
from mkc_fast.engine.voiceprivacy.findings import NOTE, OK, PROBLEM, SetState
from mkc_fast.errors import MkcError
from mkc_fast.names import CPU, SPEAKER
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.engine.voiceprivacy.findings import Report
    from mkc_fast.names import Level

# Seconds of audio that the probe computes, after some that it does not count.
_PROBE_ON_CPU_S, _PROBE_ON_GPU_S = 12.0, 480.0
_WARM_UP_S = 3.0
_MOST_S = 30  # of one recording
# A WAV file of 16 bits; its header is 44 bytes.
_BYTES_PER_SAMPLE, _HEADER_BYTES = 2, 44


def check_set(
    report: Report,
    path: Path,
    *,
    role: str | None,
    suffix: str,
    level: Level,
    allow_commands: bool,
    shortest_s: float,
) -> tuple[SetState, list[Utterance]]:
    """Look at the lists and recordings of a set that is to be anonymized.

    Args:
        report: Gets what is found.
        path: The data directory.
        role: Of the set.
        suffix: Of the anonymized directory.
        level: Which utterances share a draw.
        allow_commands: Whether commands of a ``wav.scp`` may be run.
        shortest_s: Seconds that a recording must have.

    Returns:
        What is known of it, and its utterances that can be read.
    """
    name = path.name
    try:
        utterances = read_data_directory(path, suffix, allow_commands=allow_commands).utterances
    except MkcError as error:
        report.add(PROBLEM, name, str(error))
        return SetState(name, role, 0, 0.0, anonymized=False), []
    before = len(report.problems)
    lengths = lengths_s(utterances)
    files = [utterance for utterance in utterances if utterance.command is None]
    missing = [each for each, length in zip(utterances, lengths, strict=True) if not length and _is_missing(each)]
    gone = set(map(id, missing))
    unread = [each for each, length in zip(utterances, lengths, strict=True) if not length and id(each) not in gone]
    short = [each for each, length in zip(utterances, lengths, strict=True) if 0 < length < shortest_s]
    for found, what in (
        (missing, "not there"),
        (unread, "not readable as audio"),
        (short, f"shorter than {shortest_s * 1000:.0f} ms"),
    ):
        if found:
            report.add(
                PROBLEM, name, f"{_many(found, 'recording')} {what}: {printable(str(found[0].file))}{_more(found)}"
            )
    _check_speakers(report, path, utterances, role, level)
    behind = left_behind(path)
    if behind:
        report.add(
            NOTE,
            name,
            f"{', '.join(behind)}: not copied, because they belong to the original speech. The check of a 2026 "
            "submission wants every file of the original directory, so remove them there",
        )
    audio_s = sum(lengths)
    if len(report.problems) == before:
        commands = len(utterances) - len(files)
        shown = f", {commands:,} of them commands of unknown length" if commands else ""
        report.add(OK, name, f"{len(utterances):,} recordings{shown}, {audio_s / 3600:.2f} h")
    broken = {id(each) for each in (*missing, *unread, *short)}
    good = [each for each in utterances if id(each) not in broken]
    return SetState(name, role, len(utterances), audio_s, anonymized=False), good


def _is_missing(utterance: Utterance) -> bool:
    return utterance.command is None and not os.path.exists(utterance.file)  # noqa: PTH110 - a million of them


def _check_speakers(
    report: Report, path: Path, utterances: Sequence[Utterance], role: str | None, level: Level
) -> None:
    """Check that each utterance has a speaker, and that a training set's file names begin with it."""
    name, utt2spk = path.name, path / "utt2spk"
    if not utt2spk.is_file():
        report.add(PROBLEM if level == SPEAKER else NOTE, name, f"{utt2spk}: not there, so that no speaker is known")
        return
    try:
        speakers = read_utt2spk(utt2spk)
    except MkcError as error:
        report.add(PROBLEM, name, str(error))
        return
    without = [each for each in utterances if each.id not in speakers]
    if without:
        report.add(
            PROBLEM, name, f"utt2spk has no speaker for {_many(without, 'utterance')}: {without[0].id}{_more(without)}"
        )
    if role == "attacker" and name.startswith("train"):
        other = [each for each in utterances if each.id in speakers and speaker_in_name(each.id) != speakers[each.id]]
        if other:
            report.add(
                PROBLEM,
                name,
                f"{_many(other, 'utterance')} whose id does not begin with the speaker and a hyphen "
                f"({other[0].id} is of {speakers[other[0].id]}): the training of the speaker verification takes the "
                "speaker from there",
            )


def speaker_in_name(name: str) -> str:
    """The speaker that the toolkits' training reads from the name of a recording: what is before the first hyphen."""
    return name.partition("-")[0]


def check_banks(report: Report, model: Path, bank_user: Path, bank_attacker: Path) -> bool:
    """Check that the model and the banks can be read and fit; returns whether they do."""
    good = True
    for role, bank in (("bank of the users", bank_user), ("bank of the attacker", bank_attacker)):
        try:
            report.add(OK, role, f"{bank}: {_many(range(check_fit(model, bank)), 'k-means model')}")
        except MkcError as error:
            report.add(PROBLEM, role, str(error))
            good = False
    if good and identity(bank_user / BANK_FILE) == identity(bank_attacker / BANK_FILE):
        report.add(NOTE, "banks", "users and attacker have the same bank: the attacker then knows the users' models")
    return good


def check_disk(report: Report, data: Path, model: Path, states: Sequence[SetState]) -> None:
    """Check that the outputs that are still to be written fit on the disk."""
    try:
        rate = read_model_info(model).sample_rate
        free = shutil.disk_usage(data).free
    except (MkcError, OSError) as error:
        report.add(PROBLEM, "disk", str(error))
        return
    todo = [each for each in states if not each.anonymized]
    needed = sum(int(each.audio_s * rate * _BYTES_PER_SAMPLE) + each.utterances * _HEADER_BYTES for each in todo)
    text = f"{needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free"
    report.add(PROBLEM if needed > free else OK, "disk", text)


def probe(
    model: Path, bank: Path, devices: Sequence[str], options: EngineOptions, utterances: Sequence[Utterance]
) -> float:
    """Measure seconds of audio a second on some recordings; all devices together, of which the first is measured.

    Args:
        model: Exported model.
        bank: Bank.
        devices: Of the run, all of one kind.
        options: How the engine runs.
        utterances: Recordings to choose from.

    Raises:
        MkcError: The device cannot be used, or no recording can be read.
    """
    wanted_s = _PROBE_ON_CPU_S if devices[0] == CPU else _PROBE_ON_GPU_S
    with Anonymizer.load(model, bank, devices[0], options=options) as anonymizer:
        info = anonymizer.info
        waveforms, total, wrong = [], 0.0, "there is none"
        # From all of the list, since neighbours are often of one length.
        step = max(1, len(utterances) // 200)
        for utterance in utterances[::step]:
            if total >= wanted_s + _WARM_UP_S:
                break
            try:
                waveform = read_utterance(utterance, info.sample_rate, info.min_samples)
            except MkcError as error:
                wrong = str(error)
                continue
            assert isinstance(waveform, np.ndarray)  # none is streamed where there is no limit
            waveforms.append(waveform[: _MOST_S * info.sample_rate])
            total += len(waveforms[-1]) / info.sample_rate
        if not waveforms:
            raise MkcError(f"no recording for the probe can be read: {wrong}")
        first = waveforms[0][: max(info.min_samples, int(_WARM_UP_S * info.sample_rate))]
        anonymizer.anonymize(first)
        begin = time.perf_counter()
        anonymizer.anonymize_batch(waveforms)
        elapsed = time.perf_counter() - begin
    return total / elapsed * len(devices)


def _many(found: Sequence[object], what: str) -> str:
    return f"{len(found):,} {what}{'s' * (len(found) != 1)}"


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - 1:,} more" if len(found) > 1 else ""
