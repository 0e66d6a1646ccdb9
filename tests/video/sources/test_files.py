"""Video files: every frame, its time, its colours, upright; and what is said of files that are none."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from nrd_trt.errors import VideoError
from nrd_trt.video.frames import Frame
from nrd_trt.video.sources.open import open_source
from tests.video.clips import av, grey_frames, number_of, street_frames, write_clip


def frames_of(path: Path) -> list[Frame]:
    with open_source(str(path)) as source:
        return list(source)


def test_frames_come_complete_and_with_exact_times(tmp_path: Path) -> None:
    images = street_frames(30)
    path = write_clip(tmp_path / "clip.mp4", images, rate=Fraction(30000, 1001))
    with open_source(str(path)) as source:
        info = source.info
        frames = list(source)
    assert (info.name, info.size_hw, info.rate, info.frames, info.live) == (
        str(path),
        (64, 96),
        Fraction(30000, 1001),
        30,
        False,
    )
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


def test_counts_agree_with_ffprobe(tmp_path: Path, camvid: Path) -> None:
    clips = [next(camvid.glob("*.mp4")), write_clip(tmp_path / "b.mp4", street_frames(25), codec="libx264")]
    if shutil.which("ffprobe") is None:
        pytest.skip("needs ffprobe: apt-get install ffmpeg")
    for clip in clips:
        command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames"]
        command += ["-show_entries", "stream=nb_read_frames", "-of", "csv=p=0", str(clip)]
        counted = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert len(frames_of(clip)) == counted


def test_text_and_garbage_are_no_videos(tmp_path: Path) -> None:
    for name, text in {"notes.txt": "not a video\n" * 9, "clip.mp4": "\x00garbage" * 99, "empty.mp4": ""}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoError, match=rf"{name}: expected a video, "), open_source(str(tmp_path / name)):
            pass
