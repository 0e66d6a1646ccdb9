"""The CUDA calls on the fake driver: how a device is opened, in which context, and what goes wrong in words."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest

from nrd_trt.errors import ConfigError, MissingDependencyError, RunnerError
from nrd_trt.machine import libcuda
from nrd_trt.machine.cuda import Cuda, host_view, load_cuda, open_cuda, probe_device
from nrd_trt.machine.gpu import Gpu, kernel_driver
from nrd_trt.machine.host import Machine
from tests.artefacts import REPOSITORY, environment
from tests.plugin_library import COMPILER, needs_compiler
from tests.runtime.fake_cuda import (
    HEADERS,
    ILLEGAL_ADDRESS,
    OUT_OF_MEMORY,
    PYCUDA_VARIABLE,
    FakeDriver,
    another_context,
    complaints_of_gcc,
    library_folder,
)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver(monkeypatch)


@pytest.fixture
def cuda(driver: FakeDriver) -> Iterator[Cuda]:
    """The device in its context; what a test leaves there goes with the fake driver."""
    opened = load_cuda()
    with opened.current():
        yield opened


# --- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", HEADERS)
def test_every_prototype_type_and_constant_is_that_of_the_header(package: str) -> None:
    """A declaration that differs from the header's does not compile, nor does a name that it lacks."""
    prototypes = libcuda.PROTOTYPES.strip().splitlines()
    names = [line.partition("(")[0] for line in prototypes]
    constants = {name: value for name, value in vars(libcuda).items() if name.startswith(("CU_", "CUDA_"))}
    assert len(names) > 30 and len(constants) > 8
    code = [
        "#define __CUDA_API_VERSION_INTERNAL",
        "#include <cuda.h>",
        f"void *const known[] = {{{', '.join(f'(void *){name}' for name in names)}}};",
        *(f"CUresult CUDAAPI {line};" for line in prototypes),
        *(f'_Static_assert({name} == {value}, "{name}");' for name, value in constants.items()),
        *(
            f'_Static_assert(sizeof({name}) == {ctypes.sizeof(kind)}, "{name}");'
            for name, kind in libcuda._C_TYPES.items()
        ),
    ]
    assert complaints_of_gcc(package, "-fsyntax-only", "-xc", "-", code="\n".join(code)) == ""


def test_arguments_are_checked_before_the_call(cuda: Cuda) -> None:
    for wrong in ("an address", 1.0, ctypes.byref(ctypes.c_int())):
        with pytest.raises(ctypes.ArgumentError):
            libcuda.LibCuda().call("cuMemFree_v2", wrong)


# --- opening --------------------------------------------------------------------------------------------------------


def test_device_is_described_and_its_context_given_back(driver: FakeDriver) -> None:
    driver.set(integrated=True)
    described = Gpu(
        name="Fake GPU 0",
        compute_capability="8.7",
        driver=kernel_driver(Machine()),
        cuda="12.6",
        integrated=True,
        memory_bytes=1 << 33,
        pci_bus_id="0000:65:00.0",
        uuid="GPU-00000000-0000-0000-0000-000000000000",
        multiprocessors=8,
    )
    driver.fail("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY)
    assert probe_device() == described  # makes no context
    with pytest.raises(RunnerError, match="cuDevicePrimaryCtxRetain failed"):
        load_cuda()
    with open_cuda() as cuda:
        assert cuda.facts() == replace(described, free_bytes=1 << 32)
    assert driver.alive == {}
    first, second = load_cuda(), load_cuda("driver")
    first.close()
    assert driver.alive == {"context": 1}
    second.close()
    assert (driver.alive, driver.current_context(), first.name) == ({}, 0, "driver")


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcuda, "LIBRARY", "libcuda-absent.so.1")
    with pytest.raises(RunnerError, match=r"cannot be loaded \(libcuda-absent.*; install the NVIDIA driver, or start"):
        load_cuda()
    assert probe_device() is None


@needs_compiler
def test_a_driver_that_lacks_a_function_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libcuda.so.1"
    code = "int cuGetErrorName, cuGetErrorString, cuInit;\n"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-xc", "-o", str(path), "-"], input=code, text=True, check=True)
    monkeypatch.setattr(libcuda, "LIBRARY", str(path))
    with pytest.raises(RunnerError, match=r"so\.1 has no cuDriverGetVersion; update the NVIDIA driver to branch 525"):
        load_cuda()


def test_a_driver_too_old(driver: FakeDriver) -> None:
    driver.set(version=11080)
    with pytest.raises(RunnerError, match=r"a driver for CUDA 12\.0 or newer, got one for 11\.8; update the NVIDIA"):
        load_cuda()
    assert probe_device() is None
    driver.set(version=12000)
    load_cuda().close()


NO_GPU = "no GPU is visible, check `nvidia-smi` and CUDA_VISIBLE_DEVICES."


def test_without_a_device(driver: FakeDriver) -> None:
    driver.set(devices=0)
    with pytest.raises(RunnerError) as caught:
        load_cuda()
    assert str(caught.value) == (
        f"CUDA: cuInit failed with CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected); {NO_GPU}"
    )
    assert probe_device() is None


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("cuInit", 34, "CUDA_ERROR_STUB_LIBRARY (CUDA driver is a stub library); this is the toolkit's file to link "),
        ("cuInit", 803, "; the driver was updated and not loaded yet, restart the machine."),
        ("cuDeviceGet", 101, f"CUDA_ERROR_INVALID_DEVICE (invalid device ordinal); {NO_GPU}"),
        (
            "cuDevicePrimaryCtxRetain",
            2,
            "(out of memory); the device is out of memory, close other programs or ",
        ),
        ("cuDeviceGet", 4321, "cuDeviceGet failed with CUresult 4321 (CUresult 4321)."),
    ],
)
def test_errors_say_what_to_do(driver: FakeDriver, function: str, code: int, words: str) -> None:
    driver.fail(function, code)
    with pytest.raises(RunnerError, match=f"^CUDA: {function} failed with ") as caught:
        load_cuda()
    assert words in str(caught.value)
    assert driver.alive == {}


def test_providers(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = "opencl"
    with pytest.raises(ConfigError, match="provider='opencl': expected one of 'driver', 'pycuda'"):
        load_cuda(other)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(MissingDependencyError, match=r"by way of PyCUDA needs .*pip install 'nrd-trt\[pycuda\]'"):
        load_cuda("pycuda")
    assert driver.alive == {}


# --- working --------------------------------------------------------------------------------------------------------


def test_a_thread_has_the_context_within_a_block_only(driver: FakeDriver) -> None:
    with open_cuda() as cuda, ThreadPoolExecutor(1) as pool:
        with pytest.raises(RunnerError, match=r"INVALID_CONTEXT .*; this thread has no CUDA context, .*current"):
            pool.submit(cuda.create_stream).result()

        def within() -> None:
            with cuda.current(), cuda.current():
                cuda.destroy_stream(cuda.create_stream())
            assert driver.current_context() == 0
            with pytest.raises(ZeroDivisionError), cuda.current():
                raise ZeroDivisionError
            assert driver.current_context() == 0

        pool.submit(within).result()
    assert (driver.alive, driver.violation) == ({}, "")


def test_memory_that_a_run_must_not_use(driver: FakeDriver, cuda: Cuda) -> None:
    array = np.zeros(4, np.uint8)
    device, (host, _) = cuda.allocate(8), cuda.allocate_host(8, mapped=True)
    for address in (device, device + 4, host):
        cuda.check_address(address)
    with pytest.raises(RunnerError, match=r"expected memory of this GPU, got the address 0x.*CUDA does not know; copy"):
        cuda.check_address(array.ctypes.data)
    with another_context(driver):
        foreign, (pinned, _) = cuda.allocate(8), cuda.allocate_host(8, mapped=False)
        with pytest.raises(RunnerError, match=r"of another context; with PyCUDA import pycuda\.autoprimaryctx, not"):
            cuda.check_address(foreign)
        cuda.check_address(pinned)  # every context's
        driver.fail("cuPointerGetAttribute", 1, at=2)
        cuda.check_address(foreign)  # like memory of a pool, whose context is not told
    driver.fail("cuPointerGetAttribute", ILLEGAL_ADDRESS)
    with pytest.raises(RunnerError, match="cuPointerGetAttribute failed with CUDA_ERROR_ILLEGAL_ADDRESS"):
        cuda.check_address(device)  # of which this says nothing


def test_mapped_memory_that_the_device_cannot_reach_is_freed(cuda: Cuda, driver: FakeDriver) -> None:
    driver.fail("cuMemHostGetDevicePointer_v2", OUT_OF_MEMORY)
    with pytest.raises(RunnerError, match="cuMemHostGetDevicePointer_v2 failed"):
        cuda.allocate_host(8, mapped=True)
    assert driver.list("host") == []


def test_time_between_events(cuda: Cuda) -> None:
    start, end, plain = cuda.create_event(timed=True), cuda.create_event(timed=True), cuda.create_event()
    stream, address, (host, _) = cuda.create_stream(), cuda.allocate(8), cuda.allocate_host(8, mapped=False)
    for event in (start, plain, end):
        cuda.record_event(event, stream)
        cuda.upload(address, host, 8, stream)
        cuda.upload(address, host, 8, stream)
    with pytest.raises(RunnerError, match="CUDA_ERROR_NOT_READY"):
        cuda.elapsed_ms(start, end)
    cuda.synchronize_event(end)
    # The fake's half a millisecond for each of four copies; the first was queued a call after the event had its time.
    assert cuda.elapsed_ms(start, end) == pytest.approx(4 * 0.5 + 0.02)
    with pytest.raises(RunnerError, match="CUDA_ERROR_INVALID_HANDLE"):
        cuda.elapsed_ms(start, plain)


def test_host_view_shares_memory() -> None:
    array = np.arange(12, dtype=np.float32)
    view = host_view(array.ctypes.data, array.nbytes)
    assert view.dtype == np.uint8 and view.shape == (48,)
    assert np.shares_memory(view, array)


# --- PyCUDA ---------------------------------------------------------------------------------------------------------


class PyCudaError(Exception):
    """What PyCUDA raises."""


class PyCudaMemoryError(PyCudaError):
    """What it raises where memory is short."""


@pytest.fixture
def pycuda(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The driver module of a double of PyCUDA, on the fake driver."""
    module = Mock(Error=PyCudaError, MemoryError=PyCudaMemoryError)
    module.Stream.return_value.handle = 40
    monkeypatch.setitem(sys.modules, "pycuda", Mock())
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    return module


def test_pycuda_hands_calls_on(driver: FakeDriver, pycuda: Mock) -> None:
    loaded: Any = load_cuda("pycuda")
    assert (loaded.name, loaded.has_graphs) == ("pycuda", False)
    assert pycuda.mock_calls == [call.init(), call.Device(0), call.Device().retain_primary_context()]
    pycuda.reset_mock()
    with loaded.current():
        stream = loaded.create_stream()
        loaded.synchronize(stream)
        with pytest.raises(RunnerError, match="cuStreamSynchronize failed"):
            loaded.synchronize(41)  # somebody else's goes to the driver, which does not know this one
        loaded.destroy_stream(stream)
    context = call.Device().retain_primary_context()
    calls = [context.push(), call.Stream(flags=1), call.Stream().synchronize(), call.Context.pop()]
    assert pycuda.mock_calls == calls
    assert loaded._objects == {}
    loaded.close()
    assert (driver.alive, load_cuda("pycuda").name) == ({}, "pycuda")
    pycuda.init.assert_not_called()  # PyCUDA's context is kept


def test_errors_of_pycuda_are_runner_errors(pycuda: Mock) -> None:
    loaded = load_cuda("pycuda")
    pycuda.mem_alloc.side_effect = PyCudaMemoryError("cuMemAlloc failed: out of memory")
    with pytest.raises(RunnerError, match=r"^CUDA: cuMemAlloc failed: out of memory; .*close other"), loaded.current():
        loaded.allocate(8)
    pycuda.Context.pop.assert_called_once()
    with pytest.raises(RunnerError, match=r"^CUDA: broken\.$"), loaded.current():
        raise PyCudaError("broken")


PYCUDA = importlib.util.find_spec("pycuda")


@pytest.mark.slow
@pytest.mark.skipif(
    PYCUDA is None, reason="needs PyCUDA: `make pycuda-check` compiles it, and needs neither GPU nor driver"
)
def test_runners_by_way_of_pycuda() -> None:
    """PyCUDA itself on the fake library. It tries twice where memory is short, so those that fail once are left out;
    its errors are told apart at the end of a block, which is too late for a copy that breaks a capture.
    """
    library = library_folder() / libcuda.LIBRARY
    names = ("trt_runner", "lane", "overlap", "device_runs", "packed_masks", "engine_thread")
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not (out_of_memory or copy)"),
        *(f"tests/runtime/test_{name}.py" for name in names),
        "tests/runtime/pycuda_arrays.py",
    ]
    assert PYCUDA is not None and PYCUDA.origin is not None
    env = environment(PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(Path(PYCUDA.origin).parents[1])]))
    env |= {PYCUDA_VARIABLE: str(library.parent), "LD_PRELOAD": str(library)}
    env["LD_LIBRARY_PATH"] = os.pathsep.join([str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")])
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(done.stdout.rsplit(" passed", 1)[0].split()[-1]) > 60
