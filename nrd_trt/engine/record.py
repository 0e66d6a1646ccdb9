"""What ``bundle.json`` records, as frozen dataclasses, and the one way between them and the file's bytes.

Fields that are added within a schema are optional and some have new names: older bundles stay readable. Older versions
of the toolkit skip what they do not know; those between 0.1.0 and a new name refuse a record without the old one, as
with ``plan_run``, which is ``plan_ran`` now. The schema number rises only where an older reader would misread a bundle.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from nrd_trt.data.exposure import Exposure
from nrd_trt.figures import Parity, ValidationRecord, json_values
from nrd_trt.files import canonical_json, sha256_bytes
from nrd_trt.graph.metadata import ExporterRecord, GraphFacts
from nrd_trt.json_files import decode_json
from nrd_trt.specs import CheckpointOptions, Fit, LayerRecord, MaskEncoding, Precision, Quantizer, Resample, Target

SCHEMA = 1

ComputeCapability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+$")]


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """Name and SHA-256 of the checkpoint that a bundle comes from, as far as they are known."""

    name: str | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class PluginFacts:
    """What a plugin library says of itself and a bundle keeps.

    Attributes:
        version: Version of the library.
        tensorrt: Version of the TensorRT headers that it was built with.
        cuda: Version of the CUDA toolkit that it was built with.
        architectures: GPUs that it holds machine code for, 87 for compute capability 8.7.
        ptx: Architectures that it holds PTX for, which a driver compiles for these and later ones.
        kernel_revision: Number that rises with every change of the kernels.
    """

    version: str
    tensorrt: str
    cuda: str
    architectures: tuple[int, ...]
    ptx: tuple[int, ...]
    kernel_revision: int


@dataclass(frozen=True, kw_only=True)
class PluginRecord(PluginFacts):
    """The plugin library that a plan was built with; nothing here depends on its folder.

    Attributes:
        file: Name of the file.
        sha256: Hash of the file.
        mask_encoding: How the plan gives its mask.
    """

    file: str
    sha256: str
    mask_encoding: MaskEncoding


@dataclass(frozen=True, kw_only=True)
class BuilderRecord:
    """What built the plan, with what settings, and the facts of a machine that the plan depends on.

    Attributes:
        name: ``"tensorrt"``, ``"tensorrt-rtx"``, or ``"onnxruntime"`` where there is no plan.
        version: Version of the builder; None without a plan.
        compute_capabilities: GPUs that the plan is for; empty for TensorRT-RTX's default, and where that is not known.
        os: ``"linux"``.
        machine: ``"x86_64"`` or ``"aarch64"``.
        gpu: Name of the GPU that was there, or None.
        multiprocessors: Their number in that GPU, or None.
        driver: Version of the NVIDIA driver, or None.
        cuda: Newest CUDA version that the driver supports, or None.
        version_compatible: Whether the plan loads in later TensorRT versions too.
        hardware_compatible: Whether the plan loads on other Ampere or later GPUs.
        workspace_mib: Scratch memory that a layer may use; None is the builder's choice.
        optimization_level: Builder effort, 0-5; None is the builder's choice.
        tf32: Whether products of fp32 may be computed with factors of 10 bits; None where it was not recorded, which is
            TensorRT's default: they may.
        builder_options: Further settings, by the names of `nrd_trt.build`'s argument.
    """

    name: Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
    version: str | None
    compute_capabilities: tuple[ComputeCapability, ...]
    os: str
    machine: str
    gpu: str | None
    driver: str | None
    cuda: str | None = None
    multiprocessors: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    tf32: bool | None = None
    builder_options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PrecisionRecord:
    """Precision that was asked for, and types that were found.

    Attributes:
        asked: Precision of the file.
        found: Number of the plan's layers by output type; None without a plan.
        kept_fp32: Nodes kept in fp32 for their range.
        kept_because: The reason for each of them.
        int8_layers: Layers that compute in int8.
        layers: Every layer of the plan's network; empty without a plan.
        ranges: Largest magnitude that 8 bits represent of each activation; None where it was not recorded, and in files
            of other precisions.
        quantizer: What placed the Q/DQ pairs; None likewise.
        target: What a quantised file was made for.
        fp8_layers: Layers that compute in fp8.
    """

    asked: Precision
    found: dict[str, int] | None
    kept_fp32: tuple[str, ...]
    kept_because: dict[str, str]
    int8_layers: tuple[str, ...]
    layers: tuple[LayerRecord, ...]
    ranges: dict[str, float] | None = None
    quantizer: Quantizer | None = None
    target: Target = "gpu"
    fp8_layers: tuple[str, ...] = ()

    @property
    def quantized_layers(self) -> tuple[str, ...]:
        """Layers that compute in 8 bits; a file has one kind of them."""
        return self.int8_layers or self.fp8_layers


@dataclass(frozen=True, kw_only=True)
class BundleRecord:
    """Everything that a bundle tells of itself.

    Attributes:
        format: Number of the schema.
        nrd_trt: Version of the toolkit that wrote it.
        checkpoint: Where the weights come from; None where that is not known.
        calibration_sha256: Hash of the images that ranges were measured on; None without any.
        plugin: Library of a plan that decodes by plugin; None for others.
        decode: What decodes the patches: the plugin, the function in the ONNX file, or nothing in other networks.
        builder: What built the plan.
        precision: What was asked for and found.
        model: Facts of the ONNX file.
        fit: How images are brought to the engine's size.
        resample: What scales them there.
        parity: The exported file against PyTorch; None where nothing was exported.
        validation: The masks against the reference's.
        passed: Whether every gate of validation and parity holds.
        command: The call that builds the bundle again.
        files: SHA-256 by file name.
        exporter: What wrote the ONNX file; None where that is not known.
        options: What was said of the checkpoint beyond its file; None where nothing was, or it was not recorded.
        exposure: How bright the images are that were calibrated on; None without any, and where it was not recorded.
    """

    nrd_trt: str
    checkpoint: CheckpointRecord | None
    calibration_sha256: str | None
    plugin: PluginRecord | None
    decode: Literal["plugin", "onnx", "none"]
    builder: BuilderRecord
    precision: PrecisionRecord
    model: GraphFacts
    fit: Fit
    parity: Parity | None
    validation: ValidationRecord
    passed: bool
    command: str
    files: dict[str, str] = field(default_factory=dict)
    exporter: ExporterRecord | None = None
    resample: Resample = "pillow"
    options: CheckpointOptions | None = None
    exposure: Exposure | None = None
    format: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        values: dict[str, Any] = json_values(self)
        return values


def write_record(record: BundleRecord) -> bytes:
    """Return the bytes of ``bundle.json``: the record with its own SHA-256. Equal records give equal bytes."""
    content = record.to_dict()
    return _text({**content, "sha256": sha256_bytes(canonical_json(content))})


def read_record(data: bytes) -> BundleRecord:
    """Read the bytes of ``bundle.json``.

    Raises:
        ValueError: They are not a record of this schema, or were edited; the message says which.
    """
    try:
        content = decode_json(data, dict[str, Any])
        claimed, schema = content.pop("sha256"), content["format"]
        intact = sha256_bytes(canonical_json(content)) == claimed and data == _text({**content, "sha256": claimed})
    except (ValueError, KeyError) as exc:
        raise ValueError(f"not readable as the record of a bundle ({exc!r}); restore or rebuild the bundle") from exc
    if schema != SCHEMA or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "update it with `pip install -U nrd-trt`" if newer else "rebuild the bundle with this version"
        raise ValueError(f"expected schema {SCHEMA}, which this version of nrd_trt reads, got {schema!r}; {advice}")
    if not intact:
        raise ValueError("its content does not match its own SHA-256: it was edited; restore or rebuild the bundle")
    try:
        return msgspec.convert(_from_0_1_0(_renamed(content)), BundleRecord)
    except ValueError as exc:
        raise ValueError(f"expected the record of a bundle, got something else ({exc}); rebuild the bundle") from exc


def _renamed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record with today's names; ``plan_ran`` was called ``plan_run`` at first."""
    validation = content.get("validation")
    if not isinstance(validation, dict) or "plan_run" not in validation:
        return content
    names = {"plan_run": "plan_ran"}
    return {**content, "validation": {names.get(name, name): value for name, value in validation.items()}}


def _from_0_1_0(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record of version 0.1.0 in today's form; records of later versions are returned as they are.

    Version 0.1.0 wrote the CUDA version that the driver supports as ``driver``, and two settings of the builder into
    the command only.
    """
    builder = content.get("builder")
    if not isinstance(builder, dict) or "cuda" in builder:
        return content
    command = str(content.get("command"))
    settings = {name: re.search(rf"-{name} (\d+)", command) for name in ("workspace-mib", "optimization-level")}
    numbers = {name.replace("-", "_"): int(found[1]) for name, found in settings.items() if found}
    return {**content, "builder": {**builder, "driver": None, "cuda": builder.get("driver"), **numbers}}


def _text(content: dict[str, Any]) -> bytes:
    """Return the file byte for byte, so that even a changed blank is found on reading."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
