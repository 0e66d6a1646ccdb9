"""What must not change the masks of a plan: a CUDA graph, and another thread with a runner of its own. NumPy only.

Each function returns what is wrong, or None; runners are made by the caller and entered here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nrd_trt.runtime.base import DeviceRunner, Runner

Feed = Mapping[str, np.ndarray]
ROUNDS = 5
"""How often every feed is run: the first runs allocate and capture, the later ones replay."""
THREADS = 2


def graph_fault(make: Callable[[bool], DeviceRunner], feeds: Sequence[Feed]) -> str | None:
    """Compare runs with and without CUDA graphs, bit for bit, and see that graphs were captured.

    Args:
        make: Makes a runner of one plan, with graphs or without.
        feeds: Inputs, which have at most as many shapes as a runner holds graphs for.
    """
    with make(False) as plain:
        wanted = _outputs(plain, feeds)
    with warnings.catch_warnings(record=True) as refusals:
        warnings.simplefilter("always")
        replaying = make(True)
        with replaying:
            got = _outputs(replaying, [*feeds] * ROUNDS)
    if not replaying.cuda_graph:
        said = "; ".join(str(warning.message) for warning in refusals)
        return f"no CUDA graph was used: {said or 'this runner has none'}"
    return _difference(wanted * ROUNDS, got, "with a CUDA graph")


def threads_fault(make: Callable[[], Runner], feeds: Sequence[Feed]) -> str | None:
    """Compare runners that work at once, each in a thread of its own, with one that worked alone, bit for bit."""
    with make() as alone:
        wanted = _outputs(alone, feeds) * ROUNDS

    def work(_: int) -> list[Feed]:
        with make() as own:
            return _outputs(own, [*feeds] * ROUNDS)

    with ThreadPoolExecutor(THREADS) as pool:
        found = [_difference(wanted, got, "beside another thread") for got in pool.map(work, range(THREADS))]
    return next(filter(None, found), None)


def _outputs(runner: Runner, feeds: Sequence[Feed]) -> list[Feed]:
    return [runner.infer(feed) for feed in feeds]


def _difference(wanted: Sequence[Feed], got: Sequence[Feed], how: str) -> str | None:
    """Say which of the runs gave other bytes."""
    for index, (first, second) in enumerate(zip(wanted, got, strict=True)):
        for name, array in first.items():
            if array.tobytes() != second[name].tobytes():
                share = float(np.mean(array != second[name]))
                return f"run {index + 1} of {len(got)} {how}: {share:.2%} of {name} differ from a plain run alone"
    return None
