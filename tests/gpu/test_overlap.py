"""Overlapped runs of plans on a real GPU, held against plain ones bit for bit. Nothing is timed here."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nrd_trt.graph.metadata import read_facts
from nrd_trt.machine.cuda import open_cuda
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.runtime.overlap import OverlappedRunner, Ticket
from tests.gpu.test_on_device import SHAPES, export, on_plan, plan, scenes
from tests.helpers import missing_for_plans

_MISSING = missing_for_plans()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_MISSING is not None, reason=f"needs a GPU: {_MISSING}")]

ROUNDS = 4
"""The first ones allocate and capture, the later ones replay."""
GROWTH_BYTES = 32 << 20
"""Other users of the device and the driver's own pools move its free memory by some MiB; one engine takes more."""


def images_of(shape: str) -> list[np.ndarray]:
    """Images of one size, or of three in turn, which is more than there are graphs for."""
    sizes = [scenes()] if shape == "static" else [scenes(), scenes((256, 320)), scenes((384, 512))]
    return [image for group in zip(*sizes, strict=True) for image in group] * ROUNDS


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_overlapped_runs_equal_plain_ones(shape: str, cuda_graph: bool, slots: int) -> None:
    images = images_of(shape)
    with on_plan(plan(shape), cuda_graph=cuda_graph) as trt:
        wanted = [trt.infer({"image": image}) for image in images]
        got, begun = [], deque[Ticket]()
        with OverlappedRunner(trt, slots=slots) as overlapped:
            for image in images:
                begun.append(overlapped.begin({"image": image.copy()}))
                if len(begun) == slots:
                    got.append(overlapped.finish(begun.popleft()))
            got += [overlapped.finish(ticket) for ticket in begun]
        again = trt.infer({"image": images[0]})
    for plain, other in zip([*wanted, wanted[0]], [*got, again], strict=True):
        assert plain.keys() == other.keys()
        assert all(plain[name].tobytes() == other[name].tobytes() for name in plain)


def test_two_callers_share_the_engine() -> None:
    images = images_of("dynamic")
    with on_plan(plan("dynamic")) as trt:
        wanted = [trt.infer({"image": image})["mask"] for image in images]
    with EngineThread(Engine(on_plan(plan("dynamic")), read_facts(export("dynamic")))) as engine:

        def work(_: int) -> list[bool]:
            pending, right = deque([engine.begin({"image": images[0]})]), []
            for index in range(1, len(images) + 1):
                if index < len(images):
                    pending.append(engine.begin({"image": images[index]}))
                mask = pending.popleft().result()["mask"]
                right.append(np.array_equal(mask, wanted[index - 1]))
            return right

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(work, range(2))) == [[True] * len(images)] * 2


def test_opening_and_closing_takes_no_memory() -> None:
    """Plain runs, and overlapped ones of which two are begun and not finished every time."""
    trt, image, free = on_plan(plan()), scenes(count=1)[0], []
    for _ in range(21):
        with trt:
            for _ in range(3):
                trt.infer({"image": image})
            with OverlappedRunner(trt) as overlapped:
                for _ in range(3):
                    overlapped.finish(overlapped.begin({"image": image}))
                overlapped.begin({"image": image})
                overlapped.begin({"image": image})
        with open_cuda() as cuda:
            free.append(cuda.facts().free_bytes)
    assert free[0] - free[-1] < GROWTH_BYTES  # the first round loads kernels that stay
