"""The parts of a self-test, what each needs and what each does; they are run in child processes (`child.py`).

A part returns its figures, or raises: `NotRunError` or `MissingDependencyError` where this machine lacks something,
anything else where it failed. Parts share a folder, in which networks and bundles stay for the parts that follow.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from nrd_trt.benchmarking.benchmark import benchmark
from nrd_trt.benchmarking.calls import on_device
from nrd_trt.building.build import build
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.engine.compat import lacks, load_tensorrt, version_numbers
from nrd_trt.engine.plugins import check_plugin, load_plugin, take_plugin
from nrd_trt.errors import BuildError, NrdTrtError, PluginError, RunnerError
from nrd_trt.gates import Gates
from nrd_trt.machine.cuda import Cuda, host_view, load_cuda, probe_device
from nrd_trt.machine.gpu import Graphics
from nrd_trt.machine.host import Machine
from nrd_trt.machine.software import find_flavour
from nrd_trt.optional import require
from nrd_trt.progress import silent
from nrd_trt.proving import runtime_library
from nrd_trt.proving.network import NETWORKS, SMALL, fp32_file
from nrd_trt.proving.record import DRIVER, FORMS, OPERATOR, PLUGIN, RUNS, RUNTIME_LIBRARY, Figures
from nrd_trt.proving.runs import Feed, graph_fault, threads_fault
from nrd_trt.runtime.base import DeviceRunner
from nrd_trt.runtime.engine import Engine, open_bundle
from nrd_trt.runtime.select import bundle_plugin
from nrd_trt.specs import QUANTIZED, DecodeName, DecodeSpec, Flavour, Precision
from nrd_trt.zoo import checkpoint_path

RUN_ON: Precision = "fp16"
"""Precision of the plans that graphs, threads and times are proven with."""
CALIBRATION_IMAGES = 32
SCENES = 3
COPIED_BYTES = 1 << 20
CLASSES = (2, 19, 150)
"""Numbers of classes that the CUDA operator is checked with: the fewest, Cityscapes', ADE20K's."""

_DECODES: dict[str, DecodeName] = {"function": "onnx", "plugin": "plugin"}
_WARM_UP, _TIMED = 20, 200


class NotRunError(NrdTrtError):
    """This machine lacks what a part needs; the text says what."""


class ProofFailedError(NrdTrtError):
    """What a part proves does not hold; the text says how far off it is."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part.

    Attributes:
        name: See `nrd_trt.proving.record.PartResult`.
        prove: Does it, in the folder that parts share.
        needs: Parts that must have passed before.
    """

    name: str
    prove: Callable[[Path], Figures]
    needs: tuple[str, ...] = ()


def all_parts(flavours: Sequence[Flavour] = get_args(Flavour)) -> dict[str, Part]:
    """Return the parts by name, in the order in which they are run; plans are those of `flavours`."""
    return {part.name: part for part in _listed(flavours)}


def _listed(flavours: Sequence[Flavour]) -> Iterator[Part]:
    yield Part(name=DRIVER, prove=prove_driver)
    for flavour in get_args(Flavour):
        yield Part(name=flavour, prove=partial(prove_flavour, flavour), needs=(DRIVER,))
    yield Part(name=OPERATOR, prove=prove_operator, needs=(DRIVER,))
    if "tensorrt" in flavours:
        yield Part(name=PLUGIN, prove=prove_plugin, needs=("tensorrt",))
    for network in NETWORKS:
        for flavour in flavours:
            for form in FORMS if flavour == "tensorrt" else FORMS[:1]:
                yield from _lane(Lane(flavour, network, form))
    if "tensorrt" in flavours:
        plan = Lane("tensorrt", SMALL, FORMS[0])
        yield Part(name=RUNTIME_LIBRARY, prove=prove_runtime_library, needs=(f"{plan.name}/{RUN_ON}",))


@dataclass(frozen=True)
class Lane:
    """One network for one TensorRT flavour in one form of the decode."""

    flavour: Flavour
    network: str
    form: str

    @property
    def name(self) -> str:
        """What the names of its parts begin with."""
        return f"{self.flavour}/{self.network}/{self.form}"

    def bundle(self, folder: Path, precision: Precision = RUN_ON) -> Path:
        """Return where its bundle lies."""
        return folder / f"{self.name.replace('/', '-')}-{precision}.nrd"

    def open(self, folder: Path, *, cuda_graph: bool = True) -> Engine:
        """Open its bundle for the plan to be run."""
        return open_bundle(self.bundle(folder), runner=self.flavour, cuda_graph=cuda_graph)


def _lane(lane: Lane) -> Iterator[Part]:
    needs = (lane.flavour,) if lane.form == "function" else (PLUGIN,)
    for precision in get_args(Precision):
        yield Part(name=f"{lane.name}/{precision}", prove=partial(prove_plan, lane, precision), needs=needs)
    for what, prove in zip(RUNS, (prove_graph, prove_threads, measure_times), strict=True):
        yield Part(name=f"{lane.name}/{what}", prove=partial(prove, lane), needs=(f"{lane.name}/{RUN_ON}",))


# --- what plans need -------------------------------------------------------------------------------------------------


def prove_driver(_: Path) -> Figures:
    """Open the GPU, and bring bytes there and back, queued one by one and as a CUDA graph."""
    with ExitStack() as stack:
        try:
            cuda = load_cuda()
        except RunnerError as exc:
            raise NotRunError(str(exc)) from exc
        stack.callback(cuda.close)
        stack.enter_context(cuda.current())
        _copy_there_and_back(cuda, stack)
        facts = cuda.facts()
    told = {
        "gpu": facts.name,
        "compute_capability": facts.compute_capability,
        "driver": facts.driver,
        "cuda": facts.cuda,
        "memory_mib": facts.memory_bytes and facts.memory_bytes >> 20,
    }
    return {name: value for name, value in told.items() if value is not None}


def _copy_there_and_back(cuda: Cuda, stack: ExitStack) -> None:
    stream, device = cuda.create_stream(), cuda.allocate(COPIED_BYTES)
    stack.callback(cuda.destroy_stream, stream)
    stack.callback(cuda.free, device)
    hosts = [cuda.allocate_host(COPIED_BYTES, mapped=False)[0] for _ in range(2)]
    for host in hosts:
        stack.callback(cuda.free_host, host)
    there, back = (host_view(host, COPIED_BYTES) for host in hosts)

    def queue() -> None:
        cuda.upload(device, hosts[0], COPIED_BYTES, stream)
        cuda.download(hosts[1], device, COPIED_BYTES, stream)

    cuda.begin_capture(stream)
    queue()
    graph = cuda.end_capture(stream)
    stack.callback(cuda.destroy_graph, graph)
    for how in ("", " in a graph"):
        there[:] = np.random.default_rng(len(how)).integers(0, 256, COPIED_BYTES, np.uint8)
        if how:
            cuda.launch_graph(graph, stream)
        else:
            queue()
        cuda.synchronize(stream)
        if not np.array_equal(there, back):
            raise ProofFailedError(f"{np.mean(there != back):.2%} of the bytes came back changed from the GPU{how}")


def prove_flavour(flavour: Flavour, _: Path) -> Figures:
    """Import a flavour of TensorRT, see that its plans can run on this GPU, and make a builder."""
    tensorrt, gpu = load_tensorrt(flavour), probe_device()
    found = find_flavour(Machine(), flavour, Graphics(gpus=(gpu,), cuda=gpu.cuda) if gpu else Graphics())
    if found.runs is not True:
        raise NotRunError(f"{flavour} {tensorrt.version} cannot run plans here: {found.why}")
    try:
        tensorrt.builder(tensorrt.log(silent))
    except BuildError as exc:
        raise NotRunError(str(exc)) from exc
    return {"version": tensorrt.version}


def prove_plugin(_: Path) -> Figures:
    """Find the plugin library, hold it against TensorRT and the GPU, and load it."""
    tensorrt = load_tensorrt("tensorrt")
    gpu = probe_device()
    capability, cuda = (gpu.compute_capability, gpu.cuda) if gpu else (None, None)
    check = partial(check_plugin, tensorrt=tensorrt, compute_capability=capability, cuda=cuda)
    try:
        library = take_plugin(check, tensorrt=tensorrt.version)
    except PluginError as exc:
        raise NotRunError(str(exc)) from exc
    load_plugin(library, tensorrt)
    return {"version": library.info.version, "tensorrt": library.info.tensorrt, "code": library.info.code}


def prove_operator(_: Path) -> Figures:
    """Compile the CUDA operator for PyTorch and hold every kernel against the reference."""
    require("torch", extra="torch", purpose="the CUDA operator")
    from nrd_trt.decode.bench import Subject, find_gpu, random_inputs

    gpu, checked, largest = find_gpu(), 0, 0.0
    for classes in CLASSES:
        spec = DecodeSpec(num_classes=classes)
        inputs = random_inputs(spec, 2, 5, 7)
        for precision in ("fp32", "fp16", "bf16"):
            subject = Subject(spec, inputs, precision, cache_bytes=0)
            for variant in subject.variants():
                check, case = subject.check(variant), f"{classes} classes, {precision}, kernel {variant}"
                if not check.passed:
                    raise ProofFailedError(f"{case}: expected what the reference gives, got {check}")
                checked, largest = checked + 1, max(largest, check.logits_error or 0.0)
    return {"torch": gpu.torch, "checked_kernels": checked, "largest_logits_error": largest}


# --- plans -----------------------------------------------------------------------------------------------------------


def prove_plan(lane: Lane, precision: Precision, folder: Path) -> Figures:
    """Build a bundle, whose gate the plan's own masks must hold."""
    gpu = probe_device()
    if gpu is not None and (why := lacks(precision, gpu.compute_capability)):
        raise NotRunError(why)
    bundle = build(
        fp32_file(lane.network, folder),
        lane.bundle(folder, precision),
        precision=precision,
        calibration="synthetic" if precision in QUANTIZED else None,
        images=CALIBRATION_IMAGES if precision in QUANTIZED else None,
        checkpoint=None if lane.network == SMALL else checkpoint_path(lane.network),
        builder=lane.flavour,
        decode=_DECODES[lane.form],
        progress=False,
        on_stage=_say,
    )
    validation = bundle.record.validation
    if not validation.plan_ran:
        raise ProofFailedError(f"the masks are those of {validation.runner}: the plan was built and not run here")
    if not bundle.passed:
        raise ProofFailedError("; ".join(bundle.failures))
    if precision != RUN_ON:
        shutil.rmtree(bundle.path)  # engines of all parts would take a Jetson's last room
    agreement, gate = validation.pixel_agreement, Gates.of(precision).min_agreement
    return {"pixel_agreement": agreement or 0.0, "gate": gate, "reference": validation.reference}


def prove_graph(lane: Lane, folder: Path) -> Figures:
    """Draw the same masks with a CUDA graph as without."""

    def make(cuda_graph: bool) -> DeviceRunner:
        runner = lane.open(folder, cuda_graph=cuda_graph).runner
        if not on_device(runner):
            raise ProofFailedError(f"expected the runner of a plan, got {runner.name}")
        return runner

    return _proven(graph_fault(make, _feeds(lane, folder)))


def prove_threads(lane: Lane, folder: Path) -> Figures:
    """Draw the same masks in two threads at once as in one."""
    return _proven(threads_fault(lambda: lane.open(folder).runner, _feeds(lane, folder)))


def measure_times(lane: Lane, folder: Path) -> Figures:
    """Measure what one image takes; no figure is a gate."""
    row = benchmark(lane.bundle(folder), runner=lane.flavour, warmup=_WARM_UP, runs=_TIMED, progress=False).rows[0]
    timing, energy = row.timing, row.energy
    figures: dict[str, float | str] = {f"{name}_ms": getattr(row.latency, name) for name in ("p50", "p90", "p99")}
    if timing.gpu_compute is not None and timing.enqueue is not None:
        figures |= {"gpu_compute_p50_ms": timing.gpu_compute.p50, "enqueue_p50_ms": timing.enqueue.p50}
    if energy is not None and row.frames_per_joule is not None:
        figures |= {"watts": energy.watts, "frames_per_joule": row.frames_per_joule}
    notes = "; ".join(row.notes)
    return {**figures, "fps": row.throughput_fps, "doubtful": str(row.doubtful).lower(), "notes": notes}


def prove_runtime_library(folder: Path) -> Figures:
    """Compile the runtime library for C++ and draw the same masks with it as with the runner, in every form."""
    checkout = Machine().checkout
    why = runtime_library.what_is_missing(checkout)
    if checkout is None or why is not None:
        raise NotRunError(str(why))
    root, build = os.environ.get("TENSORRT_ROOT"), folder / "runtime"
    try:
        headers = runtime_library.configure(checkout, build, [f"-DTENSORRT_ROOT={root}"] if root else [])
    except RunnerError as exc:
        raise NotRunError(str(exc)) from exc
    version = load_tensorrt("tensorrt").version
    if version_numbers(headers) != version_numbers(version)[:3]:
        raise NotRunError(f"its TensorRT is {headers}, that of Python is {version}: set TENSORRT_ROOT to the same")
    example = runtime_library.compile_example(build, headers)
    lanes = [lane for form in FORMS if (lane := Lane("tensorrt", SMALL, form)).bundle(folder).is_dir()]
    for lane in lanes:
        library = bundle_plugin(read_bundle(lane.bundle(folder)))
        with lane.open(folder) as engine:
            for seed in range(SCENES):
                scene = street_scene(seed, engine.graph.shape.opt_hw).image
                got = example.draw(lane.bundle(folder), scene, build, plugin=library.path if library else None)
                wanted = engine.predict(scene)
                if not np.array_equal(got, wanted):
                    share = f"{np.mean(got != wanted):.2%} of the mask"
                    raise ProofFailedError(f"{lane.form}: {share} differ from the runner's on scene {seed}")
    return {"tensorrt": headers, "forms": ", ".join(lane.form for lane in lanes), "images": SCENES}


def _feeds(lane: Lane, folder: Path) -> list[Feed]:
    engine = lane.open(folder)
    return [engine.feed(street_scene(seed, engine.graph.shape.opt_hw).image) for seed in range(SCENES)]


def _proven(fault: str | None) -> Figures:
    if fault is not None:
        raise ProofFailedError(fault)
    return {}


def _say(text: str) -> None:
    """Leave a line in the output of the part, whose end is shown where it fails."""
    print(text, flush=True)
