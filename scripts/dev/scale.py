"""Measure what batch jobs cost beside the network, and reckon from that what many workers need; write docs/scale.md.

    python scripts/dev/scale.py docs/scale.md [--rounds 3] [--seed 0]

Jobs and bare loops (read, predict, write) over the same images take turns, on a machine at rest. An engine that does
nothing shows what Ray costs for each image and each batch. The tables for 10, 100 and 1,000 workers are arithmetic on
these figures and a seeded simulation of the pool; nothing here has run on more than one machine.
"""

from __future__ import annotations

import argparse
import heapq
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import onnx
from onnx import TensorProto, helper

import nrd_trt
from nrd_trt.data.images import read_image
from nrd_trt.data.overlay import write_mask, write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.graph.metadata import GraphFacts, write_facts
from nrd_trt.model.config import CAMVID_INFO
from nrd_trt.specs import InputShape, format_size
from nrd_trt.zoo import checkpoint_path

_SIZE_HW, _IMAGES_HW = (352, 480), (360, 480)
_FEW, _MANY, _MANY_OF_NOTHING = 16, 96, 1600
_BATCHES, _WORKERS = (1, 8, 64), (10, 100, 1000)
_NETWORK = "nrd_mobilenetv2_camvid"
_VERB = (sys.executable, "-c", "from nrd_trt.cli.main import main; main()", "batch")
_LINK_BYTES_S = 10e9 / 8


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Milliseconds for each image on one machine.

    Attributes:
        bare_ms: Time of a loop in one process with one thread.
        one_ms: Time of a job with one worker, without its start.
        all_ms: Time of a job with a worker for each core, without its start; by the whole job, not by worker.
        start_s: Seconds of a job's start and end.
    """

    bare_ms: float
    one_ms: float
    all_ms: float
    start_s: float


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Mean bytes of an image, of its mask as PNG, and of its row in Parquet."""

    image: float
    mask: float
    row: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A simulated job.

    Attributes:
        makespan_s: From its begin to its last image.
        wasted: Share of the workers' computing that was lost with batches that a dying worker did not finish.
        idle: Share of the workers' time that they had nothing to do at the end.
    """

    makespan_s: float
    wasted: float
    idle: float


def simulate(
    *,
    workers: int,
    images: int,
    batch: int,
    image_s: float,
    start_s: float,
    slow_share: float = 0.02,
    slowness: float = 4.0,
    lifetime_s: float = 24 * 3600.0,
    seed: int = 0,
) -> Outcome:
    """Simulate a pool whose workers each take the next batch when they are free.

    Args:
        workers: How many.
        images: How many.
        batch: Images between two marks.
        image_s: Seconds of an image on a healthy worker; each batch takes up to a tenth more or less.
        start_s: Seconds of a worker's start, at first and after each death.
        slow_share: Share of workers that are slow.
        slowness: How many times longer they take.
        lifetime_s: Mean time until a worker dies, which loses the batch that it is at.
        seed: Seed of speeds and deaths.
    """
    rng = random.Random(seed)
    paces = [slowness if rng.random() < slow_share else 1.0 for _ in range(workers)]
    deaths = [start_s + rng.expovariate(1 / lifetime_s) for _ in range(workers)]
    free = [(start_s, worker) for worker in range(workers)]
    left, lost, worked, ends = images, 0.0, 0.0, [start_s] * workers
    while left:
        now, worker = heapq.heappop(free)
        count = min(batch, left)
        takes = count * image_s * paces[worker] * rng.uniform(0.9, 1.1)
        if now + takes > deaths[worker]:  # the batch is for whoever is free next
            lost += max(0.0, deaths[worker] - now)
            back = max(now, deaths[worker]) + start_s
            deaths[worker] = back + rng.expovariate(1 / lifetime_s)
            heapq.heappush(free, (back, worker))
            continue
        left, worked = left - count, worked + takes
        ends[worker] = now + takes
        heapq.heappush(free, (ends[worker], worker))
    makespan = max(ends)
    idle = sum(makespan - end for end in ends) / (workers * makespan)
    return Outcome(makespan_s=makespan, wasted=lost / (worked + lost), idle=idle)


def main() -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many = _images(folder / "many", _MANY_OF_NOTHING)
        few = {count: _subset(many, folder / str(count), count) for count in (_FEW, _MANY)}
        network = nrd_trt.build(
            checkpoint_path(_NETWORK),
            folder / "network.nrd",
            precision="fp32",
            size=_SIZE_HW,
            builder="onnxruntime",
            progress=False,
        ).path
        rates = _rates(few, network, folder, args.rounds)
        print(rates, file=sys.stderr, flush=True)
        sizes = _sizes(few[_MANY], folder / f"bare-{args.rounds - 1}", network, folder / "rows.parquet")
        nothing = _nothing(folder / "nothing.onnx", folder / "nothing.nrd")
        overheads = _overheads(many, folder, nothing, args.rounds)
        print(sizes, overheads, file=sys.stderr, flush=True)
    args.document.write_text(_page(rates, sizes, overheads, args.seed))
    return 0


def _images(folder: Path, count: int) -> Path:
    """Draw street scenes, forty different ones, with as many names as are wanted."""
    folder.mkdir()
    for index in range(min(40, count)):
        write_rgb(folder / f"{index:05}.png", street_scene(index, _IMAGES_HW).image)
    for index in range(40, count):
        os.link(folder / f"{index % 40:05}.png", folder / f"{index:05}.png")
    return folder


def _subset(source: Path, folder: Path, count: int) -> Path:
    folder.mkdir()
    for path in sorted(source.iterdir())[:count]:
        os.link(path, folder / path.name)
    return folder


def _nothing(path: Path, bundle: Path) -> Path:
    """Build a bundle whose network reads 32x32 pixels and finds class 0 everywhere."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "pixels", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "zero"], ["zeros"], "zeros"),
        helper.make_node("ReduceSum", ["zeros", "axis"], ["index"], "index", keepdims=0),
        helper.make_node("Cast", ["index"], ["mask"], "mask", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "nothing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, 32, 32, 3))],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, (1, 32, 32))],
        [
            helper.make_tensor("zero", TensorProto.FLOAT, (), [0.0]),
            helper.make_tensor("axis", TensorProto.INT64, (1,), [3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    facts = GraphFacts(
        info=CAMVID_INFO,
        decode=None,
        shape=InputShape.static((32, 32)),
        input_form="uint8",
        output="mask",
        encoder="mobilenetv2",
        head="bilinear",
        upsample=32,
    )
    write_facts(model, facts)
    onnx.save(model, path)
    return nrd_trt.build(path, bundle, precision="fp32", builder="onnxruntime", progress=False).path


def _rates(sources: dict[int, Path], bundle: Path, folder: Path, rounds: int) -> Rates:
    """Measure the network's engine; a job's start is what jobs of different length have in common."""
    cores = len(os.sched_getaffinity(0))
    bare, one, every, starts = [], [], [], []
    for turn in range(rounds):
        bare.append(_bare_ms(sources[_MANY], folder / f"bare-{turn}", bundle))
        short = _job_s(sources[_FEW], folder / f"one-short-{turn}", bundle, workers=1)
        one.append((_job_s(sources[_MANY], folder / f"one-{turn}", bundle, workers=1) - short) / (_MANY - _FEW) * 1e3)
        starts.append(short - _FEW * one[-1] / 1e3)
        short = _job_s(sources[_FEW], folder / f"all-short-{turn}", bundle, workers=cores)
        long = _job_s(sources[_MANY], folder / f"all-{turn}", bundle, workers=cores)
        every.append((long - short) / (_MANY - _FEW) * 1e3)
    return Rates(
        bare_ms=statistics.median(bare),
        one_ms=statistics.median(one),
        all_ms=statistics.median(every),
        start_s=statistics.median(starts),
    )


def _overheads(source: Path, folder: Path, bundle: Path, rounds: int) -> dict[int, tuple[float, float]]:
    """Return, by batch, what an image of an engine that does nothing takes in a bare loop and in a job, in ms."""
    found: dict[int, list[tuple[float, float]]] = {batch: [] for batch in _BATCHES}
    half = _subset(source, folder / "half", _MANY_OF_NOTHING // 2)
    for turn in range(rounds):
        for batch, figures in found.items():
            name = f"nothing-{batch}-{turn}"
            bare = _bare_ms(half, folder / f"bare-{name}", bundle)
            short = _job_s(half, folder / f"half-{name}", bundle, workers=1, batch=batch)
            long = _job_s(source, folder / name, bundle, workers=1, batch=batch)
            figures.append((bare, (long - short) / (_MANY_OF_NOTHING / 2) * 1e3))
    return {
        batch: (statistics.median(bare for bare, _ in figures), statistics.median(job for _, job in figures))
        for batch, figures in found.items()
    }


def _job_s(source: Path, output: Path, bundle: Path, *, workers: int, batch: int = 8) -> float:
    """Return the seconds of a job, Python's start in it."""
    words = [*_VERB, source, "-o", output, "--bundle", bundle, "--concurrency", workers, "--threads", 1]
    start = time.perf_counter()
    subprocess.run(
        [*map(str, words), "--batch", str(batch), "-q"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def _bare_ms(source: Path, output: Path, bundle: Path) -> float:
    """Return the milliseconds for each image of a loop that reads, predicts and writes."""
    output.mkdir()
    images = sorted(source.iterdir())
    with nrd_trt.open_bundle(bundle, threads=1) as engine:
        engine.predict(read_image(images[0]))
        start = time.perf_counter()
        for path in images:
            write_mask(output / path.name, engine.predict(read_image(path)), engine.info.palette)
    return (time.perf_counter() - start) / len(images) * 1e3


def _sizes(source: Path, masks: Path, bundle: Path, rows: Path) -> Sizes:
    nrd_trt.segment_dataset(source, rows, bundle, progress=False)
    count = len(list(source.iterdir()))
    image, mask, row = (
        sum(path.stat().st_size for path in paths) / count
        for paths in (source.iterdir(), masks.iterdir(), rows.glob("*.parquet"))
    )
    return Sizes(image=image, mask=mask, row=row)


def _page(rates: Rates, sizes: Sizes, overheads: dict[int, tuple[float, float]], seed: int) -> str:
    cores = len(os.sched_getaffinity(0))
    per_batch_ms = _per_batch_ms(overheads)
    return f"""# Scale

What a job of `nrd-trt batch` costs beside the network, measured on one machine, and what follows for many. Written by
`make scale` on {date.today().isoformat()} on {cores} cores of {_processor()}, no GPU: `{_NETWORK}` in fp32 at
{format_size(_SIZE_HW)} in ONNX Runtime, drawn images of {format_size(_IMAGES_HW)}, one thread for each worker, medians.

## One machine, measured

| | |
|---|---|
| bare loop: read, predict, write, one thread | {rates.bare_ms:.1f} ms for each image, \
{1e3 / rates.bare_ms:.1f} images/s |
| `batch` with one worker | {rates.one_ms:.1f} ms for each image ({rates.one_ms - rates.bare_ms:+.1f} ms, \
{rates.one_ms / rates.bare_ms - 1:+.1%}), {1e3 / rates.one_ms:.1f} images/s |
| `batch` with {cores} workers | {1e3 / rates.all_ms:.1f} images/s, {1e3 / rates.all_ms / cores:.1f} for each core |
| start and end of a job: Python, Ray, the worker and its engine | {rates.start_s:.1f} s |

With an engine that does nothing (32x32 pixels, no network), one worker:

| images of a batch | bare loop | `batch` | Ray and the marks, for each image |
|---|---|---|---|
{_costs(overheads)}
So a batch costs {per_batch_ms:.1f} ms beside its images, at the worker or at the process that hands batches out,
whichever is slower. What a request to Triton costs beside
the network, at 1, 4 and 8 clients, is in [triton-proof.md](triton-proof.md#what-the-server-costs).

## A million images, reckoned

| | bytes of an image | of a million |
|---|---|---|
| read: PNG of {format_size(_IMAGES_HW)} | {sizes.image:,.0f} | {sizes.image / 1e3:,.0f} GB |
| written: mask as PNG | {sizes.mask:,.0f} | {sizes.mask / 1e3:,.1f} GB |
| or: row in Parquet, mask included | {sizes.row:,.0f} | {sizes.row / 1e3:,.1f} GB |

What a pool asks of its surroundings, where each worker is a core as above (batches of 8), and what fills first:

| workers | images/s | read | written | batches/s | 10 Gbit/s | the process that hands out batches |
|---|---|---|---|---|---|---|
{_demands(rates, sizes, per_batch_ms)}
The last two columns are shares of what one link carries and of what one process hands out if all of a batch's cost is
its; beyond 100 % that fills first. A larger `--batch` lowers the latter in proportion. Storage that answers each file
with a delay of 20 ms keeps up all the same: a worker reads the next image while its engine runs. Workers that are GPUs
are as many cores as they are faster: ten that draw 400 images/s each stand in the row of \
{round(4000 * rates.one_ms / 1e3, -1):,.0f} workers.

## Stragglers and deaths, simulated

`simulate` of `scripts/dev/scale.py`, seed {seed}: a million images, each worker takes the next batch when it is free;
2 % of the workers are four times slower, a worker lives for a day on average, and a death loses the batch that it is
at.

| workers | images of a batch | time | more than without both | computing that is lost | idle at the end |
|---|---|---|---|---|---|
{_simulations(rates, seed)}
Small batches lose little and leave nobody waiting, large ones hold the job up by their last one on a slow worker.
"""


def _costs(overheads: dict[int, tuple[float, float]]) -> str:
    return "".join(
        f"| {batch} | {bare:.2f} ms | {job:.2f} ms | {job - bare:+.2f} ms |\n"
        for batch, (bare, job) in overheads.items()
    )


def _per_batch_ms(overheads: dict[int, tuple[float, float]]) -> float:
    """Return what a batch costs beside its images: the slope between batches of one image and of many."""
    (one, single), (many, joined) = (
        (batch, job - bare) for batch, (bare, job) in (min(overheads.items()), max(overheads.items()))
    )
    return (single - joined) / (1 / one - 1 / many)


def _demands(rates: Rates, sizes: Sizes, per_batch_ms: float) -> str:
    rows = ""
    for workers in _WORKERS:
        rate = workers * 1e3 / rates.one_ms
        read, written = rate * sizes.image, rate * sizes.mask
        link, process = (read + written) / _LINK_BYTES_S, rate / 8 * per_batch_ms / 1e3
        rows += f"| {workers:,} | {rate:,.0f} | {read / 1e6:,.1f} MB/s | {written / 1e6:,.2f} MB/s | {rate / 8:,.0f} "
        rows += f"| {link:.1%} | {process:.1%} |\n"
    return rows


def _simulations(rates: Rates, seed: int) -> str:
    rows, image_s = "", rates.one_ms / 1e3
    for workers in _WORKERS:
        ideal = 1e6 * image_s / workers + rates.start_s
        for batch in (8, 64, 512):
            ended = simulate(
                workers=workers, images=1_000_000, batch=batch, image_s=image_s, start_s=rates.start_s, seed=seed
            )
            more = round(ended.makespan_s / ideal - 1, 3) + 0.0  # which makes -0.0 0.0
            rows += f"| {workers:,} | {batch} | {ended.makespan_s / 3600:.2f} h | {more:+.1%} "
            rows += f"| {ended.wasted:.3%} | {ended.idle:.1%} |\n"
    return rows


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    named: Sequence[str] = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
