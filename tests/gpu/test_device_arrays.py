"""Images that lie on a real GPU, by each library that is installed there: masks are those of host runs, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from nrd_trt.graph.metadata import read_facts
from nrd_trt.runtime.engine import Engine
from tests.gpu.test_on_device import SIZE_HW, export, on_plan, plan, scenes
from tests.helpers import missing_for_plans

_MISSING = missing_for_plans()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_MISSING is not None, reason=f"needs a GPU: {_MISSING}")]

needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a build of PyTorch for CUDA")
ROUNDS = 3
"""The first one allocates, the second captures, the third replays."""


@contextmanager
def opened() -> Iterator[tuple[Engine, list[np.ndarray], list[np.ndarray]]]:
    """Yield an engine, images ``(h, w, 3)``, and the masks that a host run gives of them."""
    with Engine(on_plan(plan()), read_facts(export("static"))) as engine:
        images = [image[0] for image in scenes()]
        yield engine, images, [engine.mask(image) for image in images]


@needs_torch
@pytest.mark.parametrize("stream", ["unnamed", "default", "own"])
def test_tensors_of_pytorch(stream: str) -> None:
    with opened() as (engine, images, wanted):
        current = torch.cuda.Stream() if stream == "own" else torch.cuda.default_stream()
        named = {} if stream == "unnamed" else {"stream": current.cuda_stream}
        with torch.cuda.stream(current):
            room = torch.empty((*SIZE_HW, 3), dtype=torch.uint8, device="cuda")
            for image, mask in zip(images * ROUNDS, wanted * ROUNDS, strict=True):
                room.copy_(torch.from_numpy(image).pin_memory(), non_blocking=True)
                found = torch.from_dlpack(engine.predict_device(room, **named))
                assert np.array_equal(found.cpu().numpy(), mask)
            target = torch.empty(SIZE_HW, dtype=torch.uint8, device="cuda")
            engine.predict_device(room, out=target, **named)
            assert np.array_equal(target.cpu().numpy(), wanted[-1])


def test_arrays_of_cupy() -> None:
    cupy = pytest.importorskip("cupy", reason="needs CuPy: `pip install cupy-cuda12x` or `cupy-cuda13x`")
    with opened() as (engine, images, wanted), cupy.cuda.Stream(non_blocking=True):
        for image, mask in zip(images * ROUNDS, wanted * ROUNDS, strict=True):
            assert np.array_equal(cupy.asnumpy(cupy.asarray(engine.predict_device(cupy.asarray(image)))), mask)


@pytest.mark.parametrize("named", [True, False])
def test_arrays_of_pycuda(named: bool) -> None:
    pytest.importorskip("pycuda.autoprimaryctx", reason="needs PyCUDA: `pip install nrd-trt[pycuda]`")
    import pycuda.driver as drv
    from pycuda.gpuarray import GPUArray, to_gpu_async

    stream = drv.Stream()
    host: Any = drv.pagelocked_empty((*SIZE_HW, 3), np.uint8)
    with opened() as (engine, images, wanted):
        for image, mask in zip(images * ROUNDS, wanted * ROUNDS, strict=True):
            host[...] = image
            rgb = to_gpu_async(host, stream=stream)
            found = engine.predict_device(rgb, stream=stream.handle if named else None)
            masks = GPUArray(found.shape, np.uint8, gpudata=found.address).get_async(stream=stream)
            stream.synchronize()
            assert np.array_equal(masks, mask)
