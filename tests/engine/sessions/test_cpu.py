"""On a CPU: the vocoder in pieces equals the whole, and what is prepared and kept changes nothing."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest

from mkc_fast import Anonymizer, ArtifactError
from mkc_fast.engine.artifacts import CPU_VOCODER_FILE, read_model_info
from mkc_fast.engine.sessions import cpu as cpu_sessions
from mkc_fast.engine.sessions import prepared
from mkc_fast.engine.sessions.cpu import PiecedVocoder, open_on_cpu
from mkc_fast.engine.sessions.prepared import prepared_graph
from mkc_fast.engine.sessions.providers import Plan
from mkc_fast.engine.windows import exact_windows, pieces
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Artifacts


@pytest.fixture(autouse=True)
def no_native_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs where they are not built."""
    monkeypatch.setattr(cpu_sessions, "native_library", lambda: None)


# Sums in another order: of values up to 1.
TOLERANCE = 2e-6


@pytest.mark.parametrize("frames", [1, 2, 12, 13, 40, 130, 501])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_pieces_take_every_frame_from_where_it_has_its_context(frames: int, count: int) -> None:
    reach = 3
    taken, kept = pieces(frames, count, reach)
    assert taken.dtype == kept.dtype == np.int64
    assert len(taken) <= count
    assert taken.reshape(-1)[kept].tolist() == list(range(frames))
    width = taken.shape[1]
    for frame, place in enumerate(kept):
        piece, offset = divmod(int(place), width)
        assert taken[piece, 0] == 0 or offset >= reach, f"frame {frame} lacks what is before it"
        assert taken[piece, -1] == frames - 1 or offset < width - reach, f"frame {frame} lacks what is after it"


def test_pieces_of_one_length_are_as_many_as_asked_for_where_there_is_room() -> None:
    assert [len(pieces(frames, 4, 3)[0]) for frames in (12, 26, 52, 500)] == [1, 2, 4, 4]
    assert len(exact_windows(500, pieces(500, 4, 3)[0].shape[1], 3)) == 4


@pytest.fixture(scope="module")
def vocoders(artifacts: Artifacts) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """The plain vocoder and that in pieces."""
    plain, pieced = (
        ort.InferenceSession(str(artifacts.model / name), providers=["CPUExecutionProvider"])
        for name in (VOCODER_FILE, CPU_VOCODER_FILE)
    )
    return plain, pieced


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 30), (1, 210), (3, 57)])
def test_vocoder_in_pieces_equals_whole(
    vocoders: tuple[ort.InferenceSession, ort.InferenceSession],
    artifacts: Artifacts,
    batch: int,
    frames: int,
    threads: int,
) -> None:
    plain, session = vocoders
    reach = int(session.get_modelmeta().custom_metadata_map["piece_reach"])
    assert 0 < reach < read_model_info(artifacts.model).vocoder_reach
    features = np.random.default_rng(frames).standard_normal((batch, frames, read_model_info(artifacts.model).dim))
    inputs = {"features": features.astype(np.float32)}
    (expected,) = plain.run(["waveform"], inputs)
    (found,) = PiecedVocoder(session, reach, threads).run(["waveform"], inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_pieces_with_too_little_overlap_differ(
    vocoders: tuple[ort.InferenceSession, ort.InferenceSession], artifacts: Artifacts
) -> None:
    """The reach is needed: the test above can fail."""
    plain, session = vocoders
    features = np.random.default_rng(0).standard_normal((1, 90, read_model_info(artifacts.model).dim), np.float32)
    (expected,) = plain.run(["waveform"], {"features": features})
    (found,) = PiecedVocoder(session, 0, 3).run(["waveform"], {"features": features})
    assert np.abs(found - expected).max() > 100 * TOLERANCE


def test_model_without_cpu_graph_runs_the_plain_one(artifacts: Artifacts, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(artifacts.model, model)
    (model / CPU_VOCODER_FILE).unlink()
    *_, vocoder = open_on_cpu(model, Plan("cpu", "fp32"), tmp_path / "cache")
    assert isinstance(vocoder, ort.InferenceSession)


def test_cpu_graph_that_does_not_say_its_reach_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(artifacts.model, model)
    shutil.copy(model / VOCODER_FILE, model / CPU_VOCODER_FILE)
    with pytest.raises(ArtifactError, match=r"vocoder\.cpu\.onnx: its metadata does not say piece_reach"):
        open_on_cpu(model, Plan("cpu", "fp32"), tmp_path / "cache")


@pytest.fixture
def kept(artifacts: Artifacts, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of a graph of the test's own, and a cache folder."""
    graph = tmp_path / CONFORMER_FILE
    shutil.copy(artifacts.model / CONFORMER_FILE, graph)
    return graph, tmp_path / "cache"


def _run(session: ort.InferenceSession, dim: int) -> np.ndarray:
    features = np.random.default_rng(1).standard_normal((1, 50, dim)).astype(np.float32)
    restored: np.ndarray = session.run(["restored"], {"features": features, "lengths": np.array([50])})[0]
    return restored


def test_prepared_graph_gives_the_same_bits(
    kept: tuple[Path, Path], artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, cache = kept
    dim = read_model_info(artifacts.model).dim
    path = prepared_graph(graph, cache, least_bytes=0)
    assert path is not None
    assert (path.parent / f"{graph.name}.data").stat().st_size > graph.stat().st_size / 2
    plain = cpu_sessions._open(graph, Plan("cpu", "fp32"), cache)
    monkeypatch.setattr(
        cpu_sessions, "prepared_graph", lambda graph, cache: prepared_graph(graph, cache, least_bytes=0)
    )
    opened: list[str] = []
    inference_session = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, *rest, **named: opened.append(path) or inference_session(path, *rest, **named),
    )
    session = cpu_sessions._open(graph, Plan("cpu", "fp32"), cache)
    assert opened == [str(path)]
    assert np.array_equal(_run(session, dim), _run(plain, dim))


def test_prepared_once_and_again_when_the_graph_changes(kept: tuple[Path, Path]) -> None:
    graph, cache = kept
    first = prepared_graph(graph, cache, least_bytes=0)
    assert first is not None
    made = first.stat().st_mtime_ns
    assert prepared_graph(graph, cache, least_bytes=0) == first
    assert first.stat().st_mtime_ns == made
    os.utime(graph, ns=(1, 1))
    second = prepared_graph(graph, cache, least_bytes=0)
    assert second is not None
    assert second != first
    assert not first.exists(), "what was kept of the earlier content is in nobody's way"


def test_what_was_kept_of_a_graph_that_is_gone_is_removed(kept: tuple[Path, Path]) -> None:
    graph, cache = kept
    first = prepared_graph(graph, cache, least_bytes=0)
    assert first is not None
    moved = graph.rename(graph.with_name("moved.onnx"))
    second = prepared_graph(moved, cache, least_bytes=0)
    assert second is not None
    assert not first.exists()


def test_damaged_or_unwritable_cache_costs_time_only(
    kept: tuple[Path, Path], artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph, cache = kept
    dim = read_model_info(artifacts.model).dim
    expected = _run(cpu_sessions._open(graph, Plan("cpu", "fp32"), cache), dim)
    monkeypatch.setattr(
        cpu_sessions, "prepared_graph", lambda graph, cache: prepared_graph(graph, cache, least_bytes=0)
    )
    path = prepared_graph(graph, cache, least_bytes=0)
    assert path is not None
    path.write_bytes(b"nonsense")
    assert np.array_equal(_run(cpu_sessions._open(graph, Plan("cpu", "fp32"), cache), dim), expected)
    file = tmp_path / "file"
    file.write_text("no folder")
    assert prepared_graph(graph, file, least_bytes=0) is None
    assert np.array_equal(_run(cpu_sessions._open(graph, Plan("cpu", "fp32"), file), dim), expected)


def test_the_cache_folder_given_to_the_anonymizer_is_where_graphs_are_kept(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(cpu_sessions, "prepared_graph", lambda _, cache: asked.append(cache))
    Anonymizer.load(artifacts.model, artifacts.bank, cache=tmp_path)
    assert asked == [tmp_path] * 3


def test_small_graphs_are_not_kept(kept: tuple[Path, Path]) -> None:
    graph, cache = kept
    assert graph.stat().st_size < prepared._LEAST_BYTES
    assert prepared_graph(graph, cache) is None
    assert not cache.exists()


def test_damaged_graph_is_the_graphs_fault(kept: tuple[Path, Path]) -> None:
    graph, cache = kept
    graph.write_bytes(b"nonsense")
    assert prepared_graph(graph, cache, least_bytes=0) is None
    with pytest.raises(ArtifactError, match=r"conformer\.onnx: not a usable graph"):
        cpu_sessions._open(graph, Plan("cpu", "fp32"), cache)
