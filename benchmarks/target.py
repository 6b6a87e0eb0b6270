"""What a benchmark runs on: artifacts, device, provider, precision and threads, and what a result says of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.records import short
from mkc_fast.engine.artifacts import ModelInfo, open_bank, read_model_info
from mkc_fast.engine.devices import cores
from mkc_fast.engine.options import EngineOptions
from mkc_fast.engine.sessions.providers import resolve_precision
from mkc_fast.errors import ArtifactError
from mkc_fast.extras import required
from mkc_fast.names import ASSIGN, CONFORMER_FILE, CPU, ENCODE, RESTORE, VOCODE, VOCODER_FILE, WAVLM_FILE

if TYPE_CHECKING:
    from mkc_fast.engine.anonymizer import Anonymizer

# Multiply-adds counted as 2, of the layers as they are published, for one second of audio: WavLM Large to layer 6, a
# look-up in 1,024 clusters, the published conformer and vocoder.
_LARGE_GFLOP_A_SECOND = {ENCODE: 14.0, ASSIGN: 0.1, RESTORE: 30.1, VOCODE: 38.6}
GRAPHS_OF_STAGES = {ENCODE: WAVLM_FILE, RESTORE: CONFORMER_FILE, VOCODE: VOCODER_FILE}


@dataclass(frozen=True)
class Target:
    """What is measured.

    Attributes:
        model: Exported model.
        bank: Bank.
        device: ``cpu`` or ``cuda:<number>``.
        options: How the engine runs.
        weights: What the weights are, in words: ``random, size large``, or a name.
    """

    model: Path
    bank: Path
    device: str = CPU
    options: EngineOptions = field(default_factory=EngineOptions)
    weights: str = "given"

    @property
    def used_threads(self) -> int | None:
        """Threads of one operator: on the CPU what corpus runs use, on a GPU what the engine chooses."""
        return self.options.threads or (cores() if self.device == CPU else None)

    @property
    def info(self) -> ModelInfo:
        """Of the model."""
        return read_model_info(self.model)

    def load(self) -> Anonymizer:
        """Open the artifacts.

        Threads that were asked for bind NumPy's look-up, too, for as long as the process lives.

        Raises:
            MkcError: Threads were asked for, and threadpoolctl, which that needs, is not installed.
        """
        if self.options.threads is not None:
            with required("--threads", "threadpoolctl"):
                import threadpoolctl
            threadpoolctl.threadpool_limits(self.options.threads, user_api="blas")
        from mkc_fast.engine.anonymizer import Anonymizer

        options = replace(self.options, threads=self.used_threads)
        return Anonymizer.load(self.model, self.bank, self.device, options=options)

    def described(self) -> dict[str, Any]:
        """What a result says of it."""
        info, bank = self.info, open_bank(self.bank)
        return {
            "weights": self.weights,
            "device": self.device,
            "provider": self.options.provider,
            "precision": self.options.precision,
            "operators": self.operators(),
            "threads": self.used_threads,
            "dim": info.dim,
            "layer": info.layer,
            "conformer_layers": info.conformer_layers,
            "graph_mb": {stage: short(self.weight_bytes(stage) / 1e6) for stage in GRAPHS_OF_STAGES},
            "entries": len(bank),
            "clusters": int(bank.centroids.shape[1]),
        }

    def operators(self) -> str:
        """Which operators a CPU runs, in words; empty on a GPU."""
        if self.device != CPU:
            return ""
        from mkc_fast.engine.sessions.cpu import operators_used

        return operators_used(self.model, resolve_precision(self.options.provider, self.options.precision, None))

    def weight_bytes(self, stage: str) -> int:
        """Bytes of a stage's graph and of the weights beside it, in float32."""
        files = [path for path in self.model.glob(f"{GRAPHS_OF_STAGES[stage]}*") if path.is_file()]
        if not files:
            raise ArtifactError(f"{self.model}: {GRAPHS_OF_STAGES[stage]} is missing; export the model again")
        return sum(path.stat().st_size for path in files)

    def gflop_a_second(self) -> dict[str, float] | None:
        """Billions of operations that a second of audio needs, by stage; None where the sizes are not the published."""
        info = self.info
        large = (info.dim, info.layer, info.conformer_layers, info.hop) == (1024, 6, 12, 320)
        return dict(_LARGE_GFLOP_A_SECOND) if large else None
