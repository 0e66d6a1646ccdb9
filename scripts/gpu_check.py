"""Run every proof that needs an NVIDIA GPU, and the benchmarks, into ``build/gpu-check``; under eight minutes.

Builds ``plugins/`` and the PyTorch operator for the GPU that is there, runs the C++ tests and those in ``tests/gpu``,
the benchmarks of the kernels and of the decode in PyTorch, the C++ tests under compute-sanitizer, and where TensorRT is
installed builds and times the zoo's fp16 bundle, run by run and with overlapped copies. What a machine lacks is
reported as not run, with the reason; nothing has to be installed.

Writes report.json, report.md (a page for docs/) and log.txt. Exits 0 when nothing failed, 1 when something did, 2 where
there is no NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "scripts"))  # for tests, which import this file as scripts.gpu_check

from gpu_machine import ClockLog, Gpu, describe_machine, find_gpu, find_tool  # noqa: E402
from gpu_report import markdown  # noqa: E402
from gpu_steps import Failed, NotRun, Part, Runner, absent_module, read_junit  # noqa: E402

CHECKPOINT = "nrd_mobilenetv2_camvid"
OPERATOR = "PyTorch operator"
BUNDLE = "bundle with TensorRT"
LIMIT_S = 465.0
"""Of the whole check; what is not done by then is stopped or left out."""

NO_DEVICE = "no CUDA device"
"""Why a C++ test says that it was skipped; there is a GPU, so it must not be."""

SANITIZERS = {"memcheck": ("--leak-check", "full"), "racecheck": (), "initcheck": (), "synccheck": ()}
SANITIZED = {"test_kernels": ("--small",), "test_enqueue": (), "test_lifecycle": (), "test_contexts": ()}
"""C++ tests that launch kernels, with the arguments that make them quick."""


def missing() -> str | None:
    """Return in one line what keeps this machine from running engines on a GPU, or None where nothing does."""
    from nrd_trt.engine.compat import installed_flavours
    from nrd_trt.errors import MissingDependencyError, RunnerError
    from nrd_trt.machine.cuda import load_cuda

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
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="timed calls of the bundle (default 200)")
    parser.add_argument("--output", type=Path, default=ROOT / "build/gpu-check", metavar="FOLDER")
    options = parser.parse_args()
    gpu = find_gpu()
    if isinstance(gpu, str):
        print(f"gpu-check: cannot run here: {gpu}", file=sys.stderr)
        return 2
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with Runner(ROOT, folder / "log.txt", deadline=start + LIMIT_S) as runner:
        check = Check(runner, folder, gpu, options.runs)
        parts = check.run()
    report = {
        "version": 1,
        "passed": all(part.status != "failed" for part in parts),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "seconds": round(time.monotonic() - start, 1),
        "machine": {**describe_machine(gpu, ROOT), "clocks_during_bench": check.clocks},
        "parts": [part.to_dict() for part in parts],
        **check.results,
    }
    write(folder / "report.json", json.dumps(report, indent=1) + "\n")
    write(folder / "report.md", markdown(report, check.decode_page()))
    shown = os.path.relpath(folder)
    print(f"{'passed' if report['passed'] else 'FAILED'} in {report['seconds']:.0f} s: look at {shown}/report.md")
    return 0 if report["passed"] else 1


def write(path: Path, text: str) -> None:
    """Write a whole file or none."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Check:
    """The parts on one machine. Each returns a note, or raises `NotRun` or `Failed`; none needs another's result.

    Attributes:
        results: Objects of the benchmarks: ``bench``, ``decode``, ``engine`` and ``overlap``; None where there is none.
        clocks: What nvidia-smi said while the kernels were timed.
    """

    def __init__(self, runner: Runner, folder: Path, gpu: Gpu, runs: int) -> None:
        self._runner, self._folder, self._gpu, self._runs = runner, folder, gpu, runs
        self._plugins = folder / "plugins"
        self.results: dict[str, Any] = {"bench": None, "decode": None, "engine": None, "overlap": None}
        self.clocks: dict[str, float] | None = None

    def run(self) -> list[Part]:
        """Run all parts, correctness before speed; nothing runs beside what is timed."""
        part, tests = self._runner.part, sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
        parts = self._together({"build": self.build, OPERATOR: self.operator})
        parts.append(part("C++ tests", self.ctest))
        parts += [part(f"tests/gpu/{path.name}", self.pytest(path)) for path in tests]
        parts += [part("kernel benchmark", self.bench), part("decode benchmark", self.decode)]
        parts += self._together({f"compute-sanitizer {tool}": self.sanitizer(tool) for tool in SANITIZERS})
        parts += [part(BUNDLE, self.engine), part("overlapped copies", self.overlap)]
        return parts

    def _together(self, bodies: dict[str, Callable[[], str]]) -> list[Part]:
        with ThreadPoolExecutor(len(bodies)) as pool:
            running = [pool.submit(self._runner.part, name, body) for name, body in bodies.items()]
            return [part.result() for part in running]

    def build(self) -> str:
        """Configure and compile ``plugins/`` for this GPU."""
        if absent := [name for name in ("cmake", "nvcc") if find_tool(name) is None]:
            raise NotRun(f"no {' and no '.join(absent)} to compile with")
        cmake = str(find_tool("cmake"))
        settings = [f"-DCMAKE_CUDA_ARCHITECTURES={self._gpu.architecture}"]
        if root := os.environ.get("TENSORRT_ROOT"):
            settings.append(f"-DTENSORRT_ROOT={root}")
        configured = self._runner.call([cmake, "-S", "plugins", "-B", str(self._plugins), *settings], limit_s=60)
        self._runner.call([cmake, "--build", str(self._plugins), "--parallel", str(os.cpu_count() or 2)], limit_s=240)
        headers = re.search(r"TensorRT (\d+): headers", configured.out)
        plugin = f"with the plugin for TensorRT {headers[1]}" if headers else "without the plugin: no TensorRT headers"
        return f"sm_{self._gpu.architecture}, {plugin}"

    def operator(self) -> str:
        """Compile the PyTorch operator, which the tests and the benchmark then find in PyTorch's cache."""
        code = "from nrd_trt.decode.extension import load_extension; load_extension()"
        outcome = self._runner.call([sys.executable, "-c", code], limit_s=240, check=False)
        if name := absent_module(outcome.text):
            raise NotRun(f"{name} is not installed")
        if found := re.search(r"^[\w.]*MissingDependencyError: (.+)", outcome.err, re.MULTILINE):
            raise NotRun(found[1])
        if outcome.code != 0:
            raise Failed(outcome.last_line())
        return ""

    def ctest(self) -> str:
        """Run the C++ tests, those without a GPU too."""
        self._built("test_kernels")
        report = self._folder / "ctest.xml"
        report.unlink(missing_ok=True)
        command = ["ctest", "--test-dir", str(self._plugins), "--output-on-failure", "--no-tests=error"]
        outcome = self._runner.call([*command, "--output-junit", str(report)], limit_s=90, check=False)
        tally = read_junit(report)
        if NO_DEVICE in tally.skipped:
            raise Failed(f"the driver (CUDA {self._gpu.cuda_driver}) shows a GPU that this CUDA toolkit does not reach")
        return tally.judge(outcome)

    def sanitizer(self, tool: str) -> Callable[[], str]:
        """Return the part that runs one tool over the C++ tests."""

        def run() -> str:
            sanitizer = find_tool("compute-sanitizer")
            if sanitizer is None:
                raise NotRun("no compute-sanitizer, which comes with the CUDA toolkit")
            self._built("test_kernels")
            done = []
            for name, arguments in SANITIZED.items():
                if not (program := self._program(name)).is_file():
                    continue
                head = [str(sanitizer), "--tool", tool, "--error-exitcode", "99", *SANITIZERS[tool]]
                outcome = self._runner.call([*head, str(program), *arguments], limit_s=150, check=False)
                if "Device not supported" in outcome.text:
                    raise NotRun("compute-sanitizer does not support this device")
                if outcome.code != 0:
                    raise Failed(f"{name}: {outcome.last_line()}")
                done.append(name)
            return ", ".join(done)

        return run

    def bench(self) -> str:
        """Run the benchmark of the kernels."""
        program = self._built("nrd_decode_bench")
        target = self._folder / "bench.json"
        target.unlink(missing_ok=True)
        with ClockLog(self._gpu) as clocks:
            outcome = self._runner.call([str(program), "--quick", "--json", str(target)], limit_s=120, check=False)
        self.clocks = clocks.summary()
        if target.is_file():
            self.results["bench"] = json.loads(target.read_text(encoding="utf-8"))
        if outcome.code != 0:
            raise Failed(outcome.last_line())
        return f"{self.results['bench']['checked']} launches checked"

    def pytest(self, path: Path) -> Callable[[], str]:
        """Return the part that runs one file of tests."""

        def run() -> str:
            report = self._folder / f"{path.stem}.xml"
            report.unlink(missing_ok=True)
            # Warnings are errors with the versions that `make install` takes, not with those of any machine.
            options = ["-m", "gpu", "-rs", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
            command = [sys.executable, "-m", "pytest", *options, os.path.relpath(path, ROOT)]
            outcome = self._runner.call(command, limit_s=180, environment=self._plugin(), check=False)
            if outcome.code != 0 and (name := absent_module(outcome.text)):
                raise NotRun(f"{name} is not installed")
            return read_junit(report).judge(outcome)

        return run

    def decode(self) -> str:
        """Run the benchmark of the decode in PyTorch."""
        if not self._runner.passed(OPERATOR):
            raise NotRun("the PyTorch operator was not compiled")
        self._decode_page.unlink(missing_ok=True)
        command = [sys.executable, "scripts/benchmark.py", "--decode", "--quick", "--json", "--force"]
        outcome = self._runner.call([*command, "--markdown", str(self._decode_page)], limit_s=180, check=False)
        if outcome.code != 0 and (name := absent_module(outcome.text)):
            raise NotRun(f"{name} is not installed")
        if outcome.out.lstrip().startswith("{"):
            self.results["decode"] = json.loads(outcome.out)
        if outcome.code != 0:
            raise Failed(outcome.last_line())
        return "see below"

    def engine(self) -> str:
        """Build the zoo's fp16 bundle and time it; the runner is named, so that nothing falls back to a CPU unseen."""
        try:
            reason = missing()
        except ModuleNotFoundError as exc:
            reason = f"{exc.name} is not installed"
        if reason is not None:
            raise NotRun(reason)
        from nrd_trt.engine.compat import installed_flavours
        from nrd_trt.zoo import checkpoint_path

        flavour, bundle = installed_flavours()[0], str(self._bundle)
        form = ["--size", "352x480", "--precision", "fp16", "--force", "--builder", flavour]
        source = str(checkpoint_path(CHECKPOINT))
        command = [sys.executable, "scripts/build_engine.py", source, "-o", bundle, *form]
        self._runner.call(command, limit_s=150, environment=self._plugin())
        timed = ["--runner", flavour, "--runs", str(self._runs), "--json"]
        command = [sys.executable, "scripts/benchmark.py", bundle, *timed]
        outcome = self._runner.call(command, limit_s=60, environment=self._plugin())
        self.results["engine"] = json.loads(outcome.out)
        return f"{flavour}, {CHECKPOINT} at 352x480"

    def overlap(self) -> str:
        """Hold overlapped runs of that bundle against plain ones and compare their frames per second."""
        if not self._runner.passed(BUNDLE):
            raise NotRun("the bundle was not timed")
        flavour = self.results["engine"]["runner"]
        command = [sys.executable, "scripts/benchmark_overlap.py", str(self._bundle), "--runner", flavour, "--json"]
        outcome = self._runner.call(command, limit_s=60, environment=self._plugin(), check=False)
        if not outcome.out.lstrip().startswith("{"):
            raise Failed(outcome.last_line())
        result = self.results["overlap"] = json.loads(outcome.out)
        if not result["equal"]:
            raise Failed("overlapped runs differ from plain ones")
        return f"{result['ratio']:.2f} times the frames per second"

    def decode_page(self) -> str | None:
        """The tables of the decode's benchmark in Markdown, or None."""
        return self._decode_page.read_text(encoding="utf-8") if self.results["decode"] is not None else None

    @property
    def _bundle(self) -> Path:
        return self._folder / "demo.nrd"

    @property
    def _decode_page(self) -> Path:
        return self._folder / "decode.md"

    def _plugin(self) -> dict[str, str]:
        """The setting that makes programs find the library of this build, where there is one."""
        library = self._plugins / "libnrd_trt_plugin.so"
        return {"NRD_TRT_PLUGIN": str(library)} if self._runner.passed("build") and library.is_file() else {}

    def _program(self, name: str) -> Path:
        return self._plugins / name if name == "nrd_decode_bench" else self._plugins / "nrd_decode" / "tests" / name

    def _built(self, name: str) -> Path:
        """Return a program of this run's build."""
        program = self._program(name)
        if not self._runner.passed("build") or not program.is_file():
            raise NotRun("plugins/ was not built")
        return program


if __name__ == "__main__":
    sys.exit(main())
