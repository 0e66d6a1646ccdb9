"""A real Triton server on loopback with what `package` writes: answers, refusals, batches, loads, kills."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nrd_trt
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE
from scripts.dev.triton_server import MISSING, PYTHON, Server
from tests.artefacts import bundle, copy_of, rewrite_facts
from tests.packaging.plans import BATCHES, FIXED, RANGES, planned_bundle

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
SIZES = ((50, 70), (64, 96), (33, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles, the repository `models`, and `plans` with models that are not loaded."""
    folder = tmp_path_factory.mktemp("triton")
    for name in ("street", "padded"):
        copy_of(bundle(output="mask,confidence"), folder / f"{name}.nrd")
    rewrite_facts(folder / "padded.nrd", fit="pad")
    for name in ("street", "padded"):
        nrd_trt.package(folder / f"{name}.nrd", folder / "models", "triton")
    for name, shape in (("batches", BATCHES), ("fixed", FIXED), ("ranges", RANGES)):
        nrd_trt.package(planned_bundle(folder / f"{name}.nrd", shape), folder / "plans", "triton")
    nrd_trt.package(folder / "batches.nrd", folder / "models", "triton")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder / "models/street_bundle/run.sh", folder / "log.txt")
    try:
        server.start()
        server.call("/v2/repository/models/padded_bundle/load", {})
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    """Images and their masks, for `scripts/dev/triton_load.py`."""
    images = np.stack([street_scene(seed, SIZES[0]).image for seed in range(5)])
    np.savez(folder / "pairs.npz", images=images, masks=masks_of(folder / "street.nrd", images))
    return folder / "pairs.npz"


def masks_of(path: Path, images: np.ndarray) -> np.ndarray:
    with nrd_trt.open_bundle(path, threads=1) as engine:
        return np.stack([engine.predict(image) for image in images])


def infer(server: Server, model: str, data: np.ndarray, datatype: str = "UINT8", name: str = "mask") -> tuple[int, Any]:
    """Return the status, and an output or the text of the error."""
    tensor = {"name": "image", "shape": data.shape, "datatype": datatype, "data": data.ravel().tolist()}
    status, found = server.call(f"/v2/models/{model}/infer", {"inputs": [tensor]})
    if status != 200:
        return status, found["error"]
    outputs = {
        output["name"]: np.array(output["data"], np.uint8).reshape(output["shape"]) for output in found["outputs"]
    }
    assert outputs.keys() == {"mask", "confidence"}
    return status, outputs[name]


def test_the_readmes_clients_get_predicts_masks_and_triton_reads_every_configuration(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    """By gRPC, HTTP and shared memory."""
    image = street_scene(3, SIZES[0]).image
    Image.fromarray(image).save(tmp_path / "photo.jpg", format="PNG")  # without a loss, whichever decoder reads it
    plans = [folder / f"plans/{name}/config.pbtxt" for name in ("batches", "fixed", "ranges")]
    readme = folder / "models/street_bundle/README.md"
    command = [PYTHON, Path(__file__).with_name("clients.py"), readme, server.grpc, server.http, "masks.npz", *plans]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "masks.npz") as masks:
        assert len(masks) == 3
        for mask in masks.values():
            np.testing.assert_array_equal(mask, masks_of(folder / "street.nrd", image[None])[0])
    batches, fixed, ranges = json.loads(done.stdout)
    image_of = {"name": "image", "data_type": "TYPE_UINT8"}
    assert (batches["name"], batches["platform"], batches["max_batch_size"]) == ("batches", "tensorrt_plan", 8)
    assert batches["input"] == [{**image_of, "dims": ["352", "480", "3"]}]
    mask_of = {"name": "mask", "data_type": "TYPE_UINT8", "label_filename": "labels.txt"}
    assert batches["output"] == [{**mask_of, "dims": ["352", "480"]}]
    waiting = {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": "500"}
    assert batches["dynamic_batching"].items() >= waiting.items()
    assert batches["dynamic_batching"]["default_queue_policy"] == {"max_queue_size": 128}
    assert batches["optimization"] == {"cuda": {"graphs": True}}
    assert batches["instance_group"] == [{"count": 2, "kind": "KIND_GPU"}]
    assert [sample["batch_size"] for sample in batches["model_warmup"]] == [1, 4, 8]
    assert json.loads(batches["parameters"]["class_names"]["string_value"]) == ["Straße", "sky", "car"]
    assert "max_batch_size" not in fixed and "dynamic_batching" not in fixed
    assert fixed["input"][0]["dims"] == ["1", "352", "480", "3"] == fixed["model_warmup"][0]["inputs"]["image"]["dims"]
    assert ranges["input"][0]["dims"] == ["-1", "-1", "3"] and ranges["output"][0]["dims"] == ["-1", "-1"]
    graphs = ranges["optimization"]["cuda"]["graph_spec"]
    assert graphs == [{"batch_size": n, "input": {"image": {"dim": ["352", "480", "3"]}}} for n in (2, 4, 8)]


def test_images_of_any_size_and_batches_are_answered_with_predicts_masks(server: Server, folder: Path) -> None:
    for size in SIZES:
        images = np.stack([street_scene(seed, size).image for seed in range(3)])
        status, masks = infer(server, "street_bundle", images)
        assert status == 200, masks
        np.testing.assert_array_equal(masks, masks_of(folder / "street.nrd", images))
    with nrd_trt.open_bundle(folder / "street.nrd", threads=1) as engine:
        sure = infer(server, "street_bundle", images, name="confidence")[1]
        np.testing.assert_array_equal(sure, [engine.segment(image).confidence for image in images])
    labels = server.call("/v2/models/street_bundle/config")[1]["parameters"]["class_names"]["string_value"]
    assert json.loads(labels)[1] == "Building"


@pytest.mark.parametrize(
    ("model", "shape", "datatype", "message"),
    [
        ("street_bundle", (1, 50, 70, 3), "FP32", "data-type"),
        ("street_bundle", (1, 70, 3), "UINT8", "shape"),
        ("street_bundle", (1, 50, 70, 4), "UINT8", "shape"),
        ("street_bundle", (9, 2, 2, 3), "UINT8", "batch"),
        ("street_bundle", (1, 0, 70, 3), "UINT8", "expected (N, H, W, 3) with at least one pixel"),
        ("padded_bundle", (1, 64, 97, 3), "UINT8", "image 64x97 is larger than the engine's 64x96"),
    ],
)
def test_wrong_requests_are_answered_with_400_and_why(
    model: str, shape: tuple[int, ...], datatype: str, message: str, server: Server
) -> None:
    status, error = infer(server, model, np.zeros(shape, np.uint8), datatype)
    assert status == 400 and message in error, (status, error)
    good = np.zeros((1, 40, 60, 3), np.uint8)
    assert infer(server, model, good)[0] == 200


def test_requests_of_many_clients_share_runs_and_none_is_lost(server: Server, pairs: Path) -> None:
    before = {row["batch_size"] for row in server.statistics("street_bundle")["batch_stats"]}
    with server.load("street_bundle", pairs, "--clients", 8, "--requests", 80) as process:
        found = json.loads(process.communicate()[0])
    assert (found["sent"], found["answered"], found["wrong"], found["lost"], found["failed_tries"]) == (80, 80, 0, 0, 0)
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    formed = {row["batch_size"] for row in server.statistics("street_bundle")["batch_stats"]} - before
    assert formed, before  # the requests above had 1 and 3 images


def test_a_load_says_why_it_fails_and_takes_a_changed_bundle(server: Server, folder: Path) -> None:
    """It fails where a byte of the bundle was changed, and for a plan, as this server has no backend for plans."""
    images, load = street_scene(3, SIZES[2]).image[None], "/v2/repository/models/padded_bundle/load"
    old = infer(server, "padded_bundle", images)[1]
    file = folder / f"models/padded_bundle/1/padded.nrd/{ONNX_FILE}"
    right = file.read_bytes()
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    status, found = server.call(load, {})
    assert status == 400 and f"{ONNX_FILE}: expected SHA-256" in found["error"], found
    file.write_bytes(right)
    rewrite_facts(folder / "padded.nrd", fit="letterbox")
    nrd_trt.package(folder / "padded.nrd", folder / "models", "triton", force=True)
    np.testing.assert_array_equal(infer(server, "padded_bundle", images)[1], old)  # the server kept what it had
    assert server.call(load, {})[0] == 200
    new = infer(server, "padded_bundle", images)[1]
    np.testing.assert_array_equal(new, masks_of(folder / "padded.nrd", images))
    assert (new != old).any()
    status, found = server.call("/v2/repository/models/batches/load", {})
    assert status == 400 and "backend 'tensorrt'" in found["error"], found


def test_clients_recover_when_the_server_is_killed_and_started_again(server: Server, pairs: Path) -> None:
    """The last test: statistics begin anew. `make triton-proof` kills a server that answers for a minute."""
    options = ("--clients", 2, "--requests", 200, "--patience", 120)
    before = server.statistics("street_bundle")["inference_count"]
    with server.load("street_bundle", pairs, *options) as process:
        while server.statistics("street_bundle")["inference_count"] < before + 20:
            assert process.poll() is None
            time.sleep(0.05)
        server.kill()
        server.start()
        found = json.loads(process.communicate()[0])
    assert (found["sent"], found["answered"], found["wrong"], found["lost"]) == (200, 200, 0, 0), found
    assert found["failed_tries"] > 0  # so that it was away
