"""Which runner a bundle gets on this machine, and whether a plan fits it. Backends are imported on use."""

from __future__ import annotations

import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nrd_trt.engine.bundle import PLAN_FILE, Bundle
from nrd_trt.engine.compat import (
    RTX_DEFAULT_TARGETS,
    installed_flavours,
    lacks,
    load_tensorrt,
    rtx_makes_plans_for,
    version_numbers,
)
from nrd_trt.engine.options import is_on
from nrd_trt.engine.plugins import PluginLibrary, check_plugin, take_recorded
from nrd_trt.engine.record import BuilderRecord
from nrd_trt.errors import BundleError, ConfigError, MissingDependencyError, PluginError, RunnerError
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.machine.cuda import find_device, probe_device
from nrd_trt.machine.device import check_device
from nrd_trt.machine.host import Machine, fast_types
from nrd_trt.machine.libcuda import NoDriverError
from nrd_trt.optional import require
from nrd_trt.runtime.base import Runner
from nrd_trt.runtime.openvino_runner import OpenVinoRunner
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import Precision, Provider, RunnerName, check_choice, check_number

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How an engine is run; `plugin`, `cuda`, `cuda_graph` and `device` are about plans and their GPU.

    Attributes:
        runner: ``"auto"`` takes the plan where this machine can run it, else a runner on the CPU, see `cpu_runner`.
        plugin: The library of a plan that needs one; None looks for it (see `nrd_trt.engine.plugins`).
        threads: CPU threads of a backend on the CPU; None leaves the choice to it.
        cuda: What a plan's runner calls CUDA by, ``"driver"`` or ``"pycuda"``.
        cuda_graph: Whether a plan's runs are captured and replayed as CUDA graphs.
        device: The GPU, see `nrd_trt.machine.device.choose_device`; None is the first.
        faithful: Whether masks must be evidence of the file, so that it is computed, or rounded, as its types say.
            Otherwise a CPU runs the fp32 twin of 16 bits, which is faster.

    Raises:
        ConfigError: A name is not known, or a number is out of range.
    """

    runner: RunnerName = "auto"
    plugin: Path | None = None
    threads: int | None = None
    cuda: Provider = "driver"
    cuda_graph: bool = True
    device: int | str | None = None
    faithful: bool = False

    def __post_init__(self) -> None:
        check_choice("runner", self.runner, RunnerName)
        check_choice("cuda", self.cuda, Provider)
        check_number("threads", self.threads, low=1)
        check_device(self.device)


DEFAULT = RunOptions()
ON_CPU = ("onnxruntime", "openvino")
"""Runners of a file on the CPU."""


def make_runner(bundle: Bundle, run: RunOptions = DEFAULT) -> Runner:
    """Make the runner of a bundle.

    Args:
        bundle: Opened.
        run: How it is run; its device is chosen already.

    Raises:
        ConfigError: A runner that a bundle cannot run with; a library for a plan that needs none.
        PluginError: The plan or a library was asked for, and the library is absent or not that of the build.
        RunnerError: The plan was asked for and this machine cannot run it; the message names what differs.
        MissingDependencyError: The plan was asked for and its TensorRT is not installed.

    Warns:
        UserWarning: ``"auto"`` takes ONNX Runtime though this machine has a driver, or in spite of a library that is
            given; or the plan was built on another model of GPU.
    """
    runner, plugin = run.runner, run.plugin
    if runner == "torch":
        raise ConfigError("runner='torch': a bundle holds no PyTorch model; give the checkpoint instead.")
    record = bundle.record
    if plugin is not None and (record.decode != "plugin" or runner in ON_CPU):
        raise ConfigError(
            f"plugin={plugin}: expected a bundle whose plan needs it and is run, got {bundle.path} with the decode "
            f"as {record.decode} and runner={runner!r}; leave it out."
        )
    if runner in ("tensorrt", "tensorrt-rtx"):
        if bundle.plan_path is None:
            raise RunnerError(
                f"runner={runner!r}: {bundle.path} holds no plan; build one with: {rebuild_call(bundle.path, runner)}"
            )
        rebuild = rebuild_call(bundle.path, runner, record.decode, record.precision.asked)
        check_host(record.builder, this_host(runner), plan=str(bundle.path / PLAN_FILE), rebuild=rebuild)
        return _plan_of(bundle, run)
    if runner == "auto" and bundle.plan_path is not None:
        why = plan_obstacle(record.builder)
        try:
            if why is None:
                return _plan_of(bundle, run)
        except PluginError as exc:
            if plugin is not None:
                raise
            why = str(exc)
        warn_of_stand_in(why)
    if plugin is not None:
        warnings.warn(f"plugin={plugin} is not used: this machine cannot run the plan.", stacklevel=2)
    return cpu_runner(bundle.onnx_path, bundle.graph, run, tf32=bool(record.builder.tf32))


def cpu_runner(
    model: Path | onnx.ModelProto, graph: GraphFacts, run: RunOptions, *, tf32: bool = False
) -> OrtRunner | OpenVinoRunner:
    """Make the runner of a file on the CPU.

    ``"auto"`` takes OpenVINO where it is installed, for int8 files on an x86 with int8 instructions (VNNI or AMX) and
    for bf16 files on one with those of bfloat16: in these types it is faster than ONNX Runtime. In fp32 it is not, and
    what it would choose instead, bfloat16, changes masks, so that has to be asked for by the runner's name. So has
    OpenVINO where masks must be evidence.

    Args:
        model: An ONNX file, or where it is.
        graph: What it says of itself.
        run: How it is run; its runner is one on the CPU, or ``"auto"``.
        tf32: Whether ONNX Runtime imitates TF32.
    """
    if run.runner == "openvino":
        return OpenVinoRunner(model, threads=run.threads, types="exact" if run.faithful else "fastest")
    if run.runner == "auto" and not (run.faithful or tf32) and _openvino_is_faster(graph.precision):
        return OpenVinoRunner(model, threads=run.threads, types="file")
    return OrtRunner(model, threads=run.threads, tf32=tf32, twin=not run.faithful)


def _openvino_is_faster(precision: Precision) -> bool:
    if precision not in fast_types(Machine()):
        return False
    try:
        require("openvino", extra="openvino", purpose="running ONNX files in OpenVINO")
    except MissingDependencyError:
        return False
    return True


def bundle_plugin(bundle: Bundle, plugin: Path | None = None) -> PluginLibrary | None:
    """Find the library that a bundle's plan needs and compare it with the build's; None where it needs none.

    Args:
        bundle: Opened.
        plugin: See `RunOptions`.

    Raises:
        PluginError: It is absent, does not fit TensorRT or the GPU here, or is not the one of the build.
    """
    if bundle.record.decode != "plugin":
        return None
    library, device = recorded_plugin(bundle, plugin), probe_device()
    capability, cuda = (device.compute_capability, device.cuda) if device else (None, None)
    check_plugin(library, load_tensorrt(bundle.record.builder.name), capability, cuda)
    return library


def recorded_plugin(bundle: Bundle, plugin: Path | None = None) -> PluginLibrary:
    """Find the library of a bundle that was built with one; whether it fits this machine is not asked.

    Args:
        bundle: Opened.
        plugin: See `RunOptions`.

    Raises:
        PluginError: It is absent, or not the one of the build.
        BundleError: The bundle does not say which one it was.
    """
    recorded = bundle.record.plugin
    if recorded is None:
        raise BundleError(f"{bundle.path}: expected the record of its plugin library, got none; rebuild the bundle.")
    return take_recorded(recorded, plugin, bundle=str(bundle.path), rebuild=_rebuild(bundle))


def _plan_of(bundle: Bundle, run: RunOptions) -> TrtRunner:
    library, built = bundle_plugin(bundle, run.plugin), bundle.record.builder
    if note := model_note(built, this_host(built.name)):
        warnings.warn(f"{bundle.path}: {note} Or rebuild it here: {_rebuild(bundle)}", stacklevel=3)
    return plan_runner(
        bundle.path / PLAN_FILE,
        built,
        _rebuild(bundle),
        run,
        plugin=library,
        graph=bundle.graph,
    )


def _rebuild(bundle: Bundle) -> str:
    record = bundle.record
    return rebuild_call(bundle.path, record.builder.name, record.decode, record.precision.asked)


def plan_obstacle(built: BuilderRecord) -> str | None:
    """Return what keeps this machine from running a plan that was built so, or None where nothing does."""
    if built.name not in installed_flavours():
        return f"{built.name} is not installed"
    try:
        here = this_host(built.name)
    except MissingDependencyError as exc:  # it is installed, and one of its libraries is not
        return str(exc).rstrip(".")
    return "; ".join(host_mismatches(built, here)) or None


def unproven(built: BuilderRecord, runner: RunnerName) -> str | None:
    """Say why a plan did not run on a machine with a GPU; None on a machine without, where no plan is expected to run.

    Args:
        built: What the plan was built with.
        runner: The runner that was asked for.
    """
    try:
        find_device()
    except RunnerError:
        return None
    asked = None if runner == "auto" else f"runner={runner!r} was asked for"
    why = asked or plan_obstacle(built) or "its plugin library cannot be had"
    return f"the plan did not run, although this machine has a GPU: {why}"


def warn_of_stand_in(why: str) -> None:
    """Warn that ONNX Runtime takes the place of a plan, unless this machine has no driver: there it is no surprise."""
    try:
        find_device()
    except NoDriverError:
        return
    except RunnerError:
        pass  # which is in `why`
    warnings.warn(f"the plan is not run, ONNX Runtime takes its place: {why}", stacklevel=3)


def plan_runner(
    plan: bytes | Path,
    built: BuilderRecord,
    rebuild: str,
    run: RunOptions = DEFAULT,
    *,
    plugin: PluginLibrary | None = None,
    graph: GraphFacts,
) -> TrtRunner:
    """Make the runner of a plan, its library found; only a version-compatible plan may run code on the host."""
    return TrtRunner(
        plan,
        flavour=built.name,
        rebuild=rebuild,
        host_code=built.version_compatible,
        plugin=plugin,
        mask_encoding=graph.mask_encoding,
        graph=graph,
        cuda=run.cuda,
        cuda_graph=run.cuda_graph,
    )


def this_host(flavour: str) -> PlanHost:
    """Describe this machine as the place to run a plan of `flavour`.

    Raises:
        MissingDependencyError: The flavour cannot be imported.
    """
    device, problem = None, None
    try:
        device = find_device()
    except RunnerError as exc:
        problem = str(exc).rstrip(".")
    return PlanHost(
        os=platform.system().lower(),
        machine=platform.machine(),
        builder=flavour,
        version=load_tensorrt(flavour).version,
        compute_capability=device.compute_capability if device else None,
        gpu=device.name if device else None,
        multiprocessors=device.multiprocessors if device else None,
        problem=problem,
    )


def rebuild_call(bundle: Path, builder: str, decode: str = "auto", precision: Precision = "fp16") -> str:
    """Return the call that makes the plan of a bundle anew on the machine where it is run.

    Where TensorRT-RTX makes no plan for the GPU here, it is TensorRT that does. Where the GPU has no plans in the
    precision, another is built from the checkpoint.
    """
    device = probe_device() if builder == "tensorrt-rtx" or precision == "fp8" else None
    capability = device.compute_capability if device else None
    if builder == "tensorrt-rtx" and capability and not rtx_makes_plans_for(capability):
        builder = "tensorrt"
    if lacks(precision, capability):
        return f"nrd_trt.build('CHECKPOINT', {str(bundle)!r}, precision='fp16', builder={builder!r}, force=True)"
    plugin = ", decode='plugin'" if decode == "plugin" and builder == "tensorrt" else ""
    return f"nrd_trt.build({str(bundle)!r}, {str(bundle)!r}, builder={builder!r}{plugin}, force=True)"


@dataclass(frozen=True, kw_only=True)
class PlanHost:
    """The facts of a machine that a plan depends on.

    Attributes:
        os: ``"linux"``.
        machine: ``"x86_64"`` or ``"aarch64"``.
        builder: ``"tensorrt"`` or ``"tensorrt-rtx"``: the flavour that would run the plan.
        version: Version of that flavour.
        compute_capability: Compute capability of the GPU, such as ``"8.7"``; None where there is none to use.
        gpu: Name of the GPU, or None.
        multiprocessors: Their number in the GPU, or None.
        problem: Why there is no GPU to use, as the driver says.
    """

    os: str
    machine: str
    builder: str
    version: str
    compute_capability: str | None
    gpu: str | None = None
    multiprocessors: int | None = None
    problem: str | None = None


def host_mismatches(built: BuilderRecord, host: PlanHost) -> list[str]:
    """Return one line per fact in which a host differs from what a plan was built for; empty when it fits."""
    pairs = [
        ("operating system", built.os, host.os),
        ("machine", built.machine, host.machine),
        ("builder", built.name, host.builder),
    ]
    if not built.version_compatible:
        pairs.append(("TensorRT version", built.version or "none", host.version))
    if host.compute_capability is not None and not _runs_on(built, host.compute_capability):
        never = built.name == "tensorrt-rtx" and not rtx_makes_plans_for(host.compute_capability)
        here = f"{host.compute_capability}, for which TensorRT-RTX makes no plan" if never else host.compute_capability
        pairs.append(("compute capability", _targets_text(built), here))
    lines = [f"{name}: built for {wanted}, this is {got}" for name, wanted, got in pairs if wanted != got]
    if host.compute_capability is not None:
        return lines
    return [*lines, f"no GPU that could run it was found{f': {host.problem}' if host.problem else ''}"]


def model_note(built: BuilderRecord, host: PlanHost) -> str | None:
    """Say that a plan was built on another model of GPU of the same compute capability; None where it was not.

    TensorRT warns of it when it opens such a plan. Plans of TensorRT-RTX, and those that were built for several
    models, are made for that.
    """
    one_kind = is_on(built.builder_options, "same_compute_capability")
    if built.name != "tensorrt" or built.hardware_compatible or one_kind or built.gpu is None or host.gpu is None:
        return None
    counts = (built.multiprocessors, host.multiprocessors)
    if built.gpu == host.gpu and (None in counts or counts[0] == counts[1]):
        return None
    there, here = _gpu_text(built.gpu, counts[0]), _gpu_text(host.gpu, counts[1])
    return f"the plan was built on {there} and this is {here}: speed, and even masks, may differ; validate it here."


def check_host(built: BuilderRecord, host: PlanHost, *, plan: str, rebuild: str) -> None:
    """Raise `RunnerError` that names every fact in which a plan does not fit this machine, and how to rebuild it."""
    if lines := host_mismatches(built, host):
        raise RunnerError(f"{plan}: this machine cannot run the plan: {'; '.join(lines)}. Rebuild it with: {rebuild}")


def _runs_on(built: BuilderRecord, capability: str) -> bool:
    """Whether a plan that was built so runs on a GPU of a compute capability."""
    targets = built.compute_capabilities
    if not targets:
        return built.name == "tensorrt-rtx" and rtx_makes_plans_for(capability)
    if built.hardware_compatible:
        return version_numbers(capability) >= min(map(version_numbers, targets))
    return capability in targets


def _targets_text(built: BuilderRecord) -> str:
    if built.compute_capabilities:
        return " or ".join(built.compute_capabilities) + (" or later" if built.hardware_compatible else "")
    return f"{', '.join(RTX_DEFAULT_TARGETS)} or later" if built.name == "tensorrt-rtx" else "one that was not recorded"


def _gpu_text(name: str, multiprocessors: int | None) -> str:
    return name if multiprocessors is None else f"{name} with {multiprocessors} multiprocessors"
