"""The verb ``complexity``: what a network costs, next to the decoders that it is compared with."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nrd_trt.cli import common, groups
from nrd_trt.cli.parse import parse_size


def complexity_command(
    target: Annotated[str, typer.Argument(metavar="CKPT|RECIPE", help="A checkpoint, or the name of a recipe.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Of the input, multiples of 32 (default the model's).")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="NAME",
            help="Instead of the recipe's: nrd, nrd_no_aspp, deeplabv3plus, bilinear, deeplabv3.",
        ),
    ] = None,
    output_stride: common.OutputStride = None,
    dilations: common.Dilations = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Count multiply-adds, parameters and activations of a network by part."""
    from nrd_trt.training.complexity import describe_complexity

    options = groups.CheckpointFacts(dilations=dilations, output_stride=output_stride).options()
    size_hw = parse_size(size) if size else None
    result = describe_complexity(target, size_hw=size_hw, head=head, options=options).to_dict()
    if as_json:
        common.print_json(result)
    else:
        typer.echo("\n".join(table(result)))


def table(result: dict[str, Any]) -> list[str]:
    """Return the lines for people."""
    total = result["total_gmac"]
    lines = [f"{result['encoder']} with head {result['head']} at {result['size']}"]
    lines += [
        f"{name:<12} {gmac:>10.3f} GMAC {100 * gmac / total:>7.2f} %"
        for name, gmac in (*result["parts"].items(), ("total", total))
    ]
    return [
        *lines,
        f"{'parameters':<12} {result['parameters'] / 1e6:>10.3f} M",
        f"{'activations':<12} {result['activation_bytes'] / 2**20:>10.1f} MiB in fp32, "
        "written by convolutions and matrix products",
        f"decoder {result['decoder_gmac']:.1f} GMAC, {_percent(result['decoder_ratio'])} of DeepLabV3+'s on the same "
        "encoder",
        f"whole network {_percent(result['dilated_ratio'])} of DeepLabV3 on the same encoder at stride 8",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
