"""Checkpoint to ONNX: export in fp32, derive the precision, prove parity with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.data.samples import MEASURED_COUNT, SampleSource
from nrd_trt.errors import ConfigError, ExportError
from nrd_trt.exporting.precision import derive_precision
from nrd_trt.figures import Parity
from nrd_trt.files import atomic_file, check_file, sha256_bytes, sha256_file
from nrd_trt.gates import Gates, Judged
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.inline import inline_decode
from nrd_trt.graph.metadata import TypeChoices, output_of, read_choices, read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.model import load_model
from nrd_trt.progress import OnStage, silent
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import (
    Fit,
    InputForm,
    InputShape,
    MaskEncoding,
    OutputName,
    Precision,
    Resample,
    Size,
    as_path,
    check_choice,
    check_number,
    optional_path,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields
    from nrd_trt.model.network import Segmentor

ExportPrecision = Literal["fp32", "fp16", "bf16"]
"""Precisions of a file that need no calibration."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made.

    Attributes:
        path: The file; it is there where `parity` passed.
        sha256: Hash of the file; None where none was written.
        opset: Version of ONNX's operators in the file.
        parity: The file against PyTorch in fp32.
        kept_fp32: Nodes kept in fp32 for their range, each with the reason.
    """

    path: Path
    sha256: str | None
    opset: int
    parity: Parity
    kept_fp32: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        parity = asdict(self.parity)
        return {"path": str(self.path), "sha256": self.sha256, "opset": self.opset, "parity": parity}


def export(
    checkpoint: Path | str,
    output: Path | str,
    *,
    precision: ExportPrecision = "fp32",
    size: Size | None = None,
    dynamic: tuple[Size, Size, Size] | None = None,
    batch: int | tuple[int, int, int] = 1,
    input_form: InputForm = "uint8",
    outputs: tuple[OutputName, ...] = ("mask",),
    mask_encoding: MaskEncoding = "uint8",
    inline: bool = False,
    data: Path | str | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: bool = True,
    on_stage: OnStage = silent,
    **options: Unpack[CheckpointFields],
) -> ExportResult:
    """Export a checkpoint to one ONNX file and compare it with PyTorch.

    Args:
        checkpoint: ``.pth`` or ``.safetensors``.
        output: ``FILE.onnx``. Where parity fails no file is written, and with `force` an older one is removed, as it
            must not pass for this one.
        precision: Types of the graph; int8 needs calibration, see `nrd_trt.build`.
        size: ``(h, w)``, multiples of 32; None takes the checkpoint's.
        dynamic: The smallest, the usual and the largest size, in place of `size`.
        batch: Images per call, or their smallest, usual and largest number.
        input_form: ``"uint8"``: NHWC RGB with the normalisation in the graph; ``"float"``: NCHW normalised float32;
            ``"rgb_float"``: NCHW RGB float32 in 0-255, with the normalisation in the graph.
        outputs: Which of ``"mask"``, ``"logits"`` and ``"confidence"`` the file gives; confidence with the mask only.
        mask_encoding: ``"u8x4"`` packs four pixels in one int32, for the runners of this toolkit only.
        inline: Write the decode as plain nodes of few kinds, for OpenVINO itself and compilers of other vendors
            (`nrd_trt.graph.inline`). The file takes one size and one number of images, no plugin finds its decode, and
            nothing is built from it.
        data: Folder of images that ranges and parity are measured on; None takes drawn scenes.
        fit: How these images are brought to the size; None is ``"resize"``.
        resample: What scales them, see `nrd_trt.open_bundle`; None is ``"pillow"``.
        force: Replace an existing file.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        progress: Show a bar on stderr where it takes over two seconds.
        on_stage: Receives a line when a stage begins.
        **options: What the checkpoint does not tell, as for `nrd_trt.load_model`.

    Returns:
        The result; a parity that does not hold is told in ``result.parity.failures``.

    Raises:
        ConfigError: An argument is not known, arguments exclude each other, or the file exists.
        ShapeError: A size is not a multiple of 32.
        CheckpointError: The checkpoint is unreadable or of another kind.
        ExportError: The graph is invalid, or TensorRT 10 cannot read it.
        MissingDependencyError: PyTorch is not installed.
    """
    checkpoint, output = as_path("checkpoint", checkpoint), as_path("output", output)
    check_choice("precision", precision, ExportPrecision)
    check_form(input_form, outputs, mask_encoding)
    check_choice("fit", fit or "resize", Fit)
    check_choice("resample", resample or "pillow", Resample)
    check_number("threads", threads, low=1)
    check_file(output, force=force, marks=[b"\x12\x07nrd_trt"])  # the producer
    model = load_model(checkpoint, **options)
    shape = InputShape.of(size=size, dynamic=dynamic, batch=batch, default=model.info.size_hw)
    if inline:
        _check_inline(shape, mask_encoding)
    samples = SampleSource(
        data=optional_path("data", data),
        labels=None,
        shape=shape,
        info=model.info,
        fit=fit or "resize",
        resample=resample or "pillow",
    )
    on_stage(f"exporting {model.config.encoder} to ONNX, {precision}")
    exported = export_checked(
        model,
        checkpoint,
        samples,
        precision=precision,
        input_form=input_form,
        outputs=outputs,
        mask_encoding=mask_encoding,
        inlined=inline,
        threads=threads,
        progress=progress,
    )
    if exported.parity.passed:
        with atomic_file(output) as temporary:
            temporary.write_bytes(exported.to_bytes())
    else:
        output.unlink(missing_ok=True)
    return ExportResult(
        path=output,
        sha256=sha256_bytes(exported.to_bytes()) if exported.parity.passed else None,
        opset=next(entry.version for entry in exported.model.opset_import if not entry.domain),
        parity=exported.parity,
        kept_fp32=(read_choices(exported.model) or TypeChoices()).kept_fp32,
    )


def check_form(
    input_form: InputForm | None, outputs: Sequence[OutputName] | None, mask_encoding: MaskEncoding | None
) -> None:
    """Raise `ConfigError` unless these are forms that a file can have; None is a default."""
    check_choice("input_form", input_form or "uint8", InputForm)
    check_choice("mask_encoding", mask_encoding or "uint8", MaskEncoding)
    if outputs is None:
        return
    if isinstance(outputs, str) or not outputs or len(set(outputs)) != len(outputs):
        raise ConfigError(f"outputs={outputs!r}: expected different names in a tuple, such as ('mask', 'logits').")
    for name in outputs:
        check_choice("outputs", name, OutputName)
    if "mask" not in outputs and (mask_encoding == "u8x4" or "confidence" in outputs):
        what = "mask_encoding='u8x4'" if mask_encoding == "u8x4" else "outputs=: 'confidence'"
        raise ConfigError(f"{what}: expected 'mask' among outputs=, got {', '.join(outputs)} only; add it.")


def _check_inline(shape: InputShape, mask_encoding: MaskEncoding) -> None:
    """Raise `ConfigError` where a file for other vendors' compilers cannot be of this form."""
    if not all(extent.is_static for extent in (shape.batch, shape.height, shape.width)):
        raise ConfigError(
            "inline=True: expected one size and one number of images, got a range; give size= and batch=N."
        )
    if mask_encoding != "uint8":
        raise ConfigError(
            f"inline=True: expected mask_encoding='uint8', got {mask_encoding!r}, which only the runners of this "
            "toolkit unpack; leave one out."
        )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX model in the precision asked for, with its evidence."""

    model: onnx.ModelProto
    parity: Parity

    def to_bytes(self) -> bytes:
        """Return the file's bytes; equal inputs give equal bytes."""
        return bytes(self.model.SerializeToString(deterministic=True))


def export_checked(
    model: Segmentor,
    checkpoint: Path,
    samples: SampleSource,
    *,
    precision: Precision,
    input_form: InputForm | None = None,
    outputs: Sequence[OutputName] | None = None,
    mask_encoding: MaskEncoding | None = None,
    inlined: bool = False,
    calibrator: Calibrator | None = None,
    full: onnx.ModelProto | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Exported:
    """Export a model and compare the result with it.

    Args:
        model: In evaluation mode.
        checkpoint: Where it was loaded from; its hash is recorded in the file.
        samples: Ranges and parity are measured on the first ones; their shape is the file's.
        precision: Precision of the file.
        input_form: See `export`; None is the default.
        outputs: See `export`; None is the default.
        mask_encoding: See `export`; None is the default.
        inlined: See `inline` of `export`.
        calibrator: Makes int8, and has more images that the extremes of 16-bit tensors are measured on.
        full: The model as `export_full` gave it before, in the same form; None exports it.
        threads: CPU threads of ONNX Runtime.
        progress: Show a bar on stderr.

    Raises:
        ExportError: The graph is invalid, or TensorRT 10 cannot read it. A parity gate that does
            not hold is a result, not an error.
    """
    if full is None:
        full = export_full(model, checkpoint, samples.shape, input_form, outputs, mask_encoding)
    images = [sample.image for sample in samples.first(MEASURED_COUNT)]
    typed = derive_precision(full, precision, images, calibrator=calibrator, threads=threads, progress=progress)
    for_cpu = calibrator is not None and calibrator.target == "cpu"
    if problems := () if for_cpu else importer_problems(typed):
        raise ExportError(
            f"expected a graph that TensorRT 10's parser reads as ONNX means it, got {'; '.join(problems)}. Another "
            "version of torch may write another graph; report this model."
        )
    if inlined:
        typed = inline_decode(typed)
    parity = _parity(model, typed, images, precision, threads)
    return Exported(model=select_outputs(typed, output_of(outputs or ("mask",))), parity=parity)


def export_full(
    model: Segmentor,
    checkpoint: Path,
    shape: InputShape,
    input_form: InputForm | None = None,
    outputs: Sequence[OutputName] | None = None,
    mask_encoding: MaskEncoding | None = None,
) -> onnx.ModelProto:
    """Export a model in fp32 with mask and logits, from which every precision is made; see `export_checked`."""
    from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx

    form = ExportOptions(
        shape=shape,
        input_form=input_form or "uint8",
        mask_encoding=mask_encoding or "uint8",
        confidence="confidence" in (outputs or ()),
    )
    return export_onnx(model, form, checkpoint_sha256=sha256_file(checkpoint))


def _parity(
    model: Segmentor,
    typed: onnx.ModelProto,
    images: Sequence[np.ndarray],
    precision: Precision,
    threads: int | None,
) -> Parity:
    from nrd_trt.runtime.torch_runner import TorchRunner

    facts = read_facts(typed)
    differences, agreements, off = [], [], []
    exported = OrtRunner(typed, threads=threads)
    sure = "confidence" in facts.outputs
    with TorchRunner(model, facts.input_form, confidence=sure) as reference, exported:
        for image in images:
            feed = image_feed(image, facts)
            expected, got = reference.infer(feed), exported.infer(feed)
            differences.append(float(np.abs(expected["logits"] - got["logits"]).max()))
            agreements.append(float((expected["mask"] == got["mask"]).mean()))
            if sure:
                levels = np.abs(expected["confidence"].astype(np.int16) - got["confidence"])
                off.append(float(levels.mean()) / 255)
        arithmetic = exported.arithmetic
    max_abs = max(differences) if np.isfinite(differences).all() else None
    agreement = float(np.mean(agreements))
    judged = Judged(agreement=agreement, confidence_difference=float(np.mean(off)) if off else None)
    failures = Gates.of(precision).failures(judged)
    if max_abs is None:
        failures.append("the exported logits are not finite")
    return Parity(max_abs=max_abs, agreement=agreement, arithmetic=arithmetic, failures=tuple(failures))
