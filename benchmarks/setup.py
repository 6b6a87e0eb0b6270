"""What ``mkc-fast bench`` runs on: given artifacts or random weights from the cache, and the baseline's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from mkc_fast.benchmarks.target import Target
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.datasets.path_lists import read_named_paths
from mkc_fast.engine.devices import cuda_index
from mkc_fast.errors import MkcError
from mkc_fast.extras import missing_packages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.engine.options import EngineOptions


@dataclass(frozen=True)
class Checkpoints:
    """What the baseline loads.

    Attributes:
        wavlm_ckpt: WavLM checkpoint.
        ckpt: Conformer + vocoder checkpoint.
        kmeans_scp: List of pickled k-means models.
    """

    wavlm_ckpt: Path
    ckpt: Path
    kmeans_scp: Path

    def checked_kmeans(self) -> list[Path]:
        """The k-means models, each passed by the strict reader, since the baseline will unpickle them.

        Raises:
            CheckpointError, ListError: The list or a model cannot be read, or holds something else.
        """
        from mkc_fast.export.checkpoints.kmeans import read_kmeans

        paths = [path for _, path in read_named_paths(self.kmeans_scp)]
        for path in paths:
            read_kmeans(path, shape_only=True)
        return paths


@dataclass(frozen=True)
class Setup:
    """What a command measures, and the same model's checkpoints, if they are known."""

    target: Target
    checkpoints: Checkpoints | None

    def speech(self, recording: Path | None) -> NDArray[np.float32]:
        """The recording, or the clip that comes with the package, at the model's rate: (S,)."""
        rate = self.target.info.sample_rate
        if recording is not None:
            return read_waveform(recording, rate)
        with as_file(files("mkc_fast.cli") / "demo_speech.flac") as clip:
            return read_waveform(clip, rate)


@dataclass(frozen=True)
class Artifacts:
    """The artifacts that were asked for: model and bank (and their checkpoints), or else random weights of a size."""

    model: Path | None = None
    bank: Path | None = None
    size: str = "large"
    entries: int = 100
    wavlm_ckpt: Path | None = None
    ckpt: Path | None = None
    kmeans_scp: Path | None = None
    cache: Path | None = None

    def set_up(self, device: str, options: EngineOptions, progress: Callable[[str], None] = lambda _: None) -> Setup:
        """Take them from where they are, or make random weights.

        Raises:
            MkcError: Artifacts that go together are not given together.
            DeviceError: The device has an unknown name.
        """
        cuda_index(device)
        if (self.model is None) != (self.bank is None):
            raise MkcError("--model and --bank go together")
        given = [path is not None for path in (self.wavlm_ckpt, self.ckpt, self.kmeans_scp)]
        if any(given) and (self.model is None or not all(given)):
            raise MkcError("--wavlm-ckpt, --ckpt and --kmeans-scp go together, and with --model and --bank")
        if self.model is None or self.bank is None:
            from mkc_fast.benchmarks.random_artifacts import random_artifacts  # with mkc_fast.export

            made = random_artifacts(self.size, self.cache or default_cache(), self.entries, progress)
            target = Target(made.model, made.bank, device, options, f"random, size {self.size}")
            return Setup(target, Checkpoints(made.wavlm, made.ckpt, made.kmeans_scp))
        checkpoints = None
        if self.wavlm_ckpt is not None and self.ckpt is not None and self.kmeans_scp is not None:
            checkpoints = Checkpoints(self.wavlm_ckpt, self.ckpt, self.kmeans_scp)
        return Setup(Target(self.model, self.bank, device, options), checkpoints)


def missing_for_baseline() -> str | None:
    """What the baseline needs and is not installed, with the command that installs it; None if all is there."""
    return missing_packages("torch", "sklearn", "joblib", "threadpoolctl")
