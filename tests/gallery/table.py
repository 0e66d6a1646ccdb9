"""The gallery: every fault, where it is planted, and what may be said of its cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nrd_trt.data.classes import voc_palette
from nrd_trt.specs import QUANTIZED, InputForm, MaskEncoding, Precision, Size
from tests import faults as files
from tests.faults import Change
from tests.gallery import upstream
from tests.gallery.upstream import Patch

ALL: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
SIXTEEN: tuple[Precision, ...] = ("fp16", "bf16", "int8")
"""Precisions of a file with weights in 16 bits."""
INT8: tuple[Precision, ...] = ("int8",)
FP8: tuple[Precision, ...] = ("fp8",)
CALIBRATED: tuple[Precision, ...] = ("int8", "fp8")

Network = Literal["mobilenetv2", "r18", "loud"]
"""Of the zoo; ``"loud"`` is its ResNet-18 with a layer whose activations leave fp16."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a fault is planted in.

    Attributes:
        network: Which checkpoint.
        size_hw: Of the engine; see `size_of` for 8 bits.
        input_form: Of the file.
        mask_encoding: Of the file.
        photos: Whether images of another size are validated on, in place of drawn scenes of the engine's.
        bright: Whether the effect is that on overexposed images; validation takes its own.
    """

    network: Network = "mobilenetv2"
    size_hw: Size = (64, 96)
    input_form: InputForm = "uint8"
    mask_encoding: MaskEncoding = "uint8"
    photos: bool = False
    bright: bool = False

    def size_of(self, precision: Precision) -> Size:
        """Return the engine's size: in 8 bits a sound engine misses its gate on pictures that are smaller still."""
        height, width = self.size_hw
        return (max(height, 128), max(width, 192)) if precision in QUANTIZED else (height, width)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        name: What it is.
        where: In a bundle's file, or upstream in what makes and runs files.
        plant: Changes the file, or patches the product.
        causes: Regular expressions; what is said of the cause and matches none of them is false.
        precisions: Those that can have it.
        case: What it is planted in.
    """

    name: str
    where: Literal["file", "upstream"]
    plant: Change | Patch
    causes: tuple[str, ...]
    precisions: tuple[Precision, ...] = ALL
    case: Case = Case()


def _named(where: Literal["file", "upstream"], *rows: tuple[str, Change | Patch, str | Sequence[str]]) -> list[Fault]:
    """Make faults of rows of name, plant and causes."""
    return [
        Fault(name=name, where=where, plant=plant, causes=(causes,) if isinstance(causes, str) else tuple(causes))
        for name, plant, causes in rows
    ]


def _in(case: Case, faults: list[Fault], precisions: tuple[Precision, ...] = ALL) -> list[Fault]:
    return [replace(fault, case=case, precisions=precisions) for fault in faults]


_RED_AND_BLUE = r"preprocessing/swap|red and blue|RGB|BGR|channel_order"
_SPREAD = r"standard deviation|\bstd\b|`preprocessing`: input 1 is"
_MEAN = r"\bmean\b|`preprocessing`: input 1 is"
_DRAWN = r"ending: from the same theta and guidance"
_CENTRES = rf"{_DRAWN}|from_xy|coordinates .* off by \+0\.50|pixel centres|[xy]_table|coordinates"
_W0 = rf"{_DRAWN}|W0 takes the guidance before the coordinates|w0_xy|w0_guidance|input_sections"
_BIASES = rf"{_DRAWN}|b0 and b1 are exchanged|\bb[01]\b"
_PATCH = rf"{_DRAWN}|patch is transposed|patches are transposed|\brows\b.*perm|Transpose.*perm|perm.*Transpose"
_ENLARGED = rf"{_DRAWN}|Resize|enlarge|align_corners|asymmetric|nearest"
_THETA_ORDER = r"classifier\.classifier\.1|theta.*permuted|channels are permuted"
_WIDE = Case(size_hw=(64, 320))
_R18 = Case(network="r18")
_LOUD = Case(network="loud")
_FLOAT = Case(input_form="float")
_PHOTOS = Case(photos=True)

_BIAS = "backbone.layer3.1.conv.1.conv"
_HALF = "backbone.layer4.2.conv.1.conv"
_NOISY = "backbone.layer5.1.conv.0.conv"
_ATROUS = "decode_head.aspp_modules.3.depthwise_conv.conv"
_STRIDED = "backbone.layer2.0.conv.1.conv"
_GUIDING = "decode_head.c1_bottleneck.0.conv"
_PROJECTED = "backbone.layer4.1.conv.2.conv"
_DEEP = "backbone.layer4.2/Add"

_FILE = _named(
    "file",
    ("std ×1.02", files.larger_std, _SPREAD),
    ("one std for all channels", files.one_std, _SPREAD),
    ("mean in 0-1", files.other_mean, _MEAN),
    ("BGR", files.swap_rgb, _RED_AND_BLUE),
    ("weights of a layer ×2", files.double("backbone.layer5.0.conv.1.conv.weight"), r"backbone\.layer5\.0\.conv\.1\."),
    ("stem ×2", files.double("backbone.conv1.conv.weight"), r"backbone\.conv1\."),
    ("guidance ×2", files.double("decode_head.c1_bottleneck.1.conv.weight"), r"c1_bottleneck\.1|scaled by 2\.00"),
    ("theta ×2", files.double(f"{files.THETA}.weight"), r"classifier\.classifier\.1|scaled by 2\.00"),
    ("scale of one channel ×2", files.double_row("backbone.layer5.1.conv.2.conv", 7), r"layer5\.1\.conv\.2.*7"),
    ("half the channels zero", files.half_zero(_HALF), (r"layer4\.2\.conv\.1\.", r"constant|zero")),
    ("one channel zero", files.zero_channels(_STRIDED, 5, 6), (r"layer2\.0\.conv\.1\.", r"constant|zero")),
    ("lost BN bias", files.lost_bias(_BIAS), r"layer3\.1\.conv\.1\."),
    ("zero pool", files.zero_channels("decode_head.image_pool.1.conv", 0), (r"image_pool", r"constant|zero")),
    (
        "one class's bias +1",
        files.class_bias(3, 1.0),
        r"classifier\.classifier\.1|b2|class 3|channel 755 is scaled by 1\.00",
    ),
    ("one class's weights lost", files.class_weights_lost(1), r"classifier\.classifier\.1|W2|class 1\b|by 0\.00"),
    ("two classes exchanged", files.swap_classes(0, 2), (r"classifier\.classifier\.1", r"permut|exchanged|labels")),
    ("5 % noise on a layer", files.noise(_NOISY, 0.05), r"layer5\.1\.conv\.0\."),
    ("labels from one", files.shift_classes, rf"{_DRAWN}|labels|class(es)? .*(shift|off|later|\+1)|Mod|Add|mask"),
    ("W1 transposed in theta", files.transpose_in_theta("W1"), (r"W1 is transposed", _THETA_ORDER)),
    ("W2 as [d][K] in theta", files.transpose_in_theta("W2"), (r"W2 is transposed", _THETA_ORDER)),
    ("W0 order in theta", files.guidance_first_in_theta, (_W0, _THETA_ORDER)),
    ("b0 and b1 in theta", files.swap_biases_in_theta, (_BIASES, _THETA_ORDER)),
    ("W1 transposed in the decode", files.transpose_in_decode("w1"), rf"{_DRAWN}|W1 is transposed|\bw1"),
    ("W2 as [d][K] in the decode", files.transpose_in_decode("w2"), rf"{_DRAWN}|W2 is transposed|\bw2"),
    ("W0 order in the decode", files.guidance_first_in_decode, _W0),
    ("b0 and b1 in the decode", files.swap_biases_in_decode, _BIASES),
    ("patches transposed", files.transpose_patch, _PATCH),
    ("lost ReLU in the decode", files.lost_relu_in_decode, rf"{_DRAWN}|a1|ReLU|Relu"),
    ("pixel centres", files.shift_coordinates, _CENTRES),
    ("x and y exchanged", files.swap_coordinates, rf"{_DRAWN}|from_xy|x and y|[xy]_table|coordinates"),
    ("coordinates without cat_norm", files.plain_coordinates, rf"{_DRAWN}|from_xy|coordinates|[xy]_table|cat_norm"),
    (
        "Resize align_corners",
        files.resize(coordinate_transformation_mode="align_corners"),
        _ENLARGED,
    ),
    ("Resize asymmetric", files.resize(coordinate_transformation_mode="asymmetric"), _ENLARGED),
    ("Resize nearest", files.resize(mode="nearest"), _ENLARGED),
    ("ReLU6 at 5", files.relu6_at(5), r"(?i)clip|relu6|max_val|limit|max is"),
    (
        "one ReLU6 at 3",
        files.one_relu6_at(3, "backbone.layer2.1.conv.0.act/Clip"),
        r"(?i)clip|relu6|max_val|limit|max is",
    ),
    ("ASPP order", files.swap_inputs("Concat", 2, 3), r"(?i)concat|aspp|permut"),
    ("padding at the end", files.convolution(_STRIDED, pads=[0, 0, 1, 1]), r"layer2\.0\.conv\.1\b.*pad|pads"),
    ("residual of another block", files.rewire("backbone.layer4.3/Add", 0, "backbone.layer4.1/Add"), r"layer4\.3"),
    (
        "guidance of another block",
        files.rewire(f"{_GUIDING}/Conv", 0, "backbone.layer2.0.conv.2.conv/Conv"),
        r"c1_bott|layer2\.1/Add/fp32",
    ),
    ("lost ReLU", files.lost("decode_head.aspp_modules.0.act/Relu"), r"aspp_modules\.0"),
    ("maximum in the pool", files.max_in_pool, r"image_pool"),
    ("class names permuted", files.facts_of(class_names=lambda names: names[::-1]), r"class|names"),
    ("palette of another set", files.facts_of(palette=lambda colours: voc_palette(len(colours))), r"palette|colour"),
    ("another ignore_index", files.facts_of(ignore_index=lambda _: 3), r"ignore_index"),
)
_FILE_OF_CASES = [
    *_in(
        _WIDE,
        _named(
            "file", ("dilation 9→8", files.convolution(_ATROUS, dilations=[8, 8], pads=[8] * 4), r"aspp_modules\.3")
        ),
    ),
    *_in(
        _R18,
        _named(
            "file",
            ("pooling padded at the end", files.max_pool(pads=[0, 0, 1, 1]), r"maxpool"),
            ("pooling in ceil mode", files.max_pool(pads=[0, 0, 0, 0], ceil_mode=1), r"maxpool"),
            (
                "stride on the second convolution",
                files.stride_later("backbone.layer2.0.conv1", "backbone.layer2.0.conv2"),
                r"layer2\.0\.conv[12].*stride|stride",
            ),
            ("downsample bias lost", files.lost_bias("backbone.layer3.0.downsample.0"), r"layer3\.0\.downsample"),
        ),
    ),
    *_in(
        Case(network="r18", bright=True),
        _named(
            "file",
            (
                "overflow on bright images",
                files.scale_pair("backbone.layer1.0.conv1", "backbone.layer1.0.conv2", 8000.0),
                (r"layer1\.0\.conv[12]", r"finite|range"),
            ),
        ),
        ("fp16",),
    ),
    *_in(
        Case(),
        _named(
            "file",
            ("activation scale ×0.25", files.activation_scale(_DEEP, 0.25), r"layer4\.2|layer4\.3|scale|range"),
            (
                "activation scale ×0.5",
                files.activation_scale("decode_head.bottleneck.act/Relu", 0.5),
                r"bottleneck|classifier|scale|range",
            ),
            (
                "activation scale ×4",
                files.activation_scale("backbone.layer2.1/Add", 4),
                r"layer2\.1|layer3\.0|scale|range",
            ),
            ("rolled weight scales", files.roll_weight_scales(_PROJECTED), r"layer4\.1\.conv\.2"),
            (
                "one weight scale for all channels",
                files.one_weight_scale("backbone.layer1.0.conv.0.conv"),
                r"layer1\.0\.conv\.0",
            ),
            ("weight scales of two", files.scales_of_two("decode_head.bottleneck.conv"), r"decode_head\.bottleneck"),
            ("weights wrap at 128", files.wrapped_weights("backbone.layer5.0.conv.0.conv"), r"layer5\.0\.conv\.0"),
            ("a zero point of 1", files.zero_point(_PROJECTED), r"layer4\.1\.conv\.2|zero"),
            (
                "scale of another tensor",
                files.scale_of_another(_DEEP, "backbone.layer2.1/Add"),
                r"layer4\.2|scale|range",
            ),
            (
                "pair before the activation",
                files.quantise_before("backbone.layer4.1.conv.0.act/Clip"),
                r"layer4\.1\.conv\.[01]|QuantizeLinear|pair|int8: 61 layers",
            ),
        ),
        INT8,
    ),
    *_in(
        Case(),
        _named(
            "file",
            ("fp8 activation scale ×0.5", files.activation_scale(_DEEP, 0.5), r"layer4\.2|layer4\.3|scale|range"),
            ("fp8 activation scale ×2", files.activation_scale(_DEEP, 2), r"layer4\.2|layer4\.3|scale|range"),
            (
                "fp8 with the scale of int8",
                files.activation_scale(_DEEP, 448 / 127),
                r"layer4\.2|layer4\.3|scale|range",
            ),
            ("fp8 that is E5M2", files.e5m2(_DEEP), r"layer4\.2|layer4\.3|E5M2|e5m2"),
            (
                "fp8 that does not saturate",
                files.not_saturating(_DEEP, 0.5),
                r"layer4\.2|layer4\.3|saturate|finite|scale|range",
            ),
            ("fp8 weights beyond the range", files.overflowing_weights(_PROJECTED), r"layer4\.1\.conv\.2|finite"),
            ("fp8 weight scales rolled", files.roll_weight_scales(_PROJECTED), r"layer4\.1\.conv\.2"),
            (
                "fp8 in a depthwise convolution",
                files.quantise_too("backbone.layer4.1.conv.1.conv", 6.0),
                r"layer4\.1\.conv\.[01]|QuantizeLinear|pair|fp8: \d+ layers",
            ),
        ),
        FP8,
    ),
]

_UPSTREAM = _named(
    "upstream",
    ("exporter: std ×1.02", upstream.exported(files.larger_std), _SPREAD),
    ("exporter: one std for all channels", upstream.exported(files.one_std), _SPREAD),
    ("exporter: BGR", upstream.exported(files.swap_rgb), _RED_AND_BLUE),
    ("exporter: lost BN bias", upstream.exported(files.lost_bias(_BIAS)), r"layer3\.1\.conv\.1\."),
    (
        "exporter: half the channels zero",
        upstream.exported(files.half_zero(_HALF)),
        (r"layer4\.2\.conv\.1", r"constant|zero"),
    ),
    ("exporter: 5 % noise on a layer", upstream.exported(files.noise(_NOISY, 0.05)), r"layer5\.1\.conv\.0\."),
    ("exporter: ReLU6 at 5", upstream.exported(files.relu6_at(5)), r"(?i)clip|relu6|max_val|limit|max is"),
    ("exporter: ASPP order", upstream.exported(files.swap_inputs("Concat", 2, 3)), r"(?i)concat|aspp|permut"),
    (
        "exporter: padding at the end",
        upstream.exported(files.convolution(_STRIDED, pads=[0, 0, 1, 1])),
        r"layer2\.0\.conv\.1\b.*pad|pads",
    ),
    (
        "exporter: residual of another block",
        upstream.exported(files.rewire("backbone.layer4.3/Add", 0, "backbone.layer4.1/Add")),
        r"layer4\.3",
    ),
    (
        "exporter: W2 as [d][K]",
        upstream.exported(files.transpose_in_theta("W2")),
        (r"W2 is transposed", _THETA_ORDER),
    ),
    ("exporter: labels from one", upstream.exported(files.shift_classes), rf"{_DRAWN}|labels|class|Mod|Add|mask"),
    ("folding: eps 1e-3", upstream.folded(upstream.other_eps), r"weight|bias|backbone|decode_head"),
    ("folding: variance without root", upstream.folded(upstream.no_root), r"weight|bias|backbone|decode_head"),
    ("folding: running mean lost", upstream.folded(upstream.no_mean), r"bias|backbone|decode_head"),
    (
        "folding: cat_norm's shift lost",
        upstream.cat_norm(upstream.no_shift),
        rf"{_DRAWN}|from_xy|coordinates|c1_bottleneck|cat_norm|[xy]_table|raised by",
    ),
    ("folding: pixel centres", upstream.coordinates, _CENTRES),
    (
        "decode: W0 order",
        upstream.decode(
            sizes="input_sections = Constant <value = int64[2] {{{m}, 2}}> ()", split="w0_guidance, w0_xy = Split"
        ),
        _W0,
    ),
    (
        "decode: b0 and b1",
        upstream.decode(first_bias="z0_guidance = Add (from_guidance, b1)", second_bias="z1 = Add (z1_weighted, b0)"),
        _BIASES,
    ),
    ("decode: patches transposed", upstream.decode(patch="rows = Transpose <perm = [0, 3, 1, 5, 2, 4]>"), _PATCH),
    ("decode: lost ReLU", upstream.decode(activation="a1 = Identity (z1)"), rf"{_DRAWN}|a1|ReLU|Relu"),
    (
        "decode: W1 transposed",
        upstream.decode(w1="w1_read = Reshape (w1_flat, w1_shape)\n  w1 = Transpose <perm = [0, 2, 1]> (w1_read)"),
        rf"{_DRAWN}|W1 is transposed|\bw1",
    ),
    ("decode: Resize asymmetric", upstream.enlarged("half_pixel", "asymmetric"), _ENLARGED),
    ("decode: Resize nearest", upstream.enlarged('mode = "linear"', 'mode = "nearest"'), _ENLARGED),
    ("runner: BGR fed", upstream.fed(upstream.bgr), _RED_AND_BLUE),
    ("runner: planes read as pixels", upstream.fed(upstream.planar), r"planar|planes|layout|NCHW|NHWC"),
    ("runner: outputs of the run before", upstream.stale_outputs, r"shift|earlier|previous|stale|another image"),
    ("runner: labels from one", upstream.drawn(lambda mask: (mask + 1) % 11), r"labels|class"),
    ("runner: rows read as columns", upstream.drawn(upstream.turned), r"transposed|rows|columns|layout"),
    ("runner: masks one row late", upstream.drawn(upstream.one_row_late), r"shift|row"),
)
_UPSTREAM_OF_CASES = [
    *_in(
        _WIDE,
        _named(
            "upstream",
            (
                "exporter: dilation 9→8",
                upstream.exported(files.convolution(_ATROUS, dilations=[8, 8], pads=[8] * 4)),
                r"aspp_modules\.3",
            ),
        ),
    ),
    *_in(
        _R18,
        _named(
            "upstream",
            ("exporter: pooling padded at the end", upstream.exported(files.max_pool(pads=[0, 0, 1, 1])), r"maxpool"),
        ),
    ),
    *_in(
        _LOUD,
        _named(
            "upstream",
            ("range pass: kept nodes lost", upstream.kept_nodes_lost, r"finite|range|fp32|kept|by up to inf"),
        ),
        ("fp16", "int8", "fp8"),
    ),
    *_in(
        Case(),
        _named(
            "upstream",
            (
                "casts: weights cut to 8 bits",
                upstream.cut_weights,
                r"weight|backbone|decode_head|another mean|another standard deviation",
            ),
        ),
        SIXTEEN,
    ),
    *_in(
        Case(),
        _named(
            "upstream",
            ("calibration: ranges ×0.5", upstream.ranges_times(0.5), r"scale|range"),
            ("calibration: ranges ×4", upstream.ranges_times(4.0), r"scale|range"),
            ("calibration: percentile 90", upstream.other_percentile, r"scale|range"),
            ("calibration: ranges of the tensor before", upstream.rolled_ranges, r"scale|range"),
            ("calibration: dark images", upstream.dark_images, r"scale|range|exposure|dark"),
        ),
        CALIBRATED,
    ),
    *_in(
        Case(),
        _named(
            "upstream",
            ("quantizer: fp8 cut off", upstream.fp8_cut_off, r"weight|scale|backbone|decode_head"),
        ),
        FP8,
    ),
    *_in(
        Case(),
        _named(
            "upstream",
            ("quantizer: one weight scale a layer", upstream.weight_scales(upstream.largest), r"scale|weight"),
            ("quantizer: weights cut off", upstream.stored_weights(upstream.cut_off), r"weight|backbone|decode_head"),
            ("quantizer: rolled weight scales", upstream.stored_weights(upstream.rolled), r"scale|weight|backbone"),
            (
                "quantizer: weights wrap at 128",
                upstream.stored_weights(upstream.wrapped),
                r"weight|backbone|decode_head",
            ),
            ("quantizer: one scale for all skips", upstream.one_skip_scale, r"scale|range"),
        ),
        INT8,
    ),
    *_in(
        Case(mask_encoding="u8x4"),
        _named(
            "upstream", ("runner: u8x4 with the first pixel highest", upstream.big_endian, r"u8x4|byte|order|layout")
        ),
    ),
    *_in(
        _FLOAT,
        _named(
            "upstream",
            (
                "runner: BGR fed as float",
                upstream.feeds_normalised(lambda planes: planes[:, ::-1]),
                rf"{_RED_AND_BLUE}|activation scale",  # calibration feeds it too, and its ranges do not fit
            ),
            ("preprocessing: BGR, PyTorch's too", upstream.normalised(lambda planes: planes[:, ::-1]), _RED_AND_BLUE),
            ("preprocessing: std ×1.02, PyTorch's too", upstream.normalised(lambda planes: planes / 1.02), _SPREAD),
        ),
    ),
    *_in(
        _PHOTOS,
        _named(
            "upstream",
            ("preprocessing: nearest for bilinear", upstream.fitted_nearest, r"nearest|resampl|bilinear|scal"),
            ("preprocessing: masks one column late", upstream.restored_late, r"restor|column|shift"),
        ),
    ),
]

FAULTS = {fault.name: fault for fault in (*_FILE, *_FILE_OF_CASES, *_UPSTREAM, *_UPSTREAM_OF_CASES)}
