"""What the runs of a plan on one CUDA stream share: a context, scratch memory, memory for outputs and captured graphs.

Runs on a stream follow each other, so all of its contexts, one for each graph and one for runs without, work in one
block of scratch memory. Streams share nothing that is written, so runs on different ones may overlap.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from nrd_trt.engine.loading import EngineContext, LoadedEngine
from nrd_trt.errors import RunnerError, attempt
from nrd_trt.machine.cuda import Cuda
from nrd_trt.runtime.buffers import Block, Shape

GRAPH_CAPACITY = 4

Queue = Callable[[EngineContext, int], None]
"""Queues a run of a context, whose shapes, addresses and scratch memory are set, on a stream."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run to come.

    Attributes:
        shapes: Shape of each input.
        addresses: Where inputs are read and outputs written.
        key: What a graph of it was captured for.
        queue: Queues it.
    """

    shapes: Mapping[str, Shape]
    addresses: Mapping[str, int]
    key: Hashable
    queue: Queue


@dataclass(frozen=True, kw_only=True)
class Replay:
    """An executable graph and the context that it was captured from."""

    graph: int
    context: EngineContext


class CaptureError(RunnerError):
    """A run cannot be captured."""


class Lane:
    """The runs of an engine on one stream.

    Args:
        cuda: What calls the driver; every call is made in its context.
        engine: Outlives it.
        stream: The stream of whoever runs the engine; it may be gone when this is closed.
        recorder: A stream that graphs are recorded on and that does not wait for the default one. A caller's may do so,
            and no thread may use the default one while such a stream records.
    """

    def __init__(self, cuda: Cuda, engine: LoadedEngine, stream: int, recorder: int) -> None:
        self._cuda, self._engine, self._stream, self._recorder = cuda, engine, stream, recorder
        self._scratch = Block(cuda)
        self._outputs = {name: Block(cuda) for name in engine.outputs}
        self._runs: OrderedDict[Hashable, Replay | None] = OrderedDict()
        """The last few runs, oldest first, with the graphs of those that have one."""
        with ExitStack() as stack:  # it gives back in the opposite order
            self._context = engine.context()
            stack.callback(self._context.close)
            for block in (self._scratch, *self._outputs.values()):
                stack.callback(block.release)
            stack.callback(self._destroy_graphs)
            # An event, because a stream of somebody else may be destroyed before its lane.
            self._ended = cuda.create_event()
            stack.callback(cuda.destroy_event, self._ended)
            cuda.record_event(self._ended, stream)
            stack.callback(self._wait)
            self._release = stack.pop_all()

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Choose the input shapes of the next run; see `nrd_trt.engine.loading.EngineContext.set_shapes`."""
        return self._context.set_shapes(shapes)

    def place(self, name: str, nbytes: int) -> int:
        """Make room for an output and return its device address; it is valid until the next run on the stream."""
        self._grow(self._outputs[name], nbytes)
        return self._outputs[name].address

    def has_graph(self, key: Hashable) -> bool:
        """Whether a run would be replayed."""
        return self._runs.get(key) is not None

    def is_worth_a_graph(self, key: Hashable) -> bool:
        """Whether a run was one of the last few, and has no graph.

        A graph takes longer to make than it saves in a few runs, and where more runs alternate than there is room for,
        none would be there when its turn comes.
        """
        return key in self._runs and not self.has_graph(key)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Let what a block queues come after all runs before it, and before all after it.

        The handle alone does not do that: a new stream may have the one of a stream that was destroyed, and that of
        CUDA's per-thread stream means another one in each thread.
        """
        self._cuda.wait_event(self._stream, self._ended)
        try:
            yield
        except BaseException:
            attempt(self._cuda.record_event, self._ended, self._stream)  # something may be queued
            raise
        self._cuda.record_event(self._ended, self._stream)

    def capture(self, run: Run) -> None:
        """Run once and record a graph of it, which waits for the stream.

        The graph has a context of its own, because TensorRT binds it to its context's shapes.

        Raises:
            CaptureError: It cannot be captured; it may be run without a graph.
            RunnerError: The run itself failed.
        """
        with ExitStack() as failed:
            with _capture_errors():
                context = self._engine.context()
            failed.callback(context.close)
            failed.callback(attempt, self._cuda.synchronize, self._stream)  # nothing of it runs when it goes
            context.set_shapes(run.shapes)
            self._enqueue(context, run)  # a context's first run may allocate, which a capture must not
            self._cuda.synchronize(self._stream)
            with _capture_errors():
                context.check_capturable(self._recorder)
                graph = self._record(context, run)
            failed.pop_all()
        self._runs[run.key] = Replay(graph=graph, context=context)

    def launch(self, run: Run) -> None:
        """Queue a run, as a graph where there is one; the shapes are set."""
        if replay := self._runs.get(run.key):
            self._cuda.launch_graph(replay.graph, self._stream)
        else:
            self._enqueue(self._context, run)
        self._runs[run.key] = replay
        self._runs.move_to_end(run.key)
        if len(self._runs) > GRAPH_CAPACITY:
            _, oldest = self._runs.popitem(last=False)
            if oldest:
                self._wait()
                self._destroy(oldest)

    def forget_graphs(self) -> None:
        """Wait for the runs and drop all graphs: they hold addresses that are to change."""
        self._wait()
        self._destroy_graphs()

    def close(self) -> None:
        """Wait for the runs and release everything."""
        self._release.close()  # goes on to the rest where one fails

    def _enqueue(self, context: EngineContext, run: Run) -> None:
        """Queue a run of a context in this stream's scratch memory."""
        self._grow(self._scratch, context.scratch_bytes)
        if self._scratch.nbytes:
            context.set_scratch(self._scratch.address, self._scratch.nbytes)
        context.set_addresses(run.addresses)
        run.queue(context, self._stream)

    def _record(self, context: EngineContext, run: Run) -> int:
        self._cuda.begin_capture(self._recorder)
        try:
            run.queue(context, self._recorder)
        except BaseException:
            attempt(self._cuda.abort_capture, self._recorder)
            raise
        return self._cuda.end_capture(self._recorder)

    def _grow(self, block: Block, nbytes: int) -> None:
        if nbytes > block.nbytes:
            if block.nbytes:
                self.forget_graphs()
            block.reserve(nbytes)

    def _wait(self) -> None:
        self._cuda.synchronize_event(self._ended)

    def _destroy_graphs(self) -> None:
        with ExitStack() as stack:  # goes on to the rest where one fails
            while self._runs:
                _, replay = self._runs.popitem()
                if replay:
                    stack.callback(self._destroy, replay)

    def _destroy(self, replay: Replay) -> None:
        try:
            self._cuda.destroy_graph(replay.graph)
        finally:
            replay.context.close()


@contextmanager
def _capture_errors() -> Iterator[None]:
    """Tell errors of a capture from those of a run."""
    try:
        yield
    except RunnerError as exc:
        raise CaptureError(str(exc)) from exc
