"""Video files: every frame, its time, upright; and what is said of files that are none."""

from __future__ import annotations

import itertools
import re
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nrd_trt.errors import MissingDependencyError, VideoError
from nrd_trt.video.frames import Frame
from nrd_trt.video.sources.open_source import open_source
from tests.video.clips import av, grey_frames, number_of, street_frames, write_clip, write_damaged_clip


def frames_of(path: Path) -> list[Frame]:
    with open_source(str(path)) as source:
        return list(source)


def refusal(path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        frames_of(path)
    return str(caught.value)


def test_frames_come_complete_and_with_exact_times(tmp_path: Path) -> None:
    images = street_frames(30)
    path = write_clip(tmp_path / "clip.mp4", images, rate=Fraction(30000, 1001))
    with open_source(str(path)) as source:
        info, frames = source.info, list(source)
    assert (info.name, info.size_hw, info.frames, info.live) == (str(path), (64, 96), 30, False)
    assert info.rate == Fraction(30000, 1001)
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.pts * info.time_base for frame in frames] == [index * Fraction(1001, 30000) for index in range(30)]
    assert {(frame.duration or 0) * info.time_base for frame in frames} == {Fraction(1001, 30000)}
    for frame, image in zip(frames, images, strict=True):
        assert frame.rgb.dtype == np.uint8 and frame.rgb.flags.c_contiguous
        assert np.abs(frame.rgb.astype(int) - image).mean() < 6


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "libx265", "libvpx-vp9", "ffv1"])
def test_decoder_is_flushed(tmp_path: Path, codec: str) -> None:
    """Codecs with delay hold frames back until the end."""
    try:
        path = write_clip(tmp_path / "clip.mkv", grey_frames(20), codec=codec)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"needs the encoder {codec} in PyAV's FFmpeg")
    assert [number_of(frame.rgb) for frame in frames_of(path)] == list(range(20))


def test_variable_rates_are_kept_and_missing_times_filled_in(tmp_path: Path) -> None:
    pts = [0, 1000, 1500, 4000, 9000, 9100]
    path = write_clip(tmp_path / "clip.mkv", grey_frames(6), rate=10, pts=pts)
    with open_source(str(path)) as source:
        assert [frame.pts * source.info.time_base * 10_000 for frame in source] == pts
    path = write_clip(tmp_path / "clip.h264", grey_frames(12), codec="libx264", rate=25)  # has no times at all
    with open_source(str(path)) as source:
        times = [frame.pts * source.info.time_base for frame in source]
        assert source.info.frames is None
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [Fraction(1, 25)] * 11


def test_times_grow_and_sizes_change_where_recordings_were_joined(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "a.ts", grey_frames(40), codec="libx264", rate=25)
    large = write_clip(tmp_path / "b.ts", grey_frames(40, (96, 128)), codec="libx264", rate=25)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    with open_source(str(joined)) as source:
        frames = list(source)
        ticks = [later.pts - earlier.pts for earlier, later in itertools.pairwise(frames)]
        assert {tick * source.info.time_base for tick in ticks} == {Fraction(1, 25)}
        assert source.info.size_hw == (64, 96)
    assert [frame.rgb.shape for frame in frames] == [(64, 96, 3)] * 40 + [(96, 128, 3)] * 40


def marked() -> np.ndarray:
    """Black with a white corner at the top left."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48] = 255
    return image


def turn_clockwise(path: Path, quarters: int) -> None:
    """Write into the track header how a player turns the video: ``x' = a·x + c·y, y' = b·x + d·y``, y downwards."""
    a, b, c, d = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarters]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(("quarters", "corner"), [(1, (0, -1)), (2, (-1, -1)), (3, (-1, 0))])
def test_videos_of_phones_stand_upright(tmp_path: Path, quarters: int, corner: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "clip.mp4", [marked()] * 3)
    turn_clockwise(path, quarters)
    with open_source(str(path)) as source:
        frames = list(source)
        assert source.info.size_hw == ((96, 64) if quarters % 2 else (64, 96))
    for frame in frames:
        assert frame.rgb.shape[:2] == source.info.size_hw and frame.rgb.flags.c_contiguous
        light = [pair for pair in itertools.product((0, -1), (0, -1)) if frame.rgb[pair].min() > 200]
        assert light == [corner]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path) -> Path:
    """The index of an MP4 stands at its end."""
    data = write_clip(path, street_frames(10)).read_bytes()
    return written(path, data[: len(data) // 2])


NOT_VIDEOS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent.mp4": (lambda path: path, "a video or a folder, there is none; check the path"),
    "notes.txt": (lambda path: written(path, b"notes, not pictures\n" * 900), "it is a text file"),
    "clip.mp4": (lambda path: written(path, b"\0garbage" * 99), "FFmpeg finds none in it"),
    "empty.mp4": (lambda path: written(path, b""), "FFmpeg finds none in it"),
    "cut.mp4": (cut, "FFmpeg finds none in it; check that it is complete"),
    "song.wav": (sound, "a video stream, found audio; give a file with pictures"),
}


@pytest.mark.parametrize("name", NOT_VIDEOS)
def test_what_is_no_video_is_refused(tmp_path: Path, name: str) -> None:
    make, message = NOT_VIDEOS[name]
    path = make(tmp_path / name)
    assert re.fullmatch(f"{path}: expected .*{message}.*", refusal(path))


def test_a_file_that_may_not_be_read_and_an_absent_pyav_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path / "clip.mp4", b"")
    monkeypatch.setattr(av, "open", denied)  # root reads every file
    assert "it may not be read; check its permissions" in refusal(path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"reading videos needs .*nrd-trt\[video\]"):
        frames_of(path)


def test_a_packet_that_is_damaged_is_named(tmp_path: Path) -> None:
    frames: list[Frame] = []
    with open_source(str(write_damaged_clip(tmp_path / "clip.avi"))) as source:
        with pytest.raises(VideoError, match=r"clip.avi: expected frame 12, found damaged data; repair or cut"):
            frames.extend(source)
    assert len(frames) == 12


def test_half_a_file_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """Its index stands in front, so that it opens; FFmpeg reads to the cut and stops as at an end."""
    options = {"movflags": "faststart"}
    path = write_clip(tmp_path / "clip.mp4", street_frames(60), codec="libx264", container_options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert re.search(r"clip.mp4: expected frame 3\d, found the file cut off there; copy it again", refusal(path))


@pytest.mark.parametrize("inside", ["", "images"])
def test_a_folder_is_played_and_an_image_that_cannot_be_read_named(tmp_path: Path, inside: str) -> None:
    images, sizes = tmp_path / "drive" / inside, [(40, 60), (50, 70), (40, 60)]
    images.mkdir(parents=True)
    for index, size in enumerate(sizes):
        Image.fromarray(np.full((*size, 3), 50 * index, np.uint8)).save(images / f"frame_{index}.png")
    with open_source(str(tmp_path / "drive"), rate=12.5) as source:
        info, frames = source.info, list(source)
    assert (info.size_hw, info.rate, info.frames, info.live) == ((40, 60), Fraction(25, 2), 3, False)
    assert [frame.name for frame in frames] == ["frame_0", "frame_1", "frame_2"]
    assert [frame.pts * info.time_base for frame in frames] == [0, Fraction(2, 25), Fraction(4, 25)]
    assert [frame.rgb.shape[:2] for frame in frames] == sizes
    assert [frame.rgb[0, 0, 0] for frame in frames] == [0, 50, 100]
    written(images / "frame_1.png", b"no image")
    assert "frame_1.png: expected an image, cannot read it" in refusal(tmp_path / "drive")
