"""The run's figures for Prometheus, read off when it asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nrd_trt.serving.device import DeviceWatch
from nrd_trt.serving.hub import Hub
from nrd_trt.video.meters import Meters, Snapshot

_QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}
_DEVICE = {
    "power_w": ("power_watts", "Power of the GPU, on a Jetson of the board."),
    "temperature_c": ("temperature_celsius", "Temperature of the GPU."),
    "clock_mhz": ("clock_megahertz", "Clock of the GPU."),
    "memory_used_mib": ("memory_used_mebibytes", "Memory in use on the device, by all processes."),
}


def make_registry(hub: Hub, meters: Meters, device: DeviceWatch, class_names: tuple[str, ...]) -> CollectorRegistry:
    """Return a registry of its own, which holds the figures of one run and nothing of the process."""
    registry = CollectorRegistry()
    registry.register(_Figures(hub, meters, device, class_names))
    return registry


class _Figures(Collector):
    def __init__(self, hub: Hub, meters: Meters, device: DeviceWatch, class_names: tuple[str, ...]) -> None:
        self._hub, self._meters, self._device, self._class_names = hub, meters, device, class_names

    def collect(self) -> Iterable[Metric]:
        snapshot = self._meters.snapshot()
        yield _counter("frames", "Frames that were segmented.", snapshot.frames)
        yield _counter("dropped_frames", "Frames of a live source that came too late.", snapshot.dropped)
        yield _counter("reconnects", "How often a live source was opened again.", snapshot.reconnects)
        yield _gauge("fps", "Frames per second, over the last frames.", snapshot.fps or 0.0)
        yield _gauge("viewers", "Browsers and players that watch.", self._hub.viewers)
        yield _gauge("up", "1 while the run goes on, 0 once it has ended or failed.", float(not self._hub.over))
        yield self._latency(snapshot)
        seconds = {stage: ms / 1000 for stage, ms in snapshot.split_ms.items()}
        yield _gauges("stage_seconds", "Mean time of a frame in each stage, over the last frames.", "stage", seconds)
        yield from self._shares()
        for name, value in (self._device.figures() or {}).items():
            yield _gauge(*_DEVICE[name], value)

    def _latency(self, snapshot: Snapshot) -> Metric:
        """A summary: the quantiles are those of the last frames, as clients of Prometheus do it."""
        metric = Metric("nrd_trt_latency_seconds", "From the arrival of a frame to the viewers.", "summary")
        for name, quantile in _QUANTILES.items():
            if snapshot.latency_ms is not None:
                metric.add_sample(metric.name, {"quantile": quantile}, snapshot.latency_ms[name] / 1000)
        newest = self._hub.newest
        metric.add_sample(f"{metric.name}_count", {}, newest.number if newest else 0)
        metric.add_sample(f"{metric.name}_sum", {}, self._hub.latency_sum_s)
        return metric

    def _shares(self) -> Iterable[Metric]:
        newest = self._hub.newest
        if newest is not None:
            shares = {name: float(newest.frame.shares[index]) for index, name in enumerate(self._class_names)}
            yield _gauges("class_share", "Share of the newest mask's pixels.", "name", shares)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"nrd_trt_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"nrd_trt_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"nrd_trt_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
