"""Latencies of candidates: of native runs on this machine, or read from what `nrd_trt.benchmark` told on a device."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx

from nrd_trt.benchmarking.benchmark import benchmark
from nrd_trt.benchmarking.calls import call_on_host
from nrd_trt.benchmarking.timing import time_in_turn
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE, Bundle
from nrd_trt.errors import ConfigError, RunnerError
from nrd_trt.graph.metadata import read_facts
from nrd_trt.json_files import read_json
from nrd_trt.machine.host import child_environment, without_folder
from nrd_trt.optimization.rungs import Rung
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.select import RunOptions, cpu_runner
from nrd_trt.specs import format_size

_WARMUP, _RUNS = 5, 40
_QUICK_WARMUP, _QUICK_RUNS = 2, 10
_ALONE = """
import json, sys, nrd_trt
options = json.loads(sys.argv[2])
print(json.dumps(nrd_trt.benchmark(sys.argv[1], warmup=1, runs=2, progress=False, **options).to_dict()))
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What of a row of `nrd_trt.benchmark` ranks a candidate; see `nrd_trt.benchmarking.record`."""

    target: str
    runner: str
    arithmetic: str
    plan_ran: bool | None
    size: str
    batch: int
    streams: int
    latency_ms: Mapping[str, float]
    onnx_sha256: str | None = None
    checkpoint_sha256: str | None = None
    device_memory_mib: float | None = None
    peak_memory_mib: float | None = None
    notes: tuple[str, ...] = ()
    doubtful: bool = False

    @property
    def obstacle(self) -> str | None:
        """Why the latency ranks nothing; None where it does."""
        if self.arithmetic != "native":
            return f"no native runs: {self.runner} executed it in {self.arithmetic}, which is another file's speed"
        return f"the plan did not run, {self.runner} did" if self.plan_ran is False else None

    @property
    def memory_mib(self) -> float | None:
        """Largest memory: of the device where that is known, else of the process."""
        return self.peak_memory_mib if self.device_memory_mib is None else self.device_memory_mib


class DeviceLatencies:
    """A file that `nrd_trt.benchmark` wrote on a device.

    Args:
        path: Its JSON object.
        sources: SHA-256 of each checkpoint that is searched.

    Raises:
        ConfigError: It is another file, or about another network; or an image was not timed alone.
    """

    def __init__(self, path: Path, sources: Iterable[str]) -> None:
        self._path, known = path, {*sources}
        rows = _read_rows(path)
        for row in rows:
            if row.onnx_sha256 is None or row.checkpoint_sha256 not in known:
                whose = "no hash of a bundle's file" if row.onnx_sha256 is None else "that of another network"
                raise ConfigError(
                    f"latencies={path}: expected latencies of bundles of these sources, got {whose} in {row.target!r}; "
                    "write the candidates with export_candidates= and time those."
                )
            if row.batch != 1 or row.streams != 1 or not math.isfinite(row.latency_ms.get("p50", math.nan)):
                raise ConfigError(
                    f"latencies={path}: expected the median of single images, got batch={row.batch} and "
                    f"streams={row.streams} in {row.target!r}; time it without both."
                )
        self._rows = {row.target.partition("@")[0]: row for row in rows}

    @property
    def tells_memory(self) -> bool:
        """Whether any row tells its memory."""
        return any(row.memory_mib is not None for row in self._rows.values())

    def guess(self, name: str) -> float | None:
        """Return the latency of a candidate by its name, before its bundle is there; None where it ranks nothing."""
        row = self._rows.get(f"{name}.nrd")
        return None if row is None or row.obstacle else row.latency_ms["p50"]

    def rows(self, bundles: Mapping[str, Bundle]) -> dict[str, Row]:
        """Return the rows of bundles by their names.

        Raises:
            ConfigError: A row is of another file than the bundle of its name.
        """
        found = {name: self._rows[f"{name}.nrd"] for name in bundles if f"{name}.nrd" in self._rows}
        for name, row in found.items():
            due = bundles[name].record.files[ONNX_FILE]
            if (row.onnx_sha256, row.size) != (due, format_size(bundles[name].graph.shape.opt_hw)):
                raise ConfigError(
                    f"latencies={self._path}: expected the ONNX file {due[:12]}… of {name}, got {row.onnx_sha256:.12}… "
                    f"at {row.size}; the candidates were made otherwise. Write them again with export_candidates=, "
                    "and time those."
                )
        return found


def _read_rows(path: Path) -> list[Row]:
    try:
        found: Any = read_json(path, object)
        rows = found["results"] if isinstance(found, dict) and "results" in found else [found]
        return msgspec.convert(rows, list[Row])
    except (ValueError, OSError) as exc:
        raise ConfigError(
            f"latencies={path}: expected what `nrd_trt.benchmark` tells as JSON, got something else ({exc}); write it "
            "on the device."
        ) from exc


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Where latencies come from.

    Attributes:
        kind: ``"cpu"`` and ``"plans"`` run bundles here, ``"device"`` reads a file, ``"none"`` leaves them out.
        run: How bundles are run here.
        device: What the file tells.
    """

    kind: Literal["cpu", "plans", "device", "none"]
    run: RunOptions
    device: DeviceLatencies | None = None

    def quick(self, file: onnx.ModelProto) -> float | None:
        """Return the milliseconds of the fastest of a few native runs of a file on this CPU; None where it has none."""
        return None if self.kind == "plans" else quick_latency(self.run, file)

    def guess(self, name: str, rung: Rung) -> float | None:
        """Return what is known of the latency of a candidate before its bundle is there."""
        if self.device is not None:
            return self.device.guess(name)
        return rung.latency_ms if self.kind == "cpu" else None

    def obstacle(self, name: str, rung: Rung) -> str | None:
        """Say why a candidate will have no latency; None where it may have one."""
        if self.kind not in ("cpu", "device") or self.guess(name, rung) is not None:
            return None
        if self.device is not None:
            return "latencies=: the file has no native runs of it; time it on the device"
        return (
            "no native runs: this CPU does not compute in the types of its file; export_candidates= writes it, to be "
            "timed on a device, and latencies= reads what came of that"
        )

    def rows(self, bundles: Mapping[str, Bundle], *, progress: bool) -> Mapping[str, Row]:
        """Return the rows of bundles, as far as there are any."""
        if self.device is not None:
            return self.device.rows(bundles)
        return time_here(bundles, self.run, progress=progress) if bundles and self.kind != "none" else {}

    def memory_mb(self, bundle: Bundle, row: Row) -> float | None:
        """Return the largest memory of a bundle in MB: what the file tells, or of a process of its own."""
        memory_mib = row.memory_mib if self.device is not None else memory_alone(bundle, self.run)
        return None if memory_mib is None else memory_mib * 2**20 / 1e6


def time_here(bundles: Mapping[str, Bundle], run: RunOptions, *, progress: bool) -> dict[str, Row]:
    """Time bundles in turn on this machine, as `nrd_trt.benchmark` does; return their rows by name."""
    plugin = run.plugin if any(bundle.record.decode == "plugin" for bundle in bundles.values()) else None
    paths = [bundle.path for bundle in bundles.values()]
    found = benchmark(
        *paths,
        runner=run.runner,
        plugin=plugin,
        cuda=run.cuda,
        cuda_graph=None if run.cuda_graph else False,
        threads=run.threads,
        warmup=_WARMUP,
        runs=_RUNS,
        progress=progress,
    )
    rows = msgspec.convert([row.to_dict() for row in found.rows], list[Row])
    return dict(zip(bundles, rows, strict=True))


def memory_alone(bundle: Bundle, run: RunOptions) -> float | None:
    """Return the largest memory of a bundle that a process of its own runs, as `nrd_trt.benchmark` tells it, in MiB.

    Raises:
        RunnerError: The process failed.
    """
    options = {"runner": run.runner, "threads": run.threads, "plugin": run.plugin and str(run.plugin)}
    command = without_folder([sys.executable, "-c", _ALONE, str(bundle.path), json.dumps(options)])
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
    if done.returncode:
        raise RunnerError(f"{bundle.path}: its memory could not be measured: {done.stderr.strip()[-500:]}")
    return msgspec.convert(json.loads(done.stdout), Row).memory_mib


def quick_latency(run: RunOptions, file: onnx.ModelProto) -> float | None:
    """Return the milliseconds of the fastest of a few native runs of a file on this CPU; None where it has none.

    Other work on the machine makes a median of few calls longer by any factor, the fastest one hardly.
    """
    facts = read_facts(file)
    feed = image_feed(street_scene(0, facts.shape.opt_hw).image, facts)
    with cpu_runner(file, facts, run) as runner:
        if runner.arithmetic != "native":
            return None
        timed = time_in_turn({"": lambda: call_on_host(runner, feed)}, warmup=_QUICK_WARMUP, runs=_QUICK_RUNS)
    return timed[""].latency.min
