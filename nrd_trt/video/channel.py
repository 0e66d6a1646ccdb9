"""A bounded queue between two stages that can be ended, emptied and broken. Standard library only."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Broken(Exception):
    """The run was given up: a stage that meets this just ends."""


class Channel(Generic[Item]):
    """Items in order, from one thread to another.

    Args:
        capacity: Items held at most.
        drop_oldest: Let `put` replace the oldest item where it would wait.
    """

    def __init__(self, capacity: int, *, drop_oldest: bool = False) -> None:
        self._capacity, self._drop_oldest = capacity, drop_oldest
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = self._broken = False

    def put(self, item: Item) -> int:
        """Add an item, waiting for room; return how many were dropped for it.

        Raises:
            Broken: `abort` was called, or the channel has ended.
        """
        with self._changed:
            dropped = 0
            if self._drop_oldest and len(self._items) >= self._capacity:
                self._items.popleft()
                dropped = 1
            self._changed.wait_for(lambda: len(self._items) < self._capacity or self._ended or self._broken)
            if self._ended or self._broken:
                raise Broken
            self._items.append(item)
            self._changed.notify_all()
            return dropped

    def __iter__(self) -> Iterator[Item]:
        """Yield the items as they come, until the end.

        Raises:
            Broken: `abort` was called.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended or self._broken)
                if self._broken:
                    raise Broken
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def comes_within(self, seconds: float) -> bool:
        """Wait for an item, at most so long; return whether there is one to take."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._broken, seconds)
            return bool(self._items)

    def end(self, *, discard: bool = False) -> None:
        """Let nothing more in; what is held is still delivered, or with `discard` dropped."""
        with self._changed:
            self._ended = True
            if discard:
                self._items.clear()
            self._changed.notify_all()

    def abort(self) -> None:
        """Wake both sides with `Broken`."""
        with self._changed:
            self._broken = True
            self._items.clear()
            self._changed.notify_all()
