"""What can be told of a plan: from its first bytes anywhere, from its inside where this machine can open it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nrd_trt.engine.plugins import PluginLibrary, load_plugin
from nrd_trt.errors import BundleError, MissingDependencyError, RunnerError
from nrd_trt.machine.gpu import find_graphics
from nrd_trt.machine.host import Machine
from nrd_trt.machine.jetson import find_jetson

_HEADER_BYTES = 28
_TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}


@dataclass(frozen=True, kw_only=True)
class PlanHeader:
    """What the first bytes of a plan tell.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        version: Of the builder, such as ``"10.3.0.30"``, or None for a header of another form.
    """

    flavour: str
    version: str | None


@dataclass(frozen=True, kw_only=True)
class OpenedPlan:
    """What an opened plan tells.

    Attributes:
        opened_with: Flavour and version of the runtime.
        inputs: ``{name, dtype, shape}`` per input; None marks a dynamic dimension.
        outputs: The same per output.
        profiles: Smallest, usual and largest shape by input, per profile.
        device_memory_bytes: Scratch memory of one execution.
        layers: ``{name, kind, type, format}`` per layer, or None where the runtime does not tell.
    """

    opened_with: str
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    device_memory_bytes: int = 0
    layers: list[dict[str, str]] | None = None


def read_header(path: Path) -> PlanHeader:
    """Read the first bytes of a plan; nothing of it is run.

    Raises:
        BundleError: They are not those of a plan.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:4] not in _TAGS or len(head) < _HEADER_BYTES:
        tags = " or ".join(repr(tag.decode()) for tag in _TAGS)
        raise BundleError(
            f"{path}: expected a TensorRT plan, which begins with {tags}, got {head[:4]!r} "
            f"({path.stat().st_size} bytes); build it again with `nrd-trt build`."
        )
    (form,) = struct.unpack_from("<I", head, 4)
    return PlanHeader(flavour=_TAGS[head[:4]], version=".".join(map(str, head[24:28])) if form == 0 else None)


def is_plan(path: Path) -> bool:
    """Whether a file says that it is a plan, by its name or its first bytes."""
    if path.suffix in (".plan", ".engine", ".trt"):
        return True
    with path.open("rb") as file:
        return file.read(4) in _TAGS


def open_plan(
    path: Path,
    flavour: str,
    *,
    rebuild: str,
    plugin: PluginLibrary | None = None,
    on_message: Callable[[str, str], None] = lambda severity, text: None,
) -> OpenedPlan | str:
    """Open a plan with the runtime of its flavour.

    A plan is run as code when it is opened, so it must come from a source that is trusted.

    Args:
        path: The plan.
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        rebuild: The command that builds it again.
        plugin: Library to load first, where the plan needs one.
        on_message: Receives TensorRT's messages as ``(severity, text)``.

    Returns:
        What it tells, or why this machine cannot open it.

    Raises:
        PluginError: TensorRT refuses the library.
    """
    from nrd_trt.engine.compat import load_tensorrt

    if not has_gpu():
        return "this machine has no NVIDIA GPU that can be used; `nrd-trt doctor` tells more"
    try:
        runtime = load_tensorrt(flavour)
        if plugin is not None:
            load_plugin(plugin, runtime)
        engine = runtime.deserialize(path.read_bytes(), host_code=False, rebuild=rebuild, on_message=on_message)
    except (MissingDependencyError, RunnerError) as exc:
        return str(exc)
    try:
        return OpenedPlan(
            opened_with=f"{flavour} {runtime.version}",
            inputs=[_described(spec) for spec in engine.inputs.values()],
            outputs=[_described(spec) for spec in engine.outputs.values()],
            profiles=[{name: _range(*engine.profile_range(name)) for name in engine.inputs}],
            device_memory_bytes=engine.device_memory_bytes,
            layers=inspector_layers(engine.layer_information()),
        )
    finally:
        engine.close()


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU with a driver."""
    machine = Machine()
    return bool(find_graphics(machine, find_jetson(machine)).gpus)


def inspector_layers(text: str) -> list[dict[str, str]]:
    """Read the engine inspector's JSON: ``Format/Datatype`` in one text up to 10.x, two keys from 11 on.

    Args:
        text: Of a whole engine, built with detailed profiling verbosity; with less there are names only.

    Returns:
        ``{name, kind, type, format}`` per layer; type and format are those of the first output, "unknown" if not told.
    """
    layers = json.loads(text).get("Layers", [])
    return [_inspected(layer) if isinstance(layer, dict) else _inspected({"Name": layer}) for layer in layers]


def _inspected(layer: dict[str, Any]) -> dict[str, str]:
    output: dict[str, Any] = next(iter(layer.get("Outputs", [])), {})
    joined = str(output.get("Format/Datatype", ""))
    told = str(output.get("Format", joined) or "unknown")
    kind = output.get("Datatype") or output.get("DataType") or _type_in(told)
    return {
        "name": str(layer.get("Name", "")),
        "kind": str(layer.get("LayerType", "unknown")),
        "type": str(kind).lower(),
        "format": told,
    }


def _type_in(text: str) -> str:
    """Return the type that a 10.x format text names, such as "Row major linear FP16"."""
    names = {"FP32": "float", "FP16": "half", "BF16": "bf16", "INT8": "int8", "INT32": "int32", "INT64": "int64"}
    return next((kind for name, kind in names.items() if name.lower() in text.lower()), "unknown")


def _described(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}


def _range(low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]) -> dict[str, list[int]]:
    return {"min": list(low), "opt": list(opt), "max": list(high)}
