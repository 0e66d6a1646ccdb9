"""Plans with the plugin on a real GPU: built, opened and held against the function form of the same file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nrd_trt import open_bundle
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.engine.compat import installed_flavours, load_tensorrt
from nrd_trt.engine.plugins import check_plugin, find_plugin, read_plugin
from nrd_trt.errors import PluginError
from nrd_trt.machine.cuda import probe_device
from nrd_trt.specs import MaskEncoding, Precision
from tests.artefacts import build, checkpoint, workspace
from tests.helpers import agreement, missing_for_plans


def _missing() -> str | None:
    """What keeps this machine from running plans with the plugin, or None."""
    if (reason := missing_for_plans()) is not None:
        return f"needs a GPU: {reason}"
    if "tensorrt" not in installed_flavours():
        return "needs enterprise TensorRT, TensorRT-RTX loads no plugins: `pip install nrd-trt[trt]`"
    device = probe_device()
    try:
        capability, cuda = (device.compute_capability, device.cuda) if device else (None, None)
        tensorrt = load_tensorrt("tensorrt")
        check_plugin(read_plugin(find_plugin(tensorrt=tensorrt.version)), tensorrt, capability, cuda)
    except PluginError as exc:
        return f"needs the plugin library: {exc}"
    return None


_MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))]

SIZE_HW = (352, 480)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


@cache
def bundle(decode: str, precision: Precision = "fp16", encoding: MaskEncoding = "uint8", dynamic: bool = False) -> Path:
    target = workspace() / f"{decode}-{precision}-{encoding}-{dynamic}.nrd"
    size = {"dynamic": ((256, 320), (352, 480), (384, 512)), "batch": (1, 1, 2)} if dynamic else {"size": SIZE_HW}
    changes = {"builder": "tensorrt", "decode": decode, "precision": precision, "min_agreement": None}
    build(checkpoint(), target, mask_encoding=encoding, **size, **changes)
    return target


def masks(path: Path, sizes: tuple[tuple[int, int], ...] = (SIZE_HW,)) -> list[np.ndarray]:
    with open_bundle(path, runner="tensorrt") as predictor:
        return [predictor.predict(street_scene(seed, size).image) for size in sizes for seed in range(4)]


@pytest.mark.parametrize("encoding", ["uint8", "u8x4"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_build_passes_its_gates_on_the_plan_itself(precision: Precision, encoding: MaskEncoding) -> None:
    facts = read_bundle(bundle("plugin", precision, encoding)).record.to_dict()
    assert facts["passed"] and facts["validation"]["plan_ran"]
    assert (facts["decode"], facts["plugin"]["mask_encoding"]) == ("plugin", encoding)


# Two builds may time other kernels as the fastest, so their fp16 logits differ and near-ties flip: the gate of fp16.
ALIKE = 0.995


def share(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    return float(np.mean([agreement(*pair) for pair in zip(first, second, strict=True)]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_plugin_draws_what_the_function_draws(dynamic: bool) -> None:
    sizes = (SIZE_HW, (256, 320), (384, 512)) if dynamic else (SIZE_HW,)
    drawn = [masks(bundle(decode, dynamic=dynamic), sizes) for decode in ("plugin", "onnx")]
    assert share(*drawn) >= ALIKE


def test_encodings_draw_the_same_masks() -> None:
    assert share(masks(bundle("plugin")), masks(bundle("plugin", encoding="u8x4"))) >= ALIKE
