"""Options that several verbs take as one parameter: a dataclass, each field an option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_type_hints

from nrd_trt.cli import common, parse
from nrd_trt.errors import ConfigError
from nrd_trt.progress import OnMessage, silent
from nrd_trt.specs import (
    DEFAULT_IMAGES,
    DEFAULT_MEMORY_MB,
    DEFAULT_RECIPE,
    DecodeName,
    Estimator,
    InputForm,
    MaskEncoding,
    ProtocolName,
    Provider,
    Quantizer,
    RunnerName,
    Target,
)


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


class Group:
    """Options whose fields have the names of the library's parameters."""

    def given(self) -> dict[str, Any]:
        """Return those that were given, as arguments of a function of the library."""
        options = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, default in options.items() if (value := getattr(self, name)) != default}


class Result(Protocol):
    """What a function of the library returns."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What a verb prints, and how."""

    as_json: Annotated[bool, common.output_option("--json", help="Print exactly one JSON object on stdout.")] = False
    verbose: common.Verbose = False
    quiet: common.Quiet = False

    @functools.cached_property
    def on_stage(self) -> common.Stages:
        """Announces the stages of a long verb, until its result is shown."""
        return common.Stages(quiet=self.quiet)

    @property
    def on_message(self) -> OnMessage:
        """Prints TensorRT's messages on stderr, with ``-v``."""
        return common.show_message if self.verbose else silent

    def note(self, text: str) -> None:
        """Print one line of progress to stderr, unless with ``-q``."""
        common.note(text, quiet=self.quiet)

    def show(self, result: Result, lines: Iterable[str]) -> None:
        """Print the result of a verb: one JSON object, or lines of text."""
        self.on_stage.end()
        if self.as_json:
            common.print_json(result.to_dict())
        else:
            common.say(*lines)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Group):
    """How masks and images are made comparable with labels."""

    labels: Annotated[Path | None, common.input_option(metavar="DIR", help="Index PNGs, paired by name.")] = None
    ignore_index: Annotated[
        int | None, common.input_option(min=0, max=255, help="Label value to ignore besides 255.")
    ] = None
    fit: common.FitOption = None
    resample: common.ResampleOption = None


@dataclass(frozen=True, kw_only=True)
class ViewOptions(Group):
    """How images are looked at."""

    protocol: Annotated[
        ProtocolName | None,
        common.input_option(help="One run, windows (slide) or a released pipeline (default whole, slide with --tile)."),
    ] = None
    scales: Annotated[
        Any,
        common.input_option(
            metavar="A,B,…", parser=parse.parse_scales, help="Factors of the size; logits are averaged (default 1)."
        ),
    ] = None
    flip: Annotated[bool, common.input_option("--flip", help="Also run mirrored images.")] = False
    tile: Annotated[
        Any,
        common.input_option(
            metavar="HxW", parser=parse.parse_size, help="Window of slide (default the engine's size)."
        ),
    ] = None
    stride: Annotated[
        Any,
        common.input_option(
            metavar="HxW", parser=parse.parse_size, help="How far it moves (default two thirds of it)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class GateOptions(Group):
    """What the figures must reach; the defaults are those of the precision."""

    min_agreement: common.MinAgreement = None
    max_miou_drop: common.MaxMiouDrop = None
    min_class_iou: common.MinClassIou = None
    max_class_drop: common.MaxClassDrop = None
    min_border_agreement: common.MinBorderAgreement = None
    min_boundary_f: common.MinBoundaryF = None


DeviceOption = Annotated[
    Any,
    common.engine_option(
        metavar="N|UUID", parser=parse.parse_device, help="The GPU: a number, GPU-… or MIG-… (default the first)."
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunnerOptions(Group):
    """What runs an engine."""

    runner: Annotated[RunnerName, common.engine_option(help="What runs it; auto takes the plan where it can.")] = "auto"
    plugin: common.Plugin = None
    threads: common.Threads = None
    cuda: Annotated[Provider, common.engine_option(help="What a plan's runner calls CUDA by.")] = "driver"
    cuda_graph: Annotated[
        bool | None,
        common.engine_option("--cuda-graph/--no-cuda-graph", help="Replay a plan's runs as CUDA graphs (default yes)."),
    ] = None
    device: DeviceOption = None


@dataclass(frozen=True, kw_only=True)
class BundleOptions(RunnerOptions):
    """The same, and whose a bundle must be."""

    verify_key: common.VerifyKey = None


InputFormOption = Annotated[
    InputForm | None,
    common.input_option("--input", help="uint8: NHWC RGB (default); rgb_float: NCHW in 0-255; float: NCHW normalised."),
]


@dataclass(frozen=True, kw_only=True)
class FormOptions(Group):
    """Form of the exported file."""

    input_form: InputFormOption = None
    outputs: Annotated[
        Any,
        common.output_option(
            metavar="mask,logits,confidence",
            parser=parse.parse_names,
            help="What the graph gives, confidence beside the mask only (default mask).",
        ),
    ] = None
    output_until_0_1: Annotated[
        Literal["mask", "logits", "both"] | None, common.output_option("--output", hidden=True)
    ] = None
    mask_encoding: Annotated[
        MaskEncoding | None,
        common.output_option(help="u8x4: four pixels in one int32, for the runners of nrd_trt only (default uint8)."),
    ] = None
    size: common.Size = None
    dynamic: Annotated[
        Any,
        common.input_option(
            metavar="MIN:OPT:MAX", parser=parse.parse_dynamic, help="Range of sizes, each HxW in multiples of 32."
        ),
    ] = None
    batch: Annotated[
        Any, common.input_option(metavar="N|MIN:OPT:MAX", parser=parse.parse_batch, help="Batch size (default 1).")
    ] = None

    def given(self) -> dict[str, Any]:
        """Return those that were given; ``--output`` is what ``--outputs`` was called until 0.1."""
        found = super().given()
        old = found.pop("output_until_0_1", None)
        if old is None:
            return found
        if self.outputs is not None:
            raise ConfigError("--output and --outputs are the same; give --outputs only.")
        return {**found, "outputs": ("mask", "logits") if old == "both" else (old,)}


CalibrationOption = Annotated[
    Path | None,
    common.precision_option(metavar="DIR|FILE", help="Images, a video, 'synthetic', or ranges of `nrd-trt calibrate`."),
]


@dataclass(frozen=True, kw_only=True)
class RangeOptions(Group):
    """How images are chosen and ranges measured on them, and for what."""

    recipe: Annotated[
        Estimator | None, common.precision_option(help=f"How ranges are estimated (default {DEFAULT_RECIPE}).")
    ] = None
    images: Annotated[
        int | None,
        common.precision_option(
            min=1, metavar="N", help=f"Calibrate on at most this many images (default {DEFAULT_IMAGES})."
        ),
    ] = None
    seed: Annotated[
        int | None, common.precision_option(min=0, metavar="N", help="Chooses calibration images (default 0).")
    ] = None
    memory_mb: Annotated[
        float | None,
        common.precision_option(
            min=1, help=f"What calibration may fetch at a time, beyond a plain session (default {DEFAULT_MEMORY_MB:g})."
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        common.precision_option(metavar="REGEX", help="Quantise only layers whose name matches; may be repeated."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        common.precision_option(metavar="REGEX", help="Quantise no layer whose name matches; may be repeated."),
    ] = None
    target: Annotated[
        Target | None,
        common.precision_option(help="What int8 is made for; cpu keeps fp32 beside it and has no plan (default gpu)."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions(RangeOptions):
    """The same, and who quantises."""

    quantizer: Annotated[
        Quantizer | None, common.precision_option(help="Who places Q/DQ pairs and takes ranges (default own).")
    ] = None


@dataclass(frozen=True, kw_only=True)
class BuilderOptions(Group):
    """What builds the engine, and its rarely needed settings."""

    builder: common.Builder = "auto"
    builder_options: Annotated[
        list[Any] | None,
        common.engine_option(
            "--builder-option",
            metavar="NAME=VALUE",
            parser=parse.parse_option,
            help="Setting that is rarely needed, see `nrd-trt doctor`; may be repeated.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Return those that were given; each builder option once."""
        found, pairs = super().given(), self.builder_options or []
        if twice := {name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1}:
            raise ConfigError(f"--builder-option: expected each name once, got {', '.join(sorted(twice))} again.")
        return {**found, "builder_options": dict(pairs)} if pairs else found


@dataclass(frozen=True, kw_only=True)
class EngineOptions(BuilderOptions):
    """How the engine is built."""

    decode: Annotated[
        DecodeName, common.engine_option(help="auto takes the plugin where it fits; onnx is the function of the file.")
    ] = "auto"
    compute_capabilities: Annotated[
        Any,
        common.engine_option(
            "--compute-capability", metavar="8.6,8.9", parser=parse.parse_names, help="Target GPUs (TensorRT-RTX)."
        ),
    ] = None
    workspace_mib: Annotated[int | None, common.engine_option(metavar="N", help="Scratch memory of a layer.")] = None
    optimization_level: Annotated[int | None, common.engine_option(metavar="0-5", help="Builder effort.")] = None
    timing_cache: Annotated[
        Path | None, common.engine_option(metavar="FILE", help="Read before, written after the build.")
    ] = None
    version_compatible: Annotated[
        bool, common.engine_option("--version-compatible", help="The plan loads in later TensorRT versions too.")
    ] = False
    hardware_compatible: Annotated[
        bool, common.engine_option("--hardware-compatible", help="The plan loads on other Ampere or later GPUs.")
    ] = False
    tf32: Annotated[
        bool, common.engine_option("--tf32", help="Factors of fp32 products may have 10 bits: for speed, less exact.")
    ] = False


_Channels = Annotated[
    Any, common.model_option(metavar="R,G,B", parser=parse.numbers(float, 3), help="In 0-255 (default ImageNet's).")
]


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts(Group):
    """Facts about a checkpoint that the file may not carry."""

    num_classes: Annotated[int | None, common.model_option(min=2, max=256, help="K, where the file does not tell.")] = (
        None
    )
    hidden: Annotated[int | None, common.model_option(min=1, help="d, width of the per-patch perceptron.")] = None
    patch: Annotated[int | None, common.model_option(min=1, help="f, side of a patch (default 8).")] = None
    dilations: common.Dilations = None
    output_stride: common.OutputStride = None
    class_names: Annotated[
        Any,
        common.model_option(
            "--classes", metavar="FILE", parser=parse.read_class_names, help="Text file, one class name per line."
        ),
    ] = None
    mean: _Channels = None
    std: _Channels = None
    bgr: Annotated[
        bool, common.model_option("--bgr", help="The network reads BGR; mean and std are in that order.")
    ] = False
    fix_window_mask: Annotated[
        bool,
        common.model_option("--fix-window-mask", help="Mask the padding of Twins' windows where its authors do not."),
    ] = False
