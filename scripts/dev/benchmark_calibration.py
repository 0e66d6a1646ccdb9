"""Time calibration per pass against plain inference in ONNX Runtime, and compare the peak memory of processes.

    python scripts/dev/benchmark_calibration.py m.onnx --threads 2 --feeds 8 --rounds 5
    python scripts/dev/benchmark_calibration.py m.onnx --threads 2 --feeds 2 --memory

The file is an fp32 one of `nrd-trt export`. `plain` draws masks; `fetched` is the same session with every calibrated
tensor among its outputs, which is what calibration needs at the least where nothing is reduced in the graph.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from nrd_trt.calibration.ranges import measure_ranges, tensors_to_calibrate
from nrd_trt.calibration.recipes import RECIPES
from nrd_trt.data.synthetic import street_scene
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.tensors import copy_model
from nrd_trt.runtime.graph_io import batch_feed
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import DEFAULT_MEMORY_MB

# Besides the recipes as they are, one that fetches every value, in groups of tensors.
_RECIPES = {**RECIPES, "mse-all": replace(RECIPES["mse"], samples=None)}
_KINDS = ("plain", "fetched", *_RECIPES)
_FIRST_SEED = 7
_KIB_PER_MIB = 1024

Feeds = Sequence[Mapping[str, np.ndarray]]


class _Clocked:
    """Feeds that note the time between one and the next: what is done with each."""

    def __init__(self, feeds: Feeds) -> None:
        self.seconds: list[float] = []
        self._feeds = feeds

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        for feed in self._feeds:
            start = time.perf_counter()
            yield feed
            self.seconds.append(time.perf_counter() - start)


def main() -> None:
    """Parse the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--feeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--memory-mb", type=float, default=DEFAULT_MEMORY_MB)
    parser.add_argument("--kinds", default=",".join(_KINDS), help="what to run, separated by commas")
    parser.add_argument("--peak-of", choices=_KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    if args.peak_of:
        _run(onnx.load(args.model), args.peak_of, _feeds(args.model, args.feeds), args.threads, args.memory_mb)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB)
    elif args.memory:
        _print_peaks(args, kinds)
    else:
        _print_times(args, kinds)


def _feeds(path: Path, count: int) -> Feeds:
    facts = read_facts(onnx.load(path))
    scenes = (street_scene(_FIRST_SEED + index, facts.shape.opt_hw).image for index in range(count))
    return [batch_feed(image[None], facts) for image in scenes]


def _run(model: onnx.ModelProto, kind: str, feeds: Feeds, threads: int, memory_mb: float) -> list[float]:
    """Run one kind over all feeds; return the seconds of each."""
    tensors = tensors_to_calibrate(model, RECIPES["mse"])
    clocked = _Clocked(feeds)
    if kind in _RECIPES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # random weights predict few classes
            recipe = _RECIPES[kind]
            measure_ranges(model, clocked, tensors, recipe, memory_mb=memory_mb, threads=threads, progress=False)
        return clocked.seconds
    if kind == "fetched":
        model = copy_model(model)
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    with OrtRunner(model, threads=threads) as runner:
        for feed in clocked:
            runner.infer(feed)
    return clocked.seconds


def _print_times(args: argparse.Namespace, kinds: Sequence[str]) -> None:
    """Run the kinds in turn, several rounds, and print medians; the first feed of each run warms the session up."""
    model, feeds = onnx.load(args.model), _feeds(args.model, args.feeds)
    rounds = [
        {kind: statistics.median(_run(model, kind, feeds, args.threads, args.memory_mb)[1:]) for kind in kinds}
        for _ in range(args.rounds)
    ]
    print(f"{args.model.name}: {args.rounds} rounds of {args.feeds} feeds, {args.threads} threads")
    for kind in kinds:
        median = statistics.median(times[kind] for times in rounds)
        ratios = [
            f"{reference} {_shown([times[reference] / times[kind] for times in rounds])}"
            for reference in ("plain", "fetched")
            if reference in kinds
        ]
        print(f"  {kind:<12} {1000 * median:8.1f} ms  throughput against {', '.join(ratios)}")


def _shown(ratios: Sequence[float]) -> str:
    """Format the median, the smallest and the largest ratio of the rounds."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _print_peaks(args: argparse.Namespace, kinds: Sequence[str]) -> None:
    """Run every kind in a process of its own."""
    print(f"{args.model.name}: peak resident memory of a process, {args.feeds} feeds, --memory-mb {args.memory_mb:g}")
    plain = 0.0
    for kind in kinds:
        command = [sys.executable, __file__, str(args.model), "--peak-of", kind, "--threads", str(args.threads)]
        command += ["--feeds", str(args.feeds), "--memory-mb", str(args.memory_mb)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        plain = plain or peak
        print(f"  {kind:<12} {peak:8.0f} MiB  {peak - plain:+.0f}")


if __name__ == "__main__":
    main()
