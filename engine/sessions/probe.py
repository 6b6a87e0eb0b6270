"""Computes something small on one provider: shows that it works, with cuDNN and cuBLAS, before a model is at hand."""

from __future__ import annotations

from pathlib import Path

from mkc_fast.engine.sessions.providers import ORT_NAMES, Plan, cuda_options
from mkc_fast.names import CPU, CUDA, FP32, TENSORRT, WAVLM_FILE
from mkc_fast.text import one_line

# A convolution and a matrix product on ones: 3 taps, then 6 times 3. Packaged as a file, since to make it needs onnx;
# tests/engine/sessions/test_probe.py makes it again and compares.
PROBE_GRAPH = Path(__file__).with_name("probe.onnx")
PROBE_RESULT = 18.0


def try_provider(provider: str, index: int | None) -> str | None:
    """Compute something small on a provider and nowhere else; what went wrong, None if nothing did."""
    import numpy as np

    from mkc_fast.onnx_runtime import ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    providers: list[tuple[str, dict[str, str]]] = [(ORT_NAMES[CPU], {})]
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(ORT_NAMES[CUDA], cuda_options(Plan(CUDA, FP32, index), WAVLM_FILE))]
        if provider == TENSORRT:
            providers.insert(0, (ORT_NAMES[TENSORRT], {"device_id": str(index)}))
    try:
        session = ort.InferenceSession(str(PROBE_GRAPH), options, providers=providers, enable_fallback=0)
        (result,) = session.run(["y"], {"x": np.ones((1, 1, 8), np.float32)})
    except Exception as error:
        return one_line(str(error), 300)
    return None if (result == PROBE_RESULT).all() else f"it computes {result.tolist()} where 18 is right"
