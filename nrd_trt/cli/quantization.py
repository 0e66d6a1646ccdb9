"""The options of int8 that `build` and `tune` share, and what they mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.errors import ConfigError
from nrd_trt.specs import DEFAULT_IMAGES, DEFAULT_MEMORY_MB, DEFAULT_RECIPE

if TYPE_CHECKING:
    import onnx

    from nrd_trt.calibration.cache import Ranges
    from nrd_trt.calibration.recipes import Recipe
    from nrd_trt.calibration.stream import CalibrationStream
    from nrd_trt.exporting.precision import Calibration, Quantization
    from nrd_trt.graph.metadata import GraphFacts
    from nrd_trt.specs import Fit

QUANTIZERS = ("own", "modelopt")
# Options that have no meaning elsewhere: where ranges are measured, where there is int8, where we quantise.
_OF_IMAGES = ("recipe", "images", "seed", "memory_mb")
_OF_INT8 = ("recipe", "memory_mb", "include", "exclude", "quantizer")
_OF_OWN = ("recipe", "memory_mb", "include")

CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration", metavar="DIR|FILE", help="Images, a video, 'synthetic', or ranges of `nrd-trt calibrate`."
    ),
]


@dataclass(frozen=True, kw_only=True)
class RangeOptions:
    """How images are chosen and ranges measured on them. None was not given."""

    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", metavar="NAME", help=f"minmax, percentile, entropy or mse (default {DEFAULT_RECIPE})."
        ),
    ] = None
    images: Annotated[
        int | None,
        typer.Option(
            "--images", min=1, metavar="N", help=f"Calibrate on at most this many images (default {DEFAULT_IMAGES})."
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, metavar="N", help="Of the choice of calibration images (default 0)."),
    ] = None
    memory_mb: Annotated[
        float | None,
        typer.Option(
            "--memory-mb",
            min=1,
            help=f"What calibration may fetch at a time, beyond a plain session (default {DEFAULT_MEMORY_MB:g}).",
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="REGEX", help="In int8 only layers whose name matches; may be repeated."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="REGEX", help="In int8 no layer whose name matches; may be repeated."),
    ] = None

    def chosen_recipe(self) -> Recipe:
        """Return the recipe with the layers that it is for."""
        from nrd_trt.calibration.recipes import find_recipe

        recipe = find_recipe(self.recipe or DEFAULT_RECIPE)
        return replace(recipe, include=tuple(self.include or ()), exclude=tuple(self.exclude or ()))

    def stream(self, place: str, facts: GraphFacts, *, fit: Fit | None, progress: bool) -> CalibrationStream:
        """Open the images as feeds of files with these facts."""
        from nrd_trt.calibration.stream import CalibrationStream

        images, seed = self.images or DEFAULT_IMAGES, self.seed or 0
        return CalibrationStream(place, facts, images=images, seed=seed, fit=fit or "resize", progress=progress)

    def refuse(self, names: Collection[str], why: str) -> None:
        """Raise `ConfigError` where one of the options was given that would be ignored."""
        if given := [name for name, value in vars(self).items() if name in names and value is not None]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{flags}: {why}")


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions(RangeOptions):
    """The same, and who quantises."""

    quantizer: Annotated[
        str | None,
        typer.Option(
            "--quantizer", metavar="own|modelopt", help="Who places Q/DQ pairs and takes ranges (default own)."
        ),
    ] = None


class Calibrator:
    """What ``--calibration`` names: images, which are read once, or a file of ranges measured on some before.

    Args:
        place: ``--calibration``.
        options: What goes with it.
        quantizer: One of `QUANTIZERS`.
        fit: How images get the engine's size.
        threads: CPU threads of ONNX Runtime.
        progress: Show bars on stderr.

    Raises:
        ConfigError: An option would be ignored, or there is no such recipe.
    """

    def __init__(
        self,
        place: str,
        options: RangeOptions,
        *,
        quantizer: str = "own",
        fit: Fit | None = None,
        threads: int | None = None,
        progress: bool = True,
    ) -> None:
        self._place, self._options, self._quantizer = place, options, quantizer
        self._fit, self._threads, self._progress = fit, threads, progress
        self._is_file = Path(place).suffix == ".json"
        self._check()
        self._recipe = options.chosen_recipe()
        self._stream: tuple[GraphFacts, CalibrationStream] | None = None
        self._data: str | None = None

    def _check(self) -> None:
        if self._quantizer not in QUANTIZERS:
            raise ConfigError(f"--quantizer {self._quantizer!r}: expected one of {', '.join(QUANTIZERS)}.")
        if self._quantizer == "modelopt" and self._is_file:
            raise ConfigError("--quantizer modelopt: expected images in --calibration, it takes ranges of its own.")
        if self._quantizer == "modelopt":
            self._options.refuse(_OF_OWN, "--quantizer modelopt knows --exclude only; leave it out.")
        if self._is_file:
            self._options.refuse(
                _OF_IMAGES, "fixed in a file of ranges; leave it out, or give images to --calibration."
            )

    def calibration(self) -> Calibration:
        """Return what ranges are measured on, for the pipeline."""
        from nrd_trt.exporting.precision import Calibration

        # Of places the last part only: the recorded command names no folders.
        words = ["--calibration", Path(self._place).name]
        if not self._is_file:
            words += ["--images", str(self._options.images or DEFAULT_IMAGES), "--seed", str(self._options.seed or 0)]
        feeds = None if self._is_file else self.feeds
        return Calibration(feeds=feeds, sha256=lambda: self._data, words=tuple(words))

    def quantization(self) -> Quantization:
        """Return how the pipeline makes int8 files.

        Raises:
            MissingDependencyError: Model Optimizer was asked for and is not installed.
        """
        from nrd_trt.calibration.modelopt import check_modelopt
        from nrd_trt.exporting.precision import Quantization
        from nrd_trt.graph.quantize import DEFAULT_EXCLUDE

        external = None
        if self._quantizer == "modelopt":
            check_modelopt()
            external = self._quantized_by_modelopt
        return Quantization(
            measure=self._measure,
            include=self._recipe.include,
            exclude=(*DEFAULT_EXCLUDE, *self._recipe.exclude),
            external=external,
            words=self._words(),
        )

    def feeds(self, model: onnx.ModelProto) -> CalibrationStream:
        """Return the images as feeds of a file; files that differ in their outputs alone share them."""
        from nrd_trt.graph.metadata import read_facts

        facts = replace(read_facts(model), output="mask")
        if self._stream is None or self._stream[0] != facts:
            stream = self._options.stream(self._place, facts, fit=self._fit, progress=self._progress)
            self._stream, self._data = (facts, stream), stream.sha256
        return self._stream[1]

    def _measure(self, model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, float]:
        """Return the ranges of the tensors."""
        from nrd_trt.graph.outputs import select_outputs

        plain = select_outputs(model, "mask")  # as `nrd-trt calibrate` exports it, whose files are keyed by the model
        ranges = self._read(plain) if self._is_file else self._calibrate(plain, tensors)
        self._data = ranges.keys["data"]
        return dict(ranges.tensors)

    def _read(self, model: onnx.ModelProto) -> Ranges:
        from nrd_trt.calibration.cache import load_ranges, model_sha256

        return load_ranges(Path(self._place), model=model_sha256(model))

    def _calibrate(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Ranges:
        from nrd_trt.calibration.ranges import calibrate

        return calibrate(
            model,
            self.feeds(model),
            tensors,
            self._recipe,
            memory_mb=self._options.memory_mb or DEFAULT_MEMORY_MB,
            threads=self._threads,
            progress=self._progress,
        )

    def _quantized_by_modelopt(self, model: onnx.ModelProto) -> onnx.ModelProto:
        from nrd_trt.calibration.modelopt import quantize_with_modelopt
        from nrd_trt.graph.quantize import DEFAULT_EXCLUDE

        images = [feed["image"] for feed in self.feeds(model)]
        return quantize_with_modelopt(model, images, exclude=(*DEFAULT_EXCLUDE, *self._recipe.exclude))

    def _words(self) -> tuple[str, ...]:
        words = ["--recipe", self._options.recipe] if self._options.recipe else []
        words += ["--quantizer", self._quantizer] if self._quantizer != "own" else []
        for flag, patterns in (("--include", self._recipe.include), ("--exclude", self._recipe.exclude)):
            words += [word for pattern in patterns for word in (flag, pattern)]
        return tuple(words)


def calibrator_of(
    calibration: str | None,
    options: QuantizationOptions,
    *,
    precision: str | None,
    fit: Fit | None,
    threads: int | None,
    progress: bool,
) -> Calibrator | None:
    """Return what a build calibrates with, or None where nothing is calibrated.

    Raises:
        ConfigError: An option would be ignored.
    """
    if calibration is None:
        options.refuse(vars(options), "expected together with --calibration, got none; give it, or leave this out.")
        return None
    if precision != "int8":
        options.refuse(
            _OF_INT8, f"expected --precision int8, got {precision or 'none'}; ask for it, or leave this out."
        )
    return Calibrator(
        calibration,
        options,
        quantizer=options.quantizer or "own",
        fit=fit,
        threads=threads,
        progress=progress,
    )
