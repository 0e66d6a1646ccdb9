"""The hub: the newest frame for all, made once, only on demand, and never in the pipeline's way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from nrd_trt.serving import hub as hub_module
from nrd_trt.serving.hub import Hub
from nrd_trt.video.frames import SegmentedFrame, StreamInfo
from nrd_trt.video.pause import PauseSwitch
from tests.serving.waiting import until
from tests.video.stand_ins import segmented

INFO = StreamInfo(name="x", size_hw=(4, 6), rate=None, time_base=Fraction(1, 25), frames=None, live=True)


def frame(index: int) -> SegmentedFrame:
    return segmented(index, np.zeros((4, 6, 3), np.uint8))


@pytest.fixture
def hub() -> Hub:
    made = Hub(PauseSwitch())
    made.open(INFO)
    return made


def test_the_newest_frame_wins_and_waiting_for_another_ends(hub: Hub) -> None:
    """In time, with the run, and with the server."""
    for index in range(3):
        hub.write(frame(index))
    shown = asyncio.run(hub.newer(1, 1.0))
    assert shown is not None
    assert (shown.number, shown.frame.frame.index) == (3, 2)
    assert hub.latency_sum_s == pytest.approx(0.75, abs=0.2)
    assert asyncio.run(hub.newer(3, 0.05)) is None

    async def ended_by(action: Callable[[], None]) -> float:
        loop, start = asyncio.get_running_loop(), time.monotonic()
        loop.call_later(0.05, action)
        assert await hub.newer(3, 5.0) is None
        return time.monotonic() - start

    assert asyncio.run(ended_by(hub.leave)) < 1
    assert asyncio.run(ended_by(lambda: hub.close("stopped"))) < 1


def test_a_viewer_waits_for_a_frame_that_it_has_not_seen(hub: Hub) -> None:
    hub.write(frame(0))

    async def watch() -> int:
        later = asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(0.1), hub.write(frame(1))))
        shown = await hub.newer(1, 5.0)
        await later
        return shown.number if shown else 0

    assert asyncio.run(watch()) == 2
    assert not hub._waiting


def test_something_is_made_once_for_all_viewers(hub: Hub) -> None:
    hub.write(frame(0))
    shown = hub.newest
    assert shown is not None
    made: list[int] = []

    def make() -> object:
        made.append(1)
        time.sleep(0.05)
        return object()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: hub.once(shown, "x", make), range(8)))
    assert (len(made), len(set(map(id, results)))) == (1, 1)
    assert hub.once(shown, "y", make) is not results[0]
    hub.write(frame(1))
    assert hub.newest is not None
    assert hub.once(hub.newest, "x", make) is not results[0]
    for key in range(1000):  # what is kept of a frame is bounded
        assert hub.once(hub.newest, key, lambda key=key: key) == key
    assert len(hub._made[1]) <= 16


def test_the_pipeline_does_not_wait_for_an_encoder(hub: Hub) -> None:
    hub.write(frame(0))
    shown, release = hub.newest, threading.Event()
    assert shown is not None
    thread = threading.Thread(target=lambda: hub.once(shown, "x", lambda: release.wait(3)))
    thread.start()
    start = time.monotonic()
    for index in range(1, 100):
        hub.write(frame(index))
    took = time.monotonic() - start
    release.set()
    thread.join()
    assert took < 1


def test_viewers_are_counted_while_they_ask(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_VIEWER_LEAVES_S", 0.05)
    for name in ("a", "b", "a"):
        hub.see(name)
    assert hub.viewers == 2
    until(lambda: hub.viewers == 0, 1)


def test_states(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = PauseSwitch()
    hub = Hub(pause)
    assert hub.state == ("starting", None)
    hub.open(INFO)
    hub.write(frame(0))
    assert hub.state == ("running", None)
    hub.report("the camera was lost")
    assert hub.state[0] == "running"  # it is back at once, as a rule
    hub.write(frame(1))  # was on its way
    monkeypatch.setattr(hub_module, "_SILENT_S", 0.0)
    assert hub.state == ("lost", "the camera was lost")
    hub.write(frame(2))
    assert "the camera was lost" not in (hub.state[1] or "")
    pause.pause()
    assert hub.state == ("paused", None)
    hub.close("failed")
    assert not hub.over  # the reason comes next, and nobody shall miss it
    hub.fail("the cable was pulled")
    assert hub.state == ("failed", "the cable was pulled")
    hub = Hub(PauseSwitch())
    hub.close("complete")
    assert (hub.state, hub.over) == (("ended", "the source has ended"), True)
