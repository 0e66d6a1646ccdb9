"""Load a real Triton server with what `nrd-trt package` writes, kill it under load, and measure what it costs.

    python scripts/dev/triton_proof.py docs/triton-proof.md [--seconds 60] [--measure 8]

The bundle is the small checkpoint's in ONNX Runtime. Beside it stands a model of the Python backend that gives back the
first channel of its image: its latency is what the server, its backend, gRPC and the client cost. It ends with 1 if an
answer is lost, differs from `predict`'s, or fails where the server is not killed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from triton_server import MISSING, Server

import nrd_trt
from nrd_trt.data.synthetic import street_scene
from nrd_trt.runtime.engine import Engine
from nrd_trt.specs import format_size
from nrd_trt.zoo import checkpoint_path

_SIZE_HW, _IMAGES_HW, _SCENES = (128, 192), (352, 480), 20
_CLIENTS, _UNDER_LOAD = (1, 4, 8), 4
_OURS, _IDENTITY = "street_bundle", "identity"
_IDENTITY_MODEL = """import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        images = (backend.get_input_tensor_by_name(request, "image").as_numpy() for request in requests)
        masks = (backend.Tensor("mask", image[..., 0].copy()) for image in images)
        return [backend.InferenceResponse([mask]) for mask in masks]
"""
_IDENTITY_CONFIG = """name: "identity"
backend: "python"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] } ]
output [ { name: "mask" data_type: TYPE_UINT8 dims: [ -1, -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { max_queue_delay_microseconds: 500 }
"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of the load: what `triton_load.py` printed, and means of the server's counts in milliseconds.

    Attributes:
        found: The object that it printed.
        queue_ms: Time that a request waited in the server.
        model_ms: Time that a request was in the model, with those that shared its run.
        batch: Requests of a run.
    """

    found: dict[str, float]
    queue_ms: float
    model_ms: float
    batch: float

    @property
    def problems(self) -> list[str]:
        """What must not be: answers that are lost or wrong, and failures."""
        return [f"{self.found[name]:.0f} {name}" for name in ("wrong", "lost", "failed_tries") if self.found[name]]


def main() -> int:
    """Run, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load")
    parser.add_argument("--measure", type=float, default=8.0, help="seconds of each measurement")
    args = parser.parse_args()
    if MISSING:
        print(MISSING, file=sys.stderr)
        return 2
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = _prepare(folder)
        with _serving(folder) as server, nrd_trt.open_bundle(folder / "street.nrd") as engine:
            run, latencies, alone = _runner(server, folder), {}, list[float]()
            for clients in _CLIENTS:
                alone += _predict_ms(engine, images)
                for model in (_IDENTITY, _OURS):
                    latencies[model, clients] = run(model, clients, "--seconds", args.measure)
            loaded = run(_OURS, _UNDER_LOAD, "--seconds", args.seconds)
            reloaded = run(_OURS, _UNDER_LOAD, "--seconds", args.seconds / 3, meanwhile=lambda: _reload(server, folder))
            killed = run(
                _OURS, _UNDER_LOAD, "--seconds", args.seconds / 2, "--patience", 120, meanwhile=_killing(server)
            )
    problems = [f"{key}: {what}" for key, one in latencies.items() for what in one.problems]
    problems += [f"load: {what}" for what in loaded.problems] + [f"reload: {what}" for what in reloaded.problems]
    problems += [f"kill: {killed.found[name]:.0f} {name}" for name in ("wrong", "lost") if killed.found[name]]
    problems += ["kill: the server was never away"] * (not killed.found["failed_tries"])
    args.document.write_text(_page(latencies, statistics.median(alone), loaded, reloaded, killed, busy, problems))
    return int(bool(problems))


def _prepare(folder: Path) -> np.ndarray:
    """Make the repository and the pairs that the load sends; return the images."""
    path = folder / "street.nrd"
    checkpoint = checkpoint_path("nrd_mobilenetv2_camvid")
    nrd_trt.build(checkpoint, path, precision="fp32", size=_SIZE_HW, builder="onnxruntime", progress=False)
    nrd_trt.package(path, folder / "models", "triton")
    identity = folder / "models" / _IDENTITY
    (identity / "1").mkdir(parents=True)
    (identity / "config.pbtxt").write_text(_IDENTITY_CONFIG)
    (identity / "1/model.py").write_text(_IDENTITY_MODEL)
    images = np.stack([street_scene(seed, _IMAGES_HW).image for seed in range(_SCENES)])
    with nrd_trt.open_bundle(path) as engine:
        masks = np.stack([engine.predict(image) for image in images])
    np.savez(folder / f"{_OURS}.npz", images=images, masks=masks)
    np.savez(folder / f"{_IDENTITY}.npz", images=images, masks=images[..., 0])
    return images


def _predict_ms(engine: Engine, images: np.ndarray) -> list[float]:
    """Return what `predict` takes in this process, while the server has nothing to do."""
    engine.predict(images[0])
    times = [time.perf_counter()]
    for image in images:
        engine.predict(image)
        times.append(time.perf_counter())
    return [(after - before) * 1000 for before, after in pairwise(times)]


@contextmanager
def _serving(folder: Path) -> Iterator[Server]:
    server = Server(folder / f"models/{_OURS}/run.sh", folder / "log.txt", f"--load-model={_IDENTITY}")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _runner(server: Server, folder: Path) -> Callable[..., Measured]:
    def run(model: str, clients: int, *options: object, meanwhile: Callable[[], None] | None = None) -> Measured:
        before = server.statistics(model)
        with server.load(model, folder / f"{model}.npz", "--clients", clients, *options) as process:
            if meanwhile is not None:
                while server.statistics(model)["inference_count"] < before["inference_count"] + _UNDER_LOAD:
                    time.sleep(0.1)
                meanwhile()
                before = {}  # the counts began anew
            found = json.loads(process.communicate()[0])
        print(model, clients, found, file=sys.stderr, flush=True)
        return _measured(found, before, server.statistics(model))

    return run


def _measured(found: dict[str, float], before: dict[str, Any], after: dict[str, Any]) -> Measured:
    def total(counted: dict[str, Any], kind: str, what: str) -> int:
        return int(counted["inference_stats"][kind].get(what, 0)) if counted else 0

    def mean_ms(kind: str) -> float:
        spent, count = (total(after, kind, what) - total(before, kind, what) for what in ("ns", "count"))
        return spent / max(count, 1) / 1e6

    counts = [after[name] - before.get(name, 0) for name in ("inference_count", "execution_count")]
    model_ms = sum(map(mean_ms, ("compute_input", "compute_infer", "compute_output")))
    return Measured(found=found, queue_ms=mean_ms("queue"), model_ms=model_ms, batch=counts[0] / max(counts[1], 1))


def _reload(server: Server, folder: Path) -> None:
    nrd_trt.package(folder / "street.nrd", folder / "models", "triton", force=True)
    status, found = server.call(f"/v2/repository/models/{_OURS}/load", {})
    if status != 200:
        raise RuntimeError(found)


def _killing(server: Server) -> Callable[[], None]:
    def kill_and_start() -> None:
        server.kill()
        server.start()

    return kill_and_start


def _page(
    latencies: dict[tuple[str, int], Measured],
    predict_ms: float,
    loaded: Measured,
    reloaded: Measured,
    killed: Measured,
    busy: float,
    problems: Sequence[str],
) -> str:
    """Return the page."""
    rows = "\n".join(map(_row, latencies, latencies.values()))
    megabytes = int(np.prod(_IMAGES_HW)) * 4 / 1e6
    cases = {
        f"{_UNDER_LOAD} clients, one request after the other": loaded,
        "the bundle packaged again and loaded meanwhile": reloaded,
        "the server killed (SIGKILL) and started again meanwhile": killed,
    }
    table = "\n".join(_case(*case) for case in cases.items())
    host = f"{len(os.sched_getaffinity(0))} cores without a GPU, the load average {busy:.1f} before it began"
    return f"""# A Triton server under load

Written by `make triton-proof` on {date.today().isoformat()}: Triton 2.51.0 on {host}.
Clients send by gRPC on the same machine. `nrd_mobilenetv2_camvid` in fp32 at {format_size(_SIZE_HW)} in ONNX Runtime,
images of {format_size(_IMAGES_HW)}; every answer was compared with the mask of `predict`.

| | requests | answered | wrong | lost | tries that failed | p50 ms | p90 ms | p99 ms | longest time without an answer |
|---|---|---|---|---|---|---|---|---|---|
{table}

{"Everything is as it must be." if not problems else "NOT as it must be: " + "; ".join(problems)}

## What the server costs

The model *identity* gives back a channel of its image, so its latency is the overhead of a request: client, gRPC,
server, Python backend and {megabytes:.2f} MB of image and mask. Percentiles are of the client's latency; the columns
behind the rate are means: waiting in the server's queue, in the model, and the rest of the latency.

| model | clients | p50 ms | p90 ms | p99 ms | requests/s | queue ms | model ms | rest ms | requests a run |
|---|---|---|---|---|---|---|---|---|---|
{rows}

`predict` takes {predict_ms:.1f} ms in a process of its own (median of {_SCENES} images before each pair of rows, the
server at rest). With more clients than cores requests wait for each other; on a CPU shared runs bring no throughput.
"""


def _case(what: str, run: Measured) -> str:
    found = run.found
    counts = " | ".join(f"{found[name]:.0f}" for name in ("sent", "answered", "wrong", "lost", "failed_tries"))
    return f"| {what} | {counts} | {_percentiles(found)} | {found['longest_gap_s']:.1f} s |"


def _row(key: tuple[str, int], run: Measured) -> str:
    name = {_OURS: "the bundle"}.get(key[0], key[0])
    rest_ms = run.found["mean_ms"] - run.queue_ms - run.model_ms
    means = f"{run.queue_ms:.2f} | {run.model_ms:.2f} | {rest_ms:.2f} | {run.batch:.1f}"
    return f"| {name} | {key[1]} | {_percentiles(run.found)} | {run.found['per_s']:.0f} | {means} |"


def _percentiles(found: dict[str, float]) -> str:
    return " | ".join(f"{found[f'p{share}_ms']:.1f}" for share in (50, 90, 99))


if __name__ == "__main__":
    sys.exit(main())
