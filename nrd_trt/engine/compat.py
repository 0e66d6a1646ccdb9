"""The adapter that owns TensorRT: every difference between 10.3 … 11.x and TensorRT-RTX is held here.

Features are detected by attribute. TensorRT is imported on use, here only; `nrd_trt.engine.messages`,
`nrd_trt.engine.loading` and `nrd_trt.engine.options` get the module from here, and nothing else in the package names a
TensorRT version or enum.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nrd_trt.engine.caches import CacheKey
from nrd_trt.engine.definition import Convolution, Definition
from nrd_trt.engine.loading import LoadedEngine, load_engine, tensor_spec
from nrd_trt.engine.messages import MessageLog, message_log
from nrd_trt.engine.options import check_options, is_on, known_options, set_options
from nrd_trt.errors import BuildError, ConfigError
from nrd_trt.optional import require
from nrd_trt.progress import OnMessage, silent
from nrd_trt.specs import Flavour, LayerRecord

FLAVOURS: Mapping[str, tuple[str, str]] = {"tensorrt": ("tensorrt", "trt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}
"""Module and extra by flavour; each builds engines and runs its own."""

RTX_DEFAULT_TARGETS = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that TensorRT-RTX builds for where none are named; its plans run on those after the last too."""

_PREFERS_PLUGIN_SINCE = (10, 7)
_PRECISIONS_SINCE = {"bf16": (8, 0), "fp8": (8, 9)}
"""Compute capability from which GPUs have plans in a precision; the others are for all."""


def installed_flavours() -> list[Flavour]:
    """Return the TensorRT flavours whose package is installed, enterprise first."""
    return [name for name in get_args(Flavour) if importlib.util.find_spec(FLAVOURS[name][0]) is not None]


def load_tensorrt(flavour: str) -> TensorRT:
    """Import a TensorRT flavour.

    Args:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.

    Raises:
        MissingDependencyError: It is not installed; the message names the package.
    """
    module, extra = FLAVOURS[flavour]
    return TensorRT(flavour, require(module, extra=extra, purpose=f"building and running {flavour} engines"))


@dataclass(frozen=True)
class TensorRT:
    """One imported TensorRT flavour; two of one module are equal.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        trt: The module.
    """

    flavour: str
    trt: Any

    @property
    def version(self) -> str:
        """Version string of the module."""
        return str(self.trt.__version__)

    @property
    def parser_prefers_plugin(self) -> bool:
        """Whether a registered plugin is preferred to a function of the file of the same name.

        Where it is not, `nrd_trt.graph.decode_nodes` takes the function out. TensorRT-RTX never gets a plugin.
        """
        return self.takes_plugins and version_numbers(self.version) >= _PREFERS_PLUGIN_SINCE

    @property
    def takes_plugins(self) -> bool:
        """Whether plugins of ours may be loaded; TensorRT-RTX's parser ends the process when it meets one."""
        return self.flavour != "tensorrt-rtx"

    def has_creator(self, name: str, version: str, namespace: str) -> bool:
        """Whether a plugin of this name can be made in this process."""
        registry = self.trt.get_plugin_registry()
        return registry is not None and registry.get_creator(name, version, namespace) is not None

    def load_plugin_library(self, path: Path) -> bool:
        """Open a library and register the creators that it exports; False where TensorRT refuses it.

        It refuses a library too when one of its creators is registered already.
        """
        registry = self.trt.get_plugin_registry()
        return registry is not None and registry.load_library(str(path)) is not None

    def log(self, on_message: OnMessage) -> MessageLog:
        """Make a log that hands ``(severity, text)`` to `on_message` and keeps warnings and errors."""
        return message_log(self.trt, on_message)

    def deserialize(
        self,
        plan: bytes,
        *,
        host_code: bool,
        rebuild: str,
        on_message: OnMessage = silent,
    ) -> LoadedEngine:
        """Load a plan and make it ready to run.

        Args:
            plan: The serialised engine; it is run as code, so it must come from a source that is trusted.
            host_code: Let the plan bring its own runtime, as version-compatible plans do.
            rebuild: The command that builds it again, for the message.
            on_message: Receives TensorRT's messages as ``(severity, text)``.

        Raises:
            RunnerError: There is no GPU or driver, or the plan was made for another one.
        """
        label = f"{self.flavour} {self.version}"
        return load_engine(self.trt, label, plan, self.log(on_message), host_code=host_code, rebuild=rebuild)

    def builder(self, log: MessageLog) -> Any:
        """Return a builder, or raise `BuildError` where this machine cannot make one."""
        try:
            return self.trt.Builder(log.logger)
        except TypeError as exc:  # the bindings' word for a null pointer
            raise BuildError(
                f"{self.flavour} {self.version} cannot create a builder on this machine{log.tail()}; enterprise "
                "TensorRT needs an NVIDIA GPU and driver. Use builder='tensorrt-rtx' or 'onnxruntime' here."
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
            found = (parser.get_error(index) for index in range(parser.num_errors))
            said = [(f"{error.node_operator()} {error.node_name()}".strip(), error.desc()) for error in found]
            errors = [": ".join(filter(None, words)) for words in said]  # the node, where there is one, and what it is
            raise BuildError(
                f"{self.flavour} {self.version} cannot parse the ONNX file: {'; '.join(errors) or log.tail()}. "
                "Try builder='onnxruntime', or report it with TensorRT's messages."
            )

    def record_errors(self, builder: Any, network: Any, log: MessageLog) -> None:
        """Send the errors of a parsed network and its builder to the recorder of `log`.

        Not before `parse`: the parser puts a recorder of its own around one that it finds on the network, and the
        network is freed with a dangling pointer once the parser is gone (a crash, seen with TensorRT-RTX 1.7).
        """
        builder.error_recorder = log.recorder
        network.error_recorder = log.recorder

    def config(self, builder: Any, options: ConfigOptions) -> Any:
        """Return a builder configuration."""
        trt = self.trt
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # without it TensorRT-RTX may allocate in a capture
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            config.set_flag(self._member("BuilderFlag", "VERSION_COMPATIBLE"))
            config.clear_flag(self._member("BuilderFlag", "EXCLUDE_LEAN_RUNTIME"))  # the plan brings its runtime
        if options.hardware_compatible:
            config.hardware_compatibility_level = self._member("HardwareCompatibilityLevel", "AMPERE_PLUS")
        if options.compute_capabilities:
            self._set_targets(config, options.compute_capabilities)
        set_options(self.trt, self.flavour, config, options.builder_options)
        return config

    def known_options(self) -> dict[str, str]:
        """Return the names for `ConfigOptions.builder_options` that there are, with what each takes in words."""
        return known_options(self.trt, self.flavour)

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raise `ConfigError` where a name or a value of `ConfigOptions.builder_options` does not exist here."""
        check_options(self.trt, self.flavour, options)

    def cache_key(self, gpu: str | None, driver: str | None) -> CacheKey:
        """Return what timings of this builder depend on."""
        return CacheKey(builder=f"{self.flavour} {self.version}", gpu=gpu, driver=driver)

    def set_timing_cache(self, config: Any, content: bytes) -> Callable[[], bytes]:
        """Give the builder an earlier timing cache; empty content starts a new one.

        Returns:
            A function that serialises the cache after the build. Hold it until then: the configuration does not own
            the cache.
        """
        if self.flavour == "tensorrt-rtx":
            # Since 1.2 it compiles on the device; its cache is a deprecated stub, and freeing it crashes 1.7.
            return bytes
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, False):
            raise BuildError(
                "the timing cache was made by another TensorRT or GPU; delete the file to start a new one."
            )
        return lambda: bytes(cache.serialize())

    def layers(self, network: Any) -> tuple[LayerRecord, ...]:
        """Describe every layer of a parsed network."""
        layers = (network.get_layer(index) for index in range(network.num_layers))
        return tuple(
            LayerRecord(
                name=layer.name,
                kind=layer.type.name.lower(),
                type=layer.get_output(0).dtype.name.lower() if layer.num_outputs else "none",
            )
            for layer in layers
        )

    def definition(self, network: Any) -> Definition:
        """Describe what of a parsed network is compared with its file."""
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        layers = (network.get_layer(index) for index in range(network.num_layers))
        return Definition(
            inputs={tensor.name: tensor_spec(self.trt, tensor.name, tensor.dtype, tensor.shape) for tensor in inputs},
            outputs={tensor.name: tensor_spec(self.trt, tensor.name, tensor.dtype, tensor.shape) for tensor in outputs},
            convolutions={
                layer.name: self._convolution(layer) for layer in layers if layer.type == self.trt.LayerType.CONVOLUTION
            },
        )

    def _convolution(self, convolution: Any) -> Convolution:
        convolution.__class__ = self.trt.IConvolutionLayer  # the network hands out the base class
        mode = convolution.padding_mode
        return Convolution(
            kernel_shape=tuple(convolution.kernel_size_nd),
            strides=tuple(convolution.stride_nd),
            dilations=tuple(convolution.dilation_nd),
            pads=(*convolution.pre_padding, *convolution.post_padding),
            auto_pad="NOTSET" if mode == self.trt.PaddingMode.EXPLICIT_ROUND_DOWN else mode.name,
            group=convolution.num_groups,
            maps=convolution.num_output_maps,
            weights=_values(convolution.kernel),
            bias=_values(convolution.bias),
        )

    def _member(self, enum: str, name: str) -> Any:
        member = getattr(getattr(self.trt, enum, None), name, None)
        if member is None:
            raise ConfigError(f"{self.flavour} {self.version} has no {enum}.{name}; leave that option out.")
        return member

    def _set_targets(self, config: Any, capabilities: Sequence[str]) -> None:
        """Set the GPUs to build for; only TensorRT-RTX builds for GPUs that are not there."""
        if not hasattr(config, "set_compute_capability"):
            raise ConfigError(
                f"compute_capabilities=: {self.flavour} builds for the GPU of this machine only; leave it out."
            )
        known = [name for name in self.trt.ComputeCapability.__members__ if name.startswith("SM")]
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            name = "SM" + capability.replace(".", "")
            if name not in known:
                listed = ", ".join(f"{member[2:-1]}.{member[-1]}" for member in known)
                raise ConfigError(f"compute_capabilities={capability}: {self.flavour} {self.version} knows {listed}.")
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
        tf32: Products of fp32 may be computed with factors of 10 bits, which TensorRT does unless told not to.
        builder_options: Values of `nrd_trt.engine.options` by name.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False
    builder_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ConfigError(f"workspace_mib={self.workspace_mib}: expected at least 1.")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level={self.optimization_level}: expected 0 to 5.")
        if self.hardware_compatible and is_on(self.builder_options, "same_compute_capability"):
            raise ConfigError(
                "hardware_compatible=True: expected one kind of compatibility, got 'same_compute_capability' among "
                "builder_options= too; leave one of them out."
            )


def rtx_makes_plans_for(capability: str) -> bool:
    """Whether TensorRT-RTX makes plans of these networks for a GPU: for its default targets and what comes later.

    7.5 can be named as a target; the compiler (1.7) says "FP32 GEMM is not supported" there, and the decode has one.
    """
    newest = version_numbers(RTX_DEFAULT_TARGETS[-1])
    return capability in RTX_DEFAULT_TARGETS or version_numbers(capability) >= newest


def lacks(precision: str, capability: str | None, what: str = "this GPU has") -> str | None:
    """Say why a GPU of a compute capability has no plans in a precision; None where it has, or is not known.

    Args:
        precision: What the file is typed in.
        capability: Such as ``"8.7"``.
        what: What the message says before the capability.
    """
    since = _PRECISIONS_SINCE.get(precision)
    if since is None or capability is None or version_numbers(capability) >= since:
        return None
    return f"{precision} needs compute capability {'.'.join(map(str, since))} or later, {what} {capability}"


def _values(weights: Any) -> np.ndarray | None:
    """Return a layer's constants; None where they come as a tensor, or in a type that NumPy does not have."""
    return weights if isinstance(weights, np.ndarray) and weights.size else None


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version starts with: ``"10.13.2.post1"`` is ``(10, 13, 2)``."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()
