"""What a network costs: multiply-adds, parameters and written activations, by part. PyTorch only on use.

Everything is counted on PyTorch's meta device, which computes shapes and nothing else: no weights, no memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrd_trt.errors import ConfigError
from nrd_trt.model import CheckpointFields, load_model, require_torch
from nrd_trt.model.plans import TRANSFORMERS
from nrd_trt.specs import STRIDE, Head, ModelInfo, Size, check_size, format_size

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model.config import NetworkConfig

_DILATIONS_D8 = (1, 12, 24, 36)  # of mmseg's DeepLabV3 at output stride 8

# What is in none of these is the decode: NRD's per-patch perceptrons, which are no module, or a baseline's classifier.
_MODULES = {
    "encoder": ("backbone",),
    "aspp": ("decode_head.image_pool", *(f"decode_head.aspp_modules.{index}" for index in range(4))),
    "bottleneck": ("decode_head.bottleneck",),
    "guidance": ("decode_head.c1_bottleneck",),
    "controller": ("decode_head.classifier",),
}
_DECODER = ("guidance", "controller", "decode")
_FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one forward pass of one network costs, batch 1.

    Attributes:
        macs: Multiply-adds by part, each counted once: ``encoder, aspp, bottleneck, guidance, controller, decode``.
            Convolutions and matrix products only: no batch norm, no resizing, no auxiliary head.
        parameters: Trained numbers that a forward pass reads; no running statistics, no unused ``conv_seg``.
        activation_bytes: What convolutions and matrix products write, in fp32. An engine fuses batch norm and
            activation functions into them; concatenation, pooling and resizing are left out, and so is the input.
        layers: Multiply-adds by module, those of its parts included.
    """

    macs: Mapping[str, int]
    parameters: int
    activation_bytes: int
    layers: Mapping[str, int]

    @property
    def total(self) -> int:
        """Multiply-adds of the whole network."""
        return sum(self.macs.values())

    @property
    def decoder(self) -> int:
        """Multiply-adds of what comes after the bottleneck."""
        return sum(self.macs[part] for part in _DECODER)


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """The cost of a network next to the networks that it is compared with.

    Attributes:
        config: The network.
        size_hw: Size of its input.
        cost: Cost of the network.
        decoder_ratio: Multiply-adds of its decoder over those of DeepLabV3+'s, with the same encoder, classes and
            widths at output stride 32.
        dilated_ratio: Multiply-adds of the whole over those of DeepLabV3 with the same encoder, classes and width,
            dilated to output stride 8; None with a transformer, which cannot be dilated.
    """

    config: NetworkConfig
    size_hw: tuple[int, int]
    cost: Cost
    decoder_ratio: float
    dilated_ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; multiply-adds in units of 10^9."""
        return {
            "size": format_size(self.size_hw),
            "encoder": self.config.encoder,
            "head": self.config.head,
            "total_gmac": self.cost.total / 1e9,
            "decoder_gmac": self.cost.decoder / 1e9,
            "decoder_ratio": self.decoder_ratio,
            "dilated_ratio": self.dilated_ratio,
            "parts": {part: macs / 1e9 for part, macs in self.cost.macs.items()},
            "parameters": self.cost.parameters,
            "activation_bytes": self.cost.activation_bytes,
        }


def complexity(
    source: Path | str,
    *,
    size: Size | None = None,
    head: Head | None = None,
    **options: Unpack[CheckpointFields],
) -> Complexity:
    """Count what a checkpoint's or a recipe's network costs: multiply-adds, parameters and activations by part.

    Args:
        source: Path of a checkpoint, else the name of a recipe.
        size: Height and width of the input, multiples of 32; None takes the model's own.
        head: Takes the place of a recipe's head.
        **options: What the file of a checkpoint does not tell, as for `nrd_trt.load_model`. Of these, ``output_stride``
            and ``dilations`` take the place of a recipe's.

    Raises:
        MissingDependencyError: PyTorch is not installed.
        ConfigError: There is no such recipe, or an argument does not fit the source.
        ShapeError: The size is not a multiple of 32.
        CheckpointError: The checkpoint is unreadable or of another kind.
    """
    require_torch("counting multiply-adds")
    config, info = _network(source, head, options)
    size_hw = size or info.size_hw
    check_size(size_hw, what="size=")
    cost = count_cost(config, info, size_hw)
    plus = count_cost(replace(config, head="deeplabv3plus", output_stride=STRIDE), info, size_hw)
    dilated_ratio = None
    if config.encoder not in TRANSFORMERS:
        dilated = replace(config, head="deeplabv3", dilations=_DILATIONS_D8, output_stride=8)
        dilated_ratio = cost.total / count_cost(dilated, info, size_hw).total
    return Complexity(
        config=config,
        size_hw=size_hw,
        cost=cost,
        decoder_ratio=cost.decoder / plus.decoder,
        dilated_ratio=dilated_ratio,
    )


@cache
def count_cost(config: NetworkConfig, info: ModelInfo, size_hw: tuple[int, int]) -> Cost:
    """Count one forward pass at `size_hw` with PyTorch's own counter.

    The counter sees the dispatched operations, so the matrix products of the decode too, which are no modules.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nrd_trt.model.network import Segmentor

    with torch.device("meta"):
        model = Segmentor(config, info).eval()
        image = torch.empty(1, 3, *size_hw)
    flops = FlopCounterMode(display=False)
    counted = dict.fromkeys(flops.flop_registry, lambda *_, out_shape, **__: _FP32_BYTES * math.prod(out_shape))
    written = FlopCounterMode(display=False, custom_mapping=counted)
    with torch.inference_mode(), flops, written:
        model(image)
    unused = sum(parameter.numel() for module in model.unused_modules() for parameter in module.parameters())
    root = f"{type(model).__name__}."
    layers = {name.removeprefix(root): sum(one.values()) // 2 for name, one in flops.get_flop_counts().items()}
    return Cost(
        macs=_by_part(layers, flops.get_total_flops() // 2),
        parameters=sum(parameter.numel() for parameter in model.parameters()) - unused,
        activation_bytes=written.get_total_flops(),
        layers=layers,
    )


def _network(source: Path | str, head: Head | None, options: CheckpointFields) -> tuple[NetworkConfig, ModelInfo]:
    from nrd_trt.training.recipes import RECIPES, adapted

    if Path(source).is_file():
        if head is not None:
            raise ConfigError(f"head={head}: {source} is a checkpoint, whose head is fixed; give a recipe's name.")
        model = load_model(source, **options)
        return model.config, model.info
    if source not in RECIPES:
        raise ConfigError(
            f"{source}: expected a checkpoint file or the name of a recipe ({', '.join(RECIPES)}), found neither; "
            "check the path or the name."
        )
    given = {name: value for name, value in options.items() if value is not None}
    recipe = adapted(RECIPES[str(source)], head=head, output_stride=options.get("output_stride"))
    dilations = options.get("dilations") or recipe.config.dilations
    if unfit := sorted(given.keys() - {"output_stride", "dilations"}):
        raise ConfigError(f"{unfit[0]}=: describes a checkpoint, {source} is a recipe; leave it out.")
    return replace(recipe.config, dilations=dilations), recipe.info


def _by_part(layers: Mapping[str, int], total: int) -> dict[str, int]:
    """Sum the multiply-adds of modules by part."""
    parts = {part: sum(layers.get(name, 0) for name in names) for part, names in _MODULES.items()}
    return {**parts, "decode": total - sum(parts.values())}
