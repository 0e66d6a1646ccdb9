"""Which form of the decode an engine gets: the plugin where it fits and is wanted, else the file's function."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import onnx

from nrd_trt.building.request import BuildRequest
from nrd_trt.engine.compat import ConfigOptions, load_tensorrt
from nrd_trt.engine.plugins import SUPPORTED, PluginLibrary, check_plugin, take_plugin
from nrd_trt.errors import ConfigError, PluginError
from nrd_trt.graph.decode_nodes import decode_nodes, unsupported
from nrd_trt.graph.metadata import read_facts
from nrd_trt.machine.gpu import Gpu


@dataclass(frozen=True, kw_only=True)
class DecodeForm:
    """What computes the decode of an engine, and why.

    Attributes:
        name: ``"plugin"``, ``"onnx"`` (the function of the file) or ``"none"`` (the network has no such decode).
        why: The reason, in words; may name places of this machine.
        library: The plugin's library, or None.
    """

    name: Literal["plugin", "onnx", "none"]
    why: str
    library: PluginLibrary | None = None


def look_for_plugin(request: BuildRequest, flavour: str, device: Gpu | None) -> PluginLibrary | str:
    """Find and check the library that a build may use, before anything else is done.

    Args:
        request: Its `decode`, `config` and the plugin of its `run`.
        flavour: The builder: ``"tensorrt"``, ``"tensorrt-rtx"`` or ``"onnxruntime"``.
        device: The GPU to build for, or None where there is none.

    Returns:
        The library, or why ``decode="auto"`` and ``"onnx"`` do without.

    Raises:
        ConfigError: Arguments exclude each other.
        PluginError: The plugin was asked for and cannot be had.
    """
    if request.decode == "onnx":
        if request.run.plugin is not None:
            raise ConfigError("plugin=: expected decode='auto' or 'plugin' with it, got 'onnx'; leave one of them out.")
        return "asked for"
    asked = "decode='plugin'" if request.decode == "plugin" else "plugin=" if request.run.plugin is not None else None
    if why := _no_plugin_with(flavour, request.config):
        if asked:
            raise PluginError(f"{asked}: {why}. Use decode='onnx', which draws the same masks.")
        return why
    try:
        tensorrt = load_tensorrt(flavour)
        capability, cuda = (device.compute_capability, device.cuda) if device else (None, None)
        check = partial(check_plugin, tensorrt=tensorrt, compute_capability=capability, cuda=cuda)
        return take_plugin(check, request.run.plugin, tensorrt=tensorrt.version)
    except PluginError as exc:
        if asked:
            raise PluginError(f"{asked}: {exc} Or use decode='onnx', which draws the same masks.") from exc
        return str(exc)


def choose_form(request: BuildRequest, found: PluginLibrary | str, model: onnx.ModelProto) -> DecodeForm:
    """Decide with the model at hand.

    Args:
        request: Its `decode` and the plugin of its `run`.
        found: What `look_for_plugin` returned.
        model: To build.

    Raises:
        PluginError: The plugin was asked for, and its kernels are not written for this model.
    """
    asked = request.decode == "plugin" or request.run.plugin is not None
    facts = read_facts(model)
    why: str | None = None
    if facts.decode is None:
        why = f"the head {facts.head} has no per-patch decode"
    elif not decode_nodes(model):
        why = "the file has no decode node"
    elif "confidence" in facts.outputs:
        why = "the kernels give no confidence"
    elif others := unsupported(model, SUPPORTED):
        why = f"the kernels are not written for {', '.join(others)}"
    if why and asked:
        raise PluginError(f"decode={request.decode!r}: {why}; use decode='onnx', which draws the same masks.")
    if facts.decode is None:
        return DecodeForm(name="none", why=why or "")
    if isinstance(found, str) or why:
        return DecodeForm(name="onnx", why=why or str(found))
    info = found.info
    return DecodeForm(
        name="plugin", why=f"{found.path}, version {info.version} for TensorRT {info.tensorrt}", library=found
    )


def _no_plugin_with(flavour: str, config: ConfigOptions) -> str | None:
    """Say why no library can be used with a builder, whichever it is."""
    if flavour == "onnxruntime":
        return "ONNX Runtime builds no plan and runs the function of the file"
    if flavour == "tensorrt-rtx":
        return "TensorRT-RTX loads no plugins"
    if config.version_compatible:
        return "a version-compatible plan may be run by another major version of TensorRT than the plugin is built for"
    return None
