"""TensorRT plans behind the Runner contract, enterprise and RTX alike.

Host arrays go through page-locked buffers that grow and are reused; on integrated GPUs those are mapped and nothing is
copied. A shape that was run once is captured as a CUDA graph, copies included, and replayed from then on; so is a run
on device memory, for its addresses and without copies. Where a capture fails, runs go on without graphs.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nrd_trt.engine.compat import TensorRT, load_tensorrt
from nrd_trt.engine.loading import LoadedEngine
from nrd_trt.engine.plugins import PluginLibrary, load_plugin
from nrd_trt.errors import RunnerError
from nrd_trt.machine.cuda import Cuda, load_cuda
from nrd_trt.progress import OnLayer
from nrd_trt.runtime.base import BaseRunner, DeviceTensor, Placement, check_feed
from nrd_trt.runtime.buffers import Buffer, Shape, nbytes_of
from nrd_trt.specs import MaskEncoding, Provider, TensorSpec

GRAPH_CAPACITY = 4


class TrtRunner(BaseRunner):
    """One plan on the first GPU, in its primary context, from any thread: one at a time.

    Args:
        plan: The serialised engine, or its file.
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        rebuild: Command that rebuilds the plan for this machine; part of the error when it does not load.
        cuda_graph: Capture and replay each shape; off where the provider has no graphs.
        host_code: Let the plan run code on the host, which version-compatible plans need.
        plugin: Checked library that the plan's decode needs, loaded before the plan; None where it needs none.
        mask_encoding: How the plan gives its mask; the plan itself does not tell.
        cuda: Provider of the CUDA calls; see `nrd_trt.machine.cuda.load_cuda`.

    Attributes:
        cuda_graph: Whether graphs are used; known once entered, and off from a refused capture on.
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
        cuda: Provider = "driver",
    ) -> None:
        super().__init__()
        self.name = flavour
        self._provider: Provider = cuda
        self.cuda_graph, self.mask_encoding = cuda_graph, mask_encoding
        self._plan, self._rebuild, self._host_code, self._plugin = plan, rebuild, host_code, plugin
        self._release = ExitStack()

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        tensorrt = load_tensorrt(self.name)
        with ExitStack() as opened:
            cuda = self._cuda = load_cuda(self._provider)
            opened.callback(cuda.close)
            with cuda.current(), ExitStack() as stack:
                self._acquire(stack, tensorrt, cuda)
                self._release = stack.pop_all()
            opened.pop_all()
        return dict(self._engine.inputs), dict(self._engine.outputs)

    def _acquire(self, stack: ExitStack, tensorrt: TensorRT, cuda: Cuda) -> None:
        """Take everything in the order of need; the stack gives it back in the opposite order."""
        self.cuda_graph = self.cuda_graph and cuda.has_graphs
        plan = self._plan.read_bytes() if isinstance(self._plan, Path) else self._plan
        if self._plugin is not None:
            load_plugin(self._plugin, tensorrt)
        self._engine: LoadedEngine = tensorrt.deserialize(plan, host_code=self._host_code, rebuild=self._rebuild)
        stack.callback(self._engine.close)
        self._stream = cuda.create_stream()
        stack.callback(cuda.destroy_stream, self._stream)
        mapped = cuda.facts().integrated
        self._buffers = {name: Buffer(cuda, mapped=mapped) for name in [*self._engine.inputs, *self._engine.outputs]}
        for buffer in self._buffers.values():
            stack.callback(buffer.release)
        self._graphs = GraphCache(GRAPH_CAPACITY, self._destroy)
        stack.callback(self._graphs.clear)

    def _close(self) -> None:
        with closing(self._cuda), self._cuda.current():
            self._release.close()  # goes on to the rest where one fails

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = {name: array.shape for name, array in feed.items()}
        key = tuple(shapes.items())
        with self._cuda.current():
            known = self._graphs.get(key)
            outputs = known.outputs if known else self._prepare(feed)
            for name, array in feed.items():
                self._buffers[name].fill(array)
            addresses = {name: self._buffers[name].device for name in (*feed, *outputs)}
            try:
                self._launch(
                    key, shapes, addresses, outputs, self._stream, lambda engine: self._queue(engine, feed, outputs)
                )
            finally:  # after an error too: copies that were queued before it use the buffers
                self._cuda.synchronize(self._stream)
        types = self._engine.outputs
        return {name: self._buffers[name].read(shape, types[name].dtype) for name, shape in outputs.items()}

    def infer_device(
        self, feed: Mapping[str, DeviceTensor], stream: int, place: Placement | None = None
    ) -> dict[str, DeviceTensor]:
        """Queue one run on device memory; see `nrd_trt.runtime.base.DeviceRunner`."""
        check_feed(self.name, feed, self.inputs)
        shapes = {name: tensor.shape for name, tensor in feed.items()}
        with self._cuda.current():
            outputs = self._engine.set_shapes(shapes)
            sizes = _sizes(outputs, self._engine.outputs)
            place = place or self._placement(sizes, stream)
            written = {name: place(name, nbytes) for name, nbytes in sizes.items()}
            addresses = {name: tensor.address for name, tensor in feed.items()} | written
            key = (tuple(shapes.items()), tuple(addresses.items()))  # a graph holds addresses
            if self._graphs.get(key) is None:  # they were checked before it was captured
                self._check_addresses(addresses)
            self._launch(key, shapes, addresses, outputs, stream, lambda engine: engine.enqueue(stream))
        return {name: self._on_device(name, outputs[name], address) for name, address in written.items()}

    def profile_layers(self, on_layer: OnLayer) -> None:
        """Time every layer from now on; see `nrd_trt.runtime.base.DeviceRunner`."""
        self._entered()
        self.cuda_graph = False
        with self._cuda.current():
            self._graphs.clear()
            self._engine.profile(on_layer)

    def _check_addresses(self, addresses: Mapping[str, int]) -> None:
        """Refuse memory that TensorRT must not use, before it does."""
        for name, address in addresses.items():
            try:
                self._cuda.check_address(address)
            except RunnerError as exc:
                raise RunnerError(f"tensor {name!r}: {exc}") from exc

    def _placement(self, sizes: Mapping[str, int], stream: int) -> Placement:
        """Make room in memory of the runner and tell where."""
        if not all(self._buffers[name].fits(nbytes) for name, nbytes in sizes.items()):
            self._cuda.synchronize(stream)  # the run before may still write to what moves
        self._reserve(sizes)
        return lambda name, nbytes: self._buffers[name].device

    def _launch(
        self,
        key: Hashable,
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
        outputs: dict[str, Shape],
        stream: int,
        queue: Callable[[LoadedEngine], None],
    ) -> None:
        """Queue a run, from the second time on as a graph; the engine's shapes are set."""
        replay = self._graphs.get(key)
        if replay is None and self.cuda_graph and self._graphs.seen_before(key):
            # A capture leaves the stream idle, so the graph that goes for this one has ended and its context can too.
            replay = self._capture(shapes, addresses, outputs, stream, queue)
            if replay is not None:
                self._graphs.put(key, replay)
        if replay is not None:
            self._cuda.launch_graph(replay.graph, stream)
            return
        self._engine.set_addresses(addresses)
        queue(self._engine)

    def _on_device(self, name: str, shape: Shape, address: int) -> DeviceTensor:
        """Return an output where it lies; a packed mask is the same bytes as the mask."""
        dtype = self.outputs[name].dtype
        if dtype != self._engine.outputs[name].dtype:
            shape = (*shape[:-1], shape[-1] * self._engine.outputs[name].dtype.itemsize)
        return DeviceTensor(address=address, shape=shape, dtype=dtype)

    def _prepare(self, feed: Mapping[str, np.ndarray]) -> dict[str, Shape]:
        """Set shapes and make room for a run on host arrays; return the outputs' shapes."""
        outputs = self._engine.set_shapes({name: array.shape for name, array in feed.items()})
        self._reserve({name: array.nbytes for name, array in feed.items()} | _sizes(outputs, self._engine.outputs))
        return outputs

    def _reserve(self, sizes: Mapping[str, int]) -> None:
        try:
            moved = [name for name, nbytes in sizes.items() if self._buffers[name].reserve(nbytes)]
        except BaseException:
            self._graphs.clear()  # an earlier buffer may have moved
            raise
        if moved:
            self._graphs.clear()  # they hold the old addresses

    def _capture(
        self,
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, int],
        outputs: dict[str, Shape],
        stream: int,
        queue: Callable[[LoadedEngine], None],
    ) -> Replay | None:
        """Record one run as a graph; where that fails, warn and go on without graphs.

        The graph has a context of its own, because TensorRT binds it to its context's shapes. Waits for the stream
        first: then nothing of the engine is in flight beside the capture. Afterwards runs with and without a graph
        follow each other on the stream, so their contexts never run at once.
        """
        try:
            engine = self._engine.fork()
            with ExitStack() as failed:
                failed.callback(engine.close)
                failed.callback(self._cuda.synchronize, stream)  # nothing of it runs when it goes
                engine.set_shapes(shapes)
                engine.set_addresses(addresses)
                queue(engine)  # a context's first run may allocate, which a capture must not
                self._cuda.synchronize(stream)
                graph = self._record(engine, stream, queue)
                failed.pop_all()
        except RunnerError as exc:
            self.cuda_graph = False
            warnings.warn(f"{self.name}: runs go on without a CUDA graph, with the same masks: {exc}", stacklevel=2)
            return None
        return Replay(graph=graph, outputs=outputs, engine=engine)

    def _record(self, engine: LoadedEngine, stream: int, queue: Callable[[LoadedEngine], None]) -> int:
        self._cuda.begin_capture(stream)
        try:
            queue(engine)
        except BaseException:
            self._cuda.abort_capture(stream)
            raise
        return self._cuda.end_capture(stream)

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


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An executable graph, the context that it was captured from, and the shapes of the outputs that it writes."""

    graph: int
    outputs: dict[str, Shape]
    engine: LoadedEngine


class GraphCache:
    """Graphs by what they were captured for; the least recently used one goes when there is no room.

    Args:
        capacity: Graphs held at most.
        destroy: Frees one.
    """

    def __init__(self, capacity: int, destroy: Callable[[Replay], None]) -> None:
        self._capacity, self._destroy = capacity, destroy
        self._replays: OrderedDict[Hashable, Replay] = OrderedDict()
        self._recent: OrderedDict[Hashable, None] = OrderedDict()

    def get(self, key: Hashable) -> Replay | None:
        """Return the graph of these shapes or addresses, or None."""
        if key in self._replays:
            self._replays.move_to_end(key)
            self._remember(key)
        return self._replays.get(key)

    def seen_before(self, key: Hashable) -> bool:
        """Whether this was asked for lately: a first run allocates, which a capture must not.

        Where more runs alternate than there is room for, all are new every time: capturing them in turn would take
        longer than the graphs save.
        """
        seen = key in self._recent
        self._remember(key)
        return seen

    def put(self, key: Hashable, replay: Replay) -> None:
        """Hold a graph; the one that was not used for longest is freed where there is no room."""
        self._replays[key] = replay
        while len(self._replays) > self._capacity:
            self._destroy(self._replays.popitem(last=False)[1])

    def clear(self) -> None:
        """Free all graphs and forget what was run."""
        while self._replays:
            self._destroy(self._replays.popitem()[1])
        self._recent.clear()

    def _remember(self, key: Hashable) -> None:
        """Note a use; as many different ones are kept as there is room for graphs."""
        self._recent[key] = None
        self._recent.move_to_end(key)
        if len(self._recent) > self._capacity:
            self._recent.popitem(last=False)


def _sizes(shapes: Mapping[str, Shape], specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    return {name: nbytes_of(shape, specs[name].dtype) for name, shape in shapes.items()}
