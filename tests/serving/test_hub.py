"""The hub: the newest frame for all, made once, only on demand, and never in the pipeline's way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from nrd_trt.serving import hub as hub_module
from nrd_trt.serving.hub import Hub, Shown
from nrd_trt.video.frames import SegmentedFrame
from nrd_trt.video.pause import PauseSwitch
from tests.serving.waiting import until
from tests.video.stand_ins import INFO as STREAM
from tests.video.stand_ins import segmented

INFO = replace(STREAM, live=True)


def frame(index: int) -> SegmentedFrame:
    return segmented(index, np.zeros((4, 6, 3), np.uint8))


@pytest.fixture
def hub() -> Hub:
    made = Hub(PauseSwitch())
    made.open(INFO)
    return made


def test_the_newest_frame_wins_and_waiting_for_another_ends(hub: Hub) -> None:
    """With a frame, in time, with the run, and with the server."""
    for index in range(3):
        hub.write(frame(index))
    shown = asyncio.run(hub.newer(1, 1.0))
    assert shown is not None
    assert (shown.number, shown.frame.frame.index) == (3, 2)
    assert hub.latency_sum_s == pytest.approx(0.75, abs=0.2)
    assert asyncio.run(hub.newer(3, 0.05)) is None

    async def woken_by(action: Callable[[], object]) -> Shown | None:
        asyncio.get_running_loop().call_later(0.05, action)
        return await asyncio.wait_for(hub.newer(3, 5.0), 1)

    assert asyncio.run(woken_by(lambda: hub.write(frame(3)))) is hub.newest
    hub.newest = shown
    assert asyncio.run(woken_by(hub.leave)) is None
    assert asyncio.run(woken_by(lambda: hub.close("stopped"))) is None
    assert not hub._waiting


def test_something_is_made_once_for_all_viewers(hub: Hub) -> None:
    made: list[int] = []

    def make() -> object:
        made.append(1)
        time.sleep(0.05)
        return object()

    hub.write(frame(0))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: hub.once(hub.newest, "x", make), range(8)))
    assert (len(made), len(set(map(id, results)))) == (1, 1)
    assert hub.once(hub.newest, "y", make) is not results[0]
    hub.write(frame(1))
    assert hub.once(hub.newest, "x", make) is not results[0]
    for key in range(1000):  # what is kept of a frame is bounded
        assert hub.once(hub.newest, key, lambda key=key: key) == key
    assert len(hub.newest.made) == 1 + 1000 % 16


def test_the_pipeline_does_not_wait_for_an_encoder(hub: Hub) -> None:
    hub.write(frame(0))
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(hub.once, hub.newest, "x", lambda: release.wait(3))
        for index in range(1, 100):
            hub.write(frame(index))
        release.set()
        assert encoding.result()  # in time


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
