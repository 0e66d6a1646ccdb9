"""Finds the TensorRT names that a source file uses.

Objects are known by how they are made, and by the names that the house gives them: a `context` is an execution context.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ENGINE = Path(__file__).resolve().parents[3] / "nrd_trt" / "engine"
OWNERS = tuple(ENGINE / f"{name}.py" for name in ("builder", "compat", "loading", "messages"))
MODULE = ""

_OBJECTS = {
    "trt": MODULE,
    "builder": "Builder",
    "cache": "ITimingCache",
    "code": "ErrorCodeTRT",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "inspector": "EngineInspector",
    "kind": "DataType",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
    "severity": "ILogger.Severity",
    "tensor": "ITensor",
}
_GIVES = {
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
    "ICudaEngine.get_tensor_dtype": "DataType",
    "ILayer.get_output": "ITensor",
    "ILayer.type": "LayerType",
    "INetworkDefinition.get_layer": "ILayer",
    "ITensor.dtype": "DataType",
    "OnnxParser.get_error": "ParserError",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "get_plugin_registry": "IPluginRegistry",
}
_KINDS = {ast.Load: "read", ast.Store: "set"}

Used = tuple[str, str, int | None]
"""Name, kind and number of arguments, as in `nrd_trt.engine.surface`."""


def used_names(source: str) -> dict[Used, int]:
    """Return the TensorRT names of a source text, each with the first line that uses it."""
    finder = _Finder()
    finder.visit(ast.parse(source))
    return finder.found


class _Finder(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: dict[Used, int] = {}
        self._objects = dict(_OBJECTS)
        self._seen: set[int] = set()  # attributes that were counted with the call around them

    def visit_Module(self, node: ast.Module) -> None:
        for child in ast.walk(node):  # first, what is bound to names of its own choosing
            if isinstance(child, ast.Assign) and (owner := self._type(child.value)):
                self._objects.update((_plain(target), owner) for target in child.targets if _plain(target))
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            owner = self._path(base)
            for method in node.body if owner else ():
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    self._add(f"{owner}.{method.name}", "override", len(method.args.args) - 1, method)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        count = len(node.args) + len(node.keywords)
        looked_up = self._looked_up(node)
        path = self._path(node.func)
        if looked_up:
            self._add(looked_up, "read", None, node)
        elif path and path.split(".")[-1][0].isupper():  # a class: Builder(logger)
            self._add(f"{path}.__init__", "call", count, node)
        elif path:
            self._seen.add(id(node.func))
            unbound = path.endswith(".__init__")
            self._add(path, "call", count - unbound, node)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._path(node)
        is_class = path is not None and "." not in path and path[0].isupper()
        if path and not is_class and id(node) not in self._seen:
            self._add(path, _KINDS[type(node.ctx)], None, node)
        self.generic_visit(node)

    def _add(self, name: str, kind: str, arguments: int | None, node: ast.stmt | ast.expr) -> None:
        self.found.setdefault((name, kind, arguments), node.lineno)

    def _path(self, node: ast.expr) -> str | None:
        """``"Builder.create_network"`` for an attribute of a known object or of the module."""
        if not isinstance(node, ast.Attribute) or _plain(node) in self._objects:
            return None
        owner = self._type(node.value)
        return None if owner is None else f"{owner}.{node.attr}".lstrip(".")

    def _type(self, node: ast.expr) -> str | None:
        """The class of an expression, the module itself, or None where it is nothing of TensorRT."""
        if (name := _plain(node)) in self._objects:
            return self._objects[name]
        if isinstance(node, ast.Call):
            path = self._path(node.func)
            return path if path and path[0].isupper() and "." not in path else _GIVES.get(path or "")
        path = self._path(node)
        if path and all(part[0].isupper() for part in path.split(".")):
            return path
        return _GIVES.get(path or "")

    def _looked_up(self, node: ast.Call) -> str | None:
        """The name in ``getattr(x, "name")``, ``hasattr(x, "name")`` or ``self._member("Enum", "NAME")``."""
        function, literals = _plain(node.func), [a.value for a in node.args if isinstance(a, ast.Constant)]
        if function == "member" and len(literals) == 2:
            return ".".join(map(str, literals))
        if function in ("getattr", "hasattr") and literals and isinstance(node.args[1], ast.Constant):
            owner = self._type(node.args[0])
            return None if owner is None else f"{owner}.{literals[0]}".lstrip(".")
        return None


def _plain(node: ast.expr) -> str:
    """``x`` for the names ``x``, ``self.x``, ``self._x`` and ``tensorrt.x``; else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "tensorrt"):
        return node.attr.lstrip("_")
    return ""


def foreign_uses(package: Path) -> Iterator[str]:
    """Yield places outside the owners that reach for the module: ``trt`` or ``x.trt``."""
    for path in sorted(package.rglob("*.py")):
        if path not in OWNERS:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if "trt" in (getattr(node, "id", None), getattr(node, "attr", None)):
                    yield f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)}"
