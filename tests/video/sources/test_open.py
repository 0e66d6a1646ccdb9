"""What a text stands for; and that nothing stays open."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from nrd_trt.errors import ConfigError, VideoError
from nrd_trt.video.sources.open_source import open_source
from tests.serving.waiting import until
from tests.video.clips import grey_frames, write_clip
from tests.video.services import http_files, need_gstreamer


def test_other_texts_are_refused_with_the_forms(tmp_path: Path) -> None:
    for text in ("clip", "ftp://host/a.mp4", "csi://left", "jetson://", "", "-1"):
        with pytest.raises(ConfigError) as caught:
            open_source(text)
        assert str(caught.value).startswith(f"{text!r}: expected ")
        for form in ("video file", "folder of images", "/dev/video0", "rtsp://", "'… ! …'", "csi://0", "jetson://FILE"):
            assert form in str(caught.value)
    for text in ("clip.mp4", "drive/", "/dev/vide0", "rtsp:/host/a"):
        with pytest.raises(VideoError, match=f"{text}: expected a video or a folder, there is none; check the path"):
            open_source(text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="got one image, give its folder"):
        open_source(str(tmp_path / "a.png"))
    with pytest.raises(ConfigError) as caught:
        open_source("rstp://me:secret@host/a")
    assert "secret" not in str(caught.value)


def test_options_that_do_not_go_with_a_source(tmp_path: Path) -> None:
    path = str(write_clip(tmp_path / "clip.mp4", grey_frames(2)))
    with pytest.raises(ConfigError, match=r"rate=10: expected none for .*clip.mp4"):
        open_source(path, rate=10)
    for text in (path, str(tmp_path)):
        with pytest.raises(ConfigError, match="live=True: expected a camera or a stream"):
            open_source(text, live=True)
        open_source(text, live=False)
    for rate in (0, -1, 1001, float("nan")):
        with pytest.raises(ConfigError, match=f"rate={rate}: expected frames per second above 0"):
            open_source(str(tmp_path), rate=rate)


def test_names_that_ffmpeg_takes_for_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "clip.mp4", grey_frames(3))
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "12:30.mp4", "a%03d.mp4", "über den Fluß.mp4", "concat:a|b.mp4"):
        (tmp_path / "clip.mp4").rename(tmp_path / name)
        with open_source(name) as source:
            assert len(list(source)) == 3
        (tmp_path / name).rename(tmp_path / "clip.mp4")


def test_closing_waits_for_a_read_on_another_thread(tmp_path: Path) -> None:
    """FFmpeg crashes where a file is closed under its hands."""
    path = write_clip(tmp_path / "clip.mp4", grey_frames(300, (360, 480)))
    for _ in range(10):
        with open_source(str(path)) as source:
            thread = threading.Thread(target=list, args=[iter(source)])
            thread.start()
            time.sleep(0.01)
        thread.join(5)
        assert not thread.is_alive()


def open_things() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def check_nothing_stays_open(text: str, times: int) -> None:
    for attempt in range(times + 1):
        if attempt == 1:
            before = open_things()  # after the first, which loads libraries
        with open_source(text) as source:
            next(iter(source))
    until(lambda: open_things() == before)  # a server in this process closes its side later


def test_files_connections_processes_and_pipes_are_closed(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.ts", grey_frames(9), codec="mpeg2video")
    check_nothing_stays_open(str(path), 20)
    with http_files(tmp_path) as address:
        check_nothing_stays_open(f"{address}/clip.ts", 20)
    (tmp_path / "clip.mp4").write_bytes(b"\0no video" * 99)
    before = open_things()
    for _ in range(20):
        with pytest.raises(VideoError), open_source(str(tmp_path / "clip.mp4")):
            pass
    assert open_things() == before
    need_gstreamer("videotestsrc")
    check_nothing_stays_open("videotestsrc ! video/x-raw,width=32,height=32", 5)
