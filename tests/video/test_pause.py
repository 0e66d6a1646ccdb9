"""Pause, step and resume."""

from __future__ import annotations

import threading
from functools import partial

from nrd_trt.video.pause import PauseSwitch


def passed(switch: PauseSwitch, count: int = 1) -> list[bool]:
    """Frames of a live source, which do not wait."""
    return [switch.lets_through(wait=False) for _ in range(count)]


def waiting(switch: PauseSwitch) -> threading.Thread:
    """A frame of a file, which does."""
    thread = threading.Thread(target=partial(switch.lets_through, wait=True), daemon=True)
    thread.start()
    thread.join(0.05)
    return thread


def test_frames_pass_until_paused_and_again_once_resumed() -> None:
    switch = PauseSwitch()
    assert passed(switch) == [True]
    assert not waiting(switch).is_alive()
    switch.pause()
    assert switch.paused
    assert passed(switch) == [False]
    held = waiting(switch)
    assert held.is_alive()
    switch.resume()
    held.join(1)
    assert not held.is_alive()
    assert not switch.paused


def test_a_step_pauses_and_lets_exactly_one_through_and_does_not_outlive_a_resume() -> None:
    switch = PauseSwitch()
    switch.step()
    assert switch.paused
    assert passed(switch, 2) == [True, False]
    switch.step()
    switch.step()
    assert not waiting(switch).is_alive()
    assert passed(switch, 2) == [True, False]
    switch.step()
    switch.resume()
    switch.pause()
    assert passed(switch) == [False]


def test_release_ends_all_waiting() -> None:
    switch = PauseSwitch()
    switch.pause()
    held = waiting(switch)
    switch.release()
    held.join(1)
    assert not held.is_alive()
    assert passed(switch) == [True]
