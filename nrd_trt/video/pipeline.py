"""The stages on threads: read → preprocess → infer → smooth → draw → write.

Between two stages lies a short bounded queue. Frames of a file wait for room, so none is lost; of a live source the
newest one wins until the engine takes it. The first stage that fails stops them all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from nrd_trt.data.preprocessing import FittedImage, Fitting
from nrd_trt.errors import VideoError
from nrd_trt.progress import silent
from nrd_trt.runtime.base import Feed
from nrd_trt.runtime.engine_thread import EngineThread, Pending
from nrd_trt.runtime.graph_io import device_feed, segmentation_at
from nrd_trt.video.frames import DeviceImage, Ending, EndOfRun, Frame, SegmentedFrame, Sink, Source, StreamInfo
from nrd_trt.video.overlay import class_shares
from nrd_trt.video.pause import PauseSwitch
from nrd_trt.video.stats import StatsCollector
from nrd_trt.video.temporal import FlickerMeter, NoSmoothing, Smoother, Stillness
from nrd_trt.video.threads import Channel, StageThreads

Paint = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]
"""From image ``(H, W, 3) uint8``, mask ``(H, W) uint8``, shares ``(256,)`` and the confidence, where there is one, to a
picture ``(H', W', 3) uint8``."""

_CAPACITY = 2
_STOP_WITHIN_S, _FINISH_WITHIN_S = 1.0, 60.0
_SOON_S = 0.002  # a frame that comes later does not hold back the one before it

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True)
class _Arrived:
    frame: Frame
    arrived_s: float  # by time.monotonic


@dataclass(frozen=True, kw_only=True)
class _Fitted(_Arrived):
    fitted: Fitting  # an image too, but for a frame that stays on the GPU
    feed: Feed


_Inferred = tuple[_Fitted, Mapping[str, np.ndarray]]


class Pipeline:
    """One run from a source to its sinks.

    Args:
        source: Not entered: the run opens and closes it.
        engine: Entered.
        sinks: All get every frame, in this order.
        paint: Draws for the sinks that show pictures; None shows the frames themselves.
        smoother: Smooths the masks; None leaves them as they are.
        pause: Pauses and steps the run.

    Attributes:
        info: What the source is, once the run has opened it.
        stats: Frame rate, latencies and time split; may be read while the run goes on.
        flicker: Flicker of the masks that the sinks get.
        flicker_unsmoothed: Flicker of the engine's masks.
        notes: What the sinks had to say in the end, and what was left out, one line each.
        stages: The threads: which stage failed first, and whether Ctrl-C ended the run.
    """

    def __init__(
        self,
        source: Source,
        engine: EngineThread,
        sinks: Sequence[Sink],
        *,
        paint: Paint | None = None,
        smoother: Smoother | None = None,
        pause: PauseSwitch | None = None,
    ) -> None:
        self._source, self._thread, self._engine, self._sinks = source, engine, engine.engine, sinks
        shows = any(sink.shows_picture for sink in sinks)
        self._paint = paint if shows else None
        self._smoother, self._still = smoother or NoSmoothing(), Stillness()
        self._looks = shows or not isinstance(self._smoother, NoSmoothing)  # at pictures that lie on the GPU
        self._pause, self.stats = pause or PauseSwitch(), StatsCollector()
        self.flicker, self.flicker_unsmoothed = FlickerMeter(), FlickerMeter()
        self.info: StreamInfo | None = None
        self.notes: list[str] = []
        self.stages = StageThreads(self._release)
        self._stopping = self._unseen = False

    def run(self, on_progress: Callable[[], None] = silent) -> Ending:
        """Run until the source ends, a viewer closes its window, `stop`, Ctrl-C, or an error.

        After Ctrl-C, what the engine has begun is still written; a second Ctrl-C drops it.

        Args:
            on_progress: Called on this thread about ten times a second.

        Returns:
            ``"complete"`` or ``"stopped"``.

        Raises:
            NrdTrtError: The error of the stage that failed, after the others were stopped.
        """
        # On a thread: FFmpeg, while it waits for a server, lets no Ctrl-C through.
        opening = StageThreads(self._source.stop)
        opening.start({"open": self._source.__enter__})
        opening.wait(silent, lambda: opening.fail("open", KeyboardInterrupt()))
        opening.join(0, last_within_s=0)
        info = self._source.info
        capacity = 1 if info.live else _CAPACITY
        self._arrived: Channel[_Arrived] = Channel(capacity, drop_oldest=info.live)
        self._fitted: Channel[_Fitted] = Channel(capacity, drop_oldest=info.live)
        self._inferred: Channel[_Inferred] = Channel(capacity)
        self._masked: Channel[SegmentedFrame] = Channel(capacity)
        self._drawn: Channel[SegmentedFrame] = Channel(capacity)
        self.info = info
        self.stages.start(
            {
                "read": self._read,
                "preprocess": lambda: self._map("preprocess", self._arrived, self._fit, self._fitted),
                "infer": self._infer,
                "smooth": lambda: self._map("smooth", self._inferred, self._smooth, self._masked),
                "draw": lambda: self._map("draw", self._masked, self._draw, self._drawn),
                "write": self._write,
            }
        )
        self.stages.wait(on_progress, self.stop)
        # A read that waits for the network inside FFmpeg ends by its own timeout and closes the source then. Sinks
        # get the time to finish their files.
        self.stages.join(_STOP_WITHIN_S, last_within_s=_FINISH_WITHIN_S)
        if self._unseen:
            self.notes.append("frames stayed on the GPU, so flicker was not measured.")
        return "stopped" if self._stopping else "complete"

    def stop(self) -> None:
        """Ask for the end, from any thread: nothing more is begun, what the engine has begun is written."""
        self._stopping = True
        self._source.stop()
        self._pause.release()
        if self.info is not None:
            self._arrived.end(discard=True)
            self._fitted.end(discard=True)

    def _release(self) -> None:
        """End every stage: none goes on."""
        self._source.stop()
        self._pause.release()
        if self.info is not None:
            for channel in (self._arrived, self._fitted, self._inferred, self._masked, self._drawn):
                channel.end(discard=True)

    # --- stages, each on its thread ----------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            frames, waits = iter(self._source), not self._source.info.live
            while not self._stopping:
                start = time.perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                self.stats.stage("read", time.perf_counter() - start)
                self.stats.reconnects(self._source.reconnects)
                if self._pause.lets_through(wait=waits) and not self._stopping:
                    self.stats.drop(self._arrived.put(_Arrived(frame=frame, arrived_s=time.monotonic())))
            self._arrived.end()
        finally:
            self._source.__exit__(None, None, None)

    def _map(self, name: str, items: Iterable[In], work: Callable[[In], Out], target: Channel[Out]) -> None:
        """Do one thing to every item."""
        for item in items:
            start = time.perf_counter()
            result = work(item)
            self.stats.stage(name, time.perf_counter() - start)
            self.stats.drop(target.put(result))
        target.end()

    def _fit(self, arrived: _Arrived) -> _Fitted:
        frame, info, feed = arrived.frame, self._source.info, None
        if isinstance(frame.image, DeviceImage):
            fitting = self._engine.fitting(frame.image.size_hw)
            if self._thread.takes_device_memory and frame.image.lies_as(fitting.engine_hw):
                feed = device_feed(frame.image.tensor, self._engine.graph)
            if feed is not None and not self._looks:
                return _Fitted(**vars(arrived), fitted=fitting, feed=feed)
        fitted = self._engine.fitted(frame.rgb, original_hw=info.size_hw if info.scaled else None)
        return _Fitted(**vars(arrived), fitted=fitted, feed=feed or self._engine.feed(fitted.image))

    def _infer(self) -> None:
        """Keep the engine busy: of a file, a run is queued before the one ahead of it has ended.

        With live sources that would only make frames older.
        """
        ahead = 0 if self._source.info.live else 1
        begun: deque[tuple[_Fitted, Pending, float]] = deque()
        ended = 0.0
        for item in self._fitted:
            begun.append((item, self._thread.begin(item.feed), time.perf_counter()))
            while begun and (len(begun) > ahead or not self._fitted.comes_within(_SOON_S)):
                run, pending, since = begun.popleft()
                outputs = pending.result()
                last_ended, ended = ended, time.perf_counter()
                self.stats.stage("infer", ended - max(since, last_ended))  # the engine does one run at a time
                self._inferred.put((run, outputs))
        self._inferred.end()

    def _smooth(self, inferred: _Inferred) -> SegmentedFrame:
        item, outputs = inferred
        drawn, fitted = segmentation_at(outputs, 0, self._engine.graph), item.fitted
        mask = raw = drawn.mask
        if isinstance(fitted, FittedImage):
            still = self._still(fitted.image)
            mask = self._smoother(raw, outputs, still)
            height, width = fitted.content_hw  # padding does not count
            self.flicker_unsmoothed.update(raw[:height, :width], still[:height, :width])
            self.flicker.update(mask[:height, :width], still[:height, :width])
        else:
            self._unseen = True
        restored = fitted.restore(mask)
        unsmoothed = restored if isinstance(self._smoother, NoSmoothing) else fitted.restore(raw)
        return SegmentedFrame(
            frame=item.frame,
            mask=restored,
            unsmoothed=unsmoothed,
            shares=class_shares(restored),
            arrived_s=item.arrived_s,
            confidence=None if drawn.confidence is None else fitted.restore(drawn.confidence),
        )

    def _draw(self, frame: SegmentedFrame) -> SegmentedFrame:
        if self._paint is None:
            return frame
        return replace(frame, painted=self._paint(frame.frame.rgb, frame.mask, frame.shares, frame.confidence))

    def _write(self) -> None:
        """Give every frame to the sinks; they live on this thread, from opening to closing."""
        opened: list[Sink] = []
        ending: Ending = "failed"
        try:
            for sink in self._sinks:
                opened.append(sink)
                sink.open(self._source.info)
            for frame in self._drawn:
                start = time.perf_counter()
                for sink in self._sinks:
                    sink.write(frame)
                self.stats.stage("write", time.perf_counter() - start)
                self.stats.written(frame.arrived_s)
            if not self.stages.failed:
                ending = "stopped" if self._stopping else "complete"
        except EndOfRun:
            self.stop()
            ending = "stopped"
            self._release()  # what is on its way has nowhere to go
        except OSError as exc:
            raise VideoError(f"an output cannot be written ({exc}); check its folder and the free space.") from exc
        finally:
            self._close(opened, ending)

    def _close(self, sinks: Iterable[Sink], ending: Ending) -> None:
        """Close all, also where one cannot be; the first error counts, unless there was one before."""
        errors: list[Exception] = []
        for sink in sinks:
            try:
                line = sink.close(ending)
            except Exception as exc:
                errors.append(exc)
                line = f"an output could not be finished: {exc}"
            if line:
                self.notes.append(line)
        if errors and ending != "failed":
            raise VideoError(f"an output cannot be finished ({errors[0]}); check the free space.") from errors[0]
