"""What can be told of a plan: from its first bytes anywhere, from its inside where this machine can open it."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nrd_trt.engine.plugins import PluginLibrary, load_plugin
from nrd_trt.errors import BundleError, MissingDependencyError, RunnerError
from nrd_trt.files import sha256_file
from nrd_trt.inspection.onnx_summary import ShapeRange, TensorSummary
from nrd_trt.machine.gpu import find_graphics
from nrd_trt.machine.host import Machine
from nrd_trt.machine.jetson import find_jetson
from nrd_trt.progress import OnMessage, silent
from nrd_trt.specs import LayerRecord, TensorSpec

_HEADER_BYTES = 28
_SIZES = ("min", "opt", "max")
_TYPES = re.compile(r"\b(fp32|fp16|bf16|fp8|u?int8|int4|int32|int64|bool)\b", re.IGNORECASE)
_TYPE_NAMES = {"fp32": "float", "fp16": "half"}
_TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}


@dataclass(frozen=True, kw_only=True)
class PlanLayer(LayerRecord):
    """A layer of an opened plan.

    Attributes:
        format: Memory format of its first output; ``"unknown"`` where it is not told.
    """

    format: str


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """What is known of a plan: from its header anywhere, from its inside where this machine opened it.

    Attributes:
        path: The file.
        bytes: Its size.
        sha256: Its hash.
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        version: Version of the builder, such as ``"10.3.0.30"``; None for a header of another form.
        opened: Whether this machine opened it; without that what follows `why_not` is None.
        why_not: Why it was not opened.
        opened_with: Flavour and version of the runtime.
        inputs: Inputs of the plan.
        outputs: Outputs of the plan.
        profiles: Shapes that each input may have, per profile.
        device_memory_bytes: Scratch memory of one execution.
        layers: Layers as they were built; empty where the runtime does not tell.
    """

    path: str
    bytes: int
    sha256: str
    flavour: str
    version: str | None
    opened: bool = False
    why_not: str | None = None
    opened_with: str | None = None
    inputs: tuple[TensorSummary, ...] | None = None
    outputs: tuple[TensorSummary, ...] | None = None
    profiles: tuple[dict[str, ShapeRange], ...] | None = None
    device_memory_bytes: int | None = None
    layers: tuple[PlanLayer, ...] | None = None


def read_header(path: Path) -> PlanSummary:
    """Return what the first bytes of a plan tell; nothing of it is run.

    Raises:
        BundleError: They are not those of a plan.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:4] not in _TAGS or len(head) < _HEADER_BYTES:
        tags = " or ".join(repr(tag.decode()) for tag in _TAGS)
        raise BundleError(
            f"{path}: expected a TensorRT plan, which begins with {tags}, got {head[:4]!r} "
            f"({path.stat().st_size} bytes); build it again with nrd_trt.build."
        )
    (form,) = struct.unpack_from("<I", head, 4)
    version = ".".join(map(str, head[24:28])) if form == 0 else None
    return PlanSummary(
        path=str(path),
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        flavour=_TAGS[head[:4]],
        version=version,
    )


def is_plan(path: Path) -> bool:
    """Whether a file says that it is a plan, by its name or its first bytes."""
    if path.suffix in (".plan", ".engine", ".trt"):
        return True
    with path.open("rb") as file:
        return file.read(4) in _TAGS


def open_plan(
    path: Path,
    *,
    rebuild: str,
    host_code: bool = False,
    plugin: PluginLibrary | None = None,
    on_message: OnMessage = silent,
) -> PlanSummary:
    """Open a plan with the runtime of its flavour, where this machine can.

    A plan is run as code when it is opened, so it must come from a source that is trusted.

    Args:
        path: The plan.
        rebuild: The call that builds it again.
        host_code: Let the plan bring its own runtime, as version-compatible plans do.
        plugin: Library to load first, where the plan needs one.
        on_message: Receives TensorRT's messages as ``(severity, text)``.

    Raises:
        BundleError: It is no plan.
        PluginError: TensorRT refuses the library.
    """
    from nrd_trt.engine.compat import load_tensorrt

    plan = read_header(path)
    if not has_gpu():
        return replace(plan, why_not="this machine has no NVIDIA GPU that can be used; nrd_trt.doctor() tells more")
    try:
        runtime = load_tensorrt(plan.flavour)
        if plugin is not None:
            load_plugin(plugin, runtime)
        engine = runtime.deserialize(path.read_bytes(), host_code=host_code, rebuild=rebuild, on_message=on_message)
    except (MissingDependencyError, RunnerError) as exc:
        return replace(plan, why_not=str(exc))
    try:
        ranges = {
            name: ShapeRange(**dict(zip(_SIZES, engine.profile_range(name), strict=True))) for name in engine.inputs
        }
        return replace(
            plan,
            opened=True,
            opened_with=f"{plan.flavour} {runtime.version}",
            inputs=tuple(map(_described, engine.inputs.values())),
            outputs=tuple(map(_described, engine.outputs.values())),
            profiles=(ranges,),
            device_memory_bytes=engine.device_memory_bytes,
            layers=inspector_layers(engine.layer_information()),
        )
    finally:
        engine.close()


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU with a driver."""
    machine = Machine()
    return bool(find_graphics(machine, find_jetson(machine)).gpus)


def inspector_layers(text: str) -> tuple[PlanLayer, ...]:
    """Read the engine inspector's JSON: ``Format/Datatype`` in one text up to 10.x, two keys from 11 on.

    Args:
        text: What it tells of a whole engine, built with detailed profiling verbosity; with less there are names only.

    Returns:
        Every layer; type and format are those of the first output, "unknown" if not told.
    """
    layers = json.loads(text).get("Layers", [])
    return tuple(_inspected(layer if isinstance(layer, dict) else {"Name": layer}) for layer in layers)


def _inspected(layer: dict[str, Any]) -> PlanLayer:
    output: dict[str, Any] = next(iter(layer.get("Outputs", [])), {})
    told = str(output.get("Format", output.get("Format/Datatype", "")) or "unknown")
    kind = output.get("Datatype") or output.get("DataType")
    if not kind:  # a text of 10.x names it, such as "Row major linear FP16"
        named = _TYPES.search(told)
        kind = _TYPE_NAMES.get(named[1].lower(), named[1]) if named else "unknown"
    return PlanLayer(
        name=str(layer.get("Name", "")),
        kind=str(layer.get("LayerType", "unknown")),
        type=str(kind).lower(),
        format=told,
    )


def _described(spec: TensorSpec) -> TensorSummary:
    return TensorSummary(name=spec.name, dtype=str(spec.dtype), shape=spec.shape)
