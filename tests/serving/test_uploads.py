"""Uploads: what is right is segmented as anywhere else, what is hostile costs nothing and is told why."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.overlay import blend
from nrd_trt.serving import uploads
from nrd_trt.serving.problems import Refusal
from nrd_trt.serving.uploads import Limits
from tests.data.pictures import encoded, readable, unreadable
from tests.serving.hostile import bomb_png, clip, png_of_size, scan_bomb_jpeg, text_bomb_png
from tests.serving.rig import Rig, httpx, street
from tests.serving.test_api import read_record
from tests.serving.waiting import until
from tests.video.clips import av

SCENE = street()[0]


def refusal(response: Any) -> tuple[int, str]:
    body = response.json()["error"]
    assert body["message"].count("expected") == 1, body
    return response.status_code, body["type"]


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


ACCEPTED = (".png", ".jpg", ".webp", ".bmp")


def test_images_are_read_as_everywhere_and_those_that_cannot_be_are_refused(rig: Rig) -> None:
    """The view "image" of an upload shows what was read of it."""
    for name, (body, expected) in readable().items():
        response = rig.http.post("/segment?result=overlay&view=image", content=body)
        if name.endswith(ACCEPTED):
            assert np.array_equal(opened(response.content), expected), name
        else:
            assert refusal(response) == (415, "UnknownFormat"), name
    for name, body in unreadable().items():
        known = name.endswith(ACCEPTED) and name not in ("empty.png", "text.png")
        expected = (422, "UnreadableImage") if known else (415, "UnknownFormat")
        assert refusal(rig.http.post("/segment", content=body)) == expected, name


def test_all_results_tell_the_mask_of_the_engine(rig: Rig) -> None:
    body, expected, info = encoded(SCENE), rig.engine.segment(SCENE).mask, rig.engine.engine.info
    answer = rig.http.post("/segment", content=body).json()
    assert np.array_equal(opened(base64.b64decode(answer["mask"])), expected)
    assert answer["size_hw"] == list(expected.shape)
    assert answer["classes"] == list(info.class_names)
    assert answer["shares"] == pytest.approx(np.bincount(expected.ravel(), minlength=11) / expected.size, abs=1e-4)
    assert answer["latency_ms"] > 0
    mask = Image.open(io.BytesIO(rig.http.post("/segment?result=mask", content=body).content))
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), expected)
    sure = opened(rig.http.post("/segment?result=confidence", content=body).content)
    assert np.array_equal(sure, rig.engine.segment(SCENE).confidence)
    header, layers = read_record(rig.http.post("/segment?result=layers", content=body).content)
    assert layers is not None and np.array_equal(layers[2], sure)
    assert header["shares"] == answer["shares"]
    assert np.array_equal(layers[1], expected)
    overlay = rig.http.post("/segment?result=overlay&opacity=0.3", content=body)
    assert np.array_equal(opened(overlay.content), blend(SCENE, expected, info.palette, 0.3))


def test_hostile_images_are_refused_quickly(rig: Rig) -> None:
    hostile = {
        "TooManyPixels": [bomb_png(), png_of_size(50_000, 50_000), png_of_size(2**31 - 1, 2**31 - 1)],
        "UnreadableImage": [text_bomb_png(), scan_bomb_jpeg(), png_of_size(64, 64, data=b"too little")],
        "UnknownFormat": [
            encoded(SCENE, "GIF"),
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
            b"\0\0\0\x18ftypheic" + bytes(40),
        ],
    }
    for kind, bodies in hostile.items():
        for index, body in enumerate(bodies):
            start = time.monotonic()
            expected = (415 if kind == "UnknownFormat" else 422, kind)
            assert refusal(rig.http.post("/segment", content=body)) == expected, index
            assert time.monotonic() - start < 3
    assert rig.http.get("/healthz").status_code == 200


def decoded(content: bytes) -> tuple[list[np.ndarray], list[float]]:
    with av.open(io.BytesIO(content)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [float(frame.time) for frame in frames]


def test_clips_come_back_with_their_masks_and_times(rig: Rig, tmp_path: Path) -> None:
    frames, palette = list(street()[:6]), rig.engine.engine.info.palette
    for name, codec in {"a.mp4": "libx264", "a.mov": "mpeg4", "a.mkv": "libx264", "a.webm": "libvpx"}.items():
        body = clip(tmp_path, frames, name, codec, rate=10)
        response = rig.http.post("/segment?opacity=0.5", content=body)
        assert (response.status_code, response.headers["content-type"]) == (200, "video/mp4")
        pictures, times = decoded(response.content)
        assert np.allclose(np.array(times) - times[0], np.arange(6) / 10, atol=0.002)
        for original, picture in zip(decoded(body)[0], pictures, strict=True):
            shown = blend(original, rig.engine.segment(original).mask, palette, 0.5)
            assert np.abs(picture.astype(int) - shown).mean() < 8
    body = clip(tmp_path, [frame[:75, :101] for frame in street()[:2]], pix_fmt="yuv444p")
    pictures, _ = decoded(rig.http.post("/segment?view=side", content=body).content)
    assert pictures[0].shape == (74, 202, 3)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


def test_hostile_clips_are_refused_quickly(rig: Rig, tmp_path: Path) -> None:
    disguised = bytearray(clip(tmp_path, list(street()), "a.ts"))
    disguised[4:8] = b"skip"  # as old QuickTime files may begin: it gets no demuxer but that of MP4
    with av.open(io.BytesIO(disguised)) as opened:
        assert opened.format.name == "mpegts"
    hostile = [
        ((422, "VideoError"), clip(tmp_path, list(street()[:6]))[:1500]),
        ((415, "UnknownFormat"), PLAYLIST),
        ((415, "UnknownFormat"), b"ffconcat version 1.0\nfile /etc/passwd\n"),
        # With the first bytes of a film they get as far as the demuxer, which is named and reads nothing else.
        ((422, "VideoError"), b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + PLAYLIST),
        ((422, "VideoError"), b"\x1a\x45\xdf\xa3" + PLAYLIST),
        ((422, "VideoError"), b"\0\0\0\x08moov" + bytes(4000)),
        ((422, "VideoError"), bytes(disguised)),
    ]
    for expected, body in hostile:
        start = time.monotonic()
        response = rig.http.post("/segment", content=body)
        assert time.monotonic() - start < 3
        assert refusal(response) == expected, body[:40]
        assert "passwd" not in response.text


def test_what_costs_too_much_is_refused_or_given_up(tmp_path: Path) -> None:
    """By its header, or when it turns out to be too long: WebM does not tell the number of frames."""
    frames = list(street()[:8])
    mp4, webm = clip(tmp_path, frames, rate=4), clip(tmp_path, frames, "a.webm", "libvpx", rate=4)
    with Rig() as rig:
        limits = [
            ({"clip_frames": 5}, [mp4, webm], (422, "TooLongClip")),
            ({"clip_s": 1.0}, [mp4, webm], (422, "TooLongClip")),
            ({"clip_pixels": 96 * 128 - 1}, [mp4], (422, "VideoError")),
            ({"processing_s": 0.01}, [mp4], (504, "TooSlow")),
        ]
        for changes, bodies, expected in limits:
            rig.uploads.limits = replace(Limits(), **changes)
            for body in bodies:
                assert refusal(rig.http.post("/segment", content=body)) == expected, changes
        assert rig.uploads.current is None


def test_progress_is_told_and_work_given_up_where_the_client_has_left(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = rig.engine.segment, list[dict[str, Any]]()
    monkeypatch.setattr(rig.engine, "segment", lambda rgb: (time.sleep(0.1), real(rgb))[1])
    body = clip(tmp_path, list(street()) * 5)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=rig.url, timeout=0.5, trust_env=False) as http:
        http.post("/segment?name=me", content=body)
    start = time.monotonic()
    while job := rig.http.get("/status").json()["upload"]:
        told.append(job)
    assert time.monotonic() - start < 2
    assert {(job["name"], job["total"]) for job in told} == {("me", 100)}
    done = [job["done"] for job in told]
    assert 1 < done[0] <= done[-1] < 50
    assert done == sorted(done)


@pytest.fixture(scope="module")
def small() -> Any:
    with Rig(mib=1, waiting=2, chunk_s=0.2) as rig:
        yield rig


def test_large_bodies_and_those_that_stop_coming_are_given_up(small: Rig) -> None:
    assert refusal(small.http.post("/segment", content=bytes((1 << 20) + 1))) == (413, "TooLarge")
    # Nothing announces how long the next one is, and its end never comes.
    port = small.service.access.port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        head = f"POST /segment HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(17):
            connection.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    stalling = (time.sleep(pause_s) or b"\xff\xd8\xff" for pause_s in (0, 0.6))
    assert refusal(small.http.post("/segment", content=stalling)) == (408, "Stalled")
    until(lambda: small.uploads._places._value == 2)


@contextmanager
def slow_uploads(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Uploads of which a byte comes ten times a second."""
    head = f"POST /segment HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100000\r\n\r\n"
    ended = threading.Event()
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]

        def drip() -> None:
            while not ended.wait(0.1):
                for one in sockets:
                    with suppress(OSError):
                        one.sendall(b"x")

        for one in sockets:
            one.sendall(head.encode())
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield sockets
        finally:
            ended.set()
            thread.join()


def test_honest_uploads_get_through_beside_slow_ones(rig: Rig) -> None:
    """All of one address, whose places the slow ones have; more come meanwhile."""
    port = rig.service.access.port
    most = rig.uploads.limits.client_receiving
    with slow_uploads(port, most) as sockets, ThreadPoolExecutor(2) as pool:
        until(lambda: len(rig.uploads._arrivals) == most)
        for _ in range(2):
            answers = list(pool.map(lambda _: rig.http.post("/segment", content=encoded(SCENE)), range(2)))
            assert [answer.status_code for answer in answers] == [200, 200]
        assert sockets[0].recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_body_is_as_fast_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that begins with much and then drips is slow; one that has just begun is not judged."""
    now = 100.0
    monkeypatch.setattr(uploads.time, "monotonic", lambda: now)
    burst, steady = uploads.Arrival("a"), uploads.Arrival("a")
    assert burst.rate() == steady.rate() == float("inf")
    burst.grow(50 << 20)
    for _ in range(8):
        now += 1
        burst.grow(10)
        steady.grow(100 << 10)
        rates = burst.rate(), steady.rate()
    assert rates[0] < 100 and rates[1] == pytest.approx(100 << 10)


def test_places_are_of_all_and_of_each_address() -> None:
    async def run() -> None:
        queue = uploads.Uploads(Limits(receiving=3, client_receiving=2, chunk_s=0.3))
        for client in ("a", "a", "b"):
            await queue._arrive(client)
        with pytest.raises(Refusal, match="expected at most 2 at a time"):
            await queue._arrive("a")
        with pytest.raises(Refusal, match="expected at most 3 at a time"):
            await queue._arrive("c")
        assert not any(arrival.expelled for arrival in queue._arrivals)

    asyncio.run(run())


def test_one_upload_at_a_time_and_a_short_queue(small: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, inside, most = small.engine.segment, [0], [0]

    def slow(rgb: np.ndarray) -> np.ndarray:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.2)
        inside[0] -= 1
        return real(rgb)

    monkeypatch.setattr(small.engine, "segment", slow)

    def send(_: int = 0) -> int:
        return int(small.http.post("/segment", content=encoded(SCENE)).status_code)

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(send, range(5))) == [200, 200, 429, 429, 429]
    assert most == [1]
    assert send() == 200
