"""Files from strangers: nothing in them is executed, and each ends in a result or in one line that says why not.

Every payload here is first shown to run when the file is loaded the usual way (``joblib.load``, ``torch.load`` without
``weights_only``), so that a reader which executed it would be caught.
"""

from __future__ import annotations

import copy
import errno
import io
import lzma
import os
import pickle
import shutil
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mkc_fast import ArtifactError, CheckpointError, MkcError, OutputError
from mkc_fast.engine.artifacts import (
    CENTROIDS_FILE,
    HALF_NORMS_FILE,
    BankInfo,
    ModelInfo,
    open_bank,
    read_model_info,
    write_info,
)
from mkc_fast.export import build_bank, export_model
from mkc_fast.export.checkpoints.configs import parse_conv_layers
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.export.checkpoints.kmeans import read_kmeans
from mkc_fast.export.checkpoints.published import load_voice, load_wavlm
from mkc_fast.export.checkpoints.torch_files import load_torch
from mkc_fast.export.checkpoints.weights import WeightReader
from mkc_fast.export.networks.hifigan import HifiGan
from mkc_fast.export.networks.wavlm import WavLM
from mkc_fast.export.random_checkpoints import write_voice, write_wavlm
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE
from tests.conftest import signed

joblib = pytest.importorskip("joblib")
cluster = pytest.importorskip("sklearn.cluster")
numpy_gadget = pytest.importorskip("numpy.testing._private.utils")  # its runstring() is exec() under another name

Loader = Callable[[Path], Any]
LOADERS: dict[str, Loader] = {"k-means": read_kmeans, "WavLM": load_wavlm, "conformer": load_voice}
pytestmark = pytest.mark.usefixtures("no_waiting")
every_kind = pytest.mark.parametrize("kind", LOADERS)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A harmless file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    paths = {"k-means": folder / "kmeans.pt", "WavLM": folder / "WavLM.pt", "conformer": folder / "conformer.pth"}
    write_kmeans(paths["k-means"], np.random.default_rng(0).standard_normal((4, 3)))
    write_wavlm(paths["WavLM"])
    write_voice(paths["conformer"])
    return paths


@pytest.fixture(scope="module")
def states(good: dict[str, Path]) -> dict[str, Any]:
    """What is in the harmless files."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trying to unpickle", UserWarning)  # the version it says is not today's
        return {kind: unsafely_load(kind, path) for kind, path in good.items()}


def unsafely_load(kind: str, path: Path) -> Any:
    return joblib.load(path) if kind == "k-means" else torch.load(path, weights_only=False)


def refused(load: Callable[..., Any], *arguments: Any, error: type[MkcError] = CheckpointError) -> str:
    """The one line with which ``load`` refuses the file, which it names."""
    with pytest.raises(error) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()  # no escape sequences for the terminal that shows it
    assert len(message) < 500
    return message


# Payloads


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def nested_joblib(canary: Path) -> Call:
    """Loads another file, of an array of objects, which joblib reads with a second unpickler."""
    inner = canary.with_suffix(".inner")
    joblib.dump(np.array([Call(os.system, f"touch {canary}")], dtype=object), inner)
    return Call(joblib.load, str(inner))


def nested_numpy(canary: Path) -> Call:
    inner = canary.with_suffix(".npy")
    np.save(inner, np.array([Call(os.system, f"touch {canary}")], dtype=object), allow_pickle=True)
    return Call(np.load, str(inner), None, True)


# Name → what makes it, given the file that running it makes; and what the refusal must name.
PAYLOADS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "os.system": (lambda canary: Call(os.system, f"touch {canary}"), "posix.system"),
    "builtins.eval": (lambda canary: Call(eval, f"open({str(canary)!r}, 'w').close()"), ".eval"),
    "numpy's exec": (
        lambda canary: Call(numpy_gadget.runstring, f"open({str(canary)!r}, 'w').close()", {}),
        "numpy.testing._private.utils.runstring",
    ),
    "numpy.load": (nested_numpy, "numpy.load"),
    "joblib.load": (nested_joblib, "joblib.numpy_pickle.load"),
}
every_payload = pytest.mark.parametrize("payload", PAYLOADS)
FORMS = ("new", "old")  # joblib's and pickle's; torch's zip archive and what came before it
every_form = pytest.mark.parametrize("form", FORMS)


def write_hostile(path: Path, kind: str, form: str, payload: Any, states: dict[str, Any]) -> None:
    """A file like the harmless one, with a payload where it does not disturb."""
    if kind == "k-means":
        model = copy.copy(states[kind])
        model.init = payload
        if form == "new":
            joblib.dump(model, path)
        else:
            path.write_bytes(pickle.dumps(model, 2))
    elif kind == "WavLM":
        save(path, {**states[kind], "cfg": {**states[kind]["cfg"], "extra": payload}}, form)
    else:
        extra = {"model_config": {**states[kind]["extra"]["model_config"], "extra": payload}}
        save(path, {**states[kind], "extra": extra}, form)


def save(path: Path, checkpoint: Any, form: str = "new") -> Path:
    torch.save(checkpoint, path, _use_new_zipfile_serialization=form == "new")
    return path


@every_payload
@every_form
@every_kind
def test_payloads_run_when_loaded_the_usual_way(
    kind: str, form: str, payload: str, states: dict[str, Any], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    write_hostile(tmp_path / "model.pt", kind, form, PAYLOADS[payload][0](canary), states)
    assert not canary.exists()
    unsafely_load(kind, tmp_path / "model.pt")
    assert canary.exists()


@every_payload
@every_form
@every_kind
def test_payloads_are_refused_by_name_and_never_run(
    kind: str, form: str, payload: str, states: dict[str, Any], tmp_path: Path
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    make, name = PAYLOADS[payload]
    write_hostile(path, kind, form, make(canary), states)
    message = refused(LOADERS[kind], path)
    assert message.startswith(f"{path}: refused")
    assert name in message
    assert not canary.exists()


@every_payload
@every_kind
@pytest.mark.parametrize("protocol", range(6))
def test_bare_payloads_are_refused_by_name_and_never_run(
    kind: str, payload: str, protocol: int, tmp_path: Path
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    make, name = PAYLOADS[payload]
    path.write_bytes(pickle.dumps(make(canary), protocol))
    assert name in refused(LOADERS[kind], path)
    assert not canary.exists()


def test_an_array_of_objects_inside_a_model_is_refused_and_never_run(states: dict[str, Any], tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pt"
    model = copy.copy(states["k-means"])
    model.init = np.array([Call(os.system, f"touch {canary}")], dtype=object)  # joblib nests a pickle for it
    joblib.dump(model, path)
    assert "posix.system" in refused(read_kmeans, path)
    assert not canary.exists()
    unsafely_load("k-means", path)
    assert canary.exists()


@every_payload
def test_a_hostile_model_in_a_list_leaves_no_bank(states: dict[str, Any], tmp_path: Path, payload: str) -> None:
    canary = tmp_path / "canary"
    write_kmeans(tmp_path / "good.pt", np.ones((4, 3)))
    make, name = PAYLOADS[payload]
    write_hostile(tmp_path / "bad.pt", "k-means", "new", make(canary), states)
    (tmp_path / "kmeans.scp").write_text("good good.pt\nbad bad.pt\n")
    assert name in refused(build_bank, tmp_path / "kmeans.scp", tmp_path / "out" / "bank")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_an_error_and_leaves_no_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(descriptor: int, start: int, length: int) -> None:
        assert (start, length) == (0, os.fstat(descriptor).st_size)
        raise OSError(errno.ENOSPC, "No space left on device")

    write_kmeans(tmp_path / "good.pt", np.ones((4, 3)))
    (tmp_path / "kmeans.scp").write_text("good good.pt\n")
    # Without space taken beforehand, a disk that fills up while a mapped file is written ends the process (SIGBUS).
    monkeypatch.setattr(os, "posix_fallocate", fill_up, raising=False)
    assert "No space" in refused(build_bank, tmp_path / "kmeans.scp", tmp_path / "out" / "bank", error=OutputError)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["WavLM", "conformer"])
def test_a_hostile_checkpoint_leaves_no_model(
    kind: str, good: dict[str, Path], states: dict[str, Any], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    paths = {**good, kind: tmp_path / "bad.pt"}
    write_hostile(paths[kind], kind, "new", PAYLOADS["os.system"][0](canary), states)
    message = refused(export_model, paths["WavLM"], paths["conformer"], tmp_path / "out" / "model")
    assert "posix.system" in message
    assert not canary.exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_code_in_the_configuration_is_not_evaluated(states: dict[str, Any], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"__import__('os').system('touch {canary}')"
    eval(code)
    canary.unlink()  # it would have run
    for layers in (
        code,
        f"[{code}]",
        f"[(512,10,5)] * {code}",
        f"[(512,10,{code})]",
        f"[(512,10,5) for _ in [{code}]]",
    ):
        path = with_cfg(states, tmp_path, conv_feature_layers=layers)
        assert "conv_feature_layers" in refused(load_wavlm, path)
    assert not canary.exists()


# Files that are nothing


@every_kind
@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"hello\n", "grüße\n".encode(), b"\0" * 100, b"\xff" * 100, b"PK\x03\x04", b"\x80", b"\x80\x02", b".",
     b"\x1f\x8b", b"\x78\x9c", b"BZh9", b"\xfd7zXZ\x00", b"\x5d\x00\x00", b"\x89PNG\r\n\x1a\n", b"{}", b"c\n\n."],
)  # fmt: skip
def test_files_that_are_no_model_are_refused(kind: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert str(path) in refused(LOADERS[kind], path)


@every_kind
def test_what_is_no_file_is_refused_without_waiting_for_it(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in ("pipe", "circle", "missing", "x" * 300, "."):
        refused(LOADERS[kind], tmp_path / path)
    refused(LOADERS[kind], Path("/dev/zero"))


@every_kind
def test_files_of_the_other_kinds_are_refused(kind: str, good: dict[str, Path]) -> None:
    for other, path in good.items():
        if other != kind:
            refused(LOADERS[kind], path)


@every_kind
def test_a_file_cut_off_anywhere_is_refused(kind: str, good: dict[str, Path], tmp_path: Path) -> None:
    data = good[kind].read_bytes()
    path = tmp_path / "model.pt"
    step = 1 if kind == "k-means" else len(data) // 600  # the others are mostly weights
    for length in (*range(0, len(data), step), *range(len(data) - 200, len(data))):
        path.write_bytes(data[:length])
        refused(LOADERS[kind], path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("compression", [0, "zlib", "gzip", "bz2", "xz", "lzma"])
def test_a_model_cut_off_anywhere_is_refused(protocol: int, compression: str | int, states: dict[str, Any]) -> None:
    file = io.BytesIO()
    joblib.dump(states["k-means"], file, compress=(compression, 3) if compression else 0, protocol=protocol)
    data = file.getvalue()
    for length in range(0, len(data), 3):
        refused(read_kmeans, Path("model.pt"), data[:length])


# Damage at random: the seed is fixed, so that a failure can be looked at


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies with flipped bits, changed bytes, lost and doubled parts."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at, length = int(rng.integers(len(changed))), int(rng.integers(1, 20))
            match rng.integers(5):
                case 0 | 1:
                    changed[at] ^= 1 << int(rng.integers(8))
                case 2:
                    changed[at] = int(rng.integers(256))
                case 3:
                    del changed[at : at + min(length, len(changed) - 1)]
                case 4:
                    changed[at:at] = changed[at : at + length]
        yield bytes(changed)


def result_or_one_line(load: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return load(*arguments)
    except MkcError as error:
        message = str(error)
    assert message.isprintable()
    return None


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("compression", [0, "zlib", "gzip", "bz2", "xz"])
def test_a_damaged_model_is_read_or_refused(protocol: int, compression: str | int, states: dict[str, Any]) -> None:
    file = io.BytesIO()
    joblib.dump(states["k-means"], file, compress=(compression, 3) if compression else 0, protocol=protocol)
    for data in mutations(file.getvalue(), 200, seed=protocol):
        read = result_or_one_line(read_kmeans, Path("model.pt"), data)
        if read is not None and compression:  # these have a checksum: no damage goes unnoticed
            np.testing.assert_array_equal(read.centroids, states["k-means"].cluster_centers_)


@every_form
def test_a_damaged_checkpoint_is_read_or_refused(form: str, tmp_path: Path) -> None:
    checkpoint = {"cfg": {"a": [1, (2.0, "b")], "c": None}, "model": OrderedDict(a=torch.ones(2), b=torch.ones(1, 3))}
    data = save(tmp_path / "model.pt", checkpoint, form).read_bytes()
    for damaged in mutations(data, 700, seed=0):
        (tmp_path / "model.pt").write_bytes(damaged)
        loaded = result_or_one_line(load_torch, tmp_path / "model.pt")
        assert loaded is None or isinstance(loaded, dict)


def test_a_damaged_bank_opens_or_is_refused(tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank")
    for name in (CENTROIDS_FILE, HALF_NORMS_FILE, "bank.json"):
        data = (folder / name).read_bytes()
        for damaged in mutations(data[:300], 300, seed=1):
            (folder / name).write_bytes(damaged + data[300:])
            if name != "bank.json":
                signed(folder)  # else the size of many, and not the array's header, is what is found
            result_or_one_line(open_bank, folder)
        (folder / name).write_bytes(data)
    open_bank(signed(folder))


# Pickles that execute nothing and do harm all the same. P is a pickle's start; string() and so on are its parts.

P = b"\x80\x02"


def string(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def nested_tuples(depth: int) -> bytes:
    """A tuple that holds one tuple twice, which holds one tuple twice, and so on: 2**depth in all."""
    return b")q\x01" + b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(1, depth + 1))


def tensor(elements: int, shape: int | None = None, stride: int = 1) -> bytes:
    storage = (
        b"(" + string("storage") + b"ctorch\nFloatStorage\n" + string("0") + string("cpu") + integer(elements) + b"tQ"
    )
    size = integer(elements if shape is None else shape) + b"\x85" + integer(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"\x89ccollections\nOrderedDict\n)RtR"


def zipped(path: Path, *pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")
        for data in pickled:
            archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"\0" * 4)
    return path


def peak_bytes(load: Callable[..., Any], *arguments: Any) -> int:
    """The most memory that refusing takes."""
    tracemalloc.start()
    try:
        refused(load, *arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MB = 1 << 20


def large_dictionary() -> bytes:
    """29 bytes of LZMA whose header asks for a window of 4 GB."""
    body = lzma.compress(P + b"N.", format=lzma.FORMAT_ALONE)[13:]
    return b"\x5d" + struct.pack("<I", 0xFFFFFFFF) + b"\xff" * 8 + body


KMEANS_BOMBS: dict[str, Callable[[], bytes]] = {
    "a length beyond the file": lambda: P + b"\x8e" + struct.pack("<Q", 1 << 40),
    "a frame beyond the file": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 40),
    "an integer beyond the file": lambda: P + b"\x8b" + struct.pack("<i", 1 << 30),
    "2 GB of zeros in 2 MB": lambda: zlib.compress(P + b"\x8e" + struct.pack("<Q", 1 << 31) + b"\0" * (1 << 26)),
    "a window of 4 GB": large_dictionary,
    "an array of 2**78 elements": lambda: kmeans_array((1 << 39, 1 << 39)),
    "an array of 2**30 elements": lambda: kmeans_array((1 << 20, 1 << 10)),
    "an array of -1 rows": lambda: kmeans_array((-1, 3)),
    "an array of True rows": lambda: kmeans_array((True, 3)),
    "tuples without end": lambda: P + nested_tuples(200) + b".",
    "a key that takes 2**24 steps to hash": lambda: P + b"}" + nested_tuples(24) + b"Ns.",
    "one text encoded again and again": lambda: (
        P + b"c_codecs\nencode\nq\x00" + string("a" * MB) + b"q\x01(" + b"h\x00h\x01\x85R" * 5000 + b"t."
    ),
    "one state copied again and again": lambda: (
        P + b"}(" + b"".join(string(str(key)) + b"N" for key in range(5000)) + b"uq\x01"
        b"csklearn.cluster._kmeans\nKMeans\nq\x02(" + b"h\x02)\x81h\x01b" * 1000 + b"t."
    ),
}  # fmt: skip


def kmeans_array(shape: tuple[int, ...]) -> bytes:
    """A model whose centroids have this shape, as joblib writes it, without their bytes."""
    size = b"(" + b"".join(b"\x88" if length is True else integer(length) for length in shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + string("f8") + b"\x85R"
    wrapper = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}(" + (
        string("shape") + size + string("order") + string("C") + string("dtype") + dtype
    ) + b"ub"  # fmt: skip
    return P + b"csklearn.cluster._kmeans\nKMeans\n)\x81}" + string("cluster_centers_") + wrapper + b"sb."


@pytest.mark.parametrize("bomb", KMEANS_BOMBS)
@pytest.mark.parametrize("shape_only", [False, True])
def test_a_model_cannot_take_memory_or_time_that_its_size_does_not_explain(bomb: str, shape_only: bool) -> None:
    data = KMEANS_BOMBS[bomb]()
    peak = peak_bytes(lambda: read_kmeans(Path("model.pt"), data, shape_only=shape_only))
    assert peak < (300 if "text" in bomb else 40) * MB  # 256 MB are what is granted to the encoding of text


@every_kind
def test_a_pickle_of_endless_steps_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(P + b"N0" * 600_000 + b".")
    assert "without end" in refused(LOADERS[kind], tmp_path / "model.pt")


def test_a_file_larger_than_any_model_is_refused_unread(tmp_path: Path) -> None:
    for start in (P + b"\x8e" + struct.pack("<Q", 40 << 30), b"\x78\x9c", b"BZh9", b"PK\x03\x04"):
        with (tmp_path / "model.pt").open("wb") as file:
            file.write(start)
            file.truncate(41 << 30)  # a hole: it takes no space on the disk
        for load in LOADERS.values():
            assert peak_bytes(load, tmp_path / "model.pt") < 20 * MB


OPCODES = {
    "a call by dotted name": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x93.",
    "an attribute of an allowed name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "a registered extension": P + b"\x82\x01.",
    "an old-style instance": P + b"(ios\nsystem\n.",
    "an old-style object": P + b"(cnumpy\ndtype\no.",
    "a persistent reference": P + b"K\x01Q.",
    "a persistent reference by name": b"Pa\n.",
    "a buffer from outside": b"\x80\x05\x97.",
    "a set": b"\x80\x04\x8f.",
    "a frozen set": b"\x80\x04(\x91.",
    "a state for a class": P + b"csklearn.cluster._kmeans\nKMeans\n}b.",
    "a state for a function": P + b"cnumpy\ndtype\n}b.",
    "a call of a class": P + b"csklearn.cluster._kmeans\nKMeans\n)R.",
    "a call of a text": P + string("a") + b")R.",
    "an instance of a function": P + b"cnumpy\ndtype\n)\x81.",
    "an item in an estimator": P + b"csklearn.cluster._kmeans\nKMeans\n)\x81K\x01K\x02s.",
    "an item appended to an estimator": P + b"csklearn.cluster._kmeans\nKMeans\n)\x81K\x01a.",
    "a memo that is not there": P + b"h\x07.",
    "a stack that is empty": P + b"0000.",
    "a mark that is not there": P + b"t.",
    "a name of several lines": b"\x80\x04" + b"\x8c\x04a\nb\x1b" + b"\x8c\x03c\rd" + b"\x93.",
    "an encoding of another name": P + b"c_codecs\nencode\n" + string("a") + string("hex") + b"\x86R.",
    "a negative place in the memo": b"Np-1\n.",
    "more digits than Python takes": b"I" + b"9" * 5000 + b"\n.",
}


@every_kind
@pytest.mark.parametrize("trick", OPCODES)
def test_tricks_of_the_pickle_machine_are_refused(kind: str, trick: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(OPCODES[trick])
    refused(LOADERS[kind], tmp_path / "model.pt")
    if kind != "k-means":
        refused(LOADERS[kind], zipped(tmp_path / "model.pt", OPCODES[trick]))


CHECKPOINT_BOMBS = {
    "a bytearray of 1 GB": P + b"cbuiltins\nbytearray\n" + integer(1 << 30) + b"\x85R.",
    "a key that takes 2**24 steps to hash": P + b"}" + nested_tuples(24) + b"K\x01s.",
    "a set of such": P + b"c__builtin__\nset\n](" + nested_tuples(24) + b"e\x85R.",
    "a storage of such a key": (
        P + b"(" + string("storage") + b"ctorch\nFloatStorage\n" + nested_tuples(24) + b"NK\x01tQ."
    ),
    "more weights than the file has bytes": P + b"}" + string("a") + tensor(1 << 40) + b"s.",
    "fewer weights than none": P + b"}" + string("a") + tensor(-5) + b"s.",
    "one text encoded again and again": (
        P + b"c_codecs\nencode\nq\x00" + string("a" * MB) + b"q\x01" + string("latin1")
        + b"q\x02(" + b"h\x00h\x01h\x02\x87R0" * 5000 + b"t."
    ),
    "one dict copied again and again": (
        P + b"ccollections\nCounter\nq\x00}(" + b"".join(string(str(key)) + b"K\x01" for key in range(5000))
        + b"uq\x01(" + b"h\x00h\x01\x85R" * 1000 + b"t."
    ),
    "a dict whose methods are replaced": P + b"ccollections\nOrderedDict\n)R}" + string("get") + b"K\x05sb.",
    "a number where a dict should be": P + b"K\x01K\x02K\x03s.",  # CVE-2026-24747, before PyTorch 2.10
    "a sparse tensor": P + b"ctorch._utils\n_rebuild_sparse_tensor\n)R.",
    "a tensor without data": P + b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R.",
}  # fmt: skip


@pytest.mark.parametrize("bomb", CHECKPOINT_BOMBS)
def test_a_checkpoint_cannot_take_memory_or_time_that_its_size_does_not_explain(bomb: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "model.pt", CHECKPOINT_BOMBS[bomb])
    assert peak_bytes(load_torch, path) < (300 if "text" in bomb else 40) * MB
    start = b"".join(pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {}))
    path.write_bytes(start + CHECKPOINT_BOMBS[bomb] + pickle.dumps(["0"], 2) + b"\0" * 8)
    assert peak_bytes(load_torch, path) < (300 if "text" in bomb else 40) * MB


def test_an_archive_that_torch_would_not_write_is_refused(tmp_path: Path) -> None:
    harmless = P + b"}."
    assert load_torch(zipped(tmp_path / "model.pt", harmless)) == {}
    for path in (
        zipped(tmp_path / "compressed.pt", harmless + b"\0" * (1 << 26), compression=zipfile.ZIP_DEFLATED),
        zipped(tmp_path / "two.pt", harmless, harmless),  # which of them is read depends on who reads
    ):
        assert "archive" in refused(load_torch, path)
    refused(load_torch, zipped(tmp_path / "none.pt"))


def test_a_tar_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.pt", "w") as archive:  # what torch.save wrote at first
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    refused(load_torch, tmp_path / "model.pt")


# Checkpoints that are harmless pickles with strange contents


def with_cfg(states: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """A WavLM file with another configuration, and only so much of the weights as loading looks at."""
    cfg = {**states["WavLM"]["cfg"], **changes}
    return save(folder / "WavLM.pt", {"cfg": cfg, "model": {"mask_emb": torch.zeros(2)}})


def with_model_config(states: dict[str, Any], folder: Path, **changes: Any) -> Path:
    """Likewise a conformer and vocoder."""
    model_config = {**states["conformer"]["extra"]["model_config"], **changes}
    needed = ("conformer.conformer_layers.2.ffn1.sequential.0.bias", "hifi.model.lin_pre.weight")
    weights = {name: states["conformer"]["model_state_dict"][name] for name in needed}
    return save(folder / "c.pth", {"extra": {"model_config": model_config}, "model_state_dict": weights})


def laughs(depth: int = 40) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = (value, value)
    return value


STRANGE = {
    "a tuple that takes 2**40 steps to print": laughs(),
    "a list of it": [laughs()],
    "a number of 150 digits": 10**150,
    "not a number": float("nan"),
    "a fraction": 2.5,
    "zero": 0,
    "a negative number": -1,
    "a tensor": torch.zeros(3),
    "an empty list": [],
    "lines": "a\nb\x1b[31m",
    "a long text": "x" * 100_000,
    "bytes": b"ab",
    "a dict": {"a": 1},
}


def test_an_unchanged_configuration_is_accepted(states: dict[str, Any], tmp_path: Path) -> None:
    load_wavlm(with_cfg(states, tmp_path))
    load_voice(with_model_config(states, tmp_path))


@pytest.mark.parametrize("strange", STRANGE)
def test_strange_values_in_a_configuration_are_refused(strange: str, states: dict[str, Any], tmp_path: Path) -> None:
    value = STRANGE[strange]
    for key in ("encoder_layers", "extractor_mode", "conv_feature_layers", "max_distance", "activation_fn"):
        assert key in refused(load_wavlm, with_cfg(states, tmp_path, **{key: value}))
    for key in ("conformer_num_layers", "kernel_size"):
        refused(load_voice, with_model_config(states, tmp_path, **{key: value}))
    hifi = states["conformer"]["extra"]["model_config"]["hifi_config"]
    for key in ("resblock", "upsample_rates", "resblock_dilation_sizes", "hubert_dim"):
        refused(load_voice, with_model_config(states, tmp_path, hifi_config={**hifi, key: value}))


@pytest.mark.parametrize("strange", [name for name in STRANGE if name != "zero"])
def test_strange_flags_are_refused(strange: str, states: dict[str, Any], tmp_path: Path) -> None:
    for key in ("layer_norm_first", "relative_position_embedding", "gru_rel_pos"):
        assert key in refused(load_wavlm, with_cfg(states, tmp_path, **{key: STRANGE[strange]}))


@pytest.mark.parametrize(
    "layers",
    ["[]", "[(1,2)]", "[(1,2,3)] * 33", "[(1,2,3)] * -1", "[] * 99999999999999999999", "[(1,2,3)] * 9**9**9",
     "[(True,2,3)]", "[(1,2,3.5)]", "[(0,2,3)]", "[" * 900, "(" * 900, "1+" * 400 + "1", "\0", "\ud800", "x" * 2000,
     "[(1,2,10**9)]", f"[(1,2,{'9' * 900})]", "lambda: 1", "[*[(1,2,3)]]", "f'{1}'"],
    ids=ascii,
)  # fmt: skip
def test_layers_that_are_no_list_of_layers_are_refused(layers: str) -> None:
    assert "conv_feature_layers" in refused(parse_conv_layers, Path("WavLM.pt"), layers)


@pytest.mark.parametrize(("changes", "why"), [({"num_buckets": 2}, "buckets"), ({"max_distance": 8}, "buckets")])
def test_positions_that_have_no_buckets_are_refused(
    changes: dict[str, Any], why: str, states: dict[str, Any], tmp_path: Path
) -> None:
    assert why in refused(load_wavlm, with_cfg(states, tmp_path, **changes))


def test_sizes_that_no_weight_bounds_are_bounded(states: dict[str, Any], tmp_path: Path) -> None:
    path = with_cfg(states, tmp_path, conv_feature_layers="[(32,10,5)] + [(32,3,1000)] * 6")
    assert "samples a frame" in refused(load_wavlm, path)
    hifi = states["conformer"]["extra"]["model_config"]["hifi_config"]
    for changes, why in (
        ({"resblock_dilation_sizes": [[1, 3, 1 << 20]] * 3}, "dilation"),
        ({"upsample_rates": [200] * 4, "upsample_kernel_sizes": [200] * 4}, "samples a frame"),
    ):
        assert why in refused(load_voice, with_model_config(states, tmp_path, hifi_config={**hifi, **changes}))


@pytest.mark.parametrize("place", ["/dev/zero", "/etc/passwd", "pipe", "", "..", "nul\0", "x" * 5000, "/proc/self/mem"])
def test_a_configuration_file_named_by_a_checkpoint_cannot_do_harm(
    place: str, states: dict[str, Any], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    place = str(tmp_path / "pipe") if place == "pipe" else place
    # Without the file the published sizes are assumed, which are not those of these weights.
    message = refused(load_voice, with_model_config(states, tmp_path, hifi_config=place))
    assert "root" not in message.replace(str(tmp_path), "")


def test_a_configuration_file_that_is_no_file_is_refused(good: dict[str, Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "missing"):
        assert str(place) in refused(load_voice, good["conformer"], place)


WEIGHT = "encoder.layers.0.fc1.weight"
GAIN = "encoder.pos_conv.0.weight_g"
STRANGE_WEIGHTS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "of integers": (WEIGHT, lambda weight: weight.int()),
    "of truth values": (WEIGHT, lambda weight: weight.bool()),
    "complex": (WEIGHT, lambda weight: weight.to(torch.complex64)),
    "sparse": (WEIGHT, lambda weight: weight.to_sparse()),
    "without data": (WEIGHT, lambda weight: weight.to("meta")),
    "in 8 bits": (WEIGHT, lambda weight: weight.to(torch.float8_e4m3fn)),
    "not finite": (WEIGHT, lambda weight: weight * float("nan")),
    "of another shape": (WEIGHT, lambda weight: weight[:1]),
    "of no dimension": (WEIGHT, lambda _: torch.tensor(1.0)),
    "empty": (WEIGHT, lambda weight: weight[:, :0]),
    # A gain that fits no norm was once ignored, and the weight taken unscaled.
    "with a gain of another number of axes": (GAIN, lambda gain: gain.flatten()),
    "with a gain of another length": (GAIN, lambda gain: gain[..., :5]),
    "with a gain for every element": (GAIN, lambda gain: gain.expand(64, 16, -1).contiguous()),
    "with a gain that is not finite": (GAIN, lambda gain: gain / 0),
}


@pytest.mark.parametrize("strange", STRANGE_WEIGHTS)
def test_weights_that_are_no_plain_floats_are_refused(strange: str, states: dict[str, Any], tmp_path: Path) -> None:
    name, change = STRANGE_WEIGHTS[strange]
    model = {**states["WavLM"]["model"], name: change(states["WavLM"]["model"][name])}
    path = save(tmp_path / "WavLM.pt", {**states["WavLM"], "model": model})
    refused(lambda: WavLM(path, load_wavlm(path), 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_floats_are_read(dtype: torch.dtype, states: dict[str, Any], tmp_path: Path) -> None:
    model = {name: weight.to(dtype) for name, weight in states["WavLM"]["model"].items()}
    path = save(tmp_path / "WavLM.pt", {**states["WavLM"], "model": model})
    read = WeightReader(path, load_wavlm(path).weights).take(WEIGHT, 128, 64)
    assert torch.equal(read, model[WEIGHT].float())


def test_weights_larger_than_their_data_are_refused(tmp_path: Path) -> None:
    huge = tensor(1, shape=1 << 46, stride=0)  # 256 TB, every element the same
    model = b"}" + string("a") + huge + b"s"
    path = zipped(tmp_path / "WavLM.pt", P + b"}" + string("cfg") + b"}s" + string("model") + model + b"s.")
    assert "times as large as their data" in refused(load_wavlm, path)


@pytest.mark.parametrize("missing", [WEIGHT, GAIN, "layer_norm.bias", "encoder.layers.5.self_attn.grep_a"])
def test_a_missing_weight_is_named(missing: str, states: dict[str, Any], tmp_path: Path) -> None:
    model = {name: weight for name, weight in states["WavLM"]["model"].items() if name != missing}
    path = save(tmp_path / "WavLM.pt", {**states["WavLM"], "model": model})
    assert missing.removesuffix("_g") in refused(lambda: WavLM(path, load_wavlm(path), 6))


def test_strange_keys_of_a_state_dict_are_passed_over_or_refused(states: dict[str, Any], tmp_path: Path) -> None:
    weight = torch.zeros(2)
    keys = ["conformer.conformer_layers." + "9" * 5000 + ".x", "conformer.conformer_layers.\u0663.x", "\n", 7, None]
    state = states["conformer"]
    path = save(
        tmp_path / "c.pth", {**state, "model_state_dict": {**state["model_state_dict"], **dict.fromkeys(keys, weight)}}
    )
    result_or_one_line(load_voice, path)


def test_a_prefix_without_end_is_not_followed(states: dict[str, Any], tmp_path: Path) -> None:
    model = {"module." * 200_000 + "x": torch.zeros(2)}  # each step of removing it copies it
    path = save(tmp_path / "WavLM.pt", {**states["WavLM"], "model": model})
    refused(lambda: WavLM(path, load_wavlm(path), 6))


def test_keys_are_shown_on_one_line(tmp_path: Path) -> None:
    for keys in (["a\nb\x1b[31m", 7], ["x" * 100_000], []):
        path = save(tmp_path / "model.pt", dict.fromkeys(keys, 1))
        refused(load_wavlm, path)
        refused(load_voice, path)


def test_a_vocoder_alone_is_held_to_the_same(states: dict[str, Any], tmp_path: Path) -> None:
    weights = {
        name.removeprefix("hifi.model."): weight
        for name, weight in states["conformer"]["model_state_dict"].items()
        if name.startswith("hifi.model.")
    }
    hifi = states["conformer"]["extra"]["model_config"]["hifi_config"]
    path = tmp_path / "g.pt"
    checkpoint = load_voice(save(path, {"generator": weights, "hifi_config": hifi}))
    HifiGan(path, checkpoint)
    refused(load_voice, save(path, {"generator": weights, "hifi_config": {**hifi, "upsample_rates": laughs()}}))
    refused(load_voice, save(path, {"generator": {}}))
    refused(load_voice, save(path, {"generator": {"lin_pre.weight": torch.zeros(3)}}))


# Banks and models that were exported


def write_bank(folder: Path, **changes: Any) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    np.save(folder / CENTROIDS_FILE, np.ones((2, 3, 4), np.float32))
    np.save(folder / HALF_NORMS_FILE, np.full((2, 3), 2.0))
    write_info(folder, BankInfo(["a", "b"], [3, 3], ["", ""], [[], []], [[], []], 4))
    return signed(folder, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"format_version": "1\n2"}, {"format_version": 1.0}, {"format_version": True}, {"format_version": "x" * 100_000},
     {"format_version": None}, {"names": ["\ud800", "b"]}, {"names": ["a\n", "b"]}, {"names": ["\x1b[31m", "b"]},
     {"names": ["a"]}, {"names": "ab"}, {"num_clusters": [0, 3]}, {"num_clusters": [4, 3]}, {"num_clusters": [3, 3.0]},
     {"unused": [[None], []]}, {"unused": [[-1], []]}, {"duplicates": [["a"], []]}, {"dim": 5}, {"dim": 10**400}],
    ids=lambda changes: ascii(changes)[:40],
)  # fmt: skip
def test_a_bank_that_says_strange_things_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    open_bank(write_bank(tmp_path / "bank"))
    refused(open_bank, write_bank(tmp_path / "bank", **changes), error=ArtifactError)


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4)}"
SHAPES = ("-2, 3, 4", "True, 3, 4", "2, 3", "0, 3, 4", "2**62, 3, 4", f"{1 << 62}, 3, 4", "9" * 5000)
ELEMENTS = ("|O", ">f4", "<f8", "|V4", "<U1", "(2,)<f4", "x")


@pytest.mark.parametrize(
    "header",
    [HEADER.replace("2, 3, 4", shape) for shape in SHAPES]
    + [HEADER.replace("<f4", element) for element in ELEMENTS]
    + [HEADER.replace("False", "True"), HEADER + "-" * 9000, "(" * 9000]
    + ["{'a': '''", "{1: 2}", "{'descr': 1L", "", "\0"],
    ids=lambda header: ascii(header)[:80],
)
def test_an_array_with_a_strange_header_is_refused(header: str, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank")
    for version in (1, 2, 3):
        length = struct.pack("<H" if version == 1 else "<I", len(header))
        (folder / CENTROIDS_FILE).write_bytes(
            b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + b"\0" * 4096
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that Python 2 wrote
            refused(open_bank, signed(folder), error=ArtifactError)


def test_arrays_that_are_pickles_or_archives_are_refused_and_never_run(tmp_path: Path) -> None:
    folder, canary = write_bank(tmp_path / "bank"), tmp_path / "canary"
    call = Call(os.system, f"touch {canary}")
    (folder / CENTROIDS_FILE).write_bytes(pickle.dumps(call))
    refused(open_bank, signed(folder), error=ArtifactError)
    np.save(folder / CENTROIDS_FILE, np.array([call], dtype=object), allow_pickle=True)
    refused(open_bank, signed(folder), error=ArtifactError)
    with (folder / CENTROIDS_FILE).open("wb") as file:
        np.savez(file, np.array([call], dtype=object), allow_pickle=True)
    refused(open_bank, signed(folder), error=ArtifactError)
    assert not canary.exists()


@pytest.mark.parametrize("name", [CENTROIDS_FILE, HALF_NORMS_FILE, "bank.json"])
def test_a_bank_of_what_is_no_file_is_refused_without_waiting(name: str, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank")
    path = folder / name
    path.unlink()
    refused(open_bank, folder, error=ArtifactError)
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), path.touch):
        make()
        refused(open_bank, folder, error=ArtifactError)
        path.unlink()
    path.mkdir()
    refused(open_bank, folder, error=ArtifactError)


@pytest.mark.parametrize(
    "text",
    ["", "[", "[" * 100_000, "null", "[]", '{"format_version": ' + "9" * 5000 + "}", "\ufeff{}"],
    ids=lambda text: ascii(text)[:20],
)
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank")
    (folder / "bank.json").write_text(text, encoding="utf-8")
    refused(open_bank, folder, error=ArtifactError)
    (folder / "bank.json").write_bytes(b"\xff")
    refused(open_bank, folder, error=ArtifactError)


@pytest.mark.parametrize(
    "changes", [{"hop": 0}, {"dim": 0}, {"min_samples": 0}, {"sample_rate": 0}, {"hop": -1}, {"hop": 10**300},
                {"sample_rate": (1 << 31) - 1}, {"hop": 1 << 15}, {"vocoder_reach": 1 << 30}, {"layer": 0},
                {"dim": 1 << 30},
                {"files": {}}, {"files": {"../wavlm.onnx": {"bytes": 0, "sha256": "0" * 64}}},
                {"conformer_layers": 1 << 20}, {"min_samples": (1 << 31) - 1}, {"sample_rate": True},
                {"precision": "a\nb"}, {"sources": {"a\n": "b"}}, {"sources": []}, {"layer": "6"}],
    ids=str,
)  # fmt: skip
def test_a_model_that_says_strange_things_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    for name in (WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE):
        (tmp_path / name).touch()
    write_info(tmp_path, ModelInfo(16000, 320, 400, 64, 6, "fp32", 3, 9, {}))
    assert read_model_info(tmp_path).frames(1600) == 4
    refused(read_model_info, signed(tmp_path, **changes), error=ArtifactError)


def test_directories_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path / ("x" * 300)):
        refused(open_bank, path, error=ArtifactError)
        refused(read_model_info, path, error=ArtifactError)
