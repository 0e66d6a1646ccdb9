"""Pipelines of a Jetson, with elements in software in place of its hardware, and who gets scaled pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nrd_trt
from nrd_trt.data.preprocessing import Fitting, fitting_of
from nrd_trt.errors import VideoError
from nrd_trt.runtime.engine import open_bundle
from nrd_trt.specs import Fit, InputShape, Size
from nrd_trt.video.frames import Wanted
from nrd_trt.video.sources import open_source as module
from nrd_trt.video.sources import reader
from nrd_trt.video.sources.jetson import csi_pipeline, decoder_pipeline
from nrd_trt.video.sources.open_source import open_source
from tests.artefacts import bundle
from tests.video.clips import grey_frames, number_of, street_frames, write_clip
from tests.video.services import free_port, need_gstreamer, need_rtsp_server, rtsp_server
from tests.video.sources.test_files import marked, turn_clockwise

SIZE_HW = (128, 192)
SHAPE = InputShape.static((64, 96))
CORNERS = [*itertools.product((0, -1), (0, -1))]
SOFTWARE = {
    "nvv4l2decoder": "avdec_h264",
    "nvarguscamerasrc sensor-id=0": "videotestsrc is-live=true",
    "(memory:NVMM)": "",
    " flip-method=0": "",
    **{f"nvvidconv flip-method={4 - turn}": f"videoflip video-direction={turn} ! nvvidconv" for turn in (1, 2, 3)},
    "nvvidconv interpolation-method=2": "nvvidconv ! videoscale",
    "nvvidconv": "videoconvert",
}


def in_software(pipeline: str) -> str:
    """What stands for the elements of a Jetson on any machine."""
    for element, other in SOFTWARE.items():
        pipeline = pipeline.replace(element, other)
    return pipeline


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pipelines that sources start, with elements in software."""
    pipelines: list[str] = []
    start = module.open_gstreamer

    def open_in_software(pipeline: str, **options: Any) -> Any:
        need_gstreamer("h264parse", "avdec_h264", "videoscale", "videoflip")
        pipelines.append(pipeline)
        return start(in_software(pipeline), **options)

    monkeypatch.setattr(module, "open_gstreamer", open_in_software)
    return pipelines


def test_csi_camera() -> None:
    pipeline = csi_pipeline(0, size_hw=(96, 128), rate=25, flip=2)
    assert pipeline == (
        "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),format=NV12,width=128,height=96,framerate=25/1 ! "
        "nvvidconv flip-method=2 ! video/x-raw,format=BGRx"
    )
    need_gstreamer("videotestsrc")
    with open_source(in_software(pipeline)) as source:
        assert (source.info.live, source.info.size_hw, source.info.rate) == (True, (96, 128), 25)
        assert len(list(itertools.islice(source, 3))) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_film_by_hardware(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"clip one{suffix}", grey_frames(20), codec="libx264", rate=25)
    pipeline = decoder_pipeline(str(path))
    assert pipeline == decoder_pipeline(str(path), codec="h264")
    need_gstreamer("h264parse", "avdec_h264", "tsdemux")
    with open_source(in_software(pipeline)) as source:
        assert [number_of(frame.rgb) for frame in source] == list(range(20))


def test_stream_by_hardware() -> None:
    need_rtsp_server()
    need_gstreamer("rtspsrc", "rtph264depay", "h264parse", "avdec_h264")
    port = free_port()
    with rtsp_server(port):
        url = f"rtsp://127.0.0.1:{port}/street"
        pipeline = decoder_pipeline(url)
        assert pipeline == decoder_pipeline(url, codec="h264")
        with open_source(in_software(pipeline)) as source:
            assert source.info.live and source.info.size_hw == (120, 160)
            assert len(list(itertools.islice(source, 5))) == 5


def test_what_the_hardware_does_not_decode(tmp_path: Path) -> None:
    for name, codec in {"clip.avi": "mpeg4", "clip.mp4": "mpeg4"}.items():
        path = write_clip(tmp_path / name, grey_frames(3), codec=codec)
        with pytest.raises(VideoError, match="got mpeg4; leave out jetson://"), open_source(f"jetson://{path}"):
            pass
    with pytest.raises(VideoError, match=r"rtsp://a/b: expected a stream with h264 or hevc, got vp8"):
        decoder_pipeline("rtsp://me:secret@a/b", codec="vp8")


# --- scaling --------------------------------------------------------------------------------------------------------


def film(folder: Path, size_hw: Size = SIZE_HW) -> Path:
    return write_clip(folder / "clip.mp4", street_frames(4, size_hw), codec="libx264", rate=25)


def wanted(fitting: Callable[[Size], Fitting]) -> Wanted:
    return Wanted(fitting=fitting, padding=np.zeros(3, np.uint8), pixels=False, on_device=lambda: False)


def test_the_end_of_a_pipeline_scales() -> None:
    end = "nvvidconv flip-method=1 interpolation-method=2 ! video/x-raw,format=BGRx,width=64,height=96"
    assert csi_pipeline(flip=1, scaled_hw=(96, 64)).endswith(f" ! {end}")
    assert decoder_pipeline("a.mp4", codec="h264", flip=1, scaled_hw=(96, 64)).endswith(f" ! nvv4l2decoder ! {end}")
    end = end.replace("=2", "=1")  # bilinear, as OpenCV's
    scaled: Any = {"flip": 1, "scaled_hw": (96, 64), "resample": "cv2"}
    assert csi_pipeline(**scaled).endswith(end) and decoder_pipeline("a.mp4", codec="h264", **scaled).endswith(end)


def test_masks_of_scaled_frames_have_the_size_of_the_source(tmp_path: Path, started: list[str]) -> None:
    path, folder = film(tmp_path), tmp_path / "masks"
    run = nrd_trt.segment_video(f"jetson://{path}", folder, bundle(), runner="onnxruntime", threads=1, progress=False)
    with open_bundle(bundle(), runner="onnxruntime", threads=1) as engine:
        height, width = engine.fitting(SIZE_HW).engine_hw
        assert started[0].endswith(f" interpolation-method=2 ! video/x-raw,format=BGRx,width={width},height={height}")
        assert (run.frames, run.size_hw, run.decoded_on) == (4, SIZE_HW, "nvdec")
        note = f"frames were scaled from 128x192 to {height}x{width} by hardware, whose filter is not that of the CPU; "
        assert run.notes == (f"{note}masks have 128x192.",)
        with open_source(f"jetson://{path}", wanted=wanted(engine.fitting)) as source:
            frames = list(source)
        for frame, mask in zip(frames, sorted(folder.iterdir()), strict=True):
            assert frame.rgb.shape == (height, width, 3)
            with Image.open(mask) as image:
                expected = engine.fitted(frame.rgb, original_hw=SIZE_HW).restore(engine.mask(frame.rgb))
                np.testing.assert_array_equal(np.asarray(image), expected)
                assert expected.shape == SIZE_HW


def test_who_shows_pictures_gets_them_in_full(tmp_path: Path, started: list[str]) -> None:
    options: Any = {"runner": "onnxruntime", "threads": 1, "progress": False}
    sinks = [tmp_path / "masks", f"overlays:{tmp_path / 'pictures'}"]
    run = nrd_trt.segment_video(f"jetson://{film(tmp_path)}", sinks, bundle(), **options)
    assert started[0].endswith("nvvidconv ! video/x-raw,format=BGRx")
    assert (run.size_hw, run.decoded_on, run.notes) == (SIZE_HW, "nvdec", ())
    for path in tmp_path.glob("*/000000*.png"):
        with Image.open(path) as image:
            assert image.size == SIZE_HW[::-1]


@pytest.mark.parametrize(
    ("fit", "size_hw", "scaled_hw"),
    [
        ("resize", (128, 192), (64, 96)),
        ("letterbox", (128, 256), (48, 96)),
        ("letterbox", (128, 250), None),  # 49x96: an odd side
        ("pad", (50, 70), None),
        ("resize", (64, 96), None),
        ("resize", (60, 190), None),  # higher than before
    ],
)
def test_how_the_engine_is_fitted_says_what_is_scaled(
    tmp_path: Path, started: list[str], fit: Fit, size_hw: Size, scaled_hw: Size | None
) -> None:
    path = film(tmp_path, size_hw)
    with open_bundle(bundle(), runner="onnxruntime", fit=fit) as engine:
        assert engine.fitting(size_hw).engine_hw == (64, 96)
        with open_source(f"jetson://{path}", wanted=wanted(engine.fitting)) as source:
            (frame, *_), info = source, source.info
        fitted = engine.fitted(frame.rgb, original_hw=info.size_hw)
        assert (info.size_hw, info.scaled, frame.rgb.shape[:2]) == (
            size_hw,
            scaled_hw is not None,
            scaled_hw or size_hw,
        )
        assert {name: value for name, value in vars(fitted).items() if name != "image"} == vars(engine.fitting(size_hw))


def test_a_csi_camera_is_scaled_too_and_other_pipelines_are_not(started: list[str]) -> None:
    with open_bundle(bundle(), runner="onnxruntime") as engine:
        with open_source("csi://0", wanted=wanted(engine.fitting)) as source:
            assert (source.info.size_hw, source.info.scaled, source.info.decoded_on) == (
                (1080, 1920),
                True,
                "gstreamer",
            )
            assert next(iter(source)).rgb.shape == (64, 96, 3)
        with open_source("videotestsrc ! video/x-raw,width=320,height=240", wanted=wanted(engine.fitting)) as source:
            info = source.info
            assert (info.size_hw, info.scaled, info.decoded_on) == ((240, 320), False, "gstreamer")


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_films_of_phones_stand_upright(tmp_path: Path, started: list[str], quarters: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", [np.repeat(np.repeat(marked(), 4, 0), 4, 1)] * 3, codec="libx264")
    turn_clockwise(path, quarters)
    for asked in (None, wanted(lambda size_hw: fitting_of(size_hw, SHAPE, "resize"))):
        with open_source(str(path)) as plain, open_source(f"jetson://{path}", wanted=asked) as turned:
            assert plain.info.size_hw == turned.info.size_hw
            for one, other in zip(plain, turned, strict=True):
                assert other.rgb.shape[:2] == (plain.info.size_hw if asked is None else (64, 96))
                assert [pair for pair in CORNERS if other.rgb[pair].min() > 200] == [
                    pair for pair in CORNERS if one.rgb[pair].min() > 200
                ]


# --- where the hardware fails ---------------------------------------------------------------------------------------


def scaling() -> Wanted:
    return wanted(lambda size_hw: fitting_of(size_hw, SHAPE, "resize"))


def test_without_the_scaler_frames_are_scaled_on_the_cpu_and_that_is_said(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOFTWARE, "nvvidconv interpolation-method=2", "absentscaler")
    options: Any = {"runner": "onnxruntime", "threads": 1, "progress": False}
    run = nrd_trt.segment_video(f"jetson://{film(tmp_path)}", tmp_path / "masks", bundle(), **options)
    assert (run.frames, run.size_hw, run.decoded_on, len(started)) == (4, SIZE_HW, "nvdec", 2)
    (note,) = run.notes
    assert note.startswith("frames were scaled on the CPU, not by the hardware of a Jetson: ")
    assert "absentscaler" in note.partition("GStreamer says: ")[2]
    with open_source("csi://0", wanted=scaling()) as source:
        assert (source.info.size_hw, source.info.scaled) == ((1080, 1920), False)
        assert "absentscaler" in (source.info.note or "")


@pytest.mark.parametrize("live", [None, True])
def test_without_the_decoder_a_file_is_decoded_on_the_cpu_and_that_is_said(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch, live: bool | None
) -> None:
    monkeypatch.setitem(SOFTWARE, "nvv4l2decoder", "absentdecoder")
    with open_source(f"jetson://{film(tmp_path)}", wanted=scaling(), live=live) as source:
        info = source.info
        assert (info.size_hw, info.scaled, info.decoded_on, info.live) == (SIZE_HW, False, "cpu", live is True)
        assert (info.note or "").startswith("frames were decoded on the CPU, not by the hardware of a Jetson: ")
        assert "absentdecoder" in (info.note or "").partition("GStreamer says: ")[2]
        assert [frame.rgb.shape[:2] for frame in itertools.islice(source, 4)] == [SIZE_HW] * 4


def test_what_is_absent_is_named_by_the_error(
    tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOFTWARE, "nvarguscamerasrc sensor-id=0", "absentcamera")
    with (
        pytest.raises(VideoError, match=r"GStreamer says: .*absentcamera"),
        open_source("csi://0", wanted=scaling()),
    ):
        pass
    with (
        pytest.raises(VideoError, match=r"none.mp4: expected a video, there is no such file; check the path\.$"),
        open_source(f"jetson://{tmp_path}/none.mp4", wanted=scaling()),
    ):
        pass


@pytest.mark.parametrize(("fails", "shape"), [(1, (1080, 1920, 3)), (2, (64, 96, 3))])
def test_a_camera_that_comes_back_keeps_the_size_of_its_frames(
    started: list[str], monkeypatch: pytest.MonkeyPatch, fails: int, shape: tuple[int, ...]
) -> None:
    """The scaler fails once, at the first opening or at the second."""
    start, scaled = module.open_gstreamer, []

    def fail_once(pipeline: str, **options: Any) -> Any:
        scaled.append("interpolation" in pipeline)
        if scaled[-1] and scaled.count(True) == fails:
            raise VideoError("the scaler is busy.")
        return start(pipeline, **options)

    monkeypatch.setattr(module, "open_gstreamer", fail_once)
    monkeypatch.setattr(reader, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(reader, "_LONGEST_PAUSE_S", 0.0)
    monkeypatch.setitem(SOFTWARE, "nvarguscamerasrc sensor-id=0", "videotestsrc num-buffers=2")
    with open_source("csi://0", wanted=scaling(), live=True, report=lambda _: None) as source:
        assert {frame.rgb.shape for frame in itertools.islice(source, 4)} == {shape}
        assert source.reconnects == 1
    assert scaled == ([True, False, False] if fails == 1 else [True, True, True])
