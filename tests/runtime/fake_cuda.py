"""The CUDA driver and a loaded engine over host memory, for tests of what a runner does with them.

Strict where the real ones are silent: what is queued runs when somebody waits; an address that is not allocated, a
foreign stream or graph, a wait or an allocation inside a capture are errors. Freed memory is poisoned and never reused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.runtime.cuda import Cuda, DeviceFacts, host_view
from nrd_trt.specs import TensorSpec

Work = Callable[[], None]
LARGEST = (4, 64, 64, 3)


class FakeCuda(Cuda):
    """Args: `integrated` shares memory; `fail_at` refuses the n-th allocation (from 1), host and device together."""

    name = "fake"

    def __init__(self, *, integrated: bool = False, fail_at: int | None = None, has_graphs: bool = True) -> None:
        self.has_graphs = has_graphs
        self.integrated, self.fail_at = integrated, fail_at
        self.calls: list[tuple[Any, ...]] = []
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.engines: set[FakeEngine] = set()
        self.capturing: dict[int, list[Work]] = {}
        self._dead: list[Any] = []
        self._handles = self.allocations = 0

    @property
    def alive(self) -> dict[str, int]:
        """What is held now, by kind."""
        kinds = ("device", "host", "streams", "graphs", "engines", "capturing")
        return {kind: len(getattr(self, kind)) for kind in kinds if getattr(self, kind)}

    def names(self) -> list[str]:
        """Names of the calls so far."""
        return [call[0] for call in self.calls]

    def facts(self) -> DeviceFacts:
        return DeviceFacts(
            name="Fake GPU",
            compute_capability="8.7",
            driver="12.6",
            integrated=self.integrated,
            memory_bytes=1 << 33,
            free_bytes=1 << 32,
        )

    def allocate(self, nbytes: int) -> int:
        return self._take(self.device, "allocate", nbytes)

    def free(self, address: int) -> None:
        self._give(self.device, "free", address)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> tuple[int, int]:
        address = self._take(self.host, "allocate_host", nbytes)
        return address, address if mapped else 0

    def free_host(self, address: int) -> None:
        self._give(self.host, "free_host", address)

    def upload(self, device: int, host: int, nbytes: int, stream: int) -> None:
        self._copy("upload", self.device, device, self.host, host, nbytes, stream)

    def download(self, host: int, device: int, nbytes: int, stream: int) -> None:
        self._copy("download", self.host, host, self.device, device, nbytes, stream)

    def create_stream(self) -> int:
        self.calls.append(("create_stream",))
        self.streams[self._handle()] = []
        return self._handles

    def synchronize(self, stream: int) -> None:
        assert not self.capturing, "wait inside a capture"
        self.calls.append(("synchronize", stream))
        self._drain(self.streams[stream])

    def destroy_stream(self, stream: int) -> None:
        self.calls.append(("destroy_stream", stream))
        self._drain(self.streams.pop(stream))

    def begin_capture(self, stream: int) -> None:
        assert stream in self.streams and not self.capturing
        self.calls.append(("begin_capture", stream))
        self.capturing[stream] = []

    def end_capture(self, stream: int) -> int:
        self.calls.append(("end_capture", stream))
        self.graphs[self._handle()] = self.capturing.pop(stream)
        return self._handles

    def abort_capture(self, stream: int) -> None:
        self.calls.append(("abort_capture", stream))
        del self.capturing[stream]

    def launch_graph(self, graph: int, stream: int) -> None:
        self.calls.append(("launch_graph", graph))
        self.streams[stream].extend(self.graphs[graph])

    def destroy_graph(self, graph: int) -> None:
        self.calls.append(("destroy_graph", graph))
        del self.graphs[graph]

    def queue(self, stream: int, work: Work) -> None:
        """Add work to a stream, or to what is recorded of it."""
        self.capturing.get(stream, self.streams[stream]).append(work)

    def on_device(self, address: int, nbytes: int) -> np.ndarray:
        """Return device memory as bytes; mapped host memory is device memory too."""
        held = {**self.device, **(self.host if self.integrated else {})}
        assert address in held, f"{address} is not device memory"
        assert nbytes <= ctypes.sizeof(held[address]), f"{nbytes} bytes do not fit into {address}"
        return host_view(address, nbytes)

    def _copy(self, name: str, to: Any, target: int, of: Any, source: int, nbytes: int, stream: int) -> None:
        self.calls.append((name, target, source, nbytes))

        def work() -> None:
            assert target in to and source in of, f"{name} with freed memory"
            assert nbytes <= min(ctypes.sizeof(to[target]), ctypes.sizeof(of[source]))
            ctypes.memmove(target, source, nbytes)

        self.queue(stream, work)

    def _take(self, where: dict[int, Any], name: str, nbytes: int) -> int:
        assert not self.capturing, "allocation inside a capture"
        self.allocations += 1
        if self.allocations == self.fail_at:
            raise RunnerError("CUDA: out of memory; close other programs or build a smaller size.")
        self.calls.append((name, nbytes))
        memory = (ctypes.c_uint8 * nbytes)()
        where[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def _give(self, where: dict[int, Any], name: str, address: int) -> None:
        self.calls.append((name, address))
        for work in self.streams.values():
            self._drain(work)  # as cudaFree does
        memory = where.pop(address)
        ctypes.memset(address, 0xDD, ctypes.sizeof(memory))
        self._dead.append(memory)

    def _drain(self, queue: list[Work]) -> None:
        while queue:
            queue.pop(0)()

    def _handle(self) -> int:
        self._handles += 1
        return self._handles


class FakeEngine:
    """An engine whose mask is the red channel and whose mean is that of the channels; `fail_at` fails the n-th run."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.runs, self.fail_at = cuda, 0, 0
        self.late = False  # whether the shape of "mean" is only told while running
        self.allocate: Callable[[int], int] | None = None
        self.final_shapes: dict[str, tuple[int, ...]] = {}
        self.forks: list[FakeEngine] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.inputs = {"image": TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, None, None, 3))}
        self.outputs = {
            "mask": TensorSpec(name="mask", dtype=np.dtype(np.uint8), shape=(None, None, None)),
            "mean": TensorSpec(name="mean", dtype=np.dtype(np.float32), shape=(None, None, None)),
        }
        cuda.engines.add(self)

    def profile_range(self, name: str) -> tuple[tuple[int, ...], ...]:
        return (1, 1, 1, 3), (1, 8, 8, 3), LARGEST

    def set_shapes(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        allocator: Callable[[str], Callable[[int], int]] | None = None,
    ) -> dict[str, tuple[int, ...]]:
        self._open()
        shape = shapes["image"]
        if any(n > limit for n, limit in zip(shape, LARGEST, strict=True)):
            raise ShapeError(f"tensor 'image': expected at most {LARGEST}, got {shape}; resize it.")
        self.shapes = {"image": shape, "mask": shape[:3], "mean": shape[:3]}
        if self.late and allocator is None:
            raise RunnerError("fake: tells the shape of mean only while running; give it an allocator.")
        self.allocate = allocator("mean") if self.late and allocator else None
        return {name: shape[:3] for name in self.outputs if not (self.late and name == "mean")}

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        self._open()
        self.addresses.update(addresses)

    def enqueue(self, stream: int) -> None:
        self._open()
        self.runs += 1
        if self.runs == self.fail_at:
            raise RunnerError("fake: could not start the run.")
        assert self.runs > 1 or not self.cuda.capturing, "the first run of a context allocates"
        self.cuda.calls.append(("enqueue", stream))
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        if self.allocate is not None:
            addresses["mean"] = self.allocate(int(np.prod(shapes["mean"])) * 4)
            if not addresses["mean"]:
                raise RunnerError("fake: could not start the run.")
            self.final_shapes = {"mean": shapes["mean"]}

        def work() -> None:
            self._open()
            image = self._tensor("image", shapes, addresses)
            self._tensor("mask", shapes, addresses)[...] = image[..., 0]
            self._tensor("mean", shapes, addresses)[...] = image.mean(axis=-1)

        self.cuda.queue(stream, work)

    def fork(self) -> FakeEngine:
        self._open()
        self.forks.append(FakeEngine(self.cuda))
        return self.forks[-1]

    def close(self) -> None:
        self.cuda.calls.append(("close",))
        self.cuda.engines.discard(self)

    def _open(self) -> None:
        assert self in self.cuda.engines, "the engine is closed"

    def _tensor(self, name: str, shapes: Mapping[str, Any], addresses: Mapping[str, int]) -> np.ndarray:
        dtype = {**self.inputs, **self.outputs}[name].dtype
        nbytes = int(np.prod(shapes[name])) * dtype.itemsize
        return self.cuda.on_device(addresses[name], nbytes).view(dtype).reshape(shapes[name])
