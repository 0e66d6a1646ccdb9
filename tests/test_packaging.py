"""What the wheel holds, and that the names which the code promises to pip exist."""

from __future__ import annotations

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
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nrd_trt
from nrd_trt.decode.extension import source_files
from nrd_trt.engine.compat import FLAVOURS

ROOT = Path(__file__).resolve().parents[1]
# Everything that a checkout has beside the package and a wheel must not; golden pixels lie under tests/.
_BESIDE = ("tests", "scripts", "docs", "plugins", "calibration")
_PIXELS = {".png", ".jpg", ".jpeg", ".npz", ".npy", ".mp4"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel of an sdist installs; read-only.

    A copy is built: a build leaves files, and takes up those of earlier ones.
    """
    folder, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
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
    zipfile.ZipFile(path).extractall(target)
    return target


def _metadata(installed: Path, name: str) -> str:
    (path,) = installed.glob(f"*.dist-info/{name}")
    return path.read_text(encoding="utf-8")


def _header(installed: Path) -> Message:
    return Parser().parsestr(_metadata(installed, "METADATA"))


def _files(folder: Path, pattern: str, root: Path = ROOT) -> set[str]:
    """Return the files of a pattern, as paths from the root."""
    return {path.relative_to(root).as_posix() for path in folder.glob(pattern) if path.is_file()}


def test_wheel_holds_the_package_and_nothing_else(installed: Path) -> None:
    """And no pixels: CamVid's licence does not let us hand its frames on, and golden data is for the tests."""
    package, kernels = ROOT / "nrd_trt", ROOT / "plugins/nrd_decode"
    ours = _files(package, "**/*.py") | _files(package / "zoo", "*") | _files(package / "serving/page", "*")
    ours |= _files(package / "packaging/templates", "*")
    calibration = {f"nrd_trt/{name}" for name in _files(ROOT / "calibration", "**/*.py")}
    assert len(calibration) > 5
    calibration |= {f"nrd_trt/{name}" for name in _files(ROOT / "calibration/zoo", "*.json")}
    # What PyTorch's extension loader needs.
    patterns = ("*.cu", "*.h", "decode_*.cpp", "torch/*")
    sources = {f"nrd_trt/_{name}" for pattern in patterns for name in _files(kernels, pattern)}
    planted = {"nrd_trt/zoo/planted.safetensors", "nrd_trt/zoo/planted.md"}
    others = {"nrd_trt/validation/report.html.j2", "nrd_trt/proving/selftest.html.j2", "nrd_trt/py.typed"}
    held = {name for name in _files(installed, "**/*", installed) if ".dist-info/" not in name}
    assert held == ours | calibration | sources | planted | others
    assert [name for name in held if Path(name).suffix in _PIXELS] == []


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


def test_kernels_compile_from_the_wheel_alone(installed: Path) -> None:
    """Every local header that a compiled file includes, directly or by way of others, is in the wheel."""
    folder = installed / "nrd_trt/_plugins"
    waiting, seen = source_files(folder), set[Path]()
    assert {path.name for path in waiting} == {
        "decode_kernel.cu",
        "decode_launcher.cpp",
        "decode_images.cpp",
        "binding.cpp",
    }
    while waiting:
        path = waiting.pop()
        seen.add(path)
        included = re.findall(r'^#include "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
        waiting += {(path.parent / name).resolve() for name in included} - seen
    assert folder / "nrd_decode/decode_problem.h" in seen


def test_wheel_states_what_it_is_and_needs_neither_torch_nor_tensorrt(installed: Path) -> None:
    """A Jetson brings its own TensorRT and rebuilds a bundle without PyTorch."""
    header, entry_points = _header(installed), _metadata(installed, "entry_points.txt")
    assert (header["Name"], header["Version"]) == ("nrd-trt", nrd_trt.__version__)
    assert header["Requires-Python"] == ">=3.10"
    assert "Apache-2.0" in (header["License-Expression"], header["License"])
    assert "Apache License" in _metadata(installed, "licenses/LICENSE")
    assert "nrd-trt = nrd_trt.cli.main:main" in entry_points
    assert "[polygraphy.run.plugins]\nnrd-trt = nrd_trt.polygraphy.extension:arg_groups\n" in entry_points
    needed = [line for line in header.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert any(line.startswith("onnxruntime") for line in needed)
    assert [line for line in needed if line.startswith(("torch", "tensorrt", "onnxscript"))] == []


def test_extras_named_in_messages_exist(installed: Path) -> None:
    """The literal ``extra=`` of every call of `require`, and those of the flavours."""
    called = {extra for _, extra in FLAVOURS.values()}
    for path in (ROOT / "nrd_trt").rglob("*.py"):
        called |= set(re.findall(r'\brequire\([^()]*\bextra="([^"]+)"', path.read_text(encoding="utf-8")))
    assert len(called) > 5
    assert called <= set(_header(installed).get_all("Provides-Extra", []))


def test_container_builds_from_what_it_copies_and_keeps_nvidias_entry_point(tmp_path: Path) -> None:
    """Without a deprecation warning, as of a licence file that setup.cfg names and nobody copied, and not as root."""
    text = re.sub(r"^#.*\n|\\\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    steps = [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word]
    for sources, target in (rest.rsplit(maxsplit=1) for word, rest in steps if word == "COPY"):
        for name in sources.split():
            if (ROOT / name).is_dir():
                skip = shutil.ignore_patterns("__pycache__", "build")
                shutil.copytree(ROOT / name, tmp_path / target, symlinks=True, ignore=skip)
            else:
                shutil.copy(ROOT / name, tmp_path / target)
    built = _run("from setuptools.build_meta import build_wheel; build_wheel('.')", tmp_path)
    assert (built.returncode, "Deprecat" in built.stdout + built.stderr) == (0, False), built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = [Path(name).name for name in wheel.namelist() if "/licenses/" in name]
    assert sorted(held) == ["LICENSE", "NOTICE"]
    words = [word for word, _ in steps]
    assert "ENTRYPOINT" not in words
    assert words.index("USER") > max(index for index, word in enumerate(words) if word == "RUN")
    assert dict(steps)["USER"] not in ("root", "0")
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = next(rest for word, rest in steps if word == "ARG" and rest.startswith("EXTRAS=")).partition("=")[2]
    # pip must leave the container's TensorRT alone.
    assert set(extras.split(",")) <= set(config["options.extras_require"]) - {"trt", "rtx"}
    assert dict(steps)["CMD"] == '["nrd-trt", "doctor"]'


def test_every_requirement_has_both_bounds() -> None:
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {name: text for name, text in config["options.extras_require"].items() if name != "dev"}
    texts = [config["options"]["install_requires"], *extras.values()]
    lines = [line for text in texts for line in text.split("\n") if line]
    assert len(lines) > 10
    assert [line for line in lines if ">=" not in line or "<" not in line] == []


@pytest.mark.parametrize("lock", sorted((ROOT / "scripts/dev/locks").iterdir()), ids=lambda path: path.stem)
def test_a_lock_holds_what_setup_asks_for_and_hashes_of_all(lock: Path) -> None:
    """Of what `make install` installs; PyTorch is chosen by the Makefile."""
    environment = {"python_version": lock.stem.removeprefix("py").partition("-")[0]}
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:", lock.read_text(), re.MULTILINE))
    assert len(pins) == lock.read_text().count("==")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (extras,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = [setup["options"]["install_requires"], *(setup["options.extras_require"][name] for name in extras.split())]
    for line in "\n".join(asked).split("\n"):
        if line.strip() and not (wanted := Requirement(line)).name == "torch":
            if wanted.marker is None or wanted.marker.evaluate(environment):
                assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), f"{wanted}: run make lock"
