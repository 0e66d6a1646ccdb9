"""The run's figures for Prometheus, read off when it asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nrd_trt.serving.service import Service
from nrd_trt.video.stats import RunStats

_QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}
_DEVICE = {
    "power_w": ("power_watts", "Power of the GPU, on a Jetson of the board."),
    "temperature_c": ("temperature_celsius", "Temperature of the GPU."),
    "clock_mhz": ("clock_megahertz", "Clock of the GPU."),
    "memory_used_mib": ("memory_used_mebibytes", "Memory in use on the device, by all processes."),
}


def make_registry(service: Service) -> CollectorRegistry:
    """Return a registry of its own, which holds the figures of one run and nothing of the process."""
    registry = CollectorRegistry()
    registry.register(_RunCollector(service))
    return registry


class _RunCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service, self._hub = service, service.hub

    def collect(self) -> Iterable[Metric]:
        stats, newest = self._service.stats.snapshot(), self._hub.newest
        yield _counter("frames", "Frames that were segmented.", stats.frames)
        yield _counter("dropped_frames", "Frames of a live source that came too late.", stats.dropped)
        yield _counter("reconnects", "How often a live source was opened again.", stats.reconnects)
        yield _gauge("fps", "Frames per second, over the last frames.", stats.fps or 0.0)
        yield _gauge("viewers", "Browsers and players that watch.", self._hub.viewers)
        yield _gauge("up", "1 while the run goes on, 0 once it has ended or failed.", float(not self._hub.over))
        yield self._latency(stats)
        seconds = {stage: ms / 1000 for stage, ms in stats.split_ms.items()}
        yield _gauges("stage_seconds", "Mean time of a frame in each stage, over the last frames.", "stage", seconds)
        if newest is not None:
            shares = {name: float(newest.frame.shares[i]) for i, name in enumerate(self._service.info.class_names)}
            yield _gauges("class_share", "Share of the newest mask's pixels.", "name", shares)
        for name, value in (self._service.device.figures() or {}).items():
            yield _gauge(*_DEVICE[name], value)

    def _latency(self, stats: RunStats) -> Metric:
        """A summary: the quantiles are those of the last frames, as clients of Prometheus do it."""
        metric = Metric("nrd_trt_latency_seconds", "From the arrival of a frame to the viewers.", "summary")
        for name, ms in (stats.latency_ms or {}).items():
            metric.add_sample(metric.name, {"quantile": _QUANTILES[name]}, ms / 1000)
        newest = self._hub.newest
        metric.add_sample(f"{metric.name}_count", {}, newest.number if newest else 0)
        metric.add_sample(f"{metric.name}_sum", {}, self._hub.latency_sum_s)
        return metric


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"nrd_trt_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"nrd_trt_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"nrd_trt_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
