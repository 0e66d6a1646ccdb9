"""Times short work on a GPU: many runs in one CUDA graph, graphs back to back between events. torch only."""

from __future__ import annotations

from collections.abc import Callable

import torch

RUNS = 100
"""In one graph: events resolve about half a microsecond, and a graph takes some microseconds to start."""

_LONGEST_GRAPH_US = 100_000.0
_FEWEST_RUNS = 2
_WARM_UP_US = 50_000.0

Call = Callable[[int], object]
"""Queues one run on the inputs of a slot, on the current stream."""


def time_in_graph(call: Call, *, slots: int, replays: int) -> list[float]:
    """Measure one run of `call`.

    Args:
        call: Gets the slots in turn. It may allocate, and keeps nothing of what it allocated.
        slots: Sets of inputs.
        replays: Of the graph.

    Returns:
        Microseconds per run, one figure per replay.
    """
    estimate_us = _warm_up(call, slots)
    runs = runs_in_graph(estimate_us, slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(runs):
            call(index % slots)
    for _ in range(max(1, int(_WARM_UP_US / (estimate_us * runs)))):  # clocks rise, and the device stays busy
        graph.replay()
    marks = [_mark() for _ in range(replays + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    graph.reset()
    return [1000 * marks[index].elapsed_time(marks[index + 1]) / runs for index in range(replays)]


def runs_in_graph(estimate_us: float, slots: int) -> int:
    """Return how often a graph runs the call: whole rounds over the slots, `RUNS` or more; fewer where it is slow."""
    if estimate_us * RUNS <= _LONGEST_GRAPH_US:
        return -(-RUNS // slots) * slots
    return max(_FEWEST_RUNS, int(_LONGEST_GRAPH_US / estimate_us))


def _warm_up(call: Call, slots: int) -> float:
    """Run beside the capture's stream, where lazy initialisation is allowed; return microseconds of a late run."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    estimates = []
    with torch.cuda.stream(stream):
        for index in range(5):
            start, end = _mark(), _mark()
            start.record()
            call(index % slots)
            end.record()
            end.synchronize()
            estimates.append(1000 * float(start.elapsed_time(end)))
    torch.cuda.current_stream().wait_stream(stream)
    return max(1.0, min(estimates[2:]))


def _mark() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
