"""A loaded engine: from a plan to calls on addresses that the caller owns.

The module is handed in by `nrd_trt.engine.compat`. Device memory, streams and copies belong to the runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from nrd_trt.engine.messages import MessageLog, layer_profiler
from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.progress import OnLayer
from nrd_trt.specs import TensorSpec, format_shape

Shape = tuple[int, ...]


def load_engine(trt: Any, label: str, plan: bytes, log: MessageLog, *, host_code: bool, rebuild: str) -> LoadedEngine:
    """Load a plan; see `nrd_trt.engine.compat.TensorRT.deserialize`."""
    try:
        runtime = trt.Runtime(log.logger)
    except TypeError as exc:  # the bindings' word for a null pointer
        raise RunnerError(
            f"{label} cannot start on this machine{log.tail()}: running engines needs an NVIDIA GPU and its driver. "
            "Use runner='onnxruntime' here."
        ) from exc
    runtime.error_recorder = log.recorder
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RunnerError(
            f"{label} cannot load the plan{log.tail()}. It was made for another GPU, TensorRT version or operating "
            f"system, or there is no GPU with a new enough driver; rebuild with: {rebuild}"
        )
    engine.error_recorder = log.recorder
    return LoadedEngine(trt, label, runtime, engine, log)


def _context_settings(trt: Any, engine: Any) -> tuple[Any, Any]:
    """Return what contexts are made with, and the cache of compiled kernels, which TensorRT-RTX alone has."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(trt, "IRuntimeCache"):
        return strategy, None
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(strategy)
    # By default it starts with fallback kernels, compiles better ones beside the runs and changes over: masks could
    # change from one frame to the next, and a graph would keep the fallback.
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    settings.dynamic_shapes_kernel_specialization_strategy = eager
    kernels = settings.create_runtime_cache()
    settings.set_runtime_cache(kernels)
    return settings, kernels


class LoadedEngine:
    """An engine; what runs it is a context of it.

    Attributes:
        inputs: Input specs by name; None marks a dynamic dimension.
        outputs: Output specs by name.
        device_memory_bytes: Scratch memory that a run of any shape needs at most.
        compiles: Whether it compiles kernels for this GPU when it is first run, as TensorRT-RTX does.
    """

    def __init__(self, trt: Any, label: str, runtime: Any, engine: Any, log: MessageLog) -> None:
        self._engine, self._runtime, self._log = engine, runtime, log
        self._trt, self._label = trt, label
        self._settings, self._kernels = _context_settings(trt, engine)
        self._profiler: Any = None
        self.compiles = self._kernels is not None
        self.device_memory_bytes = int(engine.device_memory_size_v2)
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = self._spec(name)

    def context(self) -> EngineContext:
        """Return a new context, with shapes and addresses of its own; close it.

        Raises:
            RunnerError: There is no memory for it.
        """
        self._open()
        context = self._engine.create_execution_context(self._settings)
        if context is None:
            raise RunnerError(
                f"{self._label} cannot make room to run the engine{self._log.tail()}; free GPU memory or build for a "
                "smaller size=."
            )
        context.error_recorder = self._log.recorder
        if self._profiler is not None:
            context.profiler = self._profiler
        return EngineContext(self, context, self._label, self._log)

    def profile(self, on_layer: OnLayer) -> None:
        """Time every layer of the contexts made from now on; their runs wait for their end, and cannot be captured."""
        self._open()
        self._profiler = layer_profiler(self._trt, on_layer)  # held: a context may not own it

    def take_kernels(self, content: bytes) -> bool:
        """Use what `kernels` gave in an earlier process, from now on; False where TensorRT refuses it.

        Before the first context, which may compile some, and in a CUDA context.
        """
        self._open()
        return bool(self._kernels.deserialize(content))

    def kernels(self) -> bytes:
        """Return the kernels that were compiled so far, and those that were taken."""
        self._open()
        return bytes(self._kernels.serialize() or b"")

    def profile_range(self, name: str) -> tuple[Shape, Shape, Shape]:
        """Return smallest, usual and largest shape of an input."""
        self._open()
        shape = self.inputs[name].shape
        if None not in shape:
            fixed = tuple(n for n in shape if n is not None)
            return fixed, fixed, fixed
        low, opt, high = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, 0))
        return low, opt, high

    def layer_information(self) -> str:
        """Return the engine inspector's JSON: layers, types and formats as they were built."""
        self._open()
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Release everything, users before what they use, after its contexts; may be called again."""
        self._settings = self._kernels = self._engine = self._runtime = None  # from left to right

    def _open(self) -> None:
        """Start a call: its error tells its own messages only."""
        if self._engine is None:
            raise RunnerError(f"{self._label}: the engine is closed; load it again.")
        self._log.forget()

    def _spec(self, name: str) -> TensorSpec:
        return tensor_spec(self._trt, name, self._engine.get_tensor_dtype(name), self._engine.get_tensor_shape(name))


class EngineContext:
    """What runs an engine, on one stream at a time and in scratch memory that the caller lends; one thread at a time.

    Attributes:
        scratch_bytes: How much of that the shapes need that were set.
    """

    def __init__(self, engine: LoadedEngine, context: Any, label: str, log: MessageLog) -> None:
        self._context, self._loaded, self._label, self._log = context, engine, label, log
        self._shapes: Mapping[str, Shape] | None = None
        self._outputs: dict[str, Shape] = {}
        self.scratch_bytes = 0

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Choose the input shapes of the runs to come.

        Args:
            shapes: Shape of each input, by name.

        Returns:
            Output shapes by name.

        Raises:
            ShapeError: A name is unknown, or a shape is outside the range that the engine was built for.
            RunnerError: TensorRT refuses the shapes.
        """
        self._open()
        if shapes == self._shapes:
            return self._outputs
        self._shapes = None  # where one is refused, others may be set
        for name, shape in shapes.items():
            self._check(name, shape)
            if not self._context.set_input_shape(name, tuple(shape)):
                raise self._failed(f"refused the shape {shape} of input {name!r}")
        try:
            unset = self._context.infer_shapes()
        except RuntimeError as exc:
            raise self._failed("cannot work out the shapes of the outputs") from exc
        if unset:
            raise self._failed(f"does not know the shapes of {', '.join(unset)} yet; set all inputs")
        # It says 0 too where it cannot tell, and then the run must have room for any shape.
        self.scratch_bytes = (
            int(self._context.update_device_memory_size_for_shapes()) or self._loaded.device_memory_bytes
        )
        self._outputs = {name: tuple(self._context.get_tensor_shape(name)) for name in self._loaded.outputs}
        self._shapes = dict(shapes)
        return self._outputs

    def set_scratch(self, address: int, nbytes: int) -> None:
        """Lend scratch memory, aligned to 256, of `scratch_bytes` or more; the caller keeps it until the runs ended."""
        self._open()
        self._context.set_device_memory(address, nbytes)
        if self._log.recorder.num_errors():  # it gives no answer
            raise self._failed("refused its scratch memory")

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Tell where inputs are read and outputs written; the caller keeps the memory alive."""
        self._open()
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._failed(f"refused the address of {name!r}")

    def enqueue(self, stream: int) -> None:
        """Start one run on a CUDA stream and return at once.

        Raises:
            RunnerError: It cannot be started.
        """
        self._open()
        if not self._context.execute_async_v3(stream):
            raise self._failed("could not start the run")

    def check_capturable(self, stream: int) -> None:
        """Raise `RunnerError` where TensorRT says that a run on a stream cannot be captured as it is now."""
        self._open()
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(stream):
            raise self._failed(
                "says that a run of this plan may allocate memory, which a capture forbids; build it again"
            )

    def close(self) -> None:
        """Release it, once its runs have ended; may be called again."""
        self._context = None

    def _open(self) -> None:
        """Start a call: its error tells its own messages only."""
        if self._context is None:
            raise RunnerError(f"{self._label}: the engine is closed; load it again.")
        self._log.forget()

    def _failed(self, what: str) -> RunnerError:
        return RunnerError(f"{self._label} {what}{self._log.tail()}.")

    def _check(self, name: str, shape: Shape) -> None:
        if name not in self._loaded.inputs:
            raise ShapeError(f"{self._label}: expected inputs {sorted(self._loaded.inputs)}, got {name!r}.")
        low, _, high = self._loaded.profile_range(name)
        if len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return
        raise ShapeError(
            f"tensor {name!r}: expected a shape from {format_shape(low)} to {format_shape(high)}, "
            f"got {format_shape(shape)}; resize it or build for this size."
        )


def tensor_spec(trt: Any, name: str, kind: Any, shape: Any) -> TensorSpec:
    """Describe a tensor of TensorRT's type and dimensions, where -1 is a dynamic one."""
    dtype = numpy_types(trt).get(kind)
    if dtype is None:
        raise RunnerError(f"tensor {name!r}: NumPy has no type {kind}; export the model with another output type.")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(None if n < 0 else int(n) for n in shape))


def numpy_types(trt: Any) -> dict[Any, np.dtype[Any]]:
    """Return the NumPy type of each TensorRT type that has one."""
    return {
        trt.DataType.FLOAT: np.dtype(np.float32),
        trt.DataType.HALF: np.dtype(np.float16),
        trt.DataType.BF16: np.dtype(ml_dtypes.bfloat16),
        trt.DataType.INT8: np.dtype(np.int8),
        trt.DataType.INT32: np.dtype(np.int32),
        trt.DataType.INT64: np.dtype(np.int64),
        trt.DataType.UINT8: np.dtype(np.uint8),
        trt.DataType.BOOL: np.dtype(np.bool_),
    }
