"""Judges graphs against float64 by what float32 itself loses there.

The reference is the PyTorch module in double. On each kind of input (``mkc_fast.export.precision.probes``) the largest
error of the graph may be at most 4 times the largest error that PyTorch's own float32 has against that reference, plus
1e-5 of the largest value. PyTorch's errors are pooled over all utterances of one level, quiet ones or loud ones say: a
single one may round luckily. Levels are not pooled with each other: where float32 is inaccurate on loud inputs, that
would hide a defect that quiet ones show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mkc_fast.engine.artifacts import CHECK_INEXACT, CHECK_PASSED, LARGEST, RMS, GraphCheck
from mkc_fast.engine.windows import pieces
from mkc_fast.errors import CheckpointError, MkcError
from mkc_fast.export.graphs.files import open_session
from mkc_fast.export.precision.probes import feature_probes, quantized, waveform_probes
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.export.precision.probes import Probe
    from mkc_fast.onnx_runtime import ort

    Run = Callable[[NDArray[np.float32], Sequence[int]], NDArray[np.float32]]

# Of PyTorch's float32 error, and of the largest value.
FACTOR, SHARE = 4.0, 1e-5
# Of the CPU's vocoder when it is judged; the longest input is long enough for so many.
_PIECES = 3


@dataclass(frozen=True)
class Reference:
    """What a module makes of a probe, in float64 and in float32.

    Attributes:
        probe: The inputs.
        exact: What the module in double gives for each utterance alone, float64.
        float32: What the module as it is gives, float32.
    """

    probe: Probe
    exact: tuple[NDArray[np.float64], ...]
    float32: tuple[NDArray[np.float32], ...]

    def scale(self) -> float:
        """The largest absolute value."""
        return max(float(np.abs(row).max()) for row in self.exact)


def references(path: Path, module: torch.nn.Module, probes: Sequence[Probe], *, lengths: bool) -> list[Reference]:
    """Run a module on probes in float32 and in float64; it is in double meanwhile and float32 again afterwards.

    Args:
        path: The checkpoint, for errors.
        module: Takes (1, S) or (1, T, D) and, with ``lengths``, an int64 (1,).
        probes: The inputs.
        lengths: Whether it takes lengths.

    Raises:
        CheckpointError: It gives values that are not finite for inputs of the pass.
    """
    single = [_outputs(module, probe, torch.float32, lengths=lengths) for probe in probes]
    module.double()
    try:
        double = [_outputs(module, probe, torch.float64, lengths=lengths) for probe in probes]
    finally:
        module.float()  # exact: every weight was a float32 number before
    found = []
    for probe, exact, float32 in zip(probes, double, single, strict=True):
        if all(np.isfinite(row).all() for row in (*exact, *float32)):
            found.append(Reference(probe, exact, float32))
        elif probe.of_pass:
            raise CheckpointError(f"{path}: gives values that are not finite in float32 for {probe.kind}")
        # Else float32 itself overflows on an input that speech does not cause, and there is nothing to compare.
    return found


def _outputs(module: torch.nn.Module, probe: Probe, dtype: torch.dtype, *, lengths: bool) -> tuple[NDArray[Any], ...]:
    results = []
    with torch.no_grad():
        for row in probe.rows:
            given = [torch.from_numpy(row).to(dtype).unsqueeze(0)]
            if lengths:
                given.append(torch.tensor([len(row)]))
            results.append(module(*given)[0].numpy())
    return tuple(results)


def judged(file: str, run: Run, found: Sequence[Reference], *, lengths: bool) -> GraphCheck:
    """Judge a float32 graph; returned is the kind of input on which it comes nearest to its bound, or passes it.

    Args:
        file: The graph's file name, for errors.
        run: Runs it on a batch (B, ...) of so many samples or frames each.
        found: What it is compared with.
        lengths: Whether the graph takes padded batches. Then it is judged on one too, with noise as padding.

    Raises:
        MkcError: It gives another shape, or values that are not finite.
    """
    checks = []
    for reference in found:
        level = [other for other in found if other.probe.level == reference.probe.level]
        float32 = max(_largest(other.float32, other.exact) for other in level)
        scale = max(other.scale() for other in level)
        error = max(_largest(rows, reference.exact) for rows in _results(file, run, reference, lengths=lengths))
        checks.append(_check(LARGEST, reference, error, float32, scale, FACTOR * float32 + SHARE * scale))
    return max(checks, key=nearness)


def judged_rms(file: str, run: Run, found: Sequence[Reference], tolerance: float, *, lengths: bool) -> GraphCheck:
    """Judge a graph of lower precision on the inputs of the pass: RMS error at most ``tolerance`` of the RMS value.

    Args:
        file: The graph's file name, for errors.
        run: Runs it on a batch (B, ...) of so many samples or frames each.
        found: What it is compared with; synthetic inputs among it are passed over.
        tolerance: Relative RMS error.
        lengths: Whether it is judged on a padded batch too.

    Raises:
        MkcError: It gives another shape, or values that are not finite.
    """
    checks = []
    for reference in (each for each in found if each.probe.of_pass):
        exact = reference.exact
        scale, float32 = _rms(exact), _rms_error(reference.float32, exact)
        error = max(_rms_error(rows, exact) for rows in _results(file, run, reference, lengths=lengths))
        checks.append(_check(RMS, reference, error, float32, scale, tolerance * scale))
    return max(checks, key=nearness)


def _check(measure: str, reference: Reference, error: float, float32: float, scale: float, bound: float) -> GraphCheck:
    status = CHECK_PASSED if error <= bound else CHECK_INEXACT
    return GraphCheck(
        measure=measure,
        inputs=reference.probe.kind,
        error=_rounded(error),
        float32_error=_rounded(float32),
        scale=_rounded(scale),
        bound=_rounded(bound),
        status=status,
    )


def nearness(check: GraphCheck) -> float:
    """The error as a share of its bound; infinite where there is an error and no bound."""
    return check.error / check.bound if check.bound else (math.inf if check.error else 0.0)


def numbers(file: str, check: GraphCheck) -> str:
    """One line: the error of a graph, that of float32, and the scale."""
    what, of = ("largest", "largest value") if check.measure == LARGEST else ("RMS", "RMS value")
    return (
        f"{file}: {what} error {check.error:.2g} against float64 on {check.inputs}; PyTorch's float32 has "
        f"{check.float32_error:.2g}, the {of} is {check.scale:.2g}, at most {check.bound:.2g} passes"
    )


def _results(file: str, run: Run, reference: Reference, *, lengths: bool) -> Iterator[list[NDArray[np.float32]]]:
    """The graph's outputs for the utterances alone and, with ``lengths``, for all of them as one padded batch."""
    rows, exact = reference.probe.rows, reference.exact
    results = [[run(row[None], [len(row)])[0] for row in rows]]
    if lengths:
        together = run(_padded(rows), [len(row) for row in rows])
        results.append([out[: len(row)] for out, row in zip(together, exact, strict=True)])
    for outputs in results:
        for output, row in zip(outputs, exact, strict=True):
            if output.shape != row.shape:
                raise MkcError(f"{file}: gives {output.shape} for {reference.probe.kind}; expected {row.shape}")
            if not np.isfinite(output).all():
                raise MkcError(f"{file}: gives values that are not finite for {reference.probe.kind}")
        yield outputs


def _padded(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One batch. The padding is noise as loud as the loudest utterance, so that a leak would show."""
    longest = max(map(len, rows))
    peak = np.float32(max(float(np.abs(row).max()) for row in rows))
    batch = np.random.default_rng(longest).standard_normal((len(rows), longest, *rows[0].shape[1:]), np.float32) * peak
    for index, row in enumerate(rows):
        batch[index, : len(row)] = row
    return batch


def _largest(rows: Sequence[NDArray[np.float32]], exact: Sequence[NDArray[np.float64]]) -> float:
    return max(float(np.abs(one - other).max(initial=0.0)) for one, other in zip(rows, exact, strict=True))


def _rms(rows: Sequence[NDArray[np.float64]]) -> float:
    return float(np.sqrt(np.mean(np.concatenate([row.reshape(-1) for row in rows]) ** 2)))


def _rms_error(rows: Sequence[NDArray[np.float32]], exact: Sequence[NDArray[np.float64]]) -> float:
    return _rms([one - other for one, other in zip(rows, exact, strict=True)])


def _rounded(value: float) -> float:
    """To three significant digits, as numbers are recorded."""
    return float(f"{value:.3g}")


def runner(session: ort.InferenceSession, reach: int = 0) -> Run:
    """How a graph's session is run; ``reach`` is that of the pieces, where it takes pieces."""
    names = [value.name for value in session.get_inputs()]

    def run(batch: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float32]:
        inputs: dict[str, NDArray[np.generic]] = {names[0]: batch}
        if "lengths" in names:
            inputs["lengths"] = np.array(counts, np.int64)
        if "pieces" in names:
            inputs["pieces"], inputs["kept"] = pieces(batch.shape[1], _PIECES, reach)
        output: NDArray[np.float32] = session.run(None, inputs)[0]
        return output

    return run


def next_rows(found: Sequence[Reference]) -> list[NDArray[np.float32]]:
    """What the next stage is given: the outputs for speech, as float32."""
    return [row.astype(np.float32) for row in found[0].exact]


def pass_rows(found: Sequence[Reference]) -> list[NDArray[np.float32]]:
    """The outputs for all inputs of the pass, as float32."""
    return [row.astype(np.float32) for reference in found if reference.probe.of_pass for row in reference.exact]


def graph_references(source: Path, info: ModelInfo) -> dict[str, list[Reference]]:
    """References where there is no module: float32 graphs stand for float64, on inputs of the pass."""
    encoded = _of_graph(source / WAVLM_FILE, [probe for probe in waveform_probes(info) if probe.of_pass])
    restored = _of_graph(source / CONFORMER_FILE, feature_probes(quantized(next_rows(encoded), pass_rows(encoded)))[:1])
    vocoded = _of_graph(source / VOCODER_FILE, feature_probes(next_rows(restored))[:1])
    return {WAVLM_FILE: encoded, CONFORMER_FILE: restored, VOCODER_FILE: vocoded}


def _of_graph(path: Path, probes: Sequence[Probe]) -> list[Reference]:
    run = runner(open_session(path))
    found = []
    for probe in probes:
        rows = tuple(run(row[None], [len(row)])[0] for row in probe.rows)
        found.append(Reference(probe, tuple(row.astype(np.float64) for row in rows), rows))
    return found
