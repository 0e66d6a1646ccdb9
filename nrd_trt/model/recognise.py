"""What network a checkpoint holds, read off the names and shapes of its tensors, its metadata and the user's options.

Shapes do not tell dilations and output stride. NRD heads have released values for both; a baseline without metadata
needs them as options, because a dilated (D8) checkpoint has the same tensors as a strided one and other arithmetic.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from nrd_trt.data.classes import known_classes, voc_palette
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.model.config import KNOWN_CONFIGS, AsppChannels, NetworkConfig
from nrd_trt.model.network import Segmentor
from nrd_trt.model.plans import PLANS, RESNETS, TRANSFORMERS, Widths, read_widths
from nrd_trt.specs import STRIDE, CheckpointOptions, Head, ModelInfo

Shapes = Mapping[str, tuple[int, ...]]

_CONTROLLER = "decode_head.classifier.classifier"
_RELEASED_DILATIONS = (1, 3, 6, 9)


@dataclass(frozen=True, kw_only=True)
class StoredInfo:
    """The fields of `ModelInfo` that a checkpoint file tells; None for those that it does not."""

    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channel_order: Literal["rgb", "bgr"] | None = None
    ignore_index: int | None = None
    size_hw: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredFacts:
    """What a checkpoint file tells besides its tensors; None for what it does not.

    Attributes:
        info: Classes and preprocessing.
        num_classes: K.
        hidden: d, width of the per-patch perceptron.
        patch: f, side of a patch.
        dilations: Dilations of the four ASPP branches.
        output_stride: Stride of the encoder's last stage.
        widths: Channels within the encoder.
        aspp_channels: Width of each branch of ASPP.
        fix_window_mask: Whether Twins masks its windows' padding everywhere.
        unsupported: Why the network cannot be loaded.
    """

    info: StoredInfo = StoredInfo()
    num_classes: int | None = None
    hidden: int | None = None
    patch: int | None = None
    dilations: tuple[int, int, int, int] | None = None
    output_stride: int | None = None
    widths: Widths | None = None
    aspp_channels: AsppChannels | None = None
    fix_window_mask: bool | None = None
    unsupported: str | None = None


def recognise(shapes: Shapes, facts: StoredFacts, options: CheckpointOptions) -> NetworkConfig:
    """Return the configuration of a checkpoint.

    Args:
        shapes: Names and shapes of its tensors.
        facts: Its metadata.
        options: What the user says; wins over the metadata.

    Raises:
        CheckpointError: It is no network of this toolkit, or shapes and metadata leave it open which one.
        ConfigError: A value is not supported.
    """
    if facts.unsupported is not None:
        raise CheckpointError(facts.unsupported)
    encoder = _encoder(shapes)
    if "decode_head.cat_norm.weight" in shapes or f"{_CONTROLLER}.1.weight" in shapes:
        return _nrd(encoder, shapes, facts, options)
    baseline = _baseline_head(shapes)
    if encoder is None or baseline is None:
        what = "a head of another kind" if encoder else "an encoder of another kind"
        raise CheckpointError(
            f"expected an NRD head (decode_head.cat_norm) or a DeepLab baseline on a known encoder, got {what}; "
            f"{nearest(shapes)}"
        )
    return _baseline(encoder, baseline, shapes, facts, options)


def _nrd(encoder: str | None, shapes: Shapes, facts: StoredFacts, options: CheckpointOptions) -> NetworkConfig:
    head: Head = "nrd" if "decode_head.bottleneck.conv.weight" in shapes else "nrd_no_aspp"
    guidance = "decode_head.c1_bottleneck.1.conv.weight" if head == "nrd" else "decode_head.c1_bottleneck.conv.weight"
    needed = (f"{_CONTROLLER}.0.conv.weight", f"{_CONTROLLER}.1.weight", guidance, "decode_head.cat_norm.weight")
    missing = [name for name in needed if len(shapes.get(name, ())) not in (1, 4)]
    if missing or encoder is None:
        what = f"no {', '.join(missing)}" if missing else "an encoder of another kind"
        raise CheckpointError(
            f"expected an NRD head on a known encoder, got {what}; {nearest(shapes)} "
            "The FPN variants of the head are not supported."
        )
    m, theta = shapes[guidance][0], shapes[f"{_CONTROLLER}.1.weight"][0]
    classes, hidden = _classes_and_hidden(shapes, facts, options, m=m, theta=theta)
    controller = shapes[f"{_CONTROLLER}.0.conv.weight"][0]
    conv_seg = shapes.get("decode_head.conv_seg.weight")
    channels = {"channels": conv_seg[1] if conv_seg else controller}
    if head == "nrd":
        channels = {"channels": shapes["decode_head.bottleneck.conv.weight"][0], "c1_channels": shapes[guidance][1]}
    return NetworkConfig(
        encoder=encoder,
        num_classes=classes,
        head=head,
        controller_channels=controller,
        hidden=hidden,
        guidance_channels=m,
        patch=options.patch or facts.patch or 8,
        dilations=options.dilations or facts.dilations or _RELEASED_DILATIONS,
        output_stride=options.output_stride or facts.output_stride or STRIDE,
        widths=_widths(encoder, shapes, facts),
        aspp_channels=_aspp_channels(head, channels["channels"], shapes, facts),
        fix_window_mask=bool(facts.fix_window_mask if options.fix_window_mask is None else options.fix_window_mask),
        **channels,
    )


def _baseline_head(shapes: Shapes) -> Head | None:
    if "decode_head.image_pool.1.conv.weight" not in shapes or "decode_head.conv_seg.weight" not in shapes:
        return None
    if "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight" in shapes:
        return "deeplabv3plus" if "decode_head.c1_bottleneck.conv.weight" in shapes else None
    return "bilinear" if "decode_head.aspp_modules.1.depthwise_conv.conv.weight" in shapes else "deeplabv3"


def _baseline(
    encoder: str, head: Head, shapes: Shapes, facts: StoredFacts, options: CheckpointOptions
) -> NetworkConfig:
    dilations = options.dilations or facts.dilations
    output_stride = options.output_stride or facts.output_stride
    if dilations is None or output_stride is None:
        unknown = [
            name for name, value in (("output_stride=", output_stride), ("dilations=", dilations)) if value is None
        ]
        raise CheckpointError(
            f"a {head} network whose file does not say how it is dilated: strided and dilated (D8) networks have the "
            f"same tensors and draw different masks; give {' and '.join(unknown)} (mmseg's D8: output_stride=8 "
            "dilations=1,12,24,36)."
        )
    classes, channels = shapes["decode_head.conv_seg.weight"][:2]
    c1 = shapes.get("decode_head.c1_bottleneck.conv.weight")
    return NetworkConfig(
        encoder=encoder,
        num_classes=classes,
        head=head,
        channels=channels,
        c1_channels=c1[0] if c1 else NetworkConfig.c1_channels,
        dilations=dilations,
        output_stride=output_stride,
        widths=_widths(encoder, shapes, facts),
        aspp_channels=_aspp_channels(head, channels, shapes, facts),
    )


def _widths(encoder: str, shapes: Shapes, facts: StoredFacts) -> Widths | None:
    """Return the encoder's widths as the file tells them, else as its tensors' shapes do; None for its own."""
    found = facts.widths or read_widths(encoder, shapes)
    return None if found == PLANS[encoder].own else found


def _aspp_channels(head: Head, channels: int, shapes: Shapes, facts: StoredFacts) -> AsppChannels | None:
    """Return the widths of ASPP's branches in the same way; None where all are as wide as what joins them."""
    last = "" if head == "deeplabv3" else ".pointwise_conv"
    layers = ("image_pool.1", "aspp_modules.0", *(f"aspp_modules.{index}{last}" for index in (1, 2, 3)))
    read = [(shapes.get(f"decode_head.{layer}.conv.weight") or (channels,))[0] for layer in layers]
    found = facts.aspp_channels or (read[0], read[1], read[2], read[3], read[4])
    return None if set(found) == {channels} else found


def nearest(shapes: Shapes) -> str:
    """Say which known configuration a checkpoint resembles most: by the share of names and shapes in common."""
    given = set(shapes.items())

    def similarity(name: str) -> float:
        known = set(expected_shapes(KNOWN_CONFIGS[name]).items())
        return len(given & known) / len(given | known)

    best = max(KNOWN_CONFIGS, key=similarity)
    return f"The nearest known configuration is {best} ({similarity(best):.0%} of the tensors agree)."


def _encoder(shapes: Shapes) -> str | None:
    """Name the encoder by stem, blocks per stage and groups."""
    if "backbone.conv1.conv.weight" in shapes:
        return "mobilenetv2"
    if "backbone.patch_embed1.proj.weight" in shapes or "backbone.patch_embeds.0.proj.weight" in shapes:
        return next((name for name, plan in TRANSFORMERS.items() if plan.matches(shapes)), None)
    blocks = tuple(
        len({name.split(".")[2] for name in shapes if name.startswith(f"backbone.layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    given, taken = shapes.get("backbone.layer1.0.conv1.weight", (1,)), shapes.get("backbone.layer1.0.conv2.weight", ())
    groups = given[0] // max(taken[1], 1) if given and len(taken) > 1 else 1
    deep_stem, bottleneck = (f"backbone.{name}.weight" in shapes for name in ("stem.0", "layer1.0.conv3"))
    found = (blocks, deep_stem, bottleneck, groups)
    for name, plan in RESNETS.items():
        if (plan.blocks, plan.deep_stem, plan.bottleneck, plan.groups) == found:
            return name
    return None


def _classes_and_hidden(
    shapes: Shapes, facts: StoredFacts, options: CheckpointOptions, *, m: int, theta: int
) -> tuple[int, int]:
    """Solve P = (2+m)d + d + d² + d + dK + K for what is not known of K and d."""
    conv_seg = shapes.get("decode_head.conv_seg.weight")
    classes = options.num_classes or (conv_seg[0] if conv_seg else facts.num_classes)
    hidden = options.hidden or facts.hidden
    if classes is None:
        d = hidden or 16
        fixed = d * (4 + m + d)
        classes, rest = divmod(theta - fixed, d + 1)
        hidden = d if rest == 0 and classes >= 2 else None
    elif hidden is None:
        b = 4 + m + classes  # d² + b·d + K = P
        root = math.isqrt(b * b + 4 * (theta - classes)) if theta > classes else 0
        hidden = (root - b) // 2
    if not hidden or hidden < 1 or hidden * (4 + m + hidden + classes) + classes != theta:
        raise CheckpointError(
            f"the controller predicts {theta} parameters per patch with {m} guidance channels, which does not fit "
            f"K = {classes} classes and d = {hidden} hidden channels; give num_classes= and hidden=."
        )
    return int(classes), int(hidden)


def describe(classes: int, stored: StoredInfo, options: CheckpointOptions) -> ModelInfo:
    """Collect names, colours and preprocessing: option, then file, then the known sets.

    Raises:
        ConfigError: ``class_names`` names another number of classes.
    """
    if options.class_names is not None and len(options.class_names) != classes:
        raise ConfigError(f"class_names=: expected {classes} names, got {len(options.class_names)}.")
    names, palette, known = options.class_names or stored.class_names, stored.palette, known_classes(classes)
    if names is not None and len(names) != classes:
        warnings.warn(f"the checkpoint names {len(names)} classes but has {classes}; names ignored", stacklevel=4)
        names = None
    if names is None and known is None:
        warnings.warn(f"no class names for {classes} classes; using class_0 …, give class_names=", stacklevel=4)
    names = names or (known[0] if known else tuple(f"class_{index}" for index in range(classes)))
    if palette is None or len(palette) != classes:
        palette = known[1] if known else voc_palette(classes)
    order = stored.channel_order if options.bgr is None else "bgr" if options.bgr else "rgb"
    chosen: dict[str, Any] = {
        "mean": options.mean or stored.mean,
        "std": options.std or stored.std,
        "channel_order": order,
        "ignore_index": stored.ignore_index,
        "size_hw": stored.size_hw,
    }
    told = {name: value for name, value in chosen.items() if value is not None}
    return ModelInfo(class_names=names, palette=palette, **told)


@cache
def expected_shapes(config: NetworkConfig) -> Shapes:
    """Return names and shapes of the parameters of a configuration, without allocating them."""
    names = tuple(f"class_{index}" for index in range(config.num_classes))
    info = ModelInfo(class_names=names, palette=((0, 0, 0),) * config.num_classes)
    with torch.device("meta"):
        model = Segmentor(config, info)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
