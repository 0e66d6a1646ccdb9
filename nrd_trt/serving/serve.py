"""A bundle on a video, shown on a page: source, engine, hub and server put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from nrd_trt.serving.page_run import Page, PageRequest, open_page
from nrd_trt.specs import Fit, RunnerName
from nrd_trt.video.open_segmenter import open_segmenter
from nrd_trt.video.overlay import OverlayStyle, Painter
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.segmenter import Segmenter
from nrd_trt.video.sources.base import Source
from nrd_trt.video.sources.open import open_source
from nrd_trt.video.temporal import parse_smoothing


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """What to run on what, and who may see it.

    Attributes:
        source: See `nrd_trt.video.sources.open.open_source`.
        bundle: A ``NAME.nrd`` folder, or a checkpoint, which runs in PyTorch.
        page: Where the page is, and for whom.
        runner: See `nrd_trt.runtime.select.make_runner`.
        plugin: Library of a plan that needs one; None looks for it.
        threads: CPU threads; None leaves the choice to the backend.
        fit: How frames get the engine's size; None takes the bundle's way.
        rate: Frames per second of a folder of images; None is 30.
        live: Whether late frames are dropped; None goes by the source.
        smooth: ``none``, ``hysteresis[:N]`` or ``ema[:WEIGHT]``.
        loop: Whether a file begins again at its end.
        report: Takes lines for people while the run goes on.
        on_ready: Called with the page's address, and with the token where one was made.
    """

    source: str
    bundle: Path
    page: PageRequest = field(default_factory=PageRequest)
    runner: RunnerName = "auto"
    plugin: Path | None = None
    threads: int | None = None
    fit: Fit | None = None
    rate: Fraction | None = None
    live: bool | None = None
    smooth: str = "none"
    loop: bool = True
    report: Callable[[str], None] = lambda line: None
    on_ready: Callable[[str, str | None], None] = lambda url, token: None


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
    segmenter = open_segmenter(
        request.bundle, runner=request.runner, plugin=request.plugin, threads=request.threads, fit=request.fit
    )
    with open_page(request.page, segmenter, bundle=request.bundle.name) as page, segmenter:
        from nrd_trt.serving.background import running
        from nrd_trt.serving.server import make_server

        with running(_pipeline(request, page, segmenter), page.service.hub):
            request.on_ready(page.service.access.url, page.token)
            make_server(page.app, page.service.hub).run(sockets=[page.listener])


def _pipeline(request: ServeRequest, page: Page, segmenter: Segmenter) -> Pipeline:
    from nrd_trt.serving.playback import Playback

    hub, graph = page.service.hub, segmenter.graph

    def report(line: str) -> None:
        hub.report(line)
        request.report(line)

    def source() -> Source:
        return open_source(request.source, rate=request.rate, live=request.live, report=report)

    return Pipeline(
        Playback(source, loop=request.loop),
        segmenter,
        [hub],
        paint=Painter(graph.info, OverlayStyle()),
        smoother=parse_smoothing(request.smooth, has_logits=graph.output != "mask", upsample=graph.upsample),
        gate=page.service.gate,
        meters=page.service.meters,
    )
