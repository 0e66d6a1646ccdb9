"""Time bundles and checkpoints on one image, from RGB at the engine's size to the mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nrd_trt.benchmark.timers import peak_memory_mib, time_in_turn
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import is_bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.model import load_trained
from nrd_trt.runtime.mask_runner import MaskRunner
from nrd_trt.runtime.select import make_runner
from nrd_trt.specs import check_size


def benchmark_targets(
    targets: Sequence[Path],
    *,
    runner: str = "auto",
    warmup: int = 3,
    runs: int = 20,
    batch: int = 1,
    size_hw: tuple[int, int] | None = None,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Time each target; several are run in turn, call by call.

    Args:
        targets: Bundles (run by `runner`) and checkpoints (run by eager PyTorch, fp32, default layout).
        runner: For bundles.
        warmup: Untimed calls of each.
        runs: Timed calls of each.
        batch: Images per call.
        size_hw: Size for checkpoints; default: the first bundle's, else the checkpoint's own.
        threads: CPU threads; None leaves the choice to the backends.

    Returns:
        Per target: ``target, runner, arithmetic, latency_ms {p50, p90, p99}, throughput_fps, peak_memory_mib, ratio``.
        ``ratio`` is the first target's p50 over this one's; memory is the process's and so None where several run.
    """
    size_hw = size_hw or next((read_bundle(path).graph.shape.opt_hw for path in targets if is_bundle(path)), None)
    with ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        runners: dict[str, dict[str, Any]] = {}
        for index, path in enumerate(targets):
            key = f"{index}"
            calls[key], runners[key] = _prepare(stack, path, runner, batch, size_hw, threads)
        latencies = time_in_turn(calls, warmup=warmup, runs=runs)
    first = latencies["0"].p50
    return [
        {
            "target": path.name,
            **runners[key],
            "latency_ms": asdict(latency),
            "throughput_fps": 1000 * batch / latency.p50,
            "peak_memory_mib": peak_memory_mib() if len(targets) == 1 else None,
            "ratio": first / latency.p50,
        }
        for path, (key, latency) in zip(targets, latencies.items(), strict=True)
    ]


def _prepare(
    stack: ExitStack, path: Path, runner: str, batch: int, size_hw: tuple[int, int] | None, threads: int | None
) -> tuple[Callable[[], object], dict[str, Any]]:
    if not is_bundle(path) and path.suffix != ".nrd":
        return _prepare_checkpoint(stack, path, runner, batch, size_hw, threads)
    bundle = read_bundle(path)
    extent = bundle.graph.shape.batch
    if not extent.min <= batch <= extent.max:
        raise ConfigError(f"--batch {batch}: {path} was built for {extent.min} to {extent.max}.")
    entered = make_runner(bundle, runner, threads=threads)
    stack.enter_context(entered)
    feed = MaskRunner(entered, bundle.graph).feed(_scene(bundle.graph.shape.opt_hw))
    feed = {"image": np.repeat(feed["image"][:1], batch, axis=0)}
    facts = {"runner": entered.name, "arithmetic": entered.arithmetic, "precision": bundle.graph.precision}
    return (lambda: entered.infer(feed)), facts


def _prepare_checkpoint(
    stack: ExitStack, path: Path, runner: str, batch: int, size_hw: tuple[int, int] | None, threads: int | None
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Eager PyTorch; imported here so that timing a bundle needs none."""
    from nrd_trt.runtime.torch_runner import TorchRunner

    if runner not in ("auto", "torch"):
        raise ConfigError(f"--runner {runner}: a checkpoint runs in PyTorch; build a bundle for other runners.")
    model = load_trained(path)
    size_hw = size_hw or model.info.size_hw
    check_size(size_hw, what="--size")
    entered = TorchRunner(model, threads=threads)
    stack.enter_context(entered)
    feed = {"image": np.repeat(_scene(size_hw)[None], batch, axis=0)}
    return (lambda: entered.infer(feed)), {"runner": "torch", "arithmetic": "native", "precision": "fp32"}


def _scene(size_hw: tuple[int, int]) -> np.ndarray:
    return street_scene(0, size_hw).image
