"""Arrays of PyCUDA itself on the fake driver; `tests/machine/test_cuda.py` runs this where PyCUDA is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycuda.driver as drv
import pytest
from pycuda.gpuarray import GPUArray

from nrd_trt.runtime.device_arrays import DeviceMask
from tests.runtime.bench import LARGE, SMALL, Bench, caller, image
from tests.runtime.conftest import MakeBench
from tests.runtime.test_device_arrays import MaskEngine, engine


@dataclass
class Image:
    """An image in page-locked memory, its array on the device, and page-locked memory for masks."""

    host: Any
    rgb: Any
    masks: Any

    def upload(self, seed: int, stream: Any) -> np.ndarray:
        """Queue a copy to the device; return the masks that are to come."""
        self.host[...] = image(self.host.shape, seed)
        self.rgb.set_async(self.host, stream=stream)
        return np.array(self.host[..., 0])

    def read(self, found: DeviceMask, stream: Any) -> np.ndarray:
        """Take masks as PyCUDA's array, and copy them to the host on a stream."""
        GPUArray(found.shape, np.uint8, gpudata=found.address).get_async(stream=stream, ary=self.masks)
        stream.synchronize()
        return np.array(self.masks)


@contextmanager
def image_of(shape: tuple[int, ...]) -> Iterator[Image]:
    one = Image(
        host=drv.pagelocked_empty(shape, np.uint8),
        rgb=GPUArray(shape, np.uint8),
        masks=drv.pagelocked_empty(shape[:3], np.uint8),
    )
    yield one
    one.rgb.gpudata.free()
    for array in (one.host, one.masks):
        array.base.free()


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_arrays_of_pycuda(bench: Bench, shape: tuple[int, ...]) -> None:
    """With the stream named and without; the copy to the device is queued, and nobody else waits for it."""
    with caller(bench.cuda), engine() as opened, image_of(shape) as one:
        stream, other = drv.Stream(flags=1), drv.Stream(flags=1)
        for seed in range(2):
            expected = one.upload(seed, stream)
            assert np.array_equal(one.read(opened.predict_device(one.rgb, stream=stream.handle), stream), expected)
            expected = one.upload(seed + 2, stream)
            assert np.array_equal(one.read(opened.predict_device(one.rgb), other), expected)
        del stream, other


def test_masks_go_to_an_array_of_pycuda(make_bench: MakeBench) -> None:
    with caller(make_bench(MaskEngine).cuda), engine() as opened, image_of(SMALL) as one:
        stream, target = drv.Stream(flags=1), GPUArray(SMALL[:3], np.uint8)
        expected = one.upload(1, stream)
        found = opened.predict_device(one.rgb, stream=stream.handle, out=target)
        assert found.owner is target and found.address == int(target.gpudata)
        assert np.array_equal(one.read(found, stream), expected)
        target.gpudata.free()
        del stream
