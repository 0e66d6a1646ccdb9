"""Options that several verbs take as one parameter: a dataclass, each field an option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from nrd_trt.cli import common
from nrd_trt.cli.parse import parse_batch, parse_dynamic, parse_numbers, parse_size, read_class_names
from nrd_trt.model import CheckpointFields, checkpoint_options
from nrd_trt.specs import MASK_ENCODINGS

if TYPE_CHECKING:
    from nrd_trt.building.request import FormRequest
    from nrd_trt.model.recognise import CheckpointOptions


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """Return a verb as Typer can read it: in the place of each group stand the options that are its fields."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += _options(groups[name])
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def flat(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{field.name: options.pop(field.name) for field in fields(group)})
        command(**options)

    # Typer reads both.
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
        for field in fields(group)
    ]


@dataclass(frozen=True, kw_only=True)
class FormOptions:
    """Form of the exported file, as it was typed."""

    input_form: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="uint8|float", help="uint8: NHWC RGB, normalised in the graph (default); float: NCHW."
        ),
    ] = None
    output: Annotated[
        str | None, typer.Option("--output", metavar="mask|logits|both", help="Outputs of the graph (default mask).")
    ] = None
    mask_encoding: Annotated[
        str | None,
        typer.Option(
            "--mask-encoding",
            metavar="uint8|u8x4",
            help="u8x4: four pixels in one int32, for the runners of nrd_trt only (default uint8).",
        ),
    ] = None
    size: common.Size = None
    dynamic: Annotated[
        str | None,
        typer.Option("--dynamic", metavar="MIN:OPT:MAX", help="Range of sizes, each HxW in multiples of 32."),
    ] = None
    batch: Annotated[str | None, typer.Option("--batch", metavar="N|MIN:OPT:MAX", help="Batch size (default 1).")] = (
        None
    )

    def request(self) -> FormRequest:
        """Return them checked."""
        from nrd_trt.building.request import FormRequest

        return FormRequest(
            input_form=common.choice("--input", self.input_form, ("uint8", "float")),
            output=common.choice("--output", self.output, ("mask", "logits", "both")),
            mask_encoding=common.choice("--mask-encoding", self.mask_encoding, MASK_ENCODINGS),
            size=parse_size(self.size) if self.size else None,
            dynamic=parse_dynamic(self.dynamic) if self.dynamic else None,
            batch=parse_batch(self.batch) if self.batch else None,
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Facts about a checkpoint that the file may not carry, as they were typed."""

    num_classes: Annotated[
        int | None, typer.Option("--num-classes", min=2, max=256, help="K, where the file does not tell.")
    ] = None
    hidden: Annotated[int | None, typer.Option("--hidden", min=1, help="d, width of the per-patch perceptron.")] = None
    patch: Annotated[int | None, typer.Option("--patch", min=1, help="f, side of a patch (default 8).")] = None
    dilations: common.Dilations = None
    output_stride: common.OutputStride = None
    class_names: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Text file, one class name per line.")
    ] = None
    mean: Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="In 0-255 (default ImageNet's).")] = None
    std: Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="In 0-255 (default ImageNet's).")] = None
    bgr: Annotated[bool, typer.Option("--bgr", help="The network reads BGR; mean and std are in that order.")] = False

    def fields(self) -> CheckpointFields:
        """Return those that were given, parsed, as the functions of the library take them."""
        found = CheckpointFields(
            num_classes=self.num_classes,
            hidden=self.hidden,
            patch=self.patch,
            dilations=parse_numbers("--dilations", self.dilations, int, 4) if self.dilations else None,
            output_stride=self.output_stride,
            class_names=read_class_names(self.class_names) if self.class_names else None,
            mean=parse_numbers("--mean", self.mean, float, 3) if self.mean else None,
            std=parse_numbers("--std", self.std, float, 3) if self.std else None,
            bgr=True if self.bgr else None,
        )
        return {name: value for name, value in found.items() if value is not None}  # type: ignore[return-value]

    def options(self) -> CheckpointOptions | None:
        """Return them as one value, or None where none was given."""
        return checkpoint_options(self.fields())
