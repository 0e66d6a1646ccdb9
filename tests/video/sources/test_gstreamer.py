"""GStreamer pipelines: real ones, in a process that ends with the source; and what is said of broken ones."""

from __future__ import annotations

import itertools
import shutil
import sys
import threading
import time
from pathlib import Path
from unittest.mock import call

import numpy as np
import pytest

from nrd_trt.errors import ConfigError, MissingDependencyError, VideoError
from nrd_trt.video.frames import Frame
from nrd_trt.video.sources import gstreamer
from nrd_trt.video.sources.gstreamer import is_finite, pipeline_tokens
from nrd_trt.video.sources.open_source import open_source
from tests.video.clips import grey_frames, number_of, write_clip
from tests.video.services import need_gstreamer
from tests.video.sources.cv2_stand_in import cv2_stand_in


def children() -> set[int]:
    """Processes that this one started and has not reaped."""
    listed = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
    return {int(process) for process in itertools.chain(*listed)}


@pytest.mark.parametrize("size", ["width=320,height=240", "width=321,height=99", "width=322,height=99"])
def test_pictures_of_a_pipeline(size: str) -> None:
    """Rows of raw video are padded to four bytes in GStreamer, and not in FFmpeg."""
    need_gstreamer("videotestsrc")
    text = f"videotestsrc num-buffers=9 pattern=smpte75 ! video/x-raw,{size},framerate=30000/1001 ! autovideosink"
    with open_source(text) as source:
        info, frames = source.info, list(source)
    assert (info.name, info.live, info.rate) == (text, False, pytest.approx(30000 / 1001))
    assert [frame.pts for frame in frames] == [round(index * 1001 / 30) for index in range(9)]
    height, width = info.size_hw
    bars = [(191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0), (0, 0, 191)]
    for frame in frames:
        for row, (index, bar) in itertools.product((2, height // 2), enumerate(bars)):
            assert np.abs(frame.rgb[row, int((index + 0.5) * width / 7)].astype(int) - bar).max() < 4


def test_a_film_by_a_pipeline_is_complete_and_a_live_one_is_started_again(tmp_path: Path) -> None:
    need_gstreamer("videotestsrc", "filesrc", "decodebin")
    path = write_clip(tmp_path / "clip one.mp4", grey_frames(20), codec="mpeg4", rate=25)
    with open_source(f"filesrc location='{path}' ! decodebin") as source:
        assert not source.info.live
        assert [number_of(frame.rgb) for frame in source] == list(range(20))
    lines: list[str] = []
    text = "videotestsrc num-buffers=4 ! video/x-raw,width=32,height=32"
    with open_source(text, live=True, report=lines.append) as source:
        frames = list(itertools.islice(source, 9))
    assert source.reconnects == 2
    assert lines[0] == f"{text}: lost (it ended); opening it again"
    assert all(earlier.pts < later.pts for earlier, later in itertools.pairwise(frames))


def test_what_gstreamer_says_at_the_start_and_midway_is_passed_on() -> None:
    need_gstreamer("videotestsrc")
    for text, words in {
        "videotestsrc ! nosuchelement": 'no element "nosuchelement"',
        "filesrc location=/nowhere.mp4 ! decodebin": 'No such file "/nowhere.mp4"',
        "videotestsrc num-buffers=0 ! identity": "nothing; try it with gst-launch-1.0",
    }.items():
        with pytest.raises(VideoError) as caught, open_source(text):
            pass
        assert "expected pictures from the pipeline, GStreamer says: " in str(caught.value)
        assert words in str(caught.value)
    frames: list[Frame] = []
    text = "videotestsrc num-buffers=30 ! video/x-raw,width=32,height=32 ! identity error-after=20"
    with pytest.raises(VideoError, match=r"expected frame 1\d, GStreamer says: identity0: Failed after iterations"):
        with open_source(text) as source:
            frames.extend(source)
    assert len(frames) > 10


def test_stop_ends_a_pipeline_that_gives_nothing() -> None:
    need_gstreamer("videotestsrc")
    before = children()
    with open_source("videotestsrc is-live=true ! video/x-raw,width=32,height=32,framerate=1/60") as source:
        assert len(children() - before) == 1
        thread = threading.Thread(target=lambda: list(source))
        thread.start()
        time.sleep(0.3)
        source.stop()
        thread.join(1)
        assert not thread.is_alive()
    assert children() == before


def test_process_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of gst-launch-1.0 that ignores the request, and everything that its arguments say."""
    program = tmp_path / "gst-launch-1.0"
    program.write_text("#!/bin/bash\ntrap '' INT TERM\necho 'cannot open the camera' >&2\nwhile :; do sleep 9; done\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    monkeypatch.setattr(gstreamer, "_START_S", 0.3)
    monkeypatch.setattr(gstreamer, "_QUIT_S", 0.4)
    before = children()
    with pytest.raises(VideoError, match="expected pictures from the pipeline"), open_source("a ! b"):
        pass
    assert children() == before


def test_opencv_runs_pipelines_where_it_can_and_both_ways_are_named_where_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    stand_in = cv2_stand_in(frames=3, build="  GStreamer:                   YES (1.22.0)\n")
    monkeypatch.setitem(sys.modules, "cv2", stand_in)
    with open_source('filesrc location="a b.mp4" ! decodebin ! appsink drop=true') as source:
        assert len(list(source)) == 3
    tail = "videoconvert ! video/x-raw,format=BGR ! appsink"
    pipeline = f"filesrc location=a\\ b.mp4 ! decodebin ! {tail}"
    assert stand_in.VideoCapture.call_args_list == [call(pipeline, stand_in.CAP_GSTREAMER)]
    words = "expected gst-launch-1.0 or an OpenCV with GStreamer, found neither; .*gstreamer1.0-tools"
    for module in (None, cv2_stand_in(build="GStreamer:    NO")):
        monkeypatch.setitem(sys.modules, "cv2", module)  # type: ignore[arg-type]
        with pytest.raises(MissingDependencyError, match=words), open_source("videotestsrc ! appsink"):
            pass


def test_sinks_are_taken_off_and_broken_pipelines_refused_at_once() -> None:
    for pipeline, tokens in {
        "videotestsrc ! autovideosink": ["videotestsrc"],
        "v4l2src ! videoscale ! appsink drop=true max-buffers=1": ["v4l2src", "!", "videoscale"],
        "a ! video/x-raw, width=3 ! ": ["a", "!", "video/x-raw,", "width=3"],
        "a name='b c' ! video/x-raw(memory:NVMM),width=3 ! d": [
            "a", "name=b c", "!", "video/x-raw(memory:NVMM),width=3", "!", "d",
        ],
    }.items():  # fmt: skip
        assert pipeline_tokens(pipeline) == tokens
    for pipeline in ("a location='b ! c", " ! ", "x ! autovideosink name='"):
        with pytest.raises(ConfigError):
            open_source(pipeline)


def test_what_ends_by_itself() -> None:
    finite = (
        "filesrc location=a ! decodebin",
        "multifilesrc location=a ! pngdec",
        "uridecodebin uri=file:///a.mp4 ! queue",
        "uridecodebin3 uri=file:///a.mp4 ! queue",
        "videotestsrc num-buffers=3 ! queue",
    )
    endless = (
        "uridecodebin uri=rtsp://a ! queue",
        "videotestsrc ! identity num-buffers=3",
        "rtspsrc location=rtsp://a ! decodebin",
        "v4l2src ! videoconvert",
    )
    for pipeline in (*finite, *endless):
        assert is_finite(pipeline_tokens(pipeline)) is (pipeline in finite), pipeline
