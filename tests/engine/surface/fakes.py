"""A module that behaves like TensorRT's runtime, with one engine, for the adapter's own logic."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

PROFILE = ((1, 64, 64, 3), (2, 128, 256, 3), (3, 256, 320, 3))
Kind = enum.Enum("Kind", "FLOAT HALF BF16 INT8 INT32 INT64 UINT8 BOOL FP8")
Mode = enum.Enum("Mode", "INPUT OUTPUT")
Allocation = enum.Enum("Allocation", "STATIC ON_PROFILE_CHANGE USER_MANAGED")


class Logger:
    ERROR, INTERNAL_ERROR, WARNING, INFO = (
        SimpleNamespace(name=n) for n in "ERROR INTERNAL_ERROR WARNING INFO".split()
    )


class Context:
    """An execution context whose answers a test may change."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses, self.runs = engine, dict[str, Any](), dict[str, int](), list[int]()
        self.error_recorder: Any = None
        self.profiler: Any = None
        self.answer = True
        self.unset: list[str] = []
        self.needed, self.asked, self.scratch = 777, 0, (0, 0)

    def _report(self) -> bool:
        if not self.answer:
            self.error_recorder.report_error(SimpleNamespace(name="INVALID_STATE"), "the reason")
        return self.answer

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self._report()

    def infer_shapes(self) -> list[str]:
        if "raise" in self.unset:
            raise RuntimeError("inference failed")
        return self.unset

    def get_tensor_shape(self, name: str) -> list[int]:
        batch, height, width, _ = self.shapes["image"]
        return [-1] if name == "count" else [batch, height, width]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return self._report()

    def update_device_memory_size_for_shapes(self) -> int:
        self.asked += 1
        return self.needed

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)
        self._report()

    def execute_async_v3(self, stream: int) -> bool:
        self.runs.append(stream)
        if self.profiler is not None:
            self.profiler.report_layer_time("conv", 0.5)
        return self._report()


class CapturableContext(Context):
    """A context of TensorRT-RTX, which tells what can be captured."""

    def is_stream_capturable(self, stream: int) -> bool:
        return stream == 7


class Kernels:
    """TensorRT-RTX's cache of what it has compiled; it takes ``b"ours"`` and gives ``b"ours, and more"``."""

    def deserialize(self, blob: bytes) -> bool:
        return blob == b"ours"

    def serialize(self) -> bytearray:
        return bytearray(b"ours, and more")


class Engine:
    """image (uint8, dynamic) and scale (float, static) to mask (uint8, dynamic), and more outputs if asked for."""

    device_memory_size_v2 = 12_345

    def __init__(self, **more: Kind) -> None:
        self.tensors: dict[str, tuple[Mode, Kind, tuple[int, ...]]] = {
            "image": (Mode.INPUT, Kind.UINT8, (-1, -1, -1, 3)),
            "scale": (Mode.INPUT, Kind.FLOAT, (4,)),
            "mask": (Mode.OUTPUT, Kind.UINT8, (-1, -1, -1)),
            **{name: (Mode.OUTPUT, kind, (-1,)) for name, kind in more.items()},
        }
        self.num_io_tensors = len(self.tensors)
        self.error_recorder: Any = None
        self.context: Context | None = Context(self)
        self.made_with: list[Any] = []

    def create_runtime_config(self) -> Any:
        made = SimpleNamespace(create_runtime_cache=Kernels)
        made.set_execution_context_allocation_strategy = lambda strategy: setattr(made, "allocation", strategy)
        made.set_runtime_cache = lambda kernels: setattr(made, "kernels", kernels)
        return made

    def create_execution_context(self, settings: Any) -> Context | None:
        self.made_with.append(settings)
        return self.context

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> Kind:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][2]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert (name, profile) == ("image", 0)
        return [list(shape) for shape in PROFILE]


def with_kernels(module: Any) -> Any:
    """Give a module what TensorRT-RTX alone has."""
    module.IRuntimeCache = Kernels
    module.DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", "LAZY EAGER NONE")
    return module


def fake_module(engine: Engine | None, made: list[Any], version: str = "10.3.0") -> Any:
    """Return a module whose runtime loads `engine`, or reports a reason where it is None; `made` gets the runtimes."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.engine_host_code_allowed = False
            self.error_recorder: Any = None
            made.append(self)

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            self.plan = plan
            if engine is None:
                self.error_recorder.report_error(SimpleNamespace(name="INVALID_STATE"), "other compute capability")
            return engine

    return SimpleNamespace(
        __version__=version,
        ILogger=Logger,
        IErrorRecorder=type("IErrorRecorder", (), {"__init__": lambda self: None}),
        IProfiler=type("IProfiler", (), {"__init__": lambda self: None}),
        DataType=Kind,
        TensorIOMode=Mode,
        ExecutionContextAllocationStrategy=Allocation,
        Runtime=Runtime,
    )
