"""Images of PyCUDA, CuPy and PyTorch on the fake driver: whose stream, whose memory, and in which order.

The doubles of the libraries are as strict as they are: what an array says, and what it refuses. Images are copied to
the device on a stream of their owner, and nothing waits for that but what is asked to: the fake driver sees a run that
reads too early.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from nrd_trt.errors import ConfigError, RunnerError, ShapeError
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.runtime import dlpack
from nrd_trt.runtime.device_arrays import LEGACY_STREAM, DeviceMask
from nrd_trt.runtime.dlpack import make_capsule, read_capsule
from nrd_trt.runtime.engine import Engine
from nrd_trt.specs import InputShape, ModelInfo, Range
from tests.runtime.bench import LARGE, SMALL, Bench, Caller, HostRunner, caller, image, runner
from tests.runtime.conftest import MakeBench
from tests.runtime.fake_cuda import FakeDriver, FakeEngine, Provider, another_context, faulting

PER_THREAD_STREAM = 2
SPAN = Range(min=4, opt=16, max=64)
GRAPH = GraphFacts(
    info=ModelInfo(class_names=("a", "b"), palette=((0, 0, 0), (1, 1, 1))),
    decode=None,
    shape=InputShape(batch=Range(min=1, opt=1, max=4), height=SPAN, width=SPAN),
    input_form="uint8",
    output="mask",
    encoder="mobilenetv2",
    head="nrd",
)


@dataclass
class PyCudaArray:
    """`pycuda.gpuarray.GPUArray`: its interface names no stream, and it speaks no DLPack."""

    owner: Caller
    address: int
    shape: tuple[int, ...]
    stream: int
    typestr: str = "|u1"
    strides: tuple[int, ...] | None = None
    read_only: bool = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "strides": self.strides or tuple(int(n) for n in np.cumprod((1, *self.shape[:0:-1]))[::-1]),
            "data": (self.address, self.read_only),
            "typestr": self.typestr,
            "stream": None,
            "version": 3,
        }

    def read(self) -> np.ndarray:
        """What lies there, without any wait."""
        return self.owner.driver.on_device(self.address, int(np.prod(self.shape))).copy().reshape(self.shape)


class CupyArray(PyCudaArray):
    """`cupy.ndarray`: its interface names the current stream, which it also lets others wait for."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**super().__cuda_array_interface__, "stream": self.stream, "strides": self.strides}

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(self, stream: int | None = None) -> object:
        assert isinstance(stream, int) and stream > 0, "a consumer on a GPU names its stream; 0 is ambiguous"
        if stream != self.stream:
            cuda, event = self.owner.cuda, self.owner.cuda.create_event()
            cuda.record_event(event, self.stream)
            cuda.wait_event(stream, event)
            cuda.destroy_event(event)
        return make_capsule(self.address, self.shape, owner=self, versioned=False)


class TorchTensor(CupyArray):
    """`torch.Tensor`: its interface is of version 2, which has no streams."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = super().__cuda_array_interface__
        del interface["stream"]
        return {**interface, "version": 2}


@dataclass
class Exporter:
    """Hands out a capsule."""

    capsule: object
    device: tuple[int, int] = (1, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: Any) -> object:
        return self.capsule


class MaskEngine(FakeEngine):
    """A `FakeEngine` without the mean."""

    def __init__(self, driver: FakeDriver, **options: Any) -> None:
        super().__init__(driver, **options)
        del self.outputs["mean"]


LIBRARIES = [PyCudaArray, CupyArray, TorchTensor]


@contextmanager
def queued_upload(mine: Caller, pixels: np.ndarray, kind: type[PyCudaArray], stream: int) -> Iterator[PyCudaArray]:
    """Yield an image that is still on its way to the device."""
    host, _ = mine.cuda.allocate_host(pixels.nbytes, mapped=False)
    mine.driver.host_view(host, pixels.nbytes)[:] = pixels.reshape(-1)
    address = mine.room(pixels.nbytes)
    mine.cuda.upload(address, host, pixels.nbytes, stream)
    try:
        yield kind(mine, address, pixels.shape, stream)
    finally:
        mine.cuda.synchronize_context()
        mine.cuda.free_host(host)


def masks_of(mine: Caller, mask: DeviceMask, stream: int) -> np.ndarray:
    """Read masks as a consumer does that queues a copy on a stream and waits for that."""
    nbytes = int(np.prod(mask.shape))
    host, _ = mine.cuda.allocate_host(nbytes, mapped=False)
    mine.cuda.download(host, mask.address, nbytes, stream)
    mine.cuda.synchronize(stream)
    found = mine.driver.host_view(host, nbytes).copy().reshape(mask.shape)
    mine.cuda.free_host(host)
    return found


def engine(**changes: Any) -> Engine:
    return Engine(runner(), replace(GRAPH, **changes))


# --- order


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("shape", [SMALL, SMALL[1:], LARGE])
def test_without_a_named_stream_the_masks_are_complete(
    bench: Bench, kind: type[PyCudaArray], shape: tuple[int, ...]
) -> None:
    """CuPy's arrays always name one."""
    pixels = image(shape, seed=1)
    with caller(bench.cuda) as mine, engine() as opened, queued_upload(mine, pixels, kind, mine.stream) as array:
        mask = opened.predict_device(array)
        assert mask.stream == (mine.stream if kind is CupyArray else None)
        on = mine.stream if kind is CupyArray else mine.cuda.create_stream()
        assert np.array_equal(masks_of(mine, mask, on), pixels[..., 0])
        if on != mine.stream:
            mine.cuda.destroy_stream(on)


@pytest.mark.parametrize("kind", LIBRARIES)
def test_the_named_stream_runs_the_engine_and_nothing_waits(bench: Bench, kind: type[PyCudaArray]) -> None:
    pixels = image(LARGE, seed=2)
    with caller(bench.cuda) as mine, engine() as opened:
        named = {} if kind is CupyArray else {"stream": mine.stream}
        opened.predict_device(kind(mine, mine.room(pixels.nbytes), pixels.shape, mine.stream), **named)  # makes room
        with queued_upload(mine, pixels, kind, mine.stream) as array:
            upload, start = bench.cuda.queued[-1], len(bench.cuda.calls)
            mask = opened.predict_device(array, **named)
            assert (upload.done, bench.cuda.queued[-1].done, mask.stream) == (False, False, mine.stream)
            called = [call for call in bench.cuda.calls[start:] if call[0] in ("enqueue", "upload", "download")]
            assert called == [("enqueue", mine.stream)]
            assert np.array_equal(masks_of(mine, mask, mine.stream), pixels[..., 0])


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("stream", [0, LEGACY_STREAM, PER_THREAD_STREAM])
def test_default_streams(bench: Bench, kind: type[PyCudaArray], stream: int) -> None:
    """The one of all threads cannot be captured, so the engine runs beside it, in its order; graphs are used."""
    with caller(bench.cuda) as mine, engine() as opened:
        for seed in range(3):
            pixels, made_on = image(SMALL, seed), stream or LEGACY_STREAM
            with queued_upload(mine, pixels, kind, made_on) as array:
                array.address = mine.held[0]  # the same memory each time, for the graph
                bench.cuda.on_device(array.address, pixels.nbytes)[:] = pixels.reshape(-1)
                mask = opened.predict_device(array, stream=stream)
                assert mask.stream == made_on and not bench.cuda.queued[-1].done
                assert np.array_equal(masks_of(mine, mask, made_on), pixels[..., 0])
        assert len(bench.cuda.graphs) == Provider.has_graphs


def test_leaving_waits_for_what_is_queued(bench: Bench) -> None:
    with caller(bench.cuda) as mine:
        array = CupyArray(mine, mine.room(96), SMALL, LEGACY_STREAM)
        with engine() as opened:
            opened.predict_device(array)
            run = next(one for one in bench.cuda.queued if one.name == "engine")
            assert not run.done
        assert run.done


def test_the_first_error_of_a_device_that_has_faulted_is_told(bench: Bench) -> None:
    with caller(bench.cuda) as mine:
        array = TorchTensor(mine, mine.put(image()).address, SMALL, mine.stream)
        with faulting(), pytest.raises(RunnerError, match=r"^fake: could not start"), engine() as opened:
            opened.predict_device(array)


def test_an_array_of_another_stream_than_the_one_named_is_waited_for(bench: Bench) -> None:
    """Whoever names a stream in two ways gets the order of both."""
    pixels = image(SMALL, seed=3)
    with caller(bench.cuda) as mine, engine() as opened:
        other = mine.cuda.create_stream()
        for kind in (CupyArray, TorchTensor):
            with queued_upload(mine, pixels, kind, other) as array:
                mask = opened.predict_device(array, stream=mine.stream)
                assert np.array_equal(masks_of(mine, mask, mine.stream), pixels[..., 0])
        mine.cuda.destroy_stream(other)


def test_a_run_may_follow_on_another_stream_and_on_the_host(bench: Bench) -> None:
    with caller(bench.cuda) as mine, engine() as opened:
        other = mine.cuda.create_stream()
        for seed, stream in enumerate((mine.stream, other, mine.stream, other)):
            pixels = image(SMALL, seed)
            with queued_upload(mine, pixels, CupyArray, stream) as array:
                mask = opened.predict_device(array)
                assert np.array_equal(opened.mask(image(SMALL, 9)[0]), image(SMALL, 9)[0, ..., 0])
                assert np.array_equal(masks_of(mine, mask, stream), pixels[..., 0])
        mine.cuda.destroy_stream(other)


# --- what is given


def test_masks_go_where_they_are_asked_for(make_bench: MakeBench) -> None:
    bench = make_bench(MaskEngine)
    pixels = image(LARGE, seed=4)
    with caller(bench.cuda) as mine, engine() as opened, queued_upload(mine, pixels, CupyArray, mine.stream) as array:
        target = PyCudaArray(mine, mine.room(2 * 16 * 32), LARGE[:3], mine.stream)
        mask = opened.predict_device(array, out=target)
        assert (mask.address, mask.owner, mask.shape) == (target.address, target, LARGE[:3])
        mine.cuda.synchronize(mine.stream)
        assert np.array_equal(target.read(), pixels[..., 0])
        one = replace(array, shape=LARGE[1:])
        assert opened.predict_device(one, out=replace(target, shape=LARGE[1:3])).shape == LARGE[1:3]
        for shape in (LARGE[1:3], (3, *LARGE[1:3]), (2, 32, 16), LARGE):
            with pytest.raises(
                ShapeError, match=r"^out=: expected an array of shape \(2, 16, 32\) that can be written"
            ):
                opened.predict_device(array, out=replace(target, shape=shape))
        with pytest.raises(ShapeError, match=r"^out=: .* got \(2, 16, 32\), read-only; give another one"):
            opened.predict_device(array, out=replace(target, read_only=True))
        with pytest.raises(ShapeError, match=r"^out=: expected uint8, got int32"):
            opened.predict_device(array, out=replace(target, typestr="<i4"))
    plain = make_bench()
    with caller(plain.cuda) as mine, engine() as opened, pytest.raises(ConfigError, match=r"but masks, got .*'mean'"):
        opened.predict_device(array := PyCudaArray(mine, mine.room(96), SMALL, mine.stream), out=array)


@pytest.mark.parametrize("kind", [PyCudaArray, CupyArray])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"typestr": "<f4"}, "rgb=: expected uint8, got float32; convert it on the device"),
        ({"shape": (3, 4, 8)}, r"rgb=: expected \(n, h, w, 3\), or .* n×h×w of 1–4×4–64×4–64, got \(3, 4, 8\)"),
        ({"shape": (5, 4, 8, 3)}, r"got \(5, 4, 8, 3\); resize"),
        ({"shape": (1, 3, 8, 3)}, r"got \(1, 3, 8, 3\); resize"),
        ({"shape": (4, 8)}, r"got \(4, 8\); resize"),
        ({"shape": (1, 1, 4, 8, 3)}, r"got \(1, 1, 4, 8, 3\); resize"),
        ({"strides": (192, 48, 3, 1)}, r"rgb=: expected a dense array, got strides \(192, 48, 3, 1\); make"),
        ({"address": 1}, "rgb=: expected memory that is aligned to 256 bytes, got the address 0x"),
    ],
)
def test_what_the_engine_does_not_take(
    bench: Bench, kind: type[PyCudaArray], changes: dict[str, Any], error: str
) -> None:
    with caller(bench.cuda) as mine, engine() as opened:
        address = mine.room(1024) + changes.get("address", 0)
        array = kind(**{**vars(kind(mine, address, SMALL, mine.stream)), **changes, "address": address})
        with pytest.raises(ShapeError, match=error):
            opened.predict_device(array)
        assert "enqueue" not in bench.cuda.names()


def test_what_a_capsule_tells_is_checked_too(bench: Bench) -> None:
    with engine() as opened:
        for tensor, error in (
            (torch.zeros(SMALL), "expected uint8, got float32"),
            (torch.zeros(SMALL, dtype=torch.uint8).transpose(1, 2), r"a dense array, got strides \(96, 3, 24, 1\)"),
            (torch.zeros(4, 9, 3, dtype=torch.uint8)[:, :8], r"a dense array, got strides \(27, 3, 1\)"),
        ):
            with pytest.raises(ShapeError, match=error):
                opened.predict_device(Exporter(tensor.__dlpack__(), device=(dlpack.CUDA, 0)))
        assert "enqueue" not in bench.cuda.names()


def test_memory_that_is_not_of_this_gpu_and_context(bench: Bench) -> None:
    with caller(bench.cuda) as mine, engine() as opened:
        advice = r"^tensor 'image': .*import pycuda\.autoprimaryctx, not pycuda\.autoinit"
        with another_context(bench.cuda), pytest.raises(RunnerError, match=advice):
            opened.predict_device(PyCudaArray(mine, mine.cuda.allocate(96), SMALL, mine.stream))
        for array in (np.zeros(SMALL, np.uint8), torch.zeros(SMALL, dtype=torch.uint8)):
            with pytest.raises(RunnerError, match=r"^rgb=: expected an array on the first GPU, got .* \(1, 0\); copy"):
                opened.predict_device(array)
        elsewhere = Exporter(None, device=(dlpack.CUDA, 1))
        with pytest.raises(RunnerError, match=r"got one on DLPack's device \(2, 1\)"):
            opened.predict_device(elsewhere)
        with pytest.raises(ShapeError, match="expected an array with __cuda_array_interface__ or __dlpack__, got list"):
            opened.predict_device([1, 2])
        nameless = CupyArray(mine, mine.room(96), SMALL, 0)
        with pytest.raises(ConfigError, match="expected a stream, or 1 for the default one, got 0; give stream="):
            opened.predict_device(nameless)
        with pytest.raises(ConfigError, match="stream=-1: expected"):
            opened.predict_device(nameless, stream=-1)


def test_engines_that_cannot(bench: Bench) -> None:
    with (
        Engine(HostRunner(), GRAPH) as opened,
        pytest.raises(RunnerError, match="a plan on a GPU, got runner='host', which works on the host; use predict"),
    ):
        opened.predict_device(np.zeros(SMALL, np.uint8))
    for changes in ({"input_form": "float"}, {"output": "logits"}):
        with engine(**changes) as opened, pytest.raises(ConfigError, match="build it with input_form='uint8'"):
            opened.predict_device(np.zeros(SMALL, np.uint8))


# --- what comes out


def test_the_masks_are_an_array_for_others(bench: Bench) -> None:
    pixels = image(SMALL, seed=5)
    with caller(bench.cuda) as mine, engine() as opened, queued_upload(mine, pixels, CupyArray, mine.stream) as array:
        mask = opened.predict_device(array)
        interface = mask.__cuda_array_interface__
        assert interface == {
            "shape": SMALL[:3],
            "typestr": "|u1",
            "data": (mask.address, False),
            "strides": None,
            "version": 3,
            "stream": mine.stream,
        }
        other = mine.cuda.create_stream()
        assert mask.__dlpack_device__() == (2, 0)
        told = read_capsule(mask.__dlpack__(stream=other))  # orders the consumer's stream behind the run
        assert (told.address, told.shape, told.strides, told.dtype) == (mask.address, SMALL[:3], told.strides, "uint8")
        assert told.strides in (None, np.zeros(SMALL[:3], np.uint8).strides)  # dense
        assert np.array_equal(masks_of(mine, mask, other), pixels[..., 0])
        queued = len(bench.cuda.queued)
        for unordered in (mine.stream, -1):
            mask.__dlpack__(stream=unordered, max_version=(1, 1))
        assert len(bench.cuda.queued) == queued
        for copied in ({"copy": True}, {"dl_device": (1, 0)}):
            with pytest.raises(BufferError, match="without a copy"):
                mask.__dlpack__(**copied)  # type: ignore[arg-type]
        mine.cuda.destroy_stream(other)
    with pytest.raises(RunnerError, match="the engine was left, and its masks are gone"):
        mask.__dlpack__(stream=other)


class Owner:
    """Something that a capsule keeps."""


@pytest.mark.parametrize("versioned", [False, True])
def test_capsules_are_those_of_other_libraries(monkeypatch: pytest.MonkeyPatch, versioned: bool) -> None:
    """NumPy and PyTorch read ours where it says that it lies on the host, and ours reads theirs."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    monkeypatch.setattr(dlpack, "CUDA", 1)
    for read in (np.from_dlpack, torch.from_dlpack):
        owner = Owner()
        held = weakref.ref(owner)
        capsule = make_capsule(pixels.ctypes.data, (2, 3, 4), owner=owner, versioned=versioned)
        taken = read(Exporter(capsule))
        del owner, capsule
        assert held() is not None and np.asarray(taken).tolist() == pixels.tolist()
        del taken
        gc.collect()
        assert held() is None
    owner = Owner()
    held = weakref.ref(owner)
    capsule = make_capsule(1, (2,), owner=owner, versioned=versioned)
    del owner
    assert held() is not None
    del capsule
    assert held() is None  # nobody took it
    version = {"max_version": (1, 0)} if versioned else {}
    flipped = torch.zeros(2, 3, 4)[:, 1:].transpose(0, 1)
    told = read_capsule(flipped.__dlpack__(**version))
    assert (told.address, told.shape, told.strides) == (flipped.data_ptr(), (2, 2, 4), (4, 12, 1))
    assert (told.dtype, told.read_only) == ("float32", False)
    frozen = pixels.copy()
    frozen.setflags(write=not versioned)
    told = read_capsule(frozen.__dlpack__(**version))
    assert (told.address, told.dtype, told.read_only) == (frozen.ctypes.data, "uint8", versioned)


def test_what_a_library_says_outlives_a_capsule_that_it_gives_back() -> None:
    """Python's own error, in a process that a wrong destructor ends."""
    code = """
from nrd_trt.runtime.dlpack import make_capsule
for versioned in (False, True):
    try:
        print(make_capsule(256, (2,), owner=None, versioned=versioned), 1 / 0)
    except ZeroDivisionError as exc:
        print(exc)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr, found.stdout) == (0, "", "division by zero\n" * 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch takes the mask")
@pytest.mark.parametrize("version", [None, (1, 0)])
def test_libraries_without_a_gpu_say_so_themselves(version: tuple[int, int] | None) -> None:
    mask = DeviceMask(address=256, shape=(2, 2), stream=None, owner=None, order=lambda before, after: None)
    capsule = mask.__dlpack__(max_version=version)
    with pytest.raises((BufferError, RuntimeError), match="nsupported device"):
        np.from_dlpack(Exporter(capsule))
    del capsule
    with pytest.raises((RuntimeError, AssertionError), match="CUDA"):
        torch.utils.dlpack.from_dlpack(mask.__dlpack__(max_version=version))


def test_what_is_no_capsule_or_used_up() -> None:
    capsule = np.zeros(2).__dlpack__()
    np.from_dlpack(Exporter(capsule))
    for wrong in (capsule, 3):
        with pytest.raises(ValueError, match="expected a new capsule of DLPack"):
            read_capsule(wrong)
