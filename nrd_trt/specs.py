"""Value types that travel through the whole flow: sizes, tensor specs, model facts. Leaf module, NumPy only."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from nrd_trt.errors import ConfigError, ShapeError

STRIDE = 32
"""Output stride of the encoder: heights and widths are multiples of it."""
MOST_PIXELS = 89_000_000
"""Of an image, and of an input of an engine."""
_LARGEST_SIDE = 1 << 16

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""Of a file. int8 and fp8 mean: the layers that a calibration covers in these with explicit Q/DQ, the rest in fp16, or
in fp32 for a CPU."""
QUANTIZED = ("int8", "fp8")
"""Those precisions whose layers multiply 8-bit numbers, times scales that a calibration gives."""

Size = tuple[int, int]
"""Height and width."""

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Quantized = Literal["int8", "fp8"]
Fit = Literal["resize", "pad", "letterbox"]
Resample = Literal["cv2", "pillow"]
"""Whose bilinear arithmetic scales images."""
ProtocolName = Literal["whole", "keep-ratio", "slide", "cityscapes", "ade20k", "pascal_context"]
"""How images are looked at, see `nrd_trt.data.views.Viewing`."""
InputForm = Literal["uint8", "float", "rgb_float"]
"""What a graph reads: ``(N, H, W, 3) uint8`` RGB; ``(N, 3, H, W) float32``, normalised by the caller; or
``(N, 3, H, W) float32`` RGB in 0-255. Graphs of the first and the last normalise."""
BuilderName = Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]
DecodeName = Literal["auto", "plugin", "onnx"]
Flavour = Literal["tensorrt", "tensorrt-rtx"]
Provider = Literal["driver", "pycuda"]
"""What calls CUDA."""
RunnerName = Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Quantizer = Literal["own", "modelopt"]
PackageTarget = Literal["triton", "deepstream"]
"""What a bundle is packaged for."""
Target = Literal["gpu", "cpu"]
"""What a quantised file is made for. TensorRT takes int8 around 0, or fp8, and is fast with fp16 beside it; runtimes on
a CPU are fast with uint8 activations and fp32 beside them."""
Estimator = Literal["minmax", "percentile", "entropy", "mse"]
"""How calibration turns activations into ranges; recipes have the names of their estimators."""
OutputName = Literal["mask", "logits", "confidence"]
GraphOutput = Literal["mask", "logits", "both", "mask,confidence", "mask,logits,confidence"]
"""The outputs of a graph as its file says them; ``"both"`` are mask and logits."""
View = Literal["overlay", "mask", "side", "confidence"]
PaletteName = Literal["model", "camvid", "cityscapes", "ade20k", "generated"]

Head = Literal["nrd", "nrd_no_aspp", "deeplabv3plus", "bilinear", "deeplabv3"]
ControllerInit = Literal["released", "perceptron"]
Importance = Literal["group_norm", "taylor"]
"""What ranks the channels of a network that is pruned."""
Device = Literal["auto", "cpu", "cuda"]
Arithmetic = Literal["auto", "fp32", "bf16", "fp16"]

MaskEncoding = Literal["uint8", "u8x4"]
"""How a graph gives the mask: one byte per pixel, or four neighbours of a row in one int32, the first lowest."""

# Of a calibration. Here and not in its room, because the help of the command line names them and that is loaded on use.
DEFAULT_RECIPE: Estimator = "percentile"
"""Hangs on no single value, unlike the largest one; which of the four agrees best is a question of the network."""
DEFAULT_IMAGES = 100
DEFAULT_MEMORY_MB = 2048.0


def check_choice(parameter: str, value: object, choices: Any) -> None:
    """Raise `ConfigError` unless `value` is one of the values of the Literal `choices`."""
    if value not in get_args(choices):
        raise ConfigError(f"{parameter}={value!r}: expected one of {', '.join(map(repr, get_args(choices)))}.")


def check_number(parameter: str, value: float | None, *, low: float, whole: bool = True) -> None:
    """Raise `ConfigError` unless `value` is None or a number of at least `low`; a whole one where `whole` is set."""
    fits = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if value is not None and not (fits and value >= low):
        raise ConfigError(
            f"{parameter}={value!r}: expected {'a whole number' if whole else 'a number'}, {low} or more."
        )


def as_path(parameter: str, value: Path | str) -> Path:
    """Return a path that a caller gave, or raise `ConfigError` where the value is none."""
    try:
        return Path(value)
    except TypeError:
        raise ConfigError(f"{parameter}={value!r}: expected a path.") from None


def optional_path(parameter: str, value: Path | str | None) -> Path | None:
    """Return None, or what `as_path` returns."""
    return None if value is None else as_path(parameter, value)


def nearest_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the size of multiples of 32 nearest to `size_hw` (at least 32x32)."""
    height, width = (max(STRIDE, round(n / STRIDE) * STRIDE) for n in size_hw)
    return height, width


def check_size(size_hw: tuple[int, int], *, what: str) -> None:
    """Raise an error unless `size_hw` is height and width, both positive multiples of 32.

    Args:
        size_hw: What the caller gave.
        what: What the message begins with: a parameter, ``"size="``, or a thing, ``"image "``.

    Raises:
        ConfigError: It is not a pair of whole numbers.
        ShapeError: A side is not a multiple of 32; the message names the nearest valid size.
    """
    try:
        height, width = map(operator.index, size_hw)
    except (TypeError, ValueError):
        raise ConfigError(f"{what}{size_hw!r}: expected height and width such as (512, 1024).") from None
    if not all(n >= STRIDE and n % STRIDE == 0 for n in (height, width)):
        raise ShapeError(
            f"{what}{format_size(size_hw)}: expected height and width to be multiples of {STRIDE}; "
            f"the nearest valid size is {format_size(nearest_size(size_hw))}."
        )


def format_size(size_hw: tuple[int, int]) -> str:
    """Return ``"HxW"``."""
    return f"{size_hw[0]}x{size_hw[1]}"


def format_shape(shape: Sequence[int | None]) -> str:
    """Return ``"1×3×any×any"``: None is a dynamic dimension."""
    return "×".join("any" if n is None else str(n) for n in shape)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The smallest, the usual and the largest value of one dimension of the engine's input."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(f"range {self.min}:{self.opt}:{self.max}: expected 1 <= MIN <= OPT <= MAX.")
        if self.max > _LARGEST_SIDE:
            raise ConfigError(f"range {self.min}:{self.opt}:{self.max}: expected at most {_LARGEST_SIDE}.")

    @classmethod
    def of(cls, values: int | tuple[int, int, int], *, what: str) -> Range:
        """Return the range of one value, or of the smallest, the usual and the largest.

        Args:
            values: One number or three.
            what: What an error message begins with, such as ``"batch="``.

        Raises:
            ConfigError: The numbers are not one or three whole ones, or not in order.
        """
        try:
            low, opt, high = map(operator.index, values if isinstance(values, tuple | list) else (values,) * 3)
        except (TypeError, ValueError):
            raise ConfigError(f"{what}{values!r}: expected N or (MIN, OPT, MAX), whole numbers.") from None
        return cls(min=low, opt=opt, max=high)

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

    def __post_init__(self) -> None:
        if self.height.max * self.width.max > MOST_PIXELS:
            raise ConfigError(
                f"size {self.height.max}x{self.width.max}: expected at most {MOST_PIXELS / 1e6:.0f} million pixels."
            )

    @classmethod
    def static(cls, size_hw: Size, batch: int | tuple[int, int, int] = 1) -> InputShape:
        """Return the shape with one allowed size."""
        height, width = (Range.of(side, what="size=") for side in size_hw)
        return cls(batch=Range.of(batch, what="batch="), height=height, width=width)

    @classmethod
    def of(
        cls,
        *,
        size: Size | None = None,
        dynamic: tuple[Size, Size, Size] | None = None,
        batch: int | tuple[int, int, int] = 1,
        default: Size,
    ) -> InputShape:
        """Return the shape that a caller asks for.

        Args:
            size: The only height and width, multiples of 32.
            dynamic: The smallest, the usual and the largest height and width, in place of `size`.
            batch: Images per call, or their smallest, usual and largest number.
            default: Height and width where neither `size` nor `dynamic` is given.

        Raises:
            ConfigError: Both sizes are given, a value has another form, or the three of a range are not in order.
            ShapeError: A size is not a multiple of 32.
        """
        if size is not None and dynamic is not None:
            raise ConfigError("size= and dynamic= exclude each other; give one of them.")
        if dynamic is None:
            if size is not None:
                check_size(size, what="size=")
            return cls.static(size or default, batch)
        if isinstance(dynamic, str) or len(dynamic) != 3:
            raise ConfigError(f"dynamic={dynamic!r}: expected three sizes: the smallest, the usual and the largest.")
        for one in dynamic:
            check_size(one, what="dynamic=")
        height, width = (Range.of(sides, what="dynamic=") for sides in zip(*dynamic, strict=True))
        return cls(batch=Range.of(batch, what="batch="), height=height, width=width)

    @property
    def opt_hw(self) -> tuple[int, int]:
        """The usual size."""
        return self.height.opt, self.width.opt

    def covers(self, size_hw: tuple[int, int]) -> bool:
        """Whether an image of this size can be run as it is."""
        height, width = size_hw
        return self.height.min <= height <= self.height.max and self.width.min <= width <= self.width.max


class TensorLike(Protocol):
    """An array, wherever it is."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each dimension."""
        ...


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, element type and shape of one input or output; None marks a dynamic dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def check(self, tensor: TensorLike) -> None:
        """Raise `ShapeError` unless `tensor` has this type and a matching shape."""
        fits = len(tensor.shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, tensor.shape, strict=True)
        )
        if tensor.dtype != self.dtype or not fits:
            got = f"{tensor.dtype} {format_shape(tensor.shape)}"
            raise ShapeError(f"tensor {self.name!r}: expected {self}, got {got}; convert it first.")

    def __str__(self) -> str:
        return f"{self.dtype} {format_shape(self.shape)}"


def spec_differences(wanted: Mapping[str, TensorSpec], found: Mapping[str, TensorSpec]) -> list[str]:
    """Tell one by one how tensors differ from those that are wanted; a size that is found to be dynamic fits any."""
    lines = []
    for name in {**wanted, **found}:
        want, got = wanted.get(name), found.get(name)
        if want is None or got is None or not _fits(want, got):
            lines.append(f"tensor {name!r}: {got or 'none'}, expected {want or 'none'}")
    return lines


def _fits(want: TensorSpec, got: TensorSpec) -> bool:
    same = (want.dtype, len(want.shape)) == (got.dtype, len(got.shape))
    return same and all(n is None or n == size for n, size in zip(got.shape, want.shape, strict=True))


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer of a network definition, before the builder fuses it with others.

    Attributes:
        name: Name of the layer, which is that of the file's node.
        kind: Kind of layer, such as ``"convolution"``.
        type: Type of its first output, such as ``"half"``; ``"none"`` without outputs.
    """

    name: str
    kind: str
    type: str


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
        if len(self.palette) > 256 or not all(0 <= value <= 255 for colour in self.palette for value in colour):
            raise ConfigError("palette: expected at most 256 colours, of values in 0-255, got others.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean/std: expected three numbers each and std > 0, got {self.mean} and {self.std}.")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ConfigError(f"mean/std: expected finite numbers, got {self.mean} and {self.std}.")
        InputShape.static(self.size_hw)  # which refuses what is none
        if self.channel_order not in ("rgb", "bgr"):
            raise ConfigError(f"channel_order: expected 'rgb' or 'bgr', got {self.channel_order!r}.")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What the user says about a checkpoint; None leaves it to the file and the released defaults."""

    num_classes: int | None = None
    hidden: int | None = None
    patch: int | None = None
    dilations: tuple[int, int, int, int] | None = None
    output_stride: int | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bgr: bool | None = None
    fix_window_mask: bool | None = None
