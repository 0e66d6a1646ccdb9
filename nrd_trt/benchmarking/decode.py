"""Benchmark the decode in PyTorch on a GPU: the kernels beside the authors' formulation and `torch.compile`.

Correctness comes first. The kernels' own benchmark, ``nrd_decode_bench``, measures floors, cost models and layouts.
PyTorch is imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import nrd_trt
from nrd_trt.benchmarking.calls import watch_device
from nrd_trt.benchmarking.notes import device_marks
from nrd_trt.data.synthetic import street_scene
from nrd_trt.machine.clocks import DeviceLog
from nrd_trt.machine.device import choose_device
from nrd_trt.machine.gpu import kernel_driver
from nrd_trt.machine.host import Machine
from nrd_trt.model import load_trained, require_torch
from nrd_trt.progress import OnStage, silent
from nrd_trt.specs import STRIDE, DecodeSpec, Precision, format_size
from nrd_trt.zoo import checkpoint_path

if TYPE_CHECKING:
    from nrd_trt.decode.bench import Baseline, Check, TorchGpu
    from nrd_trt.decode.cuda_op import Variant

TRAINED = "nrd_r18_camvid"
"""The checkpoint whose theta is used. There is none for 19 or 150 classes, so trained rows are those of its 11."""
TRAINED_CLASSES = 11

_SHAPES = (((1024, 2048), 19), ((512, 1024), 19), ((512, 512), 150), ((1024, 2048), 150))
_TRAINED_SIZES = ((1024, 2048), (512, 1024))
_REPLAYS, _BASELINE_REPLAYS = 30, 10
_BASELINES = {"authors": "authors' form", "compiled": "torch.compile"}


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """Microseconds per mask of one kernel: the median and the tenth and ninetieth percentiles."""

    kernel: str
    us: float
    p10_us: float
    p90_us: float


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """What is decoded, and once it was measured, what came of it.

    Attributes:
        size_hw: Height and width of the mask.
        num_classes: K.
        batch: Number of images.
        precision: Type of theta and guidance.
        theta: Random numbers, or what a trained network predicts.
        checks: Comparison of each kernel with the fp32 reference.
        kernels: Times of the kernels that passed.
        fastest: The one that TensorRT's choice of tactics would take.
        baselines: What became of the other forms.
    """

    size_hw: tuple[int, int]
    num_classes: int
    batch: int = 1
    precision: Precision = "fp16"
    theta: Literal["random", "trained"] = "random"
    checks: Mapping[Variant, Check] = field(default_factory=dict)
    kernels: tuple[KernelTime, ...] = ()
    fastest: KernelTime | None = None
    baselines: Mapping[str, Baseline] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{format_size(self.size_hw)} K={self.num_classes} ×{self.batch} {self.precision} {self.theta}"


@dataclass(frozen=True, kw_only=True)
class DecodeBenchmark:
    """Result of `benchmark_decode`.

    Attributes:
        gpu: The GPU that ran.
        driver: Version of the NVIDIA driver, or None where it is not told.
        command: What was called.
        quick: Whether the few cases of a quick run were measured.
        device: Clocks, power and throttling, or None where no instrument reads them.
        notes: What a reader of the figures must know.
        cases: What was measured.
        passed: Whether every kernel is right; this says nothing about speed.
    """

    gpu: TorchGpu
    driver: str | None
    command: str
    quick: bool
    device: DeviceLog | None
    notes: tuple[str, ...]
    cases: tuple[DecodeCase, ...]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the object of ``--json``."""
        versions = {"nrd_trt": nrd_trt.__version__, "torch": self.gpu.torch, "cuda": self.gpu.cuda}
        device = self.device.to_dict() if self.device else None
        values = asdict(replace(self, device=None))
        cases = [{"size": format_size(case.pop("size_hw")), **case} for case in values["cases"]]
        return {**values, "versions": versions, "device": device, "cases": cases}

    def markdown(self) -> str:
        """Return the result as a section of a page without its heading, which a terminal shows as well."""
        gpu = self.gpu
        lines = [
            *("```bash", self.command, "```", ""),
            f"- {gpu.name} (compute capability {gpu.compute_capability}), driver {self.driver or 'unknown'}, "
            f"CUDA {gpu.cuda}, PyTorch {gpu.torch}, nrd_trt {nrd_trt.__version__}",
            "- medians in µs of runs in CUDA graphs, inputs rotated through more than four times the L2 cache",
        ]
        if self.device is not None and (clock := self.device.median("clock_mhz")) is not None:
            lines.append(f"- clock {clock:.0f} MHz, throttled: {', '.join(self.device.throttle) or 'no'}")
        lines += [f"- {note}" for note in self.notes]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        return "\n".join([*lines, "", *(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows), ""])

    def _rows(self) -> list[list[str]]:
        """Return one row per kernel; each form's time stands beside it, with how many times the kernel's it is."""
        rows = [["case", "kernel", "check", "µs", "p10", "p90", *_BASELINES.values()]]
        for case in self.cases:
            times = {row.kernel: row for row in case.kernels}
            for kernel, check in case.checks.items():
                row = times.get(kernel)
                figures = [f"{us:.2f}" for us in (row.us, row.p10_us, row.p90_us)] if row else ["–"] * 3
                others = [_compared(case.baselines.get(name), row) for name in _BASELINES]
                rows.append([str(case), kernel, "passed" if check.passed else f"FAILED: {check}", *figures, *others])
        return rows


def _compared(other: Baseline | None, kernel: KernelTime | None) -> str:
    if other is None or other.us is None:
        return (other and other.skipped) or "–"
    return f"{other.us:.2f}" + (f" ({other.us / kernel.us:.1f}×)" if kernel else "")


def benchmark_decode(
    *,
    quick: bool = False,
    cases: Sequence[DecodeCase] | None = None,
    command: str = "nrd-trt benchmark",
    device: int | str | None = None,
    on_stage: OnStage = silent,
) -> DecodeBenchmark:
    """Measure the decode on this machine's GPU.

    Args:
        quick: Keep to one image, fp16, and the other forms at 1024x2048.
        cases: What is measured; None takes `chosen_cases`.
        command: Recorded with the results.
        device: See `nrd_trt.open_bundle`.
        on_stage: Receives a line before each case.

    Raises:
        ConfigError: There is no such device, or this process uses another one already.
        MissingDependencyError: There is no PyTorch, no GPU, or a tool for compiling the kernels is missing.
        PluginError: The kernels cannot be compiled or loaded.
    """
    require_torch("timing the decode")
    choose_device(device)
    from nrd_trt.decode import bench

    gpu, measured = bench.find_gpu(), []
    with ExitStack() as stack:
        monitor, _, notes = watch_device(stack)
        for case in chosen_cases(quick=quick) if cases is None else cases:
            on_stage(str(case))
            compared = case.theta == "random" and (not quick or case.size_hw == (1024, 2048))
            measured.append(_measured(case, gpu.l2_bytes, tuple(_BASELINES) if compared else ()))
            if monitor is not None:
                monitor.glance()
        log = monitor.finish() if monitor is not None else None
    return DecodeBenchmark(
        gpu=gpu,
        driver=kernel_driver(Machine()),
        command=command,
        quick=quick,
        device=log,
        notes=(*notes, *device_marks(log), f"trained theta: {TRAINED} on procedural scenes"),
        cases=tuple(measured),
        passed=all(check.passed for case in measured for check in case.checks.values()),
    )


def chosen_cases(*, quick: bool) -> list[DecodeCase]:
    """Return what is measured, in order."""
    random = [DecodeCase(size_hw=size_hw, num_classes=k) for size_hw, k in _SHAPES]
    trained = [DecodeCase(size_hw=size_hw, num_classes=TRAINED_CLASSES, theta="trained") for size_hw in _TRAINED_SIZES]
    if quick:
        return [*random, trained[0]]
    forms: Sequence[tuple[int, Precision]] = ((1, "fp16"), (1, "bf16"), (8, "fp16"), (8, "bf16"))
    return [replace(case, batch=batch, precision=form) for case in (*random, *trained) for batch, form in forms]


def _measured(case: DecodeCase, l2_bytes: int, baselines: Sequence[str]) -> DecodeCase:
    from nrd_trt.decode.bench import Subject, random_inputs
    from nrd_trt.model.stages import predict_decode_inputs

    spec = DecodeSpec(num_classes=case.num_classes)
    if case.theta == "random":
        inputs = random_inputs(spec, case.batch, *(side // STRIDE for side in case.size_hw))
    else:
        images = np.stack([street_scene(seed, case.size_hw).image for seed in range(case.batch)])
        inputs = predict_decode_inputs(load_trained(checkpoint_path(TRAINED)), images, device="cuda")
    subject = Subject(spec, inputs, case.precision, cache_bytes=l2_bytes)
    checks, kernels = {variant: subject.check(variant) for variant in subject.variants()}, []
    for variant in (name for name, check in checks.items() if check.passed):  # a wrong kernel's time means nothing
        p10, p50, p90 = (float(us) for us in np.percentile(subject.time_mask(variant, replays=_REPLAYS), (10, 50, 90)))
        kernels.append(KernelTime(kernel=variant, us=p50, p10_us=p10, p90_us=p90))
    return replace(
        case,
        checks=checks,
        kernels=tuple(kernels),
        fastest=min(kernels, key=lambda row: row.us, default=None),
        baselines={name: subject.baseline(name, replays=_BASELINE_REPLAYS) for name in baselines},
    )
