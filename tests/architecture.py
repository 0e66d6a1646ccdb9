"""The rules of the rooms (DESIGN §3), read from the imports of every module under ``nrd_trt``.

Each rule is a function from a source tree to the list of its violations; test_architecture.py applies them.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nrd_trt"
CALIBRATION = "calibration"

_LEAVES = {"errors", "specs", "optional", "files"}
# Room (or leaf module, or the package itself) -> what it may import; "room.module" opens that one module only.
_MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "specs": {"errors"},
    "optional": {"errors", "specs"},
    "files": {"errors", "specs"},
    "data": _LEAVES,
    "decode": _LEAVES,
    "model": _LEAVES | {"data", "decode"},
    "graph": _LEAVES | {"decode"},
    "export": _LEAVES | {"decode", "graph", "model"},
    "engine": _LEAVES | {"graph"},
    "runtime": _LEAVES | {"data", "decode", "graph", "engine", "model"},
    "validate": _LEAVES | {"runtime.base"},
    "benchmark": _LEAVES | {"runtime.base"},
    "doctor": _LEAVES | {"engine.compat", "engine.plugins", "zoo"},
    "zoo": _LEAVES,
    CALIBRATION: _LEAVES | {"data", "graph", "runtime"},
    "video": _LEAVES | {"data", "graph.metadata", "runtime.base", "runtime.engine_thread", "runtime.mask_runner"},
    "serve": _LEAVES | {"data", "video", "benchmark", "runtime.base"},
    "train": _LEAVES | {"data", "decode", "model", "validate", "zoo"},
    PACKAGE: _LEAVES | {"model", "runtime"},
}
_MAY_IMPORT["pipeline"] = set(_MAY_IMPORT) - {PACKAGE, CALIBRATION}
_MAY_IMPORT["polygraphy"] = _MAY_IMPORT["pipeline"] | {"pipeline"}
_MAY_IMPORT["cli"] = _MAY_IMPORT["pipeline"] | {"pipeline", CALIBRATION}

_LAZY_ROOMS = {CALIBRATION}
_TORCH_PLACES = {"decode", "export", "model", "train", "runtime.torch_runner"}
_TENSORRT_PLACES = {"engine.compat", "runtime.cuda", "runtime.trt_runner"}
_POLYGRAPHY_PLACES = {"polygraphy"}
_TENSORRT_NAMES = {"tensorrt", "tensorrt_rtx", "pycuda", "cuda"}
_ONLY_ON_USE = _TENSORRT_NAMES | {"onnxruntime", "av", "cv2"}
_HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "typer", *_TENSORRT_NAMES}
_IMPORT_CALLS = {"require", "import_module", "find_spec", "__import__"}

_MAX_FILE_LINES = 400
_MAX_BODY_LINES = 60
_MAX_STARTUP_MODULES = 60

_Level = Literal["module", "function", "types"]


@dataclass(frozen=True, kw_only=True)
class _Import:
    target: str  # "nrd_trt.graph.metadata", "torch.nn"
    line: int
    level: _Level  # when it runs: on import of the module, on a call, never


@dataclass(frozen=True, kw_only=True)
class Module:
    name: str  # without the package: "graph.metadata"; the package itself is "nrd_trt"
    path: str
    tree: ast.Module
    lines: int
    imports: tuple[_Import, ...]

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


Tree = Mapping[str, Module]
Check = Callable[[Tree], list[str]]


def read_tree(root: Path) -> dict[str, Module]:
    """Parse every module of the package under `root`; `calibration/` lies beside it."""
    files = sorted(path for folder in (PACKAGE, CALIBRATION) for path in (root / folder).rglob("*.py"))
    paths = {
        _module_name(path.relative_to(root)): path
        for path in files
        if (root / PACKAGE / CALIBRATION) not in path.parents
    }
    modules = {}
    for name, path in paths.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        inside = f"{PACKAGE}.{name}" if path.name == "__init__.py" else f"{PACKAGE}.{name}".rpartition(".")[0]
        finder = _ImportFinder(set(paths), PACKAGE if name == PACKAGE else inside)
        finder.visit(tree)
        modules[name] = Module(
            name=name,
            path=path.relative_to(root).as_posix(),
            tree=tree,
            lines=len(text.splitlines()),
            imports=tuple(finder.found),
        )
    return modules


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    parts = (PACKAGE, *parts) if parts[0] == CALIBRATION else parts
    return ".".join(parts[1:-1] if parts[-1] == "__init__" else parts[1:]) or PACKAGE


class _ImportFinder(ast.NodeVisitor):
    """Collects imports by statement and by call, with the moment at which they run."""

    def __init__(self, known: set[str], package: str) -> None:
        self.found: list[_Import] = []
        self._known, self._package = known, package
        self._level: _Level = "module"

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name != PACKAGE:  # by itself harmless; what is used of it is seen by visit_Attribute
                self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self._package.rsplit(".", node.level - 1)[0] if node.level > 1 else self._package
            base = f"{above}.{base}" if base else above
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            if inner.removeprefix(f"{PACKAGE}.") in self._known:
                self._add(inner, node)
            elif inner != f"{PACKAGE}.__version__":
                self._add(base, node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if (
            isinstance(node.value, ast.Name)
            and node.value.id == PACKAGE
            and node.attr not in {"__version__", "__file__"}
        ):
            self._add(PACKAGE if node.attr not in self._known else f"{PACKAGE}.{node.attr}", node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in _IMPORT_CALLS and node.args and isinstance(node.args[0], ast.Constant):
            self._add(str(node.args[0].value), node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)
            return
        self._visit_at("types", node.body)
        self._visit_at(self._level, node.orelse)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_at(self._level, [*node.decorator_list, node.args])
        self._visit_at("function", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_at("function", [node.body])

    def _visit_at(self, level: _Level, nodes: list[ast.AST] | list[ast.stmt]) -> None:
        before, self._level = self._level, level
        for node in nodes:
            self.visit(node)
        self._level = before

    def _add(self, target: str, node: ast.stmt | ast.expr) -> None:
        self.found.append(_Import(target=target, line=node.lineno, level=self._level))


def _inner(imported: _Import) -> str | None:
    """The imported module of ours without the package's name, or None."""
    if imported.target == PACKAGE:
        return PACKAGE
    return imported.target.removeprefix(f"{PACKAGE}.") if imported.target.startswith(f"{PACKAGE}.") else None


def _within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def closed_doors(modules: Tree) -> list[str]:
    """Imports between rooms that the table does not allow; those for type hints count too."""
    problems = []
    for module in modules.values():
        if module.room not in _MAY_IMPORT:
            problems.append(
                f"{module.path}: the room {module.room!r} is not in the table; add it with what it may import"
            )
            continue
        for imported in module.imports:
            inner = _inner(imported)
            if inner is not None and _within(inner, _LAZY_ROOMS - {module.room}) and imported.level == "module":
                problems.append(f"{module.path}:{imported.line}: {inner} is imported with the module; import it on use")
            if inner is None or inner.split(".")[0] == module.room or _within(inner, _MAY_IMPORT[module.room]):
                continue
            allowed = ", ".join(sorted(_MAY_IMPORT[module.room])) or "nothing"
            problems.append(f"{module.path}:{imported.line}: {module.room} may not import {inner}; it may: {allowed}")
    return problems


def cycles(modules: Tree) -> list[str]:
    """Modules that import each other in a ring, at module level or in functions."""
    edges = {
        name: {
            inner for imported in module.imports if imported.level != "types" and (inner := _inner(imported)) in modules
        }
        for name, module in modules.items()
    }
    problems = []
    for start in sorted(modules):
        ring = _path(edges, start, lambda name, start=start: start in edges[name])
        if ring and start == min(ring):
            problems.append(f"cycle: {' -> '.join([*ring, start])}")
    return problems


def _path(edges: Mapping[str, set[str]], start: str, found: Callable[[str], bool]) -> list[str]:
    """The shortest way along `edges` from `start` to a name that is `found`, both included; empty if there is none."""
    ways = [[start]]
    seen = {start}
    for way in ways:  # grows while it is walked
        if found(way[-1]):
            return way
        for following in sorted(edges[way[-1]] - seen):
            seen.add(following)
            ways.append([*way, following])
    return []


def third_parties(modules: Tree) -> list[str]:
    """Third-party packages in the wrong place, or imported before they are used."""
    problems = []
    for module in modules.values():
        for imported in module.imports:
            package, where = imported.target.split(".")[0], f"{module.path}:{imported.line}"
            if package == "torch" and not _within(module.name, _TORCH_PLACES):
                problems.append(f"{where}: torch belongs to {', '.join(sorted(_TORCH_PLACES))}")
            if package in _TENSORRT_NAMES and not _within(module.name, _TENSORRT_PLACES):
                problems.append(f"{where}: {package} belongs to {', '.join(sorted(_TENSORRT_PLACES))}")
            if package == "polygraphy" and not _within(module.name, _POLYGRAPHY_PLACES):
                problems.append(f"{where}: polygraphy belongs to {', '.join(sorted(_POLYGRAPHY_PLACES))}")
            if package in _ONLY_ON_USE and imported.level == "module":
                problems.append(
                    f"{where}: {package} is imported with the module; import it in the function that uses it"
                )
    return problems


def hidden_torch(modules: Tree) -> list[str]:
    """Modules outside torch's places whose import loads torch by way of others: a Jetson has no PyTorch."""
    edges = {name: set(_loaded_with(module, modules)) for name, module in modules.items()}
    direct = {
        name
        for name, module in modules.items()
        if any(i.level == "module" and i.target.split(".")[0] == "torch" for i in module.imports)
    }
    problems = []
    for name, module in sorted(modules.items()):
        way = _path(edges, name, direct.__contains__)
        if way and not _within(name, _TORCH_PLACES):
            problems.append(f"{module.path}: importing it loads torch: {' -> '.join(way)}; import inside the function")
    return problems


def _loaded_with(module: Module, modules: Tree) -> Iterator[str]:
    """Our modules that run when `module` is imported, the folders' ``__init__`` included."""
    for imported in module.imports:
        inner = _inner(imported)
        if inner is not None and imported.level == "module":
            parts = inner.split(".")
            yield from (n for n in (".".join(parts[: end + 1]) for end in range(len(parts))) if n in modules)


def exports(modules: Tree) -> list[str]:
    """Differences between ``__all__`` of the package and the names that it defines or takes from its rooms."""
    listed: list[str] = []
    public = {"__version__"}
    for node in modules[PACKAGE].tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            public.add(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            public.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names = [
                ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            ]
            if names == ["__all__"] and node.value is not None:
                listed = ast.literal_eval(node.value)
            public.update(name for name in names if not name.startswith("_"))
    public = {name for name in public if not name.startswith("_") or name == "__version__"}
    problems = [] if listed == sorted(listed) else [f"__all__ is not sorted; expected {sorted(listed)}"]
    problems += [f"{name} is public and not in __all__" for name in sorted(public - set(listed))]
    return problems + [f"{name} is in __all__ and not defined" for name in sorted(set(listed) - public)]


def too_long(modules: Tree) -> list[str]:
    """Files and function bodies over the limits; a docstring is not body."""
    problems = []
    for module in modules.values():
        if module.lines >= _MAX_FILE_LINES:
            problems.append(f"{module.path}: {module.lines} lines; split it by stage below {_MAX_FILE_LINES}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > _MAX_BODY_LINES:
                    problems.append(
                        f"{module.path}:{node.lineno}: {node.name} has {lines} lines of body, over {_MAX_BODY_LINES}"
                    )
    return problems


def startup(root: Path) -> list[str]:
    """What ``import nrd_trt`` loads in a fresh interpreter that it should not."""
    code = "import sys; old = set(sys.modules); import nrd_trt, json; print(json.dumps(sorted(set(sys.modules) - old)))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(result.stdout)
    problems = [f"import nrd_trt loads {name}" for name in sorted(_HEAVY.intersection(loaded))]
    if len(loaded) > _MAX_STARTUP_MODULES:
        problems.append(f"import nrd_trt loads {len(loaded)} modules, over {_MAX_STARTUP_MODULES}: {', '.join(loaded)}")
    return problems
