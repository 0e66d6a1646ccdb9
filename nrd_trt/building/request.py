"""The arguments of `nrd_trt.build` as one value, which `nrd_trt.tune` makes too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrd_trt.calibration.calibrator import Calibrator, make_calibrator
from nrd_trt.data.samples import SampleSource
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.exporting.export import check_form
from nrd_trt.gates import GATES, Gates
from nrd_trt.model import CheckpointFields, checkpoint_options
from nrd_trt.progress import OnMessage, OnStage, silent
from nrd_trt.runtime.select import DEFAULT, RunOptions
from nrd_trt.specs import (
    BuilderName,
    DecodeName,
    Fit,
    InputForm,
    InputShape,
    MaskEncoding,
    ModelInfo,
    OutputName,
    Precision,
    Resample,
    Size,
    check_choice,
)

if TYPE_CHECKING:
    import onnx

FORM = ("input_form", "outputs", "mask_encoding", "size", "dynamic", "batch")
"""Arguments about the form of the exported file, which an ONNX file and a bundle have already."""


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What a build is asked for; see the arguments of these names of `nrd_trt.build`. None was not given."""

    source: Path
    output: Path
    precision: Precision | None = None
    size: Size | None = None
    dynamic: tuple[Size, Size, Size] | None = None
    batch: int | tuple[int, int, int] | None = None
    input_form: InputForm | None = None
    outputs: tuple[OutputName, ...] | None = None
    mask_encoding: MaskEncoding | None = None
    calibrator: Calibrator | None = None
    data: Path | None = None
    labels: Path | None = None
    ignore_index: int | None = None
    fit: Fit | None = None
    resample: Resample | None = None
    checkpoint: Path | None = None
    builder: BuilderName = "auto"
    decode: DecodeName = "auto"
    config: ConfigOptions = field(default_factory=ConfigOptions)
    timing_cache: Path | None = None
    verify_key: Path | None = None
    min_agreement: float | None = None
    max_miou_drop: float | None = None
    min_class_iou: float | None = None
    max_class_drop: float | None = None
    min_border_agreement: float | None = None
    min_boundary_f: float | None = None
    force: bool = False
    run: RunOptions = DEFAULT
    progress: bool = True
    on_stage: OnStage = silent
    on_message: OnMessage = silent
    describe: Callable[[str], str] | None = None
    options: CheckpointFields = field(default_factory=CheckpointFields)
    full: onnx.ModelProto | None = field(default=None, repr=False)
    """What `nrd_trt.exporting.export.export_full` gave of the source before; None exports it."""

    def __post_init__(self) -> None:
        check_form(self.input_form, self.outputs, self.mask_encoding)
        check_choice("precision", self.precision or "fp16", Precision)
        check_choice("fit", self.fit or "resize", Fit)
        check_choice("resample", self.resample or "pillow", Resample)
        check_choice("builder", self.builder, BuilderName)
        check_choice("decode", self.decode, DecodeName)
        checkpoint_options(self.options)  # refuses unknown names before any work
        self.gates("fp32")  # refuses fractions above 1 before any work

    def calibrated(self, source: Path | str | None, **options: Any) -> BuildRequest:
        """Return the request with what it calibrates with, or with nothing; see `make_calibrator` for the options."""
        calibrator = make_calibrator(
            source,
            precision=self.precision,
            fit=self.fit,
            resample=self.resample,
            checkpoint=self.source,
            validation=self.data,
            ignore_index=self.ignore_index,
            threads=self.run.threads,
            progress=self.progress,
            **options,
        )
        return replace(self, calibrator=calibrator)

    def gates(self, precision: Precision) -> Gates:
        """Return what the masks of a file in `precision` must reach."""
        return Gates.of(precision, **{name: getattr(self, name) for name in GATES})

    def shape(self, default: Size) -> InputShape:
        """Return the shape asked for; `default` is the size where none is."""
        batch = 1 if self.batch is None else self.batch
        return InputShape.of(size=self.size, dynamic=self.dynamic, batch=batch, default=default)

    def form_given(self) -> list[str]:
        """Return which arguments about the form of the exported file were given."""
        return [f"{name}=" for name in FORM if getattr(self, name) is not None]

    def samples(
        self, shape: InputShape, info: ModelInfo, fit: Fit = "resize", resample: Resample = "pillow"
    ) -> SampleSource:
        """Return the images that masks are compared on; `fit` and `resample` where none is asked for."""
        return SampleSource(
            data=self.data,
            labels=self.labels,
            shape=shape,
            info=info,
            fit=self.fit or fit,
            resample=self.resample or resample,
            ignore_index=self.ignore_index,
        )
