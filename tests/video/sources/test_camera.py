"""Cameras, by a stand-in of OpenCV's interface; what a real device does is not shown here."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path
from unittest.mock import MagicMock, call

import pytest

from nrd_trt.errors import MissingDependencyError, VideoError
from nrd_trt.video.sources.open_source import open_source
from tests.video.sources.cv2_stand_in import cv2_stand_in


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    module = cv2_stand_in(devices={0, "/dev/video2"})
    monkeypatch.setitem(sys.modules, "cv2", module)
    return module


def test_pictures_of_a_camera(stand_in: MagicMock) -> None:
    with open_source("0", rate=15) as source:
        info = source.info
        frames = list(itertools.islice(source, 5))
    assert (info.name, info.size_hw, info.rate, info.frames, info.live) == ("camera 0", (48, 64), 30, None, True)
    assert info.time_base == Fraction(1, 1_000_000)
    assert [tuple(frame.rgb[0, 0].tolist()) for frame in frames] == [(200, 0, 10 * index) for index in range(5)]
    assert all(earlier.pts < later.pts for earlier, later in itertools.pairwise(frames))
    stand_in.fps = 0.0  # drivers that do not know it
    with open_source("/dev/video2") as source:
        assert (source.info.name, source.info.rate) == ("/dev/video2", None)
    assert stand_in.VideoCapture.call_args_list == [call(0), call("/dev/video2")]
    assert [capture.set.call_args_list for capture in stand_in.captures] == [[call(stand_in.CAP_PROP_FPS, 15.0)], []]
    assert all(capture.release.called for capture in stand_in.captures)


def test_lost_camera_is_opened_again(stand_in: MagicMock) -> None:
    lines: list[str] = []
    with open_source("0", report=lines.append) as source:
        frames = list(itertools.islice(source, 8))
    assert [frame.index for frame in frames] == list(range(8)) and source.reconnects == 1
    assert lines[0] == "camera 0: lost (it gives no more pictures); opening it again"
    assert frames[5].pts - frames[4].pts > 300_000
    assert [capture.release.called for capture in stand_in.captures] == [True, True]


def test_absent_camera_is_told_with_those_that_exist(stand_in: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    for present, words in {
        (): "this machine has no /dev/video*; plug one in",
        ("video10", "video2"): "this machine has /dev/video2, /dev/video10; give one of them",
    }.items():
        monkeypatch.setattr(Path, "glob", lambda self, pattern, names=present: (self / name for name in names))
        with pytest.raises(VideoError) as caught, open_source("7"):
            pass
        assert f"camera 7: expected a camera that opens, {words}" in str(caught.value)


def test_a_camera_without_a_picture_and_an_absent_opencv_are_named(
    stand_in: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.frames = 0
    with pytest.raises(VideoError, match="camera 0: expected a picture, it gives none"), open_source("0"):
        pass
    assert stand_in.captures[0].release.called
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r"reading cameras needs .*nrd-trt\[camera\]"), open_source("0"):
        pass
