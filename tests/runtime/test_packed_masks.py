"""Runners show and give a packed mask as bytes, on the host and on the device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nrd_trt.errors import RunnerError
from nrd_trt.runtime.base import BaseRunner, DeviceTensor
from nrd_trt.specs import TensorSpec
from tests.runtime.bench import SMALL, Bench, check, image, runner
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import FakeCuda, PackedEngine


class Words(BaseRunner):
    """A runner whose backend gives a mask of a type and shape."""

    name = "words"
    mask_encoding = "u8x4"

    def __init__(self, mask: np.ndarray, shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.mask, self.shape, self.closed = mask, shape, 0

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        mask = TensorSpec(name="mask", dtype=self.mask.dtype, shape=self.shape)
        logits = TensorSpec(name="logits", dtype=np.dtype(np.float32), shape=(None, 3))
        return {}, {"mask": mask, "logits": logits}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"mask": self.mask.copy(), "logits": np.zeros((1, 3), np.float32)}

    def _close(self) -> None:
        self.closed += 1


def test_first_pixel_is_the_lowest_byte() -> None:
    with Words(np.array([[[0x04030201, -1]]], np.int32), (None, None, 2)) as runner:
        assert runner.outputs["mask"] == TensorSpec(name="mask", dtype=np.dtype(np.uint8), shape=(None, None, 8))
        assert runner.outputs["logits"].shape == (None, 3)
        outputs = runner.infer({})
    assert outputs["mask"].tolist() == [[[1, 2, 3, 4, 255, 255, 255, 255]]]
    assert outputs["logits"].dtype == np.float32


def test_dynamic_width_stays_dynamic() -> None:
    with Words(np.zeros((1, 2, 3), np.int32), (None, None, None)) as runner:
        assert runner.outputs["mask"].shape == (None, None, None)
        assert runner.infer({})["mask"].shape == (1, 2, 12)


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", ">i4"])
def test_what_is_no_packed_mask_is_an_error_and_closed(dtype: str) -> None:
    runner = Words(np.zeros((1, 2, 3), dtype), (1, 2, 3))
    with pytest.raises(
        RunnerError, match=r"words: tensor 'mask': expected int32 with four pixels in each, got .*export"
    ):
        runner.__enter__()
    assert runner.closed == 1
    with pytest.raises(RunnerError, match="not entered"):
        runner.infer({})


@pytest.fixture
def cuda(make_bench: MakeBench) -> FakeCuda:
    return make_bench(PackedEngine).cuda


def test_plan_gives_bytes_with_and_without_a_graph(cuda: FakeCuda) -> None:
    with runner(mask_encoding="u8x4") as trt:
        assert trt.outputs["mask"].dtype == np.uint8
        for seed in range(4):
            check(trt, SMALL, seed)
        assert len(cuda.graphs) == 1
        assert [call[3] for call in cuda.calls if call[0] == "download"][:2] == [32, 128]  # bytes of mask and mean


def test_bytes_on_the_device_are_where_the_words_are(cuda: FakeCuda) -> None:
    pixels = image()
    stream, address = cuda.create_stream(), cuda.allocate(pixels.nbytes)
    cuda.on_device(address, pixels.nbytes)[:] = pixels.reshape(-1)
    with runner(mask_encoding="u8x4") as trt:
        feed = {"image": DeviceTensor(address=address, shape=SMALL, dtype=pixels.dtype)}
        outputs = trt.infer_device(feed, stream)
        cuda.synchronize(stream)
        mask = outputs["mask"]
        assert (mask.dtype, mask.shape) == (np.uint8, (1, 4, 8))
        assert (outputs["mean"].dtype, outputs["mean"].shape) == (np.float32, (1, 4, 8))
        np.testing.assert_array_equal(cuda.on_device(mask.address, 32).reshape(mask.shape), pixels[..., 0])
    cuda.free(address)
    cuda.destroy_stream(stream)


def test_plan_of_another_encoding_is_an_error_and_closed(bench: Bench) -> None:
    with pytest.raises(RunnerError, match="expected int32 with four pixels in each, got uint8"):
        runner(mask_encoding="u8x4").__enter__()
