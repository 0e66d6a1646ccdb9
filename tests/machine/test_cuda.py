"""The CUDA bindings on a machine without a driver, and which of them is chosen."""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nrd_trt.errors import MissingDependencyError, RunnerError
from nrd_trt.machine import cuda
from nrd_trt.machine.cuda import host_view, load_cuda, probe_device

_CUDA = ("cuda.bindings.runtime", "cuda.bindings", "cuda")


class _PyCudaError(Exception):
    pass


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make imports of these modules fail, as where they are not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def fake_pycuda(monkeypatch: pytest.MonkeyPatch, init: Any) -> None:
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.__spec__ = importlib.machinery.ModuleSpec("pycuda", None, is_package=True)
    context = SimpleNamespace(push=lambda: None)
    device = SimpleNamespace(
        retain_primary_context=lambda: context,
        name=lambda: "Orin",
        compute_capability=lambda: (8, 7),
        get_attribute=lambda attribute: 1,
    )
    members = {
        "Error": _PyCudaError,
        "init": init,
        "Device": lambda index: device,
        "device_attribute": SimpleNamespace(INTEGRATED=18),
        "get_driver_version": lambda: 12060,
        "mem_get_info": lambda: (10, 20),
    }
    for name, value in members.items():
        setattr(driver, name, value)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)


def test_no_driver_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Error 35 is what the library itself answers without a driver; where there is one, it is put in."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: `pip install nrd-trt[cuda]`")
    code, *_ = runtime.cudaGetDeviceCount()
    if code == runtime.cudaError_t.cudaSuccess:
        absent = runtime.cudaError_t.cudaErrorInsufficientDriver

        def cudaGetDeviceCount() -> tuple[Any, int]:
            return absent, 0

        monkeypatch.setattr(runtime, "cudaGetDeviceCount", cudaGetDeviceCount)
    else:
        assert int(code) in (35, 100)
    with pytest.raises(RunnerError, match=r"cudaGetDeviceCount failed with cudaError.*(driver is absent|no GPU)"):
        load_cuda()
    assert probe_device() is None


def test_no_binding_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, *_CUDA, "pycuda")
    with pytest.raises(MissingDependencyError, match=r"running engines on a GPU needs .*pip install nrd-trt\[cuda\]"):
        load_cuda()
    assert probe_device() is None


def test_pycuda_where_only_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, *_CUDA)
    fake_pycuda(monkeypatch, init=lambda: None)
    loaded = load_cuda()
    assert (loaded.name, loaded.has_graphs) == ("pycuda", False)
    facts = loaded.facts()
    assert (facts.name, facts.compute_capability, facts.cuda, facts.integrated) == ("Orin", "8.7", "12.6", True)
    with pytest.raises(RunnerError, match=r"CUDA graphs need cuda-python.*nrd-trt\[cuda\]"):
        loaded.begin_capture(0)


def test_another_package_below_cuda_is_not_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-pathfinder, which PyTorch brings, makes a package ``cuda`` without bindings."""
    hide(monkeypatch, "cuda.bindings.runtime", "cuda.bindings")
    fake_pycuda(monkeypatch, init=lambda: None)
    assert load_cuda().name == "pycuda"


def test_cuda_python_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: `pip install nrd-trt[cuda]`")
    fake_pycuda(monkeypatch, init=lambda: None)
    monkeypatch.setattr(cuda._CudaPython, "__init__", lambda self: None)
    assert load_cuda().name == "cuda-python"


def test_pycuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise _PyCudaError("no CUDA-capable device is detected")

    hide(monkeypatch, *_CUDA)
    fake_pycuda(monkeypatch, init=init)
    with pytest.raises(
        RunnerError, match=r"no GPU can be used .no CUDA-capable device is detected.; check `nvidia-smi`"
    ):
        load_cuda()
    assert probe_device() is None


def test_host_view_shares_memory() -> None:
    array = np.arange(12, dtype=np.float32)
    view = host_view(array.ctypes.data, array.nbytes)
    assert view.dtype == np.uint8 and view.shape == (48,)
    assert np.shares_memory(view, array)
    view[:] = 0
    assert not array.any()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cudaErrorInsufficientDriver", "the NVIDIA driver is absent or older than this CUDA, install or update it"),
        ("cudaErrorNoDevice", "no GPU is visible, check `nvidia-smi` and CUDA_VISIBLE_DEVICES"),
        ("cudaErrorMemoryAllocation", "the device is out of memory, close other programs or build a smaller size"),
        ("cudaErrorUnknown", None),
    ],
)
def test_errors_say_what_to_do(name: str, remedy: str | None) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: `pip install nrd-trt[cuda]`")
    binding = cuda._CudaPython.__new__(cuda._CudaPython)
    binding._rt = runtime

    def cudaMalloc(nbytes: int) -> tuple[Any, int]:
        return getattr(runtime.cudaError_t, name), 0

    with pytest.raises(RunnerError) as caught:
        binding._call(cudaMalloc, 8)
    assert str(caught.value).startswith(f"CUDA: cudaMalloc failed with {name} (")
    assert str(caught.value).endswith(f"; {remedy}." if remedy else ").")


def test_every_runtime_name_exists() -> None:
    """The names that `_CudaPython` uses, against the installed library."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: `pip install nrd-trt[cuda]`")
    import ast
    from pathlib import Path

    used = {
        node.attr
        for node in ast.walk(ast.parse(Path(cuda.__file__).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._rt"
    }
    assert len(used) > 20
    assert [name for name in sorted(used) if not hasattr(runtime, name)] == []


# --- events ---------------------------------------------------------------------------------------------------------


def test_cuda_python_hands_events_on() -> None:
    """Argument by argument: the library takes numbers for handles, and a swapped pair would be two valid numbers."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: `pip install nrd-trt[cuda]`")
    calls: list[tuple[Any, ...]] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith(("cudaEvent", "cudaStreamWait")) or not callable(getattr(runtime, name)):
                return getattr(runtime, name)

            def call(*args: Any) -> tuple[Any, ...]:
                calls.append((name, *args))
                return (runtime.cudaError_t.cudaSuccess, *([9] if "Create" in name else []))

            return call

    binding = cuda._CudaPython.__new__(cuda._CudaPython)
    binding._rt = Recorder()
    event = binding.create_event()
    binding.record_event(event, 7)
    binding.wait_event(8, event)
    binding.synchronize_event(event)
    binding.destroy_event(event)
    assert calls == [
        ("cudaEventCreateWithFlags", runtime.cudaEventDisableTiming | runtime.cudaEventBlockingSync),
        ("cudaEventRecord", 9, 7),
        ("cudaStreamWaitEvent", 8, 9, 0),
        ("cudaEventSynchronize", 9),
        ("cudaEventDestroy", 9),
    ]


def test_pycuda_hands_events_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Stream:
        def __init__(self, flags: int) -> None:
            self.handle = 40

        def synchronize(self) -> None:
            calls.append(("own stream",))

        def wait_for_event(self, event: Any) -> None:
            calls.append(("wait", self, event))

    class Event:
        def __init__(self, flags: int) -> None:
            calls.append(("create", flags))

        def record(self, stream: Any) -> None:
            calls.append(("record", self, stream))

        def synchronize(self) -> None:
            calls.append(("synchronize", self))

    hide(monkeypatch, *_CUDA)
    fake_pycuda(monkeypatch, init=lambda: None)
    driver = sys.modules["pycuda.driver"]
    members = {"Stream": Stream, "Event": Event, "event_flags": SimpleNamespace(DISABLE_TIMING=2, BLOCKING_SYNC=1)}
    for name, value in members.items():
        setattr(driver, name, value)
    loaded = load_cuda()
    loaded._context.synchronize = lambda: calls.append(("context",))  # type: ignore[attr-defined]
    stream, event = loaded.create_stream(), loaded.create_event()
    stream_object, event_object = (loaded._objects[handle] for handle in (stream, event))  # type: ignore[attr-defined]
    loaded.record_event(event, stream)
    loaded.wait_event(stream, event)
    loaded.synchronize_event(event)
    loaded.synchronize(stream)
    loaded.synchronize(41)  # a stream that somebody else made
    assert calls == [
        ("create", 3),
        ("record", event_object, stream_object),
        ("wait", stream_object, event_object),
        ("synchronize", event_object),
        ("own stream",),
        ("context",),
    ]
    loaded.destroy_event(event)
    loaded.destroy_stream(stream)
    assert loaded._objects == {}  # type: ignore[attr-defined]
