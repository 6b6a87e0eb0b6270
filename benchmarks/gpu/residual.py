"""The vocoder's residual blocks by their kernel, beside a graph of the same blocks: after the fourth part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.gpu.artifacts import wait_for_model
from mkc_fast.benchmarks.gpu.bench import RATE, SEED
from mkc_fast.benchmarks.gpu.correctness import errors
from mkc_fast.benchmarks.gpu.vocoder import Bound
from mkc_fast.engine.artifacts import cuda_file, read_model_info
from mkc_fast.engine.passes.residual_vocoder import ResidualVocoder
from mkc_fast.engine.sessions.shaped import StagedSessions
from mkc_fast.kernels.cuda.residual import DeviceResidual
from mkc_fast.kernels.cuda.residual_counts import FEATURES_PER_S, V1_DILATIONS, V1_KERNEL_SIZES, count_stage
from mkc_fast.kernels.cuda.residual_plans import PairShape, plans
from mkc_fast.kernels.cuda.residual_stages import StagedBlocks, stage_file
from mkc_fast.names import FP16, VOCODER_FILE
from mkc_fast.onnx_runtime import ort

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.benchmarks.gpu.bench import Bench
    from mkc_fast.kernels.cuda.residual import PlacedPair

# Windows and frames that are compared with the CPU: several of the kernel's tiles, and no whole number of them.
_CHECKED = (2, 1100)
_SMALL_CHECKED = (2, 300)
# Eight roundings to float16 on the way, of 2e-4 each.
_LIMIT = 3e-3
# What export lets half precision have: 30 dB below the signal.
_HALF_LIMIT = 3e-2


@dataclass(frozen=True)
class RandomBlocks:
    """Residual blocks of random weights.

    Attributes:
        width: Channels.
        weights: Of each pair, by block: (2, width, width, kernel size) float16.
        biases: (2, width) float32.
    """

    width: int
    weights: dict[tuple[int, int], NDArray[np.float16]]
    biases: dict[tuple[int, int], NDArray[np.float32]]

    @classmethod
    def of(cls, width: int) -> RandomBlocks:
        """Weights with which values neither grow nor vanish."""
        rng = np.random.default_rng(SEED)
        pairs = [(size, dilation) for size in V1_KERNEL_SIZES for dilation in V1_DILATIONS]
        weights = {
            pair: (rng.standard_normal((2, width, width, pair[0])) * (width * pair[0]) ** -0.5).astype(np.float16)
            for pair in pairs
        }
        return cls(width, weights, {pair: rng.standard_normal((2, width)).astype(np.float32) * 0.1 for pair in pairs})

    def place(self, device: DeviceResidual) -> list[list[PlacedPair]]:
        """On a device, by block.

        Raises:
            ValueError: A pair has no plan there.
        """
        blocks = []
        for size in V1_KERNEL_SIZES:
            placed = [device.place(self.weights[size, d], self.biases[size, d], d) for d in V1_DILATIONS]
            if None in placed:
                raise ValueError(f"width {self.width}, kernel size {size}: no plan on this device")
            blocks.append([pair for pair in placed if pair is not None])
        return blocks

    def write_graph(self, path: Path, dtype: type) -> Path:
        """As a graph: (windows, width, frames) → the sum of the blocks, of the same shape."""
        from onnx import TensorProto, helper, numpy_helper, save

        kind = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
        nodes: list[Any] = []
        weights: list[Any] = []
        totals = []

        def add(operator: str, *inputs: str, **attributes: Any) -> str:
            output = f"v{len(nodes)}"
            nodes.append(helper.make_node(operator, inputs, [output], **attributes))
            return output

        def weight(values: NDArray[Any]) -> str:
            weights.append(numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), f"w{len(weights)}"))
            return str(weights[-1].name)

        for size in V1_KERNEL_SIZES:
            x = "x"
            for dilation in V1_DILATIONS:
                y = x
                for which, each in enumerate((dilation, 1)):
                    pair = size, dilation
                    taken = weight(self.weights[pair][which]), weight(self.biases[pair][which])
                    y = add("LeakyRelu", y, alpha=0.1)
                    pads = [size // 2 * each] * 2
                    y = add("Conv", y, *taken, dilations=[each], pads=pads, kernel_shape=[size])
                x = add("Add", x, y)
            totals.append(x)
        total = totals[0]
        for other in totals[1:]:
            total = add("Add", total, other)
        add("Identity", total)
        nodes[-1].output[0] = "sum"
        axes: list[str | int | None] = ["windows", self.width, "frames"]
        values = [helper.make_tensor_value_info(name, kind, axes) for name in ("x", "sum")]
        graph = helper.make_graph(nodes, "residual_blocks", values[:1], values[1:], weights)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path


def residual(bench: Bench, found: dict[str, Any]) -> None:
    """By width: errors against the CPU, seconds of kernel, graph and each plan; then those of whole vocoders."""
    machine = bench.machine
    with machine.stream:
        device = DeviceResidual(machine.cupy, machine.cupy.cuda.Device(machine.index))
    for width, per_feature in bench.sizes.residual:
        blocks = RandomBlocks.of(width)
        checked = _SMALL_CHECKED if machine.rehearsal else _CHECKED
        windows, features = bench.sizes.vocoder
        shape = (windows, features * per_feature, width)
        name = f"width {width}"
        bench.figure(found, f"{name}, correct", partial(_checked, bench, device, blocks, checked), least_s=2)
        bench.figure(found, f"{name}, kernel", partial(_kernel, bench, device, blocks, shape, per_feature), least_s=2)
        for layout, nhwc in (("NCHW", False), ("NHWC", True)):
            work = partial(_graph, bench, blocks, shape, nhwc=nhwc)
            bench.figure(found, f"{name}, graph, {layout}", work, least_s=4)
        bench.figure(found, f"{name}, plans", partial(_plans, bench, device, blocks, shape), least_s=2)
    wait_for_model(bench)
    bench.figure(found, "whole vocoder, in stages", partial(_vocoder, bench, staged=True), least_s=8)
    bench.figure(found, "whole vocoder, one graph", partial(_vocoder, bench, staged=False), least_s=8)


def _checked(bench: Bench, device: DeviceResidual, blocks: RandomBlocks, shape: tuple[int, int]) -> dict[str, Any]:
    machine = bench.machine
    x = _values((*shape, blocks.width))
    with machine.stream:
        found = machine.get(device.run_blocks(blocks.place(device), machine.put(x)))
    path = blocks.write_graph(bench.work / f"residual_{blocks.width}.onnx", np.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": np.ascontiguousarray(x.transpose(0, 2, 1).astype(np.float32))})
    error = errors([(found.astype(np.float32), expected.transpose(0, 2, 1))])
    return {"against_the_cpu": error, "passes": error["relative_rms_error"] < _LIMIT, "shapes": {"x": list(x.shape)}}


def _kernel(
    bench: Bench, device: DeviceResidual, blocks: RandomBlocks, shape: tuple[int, int, int], per_feature: int
) -> dict[str, Any]:
    machine = bench.machine
    machine.release()
    x, placed = machine.put(_values(shape)), blocks.place(device)
    seconds = machine.timed(partial(device.run_blocks, placed, x), bench.sizes.repeats)
    counts = count_stage(blocks.width, FEATURES_PER_S * per_feature)
    audio_s = shape[0] * shape[1] / (FEATURES_PER_S * per_feature)
    return {
        "seconds": seconds, "s_per_audio_s": seconds / audio_s, "precision": FP16, "shapes": {"x": list(shape)},
        "tflops": counts.needed * audio_s / seconds / 1e12, "gb_per_s": counts.kernel_bytes * audio_s / seconds / 1e9,
        "values": "random, normal",
    }  # fmt: skip


def _graph(bench: Bench, blocks: RandomBlocks, shape: tuple[int, int, int], *, nhwc: bool) -> dict[str, Any]:
    machine = bench.machine
    machine.release()
    path = blocks.write_graph(bench.work / f"residual_{blocks.width}_fp16.onnx", np.float16)
    session = machine.open_graph(path, FP16, prefer_nhwc=nhwc)
    windows, frames, width = shape
    values = np.ascontiguousarray(_values(shape).transpose(0, 2, 1))
    bound = Bound(machine, session, values, (windows, width, frames))
    seconds = machine.timed(bound.run, bench.sizes.repeats)
    return {"seconds": seconds, "precision": FP16, "shapes": {"x": [windows, width, frames]}}


def _plans(bench: Bench, device: DeviceResidual, blocks: RandomBlocks, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Seconds of one pair by each plan that fits, to hold beside the estimate that chooses."""
    machine = bench.machine
    machine.release()
    x, out = machine.put(_values(shape)), machine.empty(shape, np.float16)
    found: dict[str, Any] = {}
    dilation = V1_DILATIONS[-1]
    for size in V1_KERNEL_SIZES:
        for plan in plans(PairShape(blocks.width, size, dilation), *device.shared_bytes):
            pair = device.place(blocks.weights[size, dilation], blocks.biases[size, dilation], dilation, plan=plan)
            assert pair is not None
            seconds = machine.timed(partial(device.run, pair, x, out), bench.sizes.repeats)
            found[f"kernel size {size}, {plan.rows} frames"] = {
                "seconds": seconds,
                "estimated_clocks_per_frame": plan.clocks_per_frame(),
                "blocks_of_a_multiprocessor": plan.resident,
            }
    return found


def _vocoder(bench: Bench, *, staged: bool) -> dict[str, Any]:
    """The model's vocoder in half precision: with the kernel between its stages, or as one graph, NHWC."""
    import onnx

    from mkc_fast.export.graphs.residual_stages import cut_vocoder
    from mkc_fast.export.precision.half import POLICIES, to_half

    machine, info = bench.machine, read_model_info(bench.model)
    machine.release()
    of_cuda = bench.model / cuda_file(VOCODER_FILE, half=True)
    fused = of_cuda.is_file()
    if fused:
        model = onnx.load(of_cuda)
    else:
        model = to_half(onnx.load(bench.model / VOCODER_FILE), POLICIES[VOCODER_FILE]).model
    if staged:
        cut = cut_vocoder(model)
        cut.write(bench.work)
        paths = [bench.work / stage_file(number) for number in range(len(cut.graphs))]
        sessions = [machine.open_graph(path, FP16, prefer_nhwc=True, fused=fused) for path in paths]
        parts = StagedSessions(StagedBlocks.read(bench.work), lambda number, _: sessions[number])
        vocoder = ResidualVocoder(machine.cupy, machine.index, parts, info.hop)
        widths = [stage.width for stage in cut.stages.stages]
    else:
        path = bench.work / "vocoder_whole.fp16.onnx"
        onnx.save(model, path)
        session, widths = machine.open_graph(path, FP16, prefer_nhwc=True, fused=fused), []
    windows, frames = bench.sizes.vocoder
    features = np.random.default_rng(SEED).standard_normal((windows, frames, info.dim), np.float32)
    if staged:
        given = machine.put(features)
        run: Callable[[], object] = partial(vocoder.run, given)
        with machine.stream:
            found = machine.get(vocoder.run(given))
    else:
        bound = Bound(machine, session, features, (windows, frames * info.hop))
        run = bound.run
        run()
        found = machine.get(bound.output)
    cpu = ort.InferenceSession(str(bench.model / VOCODER_FILE), providers=["CPUExecutionProvider"])
    (expected,) = cpu.run(None, {"features": features[:1]})
    error = errors([(found[:1], expected)])
    seconds = machine.timed(run, bench.sizes.repeats)
    return {
        "against_the_cpu": error, "passes": error["relative_rms_error"] < _HALF_LIMIT, "widths_by_the_kernel": widths,
        "seconds": seconds, "s_per_audio_s": seconds * RATE / (windows * frames * info.hop), "precision": FP16,
        "shapes": {"features": list(features.shape)},
    }  # fmt: skip


def _values(shape: tuple[int, ...]) -> NDArray[np.float16]:
    return np.random.default_rng(SEED).standard_normal(shape, np.float32).astype(np.float16)
