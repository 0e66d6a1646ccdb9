"""What import-linter and ruff cannot see: what an import loads, and that names of rooms hide no public function."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nrd_trt
from tests.warm.programs import python

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "typer", "tensorrt", "tensorrt_rtx", "pycuda"}
MOST_MODULES = 60
TORCH_ROOMS = (
    "nrd_trt.decode",
    "nrd_trt.exporting",
    "nrd_trt.model",
    "nrd_trt.training",
    "nrd_trt.runtime.torch_runner",
)
FLAG = re.compile(r"(?:^|[\s'\"(`])(--[a-z][a-z-]*)")
OTHERS_FLAGS = {
    "engine/plugins.py": {"--build"},  # cmake
    "machine/gpu.py": {"--format", "--query-gpu"},  # nvidia-smi
    "machine/hardware_rows.py": {"--gpus", "--runtime", "--show", "--verbose"},  # docker, jetson_clocks, nvpmodel
    "machine/jetson.py": {"--interval"},  # tegrastats
    "machine/package_rows.py": {"--force-reinstall", "--system-site-packages", "--version"},  # pip, venv, gst-launch
    "proving/runtime_library.py": {"--build", "--parallel"},  # cmake
}
"""Flags of other programs, by file; a flag of ours stands in `cli` only."""
_MODULES = """
import pkgutil, nrd_trt
names = [module.name for module in pkgutil.walk_packages(nrd_trt.__path__, "nrd_trt.")]
names = [name for name in names if not name.startswith("nrd_trt.polygraphy")]
"""


def _loaded(code: str, interpreter: str = sys.executable) -> list[str]:
    """Return the modules that an interpreter holds after `code`; the default holds none before."""
    result = subprocess.run(
        [interpreter, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    loaded: list[str] = json.loads(result.stdout.splitlines()[-1])
    return loaded


def test_import_is_light() -> None:
    """Time is not asserted here: CONTRIBUTING.md has the command that measures it."""
    loaded = _loaded("import nrd_trt")
    assert not HEAVY.intersection(loaded)
    assert len(set(loaded) - set(_loaded(""))) <= MOST_MODULES


def test_only_the_rooms_of_pytorch_load_it() -> None:
    """A Jetson that rebuilds and runs bundles has no PyTorch; lazily imported rooms are seen by this only."""
    code = f"{_MODULES}\nimport importlib\nfor name in names:\n    if not name.startswith({TORCH_ROOMS!r}):\n"
    loaded = _loaded(f"{code}        importlib.import_module(name)")
    assert "nrd_trt.building.build" in loaded
    assert "torch" not in loaded


def test_a_checkpoint_is_read_without_the_compiler_of_pytorch() -> None:
    """It takes a second to import, and the shapes of a network need none of it."""
    code = "from nrd_trt.model import load_model\nload_model('nrd_trt/zoo/nrd_mobilenetv2_camvid.safetensors')"
    assert "torch._dynamo" not in _loaded(code, python())


CALLS = {
    "benchmark": ("absent.pth",),
    "build": ("absent.pth", "absent.nrd"),
    "calibrate": ("absent.pth", "synthetic"),
    "complexity": ("absent.pth",),
    "doctor": (),
    "evaluate": ("absent.pth", "absent"),
    "export": ("absent.pth", "absent.onnx"),
    "inspect": ("absent.onnx",),
    "load_model": ("absent.pth",),
    "open_bundle": ("absent.nrd",),
    "optimize": ("absent.pth", "absent_search"),
    "package": ("absent.nrd", "absent_models", "triton"),
    "prune": ("absent.pth", "absent", "absent"),
    "segment_dataset": ("absent", "absent_masks", "absent.nrd"),
    "segment_video": ("absent.mp4", "absent_masks.mp4", "absent.nrd"),
    "selftest": ("absent/report",),
    "serve": ("absent.mp4", "absent.nrd"),
    "sign": ("absent.nrd", "absent.pem"),
    "train": ("absent", "absent", "absent"),
    "tune": ("absent.pth", "absent.nrd", "absent"),
    "validate": ("absent.nrd",),
}


def test_every_public_function_is_called_by_attribute() -> None:
    """Importing a submodule sets an attribute of the package, which would replace a function of that name."""
    assert sorted(CALLS) == [name for name in nrd_trt.__all__ if inspect.isfunction(getattr(nrd_trt, name))]
    code = f"""{_MODULES}
import importlib
for name in names:
    importlib.import_module(name)
for name, arguments in {CALLS!r}.items():
    try:
        getattr(nrd_trt, name)(*arguments)
        assert name == "doctor", name
    except nrd_trt.NrdTrtError as error:
        assert "absent" in str(error), (name, error)
"""
    _loaded(code, python())


def test_all_is_sorted_and_complete_and_an_unknown_name_is_an_attribute_error() -> None:
    assert nrd_trt.__all__ == sorted(nrd_trt.__all__)
    assert set(nrd_trt.__all__) <= set(dir(nrd_trt))
    assert [name for name in nrd_trt.__all__ if not hasattr(nrd_trt, name)] == []
    assert not hasattr(nrd_trt, "no_such_function")


def _flags_of(path: Path) -> set[str]:
    """Return the flags in the texts of a module, docstrings aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {flag for node in texts if id(node) not in docs for flag in FLAG.findall(str(node.value))}


def test_the_library_names_parameters_and_no_flags() -> None:
    """Polygraphy's own options aside: `nrd_trt.polygraphy` is a command line, too."""
    package = ROOT / "nrd_trt"
    files = [path for path in (*package.rglob("*.py"), *(ROOT / "calibration").glob("*.py")) if path.is_file()]
    inside = [path for path in files if not {"cli", "polygraphy", "_plugins"} & set(path.relative_to(ROOT).parts)]
    assert len(inside) > 100
    names = {path: path.relative_to(package if path.is_relative_to(package) else ROOT).as_posix() for path in inside}
    ours = {name: _flags_of(path) - OTHERS_FLAGS.get(name, set()) for path, name in names.items()}
    assert {name: flags for name, flags in ours.items() if flags} == {}
