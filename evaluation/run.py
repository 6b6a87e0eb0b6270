"""One evaluation: read, listen, measure, write."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.devices import cores
from mkc_fast.errors import ArgumentError, ListError, MkcError
from mkc_fast.evaluation.choosing import Given, asked_for, choose_models
from mkc_fast.evaluation.inputs import Speech, read_speech, unread_lists
from mkc_fast.evaluation.intelligibility import measure_intelligibility
from mkc_fast.evaluation.intervals import Bootstrap
from mkc_fast.evaluation.listening import Heard, Outcome, Task, listen_to_all
from mkc_fast.evaluation.measures import DURATION, INTELLIGIBILITY, PITCH, PRIVACY, QUALITY, Measure, wanted
from mkc_fast.evaluation.privacy import (
    IGNORANT,
    LAZY_INFORMED,
    ORIGINAL,
    Enrolment,
    Plan,
    enrolls_of,
    measure_privacy,
    plan_privacy,
)
from mkc_fast.evaluation.record import make_folder, make_record, without_folders, write_record
from mkc_fast.evaluation.sound import measure_duration, measure_pitch, measure_quality
from mkc_fast.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_logger = logging.getLogger("mkc_fast")
_ORIGINAL, _ANONYMIZED, _ENROLMENT, _ENROLMENT_ANONYMIZED = "original", "anonymized", "enrolment", "other draw"
_VERIFIER = "verifier"
_MOST_JOBS = 8  # a gigabyte each, with all measures
_FEW = 32  # recordings that one process hears about as soon as more are started
# The measures that listen to original and anonymized recordings alike, with the models that they need.
_MODELS = {PRIVACY: _VERIFIER, INTELLIGIBILITY: "recognizer", QUALITY: "quality", PITCH: "pitch"}


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        record: As ``evaluation.json`` has it.
        failed: Why a recording could not be read or heard, by utterance id.
        not_measured: Why a measure was not made, with whole paths, of which the record has the last part; of one that
            was asked for, a failure after the recordings were heard.
        files: That were written.
    """

    record: dict[str, Any]
    failed: dict[str, str]
    not_measured: dict[str, str]
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Lists:
    """The lists that are named, in place of those beside the recordings."""

    utt2spk: Path | None
    text: Path | None
    trials: Path | None
    enrolls: Path | None


@dataclass(frozen=True)
class _Sides:
    """All speech of an evaluation."""

    original: Speech
    anonymized: Speech
    enrolment: Enrolment
    enrolment_anonymized: Enrolment
    speakers: Mapping[str, str]

    @property
    def matched(self) -> list[str]:
        """The utterances that are there as original and as anonymized speech, in the order of the original."""
        return [name for name in self.original.utterances if name in self.anonymized.utterances]


def evaluate(
    original: str | os.PathLike[str],
    anonymized: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    enrolment: str | os.PathLike[str] | None = None,
    enrolment_anonymized: str | os.PathLike[str] | None = None,
    utt2spk: str | os.PathLike[str] | None = None,
    text: str | os.PathLike[str] | None = None,
    trials: str | os.PathLike[str] | None = None,
    enrolls: str | os.PathLike[str] | None = None,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    given: Given | None = None,
    jobs: int | None = 1,
    seed: int = 0,
    resamples: int = 1000,
    allow_commands: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate anonymized speech beside the original: privacy, intelligibility, quality, pitch and duration.

    No attacker is trained, so the privacy that this shows is more than there is. Nothing is downloaded.

    Args:
        original: The original speech: a Kaldi data directory, a folder of recordings, or a list. Its lists
            ``utt2spk``, ``text``, ``trials`` and ``enrolls`` are read if they are there, a measure needs them, and
            none is named in their place.
        anonymized: The anonymized speech; utterances are matched by id, which in a folder is the path without ending.
        out: A folder for ``evaluation.json`` and ``evaluation.html``; without it nothing is written.
        enrolment: Original recordings that speakers are enrolled with, where they are not among ``original``, as in
            the sets of the VoicePrivacy Challenge.
        enrolment_anonymized: The attacker's anonymized recordings for enrolment, made with another draw. Without
            them, speakers are enrolled with their other utterances in ``anonymized``.
        utt2spk: The list of speakers.
        text: The list of transcripts.
        trials: The list of trials.
        enrolls: The list of the utterances that speakers are enrolled with.
        only: Make these measures alone: ``privacy``, ``intelligibility``, ``quality``, ``pitch``, ``duration``.
        skip: Leave these out.
        given: Models in place of those of installed packages.
        jobs: Processes that listen, each with one thread; 1 is this process alone, and so it is where a model is a
            function. More are started anew, so a script that asks for them keeps its work under
            ``if __name__ == "__main__":``. None: one for each core, up to eight, but one for few recordings.
        seed: Of the bootstrap, and of the choice of nontarget trials where there are more than 100 speakers.
        resamples: Of the bootstrap; 0 makes no intervals.
        allow_commands: Run the commands of a ``wav.scp``.
        progress: Called with (recordings heard, all).

    Returns:
        The measures; a recording that cannot be read is in ``failed``, and the others are measured. So is a measure
        that fails after the recordings were heard in ``not_measured``.

    Raises:
        ArgumentError: A measure is unknown, or a number is not possible.
        ListError: A list is missing or unreadable, no utterance is in both, or a measure that was asked for is not
            possible with them, as far as that is known before the recordings are heard.
        MkcError: A package or model of a measure that was asked for is missing.
        OutputError: ``out`` cannot be written.
    """
    if resamples < 0 or seed < 0 or (jobs is not None and jobs < 1):
        raise ArgumentError(f"resamples is {resamples}, seed {seed}, jobs {jobs}; expected none below 0, and a job")
    given = given or Given()
    measures = wanted(only, skip)
    models, without = choose_models(measures, only, given)
    asked = asked_for(only, given)
    facts = {name: model.facts() for name, model in vars(models).items() if model is not None}
    bootstrap = Bootstrap(resamples, seed)
    sides = _read(
        Path(original),
        Path(anonymized),
        _path(enrolment),
        _path(enrolment_anonymized),
        _Lists(_path(utt2spk), _path(text), _path(trials), _path(enrolls)),
        [measure for measure in measures if measure not in without],
        allow_commands=allow_commands,
    )
    plan = None
    if PRIVACY in measures and PRIVACY not in without:
        try:
            plan = plan_privacy(
                *(sides.original, sides.enrolment, sides.enrolment_anonymized, sides.matched, sides.speakers, seed)
            )
        except ListError as error:
            if PRIVACY in asked:
                raise
            without[PRIVACY] = str(error)
            models = replace(models, verifier=None)
    if out is not None:
        make_folder(Path(out))  # before the work, so that a folder that cannot be written is known then
    made = [measure for measure in measures if measure not in without]
    tasks = _tasks(sides, made)
    jobs = _jobs(jobs, given, len(tasks))
    heard, failed = _sorted(tasks, listen_to_all(tasks, models, jobs, progress or (lambda _, __: None)))
    results = _results(sides, heard, made, plan, bootstrap, without)
    for measure, model in _MODELS.items():
        if measure in results:
            results[measure]["model"] = facts[model].as_record()
    paths = (
        original,
        anonymized,
        enrolment,
        enrolment_anonymized,
        utt2spk,
        text,
        trials,
        enrolls,
        given.asv,
        given.asr,
    )
    reasons = {measure: without_folders(reason, paths) for measure, reason in without.items()}
    record = make_record(_counts(sides, heard, failed), results, reasons, failed, bootstrap)
    files = write_record(Path(out), record) if out is not None else []
    return Evaluation(record, failed, {str(measure): reason for measure, reason in without.items()}, files)


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _read(
    original: Path,
    anonymized: Path,
    enrolment: Path | None,
    enrolment_anonymized: Path | None,
    named: _Lists,
    measures: Sequence[Measure],
    *,
    allow_commands: bool,
) -> _Sides:
    """Read all speech, and warn of utterances that only one side has, or that a list lacks.

    Raises:
        ListError: No utterance is in both, or a list that is named fits none.
    """

    def read(path: Path, **lists: Path | None) -> Speech:
        return read_speech(path, **lists, measures=measures, allow_commands=allow_commands)

    enrolls = {"enrolls": named.enrolls}
    first = read(
        original, utt2spk=named.utt2spk, text=named.text, trials=named.trials, **({} if enrolment else enrolls)
    )
    second = read(anonymized)
    enrolled = Enrolment(first, apart=False)
    if enrolment is not None:
        enrolled = Enrolment(read(enrolment, **enrolls), apart=True)
    other = Enrolment(second, apart=False)
    if enrolment_anonymized is not None:
        other = Enrolment(read(enrolment_anonymized), apart=True)
    speakers: dict[str, str] = {}
    for speech in (other.speech, enrolled.speech, second, first):
        speakers.update(speech.speakers)
    sides = _Sides(first, second, enrolled, other, speakers)
    matched = sides.matched
    if not matched:
        raise ListError(
            f"{first.path} and {second.path}: have no utterance in common; one has '{_example(first)}', the other "
            f"'{_example(second)}'"
        )
    for one, there, size in ((first, second, "anonymized"), (second, first, "original")):
        alone = [name for name in one.utterances if name not in there.utterances]
        if alone:
            _logger.warning(
                "%d of %d utterances of %s have no %s recording, such as '%s'",
                *(len(alone), len(one.utterances), printable(str(one.path), 300), size, printable(alone[0])),
            )
    if INTELLIGIBILITY in measures:
        _check_text(sides, named.text)
    if PRIVACY in measures:
        _check_privacy_lists(sides, named)
    return sides


def _check_text(sides: _Sides, named: Path | None) -> None:
    """Warn of utterances without a transcript.

    Raises:
        ListError: The list is named, and has none of them.
    """
    text = sides.original.transcripts or sides.anonymized.transcripts
    without = [name for name in sides.matched if name not in text]
    if named is not None and len(without) == len(sides.matched):
        raise ListError(
            f"{named}: has no transcript of an utterance that is evaluated; it has one of "
            f"'{printable(next(iter(text)))}', and evaluated is '{printable(without[0])}'"
        )
    if text and without:
        _warn_of_list("text", without, sides, "their errors are only counted against what is heard in the original")


def _check_privacy_lists(sides: _Sides, named: _Lists) -> None:
    """Warn of utterances without a speaker, and of lists whose names are not those that are read.

    Raises:
        ListError: The list of enrolment utterances is named, and has none of them.
    """
    without = [name for name in sides.matched if name not in sides.speakers]
    if sides.speakers and without:
        _warn_of_list("utt2spk", without, sides, "nothing says who speaks")
    enrolment = sides.enrolment.speech
    if named.enrolls is not None and not (enrolment.enrolls or frozenset()).intersection(enrolment.utterances):
        raise ListError(f"{named.enrolls}: none of its utterances has a recording in {enrolment.path}")
    for name, speech, found, instead in (
        ("trials", sides.original, sides.original.trials, "every utterance is compared with every speaker"),
        ("enrolls", enrolment, enrolls_of(sides.original, sides.enrolment), "every utterance enrols its speaker"),
    ):
        unread = unread_lists(speech.path, name) if found is None else []
        if unread:
            _logger.warning(
                "%s: without a list %s, %s; not read: %s (--%s names one)",
                *(printable(str(speech.path), 300), name, instead, printable(", ".join(unread), 300), name),
            )


def _warn_of_list(name: str, without: Sequence[str], sides: _Sides, meaning: str) -> None:
    _logger.warning(
        "%d of %d utterances are not in %s, such as '%s': %s",
        *(len(without), len(sides.matched), name, printable(without[0]), meaning),
    )


def _example(speech: Speech) -> str:
    return printable(next(iter(speech.utterances)))


def _jobs(jobs: int | None, given: Given, recordings: int) -> int:
    """How many processes listen: functions of the caller may not be there in others, and a start takes seconds."""
    if given.verifier or given.recognizer or given.quality or given.pitch:
        return 1
    return min(jobs or min(cores(), _MOST_JOBS, 1 + recordings // _FEW), max(1, recordings))


def _tasks(sides: _Sides, measures: Sequence[Measure]) -> list[Task]:
    """What is listened to: both sides of each utterance, and the recordings that are for enrolment alone."""
    kinds = tuple(_MODELS[measure] for measure in measures if measure in _MODELS)
    tasks = [
        Task((side, name), speech.utterances[name], kinds)
        for name in sides.matched
        for side, speech in ((_ORIGINAL, sides.original), (_ANONYMIZED, sides.anonymized))
    ]
    for side, enrolment in ((_ENROLMENT, sides.enrolment), (_ENROLMENT_ANONYMIZED, sides.enrolment_anonymized)):
        if enrolment.apart and PRIVACY in measures:
            tasks += [
                Task((side, name), utterance, (_VERIFIER,)) for name, utterance in enrolment.speech.utterances.items()
            ]
    return tasks


def _sorted(
    tasks: Sequence[Task], outcomes: Mapping[tuple[str, str], Outcome]
) -> tuple[dict[str, dict[str, Heard]], dict[str, str]]:
    """What was heard of each side, by utterance, and why recordings failed."""
    heard: dict[str, dict[str, Heard]] = {
        side: {} for side in (_ORIGINAL, _ANONYMIZED, _ENROLMENT, _ENROLMENT_ANONYMIZED)
    }
    failed: dict[str, str] = {}
    for task in tasks:
        side, name = task.key
        outcome = outcomes[task.key]
        if isinstance(outcome, Heard):
            heard[side][name] = outcome
            for reason in outcome.refused.values():
                failed.setdefault(name, reason)
        else:
            failed.setdefault(name, outcome)
    return heard, failed


def _results(
    sides: _Sides,
    heard: Mapping[str, Mapping[str, Heard]],
    measures: Sequence[Measure],
    plan: Plan | None,
    bootstrap: Bootstrap,
    without: dict[Measure, str],
) -> dict[Measure, dict[str, Any]]:
    """Each measure's part of the record; why a measure fails goes into ``without``, and the others are made."""
    both = [name for name in heard[_ORIGINAL] if name in heard[_ANONYMIZED]]
    if not both:
        raise MkcError("no utterance could be read as original and as anonymized speech")
    results: dict[Measure, dict[str, Any]] = {}
    for measure in measures:
        try:
            results[measure] = _result(measure, sides, heard, both, plan, bootstrap)
        except MkcError as error:
            without[measure] = str(error)
        except Exception as error:  # whatever it is: hours of listening are not lost for one measure
            without[measure] = one_line(f"failed: {type(error).__name__}: {error}")
            _logger.warning("%s %s", measure, without[measure], exc_info=True)
    return results


def _result(
    measure: Measure,
    sides: _Sides,
    heard: Mapping[str, Mapping[str, Heard]],
    both: Sequence[str],
    plan: Plan | None,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    if measure == PRIVACY:
        assert plan is not None
        return _privacy(sides, heard, both, plan, bootstrap)
    if measure == INTELLIGIBILITY:
        text = sides.original.transcripts or sides.anonymized.transcripts
        words = [
            {name: found for name in both if (found := heard[side][name].words) is not None}
            for side in (_ORIGINAL, _ANONYMIZED)
        ]
        return measure_intelligibility(words[0], words[1], text, bootstrap)
    pairs = [(heard[_ORIGINAL][name], heard[_ANONYMIZED][name]) for name in both]
    if measure == QUALITY:
        return measure_quality(pairs, bootstrap)
    if measure == PITCH:
        return measure_pitch(pairs, bootstrap)
    assert measure == DURATION
    return measure_duration(pairs, bootstrap)


def _privacy(
    sides: _Sides,
    heard: Mapping[str, Mapping[str, Heard]],
    both: Sequence[str],
    plan: Plan,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    def embeddings(side: str, names: Collection[str]) -> dict[str, Any]:
        return {name: found for name in names if (found := heard[side][name].embedding) is not None}

    first, second = embeddings(_ORIGINAL, both), embeddings(_ANONYMIZED, both)
    first = {name: embedding for name, embedding in first.items() if name in second}
    second = {name: embedding for name, embedding in second.items() if name in first}
    enrolled = embeddings(_ENROLMENT, heard[_ENROLMENT]) if sides.enrolment.apart else first
    other = (
        embeddings(_ENROLMENT_ANONYMIZED, heard[_ENROLMENT_ANONYMIZED]) if sides.enrolment_anonymized.apart else second
    )
    for what, found, listened in (
        ("utterances has an embedding of both its recordings", first, (_ORIGINAL, _ANONYMIZED)),
        ("recordings for enrolment has an embedding", enrolled, (_ENROLMENT,)),
    ):
        if not found:
            heards = [one for side in listened for one in heard[side].values()]
            reasons = [one.refused[_VERIFIER] for one in heards if _VERIFIER in one.refused]
            example = f", such as {reasons[0]}" if reasons else ""
            raise ListError(f"none of the {len(heards) // len(listened)} {what}{example}")
    made = measure_privacy(
        plan, {ORIGINAL: (enrolled, first), IGNORANT: (enrolled, second), LAZY_INFORMED: (other, second)}, bootstrap
    )
    anonymized = "other utterances of the speaker, of the draw that is evaluated"
    if sides.enrolment_anonymized.apart:
        anonymized = "recordings of their own, another draw"
    return {
        **made,
        "enrolment": "recordings of their own" if sides.enrolment.apart else "other utterances of the speaker",
        "enrolment_anonymized": (
            anonymized if made["verifications"][LAZY_INFORMED]["not_measured"] is None else "none"
        ),
    }


def _counts(sides: _Sides, heard: Mapping[str, Mapping[str, Heard]], failed: Mapping[str, str]) -> dict[str, Any]:
    matched = sides.matched
    return {
        "original": sides.original.path.resolve().name,
        "anonymized": sides.anonymized.path.resolve().name,
        "utterances": len(matched),
        "heard": sum(name in heard[_ANONYMIZED] for name in heard[_ORIGINAL]),
        "failed": len(failed),
        "without_anonymized": len(sides.original.utterances) - len(matched),
        "without_original": len(sides.anonymized.utterances) - len(matched),
        "speakers": len({sides.speakers[name] for name in matched if name in sides.speakers}),
    }
