"""What the application serves: one run and its engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request

import nrd_trt
from nrd_trt.serving.access import Access
from nrd_trt.serving.device import DeviceWatch
from nrd_trt.serving.hub import Hub, Shown
from nrd_trt.serving.pictures import Look, View
from nrd_trt.serving.problems import Refusal
from nrd_trt.serving.uploads import Uploads
from nrd_trt.video.gate import Gate
from nrd_trt.video.meters import Meters
from nrd_trt.video.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class Service:
    """The parts of a run that viewers see or use.

    Attributes:
        hub: Holds the newest frame.
        gate: Pauses the run, for all viewers.
        meters: Of the run.
        segmenter: The one engine, for the run and for uploads.
        device: Power and temperature.
        uploads: Their queue.
        access: Who may ask.
        bundle: Name of the bundle, for people.
    """

    hub: Hub
    gate: Gate
    meters: Meters
    segmenter: Segmenter
    device: DeviceWatch
    uploads: Uploads
    access: Access
    bundle: str

    def live(self, shown: Shown | None = None) -> dict[str, Any]:
        """Return what changes from frame to frame, for JSON; shares are those of `shown`, else of the newest frame."""
        shown = shown or self.hub.newest
        state, reason = self.hub.state
        job = self.uploads.current
        return {
            "state": state,
            "reason": reason,
            "number": shown.number if shown else 0,
            "index": shown.frame.frame.index if shown else None,
            "shares": self.shares(shown.frame.shares) if shown else None,
            **asdict(self.meters.snapshot()),
            "viewers": self.hub.viewers,
            "device": self.device.figures(),
            "upload": {"name": job.name, "done": job.done, "total": job.total} if job else None,
        }

    def status(self) -> dict[str, Any]:
        """Return everything about the run, for JSON."""
        info, limits, model = self.hub.info, self.uploads.limits, self.segmenter.info
        return {
            "version": nrd_trt.__version__,
            "source": info
            and {
                "name": info.name,
                "size_hw": info.size_hw,
                "rate": float(info.rate) if info.rate else None,
                "live": info.live,
            },
            "model": {
                "bundle": self.bundle,
                "runner": self.segmenter.runner_name,
                "arithmetic": self.segmenter.arithmetic,
                "classes": [
                    {"index": index, "name": name, "colour": model.palette[index]}
                    for index, name in enumerate(model.class_names)
                ],
            },
            "limits": {"mib": limits.mib, "clip_s": limits.clip_s},
            **self.live(),
        }

    def shares(self, shares: Any) -> list[float]:
        """Return the shares ``(256,)`` of the model's classes, in 0-1, rounded for the wire."""
        return [round(float(share), 5) for share in shares[: len(self.segmenter.info.class_names)]]


async def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _look_of(
    view: Annotated[View, Query(description="What to draw; side is the image beside its overlay.")] = "overlay",
    opacity: Annotated[float, Query(ge=0, le=1, description="Of the mask in overlays.")] = 0.6,
    classes: Annotated[str | None, Query(description="Indices such as 0,3,8; without it all are drawn.")] = None,
) -> Look:
    """Read the three parameters that pictures share."""
    if classes is None:
        return Look(view=view, opacity=opacity)
    indices = [part.strip() for part in classes.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and int(part[:4]) < 256 for part in indices):
        message = "classes: expected indices in 0-255 separated by commas, got something else; /status lists them."
        raise Refusal(422, "ConfigError", message)
    return Look(view=view, opacity=opacity, classes=frozenset(map(int, indices)))


Served = Annotated[Service, Depends(_service_of)]
Looked = Annotated[Look, Depends(_look_of)]
