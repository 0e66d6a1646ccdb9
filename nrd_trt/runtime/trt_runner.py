"""TensorRT plans behind the Runner contract: enterprise, RTX and lean runtimes alike.

Host arrays go through page-locked buffers that grow and are reused; on integrated GPUs those are mapped and nothing is
copied. A shape that was run once is captured as a CUDA graph, copies included, and replayed from then on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nrd_trt.engine.compat import load_runtime
from nrd_trt.engine.loading import LoadedEngine
from nrd_trt.engine.plugins import PluginLibrary, load_plugin
from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.runtime.base import BaseRunner, DeviceTensor
from nrd_trt.runtime.cuda import Cuda, host_view, load_cuda
from nrd_trt.specs import MaskEncoding, TensorSpec

Shape = tuple[int, ...]
Shapes = tuple[tuple[str, Shape], ...]
GRAPH_CAPACITY = 4


class TrtRunner(BaseRunner):
    """One plan on the current GPU.

    Args:
        plan: The serialised engine, or its file.
        flavour: ``"tensorrt"``, ``"tensorrt-rtx"`` or ``"tensorrt-lean"`` (version-compatible plans only).
        rebuild: Command that rebuilds the plan for this machine; part of the error when it does not load.
        cuda_graph: Capture and replay each shape; off where the CUDA binding has no graphs.
        host_code: Let the plan run code on the host, which version-compatible plans need.
        plugin: Checked library that the plan's decode needs, loaded before the plan; None where it needs none.
        mask_encoding: How the plan gives its mask; the plan itself does not tell.

    Attributes:
        cuda_graph: Whether graphs are used; known once entered.
    """

    def __init__(
        self,
        plan: bytes | Path,
        *,
        flavour: str,
        rebuild: str,
        cuda_graph: bool = True,
        host_code: bool = False,
        plugin: PluginLibrary | None = None,
        mask_encoding: MaskEncoding = "uint8",
    ) -> None:
        super().__init__()
        self.name = flavour
        self.cuda_graph, self.mask_encoding = cuda_graph, mask_encoding
        self._plan, self._rebuild, self._host_code, self._plugin = plan, rebuild, host_code, plugin
        self._release: list[Callable[[], None]] = []

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        try:
            return self._acquire()
        except BaseException:
            self._close()
            raise

    def _acquire(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Take everything in the order of need; `_close` gives it back in the opposite order."""
        tensorrt = load_runtime(self.name)
        cuda = self._cuda = load_cuda()
        self.cuda_graph = self.cuda_graph and cuda.has_graphs
        plan = self._plan.read_bytes() if isinstance(self._plan, Path) else self._plan
        if self._plugin is not None:
            load_plugin(self._plugin, tensorrt)
        self._engine: LoadedEngine = tensorrt.deserialize(plan, host_code=self._host_code, rebuild=self._rebuild)
        self._release.append(self._engine.close)
        stream = self._stream = cuda.create_stream()
        self._release.append(lambda: cuda.destroy_stream(stream))
        mapped = cuda.facts().integrated
        self._buffers = {name: Buffer(cuda, mapped=mapped) for name in [*self._engine.inputs, *self._engine.outputs]}
        self._release += [buffer.release for buffer in self._buffers.values()]
        self._graphs = GraphCache(GRAPH_CAPACITY, self._destroy)
        self._release.append(self._graphs.clear)
        return dict(self._engine.inputs), dict(self._engine.outputs)

    def _close(self) -> None:
        with ExitStack() as stack:  # goes on to the rest where one fails
            for release in self._release:
                stack.callback(release)
            self._release = []

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes: Shapes = tuple((name, array.shape) for name, array in feed.items())
        known = self._graphs.get(shapes)
        outputs = known.outputs if known else self._prepare(feed)
        late = self.outputs.keys() - outputs.keys()
        for name, array in feed.items():
            self._buffers[name].fill(array)
        if known:
            self._cuda.launch_graph(known.graph, self._stream)
        elif self.cuda_graph and not late and self._graphs.seen_before(shapes):
            replay = self._capture(feed, outputs)
            self._graphs.put(shapes, replay)
            self._cuda.launch_graph(replay.graph, self._stream)
        else:
            self._queue(self._engine, feed, outputs)
        self._cuda.synchronize(self._stream)
        outputs = outputs | self._fetch(late)
        types = self._engine.outputs
        return {name: self._buffers[name].read(shape, types[name].dtype) for name, shape in outputs.items()}

    def _fetch(self, late: Iterable[str]) -> dict[str, Shape]:
        """Download the outputs whose shapes only the run told; return the shapes."""
        shapes = {name: self._engine.final_shapes[name] for name in late}
        for name in shapes:
            self._buffers[name].download(self._stream)
        if shapes:
            self._cuda.synchronize(self._stream)
        return shapes

    def _allocator(self, name: str) -> Callable[[int], int]:
        """Return what TensorRT calls for the memory of such an output; an exception must not cross its C++ frames."""

        def allocate(nbytes: int) -> int:
            try:
                self._buffers[name].reserve(nbytes)
            except RunnerError:
                return 0  # TensorRT then reports that the run could not be started
            return self._buffers[name].device

        return allocate

    def infer_device(self, feed: Mapping[str, DeviceTensor], stream: int) -> dict[str, DeviceTensor]:
        """Queue one run on device memory; see `nrd_trt.runtime.base.DeviceRunner`."""
        check_device_feed(feed, self.inputs)
        outputs = self._engine.set_shapes({name: tensor.shape for name, tensor in feed.items()})
        if late := self.outputs.keys() - outputs.keys():
            raise RunnerError(
                f"{self.name}: the shape of {', '.join(sorted(late))} is only known after a run; use infer."
            )
        self._reserve(_sizes(outputs, self._engine.outputs))
        self._engine.set_addresses({name: tensor.address for name, tensor in feed.items()} | self._addresses(outputs))
        self._engine.enqueue(stream)
        return {name: self._on_device(name, shape) for name, shape in outputs.items()}

    def _on_device(self, name: str, shape: Shape) -> DeviceTensor:
        """Return an output where it lies; a packed mask is the same bytes as the mask."""
        dtype = self.outputs[name].dtype
        if dtype != self._engine.outputs[name].dtype:
            shape = (*shape[:-1], shape[-1] * self._engine.outputs[name].dtype.itemsize)
        return DeviceTensor(address=self._buffers[name].device, shape=shape, dtype=dtype)

    def _prepare(self, feed: Mapping[str, np.ndarray]) -> dict[str, Shape]:
        """Set shapes and addresses for a run on host arrays; return the outputs' shapes."""
        outputs = self._engine.set_shapes({name: array.shape for name, array in feed.items()}, self._allocator)
        self._reserve({name: array.nbytes for name, array in feed.items()} | _sizes(outputs, self._engine.outputs))
        self._engine.set_addresses(self._addresses([*feed, *outputs]))
        return outputs

    def _addresses(self, names: Iterable[str]) -> dict[str, int]:
        return {name: self._buffers[name].device for name in names}

    def _reserve(self, sizes: Mapping[str, int]) -> None:
        try:
            moved = [name for name, nbytes in sizes.items() if self._buffers[name].reserve(nbytes)]
        except BaseException:
            self._graphs.clear()  # an earlier buffer may have moved
            raise
        if moved:
            self._graphs.clear()  # they hold the old addresses

    def _capture(self, feed: Mapping[str, np.ndarray], outputs: dict[str, Shape]) -> Replay:
        """Record one run as a graph, with a context of its own: TensorRT binds a graph to its context's shapes."""
        engine = self._engine.fork()
        try:
            engine.set_shapes({name: array.shape for name, array in feed.items()})
            engine.set_addresses(self._addresses([*feed, *outputs]))
            self._queue(engine, feed, outputs)  # a context's first run may allocate, which a capture must not
            self._cuda.synchronize(self._stream)
            self._cuda.begin_capture(self._stream)
            try:
                self._queue(engine, feed, outputs)
            except BaseException:
                self._cuda.abort_capture(self._stream)
                raise
            return Replay(graph=self._cuda.end_capture(self._stream), outputs=outputs, engine=engine)
        except BaseException:
            engine.close()
            raise

    def _queue(self, engine: LoadedEngine, feed: Iterable[str], outputs: Iterable[str]) -> None:
        for name in feed:
            self._buffers[name].upload(self._stream)
        engine.enqueue(self._stream)
        for name in outputs:
            self._buffers[name].download(self._stream)

    def _destroy(self, replay: Replay) -> None:
        try:
            self._cuda.destroy_graph(replay.graph)
        finally:
            replay.engine.close()


class Buffer:
    """Page-locked host memory and device memory of one tensor; on integrated GPUs they are the same memory.

    Attributes:
        device: Device address, 0 before the first `reserve`.
    """

    def __init__(self, cuda: Cuda, *, mapped: bool) -> None:
        self._cuda, self._mapped = cuda, mapped
        self._capacity = self._used = self._host = self.device = 0

    def reserve(self, nbytes: int) -> bool:
        """Make room for `nbytes`; return whether the addresses changed."""
        self._used = nbytes
        if nbytes <= self._capacity:
            return False
        self.release()
        self._used = nbytes
        self._host, self.device = self._cuda.allocate_host(nbytes, mapped=self._mapped)
        if not self._mapped:
            try:
                self.device = self._cuda.allocate(nbytes)
            except BaseException:
                self._cuda.free_host(self._host)
                self._host = 0
                raise
        self._capacity = nbytes
        return True

    def fill(self, array: np.ndarray) -> None:
        """Copy an array into the host side."""
        host_view(self._host, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def read(self, shape: Shape, dtype: np.dtype[np.generic]) -> np.ndarray:
        """Return a fresh array of the host side."""
        return host_view(self._host, _nbytes(shape, dtype)).copy().view(dtype).reshape(shape)

    def upload(self, stream: int) -> None:
        """Queue the copy to the device."""
        if not self._mapped:
            self._cuda.upload(self.device, self._host, self._used, stream)

    def download(self, stream: int) -> None:
        """Queue the copy from the device."""
        if not self._mapped:
            self._cuda.download(self._host, self.device, self._used, stream)

    def release(self) -> None:
        """Free both sides; may be called again."""
        if self._capacity:
            if not self._mapped:
                self._cuda.free(self.device)
            self._cuda.free_host(self._host)
        self._capacity = self._used = self._host = self.device = 0


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An executable graph, the context that it was captured from, and the shapes of the outputs that it writes."""

    graph: int
    outputs: dict[str, Shape]
    engine: LoadedEngine


class GraphCache:
    """Graphs by input shapes; the least recently used one goes when there is no room.

    Args:
        capacity: Graphs held at most.
        destroy: Frees one.
    """

    def __init__(self, capacity: int, destroy: Callable[[Replay], None]) -> None:
        self._capacity, self._destroy = capacity, destroy
        self._replays: OrderedDict[Shapes, Replay] = OrderedDict()
        self._seen: set[Shapes] = set()

    def __len__(self) -> int:
        return len(self._replays)

    def get(self, shapes: Shapes) -> Replay | None:
        """Return the graph of these shapes, or None."""
        if shapes in self._replays:
            self._replays.move_to_end(shapes)
        return self._replays.get(shapes)

    def seen_before(self, shapes: Shapes) -> bool:
        """Whether these shapes were asked for before: a first run allocates, which a capture must not."""
        seen = shapes in self._seen
        self._seen.add(shapes)
        return seen

    def put(self, shapes: Shapes, replay: Replay) -> None:
        """Hold a graph; the one that was not used for longest is freed where there is no room."""
        self._replays[shapes] = replay
        while len(self._replays) > self._capacity:
            self._destroy(self._replays.popitem(last=False)[1])

    def clear(self) -> None:
        """Free all graphs and forget what was run."""
        while self._replays:
            self._destroy(self._replays.popitem()[1])
        self._seen.clear()


def check_device_feed(feed: Mapping[str, DeviceTensor], specs: Mapping[str, TensorSpec]) -> None:
    """Raise `ShapeError` unless `feed` names every input with its type and a matching shape."""
    if feed.keys() != specs.keys():
        raise ShapeError(f"expected inputs {sorted(specs)}, got {sorted(feed)}.")
    for name, spec in specs.items():
        spec.check_type(feed[name].dtype, feed[name].shape)


def _sizes(shapes: Mapping[str, Shape], specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    return {name: _nbytes(shape, specs[name].dtype) for name, shape in shapes.items()}


def _nbytes(shape: Shape, dtype: np.dtype[np.generic]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
