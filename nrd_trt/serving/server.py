"""The server on its socket, from binding to Ctrl-C."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from nrd_trt.errors import ConfigError
from nrd_trt.serving.hub import Hub
from nrd_trt.serving.limits import PatientProtocol

_GRACE_S = 2
"""Seconds from Ctrl-C to the end of all answers, more than the one to a wrong token takes."""
_SEND_BUFFER = 1 << 18
"""Bytes: what lies in a socket's buffer is old when a slow viewer of the endless stream gets it."""


def bind(host: str, port: int) -> socket.socket:
    """Take a port; 0 takes a free one.

    Raises:
        ConfigError: It is taken, or not ours to take.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise ConfigError(
            f"host={host!r}: expected an address of this machine, got none ({exc}); try 0.0.0.0."
        ) from exc
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"port={port}: expected a port that is free on {host}, got: {exc.strerror}; choose another one, "
            "or 0 for any."
        ) from exc
    return listener


def make_server(app: ASGIApp, hub: Hub) -> uvicorn.Server:
    """Return the server of an application; ``run(sockets=[listener])`` serves until Ctrl-C and raises it anew.

    Args:
        app: The application.
        hub: Its viewers are sent home at Ctrl-C.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",  # nothing starts or ends with the application; a second Ctrl-C would show a traceback of it
        http=PatientProtocol,
        timeout_graceful_shutdown=_GRACE_S,
    )
    return _Server(config, hub)


class _Server(uvicorn.Server):
    """Sends viewers home at once, and ends what waits for clients: their answers have no end of their own."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self._hub.leave()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all answers; what uvicorn would have to cancel at the end of its grace shows a traceback."""
        asyncio.get_running_loop().call_later(_GRACE_S / 2, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
