"""The runtime library for C++ programs, compiled with CMake and run on a GPU and a TensorRT that note calls.

Bundles are written by the toolkit. Nothing here needs a GPU; headers of TensorRT are found as for the plugin.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, REFERENCE_FILE, Bundle, write_bundle
from nrd_trt.engine.record import BundleRecord, read_record, write_record
from nrd_trt.errors import RunnerError
from nrd_trt.files import sha256_bytes
from nrd_trt.graph.metadata import output_of
from nrd_trt.proving import parts, runtime_library
from nrd_trt.proving.parts import Lane, NotRunError, ProofFailedError
from nrd_trt.proving.runtime_library import Example
from nrd_trt.specs import InputShape
from tests.engine.records import record
from tests.plugins.test_plugin_library import ROOT, headers

SOURCE = ROOT / runtime_library.SOURCE
NEWEST = "11.1"
SANITIZE = "-fsanitize=address"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
CLASSES = (("VRuntime", "apiv::"), ("VCudaEngine", "apiv::"), ("VExecutionContext", "apiv::"), ("IPluginRegistry", ""))
WEIGHTS = np.array([1, 2, 4])
"""The fake engines' class is the colours' sum with these weights, modulo 3."""
PLUGIN, OTHER = b"a plugin library", b"another one"
CONSUMER = """
cmake_minimum_required(VERSION 3.22)
project(robot LANGUAGES CXX)
find_package(nrd_trt_runtime 0.1 REQUIRED)
add_executable(robot masks.cpp)
target_compile_options(robot PRIVATE -Wall -Wextra -Wpedantic -Werror)
target_link_libraries(robot PRIVATE nrd_trt::runtime)
"""

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cuda_include() -> Path:
    """Return the toolkit's folder of ``cuda_runtime_api.h``; the packages lack headers of nvcc's that it wants."""
    folder = Path("/usr/local/cuda/include")
    if not (folder / "crt/host_defines.h").is_file():
        pytest.skip(f"needs the headers of a CUDA toolkit in {folder}")
    return folder


def system_headers(version: str) -> list[str]:
    return [f"-isystem{headers(version) / 'include'}", f"-isystem{cuda_include()}"]


def refusing(include: Path) -> str:
    """Return C++ classes whose every method ends the program, for those with pure methods in TensorRT's headers."""
    text = "".join((include / name).read_text() for name in ("NvInferImpl.h", "NvInferRuntimeCommon.h"))
    text = re.sub(r"//[^\n]*", "", text)
    lines = ["#include <cstdlib>", "namespace refusing {", "using namespace nvinfer1;"]
    for name, space in CLASSES:
        body = re.search(rf"^class {name}\b[^;{{]*\{{(.*?)^\}};", text, re.MULTILINE | re.DOTALL)
        assert body is not None
        methods = re.findall(r"virtual ([^;~{}]*?)\s*=\s*0;", body[1])
        lines.append(f"class {name} : public nvinfer1::{space}{name} {{")
        lines += [f"{' '.join(method.split())} override {{ std::abort(); }}" for method in methods]
        lines.append("};")
    return "\n".join([*lines, "}", ""])


@dataclass(frozen=True)
class Built:
    """The library and its example over the fake GPU, and bundles for it.

    Attributes:
        root: TensorRT as CMake finds it, with the fake library in its ``lib/``.
        build: Where CMake compiled.
        example: The example program.
        bundles: Folder of bundles and plugin libraries.
    """

    root: Path
    build: Path
    example: Example
    bundles: Path


def build(folder: Path, version: str) -> Built:
    root, compiled = folder / "tensorrt", folder / "build"
    (root / "lib").mkdir(parents=True)
    (root / "include").symlink_to(headers(version) / "include")
    (root / "refusing.h").write_text(refusing(root / "include"))
    fake = root / "lib/libnvinfer.so"
    options = ("-std=c++17", "-shared", "-fPIC", SANITIZE, "-Wall", "-Werror", "-Wno-deprecated-declarations")
    run("g++", *options, f"-I{root}", *system_headers(version), *sorted(SOURCE.glob("tests/fake_*.cpp")), "-o", fake)
    settings = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS": SANITIZE,
        "CMAKE_INSTALL_PREFIX": folder / "installed",
        "CMAKE_INSTALL_LIBDIR": "lib",
        "NRD_CUDART_LIBRARY": fake,
        "NRD_CUDA_INCLUDE": cuda_include(),
        "NRD_TRT_WERROR": "ON",
        "TENSORRT_ROOT": root,
    }
    try:
        found = runtime_library.configure(ROOT, compiled, [f"-D{name}={value}" for name, value in settings.items()])
    except RunnerError as exc:
        if "needs nlohmann" in str(exc) or "needs libssl" in str(exc):
            pytest.skip(f"{exc}: scripts/install_test_services.sh installs it")
        raise
    example = runtime_library.compile_example(compiled, found)
    run("cmake", "--install", compiled)
    return Built(
        root=root, build=compiled, example=example, bundles=write_bundles(folder / "bundles", example.tensorrt)
    )


def write_bundles(folder: Path, tensorrt: str) -> Path:
    folder.mkdir()
    (folder / "libnrd_trt_plugin.so").write_bytes(PLUGIN)
    (folder / "other.so").write_bytes(OTHER)
    packed = suited(record(), tensorrt)
    assert packed.plugin is not None
    plain = replace(packed, plugin=None, decode="onnx", model=replace(packed.model, mask_encoding="uint8"))
    larger = replace(packed, model=replace(packed.model, shape=InputShape.static((64, 96))))
    other = replace(packed, plugin=replace(packed.plugin, sha256=sha256_bytes(OTHER)))
    logits = replace(plain, model=replace(plain.model, output=output_of(("mask", "logits"))))
    write(folder / "packed.nrd", packed, "32x64 u8x4 plugin")
    write(folder / "plain.nrd", plain, "32x64 uint8")
    write(folder / "larger.nrd", larger, "64x96 u8x4 plugin")
    write(folder / "other.nrd", other, "32x64 u8x4 plugin")
    write(folder / "logits.nrd", logits, "32x64 uint8 logits")
    return folder


def suited(written: BundleRecord, tensorrt: str) -> BundleRecord:
    """Return a record of this machine, of the fake GPU and TensorRT, and of the plugin library above."""
    assert written.plugin is not None
    return replace(
        written,
        builder=replace(written.builder, version=tensorrt, machine=platform.machine()),
        plugin=replace(written.plugin, sha256=sha256_bytes(PLUGIN)),
    )


def write(path: Path, written: BundleRecord, plan: str) -> None:
    files = {ONNX_FILE: b"onnx", REFERENCE_FILE: b"npz", PLAN_FILE: plan.encode()}
    write_bundle(path, files, written, force=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("runtime"), NEWEST)


def check_program(built: Built) -> None:
    """Compile the test with what pkg-config says of the installed library, and run it."""
    installed = built.build.parent / "installed"
    package = {"PKG_CONFIG_PATH": str(installed / "lib/pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "nrd_trt_runtime", **package).split()
    program = built.build / "test_runtime"
    sources = [SOURCE / "tests/test_runtime.cpp", built.root / "lib/libnvinfer.so"]
    run("g++", *STRICT, SANITIZE, *sources, "-o", program, *flags, f"-Wl,-rpath-link,{built.root / 'lib'}")
    loader = {"LD_LIBRARY_PATH": f"{installed / 'lib'}:{built.root / 'lib'}"}
    assert run(program, built.bundles, **loader).endswith("0 failures\n")


def test_calls_masks_and_failures_on_the_noting_gpu(built: Built) -> None:
    check_program(built)


@pytest.mark.all_combinations
def test_calls_masks_and_failures_with_the_oldest_tensorrt(tmp_path: Path) -> None:
    check_program(build(tmp_path, "10.3"))


@pytest.mark.parametrize("version", ["10.3", "10.7", "10.13"])  # with the newest it is built above
def test_it_compiles_without_warnings(built: Built, version: str) -> None:
    given = ("-fsyntax-only", '-DNRD_PLUGIN_FILE=""', *system_headers(version), SOURCE / "runtime.cpp")
    done = subprocess.run([str(part) for part in ("g++", *STRICT, *given)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_header_and_source_stay_small() -> None:
    assert sum(len((SOURCE / name).read_text().splitlines()) for name in ("runtime.h", "runtime.cpp")) < 600


def test_the_documented_program_finds_the_installed_library_and_needs_no_other_package(
    built: Built, tmp_path: Path
) -> None:
    program = (ROOT / "docs/cpp.md").read_text().split("```cpp\n")[1].split("```")[0]
    (tmp_path / "masks.cpp").write_text(program)
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
    installed = built.build.parent / "installed"
    run("cmake", "-S", tmp_path, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={installed}", f"-DCMAKE_CXX_FLAGS={SANITIZE}")
    loader = {"LD_LIBRARY_PATH": str(built.root / "lib")}
    run("cmake", "--build", tmp_path, **loader)
    frames = np.random.default_rng(1).integers(0, 256, (2, 32, 64, 3), np.uint8)
    done = subprocess.run(
        [tmp_path / "robot", built.bundles / "plain.nrd"],
        input=frames.tobytes(),
        capture_output=True,
        env={**os.environ, **loader},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert np.array_equal(np.frombuffer(done.stdout, np.uint8).reshape(2, 32, 64), frames @ WEIGHTS % 3)
    exported = run("nm", "-DC", "--defined-only", installed / "lib/libnrd_trt_runtime.so")
    assert "nrd::Engine::segment" in exported and "nlohmann" not in exported


def test_the_example_draws_what_the_engine_draws(built: Built, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    mask = built.example.draw(
        built.bundles / "packed.nrd", image, tmp_path, plugin=built.bundles / "libnrd_trt_plugin.so"
    )
    assert np.array_equal(mask, image @ WEIGHTS % 3)
    run(built.example.program, built.bundles / "plain.nrd", tmp_path / "image.ppm", tmp_path / "colours.ppm")
    pixels = np.frombuffer((tmp_path / "colours.ppm").read_bytes()[-32 * 64 * 3 :], np.uint8)
    assert np.array_equal(pixels.reshape(32, 64, 3), np.array(record().model.info.palette)[mask])
    with pytest.raises(RunnerError, match=re.escape("a PPM (P6, 255) of 64x32 pixels, got another file")):
        built.example.draw(built.bundles / "plain.nrd", image[:, :32], tmp_path)


Change = Callable[[Path], object]


def edit(**changes: Any) -> Change:
    """Write the record anew with other values, as a sound one; ``builder.version`` is given as ``builder__version``."""

    def change(bundle: Path) -> None:
        content = read_record((bundle / RECORD_FILE).read_bytes()).to_dict()
        for name, value in changes.items():
            *outer, last = name.split("__")
            place = content
            for key in outer:
                place = place[key]
            place[last] = value
        (bundle / RECORD_FILE).write_bytes(write_record(SimpleNamespace(to_dict=lambda: content)))

    return change


def text(old: str, new: str) -> Change:
    def change(bundle: Path) -> None:
        file = bundle / RECORD_FILE
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    return change


Refusal = tuple[str, Change, str, dict[str, str]]


def refused(words: str, change: Change = lambda bundle: None, *, bundle: str = "plain", **environment: str) -> Refusal:
    """Name what an error says, what is done to which bundle before, and variables of the environment."""
    return words, change, bundle, environment


NO_RECORD = "bundle.json: expected the record of a bundle, got [json.exception."
REFUSALS: dict[str, Refusal] = {
    "no bundle": refused("bundle.json: expected a file, got none; check the path, or", shutil.rmtree),
    "no JSON": refused(f"{NO_RECORD}parse_error", lambda bundle: (bundle / RECORD_FILE).write_text("{")),
    "a deep record": refused(f"{NO_RECORD}parse", lambda bundle: (bundle / RECORD_FILE).write_text("[" * 200_000)),
    "deep values": refused(
        "another one: it was edited; restore or rebuild the bundle.",
        text('"fit"', f'"deep": {"[" * 100_000}{"]" * 100_000}, "fit"'),
    ),
    "a huge record": refused(
        "bundle.json: expected at most 16777216 bytes, got 1099511627776; check the path",
        lambda bundle: os.truncate(bundle / RECORD_FILE, 1 << 40),
    ),
    "other types": refused(f"{NO_RECORD}type_error", edit(builder__compute_capabilities=8.6)),
    "a missing value": refused(f"{NO_RECORD}out_of_range", edit(files={})),
    "an edited record": refused(
        "bundle.json: expected content of its own SHA-256 ", text('"gpu": "A10"', '"gpu": "A11"')
    ),
    "another schema": refused(
        "bundle.json: expected schema 1, got 2; use the library of the nrd_trt that wrote it.", edit(format=2)
    ),
    "a damaged plan": refused(
        "…; it was changed after the bundle was made: restore it, or rebuild it on this machine: `nrd-trt build ",
        lambda bundle: (bundle / PLAN_FILE).write_bytes(b"32x64 uint9"),
    ),
    "no plan": refused("model.plan: expected a file, got none; ", lambda bundle: (bundle / PLAN_FILE).unlink()),
    "other TensorRT": refused(
        f"expected what it was built for, tensorrt 10.2.0 on {platform.machine()}, got tensorrt {NEWEST}.0.",
        edit(builder__version="10.2.0"),
    ),
    "a longer version": refused(f"tensorrt {NEWEST}.01 on ", edit(builder__version=f"{NEWEST}.01")),
    "another processor": refused(" on riscv64, got tensorrt ", edit(builder__machine="riscv64")),
    "control characters": refused("for, ?[2Jtensorrt? ", edit(builder__name="\x1b[2Jtensorrt\n")),
    "TensorRT-RTX": refused("what it was built for, tensorrt-rtx ", edit(builder__name="tensorrt-rtx")),
    "ONNX Runtime": refused(
        "what it was built for, onnxruntime ", edit(builder__name="onnxruntime", builder__version=None)
    ),
    "other headers": refused("libnvinfer: expected TensorRT 11 of the headers, got 10.1.0.", FAKE_TENSORRT="10"),
    "no GPU": refused("CUDA: expected an NVIDIA GPU and its driver, got cuda", FAKE_GPUS="0"),
    "another GPU": refused(
        'a GPU of compute capability ["8.6"], got 9.0; rebuild it on this', FAKE_MAJOR="9", FAKE_MINOR="0"
    ),
    "an earlier GPU": refused(
        'compute capability ["8.6"], got 8.0; ', edit(builder__hardware_compatible=True), FAKE_MINOR="0"
    ),
    "floats": refused("got the input form float, the outputs mask and batches from 1", edit(model__input_form="float")),
    "logits only": refused("the input form uint8, the outputs logits and batches", edit(model__output="logits")),
    "batches": refused("and batches from 2; export and", edit(model__shape__batch={"min": 2, "opt": 2, "max": 2})),
    "another size": refused(
        "model.plan: expected its recorded size, got a refusal without a reason; ", edit(model__shape__height__opt=64)
    ),
    "a plan that is none": refused(
        "model.plan: expected a plan that TensorRT loads, got Serialization assertion stdVersionRead",
        edit(files={PLAN_FILE: sha256_bytes(b"a plan")}),
        PLAN="a plan",
    ),
    "another mask encoding": refused(
        "model.plan: expected the tensors image and mask (u8x4) of its record, got others, or of another type",
        edit(model__mask_encoding="u8x4"),
    ),
    "no plugin": refused("lib/libnrd_trt_plugin.so: expected a file, got none; name the library", bundle="packed"),
    "another plugin": refused(
        "; name the library that the plan was built with in Settings::plugin or NRD_TRT_PLUGIN, or rebuild it on",
        lambda bundle: (bundle.parent / "plugin").write_bytes(OTHER),
        bundle="packed",
        NRD_TRT_PLUGIN="plugin",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bundle_that_cannot_run_is_refused_in_three_parts(built: Built, tmp_path: Path, case: str) -> None:
    """And everything is released, or the address sanitizer would tell of the leak in the last line."""
    words, change, name, environment = REFUSALS[case]
    bundle = tmp_path / "street.nrd"
    shutil.copytree(built.bundles / f"{name}.nrd", bundle)
    change(bundle)
    if plan := environment.get("PLAN"):
        (bundle / PLAN_FILE).write_text(plan)
    done = subprocess.run(
        [built.example.program, bundle, tmp_path / "image.ppm", tmp_path / "mask.pgm"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    said = done.stderr.splitlines()[-1]
    assert words in said and done.returncode == 2, done.stderr
    assert re.search(r": expected .*, got .*; .*\.$", said), said
    assert not (tmp_path / "mask.pgm").exists()


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        ({"builder__version": "10.2.0", "builder__version_compatible": True}, {}),
        ({"builder__hardware_compatible": True}, {"FAKE_MAJOR": "12", "FAKE_MINOR": "0"}),
    ],
    ids=["version-compatible", "hardware-compatible"],
)
def test_plans_for_more_than_one_machine_run(
    built: Built, tmp_path: Path, changes: dict[str, Any], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "street.nrd"
    shutil.copytree(built.bundles / "plain.nrd", bundle)
    edit(**changes)(bundle)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    image = np.zeros((32, 64, 3), np.uint8)
    assert not built.example.draw(bundle, image, tmp_path).any()


def test_selftest_says_why_it_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    with pytest.raises(NotRunError, match=re.escape(f"TENSORRT_ROOT: got {tmp_path}, expected a folder with include/")):
        parts.prove_runtime_library(tmp_path)
    assert runtime_library.what_is_missing(None) == runtime_library.what_is_missing(tmp_path)


@pytest.mark.parametrize("wrong", [0, 1])
def test_selftest_compares_with_the_runner_in_every_form(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    class Runner:
        graph = record().model

        def predict(self, image: np.ndarray) -> np.ndarray:
            return (image @ WEIGHTS + wrong) % 3

    def bundle(lane: Lane, *_: object) -> Path:
        return built.bundles / {"function": "plain.nrd", "plugin": "packed.nrd"}[lane.form]

    def plugin(opened: Bundle) -> SimpleNamespace | None:
        return SimpleNamespace(path=built.bundles / "libnrd_trt_plugin.so") if opened.record.plugin else None

    (tmp_path / "runtime").mkdir()
    monkeypatch.setattr(runtime_library, "configure", lambda *_: built.example.tensorrt)
    monkeypatch.setattr(runtime_library, "compile_example", lambda *_: built.example)
    monkeypatch.setattr(parts, "load_tensorrt", lambda _: SimpleNamespace(version=f"{built.example.tensorrt}.106"))
    monkeypatch.setattr(parts, "bundle_plugin", plugin)
    monkeypatch.setattr(Lane, "bundle", bundle)
    monkeypatch.setattr(Lane, "open", lambda *_: nullcontext(Runner()))
    if wrong:
        with pytest.raises(ProofFailedError, match=r"^function: 100\.00% of the mask differ"):
            parts.prove_runtime_library(tmp_path)
    else:
        figures = parts.prove_runtime_library(tmp_path)
        assert figures == {"tensorrt": built.example.tensorrt, "forms": "function, plugin", "images": parts.SCENES}
