"""Stages on threads: every frame of a file, the newest of a camera, and an end without hanging, whatever happens."""

from __future__ import annotations

import _thread
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from nrd_trt.data.synthetic import street_clip
from nrd_trt.errors import RunnerError, VideoError
from nrd_trt.runtime.engine import Engine, open_bundle
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.video.frames import Ending, EndOfRun, StreamInfo
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.temporal import Hysteresis
from tests.artefacts import bundle
from tests.video.stand_ins import INFO, Kept, Pictures

PROMPTLY_S = 1.5  # a second for the run, the rest for a loaded machine


class Slow(nullcontext[None]):
    """A runner that takes its time, or fails at a frame."""

    name, arithmetic, inputs, outputs = "slow", "native", {}, {}  # type: ignore[var-annotated]

    def __init__(self, *, seconds: float = 0.0, fails_at: int | None = None) -> None:
        super().__init__()
        self._seconds, self._left = seconds, fails_at

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._left == 0:
            raise RunnerError("the engine is gone")
        self._left = None if self._left is None else self._left - 1
        time.sleep(self._seconds)
        return {"mask": np.zeros(feed["image"].shape[:3], np.uint8)}


def clip(count: int) -> list[np.ndarray]:
    return [scene.image for scene in street_clip(5, INFO.size_hw, frames=count)]


def plain(index: int) -> np.ndarray:
    return np.full((*INFO.size_hw, 3), index % 256, np.uint8)


def piped(source: Pictures, engine: EngineThread, *sinks: Kept, smoother: Hysteresis | None = None) -> Pipeline:
    return Pipeline(source, engine, sinks, smoother=smoother)


def on_thread(**slow: Any) -> EngineThread:
    engine = open_bundle(bundle(), runner="onnxruntime", threads=1)
    if slow:
        engine = Engine(Slow(**slow), engine.graph)  # type: ignore[arg-type]
    return EngineThread(engine)


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineThread]:
    with on_thread() as entered:
        yield entered


def ours() -> set[threading.Thread]:
    """The threads of runs; libraries have others."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("nrd-")}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = ours()
    yield
    deadline = time.monotonic() + PROMPTLY_S
    while (left := ours() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_every_frame_comes_out_in_order_with_the_mask_of_a_single_image(engine: EngineThread) -> None:
    pictures, sink = clip(12), Kept()
    source = Pictures(pictures.__getitem__, 12)
    pipeline = piped(source, engine, sink)
    assert pipeline.run() == "complete"
    assert sink.indices == list(range(12))
    assert (sink.ending, pipeline.notes) == ("complete", ["ended complete"])
    with open_bundle(bundle(), runner="onnxruntime", threads=1) as predictor:
        for frame, rgb in zip(sink.frames, pictures, strict=True):
            np.testing.assert_array_equal(frame.mask, predictor.predict(rgb))
            assert frame.unsmoothed is frame.mask
            np.testing.assert_allclose(frame.shares, np.bincount(frame.mask.ravel(), minlength=256) / frame.mask.size)
    figures = pipeline.stats.total()
    assert (figures.frames, figures.dropped) == (12, 0)
    assert all(figures.split_ms[stage] > 0 for stage in figures.split_ms)
    assert source.closed_by == "nrd-read"


def test_pictures_are_drawn_only_where_a_sink_shows_them(engine: EngineThread) -> None:
    for shows in (False, True):
        drawn: list[np.ndarray] = []

        def paint(rgb: np.ndarray, *made: np.ndarray | None, drawn: list[np.ndarray] = drawn) -> np.ndarray:
            drawn.append(255 - rgb)
            return drawn[-1]

        sinks = [Kept(), Kept(shows_picture=shows)]
        Pipeline(Pictures(plain, 2), engine, sinks, paint=paint).run()
        for sink in sinks:
            for index, frame in enumerate(sink.frames):
                assert frame.picture is (drawn[index] if shows else frame.frame.rgb)
        assert len(drawn) == 2 * shows


def test_a_slow_sink_slows_a_file_down_loses_nothing_and_lets_little_pile_up(engine: EngineThread) -> None:
    ahead: list[int] = []
    source = Pictures(plain, 60)
    sink = Kept(on_write=lambda index: (time.sleep(0.005), ahead.append(source.read - index))[0])
    piped(source, engine, sink).run()
    assert sink.indices == list(range(60))
    assert max(ahead) <= 20


def test_a_live_source_drops_the_oldest_and_counts() -> None:
    with on_thread(seconds=0.05) as slow:
        sink = Kept()
        source = Pictures(plain, 60, live=True, every_s=0.01)
        pipeline = piped(source, slow, sink)
        pipeline.run()
    figures = pipeline.stats.total()
    assert source.read == 60  # the camera was never kept waiting
    assert figures.frames == len(sink.frames) < 40
    assert figures.frames + figures.dropped == 60
    assert sink.indices == sorted(set(sink.indices))
    assert sink.indices[-1] == 59  # the newest one
    assert max(sink.latencies_s) < 0.5


def failing(index: int) -> None:
    if index == 3:
        raise ValueError("broken on purpose")


def check_prompt_failure(run: Callable[[], object], error: type[BaseException], text: str) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=text):
        run()
    assert time.monotonic() - start < PROMPTLY_S


@pytest.mark.parametrize("stage", ["read", "preprocess", "infer", "smooth", "draw", "write"])
def test_a_stage_that_fails_on_frame_3_of_100_stops_all(stage: str) -> None:
    count = itertools.count()

    class Smoother(Hysteresis):
        def __call__(self, mask: np.ndarray, outputs: Mapping[str, np.ndarray], still: np.ndarray) -> np.ndarray:
            failing(next(count) if stage == "smooth" else 0)
            return mask

    def paint(rgb: np.ndarray, *made: np.ndarray | None) -> np.ndarray:
        failing(int(rgb[0, 0, 0]) if stage == "draw" else 0)
        return rgb

    def picture(index: int) -> np.ndarray:
        failing(index if stage == "read" else 0)
        return np.zeros((4, 4), np.uint8) if stage == "preprocess" and index == 3 else plain(index)

    source = Pictures(picture, 100)
    sink = Kept(shows_picture=True, on_write=lambda index: failing(index if stage == "write" else 0))
    with on_thread(fails_at=3 if stage == "infer" else None) as engine:
        pipeline = Pipeline(source, engine, [sink], paint=paint, smoother=Smoother(frames=2))
        errors = {"preprocess": (ValueError, "expected .H, W, 3."), "infer": (RunnerError, "the engine is gone")}
        check_prompt_failure(pipeline.run, *errors.get(stage, (ValueError, "broken on purpose")))
    assert pipeline.stages.failed == stage
    assert sink.ending == "failed"
    assert len(sink.frames) <= 3
    assert source.read < 30
    assert source.closed_by is not None


def test_a_failure_does_not_wait_for_a_camera_that_is_silent(engine: EngineThread) -> None:
    """As of a read that waits inside a library."""
    silent = threading.Event()
    source = Pictures(lambda index: plain(index if index < 4 else silent.wait(5)), None, live=True)
    try:
        run = piped(source, engine, Kept(on_write=lambda index: failing(3))).run
        check_prompt_failure(run, ValueError, "broken on purpose")
        assert source.closed_by is None  # nobody closes it under the reader's feet
    finally:
        silent.set()


def test_a_sink_that_fails_does_not_ruin_the_others(engine: EngineThread) -> None:
    """It cannot be opened, cannot be written, or cannot be finished."""

    class Broken(Kept):
        def __init__(self, at: str) -> None:
            super().__init__(on_write=lambda index: self._fail("write"))
            self.at = at

        def _fail(self, at: str) -> None:
            if at == self.at:
                raise OSError(28, "No space left on device")

        def open(self, info: StreamInfo) -> None:
            self._fail("open")

        def close(self, ending: Ending) -> str | None:
            self._fail("close")
            return super().close(ending)

    unwritten = "cannot be written .*No space left on device.*check its folder and the free space"
    for at, ending, count, told in (
        ("open", "failed", 0, unwritten),
        ("write", "failed", 1, unwritten),
        ("close", "complete", 4, "cannot be finished .*No space left"),
    ):
        other = Kept()
        run = piped(Pictures(plain, 4), engine, other, Broken(at)).run
        check_prompt_failure(run, VideoError, told)
        assert (other.ending, len(other.frames)) == (ending, count), at


def test_a_sink_that_takes_long_to_finish_gets_the_time(engine: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nrd_trt.video.pipeline._STOP_WITHIN_S", 0.1)

    class Slow(Kept):
        def close(self, ending: Ending) -> str | None:
            time.sleep(0.4)
            return super().close(ending)

    sink, failed = Slow(), Slow(on_write=failing)
    piped(Pictures(plain, 2), engine, sink).run()
    with pytest.raises(ValueError, match="broken on purpose"):
        piped(Pictures(plain, 9), engine, failed).run()
    assert (sink.ending, failed.ending) == ("complete", "failed")


def test_ctrl_c_ends_an_opening_that_hangs(engine: EngineThread) -> None:
    class Silent(Pictures):
        def __enter__(self) -> Pictures:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            self._stopped.wait(5)
            return self

    check_prompt_failure(piped(Silent(plain, 2), engine, Kept()).run, KeyboardInterrupt, "^$")


def test_ctrl_c_writes_what_is_on_its_way_and_ends(engine: EngineThread) -> None:
    sink = Kept()
    pipeline = piped(Pictures(plain, None), engine, sink)

    def interrupt() -> None:
        if len(sink.frames) > 5 and not pipeline.stages.interrupted:
            _thread.interrupt_main()

    start = time.monotonic()
    assert pipeline.run(interrupt) == "stopped"
    assert time.monotonic() - start < 5
    assert pipeline.stages.interrupted
    assert sink.ending == "stopped"
    assert sink.indices == list(range(len(sink.indices)))


def test_a_second_ctrl_c_gives_up() -> None:
    with on_thread(seconds=0.3) as slow:
        sink, interrupts = Kept(), iter((True, True))
        pipeline = piped(Pictures(plain, None), slow, sink)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(lambda: _thread.interrupt_main() if next(interrupts, False) else None)
    assert sink.ending == "failed"


def test_a_viewer_that_closes_the_window_ends_the_run(engine: EngineThread) -> None:
    def close_at_4(index: int) -> None:
        if index == 4:
            raise EndOfRun

    sink = Kept(on_write=close_at_4)
    pipeline = piped(Pictures(plain, None), engine, sink)
    assert pipeline.run() == "stopped"
    assert (sink.indices, sink.ending, pipeline.stages.interrupted) == ([0, 1, 2, 3], "stopped", False)


def test_stop_before_the_run_and_from_another_thread(engine: EngineThread) -> None:
    for before in (True, False):
        pipeline = piped(Pictures(plain, None), engine, Kept())
        if before:
            pipeline.stop()
        else:
            threading.Timer(0.2, pipeline.stop).start()
        assert pipeline.run() == "stopped"


def test_a_size_that_changes_midway_goes_through(engine: EngineThread) -> None:
    sizes = [(60, 90), (60, 90), (33, 47), (120, 60)]
    sink = Kept()
    source = Pictures(lambda index: np.full((*sizes[index], 3), 90, np.uint8), len(sizes))
    piped(source, engine, sink, smoother=Hysteresis(frames=3)).run()
    assert [frame.mask.shape for frame in sink.frames] == sizes


def test_smoothing_acts_on_the_masks_and_flicker_is_measured_before_and_after(engine: EngineThread) -> None:
    """Two pictures take turns: everything that changes class comes and goes; a class must come three times to stay."""
    first = clip(1)[0]
    dim = np.clip(first.astype(int) + 5, 0, 255).astype(np.uint8)  # still, by the threshold
    sink = Kept()
    source = Pictures(lambda index: dim if index % 2 else first, 12)
    pipeline = piped(source, engine, sink, smoother=Hysteresis(frames=3))
    pipeline.run()
    assert (pipeline.flicker_unsmoothed.flicker or 0) > 0
    assert pipeline.flicker.flicker == 0
    masks = [engine.segment(picture).mask for picture in (first, dim)]
    np.testing.assert_array_equal(sink.frames[1].unsmoothed, masks[1])
    np.testing.assert_array_equal(sink.frames[1].mask, masks[0])


def test_padding_does_not_count_as_flicker() -> None:
    """The content never stands still here, the padding always does."""
    source = Pictures(lambda index: np.full((64, 32, 3), index % 2 * 255, np.uint8), 4)
    with EngineThread(open_bundle(bundle(), runner="onnxruntime", threads=1, fit="letterbox")) as engine:
        pipeline = piped(source, engine, Kept())
        pipeline.run()
    assert pipeline.flicker.flicker is None
