"""Runs whose copies overlap with the runs beside them, on any runner that works on device memory.

Uploads, the engine and downloads have a stream each, and events make a run pass from one to the next. Each run has a
slot with memory of its own on both sides, which the engine reads and writes; on integrated GPUs that memory is mapped
and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from nrd_trt.errors import ConfigError, RunnerError, attempt, leave
from nrd_trt.machine.cuda import Cuda, load_cuda
from nrd_trt.runtime.base import DeviceRunner, DeviceTensor, Feed, check_feed
from nrd_trt.runtime.buffers import Buffer, nbytes_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Ticket:
    """A run that was begun; for `OverlappedRunner.finish`."""

    slot: _Slot
    outputs: Mapping[str, DeviceTensor]


class OverlappedRunner:
    """Begins runs before the ones ahead of them have ended; not to be shared by threads.

    Args:
        runner: Entered; nobody else uses it meanwhile.
        slots: Runs that may be begun and not finished at a time, at least 1.

    Attributes:
        runner: As given.
        slots: As given.
    """

    def __init__(self, runner: DeviceRunner, *, slots: int = 2) -> None:
        if slots < 1:
            raise ConfigError(f"slots: expected at least 1, got {slots}.")
        self.runner, self.slots = runner, slots
        self._release: ExitStack | None = None

    def begin(self, feed: Feed) -> Ticket:
        """Queue one run; arrays are not needed afterwards, device memory is until the run is finished.

        Args:
            feed: Inputs by name. What lies on the device is complete, and is copied there.

        Raises:
            RunnerError: Not entered, as many runs are begun as there are slots, or the run cannot be started.
            ShapeError: A feed is missing, unknown, or has another type or shape.
        """
        self._check_entered()
        check_feed(self.runner.name, feed, self.runner.inputs)
        if not self._free:
            raise RunnerError(
                f"{self.runner.name}: all {self.slots} slots hold runs that were begun; finish one first."
            )
        slot = self._free.pop()  # the last one freed: a caller with one run at a time keeps to one slot and its graph
        with self._cuda.current():
            try:
                ticket = Ticket(slot=slot, outputs=self._queue(slot, feed))
            except BaseException:
                attempt(self._settle)  # what was queued before the error uses the slot
                self._free.append(slot)
                raise
        self._begun.add(ticket)
        return ticket

    def finish(self, ticket: Ticket) -> dict[str, np.ndarray]:
        """Wait for a run and return its outputs, which are fresh.

        Raises:
            RunnerError: Not entered, the ticket is of another runner or used up, or the run failed.
        """
        self._check_entered()
        if ticket not in self._begun:
            raise RunnerError(
                f"{self.runner.name}: expected a run that was begun here and not finished; begin another."
            )
        self._begun.remove(ticket)
        try:
            with self._cuda.current():
                return ticket.slot.read(ticket.outputs)
        finally:
            self._free.append(ticket.slot)

    def __enter__(self) -> OverlappedRunner:
        if self._release is not None:
            raise RunnerError(f"{self.runner.name}: already entered; leave it first or make a second one.")
        self._begun: set[Ticket] = set()
        self._free: list[_Slot] = []
        with ExitStack() as opened:
            cuda = self._cuda = load_cuda()
            opened.callback(cuda.close)
            with cuda.current(), ExitStack() as stack:
                self._acquire(stack, cuda)
                self._release = stack.pop_all()
            opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        release, self._release = self._release, None
        if release is not None:
            leave(lambda: self._close(release), error)

    def _close(self, release: ExitStack) -> None:
        with closing(self._cuda), self._cuda.current():
            release.close()

    def _acquire(self, stack: ExitStack, cuda: Cuda) -> None:
        """Take everything in the order of need; the stack gives it back in the opposite order."""
        self._uploads, self._compute, self._downloads = (
            _held(stack, cuda.create_stream, cuda.destroy_stream) for _ in range(3)
        )
        mapped = cuda.facts().integrated
        names = [*self.runner.inputs, *self.runner.outputs]
        for _ in range(self.slots):
            self._free.append(_Slot(cuda, stack, names, mapped=mapped))
        stack.callback(self._settle)  # the first to be called: nothing runs when memory goes

    def _queue(self, slot: _Slot, feed: Feed) -> dict[str, DeviceTensor]:
        """Queue a run through a slot; return its outputs as they are there."""
        tensors = {name: slot.take(name, tensor, self._uploads) for name, tensor in feed.items()}
        self._cuda.record_event(slot.uploaded, self._uploads)
        self._cuda.wait_event(self._compute, slot.uploaded)
        # All runs are on this one stream, because they share the engine's context, and write where nothing else does.
        outputs = self.runner.infer_device(tensors, self._compute, slot.place)
        self._cuda.record_event(slot.computed, self._compute)
        self._cuda.wait_event(self._downloads, slot.computed)
        for name in outputs:
            slot.buffers[name].download(self._downloads)
        self._cuda.record_event(slot.ended, self._downloads)
        return outputs

    def _settle(self) -> None:
        """Wait for everything that was queued."""
        with ExitStack() as stack:  # goes on to the rest where one fails
            for stream in (self._downloads, self._compute, self._uploads):
                stack.callback(self._cuda.synchronize, stream)

    def _check_entered(self) -> None:
        if self._release is None:
            raise RunnerError(f"{self.runner.name}: not entered; use it inside a `with` block.")


class _Slot:
    """Memory and events of one run, from its begin to its finish."""

    def __init__(self, cuda: Cuda, stack: ExitStack, names: Iterable[str], *, mapped: bool) -> None:
        self._cuda = cuda
        self.buffers = {name: Buffer(cuda, mapped=mapped) for name in names}
        for buffer in self.buffers.values():
            stack.callback(buffer.release)
        self.uploaded, self.computed, self.ended = (
            _held(stack, cuda.create_event, cuda.destroy_event) for _ in range(3)
        )

    def take(self, name: str, tensor: np.ndarray | DeviceTensor, stream: int) -> DeviceTensor:
        """Queue the copy of an input to the slot: the graph that was captured there reads it in no other place."""
        buffer, nbytes = self.buffers[name], nbytes_of(tensor.shape, tensor.dtype)
        buffer.reserve(nbytes)
        if isinstance(tensor, DeviceTensor):
            try:
                self._cuda.check_address(tensor.address)
            except RunnerError as exc:
                raise RunnerError(f"tensor {name!r}: {exc}") from exc
            self._cuda.copy(buffer.device, tensor.address, nbytes, stream)
        else:
            buffer.fill(tensor)
            buffer.upload(stream)
        return DeviceTensor(address=buffer.device, shape=tensor.shape, dtype=tensor.dtype)

    def place(self, name: str, nbytes: int) -> int:
        """Make room for an output and return its device address."""
        self.buffers[name].reserve(nbytes)
        return self.buffers[name].device

    def read(self, outputs: Mapping[str, DeviceTensor]) -> dict[str, np.ndarray]:
        """Wait for the run and return fresh arrays of its outputs."""
        self._cuda.synchronize_event(self.ended)
        return {name: self.buffers[name].read(tensor.shape, tensor.dtype) for name, tensor in outputs.items()}


def _held(stack: ExitStack, create: Callable[[], int], destroy: Callable[[int], None]) -> int:
    """Return a new stream or event, which goes with the stack."""
    handle = create()
    stack.callback(destroy, handle)
    return handle
