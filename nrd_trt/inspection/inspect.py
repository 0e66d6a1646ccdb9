"""The verb ``inspect``: all that a bundle, a plan or an ONNX file tells about itself, as one JSON object.

Every object has `kind`, `path`, `bytes`, `sha256`, `layers`, `layers_from`, `types`, `formats`, `profiles`, `precision`
and `plugin`; beside these `onnx`, `plan` and `bundle` hold what belongs to the parts that are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import PLAN_FILE, RECORD_FILE, Bundle, is_bundle, read_bundle
from nrd_trt.engine.plugins import find_plugin, read_plugin
from nrd_trt.errors import ConfigError, MissingDependencyError, PluginError
from nrd_trt.files import sha256_file
from nrd_trt.inspection.onnx_summary import facts_of, load_onnx, profile_of, summarise_onnx
from nrd_trt.inspection.plan_summary import OpenedPlan, PlanHeader, has_gpu, is_plan, open_plan, read_header
from nrd_trt.runtime.select import bundle_plugin, recorded_plugin

OnMessage = Callable[[str, str], None]


def inspect_path(
    path: Path, *, plugin: Path | None = None, on_message: OnMessage = lambda severity, text: None
) -> dict[str, Any]:
    """Return what a bundle, a plan or an ONNX file holds.

    A plan is opened, which runs it as code, where this machine can: inspect what comes from a trusted source.

    Args:
        path: ``NAME.nrd``, a plan or an ONNX file.
        plugin: Library of a plan that needs one. None looks for a bundle's; without a bundle nothing tells that a plan
            needs one.
        on_message: Receives TensorRT's messages as ``(severity, text)``.

    Raises:
        ConfigError: There is nothing of that name, or a library is given for what needs none.
        PluginError: The library given cannot be used, or is not that of the build.
        BundleError: A bundle is damaged, or a plan is none.
        ExportError: It is no ONNX file.
    """
    if path.is_dir():
        return _bundle(path, "bundle", plugin, on_message)
    if not path.is_file():
        raise ConfigError(f"{path}: expected a bundle NAME.nrd, a plan or an ONNX file, found none; check the path.")
    if path.name == PLAN_FILE and is_bundle(path.parent):
        return _bundle(path.parent, "plan", plugin, on_message)
    if is_plan(path):
        return _bare_plan(path, plugin, on_message)
    if plugin is not None:
        raise ConfigError(f"--plugin {plugin}: expected a bundle or a plan with it, got {path}; leave the option out.")
    return _onnx_file(path)


def _onnx_file(path: Path) -> dict[str, Any]:
    model = load_onnx(path)
    summary, facts = summarise_onnx(model), facts_of(model)
    layers = summary.pop("layers")
    return {
        "kind": "onnx",
        **_file(path),
        "layers": layers,
        "layers_from": "onnx",
        "types": summary["nodes"]["by_type"],
        "formats": None,
        "profiles": [profile_of(facts)] if facts else None,
        "precision": {
            "asked": facts.precision if facts else None,
            "found": summary["nodes"]["by_type"],
            "kept_fp32": None,
        },
        "plugin": None,
        "onnx": summary,
        "plan": None,
        "bundle": None,
    }


def _bare_plan(path: Path, plugin: Path | None, on_message: OnMessage) -> dict[str, Any]:
    """Tell of a plan without a bundle what its header says, and its inside where it can be opened."""
    header = read_header(path)
    advice = "nrd-trt build m.onnx -o NAME.nrd"
    library = read_plugin(find_plugin(plugin)) if plugin is not None else None
    opened = open_plan(path, header.flavour, rebuild=advice, plugin=library, on_message=on_message)
    plan = _plan(path, header, opened)
    return {
        "kind": "plan",
        **_file(path),
        "layers": plan["layers"],
        "layers_from": "plan" if plan["layers"] else None,
        "types": _types(plan["layers"]),
        "formats": _formats(plan["layers"]),
        "profiles": plan["profiles"],
        "precision": {"asked": None, "found": _types(plan["layers"]), "kept_fp32": None},
        "plugin": _plugins_of(plan["layers"]),
        "onnx": None,
        "plan": {key: value for key, value in plan.items() if key != "layers"},
        "bundle": None,
    }


def _plugins_of(layers: list[dict[str, str]] | None) -> dict[str, Any] | None:
    """Return the layers of an opened plan that plugins run; the plan does not tell of which library."""
    named = [layer["name"] for layer in layers or [] if "plugin" in layer["kind"].lower()]
    return {"layers": named} if named else None


def _bundle(path: Path, kind: str, plugin: Path | None, on_message: OnMessage) -> dict[str, Any]:
    """Tell of a bundle what it recorded, what its ONNX file holds, and its plan's inside where it can be opened."""
    return _of_bundle(read_bundle(path), kind, plugin, on_message)


def _of_bundle(bundle: Bundle, kind: str, plugin: Path | None, on_message: OnMessage) -> dict[str, Any]:
    if plugin is not None and bundle.record.decode != "plugin":
        raise ConfigError(f"--plugin {plugin}: expected a bundle whose plan needs it, got {bundle.path}; leave it out.")
    summary = summarise_onnx(load_onnx(bundle.onnx_path))
    network = summary.pop("layers")
    plan = _plan_of(bundle, plugin, on_message)
    recorded_facts = bundle.record.to_dict()
    facts = _without_layers(recorded_facts)
    opened, recorded = plan and plan["layers"], recorded_facts["precision"]["layers"]
    layers = opened or recorded or network
    named = bundle.plan_path if kind == "plan" else None
    return {
        "kind": kind,
        "path": str(named or bundle.path),
        "bytes": named.stat().st_size if named else sum(size for _, size in _sizes(bundle)),
        "sha256": bundle.record.files[PLAN_FILE] if named else sha256_file(bundle.path / RECORD_FILE),
        "layers": layers,
        "layers_from": "plan" if opened else "build" if recorded else "onnx",
        "types": _types(layers),
        "formats": _formats(layers),
        "profiles": (plan["profiles"] if plan else None) or [profile_of(bundle.graph)],
        "precision": facts["precision"],
        "plugin": facts["plugin"],
        "onnx": summary,
        "plan": {key: value for key, value in plan.items() if key != "layers"} if plan else None,
        "bundle": {**facts, "sizes": dict(_sizes(bundle)), "hashes_hold": True},
    }


def _plan_of(bundle: Bundle, plugin: Path | None, on_message: OnMessage) -> dict[str, Any] | None:
    if bundle.plan_path is None:
        return None
    header, rebuild = read_header(bundle.plan_path), bundle.record.command
    opened: OpenedPlan | str
    if plugin is not None:
        recorded_plugin(bundle, plugin)
    try:
        library = bundle_plugin(bundle, plugin) if has_gpu() else None
        opened = open_plan(bundle.plan_path, header.flavour, rebuild=rebuild, plugin=library, on_message=on_message)
    except (MissingDependencyError, PluginError) as exc:
        if plugin is not None:
            raise
        opened = str(exc)
    return _plan(bundle.plan_path, header, opened)


def _plan(path: Path, header: PlanHeader, opened: OpenedPlan | str) -> dict[str, Any]:
    """Return what is known of a plan; `why_not` tells why the rest is not."""
    known = asdict(opened) if isinstance(opened, OpenedPlan) else {}
    return {
        **_file(path),
        **asdict(header),
        "opened": isinstance(opened, OpenedPlan),
        "why_not": opened if isinstance(opened, str) else None,
        **{key: known.get(key) for key in ("opened_with", "inputs", "outputs", "profiles", "device_memory_bytes")},
        "layers": known.get("layers"),
    }


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _sizes(bundle: Bundle) -> list[tuple[str, int]]:
    return [(name, (bundle.path / name).stat().st_size) for name in sorted(bundle.record.files)]


def _types(layers: list[dict[str, str]] | None) -> dict[str, int] | None:
    return dict(Counter(layer["type"] for layer in layers).most_common()) if layers else None


def _formats(layers: list[dict[str, str]] | None) -> dict[str, int] | None:
    """Return layers per memory format; only an opened plan tells them."""
    known = [layer["format"] for layer in layers or [] if "format" in layer]
    return dict(Counter(known).most_common()) if known else None


def _without_layers(facts: dict[str, Any]) -> dict[str, Any]:
    precision = {key: value for key, value in facts["precision"].items() if key != "layers"}
    return {**facts, "precision": precision}


inspect = inspect_path
