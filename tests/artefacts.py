"""What several tests build once per run: the trained checkpoint, its ONNX file, bundles. Nothing here asserts.

Treat everything returned as read-only; `copy_of` gives a bundle that may be damaged.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

import nrd_trt
from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE, RECORD_FILE
from nrd_trt.exporting import onnx_export
from nrd_trt.files import canonical_json, sha256_bytes, sha256_file
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import Segmentor
from nrd_trt.specs import InputShape
from tests.helpers import made_once, run_folder, small_model

REPOSITORY = Path(__file__).resolve().parent.parent
SIZE_HW = (64, 96)
SIZE = "64x96"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="no TensorRT-RTX: pip install nrd-trt[rtx]"
)
LENIENT = 0.9
"""Gate for tests about something else: on pictures this small a 16-bit file may miss its default gate."""


@cache
def workspace() -> Path:
    """A folder for this process."""
    folder = run_folder() / f"worker-{os.getpid()}"
    folder.mkdir()
    return folder


def checkpoint() -> Path:
    """A copy of the MobileNetV2 of 0.1.0, on which the tolerances of the tests were measured."""
    source = REPOSITORY / "tests/data_0_1_0/nrd_mobilenetv2_camvid.safetensors"
    return made_once("trained.safetensors", lambda path: shutil.copy(source, path))


@cache
def trained_model() -> Segmentor:
    """The trained network."""
    return load_model(checkpoint())


def other_checkpoint() -> Path:
    """The trained checkpoint with one class's logits raised: same form, other masks."""

    def make(path: Path) -> None:
        model = copy.deepcopy(load_model(checkpoint()))  # which may be remembered
        with torch.no_grad():
            model.decode_head.classifier.classifier[1].bias[-1] += 100.0
        save_checkpoint(model, path)

    return made_once("other.safetensors", make)


def untrained_checkpoint(num_classes: int = 19) -> Path:
    """A quick network of another number of classes."""
    return made_once(
        f"classes_{num_classes}.safetensors", lambda path: save_checkpoint(small_model(num_classes=num_classes), path)
    )


@cache
def both_outputs() -> onnx.ModelProto:
    """The trained network in fp32 at `SIZE_HW`, uint8 input, mask and logits."""
    options = onnx_export.ExportOptions(shape=InputShape.static(SIZE_HW))
    return onnx_export.export_onnx(trained_model(), options, checkpoint_sha256=sha256_file(checkpoint()))


@cache
def all_outputs() -> onnx.ModelProto:
    """The same with the confidence as a third output."""
    options = onnx_export.ExportOptions(shape=InputShape.static(SIZE_HW), confidence=True)
    return onnx_export.export_onnx(trained_model(), options, checkpoint_sha256=sha256_file(checkpoint()))


def onnx_file(output: str = "mask") -> Path:
    """The fp32 file as `nrd-trt export` writes it."""
    return made_once(
        f"fp32_{output}.onnx",
        lambda path: _write(select_outputs(all_outputs() if "confidence" in output else both_outputs(), output), path),
    )


def write_model(model: onnx.ModelProto, name: str) -> Path:
    """Write a model into the workspace."""
    return _write(model, workspace() / name)


def _write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def bundle(
    precision: str = "fp32",
    builder: str = "onnxruntime",
    output: str = "mask",
    fit: str = "resize",
    resample: str = "pillow",
) -> Path:
    """A bundle of the trained network that passed, built from `onnx_file`."""
    return made_once(
        f"{precision}_{builder}_{output}_{fit}_{resample}.nrd",
        lambda path: build(
            onnx_file(output),
            path,
            precision=precision,
            builder=builder,
            fit=fit,
            resample=resample,
            checkpoint=checkpoint(),
        ),
    )


def build(source: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Build quickly; return the bundle's record as JSON has it."""
    defaults: dict[str, Any] = {"builder": "onnxruntime", "min_agreement": LENIENT, "threads": 1, "progress": False}
    return nrd_trt.build(source, output, **{**defaults, **changes}).record.to_dict()


_scene = cache(street_scene)


def scenes(folder: Path, count: int, *, labels: bool = False, size_hw: tuple[int, int] = (50, 70)) -> Path:
    """Write drawn scenes into `folder`, below ``images/`` and ``labels/``."""
    for name in ("images", "labels") if labels else ("images",):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        scene = _scene(index, size_hw)
        write_rgb(folder / "images" / f"{index:02}.png", scene.image)
        if labels:
            Image.fromarray(scene.label).save(folder / "labels" / f"{index:02}.png")
    return folder


def copy_of(source: Path, target: Path) -> Path:
    """Copy a bundle."""
    return Path(shutil.copytree(source, target))


def rewrite_facts(path: Path, **changes: Any) -> None:
    """Edit values of a bundle's facts and make their own hash right again."""
    record = {**read_facts_of(path), **changes}
    _write_facts(path, {key: value for key, value in record.items() if value is not ...})


def read_facts_of(path: Path) -> dict[str, Any]:
    """Read a bundle's facts without checking any file."""
    content: dict[str, Any] = json.loads((path / RECORD_FILE).read_bytes())
    del content["sha256"]
    return content


def _write_facts(path: Path, record: dict[str, Any]) -> None:
    content = {**record, "sha256": sha256_bytes(canonical_json(record))}
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (path / RECORD_FILE).write_text(text)


def plant(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Copy a bundle, change its ONNX file, and make every hash right again: what a faulty exporter would write."""
    path = copy_of(source, target)
    model = onnx.load(path / ONNX_FILE)
    change(model)
    (path / ONNX_FILE).write_bytes(model.SerializeToString(deterministic=True))
    record = read_facts_of(path)
    record["files"][ONNX_FILE] = sha256_file(path / ONNX_FILE)
    record["model"] = read_facts(model).to_dict()
    _write_facts(path, record)
    return path


def listing(folder: Path) -> list[str]:
    """Return every path below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child process that finds this checkout."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", **changes}


def run_process(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `nrd-trt` of this checkout as a user does; `tests/warm` has a cheaper way for what is not about that."""
    command = [sys.executable, "-c", "from nrd_trt.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**changes))
