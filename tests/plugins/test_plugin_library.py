"""The TensorRT plugin library: it builds with CMake, exports what it should and works in a real TensorRT's registry.

Nothing here needs a GPU. The tests compile for one architecture; they skip where CMake, nvcc, the headers of TensorRT
(NRD_TRT_TENSORRT_HEADERS: folders with include/, or one folder of such folders) or the lean runtime are missing.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nrd_trt
from tests.runtime.fake_cuda import HEADERS, include_folder

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("lean_probe.py")
VERSIONS = ("10.3", "10.7", "10.16", "11.0", "11.1")
EXPORTS = {"getCreators", "setLoggerFinder", "nrd_plugin_info"}
FOREIGN = re.compile(r"nvinfer|nvonnx|getPluginRegistry|getLogger|getInferLib|createInfer|initLib|^cu[A-Z]|cuda")
ARCHITECTURE = "90"
OPS = ["NrdPatchDecode", "NrdPatchDecodeMask"]
JOBS = "2"
RTX = "#define TRT_MAJOR_RTX 1\n#define NV_TENSORRT_MAJOR TRT_MAJOR_RTX\n"

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
each_version = pytest.mark.parametrize("version", VERSIONS)


@cache
def nvcc() -> str | None:
    return shutil.which("nvcc", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")


needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="needs nvcc")


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, **options)


def configure(build: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return run("cmake", "-S", ROOT / "plugins", "-B", build, "-DNRD_TRT_WERROR=ON", *settings)


def build_all(build: Path, *arguments: str) -> str:
    done = run("cmake", "--build", build, "-j", JOBS, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@cache
def header_folders() -> dict[str, Path]:
    """Version such as "10.3" -> TENSORRT_ROOT."""
    given = [Path(text) for text in os.environ.get("NRD_TRT_TENSORRT_HEADERS", "").split(":") if text]
    roots = [root for path in given for root in (path, *sorted(path.glob("*"))) if (root / "include").is_dir()]
    found = {}
    for root in roots:
        text = (root / "include/NvInferVersion.h").read_text(encoding="utf-8")
        numbers = [re.search(rf"define (?:NV_TENSORRT|TRT)_{part}\w* (\d+)", text) for part in ("MAJOR", "MINOR")]
        found[".".join(number[1] for number in numbers if number)] = root
    return found


def major(version: str) -> str:
    return version.split(".", maxsplit=1)[0]


def headers(version: str) -> Path:
    folder = header_folders().get(version)
    if folder is None:
        pytest.skip(f"no headers of TensorRT {version}: NRD_TRT_TENSORRT_HEADERS names none")
    return folder


class Builds:
    """One build folder for all versions, so that nvcc compiles the kernels once; each is installed from it."""

    def __init__(self, folder: Path) -> None:
        self.build = folder / "build"
        self._folder = folder
        self._logs: dict[str, str] = {}

    def configure(self, version: str) -> str:
        settings = (f"-DTENSORRT_ROOT={headers(version)}", f"-DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURE}")
        done = configure(self.build, *settings, "-DCMAKE_INSTALL_LIBDIR=lib")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def folder(self, version: str) -> Path:
        """Return the folder with the installed libraries of a version."""
        target = self._folder / version
        if version not in self._logs:
            log = self.configure(version)
            log += build_all(self.build, "--target", "nrd_trt_plugin", f"nrd_trt_plugin_trt{major(version)}")
            done = run("cmake", "--install", self.build, "--prefix", target)
            assert done.returncode == 0, done.stderr
            self._logs[version] = log
        return target / "lib"

    def library(self, version: str) -> Path:
        return self.folder(version) / "libnrd_trt_plugin.so"

    def registrar(self, version: str) -> Path:
        return self.folder(version) / f"libnrd_trt_plugin_trt{major(version)}.so"

    def log(self, version: str) -> str:
        self.folder(version)
        return self._logs[version]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    if nvcc() is None:
        pytest.skip("needs nvcc")
    return Builds(tmp_path_factory.mktemp("plugin"))


def symbols(library: Path, *options: str) -> set[str]:
    done = run("nm", "-D", *options, library)
    assert done.returncode == 0, done.stderr
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines() if line}


@pytest.mark.slow
@each_version
def test_library_compiles_without_warnings_and_needs_no_symbol_of_tensorrt(builds: Builds, version: str) -> None:
    assert "warning" not in builds.log(version).lower()
    libraries = [builds.library(version), builds.registrar(version)]
    assert {path for path in builds.folder(version).parent.rglob("*") if path.is_file()} == set(libraries)
    assert [symbols(library, "--defined-only") for library in libraries] == [EXPORTS, set()]
    for library in libraries:
        undefined = symbols(library, "--undefined-only")
        assert "dlsym" in undefined
        assert [name for name in undefined if FOREIGN.search(name)] == []


@each_version
def test_info_says_what_the_library_was_built_for(builds: Builds, version: str) -> None:
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]);"
        "library.nrd_plugin_info.restype = ctypes.c_char_p; print(library.nrd_plugin_info().decode())"
    )
    done = run(sys.executable, "-c", code, builds.library(version))
    assert (done.returncode, done.stderr) == (0, "")
    info = json.loads(done.stdout)
    revision = re.search(r"kKERNEL_REVISION = (\d+)", (ROOT / "plugins/nrd_decode/decode_problem.h").read_text())
    cuda = re.search(r"release (\d+\.\d+)", run(str(nvcc()), "--version").stdout)
    assert revision is not None and cuda is not None
    assert info.pop("tensorrt").startswith(f"{version}.")
    assert info == {
        "version": nrd_trt.__version__,
        "tensorrt_major": int(major(version)),
        "cuda": cuda[1],
        "architectures": [int(ARCHITECTURE)],
        "ptx": [int(ARCHITECTURE)],
        "kernel_revision": int(revision[1]),
        "ops": OPS,
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.3", "11.1"])
def test_cpp_tests_pass(builds: Builds, version: str) -> None:
    builds.configure(version)
    build_all(builds.build)
    environment = dict(os.environ)
    if runtime := lean_library():
        environment["NRD_TRT_LEAN_LIB"] = str(runtime)
    done = run("ctest", "--test-dir", builds.build, "--output-on-failure", "--no-tests=error", env=environment)
    assert done.returncode == 0, done.stdout
    passed = set(re.findall(r"(test_\w+) \.+ +Passed", done.stdout))
    assert passed >= {
        *("test_attributes", "test_build_phase", "test_lifecycle", "test_report"),
        *("test_enqueue_on_host", "test_kernels_on_host", "test_launcher"),
    }
    assert ("test_lean" in passed) == (runtime is not None and version.startswith("11."))


def configure_without_nvcc(build: Path) -> None:
    """The launcher of the kernels needs cuda.h; its test needs no driver and no GPU. The emulation needs g++ alone."""
    unoptimised = "-DCMAKE_BUILD_TYPE=Debug"  # compiles faster; tests/decode compiles the emulation with -O1
    include = f"-DNRD_CUDA_INCLUDE={include_folder(HEADERS[0])}"
    done = configure(build, "-DNRD_TRT_CUDA=OFF", include, unoptimised)
    assert done.returncode == 0, done.stderr
    assert "No kernels, no plugin: nvcc was not found or NRD_TRT_CUDA is OFF, and NRD_TRT_IMAGES" in done.stdout


HOST_TESTS = ["test_emulation", "test_emulated_kernels", "test_launcher"]


def test_host_reference_and_launcher_are_there_without_nvcc(tmp_path: Path) -> None:
    """test_planted_faults.py compiles and runs the last two."""
    configure_without_nvcc(tmp_path)
    listed = run("ctest", "--test-dir", tmp_path, "--show-only").stdout
    assert re.findall(r"#\d+: (test_\w+)", listed) == HOST_TESTS


@pytest.mark.all_combinations
def test_host_reference_and_launcher_are_built_without_nvcc(tmp_path: Path) -> None:
    configure_without_nvcc(tmp_path)
    log = build_all(tmp_path)
    assert "warning" not in log.lower()
    assert [path.name for path in tmp_path.glob("lib*")] == ["libnrd_decode_emulation.a"]
    done = run("ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error")
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"(test_\w+) \.+ +Passed", done.stdout)
    assert passed == HOST_TESTS


@pytest.mark.slow
@needs_nvcc
def test_architectures_default_to_what_the_toolkit_knows(tmp_path: Path) -> None:
    """And without the headers of TensorRT everything but the plugin is there. Then others are given."""
    host = shutil.which("g++") or "g++"
    settings = (f"-DCMAKE_CUDA_HOST_COMPILER={host}", "-DCMAKE_CUDA_FLAGS=-lineinfo -Xcompiler '-DA -DB'")
    done = configure(tmp_path, "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", f"-DCMAKE_CUDA_COMPILER={nvcc()}", *settings)
    known = [int(number) for number in re.findall(r"sm_(\d+)\b", run(str(nvcc()), "--list-gpu-code").stdout)]
    ours = [number for number in (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121) if number in known]
    expected = f"Kernels for {' '.join(f'sm_{number}' for number in ours)} compute_{ours[-1]}"
    assert expected in done.stdout, done.stdout + done.stderr
    assert "No plugin: no NvInferRuntime.h found; give -DTENSORRT_ROOT=" in done.stdout
    targets = run("cmake", "--build", tmp_path, "--target", "help").stdout
    assert "nrd_decode_kernels" in targets and "test_kernels" in targets
    assert "nrd_trt_plugin" not in targets
    given = "-DCMAKE_CUDA_ARCHITECTURES=75-real;80;90a-real;120-virtual"
    done = configure(tmp_path, given, "-DNRD_TRT_WERROR=OFF")  # as by default
    assert "Kernels for sm_75 sm_80 sm_90 compute_80 compute_120" in done.stdout, done.stdout + done.stderr
    commands = run("cmake", "--build", tmp_path, "--target", "nrd_decode_kernels", "--", "-n").stdout.splitlines()
    kernels = [shlex.split(line) for line in commands if "decode_kernel.cu" in line]
    assert {part for call in kernels for part in call if "-arch=" in part} == {
        *("-arch=sm_75", "-arch=sm_80", "-arch=sm_90a", "-arch=compute_80", "-arch=compute_120")
    }
    for call in kernels:
        assert "" not in call  # nvcc takes it for a file
        start = call.index("-ccbin")
        assert call[start : start + 5] == ["-ccbin", host, "-lineinfo", "-Xcompiler", "-DA -DB"]


def test_architectures_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=87;all")
    assert done.returncode != 0
    expected = "CMAKE_CUDA_ARCHITECTURES: got 'all', expected numbers such as 87"
    assert expected in " ".join(done.stderr.split())


def test_a_folder_without_compiled_kernels_is_named(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", f"-DNRD_TRT_IMAGES={tmp_path}")
    assert done.returncode != 0
    expected = f"NRD_TRT_IMAGES: got {tmp_path}, expected a folder with files such as sm_87.cubin"
    assert expected in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "TENSORRT_ROOT: got {folder}, expected a folder with include/NvInferRuntime.h"),
        ({"NvInferRuntime.h": "", "NvInferVersion.h": RTX}, "got headers of major 1, expected TensorRT 10.3 or newer"),
    ],
    ids=["no headers", "TensorRT-RTX"],
)
def test_wrong_headers_are_named(tmp_path: Path, files: dict[str, str], words: str) -> None:
    (tmp_path / "include").mkdir()
    for name, text in files.items():
        (tmp_path / "include" / name).write_text(text)
    done = configure(tmp_path / "build", "-DNRD_TRT_CUDA=OFF", f"-DTENSORRT_ROOT={tmp_path}")
    assert done.returncode != 0
    assert words.format(folder=tmp_path) in " ".join(done.stderr.split())


@cache
def lean_library() -> Path | None:
    """Return libnvinfer_lean.so.11 of the installed package, without loading it."""
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    if spec is None or importlib.util.find_spec("tensorrt_lean_bindings") is None:
        return None
    return next(iter(Path(str(spec.origin)).parent.glob("libnvinfer_lean.so.11")), None)


Probe = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def probe() -> Probe:
    """Run lean_probe.py; return what it found and what went to stderr. A crash fails the test."""
    if lean_library() is None:
        pytest.skip("needs the lean runtime of TensorRT 11: `pip install nrd-trt[lean]` (no GPU needed)")

    def start(*arguments: str | Path) -> tuple[dict[str, Any], str]:
        done = run(sys.executable, PROBE, *arguments)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
        return json.loads(done.stdout), done.stderr

    return start


MESSAGES = {
    "value": "NrdPatchDecode: num_classes: got 300, expected 2 to 256",
    "type": "NrdPatchDecode: hidden: got type FLOAT32, expected one INT32 or INT64",
    "length": "NrdPatchDecode: x_table: got 7 values, expected 8",
    "missing": "NrdPatchDecode: patch: got nothing, expected one INT32 or INT64",
    "unknown": "NrdPatchDecode: upsample: got an unknown attribute, expected only num_classes, hidden,",
}


def check_creation(found: dict[str, Any]) -> None:
    assert found["listed"] == [f"nrd::{name}::1" for name in OPS]
    assert set(found["fields"]) == {
        *("num_classes", "hidden", "guidance_channels", "patch", "x_table", "y_table", "upsample", "mask_type")
    }
    assert found["BUILD"] == found["RUNTIME"] == [True, True]
    assert found["clean"]


@pytest.mark.parametrize("version", ["11.0", "11.1"])
def test_lean_runtime_creates_and_refuses(builds: Builds, probe: Probe, version: str) -> None:
    found, stderr = probe(builds.library(version))
    assert (found["before"], found["loaded"]) == ([], True)
    check_creation(found)
    assert "warning" not in stderr
    for name, message in MESSAGES.items():
        (text,) = found["refused"][name]
        assert text.startswith(message)


@pytest.mark.parametrize("version", ["10.3", "10.7", "10.16"])
def test_library_of_another_major_reports_to_stderr(builds: Builds, probe: Probe, version: str) -> None:
    """Its headers say where another logger and registry have their methods: neither may be called."""
    found, stderr = probe(builds.library(version))
    assert found["loaded"]
    check_creation(found)
    assert f"built with the headers of TensorRT {version} and loaded by TensorRT 11" in stderr
    for name, message in MESSAGES.items():
        assert found["refused"][name] == []
        assert f"[nrd_trt] error: {message}" in stderr


def test_registrar_registers_on_dlopen_and_leaves_nothing_to_load(builds: Builds, probe: Probe) -> None:
    """TensorRT refuses creators that it has; ours still work."""
    found, _ = probe("-", builds.registrar("11.1"))
    assert found["before"] == OPS
    check_creation(found)
    assert found["refused"]["value"] == [MESSAGES["value"]]
    found, _ = probe(builds.library("11.1"), builds.registrar("11.1"))
    assert (found["before"], found["loaded"]) == (OPS, False)
    check_creation(found)


def test_registrar_finds_no_runtime_of_its_major(builds: Builds, probe: Probe) -> None:
    found, stderr = probe("-", builds.registrar("10.3"))
    assert found["before"] == found["listed"] == []
    assert "found no TensorRT 10 to register the ops with (libnvinfer.so.10: cannot open" in stderr


@each_version
def test_registrar_without_tensorrt_says_so(builds: Builds, version: str) -> None:
    number = major(version)
    done = run(sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", builds.registrar(version))
    assert done.returncode == 0
    if ctypes.util.find_library("nvinfer"):
        pytest.skip("this machine has a TensorRT on its loader path")
    assert f"found no TensorRT {number} to register the ops with (libnvinfer.so.{number}: cannot open" in done.stderr
