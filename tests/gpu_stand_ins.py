"""A machine with a GPU for the tests of `scripts/gpu_check.py`: stand-ins for its tools. Nothing here asserts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_check

MACHINE = sys.modules["gpu_machine"]
GPU = MACHINE.Gpu(
    name="Test GPU",
    compute_capability="8.7",
    multiprocessors=16,
    clock_mhz=1300.0,
    memory_bytes=8 << 30,
    cuda_driver="12.6",
    bus_id="0000:01:00.0",
)
ROW: dict[str, Any] = json.loads(
    """{"group": "cases", "op": "mask", "size": "1024x2048", "classes": 19, "batch": 1, "type": "fp16",
    "values": "random", "theta_layout": "nhwc", "guidance_layout": "nhwc", "variant": "simt", "mask_type": "uint8",
    "prune": true, "different_from_simt": 0, "mixed_share": 0.94, "passed": true, "fault": "", "p50_us": 20.0,
    "p90_us": 21.0, "warm_p50_us": 19.0, "warm_p90_us": 20.0, "empty_us": 2.0, "byte_floor_us": 2.3,
    "instruction_floor_us": 11.4, "target_us": 20.24, "ratio": 0.988, "byte_target_us": 6.6, "byte_ratio": 3.03,
    "sets": 30, "launches": 60, "replays": 20}"""
)
BENCH: dict[str, Any] = json.loads(
    """{"version": 1, "kernel_revision": 1, "quick": true, "device": {}, "copy_bytes_per_s": 4e12, "seconds": 30.0,
    "sm_clock_before_mhz": 1980.0, "sm_clock_after_mhz": 1975.0, "checked": 2, "failures": 0, "models": [{
    "variable": "pixels", "variant": "simt", "constant_us": 2.0, "slope_us": 8.5, "largest_residual": 0.2,
    "points": 5}]}"""
)
BENCH["rows"] = [ROW, {**ROW, "variant": "tensor_core", "p50_us": 9.0, "ratio": 0.44}]


def say(text: str, code: int = 0) -> str:
    return f"#!{sys.executable}\nimport sys\nprint({text!r})\nsys.exit({code})\n"


CMAKE = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
if "--version" in arguments:
    print("cmake version 3.28.1")
elif "-B" in arguments:
    print("-- TensorRT 10: headers in /somewhere")
else:
    folder = pathlib.Path(arguments[arguments.index("--build") + 1])
    (folder / "nrd_decode" / "tests").mkdir(parents=True)
    for name, text in json.loads({programs!r}).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
"""
CTEST = """#!{python}
import sys
path = sys.argv[sys.argv.index("--output-junit") + 1]
open(path, "w").write('''<testsuite><testcase name="test_kernels" status="run"/>
<testcase name="test_lean" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>
<system-out>skipped: no libnvinfer_lean.so.11\n</system-out></testcase></testsuite>''')
"""
BENCH_PROGRAM = """#!{python}
import sys
open(sys.argv[sys.argv.index("--json") + 1], "w").write({text!r})
print("a table")
"""
BENCHMARK = """
import json, sys
open(sys.argv[sys.argv.index("--markdown") + 1], "w").write("**tables of the decode**\\n")
print(json.dumps({"passed": True}))
"""


class Machine:
    """A checkout and tools that stand in for those of a machine with a GPU."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.tools = folder / "checkout", folder / "bin"
        self.output = self.root / "build" / "gpu-check"
        self.programs = {
            "nrd_decode_bench": BENCH_PROGRAM.format(python=sys.executable, text=json.dumps(BENCH)),
            "nrd_decode/tests/test_kernels": say("0 failures"),
        }
        self.tools.mkdir(parents=True)
        self.file("tests/gpu/test_one.py", "import pytest\n@pytest.mark.gpu\ndef test_a():\n    pass\n")
        self.file("setup.cfg", "[tool:pytest]\nmarkers =\n    gpu: on a GPU\n")
        self.file("scripts/benchmark.py", BENCHMARK)
        self.file("nrd_trt/__init__.py", "")
        self.file("nrd_trt/decode/extension.py", "def load_extension():\n    pass\n")
        self.tool("nvcc", say("Cuda compilation tools, release 12.6, V12.6.68"))
        self.tool("ctest", CTEST.format(python=sys.executable))
        self.tool("compute-sanitizer", say("ERROR SUMMARY: 0 errors\nVersion 2024.3.0"))
        # A shell starts at once: the log of clocks is ended when the stand-in of the benchmark is, which is soon.
        self.tool("nvidia-smi", "#!/bin/sh\nprintf '1300, 3199, 25.5, 51\\n1290, 3199, [N/A], 52\\n'\n")
        monkeypatch.setattr(gpu_check, "ROOT", self.root)
        monkeypatch.setattr(gpu_check, "find_gpu", lambda: GPU)
        monkeypatch.setattr(gpu_check, "missing", lambda: "no TensorRT")
        monkeypatch.setattr(MACHINE, "CUDA_FOLDER", folder / "cuda")
        monkeypatch.setenv("PATH", str(self.tools))
        monkeypatch.delenv("TENSORRT_ROOT", raising=False)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(self.output)])

    def file(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tool(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def run(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code and the report."""
        self.tool("cmake", CMAKE.format(python=sys.executable, programs=json.dumps(self.programs)))
        code = gpu_check.main()
        report: dict[str, Any] = json.loads((self.output / "report.json").read_text())
        return code, report
