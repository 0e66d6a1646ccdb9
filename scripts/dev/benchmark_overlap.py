"""Compare overlapped runs of a bundle's plan with plain ones, bit for bit, and time both in turn.

    python scripts/dev/benchmark_overlap.py model.nrd --runner tensorrt

Copies between host and device are part of both. Exits 1 where an output differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.runtime.base import DeviceRunner, Runner
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.runtime.overlap import OverlappedRunner, Ticket
from nrd_trt.runtime.select import make_runner
from nrd_trt.specs import format_size

Feeds = Sequence[Mapping[str, np.ndarray]]
Outputs = dict[str, np.ndarray]
_SCENES = 4
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Medians of the rounds and of their ratios; None where an output differs by a bit, which is not timed."""

    equal: bool
    plain_fps: float | None = None
    overlapped_fps: float | None = None
    ratio: float | None = None


def main() -> int:
    """Parse the arguments, run and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runner", required=True, choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--frames", type=int, default=200, metavar="N", help="timed at a time (default 200)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each (default 5)")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    size = bundle.graph.shape.opt_hw
    feeds = [image_feed(street_scene(seed, size).image, bundle.graph) for seed in range(_SCENES)]
    with make_runner(bundle, options.runner) as runner:
        found = compare(runner, feeds, frames=options.frames, rounds=options.rounds)
    target = f"{options.bundle.name} at {format_size(size)} on {runner.name}"
    if options.json:
        shared = {"target": options.bundle.name, "runner": runner.name, "size": format_size(size)}
        print(json.dumps({**shared, "frames": options.frames, "rounds": options.rounds, **asdict(found)}))
    elif found.equal:
        print(
            f"{target}: {found.plain_fps:.1f} frames/s run by run, {found.overlapped_fps:.1f} overlapped, "
            f"ratio {found.ratio:.2f}"
        )
    else:
        print(f"{target}: overlapped runs differ from plain ones; nothing was timed")
    return 0 if found.equal else 1


def compare(runner: Runner, feeds: Feeds, *, frames: int, rounds: int) -> Figures:
    """Compare the outputs of an entered runner, then time it run by run and overlapped."""
    if not isinstance(runner, DeviceRunner):
        raise ConfigError(f"runner={runner.name!r}: expected one that works on device memory; name a TensorRT.")
    with OverlappedRunner(runner) as overlapped:
        equal = all([_equal(runner, overlapped, feeds) for _ in range(_WARM_UP)])  # the first runs allocate and capture
        if not equal:
            return Figures(equal=False)
        chosen = [feeds[index % len(feeds)] for index in range(frames)]
        seconds = [(_seconds(_plain(runner, chosen)), _seconds(_ahead(overlapped, chosen))) for _ in range(rounds)]
    return Figures(
        equal=True,
        plain_fps=frames / median(plain for plain, _ in seconds),
        overlapped_fps=frames / median(ahead for _, ahead in seconds),
        ratio=median(plain / ahead for plain, ahead in seconds),
    )


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


if __name__ == "__main__":
    sys.exit(main())
