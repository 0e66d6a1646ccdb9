"""Time bundles, checkpoints and ONNX files on one image, from RGB at the engine's size to the mask.

Sources are timed in turn, call by call, and every figure comes with what makes it doubtful.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nrd_trt.benchmarking.notes import (
    arithmetic_notes,
    comparison_notes,
    device_marks,
    graph_notes,
    load_marks,
    spread_marks,
)
from nrd_trt.benchmarking.plot import check_plot, write_plot
from nrd_trt.benchmarking.timing import (
    Latency,
    on_device,
    peak_memory_mib,
    time_in_turn,
    timed_call,
    watch_device,
)
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import Bundle, is_bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.machine.clocks import DeviceLog, ProbedDevice
from nrd_trt.machine.host import HostFacts, Machine, host_facts, load_average
from nrd_trt.progress import bar
from nrd_trt.runtime.engine import Engine, open_engine
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import Precision, Provider, RunnerName, Size, check_size, format_size, optional_path


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """What was measured of one source.

    Attributes:
        target: Name of the file.
        runner: Name of the backend that ran.
        arithmetic: ``"native"``, ``"simulated"`` or ``"tf32"``.
        precision: Precision of the file.
        size: Height and width of the image.
        batch: Images per call.
        warmup: Untimed calls.
        runs: Timed calls.
        threads: CPU threads; None where the backend chose.
        copies: Whether a device's copies are ``"included"`` or ``"excluded"``; ``"host arrays"`` on a CPU.
        cuda_graph: Whether a CUDA graph was replayed; None on a CPU.
        latency: Every timed call.
        ratio: p50 of the first source over that of this one.
        peak_memory_mib: Largest memory of the process; None where several sources share it.
        device_memory_mib: How much the memory in use on the device grew; None likewise, or where it is not known.
        host: The processor.
        load_before: Load average of the host before the run; None where the system has none.
        load_after: Load average of the host after the run.
        device: The device that ran; None on a CPU, or without an instrument.
        log: Clocks, power and temperature of the device.
        doubtful: Whether a note is about disturbed figures.
        notes: What a reader of the figures must know.
    """

    target: str
    runner: str
    arithmetic: str
    precision: Precision
    size: Size
    batch: int
    warmup: int
    runs: int
    threads: int | None
    copies: str
    cuda_graph: bool | None
    latency: Latency
    ratio: float
    peak_memory_mib: float | None
    device_memory_mib: float | None
    host: HostFacts
    load_before: float | None
    load_after: float | None
    device: ProbedDevice | None
    log: DeviceLog | None
    doubtful: bool
    notes: tuple[str, ...]

    @property
    def throughput_fps(self) -> float:
        """Images per second over the timed calls."""
        return self.latency.throughput_fps(self.batch)

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        apart = ("size", "latency", "host", "load_before", "load_after", "device", "log", "notes")
        load = {"load_before": self.load_before, "load_after": self.load_after}
        return {
            **{name: value for name, value in vars(self).items() if name not in apart},
            "size": format_size(self.size),
            "latency_ms": self.latency.to_dict(),
            "throughput_fps": self.throughput_fps,
            "host": {**asdict(self.host), **load},
            "device": {**asdict(self.device), **self.log.to_dict()} if self.device and self.log else None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was measured of every source, in their order."""

    rows: tuple[BenchmarkRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object: those of the one row, or ``results`` with several."""
        rows = [row.to_dict() for row in self.rows]
        return rows[0] if len(rows) == 1 else {"results": rows}


@dataclass(frozen=True, kw_only=True)
class _Target:
    """One source to time; its runner is not entered yet."""

    name: str
    engine: Engine
    size: Size


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """How every target is called; see `benchmark`."""

    batch: int
    warmup: int
    runs: int
    threads: int | None
    copies: bool | None
    cuda_graph: bool | None


def benchmark(
    *sources: Path | str,
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool | None = None,
    device: int | str | None = None,
    warmup: int = 3,
    runs: int = 20,
    batch: int = 1,
    size: Size | None = None,
    threads: int | None = None,
    copies: bool | None = None,
    plot: Path | str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Benchmark:
    """Time one image from RGB to the mask; several sources are timed in turn, call by call.

    Args:
        sources: Bundles, checkpoints, which run in eager PyTorch in fp32, and ONNX files, which run in ONNX Runtime.
        runner: See `nrd_trt.open_bundle`.
        plugin: Library of the bundles whose plans need one; see `nrd_trt.open_bundle`.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: Whether a device's runner replays a CUDA graph; None leaves the choice to the runner.
        device: See `nrd_trt.open_bundle`.
        warmup: Untimed calls of each.
        runs: Timed calls of each; p99 means something from 100 on.
        batch: Images per call.
        size: Height and width, multiples of 32; None takes a file's usual size, for checkpoints the first bundle's,
            else their own.
        threads: CPU threads; None leaves the choice to the backends.
        copies: Whether copies to and from a device are timed; None is True.
        plot: PNG to write with the distribution of the latencies.
        force: Replace an existing `plot`.
        progress: Show a bar on stderr where the work takes over two seconds.

    Returns:
        A row for each source.

    Raises:
        ConfigError: An argument does not fit a source.
        BundleError: A bundle is damaged.
        CheckpointError: A checkpoint cannot be read.
        ExportError: An ONNX file is absent or was not exported by this toolkit.
        PluginError: A plan's library is not that of the build, or cannot be used here.
        RunnerError: A run failed; the message names the source.
        MissingDependencyError: `plot` is given and Matplotlib is not installed.
    """
    plot = None if plot is None else Path(plot)
    calls = _Calls(batch=batch, warmup=warmup, runs=runs, threads=threads, copies=copies, cuda_graph=cuda_graph)
    _check(sources, calls)
    if plot is not None:
        check_plot(plot, force=force)
    run = RunOptions(
        runner=runner,
        plugin=optional_path("plugin", plugin),
        threads=threads,
        cuda=cuda,
        cuda_graph=cuda_graph is not False,
        device=device,
    )
    targets = _open([Path(source) for source in sources], batch, run, size)
    result = Benchmark(rows=_measure(targets, calls, progress=progress))
    if plot is not None:
        _plot(plot, result.rows)
    return result


def _check(sources: Sequence[Path | str], calls: _Calls) -> None:
    if not sources:
        raise ConfigError("expected a bundle, a checkpoint or an ONNX file to time, got none; name one.")
    for name, smallest in (("warmup", 0), ("runs", 1), ("batch", 1)):
        if (value := getattr(calls, name)) < smallest:
            raise ConfigError(f"{name}={value}: expected at least {smallest}.")


def _open(paths: Sequence[Path], batch: int, run: RunOptions, size: Size | None) -> list[_Target]:
    """Open every source; a library goes to the bundles that need it, where there are several sources."""
    bundles = {path: read_bundle(path) for path in paths if is_bundle(path)}
    if size is not None:
        check_size(size, what="size=")
    if run.plugin is not None and len(paths) > 1 and not any(map(_needs_plugin, bundles.values())):
        raise ConfigError(f"plugin={run.plugin}: expected a bundle whose plan needs it, got none; leave it out.")
    checkpoint_size = size or next((bundle.graph.shape.opt_hw for bundle in bundles.values()), None)
    targets = []
    for path in paths:
        bundle = bundles.get(path)
        handed = run if len(paths) == 1 or (bundle and _needs_plugin(bundle)) else replace(run, plugin=None)
        free = None if bundle is not None or path.suffix in (".nrd", ".onnx") else checkpoint_size
        engine = open_engine(bundle or path, handed, size=free)
        chosen = size or engine.graph.shape.opt_hw
        if engine.runner_name != "torch":  # a checkpoint takes what it is given
            _check_shape(path, engine, chosen, batch)
        targets.append(_Target(name=path.name, engine=engine, size=chosen))
    return targets


def _needs_plugin(bundle: Bundle) -> bool:
    return bundle.record.decode == "plugin"


def _check_shape(path: Path, engine: Engine, size: Size, batch: int) -> None:
    shape = engine.graph.shape
    if not shape.batch.min <= batch <= shape.batch.max:
        raise ConfigError(f"batch={batch}: {path} was built for {shape.batch.min} to {shape.batch.max}.")
    if not shape.covers(size):
        smallest, largest = (format_size((getattr(shape.height, k), getattr(shape.width, k))) for k in ("min", "max"))
        raise ConfigError(f"size={format_size(size)}: {path} was built for {smallest} to {largest}.")


def _measure(targets: Sequence[_Target], calls: _Calls, *, progress: bool) -> tuple[BenchmarkRow, ...]:
    """Enter every runner, time them in turn and watch host and device."""
    host, load_before = host_facts(Machine()), load_average()
    with ExitStack() as stack:
        watched = any(on_device(target.engine.runner) for target in targets)
        monitor, device, instrument_notes = watch_device(stack) if watched else (None, None, ())
        timed = {}
        for index, target in enumerate(targets):
            engine = target.engine
            stack.enter_context(engine)
            image = engine.feed(street_scene(0, target.size).image)["image"][:1]
            feed = {"image": np.repeat(image, calls.batch, axis=0)}
            timed[f"{index}"] = timed_call(stack, engine.runner, feed, copies=calls.copies, target=target.name)
        shown: tqdm[Any] = stack.enter_context(bar(desc="timing", unit="round", show=progress, total=calls.runs))

        def between() -> None:
            if monitor is not None:
                monitor.glance()
            shown.update()

        latencies = time_in_turn(timed, warmup=calls.warmup, runs=calls.runs, between=between).values()
        load_after, log = load_average(), monitor.finish() if monitor is not None else None
    first, alone = next(iter(latencies)), len(targets) == 1
    rows = []
    for target, latency in zip(targets, latencies, strict=True):
        engine, there = target.engine, on_device(target.engine.runner)
        marks = [*load_marks(load_before, host.cores), *device_marks(log if there else None), *spread_marks(latency)]
        notes = [*marks, *_notes(target, instrument_notes if there else (), calls)]
        notes += comparison_notes([format_size(other.size) for other in targets])
        row = BenchmarkRow(
            target=target.name,
            runner=engine.runner_name,
            arithmetic=engine.arithmetic,
            precision=engine.graph.precision,
            size=target.size,
            batch=calls.batch,
            warmup=calls.warmup,
            runs=calls.runs,
            threads=calls.threads,
            copies=("excluded" if calls.copies is False else "included") if there else "host arrays",
            cuda_graph=engine.runner.cuda_graph if on_device(engine.runner) else None,
            latency=latency,
            ratio=first.p50 / latency.p50,
            # Memory is the process's and the device's, whichever target asked for it.
            peak_memory_mib=peak_memory_mib() if alone else None,
            device_memory_mib=log.memory_grown_mib if alone and log is not None else None,
            host=host,
            load_before=load_before,
            load_after=load_after,
            device=device if there else None,
            log=log if there else None,
            doubtful=bool(marks),
            notes=tuple(notes),
        )
        rows.append(row)
    return tuple(rows)


def _notes(target: _Target, instrument_notes: Sequence[str], calls: _Calls) -> list[str]:
    """Say what a reader of one source's figures must know, disturbances aside."""
    engine = target.engine
    notes = [*arithmetic_notes(engine.arithmetic)]
    if engine.plan_run is not None and not on_device(engine.runner):
        notes.append(f"the plan was built but not run here: these are {engine.runner_name}'s figures")
    return [*notes, *instrument_notes, *graph_notes(engine.runner, wanted=calls.cuda_graph, warmup=calls.warmup)]


def _plot(path: Path, rows: Sequence[BenchmarkRow]) -> None:
    """Draw the latencies of all rows; a note stands below once, with its targets where it is not about all."""
    first = rows[0]
    sizes = ", ".join(dict.fromkeys(format_size(row.size) for row in rows))
    device = next((row.device.name for row in rows if row.device), None)
    machine = " + ".join(filter(None, (device, f"{first.host.cpu or 'unknown CPU'}, {first.host.cores} cores")))
    together = ", measured in turn" if len(rows) > 1 else ""
    footnotes = []
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        holders = [row.target for row in rows if note in row.notes]
        footnotes.append(note if len(holders) == len(rows) else f"{', '.join(holders)}: {note}")
    write_plot(
        path,
        rows,
        title=f"Latency at {sizes}, batch {first.batch}",
        subtitle=f"{machine}; {first.runs} calls each after {first.warmup} for warm-up{together}",
        footnotes=footnotes,
    )
