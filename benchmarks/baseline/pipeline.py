"""The baseline: published checkpoints run as research scripts run them, one utterance at a time, in PyTorch.

Eager modules in float32 under ``torch.inference_mode``; WavLM with all its layers in memory, its forward pass stopped
at the one that is needed; every k-means model unpickled by joblib into every process; scikit-learn's ``predict`` on
float64 once for each group of frames that share a bank entry (at stride 1: once a frame); centroids looked up on the
host. Needs torch, scikit-learn and joblib; joblib executes what a pickle asks for, so each file must first pass the
strict reader of ``export.kmeans``.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import threadpoolctl
import torch

from mkc_fast.benchmarks.baseline.kmeans import load_kmeans
from mkc_fast.benchmarks.baseline.modules import EagerConformer, EagerHifiGan, EagerWavLM, check_sizes
from mkc_fast.engine.anonymizer import Result
from mkc_fast.engine.audio.waveform import check_waveform
from mkc_fast.engine.datasets.path_lists import read_named_paths
from mkc_fast.engine.draws import draw_bank_ids
from mkc_fast.errors import BankError
from mkc_fast.export.checkpoints.kmeans import read_kmeans
from mkc_fast.export.checkpoints.published import load_voice, load_wavlm
from mkc_fast.names import ASSIGN, AUDIO, CPU, ENCODE, FRAME, RESTORE, VOCODE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class BaselineInfo:
    """Sizes that a benchmark needs to know."""

    sample_rate: int
    hop: int
    min_samples: int
    dim: int
    layer: int

    def frames(self, samples: int) -> int:
        """Frames that so many samples give."""
        return max(0, (samples - self.min_samples) // self.hop + 1)


class Baseline:
    """Anonymizes one utterance at a time, as ``Anonymizer`` does and with the same results to 1e-4."""

    def __init__(
        self,
        info: BaselineInfo,
        modules: tuple[EagerWavLM, EagerConformer, EagerHifiGan],
        kmeans: Sequence[Any],
        device: torch.device,
        threads: int | None,
    ) -> None:
        """Use ``Baseline.load``."""
        self.info = info
        self.kmeans = kmeans
        self._wavlm, self._conformer, self._vocoder = modules
        self._device = device
        self._threads = threads

    @classmethod
    def load(
        cls,
        wavlm_ckpt: Path,
        ckpt: Path,
        kmeans_scp: Path,
        *,
        kmeans_num: int | None = None,
        hifi_config: Path | None = None,
        layer: int = 6,
        device: str = CPU,
        threads: int | None = None,
        check: bool = True,
    ) -> Baseline:
        """Build the modules and unpickle every k-means model.

        Args:
            wavlm_ckpt: WavLM checkpoint.
            ckpt: Conformer + vocoder checkpoint.
            kmeans_scp: ``name path`` a line.
            kmeans_num: How many of the k-means models; default: all.
            hifi_config: JSON file with the vocoder's sizes, where the checkpoint's own are missing.
            layer: WavLM layer whose output the k-means models were trained on.
            device: Of torch.
            threads: Of torch and of scikit-learn; default: what they take by themselves.
            check: Pass every k-means file through the strict reader before it is unpickled. Without it, give only
                files that you made: timings of loading should not count what the baseline does not do.

        Raises:
            CheckpointError, ListError: A file is missing, damaged, or of another form.
        """
        wavlm, voice = load_wavlm(wavlm_ckpt), load_voice(ckpt, hifi_config)
        check_sizes(wavlm_ckpt, wavlm.config, voice, layer)
        place = torch.device(device)
        modules = (EagerWavLM(wavlm_ckpt, wavlm), EagerConformer(ckpt, voice), EagerHifiGan(ckpt, voice))
        for module in modules:
            module.eval().to(place)
        info = BaselineInfo(
            voice.hifigan.sample_rate, wavlm.config.hop, wavlm.config.min_samples, wavlm.config.dim, layer
        )
        paths = [path for _, path in read_named_paths(kmeans_scp)[:kmeans_num]]
        for path in paths if check else ():
            read_kmeans(path, shape_only=True)  # nothing but a k-means model is unpickled
        kmeans = load_kmeans(paths)
        for model in kmeans:
            if threads is not None:
                model._n_threads = threads  # what fit() sets: the number of cores of the machine that trained it
        return cls(info, modules, kmeans, place, threads)

    def anonymize(
        self,
        waveform: ArrayLike,
        mode: str = FRAME,
        stride: int = 1,
        seed: int = 0,
        utterance_id: str = "",
        bank_ids: ArrayLike | None = None,
    ) -> Result:
        """Anonymize one utterance, with the draws that ``Anonymizer.anonymize`` makes of the same seed and id.

        Raises:
            AudioError: The waveform is not (S,) float, too short, or not finite.
            BankError: There is not one bank id for every frame.
        """
        checked = check_waveform(waveform, self.info.min_samples)
        frames = self.info.frames(len(checked))
        if bank_ids is None:
            banks = draw_bank_ids(
                frames, len(self.kmeans), mode=mode, stride=stride, seed=seed, utterance_id=utterance_id
            )
        else:
            banks = np.asarray(bank_ids, np.int64)
        if banks.shape != (frames,):
            raise BankError(f"bank_ids has shape {banks.shape}; this waveform has {frames} frames")
        seconds: dict[str, float] = {}
        with self._limits(), torch.inference_mode():
            with self._timed(ENCODE, seconds):
                features = self._wavlm(torch.from_numpy(checked)[None].to(self._device), self.info.layer)
            with self._timed(ASSIGN, seconds):
                cluster_ids, quantized = self._quantize(features[0], banks, mode, stride, given=bank_ids is not None)
            with self._timed(RESTORE, seconds):
                restored = self._conformer(quantized[None])
            with self._timed(VOCODE, seconds):
                speech = self._vocoder(restored)[0].cpu().numpy()
        return Result(speech, banks, cluster_ids, seconds)

    def _quantize(
        self, features: torch.Tensor, banks: NDArray[np.int64], mode: str, stride: int, *, given: bool
    ) -> tuple[NDArray[np.int32], torch.Tensor]:
        """One ``predict`` a group of frames: (T, D), (T,) → ids (T,), centroids (T, D)."""
        host = features.cpu().numpy().astype(np.float64)
        if given:  # groups are runs of frames with one entry
            starts = [0, *(np.flatnonzero(np.diff(banks)) + 1).tolist()]
        else:
            starts = list(range(0, len(host), len(host) if mode == AUDIO else stride))
        cluster_ids = np.empty(len(host), np.int32)
        quantized = np.empty_like(host)
        for start, stop in zip(starts, [*starts[1:], len(host)], strict=True):
            model = self.kmeans[banks[start]]
            ids = model.predict(host[start:stop])
            cluster_ids[start:stop] = ids
            quantized[start:stop] = model.cluster_centers_[ids]
        return cluster_ids, torch.from_numpy(quantized.astype(np.float32)).to(self._device)

    @contextlib.contextmanager
    def _limits(self) -> Iterator[None]:
        """As many threads as asked for, and the caller's again afterwards."""
        if self._threads is None:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with threadpoolctl.threadpool_limits(self._threads):
                yield
        finally:
            torch.set_num_threads(before)

    @contextlib.contextmanager
    def _timed(self, stage: str, seconds: dict[str, float]) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds[stage] = time.perf_counter() - begin


def product(left: NDArray[np.float32], right: NDArray[np.float32]) -> torch.Tensor:
    """PyTorch's matrix product of float32 on the CPU, for the machine's ceiling."""
    return torch.from_numpy(left) @ torch.from_numpy(right)
