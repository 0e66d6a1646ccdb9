"""The verb ``video``: masks of a camera or a clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.errors import ConfigError
from nrd_trt.specs import PaletteName, View

if TYPE_CHECKING:
    from nrd_trt.video.overlay import OverlayStyle
    from nrd_trt.video.segment_video import VideoResult

_DECODED = {"cpu": "on the CPU", "nvdec": "by NVDEC", "gstreamer": "by the pipeline"}

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Video file, folder of images, camera number, /dev/videoN, rtsp:// or http:// URL, csi://N, "
        "jetson://FILE, or a GStreamer pipeline ('… ! …').",
    ),
]
BundleOption = Annotated[Path, typer.Option(metavar="NAME.nrd|CKPT", help="The engine; a checkpoint runs in PyTorch.")]
Smooth = Annotated[str, typer.Option(metavar="none|hysteresis[:N]|ema[:WEIGHT]", help="Smoothing of masks over time.")]
Rate = Annotated[str | None, typer.Option(metavar="FPS", help="Of a folder of images: 30, 29.97 or 30000/1001.")]
Live = Annotated[
    bool | None, typer.Option("--live/--no-live", help="Drop late frames, or read every one (default: by the source).")
]


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """How pictures are drawn, as it was typed."""

    view: Annotated[View, typer.Option(help="What pictures show.")] = "overlay"
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the mask in the overlay.")] = 0.6
    contours: Annotated[bool, typer.Option("--contours", help="Draw the borders between classes.")] = False
    show: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Colour these classes only, by name or number.")
    ] = None
    palette: Annotated[PaletteName, typer.Option(help="Where the colours come from.")] = "model"
    legend: Annotated[bool, typer.Option("--legend", help="Draw the classes with their shares of the picture.")] = False

    def style(self) -> OverlayStyle:
        """Return the style that they make."""
        from nrd_trt.video.overlay import OverlayStyle

        names = [name.strip() for name in (self.show or "").split(",") if name.strip()]
        shown = tuple(int(name) if name.isascii() and name.isdigit() else name for name in names)
        return OverlayStyle(**{**vars(self), "show": None if self.show is None else shown})


def video_command(
    source: Source,
    *,
    bundle: BundleOption,
    sinks: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="SINK",
            help="NAME.mp4, a folder (masks), masks:DIR, overlays:DIR, window or null; repeatable.",
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Plain folders get overlays beside the masks.")] = False,
    smooth: Smooth = "none",
    drawing: StyleOptions,
    judged: groups.LabelOptions,
    rate: Rate = None,
    live: Live = None,
    run: groups.BundleOptions,
    force: common.Force = False,
    out: groups.OutputOptions,
) -> None:
    """Segment a camera, a stream or a clip and write or show the result."""
    from nrd_trt.video.segment_video import segment_video

    with common.prints_on_stderr():  # PyNvVideoCodec tells of damage there
        result = segment_video(
            source,
            sinks or (),
            bundle,
            smooth=smooth,
            overlay=overlay,
            style=drawing.style(),
            **judged.given(),
            rate=rate_of(rate),
            live=live,
            **run.given(),
            force=force,
            progress=not out.quiet,
            on_notice=out.note,
        )
    out.show(result, _lines(result))
    if result.interrupted:
        raise typer.Exit(common.INTERRUPTED)


def rate_of(text: str | None) -> Fraction | None:
    """Parse ``--rate``: 25, 29.97 or 30000/1001."""
    try:
        return None if text is None else Fraction(text)
    except (ValueError, ZeroDivisionError) as exc:
        raise ConfigError(f"--rate {text!r}: expected frames per second such as 25, 29.97 or 30000/1001.") from exc


def _lines(result: VideoResult) -> Iterator[str]:
    """Yield how a run went."""
    rate = "" if result.fps is None else f" at {result.fps:.1f} frames/s"
    source = "" if result.source_fps is None else f" (source {result.source_fps:.6g})"
    dropped = f", {result.dropped} dropped" if result.dropped else ""
    reconnects = f", source lost and found {result.reconnects} times" if result.reconnects else ""
    ending = "" if result.complete else ", stopped before the source's end"
    yield f"{result.frames} frames{rate}{source}{dropped}{reconnects}{ending}"
    split = "  ".join(f"{stage} {ms:.1f}" for stage, ms in result.split_ms.items())
    decoded = _DECODED[result.decoded_on]
    yield f"time split, ms per frame: {split} (stages run at the same time; frames decoded {decoded})"
    name, lag = result.smoothing.name, result.smoothing.lag_frames
    if result.flicker is not None:
        without = "" if name == "none" else f", {result.flicker_unsmoothed:.4f} without smoothing"
        yield f"flicker {result.flicker:.4f} of the still pixels{without}"
    if name != "none":
        yield f"smoothing {name}: a lag of {lag:g} frames where the image stands still"
    if result.labels and result.labels.miou is not None:
        without = "" if name == "none" else f", {result.labels.miou_unsmoothed:.4f} without smoothing"
        yield f"mIoU {result.labels.miou:.4f} on {result.labels.frames} labelled frames{without}"
        if result.labels.shift is not None:
            yield str(result.labels.shift)
    yield from result.notes
    run = common.run_by(result.runner, result.arithmetic, result.plan_ran)
    yield f"{', '.join(result.outputs)} (run by {run})"
