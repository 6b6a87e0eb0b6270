"""Shared fixtures: the reference checkpoints, models exported from them and from random weights."""

from __future__ import annotations

# First, since pytest puts the clone on Python's path, whose folder mkc_fast is only a part of the package: with an
# install that is not editable, the installed package is to be tested.
from tests import installed  # noqa: F401  # isort: skip
import fcntl
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mkc_fast import Anonymizer
from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE, ModelInfo
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.export import build_bank, export_model
from mkc_fast.export import model as exporter
from mkc_fast.export.graphs import torch_export
from mkc_fast.export.graphs.torch_export import ModuleGraph
from mkc_fast.export.random_checkpoints import Checkpoints, write_checkpoints

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).resolve().parent / "data"
GOLDEN = DATA / "golden"
RECORDINGS = ("jfk_b", "jfk_c")


needs_numpy_2 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 does not unpickle the random states of NumPy 2"
)

# A shell starts background jobs with SIGINT ignored, which processes started here would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Artifacts:
    """An exported model, a bank, and an anonymizer over both."""

    model: Path
    bank: Path
    anonymizer: Anonymizer


def signed(directory: Path, **changes: object) -> Path:
    """Make an artifact's JSON fit its files again, which a test has changed, with other facts; nothing is checked."""
    path = directory / (MODEL_FILE if (directory / MODEL_FILE).exists() else BANK_FILE)
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in directory.iterdir()
        if file.is_file() and file != path
    }
    said = {**json.loads(path.read_text()), "files": files, **changes}
    said.pop("digest")
    said["digest"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(said))
    return directory


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """A test that waits, for a pipe's other end say, fails."""

    def fail(*_: object) -> None:
        pytest.fail("waited for 300 s")  # not an Exception, so that no reader can take it for a damaged file

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference checkpoints and outputs."""
    return GOLDEN


@pytest.fixture(scope="session")
def speech() -> Path:
    """The folder of public-domain speech."""
    return DATA / "speech"


MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """``make_once(name, make)``: a folder that ``make`` fills once, for all processes of this run of the tests."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, finished = root / f"shared-{name}", root / f"shared-{name}.finished"
        with (root / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed here
                folder.mkdir()
                make(folder)
                finished.touch()
        return folder

    return made


@pytest.fixture(scope="session", autouse=True)
def equal_modules_are_exported_once(make_once: MakeOnce) -> Iterator[None]:
    """PyTorch's exporter takes seconds for a graph, so of equal modules it makes one in a run of the tests."""
    write = exporter.write_graph

    def remembered(path: Path, graph: ModuleGraph, info: ModelInfo) -> None:
        limit = torch_export.MAX_EMBEDDED_BYTES  # which tests lower
        facts = hashlib.sha256(repr((graph.file, graph.metadata, str(graph.module), info, limit)).encode())
        for name, value in graph.module.state_dict().items():
            facts.update(name.encode() + value.numpy().tobytes())
        made = make_once(f"graph-{facts.hexdigest()}", lambda folder: write(folder / path.name, graph, info))
        shutil.copytree(made, path.parent, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "write_graph", remembered)
        yield


@pytest.fixture(scope="session")
def golden_artifacts(golden: Path, make_once: MakeOnce) -> Artifacts:
    """The reference checkpoints, exported."""

    def make(folder: Path) -> None:
        export_model(golden / "WavLM.pt", golden / "conformer.pth", folder / "model")
        build_bank(golden / "kmeans.scp", folder / "bank")

    folder = make_once("golden", make)
    return Artifacts(folder / "model", folder / "bank", Anonymizer.load(folder / "model", folder / "bank"))


@pytest.fixture(scope="session")
def checkpoints(make_once: MakeOnce) -> Checkpoints:
    """Small checkpoints with random weights."""

    def make(folder: Path) -> None:
        write_checkpoints(folder, num_kmeans=8)

    folder = make_once("checkpoints", make)
    return Checkpoints(folder / "WavLM.pt", folder / "conformer.pth", folder / "kmeans.scp")


@pytest.fixture(scope="session")
def artifacts(checkpoints: Checkpoints, make_once: MakeOnce) -> Artifacts:
    """The random checkpoints, exported."""

    def make(folder: Path) -> None:
        export_model(checkpoints.wavlm, checkpoints.ckpt, folder / "model")
        build_bank(checkpoints.kmeans_scp, folder / "bank")

    folder = make_once("artifacts", make)
    return Artifacts(folder / "model", folder / "bank", Anonymizer.load(folder / "model", folder / "bank"))


@pytest.fixture(scope="session")
def cuda_artifacts(checkpoints: Checkpoints, make_once: MakeOnce) -> Artifacts:
    """The random checkpoints, exported with graphs for CUDA; the anonymizer runs on the CPU."""

    def make(folder: Path) -> None:
        export_model(checkpoints.wavlm, checkpoints.ckpt, folder / "model", cuda=True)
        build_bank(checkpoints.kmeans_scp, folder / "bank")

    folder = make_once("cuda-artifacts", make)
    return Artifacts(folder / "model", folder / "bank", Anonymizer.load(folder / "model", folder / "bank"))


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    """The demo's speech clip, (S,) float32 at 16 kHz."""
    return read_waveform(ROOT / "cli" / "demo_speech.flac", 16000)
