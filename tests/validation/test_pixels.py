"""The preprocessing of an installation against formulas of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from nrd_trt.data.preprocessing import Fitting
from nrd_trt.model.config import CAMVID_INFO
from nrd_trt.specs import Fit, InputShape, Resample
from nrd_trt.validation import pixels
from nrd_trt.validation.pixels import preprocessing_faults

SHAPES = {
    "32x32": InputShape.static((32, 32)),
    "64x96": InputShape.static((64, 96)),
    "a range": InputShape.of(size=None, dynamic=((64, 64), (96, 128), (128, 256)), batch=1, default=(96, 128)),
    "large": InputShape.static((1024, 2048)),
}


def found(shape: str = "64x96", fit: Fit = "resize", resample: Resample = "pillow", order: str = "rgb") -> list[str]:
    info = replace(CAMVID_INFO, channel_order=order, mean=(100.0, 110.0, 120.0))
    return list(preprocessing_faults(info, SHAPES[shape], fit, resample))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resample", get_args(Resample))
@pytest.mark.parametrize("fit", get_args(Fit))
def test_a_sound_installation_has_no_fault(fit: Fit, resample: Resample, shape: str) -> None:
    assert found(shape, fit, resample) == found(shape, fit, resample, "bgr") == []


FAULTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "normalises images": ("normalise", lambda planes: planes / np.float32(1.02)),
    "RGB, values": ("normalise", lambda planes: planes[:, ::-1]),
    "brings masks back": ("restore", lambda mask: np.roll(mask, 1, axis=1)),
    "100.0% of the pixels": ("restore", lambda mask: mask[:, 1:]),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_fault_on_both_sides_is_told(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change = FAULTS[said]
    owner: Any = Fitting if name == "restore" else pixels
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given: change(right(*given)))
    lines = found()
    assert lines and all(said in line for line in lines)


@pytest.mark.parametrize("resample", get_args(Resample))
def test_scaling_by_the_nearest_pixel_is_told(resample: Resample, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pixels.fit_image

    def nearest(rgb: np.ndarray, *given: Any, **options: Any) -> Any:
        fitted = right(rgb, *given, **options)
        rows, columns = (np.arange(new) * old // new for new, old in zip(fitted.engine_hw, rgb.shape[:2], strict=True))
        return replace(fitted, image=rgb[rows][:, columns])

    monkeypatch.setattr(pixels, "fit_image", nearest)
    assert any("scales images wrongly" in line for line in found(resample=resample))


def test_one_way_to_scale_is_not_taken_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an image shrinks the two are far apart."""
    right = pixels.fit_image
    monkeypatch.setattr(pixels, "fit_image", lambda *given, resample: right(*given, resample="pillow"))
    assert found() == []
    assert any("scales images wrongly" in line for line in found(resample="cv2"))
