"""The CUDA bindings on a machine without a driver, and which of them is chosen."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest

from nrd_trt.errors import MissingDependencyError, RunnerError
from nrd_trt.machine import cuda
from nrd_trt.machine.cuda import host_view, load_cuda, probe_device
from nrd_trt.machine.gpu import Gpu, kernel_driver
from nrd_trt.machine.host import Machine

_CUDA = ("cuda.bindings.runtime", "cuda.bindings", "cuda")


class PyCudaError(Exception):
    """What pycuda raises."""


@pytest.fixture
def runtime() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: `pip install nrd-trt[cuda]`")


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def fake_pycuda(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Put a pycuda with an Orin in the place of cuda-python; return its driver module."""
    hide(monkeypatch, *_CUDA)
    driver = Mock(Error=PyCudaError)
    device = driver.Device.return_value
    device.name.return_value, device.compute_capability.return_value = "Orin", (8, 7)
    driver.get_driver_version.return_value, driver.mem_get_info.return_value = 12060, (10, 20)
    package = Mock(__spec__=importlib.machinery.ModuleSpec("pycuda", None, is_package=True))
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver


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


@pytest.mark.parametrize("package", [None, ModuleType("cuda")], ids=["no cuda", "another package below cuda"])
def test_pycuda_where_only_that_is_installed(package: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-pathfinder, which PyTorch brings, makes a package ``cuda`` without bindings."""
    fake_pycuda(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda", package)
    loaded = load_cuda()
    assert (loaded.name, loaded.has_graphs) == ("pycuda", False)
    assert probe_device() == Gpu(
        name="Orin",
        compute_capability="8.7",
        driver=kernel_driver(Machine()),
        cuda="12.6",
        integrated=True,
        memory_bytes=20,
        free_bytes=10,
    )
    for method in (
        loaded.begin_capture, loaded.end_capture, loaded.abort_capture, loaded.destroy_graph,
        lambda stream: loaded.launch_graph(0, stream),
    ):  # fmt: skip
        with pytest.raises(RunnerError, match=r"CUDA graphs need cuda-python.*nrd-trt\[cuda\]"):
            method(0)


def test_cuda_python_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pycuda(monkeypatch)
    monkeypatch.setattr(cuda._CudaPython, "__init__", lambda self: None)
    assert load_cuda().name == "cuda-python"


def test_pycuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pycuda(monkeypatch).init.side_effect = PyCudaError("no CUDA-capable device is detected")
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


def test_cuda_python_hands_events_on(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument by argument: the library takes numbers for handles, and a swapped pair would be two valid numbers."""
    spy, done = Mock(), runtime.cudaError_t.cudaSuccess
    for name in ("EventCreateWithFlags", "EventRecord", "StreamWaitEvent", "EventSynchronize", "EventDestroy"):
        function = getattr(spy, name)
        function.return_value = (done, 9) if "Create" in name else (done,)
        monkeypatch.setattr(runtime, f"cuda{name}", function)
    binding = cuda_python(runtime)
    event = binding.create_event()
    binding.record_event(event, 7)
    binding.wait_event(8, event)
    binding.synchronize_event(event)
    binding.destroy_event(event)
    flags = runtime.cudaEventDisableTiming | runtime.cudaEventBlockingSync
    assert spy.mock_calls == [
        call.EventCreateWithFlags(flags), call.EventRecord(9, 7), call.StreamWaitEvent(8, 9, 0),
        call.EventSynchronize(9), call.EventDestroy(9),
    ]  # fmt: skip


def test_pycuda_hands_events_on(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake_pycuda(monkeypatch)
    driver.event_flags = SimpleNamespace(DISABLE_TIMING=2, BLOCKING_SYNC=1)
    driver.Stream.return_value.handle = 40
    loaded: Any = load_cuda()
    driver.reset_mock()
    stream, event = loaded.create_stream(), loaded.create_event()
    loaded.record_event(event, stream)
    loaded.wait_event(stream, event)
    loaded.synchronize_event(event)
    loaded.synchronize(stream)
    loaded.synchronize(41)  # a stream that somebody else made
    made_stream, made_event = driver.Stream.return_value, driver.Event.return_value
    assert driver.mock_calls == [
        call.Stream(flags=1), call.Event(3), call.Event().record(made_stream),
        call.Stream().wait_for_event(made_event), call.Event().synchronize(), call.Stream().synchronize(),
        call.Device().retain_primary_context().synchronize(),
    ]  # fmt: skip
    loaded.destroy_event(event)
    loaded.destroy_stream(stream)
    assert loaded._objects == {}
