"""The fake driver sees what it is there to see, and refuses what the real one refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from nrd_trt.errors import RunnerError
from nrd_trt.machine.cuda import host_view
from tests.runtime.bench import SMALL
from tests.runtime.fake_cuda import HEADERS, SOURCE, FakeDriver, FakeEngine, another_context, complaints_of_gcc


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver(monkeypatch)


@pytest.mark.parametrize("package", HEADERS)
def test_it_is_what_the_header_declares(package: str) -> None:
    assert complaints_of_gcc(package, "-fsyntax-only", str(SOURCE)) == ""


def test_it_sees_what_has_no_order_and_poisons_what_is_freed(driver: FakeDriver) -> None:
    with driver.opened() as cuda:
        first, second, event = cuda.create_stream(), cuda.create_stream(), cuda.create_event()
        device, (host, _) = cuda.allocate(8), cuda.allocate_host(8, mapped=False)
        driver.host_view(host, 8)[:] = 5
        cuda.upload(device, host, 8, first)
        with pytest.raises(RunnerError, match=r"download and upload use .* at once"):
            cuda.download(host, device, 8, second)
        assert driver.violation.startswith("download and upload use")
        with pytest.raises(AssertionError):
            driver.host_view(host, 8)
        with pytest.raises(RunnerError, match="CUDA_ERROR_UNKNOWN"):
            cuda.free(device)
        with pytest.raises(RunnerError, match="CUDA_ERROR_UNKNOWN"):
            cuda.wait_event(second, event)
        cuda.record_event(event, first)
        cuda.wait_event(second, event)
        back, _ = cuda.allocate_host(8, mapped=False)
        cuda.download(back, device, 8, second)
        cuda.synchronize(second)
        assert list(driver.host_view(back, 8)) == [5] * 8
        cuda.free(device)
        assert list(host_view(device, 8)) == [0xDD] * 8
        with pytest.raises(AssertionError, match="not device memory"):
            driver.on_device(device, 8)
        for address in (host, back):
            cuda.free_host(address)
        for stream in (first, second):
            cuda.destroy_stream(stream)
        cuda.destroy_event(event)
    assert driver.alive == {}


def test_it_sees_one_engine_on_two_streams_and_a_graph_with_memory_that_is_gone(driver: FakeDriver) -> None:
    cuda = driver.open()
    with cuda.current():
        context, streams = FakeEngine(driver).context(), [cuda.create_stream() for _ in range(2)]
        context.set_shapes({"image": SMALL})
        for stream in streams:
            context.set_addresses({name: cuda.allocate(128) for name in ("image", "mask", "mean")})
            context.set_scratch(cuda.allocate(128), 128)
            if stream == streams[0]:
                context.enqueue(stream)
        with pytest.raises(RunnerError, match=r"engine and engine use .* at once"):
            context.enqueue(streams[1])
        with pytest.raises(AssertionError):
            context.close()
        device, (host, _) = cuda.allocate(8), cuda.allocate_host(8, mapped=False)
        cuda.begin_capture(streams[1])
        cuda.upload(device, host, 8, streams[1])
        graph = cuda.end_capture(streams[1])
        cuda.launch_graph(graph, streams[1])
        with pytest.raises(RunnerError, match="CUDA_ERROR_UNKNOWN"):
            cuda.destroy_graph(graph)
        cuda.synchronize(streams[1])
        cuda.free(device)
        with pytest.raises(RunnerError, match="CUDA_ERROR_UNKNOWN"):
            cuda.launch_graph(graph, streams[1])


def test_a_capture_forbids_its_own_thread_to_allocate_and_to_wait(driver: FakeDriver) -> None:
    cuda = driver.open()
    with cuda.current(), ThreadPoolExecutor(1) as pool:
        stream, other = cuda.create_stream(), cuda.create_stream()

        def allocate() -> int:
            with cuda.current():
                return cuda.allocate(8)

        for unsafe in (allocate, lambda: cuda.synchronize(stream), lambda: cuda.synchronize(other)):
            cuda.begin_capture(stream)
            with pytest.raises(RunnerError, match="cuStreamBeginCapture_v2 failed with CUDA_ERROR_ILLEGAL_STATE"):
                cuda.begin_capture(stream)
            pool.submit(allocate).result()
            with pytest.raises(RunnerError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
                unsafe()
            with pytest.raises(RunnerError, match="EndCapture failed with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
                cuda.end_capture(stream)
            with pytest.raises(RunnerError, match="CUDA_ERROR_ILLEGAL_STATE"):
                cuda.end_capture(stream)
        assert driver.list("graph") == []


def test_a_stream_that_waits_for_the_default_one_keeps_it_from_use_while_it_records(driver: FakeDriver) -> None:
    cuda = driver.open()
    with cuda.current():
        blocking, event = driver.library.fake_blocking_stream(), cuda.create_event()
        for use in (lambda: cuda.record_event(event, 0), lambda: cuda.synchronize(0)):
            cuda.begin_capture(blocking)
            cuda.record_event(event, 2)
            with pytest.raises(RunnerError, match="CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"):
                use()
            with pytest.raises(RunnerError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
                cuda.end_capture(blocking)


def test_what_is_of_one_context_is_of_no_other(driver: FakeDriver) -> None:
    cuda = driver.open()
    with cuda.current():
        stream, event, address = cuda.create_stream(), cuda.create_event(), cuda.allocate(8)
        with another_context(driver):
            for use in (
                lambda: cuda.synchronize(stream),
                lambda: cuda.record_event(event, stream),
                lambda: cuda.free(address),
            ):
                with pytest.raises(RunnerError, match=r"CUDA_ERROR_INVALID_(HANDLE|VALUE|CONTEXT)"):
                    use()
    with pytest.raises(RunnerError, match="the primary context goes and leaves a stream"):
        cuda.close()
