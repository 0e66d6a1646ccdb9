"""The report of a validation: one HTML page that holds every figure and picture and needs no network."""

from __future__ import annotations

import base64
import io
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from nrd_trt.data.overlay import Palette, colour
from nrd_trt.engine.bundle import Bundle
from nrd_trt.figures import ImageFigures
from nrd_trt.files import atomic_file
from nrd_trt.machine.host import installed_version
from nrd_trt.specs import format_size
from nrd_trt.validation.compare import Picture
from nrd_trt.validation.stages import TITLES

if TYPE_CHECKING:
    from nrd_trt.validation.validate import Validation

_PACKAGES = ("nrd-trt", "numpy", "onnx", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx-cu13")
_REFERENCES = {"torch": "the PyTorch model in fp32", "onnx": "the fp32 ONNX file", "stored": "the bundle's own masks"}
_DECADES = 4
"""An error bar reaches from this many decades below its tolerance to as many above."""
_PICTURE_WIDTH = 640
_FAR, _TIED = (230, 40, 40), (245, 185, 40)


def write_report(path: Path, bundle: Bundle, validation: Validation) -> None:
    """Write the page atomically; an existing file is replaced."""
    text = render_report(bundle, validation)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_report(bundle: Bundle, validation: Validation) -> str:
    """Fill in ``report.html.j2``; whatever a bundle, a file or a class is called is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        counted=lambda found: ", ".join(f"{count} {kind}" for kind, count in found.items()),
        error=lambda value: f"{value:.1e}" if value else "0",
        number=lambda count: "–" if count is None else f"{count:,}".replace(",", "\u202f"),
        percent=lambda value: "–" if value is None else f"{100 * value:.3f} %",
        share=lambda value, digits=4: "–" if value is None else f"{value:.{digits}f}",
        size=format_size,
    )
    environment.globals.update(error_share=error_share, plot_scale=plot_scale)
    return environment.get_template("report.html.j2").render(
        bundle=bundle,
        validation=validation,
        references=_REFERENCES,
        titles=TITLES,
        pictures=[
            (picture.figures, _views(picture, bundle.graph.info.palette))
            for picture in validation.pictures
            if picture.figures.flips
        ],
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        packages=[f"{name} {version}" for name in _PACKAGES if (version := installed_version(name))],
    )


def error_share(error: float | None, tolerance: float) -> float:
    """Return how much of its bar an error fills, 0-1: logarithmic, and half of it at the tolerance; None fills it."""
    if error == 0:
        return 0.0
    if error is None or tolerance <= 0:
        return 1.0
    return max(0.0, min(1.0, 0.5 + math.log10(error / tolerance) / (2 * _DECADES)))


def plot_scale(images: Sequence[ImageFigures], gate: float) -> tuple[float, list[tuple[float, str]]]:
    """Return where the axis of agreements begins, and round values from 1 down to it, six at most, with their text."""
    low = min([gate, *(image.pixel_agreement for image in images if image.pixel_agreement is not None)])
    low = max(0.0, low - 0.15 * (1 - low) - 1e-6)
    decade = 10.0 ** math.floor(math.log10((1 - low) / 5))
    step = next(factor * decade for factor in (1, 2, 5, 10) if (1 - low) / (factor * decade) <= 5)
    digits = max(1, -math.floor(math.log10(step) + 1e-9))
    values = [1 - place * step for place in range(int((1 - low) / step + 1e-9) + 1)]
    return low, [(value, f"{value:.{digits}f}") for value in values]


def _views(picture: Picture, palette: Palette) -> dict[str, str]:
    return {
        "image": _png(picture.sample.image, Image.Resampling.LANCZOS),
        "reference": _png(colour(picture.reference.mask, palette)),
        "engine": _png(colour(picture.engine, palette)),
        "difference": _png(_difference(picture)),
    }


def _difference(picture: Picture) -> np.ndarray:
    """Return the flips over the faded image, ``(h, w, 3) uint8``."""
    flipped = picture.reference.mask != picture.engine
    near_tie = picture.reference.near_tie
    tied = flipped if near_tie is None else flipped & near_tie
    grey = picture.sample.image.mean(axis=2, keepdims=True) * 0.4 + 50
    shown = np.repeat(grey, 3, axis=2).astype(np.uint8)
    reach = 1 + shown.shape[1] // _PICTURE_WIDTH * 2
    shown[_widened(tied, reach)] = _TIED
    shown[_widened(flipped & ~tied, reach)] = _FAR
    return shown


def _widened(pixels: np.ndarray, reach: int) -> np.ndarray:
    """Return the pixels and those up to `reach` away, so that single ones survive a smaller picture."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(pixels, reach), (2 * reach + 1,) * 2)
    return np.asarray(windows.any(axis=(2, 3)))


def _png(rgb: np.ndarray, resample: Image.Resampling = Image.Resampling.NEAREST) -> str:
    """Return a picture as a data URL, at most 640 wide; colours of masks are not mixed."""
    image = Image.fromarray(rgb)
    if image.width > _PICTURE_WIDTH:
        image = image.resize((_PICTURE_WIDTH, round(image.height * _PICTURE_WIDTH / image.width)), resample)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
