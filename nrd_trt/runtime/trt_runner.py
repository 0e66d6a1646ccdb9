"""TensorRT plans behind the Runner contract, enterprise and RTX alike.

Host arrays go through page-locked buffers that grow and are reused; on integrated GPUs those are mapped and nothing is
copied. A shape that was run once is captured as a CUDA graph, copies included, and replayed from then on; so is a run
on device memory, for its addresses and without copies. Where a capture fails, runs go on without graphs.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from nrd_trt.engine.caches import kernel_file, read_kernels, write_kernels
from nrd_trt.engine.compat import TensorRT, load_tensorrt
from nrd_trt.engine.loading import EngineContext, LoadedEngine
from nrd_trt.engine.plugins import PluginLibrary, load_plugin
from nrd_trt.errors import RunnerError, attempt
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.machine.cuda import Cuda, load_cuda
from nrd_trt.progress import OnLayer
from nrd_trt.runtime.base import BaseRunner, DeviceTensor, Placement, check_feed
from nrd_trt.runtime.buffers import Buffer, Shape, nbytes_of
from nrd_trt.runtime.graph_io import plan_differences
from nrd_trt.runtime.lane import CaptureError, Lane, Run
from nrd_trt.specs import MaskEncoding, Provider, TensorSpec

LANE_CAPACITY = 8
"""Streams that memory is held for at a time, which is more than a program runs on at once. Without a bound one that
makes a stream for each frame would fill the GPU: nobody tells when a stream is destroyed."""


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
        graph: What the file of the plan says of itself; a plan with other tensors is refused when it is opened. None
            where it is not known.
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
        graph: GraphFacts | None = None,
        cuda: Provider = "driver",
    ) -> None:
        super().__init__()
        self.name = flavour
        self._provider: Provider = cuda
        self.cuda_graph, self.mask_encoding = cuda_graph, mask_encoding
        self._plan, self._rebuild, self._host_code, self._plugin = plan, rebuild, host_code, plugin
        self._graph = graph
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
        self._check_tensors()
        facts = cuda.facts()
        self._keep_kernels: Callable[[], None] | None = None
        self._run_shapes: set[Hashable] = set()
        if self._engine.compiles and (kept := kernel_file(plan, tensorrt.cache_key(facts.name, facts.driver))):
            self._take_kernels(stack, kept)
        self._stream = cuda.create_stream()
        stack.callback(cuda.destroy_stream, self._stream)
        self._buffers = {
            name: Buffer(cuda, mapped=facts.integrated) for name in [*self._engine.inputs, *self._engine.outputs]
        }
        for buffer in self._buffers.values():
            stack.callback(buffer.release)
        self._lanes: OrderedDict[int, Lane] = OrderedDict()
        stack.callback(self._close_lanes)

    def _check_tensors(self) -> None:
        """Refuse a plan that was not built from the file beside it."""
        lines = plan_differences(self._engine, self._graph) if self._graph is not None else []
        if lines:
            raise RunnerError(
                f"{self.name}: the plan is not one of its ONNX file: {'; '.join(lines)}. "
                f"Rebuild it with: {self._rebuild}"
            )

    def _take_kernels(self, stack: ExitStack, file: Path) -> None:
        """Use the kernels that an earlier process has compiled, and keep those of this one."""
        engine, content = self._engine, read_kernels(file)
        if content and not engine.take_kernels(content):
            warnings.warn(f"{file}: not kernels for this GPU and driver; compiled again, and replaced.", stacklevel=2)

        def keep() -> None:
            nonlocal content
            if (now := engine.kernels()) not in (b"", content):
                content = now  # before the file, whose warning is then given once
                write_kernels(file, now)

        stack.callback(keep)
        self._keep_kernels = keep

    def _close(self) -> None:
        with closing(self._cuda), self._cuda.current():
            self._release.close()  # goes on to the rest where one fails

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = {name: array.shape for name, array in feed.items()}
        with self._cuda.current():
            lane = self._lane(self._stream)
            outputs = lane.set_shapes(shapes)
            self._reserve(lane, {name: array.nbytes for name, array in feed.items()} | self._sizes(outputs))
            for name, array in feed.items():
                self._buffers[name].fill(array)
            addresses = {name: self._buffers[name].device for name in (*feed, *outputs)}

            def queue(context: EngineContext, stream: int) -> None:
                for name in feed:
                    self._buffers[name].upload(stream)
                context.enqueue(stream)
                for name in outputs:
                    self._buffers[name].download(stream)

            try:
                self._launch(lane, Run(shapes=shapes, addresses=addresses, key=tuple(shapes.items()), queue=queue))
            except BaseException:
                attempt(self._cuda.synchronize, self._stream)  # copies that were queued before it use the buffers
                raise
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
            lane = self._lane(stream)
            outputs = lane.set_shapes(shapes)
            place = place or lane.place
            written = {name: place(name, nbytes) for name, nbytes in self._sizes(outputs).items()}
            addresses = {name: tensor.address for name, tensor in feed.items()} | written
            key = (tuple(shapes.items()), tuple(addresses.items()))  # a graph holds addresses
            if not lane.has_graph(key):  # they were checked before it was captured
                self._check_addresses(addresses)
            run = Run(shapes=shapes, addresses=addresses, key=key, queue=lambda context, on: context.enqueue(on))
            self._launch(lane, run)
        return {name: self._on_device(name, outputs[name], address) for name, address in written.items()}

    def profile_layers(self, on_layer: OnLayer) -> None:
        """Time every layer from now on; see `nrd_trt.runtime.base.DeviceRunner`."""
        self._entered()
        self.cuda_graph = False
        with self._cuda.current():
            self._close_lanes()  # contexts of before are not timed
            self._engine.profile(on_layer)

    def _lane(self, stream: int) -> Lane:
        """Return the lane of a stream; that of the stream that was not used for longest makes room for a new one."""
        lane = self._lanes.pop(stream, None)
        if lane is None:
            if len(self._lanes) == LANE_CAPACITY:
                self._lanes.popitem(last=False)[1].close()
            lane = Lane(self._cuda, self._engine, stream, self._stream)
        self._lanes[stream] = lane
        return lane

    def _close_lanes(self) -> None:
        with ExitStack() as stack:  # goes on to the rest where one fails
            while self._lanes:
                stack.callback(self._lanes.popitem()[1].close)

    def _launch(self, lane: Lane, run: Run) -> None:
        """Queue a run, from the second time on as a graph; where a capture fails, warn and go on without graphs."""
        with lane.in_order():
            if self.cuda_graph and lane.is_worth_a_graph(run.key):
                try:
                    lane.capture(run)
                except CaptureError as exc:
                    self.cuda_graph = False
                    text = f"{self.name}: runs go on without a CUDA graph, with the same masks: {exc}"
                    warnings.warn(text, stacklevel=2)
            lane.launch(run)
        shapes = tuple(run.shapes.items())
        if self._keep_kernels and shapes not in self._run_shapes:  # at once: a process may end without leaving this
            self._run_shapes.add(shapes)
            self._keep_kernels()

    def _check_addresses(self, addresses: Mapping[str, int]) -> None:
        """Refuse memory that TensorRT must not use, before it does."""
        for name, address in addresses.items():
            try:
                self._cuda.check_address(address)
            except RunnerError as exc:
                raise RunnerError(f"tensor {name!r}: {exc}") from exc

    def _reserve(self, lane: Lane, sizes: Mapping[str, int]) -> None:
        """Make room for a run on host arrays, whose graphs hold the old addresses."""
        if not all(self._buffers[name].fits(nbytes) for name, nbytes in sizes.items()):
            lane.forget_graphs()
        for name, nbytes in sizes.items():
            self._buffers[name].reserve(nbytes)

    def _sizes(self, outputs: Mapping[str, Shape]) -> dict[str, int]:
        """Return how many bytes outputs of these shapes take."""
        return {name: nbytes_of(shape, self._engine.outputs[name].dtype) for name, shape in outputs.items()}

    def _on_device(self, name: str, shape: Shape, address: int) -> DeviceTensor:
        """Return an output where it lies; a packed mask is the same bytes as the mask."""
        dtype = self.outputs[name].dtype
        if dtype != self._engine.outputs[name].dtype:
            shape = (*shape[:-1], shape[-1] * self._engine.outputs[name].dtype.itemsize)
        return DeviceTensor(address=address, shape=shape, dtype=dtype)
