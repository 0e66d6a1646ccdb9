"""Which runner a bundle gets on this machine. Backends are imported on use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import PLAN_FILE, Bundle, host_facts
from nrd_trt.engine.compat import installed_flavours, load_runtime
from nrd_trt.engine.host import Host, check_host, host_mismatches
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.cuda import DeviceFacts, probe_device
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.trt_runner import TrtRunner

RUNNERS = ("auto", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx")


def make_runner(bundle: Bundle, runner: str = "auto", *, threads: int | None = None) -> BaseRunner:
    """Make the runner of a bundle.

    Args:
        bundle: Opened.
        runner: ``"auto"`` takes the plan where this machine can run it, else ONNX Runtime.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.

    Raises:
        ConfigError: An unknown name, or one that a bundle cannot run with.
        RunnerError: The plan was asked for and this machine cannot run it; the message names what differs.
        MissingDependencyError: The plan was asked for and its TensorRT is not installed.
    """
    if runner not in RUNNERS:
        raise ConfigError(f"--runner {runner!r}: expected one of {', '.join(RUNNERS)}.")
    if runner == "torch":
        raise ConfigError("--runner torch: a bundle holds no PyTorch model; give the checkpoint instead.")
    built = bundle.facts["builder"]
    if runner in ("tensorrt", "tensorrt-rtx"):
        if bundle.plan_path is None:
            raise RunnerError(
                f"--runner {runner}: {bundle.path} holds no plan; "
                f"build one with: {rebuild_command(bundle.path, runner)}"
            )
        rebuild = rebuild_command(bundle.path, runner)
        check_host(built, this_host(runner), plan=str(bundle.path / PLAN_FILE), rebuild=rebuild)
        return plan_runner(bundle.plan_path, built, rebuild)
    if runner == "auto" and bundle.plan_path is not None and can_run_plan(built):
        return plan_runner(bundle.plan_path, built, rebuild_command(bundle.path, built["name"]))
    return OrtRunner(bundle.onnx_path, threads=threads)


def can_run_plan(built: Mapping[str, Any]) -> bool:
    """Whether this machine can run a plan with these builder facts."""
    return built["name"] in installed_flavours() and not host_mismatches(built, this_host(built["name"]))


def plan_runner(plan: bytes | Path, built: Mapping[str, Any], rebuild: str) -> TrtRunner:
    """Make the runner of a plan; only a version-compatible plan may run code on the host."""
    return TrtRunner(plan, flavour=built["name"], rebuild=rebuild, host_code=bool(built.get("version_compatible")))


def this_host(flavour: str) -> Host:
    """Describe this machine as the place to run a plan of `flavour`.

    Raises:
        MissingDependencyError: The flavour is not installed.
    """
    device: DeviceFacts | None = probe_device()
    return Host(
        **host_facts(),
        builder=flavour,
        version=load_runtime(flavour).version,
        gpu=device.name if device else None,
        compute_capability=device.compute_capability if device else None,
    )


def rebuild_command(bundle: Path, flavour: str) -> str:
    """Return the command that makes the plan of a bundle anew on the machine where it is run."""
    return f"nrd-trt build {bundle} -o {bundle} --builder {flavour} --force"
