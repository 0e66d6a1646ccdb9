"""The double of the driver sees what it is there to see."""

from __future__ import annotations

import pytest

from nrd_trt.machine.cuda import host_view
from tests.runtime.bench import SMALL
from tests.runtime.fake_cuda import FakeCuda, FakeEngine


def test_the_double_sees_what_has_no_order_and_poisons_what_is_freed() -> None:
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
    cuda.free(device)
    assert list(host_view(device, 8)) == [0xDD] * 8
    with pytest.raises(AssertionError, match="not device memory"):
        cuda.on_device(device, 8)


def test_the_double_sees_one_context_on_two_streams_and_a_graph_with_memory_that_is_gone() -> None:
    cuda = FakeCuda()
    engine, streams = FakeEngine(cuda), [cuda.create_stream() for _ in range(2)]
    engine.set_shapes({"image": SMALL})
    for stream in streams:
        engine.set_addresses({name: cuda.allocate(128) for name in ("image", "mask", "mean")})
        if stream == streams[0]:
            engine.enqueue(stream)
    with pytest.raises(AssertionError, match=r"engine and engine use .* at once"):
        engine.enqueue(streams[1])
    with pytest.raises(AssertionError, match="closed while engine uses it"):
        engine.close()
    device, (host, _) = cuda.allocate(8), cuda.allocate_host(8, mapped=False)
    cuda.begin_capture(streams[1])
    cuda.upload(device, host, 8, streams[1])
    graph = cuda.end_capture(streams[1])
    cuda.launch_graph(graph, streams[1])
    with pytest.raises(AssertionError, match="destroyed while upload uses it"):
        cuda.destroy_graph(graph)
    cuda.synchronize(streams[1])
    cuda.free(device)
    with pytest.raises(AssertionError, match="graph with freed memory"):
        cuda.launch_graph(graph, streams[1])
