"""The CUDA bindings on a machine without a driver, and which of them is chosen."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from nrd_trt.errors import MissingDependencyError, RunnerError
from nrd_trt.machine import cuda
from nrd_trt.machine.cuda import host_view, load_cuda, probe_device

_CUDA = ("cuda.bindings.runtime", "cuda.bindings", "cuda")


class _PyCudaError(Exception):
    pass


@pytest.fixture
def runtime() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: `pip install nrd-trt[cuda]`")


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def fake_pycuda(monkeypatch: pytest.MonkeyPatch, init: Callable[[], None] = lambda: None, **members: Any) -> Any:
    """Install a pycuda with an Orin; return its driver module."""
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.__spec__ = importlib.machinery.ModuleSpec("pycuda", None, is_package=True)
    context = SimpleNamespace(push=lambda: None)
    device = SimpleNamespace(
        retain_primary_context=lambda: context,
        name=lambda: "Orin",
        compute_capability=lambda: (8, 7),
        get_attribute=lambda attribute: 1,
    )
    vars(driver).update(
        Error=_PyCudaError,
        init=init,
        Device=lambda index: device,
        device_attribute=SimpleNamespace(INTEGRATED=18),
        get_driver_version=lambda: 12060,
        mem_get_info=lambda: (10, 20),
        **members,
    )
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return context


def cuda_python(runtime: Any) -> Any:
    """The binding over another runtime module, without looking for a GPU."""
    binding = cuda._CudaPython.__new__(cuda._CudaPython)
    binding._rt = runtime
    return binding


def test_no_driver_is_named_with_the_remedy(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Error 35 is what the library itself answers without a driver; where there is one, it is put in."""
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        cudaGetDeviceCount = Mock(return_value=(runtime.cudaError_t.cudaErrorInsufficientDriver, 0))
        cudaGetDeviceCount.__name__ = "cudaGetDeviceCount"
        monkeypatch.setattr(runtime, "cudaGetDeviceCount", cudaGetDeviceCount)
    with pytest.raises(RunnerError, match=r"cudaGetDeviceCount failed with cudaError.*(driver is absent|no GPU)"):
        load_cuda()
    assert probe_device() is None


def test_no_binding_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, *_CUDA, "pycuda")
    with pytest.raises(MissingDependencyError, match=r"running engines on a GPU needs .*pip install nrd-trt\[cuda\]"):
        load_cuda()
    assert probe_device() is None


@pytest.mark.parametrize("hidden", [_CUDA, _CUDA[:2]], ids=["no cuda", "another package below cuda"])
def test_pycuda_where_only_that_is_installed(hidden: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-pathfinder, which PyTorch brings, makes a package ``cuda`` without bindings."""
    hide(monkeypatch, *hidden)
    fake_pycuda(monkeypatch)
    loaded, facts = load_cuda(), probe_device()
    assert (loaded.name, loaded.has_graphs) == ("pycuda", False)
    assert facts is not None
    assert (facts.name, facts.compute_capability, facts.cuda, facts.integrated) == ("Orin", "8.7", "12.6", True)
    assert (facts.memory_bytes, facts.free_bytes) == (20, 10)
    for call in (
        loaded.begin_capture, loaded.end_capture, loaded.abort_capture, loaded.destroy_graph,
        lambda stream: loaded.launch_graph(0, stream),
    ):  # fmt: skip
        with pytest.raises(RunnerError, match=r"CUDA graphs need cuda-python.*nrd-trt\[cuda\]"):
            call(0)


def test_cuda_python_comes_first(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pycuda(monkeypatch)
    monkeypatch.setattr(cuda._CudaPython, "__init__", lambda self: None)
    assert load_cuda().name == "cuda-python"


def test_pycuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise _PyCudaError("no CUDA-capable device is detected")

    hide(monkeypatch, *_CUDA)
    fake_pycuda(monkeypatch, init)
    expected = r"no GPU can be used .no CUDA-capable device is detected.; check `nvidia-smi`"
    with pytest.raises(RunnerError, match=expected):
        load_cuda()
    assert probe_device() is None


def test_host_view_shares_memory() -> None:
    array = np.arange(12, dtype=np.float32)
    view = host_view(array.ctypes.data, array.nbytes)
    assert view.dtype == np.uint8 and view.shape == (48,)
    assert np.shares_memory(view, array)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cudaErrorInsufficientDriver", "the NVIDIA driver is absent or older than this CUDA, install or update it"),
        ("cudaErrorMemoryAllocation", "the device is out of memory, close other programs or build a smaller size"),
        ("cudaErrorUnknown", None),
    ],
)
def test_errors_say_what_to_do(name: str, remedy: str | None, runtime: Any) -> None:
    cudaMalloc = Mock(return_value=(getattr(runtime.cudaError_t, name), 0))
    cudaMalloc.__name__ = "cudaMalloc"
    with pytest.raises(RunnerError) as caught:
        cuda_python(runtime)._call(cudaMalloc, 8)
    assert str(caught.value).startswith(f"CUDA: cudaMalloc failed with {name} (")
    assert str(caught.value).endswith(f"; {remedy}." if remedy else ").")


def test_every_runtime_name_exists(runtime: Any) -> None:
    """The names that `_CudaPython` uses, against the installed library."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(Path(cuda.__file__).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._rt"
    }
    assert len(used) > 20
    assert [name for name in sorted(used) if not hasattr(runtime, name)] == []


def test_cuda_python_hands_events_on(runtime: Any) -> None:
    """Argument by argument: the library takes numbers for handles, and a swapped pair would be two valid numbers."""
    calls: list[tuple[Any, ...]] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith(("cudaEvent", "cudaStreamWait")) or not callable(getattr(runtime, name)):
                return getattr(runtime, name)

            def call(*args: Any) -> tuple[Any, ...]:
                calls.append((name, *args))
                return (runtime.cudaError_t.cudaSuccess, *([9] if "Create" in name else []))

            return call

    binding = cuda_python(Spy())
    event = binding.create_event()
    binding.record_event(event, 7)
    binding.wait_event(8, event)
    binding.synchronize_event(event)
    binding.destroy_event(event)
    assert calls == [
        ("cudaEventCreateWithFlags", runtime.cudaEventDisableTiming | runtime.cudaEventBlockingSync),
        ("cudaEventRecord", 9, 7), ("cudaStreamWaitEvent", 8, 9, 0), ("cudaEventSynchronize", 9),
        ("cudaEventDestroy", 9),
    ]  # fmt: skip


def test_pycuda_hands_events_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def noting(name: str) -> Callable[..., None]:
        return lambda *arguments: calls.append((name, *arguments))

    def stream_of(flags: int) -> SimpleNamespace:
        return SimpleNamespace(handle=40, synchronize=noting("own stream"), wait_for_event=noting("wait"))

    def event_of(flags: int) -> SimpleNamespace:
        calls.append(("create", flags))
        return SimpleNamespace(record=noting("record"), synchronize=noting("synchronize"))

    hide(monkeypatch, *_CUDA)
    flags = SimpleNamespace(DISABLE_TIMING=2, BLOCKING_SYNC=1)
    context = fake_pycuda(monkeypatch, Stream=stream_of, Event=event_of, event_flags=flags)
    context.synchronize = noting("context")
    loaded: Any = load_cuda()
    stream, event = loaded.create_stream(), loaded.create_event()
    stream_object, event_object = (loaded._objects[handle] for handle in (stream, event))
    loaded.record_event(event, stream)
    loaded.wait_event(stream, event)
    loaded.synchronize_event(event)
    loaded.synchronize(stream)
    loaded.synchronize(41)  # a stream that somebody else made
    assert calls == [
        ("create", 3), ("record", stream_object), ("wait", event_object),
        ("synchronize",), ("own stream",), ("context",),
    ]  # fmt: skip
    loaded.destroy_event(event)
    loaded.destroy_stream(stream)
    assert loaded._objects == {}
