"""The verb ``inspect``: all that a bundle, a plan or an ONNX file tells about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nrd_trt.engine.bundle import PLAN_FILE, RECORD_FILE, Bundle, Origin, check_no_key, is_bundle, read_bundle
from nrd_trt.engine.plugins import find_plugin, read_plugin
from nrd_trt.engine.record import BundleRecord, PluginRecord, PrecisionRecord
from nrd_trt.errors import ConfigError, MissingDependencyError, PluginError
from nrd_trt.figures import json_values
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import GraphFacts, TypeChoices, load_checked, read_choices
from nrd_trt.graph.tensors import conv_types
from nrd_trt.inspection.onnx_summary import OnnxSummary, ShapeRange, counted, profile_of, summarise_onnx
from nrd_trt.inspection.plan_summary import (
    PlanLayer,
    PlanSummary,
    has_gpu,
    is_plan,
    open_plan,
    read_header,
)
from nrd_trt.progress import OnMessage, silent
from nrd_trt.runtime.select import DEFAULT, bundle_plugin, cpu_runner, recorded_plugin
from nrd_trt.specs import LayerRecord, optional_path

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True)
class BundleSummary:
    """What a bundle recorded, every hash of which holds, the sizes of its files in bytes, and who signed it."""

    record: BundleRecord
    sizes: dict[str, int]
    origin: Origin | None
    hashes_hold: bool = True


@dataclass(frozen=True, kw_only=True)
class FoundPrecision:
    """Precision of a file outside a bundle: what was asked for, as far as it tells, and its layers by type."""

    asked: str | None
    found: dict[str, int] | None
    kept_fp32: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PluginLayers:
    """Layers of a plan without a bundle that plugins run; the plan does not tell of which library."""

    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OnCpu:
    """How the CPU of this machine would run a file, if it had to draw masks only.

    Attributes:
        runner: What `nrd_trt.open_bundle` takes where the plan does not run.
        types: What convolutions are computed in, such as ``("fp32", "int8")``.
    """

    runner: str
    types: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a bundle, a plan or an ONNX file tells about itself.

    Attributes:
        kind: What was looked into.
        path: The file or folder.
        bytes: Size of the file, or of all files of the bundle.
        sha256: Hash of the file, or of the bundle's record.
        layers: Layers of the plan, of the network as the builder parsed it, or nodes of the ONNX file.
        layers_from: Which of these.
        types: Number of layers by type.
        formats: Number of layers by memory format; only an opened plan tells.
        profiles: Shapes that each input may have, per profile.
        precision: Precision that was asked for, and types that were found.
        plugin: The library that a bundle's plan needs, or the layers of a plan alone that plugins run.
        onnx: What the ONNX file holds, where there is one.
        on_cpu: How this machine's CPU would run it; None where this toolkit cannot.
        plan: What the plan tells, where there is one.
        bundle: What the bundle recorded, where there is one.
    """

    kind: Literal["bundle", "plan", "onnx"]
    path: str
    bytes: int
    sha256: str
    layers: tuple[LayerRecord, ...] | None
    layers_from: Literal["plan", "build", "onnx"] | None
    types: dict[str, int] | None
    formats: dict[str, int] | None
    profiles: tuple[dict[str, ShapeRange], ...] | None
    precision: PrecisionRecord | FoundPrecision
    plugin: PluginRecord | PluginLayers | None
    onnx: OnnxSummary | None = None
    on_cpu: OnCpu | None = None
    plan: PlanSummary | None = None
    bundle: BundleSummary | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object; layers stand in it once, at the top."""
        values: dict[str, Any] = json_values(self)
        for part in (values["precision"], values["plan"] or {}):
            part.pop("layers", None)
        if values["bundle"]:
            record = values["bundle"].pop("record")
            del record["precision"]["layers"]
            values["bundle"] |= record
        return values


def inspect(
    path: Path | str,
    *,
    plugin: Path | str | None = None,
    verify_key: Path | str | None = None,
    on_message: OnMessage = silent,
) -> Inspection:
    """Return what a bundle, a plan or an ONNX file holds.

    A plan is opened, which runs it as code, where this machine can: inspect what comes from a trusted source.

    Args:
        path: ``NAME.nrd``, a plan or an ONNX file.
        plugin: Library of a plan that needs one. None looks for a bundle's; without a bundle nothing tells that a plan
            needs one.
        verify_key: For bundles and their plans; see `nrd_trt.open_bundle`.
        on_message: Receives TensorRT's messages as ``(severity, text)``.

    Raises:
        ConfigError: There is nothing of that name, or a library is given for what needs none.
        PluginError: The library given cannot be used, or is not that of the build.
        BundleError: A bundle is damaged or not signed by the key of `verify_key`, or a plan is none.
        ExportError: It is no ONNX file.
    """
    path, plugin, verify_key = Path(path), optional_path("plugin", plugin), optional_path("verify_key", verify_key)
    if path.is_dir():
        return _bundle(read_bundle(path, verify_key=verify_key), "bundle", plugin, on_message)
    if not path.is_file():
        raise ConfigError(f"{path}: expected a bundle NAME.nrd, a plan or an ONNX file, found none; check the path.")
    if path.name == PLAN_FILE and is_bundle(path.parent):
        return _bundle(read_bundle(path.parent, verify_key=verify_key), "plan", plugin, on_message)
    check_no_key(path, verify_key)
    if is_plan(path):
        return _bare_plan(path, plugin, on_message)
    if plugin is not None:
        raise ConfigError(f"plugin={plugin}: expected a bundle or a plan with it, got {path}; leave it out.")
    return _onnx_file(path)


def _onnx_file(path: Path) -> Inspection:
    model = load_checked(path)
    summary, layers = summarise_onnx(model)
    facts = summary.metadata
    return Inspection(
        kind="onnx",
        path=str(path),
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        **_told(layers, "onnx"),
        profiles=(profile_of(facts),) if facts else None,
        precision=FoundPrecision(asked=facts.precision if facts else None, found=summary.nodes.by_type),
        plugin=None,
        onnx=summary,
        on_cpu=_on_cpu(model, facts) if facts else None,
    )


def _bare_plan(path: Path, plugin: Path | None, on_message: OnMessage) -> Inspection:
    """Tell of a plan without a bundle what its header says, and its inside where it can be opened."""
    library = read_plugin(find_plugin(plugin)) if plugin is not None else None
    plan = open_plan(path, rebuild="nrd_trt.build('m.onnx', 'NAME.nrd')", plugin=library, on_message=on_message)
    run_by_plugins = tuple(layer.name for layer in plan.layers or () if "plugin" in layer.kind.lower())
    told = _told(plan.layers, "plan")
    return Inspection(
        kind="plan",
        path=plan.path,
        bytes=plan.bytes,
        sha256=plan.sha256,
        **told,
        profiles=plan.profiles,
        precision=FoundPrecision(asked=None, found=told["types"]),
        plugin=PluginLayers(layers=run_by_plugins) if run_by_plugins else None,
        plan=plan,
    )


def _bundle(bundle: Bundle, kind: Literal["bundle", "plan"], plugin: Path | None, on_message: OnMessage) -> Inspection:
    """Tell of a bundle what it recorded, what its ONNX file holds, and its plan's inside where it can be opened."""
    record = bundle.record
    if plugin is not None and record.decode != "plugin":
        raise ConfigError(f"plugin={plugin}: expected a bundle whose plan needs it, got {bundle.path}; leave it out.")
    model = load_checked(bundle.onnx_path)
    summary, nodes = summarise_onnx(model)
    plan = _plan_of(bundle, bundle.plan_path, plugin, on_message) if bundle.plan_path else None
    opened, recorded = plan.layers if plan else None, record.precision.layers
    told = _told(opened, "plan") if opened else _told(recorded, "build") if recorded else _told(nodes, "onnx")
    sizes = {name: (bundle.path / name).stat().st_size for name in sorted(record.files)}
    named = bundle.plan_path if kind == "plan" else None
    return Inspection(
        kind=kind,
        path=str(named or bundle.path),
        bytes=sizes[PLAN_FILE] if named else sum(sizes.values()),
        sha256=record.files[PLAN_FILE] if named else sha256_file(bundle.path / RECORD_FILE),
        **told,
        profiles=(plan.profiles if plan else None) or (profile_of(bundle.graph),),
        precision=record.precision,
        plugin=record.plugin,
        onnx=summary,
        on_cpu=_on_cpu(model, bundle.graph),
        plan=plan,
        bundle=BundleSummary(record=record, sizes=sizes, origin=bundle.origin),
    )


def _on_cpu(model: onnx.ModelProto, graph: GraphFacts) -> OnCpu:
    """Tell what `cpu_runner` chooses, and what becomes of the file's types there."""
    runner, kept = cpu_runner(model, graph, DEFAULT).name, {"fp32"}
    if runner == "openvino":
        kept |= {"int8", "bf16"}
    elif (read_choices(model) or TypeChoices()).target == "cpu":
        kept |= {"int8"}  # ONNX Runtime multiplies the integers of other files in fp32
    types = {kind if kind in kept else "fp32" for kind in conv_types(model).values()}
    return OnCpu(runner=runner, types=tuple(sorted(types)))


def _plan_of(bundle: Bundle, path: Path, plugin: Path | None, on_message: OnMessage) -> PlanSummary:
    """Open a bundle's plan; a library that does not fit is an error only where it was given."""
    if plugin is not None:
        recorded_plugin(bundle, plugin)
    try:
        return open_plan(
            path,
            rebuild=bundle.record.command,
            host_code=bundle.record.builder.version_compatible,
            plugin=bundle_plugin(bundle, plugin) if has_gpu() else None,
            on_message=on_message,
        )
    except (MissingDependencyError, PluginError) as exc:
        if plugin is not None:
            raise
        return replace(read_header(path), why_not=str(exc))


def _told(layers: Sequence[LayerRecord] | None, source: str) -> dict[str, Any]:
    """Return what an `Inspection` says of layers, and where they are from."""
    return {
        "layers": layers,
        "layers_from": source if layers else None,
        "types": counted(layer.type for layer in layers) if layers else None,
        "formats": counted(layer.format for layer in layers or () if isinstance(layer, PlanLayer)) or None,
    }
