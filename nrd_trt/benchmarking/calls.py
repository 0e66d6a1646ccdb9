"""One timed call of a runner, with or without the copies of its arrays, with or without a CUDA graph.

What a runner on a device offers beyond the Runner contract is found by attribute: ``infer_device`` and ``cuda_graph``
of `nrd_trt.runtime.base.DeviceRunner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nrd_trt.benchmarking.timers import Call
from nrd_trt.errors import ConfigError, NrdTrtError, RunnerError
from nrd_trt.runtime.base import Runner

_GRAPH = "cuda_graph"
_CAPTURED_AFTER = 2


def on_device(runner: Runner) -> bool:
    """Whether a runner works on a device, so that its arrays have to be copied."""
    return hasattr(runner, "infer_device") or runner.name.startswith("tensorrt")


def choose_graph(runner: Runner, wanted: bool | None) -> None:
    """Turn a runner's CUDA graph on or off before it is entered; None leaves its own choice.

    Raises:
        ConfigError: A graph is wanted of a device's runner that has none.
    """
    if wanted is None:
        return
    if hasattr(runner, _GRAPH):
        setattr(runner, _GRAPH, wanted)
    elif wanted and on_device(runner):
        raise ConfigError(f"--cuda-graph: the {runner.name} runner has none in this version; leave the option out.")


def timed_call(
    runner: Runner,
    feed: Mapping[str, np.ndarray],
    *,
    copies: bool | None,
    target: str,
    device_call: Callable[[], Call],
) -> Call:
    """Return the call to time on an entered runner.

    Args:
        runner: Entered.
        feed: Its input on the host.
        copies: Whether a device's copies from and to the host are timed; None is True.
        target: For messages.
        device_call: Brings the feed to the device and returns the call that runs on it there and waits for the end.

    Raises:
        ConfigError: The runner works on a device and cannot leave the copies out.
    """
    if copies is not False or not on_device(runner):
        return _guarded(lambda: runner.infer(feed), target)
    if not hasattr(runner, "infer_device"):
        raise ConfigError(f"--no-copies: the {runner.name} runner takes host arrays only; leave the option out.")
    return _guarded(device_call(), target)


def statement(runner: Runner, *, copies: bool | None) -> dict[str, Any]:
    """Return what the latency contains: ``copies`` and ``cuda_graph``."""
    if not on_device(runner):
        return {"copies": "host arrays", "cuda_graph": None}
    return {"copies": "excluded" if copies is False else "included", "cuda_graph": getattr(runner, _GRAPH, None)}


def graph_notes(runner: Runner, *, wanted: bool | None, copies: bool | None, warmup: int) -> list[str]:
    """Say where a CUDA graph was asked for and not used, and where its capture was timed."""
    used = statement(runner, copies=copies)[_GRAPH]
    if used and warmup < _CAPTURED_AFTER:
        return [f"the CUDA graph is captured on the second call; give --warmup {_CAPTURED_AFTER} or more"]
    if not wanted or used:
        return []
    if not on_device(runner):
        return [f"no CUDA graph was used: {runner.name} runs on the CPU"]
    return [f"no CUDA graph was used: {runner.name} captured none"]


def _guarded(call: Call, target: str) -> Call:
    """Name the target in errors of its runs; out of memory is a RuntimeError in most backends."""

    def guarded() -> object:
        try:
            return call()
        except (NrdTrtError, RuntimeError, MemoryError) as exc:
            raise RunnerError(
                f"{target}: a run failed while it was timed ({type(exc).__name__}: {exc}); nothing was measured. "
                "Run `nrd-trt validate` on it, or try a smaller --size or --batch."
            ) from exc

    return guarded
