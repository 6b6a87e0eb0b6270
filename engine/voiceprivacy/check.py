"""Checks a folder of VoicePrivacy sets: before a run what will fail, after it what the toolkits demand."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.engine.corpus.anonymize import DEFAULT_SUFFIX, default_devices
from mkc_fast.engine.datasets.kaldi import record_dir_of
from mkc_fast.engine.options import EngineOptions
from mkc_fast.engine.voiceprivacy.experiment import choose_sets
from mkc_fast.engine.voiceprivacy.findings import NOTE, OK, PROBLEM, Report
from mkc_fast.engine.voiceprivacy.inputs import check_banks, check_disk, check_set, probe
from mkc_fast.engine.voiceprivacy.outputs import check_experiment, check_made_with, check_output, check_sizes
from mkc_fast.errors import ArgumentError, MkcError
from mkc_fast.names import UTTERANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.voiceprivacy.sets import Role
    from mkc_fast.names import Level

# 400 samples at 16 kHz, what WavLM's convolutions need for a frame; used where no model is given.
_SHORTEST_S = 0.025


def check_data(
    data: str | PathLike[str],
    *,
    names: Sequence[str] = (),
    roles: Mapping[str, Role] | None = None,
    anon_suffix: str = DEFAULT_SUFFIX,
    model: str | PathLike[str] | None = None,
    bank_user: str | PathLike[str] | None = None,
    bank_attacker: str | PathLike[str] | None = None,
    level: Level = UTTERANCE,
    devices: Sequence[str] | None = None,
    options: EngineOptions | None = None,
    allow_commands: bool = False,
    allow_mixed: bool = False,
    measure: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Check the sets of a folder: those that are anonymized as the toolkits do, the others for what will fail.

    Args:
        data: Folder of data directories, ``data`` of a checkout.
        names: The sets. Default: all that are there.
        roles: Roles of sets, where they are other than usual.
        anon_suffix: Of the anonymized directories.
        model: Exported model; with it and the banks these are checked, and the hours of work are estimated.
        bank_user: Bank of the users.
        bank_attacker: Bank of the attacker.
        level: Which utterances share a draw.
        devices: Of the run. Default: all GPUs, or the CPU.
        options: How the engine runs.
        allow_commands: Whether the run may run commands of a ``wav.scp``.
        allow_mixed: Only note sets that do not belong together.
        measure: Compute some seconds of audio to estimate the hours.
        progress: Called with what is looked at now.

    Raises:
        ListError: The folder cannot be read, or has no set.
        ArgumentError: The suffix is empty, or a role is given for a set that is not one of these.
    """
    folder, report = Path(data), Report()
    if not anon_suffix:
        raise ArgumentError("the suffix of the anonymized directories is empty")
    of_set, left_out = choose_sets(folder, names, roles or {})
    if left_out:
        report.add(NOTE, "sets", f"left out, since no set of VoicePrivacy has such a name: {', '.join(left_out)}")
    shortest_s = _SHORTEST_S
    if model is not None:
        try:
            info = read_model_info(Path(model))
            shortest_s = info.min_samples / info.sample_rate
        except MkcError as error:
            report.add(PROBLEM, "model", str(error))
    utterances: list[Utterance] = []
    made: dict[str, tuple[Path, str | None]] = {}
    for name, role in of_set.items():
        progress(name)
        out = folder / (name + anon_suffix)
        if not (folder / name).is_dir():
            report.add(PROBLEM, name, f"{folder / name}: there is no such data directory")
            continue
        if role is None:
            report.add(PROBLEM, name, "its role is not known: give user or attacker with --role-of")
        if (out / "wav.scp").is_file():
            report.sets.append(check_output(report, folder / name, out, role=role))
            made[name] = (record_dir_of(out), role)
            continue
        if out.is_dir():
            report.add(NOTE, out.name, "begun, and not complete: it has no wav.scp")
        state, readable = check_set(
            report,
            folder / name,
            role=role,
            suffix=anon_suffix,
            level=level,
            allow_commands=allow_commands,
            shortest_s=shortest_s,
        )
        report.sets.append(state)
        utterances += readable
    longer = [] if made else _longer_suffixes(folder, of_set, anon_suffix)
    if longer:
        text = f"there are anonymized directories with other suffixes: check each, --anon-suffix {' or '.join(longer)}"
        report.add(NOTE, "sets", text)
    known: dict[str, dict[str, Any]] = {}
    if made:
        known = check_experiment(report, made, allow_mixed=allow_mixed)
        check_sizes(report, {name: folder / (name + anon_suffix) for name in made})
    fits = _check_run(report, folder, model, bank_user, bank_attacker, devices, options, utterances, measure, progress)
    if fits:
        given = {"model": model, "user": bank_user, "attacker": bank_attacker}
        check_made_with(report, known, {what: Path(path) for what, path in given.items() if path is not None})
    return report


def _longer_suffixes(data: Path, names: Iterable[str], suffix: str) -> list[str]:
    """Suffixes that begin with this one, as those of a grid of banks do."""
    found = {
        path.parent.name.removeprefix(name)
        for name in names
        for path in data.glob(f"{glob.escape(name + suffix)}*/wav.scp")
    }
    return sorted(found - {suffix})


def _check_run(
    report: Report,
    data: Path,
    model: str | PathLike[str] | None,
    bank_user: str | PathLike[str] | None,
    bank_attacker: str | PathLike[str] | None,
    devices: Sequence[str] | None,
    options: EngineOptions | None,
    utterances: Sequence[Utterance],
    measure: bool,
    progress: Callable[[str], None],
) -> bool:
    """Check what a run over the sets that are left needs: artifacts, disk, and hours; tells whether artifacts fit."""
    todo = [each for each in report.sets if not each.anonymized]
    if model is None or bank_user is None or bank_attacker is None:
        if todo:
            text = "the model, the banks and the hours are checked with --model, --bank-user and --bank-attacker"
            report.add(NOTE, "run", text)
        return False
    fits = check_banks(report, Path(model), Path(bank_user), Path(bank_attacker))
    if not todo:
        return fits
    check_disk(report, data, Path(model), report.sets)
    if not measure or not fits or not utterances:
        return fits
    progress("probe")
    used = list(devices) if devices else default_devices()
    try:
        report.rtfx = probe(Path(model), Path(bank_user), used, options or EngineOptions(), utterances)
    except MkcError as error:
        report.add(PROBLEM, "probe", str(error))
        return fits
    report.hours_left = sum(each.audio_s for each in todo) / 3600 / report.rtfx
    text = f"{_time(report.hours_left)} of work on {', '.join(used)}, at the measured RTFx of {report.rtfx:.1f}"
    report.add(OK, "hours", text)
    return fits


def _time(hours: float) -> str:
    """Hours for people: in minutes or seconds where that says more."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
