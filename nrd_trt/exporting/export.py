"""Checkpoint to ONNX: export in fp32, derive the precision, prove parity with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.errors import ExportError
from nrd_trt.exporting.precision import Calibration, Quantization, Typed, derive_precision
from nrd_trt.figures import Gates, Parity
from nrd_trt.files import atomic_file
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import undocumented_casts
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import Precision

if TYPE_CHECKING:
    from nrd_trt.exporting.onnx_export import ExportOptions
    from nrd_trt.model.network import Segmentor


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX model in the precision asked for, with its evidence."""

    model: onnx.ModelProto
    parity: Parity
    typed: Typed

    def to_bytes(self) -> bytes:
        """Return the file's bytes; equal inputs give equal bytes."""
        return bytes(self.model.SerializeToString(deterministic=True))


def export_checked(
    model: Segmentor,
    options: ExportOptions,
    *,
    precision: Precision,
    output: str,
    images: Sequence[np.ndarray],
    checkpoint_sha256: str | None = None,
    quantization: Quantization | None = None,
    calibration: Calibration | None = None,
    threads: int | None = None,
) -> Exported:
    """Export a model and compare the result with it.

    Args:
        model: In evaluation mode.
        options: Shape and input form.
        precision: Of the file.
        output: ``"mask"``, ``"logits"`` or ``"both"``.
        images: ``(h, w, 3) uint8`` of a size that the shape allows; ranges and parity are measured on them.
        checkpoint_sha256: Recorded in the file.
        quantization: How int8 is made; for that precision only.
        calibration: More images that the extremes of 16-bit tensors are measured on.
        threads: CPU threads of ONNX Runtime.

    Raises:
        ExportError: The graph is invalid or holds a cast that TensorRT does not document. A parity gate that does
            not hold is a result, not an error.
    """
    from nrd_trt.exporting.onnx_export import export_onnx

    full = export_onnx(model, options, checkpoint_sha256=checkpoint_sha256)
    typed = derive_precision(
        full, precision, images, quantization=quantization, calibration=calibration, threads=threads
    )
    if casts := undocumented_casts(typed.model):
        raise ExportError(f"casts outside TensorRT's documented set: {', '.join(casts)}; report this model.")
    parity = _parity(model, typed.model, images, precision, threads)
    return Exported(model=select_outputs(typed.model, output), parity=parity, typed=typed)


def write_onnx(exported: Exported, path: Path) -> None:
    """Write the file atomically; an existing one is replaced."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(exported.to_bytes())


def _parity(
    model: Segmentor,
    typed: onnx.ModelProto,
    images: Sequence[np.ndarray],
    precision: Precision,
    threads: int | None,
) -> Parity:
    from nrd_trt.runtime.torch_runner import TorchRunner

    facts = read_facts(typed)
    differences, agreements = [], []
    exported = OrtRunner(typed, threads=threads)
    with TorchRunner(model, facts.input_form) as reference, exported:
        for image in images:
            feed = image_feed(image, facts)
            expected, got = reference.infer(feed), exported.infer(feed)
            differences.append(float(np.abs(expected["logits"] - got["logits"]).max()))
            agreements.append(float((expected["mask"] == got["mask"]).mean()))
        arithmetic = exported.arithmetic
    max_abs = max(differences) if np.isfinite(differences).all() else None
    agreement = float(np.mean(agreements))
    failures = Gates.of(precision).failures(agreement=agreement, miou_drop=None)
    if max_abs is None:
        failures.append("the exported logits are not finite")
    return Parity(max_abs=max_abs, agreement=agreement, arithmetic=arithmetic, failures=tuple(failures))
