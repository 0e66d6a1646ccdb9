"""What a build calibrates with: images or a file of ranges, the layers to quantise, and who does it."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from nrd_trt.calibration.cache import Ranges, load_ranges, model_sha256
from nrd_trt.calibration.coverage import listed
from nrd_trt.calibration.modelopt import check_modelopt, quantize_with_modelopt
from nrd_trt.calibration.ranges import measure_ranges
from nrd_trt.calibration.recipes import find_recipe
from nrd_trt.calibration.shipped import shipped_ranges
from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.calibration.survey import warn_of
from nrd_trt.data.exposure import Exposure, exposure_warnings
from nrd_trt.errors import CalibrationError, ConfigError
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.quantize import DEFAULT_EXCLUDE, QuantizationPlan, choose_layers, insert_qdq, plan_quantization
from nrd_trt.specs import (
    DEFAULT_IMAGES,
    DEFAULT_MEMORY_MB,
    DEFAULT_RECIPE,
    QUANTIZED,
    Estimator,
    Fit,
    Quantized,
    Quantizer,
    Resample,
    Target,
    as_path,
    check_choice,
    check_number,
)

# Arguments that nothing would read: of a file of ranges, of Model Optimizer, of a precision that is not quantised.
_FOR_IMAGES = ("recipe", "images", "seed", "memory_mb")
_FOR_OWN = ("recipe", "memory_mb", "include", "target")
_FOR_QUANTIZED = ("recipe", "memory_mb", "include", "exclude", "quantizer", "target")


@dataclass(frozen=True, kw_only=True)
class CalibrationArguments:
    """What a calibration is asked for, by the names of `nrd_trt.build`; None and () leave a choice to it.

    The source is named without its folder, as records tell no places.
    """

    calibration: str
    images: int | None
    seed: int | None
    recipe: str | None
    quantizer: str | None
    target: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]


class Calibrator:
    """Ranges and quantised files for one build, from images that are read once or from ranges measured before.

    Args:
        source: A folder of images, a video, ``"synthetic"``, or a file of ranges (``.json``).
        precision: What layers are quantised to.
        recipe: How ranges are estimated; None takes `DEFAULT_RECIPE`.
        images: Calibrate on at most this many; None takes `DEFAULT_IMAGES`.
        seed: Chooses among more images; None is 0.
        memory_mb: What calibration may fetch at a time; None takes `DEFAULT_MEMORY_MB`.
        include: Regular expressions; where there are any, only layers whose name matches one are quantised.
        exclude: Regular expressions; no layer whose name matches one is quantised.
        quantizer: ``"own"`` or ``"modelopt"``, NVIDIA Model Optimizer, which makes int8 here; None is ``"own"``.
        target: What int8 files are made for, ``"gpu"`` or ``"cpu"``; None is ``"gpu"``.
        fit: How images are brought to the engine's size; None is ``"resize"``.
        resample: What scales them; None is ``"pillow"``.
        validation: Folder of the images that masks are compared on, whose exposure should be that of these.
        labels: Labels of the images; None takes those that lie beside them.
        ignore_index: Label value that is not counted, besides 255; None takes the model's.
        threads: CPU threads of ONNX Runtime.
        progress: Show bars on stderr.

    Attributes:
        source: As given.
        has_images: Whether there are images; False for a file of ranges.
        sha256: Hash of the images that were calibrated on; None before they were read.
        exposure: How bright these are; None likewise, and where a file of ranges does not tell.
        warnings: What it has warned of.
        precision: What layers are quantised to.
        target: What files are made for.

    Raises:
        ConfigError: An argument would be ignored, or is not known.
        MissingDependencyError: Model Optimizer is asked for and not installed.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        precision: Quantized = "int8",
        recipe: Estimator | None = None,
        images: int | None = None,
        seed: int | None = None,
        memory_mb: float | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        quantizer: Quantizer | None = None,
        target: Target | None = None,
        fit: Fit | None = None,
        resample: Resample | None = None,
        validation: Path | None = None,
        labels: Path | None = None,
        ignore_index: int | None = None,
        threads: int | None = None,
        progress: bool = True,
    ) -> None:
        given = {"recipe": recipe, "images": images, "seed": seed, "memory_mb": memory_mb, "include": include}
        given |= {"target": target}
        self.source, self.has_images = str(source), as_path("calibration", source).suffix != ".json"
        _check_made(precision, target, quantizer)
        if quantizer == "modelopt":
            if not self.has_images:
                raise ConfigError("quantizer='modelopt': expected images as calibration=, it takes ranges of its own.")
            _refuse(given, _FOR_OWN, "quantizer='modelopt' knows exclude= only; leave it out.")
            check_modelopt()
        elif not self.has_images:
            _refuse(given, _FOR_IMAGES, "fixed in a file of ranges; leave it out, or give images as calibration=.")
        check_choice("quantizer", quantizer or "own", Quantizer)
        check_choice("target", target or "gpu", Target)
        check_number("images", images, low=1)
        check_number("seed", seed, low=0)
        check_number("memory_mb", memory_mb, low=1, whole=False)
        self.sha256: str | None = None
        self.exposure: Exposure | None = None
        self.warnings: tuple[str, ...] = ()
        self._recipe = find_recipe(recipe or DEFAULT_RECIPE, include=include or (), exclude=exclude or ())
        self._named = recipe
        self._images, self._seed = DEFAULT_IMAGES if images is None else images, seed or 0
        self._memory_mb = DEFAULT_MEMORY_MB if memory_mb is None else memory_mb
        self.precision, self._quantizer, self.target = precision, quantizer, target or "gpu"
        self._scaling = {"fit": fit or "resize", "resample": resample or "pillow"}
        self._validation, self._labels, self._ignore_index = validation, labels, ignore_index
        self._threads, self._progress = threads, progress
        self._stream: tuple[GraphFacts, CalibrationStream] | None = None
        self._ranges: Ranges | None = None

    def arguments(self, precision: str) -> CalibrationArguments:
        """Return what makes this calibrator again for a precision."""
        quantized = precision in QUANTIZED
        return CalibrationArguments(
            calibration=Path(self.source).name,
            images=self._images if self.has_images else None,
            seed=self._seed if self.has_images else None,
            recipe=self._named if quantized else None,
            quantizer=self._quantizer if quantized else None,
            target="cpu" if quantized and self.target == "cpu" else None,
            include=self._recipe.include if quantized else (),
            exclude=self._recipe.exclude if quantized else (),
        )

    def without(self, layers: Iterable[str]) -> Calibrator:
        """Return a calibrator with what this one has measured, that leaves these layers as they are, too."""
        other = copy.copy(self)
        other._recipe = replace(
            self._recipe, exclude=(*self._recipe.exclude, *(f"^{re.escape(name)}$" for name in layers))
        )
        return other

    def to(self, precision: Quantized) -> Calibrator:
        """Return a calibrator with what this one has measured, that quantises to another precision."""
        _check_made(precision, self.target, self._quantizer)
        other = copy.copy(self)
        other.precision = precision
        return other

    def layers(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Return the layers of an fp32 file that shall compute in 8 bits."""
        exclude = (*DEFAULT_EXCLUDE, *self._recipe.exclude)
        return choose_layers(model, include=self._recipe.include, exclude=exclude, precision=self.precision)

    def feeds(self, model: onnx.ModelProto) -> CalibrationStream:
        """Return the images as feeds of a file; files that differ in their outputs alone share them.

        Warns:
            UserWarning: Something speaks against calibrating on them.
        """
        facts = replace(read_facts(model), output="mask")
        if self._stream is None or self._stream[0] != facts:
            choice: dict[str, Any] = {"images": self._images, "seed": self._seed, **self._scaling}
            labels: dict[str, Any] = {"labels": self._labels, "ignore_index": self._ignore_index}
            stream = CalibrationStream(self.source, facts, **choice, **labels, progress=self._progress)
            self._stream, self.sha256 = (facts, stream), stream.sha256
            self._warn(stream.warnings)
            self._compare_exposure(stream.exposure)
        return self._stream[1]

    def ranges(self, model: onnx.ModelProto, tensors: Iterable[str]) -> dict[str, float]:
        """Return the ranges of an fp32 file: those read from the file of ranges, or measured on the images, once.

        Raises:
            CalibrationError: The file of ranges is that of another model, or the calibration cannot be done.

        Warns:
            UserWarning: Something speaks against these ranges; a file of ranges keeps what did when it was made.
        """
        plain = select_outputs(model, "mask")  # as `nrd_trt.calibrate` exports it, whose files are keyed by the model
        key, wanted, known = model_sha256(plain), tuple(tensors), self._ranges
        if known is None or known.keys.model != key or not known.tensors.keys() >= set(wanted):
            if self.has_images:
                options: dict[str, Any] = {"threads": self._threads, "progress": self._progress}
                feeds = self.feeds(plain)
                known = measure_ranges(plain, feeds, wanted, self._recipe, memory_mb=self._memory_mb, **options)
                self._keep(known.warnings)
            else:
                known = load_ranges(Path(self.source), model=key, checkpoint=read_facts(plain).checkpoint_sha256)
                self._look_at_shipped(known, wanted)
                recorded = f"(recorded in {Path(self.source).name})"
                self._warn(f"{text} {recorded}" for text in known.warnings)
                self._compare_exposure(known.exposure)
            self._ranges, self.sha256 = known, known.keys.data
        return known.tensors

    def _look_at_shipped(self, ranges: Ranges, wanted: Collection[str]) -> None:
        """Say that ranges came with the checkpoint and what they were measured on; refuse those of other names."""
        if ranges.keys.checkpoint is None:
            return
        if missing := [name for name in wanted if name not in ranges.tensors]:
            raise CalibrationError(
                f"{Path(self.source).name}: expected a range for every tensor, the ranges that ship for this "
                f"checkpoint lack {listed(missing)}, as another version of PyTorch names them otherwise; give images "
                "as calibration=."
            )
        self._warn(
            [
                f"the ranges are those that ship for this checkpoint, measured on {ranges.images} images of its "
                "training data; give images like those of deployment as calibration= for your camera."
            ]
        )

    def _compare_exposure(self, calibration: Exposure | None) -> None:
        """Warn where the images of validation are exposed otherwise."""
        self.exposure = calibration
        if self._validation != Path(self.source):
            self._warn(exposure_warnings(calibration, self._validation))

    def _warn(self, texts: Iterable[str]) -> None:
        warn_of(texts := tuple(texts))
        self._keep(texts)

    def _keep(self, texts: Iterable[str]) -> None:
        self.warnings = tuple(dict.fromkeys((*self.warnings, *texts)))

    def warn_of_same_images(self) -> bool:
        """Warn where the images are those that masks are compared on; return whether they are."""
        same = self._validation is not None and Path(self.source).resolve() == self._validation.resolve()
        if same:
            text = f"so the figures flatter {self.precision}; give others as calibration=."
            name = Path(self.source).name
            self._warn([f"the ranges are measured on {name}, the images that the masks are judged on, {text}"])
        return same

    @property
    def quantizer(self) -> Quantizer:
        """What places the Q/DQ pairs."""
        return self._quantizer or "own"

    def used_ranges(self, model: onnx.ModelProto) -> dict[str, float] | None:
        """Return the ranges with which `quantize` writes an fp32 file; None of Model Optimizer, which tells none."""
        if self._quantizer == "modelopt":
            return None
        tensors = self.plan(model).tensors
        known = self.ranges(model, tensors)
        return {name: known[name] for name in tensors}

    def plan(self, model: onnx.ModelProto) -> QuantizationPlan:
        """Return where 8 bits stand in an fp32 file."""
        return plan_quantization(model, self.layers(model), self.target, self.precision)

    def quantize(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return an fp32 file with Q/DQ pairs on the layers that shall compute in 8 bits.

        Raises:
            ConfigError: A layer pattern matches nothing, or no layer is left.
            CalibrationError: The calibration cannot be done, or Model Optimizer failed.
        """
        if self._quantizer == "modelopt":
            images = [feed["image"] for feed in self.feeds(model)]
            return quantize_with_modelopt(model, images, exclude=(*DEFAULT_EXCLUDE, *self._recipe.exclude))
        plan = self.plan(model)
        return insert_qdq(model, plan, self.ranges(model, plan.tensors))


def make_calibrator(
    source: Path | str | None,
    *,
    precision: str | None,
    fit: Fit | None,
    resample: Resample | None = None,
    threads: int | None,
    progress: bool,
    checkpoint: Path | None = None,
    validation: Path | None = None,
    ignore_index: int | None = None,
    **options: Any,
) -> Calibrator | None:
    """Return what a build in `precision` calibrates with, or None where nothing is calibrated.

    Args:
        source: See `Calibrator`; None for nothing, or for int8 and fp8 the ranges that ship for the checkpoint.
        precision: Asked for; None for the default.
        fit: See `Calibrator`.
        resample: See `Calibrator`.
        threads: See `Calibrator`.
        progress: See `Calibrator`.
        checkpoint: What the build starts from.
        validation: See `Calibrator`.
        ignore_index: See `Calibrator`.
        **options: Further arguments of `Calibrator`; None was not given.

    Raises:
        ConfigError: An argument would be ignored, or is not known.
        MissingDependencyError: Model Optimizer is asked for and not installed.
    """
    if source is None and precision in QUANTIZED and checkpoint is not None:
        for_images = any(options.get(name) is not None for name in (*_FOR_IMAGES, "quantizer"))
        source = None if for_images else shipped_ranges(checkpoint)
    if source is None:
        _refuse(options, options, "expected together with calibration=, got none; give it, or leave this out.")
        return None
    made: Quantized = "fp8" if precision == "fp8" else "int8"
    if precision not in QUANTIZED:
        why = f"expected precision='int8' or 'fp8', got {precision or 'none'}; ask for it, or leave this out."
        _refuse(options, _FOR_QUANTIZED, why)
    scaling: dict[str, Any] = {"fit": fit, "resample": resample}
    shared: dict[str, Any] = {"validation": validation, "ignore_index": ignore_index, "threads": threads}
    return Calibrator(source, precision=made, **options, **scaling, **shared, progress=progress)


def _check_made(precision: Quantized, target: Target | None, quantizer: Quantizer | None) -> None:
    """Raise `ConfigError` where nothing makes files of a precision for a target, or by a quantizer."""
    if precision == "fp8" and target == "cpu":
        raise ConfigError("target='cpu': no runtime of a CPU multiplies fp8; leave it out, or take precision='int8'.")
    if precision == "fp8" and quantizer == "modelopt":
        raise ConfigError("quantizer='modelopt': expected precision='int8', got fp8; leave it out.")


def _refuse(options: Mapping[str, object], names: Collection[str], why: str) -> None:
    """Raise `ConfigError` where one of the options was given that would be ignored."""
    if given := [f"{name}=" for name, value in options.items() if name in names and value is not None]:
        raise ConfigError(f"{', '.join(given)}: {why}")
