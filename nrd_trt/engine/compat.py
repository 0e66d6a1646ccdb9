"""The adapter that owns TensorRT: every difference between 10.3 … 11.x and TensorRT-RTX is held here.

Features are detected by attribute; nothing else in the package names a TensorRT version or enum. TensorRT is imported
on use.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nrd_trt.errors import BuildError, ConfigError
from nrd_trt.optional import require

FLAVOURS = {"tensorrt": ("tensorrt", "trt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}


def installed_flavours() -> list[str]:
    """Return the TensorRT flavours whose package is installed, enterprise first."""
    return [name for name, (module, _) in FLAVOURS.items() if importlib.util.find_spec(module) is not None]


def load_tensorrt(flavour: str) -> TensorRT:
    """Import a TensorRT flavour.

    Args:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.

    Raises:
        MissingDependencyError: It is not installed; the message names the package.
    """
    module, extra = FLAVOURS[flavour]
    return TensorRT(flavour, require(module, extra=extra, purpose=f"building {flavour} engines"))


class TensorRT:
    """One imported TensorRT flavour.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        trt: The module.
    """

    def __init__(self, flavour: str, module: ModuleType) -> None:
        self.flavour = flavour
        self.trt: Any = module

    @property
    def version(self) -> str:
        """Version string of the module."""
        return str(self.trt.__version__)

    def log(self, on_message: Callable[[str, str], None]) -> MessageLog:
        """Make a logger that hands ``(severity, text)`` to `on_message` and keeps warnings and errors.

        TensorRT's own logger prints to stdout, which belongs to the command's result.
        """
        trt = self.trt
        messages: list[str] = []

        class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
                    messages.append(f"{severity.name}: {text}")
                on_message(severity.name, text)

        return MessageLog(logger=_Logger(), messages=messages)

    def builder(self, log: MessageLog) -> Any:
        """Return a builder, or raise `BuildError` where this machine cannot make one."""
        try:
            return self.trt.Builder(log.logger)
        except TypeError as exc:  # the bindings' word for a null pointer
            raise BuildError(
                f"{self.flavour} {self.version} cannot create a builder on this machine{log.tail()}; enterprise "
                "TensorRT needs an NVIDIA GPU and driver. Use --builder tensorrt-rtx or onnxruntime here."
            ) from exc

    def network(self, builder: Any) -> Any:
        """Return an empty strongly typed network; the flag's number differs between 10.x and 11.x."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        if flag is None:
            raise BuildError(
                f"{self.flavour} {self.version} has no strongly typed networks; TensorRT >= 10.3 is needed."
            )
        return builder.create_network(1 << int(flag))

    def parse(self, network: Any, model: bytes, log: MessageLog) -> None:
        """Parse an ONNX file into `network`, or raise `BuildError` with the parser's words."""
        parser = self.trt.OnnxParser(network, log.logger)
        if not parser.parse(model):
            errors = [_described(parser.get_error(index)) for index in range(parser.num_errors)]
            raise BuildError(
                f"{self.flavour} {self.version} cannot parse the ONNX file: {'; '.join(errors) or log.tail()}. "
                "Try --builder onnxruntime, or report it with the output of -v."
            )

    def config(self, builder: Any, options: ConfigOptions) -> Any:
        """Return a builder configuration."""
        trt = self.trt
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            config.set_flag(self._member("BuilderFlag", "VERSION_COMPATIBLE"))
        if options.hardware_compatible:
            config.hardware_compatibility_level = self._member("HardwareCompatibilityLevel", "AMPERE_PLUS")
        if options.compute_capabilities:
            self._set_targets(config, options.compute_capabilities)
        return config

    def set_timing_cache(self, config: Any, content: bytes) -> None:
        """Give the builder an earlier timing cache; empty content starts a new one."""
        if self.flavour == "tensorrt-rtx":  # since 1.2 its timing cache is a deprecated stub that accepts any bytes
            raise ConfigError(f"--timing-cache: {self.flavour} has no timing cache; leave the option out.")
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, False):
            raise BuildError(
                "the timing cache was made by another TensorRT or GPU; delete the file to start a new one."
            )

    def timing_cache(self, config: Any) -> bytes:
        """Return the timing cache after a build."""
        cache = config.get_timing_cache()
        return bytes(cache.serialize()) if cache is not None else b""

    def progress_monitor(self, monitor: PhaseMonitor) -> Any:
        """Wrap a `PhaseMonitor` as this flavour's progress monitor."""
        trt = self.trt

        class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                monitor.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return monitor.step(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                monitor.finish(phase_name)

        return _Monitor()

    def layer_types(self, network: Any) -> list[dict[str, str]]:
        """Return name, kind and output type of every layer of a parsed network."""
        return [
            {
                "name": layer.name,
                "kind": layer.type.name.lower(),
                "type": layer.get_output(0).dtype.name.lower() if layer.num_outputs else "none",
            }
            for layer in (network.get_layer(index) for index in range(network.num_layers))
        ]

    def _member(self, enum: str, name: str) -> Any:
        member = getattr(getattr(self.trt, enum, None), name, None)
        if member is None:
            raise ConfigError(f"{self.flavour} {self.version} has no {enum}.{name}; leave that option out.")
        return member

    def _set_targets(self, config: Any, capabilities: Sequence[str]) -> None:
        """Set the GPUs to build for; only TensorRT-RTX builds for GPUs that are not there."""
        if not hasattr(config, "set_compute_capability"):
            raise ConfigError(
                f"--compute-capability: {self.flavour} builds for the GPU of this machine only; leave the option out."
            )
        known = [name for name in self.trt.ComputeCapability.__members__ if name.startswith("SM")]
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            name = "SM" + capability.replace(".", "")
            if name not in known:
                listed = ", ".join(f"{member[2:-1]}.{member[-1]}" for member in known)
                raise ConfigError(f"--compute-capability {capability}: {self.flavour} {self.version} knows {listed}.")
            config.set_compute_capability(self.trt.ComputeCapability.__members__[name], index)


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Builder settings; None leaves a setting to TensorRT.

    Attributes:
        workspace_mib: Scratch memory that a layer may use, in MiB.
        optimization_level: 0 (fast build) to 5 (slow build).
        version_compatible: The plan loads in later versions of the same major and the next one.
        hardware_compatible: The plan loads on any Ampere or later GPU, at some cost in speed.
        compute_capabilities: Targets such as ``"8.9"`` (TensorRT-RTX only); empty for its default.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ConfigError(f"--workspace-mib: expected at least 1, got {self.workspace_mib}.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"--optimization-level: expected 0 to 5, got {self.optimization_level}.")


@dataclass(frozen=True, kw_only=True)
class MessageLog:
    """A logger object for TensorRT, and the warnings and errors that it has seen."""

    logger: Any
    messages: list[str]

    def tail(self) -> str:
        """Return the last messages as a parenthesis, or nothing."""
        return f" ({'; '.join(self.messages[-3:])})" if self.messages else ""


class PhaseMonitor:
    """Progress of nested build phases; override what is needed."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins."""

    def step(self, phase: str, step: int) -> bool:
        """A step is done; False cancels the build."""
        return True

    def finish(self, phase: str) -> None:
        """A phase ends."""


def _described(error: Any) -> str:
    """Return the parser's words with the node that they are about, where the version tells it."""
    node = " ".join(str(getattr(error, part)()) for part in ("node_operator", "node_name") if hasattr(error, part))
    return f"{node}: {error.desc()}" if node.strip() else str(error.desc())


def stderr_message(severity: str, text: str) -> None:
    """Print one TensorRT message to stderr."""
    print(f"[TensorRT {severity.lower()}] {text}", file=sys.stderr)
