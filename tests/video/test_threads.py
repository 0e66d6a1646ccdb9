"""Bounded queues that can be ended and emptied. Their threads are tested in test_pipeline.py."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from nrd_trt.video.threads import Channel


class Waiting(threading.Thread):
    """Work that waits, and what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.outcome: object = None
        self._work = work
        self.start()
        self.join(0.05)
        assert self.is_alive()

    def run(self) -> None:
        self.outcome = self._work()

    def woken(self) -> object:
        self.join(1)
        assert not self.is_alive()
        return self.outcome


def full() -> Channel[int]:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    return channel


def test_items_come_in_order_and_the_end_after_the_last() -> None:
    channel: Channel[int] = Channel(3)
    assert [channel.put(number) for number in range(3)] == [0, 0, 0]
    channel.end()
    assert list(channel) == [0, 1, 2]


def test_put_waits_for_room_and_reading_for_an_item() -> None:
    channel = full()
    writer, items = Waiting(lambda: channel.put(1)), iter(channel)
    assert next(items) == 0
    assert writer.woken() == 0
    assert next(items) == 1
    reader = Waiting(lambda: next(items))
    channel.put(2)
    assert reader.woken() == 2
    assert not channel.comes_within(0.01)


def test_the_oldest_is_dropped_where_asked() -> None:
    channel: Channel[int] = Channel(2, drop_oldest=True)
    assert [channel.put(number) for number in range(5)] == [0, 0, 1, 1, 1]
    channel.end()
    assert list(channel) == [3, 4]


@pytest.mark.parametrize(("discard", "left"), [(False, [0]), (True, [])])
def test_the_end_wakes_who_waits_lets_nothing_in_and_can_discard(discard: bool, left: list[int]) -> None:
    channel, empty = full(), Channel[int](1)
    writer, reader = Waiting(lambda: channel.put(1)), Waiting(lambda: list(empty))
    channel.end(discard=discard)
    empty.end(discard=discard)
    assert (writer.woken(), reader.woken()) == (0, [])
    assert list(channel) == left
    assert channel.put(1) == 0
    assert list(channel) == []
