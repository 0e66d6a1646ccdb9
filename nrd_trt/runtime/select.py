"""Which runner a bundle gets on this machine. Backends are imported on use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import PLAN_FILE, Bundle, host_facts
from nrd_trt.engine.compat import installed_flavours, load_runtime
from nrd_trt.engine.host import Host, check_host, host_mismatches
from nrd_trt.engine.plugins import PluginLibrary, check_plugin, check_recorded, find_plugin, read_plugin
from nrd_trt.errors import ConfigError, PluginError, RunnerError
from nrd_trt.machine.cuda import probe_device
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import MaskEncoding

RUNNERS = ("auto", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx")


def make_runner(
    bundle: Bundle, runner: str = "auto", *, threads: int | None = None, plugin: Path | None = None
) -> BaseRunner:
    """Make the runner of a bundle.

    Args:
        bundle: Opened.
        runner: ``"auto"`` takes the plan where this machine can run it, else ONNX Runtime.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        plugin: The library of a plan that needs one; None looks for it (see `nrd_trt.engine.plugins`).

    Raises:
        ConfigError: An unknown name, or one that a bundle cannot run with; a library for a plan that needs none.
        PluginError: The plan or a library was asked for, and the library is absent or not that of the build.
        RunnerError: The plan was asked for and this machine cannot run it; the message names what differs.
        MissingDependencyError: The plan was asked for and its TensorRT is not installed.

    Warns:
        UserWarning: ``"auto"`` takes ONNX Runtime because the plan's library cannot be had, or in spite of `plugin`.
    """
    if runner not in RUNNERS:
        raise ConfigError(f"--runner {runner!r}: expected one of {', '.join(RUNNERS)}.")
    if runner == "torch":
        raise ConfigError("--runner torch: a bundle holds no PyTorch model; give the checkpoint instead.")
    if plugin is not None and (bundle.facts["decode"] != "plugin" or runner == "onnxruntime"):
        raise ConfigError(
            f"--plugin {plugin}: expected a bundle whose plan needs it and is run, got {bundle.path} with the decode "
            f"as {bundle.facts['decode']} and --runner {runner}; leave the option out."
        )
    built = bundle.facts["builder"]
    if runner in ("tensorrt", "tensorrt-rtx"):
        if bundle.plan_path is None:
            raise RunnerError(
                f"--runner {runner}: {bundle.path} holds no plan; "
                f"build one with: {rebuild_command(bundle.path, runner)}"
            )
        rebuild = rebuild_command(bundle.path, runner, bundle.facts["decode"])
        check_host(built, this_host(runner), plan=str(bundle.path / PLAN_FILE), rebuild=rebuild)
        return _plan_of(bundle, plugin)
    if runner == "auto" and bundle.plan_path is not None and can_run_plan(built):
        try:
            return _plan_of(bundle, plugin)
        except PluginError as exc:
            if plugin is not None:
                raise
            warnings.warn(f"the plan is not run, ONNX Runtime takes its place: {exc}", stacklevel=2)
    elif plugin is not None:
        warnings.warn(f"--plugin {plugin} is not used: this machine cannot run the plan.", stacklevel=2)
    return OrtRunner(bundle.onnx_path, threads=threads)


def bundle_plugin(bundle: Bundle, plugin: Path | None = None) -> PluginLibrary | None:
    """Find the library that a bundle's plan needs and hold it against the build's; None where it needs none.

    Args:
        bundle: Opened.
        plugin: See `make_runner`.

    Raises:
        PluginError: It is absent, does not fit TensorRT or the GPU here, or is not the one of the build.
    """
    if bundle.facts["decode"] != "plugin":
        return None
    library, device = recorded_plugin(bundle, plugin), probe_device()
    capability, cuda = (device.compute_capability, device.cuda) if device else (None, None)
    check_plugin(library, load_runtime(bundle.facts["builder"]["name"]), capability, cuda)
    return library


def recorded_plugin(bundle: Bundle, plugin: Path | None = None) -> PluginLibrary:
    """Find the library of a bundle that was built with one; whether it fits this machine is not asked.

    Args:
        bundle: Opened.
        plugin: See `make_runner`.

    Raises:
        PluginError: It is absent, or not the one of the build.
    """
    library = read_plugin(find_plugin(plugin))
    check_recorded(library, bundle.facts["plugin"], bundle=str(bundle.path), rebuild=_rebuild(bundle))
    return library


def _plan_of(bundle: Bundle, plugin: Path | None) -> TrtRunner:
    return plan_runner(
        bundle.path / PLAN_FILE,
        bundle.facts["builder"],
        _rebuild(bundle),
        plugin=bundle_plugin(bundle, plugin),
        mask_encoding=bundle.graph.mask_encoding,
    )


def _rebuild(bundle: Bundle) -> str:
    return rebuild_command(bundle.path, bundle.facts["builder"]["name"], bundle.facts["decode"])


def can_run_plan(built: Mapping[str, Any]) -> bool:
    """Whether this machine can run a plan with these builder facts."""
    return built["name"] in installed_flavours() and not host_mismatches(built, this_host(built["name"]))


def plan_runner(
    plan: bytes | Path,
    built: Mapping[str, Any],
    rebuild: str,
    *,
    plugin: PluginLibrary | None = None,
    mask_encoding: MaskEncoding = "uint8",
) -> TrtRunner:
    """Make the runner of a plan; only a version-compatible plan may run code on the host."""
    return TrtRunner(
        plan,
        flavour=built["name"],
        rebuild=rebuild,
        host_code=bool(built.get("version_compatible")),
        plugin=plugin,
        mask_encoding=mask_encoding,
    )


def this_host(flavour: str) -> Host:
    """Describe this machine as the place to run a plan of `flavour`.

    Raises:
        MissingDependencyError: The flavour is not installed.
    """
    device = probe_device()
    return Host(
        **host_facts(),
        builder=flavour,
        version=load_runtime(flavour).version,
        gpu=device.name if device else None,
        compute_capability=device.compute_capability if device else None,
    )


def rebuild_command(bundle: Path, flavour: str, decode: str = "auto") -> str:
    """Return the command that makes the plan of a bundle anew on the machine where it is run."""
    plugin = " --decode plugin" if decode == "plugin" and flavour == "tensorrt" else ""
    return f"nrd-trt build {bundle} -o {bundle} --builder {flavour}{plugin} --force"
