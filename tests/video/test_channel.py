"""Bounded queues that can be ended, emptied and broken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from nrd_trt.video.channel import Broken, Channel


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_items_come_in_order_and_the_end_after_the_last() -> None:
    channel: Channel[int] = Channel(3)
    for number in range(3):
        assert channel.put(number) == 0
    channel.end()
    assert list(channel) == [0, 1, 2]


def test_put_waits_for_room() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    second = started(lambda: channel.put(1))
    second.join(0.05)
    assert second.is_alive()
    items = iter(channel)
    assert next(items) == 0
    second.join(1)
    assert not second.is_alive()
    assert next(items) == 1


def test_the_oldest_is_dropped_where_asked() -> None:
    channel: Channel[int] = Channel(2, drop_oldest=True)
    assert [channel.put(number) for number in range(5)] == [0, 0, 1, 1, 1]
    channel.end()
    assert list(channel) == [3, 4]


def test_abort_wakes_a_waiting_writer_and_a_waiting_reader() -> None:
    full: Channel[int] = Channel(1)
    full.put(0)
    empty: Channel[int] = Channel(1)
    woken: list[str] = []

    def write() -> None:
        with pytest.raises(Broken):
            full.put(1)
        woken.append("writer")

    def read() -> None:
        with pytest.raises(Broken):
            list(empty)
        woken.append("reader")

    threads = [started(write), started(read)]
    time.sleep(0.02)
    full.abort()
    empty.abort()
    for thread in threads:
        thread.join(1)
    assert sorted(woken) == ["reader", "writer"]


def test_end_can_discard_and_lets_nothing_more_in() -> None:
    channel: Channel[int] = Channel(2)
    channel.put(0)
    channel.end(discard=True)
    assert list(channel) == []
    with pytest.raises(Broken):
        channel.put(1)


def test_end_wakes_a_waiting_writer() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            channel.put(1)
        except Broken as exc:
            errors.append(exc)

    thread = started(write)
    time.sleep(0.02)
    channel.end()
    thread.join(1)
    assert len(errors) == 1
    assert list(channel) == [0]
