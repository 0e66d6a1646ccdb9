"""The verb ``benchmark``: latency of bundles and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.specs import format_size

if TYPE_CHECKING:
    from nrd_trt.benchmarking.record import BenchmarkRow
    from nrd_trt.benchmarking.timing import Latency

_LAYERS, _LAYER_LETTERS = 10, 80


def benchmark_command(
    *,
    targets: Annotated[
        list[Path] | None,
        typer.Argument(metavar="NAME.nrd|m.onnx|CKPT…", help="What to time; NAME.nrd@RUNNER chooses its runner."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Time several targets in turn; ratios are against the first.")
    ] = False,
    warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Untimed calls.")] = 3,
    runs: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Timed calls, at the least: 3 + 20 are too few for p99, which needs 100."
        ),
    ] = 20,
    duration: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Go on until there are S seconds of timed calls.")
    ] = None,
    streams: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Calls at a time, each in a context, stream and memory of its own."),
    ] = 1,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images per call.")] = 1,
    size: common.Size = None,
    run: groups.BundleOptions,
    copies: Annotated[
        bool | None,
        typer.Option("--include-copies/--no-copies", help="Time a device's copies from and to the host (default yes)."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time every layer as well, afterwards and without a CUDA graph.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the distribution of the latencies.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Time the decode's kernels alone, on a GPU, against other forms.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="With --decode: fewer cases.")] = False,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="With --decode: also write the tables.")
    ] = None,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Time one image from RGB to mask; checkpoints run in eager PyTorch."""
    from nrd_trt import benchmark
    from nrd_trt.errors import ConfigError

    if decode:
        options = {"--compare": compare, "--batch": batch != 1, "--size": size, "--plugin": run.plugin, "--plot": plot}
        options |= {"--duration": duration, "--streams": streams != 1, "--profile": profile}
        options |= {"--verify-key": run.verify_key}
        given = [name for name, value in options.items() if value]
        if targets or given or run.runner != "auto":
            raise ConfigError(f"--decode: its cases are fixed; leave out {', '.join(given) or 'targets and --runner'}.")
        _benchmark_decode(quick=quick, markdown=markdown, device=run.device, force=force, out=out)
        return
    if quick or markdown is not None:
        raise ConfigError("--quick and --markdown: expected together with --decode; add it or leave them out.")
    if not targets:
        raise ConfigError("benchmark: expected a bundle or a checkpoint to time, or --decode; got none.")
    if len(targets) > 1 and not compare:
        raise ConfigError("several targets: give --compare to time them in turn.")
    found = benchmark(
        *targets,
        **run.given(),
        warmup=warmup,
        runs=runs,
        duration=duration,
        streams=streams,
        batch=batch,
        size=size,
        copies=copies,
        profile=profile,
        plot=plot,
        force=force,
        progress=not out.quiet,
    )
    if out.as_json and compare:
        common.print_json({"results": [row.to_dict() for row in found.rows]})
    else:
        out.show(found, table(found.rows))
    if plot is not None:
        out.note(f"wrote {plot}")


def _benchmark_decode(
    *, quick: bool, markdown: Path | None, device: int | str | None, force: bool, out: groups.OutputOptions
) -> None:
    """Measure, print and write; exit 1 where a kernel's results are wrong."""
    from nrd_trt.benchmarking.decode import benchmark_decode
    from nrd_trt.files import atomic_file, check_file

    if markdown is not None:
        check_file(markdown, force=force, marks=[b"nrd-trt benchmark --decode"])
    command = f"nrd-trt benchmark --decode{' --quick' if quick else ''}"
    result = benchmark_decode(quick=quick, command=command, device=device, on_stage=out.note)
    out.show(result, [result.markdown().rstrip()])
    if markdown is not None:
        with atomic_file(markdown) as temporary:
            temporary.write_text(result.markdown(), encoding="utf-8")
        out.note(f"wrote {markdown}")
    if not result.passed:
        raise typer.Exit(common.GATE_FAILED)


def table(rows: Sequence[BenchmarkRow]) -> list[str]:
    """Return the printed lines; `!` marks a row whose figures are doubtful, and its notes say why."""
    width = max(len("target"), *(len(row.target) for row in rows))
    indent = width + 27  # so that figures stand below each other
    lines = [
        f"  {'target':<{width}} {'runner':<12} {'types':<5} {'size':>9} "
        f"{'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'mean ms':>9} {'min ms':>9} {'fps':>9} {'ratio':>6}"
    ]
    for row in rows:
        lines.append(
            f"{'!' if row.doubtful else ' '} {row.target:<{width}} {row.runner:<12} {row.precision:<5} "
            f"{format_size(row.size):>9} {_times(row.latency)} {row.throughput_fps:>9.3f} {row.ratio:>6.2f}"
        )
        for name, part in (("GPU compute", row.timing.gpu_compute), ("enqueue", row.timing.enqueue)):
            lines += [f"    {name:<{indent}} {_times(part)}"] if part else []
        lines += [f"    products executed in {_counts(row.executed)}"] if row.executed else []
        lines += [f"    {note}" for note in row.notes]
    for row in rows:
        lines += _layer_lines(row)
    return [*lines, *_conditions(rows)]


def _times(latency: Latency) -> str:
    figures = (latency.p50, latency.p90, latency.p99, latency.mean, latency.min)
    return " ".join(f"{figure:>9.3f}" for figure in figures)


def _layer_lines(row: BenchmarkRow) -> Iterator[str]:
    """Yield the layers that took longest."""
    if not row.layers:
        return
    worst = sorted(row.layers, key=lambda layer: -layer.ms)[:_LAYERS]
    sum_ms = sum(layer.ms for layer in row.layers)
    yield (
        f"{row.target}: {len(worst)} of {len(row.layers)} layers, which take {sum_ms:.3f} ms in all "
        f"(each timed by itself{', with no CUDA graph' if row.device else f', by {row.runner}'})"
    )
    if row.stages:
        yield f"    {', '.join(f'{stage} {share:.1%}' for stage, share in row.stages.items())}"
    for layer in worst:
        name = layer.name if len(layer.name) <= _LAYER_LETTERS else f"{layer.name[: _LAYER_LETTERS - 1]}…"
        yield f"    {layer.share:>6.1%} {layer.ms:>9.3f} ms  {f'{layer.type:<5} ' if layer.type else ''}{name}"


def _counts(executed: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(executed.items(), key=lambda entry: -entry[1]))


def _conditions(rows: Sequence[BenchmarkRow]) -> list[str]:
    """Return what all rows share: calls, host, device, energy, memory."""
    row = rows[0]
    calls = f"{row.runs} calls each" if row.streams == 1 else f"{row.runs} calls in {row.streams} streams at once"
    lines = [
        f"latency from image to mask, batch {row.batch}, {calls} after {row.warmup} for warm-up; "
        f"{row.host.cpu or 'unknown CPU'}{_instructions(row)}, {row.host.cores} cores, "
        f"load {_figure(row.load_before)} before and {_figure(row.load_after)} after"
    ]
    lines += dict.fromkeys(line for row in rows if (line := _device_line(row)) is not None)
    if row.energy is not None:
        energy = row.energy
        lines.append(
            f"energy: {energy.joules:.1f} J in {energy.seconds:.1f} s, {energy.watts:.1f} W on average, "
            f"{row.frames_per_joule:.2f} frames per joule ({energy.source}; idle power is not subtracted)"
        )
    if row.peak_memory_mib is not None:
        device = row.device_memory_mib
        on_device = f", on the device {device:.0f} MiB" if device is not None else ""
        lines.append(f"memory: process at most {row.peak_memory_mib:.0f} MiB{on_device}")
    return lines


def _instructions(row: BenchmarkRow) -> str:
    return f" with {' '.join(row.host.instructions)}" if row.host.instructions else ""


def _device_line(row: BenchmarkRow) -> str | None:
    device, log = row.device, row.log
    if device is None or log is None:
        return None
    power, heat = log.median("power_w"), log.median("temperature_c")
    power = log.after.power_w if power is None else power
    heat = log.after.temperature_c if heat is None else heat
    graph = "with a CUDA graph" if row.cuda_graph else "no CUDA graph"
    return (
        f"{device.name or device.power_mode or 'device'}: {_figure(log.median('clock_mhz'))} of "
        f"{_figure(log.clock_max_mhz)} MHz, {_figure(power)} W, {_figure(heat)} °C, copies {row.copies}, {graph}"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
