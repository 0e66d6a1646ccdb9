"""What `benchmark` measured of each source, and the keys of its JSON object.

The object is read by other programs, so keys keep their names and meaning; new ones may come. One source gives one
object, several give ``{"results": [...]}`` with an object for each, in their order:

- ``target runner arithmetic plan_ran precision size batch warmup runs duration_s streams threads copies cuda_graph``:
  what was run, and how. ``plan_ran`` is null where there is no plan. ``runs`` counts the timed calls of all streams;
  ``size`` is ``"HxW"``.
- ``onnx_sha256 checkpoint_sha256``: whose figures these are. The first is null for a checkpoint, the second where the
  file does not tell. A bundle that is rebuilt for a device keeps both.
- ``latency_ms {p50, p90, p99, mean, min}``: from an image on the host to the mask on the host, both on the device
  where ``copies`` is ``"excluded"``. ``enqueue_ms``, of the same keys: what it took the host to queue the engine's
  work. ``gpu_compute_ms``: between CUDA events around that work, in runs after the timed calls, without copies and each
  queued behind another run. Both are null without a device.
- ``timed_s throughput_fps ratio``: time of the timed calls, images per second of it, p50 of the first source over that
  of this one. Calls of several streams run at once, and ``timed_s`` is then from the first start to the last end.
- ``energy {joules, watts, frames_per_joule, source}``: of the timed calls, idle power included; null where it was not
  told. ``layers [{name, ms, share, type}]``: mean milliseconds, share of their sum and what each was executed in, in
  the order of execution; null unless they were asked for. ``stages {network, decode, resize, argmax}``, and
  ``confidence`` of files that give it: shares of the same time; null without layers, and where their names do not tell.
  ``executed``: how many products were executed in each type, as OpenVINO reads it back; null with other runners.
- ``peak_memory_mib device_memory_mib host device doubtful notes``: what it ran on, and whether to believe it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nrd_trt.benchmarking.timing import Latency, Timing
from nrd_trt.machine.clocks import DeviceLog, ProbedDevice
from nrd_trt.machine.energy import Energy
from nrd_trt.machine.host import HostFacts
from nrd_trt.specs import Precision, Size, format_size

_AFTER_NETWORK = ("decode", "resize", "argmax", "confidence")
"""Stages that `nrd_trt.graph.cpu` writes into the names of nodes."""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """What one layer took.

    Attributes:
        name: As the backend names it.
        ms: Mean milliseconds of a call.
        share: Its part of the sum of all layers, 0-1.
        type: What it was executed in, such as ``"int8"``; None where the backend does not tell.
    """

    name: str
    ms: float
    share: float
    type: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """What was measured of one source.

    Attributes:
        target: Name of the file.
        runner: Name of the backend that ran.
        arithmetic: ``"native"``, ``"simulated"`` or ``"tf32"``.
        plan_ran: Whether a bundle's plan itself ran; None where there is no plan.
        precision: Precision of the file.
        size: Height and width of the image.
        onnx_sha256: Hash of the ONNX file; None for a checkpoint.
        checkpoint_sha256: Hash of the checkpoint that it was made of; None where it does not tell.
        batch: Images per call.
        warmup: Untimed calls of each stream.
        duration_s: Seconds of timed calls that were asked for; None where the number of calls was.
        streams: Calls at a time, each in a context of its own.
        threads: CPU threads; None where the backend chose.
        copies: Whether a device's copies are ``"included"`` or ``"excluded"``; ``"host arrays"`` on a CPU.
        cuda_graph: Whether a CUDA graph was replayed; None on a CPU.
        timing: Every timed call.
        ratio: p50 of the first source over that of this one.
        layers: What each layer took in calls after the timed ones; None where they were not asked for.
        executed: How many products were executed in each type; None where the runner does not read that back.
        energy: What the timed calls took; None where several sources share it, or where it is not known.
        peak_memory_mib: Largest memory of the process; None where several sources share it.
        device_memory_mib: How much the memory in use on the device grew; None likewise, or where it is not known.
        host: The processor.
        load_before: Load average of the host before the run; None where the system has none.
        load_after: Load average of the host after the run.
        device: The device that ran; None on a CPU, or without an instrument.
        log: Clocks, power and temperature of the device.
        doubtful: Whether a note is about disturbed figures.
        notes: What a reader of the figures must know.
    """

    target: str
    runner: str
    arithmetic: str
    plan_ran: bool | None
    precision: Precision
    size: Size
    onnx_sha256: str | None
    checkpoint_sha256: str | None
    batch: int
    warmup: int
    duration_s: float | None
    streams: int
    threads: int | None
    copies: str
    cuda_graph: bool | None
    timing: Timing
    ratio: float
    layers: tuple[LayerTime, ...] | None
    executed: Mapping[str, int] | None
    energy: Energy | None
    peak_memory_mib: float | None
    device_memory_mib: float | None
    host: HostFacts
    load_before: float | None
    load_after: float | None
    device: ProbedDevice | None
    log: DeviceLog | None
    doubtful: bool
    notes: tuple[str, ...]

    @property
    def latency(self) -> Latency:
        """Every timed call, from the host and back."""
        return self.timing.latency

    @property
    def runs(self) -> int:
        """Number of timed calls, of all streams together."""
        return self.latency.runs

    @property
    def throughput_fps(self) -> float:
        """Images per second of the timed calls."""
        return self.batch * self.runs / self.timing.seconds

    @property
    def stages(self) -> dict[str, float] | None:
        """Shares of the layers' time by what they are part of, 0-1; None where that is not known."""
        shares = dict.fromkeys(("network", *_AFTER_NETWORK), 0.0)
        for layer in self.layers or ():
            shares[next((stage for stage in _AFTER_NETWORK if f"{stage}/" in layer.name), "network")] += layer.share
        if not shares["confidence"]:  # of files that give it
            del shares["confidence"]
        return shares if any(shares.get(stage) for stage in _AFTER_NETWORK) else None

    @property
    def frames_per_joule(self) -> float | None:
        """Images per joule of the timed calls."""
        return self.batch * self.runs / self.energy.joules if self.energy else None

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        apart = ("size", "timing", "layers", "energy", "host", "load_before", "load_after", "device", "log", "notes")
        load = {"load_before": self.load_before, "load_after": self.load_after}
        return {
            **{name: value for name, value in vars(self).items() if name not in apart},
            "size": format_size(self.size),
            "runs": self.runs,
            **self.timing.to_dict(),
            "throughput_fps": self.throughput_fps,
            "energy": self._energy(),
            "layers": None if self.layers is None else [asdict(layer) for layer in self.layers],
            "stages": self.stages,
            "host": {**asdict(self.host), **load},
            "device": {**asdict(self.device), **self.log.to_dict()} if self.device and self.log else None,
            "notes": list(self.notes),
        }

    def _energy(self) -> dict[str, Any] | None:
        energy = self.energy
        if energy is None:
            return None
        figures = {"joules": energy.joules, "watts": energy.watts, "frames_per_joule": self.frames_per_joule}
        return {**figures, "source": energy.source}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was measured of every source, in their order."""

    rows: tuple[BenchmarkRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object: those of the one row, or ``results`` with several."""
        rows = [row.to_dict() for row in self.rows]
        return rows[0] if len(rows) == 1 else {"results": rows}
