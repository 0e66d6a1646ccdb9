"""A bundle on a video: source, engine and sinks put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nrd_trt.data.preprocessing import padding_colour
from nrd_trt.data.videos import DecodedOn
from nrd_trt.errors import ConfigError
from nrd_trt.progress import bar, silent
from nrd_trt.runtime.engine import open_engine
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.runtime.graph_io import check_confidence
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import Fit, Provider, Resample, RunnerName, format_size, optional_path
from nrd_trt.video.frames import Report, Sink, Wanted
from nrd_trt.video.overlay import OverlayStyle, Painter
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.sinks.labels import LabelScores, LabelSink
from nrd_trt.video.sinks.mp4 import partial_of
from nrd_trt.video.sinks.open_sink import FORMS, open_sink, target_of
from nrd_trt.video.sources.open_source import open_source
from nrd_trt.video.stats import RunStats
from nrd_trt.video.temporal import parse_smoothing


@dataclass(frozen=True, kw_only=True)
class SmoothingUsed:
    """How masks were smoothed.

    Attributes:
        name: Name of the smoothing, as it may be asked for.
        lag_frames: Frames by which a class is shown later where the image is still.
    """

    name: str
    lag_frames: float


@dataclass(frozen=True, kw_only=True)
class VideoResult(RunStats):
    """How a run went: the figures of the whole run, and these.

    Attributes:
        flicker: Share of the pixels, 0-1, that changed class where the image did not, in the masks written; None where
            no pixel stood still.
        flicker_unsmoothed: The same share in the engine's masks.
        smoothing: How masks were smoothed.
        decoded_on: Where frames were decoded: ``"cpu"``, by NVIDIA's decoder (``"nvdec"``), or by a pipeline's elements
            (``"gstreamer"``).
        source_fps: Frame rate that the source states, or None.
        size_hw: Size of the first frame, before the source scaled it.
        complete: Whether the source was read to its end.
        labels: Agreement with the labels, or None without labels.
        outputs: The sinks as they were asked for.
        notes: What is not as asked for, one line each.
        runner: Name of the backend that ran.
        arithmetic: ``"native"``, ``"simulated"`` or ``"tf32"``.
        plan_ran: Whether a bundle's plan itself ran; None where there is no plan.
        interrupted: Whether Ctrl-C ended the run.
    """

    flicker: float | None
    flicker_unsmoothed: float | None
    smoothing: SmoothingUsed
    decoded_on: DecodedOn
    source_fps: float | None
    size_hw: tuple[int, int]
    complete: bool
    labels: LabelScores | None
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    runner: str
    arithmetic: str
    plan_ran: bool | None
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = asdict(self)
        del values["interrupted"]
        values["size"] = format_size(values.pop("size_hw"))
        return {**values, "outputs": list(self.outputs), "notes": list(self.notes)}


def segment_video(
    source: str | Path | int,
    sinks: str | Path | Sequence[str | Path],
    bundle: str | Path,
    *,
    smooth: str = "none",
    overlay: bool = False,
    style: OverlayStyle | None = None,
    labels: str | Path | None = None,
    ignore_index: int | None = None,
    rate: Fraction | float | None = None,
    live: bool | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    runner: RunnerName = "auto",
    plugin: str | Path | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    verify_key: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    on_notice: Report = silent,
) -> VideoResult:
    """Segment a camera, a stream or a clip and write or show the result.

    Args:
        source: Video file, folder of images, camera (0 or ``/dev/video0``), URL (rtsp, http, udp, rtmp), GStreamer
            pipeline (``"… ! …"``), ``csi://0`` or ``jetson://FILE``.
        sinks: Where the result goes, one or several: ``NAME.mp4``, a folder (gets masks), ``masks:DIR``,
            ``overlays:DIR``, ``window`` or ``null``. Every sink gets every frame.
        bundle: A ``NAME.nrd`` folder, or a checkpoint, which runs in PyTorch.
        smooth: Smoothing of masks over time: ``none``, ``hysteresis[:FRAMES]`` or ``ema[:WEIGHT]``.
        overlay: Whether plain folders get pictures beside the masks.
        style: How pictures are drawn; None takes the defaults of `OverlayStyle`.
        labels: Folder of index PNGs, for mIoU; None measures none.
        ignore_index: Label value that is not counted besides 255; None takes the model's.
        rate: Frames per second of a folder of images or of a CSI camera (None is 30), or to ask a camera for.
        live: Whether late frames are dropped and a lost source is opened again; None goes by the source.
        fit: How frames are brought to the engine's size; None takes the bundle's way.
        resample: See `nrd_trt.open_bundle`.
        runner: Backend; ``"auto"`` takes the plan where this machine can run it, else ONNX Runtime.
        plugin: Library of a plan that decodes by plugin; None looks for it.
        threads: CPU threads; None leaves the choice to the backend.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`.
        verify_key: For bundles; see `nrd_trt.open_bundle`.
        force: Replace existing outputs.
        progress: Whether a bar on stderr shows frame rate and time split.
        on_notice: Receives lines that a user should know while the run goes on, e.g. that a stream was lost.

    Returns:
        How the run went; a run that was ended by Ctrl-C or a closed window returns too.

    Raises:
        ConfigError: An argument, the source's or a sink's text is invalid, or an output exists.
        VideoError: The source cannot be read or a sink cannot be written.
        BundleError: The bundle is damaged.
        RunnerError: The engine cannot be started or failed.
        MissingDependencyError: A package that source, sink or runner needs is not installed.
    """
    outputs = tuple(str(sink) for sink in ([sinks] if isinstance(sinks, (str, Path)) else sinks))
    _check_outputs(outputs, str(source), str(bundle))
    plugin = optional_path("plugin", plugin)
    run = RunOptions(runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device)
    verify_key = optional_path("verify_key", verify_key)
    engine = open_engine(bundle, run, fit=fit, resample=resample, verify_key=verify_key)
    info, graph, shown = engine.info, engine.graph, _Bar(show=progress, on_notice=on_notice)
    style = style or OverlayStyle()
    if style.view == "confidence":
        check_confidence(graph, "view='confidence'")
    smoother = parse_smoothing(smooth, has_logits="logits" in graph.outputs, upsample=graph.upsample)
    ignored = info.ignore_index if ignore_index is None else ignore_index
    scored = None if labels is None else LabelSink(Path(labels), info, ignore_index=ignored)
    writing: list[Sink] = [] if scored is None else [scored]
    written = [text for text in outputs if text != "null"]
    writing += [open_sink(text, info, overlay=overlay, force=force, report=shown.report) for text in written]
    thread = EngineThread(engine)
    wanted = Wanted(
        fitting=engine.fitting,
        padding=padding_colour(info),
        pixels=any(sink.shows_picture for sink in writing),
        on_device=lambda: thread.takes_device_memory,
        resample=engine.resample,
    )
    opened = open_source(str(source), rate=rate, live=live, wanted=wanted, report=shown.report)
    paint = Painter(info, style)
    with thread:
        pipeline = Pipeline(opened, thread, writing, paint=paint, smoother=smoother)
        complete = _run(pipeline, shown)
    stream = opened.info
    return VideoResult(
        **vars(pipeline.stats.total()),
        flicker=pipeline.flicker.flicker,
        flicker_unsmoothed=pipeline.flicker_unsmoothed.flicker,
        smoothing=SmoothingUsed(name=smoother.name, lag_frames=smoother.lag_frames),
        decoded_on=stream.decoded_on,
        source_fps=None if stream.rate is None else float(stream.rate),
        size_hw=stream.size_hw,
        complete=complete,
        labels=scored.scores() if scored else None,
        outputs=outputs,
        notes=(*filter(None, [stream.note]), *pipeline.notes),
        runner=engine.runner_name,
        arithmetic=engine.arithmetic,
        plan_ran=engine.plan_ran,
        interrupted=pipeline.stages.interrupted,
    )


def _check_outputs(outputs: tuple[str, ...], source: str, bundle: str) -> None:
    """Raise `ConfigError` where an output is missing, given twice, or would replace what is read."""
    if not outputs:
        raise ConfigError(f"sinks=: expected at least one of {FORMS}, got none.")
    for text in outputs:
        if text.partition(":")[0] == "page":
            raise ConfigError(
                f"sinks={text!r}: expected {FORMS}; a web page is served by nrd_trt.serve({source!r}, {bundle!r})."
            )
    targets = [target.resolve() for text in outputs if (target := target_of(text)) is not None]
    read = {path.resolve() for path in (Path(source), Path(source) / "images")}
    for target in targets:
        if targets.count(target) > 1:
            raise ConfigError(
                f"sinks={str(target)!r}: given more than once; give every output once (a folder takes overlays beside "
                "its masks with overlay=True)."
            )
        if not read.isdisjoint({target, partial_of(target)}):
            raise ConfigError(f"sinks={str(target)!r}: would replace what is read; choose another output.")


def _run(pipeline: Pipeline, shown: _Bar) -> bool:
    """Run; return whether the source was read to its end."""
    try:
        return pipeline.run(lambda: shown.show(pipeline)) == "complete"
    except BaseException:
        if pipeline.stages.failed:
            frames = pipeline.stats.total().frames
            shown.report(f"stopped in the stage {pipeline.stages.failed} after {frames} frames written")
        for line in pipeline.notes:
            shown.report(line)
        raise
    finally:
        shown.close()


class _Bar:
    """A bar with the frame rate and the time split; lines for the user go above it."""

    def __init__(self, *, show: bool, on_notice: Report) -> None:
        self._show, self._on_notice = show, on_notice
        self._bar: tqdm[Any] | None = None

    def report(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._on_notice(line)

    def show(self, pipeline: Pipeline) -> None:
        """Move the bar."""
        stats, expected = pipeline.stats.snapshot(), pipeline.info.frames if pipeline.info else None
        if self._bar is None:
            self._bar = bar(desc="frames", unit="frames", show=self._show, total=expected)
            # The rate of the bar itself would be that of its updates.
            known = "/{total_fmt} {bar}" if expected else ""
            self._bar.bar_format = "{desc} {n_fmt}" + known + " [{elapsed}{postfix}]"
            self._bar.ncols = 130
        split = " ".join(f"{stage} {ms:.0f}" for stage, ms in stats.split_ms.items())
        fps = "" if stats.fps is None else f"{stats.fps:.1f} frames/s, ms: {split}"
        dropped = f", {stats.dropped} dropped" if stats.dropped else ""
        self._bar.set_postfix_str(fps + dropped, refresh=False)
        self._bar.update(stats.frames - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
