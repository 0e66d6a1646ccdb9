"""Routes for those who watch: frames for the page, a stream for players, snapshots, figures, control."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from nrd_trt.json_files import decode_json
from nrd_trt.runtime.graph_io import Segmentation
from nrd_trt.serving.hub import Hub, Shown
from nrd_trt.serving.pictures import Layers, Look, compose, encode_layers, jpeg, pack, png, shrink
from nrd_trt.serving.problems import Refusal
from nrd_trt.serving.service import LiveStatus, Looked, Served, Service, Status
from nrd_trt.serving.uploads import read_body

router = APIRouter()

_WAIT_S = 1.0
_LONGEST = 1280
"""Pixels on the longer side of what viewers get; snapshots have the source's size."""
_BOUNDARY = b"frame"
_ACTIONS = ("pause", "resume", "step")
_ACTION = {"type": "object", "properties": {"action": {"type": "string", "enum": list(_ACTIONS)}}}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _ACTION}}}}


@router.get("/status")
async def status(service: Served) -> Status:
    """Everything about the run: source, model, classes, figures."""
    return service.status()


@router.get("/frame", response_class=Response)
async def frame(
    service: Served,
    request: Request,
    after: Annotated[int, Query(ge=0, description="Number of the last frame that was seen.")] = 0,
    viewer: Annotated[str, Query(max_length=40, description="Any name, to be counted once.")] = "",
    confidence: Annotated[bool, Query(description="Send the confidence too, of an engine that gives it.")] = False,
) -> Response:
    """Wait for a frame other than number `after`, at most a second.

    The answer is one record: length of the header (4 bytes, big-endian), header in JSON, JPEG of the image, mask as
    zlib-compressed class indices, and with `confidence` that in 0-255 likewise. The header has the figures of `/status`
    that change, and under `layers` the size and the lengths, or null where there was no new frame. A viewer asks again
    when it is ready: frames that came in between are left out, and nobody else waits for it.
    """
    if confidence:
        service.check_confidence("confidence=true")
    service.hub.see(viewer or (request.client.host if request.client else ""))
    shown = await service.hub.newer(after, _WAIT_S)
    layers = None
    if shown is not None:
        layers = await _made(service.hub, shown, ("layers", confidence), partial(_layers, confidence=confidence))
    return Response(pack(asdict(service.live(shown)), layers), media_type="application/octet-stream")


@router.get("/stream.mjpg", response_class=StreamingResponse)
async def stream(service: Served, look: Looked) -> StreamingResponse:
    """Pictures without end, for players and `<img>` (multipart/x-mixed-replace)."""
    # In twentieths, so that viewers with nearly the same wish share the work.
    look = replace(look, opacity=round(look.opacity * 20) / 20)
    kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY.decode()}"
    return StreamingResponse(_parts(service, look), media_type=kind)


@router.get("/snapshot.png", response_class=Response)
async def snapshot(service: Served, look: Looked) -> Response:
    """The newest frame at the source's size."""
    shown = service.hub.newest
    if shown is None:
        raise Refusal(503, "NoFrame", "snapshot: expected a frame, got none yet; try again once the run has begun.")
    # Asked for once in a while, and slow where frames are large: not in the way of those who watch.
    data = await anyio.to_thread.run_sync(lambda: png(_composed(service, shown, look)), abandon_on_cancel=True)
    return Response(data, media_type="image/png")


@router.post("/control", openapi_extra=_BODY)
async def control(service: Served, request: Request) -> LiveStatus:
    """Pause, resume or step the run, for all viewers: `{"action": "pause"}`."""
    action = _action_of(await read_body(request, 1024, closing=lambda: service.hub.closing))
    if service.hub.over:
        raise Refusal(409, "RunIsOver", f"{action}: expected a run that goes on, got one that is over; start anew.")
    pause = service.hub.pause
    {"pause": pause.pause, "resume": pause.resume, "step": pause.step}[action]()
    service.hub.wake()
    return service.live()


def _action_of(body: bytes) -> str:
    try:
        action = decode_json(body, dict[str, object]).get("action")
    except ValueError:
        action = None
    if action not in _ACTIONS:
        message = 'control: expected {"action": "pause"}, "resume" or "step", got something else; see /docs.'
        raise Refusal(422, "ConfigError", message)
    return str(action)


async def _parts(service: Service, look: Look) -> AsyncIterator[bytes]:
    viewer, number = f"stream {secrets.token_hex(8)}", 0
    while not service.hub.closing:
        service.hub.see(viewer)
        shown = await service.hub.newer(number, _WAIT_S)
        if shown is not None:
            number = shown.number
            data = await _made(
                service.hub, shown, ("jpeg", look), lambda it: jpeg(_composed(service, it, look, _LONGEST))
            )
            length = str(len(data)).encode()
            yield b"--%b\r\nContent-Type: image/jpeg\r\nContent-Length: %b\r\n\r\n%b\r\n" % (_BOUNDARY, length, data)
        elif service.hub.over:
            return


async def _made(hub: Hub, shown: Shown, key: Any, make: Callable[[Shown], Any]) -> Any:
    """Make something of a frame on a thread, or get what another viewer had made of it."""
    work = partial(hub.once, shown, key, partial(make, shown))
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


def _layers(shown: Shown, *, confidence: bool) -> Layers:
    drawn = shown.frame.drawn if confidence else Segmentation(mask=shown.frame.mask)
    return encode_layers(shown.frame.frame.rgb, drawn, _LONGEST)


def _composed(service: Service, shown: Shown, look: Look, longest: int | None = None) -> np.ndarray:
    """Draw a frame as a viewer wants it, `longest` pixels on its longer side at most."""
    rgb, drawn = shown.frame.frame.rgb, shown.frame.drawn
    if longest is not None:
        rgb, drawn = shrink(rgb, drawn, longest)
    return compose(rgb, drawn, service.info.palette, look)
