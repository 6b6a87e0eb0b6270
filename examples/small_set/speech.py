"""Makes the speech of the small set: ``python examples/small_set/speech.py TEXT... --out DIR [--hours 3]``.

TEXT are files of public-domain English prose. The speakers of ``voices.py`` are espeak-ng 1.51, flite 2.2 and festival
2.5 (Debian's packages espeak-ng, flite, festival and festvox-kdlpc16k), which also say when each phone ends. DIR gets
five Kaldi data directories: train, valid (sentences that train lacks, of its speakers), test (sentences and speakers
that train lacks, with lists of enrolment and trials), test2 and final (other sentences of the speakers of test). Choose
among trainings with test and test2, then measure once with final. Each has ``phones.ctm``, with the phones of CMU's
dictionary. The same call makes the same speech, and skips speakers that are there.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import soxr
from sizes import RATE
from voices import ESPEAK, FESTIVAL, FLITE, HELD_OUT, TRAINING, Voice

PEAK = 0.5
PHONES = (  # noqa: SIM905
    "sil aa ae ah ao aw ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
).split()
_VALID_SENTENCES, _TEST_SENTENCES = 2, 14
_ENROLMENT = 6  # of the test sentences of each speaker

# The phones of espeak-ng's American English, in CMU's: a vowel with r is two phones. Names of pauses begin with _.
_ESPEAK_PHONES = {
    ";": "", "||": "sil", "?": "sil",
    "0": "aa", "A:": "aa", "A@": "aa r", "a": "ae", "aa": "ae", "a#": "ah", "V": "ah", "@": "ah", "@2": "ah",
    "@5": "ah", "@L": "ah l", "V#": "ah", "I2": "ih", "I": "ih", "I#": "ih", "i": "iy", "i:": "iy", "E": "eh",
    "E2": "eh", "e": "eh",
    "3": "er", "3:": "er", "@-": "ah", "@r": "er", "O": "ao", "O:": "ao", "O@": "ao r", "o@": "ao r", "O2": "ao",
    "U": "uh", "U@": "uh r", "u": "uw", "u:": "uw", "e@": "eh r", "i@": "iy r", "i@3": "iy r", "I@": "ih r",
    "aI": "ay", "aI@": "ay er", "aI3": "ay er", "aU": "aw", "aU@": "aw er", "eI": "ey", "oU": "ow", "oU#": "ow",
    "OI": "oy", "b": "b", "d": "d", "f": "f", "g": "g", "h": "hh", "j": "y", "k": "k", "l": "l", "m": "m", "n": "n",
    "p": "p", "r": "r", "r-": "r", "s": "s", "t": "t", "t#": "t", "t2": "t", "v": "v", "w": "w", "z": "z", "D": "dh",
    "N": "ng", "n-": "ah n", "l-": "ah l", "m-": "ah m", "S": "sh", "T": "th", "Z": "zh", "dZ": "jh", "tS": "ch",
    "A~": "aa n", "O~": "ao n", "z#": "z", "x": "k", "w#": "w", "D#": "dh", "*": "d",
}  # fmt: skip
# Those of flite and festival that are not CMU's.
_RADIO_PHONES = {"pau": "sil", "h#": "sil", "brth": "sil", "ssil": "sil", "ax": "ah", "axr": "er", "el": "l", "em": "m",
                 "en": "n", "nx": "n", "hv": "hh", "dx": "t", "ix": "ih", "ux": "uw"}  # fmt: skip

Segments = list[tuple[float, float, str]]


def sentences(paths: list[Path]) -> list[str]:
    """Sentences of 5 to 15 plain words, each once, in the order of a hash."""
    found = set()
    for path in paths:
        text = re.sub(r"\s+", " ", path.read_text("utf-8", "replace")).replace("\u2019", "'")
        for sentence in re.split(r"(?<=[.!?;:])\s+|--+|—|[()\"\u201c\u201d]", text):
            words = sentence.strip(" .!?;:,-'")
            if re.fullmatch(r"[A-Za-z][a-z']*(,? [A-Za-z][a-z']*){4,14}", words) and len(words) < 90:
                found.add(words[0].upper() + words[1:])
    return sorted(found, key=lambda each: hashlib.sha256(each.encode()).digest())


def speak(voice: Voice, sentence: str) -> tuple[np.ndarray, Segments]:
    """A sentence: float32 samples at 16 kHz, and phones with begin and end in seconds."""
    samples, rate, segments = _SPEAKERS[voice.synthesizer](voice, sentence)
    # Resampling from a rate that is called higher than it is moves everything up, and shortens it.
    told = rate * voice.formants
    samples = soxr.resample(samples, told, RATE)
    segments = [(begin / voice.formants, end / voice.formants, phone) for begin, end, phone in segments]
    return (PEAK / max(1e-3, float(np.abs(samples).max())) * samples).astype(np.float32), segments


def _flite(voice: Voice, sentence: str) -> tuple[np.ndarray, float, Segments]:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = [
            "flite", "-voice", voice.base, "-psdur", "--setf", f"duration_stretch={voice.stretch * voice.formants}",
            "--setf", f"f0_shift={voice.pitch / voice.formants}", "-t", sentence, file.name,
        ]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
        samples, rate = soundfile.read(file.name, dtype="float32")
    begin, segments = 0.0, []
    for phone, end in (each.split(":") for each in told.split()):
        segments.append((begin, float(end), _RADIO_PHONES.get(phone, phone)))
        begin = float(end)
    return samples, rate, segments


def _festival(voice: Voice, sentence: str) -> tuple[np.ndarray, float, Segments]:
    mean = 110 * voice.pitch / voice.formants
    with tempfile.TemporaryDirectory() as folder:
        wav, lab = Path(folder) / "a.wav", Path(folder) / "a.lab"
        text = sentence.replace('"', "")
        script = f"""
            (voice_{voice.base})
            (Parameter.set 'Duration_Stretch {voice.stretch * voice.formants})
            (set! int_lr_params '((target_f0_mean {mean}) (target_f0_std {mean * 0.13:.1f})
                                  (model_f0_mean 170) (model_f0_std 34)))
            (set! utt1 (SynthText "{text}"))
            (utt.save.wave utt1 "{wav}" 'riff)
            (utt.save.segs utt1 "{lab}")"""
        subprocess.run(["festival", "--pipe"], input=script, text=True, capture_output=True, check=True)  # noqa: S607
        samples, rate = soundfile.read(wav, dtype="float32")
        begin, segments = 0.0, []
        for line in lab.read_text().splitlines():
            fields = line.split()
            if len(fields) == 3 and fields[0] != "nfields":
                segments.append((begin, float(fields[0]), _RADIO_PHONES.get(fields[2], fields[2])))
                begin = float(fields[0])
    return samples, rate, segments


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("text", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """``espeak_EVENT`` of espeak-ng/speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_PHONEME, _SYNCHRONOUS, _PHONEME_EVENTS, _RATE, _PITCH, _UTF8 = 7, 2, 1, 1, 3, 1


class _Espeak:
    """The library, which is the only way to the times of phones."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
        self.samples: list[np.ndarray] = []
        self.phones: list[tuple[int, str]] = []
        self.callback = _CALLBACK(self._take)
        self.library.espeak_SetSynthCallback(self.callback)

    def _take(self, samples, count, events) -> int:  # type: ignore[no-untyped-def]
        if samples and count:
            self.samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type:
            if events[index].type == _PHONEME:
                self.phones.append((events[index].sample, events[index].id.text.decode("utf-8", "replace")))
            index += 1
        return 0

    def speak(self, voice: Voice, sentence: str) -> tuple[np.ndarray, float, Segments]:
        self.samples.clear()
        self.phones.clear()
        if self.library.espeak_SetVoiceByName(f"en-us+{voice.base}".encode()):
            sys.exit(f"espeak-ng has no voice en-us+{voice.base}")
        self.library.espeak_SetParameter(_RATE, int(voice.stretch), 0)
        self.library.espeak_SetParameter(_PITCH, int(voice.pitch), 0)
        text = sentence.encode()
        self.library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.samples).astype(np.float32) / 32768
        segments: Segments = []
        begins = [sample / self.rate for sample, _ in self.phones] + [len(samples) / self.rate]
        if begins[0] > 0:
            segments.append((0.0, begins[0], "sil"))
        for (_, name), begin, end in zip(self.phones, begins, begins[1:], strict=False):
            parts = ["sil"] if name.startswith("_") else _ESPEAK_PHONES[name].split()
            step = (end - begin) / max(1, len(parts))
            segments += [(begin + step * k, begin + step * (k + 1), part) for k, part in enumerate(parts) if step > 0]
        return samples, self.rate, segments


_ESPEAK: list[_Espeak] = []


def _espeak(voice: Voice, sentence: str) -> tuple[np.ndarray, float, Segments]:
    if not _ESPEAK:
        _ESPEAK.append(_Espeak())
    return _ESPEAK[0].speak(voice, sentence)


_SPEAKERS = {FLITE: _flite, FESTIVAL: _festival, ESPEAK: _espeak}


def make_speaker(job: tuple[Path, Voice, list[str], float]) -> str:
    """Speak sentences until so many seconds are there; recordings and a list of them in JSON."""
    folder, voice, lines, seconds = job
    index = folder / "speakers" / f"{voice.name}.json"
    if index.exists():
        return voice.name
    (folder / "wav" / voice.name).mkdir(parents=True, exist_ok=True)
    index.parent.mkdir(parents=True, exist_ok=True)
    made, spoken = [], 0.0
    for number, sentence in enumerate(lines):
        if spoken >= seconds:
            break
        try:
            samples, segments = speak(voice, sentence)
        except KeyError as error:
            print(f"{voice.name}: left out, a phone {error} in: {sentence}", flush=True)
            continue
        if not 1.0 < len(samples) / RATE < 12.0:
            continue
        unknown = {phone for _, _, phone in segments} - set(PHONES)
        if unknown:
            sys.exit(f"{voice.name}: unknown phones {sorted(unknown)} in: {sentence}")
        name = f"{voice.name}-{number:04d}"
        soundfile.write(folder / "wav" / voice.name / f"{name}.flac", samples, RATE, subtype="PCM_16")
        made.append({"name": name, "text": sentence, "segments": segments, "seconds": len(samples) / RATE})
        spoken += len(samples) / RATE
    index.write_text(json.dumps(made))
    return voice.name


def write_lists(folder: Path, voices: list[Voice]) -> float:
    """The data directory's lists, of all speakers together; how many seconds they speak."""
    recordings, speakers, texts, phones, seconds = [], [], [], [], 0.0
    for voice in sorted(voices, key=lambda each: each.name):
        for each in json.loads((folder / "speakers" / f"{voice.name}.json").read_text()):
            name = each["name"]
            recordings.append(f"{name} wav/{voice.name}/{name}.flac\n")
            speakers.append(f"{name} {voice.name}\n")
            texts.append(f"{name} {re.sub(r'[^A-Z ]', '', each['text'].upper().replace(chr(39), ''))}\n")
            phones += [f"{name} 1 {b:.3f} {e - b:.3f} {phone}\n" for b, e, phone in each["segments"]]
            seconds += each["seconds"]
    for name, lines in (("wav.scp", recordings), ("utt2spk", speakers), ("text", texts), ("phones.ctm", phones)):
        (folder / name).write_text("".join(lines))
    return seconds


def write_trials(folder: Path) -> None:
    """Enrolment (some recordings of each speaker) and trials (the others against all speakers)."""
    by_speaker: dict[str, list[str]] = {}
    for line in (folder / "utt2spk").read_text().splitlines():
        name, speaker = line.split()
        by_speaker.setdefault(speaker, []).append(name)
    enrolled = [name for names in by_speaker.values() for name in names[:_ENROLMENT]]
    trials = [
        f"{speaker} {name} {'target' if speaker == other else 'nontarget'}\n"
        for speaker in by_speaker
        for other, names in by_speaker.items()
        for name in names[_ENROLMENT:]
    ]
    (folder / "enrolls").write_text("".join(f"{name}\n" for name in enrolled))
    (folder / "trials").write_text("".join(trials))


def main() -> None:
    """Make everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    lines = sentences(args.text)
    natural = [each for each in TRAINING if each.synthesizer != ESPEAK]
    # Voices made from recordings get twice the time of those made from formulas.
    share = args.hours * 3600 / (len(TRAINING) + len(natural))
    jobs, taken = [], 0
    plan = (
        ("test", HELD_OUT, lambda _: 1e9, _TEST_SENTENCES),
        ("valid", TRAINING, lambda _: 1e9, _VALID_SENTENCES),
        ("train", TRAINING, lambda voice: share * (1 + (voice in natural)), None),
        ("test2", HELD_OUT, lambda _: 1e9, _TEST_SENTENCES),
        ("final", HELD_OUT, lambda _: 1e9, _TEST_SENTENCES),
    )
    for name, voices, seconds, most in plan:
        for voice in voices:
            count = most or int(seconds(voice) / 1.5)
            jobs.append((args.out / name, voice, lines[taken : taken + count], seconds(voice)))
            taken += count
    if taken > len(lines):
        sys.exit(f"{len(lines)} sentences; {taken} are needed")
    with ProcessPoolExecutor(args.jobs) as pool:
        for number, name in enumerate(pool.map(make_speaker, jobs), 1):
            print(f"{number} of {len(jobs)}: {name}", flush=True)
    for name, voices, _, _ in plan:
        print(f"{name}: {write_lists(args.out / name, list(voices)) / 60:.1f} minutes")
    for name in ("test", "test2", "final"):
        write_trials(args.out / name)


if __name__ == "__main__":
    main()
