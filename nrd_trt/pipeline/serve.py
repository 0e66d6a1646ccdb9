"""A bundle on a video, shown on a page: source, engine, hub and server put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from nrd_trt.data.preprocessing import check_fit
from nrd_trt.engine.bundle import Bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.optional import require
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.runtime.select import make_runner
from nrd_trt.serve.background import running
from nrd_trt.serve.device import DeviceWatch
from nrd_trt.serve.hub import Hub
from nrd_trt.serve.playback import Playback
from nrd_trt.specs import Fit
from nrd_trt.video.gate import Gate
from nrd_trt.video.meters import Meters
from nrd_trt.video.overlay import OverlayStyle, Painter
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.segmenter import Segmenter
from nrd_trt.video.sources.base import Source
from nrd_trt.video.sources.open import open_source
from nrd_trt.video.temporal import parse_smoothing

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "av")


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """What to run on what, and who may see it.

    Attributes:
        source: See `nrd_trt.video.sources.open.open_source`.
        bundle: A ``NAME.nrd`` folder.
        host: Address to bind to.
        port: Port to bind to; 0 takes a free one.
        token: Whoever asks must know it; ``"auto"`` makes one, None asks for none.
        allowed_hosts: Further names under which browsers may reach the server.
        runner: See `nrd_trt.runtime.select.make_runner`.
        plugin: Library of a plan that needs one; None looks for it.
        threads: CPU threads; None leaves the choice to the backend.
        fit: How frames get the engine's size; None takes the bundle's way.
        rate: Frames per second of a folder of images or a camera; None takes the usual one.
        live: Whether late frames are dropped; None goes by the source.
        smooth: ``none``, ``hysteresis[:N]`` or ``ema[:WEIGHT]``.
        loop: Whether a file begins again at its end.
        max_upload_mb: Largest upload, in MiB.
        report: Takes lines for people while the run goes on.
        on_ready: Called with the page's address, and with the token where one was made.
    """

    source: str
    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    runner: str = "auto"
    plugin: Path | None = None
    threads: int | None = None
    fit: Fit | None = None
    rate: Fraction | None = None
    live: bool | None = None
    smooth: str = "none"
    loop: bool = True
    max_upload_mb: int = 64
    report: Callable[[str], None] = lambda line: None
    on_ready: Callable[[str, str | None], None] = lambda url, token: None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port}: expected 0 to 65535; 8000 is the usual one.")
        if self.max_upload_mb < 1:
            raise ConfigError(f"--max-upload-mb {self.max_upload_mb}: expected 1 or more; 64 is the usual one.")


def serve_page(request: ServeRequest) -> None:
    """Segment a source and serve its page until Ctrl-C; the page stays when the source ends or fails.

    Raises:
        ConfigError: An option is invalid, or the port is taken.
        MissingDependencyError: The packages of the extra ``serve`` are not installed.
        VideoError: The source cannot be opened.
        BundleError: The bundle is damaged.
        RunnerError: The engine cannot be started.
        KeyboardInterrupt: Ctrl-C.
    """
    for package in _PACKAGES:
        require(package, extra="serve", purpose="the page")
    from nrd_trt.serve import server
    from nrd_trt.serve.access import Access, new_token
    from nrd_trt.serve.app import create_app
    from nrd_trt.serve.service import Service
    from nrd_trt.serve.uploads import Limits, Uploads

    token = new_token() if request.token == "auto" else request.token
    access = Access(host=request.host, port=request.port, token=token, allowed_hosts=request.allowed_hosts)
    bundle = read_bundle(request.bundle)
    gate, meters = Gate(), Meters()
    hub = Hub(gate)
    listener = server.bind(request.host, request.port)
    with listener, _segmenter(bundle, request) as segmenter, DeviceWatch() as device:
        service = Service(
            hub=hub,
            gate=gate,
            meters=meters,
            segmenter=segmenter,
            device=device,
            uploads=Uploads(Limits(mib=request.max_upload_mb)),
            access=access.at(listener.getsockname()[1]),
            bundle=request.bundle.name,
        )
        with running(_pipeline(bundle, segmenter, hub, gate, meters, request), hub):
            request.on_ready(service.access.url, token if request.token == "auto" else None)
            server.make_server(create_app(service), hub).run(sockets=[listener])


def _segmenter(bundle: Bundle, request: ServeRequest) -> Segmenter:
    runner = make_runner(bundle, request.runner, threads=request.threads, plugin=request.plugin)
    return Segmenter(EngineThread(runner), bundle.graph, request.fit or check_fit(bundle.facts["fit"]))


def _pipeline(
    bundle: Bundle, segmenter: Segmenter, hub: Hub, gate: Gate, meters: Meters, request: ServeRequest
) -> Pipeline:
    def report(line: str) -> None:
        hub.report(line)
        request.report(line)

    def source() -> Source:
        return open_source(request.source, rate=request.rate, live=request.live, report=report)

    graph = bundle.graph
    return Pipeline(
        Playback(source, loop=request.loop),
        segmenter,
        [hub],
        paint=Painter(graph.info, OverlayStyle()),
        smoother=parse_smoothing(request.smooth, has_logits=graph.output != "mask", upsample=graph.upsample),
        gate=gate,
        meters=meters,
    )
