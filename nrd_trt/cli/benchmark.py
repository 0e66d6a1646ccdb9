"""The verb ``benchmark``: latency of bundles and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nrd_trt.cli import common


def benchmark_command(
    targets: Annotated[list[Path], typer.Argument(metavar="NAME.nrd|CKPT…", help="What to time.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Time several targets in turn; ratios are against the first.")
    ] = False,
    warmup: Annotated[int, typer.Option("--warmup", min=0, metavar="N", help="Untimed calls.")] = 3,
    runs: Annotated[int, typer.Option("--runs", min=1, metavar="N", help="Timed calls.")] = 20,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Images per call.")] = 1,
    size: common.Size = None,
    runner: common.Runner = "auto",
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Time one image from RGB to mask; checkpoints run in eager PyTorch."""
    from nrd_trt.errors import ConfigError
    from nrd_trt.pipeline.benchmark import benchmark_targets
    from nrd_trt.specs import parse_size

    if len(targets) > 1 and not compare:
        raise ConfigError("several targets: give --compare to time them in turn.")
    results = benchmark_targets(
        targets,
        runner=runner,
        warmup=warmup,
        runs=runs,
        batch=batch,
        size_hw=parse_size(size) if size else None,
        threads=threads,
    )
    if as_json:
        common.print_json({"results": results} if compare else results[0])
    else:
        _print(results)


def _print(results: list[dict[str, Any]]) -> None:
    typer.echo(
        f"{'target':<28} {'runner':<12} {'types':<6} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'fps':>7} {'ratio':>6}"
    )
    for row in results:
        latency = row["latency_ms"]
        typer.echo(
            f"{row['target']:<28} {row['runner']:<12} {row['precision']:<6} {latency['p50']:>8.1f} "
            f"{latency['p90']:>8.1f} {latency['p99']:>8.1f} {row['throughput_fps']:>7.2f} {row['ratio']:>6.2f}"
        )
        if row["arithmetic"] == "simulated":
            typer.echo("  (16-bit rounding is simulated in fp32 here: this latency says nothing about the device)")
