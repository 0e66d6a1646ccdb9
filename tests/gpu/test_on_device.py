"""Plans on a real GPU; `make gpu-check` runs this. It has nothing to say where there is none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.engine.compat import installed_flavours
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.gates import Gates, Judged
from nrd_trt.graph.precision import to_precision
from nrd_trt.machine.cuda import host_view, open_cuda
from nrd_trt.proving.runs import graph_fault, threads_fault
from nrd_trt.runtime.base import DeviceRunner, DeviceTensor, Runner
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.specs import InputForm, InputShape, Precision, Range
from tests.artefacts import trained_model
from tests.helpers import agreement, missing_for_plans, small_export
from tests.runtime import test_contract as contract

# The contract of all runners, collected here with the `kind` and `runner` below.
from tests.runtime.test_contract import (  # noqa: F401
    test_arrays_are_fresh_and_inputs_untouched,
    test_feeds_are_checked_before_any_run,
    test_life_cycle,
    test_sizes_off_the_grid_are_an_error,
    test_specs_describe_what_is_taken_and_given,
    test_two_threads_with_a_runner_each,
)

_MISSING = missing_for_plans()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_MISSING is not None, reason=f"needs a GPU: {_MISSING}")]

SIZE_HW = (352, 480)
SHAPES = {
    "static": InputShape.static(SIZE_HW),
    "dynamic": InputShape(
        batch=Range(min=1, opt=1, max=2),
        height=Range(min=256, opt=352, max=384),
        width=Range(min=320, opt=480, max=512),
    ),
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


def plan_of(model: onnx.ModelProto) -> bytes:
    return build_engine(model, BuildOptions(flavour=installed_flavours()[0], progress=False)).plan


@cache
def export(shape: str) -> onnx.ModelProto:
    return export_onnx(trained_model(), ExportOptions(shape=SHAPES[shape]))


@cache
def plan(shape: str = "static", precision: Precision = "fp16") -> bytes:
    return plan_of(to_precision(export(shape), precision))


@cache
def small_plan(form: InputForm) -> bytes:
    return plan_of(small_export(form, "dynamic"))


def on_plan(content: bytes, **options: Any) -> TrtRunner:
    return TrtRunner(content, flavour=installed_flavours()[0], rebuild="make gpu-check", **options)


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> str:
    make: Callable[[InputForm], Runner] = lambda form: on_plan(small_plan(form))  # noqa: E731
    monkeypatch.setitem(contract.RUNNERS, "plan", make)
    return "plan"


@pytest.fixture
def runner(kind: str) -> Runner:
    return contract.RUNNERS[kind]("uint8")


def scenes(size_hw: tuple[int, int] = SIZE_HW, count: int = 4) -> list[np.ndarray]:
    return [street_scene(seed, size_hw).image[None] for seed in range(count)]


@cache
def expected(size_hw: tuple[int, int]) -> list[np.ndarray]:
    with TorchRunner(trained_model()) as reference:
        return [reference.infer({"image": image})["mask"] for image in scenes(size_hw)]


def test_is_a_device_runner(runner: Runner) -> None:
    with runner:
        assert isinstance(runner, DeviceRunner)
        assert (runner.name, runner.arithmetic, runner.cuda_graph) == (installed_flavours()[0], "native", True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_hold_the_default_gates(shape: str, precision: Precision) -> None:
    with on_plan(plan(shape, precision)) as trt:
        for size_hw in [SIZE_HW] if shape == "static" else [SIZE_HW, (256, 320), (384, 512)]:
            got = [trt.infer({"image": image})["mask"] for image in scenes(size_hw)]
            share = float(np.mean([agreement(*pair) for pair in zip(got, expected(size_hw), strict=True)]))
            assert Gates.of(precision).failures(Judged(agreement=share)) == [], (size_hw, share)


@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_graphs_change_nothing(shape: str) -> None:
    images = scenes() + (scenes((256, 320)) + scenes() if shape == "dynamic" else [])
    feeds = [{"image": image} for image in images]
    assert graph_fault(lambda cuda_graph: on_plan(plan(shape), cuda_graph=cuda_graph), feeds) is None


def test_device_runs_equal_host_runs() -> None:
    images = scenes()
    nbytes = images[0].nbytes
    with ExitStack() as stack:
        cuda = stack.enter_context(open_cuda())
        stream = cuda.create_stream()
        stack.callback(cuda.destroy_stream, stream)
        host, _ = cuda.allocate_host(nbytes, mapped=False)  # for the image, and then for its mask
        stack.callback(cuda.free_host, host)
        address = cuda.allocate(nbytes)
        stack.callback(cuda.free, address)
        trt = stack.enter_context(on_plan(plan()))
        wanted = [trt.infer({"image": image})["mask"] for image in images]
        for image, mask in zip(images, wanted, strict=True):
            host_view(host, nbytes)[:] = image.reshape(-1)
            cuda.upload(address, host, nbytes, stream)
            feed = {"image": DeviceTensor(address=address, shape=image.shape, dtype=image.dtype)}
            output = trt.infer_device(feed, stream)["mask"]
            cuda.download(host, output.address, mask.nbytes, stream)
            cuda.synchronize(stream)
            assert np.array_equal(host_view(host, mask.nbytes).reshape(mask.shape), mask)
        assert np.array_equal(trt.infer({"image": images[0]})["mask"], wanted[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_streams_that_are_not_waited_for_give_the_masks_of_host_runs(shape: str) -> None:
    """Without graphs, captured and replayed; each stream has scratch memory of its own, which grows on one of them."""
    sizes = [SIZE_HW] * 4 if shape == "static" else [SIZE_HW, (256, 320), SIZE_HW, (384, 512)]
    images = [scenes(size_hw, count=index + 1)[index] for index, size_hw in enumerate(sizes)]
    with ExitStack() as stack:
        cuda = stack.enter_context(open_cuda())
        trt = stack.enter_context(on_plan(plan(shape)))
        wanted = [trt.infer({"image": image})["mask"] for image in images]
        streams, feeds, backs = [cuda.create_stream() for _ in range(2)], [], []
        for image, mask in zip(images, wanted, strict=True):
            host, _ = cuda.allocate_host(image.nbytes, mapped=False)
            back, _ = cuda.allocate_host(mask.nbytes, mapped=False)
            address = cuda.allocate(image.nbytes)
            for release, held in ((cuda.free_host, host), (cuda.free_host, back), (cuda.free, address)):
                stack.callback(release, held)
            host_view(host, image.nbytes)[:] = image.reshape(-1)
            cuda.upload(address, host, image.nbytes, streams[0])
            feeds.append({"image": DeviceTensor(address=address, shape=image.shape, dtype=image.dtype)})
            backs.append(back)
        for stream in streams:
            stack.callback(cuda.destroy_stream, stream)
            stack.callback(cuda.synchronize, stream)
        cuda.synchronize(streams[0])
        for _ in range(4):
            for index, (feed, back) in enumerate(zip(feeds, backs, strict=True)):
                stream = streams[index % 2]
                cuda.download(back, trt.infer_device(feed, stream)["mask"].address, wanted[index].nbytes, stream)
            for stream in streams:
                cuda.synchronize(stream)
            for back, mask in zip(backs, wanted, strict=True):
                assert np.array_equal(host_view(back, mask.nbytes).reshape(mask.shape), mask)
                host_view(back, mask.nbytes)[:] = 255


def test_two_threads_capture_graphs_at_once() -> None:
    assert threads_fault(lambda: on_plan(plan()), [{"image": image} for image in scenes()]) is None
