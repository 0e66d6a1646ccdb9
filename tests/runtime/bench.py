"""The fake driver under runners of plans, with the engines that they load."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nrd_trt.engine.caches import CacheKey
from nrd_trt.machine.cuda import Cuda
from nrd_trt.runtime import buffers, device_arrays, overlap, trt_runner
from nrd_trt.runtime.base import BaseRunner, DeviceTensor
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import TensorSpec
from tests.runtime.fake_cuda import FakeDriver, FakeEngine

SMALL, LARGE = (1, 4, 8, 3), (2, 16, 32, 3)


class Bench:
    """A fake driver that runners open, and the engines that they load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: type[FakeEngine] = FakeEngine, **settings: Any) -> None:
        self.cuda, self._engine = FakeDriver(monkeypatch, **settings), engine
        self.engines: list[FakeEngine] = []
        self.asked: list[tuple[bytes, dict[str, Any]]] = []
        for module in (trt_runner, overlap, device_arrays):
            monkeypatch.setattr(module, "load_cuda", self.cuda.open)
        monkeypatch.setattr(buffers, "host_view", self.cuda.host_view)
        tensorrt = SimpleNamespace(deserialize=self._load, cache_key=_cache_key)
        monkeypatch.setattr(trt_runner, "load_tensorrt", lambda flavour: tensorrt)

    def _load(self, plan: bytes, **options: Any) -> FakeEngine:
        self.asked.append((plan, options))
        self.engines.append(self._engine(self.cuda))
        return self.engines[-1]

    def since(self, start: int) -> list[str]:
        """Names of the calls from one on."""
        return self.cuda.names()[start:]


def _cache_key(gpu: str | None, driver: str | None) -> CacheKey:
    return CacheKey(builder="tensorrt-rtx 1.7", gpu=gpu, driver=driver)


class HostRunner(BaseRunner):
    """A runner on the host whose mask is the red channel; it notes its calls and their threads."""

    name = "host"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        self._note("open")
        return {"image": TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, None, None, 3))}, {}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._note("run")
        return {"mask": feed["image"][..., 0]}

    def _close(self) -> None:
        self._note("close")


def runner(**options: Any) -> TrtRunner:
    return TrtRunner(b"plan", flavour="tensorrt", rebuild="rebuild it", **options)


def image(shape: tuple[int, ...] = SMALL, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def check_outputs(outputs: Mapping[str, np.ndarray], shape: tuple[int, ...], seed: int) -> None:
    """Hold outputs against what the fake engine does with an image."""
    pixels = image(shape, seed)
    assert outputs.keys() == {"mask", "mean"}
    assert (outputs["mask"].dtype, outputs["mean"].dtype) == (np.uint8, np.float32)
    assert np.array_equal(outputs["mask"], pixels[..., 0])
    assert np.allclose(outputs["mean"], pixels.mean(axis=-1))


def check(trt: TrtRunner, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Run on one image and check the outputs."""
    outputs = trt.infer({"image": image(shape, seed)})
    check_outputs(outputs, shape, seed)
    return outputs


@dataclass
class Caller:
    """Somebody with a stream and device memory of his own."""

    driver: FakeDriver
    cuda: Cuda
    stream: int
    held: list[int] = field(default_factory=list)

    def room(self, nbytes: int) -> int:
        """Return the address of new memory."""
        self.held.append(self.cuda.allocate(nbytes))
        return self.held[-1]

    def put(self, pixels: np.ndarray) -> DeviceTensor:
        """Copy an array to the device."""
        address = self.room(pixels.nbytes)
        self.driver.on_device(address, pixels.nbytes)[:] = pixels.reshape(-1)
        return DeviceTensor(address=address, shape=pixels.shape, dtype=pixels.dtype)

    def read(self, tensor: DeviceTensor) -> np.ndarray:
        """Wait for the stream and return a copy of what a run has written."""
        self.cuda.synchronize(self.stream)
        nbytes = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        return self.driver.on_device(tensor.address, nbytes).copy().view(tensor.dtype).reshape(tensor.shape)


@contextmanager
def caller(driver: FakeDriver) -> Iterator[Caller]:
    """Yield somebody in the primary context, who waits for his stream and frees what he holds at the end."""
    with driver.opened() as cuda:
        one = Caller(driver, cuda, cuda.create_stream())
        yield one
        cuda.synchronize(one.stream)
        for address in one.held:
            cuda.free(address)
        cuda.destroy_stream(one.stream)
