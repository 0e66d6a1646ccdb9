"""Video files decoded by the GPU: where frames lie, what is copied, and what stands in where that cannot be."""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nrd_trt.cli.main import app
from nrd_trt.data.preprocessing import padding_colour
from nrd_trt.errors import VideoError
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.runtime.base import DeviceTensor, Runner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import device_feed
from nrd_trt.specs import Fit
from nrd_trt.video import segment_video as module
from nrd_trt.video.segment_video import VideoResult, segment_video
from nrd_trt.video.sources import nvdec
from nrd_trt.video.sources.open_source import open_source
from tests.runtime.bench import Bench, HostRunner, runner
from tests.runtime.conftest import MakeBench, make_bench
from tests.runtime.fake_cuda import OUT_OF_MEMORY
from tests.runtime.test_graph_io import facts
from tests.video.clips import street_frames, write_clip
from tests.video.sources.fake_nvdec import FakeNvdec
from tests.video.test_mp4 import read

__all__ = ["make_bench"]
ENGINE_HW = (32, 64)
FRAMES = 12


@pytest.fixture
def bench(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The fake driver, which at the end must hold nothing."""
    made = make_bench()
    monkeypatch.setattr(nvdec, "load_cuda", made.cuda.open)
    yield made
    gc.collect()  # errors hold the frames of those that raised them


@pytest.fixture
def fake(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> FakeNvdec:
    return FakeNvdec(bench.cuda).install(monkeypatch)


Run = Callable[..., VideoResult]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what segments a video with the fake engine, whose mask is the red channel."""

    def segmented(
        path: Path,
        *sinks: object,
        fit: Fit = "resize",
        trt: Runner | None = None,
        graph: GraphFacts | None = None,
        **options: Any,
    ) -> VideoResult:
        engine = Engine(trt or runner(), graph or facts(), fit=fit)
        monkeypatch.setattr(module, "open_engine", lambda *_, **__: engine)
        return segment_video(path, [str(sink) for sink in sinks], "a.nrd", progress=False, **options)

    return segmented


def clip(folder: Path, size_hw: tuple[int, int] = ENGINE_HW, *, codec: str = "libx264", **settings: Any) -> Path:
    """A film with pictures that come in another order than they are shown, of the colours of small television."""
    height, width = size_hw
    frames = [image[:height] for image in street_frames(FRAMES, (max(32, height), width))]
    options = {"bf": "2"} if codec == "libx264" else {}
    settings = {"colorspace": 5, "color_range": 1, **settings}
    return write_clip(folder / "clip.mp4", frames, codec=codec, options=options, **settings)


def red_of(path: Path) -> list[np.ndarray]:
    with open_source(str(path)) as source:
        return [frame.rgb[..., 0] for frame in source]


def masks_in(folder: Path) -> list[np.ndarray]:
    masks = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            masks.append(np.asarray(image))
    return masks


def check_red(masks: list[np.ndarray], path: Path) -> None:
    """The engine must have seen the pictures of FFmpeg, up to how colours are rounded."""
    for mask, red in zip(masks, red_of(path), strict=True):
        assert np.abs(mask.astype(int) - red).max() <= 3


def copies(bench: Bench) -> dict[str, int]:
    """How often images went where; masks come back by a download per run and output."""
    names = bench.cuda.names()
    return {name: names.count(name) for name in ("copy", "upload", "download")}


def test_frames_of_the_engines_size_never_come_to_the_host(
    tmp_path: Path, bench: Bench, fake: FakeNvdec, run: Run
) -> None:
    path = clip(tmp_path)
    result = run(path, tmp_path / "masks")
    check_red(masks_in(tmp_path / "masks"), path)
    assert (result.frames, result.decoded_on, result.flicker) == (FRAMES, "nvdec", None)
    assert result.notes == ("frames stayed on the GPU, so flicker was not measured.",)
    assert (fake.decoders, fake.packets) == (1, FRAMES + 1)
    # Each frame is copied out of the decoder and into the engine's slot. The first one is looked at, once, to see
    # whether its colours are those of FFmpeg.
    assert copies(bench) == {"copy": 2 * FRAMES + 1, "download": 2 * FRAMES + 1, "upload": 0}


def test_times_are_those_of_the_plain_path(tmp_path: Path, fake: FakeNvdec, bench: Bench, run: Run) -> None:
    path = clip(tmp_path)
    run(path, tmp_path / "out.mp4")
    (plain, _), (written, frames) = read(path), read(tmp_path / "out.mp4")
    assert (len(frames), written.rate) == (FRAMES, plain.rate)
    with open_source(str(path)) as source:
        expected = [(frame.pts, frame.duration) for frame in source]
    with open_source(str(path), wanted=wanted()) as source:
        assert [(frame.pts, frame.duration) for frame in source] == expected


def wanted() -> Any:
    engine = Engine(HostRunner(), facts())
    return module.Wanted(
        fitting=engine.fitting, padding=padding_colour(engine.info), pixels=False, on_device=lambda: True
    )


@pytest.mark.parametrize("options", [{"smooth": "hysteresis:2"}, {"sink": "overlays"}])
def test_pixels_are_copied_where_somebody_looks_at_them_and_the_engine_still_reads_the_device(
    tmp_path: Path, bench: Bench, fake: FakeNvdec, run: Run, options: dict[str, str]
) -> None:
    sink = f"{options.pop('sink', 'masks')}:{tmp_path / 'out'}"
    result = run(clip(tmp_path), sink, **options)
    assert (result.decoded_on, result.notes) == ("nvdec", ())
    assert result.flicker is not None
    assert copies(bench) == {"copy": 3 * FRAMES + 1, "download": 3 * FRAMES + 1, "upload": 0}
    assert len(masks_in(tmp_path / "out")) == FRAMES


@pytest.mark.parametrize("size_hw", [(30, 64), (64, 96)])
def test_padding_below_stays_on_the_device_and_scaling_does_not(
    tmp_path: Path, bench: Bench, fake: FakeNvdec, run: Run, size_hw: tuple[int, int]
) -> None:
    path, in_place = clip(tmp_path, size_hw), size_hw == (30, 64)
    result = run(path, tmp_path / "masks", fit="pad" if in_place else "resize")
    masks = masks_in(tmp_path / "masks")
    assert (result.decoded_on, masks[0].shape, len(masks)) == ("nvdec", size_hw, FRAMES)
    if in_place:
        check_red(masks, path)
        assert copies(bench)["download"] == 2 * FRAMES + 1
    else:
        assert result.notes == ("frames were copied from the GPU and brought to 32x64 on the CPU.",)
        assert copies(bench)["upload"] >= FRAMES


def test_the_padding_of_device_frames_is_that_of_the_plain_path(tmp_path: Path, bench: Bench, fake: FakeNvdec) -> None:
    fitting = Engine(HostRunner(), facts(), fit="pad").fitting
    asked = replace(wanted(), padding=np.array([7, 8, 9], np.uint8), fitting=fitting)
    with open_source(str(clip(tmp_path, (30, 64))), wanted=asked) as source:
        for frame in source:
            tensor: Any = frame.image.tensor  # type: ignore[union-attr]
            assert (tensor.shape, frame.rgb.shape) == ((32, 64, 3), (30, 64, 3))
            rows = bench.cuda.on_device(tensor.address, 32 * 64 * 3).reshape(tensor.shape)
            assert np.array_equal(rows[:30], frame.rgb)
            assert np.unique(rows[30:].reshape(-1, 3), axis=0).tolist() == [[7, 8, 9]]


def test_graphs_that_read_floats_or_batches_get_host_frames() -> None:
    image = DeviceTensor(address=256, shape=(32, 64, 3), dtype=np.dtype(np.uint8))
    assert device_feed(image, facts()) == {"image": replace(image, shape=(1, 32, 64, 3))}
    assert device_feed(image, facts("float")) is device_feed(image, facts(batch=2)) is None


def test_memory_is_used_again_and_outlives_the_source(tmp_path: Path, bench: Bench, fake: FakeNvdec) -> None:
    with open_source(str(clip(tmp_path)), wanted=wanted()) as source:
        addresses = {frame.image.tensor.address for frame in source}  # type: ignore[union-attr]
        assert len(addresses) <= 3
    with open_source(str(clip(tmp_path)), wanted=wanted()) as source:
        kept = list(source)
    assert len({frame.image.tensor.address for frame in kept}) == FRAMES  # type: ignore[union-attr]
    for frame, red in zip(kept, red_of(tmp_path / "clip.mp4"), strict=True):
        assert np.abs(frame.rgb[..., 0].astype(int) - red).max() <= 3
    assert bench.cuda.alive["device"] == FRAMES + 1  # and the way to the host
    del kept, frame


# --- the plain path -------------------------------------------------------------------------------------------------


def check_plain(result: VideoResult, why: str) -> None:
    assert (result.frames, result.decoded_on) == (FRAMES, "cpu")
    (note,) = result.notes
    assert note.startswith("frames were decoded on the CPU, not by NVDEC: ")
    assert why in note
    assert result.flicker is not None


def test_without_the_package_frames_are_decoded_on_the_cpu_and_that_is_said(
    tmp_path: Path, bench: Bench, run: Run
) -> None:
    path = clip(tmp_path)
    check_plain(run(path, tmp_path / "masks"), "pip install 'nrd-trt[nvdec]'")
    check_red(masks_in(tmp_path / "masks"), path)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"refuses": True}, "PyNvVideoCodec says: CreateDecoder : Error code : 801"),
        ({"shift": 9}, "its colours differ from FFmpeg's by "),
        ({"fails_at": 1}, "PyNvVideoCodec says: Decode : Error code : 999"),
        ({"view": {"typestr": "|u2"}}, "expected dense pictures (H, W, 3) of uint8, got "),
        ({"view": {"strides": (256, 3, 1)}}, "expected dense pictures"),
    ],
)
def test_what_fails_at_the_first_picture_is_decoded_on_the_cpu(
    tmp_path: Path, fake: FakeNvdec, run: Run, settings: dict[str, Any], why: str
) -> None:
    vars(fake).update(settings)
    check_plain(run(clip(tmp_path), "null"), why)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"colorspace": 2}, "it does not say by which matrix its colours were made"),
        ({"color_range": 2}, "its pixels are yuvj420p of full range"),
        ({"pix_fmt": "yuv444p"}, "its pixels are yuv444p"),
    ],
)
def test_colours_that_the_gpu_may_take_otherwise_are_decoded_on_the_cpu(
    tmp_path: Path, fake: FakeNvdec, run: Run, settings: dict[str, Any], why: str
) -> None:
    check_plain(run(clip(tmp_path, **settings), "null"), why)
    assert not fake.decoders


def test_a_jetson_and_a_full_gpu_are_told_apart(
    tmp_path: Path, bench: Bench, fake: FakeNvdec, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clip(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(nvdec, "load_cuda", lambda: failing(bench))
        check_plain(run(path, "null"), "CUDA_ERROR_OUT_OF_MEMORY")
    bench.cuda.set(integrated=True)
    check_plain(run(path, "null"), "this is a Jetson, where jetson://FILE does it")


def failing(bench: Bench) -> Any:
    bench.cuda.fail("cuStreamCreate", OUT_OF_MEMORY)
    return bench.cuda.open()


def test_an_engine_on_the_cpu_asks_for_nothing(tmp_path: Path, fake: FakeNvdec, run: Run) -> None:
    result = run(clip(tmp_path), "null", trt=HostRunner())
    assert (result.decoded_on, result.notes) == ("cpu", ())
    assert not fake.decoders


def test_a_failure_midway_ends_the_run_and_names_the_frame(tmp_path: Path, fake: FakeNvdec, run: Run) -> None:
    fake.fails_at = 8
    why = r"clip.mp4: expected frame \d, PyNvVideoCodec says: Decode : Error code : 999\.$"
    with pytest.raises(VideoError, match=why):
        run(clip(tmp_path), "null")


@pytest.mark.parametrize("fails_at", [0, 8])
def test_what_the_package_prints_goes_to_stderr(
    tmp_path: Path, fake: FakeNvdec, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails_at: int
) -> None:
    fake.damaged_at, fake.fails_at = 6, fails_at
    engine = Engine(runner(), facts())
    monkeypatch.setattr(module, "open_engine", lambda *_, **__: engine)
    words = ["video", str(clip(tmp_path)), "-o", "null", "--bundle", "a.nrd", "--json"]
    result = CliRunner().invoke(app, words)
    ctypes.CDLL(None).fflush(None)
    printed = capfd.readouterr()
    assert (printed.out, "Decode Error occurred for picture 3" in printed.err) == ("", True)
    assert (result.exit_code, "error" in json.loads(result.stdout)) == ((2, True) if fails_at else (0, False))
