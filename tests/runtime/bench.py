"""A fake driver that runners of plans get, with the engines that they load."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nrd_trt.runtime import buffers, overlap, trt_runner
from nrd_trt.runtime.trt_runner import TrtRunner
from tests.runtime.fake_cuda import FakeCuda, FakeEngine

SMALL, LARGE = (1, 4, 8, 3), (2, 16, 32, 3)


class Bench:
    """A fake driver that runners get, and the engines that they load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: type[FakeEngine] = FakeEngine, **settings: Any) -> None:
        self.cuda, self._engine = FakeCuda(**settings), engine
        self.engines: list[FakeEngine] = []
        self.asked: list[tuple[bytes, dict[str, Any]]] = []
        for module in (trt_runner, overlap):
            monkeypatch.setattr(module, "load_cuda", lambda: self.cuda)
        monkeypatch.setattr(buffers, "host_view", self.cuda.host_view)
        monkeypatch.setattr(trt_runner, "load_tensorrt", lambda flavour: SimpleNamespace(deserialize=self._load))

    def _load(self, plan: bytes, **options: Any) -> FakeEngine:
        self.asked.append((plan, options))
        self.engines.append(self._engine(self.cuda))
        return self.engines[-1]

    def since(self, start: int) -> list[str]:
        """Names of the calls from one on."""
        return self.cuda.names()[start:]


def runner(**options: Any) -> TrtRunner:
    return TrtRunner(b"plan", flavour="tensorrt", rebuild="rebuild it", **options)


def image(shape: tuple[int, ...] = SMALL, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def check(trt: TrtRunner, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Run on one image and hold the outputs against what the fake engine does."""
    pixels = image(shape, seed)
    outputs = trt.infer({"image": pixels})
    assert np.array_equal(outputs["mask"], pixels[..., 0])
    assert np.allclose(outputs["mean"], pixels.mean(axis=-1))
    assert outputs["mean"].dtype == np.float32
    return outputs
