"""From a typed ONNX file to a TensorRT plan, with progress, cancellation and proof of the types got.

TensorRT itself is behind `nrd_trt.engine.compat`.
"""

from __future__ import annotations

import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from tqdm import tqdm

from nrd_trt.engine.caches import read_timing_cache, write_timing_cache
from nrd_trt.engine.compat import ConfigOptions, TensorRT, load_tensorrt
from nrd_trt.engine.definition import check_definition
from nrd_trt.engine.messages import MessageLog, progress_monitor
from nrd_trt.engine.plugins import PluginLibrary, load_plugin
from nrd_trt.errors import BuildError
from nrd_trt.graph.decode_nodes import decode_nodes, only_functions, strip_functions
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.progress import OnMessage, bar, silent
from nrd_trt.specs import QUANTIZED, Flavour, LayerRecord

_TYPE_NAMES = {TensorProto.FLOAT: "float", TensorProto.FLOAT16: "half", TensorProto.BFLOAT16: "bf16"}
_ASKED = {
    "fp32": "float",
    "fp16": "half",
    "bf16": "bf16",
    "int8": "half",
    "fp8": "half",
}  # output type of a convolution


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A built plan.

    Attributes:
        plan: The serialised engine.
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        version: Version of the builder.
        layers: Every layer of the network definition.
        compute_capabilities: Targets asked for; empty means the builder's default.
    """

    plan: bytes
    flavour: Flavour
    version: str
    layers: tuple[LayerRecord, ...]
    compute_capabilities: tuple[str, ...] = ()

    @property
    def types_found(self) -> dict[str, int]:
        """Number of layers per output type."""
        return dict(sorted(Counter(record.type for record in self.layers).items()))


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        config: Builder settings.
        plugin: Checked library whose plugins decode the patches; None takes the functions of the file.
        timing_cache: File read before and written after the build, or None.
        progress: Show a progress bar on stderr for builds over two seconds.
        gpu: Name of the GPU, or None where it is not known. A timing cache of another GPU is not used.
        driver: Version of its driver, or None where it is not known. A timing cache of another one is not used.
        on_message: Receives TensorRT's messages as ``(severity, text)``.
    """

    flavour: Flavour
    config: ConfigOptions = field(default_factory=ConfigOptions)
    plugin: PluginLibrary | None = None
    timing_cache: Path | None = None
    gpu: str | None = None
    driver: str | None = None
    progress: bool = True
    on_message: OnMessage = silent


def build_engine(model: onnx.ModelProto, options: BuildOptions) -> BuiltEngine:
    """Build a strongly typed plan; the types are those of the file.

    Args:
        model: A file of this toolkit, in any precision.
        options: See `BuildOptions`.

    Raises:
        MissingDependencyError: The flavour is not installed.
        BuildError: The file cannot be parsed or built, the parsed network has not its inputs, outputs and convolutions,
            a layer did not get the type that the file asks for, or the decode not the form that was asked for.
        PluginError: The plugin library is refused.
        KeyboardInterrupt: Ctrl-C; the builder stops at its next step.
    """
    tensorrt, facts = load_tensorrt(options.flavour), read_facts(model)
    log = tensorrt.log(options.on_message)
    builder = tensorrt.builder(log)
    network = tensorrt.network(builder)
    tensorrt.parse(network, _handed_over(model, tensorrt, options.plugin).SerializeToString(), log)
    tensorrt.record_errors(builder, network, log)
    layers = tensorrt.layers(network)
    check_types(model, layers, facts.precision)
    check_definition(model, tensorrt.definition(network))
    plugin_layers = [record.name for record in layers if record.kind == "plugin_v3"]
    check_decode(model, plugin_layers, plugin=options.plugin is not None)
    config = tensorrt.config(builder, options.config)
    _add_profile(builder, config, facts)
    with _timing_cache(tensorrt, config, options):
        plan = _serialise(tensorrt, builder, network, config, options.progress, log)
    return BuiltEngine(
        plan=plan,
        flavour=options.flavour,
        version=tensorrt.version,
        layers=layers,
        compute_capabilities=options.config.compute_capabilities,
    )


def check_types(model: onnx.ModelProto, layers: Sequence[LayerRecord], precision: str) -> None:
    """Raise `BuildError` unless every convolution of the network has the type that the file gives it.

    Args:
        model: The file.
        layers: Layers of the network, named after the file's nodes.
        precision: Asked for; at least one convolution must have it.
    """
    weights = {entry.name: _TYPE_NAMES.get(entry.data_type, "other") for entry in model.graph.initializer}
    scales = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    wanted = {node.name: weights[scales.get(node.input[1], node.input[1])] for node in convolutions}
    found = {record.name: record.type for record in layers if record.kind == "convolution"}
    wrong = [
        f"{name} ({kind}, got {found.get(name, 'none')})" for name, kind in wanted.items() if found.get(name) != kind
    ]
    if wrong or _ASKED[precision] not in wanted.values():
        listed = ", ".join(wrong[:5]) or "no convolution has that type"
        raise BuildError(
            f"precision {precision} was asked for and is not what the engine would get: {listed}. "
            "Build from the checkpoint, or report this file."
        )
    if precision in QUANTIZED:
        _check_quantized(model, layers, precision)


def _check_quantized(model: onnx.ModelProto, layers: Sequence[LayerRecord], precision: str) -> None:
    """Raise `BuildError` unless the network quantises what the file quantises, and that is something."""
    for op, kind, element in (("QuantizeLinear", "quantize", precision), ("DequantizeLinear", "dequantize", "half")):
        asked = sum(node.op_type == op for node in model.graph.node)
        found = sum(record.kind == kind and record.type == element for record in layers)
        if found != asked or not asked:
            raise BuildError(
                f"precision {precision} was asked for and is not what the engine would get: expected {asked or 'some'} "
                f"{kind} layers of type {element}, got {found}. Build from the checkpoint, or report this file."
            )


def check_decode(model: onnx.ModelProto, plugin_layers: list[str], *, plugin: bool) -> None:
    """Raise `BuildError` unless every decode node of the file became a plugin, or none did.

    Args:
        model: The file.
        plugin_layers: Names of the network's plugin layers, which are those of the nodes.
        plugin: Whether plugins were asked for.
    """
    nodes = decode_nodes(model)
    patterns = {node.name: re.compile(rf"{re.escape(node.name)}(?!\w*[A-Za-z])") for node in nodes}
    taken = [name for name, pattern in patterns.items() if any(map(pattern.search, plugin_layers))]
    wanted = [node.name for node in nodes] if plugin else []
    if taken != wanted:
        form = "plugin" if plugin else "onnx"
        raise BuildError(
            f"decode={form!r} was asked for and is not what the engine would get: expected "
            f"{', '.join(wanted) or 'no decode node'} to be run by a plugin, got {', '.join(taken) or 'none'}. "
            f"Use decode={'onnx' if plugin else 'plugin'!r}, or report this with TensorRT's messages."
        )


def _handed_over(model: onnx.ModelProto, tensorrt: TensorRT, plugin: PluginLibrary | None) -> onnx.ModelProto:
    """Return the file in the form that the parser must see to take the plugins, or not to take any."""
    if plugin is None:
        return only_functions(model) if tensorrt.takes_plugins else model
    load_plugin(plugin, tensorrt)
    if tensorrt.parser_prefers_plugin:
        return model
    present = {function.name for function in model.functions}
    return strip_functions(model, {node.op_type for node in decode_nodes(model)} & present)


@contextmanager
def _timing_cache(tensorrt: TensorRT, config: Any, options: BuildOptions) -> Iterator[None]:
    """Use the timings of earlier builds in the block, and write them with its own when it ends without an error."""
    path = options.timing_cache
    if path is None:
        yield
        return
    key = tensorrt.cache_key(options.gpu, options.driver)
    content = read_timing_cache(path, key, options.on_message)
    try:
        serialise = tensorrt.set_timing_cache(config, content)
    except BuildError as exc:
        raise BuildError(f"{path}: {exc}") from exc
    yield
    write_timing_cache(path, key, serialise())


def _add_profile(builder: Any, config: Any, facts: GraphFacts) -> None:
    """Give a dynamic input its range; a static one needs no profile."""
    extents = (facts.shape.batch, facts.shape.height, facts.shape.width)
    if all(extent.is_static for extent in extents):
        return
    profile = builder.create_optimization_profile()
    low, opt, high = facts.image_range
    profile.set_shape("image", low, opt, high)
    config.add_optimization_profile(profile)


def _serialise(tensorrt: TensorRT, builder: Any, network: Any, config: Any, progress: bool, log: MessageLog) -> bytes:
    with _cancellable() as cancelled, closing(_Bars(progress, cancelled)) as bars:
        config.progress_monitor = progress_monitor(tensorrt.trt, bars.start, bars.step)
        plan = builder.build_serialized_network(network, config)
    if cancelled.is_set():
        raise KeyboardInterrupt
    if plan is None:
        raise BuildError(
            f"{tensorrt.flavour} {tensorrt.version} could not build the engine{log.tail()}. "
            "Try a smaller size=, a larger workspace_mib=, or read the builder's whole output."
        )
    return bytes(plan)


@contextmanager
def _cancellable() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event for the duration of the block: an exception must not cross the builder's C++ frames.

    SIGTERM is turned as well where it ends the program like Ctrl-C, as in every verb.
    """
    cancelled = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancelled
        return
    alike = signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    taken = [signal.SIGINT, signal.SIGTERM] if alike else [signal.SIGINT]
    previous = [signal.signal(each, lambda *_: cancelled.set()) for each in taken]
    try:
        yield cancelled
    finally:
        for each, handler in zip(taken, previous, strict=True):
            signal.signal(each, handler)


class _Bars:
    """One bar for the outermost phase; inner phases show as its description."""

    def __init__(self, show: bool, cancelled: threading.Event) -> None:
        self._show, self._cancelled = show, cancelled
        self._bar: tqdm[Any] | None = None
        self._outermost: str | None = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, phase: str, steps: int) -> None:
        if self._outermost is None:
            self._outermost = phase
            self._bar = bar(desc=phase, unit="step", show=self._show, total=steps)
        elif self._bar is not None:
            self._bar.set_description(phase, refresh=False)

    def step(self, phase: str) -> bool:
        if phase == self._outermost and self._bar is not None:
            self._bar.update()
        return not self._cancelled.is_set()
