"""The verb ``video``: masks of a camera or a clip."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from nrd_trt.cli import common
from nrd_trt.errors import ConfigError

if TYPE_CHECKING:
    from nrd_trt.video.meters import Snapshot
    from nrd_trt.video.overlay import OverlayStyle
    from nrd_trt.video.run import VideoResult

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Video file, folder of images, camera number, /dev/videoN, rtsp:// or http:// URL, csi://N, "
        "jetson://FILE, or a GStreamer pipeline ('… ! …').",
    ),
]
BundleOption = Annotated[
    Path, typer.Option("--bundle", metavar="NAME.nrd|CKPT", help="The engine; a checkpoint runs in PyTorch.")
]
Smooth = Annotated[
    str,
    typer.Option("--smooth", metavar="none|hysteresis[:N]|ema[:WEIGHT]", help="Smoothing of masks over time."),
]
Rate = Annotated[
    str | None, typer.Option("--rate", metavar="FPS", help="Of a folder of images: 30, 29.97 or 30000/1001.")
]
Live = Annotated[
    bool | None, typer.Option("--live/--no-live", help="Drop late frames, or read every one (default: by the source).")
]


@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """How pictures are drawn, as it was typed."""

    view: Annotated[str, typer.Option("--view", metavar="overlay|mask|side", help="What pictures show.")] = "overlay"
    opacity: Annotated[float, typer.Option("--opacity", min=0, max=1, help="Of the mask in the overlay.")] = 0.6
    contours: Annotated[bool, typer.Option("--contours", help="Draw the borders between classes.")] = False
    show: Annotated[
        str | None, typer.Option("--show", metavar="NAME,NAME", help="Colour these classes only, by name or number.")
    ] = None
    palette: Annotated[
        str, typer.Option("--palette", metavar="NAME", help="model, camvid, cityscapes, ade20k or generated.")
    ] = "model"
    legend: Annotated[bool, typer.Option("--legend", help="Draw the classes with their shares of the picture.")] = False

    def style(self) -> OverlayStyle:
        """Return them checked."""
        from nrd_trt.video.overlay import OverlayStyle

        names = None if self.show is None else [name.strip() for name in self.show.split(",") if name.strip()]
        return OverlayStyle(
            view=self.view,  # type: ignore[arg-type]  # checked there
            opacity=self.opacity,
            contours=self.contours,
            classes=None
            if names is None
            else tuple(int(name) if name.isascii() and name.isdigit() else name for name in names),
            palette=self.palette,  # type: ignore[arg-type]
            legend=self.legend,
        )


def video_command(
    source: Source,
    *,
    bundle: BundleOption,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="SINK",
            help="NAME.mp4, a folder (masks), masks:DIR, overlays:DIR, window, page[:PORT] or null; repeatable.",
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Plain folders get overlays beside the masks.")] = False,
    smooth: Smooth = "none",
    drawing: StyleOptions,
    labels: common.Labels = None,
    ignore_index: common.IgnoreIndex = None,
    rate: Rate = None,
    live: Live = None,
    fit: common.FitOption = None,
    runner: common.Runner = "auto",
    plugin: common.Plugin = None,
    force: common.Force = False,
    threads: common.Threads = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Segment a camera, a stream or a clip and write or show the result."""
    from nrd_trt.video.run import VideoRequest, run_video

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop leaves a whole file too
    progress = _Progress(quiet=quiet)
    request = VideoRequest(
        source=source,
        sinks=tuple(outputs or ()),
        bundle=bundle,
        runner=runner,
        plugin=plugin,
        threads=threads,
        fit=common.fit_choice(fit),
        smooth=smooth,
        overlay=overlay,
        style=drawing.style(),
        rate=rate_of(rate),
        live=live,
        labels=labels,
        ignore_index=ignore_index,
        force=force,
        report=progress.report,
        on_progress=progress.show,
    )
    try:
        result = run_video(request)
    finally:
        progress.close()
    if as_json:
        common.print_json(result.to_dict())
    else:
        _print(result)
    if result.interrupted:
        raise typer.Exit(common.INTERRUPTED)


def rate_of(text: str | None) -> Fraction | None:
    """Parse ``--rate``.

    Raises:
        ConfigError: It is no positive number.
    """
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise ConfigError(f"--rate {text!r}: expected frames per second above 0 up to 1000, such as 25 or 30000/1001.")
    return rate


class _Progress:
    """A bar with the frame rate and the time split; lines for people go above it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None

    def report(self, line: str) -> None:
        """Print a line."""
        if self._bar is not None:
            self._bar.clear()
        common.note(line, quiet=self._quiet)

    def show(self, expected: int | None, figures: Snapshot) -> None:
        """Move the bar."""
        if self._bar is None:
            # The rate of the bar itself would be that of its updates.
            form = "{desc} {n_fmt}" + ("/{total_fmt} {bar}" if expected else "") + " [{elapsed}{postfix}]"
            self._bar = tqdm(
                total=expected, desc="frames", bar_format=form, delay=2, file=sys.stderr, disable=self._quiet,
                leave=False, ncols=130,
            )  # fmt: skip
        split = " ".join(f"{stage} {ms:.0f}" for stage, ms in figures.split_ms.items())
        fps = "" if figures.fps is None else f"{figures.fps:.1f} frames/s, ms: {split}"
        dropped = f", {figures.dropped} dropped" if figures.dropped else ""
        self._bar.set_postfix_str(fps + dropped, refresh=False)
        self._bar.update(figures.frames - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _print(result: VideoResult) -> None:
    """Print how a run went."""
    figures = result.figures
    rate = "" if figures.fps is None else f" at {figures.fps:.1f} frames/s"
    source = "" if result.source_fps is None else f" (source {result.source_fps:.6g})"
    dropped = f", {figures.dropped} dropped" if figures.dropped else ""
    reconnects = f", source lost and found {figures.reconnects} times" if figures.reconnects else ""
    ending = "" if result.complete else ", stopped before the source's end"
    typer.echo(f"{figures.frames} frames{rate}{source}{dropped}{reconnects}{ending}")
    split = "  ".join(f"{stage} {ms:.1f}" for stage, ms in figures.split_ms.items())
    typer.echo(f"time split, ms per frame: {split} (stages run at the same time)")
    smoothed = result.smoothing != "none"
    if result.flicker is not None:
        without = f", {result.flicker_unsmoothed:.4f} without smoothing" if smoothed else ""
        typer.echo(f"flicker {result.flicker:.4f} of the still pixels{without}")
    if smoothed:
        typer.echo(f"smoothing {result.smoothing}: a lag of {result.lag_frames:g} frames where the image stands still")
    if result.labels and result.labels["miou"] is not None:
        without = f", {result.labels['miou_unsmoothed']:.4f} without smoothing" if smoothed else ""
        typer.echo(f"mIoU {result.labels['miou']:.4f} on {result.labels['frames']} labelled frames{without}")
    for line in result.notes:
        typer.echo(line)
    typer.echo(f"{', '.join(result.outputs)} (run by {result.runner}, {result.arithmetic} arithmetic)")
