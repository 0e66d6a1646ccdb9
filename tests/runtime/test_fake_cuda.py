"""The double of the driver sees what it is there to see."""

from __future__ import annotations

import pytest

from nrd_trt.machine.cuda import host_view
from tests.runtime.bench import SMALL
from tests.runtime.fake_cuda import FakeCuda, FakeEngine


def test_fake_memory_is_poisoned_when_freed() -> None:
    """Results that a test reads from freed memory are wrong, not right by luck."""
    cuda = FakeCuda()
    address = cuda.allocate(4)
    cuda.on_device(address, 4)[:] = 7
    cuda.free(address)
    assert list(host_view(address, 4)) == [0xDD] * 4
    with pytest.raises(AssertionError, match="not device memory"):
        cuda.on_device(address, 4)


def test_the_double_sees_what_has_no_order() -> None:
    cuda = FakeCuda()
    first, second, event = cuda.create_stream(), cuda.create_stream(), cuda.create_event()
    device, (host, _) = cuda.allocate(8), cuda.allocate_host(8, mapped=False)
    cuda.host_view(host, 8)[:] = 5
    cuda.upload(device, host, 8, first)
    with pytest.raises(AssertionError, match=r"download and upload use .* at once"):
        cuda.download(host, device, 8, second)
    with pytest.raises(AssertionError, match="touched by the host while upload"):
        cuda.host_view(host, 8)
    with pytest.raises(AssertionError, match="freed while upload"):
        cuda.free(device)
    with pytest.raises(AssertionError, match="never recorded"):
        cuda.wait_event(second, event)
    cuda.record_event(event, first)
    cuda.wait_event(second, event)
    back, _ = cuda.allocate_host(8, mapped=False)
    cuda.download(back, device, 8, second)
    cuda.synchronize(second)
    assert list(cuda.host_view(back, 8)) == [5] * 8


def test_the_double_sees_one_context_on_two_streams() -> None:
    cuda = FakeCuda()
    engine, streams = FakeEngine(cuda), [cuda.create_stream() for _ in range(2)]
    engine.set_shapes({"image": SMALL})
    engine.set_addresses({name: cuda.allocate(128) for name in ("image", "mask", "mean")})
    engine.enqueue(streams[0])
    engine.set_addresses({name: cuda.allocate(128) for name in ("image", "mask", "mean")})
    with pytest.raises(AssertionError, match=r"engine and engine use .* at once"):
        engine.enqueue(streams[1])
    with pytest.raises(AssertionError, match="closed while engine uses it"):
        engine.close()


def test_the_double_sees_a_graph_with_memory_that_is_gone() -> None:
    cuda = FakeCuda()
    stream, device, (host, _) = cuda.create_stream(), cuda.allocate(8), cuda.allocate_host(8, mapped=False)
    cuda.begin_capture(stream)
    cuda.upload(device, host, 8, stream)
    graph = cuda.end_capture(stream)
    cuda.launch_graph(graph, stream)
    with pytest.raises(AssertionError, match="destroyed while upload uses it"):
        cuda.destroy_graph(graph)
    cuda.synchronize(stream)
    cuda.free(device)
    with pytest.raises(AssertionError, match="graph with freed memory"):
        cuda.launch_graph(graph, stream)
