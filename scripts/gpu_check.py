"""Check this machine's GPU: its tests, then the latency of the zoo's fp16 bundle built here, into ``build/gpu-check``.

Exits 0 when all passed, 1 when something failed, 2 where it cannot run: it needs an NVIDIA GPU with its driver,
cuda-python and TensorRT or TensorRT-RTX.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nrd_trt.engine.compat import installed_flavours, load_runtime  # noqa: E402
from nrd_trt.errors import MissingDependencyError, RunnerError  # noqa: E402
from nrd_trt.runtime.cuda import load_cuda, probe_device  # noqa: E402
from nrd_trt.zoo import checkpoint_path  # noqa: E402

CHECKPOINT = "nrd_mobilenetv2_camvid"
PACKAGES = ("nrd-trt", "cuda-python", "numpy", "onnx", "torch")


def missing() -> str | None:
    """Return in one line what keeps this machine from running engines on a GPU, or None where nothing does."""
    lines = []
    try:
        if load_cuda().name != "cuda-python":
            lines.append("no cuda-python: `pip install nrd-trt[cuda]`")
    except (MissingDependencyError, RunnerError) as exc:
        lines.append(str(exc))
    if not installed_flavours():
        lines.append("no TensorRT: `pip install nrd-trt[trt]` or `pip install nrd-trt[rtx]`")
    return "; ".join(lines) or None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="timed calls (default 200)")
    parser.add_argument("--output", type=Path, default=ROOT / "build/gpu-check", metavar="FOLDER")
    options = parser.parse_args()
    if (reason := missing()) is not None:
        print(f"gpu-check: cannot run here: {reason}", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "log.txt").open("w", encoding="utf-8") as log:
        report = run_steps(options.output, options.runs, log)
    (options.output / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{'passed' if report['passed'] else 'FAILED'}: look at {options.output / 'report.json'} and log.txt")
    return 0 if report["passed"] else 1


def run_steps(folder: Path, runs: int, log: TextIO) -> dict[str, Any]:
    """Test, build and measure; a step that fails leaves the later ones out."""
    codes: dict[str, int] = {}
    measured = None
    for name, command in commands(folder, runs).items():
        codes[name], output = run_step(name, command, log)
        if codes[name] != 0:
            break
        if name == "benchmark":
            measured = json.loads(output)
    return {
        **machine(),
        "exit_codes": codes,
        "benchmark": measured,
        "passed": measured is not None and not any(codes.values()),
    }


def commands(folder: Path, runs: int) -> dict[str, list[str]]:
    """Return the steps; the runner is named, so that nothing falls back to the CPU unseen."""
    flavour, bundle = installed_flavours()[0], str(folder / "demo.nrd")
    build = [str(checkpoint_path(CHECKPOINT)), "-o", bundle, "--size", "352x480", "--precision", "fp16", "--force"]
    return {
        "tests": [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-rs"],
        "build": [sys.executable, "scripts/build_engine.py", *build, "--builder", flavour],
        "benchmark": [
            *(sys.executable, "scripts/benchmark.py", bundle, "--runner", flavour, "--runs", str(runs), "--json")
        ],
    }


def run_step(name: str, command: Sequence[str], log: TextIO) -> tuple[int, str]:
    """Run a command in the checkout; its output goes to the log, what it prints on stdout to the screen too."""
    print(f"== {name}: {' '.join(command)}", file=log, flush=True)
    print(f"== {name}", flush=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, text=True, stdout=subprocess.PIPE, stderr=log
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            print(line, end="", flush=True)
            print(line, end="", file=log, flush=True)
    return process.returncode, "".join(lines)


def machine() -> dict[str, Any]:
    """Return GPU, driver and versions."""
    device = probe_device()
    return {
        "gpu": asdict(device) if device else None,
        "driver": driver(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "tensorrt": {flavour: load_runtime(flavour).version for flavour in installed_flavours()},
        "packages": {name: version(name) for name in PACKAGES},
    }


def driver() -> str | None:
    """Return the driver's version as nvidia-smi tells it; Jetsons may not have it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0] or None
    except (OSError, subprocess.CalledProcessError):
        return None


def version(package: str) -> str | None:
    """Return an installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
