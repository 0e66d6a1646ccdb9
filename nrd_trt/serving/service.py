"""What the application serves: one run and its engine, and how both stand."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Query, Request

import nrd_trt
from nrd_trt.data.overlay import CONFIDENCE_PALETTE
from nrd_trt.machine.clocks import Probe, Reading, open_probe
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.runtime.graph_io import check_confidence
from nrd_trt.serving.access import Access
from nrd_trt.serving.hub import Hub, Shown, State
from nrd_trt.serving.pictures import Look, View
from nrd_trt.serving.problems import Refusal
from nrd_trt.serving.uploads import UploadProgress, Uploads
from nrd_trt.specs import ModelInfo
from nrd_trt.video.stats import RunStats, StatsCollector

_DEVICE_EVERY_S = 2.0
_DEVICE_FIGURES = ("power_w", "temperature_c", "clock_mhz", "memory_used_mib")


class DeviceWatch:
    """Reads power and temperature of the device now and then on a thread of its own, while entered.

    Args:
        probe: The instrument, closed on leaving; None looks for one. Where there is none, nothing is read.
    """

    def __init__(self, probe: Probe | None = None) -> None:
        self._reading: Reading | None = None
        self._probe = probe
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    def figures(self) -> dict[str, float] | None:
        """Return what can be read, by name; None where nothing can."""
        values = {name: getattr(self._reading, name, None) for name in _DEVICE_FIGURES}
        return {name: value for name, value in values.items() if value is not None} or None

    def __enter__(self) -> DeviceWatch:
        probe = self._probe or open_probe()[0]

        def watch(probe: Probe) -> None:
            while not self._leaving.is_set():
                self._reading = probe.read()
                self._leaving.wait(_DEVICE_EVERY_S)
            probe.close()

        if probe is not None:
            self._thread = threading.Thread(target=watch, args=[probe], name="device", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._leaving.set()
        if self._thread is not None:
            self._thread.join()


@dataclass(frozen=True, kw_only=True)
class LiveStatus(RunStats):
    """What changes from frame to frame.

    Attributes:
        state: How the run stands.
        reason: A sentence about the state where there is one.
        number: Number of the frame shown, from 1; 0 before the first one.
        index: Index of that frame in its source.
        shares: Share of the frame's pixels per class, in 0-1, rounded for the wire.
        viewers: Browsers and players that watch.
        device: Power, temperature and the like, by name, as far as they can be read.
        upload: The upload at work.
    """

    state: State
    reason: str | None
    number: int
    index: int | None
    shares: list[float] | None
    viewers: int
    device: dict[str, float] | None
    upload: UploadProgress | None


@dataclass(frozen=True, kw_only=True)
class SourceStatus:
    """The source of the run; ``rate`` is in frames per second, None where the source does not tell."""

    name: str
    size_hw: tuple[int, int]
    rate: float | None
    live: bool


@dataclass(frozen=True, kw_only=True)
class ClassStatus:
    """One class of the model; ``colour`` is an RGB triple in 0-255."""

    index: int
    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """The engine of the run; it gives the confidence where there are colours of 0-255 for that."""

    bundle: str
    runner: str
    arithmetic: str
    classes: list[ClassStatus]
    confidence_colours: list[tuple[int, int, int]] | None


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Limits that the page tells before it sends a file: MiB of a file, seconds of a clip."""

    mib: int
    clip_s: float


@dataclass(frozen=True, kw_only=True)
class Status(LiveStatus):
    """Everything about the run.

    Attributes:
        version: Version of this package.
        source: The source, once it is open.
        model: The engine.
        limits: Limits of uploads.
    """

    version: str
    source: SourceStatus | None
    model: ModelStatus
    limits: UploadLimits


@dataclass(frozen=True, kw_only=True)
class Service:
    """The parts of a run that viewers see or use.

    Attributes:
        hub: Holds the newest frame and the switch that pauses the run, for all viewers.
        stats: Figures of the run.
        engine: The one engine, for the run and for uploads.
        device: Power and temperature of the device.
        uploads: The queue of uploads.
        access: Who may ask.
        bundle: Name of the bundle as the page shows it.
    """

    hub: Hub
    stats: StatsCollector
    engine: EngineThread
    device: DeviceWatch
    uploads: Uploads
    access: Access
    bundle: str

    @property
    def info(self) -> ModelInfo:
        """Classes and colours of the model."""
        return self.engine.engine.info

    def live(self, shown: Shown | None = None) -> LiveStatus:
        """Return what changes from frame to frame; shares are those of `shown`, else of the newest frame."""
        shown = shown or self.hub.newest
        state, reason = self.hub.state
        job = self.uploads.current
        return LiveStatus(
            **vars(self.stats.snapshot()),
            state=state,
            reason=reason,
            number=shown.number if shown else 0,
            index=shown.frame.frame.index if shown else None,
            shares=self.shares(shown.frame.shares) if shown else None,
            viewers=self.hub.viewers,
            device=self.device.figures(),
            upload=job.progress if job else None,
        )

    def status(self) -> Status:
        """Return everything about the run."""
        info, limits, engine = self.hub.info, self.uploads.limits, self.engine.engine
        names, colours = self.info.class_names, self.info.palette
        classes = [ClassStatus(index=index, name=name, colour=colours[index]) for index, name in enumerate(names)]
        source = None
        if info is not None:
            rate = float(info.rate) if info.rate else None
            source = SourceStatus(name=info.name, size_hw=info.size_hw, rate=rate, live=info.live)
        return Status(
            **vars(self.live()),
            version=nrd_trt.__version__,
            source=source,
            model=ModelStatus(
                bundle=self.bundle,
                runner=engine.runner_name,
                arithmetic=engine.arithmetic,
                classes=classes,
                confidence_colours=list(CONFIDENCE_PALETTE) if "confidence" in engine.graph.outputs else None,
            ),
            limits=UploadLimits(mib=limits.mib, clip_s=limits.clip_s),
        )

    def check_confidence(self, asked: str) -> None:
        """Raise `ConfigError` unless the engine gives the confidence."""
        check_confidence(self.engine.engine.graph, asked)

    def shares(self, shares: np.ndarray) -> list[float]:
        """Return the shares ``(256,)`` of the model's classes, in 0-1, rounded for the wire."""
        return [round(float(share), 5) for share in shares[: len(self.info.class_names)]]


async def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(_service_of)]


async def _look_of(
    service: Served,
    view: Annotated[View, Query(description="What to draw; side is the image beside its overlay.")] = "overlay",
    opacity: Annotated[float, Query(ge=0, le=1, description="Of the mask in overlays.")] = 0.6,
    classes: Annotated[str | None, Query(description="Indices such as 0,3,8; without it all are drawn.")] = None,
) -> Look:
    """Read the three parameters that pictures share."""
    if view == "confidence":
        service.check_confidence("view=confidence")
    if classes is None:
        return Look(view=view, opacity=opacity)
    indices = [part.strip() for part in classes.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 4 and int(part) < 256 for part in indices):
        message = "classes: expected indices in 0-255 separated by commas, got something else; /status lists them."
        raise Refusal(422, "ConfigError", message)
    return Look(view=view, opacity=opacity, classes=frozenset(map(int, indices)))


Looked = Annotated[Look, Depends(_look_of)]
