"""Streams of real servers: they come, they are lost, they come back; and what is said of those that never come."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrd_trt.errors import VideoError
from nrd_trt.video.frames import Frame
from nrd_trt.video.sources import network
from nrd_trt.video.sources.open_source import open_source
from tests.data.pictures import encoded
from tests.video.clips import grey_frames, number_of, write_clip
from tests.video.services import (
    free_port,
    http_files,
    http_server,
    need_rtsp_server,
    rtsp_server,
)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_TIMEOUT_S", (1.0, 0.6))


def test_a_stream_goes_on_after_its_server_was_killed() -> None:
    need_rtsp_server()
    port, lines = free_port(), list[str]()
    url = f"rtsp://127.0.0.1:{port}/street"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(rtsp_server(port))
        source = stack.enter_context(open_source(url, report=lines.append))
        info = source.info
        assert (info.live, info.size_hw, info.rate, info.frames) == (True, (120, 160), 25, None)
        frames = list(itertools.islice(source, 5))
        server.kill()
        server.wait()
        stack.enter_context(rtsp_server(port))
        began = time.monotonic()
        while not source.reconnects or len(frames) <= 10:
            frames.append(next(iter(source)))
        waited_s = time.monotonic() - began
    assert source.reconnects == 1
    lost, back = lines
    assert re.fullmatch(rf"{url}: lost \(.+\); opening it again", lost)
    assert back.startswith(f"{url}: back after ")
    assert [frame.index for frame in frames] == list(range(len(frames)))
    gaps_s = [float((b.pts - a.pts) * info.time_base) for a, b in itertools.pairwise(frames)]
    assert min(gaps_s) > 0
    assert 0.4 < max(gaps_s) < waited_s + 1  # the gap shows in the times


def test_a_film_behind_a_url_is_read_like_a_file_unless_it_shall_be_live(tmp_path: Path) -> None:
    lines: list[str] = []
    write_clip(tmp_path / "clip.mp4", grey_frames(3), codec="libx264", container_options={"movflags": "faststart"})
    with http_files(tmp_path) as address:
        with open_source(f"{address}/clip.mp4") as source:
            assert (source.info.live, source.info.frames) == (False, 3)
            assert [number_of(frame.rgb) for frame in source] == [0, 1, 2]
        with open_source(f"{address}/clip.mp4", live=True, report=lines.append) as source:
            assert source.info.live
            frames = list(itertools.islice(source, 7))  # it begins again and again
    assert [number_of(frame.rgb) for frame in frames] == [0, 1, 2, 0, 1, 2, 0]
    assert source.reconnects == 2
    assert lines[0] == f"{address}/clip.mp4: lost (it ended); opening it again"


def test_how_streams_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some RTSP servers play films and state their length: they keep their own pace all the same."""
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(network, "VideoReader", lambda url, **settings: opened.append(settings))
    for scheme, live in {"rtsp": True, "RTSPS": True, "udp": True, "rtmp": True, "http": None, "https": None}.items():
        opened.clear()
        for asked in (None, True, False):
            network.open_url(f"{scheme}://a", live=asked)
        assert [settings["live"] for settings in opened] == [live, True, False]
        transport = "tcp" if "rtsp" in scheme.lower() else None
        assert {settings["options"].get("rtsp_transport") for settings in opened} == {transport}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with a status and some data, again and again or once, and then nothing while the client stays."""

    def __init__(
        self, *arguments: Any, code: int = 200, kind: str = "", data: bytes = b"", every_s: float | None = None
    ) -> None:
        self.code, self.kind, self.data, self.every_s = code, kind, data, every_s
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.send_header("Content-Type", self.kind)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(self.data)
            while self.every_s is not None:
                time.sleep(self.every_s)
                self.wfile.write(self.data)
            if self.data:
                self.connection.recv(1)


def test_a_webcam_without_times_has_those_of_the_clock() -> None:
    """Twenty JPEGs a second, as many cameras and phones send them: without a word about times."""
    jpeg = encoded(np.full((48, 64, 3), 90, np.uint8), "JPEG")
    part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg), jpeg)
    kind = "multipart/x-mixed-replace; boundary=next"
    with (
        http_server(_Handler, kind=kind, data=part, every_s=0.05) as address,
        open_source(f"{address}/video.mjpg") as source,
    ):
        assert (source.info.live, source.info.rate, source.info.size_hw) == (True, None, (48, 64))
        first, *_, last = list(itertools.islice(source, 25))[-8:]  # the first ones were waiting
        seconds = float((last.pts - first.pts) * source.info.time_base)
    assert 0.04 < seconds / 7 < 0.15


def refusal(url: str) -> str:
    with pytest.raises(VideoError) as caught, open_source(url):
        pass
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_refusals_of_a_server_in_words() -> None:
    for code, words in {
        401: "user name or password was refused (401)",
        403: "access is forbidden (403)",
        404: "the server knows no such path (404)",
        500: "FFmpeg says: Server returned 5XX",
    }.items():
        with http_server(_Handler, code=code) as address:
            assert words in refusal(address.replace("//", "//me:secret@") + "/cam?token=secret")


@pytest.fixture
def stalling(tmp_path: Path) -> Iterator[str]:
    """The address of a stream that stops coming."""
    clip = write_clip(tmp_path / "clip.ts", grey_frames(80), codec="mpeg2video", rate=25)
    with http_server(_Handler, data=clip.read_bytes()) as address:
        yield f"{address}/cam"


def test_host_and_port_that_do_not_answer() -> None:
    for scheme in ("rtsp", "http"):
        login = f"{scheme}://me:secret@"
        assert "no host is called nowhere.invalid" in refusal(f"{login}nowhere.invalid/a")
        assert "the connection was refused; check the port" in refusal(f"{login}127.0.0.1:{free_port()}/a")


def test_server_that_says_nothing(hasty: None) -> None:
    for scheme in ("rtsp", "http", "rtmp"):
        with socket.create_server(("127.0.0.1", 0)) as server:
            began = time.monotonic()
            assert "no answer in time" in refusal(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/a/b")
            assert time.monotonic() - began < 2


def test_rtsp_server_asks_for_a_password() -> None:
    need_rtsp_server()
    port = free_port()
    with rtsp_server(port, "me", "secret"):
        for login in ("", "me:wrong@"):
            assert "refused (401)" in refusal(f"rtsp://{login}127.0.0.1:{port}/street")
        assert "no such path (404)" in refusal(f"rtsp://me:secret@127.0.0.1:{port}/other")
        with open_source(f"rtsp://me:secret@127.0.0.1:{port}/street") as source:
            assert source.info.name == f"rtsp://127.0.0.1:{port}/street"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:pass@host:554/a/b", "rtsp://host:554/a/b"),
        ("rtsp://me:p@ss/w?rd@host/a", "rtsp://host/a"),
        ("http://host/video.cgi?user=me&password=pass", "http://host/video.cgi?…"),
        ("http://host/a.mp4", "http://host/a.mp4"),
        (
            'rtspsrc location="rtsp://me:pass@host/a" user-pw=pass latency=0 ! fakesink',
            'rtspsrc location="rtsp://host/a" user-pw=… latency=0 ! fakesink',
        ),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert network.redacted(text) == shown


def test_silence_is_a_loss(stalling: str, hasty: None) -> None:
    lines, began = list[str](), time.monotonic()
    with open_source(stalling, report=lines.append) as source:
        assert source.info.live
        frames = list(itertools.islice(source, 100))
    assert source.reconnects == 1 and "lost (nothing came in time); opening it again" in lines[0]
    assert time.monotonic() - began < 10
    assert all(earlier.pts < later.pts for earlier, later in itertools.pairwise(frames))


def test_stop_ends_the_pause_before_the_next_attempt(stalling: str, hasty: None) -> None:
    lost, frames = threading.Event(), list[Frame]()
    source = open_source(stalling, report=lambda line: lost.set()).__enter__()
    thread = threading.Thread(target=lambda: frames.extend(source))  # entered here, read there
    thread.start()
    assert lost.wait(5)
    source.stop()
    thread.join(1)
    assert not thread.is_alive()
    assert frames
    for _ in range(2):
        source.stop()
        source.__exit__(None, None, None)
