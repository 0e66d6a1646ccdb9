"""Check that TensorRT's bindings have every name that the toolkit uses; needs pip, gcc and neither GPU nor TensorRT.

The names are found in the sources of the adapter. The bindings are on PyPI and want nine C functions of libraries that
are not; a stub that returns null gives them. Exit status: 0 every name is there or replaced, 1 a name is missing
(named), 2 bindings cannot be had or imported.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from nrd_trt.engine.compat import load_tensorrt
from nrd_trt.engine.options import OPTIONS
from nrd_trt.errors import NrdTrtError

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "nrd_trt" / "engine"
OWNERS = tuple(ENGINE / f"{name}.py" for name in ("builder", "compat", "loading", "messages", "options"))
VERSIONS = ("10.3.0", "10.7.0", "10.9.0.34", "10.16.1.11", "11.0.0.114", "11.4.0.106")
_LIBRARIES = rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+"
_SYMBOLS = rb"\0(\w+_INTERNAL|get\w*PluginRegistry|getNvOnnxParserVersion|initLibNvInferPlugins)(?=\0)"


class BindingsError(NrdTrtError):
    """Bindings cannot be imported."""


class NoBindingsError(BindingsError):
    """Bindings cannot be had here: no package index, no wheel for this machine, or no C compiler."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bindings", nargs="+", metavar="VERSION", default=[], help=f"e.g. {' '.join(VERSIONS)}")
    parser.add_argument("--rtx", action="store_true", help="check the installed tensorrt_rtx")
    options = parser.parse_args(arguments)
    if not options.bindings and not options.rtx:
        parser.error("give --bindings VERSION … or --rtx")
    try:
        checked = {one: check_surface(read_version(one), "tensorrt") for one in options.bindings}
        if options.rtx:
            tensorrt = load_tensorrt("tensorrt-rtx")
            found = read_surface(tensorrt.trt)
            checked[f"rtx {tensorrt.version}"] = check_surface(found, tensorrt.flavour)
    except NrdTrtError as exc:
        print(exc, file=sys.stderr)
        return 2
    for version, findings in checked.items():
        print(f"{version}: {sum(finding.state == 'present' for finding in findings)} of {len(findings)} uses are there")
        for finding in findings:
            if finding.state != "present":
                print(f"  {finding.name} is {finding.state}: {finding.detail}")
    return int(any(finding.state == "missing" for findings in checked.values() for finding in findings))


def read_version(version: str) -> dict[str, Any]:
    """Read the surface of a version's bindings in a process of their own."""
    module = "scripts.dev.check_tensorrt_surface"
    code = f"import json, tensorrt, {module} as script; print(json.dumps(script.read_surface(tensorrt)))"
    return dict(json.loads(run_with_bindings(version, ["-c", code])))


def run_with_bindings(version: str, arguments: Sequence[str]) -> str:
    """Run Python where ``import tensorrt`` finds the bindings of a version; return its output."""
    folder = fetch_bindings(version)
    paths = {"LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    result = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise BindingsError(f"bindings {version}: {' '.join(arguments)[:60]} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def fetch_bindings(version: str) -> Path:
    """Return the folder with ``tensorrt/`` and the stub libraries of a version; download them on first use."""
    cache = Path(os.environ.get("NRD_TRT_BINDINGS", ROOT / "build" / "tensorrt-bindings"))
    tag = sys.implementation.cache_tag
    target = cache / f"{version}-{tag}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            folder = Path(temporary) / target.name
            _download(version, folder)
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            wheel.unlink()
            (folder / "tensorrt_bindings").rename(folder / "tensorrt")
            _write_stubs(folder)
            if not target.is_dir():  # another process may have been faster
                folder.rename(target)
    return target


def _download(version: str, folder: Path) -> None:
    """Download a wheel of the bindings for this Python and machine; some versions are there for CUDA 13 only."""
    for package in ("tensorrt-cu12-bindings", "tensorrt-cu13-bindings"):
        wanted = ["--no-deps", "--only-binary=:all:", f"{package}=={version}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *wanted]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return
    raise NoBindingsError(
        f"bindings {version}: no wheel for this Python and machine; see `pip download {' '.join(wanted)}`: "
        f"{result.stderr.strip()[-400:]}"
    )


def _write_stubs(folder: Path) -> None:
    """Write libraries under the names that the bindings want; each has all symbols that they want and returns null."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise NoBindingsError("the stub libraries need a C compiler: install gcc or set CC.")
    binary = (folder / "tensorrt" / "tensorrt.so").read_bytes()
    libraries, symbols = (sorted(set(re.findall(pattern, binary))) for pattern in (_LIBRARIES, _SYMBOLS))
    if len(libraries) != 3:
        raise BindingsError(f"{folder}: the bindings want {libraries}; this script knows three libraries.")
    source = folder / "lib" / "stub.c"
    source.parent.mkdir()
    source.write_text("".join(f"void* {symbol.decode()}(void) {{ return 0; }}\n" for symbol in symbols))
    for library in libraries:
        output = str(source.parent / library.decode())
        subprocess.run([compiler, "-shared", "-fPIC", "-o", output, str(source)], check=True)


_OBJECTS = {
    "trt": "",
    "builder": "Builder",
    "cache": "ITimingCache",
    "code": "ErrorCodeTRT",
    "config": "IBuilderConfig",
    "convolution": "IConvolutionLayer",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "inspector": "EngineInspector",
    "kernels": "IRuntimeCache",
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
"""Classes by the names that our sources give their objects."""
_GIVEN = {
    **_OBJECTS,
    "create_runtime_cache": "IRuntimeCache",
    "create_runtime_config": "IRuntimeConfig",
    "dtype": "DataType",
    "input": "ITensor",
    "mode": "PaddingMode",
    "output": "ITensor",
    "type": "LayerType",
}
"""Classes of what methods and properties give, by their names or the last word of them, as in ``create_network``."""

Use = tuple[str, str, int | None]
"""Name; ``read``, ``set``, ``call`` or ``override``; and the number of arguments, ``self`` not counted."""


def used_names(source: str) -> set[Use]:
    """Return the uses of TensorRT in a source text."""
    tree = ast.parse(source)
    finder = _Finder(tree)
    return {use for node in ast.walk(tree) for use in finder.uses(node)}


class _Finder:
    """Tells which expressions of a source are TensorRT's."""

    def __init__(self, tree: ast.Module) -> None:
        self._objects = dict(_OBJECTS)
        for node in ast.walk(tree):  # what is bound to names of its own choosing
            if isinstance(node, ast.Assign) and (owner := self._type(node.value)):
                self._objects.update((_plain(target), owner) for target in node.targets if _plain(target))

    def uses(self, node: ast.AST) -> Iterator[Use]:
        """Yield what one node uses; a method that is called is also read."""
        if isinstance(node, ast.ClassDef):
            for owner in filter(None, map(self._path, node.bases)):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f"{owner}.{method.name}", "override", len(method.args.args) - 1
        elif isinstance(node, ast.Call):
            count, path = len(node.args) + len(node.keywords), self._path(node.func)
            if looked_up := self._looked_up(node):
                yield looked_up, "read", None
            elif path and path.split(".")[-1][0].isupper():  # a class: Builder(logger)
                yield f"{path}.__init__", "call", count
            elif path:
                yield path, "call", count - path.endswith(".__init__")
        elif isinstance(node, ast.Attribute) and node.attr != "__class__" and (path := self._path(node)):
            if "." in path or not path[0].isupper():  # to name a class is no use of it
                yield path, "set" if isinstance(node.ctx, ast.Store) else "read", None

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
        path = self._path(node.func if isinstance(node, ast.Call) else node)
        if path is None or all(part[0].isupper() for part in path.split(".")):
            return path
        name = path.split(".")[-1]
        return _GIVEN.get(name) or _GIVEN.get(name.split("_")[-1])

    def _looked_up(self, node: ast.Call) -> str | None:
        """The name in ``getattr(x, "name")``, ``hasattr(x, "name")`` or ``self._member("Enum", "NAME")``."""
        function, literals = _plain(node.func), [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
        if function == "member" and len(literals) == 2:
            return ".".join(literals)
        if function in ("getattr", "hasattr") and isinstance(node.args[1], ast.Constant):
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


@cache
def surface() -> tuple[Use, ...]:
    """Return every use of TensorRT in our sources; to look at a name counts where it is neither called nor set."""
    uses = {use for path in OWNERS for use in used_names(path.read_text(encoding="utf-8"))}
    uses |= {(name, "set" if _is_property(name) else "read", None) for name in OF_OPTIONS}
    more = {name for name, kind, _ in uses if kind != "read"}
    return tuple(sorted((use for use in uses if use[1] != "read" or use[0] not in more), key=str))


OF_OPTIONS = {name: option for option, needs in OPTIONS.items() for name in needs.names}
"""Names that a builder option needs, which is refused where a version lacks one, by the option."""


def _is_property(name: str) -> bool:
    """Whether an option's name is set by its text."""
    return name.startswith("IBuilderConfig.") and not name.partition(".")[2].startswith(("get_", "set_"))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One name in the bindings of one version."""

    name: str
    state: Literal["present", "replaced", "missing"]
    detail: str = ""


_COMPILES = "only TensorRT-RTX compiles kernels where it runs"
_ONE_GPU = "compute_capabilities is refused: it builds for its GPU"
REPLACEMENTS = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION": "its plans allocate nothing in a run that a capture would forbid",
    "ComputeCapability.__members__": _ONE_GPU,
    "DynamicShapesKernelSpecializationStrategy.EAGER": _COMPILES,
    "IBuilderConfig.num_compute_capabilities": _ONE_GPU,
    "IBuilderConfig.set_compute_capability": _ONE_GPU,
    "ICudaEngine.create_runtime_config": "contexts are made with the strategy",
    "IExecutionContext.is_stream_capturable": "a capture is tried",
    "IRuntimeCache": _COMPILES,
    "IRuntimeCache.deserialize": _COMPILES,
    "IRuntimeCache.serialize": _COMPILES,
    "IRuntimeConfig.create_runtime_cache": _COMPILES,
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": _COMPILES,
    "IRuntimeConfig.set_execution_context_allocation_strategy": "contexts are made with the strategy",
    "IRuntimeConfig.set_runtime_cache": _COMPILES,
}
"""Names that TensorRT, but not TensorRT-RTX, may lack, and what `nrd_trt.engine` does then."""


def read_surface(module: Any) -> dict[str, dict[str, Any]]:
    """Look for every name of `surface` in imported bindings.

    Returns:
        For each name that is there, as JSON values: ``settable``, and ``arguments``, the ``[least, most]`` of every
        signature in its docstring, or null where the docstring shows none.
    """
    found = {}
    for name, kind, _ in surface():
        owner_name, _, attribute = name.rpartition(".")
        owner: Any = module
        for part in owner_name.split(".") if owner_name else ():
            owner = getattr(owner, part, None)
        member = getattr(owner, attribute, None)
        if member is None and not (kind == "override" and owner is not None and _is_called(owner, attribute)):
            continue
        text = f"{getattr(member, '__doc__', None) or ''}\n{owner.__doc__ if kind == 'override' else ''}"
        settable = getattr(member, "fset", None) is not None
        found[name] = {"settable": settable, "arguments": _signatures(attribute, text) or None}
    return found


def check_surface(found: Mapping[str, Mapping[str, Any]], flavour: str) -> list[Finding]:
    """Judge what `read_surface` found in the bindings of a flavour."""
    return [_judge(use, found.get(use[0]), flavour) for use in surface()]


def _judge(use: Use, found: Mapping[str, Any] | None, flavour: str) -> Finding:
    name, kind, arguments = use
    if found is None:
        if flavour == "tensorrt" and name in REPLACEMENTS:
            return Finding(name=name, state="replaced", detail=REPLACEMENTS[name])
        if name in OF_OPTIONS:
            return Finding(name=name, state="replaced", detail=f"builder option {OF_OPTIONS[name]!r} is refused")
        return Finding(name=name, state="missing", detail="not in these bindings")
    if kind == "set" and not found["settable"]:
        return Finding(name=name, state="missing", detail="cannot be set")
    signatures = found["arguments"]
    if arguments is not None and signatures and not any(a <= arguments <= b for a, b in signatures):
        return Finding(name=name, state="missing", detail=f"takes {signatures} arguments, not {arguments}")
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
    while (outside := re.sub(r"[(\[{<][^()\[\]{}<>]*[)\]}>]", "", arguments)) != arguments:
        arguments = outside
    return arguments.split(",")


if __name__ == "__main__":
    sys.exit(main())
