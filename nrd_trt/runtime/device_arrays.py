"""Plans on arrays that lie on the device, of PyCUDA, CuPy, PyTorch and whoever else speaks their protocols.

Nothing goes through the host. Work is ordered by streams and events; see `nrd_trt.runtime.engine.Engine.predict_device`
for what a caller is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nrd_trt.errors import ConfigError, RunnerError, ShapeError, leave
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.machine.cuda import load_cuda
from nrd_trt.runtime import dlpack
from nrd_trt.runtime.base import DeviceRunner, DeviceTensor, Runner
from nrd_trt.runtime.dlpack import ArrayFacts
from nrd_trt.specs import check_number

LEGACY_STREAM = 1
"""Handle of the default stream that all threads share; the interfaces of arrays give it this number, too."""
ALIGNMENT = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceMask:
    """Masks on the device, which CuPy, PyTorch and PyCUDA take without a copy.

    Attributes:
        address: On the device.
        shape: ``(h, w)`` or ``(n, h, w)``; dense uint8.
        stream: What is queued on this stream from now on finds the masks complete; None where they are complete.
        owner: Whose memory it is: the array given as ``out=``, or the engine.
    """

    address: int
    shape: tuple[int, ...]
    stream: int | None
    owner: object = field(repr=False)
    order: Callable[[int, int], None] = field(repr=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The CUDA array interface, version 3."""
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's number of the first GPU."""
        return dlpack.CUDA, 0

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule, after which the consumer's stream finds the masks complete.

        Args:
            stream: The consumer's; None is the default stream that all threads share, -1 orders nothing.
            max_version: The newest version of DLPack that the consumer knows; None is one before 1.0.
            dl_device: Where the consumer wants them; only where they are.
            copy: True is refused.

        Raises:
            BufferError: A copy is asked for.
            RunnerError: The engine was left.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the masks are given where they are, without a copy; copy what you get.")
        if self.stream is not None and stream != -1:
            self.order(self.stream, stream or LEGACY_STREAM)
        versioned = max_version is not None and max_version >= (1, 0)
        return dlpack.make_capsule(self.address, self.shape, owner=self, versioned=versioned)


class DeviceRuns:
    """Runs an entered runner on arrays of others; a context manager.

    Args:
        runner: What runs a plan.
        graph: What is known of the plan's file.

    Raises:
        RunnerError: The runner does not work on the device.
        ConfigError: The graph does not take uint8 images, or gives no mask.
    """

    def __init__(self, runner: Runner, graph: GraphFacts) -> None:
        if not isinstance(runner, DeviceRunner):
            raise RunnerError(
                f"predict_device: expected an engine that runs a plan on a GPU, got runner={runner.name!r}, which "
                "works on the host; use predict, or open a bundle whose plan this machine can run."
            )
        if graph.input_form != "uint8" or "mask" not in graph.outputs:
            raise ConfigError(
                f"predict_device: expected an engine from uint8 images to masks, got input_form={graph.input_form!r} "
                f"and the output {graph.output!r}; build it with input_form='uint8' and outputs=('mask',)."
            )
        self._runner, self._graph = runner, graph
        self._release = ExitStack()
        self._entered = False

    def __enter__(self) -> DeviceRuns:
        with ExitStack() as stack:
            cuda = self._cuda = stack.enter_context(closing(load_cuda()))
            with cuda.current():
                self._stream, self._event = cuda.create_stream(), cuda.create_event()
            stack.callback(self._close)
            self._release = stack.pop_all()
        self._entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self._entered = False
        leave(self._release.close, error)

    def _close(self) -> None:
        with self._cuda.current(), ExitStack() as stack:  # goes on to the rest where one fails
            stack.callback(self._cuda.destroy_stream, self._stream)
            stack.callback(self._cuda.destroy_event, self._event)
            stack.callback(self._cuda.synchronize, self._stream)

    def order(self, before: int, after: int) -> None:
        """Let what is queued on one stream from now on wait for what is queued on another."""
        if not self._entered:
            raise RunnerError("the engine was left, and its masks are gone; use them before, or give out=.")
        if before != after:
            with self._cuda.current():
                self._cuda.record_event(self._event, before)
                self._cuda.wait_event(after, self._event)

    def run(self, rgb: object, *, stream: int | None, out: object | None) -> DeviceMask:
        """Do the work of `nrd_trt.runtime.engine.Engine.predict_device`."""
        check_number("stream", stream, low=0)
        named = _stream_of(rgb) if stream is None else stream or LEGACY_STREAM
        # Nothing can be captured on the default stream: there a stream of ours runs between two events.
        on = self._stream if named in (None, LEGACY_STREAM) else named
        with self._cuda.current():
            if named is not None:
                self.order(named, on)
            image = self._taken("rgb=", rgb, on, named)
            shape = self._checked_shape(image)
            target = None if out is None else self._target(self._taken("out=", out, on, named), shape)
            feed = {"image": DeviceTensor(address=image.address, shape=shape, dtype=np.dtype(np.uint8))}
            place = None if target is None else lambda name, nbytes: target
            mask = self._runner.infer_device(feed, on, place)["mask"]
            if named is None:
                self._cuda.synchronize(on)
            else:
                self.order(on, named)
        return DeviceMask(
            address=mask.address,
            shape=mask.shape if len(image.shape) == 4 else mask.shape[1:],
            stream=named,
            owner=self if out is None else out,
            order=self.order,
        )

    def _taken(self, what: str, array: object, on: int, named: int | None) -> ArrayFacts:
        """Read an array, and let a stream wait for the work on it as far as that is known."""
        interface, made_on = _interface_of(array), _stream_of(array)
        if interface is not None and made_on is not None:
            self.order(made_on, on)
        elif hasattr(array, "__dlpack__"):
            return _checked(what, _exported(what, array, on))
        elif interface is None:
            raise ShapeError(
                f"{what}: expected an array with __cuda_array_interface__ or __dlpack__, got {type(array).__name__}; "
                "give one of PyCUDA, CuPy or PyTorch."
            )
        elif named is None:
            self._cuda.synchronize_context()
        address, read_only = interface["data"]
        strides = interface.get("strides")
        dtype = np.dtype(interface["typestr"])
        facts = ArrayFacts(
            address=int(address or 0),
            shape=tuple(interface["shape"]),
            strides=None if strides is None else tuple(stride // dtype.itemsize for stride in strides),
            dtype=dtype.name,
            read_only=bool(read_only),
        )
        return _checked(what, facts)

    def _checked_shape(self, image: ArrayFacts) -> tuple[int, ...]:
        """Return the shape of the batch, or raise `ShapeError` where the engine does not take it."""
        shape = image.shape if len(image.shape) == 4 else (1, *image.shape)
        spans = (self._graph.shape.batch, self._graph.shape.height, self._graph.shape.width)
        sides = zip(shape, spans, strict=False)
        if len(shape) != 4 or shape[3] != 3 or not all(span.min <= side <= span.max for side, span in sides):
            takes = "×".join(f"{span.min}" if span.is_static else f"{span.min}–{span.max}" for span in spans)
            raise ShapeError(
                f"rgb=: expected (n, h, w, 3), or (h, w, 3) for one image, with n×h×w of {takes}, got {image.shape}; "
                "resize it on the device, or build for this size."
            )
        return shape

    def _target(self, out: ArrayFacts, shape: tuple[int, ...]) -> int:
        """Return the address of the array that takes the masks."""
        if set(self._runner.outputs) != {"mask"}:
            raise ConfigError(
                f"out=: expected an engine that gives nothing but masks, got {sorted(self._runner.outputs)}; leave it "
                "out, or build with outputs=('mask',)."
            )
        if out.shape not in (shape[:3], shape[1:3] if shape[0] == 1 else None) or out.read_only:
            raise ShapeError(
                f"out=: expected an array of shape {shape[:3]} that can be written to, got {out.shape}"
                f"{', read-only' if out.read_only else ''}; give another one."
            )
        return out.address


def _interface_of(array: object) -> Mapping[str, Any] | None:
    interface: Mapping[str, Any] | None = getattr(array, "__cuda_array_interface__", None)
    return interface


def _stream_of(array: object) -> int | None:
    """Return the stream that an array's interface names."""
    stream = (_interface_of(array) or {}).get("stream")
    if stream == 0:
        raise ConfigError("__cuda_array_interface__: expected a stream, or 1 for the default one, got 0; give stream=.")
    return None if stream is None else int(stream)


def _exported(what: str, array: Any, on: int) -> ArrayFacts:
    """Read an array by DLPack, which lets a stream wait for the work on it."""
    kind, number = array.__dlpack_device__()
    if kind not in (dlpack.CUDA, dlpack.CUDA_HOST, dlpack.CUDA_MANAGED) or (number and kind != dlpack.CUDA_HOST):
        raise RunnerError(
            f"{what}: expected an array on the first GPU, got one on DLPack's device ({int(kind)}, {number}); copy it "
            "there, or use predict for arrays of the host."
        )
    return dlpack.read_capsule(array.__dlpack__(stream=on))


def _checked(what: str, array: ArrayFacts) -> ArrayFacts:
    """Return a dense and aligned array of uint8, or raise `ShapeError`."""
    if array.dtype != "uint8":
        raise ShapeError(f"{what}: expected uint8, got {array.dtype}; convert it on the device.")
    dense = np.cumprod((1, *array.shape[:0:-1]))[::-1]
    wrong = [a for a, b, n in zip(array.strides or (), dense, array.shape, strict=False) if n > 1 and a != b]
    if wrong:
        raise ShapeError(f"{what}: expected a dense array, got strides {array.strides}; make it contiguous.")
    if array.address % ALIGNMENT:
        raise ShapeError(
            f"{what}: expected memory that is aligned to {ALIGNMENT} bytes, got the address {array.address:#x}; copy "
            "the array to one of its own."
        )
    return array
