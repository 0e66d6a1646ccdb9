"""The verb ``complexity``: what a network costs, next to the decoders that it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.specs import Head

if TYPE_CHECKING:
    from nrd_trt.training.complexity import Complexity


def complexity_command(
    *,
    source: Annotated[str, typer.Argument(metavar="CKPT|RECIPE", help="A checkpoint, or the name of a recipe.")],
    size: common.Size = None,
    head: Annotated[Head | None, typer.Option(help="Instead of the recipe's.")] = None,
    output_stride: common.OutputStride = None,
    dilations: common.Dilations = None,
    out: groups.OutputOptions,
) -> None:
    """Count multiply-adds, parameters and activations of a network by part."""
    from nrd_trt.training.complexity import complexity

    found = complexity(source, size=size, head=head, dilations=dilations, output_stride=output_stride)
    out.show(found, table(found))


def table(found: Complexity) -> list[str]:
    """Return the lines to print."""
    cost = found.cost
    return [
        f"{found.config.encoder} with head {found.config.head} at {found.to_dict()['size']}",
        *(
            f"{name:<12} {macs / 1e9:>10.3f} GMAC {100 * macs / cost.total:>7.2f} %"
            for name, macs in (*cost.macs.items(), ("total", cost.total))
        ),
        f"{'parameters':<12} {cost.parameters / 1e6:>10.3f} M",
        f"{'activations':<12} {cost.activation_bytes / 2**20:>10.1f} MiB in fp32, "
        "written by convolutions and matrix products",
        f"decoder {cost.decoder / 1e9:.1f} GMAC, {100 * found.decoder_ratio:.1f} % of DeepLabV3+'s on the same encoder",
        *(
            [f"whole network {100 * found.dilated_ratio:.1f} % of DeepLabV3 on the same encoder at stride 8"]
            if found.dilated_ratio is not None
            else []
        ),
    ]
