"""A bundle on a video: source, engine and sinks put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from nrd_trt.errors import ConfigError
from nrd_trt.serving.page_run import Page, PageRequest, open_page
from nrd_trt.specs import Fit, ModelInfo, RunnerName, format_size
from nrd_trt.video.labels import LabelSink
from nrd_trt.video.meters import Snapshot
from nrd_trt.video.open_segmenter import open_segmenter
from nrd_trt.video.overlay import OverlayStyle, Painter
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.segmenter import Segmenter
from nrd_trt.video.sinks.base import Sink
from nrd_trt.video.sinks.mp4 import partial_of
from nrd_trt.video.sinks.open import FORMS, open_sink, target_of
from nrd_trt.video.sources.open import open_source
from nrd_trt.video.temporal import Smoother, parse_smoothing


def _silent(line: str) -> None:
    """Take a line and keep it."""


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What to run on what, and where the result goes.

    Attributes:
        source: See `nrd_trt.video.sources.open.open_source`.
        sinks: At least one; see `nrd_trt.video.sinks.open.open_sink`.
        bundle: A ``NAME.nrd`` folder, or a checkpoint, which runs in PyTorch.
        runner: See `nrd_trt.runtime.select.make_runner`.
        plugin: Library of a plan that needs one; None looks for it.
        threads: CPU threads; None leaves the choice to the backend.
        fit: How frames get the engine's size; None takes the bundle's way.
        smooth: ``none``, ``hysteresis[:N]`` or ``ema[:WEIGHT]``.
        overlay: Plain folders get pictures beside the masks.
        style: How pictures are drawn.
        rate: Frames per second of a folder of images; None is 30.
        live: Whether late frames are dropped; None goes by the source.
        labels: Folder of index PNGs, for mIoU; None measures none.
        ignore_index: Of the labels, besides 255.
        force: Replace existing outputs.
        report: Takes lines for people while the run goes on.
        on_progress: Called about ten times a second with the frames expected (or None) and the figures so far.
    """

    source: str
    sinks: tuple[str, ...]
    bundle: Path
    runner: RunnerName = "auto"
    plugin: Path | None = None
    threads: int | None = None
    fit: Fit | None = None
    smooth: str = "none"
    overlay: bool = False
    style: OverlayStyle = field(default_factory=OverlayStyle)
    rate: Fraction | None = None
    live: bool | None = None
    labels: Path | None = None
    ignore_index: int | None = None
    force: bool = False
    report: Callable[[str], None] = _silent
    on_progress: Callable[[int | None, Snapshot], None] = lambda expected, figures: None

    def __post_init__(self) -> None:
        if not self.sinks:
            raise ConfigError(f"-o: expected at least one of {FORMS}, got none.")
        targets = [target.resolve() for text in self.sinks if (target := target_of(text)) is not None]
        read = {path.resolve() for path in (Path(self.source), Path(self.source) / "images")}
        for target in targets:
            if targets.count(target) > 1:
                raise ConfigError(
                    f"-o {target}: given more than once; give every output once (a folder takes overlays beside its "
                    "masks with --overlay)."
                )
            if not read.isdisjoint({target, partial_of(target)}):
                raise ConfigError(f"-o {target}: would replace what is read; choose another output.")


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """How a run went.

    Attributes:
        figures: Frames, frame rate, latencies and time split of the whole run.
        complete: Whether the source was read to its end.
        interrupted: Whether Ctrl-C ended the run.
        source_fps: Frame rate that the source states, or None.
        size_hw: Of the first frame.
        smoothing: Name of the smoothing.
        lag_frames: By how much it delays a class.
        flicker: Share of the pixels that changed class where the image did not, of the masks written; None where no
            pixel stood still.
        flicker_unsmoothed: Of the engine's masks.
        labels: mIoU and the like against the labels, or None.
        outputs: As they were asked for.
        notes: What is not as asked for, one line each.
        runner: Which backend ran.
        arithmetic: ``"native"`` or ``"simulated"``.
    """

    figures: Snapshot
    complete: bool
    interrupted: bool
    source_fps: float | None
    size_hw: tuple[int, int]
    smoothing: str
    lag_frames: float
    flicker: float | None
    flicker_unsmoothed: float | None
    labels: dict[str, Any] | None
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    runner: str
    arithmetic: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "frames": self.figures.frames,
            "fps": self.figures.fps,
            "dropped": self.figures.dropped,
            "split_ms": self.figures.split_ms,
            "flicker": self.flicker,
            "flicker_unsmoothed": self.flicker_unsmoothed,
            "smoothing": {"name": self.smoothing, "lag_frames": self.lag_frames},
            "latency_ms": self.figures.latency_ms,
            "reconnects": self.figures.reconnects,
            "source_fps": self.source_fps,
            "size": format_size(self.size_hw),
            "complete": self.complete,
            "labels": self.labels,
            "outputs": list(self.outputs),
            "notes": list(self.notes),
            "runner": self.runner,
            "arithmetic": self.arithmetic,
        }


def run_video(request: VideoRequest) -> VideoResult:
    """Segment a video.

    Returns:
        How it went; a run that was stopped by Ctrl-C or a closed window returns too.

    Raises:
        ConfigError: An option, the source's or a sink's text is invalid, or an output exists.
        VideoError: The source cannot be read or a sink cannot be written.
        BundleError: The bundle is damaged.
        RunnerError: The engine cannot be started or failed.
    """
    segmenter = open_segmenter(
        request.bundle, runner=request.runner, plugin=request.plugin, threads=request.threads, fit=request.fit
    )
    graph, info = segmenter.graph, segmenter.info
    smoother = parse_smoothing(request.smooth, has_logits=graph.output != "mask", upsample=graph.upsample)
    source = open_source(request.source, rate=request.rate, live=request.live, report=request.report)
    labels = _label_sink(request, info)
    sinks: list[Sink] = [] if labels is None else [labels]
    sinks += [
        open_sink(text, info, overlay=request.overlay, force=request.force, report=request.report)
        for text in request.sinks
        if _page_port(text) is None
    ]
    paint = Painter(info, request.style)
    with _page(request, segmenter) as page, segmenter:
        if page is None:
            pipeline = Pipeline(source, segmenter, sinks, paint=paint, smoother=smoother)
            complete = _run(pipeline, request)
        else:
            service = page.service
            sinks.append(service.hub)
            pipeline = Pipeline(
                source, segmenter, sinks, paint=paint, smoother=smoother, gate=service.gate, meters=service.meters
            )
            complete = _run_with_page(pipeline, request, page)
    return _result(request, pipeline, segmenter, smoother, labels, complete=complete)


def _run(pipeline: Pipeline, request: VideoRequest) -> bool:
    """Run; return whether the source was read to its end."""
    try:
        return pipeline.run(lambda: request.on_progress(_expected(pipeline), pipeline.meters.snapshot())) == "complete"
    except BaseException:
        _report_failure(pipeline, request.report)
        raise


def _run_with_page(pipeline: Pipeline, request: VideoRequest, page: Page) -> bool:
    from nrd_trt.serving.server import serving

    with serving(page.app, page.service.hub, page.listener):
        request.report(f"{page.service.access.url} shows the run")
        try:
            return _run(pipeline, request)
        except Exception as exc:
            page.service.hub.fail(str(exc))
            raise


def _page(request: VideoRequest, segmenter: Segmenter) -> AbstractContextManager[Page | None]:
    """Open the page that a sink asks for, on this machine only."""
    ports = [port for text in request.sinks if (port := _page_port(text)) is not None]
    if not ports:
        return nullcontext()
    if len(ports) > 1:
        raise ConfigError("-o page: expected one page, got several; all viewers share it.")
    return open_page(PageRequest(port=ports[0]), segmenter, bundle=request.bundle.name)


def _page_port(text: str) -> int | None:
    """Return the port of ``page`` or ``page:PORT``, or None for other sinks."""
    kind, _, port = text.partition(":")
    if kind != "page":
        return None
    if port and not port.isdecimal():
        raise ConfigError(f"-o {text}: expected page or page:PORT, such as page:8080.")
    return int(port) if port else PageRequest().port


def _label_sink(request: VideoRequest, info: ModelInfo) -> LabelSink | None:
    if request.labels is None:
        return None
    ignored = request.ignore_index if request.ignore_index is not None else info.ignore_index
    return LabelSink(request.labels, info, ignore_index=ignored)


def _expected(pipeline: Pipeline) -> int | None:
    return pipeline.info.frames if pipeline.info else None


def _report_failure(pipeline: Pipeline, report: Callable[[str], None]) -> None:
    """Say where a run failed and what is left of its outputs; the error itself goes to the caller."""
    if pipeline.failed_stage:
        report(f"stopped in the stage {pipeline.failed_stage} after {pipeline.meters.total().frames} frames written")
    for line in pipeline.notes:
        report(line)


def _result(
    request: VideoRequest,
    pipeline: Pipeline,
    segmenter: Segmenter,
    smoother: Smoother,
    labels: LabelSink | None,
    *,
    complete: bool,
) -> VideoResult:
    info = pipeline.info
    if info is None:
        raise RuntimeError("a run that ended has opened its source")
    return VideoResult(
        figures=pipeline.meters.total(),
        complete=complete,
        interrupted=pipeline.interrupted,
        source_fps=None if info.rate is None else float(info.rate),
        size_hw=info.size_hw,
        smoothing=smoother.name,
        lag_frames=smoother.lag_frames,
        flicker=pipeline.flicker.flicker,
        flicker_unsmoothed=pipeline.flicker_unsmoothed.flicker,
        labels=labels.figures() if labels else None,
        outputs=request.sinks,
        notes=tuple(pipeline.notes),
        runner=segmenter.runner_name,
        arithmetic=segmenter.arithmetic,
    )
