"""Value types that travel through the whole flow: sizes, tensor specs, model facts. Leaf module, NumPy only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from nrd_trt.errors import ConfigError, ShapeError

STRIDE = 32
"""Output stride of the encoder: heights and widths are multiples of it."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""Of a file. int8 means: the layers that a calibration covers in int8 with explicit Q/DQ, the rest in fp16."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Fit = Literal["resize", "pad", "letterbox"]
InputForm = Literal["uint8", "float"]

MASK_ENCODINGS = ("uint8", "u8x4")
MaskEncoding = Literal["uint8", "u8x4"]
"""How a graph gives the mask: one byte per pixel, or four neighbours of a row in one int32, the first lowest."""

# Of a calibration. Here and not in its room, because the help of the command line names them and that is loaded on use.
DEFAULT_RECIPE = "percentile"
"""Of the four it agrees best with fp32 over both zoo networks (docs/precision.md); the differences are small."""
DEFAULT_IMAGES = 100
DEFAULT_MEMORY_MB = 2048.0


def nearest_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the size of multiples of 32 nearest to `size_hw` (at least 32x32)."""
    height, width = (max(STRIDE, round(n / STRIDE) * STRIDE) for n in size_hw)
    return height, width


def check_size(size_hw: tuple[int, int], *, what: str) -> None:
    """Raise `ShapeError` unless both sides are positive multiples of 32."""
    if all(n >= STRIDE and n % STRIDE == 0 for n in size_hw):
        return
    raise ShapeError(
        f"{what}: expected height and width to be multiples of {STRIDE}, got {format_size(size_hw)}; "
        f"the nearest valid size is {format_size(nearest_size(size_hw))}."
    )


def format_size(size_hw: tuple[int, int]) -> str:
    """Return ``"HxW"``."""
    return f"{size_hw[0]}x{size_hw[1]}"


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``"HxW"`` into multiples of 32.

    Raises:
        ConfigError: The text has another form.
        ShapeError: A side is not a multiple of 32; the message names the nearest valid size.
    """
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise ConfigError(f"size {text!r}: expected HEIGHTxWIDTH such as 512x1024.")
    size_hw = (int(match[1]), int(match[2]))
    check_size(size_hw, what=f"size {text!r}")
    return size_hw


@dataclass(frozen=True, kw_only=True)
class Range:
    """The smallest, the usual and the largest value of one dimension of the engine's input."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(f"range {self.min}:{self.opt}:{self.max}: expected 1 <= MIN <= OPT <= MAX.")

    @property
    def is_static(self) -> bool:
        """Whether only one value is allowed."""
        return self.min == self.max


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """Batch, height and width of the network input, each with its allowed range."""

    batch: Range
    height: Range
    width: Range

    @classmethod
    def static(cls, size_hw: tuple[int, int], batch: int = 1) -> InputShape:
        """Return the shape with one allowed size."""
        return cls(batch=_fixed(batch), height=_fixed(size_hw[0]), width=_fixed(size_hw[1]))

    @classmethod
    def parse(cls, *, size: str | None, dynamic: str | None, batch: str, default: tuple[int, int]) -> InputShape:
        """Build the shape from the command line's ``--size``, ``--dynamic`` and ``--batch``.

        Raises:
            ConfigError: Both sizes are given, or a text has another form.
            ShapeError: A size is not a multiple of 32.
        """
        if size is not None and dynamic is not None:
            raise ConfigError("--size and --dynamic exclude each other; give one of them.")
        low, opt, high = (default,) * 3
        if size is not None:
            low = opt = high = parse_size(size)
        elif dynamic is not None:
            parts = dynamic.split(":")
            if len(parts) != 3:
                raise ConfigError(f"--dynamic {dynamic!r}: expected MIN:OPT:MAX such as 256x512:512x1024:1024x2048.")
            low, opt, high = (parse_size(part) for part in parts)
        return cls(
            batch=_parse_batch(batch),
            height=Range(min=low[0], opt=opt[0], max=high[0]),
            width=Range(min=low[1], opt=opt[1], max=high[1]),
        )

    @property
    def opt_hw(self) -> tuple[int, int]:
        """The usual size."""
        return self.height.opt, self.width.opt

    def covers(self, size_hw: tuple[int, int]) -> bool:
        """Whether an image of this size can be run as it is."""
        height, width = size_hw
        return self.height.min <= height <= self.height.max and self.width.min <= width <= self.width.max

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return plain numbers for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, int]]) -> InputShape:
        """Inverse of `to_dict`."""
        return cls(**{axis: Range(**data[axis]) for axis in ("batch", "height", "width")})


def _fixed(value: int) -> Range:
    return Range(min=value, opt=value, max=value)


def _parse_batch(text: str) -> Range:
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--batch {text!r}: expected N or MIN:OPT:MAX.")
    numbers = [int(part) for part in parts]
    return _fixed(numbers[0]) if len(numbers) == 1 else Range(min=numbers[0], opt=numbers[1], max=numbers[2])


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, element type and shape of one input or output; None marks a dynamic dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def check(self, array: np.ndarray) -> None:
        """Raise `ShapeError` unless `array` has this type and a matching shape."""
        self.check_type(array.dtype, array.shape)

    def check_type(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Raise `ShapeError` unless type and shape are those of this tensor."""
        fits = len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )
        if dtype != self.dtype or not fits:
            want = "×".join("any" if n is None else str(n) for n in self.shape)
            got = "×".join(map(str, shape))
            raise ShapeError(
                f"tensor {self.name!r}: expected {self.dtype} {want}, got {dtype} {got}; convert it first."
            )


@dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """Build-time constants of the per-patch decode (`nrd_trt.decode`), read from the checkpoint.

    Attributes:
        num_classes: K, classes.
        hidden: d, width of the two hidden layers.
        guidance_channels: m, channels of the guidance map.
        patch: f, side of a patch in pixels of the logits.
        upsample: s, factor from the logits' size to the mask's size.
    """

    num_classes: int
    hidden: int = 16
    guidance_channels: int = 16
    patch: int = 8
    upsample: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= 256:
            raise ConfigError(f"num_classes: expected 2 to 256 (the mask is uint8), got {self.num_classes}.")
        if min(self.hidden, self.guidance_channels) < 1 or self.patch * self.upsample != STRIDE:
            raise ConfigError(
                f"decode: expected hidden >= 1, guidance_channels >= 1 and patch * upsample = {STRIDE}, got {self}."
            )

    @property
    def sections(self) -> tuple[int, int, int, int, int, int]:
        """Lengths of W0, b0, W1, b1, W2, b2 along the channel axis of theta."""
        k, d, m = self.num_classes, self.hidden, self.guidance_channels
        return (2 + m) * d, d, d * d, d, d * k, k

    @property
    def theta_channels(self) -> int:
        """P, parameters per patch."""
        return sum(self.sections)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a user of the masks must know: classes, colours and preprocessing.

    Attributes:
        class_names: One name per class index.
        palette: One RGB triple in 0-255 per class index.
        mean: Per-channel mean in 0-255, in the network's channel order.
        std: Per-channel standard deviation in 0-255, in the network's channel order.
        channel_order: Channel order of the network's input; images are always given as RGB.
        ignore_index: Label value left out of every metric besides 255, or None.
        size_hw: The size to build for when none is asked for.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    ignore_index: int | None = None
    size_hw: tuple[int, int] = (512, 1024)

    def __post_init__(self) -> None:
        if len(self.palette) != len(self.class_names):
            raise ConfigError(f"palette: expected {len(self.class_names)} colours, got {len(self.palette)}.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean/std: expected three numbers each and std > 0, got {self.mean} and {self.std}.")
        if self.channel_order not in ("rgb", "bgr"):
            raise ConfigError(f"channel_order: expected 'rgb' or 'bgr', got {self.channel_order!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelInfo:
        """Inverse of `to_dict`; lists from JSON become tuples."""
        return cls(
            class_names=tuple(data["class_names"]),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in data["palette"]),
            mean=_triple(data["mean"]),
            std=_triple(data["std"]),
            channel_order=data["channel_order"],
            ignore_index=data["ignore_index"],
            size_hw=(int(data["size_hw"][0]), int(data["size_hw"][1])),
        )


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
