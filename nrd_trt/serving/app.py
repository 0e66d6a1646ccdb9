"""The application: the page, its files, health and metrics, with the routes of the other modules."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp

import nrd_trt
from nrd_trt.serving import segmenting, watching
from nrd_trt.serving.access import Guard
from nrd_trt.serving.metrics import make_registry
from nrd_trt.serving.problems import Refusal, answer_problems
from nrd_trt.serving.service import Served, Service

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_SILENT_S = 10.0


def create_app(service: Service) -> ASGIApp:
    """Return the application that shows one run, behind its guard.

    Args:
        service: The run; entered and left by the caller.
    """
    app = FastAPI(
        title="nrd_trt",
        version=nrd_trt.__version__,
        description="Masks of a video, live, and of what is uploaded.",
        # FastAPI's own pages load scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(watching.router, tags=["watch"])
    app.include_router(segmenting.router, tags=["segment"])
    _add_pages(app)
    _add_operation(app, service)
    answer_problems(app)
    return Guard(app, service.access)  # no middleware: the answer to an internal error is made outside of those


def _add_pages(app: FastAPI) -> None:
    folder = files("nrd_trt.serving") / "page"
    page, docs = ((folder / name).read_text(encoding="utf-8") for name in ("index.html", "docs.html"))
    assets = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(".html")}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page(request: Request, service: Served) -> HTMLResponse:
        return HTMLResponse(page, 200 if service.access.admits(request) else 401)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(docs)

    @app.get("/assets/{name}", response_class=Response, include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in assets:
            raise Refusal(404, "NotServed", f"{name}: expected a file of the page, got another name; open /.")
        return Response(assets[name], media_type=_TYPES["." + name.rpartition(".")[2]])


def _add_operation(app: FastAPI, service: Service) -> None:
    registry = make_registry(service)

    @app.get("/metrics", response_class=Response, tags=["operate"])
    async def metrics() -> Response:
        """Figures of the run for Prometheus."""
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/healthz", tags=["operate"])
    async def health() -> JSONResponse:
        """Whether frames flow: 200, or 503 with the reason."""
        state, _ = service.hub.state
        reason = None  # nothing private, as everybody may ask
        if state in ("ended", "failed"):
            reason = f"the run has {state}"
        elif state != "paused" and service.hub.silent_s > _SILENT_S:
            reason = f"no frame for {service.hub.silent_s:.0f} s"
        return JSONResponse({"healthy": reason is None, "reason": reason}, 200 if reason is None else 503)
