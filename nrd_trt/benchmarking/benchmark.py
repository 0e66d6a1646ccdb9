"""Time bundles, checkpoints and ONNX files on one image, from RGB at the engine's size to the mask.

Sources are timed in turn, call by call, and every figure comes with what makes it doubtful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from nrd_trt.benchmarking.calls import Timed, on_device, profiles, timed_call, watch_device
from nrd_trt.benchmarking.notes import (
    arithmetic_notes,
    comparison_notes,
    device_marks,
    energy_notes,
    graph_notes,
    layer_notes,
    load_marks,
    spread_marks,
    stream_notes,
)
from nrd_trt.benchmarking.plot import check_plot, write_plot
from nrd_trt.benchmarking.record import Benchmark, BenchmarkRow, LayerTime
from nrd_trt.benchmarking.timing import Call, Latency, Timing, peak_memory_mib, time_at_once, time_in_turn
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE, Bundle, is_bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.machine.clocks import DeviceLog, DeviceMonitor, ProbedDevice
from nrd_trt.machine.device import choose_device
from nrd_trt.machine.host import HostFacts, Machine, host_facts, load_average
from nrd_trt.progress import bar
from nrd_trt.runtime.engine import Engine, open_engine
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import Provider, RunnerName, Size, check_number, check_size, format_size, optional_path


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """How every target is called; see `benchmark`."""

    batch: int
    warmup: int
    runs: int
    duration: float | None
    streams: int
    copies: bool | None
    cuda_graph: bool | None
    profile: bool
    run: RunOptions

    def __post_init__(self) -> None:
        for name, low in (("batch", 1), ("warmup", 0), ("runs", 1), ("streams", 1)):
            check_number(name, getattr(self, name), low=low)
        check_number("duration", self.duration, low=0, whole=False)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """One source to time, with an engine for each stream; their runners are not entered yet."""

    name: str
    engines: tuple[Engine, ...]
    size: Size
    onnx_sha256: str | None
    checkpoint_sha256: str | None

    @property
    def engine(self) -> Engine:
        """The engine of the first stream, for what all of them share."""
        return self.engines[0]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was measured of one target."""

    target: _Target
    timing: Timing
    cuda_graph: bool | None
    layers: tuple[LayerTime, ...] | None


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """What all targets shared."""

    host: HostFacts
    load_before: float | None
    load_after: float | None
    device: ProbedDevice | None
    log: DeviceLog | None
    instrument_notes: Sequence[str]
    sizes: Sequence[str]


def benchmark(
    *sources: Path | str,
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool | None = None,
    device: int | str | None = None,
    verify_key: Path | str | None = None,
    warmup: int = 3,
    runs: int = 20,
    duration: float | None = None,
    streams: int = 1,
    batch: int = 1,
    size: Size | None = None,
    threads: int | None = None,
    copies: bool | None = None,
    profile: bool = False,
    plot: Path | str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Benchmark:
    """Time one image from RGB to the mask; several sources are timed in turn, call by call.

    Args:
        sources: Bundles, checkpoints, which run in eager PyTorch in fp32, and ONNX files, which run on the CPU. With
            ``@`` and the name of a runner at its end, such as ``"model.nrd@openvino"``, one is run by that.
        runner: See `nrd_trt.open_bundle`.
        plugin: Library of the bundles whose plans need one; see `nrd_trt.open_bundle`.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: Whether a device's runner replays a CUDA graph; None leaves the choice to the runner.
        device: See `nrd_trt.open_bundle`.
        verify_key: Key that must have signed every source, so that none may be a checkpoint; see `nrd_trt.open_bundle`.
        warmup: Untimed calls of each.
        runs: Timed calls of each, at the least, and on a device as many for the engine alone after them; 3 + 20 calls
            are too few for p99, which means something from 100 on.
        duration: Seconds of timed calls of each, at the least, and as many for the engine alone; None or 0 goes by
            `runs`.
        streams: Calls at a time, each on a thread with an engine of its own, on a device with its own execution
            context, CUDA stream and memory, weights included. For one source; latencies are then those under load.
        batch: Images per call.
        size: Height and width, multiples of 32; None takes a file's usual size, for checkpoints the first bundle's,
            else their own.
        threads: CPU threads; None leaves the choice to the backends.
        copies: Whether copies to and from a device are timed; None is True.
        profile: Also time every layer, in as many calls after the others, which use no CUDA graph; PyTorch cannot.
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
    plot, plugin = optional_path("plot", plot), optional_path("plugin", plugin)
    run = RunOptions(
        runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph is not False, device=device
    )
    calls = _Calls(
        batch=batch,
        warmup=warmup,
        runs=runs,
        duration=duration,
        streams=streams,
        copies=copies,
        cuda_graph=cuda_graph,
        profile=profile,
        run=replace(run, device=None),  # it is chosen once, for all engines
    )
    _check(sources, calls)
    if plot is not None:
        check_plot(plot, force=force)
    choose_device(run.device)
    asked = [_asked(Path(source)) for source in sources]
    targets = _open(asked, calls, size, optional_path("verify_key", verify_key))
    result = Benchmark(rows=_measure(targets, calls, progress=progress))
    if plot is not None:
        _plot(plot, result.rows)
    return result


def _check(sources: Sequence[Path | str], calls: _Calls) -> None:
    if not sources:
        raise ConfigError("expected a bundle, a checkpoint or an ONNX file to time, got none; name one.")
    if calls.streams > 1 and len(sources) > 1:
        raise ConfigError(f"streams={calls.streams}: expected one source, got {len(sources)}; time them one by one.")


def _asked(source: Path) -> tuple[Path, RunnerName | None]:
    """Return a file and the runner that is asked for with it."""
    name, _, runner = source.name.rpartition("@")
    named = next((known for known in get_args(RunnerName) if known == runner), None)
    return (source.with_name(name), named) if name and named and not source.exists() else (source, None)


def _open(
    sources: Sequence[tuple[Path, RunnerName | None]], calls: _Calls, size: Size | None, verify_key: Path | None
) -> list[_Target]:
    """Open every source; a library goes to the bundles that need it, where there are several sources."""
    run, paths = calls.run, [path for path, _ in sources]
    bundles = {path: read_bundle(path, verify_key=verify_key) for path in paths if is_bundle(path)}
    if size is not None:
        check_size(size, what="size=")
    if run.plugin is not None and len(paths) > 1 and not any(map(_needs_plugin, bundles.values())):
        raise ConfigError(f"plugin={run.plugin}: expected a bundle whose plan needs it, got none; leave it out.")
    checkpoint_size = size or next((bundle.graph.shape.opt_hw for bundle in bundles.values()), None)
    targets = []
    for path, runner in sources:
        bundle = bundles.get(path)
        handed = run if len(paths) == 1 or (bundle and _needs_plugin(bundle)) else replace(run, plugin=None)
        handed = replace(handed, runner=runner or run.runner)
        free = None if bundle is not None or path.suffix in (".nrd", ".onnx") else checkpoint_size
        engines = tuple(
            open_engine(bundle or path, handed, size=free, verify_key=verify_key) for _ in range(calls.streams)
        )
        onnx = bundle.record.files[ONNX_FILE] if bundle else sha256_file(path) if path.suffix == ".onnx" else None
        target = _Target(
            name=path.name,
            engines=engines,
            size=size or engines[0].graph.shape.opt_hw,
            onnx_sha256=onnx,
            checkpoint_sha256=engines[0].graph.checkpoint_sha256 if onnx else sha256_file(path),
        )
        if target.engine.runner_name != "torch":  # a checkpoint takes what it is given
            _check_shape(path, target.engine, target.size, calls.batch)
        if calls.profile and not (on_device(target.engine.runner) or profiles(target.engine.runner)):
            raise ConfigError(
                f"profile=True: expected a bundle or an ONNX file, got {path}, which runs by "
                f"{target.engine.runner_name}, which does not tell what layers take; leave one of them out."
            )
        targets.append(target)
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
    """Enter every runner, time them and watch host and device."""
    host, load_before = host_facts(Machine()), load_average()
    with ExitStack() as stack:
        watched = any(on_device(target.engine.runner) for target in targets)
        monitor, device, instrument_notes = watch_device(stack) if watched else (None, None, ())
        timed = [_enter(stack, target, calls) for target in targets]
        timings = _time([[one.whole for one in row] for row in timed], calls, monitor, progress=progress)
        load_after, log = load_average(), monitor.finish() if monitor is not None else None
        timings = [
            replace(timing, gpu_compute=gpu_compute)
            for timing, gpu_compute in zip(timings, _gpu_compute(timed, calls, progress=progress), strict=True)
        ]
        measured = [_finish(*one, calls) for one in zip(targets, timed, timings, strict=True)]
    shared = _Conditions(
        host=host,
        load_before=load_before,
        load_after=load_after,
        device=device,
        log=log,
        instrument_notes=instrument_notes,
        sizes=[format_size(target.size) for target in targets],
    )
    return tuple(_row(one, timings[0], shared, calls) for one in measured)


def _enter(stack: ExitStack, target: _Target, calls: _Calls) -> list[Timed]:
    """Enter the runners of a target and return the calls of each."""
    image = target.engine.feed(street_scene(0, target.size).image)["image"][:1]
    feed = {"image": np.repeat(image, calls.batch, axis=0)}
    made = []
    for engine in target.engines:
        stack.enter_context(engine)
        cuda = calls.run.cuda
        made.append(timed_call(stack, engine.runner, feed, copies=calls.copies, cuda=cuda, target=target.name))
    return made


def _time(
    timed: Sequence[Sequence[Call]], calls: _Calls, monitor: DeviceMonitor | None, *, progress: bool
) -> list[Timing]:
    """Time all targets in turn, or the streams of the only one at once."""
    warmup, runs, duration_s = calls.warmup, calls.runs, calls.duration or 0.0
    meter, glance = (monitor.meter, monitor.glance) if monitor is not None else (None, None)
    if calls.streams > 1:
        (streams,) = timed
        return [time_at_once(streams, warmup=warmup, runs=runs, duration_s=duration_s, during=meter, between=glance)]
    total = None if duration_s else runs
    shown: tqdm[Any]
    with bar(desc="timing", unit="round", show=progress, total=total) as shown:

        def between() -> None:
            if glance is not None:
                glance()
            shown.update()

        named = {f"{index}": call for index, (call,) in enumerate(timed)}
        timings = time_in_turn(named, warmup=warmup, runs=runs, duration_s=duration_s, during=meter, between=between)
    return [*timings.values()]


def _gpu_compute(timed: Sequence[Sequence[Timed]], calls: _Calls, *, progress: bool) -> list[Latency | None]:
    """Time the engines of all targets on a device alone, as often and as long as their calls were timed."""
    alone = [[one.alone for one in row if one.alone is not None] for row in timed]
    there = [row for row in alone if row]
    found = iter(_time(there, replace(calls, warmup=0), None, progress=progress) if there else ())
    return [next(found).gpu_compute if row else None for row in alone]


def _finish(target: _Target, timed: Sequence[Timed], timing: Timing, calls: _Calls) -> _Measured:
    """Look at what was run, and profile it where that was asked for."""
    runner, profile = target.engine.runner, timed[0].layers
    graph = runner.cuda_graph if on_device(runner) else None
    layers = profile(calls.runs) if calls.profile and profile else None
    return _Measured(target=target, timing=timing, cuda_graph=graph, layers=layers)


def _row(measured: _Measured, first: Timing, shared: _Conditions, calls: _Calls) -> BenchmarkRow:
    target, latency = measured.target, measured.timing.latency
    engine, there, alone = target.engine, on_device(target.engine.runner), len(shared.sizes) == 1
    log = shared.log if there else None
    marks = [*load_marks(shared.load_before, shared.host.cores), *device_marks(log), *spread_marks(latency)]
    return BenchmarkRow(
        target=target.name,
        runner=engine.runner_name,
        arithmetic=engine.arithmetic,
        plan_ran=engine.plan_ran,
        precision=engine.graph.precision,
        size=target.size,
        onnx_sha256=target.onnx_sha256,
        checkpoint_sha256=target.checkpoint_sha256,
        batch=calls.batch,
        warmup=calls.warmup,
        duration_s=calls.duration,
        streams=calls.streams,
        threads=calls.run.threads,
        copies=("excluded" if calls.copies is False else "included") if there else "host arrays",
        cuda_graph=measured.cuda_graph,
        timing=measured.timing,
        ratio=first.latency.p50 / latency.p50,
        layers=measured.layers,
        executed=None if engine.executed is None else Counter(engine.executed.values()),
        # Memory is the process's and the device's, and energy too, whichever target asked for it.
        energy=log.energy if alone and log is not None else None,
        peak_memory_mib=peak_memory_mib() if alone else None,
        device_memory_mib=shared.log.memory_grown_mib if alone and shared.log is not None else None,
        host=shared.host,
        load_before=shared.load_before,
        load_after=shared.load_after,
        device=shared.device if there else None,
        log=log,
        doubtful=bool(marks),
        notes=(*marks, *_notes(measured, shared, calls)),
    )


def _notes(measured: _Measured, shared: _Conditions, calls: _Calls) -> list[str]:
    """Say what a reader of one source's figures must know, disturbances aside."""
    engine = measured.target.engine
    notes = [*arithmetic_notes(engine.arithmetic)]
    if engine.plan_ran is not None and not on_device(engine.runner):
        notes.append(f"the plan was built but not run here: these are {engine.runner_name}'s figures")
    if on_device(engine.runner):
        notes += [*shared.instrument_notes, *energy_notes(shared.log, sources=len(shared.sizes))]
    else:
        notes += stream_notes(calls.streams, threads=calls.run.threads, cores=shared.host.cores)
    notes += graph_notes(engine.runner.name, measured.cuda_graph, wanted=calls.cuda_graph, warmup=calls.warmup)
    return [*notes, *layer_notes(engine.runner.name, measured.layers), *comparison_notes(shared.sizes)]


def _plot(path: Path, rows: Sequence[BenchmarkRow]) -> None:
    """Draw the latencies of all rows; a note stands below once, with its targets where it is not about all."""
    first = rows[0]
    sizes = ", ".join(dict.fromkeys(format_size(row.size) for row in rows))
    device = next((row.device.name for row in rows if row.device), None)
    machine = " + ".join(filter(None, (device, f"{first.host.cpu or 'unknown CPU'}, {first.host.cores} cores")))
    together = ", measured in turn" if len(rows) > 1 else ""
    calls = f"{first.runs} calls each" if first.streams == 1 else f"{first.runs} calls in {first.streams} streams"
    footnotes = []
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        holders = [row.target for row in rows if note in row.notes]
        footnotes.append(note if len(holders) == len(rows) else f"{', '.join(holders)}: {note}")
    write_plot(
        path,
        rows,
        title=f"Latency at {sizes}, batch {first.batch}",
        subtitle=f"{machine}; {calls} after {first.warmup} for warm-up{together}",
        footnotes=footnotes,
    )
