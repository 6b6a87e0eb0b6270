"""What the toolkits demand of anonymized directories: every file, id and path, speakers in names, one experiment."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE, identity
from mkc_fast.engine.corpus.plan import lengths_s
from mkc_fast.engine.corpus.provenance import PROVENANCE_FILE, read_provenance
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.speakers import read_utt2spk
from mkc_fast.engine.voiceprivacy.findings import NOTE, OK, PROBLEM, SetState
from mkc_fast.engine.voiceprivacy.inputs import speaker_in_name
from mkc_fast.engine.voiceprivacy.sets import LEAST_BYTES
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mkc_fast.engine.voiceprivacy.findings import Report, Status

# What all directories of one experiment share.
_SHARED = ("mode", "stride", "level", "format", "pad", "max_window_s")
# What their computation shares; the others only change the last bits.
_SHARED_OF_RAN = ("precision",)


def check_output(report: Report, original: Path, made: Path, *, role: str | None) -> SetState:
    """Check an anonymized directory as the toolkits do: the check of a submission of 2026, and the ASV training.

    Args:
        report: Gets what is found.
        original: The data directory that was anonymized.
        made: The anonymized one. Paths in its ``wav.scp`` are absolute, or relative to the checkout, two folders above.
        role: Of the set.

    Returns:
        What is known of the set.
    """
    name, before = made.name, len(report.problems)
    try:
        wanted, found = _pairs(original / "wav.scp"), _pairs(made / "wav.scp")
        files = {path.name for path in original.iterdir() if path.is_file() and not path.name.startswith(".")}
        missing = sorted(each for each in files if not (made / each).is_file())
    except OSError as error:
        report.add(PROBLEM, name, f"{error.filename}: cannot be read ({error.strerror})")
        return SetState(original.name, role, 0, 0.0, anonymized=False)
    except UnicodeDecodeError:
        report.add(PROBLEM, name, "its wav.scp, or that of the original, is no text in UTF-8")
        return SetState(original.name, role, 0, 0.0, anonymized=False)
    if missing:
        report.add(PROBLEM, name, f"lacks {', '.join(missing)}, which {original} has")
    if len(wanted) != len(found):
        report.add(PROBLEM, name, f"its wav.scp has {len(found):,} lines, that of {original} {len(wanted):,}")
    lost = sorted({each for each, _ in wanted} - {each for each, _ in found})
    strange = sorted({each for each, _ in found} - {each for each, _ in wanted})
    for ids, what in ((lost, "lacks"), (strange, "has, and the original lacks,")):
        if ids:
            report.add(PROBLEM, name, f"its wav.scp {what} {_some(ids)}")
    checkout = made.absolute().parent.parent
    paths = [(each, checkout / path) for each, path in found]
    lengths = lengths_s([Utterance(each, path) for each, path in paths])
    gone = [str(path) for (_, path), length in zip(paths, lengths, strict=True) if not length and not path.is_file()]
    broken = [str(path) for (_, path), length in zip(paths, lengths, strict=True) if not length and path.is_file()]
    renamed = [f"{path.name} ({each})" for each, path in paths if path.stem != each]
    for some, what in (
        (gone, "recordings of its wav.scp that are not there"),
        (broken, "recordings that cannot be read"),
        (renamed, "recordings that are not named by their ids"),
    ):
        if some:
            report.add(PROBLEM, name, f"{what}: {_some(some)}")
    _check_speakers(report, made, found, training=role == "attacker" and original.name.startswith("train"))
    good = len(report.problems) == before
    if good:
        report.add(OK, name, f"{len(found):,} recordings, {sum(lengths) / 3600:.2f} h, every file, id and path there")
    return SetState(original.name, role, len(found), sum(lengths), anonymized=good)


def _pairs(scp: Path) -> list[tuple[str, str]]:
    """The first two words of each line, as the toolkits read them."""
    lines = [line.split() for line in scp.read_text(encoding="utf-8").splitlines()]
    return [(line[0], line[1] if len(line) > 1 else "") for line in lines if line]


def _check_speakers(report: Report, made: Path, found: Sequence[tuple[str, str]], *, training: bool) -> None:
    if not (made / "utt2spk").is_file():
        return
    try:
        speakers = read_utt2spk(made / "utt2spk")
    except MkcError as error:
        report.add(PROBLEM, made.name, str(error))
        return
    names = {each: Path(path).stem for each, path in found}
    other = [name for each, name in names.items() if speakers.get(each, "") != speaker_in_name(name)]
    if training and other:
        report.add(PROBLEM, made.name, f"recordings whose names do not begin with their speaker: {_some(other)}")


def check_sizes(report: Report, made: Mapping[str, Path]) -> None:
    """Note directories that the script which uploads a submission of 2026's track 1 takes for incomplete.

    Args:
        report: Gets what is found.
        made: The anonymized directory of each set, by the set's name; nothing is noted if they are not of that track.
    """
    if "libri_dev_trials_mixed" not in made:
        return
    for name, directory in made.items():
        least = LEAST_BYTES.get(name, 0)
        size = sum(path.lstat().st_size for path in (directory, *directory.rglob("*"))) if least else 0
        if size < least:
            text = f"{size:,} bytes; the upload script of 2026's track 1 wants {least:,}: anonymize it with --pad"
            report.add(NOTE, directory.name, text)


def check_made_with(report: Report, known: Mapping[str, Mapping[str, Any]], given: Mapping[str, Path]) -> None:
    """Check that anonymized directories were made with a model and banks.

    Args:
        report: Gets what is found.
        known: The provenance of each set, by name, as ``check_experiment`` returns it.
        given: The ``model``, and the banks of ``user`` and ``attacker``, as far as they are given; they can be read.
    """
    ids = {what: identity(path / (MODEL_FILE if what == "model" else BANK_FILE)) for what, path in given.items()}
    for name, content in known.items():
        for what, key in (("model", "model"), (str(content["role"]), "bank")):
            made_id, shown = _artifact(content, key)
            if key in content and what in ids and made_id != ids[what]:
                report.add(PROBLEM, name, f"was made with the {key} {shown}, not with {given[what]} ({ids[what]})")


def check_experiment(
    report: Report, made: Mapping[str, tuple[Path, str | None]], *, allow_mixed: bool
) -> dict[str, dict[str, Any]]:
    """Check that anonymized directories belong together: one model and mode, and one bank of each role.

    Args:
        report: Gets what is found.
        made: The record directory and the role of each set, by name.
        allow_mixed: Only note the differences.

    Returns:
        The provenance of each set of which it is known, by name.
    """
    known: dict[str, dict[str, Any]] = {}
    silent: list[str] = []
    for name, (record_dir, role) in made.items():
        try:
            content = read_provenance(record_dir)
        except MkcError as error:
            report.add(PROBLEM, name, str(error))
            continue
        if content is None:
            report.add(NOTE, name, f"{record_dir / PROVENANCE_FILE}: not there, so that nothing tells what made it")
            continue
        known[name] = {**content, "role": content.get("role") or role}
        if content.get("silence"):
            silent.append(f"{name} ({content['silence']})")
    if silent:
        report.add(NOTE, "silence", f"written in place of recordings that failed: {', '.join(silent)}")
    severity: Status = NOTE if allow_mixed else PROBLEM
    before = len(report.findings)
    _compare(report, severity, "model", {name: _artifact(each, "model") for name, each in known.items()})
    for role in ("attacker", "user"):
        of_role = {name: each for name, each in known.items() if each["role"] == role}
        banks = {name: _artifact(each, "bank") for name, each in of_role.items()}
        _compare(report, severity, f"bank of the {role}", banks)
        if len({key for key, _ in banks.values()}) == 1:
            counts = {name: _shown(each.get("kmeans_num")) for name, each in of_role.items()}
            _compare(report, severity, f"kmeans_num of the {role}", counts)
    for key in _SHARED:
        _compare(report, severity, key, {name: _shown(each.get(key)) for name, each in known.items()})
    for key in sorted({key for each in known.values() for ran in _ran(each) for key in ran}):
        values = {
            name: " and ".join(dict.fromkeys(str(ran.get(key)) for ran in _ran(each))) for name, each in known.items()
        }
        _compare(report, severity if key in _SHARED_OF_RAN else NOTE, key, {n: _shown(v) for n, v in values.items()})
    if known and len(report.findings) == before:
        sets = f"{len(known)} set{'s' * (len(known) != 1)}"
        report.add(OK, "experiment", f"{sets} of one model, one mode, and one bank of each role")
    return known


def _ran(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    ran = content.get("ran")
    return [each for each in ran if isinstance(each, dict)] if isinstance(ran, list) else []


def _artifact(content: Mapping[str, Any], what: str) -> tuple[str, str]:
    """What tells an artifact from others, and how a message shows it."""
    said = content.get(what)
    if not isinstance(said, dict):
        return _shown(said)
    return str(said.get("id")), f"{said.get('name')} ({said.get('id')})"


def _shown(value: object) -> tuple[str, str]:
    return str(value), str(value)


def _compare(report: Report, status: Status, what: str, values: Mapping[str, tuple[str, str]]) -> None:
    """Add a finding if the sets have more than one value; a value is what tells it from others, and its text."""
    by_value: dict[str, list[str]] = defaultdict(list)
    for name, (key, _) in values.items():
        by_value[key].append(name)
    if len(by_value) > 1:
        texts = dict(values.values())
        parts = [f"{texts[key]} made {', '.join(names)}" for key, names in by_value.items()]
        report.add(status, what, f"is not the same for all sets: {'; '.join(parts)}")


def _some(items: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(items[:most])
    return shown + (f" and {len(items) - most:,} more" if len(items) > most else "")
