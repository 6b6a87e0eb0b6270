"""Bad recordings and lists cost a line each: no traceback, no hang, no memory to speak of, and the good ones go on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from mkc_fast import AudioError, ListError
from mkc_fast.cli import main
from mkc_fast.cli.app import app
from mkc_fast.engine.audio.read import duration_s, read_waveform
from mkc_fast.engine.batching import group_by_length
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.path_lists import read_audio_list
from mkc_fast.engine.sessions.cpu import operators_used
from tests.conftest import Artifacts

RATE = 16000
MB = 1 << 20
# What must come of a recording. Damaged ones may be read, if what is written is whole.
WRITTEN, FAILED, EITHER = "written", "failed", "either"
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_24"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "au": ("AU", "ULAW"),
    "caf": ("CAF", "FLOAT"),
}
MAGICS = [b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC\0\0\0\x22", b"OggS\0\x02", b"ID3\x03\0\0", b"\xff\xfb\x90\xc4",
          b"FORM\0\0\x10\0AIFFCOMM", b"riff\x2e\x91\xcf\x11", b"RF64\xff\xff\xff\xffWAVEds64", b".snd\0\0\0\x18",
          b"caff\0\x01\0\0desc", b"NIST_1A\n   1024\n"]  # fmt: skip


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Whatever waits for a pipe that nobody writes to fails here, not by blocking the run."""

    def give_up(*_: object) -> None:
        pytest.fail("this test hangs")  # not a TimeoutError: that is an OSError, which readers catch

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def at_most(size: float) -> Iterator[None]:
    """Fail if Python and NumPy have more memory than so many bytes at any time within the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size


# Recordings


class Recordings:
    """Bad recordings in a folder, and what must come of each."""

    def __init__(self, folder: Path, speech: np.ndarray) -> None:
        self.folder = folder
        self.speech = speech
        self.paths: dict[str, Path] = {}
        self.expected: dict[str, str] = {}

    def add(self, expected: str, name: str, content: bytes | None = None) -> Path:
        """A path of its own for a recording, with this content."""
        stem, _, suffix = name.rpartition(".")
        number = f"{len(self.paths):03d}-{stem or suffix}"
        self.paths[number] = self.folder / f"{number}.{suffix}"
        self.expected[number] = expected
        if content is not None:
            self.paths[number].write_bytes(content)
        return self.paths[number]

    def encoded(self, suffix: str, samples: np.ndarray | None = None, rate: int = RATE, subtype: str = "") -> bytes:
        """Samples, of the speech if not given, in one of the formats."""
        format_, usual = FORMATS[suffix]
        path = self.folder / "encoded"
        soundfile.write(path, self.speech if samples is None else samples, rate, subtype or usual, format=format_)
        content = path.read_bytes()
        path.unlink()
        return content


def wav(
    data: bytes, *, rate: int = RATE, channels: int = 1, bits: int = 16, tag: int = 1, size: int | None = None,
    align: int | None = None,
) -> bytes:  # fmt: skip
    """A WAV file whose header may say anything: ``size`` is what it claims of its data."""
    size = len(data) if size is None else size
    align = channels * bits // 8 if align is None else align
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    riff = struct.pack("<4sI4s", b"RIFF", 36 + size & 0xFFFFFFFF, b"WAVE")
    return riff + fmt + struct.pack("<4sI", b"data", size) + data


def patched(content: bytes, after: bytes, offset: int, new: bytes) -> bytes:
    """The content with other bytes at an offset behind its first ``after``."""
    at = content.index(after) + len(after) + offset
    return content[:at] + new + content[at + len(new) :]


def add_damaged(made: Recordings) -> None:
    """Cut off, with bits flipped, and under names of other formats."""
    draw = random.Random(1)
    for suffix in FORMATS:
        content = made.encoded(suffix)
        for share in (0.02, 0.3, 0.95):
            made.add(EITHER, f"cut-{share}.{suffix}", content[: int(len(content) * share)])
        for flips, within in ((1, 48), (4, 48), (8, 200), (8, len(content))):
            flipped = bytearray(content)
            for _ in range(flips):
                flipped[draw.randrange(min(within, len(content)))] ^= 1 << draw.randrange(8)
            made.add(EITHER, f"flipped-{flips}-{within}.{suffix}", bytes(flipped))
        made.add(EITHER, f"is-{suffix}." + draw.choice([other for other in FORMATS if other != suffix]), content)
    made.add(FAILED, "is-wav.raw", made.encoded("wav"))  # headerless by its name: libsndfile asks for a rate
    made.add(FAILED, "is-text.mp3", b"no audio in here\n" * 99)


def add_lying_headers(made: Recordings) -> None:
    """Headers that promise sizes, rates and channels that nobody has."""
    pcm = (made.speech * 32767).astype("<i2").tobytes()
    for size in (0, 1, 1 << 31, 0xFFFFFFFF, 0xFFFFFFFE):
        made.add(EITHER, f"data-{size}.wav", wav(pcm, size=size))
    for rate in (0, 1, 10, 999, 1 << 31, 0xFFFFFFFF):
        made.add(FAILED, f"rate-{rate}.wav", wav(pcm, rate=rate))
    made.add(FAILED, "rate-too-short.wav", wav(pcm, rate=(1 << 31) - 1))  # 3 µs of audio
    for channels in (0, 1025, 65535):
        made.add(FAILED, f"channels-{channels}.wav", wav(pcm * 30, channels=channels))
    made.add(EITHER, "channels-1024.wav", wav(pcm, channels=1024, size=0xFFFFFFFF))
    for bits in (0, 1, 7, 255, 65535):
        made.add(EITHER, f"bits-{bits}.wav", wav(pcm, bits=bits))
    for tag in (0, 2, 17, 49, 85, 0xFFFE, 0xFFFF):
        made.add(EITHER, f"tag-{tag}.wav", wav(pcm, tag=tag))
    made.add(EITHER, "align-0.wav", wav(pcm, align=0))
    made.add(EITHER, "fmt-huge.wav", patched(wav(pcm), b"fmt ", 0, b"\xff\xff\xff\x7f"))
    made.add(FAILED, "no-data.wav", wav(pcm)[:36])
    made.add(EITHER, "data-first.wav", wav(pcm)[:12] + wav(pcm)[36:] + wav(pcm)[12:36])
    made.add(EITHER, "ds64-huge.rf64", patched(made.encoded("rf64"), b"ds64", 4, b"\xff" * 7 + b"\x7f" + b"\xff" * 16))
    made.add(EITHER, "riff-huge.w64", patched(made.encoded("w64"), b"riff", 12, b"\xff" * 7 + b"\x7f"))
    made.add(EITHER, "fmt-huge.w64", patched(made.encoded("w64"), b"fmt ", 12, b"\xff" * 8))
    made.add(EITHER, "frames.aiff", patched(made.encoded("aiff"), b"COMM", 6, b"\xff" * 4))
    made.add(EITHER, "channels.aiff", patched(made.encoded("aiff"), b"COMM", 4, b"\xff\xff"))
    for name, rate in (("inf", b"\x7f\xff" + b"\0" * 8), ("0", b"\0" * 10), ("negative", b"\xc0\x0c\xfa" + b"\0" * 7)):
        made.add(FAILED, f"rate-{name}.aiff", patched(made.encoded("aiff"), b"COMM", 12, rate))
    for place, words in ((0, "offset"), (4, "size"), (12, "rate"), (16, "channels")):
        made.add(EITHER, f"{words}.au", patched(made.encoded("au"), b".snd", place, b"\xff\xff\xff\xff"))
    made.add(EITHER, "samples-huge.flac", patched(made.encoded("flac"), b"fLaC", 17, b"\xff" * 5))
    made.add(EITHER, "block-huge.flac", patched(made.encoded("flac"), b"fLaC", 39, b"\xff" * 3))
    made.add(EITHER, "granule-huge.ogg", patched(made.encoded("ogg"), b"OggS", 2, b"\xff" * 7 + b"\x7f"))
    made.add(EITHER, "id3-huge.mp3", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + made.encoded("mp3"))


def add_bad_samples(made: Recordings) -> None:
    """Too few samples, or none that a model could use."""
    for suffix in ("wav", "flac", "aiff", "w64", "rf64", "au", "caf"):
        made.add(FAILED, f"no-samples.{suffix}", made.encoded(suffix, np.zeros(0)))
    for count in (1, 399):  # a frame takes 400
        made.add(FAILED, f"short-{count}.wav", made.encoded("wav", np.zeros(count)))
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf), ("past-float", 1e300)):
        samples = made.speech.astype(np.float64)
        samples[5000] = value
        made.add(FAILED, f"{name}.wav", made.encoded("wav", samples, subtype="DOUBLE"))
    loud = np.full((6400, 2), np.finfo(np.float32).max)  # whose sum is past float32
    made.add(FAILED, "overflow.wav", made.encoded("wav", loud, subtype="FLOAT"))
    opposite = np.stack([np.full(6400, np.inf), np.full(6400, -np.inf)], axis=1)
    made.add(FAILED, "inf-minus-inf.caf", made.encoded("caf", opposite, subtype="FLOAT"))


def add_unusual(made: Recordings) -> None:
    """Not bad at all, though seldom seen."""
    many = np.repeat(made.speech[:, None], 32, axis=1)
    made.add(WRITTEN, "32-channels.wav", made.encoded("wav", many))
    made.add(WRITTEN, "32-channels.w64", made.encoded("w64", many[:3000]))
    for suffix, subtype in (("wav", "PCM_U8"), ("aiff", "PCM_S8"), ("flac", "PCM_S8"), ("w64", "DOUBLE")):
        made.add(WRITTEN, f"{subtype}.{suffix}", made.encoded(suffix, subtype=subtype))
    for rate in (1000, 8000, 192000, 384000):
        made.add(WRITTEN, f"{rate}-hz.wav", made.encoded("wav", np.resize(made.speech, rate // 5), rate))
    made.add(WRITTEN, "silence.flac", made.encoded("flac", np.zeros(4000)))
    made.add(WRITTEN, "clipped.wav", made.encoded("wav", made.speech * 5, subtype="FLOAT"))
    # FLAC as an encoder writes it into a pipe: it does not know yet how long it will be.
    made.add(WRITTEN, "streamed.flac", streamed(made.encoded("flac")))
    sparse = made.add(WRITTEN, "4-gb-behind-the-data.wav", wav((made.speech * 32767).astype("<i2").tobytes()))
    os.truncate(sparse, 1 << 32)


def add_no_files(made: Recordings) -> None:
    """What stands under a recording's name and is none: to open some of it is to wait for ever."""
    os.mkfifo(made.add(FAILED, "fifo.wav"))
    os.mkfifo(made.folder / "fifo")
    made.add(FAILED, "link-to-fifo.flac").symlink_to("fifo")
    made.add(FAILED, "directory.wav").mkdir()
    made.add(FAILED, "link-to-directory.wav").symlink_to(".")
    made.add(FAILED, "dangling.wav").symlink_to("gone")
    loop = made.add(FAILED, "loop.wav")
    loop.symlink_to(loop.name)
    made.add(FAILED, "missing.wav")
    made.paths["long-name"], made.expected["long-name"] = made.folder / ("n" * 300 + ".wav"), FAILED
    file = made.add(WRITTEN, "a-file.wav", made.encoded("wav"))
    made.paths["in-a-file"], made.expected["in-a-file"] = file / "x.wav", FAILED
    for device in ("zero", "null", "full", "tty"):
        made.add(FAILED, f"{device}.wav").symlink_to(f"/dev/{device}")
    made.add(FAILED, "memory.wav").symlink_to("/proc/self/mem")  # a regular file by its kind, if it is there
    with socket.socket(socket.AF_UNIX) as server:
        # A socket's address ends at some hundred bytes, so it is made in the folder.
        here = Path.cwd()
        os.chdir(made.folder)
        server.bind(made.add(FAILED, "socket.wav").name)
        os.chdir(here)
    unreadable = made.add(FAILED, "unreadable.wav", made.encoded("wav"))
    unreadable.chmod(0)
    if os.access(unreadable, os.R_OK):  # root reads it all the same
        made.expected[unreadable.stem] = WRITTEN
    for suffix in ("wav", "flac", "mp3", "ogg"):
        made.add(FAILED, f"empty.{suffix}", b"")
    made.add(FAILED, "text.wav", "これは音ではない\n".encode())
    made.add(FAILED, "utf-16.wav", "RIFF WAVE".encode("utf-16"))
    made.add(FAILED, "picture.wav", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x10\0\0\0\x10\0\x08\x02\0\0\0")
    made.add(FAILED, "page.flac", b"<!DOCTYPE html><title>404</title>")
    made.add(FAILED, "zip.ogg", b"PK\x03\x04" + bytes(200))
    # 4 GB that take no place: 37 hours of silence as it says, and nothing at all.
    os.truncate(made.add(FAILED, "4-gb.wav", wav(b"", size=(1 << 32) - 45)), 1 << 32)
    os.truncate(made.add(FAILED, "4-gb-of-nothing.wav", b""), 1 << 32)


def make_recordings(folder: Path, speech: np.ndarray, count: int) -> Recordings:
    """So many bad recordings, the same every time; what the kinds leave is noise behind the marks of formats."""
    folder.mkdir()
    made = Recordings(folder, speech)
    for add in (add_damaged, add_lying_headers, add_bad_samples, add_unusual, add_no_files):
        add(made)
    draw = random.Random(2)
    while len(made.paths) < count:
        magic = MAGICS[len(made.paths) % len(MAGICS)]
        made.add(EITHER, f"noise.{draw.choice(list(FORMATS))}", magic + draw.randbytes(draw.randrange(4000)))
    return made


def streamed(flac: bytes) -> bytes:
    """A FLAC file whose header does not say how many samples follow."""
    return patched(patched(flac, b"fLaC", 18, b"\0\0\0\0"), b"fLaC", 17, bytes([flac[21] & 0xF0]))


def watched(command: list[str], limit_s: float) -> tuple[int, str, str, int]:
    """Run a command: its exit code, output, errors, and the sum of its processes' largest memory in bytes."""
    peaks: dict[int, int] = {}
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + limit_s
    while True:
        try:
            output, error = process.communicate(timeout=0.05)
        except subprocess.TimeoutExpired:
            pass
        else:
            return process.returncode, output, error, sum(peaks.values())
        try:
            family = [process, *process.children(recursive=True)]
            for member in family:
                peaks[member.pid] = max(peaks.get(member.pid, 0), most_memory(member))
        except psutil.NoSuchProcess:
            continue
        if time.monotonic() > end:
            for member in family:
                member.kill()
            pytest.fail(f"still running after {limit_s} s")


def most_memory(process: psutil.Process) -> int:
    """The largest memory a process has had, or has now where the system does not tell."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return process.memory_info().rss
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def test_200_bad_recordings_cost_a_line_each(artifacts: Artifacts, clip: np.ndarray, tmp_path: Path) -> None:
    made = make_recordings(tmp_path / "audio", clip[20000:26400], 200)
    assert len(made.paths) == 200
    for number in range(4):
        name = f"good-{number}"
        made.paths[name], made.expected[name] = tmp_path / "audio" / f"{name}.flac", WRITTEN
        soundfile.write(made.paths[name], clip[number * 8000 : number * 8000 + 16000], RATE)
    names = list(made.paths)
    random.Random(3).shuffle(names)
    scp, out = tmp_path / "audio.scp", tmp_path / "out"
    scp.write_text("".join(f"{name} {made.paths[name]}\n" for name in names))
    program = [sys.executable, "-c", "import sys; from mkc_fast.cli import main; sys.exit(main())"]
    begin = time.perf_counter()
    code, output, error, memory = watched(
        [*program, "infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp", str(scp),
         "--output-dir", str(out), "--gpus", "cpu", "--seed", "1", "--json"], limit_s=90
    )  # fmt: skip
    print(f"{time.perf_counter() - begin:.1f} s, {memory / MB:.0f} MB")
    assert code == 1
    assert "Traceback" not in output + error
    lines = error.splitlines()
    failures = {name: [line for line in lines if line.startswith(f"failed: {name}: ")] for name in names}
    for name in names:
        written = (out / f"{name}.wav").exists()
        assert len(failures[name]) == (0 if written else 1), (name, failures[name])
        assert made.expected[name] in (EITHER, WRITTEN if written else FAILED), (name, failures[name])
        if written:
            samples, rate = soundfile.read(out / f"{name}.wav", dtype="int16")
            info = soundfile.info(out / f"{name}.wav")
            assert (rate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
            assert len(samples) >= 320
        else:
            assert str(made.paths[name]) in failures[name][0]
            assert failures[name][0].isprintable()
    # What libmpg123 thinks of an MP3 file it prints itself.
    others = [line for line in lines if not re.match(r"failed: |note: |\[.*libmpg123|Note: |Warning: ", line)]
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == 1  # of the first of several recordings that are too loud
    assert "peaks at" in notes[0]
    assert others == [
        "204 recordings, frame mode, stride 1; draws from seed 1, repeatable",
        f"CPU, fp32, {operators_used(artifacts.model, 'fp32')}: the device is cpu",
    ]
    summary = json.loads(output)
    assert summary["written"] + len(summary["failed"]) == summary["files"] == 204
    assert summary["replaced_workers"] == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{name}.wav" for name in names if not failures[name]] + ["manifest.jsonl"]
    )
    # 160 MB here: NumPy and libsndfile in both processes, ONNX Runtime and a small model in the worker; no recording is
    # longer than a second or so. One header taken at its word is more: 6400 samples at 1 Hz are 410 MB, 37 h 8.6 GB.
    assert memory < 400 * MB
    for path in made.paths.values():
        if "4-gb" in path.name:
            path.unlink()


# Lists

GOOD = "{good}"  # stands for the path of a recording that can be read
Make = Callable[[Path, Path], list[str]]


def content_of(text: str | bytes, good: Path) -> bytes:
    return text if isinstance(text, bytes) else text.replace(GOOD, str(good)).encode()


def scp(text: str | bytes) -> Make:
    """A list of recordings, and the arguments that name it."""

    def make(folder: Path, good: Path) -> list[str]:
        (folder / "bad.scp").write_bytes(content_of(text, good))
        return ["infer", "--audio-scp", str(folder / "bad.scp"), "--output-dir", str(folder / "out")]

    return make


def place(prepare: Callable[[Path], object]) -> Make:
    """What stands at a list's path and is no list."""

    def make(folder: Path, good: Path) -> list[str]:
        prepare(folder / "bad.scp")
        return ["infer", "--audio-scp", str(folder / "bad.scp"), "--output-dir", str(folder / "out")]

    return make


def kaldi(wav_scp: str | bytes, segments: str | bytes | None = None) -> Make:
    """A Kaldi data directory."""

    def make(folder: Path, good: Path) -> list[str]:
        (folder / "bad").mkdir()
        (folder / "bad" / "wav.scp").write_bytes(content_of(wav_scp, good))
        if segments is not None:
            (folder / "bad" / "segments").write_bytes(content_of(segments, good))
        return ["infer", "--data-dir", str(folder / "bad")]

    return make


def models(text: str | bytes) -> Make:
    """A list of k-means models."""

    def make(folder: Path, good: Path) -> list[str]:
        (folder / "bad.scp").write_bytes(content_of(text, good))
        return ["bank", "build", "--kmeans-scp", str(folder / "bad.scp"), "--out", str(folder / "out")]

    return make


NOISE = random.Random(4).randbytes(5000)
BROKEN = {
    "empty": scp(b""),
    "only blanks": scp(" \n\t\n \t \n"),
    "only a byte order mark": scp(b"\xef\xbb\xbf"),
    "binary": scp(NOISE),
    "a recording": scp(wav(bytes(range(256)) * 20)),
    "compressed": scp(b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + NOISE),
    "utf-16": scp(f"u {GOOD}\n".encode("utf-16")),
    "utf-16 without a mark": scp(f"u {GOOD}\n".encode("utf-16-le")),
    "utf-32": scp(f"u {GOOD}\n".encode("utf-32")),
    "latin-1": scp("Aufnahme_für_dich.wav\n".encode("latin-1")),
    "nul in a path": scp(f"u1 {GOOD}\nu2 /x\0y.wav\n"),
    "nul in an id": scp(f"u\0 {GOOD}\n"),
    "nothing but nul": scp(bytes(100)),
    "escape sequence": scp(f"u1 {GOOD}\nu2 \x1b[2J\x1b]0;owned\x07.wav\n"),
    "bell in an id": scp(f"u\x07 {GOOD}\n"),
    "line separator": scp(f"u1 {GOOD}\u2028u2 {GOOD}\n"),
    "form feed": scp(f"u1 {GOOD}\n\x0c\nu2 {GOOD}\n"),
    "an id twice": scp(f"u {GOOD}\nv {GOOD}\nu {GOOD}\n"),
    "a stem twice": scp(f"{GOOD}\n./{GOOD}\n"),
    "a stem that is an id": scp(f"good {GOOD}\n{GOOD}\n"),
    "up": scp(f"../u {GOOD}\n"),
    "far up": scp(f"../../../../../../tmp/u {GOOD}\n"),
    "dots": scp(f".. {GOOD}\n"),
    "dot": scp(f". {GOOD}\n"),
    "absolute": scp(f"/tmp/u {GOOD}\n"),
    "folder": scp(f"a/b {GOOD}\n"),
    "backslash": scp(f"..\\u {GOOD}\n"),
    "right to left": scp(f"u\u202evaw {GOOD}\n"),
    "invisible": scp(f"u\u200b {GOOD}\n"),
    "long id": scp(f"{'u' * 201} {GOOD}\n"),
    "long id in two bytes": scp(f"{'é' * 101} {GOOD}\n"),
    "long path": scp(f"u {'/x' * 5000}\n"),
    "no name": scp("/\n"),
    "one line of 1 MB": scp("x" * MB),
    "one line of 1 MB after a good one": scp(f"u {GOOD}\n" + "x " * (MB // 2)),
    "a command": scp("u touch canary |\n"),
    "a command without an id": scp("touch canary|\n"),
    "an empty command": scp("u |\n"),
    "a pipe sign": scp("|\n"),
    "a directory": place(Path.mkdir),
    "a pipe": place(os.mkfifo),
    "a link to a pipe": place(lambda path: (os.mkfifo(path.with_name("fifo")), path.symlink_to("fifo"))),
    "missing": place(lambda path: None),
    "dangling": place(lambda path: path.symlink_to("gone")),
    "a loop": place(lambda path: path.symlink_to(path.name)),
    "endless": place(lambda path: path.symlink_to("/dev/zero")),
    "1 GB of nothing": place(lambda path: (path.touch(), os.truncate(path, 1 << 30))),
    "4 GB of nothing": place(lambda path: (path.touch(), os.truncate(path, 1 << 32))),
    "data directory without a path": kaldi("u\n"),
    "data directory in binary": kaldi(NOISE),
    "data directory that leads out": kaldi(f"../u {GOOD}\n"),
    "data directory of a command": kaldi("u touch canary |\n"),
    "segments in utf-16": kaldi(f"r {GOOD}\n", "u r 0 1\n".encode("utf-16")),
    "segments that lead out": kaldi(f"r {GOOD}\n", "../u r 0 1\n"),
    "segments of nan": kaldi(f"r {GOOD}\n", "u r nan 1\n"),
    "segments of no recording": kaldi(f"r {GOOD}\n", "u s 0 1\n"),
    "models: empty": models(b""),
    "models: binary": models(NOISE),
    "models: no path": models("m\n"),
    "models: a name twice": models(f"m {GOOD}\nm {GOOD}\n"),
    "models: nul": models("m /x\0y\n"),
    "models: one line of 1 MB": models("m " + "x" * MB),
}


@pytest.fixture
def good(tmp_path: Path, clip: np.ndarray) -> Path:
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "good.wav", clip[20000:26400], RATE)
    return tmp_path / "audio" / "good.wav"


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_list_costs_a_line_and_writes_nothing(
    kind: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = BROKEN[kind](tmp_path, good)
    if arguments[0] == "infer":
        arguments += ["--model", "never", "--bank", "reached", "--gpus", "cpu"]
    for commands in ("registered_commands", "registered_groups"):
        monkeypatch.setattr(app, commands, [])  # each call of main adds them again, and every one costs time
    before = names_in(tmp_path)
    signal.alarm(10)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert "bad" in line  # it names the list, which was read before the model was looked for
    assert line.isprintable()
    assert len(line) < len(str(tmp_path)) + 200
    assert names_in(tmp_path) == before  # commands leave a canary


@pytest.mark.parametrize(
    "text",
    [
        f"u {GOOD}\r\nv {GOOD}\r\n",
        f"u\t{GOOD}\n\tv \t {GOOD}\t\n",
        f"\ufeffu {GOOD}\n\n  \nv {GOOD}",
    ],
    ids=["line ends of Windows", "tabs", "byte order mark"],
)
def test_lists_of_other_editors_work(text: str, artifacts: Artifacts, good: Path, tmp_path: Path) -> None:
    assert main([*scp(text)(tmp_path, good), *on(artifacts)]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["u.wav", "v.wav"]


def test_a_list_of_itself_and_of_ids_without_paths_costs_a_line_each(
    artifacts: Artifacts, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = scp(f"itself {tmp_path / 'bad.scp'}\nno-path\nu {GOOD}\n")(tmp_path, good)
    assert main([*arguments, *on(artifacts)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[1] for line in lines if line.startswith("failed: ")) == ["itself", "no-path"]
    assert len(lines) == 4  # the first say how many recordings there are, and what they run on
    assert [path.name for path in (tmp_path / "out").glob("*.wav")] == ["u.wav"]


def on(artifacts: Artifacts) -> list[str]:
    return ["--model", str(artifacts.model), "--bank", str(artifacts.bank), "--gpus", "cpu"]


def test_a_list_of_one_endless_line_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "list.scp").touch()
    os.truncate(tmp_path / "list.scp", 1 << 28)
    # A line of 8192 characters is held, where the whole has 256 MB.
    with at_most(MB), pytest.raises(ListError, match="line 1: too long"):
        read_audio_list(tmp_path / "list.scp")


# Recordings that once broke more than themselves


def test_looking_at_a_pipe_does_not_wait_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    signal.alarm(5)
    assert duration_s(Utterance("a", tmp_path / "a.wav")) == 0
    with pytest.raises(AudioError, match="not a file"):
        read_waveform(tmp_path / "a.wav", RATE)


def test_a_headerless_name_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(3200))
    assert duration_s(Utterance("a", tmp_path / "a.raw")) == 0
    with pytest.raises(AudioError, match=r"a\.raw: not readable as audio"):
        read_waveform(tmp_path / "a.raw", RATE)


def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / ("n" * 300), tmp_path / "a\0b"):
        assert duration_s(Utterance("a", path)) == 0
        with pytest.raises(AudioError):
            read_waveform(path, RATE)


def test_a_rate_below_speech_is_refused_before_it_becomes_gigabytes(tmp_path: Path) -> None:
    # 100,000 samples at 1 Hz are 28 hours at 16 kHz: 6.4 GB.
    (tmp_path / "a.wav").write_bytes(wav(bytes(200_000), rate=1))
    with at_most(MB), pytest.raises(AudioError, match="sample rate of 1 Hz"):
        read_waveform(tmp_path / "a.wav", RATE)


def test_a_thousand_channels_are_read_a_little_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(b"", channels=1024, bits=8, size=1024 * 48000))
    os.truncate(tmp_path / "a.wav", 44 + 1024 * 48000)
    with at_most(4 * MB):  # a block is 1 MB; all samples at once would be 197 MB
        assert len(read_waveform(tmp_path / "a.wav", RATE)) == 48000


def test_more_than_a_day_is_refused_from_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(b"", size=(1 << 32) - 45))
    os.truncate(tmp_path / "a.wav", 1 << 32)
    with at_most(MB), pytest.raises(AudioError, match="longer than 24 h"):
        read_waveform(tmp_path / "a.wav", RATE)
    assert len(read_waveform(tmp_path / "a.wav", RATE, begin_s=100_000, end_s=100_001)) == RATE


def test_a_long_recording_is_held_once(tmp_path: Path) -> None:
    seconds = 1200
    (tmp_path / "a.wav").write_bytes(wav(b"", size=2 * RATE * seconds))
    os.truncate(tmp_path / "a.wav", 44 + 2 * RATE * seconds)
    # Room to grow is an eighth, the test of finiteness a quarter; two copies would be twice the size.
    with at_most(1.5 * 4 * RATE * seconds):
        read_waveform(tmp_path / "a.wav", RATE)


def test_flac_that_was_streamed_is_read_to_its_end(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9999, 9999, 300_000).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    (tmp_path / "a.flac").write_bytes(streamed((tmp_path / "a.flac").read_bytes()))
    found = read_waveform(tmp_path / "a.flac", RATE)
    np.testing.assert_array_equal(found, samples / np.float32(32768))
    np.testing.assert_array_equal(read_waveform(tmp_path / "a.flac", RATE, begin_s=2, end_s=3), found[32000:48000])
    for begin_s in (1e6, 1e300):
        with pytest.raises(AudioError):
            read_waveform(tmp_path / "a.flac", RATE, begin_s=begin_s)


def test_channels_at_the_end_of_float32_warn_of_nothing(tmp_path: Path) -> None:
    # A RuntimeWarning, which the command would print, fails a test here.
    soundfile.write(tmp_path / "loud.wav", np.full((1000, 2), 3e38, np.float32), RATE, "FLOAT")
    with pytest.raises(AudioError, match=r"peaks at 3e\+38"):
        read_waveform(tmp_path / "loud.wav", RATE)
    soundfile.write(tmp_path / "inf.wav", np.tile(np.float32([np.inf, -np.inf]), (1000, 1)), RATE, "FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        read_waveform(tmp_path / "inf.wav", RATE)


def test_commands_are_not_all_one_batch() -> None:
    # How long they are is not known before they run; taken for 0 s, all of a corpus would be decoded at once.
    durations = [duration_s(Utterance(str(number), Path("x"), command="x")) for number in range(100)]
    assert max(map(len, group_by_length(durations, 0.0))) == 1
    assert max(map(len, group_by_length(durations, 240.0))) == 6
