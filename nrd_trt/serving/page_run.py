"""The page of a run: hub, access and application on a bound port. The packages of the extra ``serve``, on use."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nrd_trt.errors import ConfigError
from nrd_trt.optional import require
from nrd_trt.video.segmenter import Segmenter

if TYPE_CHECKING:
    from fastapi import FastAPI

    from nrd_trt.serving.service import Service

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "av")


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """Where a page is, and who may see it.

    Attributes:
        host: Address to bind to.
        port: Port to bind to; 0 takes a free one.
        token: Whoever asks must know it; ``"auto"`` makes one, None asks for none.
        allowed_hosts: Further names under which browsers may reach the server.
        max_upload_mb: Largest upload, in MiB.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_upload_mb: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port}: expected 0 to 65535; 8000 is the usual one.")
        if self.max_upload_mb < 1:
            raise ConfigError(f"--max-upload-mb {self.max_upload_mb}: expected 1 or more; 64 is the usual one.")


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that is ready to be served.

    Attributes:
        service: With the hub, the gate and the meters that a run has to use.
        app: The application.
        listener: The bound socket.
        token: Where one was made for this page.
    """

    service: Service
    app: FastAPI
    listener: socket.socket
    token: str | None


@contextmanager
def open_page(request: PageRequest, segmenter: Segmenter, *, bundle: str) -> Iterator[Page]:
    """Bind the port and put the page together; the run and the server are the caller's.

    Args:
        request: Where, and for whom.
        segmenter: Of the run; uploads use it too.
        bundle: Name of the bundle, for people.

    Raises:
        ConfigError: Others could reach the page without a token, or the port is taken.
        MissingDependencyError: The packages of the extra ``serve`` are not installed.
    """
    for package in _PACKAGES:
        require(package, extra="serve", purpose="the page")
    from nrd_trt.serving import server
    from nrd_trt.serving.access import Access, new_token
    from nrd_trt.serving.app import create_app
    from nrd_trt.serving.device import DeviceWatch
    from nrd_trt.serving.hub import Hub
    from nrd_trt.serving.service import Service
    from nrd_trt.serving.uploads import Limits, Uploads
    from nrd_trt.video.gate import Gate
    from nrd_trt.video.meters import Meters

    made = new_token() if request.token == "auto" else None
    access = Access(
        host=request.host, port=request.port, token=made or request.token, allowed_hosts=request.allowed_hosts
    )
    gate = Gate()
    with server.bind(request.host, request.port) as listener, DeviceWatch() as device:
        service = Service(
            hub=Hub(gate),
            gate=gate,
            meters=Meters(),
            segmenter=segmenter,
            device=device,
            uploads=Uploads(Limits(mib=request.max_upload_mb)),
            access=access.at(listener.getsockname()[1]),
            bundle=bundle,
        )
        yield Page(service=service, app=create_app(service), listener=listener, token=made)
