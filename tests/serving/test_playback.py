"""Files on a page: at their own pace, again from the start, and gone at once when told so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from nrd_trt.serving.playback import Playback
from nrd_trt.video.frames import Frame
from tests.video.stand_ins import Pictures


class Clip(Pictures):
    """Frames at given times, in ticks of a hundredth of a second."""

    reconnects = 3

    def __init__(self, times: tuple[int, ...], *, live: bool = False) -> None:
        super().__init__(lambda index: np.zeros((2, 2, 3), np.uint8), len(times), live=live, rate=100)
        self._times, self.opened, self.closed = times, 0, 0

    def __iter__(self) -> Iterator[Frame]:
        self.read = 0
        return (replace(frame, pts=self._times[frame.index], duration=2) for frame in super().__iter__())

    def __enter__(self) -> Clip:
        self.opened += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


def test_rounds_follow_each_other_without_a_gap_where_it_loops() -> None:
    clip = Clip((7, 9, 15))
    with Playback(lambda: clip, loop=True) as playback:
        assert playback.info.frames is None
        frames = list(islice(playback, 7))
    assert [frame.index for frame in frames] == list(range(7))
    assert [frame.pts for frame in frames] == [7, 9, 15, 17, 19, 25, 27]
    assert (clip.opened, clip.closed) == (3, 3)
    with Playback(lambda: Clip((0, 1)), loop=False) as playback:
        assert playback.info.frames == 2
        assert len(list(playback)) == 2
    with Playback(lambda: Clip(()), loop=True) as playback:  # an empty file ends
        assert list(playback) == []


def test_what_is_known_of_the_frames_stays_known_between_rounds() -> None:
    """Other stages of a pipeline ask for it while a round is opened."""
    asked: list[object] = []

    class Unopened(Clip):
        def __enter__(self) -> Clip:
            if self is not first:
                asked.append(playback.info)
            return super().__enter__()

        def __getattribute__(self, name: str) -> object:
            if name == "info" and not super().__getattribute__("opened"):
                raise AttributeError("info: known once entered")
            return super().__getattribute__(name)

    first, second = Unopened((0, 1)), Unopened((0, 1))
    opened = iter((first, second))
    with Playback(lambda: next(opened), loop=True) as playback:
        assert len(list(islice(playback, 4))) == 4
    assert asked == [playback.info]


def test_pace_is_that_of_the_file_and_what_was_late_is_not_made_up_for() -> None:
    """After a pause the clip goes on at its pace; it does not race."""
    with Playback(lambda: Clip((0, 10, 30, 40, 50, 60, 70)), loop=False) as playback:
        frames, arrived = iter(playback), [time.monotonic()]
        for late in (0, 0, 0, 0.45, 0, 0, 0):
            time.sleep(late)
            next(frames)
            arrived.append(time.monotonic())
    gaps = np.diff(arrived)
    assert gaps[0] < 0.05
    assert gaps[1] >= 0.09
    assert gaps[2] >= 0.19
    assert gaps[:3].sum() < 1
    assert gaps[4:].sum() >= 0.19


def test_stop_ends_the_wait_for_the_pace() -> None:
    with Playback(lambda: Clip((0, 100_000)), loop=True) as playback:
        frames = iter(playback)
        next(frames)
        threading.Timer(0.1, playback.stop).start()
        start = time.monotonic()
        next(frames, None)
    assert time.monotonic() - start < 1


def test_live_frames_pass_as_they_come() -> None:
    for loop in (True, False):
        with Playback(lambda: Clip((0, 100_000), live=True), loop=loop) as playback:
            assert [frame.pts for frame in playback] == [0, 100_000]
            assert playback.reconnects == 3
            assert playback.info.frames == 2
