"""What one client may take of the server: time for a header, connections that say nothing, requests at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from nrd_trt.serving.problems import Refusal

HEADER_S = 10.0
"""Seconds in which a whole header must come, from the connection or from the answer before."""
SILENT = 256
"""Connections without a request that are kept; the oldest goes for the newest, so that silence shuts nobody out."""
REQUESTS = 128
"""Requests that are answered at a time, endless streams among them."""
CLIENT_REQUESTS = 64
"""Of these, from one address."""


class Places:
    """Counts the requests that are being answered.

    Args:
        most: Requests of all clients at a time.
        client: Requests of one client at a time.
    """

    def __init__(self, most: int = REQUESTS, client: int = CLIENT_REQUESTS) -> None:
        self._most, self._client = most, client
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, client: str) -> Iterator[Refusal | None]:
        """Take a place as long as the block lasts; yields the refusal where there is none."""
        refusal = self._refusal(client)
        self._taken[client] += refusal is None
        try:
            yield refusal
        finally:
            self._taken[client] -= refusal is None
            if not self._taken[client]:
                del self._taken[client]

    def _refusal(self, client: str) -> Refusal | None:
        for used, most, whose in (
            (self._taken.total(), self._most, "the server"),
            (self._taken[client], self._client, "this address"),
        ):
            if used >= most:
                message = f"request: expected a free place, got {used} requests of {whose} at a time; try again later."
                return Refusal(503, "Busy", message, {"Retry-After": "5"})
        return None


class PatientProtocol(H11Protocol):
    """A connection that is closed where no whole header comes in `HEADER_S`, or where too many others wait as well.

    uvicorn waits for a header for ever, and refuses everybody where too many connections are open.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()
        silent = [one for one in self.connections if isinstance(one, PatientProtocol) and one._due is not None]
        if len(silent) > SILENT:
            oldest = min(silent, key=lambda one: one._due.when() if one._due else 0.0)
            oldest._cancel()
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End to wait."""
        self._cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """End to wait where the header is whole."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()

    def on_response_complete(self) -> None:
        """Begin to wait for the next header."""
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        self._cancel()
        self._due = self.loop.call_later(HEADER_S, self.transport.abort)

    def _cancel(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
