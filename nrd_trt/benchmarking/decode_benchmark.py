"""Measure the decode alone: correctness first, then kernels, baselines and the floors that they are held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import nrd_trt
from nrd_trt.benchmarking.decode_floors import DecodeCase, Floors, fit_line, judge
from nrd_trt.benchmarking.marks import device_marks
from nrd_trt.data.synthetic import street_scene
from nrd_trt.machine.clocks import DeviceMonitor, open_probe
from nrd_trt.machine.gpu import kernel_driver
from nrd_trt.machine.host import this_machine
from nrd_trt.model import load_trained, require_torch
from nrd_trt.specs import Precision
from nrd_trt.zoo import checkpoint_path

if TYPE_CHECKING:
    from nrd_trt.decode.bench import Inputs, Subject

TRAINED = "nrd_r18_camvid"
"""The checkpoint whose theta is used. There is none for 19 or 150 classes, so trained rows are those of its 11."""
TRAINED_CLASSES = 11

_SHAPES = (((1024, 2048), 19), ((512, 1024), 19), ((512, 512), 150), ((1024, 2048), 150))
_TRAINED_SHAPES = ((1024, 2048), (512, 1024))
_BATCHES = (1, 8)
_PIXEL_SIZES = ((1024, 2048), (1536, 2048), (2048, 2048), (2048, 3072), (2048, 4096))
_CLASSES = (2, 11, 19, 40, 60, 100, 150, 256)
_BASELINES = ("authors", "matmul", "compiled")
_REPLAYS, _BASELINE_REPLAYS = 30, 10
_TENSORRT_LAYOUT = "pitch_8"
_OTHER_LAYOUTS = ("channels_last", "nchw")


@dataclass(frozen=True, kw_only=True)
class DecodeBenchRequest:
    """What `nrd-trt benchmark --decode` is asked for.

    Attributes:
        quick: One image, fp16, and baselines at 1024x2048 only.
        command: Recorded with the results.
        announce: Gets a line before each case.
    """

    quick: bool = False
    command: str = "nrd-trt benchmark --decode"
    announce: Callable[[str], None] = lambda _: None


def benchmark_decode(request: DecodeBenchRequest) -> dict[str, Any]:
    """Measure the decode on this machine's GPU.

    Returns:
        ``gpu, driver, versions, command, quick, device, notes, copy_gb_per_s, cases, lines, targets, passed``. Times
        are medians in microseconds. ``passed`` is about correctness, ``targets`` about speed.

    Raises:
        MissingDependencyError: There is no PyTorch, no GPU, or a tool for compiling the kernels is missing.
        PluginError: The kernels cannot be compiled or loaded.
    """
    require_torch("benchmark --decode")
    with ExitStack() as stack:
        return _Bench(request, stack).run()


class _Bench:
    """One run: the GPU's facts, its clocks, and a look at them after every measurement."""

    def __init__(self, request: DecodeBenchRequest, stack: ExitStack) -> None:
        from nrd_trt.decode import bench

        self._request, self._tools = request, bench
        self._gpu = bench.gpu_facts()
        self._notes: list[str] = []
        probe, reason = open_probe()
        self._monitor = None
        if probe is not None:
            stack.callback(probe.close)
            self._monitor = DeviceMonitor(probe)
            self._notes += probe.notes
        elif reason:
            self._notes.append(reason)

    def run(self) -> dict[str, Any]:
        self._bandwidth = statistics.median(self._tools.copy_bandwidth(replays=_BASELINE_REPLAYS))
        cases = [self._case(case) for case in chosen_cases(quick=self._request.quick)]
        lines = [self._line(over, classes) for over, classes in self._lines_wanted()]
        log = self._monitor.finish() if self._monitor is not None else None
        return {
            "gpu": self._gpu,
            "driver": kernel_driver(this_machine()),
            "versions": {"nrd_trt": nrd_trt.__version__, "torch": self._gpu["torch"], "cuda": self._gpu["cuda"]},
            "command": self._request.command,
            "quick": self._request.quick,
            "device": log.to_dict() if log is not None else None,
            "notes": [*self._notes, *device_marks(log), f"trained theta: {TRAINED} on procedural scenes"],
            "copy_gb_per_s": self._bandwidth / 1e9,
            "cases": cases,
            "lines": lines,
            "targets": judge(cases, lines),
            "passed": all(check["passed"] for case in cases for check in case["checks"].values()),
        }

    def _case(self, case: DecodeCase) -> dict[str, Any]:
        self._request.announce(f"{described(case)}")
        inputs = self._inputs(case)
        subject = self._subject(case, inputs, _TENSORRT_LAYOUT)
        found = subject.check(subject.variants())
        checks = {variant: {**vars(check), "passed": check.passed} for variant, check in found.items()}
        good = [variant for variant in checks if checks[variant]["passed"]]  # a wrong kernel's time means nothing
        kernels = [self._kernel(subject, variant, _TENSORRT_LAYOUT) for variant in good]
        logits_us = self._median(subject.time_logits("auto", replays=_REPLAYS)) if "auto" in good else None
        empty_us = self._median(subject.time_empty(replays=_REPLAYS))
        baselines = {name: self._baseline(subject, name) for name in self._baselines_wanted(case)}
        mixed_cells = subject.mixed_cells()
        del subject
        for layout in _OTHER_LAYOUTS if "auto" in good else ():
            kernels.append(self._kernel(self._subject(case, inputs, layout), "auto", layout))
        return {
            **case.to_dict(),
            "mixed_cells": mixed_cells,
            "checks": checks,
            "kernels": kernels,
            "fastest": _fastest(kernels),
            "logits_us": logits_us,
            "floors": self._floors(case, empty_us).to_dict(),
            "baselines": baselines,
        }

    def _inputs(self, case: DecodeCase) -> Inputs:
        if case.theta == "random":
            return self._tools.random_inputs(case.spec, case.batch, *case.patches_hw)
        from nrd_trt.model.decode_inputs import predict_decode_inputs

        images = np.stack([street_scene(seed, case.size_hw).image for seed in range(case.batch)])
        return predict_decode_inputs(load_trained(checkpoint_path(TRAINED)), images, device="cuda")

    def _subject(self, case: DecodeCase, inputs: Inputs, layout: Any) -> Subject:
        return self._tools.Subject(case.spec, inputs, case.precision, layout, cache_bytes=self._gpu["l2_bytes"])

    def _kernel(self, subject: Subject, variant: Any, layout: str) -> dict[str, Any]:
        cold = subject.time_mask(variant, replays=_REPLAYS)
        warm = subject.time_mask(variant, replays=_REPLAYS, warm=True)
        unpruned = subject.time_mask(variant, replays=_REPLAYS, prune=False)
        low, high = np.percentile(cold, (10, 90))
        return {
            "kernel": variant,
            "layout": layout,
            "us": self._median(cold),
            "p10_us": float(low),
            "p90_us": float(high),
            "warm_us": self._median(warm),
            "unpruned_us": self._median(unpruned),
        }

    def _baseline(self, subject: Subject, name: str) -> dict[str, Any]:
        self._request.announce(f"  {name}")
        agreement = subject.baseline_agreement(name)
        times = subject.time_baseline(name, replays=_BASELINE_REPLAYS)
        if isinstance(times, str):
            return {"skipped": times}
        return {"us": self._median(times), "agreement": agreement}

    def _baselines_wanted(self, case: DecodeCase) -> Sequence[str]:
        if case.theta == "trained" or (self._request.quick and case.size_hw != (1024, 2048)):
            return ()
        return _BASELINES

    def _floors(self, case: DecodeCase, empty_us: float) -> Floors:
        return Floors(
            byte_us=case.byte_floor_us(self._bandwidth),
            instruction_us=case.instruction_floor_us(self._gpu["multiprocessors"], self._gpu["clock_max_mhz"]),
            empty_us=empty_us,
        )

    def _lines_wanted(self) -> Iterator[tuple[str, Sequence[DecodeCase]]]:
        start = DecodeCase(size_hw=(1024, 2048), num_classes=19)
        for num_classes in (19,) if self._request.quick else (19, 150):
            yield "pixels", [replace(start, size_hw=size_hw, num_classes=num_classes) for size_hw in _PIXEL_SIZES]
        classes = _CLASSES[::2] if self._request.quick else _CLASSES
        yield "classes", [replace(start, num_classes=number) for number in classes]

    def _line(self, over: str, cases: Sequence[DecodeCase]) -> dict[str, Any]:
        """Fit the automatic kernel's times on random theta, batch 1, fp16."""
        self._request.announce(f"time over {over}")
        points = []
        for case in cases:
            subject = self._subject(case, self._inputs(case), _TENSORRT_LAYOUT)
            x = case.pixels if over == "pixels" else case.num_classes
            points.append((float(x), self._median(subject.time_mask("auto", replays=_REPLAYS))))
        fixed = cases[0].num_classes if over == "pixels" else cases[0].to_dict()["size"]
        return {**fit_line(over, points).to_dict(), "at": f"K={fixed}" if over == "pixels" else fixed}

    def _median(self, times: Sequence[float]) -> float:
        if self._monitor is not None:
            self._monitor.glance()
        return statistics.median(times)


def chosen_cases(*, quick: bool) -> list[DecodeCase]:
    """Return what is measured, in order."""
    batches = _BATCHES[:1] if quick else _BATCHES
    precisions: tuple[Precision, ...] = ("fp16",) if quick else ("fp16", "bf16")
    random = [DecodeCase(size_hw=size_hw, num_classes=k) for size_hw, k in _SHAPES]
    trained = [
        DecodeCase(size_hw=size_hw, num_classes=TRAINED_CLASSES, theta="trained")
        for size_hw in (_TRAINED_SHAPES[:1] if quick else _TRAINED_SHAPES)
    ]
    return [
        replace(case, batch=batch, precision=precision)
        for case in (*random, *trained)
        for batch in batches
        for precision in precisions
    ]


def described(case: DecodeCase) -> str:
    """Name a case in one line."""
    facts = case.to_dict()
    return f"{facts['size']} K={case.num_classes} batch {case.batch} {case.precision}, {case.theta} theta"


def _fastest(kernels: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fastest kernel on channels-last theta, as TensorRT's choice of tactics would."""
    return min((row for row in kernels if row["layout"] != "nchw"), key=lambda row: float(row["us"]), default=None)
