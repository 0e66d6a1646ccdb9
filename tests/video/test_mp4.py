"""Video files: the source's timestamps to the tick, any size, playable whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from nrd_trt.errors import ConfigError, MissingDependencyError
from nrd_trt.video.frames import Ending, StreamInfo
from nrd_trt.video.sinks.mp4 import Mp4Sink
from tests.video.stand_ins import segmented

CLIP_BASE = Fraction(1, 30000)
Ticks = Sequence[tuple[int, int]]  # pts and duration
STEADY: Ticks = [(1001 * index, 1001) for index in range(20)]


def flat(size_hw: tuple[int, int], colour: Sequence[int]) -> np.ndarray:
    return np.full((*size_hw, 3), colour, np.uint8)


def write(
    path: Path,
    ticks: Ticks,
    *,
    live: bool = False,
    pictures: Sequence[np.ndarray] | None = None,
    ending: Ending = "complete",
    rate: Fraction | None = Fraction(30000, 1001),
    time_base: Fraction = CLIP_BASE,
    lines: list[str] | None = None,
) -> str | None:
    pictures = pictures or [flat((48, 64), (index * 10 % 256, 80, 160)) for index in range(len(ticks))]
    info = StreamInfo(name="test", size_hw=(48, 64), rate=rate, time_base=time_base, frames=len(ticks), live=live)
    sink = Mp4Sink(path, force=False, report=(lines if lines is not None else []).append)
    sink.open(info)
    for index, ((pts, duration), picture) in enumerate(zip(ticks, pictures, strict=True)):
        sink.write(segmented(index, picture, pts=pts, duration=duration))
    return sink.close(ending)


def read(path: Path) -> tuple[SimpleNamespace, list[av.VideoFrame]]:
    """What a file says of itself, as PyAV's own objects do not outlive their file, and its frames."""
    with av.open(f"file:{path}") as container:
        stream = container.streams.video[0]
        facts = SimpleNamespace(
            rate=stream.average_rate,
            frames=stream.frames,
            size_hw=(stream.height, stream.width),
            codec=stream.codec_context.name,
        )
        return facts, list(container.decode(stream))


def shown(path: Path) -> list[tuple[Fraction, Fraction]]:
    """Time and duration of every frame in seconds."""
    return [(frame.pts * frame.time_base, frame.duration * frame.time_base) for frame in read(path)[1]]


def test_timestamps_and_durations_are_kept_to_the_tick(tmp_path: Path) -> None:
    offset, variable = [(500 + pts, duration) for pts, duration in STEADY], [0, 1001, 4004, 4021, 5022, 65022]
    for index, ticks in enumerate((STEADY, offset, [(a, b - a) for a, b in pairwise(variable)], [(0, 1001)])):
        path = tmp_path / f"{index}.mp4"
        assert write(path, ticks) is None
        assert shown(path) == [(pts * CLIP_BASE, duration * CLIP_BASE) for pts, duration in ticks]


@pytest.mark.parametrize(
    ("size", "form", "rate"),
    [
        ((48, 64), "yuv420p", Fraction(15)),
        ((47, 63), "yuv444p", Fraction(30000, 1001)),
        ((48, 63), "yuv444p", Fraction(1, 2)),
    ],
)
def test_any_size_and_the_exact_rate_are_kept(tmp_path: Path, size: tuple[int, int], form: str, rate: Fraction) -> None:
    pictures = [flat(size, (200, 30, 90))] * 12
    write(tmp_path / "a:b.mp4", [(index, 1) for index in range(12)], pictures=pictures, rate=rate, time_base=1 / rate)
    video, frames = read(tmp_path / "a:b.mp4")  # which FFmpeg might take for a protocol
    assert (video.codec, video.size_hw, frames[0].format.name) == ("h264", size, form)
    assert (video.rate, video.frames, len(frames)) == (rate, 12, 12)


@pytest.mark.parametrize(("size", "matrix"), [((48, 64), 6), ((720, 64), 1)])
def test_colours_come_back_with_the_matrix_that_the_file_names(
    tmp_path: Path, size: tuple[int, int], matrix: int
) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 64, 128), (250, 170, 30)]
    write(tmp_path / "a.mp4", STEADY[:5], pictures=[flat(size, colour) for colour in colours])
    _, frames = read(tmp_path / "a.mp4")
    assert {frame.colorspace for frame in frames} == {matrix}
    for frame, colour in zip(frames, colours, strict=True):
        space = "ITU709" if matrix == 1 else "ITU601"
        rgb = frame.reformat(format="rgb24", src_colorspace=space, dst_colorspace=space).to_ndarray()
        assert np.abs(rgb[10, 10].astype(int) - colour).max() <= 6


def test_a_change_of_size_is_scaled_and_times_before_zero_are_shifted_and_each_is_said_once(tmp_path: Path) -> None:
    lines: list[str] = []
    pictures = [flat((48, 64), (9, 9, 9)), *[flat((96, 128), (200, 200, 200))] * 3]
    write(tmp_path / "a.mp4", [(-2002 + pts, 1001) for pts, _ in STEADY[:4]], pictures=pictures, lines=lines)
    _, frames = read(tmp_path / "a.mp4")
    assert [(frame.height, frame.width) for frame in frames] == [(48, 64)] * 4
    assert frames[-1].to_ndarray(format="rgb24").mean() > 180
    assert shown(tmp_path / "a.mp4") == [(pts * CLIP_BASE, 1001 * CLIP_BASE) for pts, _ in STEADY[:4]]
    assert len(lines) == 2
    assert "begin before zero and are shifted, by 0.067 s" in lines[0]
    assert "from 48x64 to 96x128" in lines[1]


def test_a_gap_of_a_camera_keeps_its_length_and_one_that_mp4_cannot_hold_is_shortened_and_said(tmp_path: Path) -> None:
    for live, held_s in ((True, 3000), (False, 2**31 / 10**6)):
        lines: list[str] = []
        gap = 3 * 10**9
        ticks = [(0, 1), (1000, 1), (gap + 1000, 1), (gap + 2000, 1)]
        write(tmp_path / f"{live}.mp4", ticks, live=live, time_base=Fraction(1, 10**6), rate=Fraction(30), lines=lines)
        times = [float(time) for time, _ in shown(tmp_path / f"{live}.mp4")]
        assert np.diff(times) == pytest.approx([0.001, held_s, 0.001], rel=1e-3, abs=1e-5)
        assert ["shortened" in line for line in lines] == ([] if live else [True])


def test_a_pyav_without_the_encoder_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"h264", "mpeg4"})
    with pytest.raises(MissingDependencyError, match="expected a PyAV with libx264"):
        Mp4Sink(tmp_path / "a.mp4", force=False, report=print)


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.partial.mp4"):
        (tmp_path / name).write_text("....ftyp, precious")
        with pytest.raises(ConfigError, match=rf"{name}: already exists; give .*force"):
            Mp4Sink(tmp_path / "a.mp4", force=False, report=print)
        Mp4Sink(tmp_path / "a.mp4", force=True, report=print)
        assert (tmp_path / name).read_text() == "....ftyp, precious"  # until there is something to replace it with
        (tmp_path / name).unlink()
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(ConfigError, match="got a folder"):
        Mp4Sink(tmp_path / "b.mp4", force=True, report=print)


@pytest.mark.parametrize("force", [False, True])
def test_two_runs_do_not_write_one_file(force: bool, tmp_path: Path) -> None:
    """Who comes second is told, also after a look that found nothing; who comes later, after a killed run, goes on."""
    info = StreamInfo(name="", size_hw=(48, 64), rate=None, time_base=CLIP_BASE, frames=None, live=False)
    first, second = (Mp4Sink(tmp_path / "a.mp4", force=force, report=print) for _ in range(2))
    first.open(info)
    first.write(segmented(0, np.zeros((48, 64, 3), np.uint8)))
    with pytest.raises(ConfigError, match="another run is writing it" if force else "already exists"):
        second.open(info)
    assert second.close("failed") is None
    first.close("complete")
    assert os.listdir(tmp_path) == ["a.mp4"]
    before = (tmp_path / "a.mp4").read_bytes()
    third = Mp4Sink(tmp_path / "a.mp4", force=True, report=print)
    third.open(info)
    assert third.close("complete") is None  # without a frame
    assert (os.listdir(tmp_path), (tmp_path / "a.mp4").read_bytes()) == (["a.mp4"], before)


def test_what_was_written_is_whole_after_ctrl_c_and_partial_after_a_failure(tmp_path: Path) -> None:
    assert write(tmp_path / "stopped.mp4", STEADY[:7], ending="stopped") is None
    line = write(tmp_path / "failed.mp4", STEADY[:7], ending="failed")
    assert line == f"{tmp_path}/failed.partial.mp4: holds the frames up to the failure."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed.partial.mp4", "stopped.mp4"]
    for path in tmp_path.iterdir():
        assert len(shown(path)) == 7


def test_nothing_is_made_where_no_frame_came_and_nothing_written_where_no_file_can_be(tmp_path: Path) -> None:
    assert write(tmp_path / "a.mp4", []) is None
    assert list(tmp_path.iterdir()) == []
    sink = Mp4Sink(tmp_path / "a.mp4", force=False, report=print)
    assert sink.close("failed") is None
    (tmp_path / "a.partial.mp4").mkdir()
    with pytest.raises(ConfigError, match=r"a\.partial\.mp4: already exists"):
        sink.open(StreamInfo(name="", size_hw=(4, 4), rate=None, time_base=CLIP_BASE, frames=None, live=False))


def test_a_killed_process_leaves_a_file_that_plays(tmp_path: Path) -> None:
    """Up to the last fragment, which ends with a key frame every two seconds."""
    code = f"""
        import numpy as np
        from tests.video.test_mp4 import Fraction, Mp4Sink, Path, StreamInfo, segmented
        info = StreamInfo(name="", size_hw=(48, 64), rate=10, time_base=Fraction(1, 10), frames=None, live=True)
        sink = Mp4Sink(Path({str(tmp_path / "a.mp4")!r}), force=False, report=print)
        sink.open(info)
        for index in range(10_000):
            sink.write(segmented(index, np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8)))
            if index == 200:
                print("ready", flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert os.listdir(tmp_path) == ["a.partial.mp4"]
    frames = 0
    with av.open(str(tmp_path / "a.partial.mp4")) as container, contextlib.suppress(av.error.InvalidDataError):
        for _ in container.decode(video=0):  # the last picture may be cut off
            frames += 1
    assert frames > 100
