"""Nothing here reports home: no command leaves ONNX Runtime's files behind or connects to another machine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import telemetry
from tests.conftest import ROOT, Artifacts

STRACE = shutil.which("strace")
# ONNX Runtime is silent where one of these is set, so that a test on a CI machine would find nothing in any case.
SILENCING = {
    "APPVEYOR", "BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CI", "CIRCLECI", "CODEBUILD_BUILD_ID", "GITHUB_ACTIONS",
    "GITLAB_CI", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS",
    "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS",
}  # fmt: skip
# Where programs keep their files when the home folder is not asked.
ELSEWHERE = {"MKC_FAST_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"}
_LOCAL = re.compile(r'inet_addr\("127\.|inet_pton\(AF_INET6, "(::1|::ffff:127\.[\d.]+)"')
_FOLLOW = ("-f", "--seccomp-bpf")  # children, too; and only the calls that are traced are slowed down
# Uploading begins some seconds after the import: the program waits for it.
_UPLOADS_BEGIN_S = 10


@dataclass(frozen=True)
class Trace:
    """Files that a program in a fresh home left outside our own cache, and its calls that named another machine."""

    code: int
    shown: str
    files: list[str]
    reached: list[str]

    def is_private(self) -> bool:
        """Whether no other machine was named, and no file is ONNX Runtime's or Microsoft's."""
        return not self.reached and not [
            name for name in self.files if re.search("onnxruntime|microsoft", name, re.IGNORECASE)
        ]


@pytest.fixture
def fresh_home(tmp_path: Path):
    """A function that runs a program of this interpreter in a home without files, watched where strace can."""

    def run(*arguments: str, **variables: str) -> Trace:
        home, temporary, log = tmp_path / "home", tmp_path / "temporary", tmp_path / "strace.log"
        for folder in (home, temporary):
            folder.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in SILENCING | ELSEWHERE}
        environment = {**kept, "HOME": str(home), "TMPDIR": str(temporary), **variables}
        watched = [STRACE, *_FOLLOW, "-qq", "-e", "trace=network", "-o", str(log)] if can_trace() else []
        ended = subprocess.run(
            [*watched, sys.executable, *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return Trace(
            ended.returncode,
            ended.stdout + ended.stderr,
            sorted(
                str(path.relative_to(tmp_path))
                for folder in (home, temporary)
                for path in folder.rglob("*")
                if not path.is_dir() and not path.is_relative_to(home / ".cache" / "mkc-fast")
            ),
            [line for line in lines if "sa_family=AF_INET" in line and not _LOCAL.search(line)],
        )

    return run


def can_trace() -> bool:
    """Whether strace is here and may attach; containers forbid it at times."""
    if STRACE is None:
        return False
    return (
        subprocess.run(
            [STRACE, *_FOLLOW, "-e", "trace=network", "-o", os.devnull, "true"], capture_output=True, check=False
        ).returncode
        == 0
    )


def own_address() -> str:
    """This machine's address, as others see it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def has_telemetry() -> bool:
    """Whether the ONNX Runtime installed here would report: not before 1.29, and not if built without."""
    import onnxruntime

    libraries = (Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*")
    return any(telemetry.VARIABLE.encode() in library.read_bytes() for library in libraries)


def test_left_alone_onnx_runtime_leaves_its_files(fresh_home) -> None:
    # What the other tests look for is there to be found; if this fails, they show nothing.
    if not has_telemetry():
        pytest.skip("this ONNX Runtime has no telemetry")
    assert not fresh_home("-c", "import onnxruntime").is_private()


def test_a_connection_to_another_machine_is_seen(fresh_home) -> None:
    if not can_trace():
        pytest.skip("strace is not here, or may not attach")
    connect = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(({!r}, 9))"
    assert fresh_home("-c", connect.format("127.0.0.1")).is_private()
    assert not fresh_home("-c", connect.format("192.0.2.1")).is_private()  # of a network that exists in documents only


def test_the_python_api_sends_and_leaves_nothing(fresh_home, artifacts: Artifacts) -> None:
    script = (
        "import sys, time, numpy; from mkc_fast import Anonymizer; anonymizer = Anonymizer.load(*sys.argv[1:]); "
        "print(anonymizer.anonymize(numpy.full(16000, 0.1, numpy.float32)).waveform.shape); "
        f"time.sleep({_UPLOADS_BEGIN_S if can_trace() else 0})"
    )
    found = fresh_home("-c", script, str(artifacts.model), str(artifacts.bank))
    assert (found.code, found.files, found.reached) == (0, [], []), found


def test_workers_send_and_leave_nothing(fresh_home, artifacts: Artifacts, tmp_path: Path, clip: np.ndarray) -> None:
    for number in range(4):
        soundfile.write(tmp_path / f"u{number}.wav", clip, 16000)
    (tmp_path / "wav.scp").write_text("".join(f"u{n} {tmp_path}/u{n}.wav\n" for n in range(4)))
    found = fresh_home(
        "-m", "mkc_fast", "infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp",
        str(tmp_path / "wav.scp"), "--output-dir", str(tmp_path / "out"), "--gpus", "cpu", "--num-proc", "2",
        ORT_DISABLE_TELEMETRY="0",  # whatever the user's own settings are
    )  # fmt: skip
    assert (found.code, found.files, found.reached) == (0, [], []), found


def test_an_evaluation_sends_nothing_with_every_model_that_is_installed(fresh_home, tmp_path: Path) -> None:
    speakers = ROOT / "cli" / "demo_speakers"
    for name in ("wav.scp", "utt2spk"):
        lines = (speakers / name).read_text().splitlines()[:4]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    for path in (tmp_path / "wav.scp").read_text().split()[1::2]:
        (tmp_path / path).symlink_to(speakers / path)
    found = fresh_home(
        "-m", "mkc_fast", "evaluate", str(tmp_path), str(tmp_path), "--jobs", "2", "--out", str(tmp_path / "out"),
        ORT_DISABLE_TELEMETRY="0",  # whatever the user's own settings are
    )  # fmt: skip
    assert found.code == 0, found
    assert found.is_private(), found


def test_a_ray_cluster_of_this_machine_sends_and_leaves_nothing(
    fresh_home, artifacts: Artifacts, tmp_path: Path, clip: np.ndarray
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    soundfile.write(tmp_path / "u.wav", clip, 16000)
    found = fresh_home(
        "-m", "mkc_fast", "infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--input",
        str(tmp_path / "u.wav"), "--output-dir", str(tmp_path / "out"), "--ray", "local",
        RAY_USAGE_STATS_ENABLED="1",  # whatever the user's own settings are
        RAY_USAGE_STATS_REPORT_INTERVAL_S="1",
    )  # fmt: skip
    assert (found.code, found.files) == (0, []), found
    # Its processes talk by this machine's address, which Ray asks the system for: a datagram socket is connected to an
    # address elsewhere, and nothing is sent on it.
    own = re.compile(rf'"(::ffff:)?({re.escape(own_address())}|0\.0\.0\.0)"|"::"')
    reached = [line for line in found.reached if not own.search(line)]
    assert not [line for line in reached if not re.search(r'connect\(.*htons\(53\).*"8\.8\.8\.8"\)', line)], reached


def test_doctor_sends_and_leaves_nothing(fresh_home) -> None:
    found = fresh_home("-m", "mkc_fast", "doctor", "--device", "cpu")
    assert (found.code, found.files, found.reached) == (0, [], []), found


def test_the_whole_path_from_checkpoints_to_a_picture_sends_nothing(fresh_home, tmp_path: Path) -> None:
    found = fresh_home("-m", "mkc_fast", "demo", "--out", str(tmp_path / "demo"))
    assert found.code == 0, found.shown
    assert found.is_private(), found
    assert all("matplotlib" in name for name in found.files), found.files


def test_a_download_whose_terms_are_not_accepted_connects_to_nothing(fresh_home, tmp_path: Path) -> None:
    for name in ("wavlm", "conformer", "kmeans"):
        found = fresh_home("-m", "mkc_fast", "download", name, "--out", str(tmp_path / "ckpt"))
        assert (found.code, found.files, found.reached) == (2, [], []), found


def test_one_module_opens_connections() -> None:
    clients = re.compile(r"(gdown|pooch|requests|httpx|ftplib|http\.client|urllib\.request)\b")
    found = {path for path, name in imported() if clients.match(name)}
    assert found == {"export/downloads/transfer.py"}


def test_importing_onnx_runtime_first_is_warned_of(fresh_home) -> None:
    first = "import onnxruntime; import mkc_fast"
    assert ("onnxruntime was imported before mkc_fast" in fresh_home("-c", first).shown) == has_telemetry()
    assert "onnxruntime" not in fresh_home("-c", first, ORT_DISABLE_TELEMETRY="1").shown
    assert "onnxruntime" not in fresh_home("-c", "import mkc_fast; import onnxruntime").shown


def test_events_of_an_onnx_runtime_that_came_first_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Loaded:
        __version__ = "1.31.0"

        @staticmethod
        def disable_telemetry_events() -> None:
            asked.append("disable")

    monkeypatch.setitem(sys.modules, "onnxruntime", Loaded)  # type: ignore[arg-type]
    monkeypatch.setenv(telemetry.VARIABLE, "0")
    with pytest.warns(UserWarning, match="import mkc_fast first"):
        telemetry.switch_off()
    assert asked == ["disable"]
    assert os.environ[telemetry.VARIABLE] == "1"
    Loaded.__version__ = "1.24.4"  # without telemetry: nothing to warn of
    monkeypatch.setenv(telemetry.VARIABLE, "")
    telemetry.switch_off()


def test_a_missing_onnx_runtime_is_one_error_that_names_the_extra() -> None:
    code = """
import sys
sys.modules["onnxruntime"] = None
from mkc_fast.errors import MkcError
try:
    from mkc_fast import Anonymizer
except MkcError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("ONNX Runtime is not installed: pip install 'mkc-fast[cpu]'")


def test_one_module_imports_onnx_runtime() -> None:
    found = {path for path, name in imported() if name.split(".")[0] == "onnxruntime"}
    assert found == {"mkc_fast/onnx_runtime.py"}


def imported() -> Iterator[tuple[str, str]]:
    """The path of each module of the package, with each name that it imports."""
    for folder in ("mkc_fast", "engine", "export", "kernels", "cli", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                    names += [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                for name in names:
                    yield str(path.relative_to(ROOT)), name
