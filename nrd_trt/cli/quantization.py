"""The options of int8 that `build` and `tune` share, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common
from nrd_trt.errors import ConfigError
from nrd_trt.specs import DEFAULT_IMAGES, DEFAULT_MEMORY_MB, DEFAULT_RECIPE

if TYPE_CHECKING:
    import onnx

    from nrd_trt.calibration.cache import Ranges
    from nrd_trt.calibration.recipes import Recipe
    from nrd_trt.calibration.stream import CalibrationStream
    from nrd_trt.pipeline.precision import Quantization
    from nrd_trt.specs import Fit

QUANTIZERS = ("own", "modelopt")

CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration", metavar="DIR|FILE", help="Images, a video, 'synthetic', or ranges of `nrd-trt calibrate`."
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME", help=f"minmax, percentile, entropy or mse (default {DEFAULT_RECIPE})."),
]
Images = Annotated[int, typer.Option("--images", min=1, metavar="N", help="Calibrate on at most this many images.")]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="REGEX", help="Only such layers in int8; may be repeated."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="REGEX", help="No such layer in int8; may be repeated.")
]
QuantizerOption = Annotated[
    str, typer.Option("--quantizer", metavar="own|modelopt", help="Who places Q/DQ pairs and takes ranges.")
]
MemoryMb = Annotated[
    float, typer.Option("--memory-mb", min=1, help="What calibration may fetch at a time, beyond a plain session.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the choice of calibration images.")]


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """What the command line says about int8; see the options of the same names."""

    calibration: str
    recipe: str | None = None
    images: int = DEFAULT_IMAGES
    seed: int = 0
    memory_mb: float = DEFAULT_MEMORY_MB
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    quantizer: str = "own"
    fit: Fit = "resize"
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise ConfigError(f"--quantizer {self.quantizer!r}: expected one of {', '.join(QUANTIZERS)}.")
        if self.quantizer == "modelopt" and self.is_file:
            raise ConfigError("--quantizer modelopt: expected images in --calibration, it takes ranges of its own.")
        if self.quantizer == "modelopt" and self.include:
            raise ConfigError("--quantizer modelopt: knows --exclude only; leave --include out.")

    def quantization(self) -> Quantization:
        """Return how the pipeline makes int8 files.

        Raises:
            ConfigError: There is no such recipe.
            MissingDependencyError: Model Optimizer was asked for and is not installed.
        """
        from nrd_trt.graph.quantize import DEFAULT_EXCLUDE
        from nrd_trt.pipeline.modelopt import check_modelopt
        from nrd_trt.pipeline.precision import Quantization

        calibrator, words = _Calibrator(self), self._words()
        exclude = (*DEFAULT_EXCLUDE, *self.exclude)
        if self.quantizer == "modelopt":
            check_modelopt()
            return Quantization(
                measure=calibrator.measure,
                exclude=exclude,
                external=calibrator.modelopt,
                sha256=calibrator.sha256,
                words=words,
            )
        return Quantization(
            measure=calibrator.measure,
            include=tuple(self.include),
            exclude=exclude,
            sha256=calibrator.sha256,
            words=words,
        )

    def feeds(self, model: onnx.ModelProto) -> CalibrationStream:
        """Return the images as feeds of a file."""
        return _Calibrator(self).stream(model)

    def _words(self) -> tuple[str, ...]:
        """Return these options as words; of places the last part, as the recorded command names no folders."""
        words = ["--calibration", Path(self.calibration).name]
        if not self.is_file:
            words += ["--images", str(self.images), "--seed", str(self.seed)]
        words += ["--recipe", self.recipe] if self.recipe else []
        words += ["--quantizer", self.quantizer] if self.quantizer != "own" else []
        for flag, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            words += [word for pattern in patterns for word in (flag, pattern)]
        return tuple(words)

    @property
    def is_file(self) -> bool:
        """Whether the ranges were measured before."""
        return Path(self.calibration).suffix == ".json"


class _Calibrator:
    """Measures ranges, or reads those measured before; remembers the last."""

    def __init__(self, options: QuantizationOptions) -> None:
        from nrd_trt.calibration.recipes import find_recipe

        self._options = options
        self._recipe: Recipe = find_recipe(options.recipe or DEFAULT_RECIPE)
        self._data: str | None = None
        if options.is_file and options.recipe is not None:
            raise ConfigError("--recipe: fixed in a file of ranges; leave it out, or give images to --calibration.")

    def sha256(self) -> str | None:
        """Of the images, or None before they were read."""
        return self._data

    def measure(self, model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, float]:
        """Return the ranges of the tensors."""
        from nrd_trt.graph.outputs import select_outputs

        plain = select_outputs(model, "mask")  # as `nrd-trt calibrate` exports it, whose files are keyed by the model
        ranges = self._read(plain) if self._options.is_file else self._calibrate(plain, tensors)
        self._data = ranges.keys["data"]
        return dict(ranges.tensors)

    def modelopt(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the file with Model Optimizer's pairs."""
        from nrd_trt.graph.outputs import select_outputs
        from nrd_trt.graph.quantize import DEFAULT_EXCLUDE
        from nrd_trt.pipeline.modelopt import quantize_with_modelopt

        stream = self.stream(select_outputs(model, "mask"))
        self._data = stream.sha256
        images = [feed["image"] for feed in stream]
        return quantize_with_modelopt(model, images, exclude=(*DEFAULT_EXCLUDE, *self._options.exclude))

    def _read(self, model: onnx.ModelProto) -> Ranges:
        from nrd_trt.calibration.cache import load_ranges, model_sha256

        return load_ranges(Path(self._options.calibration), model=model_sha256(model))

    def _calibrate(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Ranges:
        from nrd_trt.calibration.ranges import calibrate

        options = self._options
        return calibrate(
            model,
            self.stream(model),
            tensors,
            self._recipe,
            memory_mb=options.memory_mb,
            threads=options.threads,
            progress=options.progress,
        )

    def stream(self, model: onnx.ModelProto) -> CalibrationStream:
        """Return the images as feeds of a file."""
        from nrd_trt.calibration.stream import CalibrationStream
        from nrd_trt.graph.metadata import read_facts

        options = self._options
        return CalibrationStream(
            options.calibration,
            read_facts(model),
            images=options.images,
            seed=options.seed,
            fit=options.fit,
            progress=options.progress,
        )


def quantization_of(options: QuantizationOptions | None, precision: str | None) -> Quantization | None:
    """Return how int8 is made, or None for other precisions, whose calibration images serve the extremes only.

    Raises:
        ConfigError: ``--precision int8`` without ``--calibration``, or a file of ranges without int8.
    """
    if precision == "int8":
        if options is None:
            raise ConfigError("--precision int8: give --calibration images like those of deployment for its ranges.")
        return options.quantization()
    if options is not None and options.is_file:
        raise ConfigError("--calibration: a file of ranges serves --precision int8 only; give images for other types.")
    return None


def options_of(
    calibration: str | None,
    recipe: str | None,
    sampling: tuple[int, int, float],
    patterns: tuple[Sequence[str] | None, Sequence[str] | None],
    quantizer: str,
    fit: str | None,
    threads: int | None,
    quiet: bool,
) -> QuantizationOptions | None:
    """Return the options of a command line, or None where nothing is calibrated.

    Args:
        calibration: ``--calibration``; the rest as the options of the same names.
        recipe: Likewise.
        sampling: ``--images``, ``--seed`` and ``--memory-mb``.
        patterns: ``--include`` and ``--exclude``.
        quantizer: Likewise.
        fit: Likewise.
        threads: Likewise.
        quiet: Show no progress.
    """
    if calibration is None:
        return None
    (images, seed, memory_mb), (include, exclude) = sampling, patterns
    return QuantizationOptions(
        calibration=calibration,
        recipe=recipe,
        images=images,
        seed=seed,
        memory_mb=memory_mb,
        include=include or (),
        exclude=exclude or (),
        quantizer=quantizer,
        fit=common.fit_choice(fit) or "resize",
        threads=threads,
        progress=not quiet,
    )
