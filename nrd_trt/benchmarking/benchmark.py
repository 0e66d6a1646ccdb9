"""Time bundles and checkpoints on one image, from RGB at the engine's size to the mask, and say how far to trust it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nrd_trt.benchmarking.calls import choose_graph, graph_notes, on_device, statement, timed_call
from nrd_trt.benchmarking.device_call import device_call
from nrd_trt.benchmarking.marks import arithmetic_notes, comparison_notes, device_marks, load_marks, spread_marks
from nrd_trt.benchmarking.plot import Curve, check_plot, write_plot
from nrd_trt.benchmarking.timers import Latency, peak_memory_mib, time_in_turn
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import is_bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.machine.clocks import DeviceLog, DeviceMonitor, ProbedDevice, open_probe
from nrd_trt.machine.host import Machine, host_facts, load_average
from nrd_trt.model import load_trained
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.select import make_runner
from nrd_trt.specs import RunnerName, check_size, format_size


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """What `nrd-trt benchmark` is asked for.

    Attributes:
        targets: Bundles (run by `runner`) and checkpoints (run by eager PyTorch, fp32, default layout).
        runner: For bundles.
        plugin: Library of the bundles whose plans need one.
        warmup: Untimed calls of each.
        runs: Timed calls of each.
        batch: Images per call.
        size_hw: Default: a bundle's usual size; for checkpoints the first bundle's, else their own.
        threads: CPU threads; None leaves the choice to the backends.
        copies: Whether copies to and from a device are timed; None is True.
        cuda_graph: None leaves the choice to the runner.
        plot: PNG to write, or None.
        force: Replace an existing `plot`.
        progress: Show a bar on stderr where it takes over two seconds.
    """

    targets: Sequence[Path]
    runner: RunnerName = "auto"
    plugin: Path | None = None
    warmup: int = 3
    runs: int = 20
    batch: int = 1
    size_hw: tuple[int, int] | None = None
    threads: int | None = None
    copies: bool | None = None
    cuda_graph: bool | None = None
    plot: Path | None = None
    force: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.targets or self.warmup < 0 or self.runs < 1 or self.batch < 1:
            raise ConfigError(f"benchmark: expected targets, warmup >= 0, runs >= 1 and batch >= 1, got {self}.")


@dataclass(frozen=True, kw_only=True)
class _Target:
    """One thing to time; its runner is not entered yet."""

    name: str
    runner: BaseRunner
    feed: Mapping[str, np.ndarray]
    size_hw: tuple[int, int]
    precision: str
    plan_built: bool = False
    needs_plugin: bool = False


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What was measured of all targets together."""

    latencies: Mapping[str, Latency]
    host: dict[str, Any]
    device: ProbedDevice | None
    log: DeviceLog | None
    notes: list[str]
    statements: list[dict[str, Any]]
    target_notes: list[list[str]]


def benchmark_targets(request: BenchmarkRequest) -> list[dict[str, Any]]:
    """Time each target; several are run in turn, call by call.

    Returns:
        Per target: ``target, runner, arithmetic, precision, size, batch, warmup, runs, threads, copies, cuda_graph,
        latency_ms {p50, p90, p99, mean, min}, throughput_fps, ratio, peak_memory_mib, device_memory_mib, host, device,
        doubtful, notes``. ``ratio`` is the first target's p50 over this one's; memory is the process's and so None
        where several run; ``doubtful`` tells whether a note is about disturbed figures.

    Raises:
        ConfigError: Options that a target cannot be run with.
        RunnerError: A run failed; the message names the target.
    """
    if request.plot is not None:
        check_plot(request.plot, force=request.force)
    targets = _prepare(request)
    run = _measure(request, targets)
    results = _results(request, targets, run)
    if request.plot is not None:
        _plot(request, results, run)
    return results


def _prepare(request: BenchmarkRequest) -> list[_Target]:
    bundles = (read_bundle(path).graph.shape.opt_hw for path in request.targets if is_bundle(path))
    fallback_hw = request.size_hw or next(bundles, None)
    targets = [
        _bundle_target(path, request)
        if is_bundle(path) or path.suffix == ".nrd"
        else _checkpoint_target(path, request, fallback_hw)
        for path in request.targets
    ]
    if request.plugin is not None and not any(target.needs_plugin for target in targets):
        raise ConfigError(f"--plugin {request.plugin}: expected a bundle whose plan needs it, got none; leave it out.")
    return targets


def _bundle_target(path: Path, request: BenchmarkRequest) -> _Target:
    bundle = read_bundle(path)
    shape = bundle.graph.shape
    if not shape.batch.min <= request.batch <= shape.batch.max:
        raise ConfigError(f"--batch {request.batch}: {path} was built for {shape.batch.min} to {shape.batch.max}.")
    size_hw = request.size_hw or shape.opt_hw
    if not shape.covers(size_hw):
        smallest, largest = (format_size((getattr(shape.height, k), getattr(shape.width, k))) for k in ("min", "max"))
        raise ConfigError(f"--size {format_size(size_hw)}: {path} was built for {smallest} to {largest}.")
    needs_plugin = bundle.record.decode == "plugin"
    plugin = request.plugin if needs_plugin or len(request.targets) == 1 else None
    runner = make_runner(bundle, request.runner, threads=request.threads, plugin=plugin)
    feed = image_feed(_scene(size_hw), bundle.graph)
    return _Target(
        name=path.name,
        runner=runner,
        feed={"image": np.repeat(feed["image"][:1], request.batch, axis=0)},
        size_hw=size_hw,
        precision=bundle.graph.precision,
        plan_built=bundle.plan_path is not None,
        needs_plugin=needs_plugin,
    )


def _checkpoint_target(path: Path, request: BenchmarkRequest, size_hw: tuple[int, int] | None) -> _Target:
    """Eager PyTorch; timing a bundle needs none."""
    if request.runner not in ("auto", "torch"):
        raise ConfigError(f"--runner {request.runner}: a checkpoint runs in PyTorch; build a bundle for other runners.")
    model = load_trained(path)
    from nrd_trt.runtime.torch_runner import TorchRunner  # after `load_trained`, which tells of a missing PyTorch

    size_hw = size_hw or model.info.size_hw
    check_size(size_hw, what="size=")
    return _Target(
        name=path.name,
        runner=TorchRunner(model, threads=request.threads),
        feed={"image": np.repeat(_scene(size_hw)[None], request.batch, axis=0)},
        size_hw=size_hw,
        precision="fp32",
    )


def _scene(size_hw: tuple[int, int]) -> np.ndarray:
    return street_scene(0, size_hw).image


def _measure(request: BenchmarkRequest, targets: Sequence[_Target]) -> _Run:
    """Enter every runner, time them in turn and watch host and device."""
    host = {**asdict(host_facts(Machine())), "load_before": load_average()}
    with ExitStack() as stack:
        monitor, device, notes = _monitor(stack, targets)
        calls = {}
        for index, target in enumerate(targets):
            choose_graph(target.runner, request.cuda_graph)
            stack.enter_context(target.runner)
            calls[f"{index}"] = timed_call(
                target.runner,
                target.feed,
                copies=request.copies,
                target=target.name,
                device_call=partial(device_call, stack, target.runner, target.feed),
            )
        bar = stack.enter_context(_bar(request))

        def between() -> None:
            if monitor is not None:
                monitor.glance()
            bar.update()

        latencies = time_in_turn(calls, warmup=request.warmup, runs=request.runs, between=between)
        return _Run(
            latencies=latencies,
            host={**host, "load_after": load_average()},
            device=device,
            log=monitor.finish() if monitor is not None else None,
            notes=notes,
            statements=[_statement(target.runner, request) for target in targets],
            target_notes=[_graph_notes(target.runner, request) for target in targets],
        )


def _bar(request: BenchmarkRequest) -> Any:
    return tqdm(
        total=request.runs,
        desc="timing",
        unit="round",
        delay=2,
        file=sys.stderr,
        disable=not request.progress,
        leave=False,
    )


def _graph_notes(runner: BaseRunner, request: BenchmarkRequest) -> list[str]:
    return graph_notes(runner, wanted=request.cuda_graph, copies=request.copies, warmup=request.warmup)


def _statement(runner: BaseRunner, request: BenchmarkRequest) -> dict[str, Any]:
    """Return what an entered runner's latency contains."""
    return {**statement(runner, copies=request.copies), "device_memory_mib": None}


def _monitor(
    stack: ExitStack, targets: Sequence[_Target]
) -> tuple[DeviceMonitor | None, ProbedDevice | None, list[str]]:
    """Open the device's instrument where a target runs on one, with its facts and what there is to say about it."""
    if not any(on_device(target.runner) for target in targets):
        return None, None, []
    probe, reason = open_probe()
    if probe is None:
        return None, None, [reason] if reason else []
    stack.callback(probe.close)
    return DeviceMonitor(probe), probe.device(), probe.notes


def _results(request: BenchmarkRequest, targets: Sequence[_Target], run: _Run) -> list[dict[str, Any]]:
    first = run.latencies["0"].p50
    shared = comparison_notes([format_size(target.size_hw) for target in targets])
    rows = [_row(request, target, run, index) for index, target in enumerate(targets)]
    for row in rows:
        row["ratio"] = first / row["latency_ms"]["p50"]
        row["notes"] += shared
    if len(rows) == 1:  # memory is the process's and the device's, whichever target asked for it
        rows[0]["peak_memory_mib"] = peak_memory_mib()
        if rows[0]["device"] is not None and run.log is not None:
            rows[0]["device_memory_mib"] = run.log.memory_grown_mib
    return rows


def _row(request: BenchmarkRequest, target: _Target, run: _Run, index: int) -> dict[str, Any]:
    latency = run.latencies[f"{index}"]
    marks = _marks(target, run, latency)
    return {
        "target": target.name,
        "runner": target.runner.name,
        "arithmetic": target.runner.arithmetic,
        "precision": target.precision,
        "size": format_size(target.size_hw),
        **{name: getattr(request, name) for name in ("batch", "warmup", "runs", "threads")},
        **run.statements[index],
        "latency_ms": latency.to_dict(),
        "throughput_fps": latency.throughput_fps(request.batch),
        "ratio": None,
        "peak_memory_mib": None,
        "host": run.host,
        "device": {**asdict(run.device), **run.log.to_dict()}
        if run.device is not None and run.log is not None and on_device(target.runner)
        else None,
        "doubtful": bool(marks),
        "notes": [*marks, *_notes(target, run), *run.target_notes[index]],
    }


def _marks(target: _Target, run: _Run, latency: Latency) -> list[str]:
    """What makes this target's figures doubtful."""
    marks = load_marks(run.host["load_before"], run.host["cores"])
    return [*marks, *(device_marks(run.log) if on_device(target.runner) else []), *spread_marks(latency)]


def _notes(target: _Target, run: _Run) -> list[str]:
    notes = arithmetic_notes(target.runner.arithmetic)
    if target.plan_built and not on_device(target.runner):
        notes.append(f"the plan was built but not run here: these are {target.runner.name}'s figures")
    return notes + (run.notes if on_device(target.runner) else [])


def _plot(request: BenchmarkRequest, results: Sequence[Mapping[str, Any]], run: _Run) -> None:
    """Write the picture of a run."""
    curves = [
        Curve(
            name=row["target"],
            runner=f"{row['runner']}, {row['precision']}" + (", simulated" if row["arithmetic"] == "simulated" else ""),
            latency=run.latencies[f"{index}"],
            doubtful=row["doubtful"],
        )
        for index, row in enumerate(results)
    ]
    sizes = ", ".join(dict.fromkeys(row["size"] for row in results))
    device = next((row["device"].get("name") for row in results if row["device"]), None)
    machine = " + ".join(filter(None, (device, f"{run.host['cpu'] or 'unknown CPU'}, {run.host['cores']} cores")))
    together = ", measured in turn" if len(results) > 1 else ""
    write_plot(
        request.plot or Path(),
        curves,
        title=f"Latency at {sizes}, batch {request.batch}",
        subtitle=f"{machine}; {request.runs} calls each after {request.warmup} for warm-up{together}",
        footnotes=_footnotes(results),
    )


def _footnotes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each note once, with its target where it is not about all."""
    notes = dict.fromkeys(note for row in results for note in row["notes"])
    holders = {note: [row["target"] for row in results if note in row["notes"]] for note in notes}
    return [note if len(of) == len(results) else f"{', '.join(of)}: {note}" for note, of in holders.items()]
