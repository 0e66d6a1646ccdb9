"""The stages on threads: read → preprocess → infer → smooth → draw → write.

Between two stages lies a short bounded queue. Frames of a file wait for room, so none is lost; of a live source the
newest one wins until the engine takes it. The first stage that fails stops them all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nrd_trt.errors import VideoError
from nrd_trt.runtime.engine_thread import Pending
from nrd_trt.video.channel import Channel
from nrd_trt.video.frames import Frame, SegmentedFrame, StreamInfo
from nrd_trt.video.gate import Gate
from nrd_trt.video.meters import Meters
from nrd_trt.video.overlay import class_shares
from nrd_trt.video.segmenter import Prepared, Segmenter
from nrd_trt.video.sinks.base import Ending, EndOfRun, Sink
from nrd_trt.video.sources.base import Source
from nrd_trt.video.temporal import FlickerMeter, NoSmoothing, Smoother, Stillness
from nrd_trt.video.threads import Crew

Paint = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From image ``(H, W, 3) uint8``, mask ``(H, W) uint8`` and shares ``(256,)`` to a picture ``(H', W', 3) uint8``."""

_CAPACITY = 2
_STOP_WITHIN_S, _FINISH_WITHIN_S = 1.0, 60.0
_SOON_S = 0.002  # a frame that comes later does not hold back the one before it

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True)
class _Arrived:
    frame: Frame
    at: float  # by time.monotonic


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    arrived: _Arrived
    prepared: Prepared


@dataclass(frozen=True, kw_only=True)
class _Running:
    item: _Prepared
    outputs: Pending
    since: float


@dataclass(frozen=True, kw_only=True)
class _Inferred:
    item: _Prepared
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class _Masked:
    arrived: _Arrived
    mask: np.ndarray
    unsmoothed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    arrived: _Arrived
    segmented: SegmentedFrame


class Pipeline:
    """One run from a source to its sinks.

    Args:
        source: Not entered: the run opens and closes it.
        segmenter: Entered.
        sinks: All get every frame, in this order.
        paint: Draws for the sinks that show pictures.
        smoother: Of masks.
        gate: Pauses and steps the run.
        meters: Collects its figures.

    Attributes:
        info: Of the source, once the run has opened it.
        meters: Frame rate, latencies and time split; may be read while the run goes on.
        flicker: Of the masks that the sinks get.
        flicker_unsmoothed: Of the engine's masks.
        notes: What the sinks had to say in the end, one line each.
        interrupted: Whether Ctrl-C ended the run.
    """

    def __init__(
        self,
        source: Source,
        segmenter: Segmenter,
        sinks: Sequence[Sink],
        *,
        paint: Paint,
        smoother: Smoother | None = None,
        gate: Gate | None = None,
        meters: Meters | None = None,
    ) -> None:
        self._source, self._segmenter, self._sinks = source, segmenter, sinks
        self._paint = paint if any(sink.shows_picture for sink in sinks) else None
        self._smoother, self._still = smoother or NoSmoothing(), Stillness()
        self._gate, self.meters = gate or Gate(), meters or Meters()
        self.flicker, self.flicker_unsmoothed = FlickerMeter(), FlickerMeter()
        self.info: StreamInfo | None = None
        self.notes: list[str] = []
        self.interrupted = False
        self._crew = Crew(self._release)
        self._stopping = False
        self._shape: tuple[int, ...] = ()

    @property
    def failed_stage(self) -> str | None:
        """Name of the stage whose error ended the run, or None."""
        return self._crew.failed

    def run(self, on_progress: Callable[[], None] = lambda: None) -> Ending:
        """Run until the source ends, a viewer closes its window, `stop`, Ctrl-C, or an error.

        After Ctrl-C, what the engine has begun is still written; a second Ctrl-C drops it.

        Args:
            on_progress: Called on this thread about ten times a second.

        Returns:
            ``"complete"`` or ``"stopped"``.

        Raises:
            NrdTrtError: The error of the stage that failed, after the others were stopped.
        """
        self._open()
        info = self._source.info
        self._make_channels(live=info.live)
        self.info = info
        self._crew.start(
            {
                "read": self._read,
                "preprocess": lambda: self._map("preprocess", self._arrived, self._prepare, self._prepared),
                "infer": self._infer,
                "smooth": lambda: self._map("smooth", self._inferred, self._smooth, self._masked),
                "draw": lambda: self._map("draw", self._masked, self._draw, self._drawn),
                "write": self._write,
            }
        )
        self._crew.wait(on_progress, self._interrupt)
        # A read that waits for the network inside FFmpeg ends by its own timeout and closes the source then. Sinks
        # get the time to finish their files.
        self._crew.join(_STOP_WITHIN_S, last_within_s=_FINISH_WITHIN_S)
        return "stopped" if self._stopping else "complete"

    def _open(self) -> None:
        """Open the source on a thread: FFmpeg, while it waits for a server, lets no Ctrl-C through."""
        opened: Future[object] = Future()

        def work() -> None:
            try:
                opened.set_result(self._source.__enter__())
            except BaseException as exc:
                opened.set_exception(exc)

        threading.Thread(target=work, name="nrd-open", daemon=True).start()
        try:
            opened.result()
        except KeyboardInterrupt:
            self._source.stop()
            raise

    def stop(self) -> None:
        """Ask for the end, from any thread: nothing more is begun, what the engine has begun is written."""
        self._stopping = True
        self._source.stop()
        self._gate.release()
        if self.info is not None:
            self._arrived.end(discard=True)
            self._prepared.end(discard=True)

    def _interrupt(self) -> None:
        self.interrupted = True
        self.stop()

    def _release(self) -> None:
        """Wake every stage; none goes on."""
        self._source.stop()
        self._gate.release()
        if self.info is not None:
            for channel in (self._arrived, self._prepared, self._inferred, self._masked, self._drawn):
                channel.abort()

    def _make_channels(self, *, live: bool) -> None:
        """Make one channel after each stage but the last."""
        capacity = 1 if live else _CAPACITY
        self._arrived: Channel[_Arrived] = Channel(capacity, drop_oldest=live)
        self._prepared: Channel[_Prepared] = Channel(capacity, drop_oldest=live)
        self._inferred: Channel[_Inferred] = Channel(capacity)
        self._masked: Channel[_Masked] = Channel(capacity)
        self._drawn: Channel[_Drawn] = Channel(capacity)

    # --- stages, each on its thread ----------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            frames = iter(self._source)
            while not self._stopping:
                start = time.perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                self.meters.stage("read", time.perf_counter() - start)
                self.meters.reconnects(self._source.reconnects)
                if self._passes_gate() and not self._stopping:
                    self.meters.drop(self._arrived.put(_Arrived(frame=frame, at=time.monotonic())))
            self._arrived.end()
        finally:
            self._source.__exit__(None, None, None)

    def _passes_gate(self) -> bool:
        """Wait at the gate; a live frame cannot wait and is let go."""
        if self._source.info.live:
            return self._gate.try_pass()
        self._gate.wait()
        return True

    def _map(self, name: str, items: Iterable[In], work: Callable[[In], Out], target: Channel[Out]) -> None:
        """Do one thing to every item."""
        for item in items:
            start = time.perf_counter()
            result = work(item)
            self.meters.stage(name, time.perf_counter() - start)
            self.meters.drop(target.put(result))
        target.end()

    def _prepare(self, arrived: _Arrived) -> _Prepared:
        return _Prepared(arrived=arrived, prepared=self._segmenter.prepare(arrived.frame.rgb))

    def _infer(self) -> None:
        """Keep the engine busy: of a file, a run is queued before the one ahead of it has ended.

        With live sources that would only make frames older.
        """
        ahead = 0 if self._source.info.live else 1
        running: deque[_Running] = deque()
        ended = 0.0
        for item in self._prepared:
            running.append(_Running(item=item, outputs=self._segmenter.begin(item.prepared), since=time.perf_counter()))
            while running and (len(running) > ahead or not self._prepared.comes_within(_SOON_S)):
                ended = self._finish(running.popleft(), ended)
        self._inferred.end()

    def _finish(self, run: _Running, last_ended: float) -> float:
        """Wait for a run, pass it on and return when it ended."""
        outputs = run.outputs.result()
        ended = time.perf_counter()
        self.meters.stage("infer", ended - max(run.since, last_ended))  # the engine does one run at a time
        self._inferred.put(_Inferred(item=run.item, outputs=outputs))
        return ended

    def _smooth(self, inferred: _Inferred) -> _Masked:
        fitted = inferred.item.prepared.fitted
        if fitted.image.shape != self._shape:
            self._shape = fitted.image.shape
            self._smoother.reset()
        raw = self._segmenter.mask(inferred.outputs)
        still = self._still(fitted.image)
        logits = inferred.outputs["logits"][0] if self._smoother.needs_logits else None
        mask = self._smoother(raw, logits, still)
        height, width = fitted.content_hw  # padding does not count
        self.flicker_unsmoothed.update(raw[:height, :width], still[:height, :width])
        self.flicker.update(mask[:height, :width], still[:height, :width])
        restored = fitted.restore(mask)
        unsmoothed = restored if isinstance(self._smoother, NoSmoothing) else fitted.restore(raw)
        return _Masked(arrived=inferred.item.arrived, mask=restored, unsmoothed=unsmoothed)

    def _draw(self, masked: _Masked) -> _Drawn:
        frame, mask = masked.arrived.frame, masked.mask
        shares = class_shares(mask)
        picture = None if self._paint is None else self._paint(frame.rgb, mask, shares)
        latency_s = time.monotonic() - masked.arrived.at
        segmented = SegmentedFrame(
            frame=frame,
            mask=mask,
            unsmoothed=masked.unsmoothed,
            picture=picture,
            shares=shares,
            latency_s=latency_s,
        )
        return _Drawn(arrived=masked.arrived, segmented=segmented)

    def _write(self) -> None:
        """Give every frame to the sinks; they live on this thread, from opening to closing."""
        opened: list[Sink] = []
        ending: Ending = "failed"
        try:
            for sink in self._sinks:
                opened.append(sink)
                sink.open(self._source.info)
            for drawn in self._drawn:
                start = time.perf_counter()
                for sink in self._sinks:
                    sink.write(drawn.segmented)
                self.meters.stage("write", time.perf_counter() - start)
                self.meters.written(time.monotonic() - drawn.arrived.at)
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
