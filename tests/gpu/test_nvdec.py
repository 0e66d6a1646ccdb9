"""Video files decoded by a real NVDEC, held against PyAV. Nothing is timed here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from nrd_trt.data.preprocessing import fitting_of
from nrd_trt.errors import RunnerError
from nrd_trt.machine.cuda import open_cuda
from nrd_trt.runtime.buffers import Buffer
from nrd_trt.specs import InputShape
from nrd_trt.video.frames import DeviceImage, Wanted
from nrd_trt.video.sources.open_source import open_source
from tests.video.clips import street_frames, write_clip

SIZE_HW, ENGINE_HW = (350, 640), (352, 640)


def _missing() -> str | None:
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        return "PyNvVideoCodec: `pip install nrd-trt[nvdec]`"
    try:
        with open_cuda() as cuda:
            return "a GPU with memory of its own" if cuda.facts().integrated else None
    except RunnerError as exc:
        return f"a GPU: {exc}"


_MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_MISSING is not None, reason=f"needs {_MISSING}")]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pictures_and_times_are_those_of_the_cpu(tmp_path: Path, codec: str, suffix: str) -> None:
    frames = [frame[: SIZE_HW[0]] for frame in street_frames(30, ENGINE_HW)]
    path = write_clip(tmp_path / f"clip{suffix}", frames, codec=codec, rate=25, colorspace=5, color_range=1)
    shape, padding = InputShape.static(ENGINE_HW), np.array([1, 2, 3], np.uint8)
    asked = Wanted(
        fitting=lambda size_hw: fitting_of(size_hw, shape, "pad"),
        padding=padding,
        pixels=False,
        on_device=lambda: True,
    )
    with open_source(str(path), wanted=asked) as source, open_source(str(path)) as plain, open_cuda() as cuda:
        assert (source.info.decoded_on, source.info.note) == ("nvdec", None)
        seen, stream = Buffer(cuda, mapped=False), cuda.create_stream()
        for frame, expected in zip(source, plain, strict=True):
            assert isinstance(frame.image, DeviceImage)
            assert (frame.pts, frame.duration) == (expected.pts, expected.duration)
            assert np.abs(frame.rgb.astype(int) - expected.rgb).mean() < 3
            seen.reserve(int(np.prod(frame.image.tensor.shape)))
            cuda.copy(seen.device, frame.image.tensor.address, int(np.prod(frame.image.tensor.shape)), stream)
            seen.download(stream)
            cuda.synchronize(stream)
            lying = seen.read(frame.image.tensor.shape, np.dtype(np.uint8))
            assert np.array_equal(lying[: SIZE_HW[0]], frame.rgb)
            assert (lying[SIZE_HW[0] :] == padding).all()
        seen.release()
        cuda.destroy_stream(stream)
