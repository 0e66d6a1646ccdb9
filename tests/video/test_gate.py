"""Pause, step and resume."""

from __future__ import annotations

import threading

from nrd_trt.video.gate import Gate


def passing(gate: Gate) -> threading.Thread:
    thread = threading.Thread(target=gate.wait, daemon=True)
    thread.start()
    thread.join(0.05)
    return thread


def test_an_open_gate_lets_everything_through() -> None:
    gate = Gate()
    assert not passing(gate).is_alive()
    assert gate.try_pass()


def test_a_paused_gate_holds_until_resumed() -> None:
    gate = Gate()
    gate.pause()
    assert gate.paused
    assert not gate.try_pass()
    waiting = passing(gate)
    assert waiting.is_alive()
    gate.resume()
    waiting.join(1)
    assert not waiting.is_alive()
    assert not gate.paused


def test_a_step_lets_exactly_one_through() -> None:
    gate = Gate()
    gate.step()  # pauses as well
    assert gate.paused
    assert gate.try_pass()
    assert not gate.try_pass()
    gate.step()
    gate.step()
    assert [gate.try_pass() for _ in range(3)] == [True, True, False]


def test_steps_do_not_outlive_a_resume() -> None:
    gate = Gate()
    gate.step()
    gate.resume()
    gate.pause()
    assert not gate.try_pass()


def test_release_ends_all_waiting() -> None:
    gate = Gate()
    gate.pause()
    waiting = passing(gate)
    gate.release()
    waiting.join(1)
    assert not waiting.is_alive()
    assert gate.try_pass()
