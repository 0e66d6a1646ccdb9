"""Runners show and give a packed mask as bytes, on the host and on the device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nrd_trt.errors import RunnerError
from nrd_trt.specs import TensorSpec
from tests.runtime.bench import SMALL, Bench, HostRunner, caller, check, image, runner
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import PackedEngine


class Words(HostRunner):
    """A runner whose backend gives a mask of a type and shape."""

    mask_encoding = "u8x4"

    def __init__(self, mask: np.ndarray, shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.mask, self.shape = mask, shape

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        mask = TensorSpec(name="mask", dtype=self.mask.dtype, shape=self.shape)
        logits = TensorSpec(name="logits", dtype=np.dtype(np.float32), shape=(None, 3))
        return {}, {"mask": mask, "logits": logits}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"mask": self.mask.copy(), "logits": np.zeros((1, 3), np.float32)}


def test_first_pixel_is_the_lowest_byte_and_dynamic_width_stays_dynamic() -> None:
    with Words(np.array([[[0x04030201, -1]]], np.int32), (None, None, 2)) as runner:
        assert runner.outputs["mask"] == TensorSpec(name="mask", dtype=np.dtype(np.uint8), shape=(None, None, 8))
        assert runner.outputs["logits"].shape == (None, 3)
        outputs = runner.infer({})
    assert outputs["mask"].tolist() == [[[1, 2, 3, 4, 255, 255, 255, 255]]]
    assert outputs["logits"].dtype == np.float32
    with Words(np.zeros((1, 2, 3), np.int32), (None, None, None)) as runner:
        assert runner.outputs["mask"].shape == (None, None, None)


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", ">i4"])
def test_what_is_no_packed_mask_is_an_error_and_closed(dtype: str) -> None:
    runner = Words(np.zeros((1, 2, 3), dtype), (1, 2, 3))
    with pytest.raises(RunnerError, match=r"host: tensor 'mask': expected int32 with four pixels in each, got .*model"):
        runner.__enter__()
    assert runner.calls == ["close"]
    with pytest.raises(RunnerError, match="not entered"):
        runner.infer({})


def test_plan_gives_bytes_with_and_without_a_graph_and_on_the_device(make_bench: MakeBench) -> None:
    cuda, pixels = make_bench(PackedEngine).cuda, image()
    with runner(mask_encoding="u8x4") as trt, caller(cuda) as mine:
        assert trt.outputs["mask"].dtype == np.uint8
        for seed in range(4):
            check(trt, SMALL, seed)
        assert len(cuda.graphs) == 1
        assert [call[3] for call in cuda.calls if call[0] == "download"][:2] == [32, 128]  # bytes of mask and mean
        outputs = trt.infer_device({"image": mine.put(pixels)}, mine.stream)
        assert (outputs["mask"].dtype, outputs["mask"].shape) == (np.uint8, (1, 4, 8))
        assert (outputs["mean"].dtype, outputs["mean"].shape) == (np.float32, (1, 4, 8))
        np.testing.assert_array_equal(mine.read(outputs["mask"]), pixels[..., 0])


def test_plan_of_another_encoding_is_an_error_and_closed(bench: Bench) -> None:
    with pytest.raises(RunnerError, match="expected int32 with four pixels in each, got uint8"):
        runner(mask_encoding="u8x4").__enter__()
