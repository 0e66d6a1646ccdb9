"""The route for uploads."""

from __future__ import annotations

import base64
import time
from functools import partial
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from nrd_trt.serving.clips import overlay_clip
from nrd_trt.serving.pictures import Look, compose, encode_layers, mask_png, pack, png
from nrd_trt.serving.service import Looked, Served, Service
from nrd_trt.serving.uploads import Job, UploadProgress, kind_of, read_upload
from nrd_trt.video.overlay import class_shares

router = APIRouter()

Result = Literal["json", "mask", "overlay", "layers", "confidence"]

_LONGEST = 2560
"""Pixels on the longer side of what the page shows of an upload; masks and overlays have the upload's size."""
_TYPES = ("image/*", "video/mp4", "video/quicktime", "video/webm", "video/x-matroska")
_FILE = {"schema": {"type": "string", "format": "binary"}}
_BODY = {"requestBody": {"required": True, "content": dict.fromkeys(_TYPES, _FILE)}}


@router.post("/segment", response_class=Response, openapi_extra=_BODY)
async def segment(
    service: Served,
    request: Request,
    look: Looked,
    result: Annotated[Result, Query(description="What to make of an image; a clip always becomes an MP4.")] = "json",
    name: Annotated[str, Query(max_length=40, description="Any name, to find its progress in /status.")] = "",
) -> Response:
    """Segment an image or a short clip, sent as it is.

    An image (JPEG, PNG, WebP, BMP) becomes JSON with the shares and the mask as a PNG in base64, the mask as an index
    PNG, the confidence as a grey PNG, the picture that `view`, `opacity` and `classes` describe, or a record as of
    `/frame` with the confidence where the engine gives it. A clip (MP4, MOV, MKV,
    WebM) becomes an MP4 of that picture.
    """
    if result == "confidence":
        service.check_confidence("result=confidence")
    body = await service.uploads.receive(request)
    kind = kind_of(body)
    async with service.uploads.place():
        if kind == "image":
            make = partial(_image, service, body, result, look)
        else:
            make = partial(_clip, service, body, kind, look)
        return await service.uploads.work(request, Job(progress=UploadProgress(name=name, done=0, total=None)), make)


def _image(service: Service, body: bytes, result: Result, look: Look, job: Job) -> Response:
    job.progress.total = 1
    rgb, palette = read_upload(body, service.uploads.limits.image_pixels), service.info.palette
    start = time.perf_counter()
    drawn = service.engine.segment(rgb)
    latency_ms = (time.perf_counter() - start) * 1000
    if result == "mask":
        return Response(mask_png(drawn.mask, palette), media_type="image/png")
    if result == "confidence" and drawn.confidence is not None:
        return Response(png(drawn.confidence), media_type="image/png")
    if result == "overlay":
        return Response(png(compose(rgb, drawn, palette, look)), media_type="image/png")
    facts = {"size_hw": drawn.mask.shape, "latency_ms": latency_ms, "shares": service.shares(class_shares(drawn.mask))}
    if result == "layers":
        return Response(pack(facts, encode_layers(rgb, drawn, _LONGEST)), media_type="application/octet-stream")
    encoded = base64.b64encode(mask_png(drawn.mask, palette)).decode()
    return JSONResponse({**facts, "classes": service.info.class_names, "mask": encoded})


def _clip(service: Service, body: bytes, container: str, look: Look, job: Job) -> Response:
    def draw(rgb: np.ndarray) -> np.ndarray:
        return compose(rgb, service.engine.segment(rgb), service.info.palette, look)

    return Response(overlay_clip(body, container, draw, service.uploads.limits, job), media_type="video/mp4")
