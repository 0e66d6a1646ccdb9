"""The CUDA driver and a loaded engine over host memory, for tests of what a runner does with them.

Strict where the real ones are silent. What is queued runs when somebody waits for it, and nothing else does. Two things
that use the same memory or the same execution context, one of them writing, must have an order: by their stream, by an
event, or because somebody waited in between. An address that is not allocated, a foreign stream, event or graph, a wait
or an allocation inside a capture, and whatever goes while queued work uses it, are errors. Freed memory is poisoned and
never reused.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.machine.cuda import Cuda, host_view
from nrd_trt.machine.gpu import Gpu
from nrd_trt.specs import TensorSpec

Work = Callable[[], None]
Uses = Mapping[Hashable, bool]
"""What is used, an address or an engine, and whether it is written."""

LARGEST = (4, 64, 64, 3)


@dataclass(eq=False, kw_only=True)
class Queued:
    """One thing on a stream, and what it comes behind."""

    name: str
    work: Work = lambda: None
    uses: Uses = field(default_factory=dict)
    after: list[Queued] = field(default_factory=list)
    done: bool = False

    def finish(self) -> None:
        """Run it, and what it comes behind, unless that was done."""
        for earlier in self.after:
            earlier.finish()
        self.after = []
        if not self.done:
            self.work()
            self.done = True

    def is_behind(self, other: Queued) -> bool:
        """Whether the other one has certainly ended when this one runs."""
        if other.done:
            return True
        seen: set[Queued] = set()
        look = [self]
        while look:
            one = look.pop()
            if one is other:
                return True
            if one not in seen:
                seen.add(one)
                look += one.after
        return False


class FakeCuda(Cuda):
    """Args: `integrated` shares memory; `fail_at` refuses the n-th allocation (from 1), host and device together."""

    name = "fake"

    def __init__(self, *, integrated: bool = False, fail_at: int | None = None, has_graphs: bool = True) -> None:
        self.has_graphs = has_graphs
        self.integrated, self.fail_at = integrated, fail_at
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, Queued] = {}  # the last thing on each
        self.events: dict[int, Queued | None] = {}
        self.graphs: dict[int, list[Queued]] = {}
        self.engines: set[FakeEngine] = set()
        self.capturing: dict[int, list[Queued]] = {}
        self.queued: list[Queued] = []
        self._users: dict[Hashable, list[Queued]] = {}
        self._dead: list[Any] = []
        self._handles = self.allocations = 0

    @property
    def alive(self) -> dict[str, int]:
        """What is held now, by kind."""
        kinds = ("device", "host", "streams", "events", "graphs", "engines", "capturing")
        return {kind: len(getattr(self, kind)) for kind in kinds if getattr(self, kind)}

    def names(self) -> list[str]:
        """Names of the calls so far."""
        return [call[0] for call in self.calls]

    def facts(self) -> Gpu:
        return Gpu(name="Fake GPU", compute_capability="8.7", integrated=self.integrated)

    # --- memory ------------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> int:
        return self._take(self.device, "allocate", nbytes)

    def free(self, address: int) -> None:
        self._give(self.device, "free", address)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> tuple[int, int]:
        address = self._take(self.host, "allocate_host", nbytes)
        return address, address if mapped else 0

    def free_host(self, address: int) -> None:
        self._give(self.host, "free_host", address)

    def host_view(self, address: int, nbytes: int) -> np.ndarray:
        """Stand in for `nrd_trt.machine.cuda.host_view`: the host touches its memory now."""
        assert address in self.host, f"{address} is not page-locked memory"
        assert nbytes <= ctypes.sizeof(self.host[address])
        self.expect_idle(address, "touched by the host")
        return host_view(address, nbytes)

    def on_device(self, address: int, nbytes: int) -> np.ndarray:
        """Return device memory as bytes; mapped host memory is device memory too."""
        held = {**self.device, **(self.host if self.integrated else {})}
        assert address in held, f"{address} is not device memory"
        assert nbytes <= ctypes.sizeof(held[address]), f"{nbytes} bytes do not fit into {address}"
        return host_view(address, nbytes)

    def upload(self, device: int, host: int, nbytes: int, stream: int) -> None:
        self._copy("upload", self.device, device, self.host, host, nbytes, stream)

    def download(self, host: int, device: int, nbytes: int, stream: int) -> None:
        self._copy("download", self.host, host, self.device, device, nbytes, stream)

    def _copy(self, name: str, to: Any, target: int, of: Any, source: int, nbytes: int, stream: int) -> None:
        self.note(name, target, source, nbytes)

        def work() -> None:
            assert target in to and source in of, f"{name} with freed memory"
            assert nbytes <= min(ctypes.sizeof(to[target]), ctypes.sizeof(of[source]))
            ctypes.memmove(target, source, nbytes)

        self.queue(stream, name, work, {target: True, source: False})

    def _take(self, where: dict[int, Any], name: str, nbytes: int) -> int:
        assert not self.capturing, "allocation inside a capture"
        self.allocations += 1
        if self.allocations == self.fail_at:
            raise RunnerError("CUDA: out of memory; close other programs or build a smaller size.")
        self.note(name, nbytes)
        memory = (ctypes.c_uint8 * nbytes)()
        where[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def _give(self, where: dict[int, Any], name: str, address: int) -> None:
        assert not self.capturing, "memory freed inside a capture"
        self.note(name, address)
        self.expect_idle(address, "freed")
        memory = where.pop(address)
        ctypes.memset(address, 0xDD, ctypes.sizeof(memory))
        self._dead.append(memory)

    # --- streams and events ------------------------------------------------------------------------------------------

    def create_stream(self) -> int:
        self.note("create_stream")
        self.streams[self._handle()] = Queued(name="start", done=True)
        return self._handles

    def synchronize(self, stream: int) -> None:
        assert not self.capturing, "wait inside a capture"
        self.note("synchronize", stream)
        self.streams[stream].finish()

    def destroy_stream(self, stream: int) -> None:
        self.note("destroy_stream", stream)
        assert self.streams.pop(stream).done, "stream destroyed while work is queued"

    def create_event(self) -> int:
        self.note("create_event")
        self.events[self._handle()] = None
        return self._handles

    def record_event(self, event: int, stream: int) -> None:
        assert event in self.events and not self.capturing
        self.note("record_event", event, stream)
        self.events[event] = self._push(stream, Queued(name="record"))

    def wait_event(self, stream: int, event: int) -> None:
        assert not self.capturing
        self.note("wait_event", stream, event)
        self._push(stream, Queued(name="wait", after=[self._recorded(event)]))

    def synchronize_event(self, event: int) -> None:
        assert not self.capturing, "wait inside a capture"
        self.note("synchronize_event", event)
        self._recorded(event).finish()

    def destroy_event(self, event: int) -> None:
        self.note("destroy_event", event)
        del self.events[event]

    def _recorded(self, event: int) -> Queued:
        recorded = self.events[event]
        assert recorded is not None, "wait for an event that was never recorded"
        return recorded

    # --- graphs ------------------------------------------------------------------------------------------------------

    def begin_capture(self, stream: int) -> None:
        assert stream in self.streams and not self.capturing
        self.note("begin_capture", stream)
        self.capturing[stream] = []

    def end_capture(self, stream: int) -> int:
        self.note("end_capture", stream)
        self.graphs[self._handle()] = self.capturing.pop(stream)
        return self._handles

    def abort_capture(self, stream: int) -> None:
        self.note("abort_capture", stream)
        del self.capturing[stream]

    def launch_graph(self, graph: int, stream: int) -> None:
        assert not self.capturing
        self.note("launch_graph", graph)
        held = {*self.device, *self.host, *self.engines}
        for node in self.graphs[graph]:
            assert node.uses.keys() <= held, "graph with freed memory, or of a closed engine"
            self._push(stream, Queued(name=node.name, work=node.work, uses={**node.uses, ("graph", graph): False}))

    def destroy_graph(self, graph: int) -> None:
        self.note("destroy_graph", graph)
        self.expect_idle(("graph", graph), "destroyed")
        del self.graphs[graph]

    # --- order -------------------------------------------------------------------------------------------------------

    def queue(self, stream: int, name: str, work: Work, uses: Uses) -> None:
        """Add work to a stream, or to what is recorded of it."""
        node = Queued(name=name, work=work, uses=uses)
        if stream in self.capturing:
            self.capturing[stream].append(node)
        else:
            self._push(stream, node)

    def in_flight(self, used: Hashable) -> list[Queued]:
        """Return what uses something and was not waited for."""
        self._users[used] = [user for user in self._users.get(used, []) if not user.done]
        return self._users[used]

    def _push(self, stream: int, node: Queued) -> Queued:
        node.after.append(self.streams[stream])
        for used, writes in node.uses.items():
            for user in self.in_flight(used):
                if (writes or user.uses[used]) and not node.is_behind(user):
                    raise AssertionError(f"{node.name} and {user.name} use {used} at once")
            self._users[used].append(node)
        self.streams[stream] = node
        self.queued.append(node)
        return node

    def expect_idle(self, used: Hashable, what: str) -> None:
        """Fail where something uses what is to go, and was not waited for."""
        users = self.in_flight(used)
        assert not users, f"{used} is {what} while {users[0].name} uses it"

    def note(self, name: str, *details: Any) -> None:
        """Keep a call and its thread."""
        self.calls.append((name, *details))
        self.threads.add(threading.current_thread().name)

    def _handle(self) -> int:
        self._handles += 1
        return self._handles


class FakeEngine:
    """An engine whose mask is the red channel and whose mean is that of the channels.

    Attributes:
        fail_at: The n-th run fails.
        forks_fail_at: The n-th run of each fork from now on fails.
        mask_dtype: What it calls the mask's bytes.
    """

    mask_dtype: Any = np.uint8

    def __init__(self, cuda: FakeCuda, *, fail_at: int = 0) -> None:
        self.cuda, self.runs, self.fail_at, self.forks_fail_at = cuda, 0, fail_at, 0
        self.forks: list[FakeEngine] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.inputs = {"image": TensorSpec(name="image", dtype=np.dtype(np.uint8), shape=(None, None, None, 3))}
        self.outputs = {
            name: TensorSpec(name=name, dtype=np.dtype(dtype), shape=(None, None, None))
            for name, dtype in (("mask", self.mask_dtype), ("mean", np.float32))
        }
        cuda.engines.add(self)

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        self._open()
        shape = shapes["image"]
        if any(n > limit for n, limit in zip(shape, LARGEST, strict=True)):
            raise ShapeError(f"tensor 'image': expected at most {LARGEST}, got {shape}; resize it.")
        batch, height, width, _ = shape
        outputs = {"mask": (batch, height, width // np.dtype(self.mask_dtype).itemsize), "mean": shape[:3]}
        self.shapes = {"image": shape, **outputs}
        return outputs

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        self._open()
        self.addresses.update(addresses)

    def enqueue(self, stream: int) -> None:
        self._open()
        self.runs += 1
        if self.runs == self.fail_at:
            raise RunnerError("fake: could not start the run.")
        if self.cuda.capturing:
            assert self.runs > 1, "the first run of a context allocates"
            assert not self.cuda.in_flight(self), "captured while a run of this context is in flight"
        self.cuda.note("enqueue", stream)
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def work() -> None:
            self._open()
            image = self._tensor("image", shapes, addresses)
            self._tensor("mask", shapes, addresses).view(np.uint8)[...] = image[..., 0]
            self._tensor("mean", shapes, addresses)[...] = image.mean(axis=-1)

        uses = {addresses[name]: name in self.outputs for name in shapes}
        self.cuda.queue(stream, "engine", work, {**uses, self: True})

    def fork(self) -> FakeEngine:
        self._open()
        self.forks.append(type(self)(self.cuda, fail_at=self.forks_fail_at))
        return self.forks[-1]

    def close(self) -> None:
        self.cuda.note("close")
        self.cuda.expect_idle(self, "closed")
        self.cuda.engines.discard(self)

    def _open(self) -> None:
        assert self in self.cuda.engines, "the engine is closed"

    def _tensor(self, name: str, shapes: Mapping[str, Any], addresses: Mapping[str, int]) -> np.ndarray:
        dtype = {**self.inputs, **self.outputs}[name].dtype
        nbytes = int(np.prod(shapes[name])) * dtype.itemsize
        return self.cuda.on_device(addresses[name], nbytes).view(dtype).reshape(shapes[name])


class PackedEngine(FakeEngine):
    """A `FakeEngine` that writes the mask's very bytes and calls them int32."""

    mask_dtype = np.int32
