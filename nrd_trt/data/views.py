"""Which parts of an image the network looks at, at which sizes: geometry only, no pixels.

A view is the whole image at one size, plain or mirrored, and the windows of it that the network runs on one by one.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypedDict

from nrd_trt.data.preprocessing import Fitting, fitting_of
from nrd_trt.errors import ConfigError
from nrd_trt.specs import (
    MOST_PIXELS,
    STRIDE,
    Fit,
    InputShape,
    ProtocolName,
    Size,
    check_choice,
    check_size,
    format_size,
    nearest_size,
)

PRESETS: dict[ProtocolName, Size] = {"cityscapes": (1024, 2048), "ade20k": (512, 2048), "pascal_context": (520, 520)}
"""The released test pipelines: the short and the long side that an image is scaled to fit into."""
_SHORT_SIDES = {("ade20k", "mit_b5"): 640}


class ViewFields(TypedDict, total=False):
    """The fields of `Viewing`, as a caller gives them."""

    protocol: ProtocolName
    scales: Sequence[float]
    flip: bool
    tile: Size | None
    stride: Size | None


@dataclass(frozen=True, kw_only=True)
class Viewing:
    """How images are looked at.

    Attributes:
        protocol: ``"whole"`` brings the image to the network's size; ``"keep-ratio"`` scales it to fit into that size,
            whichever way round, and pads; ``"slide"`` moves a window over it. The others are the released test
            pipelines, see `PRESETS`.
        scales: Factors of the size, in rising order; there is a view at each.
        flip: Whether each view is also run on the mirrored image.
        tile: Height and width of the window of ``"slide"``, multiples of 32; None takes the network's size.
        stride: How far the window moves, at most its own size; None takes two thirds of that.

    Raises:
        ConfigError: A value is not of these, or does not fit another.
        ShapeError: `tile` is not a multiple of 32.
    """

    protocol: ProtocolName = "whole"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    tile: Size | None = None
    stride: Size | None = None

    def __post_init__(self) -> None:
        check_choice("protocol", self.protocol, ProtocolName)
        _check_scales(self.scales)
        if self.protocol != "slide" and not (self.tile is None and self.stride is None):
            raise ConfigError(
                f"protocol={self.protocol!r}: expected protocol='slide' where tile= or stride= is given; "
                "leave those out."
            )
        if self.tile is not None:
            check_size(self.tile, what="tile=")
        if self.stride is not None:
            _check_stride(self.stride, self.tile)

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> Viewing:
        """Return what a caller asks for by `ViewFields`; a tile alone asks for ``"slide"``."""
        given = {**fields}
        if fields.get("tile") is not None:
            given.setdefault("protocol", "slide")
        if isinstance(scales := fields.get("scales"), Sequence) and not isinstance(scales, str):
            given["scales"] = tuple(scales)
        return cls(**given)  # type: ignore[arg-type]

    @property
    def is_plain(self) -> bool:
        """Whether the image is fitted to the network's size and run once."""
        return self.protocol == "whole" and self.is_single

    @property
    def is_single(self) -> bool:
        """Whether there is one run for each image, whose mask can be taken as it is."""
        return self.protocol != "slide" and len(self.scales) == 1 and not self.flip

    @property
    def is_preset(self) -> bool:
        """Whether it is a released pipeline, which scales as OpenCV does."""
        return self.protocol in PRESETS


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a view: its upper left corner and size, in pixels of the view."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class View:
    """The image at one size, and what of it the network runs on.

    Attributes:
        steps: Sizes to which the image is scaled, one after the other; the last is that of the view.
        windows: Parts that the network runs on, row by row; together they cover the view.
        run_hw: Size that the network runs at; right of a window and below it is padding.
        flipped: Whether the view is mirrored, left to right.
    """

    steps: tuple[Size, ...]
    windows: tuple[Window, ...]
    run_hw: Size
    flipped: bool = False

    @property
    def size_hw(self) -> Size:
        """Height and width."""
        return self.steps[-1]


def views_of(
    image_hw: Size, viewing: Viewing, *, shape: InputShape, fit: Fit = "resize", encoder: str = ""
) -> list[View]:
    """Tell the views of an image.

    Args:
        image_hw: Size of the image.
        viewing: What was asked for.
        shape: Sizes that the network is made for.
        fit: How ``"whole"`` brings the image to one of them.
        encoder: The released pipelines of MiT encoders stretch the image to multiples of 32 and pad nothing.

    Raises:
        ConfigError: A view would be larger than any image may be; or the stride is larger than the window.
        ShapeError: The image is larger than the network, with ``fit="pad"``.
    """
    views = []
    for scale in viewing.scales:
        view = _view(image_hw, viewing, scale, shape, fit, encoder)
        if math.prod(view.size_hw) > MOST_PIXELS:
            raise ConfigError(
                f"scales={scale:g}: expected at most {MOST_PIXELS / 1e6:.0f} million pixels, got "
                f"{format_size(view.size_hw)}; leave this scale out."
            )
        views.append(view)
        if viewing.flip:
            views.append(replace(view, flipped=True))
    return views


def kept_ratio(image_hw: Size, bounds_hw: Size, scale: float = 1.0) -> Size:
    """Return the largest size of an image's ratio that fits into bounds, whichever way round, as mmcv rounds it."""
    short, long = (int(side * scale) for side in sorted(bounds_hw))
    factor = min(long / max(image_hw), short / min(image_hw))
    height, width = (max(1, int(side * factor + 0.5)) for side in image_hw)
    return height, width


def aligned(size_hw: Size) -> Size:
    """Return the next multiples of 32."""
    height, width = (-(-side // STRIDE) * STRIDE for side in size_hw)
    return height, width


def windows_of(size_hw: Size, tile: Size, stride: Size) -> tuple[Window, ...]:
    """Return the windows that cover a view, row by row; the last of each row and column end where the view does."""
    rows, columns = (_starts(*axis) for axis in zip(size_hw, tile, stride, strict=True))
    height, width = (min(side, most) for side, most in zip(size_hw, tile, strict=True))
    return tuple(Window(top=top, left=left, height=height, width=width) for top in rows for left in columns)


def _view(image_hw: Size, viewing: Viewing, scale: float, shape: InputShape, fit: Fit, encoder: str) -> View:
    base_hw = shape.opt_hw
    if viewing.protocol == "slide":
        tile = viewing.tile or base_hw
        stride = viewing.stride or (tile[0] * 2 // 3, tile[1] * 2 // 3)
        _check_stride(stride, tile)
        size = _times(image_hw, scale)
        return View(steps=(size,), windows=windows_of(size, tile, stride), run_hw=tile)
    if viewing.protocol == "whole":
        return _whole(_scaled_fitting(fitting_of(image_hw, shape, fit), scale))
    bounds = PRESETS.get(viewing.protocol, base_hw)
    bounds = (_SHORT_SIDES.get((viewing.protocol, encoder), bounds[0]), bounds[1])
    size = kept_ratio(image_hw, bounds, scale)
    if viewing.is_preset and encoder.startswith("mit_"):
        return View(steps=(size, aligned(size)), windows=(_all_of(aligned(size)),), run_hw=aligned(size))
    return View(steps=(size,), windows=(_all_of(size),), run_hw=aligned(size))


def _whole(fitting: Fitting) -> View:
    return View(steps=(fitting.content_hw,), windows=(_all_of(fitting.content_hw),), run_hw=fitting.engine_hw)


def _scaled_fitting(fitting: Fitting, scale: float) -> Fitting:
    """Return how the image goes into a network of another size; what fills it goes on to."""
    engine_hw = nearest_size(_times(fitting.engine_hw, scale)) if scale != 1 else fitting.engine_hw
    scaled = _times(fitting.content_hw, scale)
    height, width = (
        new if content == old else min(side, new)
        for new, old, content, side in zip(engine_hw, fitting.engine_hw, fitting.content_hw, scaled, strict=True)
    )
    return Fitting(engine_hw=engine_hw, content_hw=(height, width), original_hw=fitting.original_hw)


def _all_of(size_hw: Size) -> Window:
    return Window(top=0, left=0, height=size_hw[0], width=size_hw[1])


def _times(size_hw: Size, scale: float) -> Size:
    height, width = (max(1, int(side * scale)) for side in size_hw)
    return height, width


def _starts(side: int, tile: int, stride: int) -> list[int]:
    count = max(side - tile + stride - 1, 0) // stride + 1
    return [max(min(index * stride, side - tile), 0) for index in range(count)]


def _check_scales(scales: tuple[Any, ...]) -> None:
    numeric = isinstance(scales, tuple) and all(
        isinstance(one, numbers.Real) and not isinstance(one, bool) and 0 < float(one) < math.inf for one in scales
    )
    if not (numeric and scales):
        raise ConfigError(f"scales={scales!r}: expected numbers above 0, such as (0.5, 1.0, 1.5).")
    if any(first >= second for first, second in pairwise(scales)):
        raise ConfigError(f"scales={scales!r}: expected each number once, in rising order.")


def _check_stride(stride: Size, tile: Size | None) -> None:
    try:
        height, width = map(operator.index, stride)
    except (TypeError, ValueError):
        raise ConfigError(f"stride={stride!r}: expected height and width such as (341, 341).") from None
    if min(height, width) < 1:
        raise ConfigError(f"stride={format_size((height, width))}: expected 1 or more.")
    if tile is not None and (height > tile[0] or width > tile[1]):
        raise ConfigError(
            f"stride={format_size((height, width))}: expected at most the window's {format_size(tile)}, or pixels "
            "between windows are never looked at; give a smaller one."
        )
