"""Mutated requests for the page's server: many in one process, because the server takes a second to start."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

from tests.hostile import seeds
from tests.hostile.mutations import change_bytes

_COUNT = 20
_BETWEEN = b"\0\0next request\0\0"
_TARGETS = (
    *("/", "/healthz", "/status", "/metrics", "/frame?after=0", "/snapshot.png?classes=1,2&opacity=0.5&view=side"),
    *("/mask.png", "/stream.mjpg?view=mask", "/openapi.json", "/assets/page.css", "/status?token=x"),
)
_CONTROL = b'{"action": "step"}'


def honest() -> list[bytes]:
    """Requests that the server answers, a list of them in one content."""
    gets = [_request("GET", target) for target in _TARGETS]
    posts = [_request("POST", "/control", _CONTROL), _request("POST", "/segment?result=json&name=a", seeds.label())]
    posts += [_request("POST", "/segment?result=layers", picture) for picture in seeds.pictures().values()]
    return [_BETWEEN.join([*gets, *posts])]


def change(rng: random.Random, content: bytes) -> bytes:
    """Change some requests, most of them in their first lines."""
    given, changed = content.split(_BETWEEN), []
    for _ in range(_COUNT):
        request = rng.choice(given)
        head, body = request[:120], request[120:]
        changed.append(change_bytes(rng, head) + body if rng.random() < 0.6 else change_bytes(rng, request))
    return _BETWEEN.join(changed)


def read(folder: Path, content: bytes) -> None:
    """Send the requests; no answer may be an internal error, and the server answers honest ones at the end."""
    from tests.serving import rig  # needs the extra `serve`

    rig.bundle = lambda **_: seeds.tiny_bundle()  # whatever outputs the rig asks for
    with rig.Rig() as served:
        for request in content.split(_BETWEEN):
            answer = _send(served.service.access.port, request)
            if answer[:12] in (b"HTTP/1.1 500", b"HTTP/1.0 500"):
                raise AssertionError(f"{request[:300]!r} was answered {answer[:300]!r}")
        if served.http.get("/healthz").status_code != 200 or served.http.get("/status").status_code != 200:
            raise AssertionError("the server is not well afterwards")


def _send(port: int, request: bytes) -> bytes:
    """Send a request and return how the answer begins; nothing where none comes soon."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.settimeout(0.5)
        with suppress(OSError):
            connection.sendall(request)
        with suppress(OSError):
            return connection.recv(400)
    return b""


def _request(method: str, target: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Accept: */*", "Connection: close"]
    lines += [f"Content-Length: {len(body)}"] * bool(body)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
