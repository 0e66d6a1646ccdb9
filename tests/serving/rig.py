"""A run with its server, inside this process: synthetic frames, the real engine, the real pipeline, a real socket."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nrd_trt.errors import VideoError
from nrd_trt.machine.clocks import Reading
from nrd_trt.runtime.engine import open_bundle
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.serving.hub import Hub, Shown
from nrd_trt.serving.serve import running
from nrd_trt.video.pause import PauseSwitch
from nrd_trt.video.pipeline import Pipeline
from tests.artefacts import bundle
from tests.serving.waiting import until

for needed in ("fastapi", "uvicorn", "prometheus_client", "av"):
    pytest.importorskip(needed, reason=f"needs {needed}: pip install nrd-trt[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install nrd-trt[dev]")

from nrd_trt.serving.access import Access  # noqa: E402 - only where FastAPI is
from nrd_trt.serving.app import create_app  # noqa: E402
from nrd_trt.serving.server import bind, make_server  # noqa: E402
from nrd_trt.serving.service import DeviceWatch, Service  # noqa: E402
from nrd_trt.serving.uploads import Limits, Uploads  # noqa: E402
from tests.video.clips import street_frames  # noqa: E402
from tests.video.stand_ins import Pictures  # noqa: E402

SIZE_HW = (96, 128)


def street() -> tuple[np.ndarray, ...]:
    """A second of a drive."""
    return tuple(street_frames(20, SIZE_HW))


class Street(Pictures):
    """A source that drives the same second again and again.

    Attributes:
        silent: While set, no frame comes.
        broken: While set, the next frame cannot be read.
    """

    def __init__(self, *, live: bool = False, count: int | None = None) -> None:
        super().__init__(self._drive, count, live=live, every_s=0.05, size_hw=SIZE_HW, rate=20)
        self.silent, self.broken = threading.Event(), threading.Event()

    def _drive(self, index: int) -> np.ndarray:
        until(lambda: not self.silent.is_set() or self.broken.is_set() or self._stopped.is_set(), 60)
        if self.broken.is_set():
            raise VideoError("street: expected a frame, found roadworks; take another way.")
        return street()[index % 20]


class CountedSwitch(PauseSwitch):
    """Counts the frames that it lets through, so that a test knows when all of them have been written."""

    passed = 0

    def lets_through(self, *, wait: bool) -> bool:
        passes = super().lets_through(wait=wait)
        self.passed += passes
        return passes


class Rig:
    """Serves while entered.

    Args:
        source: What the run reads.
        token: Of the server.
        output: Of the engine.
        limits: Changes to those of uploads.
    """

    def __init__(
        self,
        source: Street | None = None,
        *,
        token: str | None = None,
        output: str = "mask,confidence",
        **limits: Any,
    ) -> None:
        self.source = source or Street()
        self.pause = CountedSwitch()
        self.hub = Hub(self.pause)
        self.engine = EngineThread(open_bundle(bundle(output=output), threads=1))
        self.uploads = Uploads(replace(Limits(), **limits), lambda: self.hub.closing)
        self._token, self._stack = token, ExitStack()

    def paused(self) -> Shown:
        """Stop the run and return the frame that stays."""
        self.pause.pause()
        until(lambda: self.hub.newest and self.hub.newest.number == self.pause.passed)
        assert self.hub.newest is not None
        return self.hub.newest

    @property
    def url(self) -> str:
        return self.service.access.url.rstrip("/")

    def __enter__(self) -> Rig:
        with ExitStack() as stack:
            listener = stack.enter_context(bind("127.0.0.1", 0))
            stack.enter_context(self.engine)
            reading = Reading(power_w=12.5, temperature_c=51.0)
            instrument = SimpleNamespace(read=lambda: reading, close=lambda: None)
            device = stack.enter_context(DeviceWatch(instrument))  # type: ignore[arg-type]
            pipeline = Pipeline(self.source, self.engine, [self.hub], pause=self.pause)
            self.stats = pipeline.stats
            self.service = Service(
                hub=self.hub,
                stats=self.stats,
                engine=self.engine,
                device=device,
                uploads=self.uploads,
                access=Access(host="127.0.0.1", port=listener.getsockname()[1], token=self._token),
                bundle="street.nrd",
            )
            stack.enter_context(running(pipeline, self.hub))
            server = make_server(create_app(self.service), self.hub)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="page")
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.handle_exit, signal.SIGINT, None)
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            # The socket listens already, so that the first request waits until the server answers.
            self.http = httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)
            stack.enter_context(self.http)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
