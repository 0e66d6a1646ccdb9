"""Frames per second of a plan, run by run and with overlapped copies, on the same images. NumPy only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.runtime.base import DeviceRunner, Runner
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.overlap import OverlappedRunner, Ticket
from nrd_trt.runtime.select import make_runner
from nrd_trt.specs import RunnerName, format_size

Feeds = Sequence[Mapping[str, np.ndarray]]
Outputs = dict[str, np.ndarray]
_SCENES = 4
_WARM_UP = 3


def benchmark_overlap(path: Path, runner: RunnerName, *, frames: int = 200, rounds: int = 5) -> dict[str, Any]:
    """Hold overlapped runs of a bundle's plan against plain ones, then time both in turn.

    Args:
        path: The bundle.
        runner: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        frames: Timed at a time.
        rounds: Of each.

    Returns:
        ``target, runner, size, frames, rounds, equal, plain_fps, overlapped_fps, ratio``: medians of the rounds and
        of their ratios; None where an output differs by a bit, which is not timed.

    Raises:
        ConfigError: The runner does not work on device memory.
    """
    bundle = read_bundle(path)
    size_hw = bundle.graph.shape.opt_hw
    feeds = [image_feed(street_scene(seed, size_hw).image, bundle.graph) for seed in range(_SCENES)]
    with make_runner(bundle, runner) as entered:
        figures = compare(entered, feeds, frames=frames, rounds=rounds)
    shared = {"target": path.name, "runner": entered.name, "size": format_size(size_hw)}
    return {**shared, "frames": frames, "rounds": rounds, **figures}


def compare(runner: Runner, feeds: Feeds, *, frames: int, rounds: int) -> dict[str, Any]:
    """Return ``equal, plain_fps, overlapped_fps, ratio`` of an entered runner; see `benchmark_overlap`."""
    if not isinstance(runner, DeviceRunner):
        raise ConfigError(f"--runner {runner.name}: expected one that works on device memory; name a TensorRT.")
    with OverlappedRunner(runner) as overlapped:
        equal = all([_equal(runner, overlapped, feeds) for _ in range(_WARM_UP)])  # the first runs allocate and capture
        if not equal:
            return {"equal": False, "plain_fps": None, "overlapped_fps": None, "ratio": None}
        chosen = [feeds[index % len(feeds)] for index in range(frames)]
        seconds = [(_seconds(_plain(runner, chosen)), _seconds(_ahead(overlapped, chosen))) for _ in range(rounds)]
    return {
        "equal": True,
        "plain_fps": frames / median(plain for plain, _ in seconds),
        "overlapped_fps": frames / median(ahead for _, ahead in seconds),
        "ratio": median(plain / ahead for plain, ahead in seconds),
    }


def _equal(runner: Runner, overlapped: OverlappedRunner, feeds: Feeds) -> bool:
    """Whether the outputs are the same bit for bit."""
    pairs = zip(list(_plain(runner, feeds)), list(_ahead(overlapped, feeds)), strict=True)
    return all(
        plain.keys() == other.keys() and all(plain[name].tobytes() == other[name].tobytes() for name in plain)
        for plain, other in pairs
    )


def _plain(runner: Runner, feeds: Feeds) -> Iterator[Outputs]:
    """Run one after the other."""
    for feed in feeds:
        yield runner.infer(feed)


def _ahead(runner: OverlappedRunner, feeds: Feeds) -> Iterator[Outputs]:
    """Begin each run before the one ahead of it is finished."""
    begun: deque[Ticket] = deque()
    for feed in feeds:
        begun.append(runner.begin(feed))
        if len(begun) == runner.slots:
            yield runner.finish(begun.popleft())
    while begun:
        yield runner.finish(begun.popleft())


def _seconds(runs: Iterable[Outputs]) -> float:
    start = time.perf_counter()
    for _ in runs:
        pass
    return time.perf_counter() - start
