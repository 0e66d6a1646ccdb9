"""What a build is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.errors import ConfigError
from nrd_trt.exporting.precision import Calibration, Quantization
from nrd_trt.specs import BuilderName, Fit, InputForm, InputShape, MaskEncoding, ModelInfo, Precision, Size
from nrd_trt.validation.samples import SampleSource

if TYPE_CHECKING:
    from nrd_trt.model.recognise import CheckpointOptions


@dataclass(frozen=True, kw_only=True)
class FormRequest:
    """Form of the exported file; None means the default."""

    input_form: InputForm | None = None
    output: str | None = None
    mask_encoding: MaskEncoding | None = None
    size: Size | None = None
    dynamic: tuple[Size, Size, Size] | None = None
    batch: int | tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.mask_encoding == "u8x4" and self.output == "logits":
            raise ConfigError(
                "--mask-encoding u8x4: expected --output mask or both, got logits, which has no mask; leave one out."
            )

    def shape(self, default_hw: tuple[int, int]) -> InputShape:
        """Return the input shape; `default_hw` where no size is asked for."""
        batch = 1 if self.batch is None else self.batch
        return InputShape.of(size=self.size, dynamic=self.dynamic, batch=batch, default=default_hw)

    def given(self) -> list[str]:
        """Return the options that were given."""
        names = ("input_form", "output", "mask_encoding", "size", "dynamic", "batch")
        given = [name for name in names if getattr(self, name) is not None]
        return [f"--{name.removesuffix('_form').replace('_', '-')}" for name in given]


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What `nrd-trt build` is asked for; see its options of the same names."""

    source: Path
    output: Path
    form: FormRequest = field(default_factory=FormRequest)
    precision: Precision | None = None
    quantization: Quantization | None = None
    calibration: Calibration | None = None
    builder: BuilderName = "auto"
    decode: str = "auto"
    plugin: Path | None = None
    checkpoint: Path | None = None
    checkpoint_options: CheckpointOptions | None = None
    data: Path | None = None
    labels: Path | None = None
    ignore_index: int | None = None
    fit: Fit | None = None
    config: ConfigOptions = field(default_factory=ConfigOptions)
    timing_cache: Path | None = None
    min_agreement: float | None = None
    max_miou_drop: float | None = None
    force: bool = False
    threads: int | None = None
    progress: bool = True
    on_message: Callable[[str, str], None] = lambda severity, text: None
    on_stage: Callable[[str], None] = lambda text: None


def samples_for(request: BuildRequest, shape: InputShape, info: ModelInfo, fit: Fit = "resize") -> SampleSource:
    """Return the images that a request is measured on."""
    return SampleSource(
        data=request.data,
        labels=request.labels,
        shape=shape,
        info=info,
        fit=request.fit or fit,
        ignore_index=request.ignore_index,
    )
