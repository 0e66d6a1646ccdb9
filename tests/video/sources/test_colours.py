"""Colours of a frame, by its tags: computed here from the definitions of the matrices, not by FFmpeg."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nrd_trt.video.sources.open_source import open_source
from tests.video.clips import av, write_clip

_COLOURS = [(200, 30, 40), (20, 180, 60), (30, 60, 220), (128, 128, 128), (255, 255, 255), (0, 0, 0), (250, 220, 10)]
_WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}
_TAGS = {"bt709": 1, "bt601": 6, "bt2020": 9}
_UNTAGGED = 2
_LIMITED, _FULL = 1, 2


def yuv(rgb: tuple[int, int, int], matrix: str, colour_range: int, bits: int) -> list[int]:
    red_weight, blue_weight = _WEIGHTS[matrix]
    red, green, blue = (value / 255 for value in rgb)
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    chroma = [(blue - luma) / (2 - 2 * blue_weight), (red - luma) / (2 - 2 * red_weight)]
    scale = 1 << (bits - 8)
    if colour_range == _FULL:
        most = 256 * scale - 1
        values = [luma * most, *(value * most + 128 * scale for value in chroma)]
    else:
        values = [(16 + 219 * luma) * scale, *((128 + 224 * value) * scale for value in chroma)]
    return [min(max(round(value), 0), 256 * scale - 1) for value in values]


def write_colours(
    path: Path, matrix: str, colour_range: int, pix_fmt: str, size_hw: tuple[int, int], *, tagged: bool
) -> None:
    """A lossless clip with one frame per colour."""
    bits = 10 if "10" in pix_fmt else 8
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = size_hw
        stream.pix_fmt = pix_fmt
        stream.codec_context.colorspace = _TAGS[matrix] if tagged else _UNTAGGED
        stream.codec_context.color_range = colour_range
        for index, colour in enumerate(_COLOURS):
            frame = av.VideoFrame(*size_hw[::-1], pix_fmt)
            opaque = [(1 << bits) - 1]  # of an alpha plane
            for plane, value in zip(frame.planes, yuv(colour, matrix, colour_range, bits) + opaque, strict=False):
                kind = np.uint8 if bits == 8 else np.uint16
                plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, value, kind).tobytes())
            frame.pts = index
            frame.colorspace, frame.color_range = stream.codec_context.colorspace, colour_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("matrix", "colour_range", "pix_fmt", "size_hw", "tagged"),
    [
        ("bt709", _LIMITED, "yuv420p", (48, 64), True),
        ("bt709", _FULL, "yuv420p10le", (48, 64), True),
        ("bt601", _LIMITED, "yuv444p", (48, 64), True),
        ("bt601", _FULL, "yuva420p", (48, 64), True),
        ("bt2020", _LIMITED, "yuv420p10le", (48, 64), True),
        ("bt2020", _FULL, "yuv420p", (48, 64), True),
        ("bt709", _FULL, "yuv444p", (48, 64), True),
        ("bt601", _LIMITED, "yuv420p10le", (48, 64), True),
        # Without a tag the number of lines tells.
        ("bt601", _LIMITED, "yuv420p", (576, 32), False),
        ("bt601", _LIMITED, "yuv420p", (718, 32), False),
        ("bt709", _LIMITED, "yuv420p", (720, 32), False),
        ("bt601", _LIMITED, "yuv420p", (720, 32), True),
        # Odd sides
        ("bt601", _LIMITED, "yuv420p", (49, 65), True),
        ("bt601", _LIMITED, "yuv420p", (47, 67), True),
        ("bt601", _LIMITED, "yuv420p", (33, 102), True),
    ],
)
def test_colours_go_by_the_tags_or_by_the_size(
    tmp_path: Path, matrix: str, colour_range: int, pix_fmt: str, size_hw: tuple[int, int], tagged: bool
) -> None:
    write_colours(tmp_path / "clip.mkv", matrix, colour_range, pix_fmt, size_hw, tagged=tagged)
    with open_source(str(tmp_path / "clip.mkv")) as source:
        for frame, colour in zip(source, _COLOURS, strict=True):
            assert frame.rgb.shape == (*size_hw, 3)
            assert np.abs(frame.rgb.astype(int) - colour).max() <= 3  # the other matrix is off by 20 and more


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "bgr0"), ("png", "rgb24"), ("png", "rgba"), ("png", "gray")])
def test_what_is_rgb_or_grey_stays_as_it_is(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    path = tmp_path / ("clip.mov" if codec == "png" else "clip.mkv")
    image = np.zeros((48, 64, 3), np.uint8)
    image[...] = np.arange(64, dtype=np.uint8)[:, None] * 4
    if pix_fmt != "gray":
        image[:24, :, 1:] = 30
    write_clip(path, [image], codec=codec, pix_fmt=pix_fmt)
    with open_source(str(path)) as source:
        (frame,) = source
    # Grey goes through limited range on its way in and out.
    assert int(np.abs(frame.rgb.astype(int) - image).max()) <= (1 if pix_fmt == "gray" else 0)
