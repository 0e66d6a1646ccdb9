"""Enterprise TensorRT as far as a build goes, for machines without it: its module, parser, registry, builder, runtime.

It follows what was read in the sources and release notes of NVIDIA's parser: before 10.7 a function of the file hides
a plugin of the same name; from 10.7 on a registered plugin is preferred where the node names one; from 10.10 on the
node's domain is tried as the namespace. A plan of it is a header, the plugins that it needs, and its inputs
and outputs.
"""

from __future__ import annotations

import ctypes
import enum
import json
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from nrd_trt.engine.compat import version_numbers
from tests.engine.surface import fakes

LayerType = enum.Enum("LayerType", "CONVOLUTION ELEMENTWISE PLUGIN PLUGIN_V2 PLUGIN_V3")
PaddingMode = enum.Enum("PaddingMode", "EXPLICIT_ROUND_DOWN SAME_UPPER")
_KINDS = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16"}
_TENSORS = {TensorProto.FLOAT: "FLOAT", TensorProto.UINT8: "UINT8", TensorProto.INT32: "INT32"}
_HEADER = b"ftrt" + bytes(20)

Creator = tuple[str, str, str]


class Registry:
    """Plugin creators; `takes` False refuses every library, `drops` leaves creators out."""

    def __init__(self) -> None:
        self.creators: set[Creator] = set()
        self.loaded: list[str] = []
        self.takes, self.drops = True, set[str]()

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object | None:
        creator = (type, version, plugin_namespace)
        return creator if creator in self.creators else None

    def load_library(self, plugin_path: str) -> object | None:
        opened = ctypes.CDLL(plugin_path)
        opened.nrd_plugin_info.restype = ctypes.c_char_p
        ops = json.loads(opened.nrd_plugin_info())["ops"]
        creators = {(op, "1", "nrd") for op in ops if op not in self.drops}
        if not self.takes or creators & self.creators:
            return None
        self.loaded.append(plugin_path)
        self.creators |= creators
        return object()


class ILayer:
    """A layer with one output, as the network hands it out."""

    num_outputs = 1

    def __init__(self, name: str, kind: Any, dtype: str, node: Any = None, constants: Any = None) -> None:
        self.name, self.type, self._node, self._constants = name, kind, node, constants
        self._output = SimpleNamespace(dtype=fakes.Kind[dtype])

    def get_output(self, index: int) -> Any:
        return self._output


class IConvolutionLayer(ILayer):
    """A convolution; what it is shows once it has this class."""

    padding_mode = PaddingMode.EXPLICIT_ROUND_DOWN
    kernel_size_nd = property(lambda self: self._node["kernel_shape"])
    stride_nd = property(lambda self: self._node["strides"])
    dilation_nd = property(lambda self: self._node["dilations"])
    pre_padding = property(lambda self: self._node["pads"][:2])
    post_padding = property(lambda self: self._node["pads"][2:])
    num_groups = property(lambda self: self._node["group"])
    num_output_maps = property(lambda self: self._constants[0].shape[0])
    kernel = property(lambda self: self._constants[0].reshape(-1))
    bias = property(lambda self: self._constants[1].reshape(-1))


class Network:
    """What the parser put in."""

    def __init__(self) -> None:
        self.layers: list[ILayer] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.error_recorder: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Any:
        return self.layers[index]

    def add(self, *layer: Any) -> None:
        self.layers.append(ILayer(*layer))


class Parser:
    """The parser of one version."""

    def __init__(self, module: Any, network: Network) -> None:
        self._registry, self._version, self._network = module.registry, version_numbers(module.__version__), network
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        text = self._errors[index]
        return SimpleNamespace(desc=lambda: text, node_name=lambda: "", node_operator=lambda: "")

    def parse(self, data: bytes) -> bool:
        model = onnx.load_from_string(data)
        functions = {(entry.domain, entry.name): entry for entry in model.functions}
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._network.inputs += map(_tensor, model.graph.input)
        self._network.outputs += map(_tensor, model.graph.output)
        for node in model.graph.node:
            function = functions.get((node.domain, node.op_type))
            if (function is None and node.domain) or (function is not None and self._version >= (10, 7)):
                if self._plugin(node, named=function is not None):
                    self._network.add(node.name, LayerType.PLUGIN_V3, "HALF")
                    continue
                if function is None:
                    self._errors.append(f"Plugin not found: {node.op_type}")
                    return False
            if function is not None:
                for inner in function.node:
                    self._network.add(f"{node.name}/{inner.op_type}", LayerType.ELEMENTWISE, "FLOAT")
            elif node.op_type == "Conv":
                kernel, bias = (weights[name] for name in node.input[1:])
                given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
                constants = [numpy_helper.to_array(kernel), numpy_helper.to_array(bias)]
                self._network.add(node.name, LayerType.CONVOLUTION, _KINDS[kernel.data_type], given, constants)
            else:
                self._network.add(node.name, LayerType.ELEMENTWISE, "FLOAT")
        return True

    def _plugin(self, node: onnx.NodeProto, *, named: bool) -> object | None:
        """Look a node's plugin up; `named`: only if the node names one or, from 10.10 on, its domain does."""
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        version = values.get("plugin_version", b"1").decode()
        namespaces = [values["plugin_namespace"].decode()] if "plugin_namespace" in values else []
        namespaces += [] if named and not namespaces and self._version < (10, 10) else [""]
        namespaces += [node.domain] if self._version >= (10, 10) else []
        found = (self._registry.get_creator(node.op_type, version, namespace) for namespace in namespaces)
        return next((creator for creator in found if creator), None)


def _tensor(value: onnx.ValueInfoProto) -> Any:
    kind = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
    return SimpleNamespace(name=value.name, dtype=fakes.Kind[_TENSORS[kind.elem_type]], shape=shape)


class Config:
    """A builder's configuration; the only timings that it can read are ``b"ours"``, which it writes."""

    def __init__(self) -> None:
        self.timings: bytes | None = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...

    def set_flag(self, flag: Any) -> None: ...

    def clear_flag(self, flag: Any) -> None: ...

    def create_timing_cache(self, content: bytes) -> Any:
        readable = content in (b"", b"ours")
        return SimpleNamespace(content=content, serialize=lambda: b"ours") if readable else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.timings = cache.content
        return not ignore_mismatch


class Builder:
    """A builder; the module keeps its configurations."""

    def __init__(self, module: Any) -> None:
        self.module, self.error_recorder = module, None

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Network()

    def create_builder_config(self) -> Config:
        self.module.configs.append(Config())
        return self.module.configs[-1]  # type: ignore[no-any-return]

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda name, low, opt, high: None)

    def build_serialized_network(self, network: Network, config: Any) -> bytes:
        plugins = [layer.name.split("/")[-1] for layer in network.layers if layer.type == LayerType.PLUGIN_V3]
        numbers = (*version_numbers(self.module.__version__), 0, 0)[:4]
        tensors = {
            tensor.name: (mode.name, tensor.dtype.name, tensor.shape)
            for mode, own in ((fakes.Mode.INPUT, network.inputs), (fakes.Mode.OUTPUT, network.outputs))
            for tensor in own
        }
        return _HEADER + bytes(numbers) + json.dumps([plugins, tensors]).encode()


class Runtime:
    """Loads plans of `Builder` where the creators of their plugins are registered."""

    def __init__(self, module: Any) -> None:
        self.module, self.error_recorder, self.engine_host_code_allowed = module, None, False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        plugins, tensors = json.loads(plan[len(_HEADER) + 4 :])
        for plugin in plugins:
            if self.module.registry.get_creator(plugin, "1", "nrd") is None:
                text = f"Cannot find plugin: {plugin}, version: 1, namespace:nrd."
                self.error_recorder.report_error(SimpleNamespace(name="INVALID_ARGUMENT"), text)
                return None
        engine = fakes.Engine()
        engine.tensors = {
            name: (fakes.Mode[mode], fakes.Kind[kind], tuple(shape)) for name, (mode, kind, shape) in tensors.items()
        }
        engine.num_io_tensors = len(engine.tensors)
        return engine


def enterprise(version: str = "10.3.0") -> Any:
    """Return a module that can take the place of ``tensorrt``."""
    module: Any = ModuleType("tensorrt")
    vars(module).update(vars(fakes.fake_module(None, [], version)))
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.registry, module.configs = Registry(), []
    module.get_plugin_registry = lambda: module.registry
    module.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
    module.LayerType, module.PaddingMode, module.IConvolutionLayer = LayerType, PaddingMode, IConvolutionLayer
    module.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"STRONGLY_TYPED": 1 if version < "11" else 0})
    module.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "DETAILED")
    module.BuilderFlag = enum.Enum("BuilderFlag", "TF32")
    module.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    module.Builder = lambda logger: Builder(module)
    module.OnnxParser = lambda network, logger: Parser(module, network)
    module.Runtime = lambda logger: Runtime(module)
    return module
