"""The routes, over a real socket, against a real run."""

from __future__ import annotations

import io
import json
import re
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.overlay import CONFIDENCE_PALETTE, blend, colour
from nrd_trt.runtime.graph_io import Segmentation
from nrd_trt.serving import pictures
from tests.data.pictures import encoded
from tests.serving.rig import SIZE_HW, Rig, Street, httpx, street
from tests.serving.waiting import until

Layers = tuple[np.ndarray, ...]


def read_record(content: bytes) -> tuple[dict[str, Any], Layers | None]:
    (length,) = struct.unpack(">I", content[:4])
    header, rest = json.loads(content[4 : 4 + length]), content[4 + length :]
    if header["layers"] is None:
        assert rest == b""
        return header, None
    names = [name for name in ("image", "mask", "confidence") if name in header["layers"]]
    lengths = [header["layers"][name] for name in names]
    assert sum(lengths) == len(rest)
    first, *others = (rest[sum(lengths[:place]) :][:size] for place, size in enumerate(lengths))
    image = np.asarray(Image.open(io.BytesIO(first)))
    planes = (np.frombuffer(zlib.decompress(data), np.uint8).reshape(image.shape[:2]) for data in others)
    return header, (image, *planes)


def picture(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))


def test_status_tells_source_model_and_figures(rig: Rig) -> None:
    until(lambda: rig.stats.snapshot().fps is not None)
    status = rig.http.get("/status").json()
    assert status["source"] == {"name": "street", "size_hw": list(SIZE_HW), "rate": 20.0, "live": False}
    assert (status["model"]["bundle"], status["model"]["runner"]) == ("street.nrd", "onnxruntime")
    assert [one["name"] for one in status["model"]["classes"]] == list(rig.engine.engine.info.class_names)
    assert status["model"]["classes"][3] == {"index": 3, "name": "Road", "colour": [128, 64, 128]}
    assert status["state"] == "running"
    assert status["fps"] > 1
    assert set(status["split_ms"]) == {"read", "preprocess", "infer", "smooth", "draw", "write"}
    assert set(status["latency_ms"]) == {"p50", "p90", "p99"}
    assert status["device"] == {"power_w": 12.5, "temperature_c": 51.0}
    assert sum(status["shares"]) == pytest.approx(1, abs=0.001)


def test_frames_carry_the_masks_of_the_engine(rig: Rig) -> None:
    number = 0
    for _ in range(3):
        header, layers = read_record(rig.http.get("/frame", params={"after": number}).content)
        assert layers is not None
        image, mask = layers
        assert header["number"] > number
        number = header["number"]
        original = street()[header["index"] % 20]
        assert np.array_equal(mask, rig.engine.segment(original).mask)
        assert np.abs(image.astype(int) - original).mean() < 6
        shares = np.bincount(mask.ravel(), minlength=11) / mask.size
        assert header["shares"] == pytest.approx(shares, abs=1e-4)


def test_the_confidence_comes_to_who_asks_for_it(rig: Rig) -> None:
    shown = rig.paused()
    sure = rig.engine.segment(street()[shown.frame.frame.index % 20]).confidence
    layers = read_record(rig.http.get("/frame", params={"confidence": True}).content)[1]
    assert sure is not None and layers is not None and np.array_equal(layers[2], sure)
    wanted = blend(shown.frame.frame.rgb, sure, CONFIDENCE_PALETTE, 0.6)
    assert np.array_equal(picture(rig.http.get("/snapshot.png?view=confidence")), wanted)
    colours = rig.http.get("/status").json()["model"]["confidence_colours"]
    assert [tuple(colour) for colour in colours] == list(CONFIDENCE_PALETTE)


def test_a_viewer_waits_for_another_frame_than_the_one_that_it_has_seen(rig: Rig) -> None:
    shown = rig.paused()
    start = time.monotonic()
    header, layers = read_record(rig.http.get("/frame", params={"after": shown.number}).content)
    assert (layers, header["state"], header["number"]) == (None, "paused", shown.number)
    assert time.monotonic() - start > 0.8
    # After a restart of the server the numbers begin again.
    header, layers = read_record(rig.http.get("/frame", params={"after": 10_000_000}).content)
    assert layers is not None
    assert header["number"] == shown.number


def test_nothing_is_encoded_while_nobody_watches(rig: Rig) -> None:
    before = rig.stats.snapshot().frames
    with mock.patch.object(pictures, "_saved", wraps=pictures._saved) as encode:  # every picture passes here
        until(lambda: rig.stats.snapshot().frames > before + 5)
        encode.assert_not_called()
        assert read_record(rig.http.get("/frame").content)[1] is not None
        encode.assert_called_once()


def test_a_slow_viewer_skips_frames_and_delays_neither_others_nor_the_run(rig: Rig) -> None:
    """One asks, sleeps, asks again; another opens the stream and reads nothing; the third takes every frame."""

    def watch(name: str, pause_s: float) -> np.ndarray:
        numbers, end = [0], time.monotonic() + 1.0
        with httpx.Client(base_url=rig.url, trust_env=False) as http:
            while time.monotonic() < end:
                response = http.get("/frame", params={"after": numbers[-1], "viewer": name})
                numbers.append(read_record(response.content)[0]["number"])
                time.sleep(pause_s)
        return np.diff(numbers[1:])

    with rig.http.stream("GET", "/stream.mjpg"), ThreadPoolExecutor() as pool:
        slow, quick = pool.map(watch, ("slow", "quick"), (0.3, 0.0))
        assert rig.hub.viewers >= 3
    assert slow.min() > 1
    assert quick.min() > 0
    assert len(quick) > 2 * len(slow)


def test_snapshots_are_what_they_are_asked_to_be(rig: Rig) -> None:
    shown = rig.paused()
    rgb, mask, palette = shown.frame.frame.rgb, shown.frame.mask, rig.engine.engine.info.palette
    overlay, road = blend(rgb, mask, palette, 0.6), (mask == 3)[..., None]
    for query, wanted in {
        "view=image": rgb,
        "view=mask": colour(mask, palette),
        "opacity=0.25": blend(rgb, mask, palette, 0.25),
        "view=side": np.concatenate((rgb, overlay), axis=1),
        "classes=3": np.where(road, overlay, rgb),
        "view=mask&classes=3": np.where(road, colour(mask, palette), 0),
        "view=mask&classes=": np.zeros_like(rgb),
    }.items():
        assert np.array_equal(picture(rig.http.get(f"/snapshot.png?{query}")), wanted), query


def test_what_viewers_get_is_shrunk_without_inventing_a_class() -> None:
    rgb, mask = np.zeros((90, 160, 3), np.uint8), np.tile(np.array([0, 4], np.uint8), (90, 80))
    drawn = Segmentation(mask=mask, confidence=mask + 200)
    image, small = pictures.shrink(rgb, drawn, 80)
    assert (image.shape, small.mask.shape) == ((45, 80, 3), (45, 80))
    assert set(np.unique(small.mask)) <= {0, 4}
    assert np.array_equal(small.confidence, small.mask + 200)  # of the same pixels
    assert pictures.shrink(rgb, drawn, 160)[0] is rgb


def test_the_stream_goes_on_for_players(rig: Rig) -> None:
    with rig.http.stream("GET", "/stream.mjpg?view=side&opacity=0.5") as response:
        assert response.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        received = b""
        for chunk in response.iter_raw():
            received += chunk
            if received.count(b"--frame") >= 4:
                break
    parts = received.split(b"--frame\r\n")[1:4]
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        assert b"Content-Type: image/jpeg" in head
        assert Image.open(io.BytesIO(body[:-2])).size == (2 * SIZE_HW[1], SIZE_HW[0])
    assert len(set(parts)) > 1


def act(rig: Rig, action: str) -> httpx.Response:
    return rig.http.post("/control", json={"action": action})


def test_pause_step_resume(rig: Rig) -> None:
    assert act(rig, "pause").json()["state"] == "paused"
    before = rig.paused().number
    assert rig.hub.newest is not None
    act(rig, "step")
    until(lambda: rig.hub.newest.number > before)  # type: ignore[union-attr]
    time.sleep(0.2)
    assert rig.hub.newest.number == before + 1
    assert act(rig, "resume").json()["state"] == "running"
    until(lambda: rig.hub.newest.number > before + 3)  # type: ignore[union-attr]


def test_odd_parameters_and_commands_are_refused(rig: Rig) -> None:
    for query in ("opacity=2", "opacity=nan", "view=x", "classes=a", "classes=300", "classes=²"):
        response = rig.http.get(f"/snapshot.png?{query}")
        assert (response.status_code, response.json()["error"]["type"]) == (422, "ConfigError")
        assert query.partition("=")[0] in response.json()["error"]["message"]
    for body in (b"", b"{}", b"[]", b'{"action": "explode"}', b"[" * 1000, b"\xff"):
        response = rig.http.post("/control", content=body)
        assert response.status_code == 422
        assert "expected" in response.json()["error"]["message"]
    assert rig.http.post("/control", content=b"x" * 5000).status_code == 413  # it is not even read
    assert not rig.pause.paused


def test_metrics_are_those_of_the_run(rig: Rig) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    until(lambda: rig.stats.snapshot().fps is not None)
    response = rig.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = {family.name: family for family in text_string_to_metric_families(response.text)}
    first = {name: family.samples[0].value for name, family in found.items() if family.samples}
    assert 0 < first["nrd_trt_frames"] <= rig.stats.snapshot().frames
    assert (first["nrd_trt_dropped_frames"], first["nrd_trt_reconnects"], first["nrd_trt_up"]) == (0, 0, 1)
    assert (first["nrd_trt_power_watts"], first["nrd_trt_temperature_celsius"]) == (12.5, 51)
    latency = {sample.name: sample.value for sample in found["nrd_trt_latency_seconds"].samples}
    quantiles = [s.labels["quantile"] for s in found["nrd_trt_latency_seconds"].samples if s.labels]
    assert quantiles == ["0.5", "0.9", "0.99"]
    assert 0 < latency["nrd_trt_latency_seconds_sum"] / latency["nrd_trt_latency_seconds_count"] < 5
    stages = {sample.labels["stage"]: sample.value for sample in found["nrd_trt_stage_seconds"].samples}
    assert 0 < stages["infer"] < 5
    shares = {sample.labels["name"]: sample.value for sample in found["nrd_trt_class_share"].samples}
    assert set(shares) == set(rig.engine.engine.info.class_names)
    assert sum(shares.values()) == pytest.approx(1)


def test_health_follows_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from nrd_trt.serving import app

    monkeypatch.setattr(app, "_SILENT_S", 0.3)
    source = Street(live=True)
    with Rig(source) as rig:
        until(lambda: rig.hub.newest)
        assert rig.http.get("/healthz").json() == {"healthy": True, "reason": None}
        rig.paused()
        until(lambda: rig.hub.silent_s > 0.3)
        assert rig.http.get("/healthz").status_code == 200  # it is meant to be silent
        rig.pause.resume()
        source.silent.set()
        until(lambda: rig.http.get("/healthz").status_code == 503)
        assert rig.http.get("/healthz").json()["reason"].startswith("no frame for")
        source.silent.clear()
        until(lambda: rig.http.get("/healthz").status_code == 200)


def test_a_run_that_fails_says_why_and_keeps_its_last_frame() -> None:
    source = Street()
    with Rig(source) as rig:
        until(lambda: rig.hub.newest)
        with rig.http.stream("GET", "/stream.mjpg") as stream:
            source.broken.set()
            assert sum(len(chunk) for chunk in stream.iter_raw()) > 0  # and it ends
        until(lambda: rig.hub.over)
        status = rig.http.get("/status").json()
        assert (status["state"], status["reason"]) == (
            "failed",
            "street: expected a frame, found roadworks; take another way.",
        )
        assert rig.http.get("/healthz").json() == {"healthy": False, "reason": "the run has failed"}
        assert picture(rig.http.get("/snapshot.png")).shape == (*SIZE_HW, 3)
        response = act(rig, "pause")
        assert (response.status_code, response.json()["error"]["type"]) == (409, "RunIsOver")
        segmented = rig.http.post("/segment?result=mask", content=encoded(street()[0]))  # the engine still runs
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(segmented.content))), rig.engine.segment(street()[0]).mask
        )


def test_a_run_that_ends_says_so_and_one_without_a_frame_has_nothing_to_show() -> None:
    source = Street(count=3)
    source.silent.set()
    with Rig(source, output="mask") as rig:
        assert rig.http.get("/status").json()["state"] == "starting"
        assert rig.http.get("/status").json()["model"]["confidence_colours"] is None
        for query in ("snapshot.png?view=confidence", "frame?confidence=true"):
            refused = rig.http.get(f"/{query}")
            assert (refused.status_code, refused.json()["error"]["type"]) == (422, "ConfigError")
            assert "expected an engine with the output confidence, got one with mask" in refused.text
        assert rig.http.get("/snapshot.png").status_code == 503
        header, layers = read_record(rig.http.get("/frame").content)
        assert (header["number"], layers) == (0, None)
        source.silent.clear()
        until(lambda: rig.hub.over)
        status = rig.http.get("/status").json()
        assert (status["state"], status["reason"], status["number"]) == ("ended", "the source has ended", 3)


def test_the_server_leaves_within_a_second_in_spite_of_viewers() -> None:
    with Rig() as rig:
        until(lambda: rig.hub.newest)

        def watch(path: str) -> float:
            with suppress(httpx.HTTPError):
                httpx.get(f"{rig.url}{path}", trust_env=False)
            return time.monotonic()

        rig.pause.pause()
        pool = ThreadPoolExecutor()
        ends = pool.map(watch, ("/stream.mjpg", "/stream.mjpg?view=mask", "/frame?after=1"))
        until(lambda: rig.hub.viewers >= 3)
        start = time.monotonic()
    assert max(ends) - start < 0.9  # after a second the server would cut them off
    pool.shutdown()


def test_pages_and_their_files_come_from_here_and_nothing_else_and_the_api_describes_itself(rig: Rig) -> None:
    for path in ("/", "/docs"):
        response = rig.http.get(path)
        assert response.status_code == 200
        assert not re.search("https?://(?!www.w3.org)", response.text)
    assert rig.http.get("/assets/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for path in ("../app.py", "..%2fapp.py", "index.html", "x.js", "%2e%2e/%2e%2e/setup.cfg", "../nothing"):
        response = rig.http.get(f"/assets/{path}")
        assert (response.status_code, response.json()["error"]["type"]) == (404, "NotServed"), path
    response = rig.http.get("/control")
    assert (response.status_code, response.json()["error"]["type"]) == (405, "NotServed")
    described = rig.http.get("/openapi.json").json()
    expected = {"/status", "/frame", "/stream.mjpg", "/snapshot.png", "/control", "/segment", "/metrics", "/healthz"}
    assert set(described["paths"]) == expected
    for operations in described["paths"].values():
        for operation in operations.values():
            assert operation["description"]
