"""Pickles that execute nothing cannot take time or memory either: every step is counted, small and open to Ctrl-C."""

from __future__ import annotations

import bz2
import contextlib
import copy
import gzip
import io
import lzma
import pickle
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mkc_fast import CheckpointError
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.checkpoints.kmeans import memory_needed, read_kmeans
from mkc_fast.export.checkpoints.pickles import Stopped
from mkc_fast.export.checkpoints.readers import MEMORY_BYTES, reading
from mkc_fast.export.checkpoints.torch_files import load_torch
from tests.export.checkpoints.test_hostile_checkpoints import (
    MB,
    P,
    integer,
    kmeans_array,
    peak_bytes,
    refused,
    save,
    string,
    zipped,
)

joblib = pytest.importorskip("joblib")
cluster = pytest.importorskip("sklearn.cluster")
pytestmark = pytest.mark.usefixtures("no_waiting")

MANY = 100_000  # colliding keys: 5e9 comparisons, minutes of one deaf call, where nothing bounds them
PRIME = (1 << 61) - 1  # Python's hash of an integer is its remainder


def number(value: int) -> bytes:
    """An integer of any size."""
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def old_and_new(tmp_path: Path, pickled: bytes) -> list[Path]:
    """A checkpoint as torch.save writes it today and wrote it before 1.6."""
    start = b"".join(pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {}))
    old = tmp_path / "old.pt"
    old.write_bytes(start + pickled + pickle.dumps(["0"], 2) + b"\0" * 8)
    return [zipped(tmp_path / "new.pt", pickled), old]


def keys_of(kind: str, count: int) -> list[bytes]:
    """Pickled keys with one hash, or (``distinct``) small ones of which each is another."""
    match kind:
        case "multiples":
            return [number(key * PRIME) for key in range(1, count + 1)]
        case "negative multiples":
            return [number(-key * PRIME) for key in range(1, count + 1)]
        case "powers":  # 2.0**61 has the hash of 1
            return [b"G" + struct.pack(">d", 2.0**61 * key) for key in range(1, count + 1)]
        case "digits":
            return [b"I%d\n" % (key * PRIME) for key in range(1, count + 1)]
        case _:
            return [number(key) for key in range(count)]


COLLIDING = ("multiples", "negative multiples", "powers", "digits")
PLACES: dict[str, Callable[[list[bytes]], bytes]] = {
    "a dict of a frame": lambda keys: P + b"}(" + b"N".join(keys) + b"Nu.",
    "a dict item by item": lambda keys: P + b"}" + b"Ns".join(keys) + b"Ns.",
    "a dict of a mark": lambda keys: P + b"(" + b"N".join(keys) + b"Nd.",
    "a set": lambda keys: P + b"c__builtin__\nset\n](" + b"".join(keys) + b"e\x85R.",
    "a counter of a list": lambda keys: P + b"ccollections\nCounter\n](" + b"".join(keys) + b"e\x85R.",
}


@pytest.mark.parametrize("kind", COLLIDING)
@pytest.mark.parametrize("place", PLACES)
def test_keys_of_one_hash_are_refused_before_the_second(kind: str, place: str, tmp_path: Path) -> None:
    data = PLACES[place](keys_of(kind, MANY))
    refused(read_kmeans, Path("model.pt"), data)
    for path in old_and_new(tmp_path, data):
        message = refused(load_torch, path)
        assert "key" in message or place == "a counter of a list"


@pytest.mark.parametrize("place", PLACES)
def test_distinct_numbers_are_few_enough_that_no_order_of_them_is_slow(place: str, tmp_path: Path) -> None:
    # Keys with distinct hashes can still be chosen so that each is tried at the places of all others.
    assert "without end" in refused(load_torch, zipped(tmp_path / "c.pt", PLACES[place](keys_of("distinct", 60_000))))


def test_copies_of_a_dict_are_counted_with_their_collisions(tmp_path: Path) -> None:
    numbers = b"}(" + b"N".join(keys_of("distinct", 8000)) + b"Nuq\x01"
    copies = b"ccollections\nCounter\nq\x00" + numbers + b"(" + b"h\x00h\x01\x85R" * 100 + b"t."
    assert "without end" in refused(load_torch, zipped(tmp_path / "model.pt", P + copies))
    nested = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + numbers + b"(" + b"h\x00(NNN)h\x01\x86tR" * 100 + b"t."
    assert "without end" in refused(load_torch, zipped(tmp_path / "model.pt", P + nested))


@pytest.mark.parametrize("opcode", ["LONG_BINPUT", "PUT"])
def test_a_memo_whose_places_the_file_chooses_is_refused(opcode: str, tmp_path: Path) -> None:
    if opcode == "PUT":
        data = P + b"N" + b"".join(b"p%d\n" % (key * PRIME) for key in range(MANY)) + b"."
    else:
        data = P + b"N" + b"".join(b"r" + struct.pack("<I", key << 12) for key in range(MANY)) + b"."
    assert "memo" in refused(read_kmeans, Path("model.pt"), data)
    for path in old_and_new(tmp_path, data):
        assert "memo" in refused(load_torch, path)


def test_a_call_with_many_arguments_again_and_again_is_refused(tmp_path: Path) -> None:
    arguments = b"(" + b"N" * 20_000 + b"tq\x01"
    for call in (b"ctorch\nSize\nq\x00", b"cnumpy.core.multiarray\nscalar\nq\x00"):
        data = P + call + arguments + b"(" + b"h\x00h\x01R" * 20_000 + b"t."
        read = read_kmeans if b"numpy" in call else load_torch
        assert "without end" in refused(
            read, zipped(tmp_path / "m.pt", data) if read is load_torch else write(tmp_path, data)
        )


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.pt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["torch\nTensor", "torch.nn.parameter\nParameter"])
def test_a_tensor_class_is_not_called(name: str, tmp_path: Path) -> None:
    # torch.Tensor(2**33) is 32 GB of nothing, which torch.load with weights_only makes.
    data = P + b"}" + string("a") + b"c" + name.encode() + b"\n" + integer(1 << 33) + b"\x85Rs."
    for path in old_and_new(tmp_path, data):
        assert "no function" in refused(load_torch, path)


@pytest.mark.parametrize("size", [1 << 20, (1 << 31) - 1])
def test_a_number_of_a_million_digits_is_refused(size: int, tmp_path: Path) -> None:
    data = P + b"\x8b" + struct.pack("<i", size) + b"\x01" * (1 << 20) + b"."
    refused(read_kmeans, Path("model.pt"), data)
    refused(load_torch, zipped(tmp_path / "model.pt", data))


def test_an_archive_of_many_files_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", P + b"}.")
        for index in range(80_000):
            archive.writestr(f"a/{index}", b"")
    assert "more files" in refused(load_torch, path)
    assert peak_bytes(load_torch, path) < 2 * MB


def test_a_note_in_an_archive_is_small(tmp_path: Path) -> None:
    for note in ("version", "byteorder", ".format_version"):
        with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
            archive.writestr("archive/data.pkl", P + b"}.")
            archive.writestr(f"archive/{note}", b"3" * MB)
        assert "archive" in refused(load_torch, tmp_path / "model.pt")


def test_the_pickle_that_is_looked_at_is_the_one_that_torch_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "model.pt", P + b"}.")
    assert load_torch(path) == {}

    class Other:
        """Finds the pickle elsewhere, as a reader may in an archive with two lists of its files."""

        def __init__(self, name: str) -> None:
            self.reader = reader(name)

        def get_record_offset(self, name: str) -> int:
            return self.reader.get_record_offset(name) + 64

        def get_record_size(self, name: str) -> int:
            return self.reader.get_record_size(name)

    reader = torch._C.PyTorchFileReader
    monkeypatch.setattr(torch._C, "PyTorchFileReader", Other)
    assert "two readers" in refused(load_torch, path)


# What is honest is read all the same


def test_checkpoints_with_dicts_as_people_have_them_are_read(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    checkpoint = {
        # PyTorch before 1.6 named parameters by their addresses.
        "optimizer": {
            "state": {140_234_866_000_000 + 64 * key: {"step": key, "exp_avg": tensor} for key in range(2000)}
        },
        "losses": {step: 1 / (step + 1) for step in range(10_000)},
        "milestones": Counter([100, 200, 200]),
        "vocabulary": {f"word {key}": key for key in range(50_000)},
        "seen": {"a", "b"} | set(range(1000)),
        "flags": {True: 1, None: 2, 0.5: 3, b"x": 4},
        "model": OrderedDict(a=tensor, b=torch.nn.Parameter(tensor)),
        "size": tensor.shape,
    }
    for new in ("new", "old"):
        loaded = load_torch(save(tmp_path / "model.pt", checkpoint, new))
        for key in ("losses", "milestones", "vocabulary", "seen", "flags"):
            assert loaded[key] == checkpoint[key]
        assert loaded["optimizer"]["state"].keys() == checkpoint["optimizer"]["state"].keys()


@pytest.fixture(scope="module")
def fitted() -> Any:
    frames = np.random.default_rng(0).standard_normal((300, 8))
    return cluster.KMeans(4, n_init=1, random_state=0).fit(frames)


@pytest.mark.parametrize("compression", [0, "zlib", "bz2", "xz"])
def test_labels_of_millions_of_frames_are_read_over(fitted: Any, compression: Any, tmp_path: Path) -> None:
    model = copy.copy(fitted)
    # A million labels are 4 MB; K-means on speech has them by the hundred thousand.
    model.labels_ = np.random.default_rng(0).choice(np.array([0, 1, 3], np.int32), 1_000_000)
    joblib.dump(model, tmp_path / "model.pt", compress=(compression, 1) if compression else 0)
    read = read_kmeans(tmp_path / "model.pt")
    np.testing.assert_array_equal(read.centroids, model.cluster_centers_)
    assert read.unused == (2,)
    for protocol in (2, 5):
        read = read_kmeans(Path("model.pt"), pickle.dumps(model, protocol))
        np.testing.assert_array_equal(read.centroids, model.cluster_centers_)
        assert read.unused == (2,)


def test_a_model_fitted_to_a_table_has_names_of_columns(fitted: Any) -> None:
    model = copy.copy(fitted)
    model.feature_names_in_ = np.array([f"column {index} é" for index in range(8)], dtype=object)
    for protocol in range(6):
        file = io.BytesIO()
        joblib.dump(model, file, protocol=protocol)
        # Plain pickles of protocol 0 have an array on one line, which is read up to 4 KB.
        for data in (file.getvalue(), pickle.dumps(model, max(1, protocol))):
            np.testing.assert_array_equal(read_kmeans(Path("m.pt"), data).centroids, model.cluster_centers_)
            assert read_kmeans(Path("m.pt"), data, shape_only=True).shape == (4, 8)


def test_an_array_of_objects_holds_no_other_such_array(fitted: Any) -> None:
    wrapper = kmeans_array((1, 1)).partition(b"cjoblib")
    inner = b"cjoblib" + wrapper[2].replace(b"f8", b"O8").partition(b"ub")[0] + b"ub"
    data = wrapper[0] + inner + P + inner + P + b"N." + b"s."
    assert "array of objects" in refused(read_kmeans, Path("model.pt"), data)


def test_lz4_is_refused_by_name() -> None:
    assert "LZ4" in refused(read_kmeans, Path("model.pt"), b"\x04\x22\x4d\x18" + b"\0" * 50)


# Memory


def zeros(shape: tuple[int, int], dtype: bytes = b"f8") -> bytes:
    """A model of zeros, as joblib writes it."""
    model = kmeans_array(shape).replace(b"f8", dtype)
    return model[:-3] + bytes(int(np.prod(shape)) * int(dtype[1:])) + b"sb."


BOMBS: dict[str, Callable[[], bytes]] = {
    "128 MB of centroids": lambda: zeros((1 << 14, 1 << 10)),
    "64 million clusters": lambda: zeros((1 << 25, 1), b"f2"),
    "as many dimensions": lambda: zeros((1, 1 << 25), b"f2"),
    "64 MB of text": lambda: P + b"X" + struct.pack("<I", 1 << 26) + b"a" * (1 << 26) + b".",
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"bz2": bz2.compress, "xz": lzma.compress, "gzip": gzip.compress}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("packer", PACKERS)
def test_a_small_file_explains_little_memory(bomb: str, packer: str) -> None:
    data = PACKERS[packer](BOMBS[bomb]())
    assert len(data) < 300_000
    # 64 times their size and 16 MB may be inflated of them, in blocks.
    assert peak_bytes(read_kmeans, Path("model.pt"), data) < 10 * MB


def in_a_process(code: str, *arguments: object) -> tuple[int, str]:
    """Peak memory in bytes that Python code takes beyond its imports, in a process of its own; and what it printed."""
    start = (
        "import resource, sys\nimport numpy\nfrom pathlib import Path\n"
        "import mkc_fast.export.bank\nfrom mkc_fast import MkcError\n"
        "unit = 1 if sys.platform == 'darwin' else 1024\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit\n"
        "before = peak()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"{start}{code}\nprint('peak', peak() - before)", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said, _, size = run.stdout.rpartition("peak ")
    return int(size), said


BUILD = (
    "try:\n    mkc_fast.export.bank.build_bank(sys.argv[1], sys.argv[2], workers=8)\n"
    "except MkcError as error:\n    print(error)\n"
)


@pytest.mark.parametrize(("shape", "dtype"), [(((1 << 16) + 1,), b"i1"), ((256, 256), b"f2")])
def test_what_is_kept_of_many_arrays_is_bounded(shape: tuple[int, ...], dtype: bytes) -> None:
    # Which of 65,536 clusters are in an array of labels takes 65 KB, an array under the centroids' name itself.
    start, name, rest = zeros((256, 256), b"f2").partition(string("cluster_centers_"))
    model = start + name + rest[:-2]
    wrapper = kmeans_array(shape).replace(b"f8", dtype).partition(name)[2][:-3]
    array = b"}" + name + wrapper + bytes(int(np.prod(shape)) * int(dtype[1:])) + b"s"
    assert read_kmeans(Path("m.pt"), model + string("x") + array + b"sb.").shape == (256, 256)
    data = model + b"".join(string(f"x{index}") + array + b"s" for index in range(1500)) + b"b."
    # 32 MB, and four times what K x D explains.
    assert peak_bytes(read_kmeans, Path("model.pt"), data) < 45 * MB


def test_a_bank_of_many_bombs_takes_little_memory(tmp_path: Path) -> None:
    lines = []
    for index, (bomb, make) in enumerate((bomb, make) for bomb in BOMBS.values() for make in PACKERS.values()):
        (tmp_path / f"{index}.pt").write_bytes(make(bomb()))
        lines.append(f"m{index} {index}.pt\n")
    (tmp_path / "kmeans.scp").write_text("".join(lines))
    peak, said = in_a_process(BUILD, tmp_path / "kmeans.scp", tmp_path / "bank")
    assert "refused" in said
    # 8 readers; the windows of xz (8 MB here) and the blocks of bz2 (4 MB) are theirs. It was 8 GB.
    assert peak < 150 * MB


def test_the_memory_of_all_readers_together_is_bounded(tmp_path: Path) -> None:
    # 8 models of 67 MB each, of real numbers: 0.13 GB a reader with what looks for duplicates, twice that where a
    # compressed file could hold more beside them. All at once would be over 1.5 GB.
    shape = (1 << 13, 1 << 10)
    for index in range(2):
        write_kmeans(tmp_path / f"{index}.pt", np.random.default_rng(index).standard_normal(shape))
    (tmp_path / "kmeans.scp").write_text("".join(f"m{index} {index % 2}.pt\n" for index in range(8)))
    assert 8 * memory_needed(tmp_path / "0.pt", shape) > MEMORY_BYTES
    peak, said = in_a_process(BUILD, tmp_path / "kmeans.scp", tmp_path / "bank")
    assert said == ""
    mapped = 8 * shape[0] * (shape[1] * 4 + 8)  # the bank itself, which the system may write out and forget
    assert peak - mapped < MEMORY_BYTES


def test_readers_hold_no_more_than_they_may() -> None:
    lock, most, held = threading.Lock(), [0, 0], [0, 0]

    def read(size: int) -> int:
        with lock:
            held[0], held[1] = held[0] + size, held[1] + 1
            most[0], most[1] = max(most[0], held[0]), max(most[1], held[1])
        threading.Event().wait(0.002)
        with lock:
            held[0], held[1] = held[0] - size, held[1] - 1
        return size

    with reading(8, memory=100) as readers:
        assert list(readers.map(read, [40] * 30, lambda size: size)) == [40] * 30
        assert most == [80, 2]
        most[:] = [0, 0]
        assert list(readers.map(read, [400] * 5, lambda size: size)) == [400] * 5  # each alone
        assert most == [400, 1]


# Ctrl-C


def test_reading_that_is_told_to_stop_stops(tmp_path: Path) -> None:
    write_kmeans(tmp_path / "model.pt", np.ones((400, 300)))
    for path, data in (("plain", (tmp_path / "model.pt").read_bytes()), ("steps", P + b"N0" * 40_000 + b".")):
        for pack in (bytes, bz2.compress):
            asked = []

            def stopped(asked: list[int] = asked) -> bool:
                asked.append(1)
                return len(asked) > 1

            with pytest.raises(Stopped):
                read_kmeans(Path(path), pack(data), stopped=stopped)


def test_an_error_stops_the_other_readers() -> None:
    begun = threading.Event()

    def read(index: int) -> None:
        if index == 0:
            begun.wait()
            raise CheckpointError("bad")
        begun.set()
        while not readers.stopped():
            threading.Event().wait(0.001)

    with pytest.raises(CheckpointError, match="bad"), reading(2) as readers:
        list(readers.map(read, range(1000), lambda _: 0))


SLOW = """
import sys, time
from mkc_fast.cli import main
from mkc_fast.export.checkpoints.pickles import StrictUnpickler
spend = StrictUnpickler.spend
def slowly(self, steps):
    print("reading", flush=True)
    time.sleep(0.001)
    spend(self, steps)
StrictUnpickler.spend = slowly
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_a_bank_that_is_being_read(tmp_path: Path) -> None:
    # 90,000 steps of at least 1 ms are 90 s a file, and there are 100 files.
    write(tmp_path, P + b"N0" * 45_000 + b".")
    (tmp_path / "kmeans.scp").write_text("".join(f"m{index} model.pt\n" for index in range(100)))
    arguments = ["bank", "build", "--kmeans-scp", str(tmp_path / "kmeans.scp"), "--out", str(tmp_path / "bank")]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"reading")  # threads may print into one line
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=25)[1]
    finally:
        with contextlib.suppress(OSError):
            process.kill()
    assert process.returncode == 130
    assert len(said.splitlines()) == 1  # and no traceback
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kmeans.scp", "model.pt"]
