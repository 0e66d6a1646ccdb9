"""Mistakes in the mask kernels and their launcher are found without a GPU: each is planted in a copy of the sources."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.decode.on_cpu import KERNELS, compile_cpp, kernel_objects, needs_compiler
from tests.helpers import made_once
from tests.runtime.fake_cuda import HEADERS, include_folder

pytestmark = needs_compiler

PROGRAM = "test_emulated_kernels.cpp"
OTHERS = ("host_reference.cpp", "emulation.cpp", f"tests/{PROGRAM}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mistake: `text` of a header becomes `planted`; `found` is a part of what the program then says."""

    text: str
    planted: str
    found: str


FAULTS = {
    "missing wait": Fault(text="        device::waitCopies();\n", planted="", found="mixed cells, fp16"),
    "wrong fragment index": Fault(
        text="return 4 * (mGroup / 2) + 2 * m + mGroup % 2;", planted="return 8 * m + mGroup;", found="variant 3"
    ),
    "unhandled border cell": Fault(
        text="cellLine < 0 ? 0.F : ", planted="cellLine < -1 ? 0.F : ", found="mixed cells, fp16"
    ),
    "dropped candidate class": Fault(
        text="extents[i / 2].update(logits[i]);",
        planted="extents[i / 2].update(logits[i / 2 * 2]);",
        found="of many classes, fp16",
    ),
    "missing fallback vote": Fault(
        text="return (largest == 0U) | (largest - smallest <= range);",
        planted="return (largest == 0U) | (largest - smallest <= range) | true;",
        found="huge activations, fp16",
    ),
    "missing lower limit": Fault(text="0x1p-6F : ", planted="0.F : ", found="tiny activations, fp16"),
    "lost barrier": Fault(
        text="        fill();\n        device::syncBlock();\n", planted="        fill();\n", found="areas, fp16"
    ),
}


def objects() -> list[str]:
    """Return what no fault touches, compiled once."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for name in OTHERS:
            flags = [f"-I{KERNELS}", "-std=c++17", "-c", str(KERNELS / name)]
            compile_cpp(flags, folder / f"{Path(name).stem}.o")

    return sorted(map(str, made_once("emulated_kernels_program", make).iterdir()))


def run_program(sources: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "program"
    kernels = sources / "emulated_kernels.cpp"
    compile_cpp([f"-I{sources}", "-std=c++17", str(kernels), *objects()], program)
    return subprocess.run([str(program)], capture_output=True, text=True)


def test_kernels_without_a_fault_pass(tmp_path: Path) -> None:
    done = run_program(KERNELS, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    sources = tmp_path / "sources"
    shutil.copytree(KERNELS, sources, ignore=shutil.ignore_patterns("tests", "bench", "trt", "torch"))
    (header,) = [path for path in sources.glob("*.h") if fault.text in path.read_text()]
    text = header.read_text()
    assert text.count(fault.text) == 1, "the fault has one place"
    header.write_text(text.replace(fault.text, fault.planted))
    done = run_program(sources, tmp_path)
    assert done.returncode != 0, done.stdout
    assert fault.found in done.stderr


CARVE_OUT = "CU_SHAREDMEM_CARVEOUT_MAX_SHARED"


def run_launcher_test(launcher: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run test_launcher over a driver whose launches run the emulation."""
    tests = KERNELS / "tests"
    flags = ["-std=c++17", f"-I{KERNELS}", "-isystem", str(include_folder(HEADERS[-1]))]
    driver, program = folder / "libcuda.so.1", folder / "program"
    compile_cpp(
        [*flags, "-shared", f"-Wl,-soname,{driver.name}", str(tests / "fake_driver.cpp"), *kernel_objects()], driver
    )
    sources = [str(path) for path in (tests / "test_launcher.cpp", launcher, tests / "host_images.cpp")]
    compile_cpp([*flags, *sources, str(driver), *kernel_objects(), f"-Wl,-rpath,{folder}", "-ldl"], program)
    return subprocess.run([str(program)], capture_output=True, text=True)


@pytest.mark.parametrize("planted", [CARVE_OUT, "CU_SHAREDMEM_CARVEOUT_MAX_L1"], ids=["right", "wrong"])
def test_a_wrong_carve_out_is_found(planted: str, tmp_path: Path) -> None:
    text = (KERNELS / "decode_launcher.cpp").read_text()
    assert text.count(CARVE_OUT) == 1, "the fault has one place"
    launcher = tmp_path / "decode_launcher.cpp"
    launcher.write_text(text.replace(CARVE_OUT, planted))
    done = run_launcher_test(launcher, tmp_path)
    assert (done.returncode == 0) == (planted == CARVE_OUT), done.stdout + done.stderr
    assert ("carveouts == kernels" in done.stderr) == (planted != CARVE_OUT)
