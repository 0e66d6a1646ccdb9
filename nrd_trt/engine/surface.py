"""Every TensorRT name that this package uses, and what it does where a version lacks one.

A contract with two sides: tests/engine/test_surface.py finds the names in our sources and fails for one that is not
here, ``scripts/check_tensorrt_surface.py`` finds them in the bindings of a version. Nothing here imports TensorRT.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nrd_trt.engine.compat import version_numbers

# `name` is read, `name=` is set, `name(2)` is called with two arguments, `@name(2)` is our override, called with two.
_NAMES: dict[str, tuple[str, ...]] = {
    "": ("__version__", "get_plugin_registry(0)"),
    "Builder": (
        "__init__(1)",
        "build_serialized_network(2)",
        "create_builder_config(0)",
        "create_network(1)",
        "create_optimization_profile(0)",
        "error_recorder=",
    ),
    "BuilderFlag": ("EXCLUDE_LEAN_RUNTIME", "VERSION_COMPATIBLE"),
    "ComputeCapability": ("__members__",),
    "DataType": ("BF16", "BOOL", "FLOAT", "HALF", "INT32", "INT64", "INT8", "UINT8", "name"),
    "EngineInspector": ("get_engine_information(1)",),
    "ErrorCodeTRT": ("name",),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    "IBuilderConfig": (
        "add_optimization_profile(1)",
        "builder_optimization_level=",
        "clear_flag(1)",
        "create_timing_cache(1)",
        "hardware_compatibility_level=",
        "num_compute_capabilities=",
        "profiling_verbosity=",
        "progress_monitor=",
        "set_compute_capability(2)",
        "set_flag(1)",
        "set_memory_pool_limit(2)",
        "set_timing_cache(2)",
    ),
    "ICudaEngine": (
        "create_engine_inspector(0)",
        "create_execution_context(0)",
        "device_memory_size_v2",
        "error_recorder=",
        "get_tensor_dtype(1)",
        "get_tensor_mode(1)",
        "get_tensor_name(1)",
        "get_tensor_profile_shape(2)",
        "get_tensor_shape(1)",
        "num_io_tensors",
    ),
    "IErrorRecorder": (
        "@clear(0)",
        "@get_error_code(1)",
        "@get_error_desc(1)",
        "@get_num_errors(0)",
        "@has_overflowed(0)",
        "@num_errors(0)",
        "@report_error(2)",
        "__init__(0)",
    ),
    "IExecutionContext": (
        "error_recorder=",
        "execute_async_v3(1)",
        "get_tensor_shape(1)",
        "infer_shapes(0)",
        "set_input_shape(2)",
        "set_output_allocator(2)",
        "set_tensor_address(2)",
    ),
    "ILayer": ("get_output(1)", "name", "num_outputs", "type"),
    "ILogger": ("@log(2)", "ERROR", "INTERNAL_ERROR", "WARNING", "__init__(0)"),
    "ILogger.Severity": ("name",),
    "INetworkDefinition": ("error_recorder=", "get_layer(1)", "num_layers"),
    "IOptimizationProfile": ("set_shape(4)",),
    "IOutputAllocator": ("@notify_shape(2)", "@reallocate_output(4)", "@reallocate_output_async(5)", "__init__(0)"),
    "IPluginRegistry": ("get_creator(3)", "load_library(1)"),
    "IProgressMonitor": ("@phase_finish(1)", "@phase_start(3)", "@step_complete(2)", "__init__(0)"),
    "ITensor": ("dtype",),
    "ITimingCache": ("serialize(0)",),
    "LayerInformationFormat": ("JSON",),
    "LayerType": ("PLUGIN_V3", "name"),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("__init__(2)", "get_error(1)", "num_errors", "parse(1)"),
    "ParserError": ("desc(0)", "node_name(0)", "node_operator(0)"),
    "ProfilingVerbosity": ("DETAILED",),
    "Runtime": ("__init__(1)", "deserialize_cuda_engine(1)", "engine_host_code_allowed=", "error_recorder="),
    "TensorIOMode": ("INPUT",),
}


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a name is used.

    Attributes:
        kind: Read, set, called, or overridden in a subclass of ours.
        arguments: Number of arguments, ``self`` not counted; None unless called or overridden.
    """

    kind: Literal["read", "set", "call", "override"]
    arguments: int | None = None


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What `nrd_trt.engine.compat` does where a name is absent.

    Attributes:
        flavour: Whose bindings may lack it.
        before: The version that brought it; None where it never came.
        instead: What happens then.
    """

    flavour: str
    before: tuple[int, ...] | None
    instead: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One name in the bindings of one version."""

    name: str
    state: Literal["present", "replaced", "missing"]
    detail: str = ""


def _surface() -> Iterator[tuple[str, Use]]:
    for owner, texts in _NAMES.items():
        for text in texts:
            override, name, arguments, setting = re.fullmatch(r"(@?)(\w+)(?:\((\d)\))?(=?)", text).groups()  # type: ignore[union-attr]
            kind: Any = "override" if override else "call" if arguments else "set" if setting else "read"
            yield f"{owner}.{name}".lstrip("."), Use(kind=kind, arguments=int(arguments) if arguments else None)


SURFACE: dict[str, Use] = dict(_surface())

_ONE_GPU = Replacement(
    flavour="tensorrt", before=None, instead="--compute-capability is refused: it builds for its GPU"
)
REPLACEMENTS: dict[str, Replacement] = {
    "ComputeCapability.__members__": _ONE_GPU,
    "IBuilderConfig.num_compute_capabilities": _ONE_GPU,
    "IBuilderConfig.set_compute_capability": _ONE_GPU,
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": Replacement(
        flavour="tensorrt", before=(10, 9), instead="same_compute_capability is refused: AMPERE_PLUS is the only level"
    ),
}


def read_surface(module: Any) -> dict[str, dict[str, Any]]:
    """Look for every name of `SURFACE` in imported bindings.

    Returns:
        For each name that is there, as JSON values: ``settable``, and ``arguments``, the ``[least, most]`` of every
        signature in its docstring, or null where the docstring shows none.
    """
    found = {}
    for name, use in SURFACE.items():
        owner_name, _, attribute = name.rpartition(".")
        owner: Any = module
        for part in owner_name.split(".") if owner_name else ():
            owner = getattr(owner, part, None)
        member = getattr(owner, attribute, None)
        if member is None and not (use.kind == "override" and owner is not None and _is_called(owner, attribute)):
            continue
        text = f"{getattr(member, '__doc__', None) or ''}\n{owner.__doc__ if use.kind == 'override' else ''}"
        settable = getattr(member, "fset", None) is not None
        found[name] = {"settable": settable, "arguments": _signatures(attribute, text) or None}
    return found


def check_surface(found: Mapping[str, Mapping[str, Any]], flavour: str, version: str) -> list[Finding]:
    """Judge what `read_surface` found in one version."""
    return [_judge(name, use, found.get(name), flavour, version_numbers(version)) for name, use in SURFACE.items()]


def _judge(name: str, use: Use, found: Mapping[str, Any] | None, flavour: str, version: tuple[int, ...]) -> Finding:
    if found is None:
        known = REPLACEMENTS.get(name)
        if known and known.flavour == flavour and (known.before is None or version < known.before):
            return Finding(name=name, state="replaced", detail=known.instead)
        return Finding(name=name, state="missing", detail="not in these bindings")
    if use.kind == "set" and not found["settable"]:
        return Finding(name=name, state="missing", detail="cannot be set")
    signatures = found["arguments"]
    if use.arguments is not None and signatures and not any(a <= use.arguments <= b for a, b in signatures):
        return Finding(name=name, state="missing", detail=f"takes {signatures} arguments, not {use.arguments}")
    return Finding(name=name, state="present")


def _is_called(owner: type, name: str) -> bool:
    """Whether the C++ side calls an override that is no attribute: the docstring or the library holds its name."""
    library = getattr(sys.modules[owner.__module__], "__file__", None)
    return name in (owner.__doc__ or "") or (library is not None and name.encode() in Path(library).read_bytes())


def _signatures(name: str, text: str) -> list[list[int]]:
    """Return least and most arguments of every ``name(self…)`` in a docstring, ``self`` not counted."""
    ranges = []
    for match in re.finditer(rf"^\s*(?:\d+\. |def )?{re.escape(name)}\((self\b.*)\)(?: ->.*|:)$", text, re.MULTILINE):
        arguments = _split(match[1])[1:]
        required = sum("=" not in argument for argument in arguments)
        if [required, len(arguments)] not in ranges:
            ranges.append([required, len(arguments)])
    return ranges


def _split(arguments: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
