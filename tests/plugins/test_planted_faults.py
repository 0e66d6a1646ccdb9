"""Mistakes in the mask kernels and their launcher are found without a GPU: each is planted in a copy of the sources."""

from __future__ import annotations

import os
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


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mistake: `text` of a header becomes `planted`; `case` of the program finds it, and says `found`."""

    text: str
    planted: str
    case: str
    found: str = ""

    def choice(self, number: int) -> str:
        """The C++ that is the mistake where its number is asked for: of statements, or of an expression."""
        asked = f"nrd_planted == {number}"
        if self.text.endswith(";"):
            return f"if ({asked}) {{ {self.planted} }} else {{ {self.text} }}"
        return f"({asked} ? {self.planted} : {self.text})"


FAULTS = {
    "missing wait": Fault(
        text="device::waitCopies();\n        device::syncBlock();",
        planted="device::syncBlock();",
        case="mixed cells, fp16",
    ),
    "wrong fragment index": Fault(
        text="return 4 * (mGroup / 2) + 2 * m + mGroup % 2;",
        planted="return 8 * m + mGroup;",
        case="mixed cells, fp16",
        found="variant 3",
    ),
    "unhandled border cell": Fault(
        text="return cellLine < 0 ? 0.F : 0.125F + 0.25F * static_cast<float>(line);",
        planted="return cellLine < -1 ? 0.F : 0.125F + 0.25F * static_cast<float>(line);",
        case="mixed cells, fp16",
    ),
    "dropped candidate class": Fault(
        text="extents[i / 2].update(logits[i]);",
        planted="extents[i / 2].update(logits[i / 2 * 2]);",
        case="speckles of many classes, fp16",
    ),
    "missing fallback vote": Fault(
        text="(largest == 0U) | (largest - smallest <= range)",
        planted="true",
        case="huge activations, fp16",
    ),
    "missing lower limit": Fault(text="0x1p-6F", planted="0.F", case="tiny activations, fp16"),
    "lost barrier": Fault(
        text="        fill();\n        device::syncBlock();", planted="        fill();", case="areas, fp16"
    ),
}

SWITCH = """
#include <cstdlib>

extern int const nrd_planted = std::atoi(std::getenv("NRD_PLANTED"));
"""


def program() -> Path:
    """Compile the program with every mistake in it, once; NRD_PLANTED is the number of the one that it makes, or 0."""

    def make(folder: Path) -> None:
        shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("bench", "trt", "torch"))
        for number, fault in enumerate(FAULTS.values(), start=1):
            (header,) = [path for path in folder.glob("*.h") if fault.text in path.read_text()]
            text = header.read_text()
            assert text.count(fault.text) == 1, f"{fault} has one place"
            header.write_text(text.replace(fault.text, fault.choice(number)))
        (folder / "planted.h").write_text("extern int const nrd_planted;\n")
        (folder / "planted.cpp").write_text(SWITCH)
        sources = ["emulated_kernels.cpp", "emulation.cpp", "host_reference.cpp", "planted.cpp", f"tests/{PROGRAM}"]
        flags = [f"-I{folder}", "-std=c++17", "-O1", "-include", "planted.h"]
        compile_cpp([*flags, *(str(folder / source) for source in sources)], folder / "program")

    return made_once("planted_faults", make) / "program"


def run_program(planted: int, *case: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NRD_PLANTED": str(planted)}
    return subprocess.run([str(program()), *case], env=environment, capture_output=True, text=True)


def test_kernels_without_a_fault_pass() -> None:
    done = run_program(0)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    fault = FAULTS[name]
    done = run_program([*FAULTS].index(name) + 1, fault.case)
    assert done.returncode != 0, done.stdout
    assert f"{fault.case}: " in done.stderr and fault.found in done.stderr


CARVE_OUT = "CU_SHAREDMEM_CARVEOUT_MAX_SHARED"


def run_launcher_test(launcher: Path, program: Path) -> subprocess.CompletedProcess[str]:
    """Run test_launcher over a driver whose launches run the emulation."""
    tests, driver = KERNELS / "tests", "libcuda.so.1"
    flags = ["-std=c++17", f"-I{KERNELS}", "-isystem", str(include_folder(HEADERS[-1]))]

    def make(folder: Path) -> None:
        folder.mkdir()
        fake = ["-shared", f"-Wl,-soname,{driver}", str(tests / "fake_driver.cpp"), *kernel_objects()]
        compile_cpp([*flags, *fake], folder / driver)
        for part in ("test_launcher", "host_images"):
            compile_cpp([*flags, "-c", str(tests / f"{part}.cpp")], folder / f"{part}.o")

    folder = made_once("launcher_test", make)
    parts = [str(folder / name) for name in ("test_launcher.o", "host_images.o", driver)]
    compile_cpp([*flags, str(launcher), *parts, *kernel_objects(), f"-Wl,-rpath,{folder}", "-ldl"], program)
    return subprocess.run([str(program)], capture_output=True, text=True)


@pytest.mark.parametrize("planted", [CARVE_OUT, "CU_SHAREDMEM_CARVEOUT_MAX_L1"], ids=["right", "wrong"])
def test_a_wrong_carve_out_is_found(planted: str, tmp_path: Path) -> None:
    text = (KERNELS / "decode_launcher.cpp").read_text()
    assert text.count(CARVE_OUT) == 1, "the fault has one place"
    launcher = tmp_path / "decode_launcher.cpp"
    launcher.write_text(text.replace(CARVE_OUT, planted))
    done = run_launcher_test(launcher, tmp_path / "program")
    assert (done.returncode == 0) == (planted == CARVE_OUT), done.stdout + done.stderr
    assert ("carveouts == kernels" in done.stderr) == (planted != CARVE_OUT)
