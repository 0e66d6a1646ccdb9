"""The library of ``fake_libcuda.c`` under the project's own binding, and an engine that runs on it.

The driver is C and speaks the driver's language; what a test asks of it, and what the engine computes, is Python.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.machine import libcuda
from nrd_trt.machine.cuda import Cuda, host_view
from nrd_trt.machine.cuda_pycuda import PyCuda
from nrd_trt.progress import OnLayer
from nrd_trt.specs import TensorSpec
from tests.helpers import made_once

PYCUDA_VARIABLE = "NRD_TRT_TEST_PYCUDA"
"""Folder of the fake library in a process whose PyCUDA has it loaded: the tests then run by way of PyCUDA."""
if PYCUDA_VARIABLE in os.environ:
    sys.setdlopenflags(os.RTLD_LAZY)  # PyCUDA names more of the driver's functions than the fake library has
OUT_OF_MEMORY, ILLEGAL_ADDRESS, NOT_SUPPORTED, CAPTURE_UNSUPPORTED = 2, 700, 801, 900
LARGEST = (4, 64, 96, 3)
LAYERS = {"encoder": 0.75, "decode": 0.25}
"""What every run of an engine tells a profiler: milliseconds by layer."""
HEADERS = ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime")
"""Packages with the oldest and the newest ``cuda.h`` that the binding is for."""
NOTED = (
    *("allocate", "free", "allocate_host", "free_host", "upload", "download", "copy", "create_stream", "synchronize"),
    *("destroy_stream", "create_event", "record_event", "wait_event", "synchronize_event", "destroy_event"),
    *("begin_capture", "end_capture", "abort_capture", "launch_graph", "destroy_graph"),
)
SOURCE = Path(__file__).with_name("fake_libcuda.c")
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def include_folder(package: str) -> Path:
    """Return the folder of a package's ``cuda.h``; skip the test where there is none, or no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, which makes the fake libcuda")
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the header cuda.h: `pip install {package}`")
    return Path(str(next(file.locate() for file in files if file.name == "cuda.h"))).parent


def complaints_of_gcc(package: str, *arguments: str, code: str | None = None) -> str:
    """Compile with the ``cuda.h`` of a package; return what gcc has against the code, ``""`` where it has nothing."""
    command = [
        *("gcc", "-std=gnu11", "-Wall", "-Wextra", "-Wmissing-prototypes"),
        *("-isystem", str(include_folder(package)), *arguments),
    ]
    return subprocess.run(command, input=code, capture_output=True, text=True).stderr


def library_folder() -> Path:
    """Return a folder with the fake ``libcuda.so.1``, for LD_LIBRARY_PATH."""
    if PYCUDA_VARIABLE in os.environ:
        return Path(os.environ[PYCUDA_VARIABLE])
    include_folder(HEADERS[-1])  # skips before `made_once` begins

    def make(folder: Path) -> None:
        folder.mkdir()
        target = folder / libcuda.LIBRARY
        arguments = ("-O1", "-shared", "-fPIC", "-pthread", str(SOURCE), "-o", str(target))
        assert complaints_of_gcc(HEADERS[-1], *arguments) == ""

    return made_once("fake-libcuda", make)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_folder() / libcuda.LIBRARY))
    library.fake_current.restype = library.fake_engine.restype = library.fake_room.restype = ctypes.c_size_t
    library.fake_blocking_stream.restype = ctypes.c_size_t
    library.fake_violation.restype = library.fake_node.restype = ctypes.c_char_p
    for function in (library.fake_close_engine, library.fake_records, library.fake_room):
        function.argtypes = [ctypes.c_size_t]
    library.fake_touch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.fake_queue.argtypes = [ctypes.c_size_t, ctypes.c_size_t, _WORK, ctypes.c_void_p, ctypes.c_int] + [
        ctypes.c_void_p
    ] * 3
    return library


@dataclass(frozen=True)
class Queued:
    """One thing that was queued on a stream."""

    library: ctypes.CDLL
    index: int

    @property
    def name(self) -> str:
        return str(self.library.fake_node(self.index, ctypes.byref(ctypes.c_int())).decode())

    @property
    def done(self) -> bool:
        done = ctypes.c_int()
        self.library.fake_node(self.index, ctypes.byref(done))
        return bool(done.value)

    def is_behind(self, other: Queued) -> bool:
        """Whether the other one has certainly ended when this one runs."""
        return bool(self.library.fake_is_behind(self.index, other.index))


class FakeDriver:
    """The fake library, begun anew: a machine with one GPU and a driver for CUDA 12.6.

    Args:
        monkeypatch: Lets the binding load the fake library.
        integrated: CPU and GPU share memory.
        fail_at: The n-th allocation fails (from 1), of the host and the device together.
        has_graphs: False lets the binding say that it has none.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        integrated: bool = False,
        fail_at: int = 0,
        has_graphs: bool = True,
    ) -> None:
        self.library = _library()
        monkeypatch.setattr(libcuda, "LIBRARY", str(library_folder() / libcuda.LIBRARY))
        self.library.fake_reset()
        if Provider is PyCuda:
            PyCuda().close()
            self.library.fake_reset()
            Cuda()  # holds the primary context, as PyCUDA does from its first use to the end of the process
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()
        self.has_graphs = has_graphs
        self.set(integrated=integrated)
        self.fail("allocation", OUT_OF_MEMORY, at=fail_at)

    def open(self, provider: str = "driver") -> Cuda:
        """Stand in for `nrd_trt.machine.cuda.load_cuda`: the binding, whose calls are noted."""
        assert provider == "driver"
        return NotedCuda(self)

    @contextmanager
    def opened(self, provider: str = "driver") -> Iterator[Cuda]:
        """Stand in for `nrd_trt.machine.cuda.open_cuda`."""
        with closing(self.open(provider)) as cuda, cuda.current():
            yield cuda

    def set(self, **settings: int) -> None:
        """Change the machine: ``devices``, ``version``, ``integrated``."""
        for name, value in settings.items():
            self.library.fake_set(name.encode(), int(value))

    def fail(self, function: str, code: int, *, at: int = 1) -> None:
        """Let the n-th call of a function from now on fail once; ``"allocation"`` is any of memory."""
        self.library.fake_fail(function.encode(), at, code)

    def list(self, kind: str) -> list[int]:
        """Handles or addresses of what is alive of a kind."""
        held = (ctypes.c_size_t * 256)()
        return list(held[: self.library.fake_list(kind.encode(), held, len(held))])

    @property
    def graphs(self) -> list[int]:
        """Executable graphs that are alive."""
        return self.list("exec")

    @property
    def capturing(self) -> int:
        """Streams that record."""
        return int(self.library.fake_capturing())

    @property
    def alive(self) -> dict[str, int]:
        """What is held now, by kind."""
        kinds = ["device", "host", "stream", "event", "graph", "exec", "engine"]
        kinds += [] if Provider is PyCuda else ["context"]
        return {kind: len(held) for kind in kinds if (held := self.list(kind))}

    @property
    def violation(self) -> str:
        """What was done first that the real driver would not notice, or ``""``."""
        return str(self.library.fake_violation().decode())

    @property
    def queued(self) -> list[Queued]:
        """What was put on streams so far."""
        return [Queued(self.library, index) for index in range(self.library.fake_nodes())]

    def current_context(self) -> int:
        """The context of the calling thread, 0 where it has none."""
        return int(self.library.fake_current())

    def names(self) -> list[str]:
        """Names of the calls so far."""
        return [call[0] for call in self.calls]

    def note(self, name: str, *details: Any) -> None:
        """Keep a call and its thread."""
        self.calls.append((name, *details))
        self.threads.add(threading.current_thread().name)

    def host_view(self, address: int, nbytes: int) -> np.ndarray:
        """Stand in for `nrd_trt.machine.cuda.host_view`: the host touches its memory now."""
        assert self.library.fake_touch(address, nbytes) == 0, self.violation
        return host_view(address, nbytes)

    def on_device(self, address: int, nbytes: int) -> np.ndarray:
        """Return device memory as bytes; mapped host memory is device memory too."""
        assert nbytes <= self.library.fake_room(address), f"{address:#x} is not device memory of {nbytes} bytes"
        return host_view(address, nbytes)


@contextmanager
def another_context(driver: FakeDriver) -> Iterator[int]:
    """Make a context of somebody else, and the calling thread's for a block."""
    context = ctypes.c_void_p()
    assert driver.library.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
    yield context.value or 0
    assert driver.library.cuCtxDestroy_v2(context) == 0


Provider: type[Cuda] = PyCuda if PYCUDA_VARIABLE in os.environ else Cuda


class NotedCuda(Provider):  # type: ignore[misc, valid-type]
    """The binding on the fake library; calls of the methods in `NOTED` are noted."""

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__()
        self.driver, self.has_graphs = driver, driver.has_graphs


def _noted(name: str) -> Any:
    def method(self: NotedCuda, *arguments: Any, **options: Any) -> Any:
        self.driver.note(name, *arguments)
        return getattr(Provider, name)(self, *arguments, **options)

    return method


for _name in NOTED:
    setattr(NotedCuda, _name, _noted(_name))


class FakeEngine:
    """An engine whose mask is the red channel and whose mean is that of the channels.

    Attributes:
        contexts: Those that were made of it.
        fail_at: The n-th run of each context from now on fails.
        capturable: What contexts say of themselves.
        mask_dtype: What it calls the mask's bytes.
        last_class: The mask shows no larger number.
    """

    mask_dtype: Any = np.uint8
    last_class = 255
    compiles = False

    def __init__(self, driver: FakeDriver) -> None:
        self.driver, self.fail_at, self.capturable = driver, 0, True
        self.contexts: list[FakeContext] = []
        self.on_layer: OnLayer | None = None
        self.inputs = {"image": TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, None, None, 3))}
        self.outputs = {
            name: TensorSpec(name=name, dtype=np.dtype(dtype), shape=(None, None, None))
            for name, dtype in (("mask", self.mask_dtype), ("mean", np.float32))
        }

    def context(self) -> FakeContext:
        self.contexts.append(FakeContext(self, fail_at=self.fail_at, on_layer=self.on_layer))
        return self.contexts[-1]

    def profile(self, on_layer: OnLayer) -> None:
        self.on_layer = on_layer

    def close(self) -> None:
        assert not any(context.alive for context in self.contexts)


class MaskEngine(FakeEngine):
    """A plan that gives masks alone, as those of bundles do.

    Attributes:
        sizes: Smallest, usual and largest shape of its input.
    """

    sizes: tuple[tuple[int, ...], ...] = ((1, *LARGEST[1:]),) * 3

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__(driver)
        del self.outputs["mean"]

    def profile_range(self, name: str) -> tuple[tuple[int, ...], ...]:
        assert name == "image"
        return self.sizes


class FakeContext:
    """A context of a `FakeEngine`; a run passes the red channel through its scratch memory.

    Attributes:
        fail_at: The n-th run fails.
        scratch_bytes: How much scratch memory the shapes need: four times the pixels.
    """

    def __init__(self, engine: FakeEngine, *, fail_at: int = 0, on_layer: OnLayer | None = None) -> None:
        self.engine, self.driver, self.runs, self.fail_at = engine, engine.driver, 0, fail_at
        self.on_layer = on_layer
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch, self.scratch_bytes = (0, 0), 0
        self._queued: list[Any] = []  # what the library calls must stay alive
        self._handle = self.driver.library.fake_engine()
        assert self._handle, self.driver.violation

    @property
    def alive(self) -> bool:
        """Whether it was not closed."""
        return self._handle in self.driver.list("engine")

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        assert self.alive
        shape = shapes["image"]
        if any(n > limit for n, limit in zip(shape, LARGEST, strict=True)):
            raise ShapeError(f"tensor 'image': expected at most {LARGEST}, got {shape}; resize it.")
        batch, height, width, _ = shape
        outputs = {"mask": (batch, height, width // np.dtype(self.engine.mask_dtype).itemsize), "mean": shape[:3]}
        outputs = {name: outputs[name] for name in self.engine.outputs}
        self.shapes, self.scratch_bytes = {"image": shape, **outputs}, 4 * batch * height * width
        return outputs

    def set_scratch(self, address: int, nbytes: int) -> None:
        assert self.alive
        self.scratch = (address, nbytes)

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        assert self.alive
        self.addresses.update(addresses)

    def check_capturable(self, stream: int) -> None:
        assert not self.driver.library.fake_records(stream)  # another thread may record on another one
        if not self.engine.capturable:
            raise RunnerError("fake: may allocate memory.")

    def enqueue(self, stream: int) -> None:
        self.runs += 1
        if self.runs == self.fail_at:
            raise RunnerError("fake: could not start the run.")
        self.driver.note("enqueue", stream)
        if self.on_layer is not None:
            assert not self.driver.capturing, "a run that is profiled waits, which a capture must not"
            for name, milliseconds in LAYERS.items():
                self.on_layer(name, milliseconds)
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        (scratch, room), needed = self.scratch, self.scratch_bytes
        if needed > room:
            raise RunnerError(f"fake: expected {needed} bytes of scratch memory, got {room}.")

        def work(_: object) -> None:
            image = self._tensor("image", shapes, addresses)
            red = self.driver.on_device(scratch, needed)[: image[..., 0].size].reshape(image.shape[:3])
            red[...] = np.minimum(image[..., 0], self.engine.last_class)
            self._tensor("mask", shapes, addresses).view(np.uint8)[...] = red
            if "mean" in shapes:
                self._tensor("mean", shapes, addresses)[...] = image.mean(axis=-1)

        used = [(addresses[name], self._nbytes(name, shapes), name in self.engine.outputs) for name in shapes]
        used.append((scratch, needed, True))
        starts, sizes = ((ctypes.c_size_t * len(used))(*column) for column in list(zip(*used, strict=True))[:2])
        writes = (ctypes.c_int * len(used))(*(written for *_, written in used))
        self._queued.append(_WORK(work))
        code = self.driver.library.fake_queue(
            self._handle, stream, self._queued[-1], None, len(used), starts, sizes, writes
        )
        if code:
            raise RunnerError(f"fake: could not start the run, CUDA error {code} {self.driver.violation}.")

    def close(self) -> None:
        self.driver.note("close")
        assert self.driver.library.fake_close_engine(self._handle) == 0, self.driver.violation

    def _nbytes(self, name: str, shapes: Mapping[str, Any]) -> int:
        return int(np.prod(shapes[name])) * {**self.engine.inputs, **self.engine.outputs}[name].dtype.itemsize

    def _tensor(self, name: str, shapes: Mapping[str, Any], addresses: Mapping[str, int]) -> np.ndarray:
        dtype = {**self.engine.inputs, **self.engine.outputs}[name].dtype
        view = self.driver.on_device(addresses[name], self._nbytes(name, shapes))
        return view.view(dtype).reshape(shapes[name])


@contextmanager
def faulting() -> Iterator[None]:
    """Let an engine's next run fail, and then, as CUDA's errors of a device stay, all that waits, records or frees."""

    def failing(work: Any) -> Any:
        def method(*arguments: Any) -> None:
            work(*arguments)
            raise RunnerError("CUDA: sticky")

        return method

    with pytest.MonkeyPatch.context() as monkeypatch:

        def enqueue(self: FakeContext, stream: int) -> None:
            for name in NOTED:
                if name.startswith(("synchronize", "record", "free", "destroy")):
                    monkeypatch.setattr(NotedCuda, name, failing(getattr(NotedCuda, name)))
            raise RunnerError("fake: could not start the run.")

        monkeypatch.setattr(FakeContext, "enqueue", enqueue)
        yield


class PackedEngine(FakeEngine):
    """A `FakeEngine` that writes the mask's very bytes and calls them int32."""

    mask_dtype = np.int32


class CompilingEngine(FakeEngine):
    """A `FakeEngine` that compiles kernels as TensorRT-RTX does: one for each size; it takes those of its own only."""

    compiles = True

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__(driver)
        self.taken: tuple[str, ...] = ()
        self.compiled: list[str] = []

    def take_kernels(self, content: bytes) -> bool:
        assert self.driver.current_context() and not self.contexts
        self.taken = tuple(content.decode(errors="replace").split())
        ours = all(name.startswith("kernel-") for name in self.taken)
        self.compiled += self.taken if ours else ()
        return ours

    def kernels(self) -> bytes:
        needed = {f"kernel-{context.shapes['image'][1]}" for context in self.contexts if context.shapes}
        self.compiled += sorted(needed - set(self.compiled))
        return " ".join(self.compiled).encode()
