"""What the wheel holds, and that the names which the code promises to pip exist."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import nrd_trt
from nrd_trt.decode.extension import source_files
from nrd_trt.engine.compat import FLAVOURS

ROOT = Path(__file__).resolve().parents[1]
# Everything that a checkout has beside the package and a wheel must not; golden pixels lie under tests/.
_BESIDE = ("tests", "scripts", "docs", "plugins", "calibration")
_PIXELS = {".png", ".jpg", ".jpeg", ".npz", ".npy", ".mp4"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that an sdist gives. A copy is built: a build leaves files, and takes up those of earlier ones."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "build")
    for name in ("nrd_trt", *(name for name in _BESIDE if (ROOT / name).is_dir())):
        shutil.copytree(ROOT / name, source / name, ignore=skip, symlinks=True)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    (source / "golden").mkdir()
    beside = ("tests/__init__.py", "scripts/__init__.py", "golden/__init__.py", "nrd_trt/data/camvid.png")
    (source / "calibration/notes.txt").touch()
    for planted in ("nrd_trt/zoo/planted.safetensors", "nrd_trt/zoo/planted.md", *beside):
        (source / planted).touch()
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs; read-only."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (member,) = (member for member in wheel.namelist() if member.endswith(f".dist-info/{name}"))
    return wheel.read(member).decode()


def _header(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(_metadata(wheel, "METADATA"))


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """And no pixels: CamVid's licence does not let us hand its frames on, and golden data is for the tests."""
    modules = _modules()
    zoo = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nrd_trt/zoo").glob("*") if path.is_file()}
    planted = {"nrd_trt/zoo/planted.safetensors", "nrd_trt/zoo/planted.md"}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nrd_trt/serving/page").iterdir()}
    template = {"nrd_trt/validation/report.html.j2"}
    assert held == modules | zoo | page | template | planted | {"nrd_trt/py.typed"} | _kernel_files()
    assert [name for name in held if Path(name).suffix in _PIXELS] == []


def _modules() -> set[str]:
    """Ours, as they lie in the wheel; those of calibration/ are nrd_trt.calibration there."""
    beside = {f"nrd_trt/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "calibration").rglob("*.py")}
    assert len(beside) > 5
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "nrd_trt").rglob("*.py")} | beside


def test_calibration_is_a_room_of_the_installed_package(installed: Path) -> None:
    """No `calibration` lands beside `nrd_trt`, and the room is imported from the package; the kernels lie there too."""
    assert not (installed / "calibration").exists()
    code = "import nrd_trt.calibration.ranges as module; print(module.__file__)"
    result = _run(code, installed)
    assert result.stdout.strip() == str(installed / "nrd_trt/calibration/ranges.py"), result.stderr
    code = "from nrd_trt.decode.extension import kernel_sources; print(kernel_sources())"
    assert _run(code, installed).stdout.strip() == str(installed / "nrd_trt/_plugins")


def test_editable_install_sees_the_same_files(tmp_path: Path) -> None:
    """What `pip install --editable` maps, read from the wheel that it makes; the link serves imports of a checkout."""
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("nrd_trt", "calibration", "plugins"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=skip)
    code = "from setuptools.build_meta import build_editable; print(build_editable('.'))"
    result = _run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(path).extractall(site)
    # Isolated, so that no other checkout is installed; to find a module imports none of its requirements.
    find = "from importlib.util import find_spec; print(find_spec('nrd_trt.calibration').origin)"
    found = _run(f"import site; site.addsitedir({str(site)!r}); {find}", site, "-I", "-S")
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).resolve() == (tmp_path / "calibration/__init__.py").resolve()


def _run(code: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment, command = {**os.environ, "PYTHONPATH": str(folder)}, [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def _kernel_files() -> set[str]:
    """What PyTorch's extension loader needs of ``plugins/``, as it lies in the package."""
    kernels = ROOT / "plugins/nrd_decode"
    found = [*kernels.glob("*.cu"), *kernels.glob("*.h"), *(kernels / "torch").iterdir()]
    return {f"nrd_trt/_{path.relative_to(ROOT).as_posix()}" for path in found}


def test_kernels_compile_from_the_wheel_alone(installed: Path) -> None:
    """Every local header that a compiled file includes, directly or by way of others, is in the wheel."""
    folder = installed / "nrd_trt/_plugins"
    waiting, seen = source_files(folder), set[Path]()
    assert {path.name for path in waiting} >= {"decode_kernel.cu", "binding.cpp"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        included = re.findall(r'^#include "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
        waiting += {(path.parent / name).resolve() for name in included} - seen
    assert folder / "nrd_decode/decode_problem.h" in seen


def test_wheel_states_what_it_is(wheel: zipfile.ZipFile) -> None:
    header = _header(wheel)
    assert (header["Name"], header["Version"]) == ("nrd-trt", nrd_trt.__version__)
    assert header["Requires-Python"] == ">=3.10"
    assert "Apache-2.0" in (header["License-Expression"], header["License"])
    assert "Apache License" in _metadata(wheel, "licenses/LICENSE")
    assert "nrd-trt = nrd_trt.cli.main:main" in _metadata(wheel, "entry_points.txt")
    extension = "[polygraphy.run.plugins]\nnrd-trt = nrd_trt.polygraphy.extension:arg_groups\n"
    assert extension in _metadata(wheel, "entry_points.txt")


def test_wheel_needs_neither_torch_nor_tensorrt(wheel: zipfile.ZipFile) -> None:
    """A Jetson brings its own TensorRT and rebuilds a bundle without PyTorch."""
    needed = [line for line in _header(wheel).get_all("Requires-Dist", []) if "extra ==" not in line]
    assert any(line.startswith("onnxruntime") for line in needed)
    assert [line for line in needed if line.startswith(("torch", "tensorrt", "onnxscript"))] == []


def test_extras_named_in_messages_exist(wheel: zipfile.ZipFile) -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "nrd_trt").rglob("*.py")]
    called = set().union(*map(_extras_required, trees))
    assert called, "no call of require() was found"
    assert called | {extra for _, extra in FLAVOURS.values()} <= set(_header(wheel).get_all("Provides-Extra", []))


def _extras_required(tree: ast.Module) -> set[str]:
    """The literal ``extra=`` of every call of `require`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {
        keyword.value.value
        for call in calls
        if getattr(call.func, "attr", getattr(call.func, "id", "")) == "require"
        for keyword in call.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str)
    }


def test_every_requirement_has_both_bounds() -> None:
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {name: text for name, text in config["options.extras_require"].items() if name != "dev"}
    texts = [config["options"]["install_requires"], *extras.values()]
    lines = [line for text in texts for line in text.split("\n") if line]
    assert len(lines) > 10
    assert [line for line in lines if ">=" not in line or "<" not in line] == []
