"""`package --for deepstream`: what nvinfer is told, what it could not run, and the library, compiled and called.

The library is compiled with the headers of DeepStream in NRD_TRT_DEEPSTREAM_HEADERS (its ``sources/includes``, or
``includes`` of github.com/NVIDIA/DeepStream) and those of TensorRT in NRD_TRT_TENSORRT_HEADERS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nrd_trt
from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE
from nrd_trt.engine.plugins import LIBRARY, read_plugin
from nrd_trt.errors import ConfigError
from tests.artefacts import REPOSITORY
from tests.engine.records import record
from tests.packaging.plans import BATCHES, PLAN, RANGES, planned_bundle
from tests.plugin_library import library, needs_compiler

FILES = {
    "Makefile",
    "README.md",
    "config_infer.txt",
    "deepstream_app.txt",
    "labels.txt",
    "nrd_mask_parser.cpp",
    "run.sh",
}


def packaged(path: Path, **options: Any) -> tuple[Path, str]:
    """Package a bundle beside it; return the folder and the notes."""
    made = nrd_trt.package(path, path.parent / "out", "deepstream", **options)
    return path.parent / "out" / f"{path.stem}_deepstream", "\n".join(made.notes)


def planar(path: Path, *given: Any, **changes: Any) -> Path:
    return planned_bundle(path, *given, **{"input_form": "rgb_float", "output": "mask", **changes})


def settings(folder: Path, file: str = "config_infer.txt") -> ConfigParser:
    parsed = ConfigParser(strict=True)
    parsed.read_string((folder / file).read_text())
    return parsed


def test_nvinfer_gives_the_network_what_it_reads_and_its_plan(tmp_path: Path) -> None:
    folder, notes = packaged(planar(tmp_path / "city.nrd"))
    assert {path.name for path in folder.iterdir()} == {*FILES, PLAN_FILE, "nrd_package.json"}
    told = dict(settings(folder)["property"])
    assert (folder / told["model-engine-file"]).read_bytes() == PLAN
    for name, value in {
        "net-scale-factor": "1",
        "offsets": "0;0;0",
        "model-color-format": "0",
        "infer-dims": "3;352;480",
        "batch-size": "8",
        "network-type": "2",
        "num-detected-classes": "3",
        "maintain-aspect-ratio": "0",
    }.items():
        assert told[name] == value, name
    assert not told.keys() & {"onnx-file", "network-mode"}  # nothing that another plan could be built from
    assert (folder / "labels.txt").read_text() == "Straße\nsky\ncar\n"
    assert "TensorRT 10.13.2 exactly" in notes and notes.splitlines()[0] in (folder / "README.md").read_text()
    app = settings(folder, "deepstream_app.txt")
    assert app["primary-gie"]["config-file"] == "config_infer.txt" and app["segvisual"]["width"] == "480"


@pytest.mark.parametrize(
    ("changes", "options", "expected", "noted"),
    [
        ({"plan": None}, {}, {"onnx-file": ONNX_FILE, "strongly-typed": "1"}, "Nobody has compared that plan's masks"),
        ({"builder": replace(record().builder, name="tensorrt-rtx")}, {}, {"onnx-file": ONNX_FILE}, "builder tensorrt"),
        ({}, {"max_batch": 4}, {"batch-size": "4"}, "nvinfer scales frames"),
        ({"shape": RANGES}, {}, {"infer-dims": "3;352;480"}, "takes 2 frames or more"),
        ({"fit": "letterbox"}, {}, {"maintain-aspect-ratio": "1", "symmetric-padding": "0"}, "Padding is black"),
        ({"output": "both"}, {}, {}, "copies every output"),
    ],
    ids=["no plan", "rtx", "batch", "ranges", "letterbox", "logits too"],
)
def test_what_a_bundle_is_decides_on_settings_and_notes(
    changes: dict[str, Any], options: dict[str, Any], expected: dict[str, str], noted: str, tmp_path: Path
) -> None:
    changes = dict(changes)
    folder, notes = packaged(planar(tmp_path / "city.nrd", changes.pop("shape", BATCHES), **changes), **options)
    assert dict(settings(folder)["property"]).items() >= expected.items()
    assert noted in notes


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"input_form": "uint8"}, {}, r"the input uint8; build it with the input rgb_float: nrd_trt\.build"),
        ({"input_form": "float"}, {}, "the input float"),
        ({"mask_encoding": "u8x4"}, {}, "got one with masks as u8x4"),
        ({"output": "logits"}, {}, "got one with the output logits"),
        ({"fit": "pad"}, {}, "expected fit 'resize' or 'letterbox', got 'pad'"),
        ({"precision": replace(record().precision, asked="int8", target="cpu")}, {}, "got one for a CPU"),
        ({}, {"max_batch": 9}, "max_batch=9: expected 1 to 8"),
        ({}, {"plugin": "lib.so"}, r"plugin=lib\.so: expected a bundle whose plan needs it"),
    ],
)
def test_what_nvinfer_could_not_run_is_refused(
    changes: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        packaged(planar(tmp_path / "city.nrd", **changes), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["city.nrd"]


def test_the_pipeline_is_one_line_of_gstreamer(tmp_path: Path) -> None:
    folder, _ = packaged(planar(tmp_path / "city.nrd"))
    for name in ("make", "gst-launch-1.0"):
        (tool := tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho {name}; printf '%s\\n' \"$@\"\n")
        tool.chmod(0o755)
    given = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    ran = subprocess.run([folder / "run.sh", "rtsp://a b"], env=given, capture_output=True, text=True, check=True)
    words = ran.stdout.splitlines()
    assert words[:2] == ["make", "-s"] and words[2] == "gst-launch-1.0"
    assert {"config-file-path=config_infer.txt", "uri=rtsp://a b", "autovideosink", "width=480"} <= set(words)


# --- the library


@pytest.fixture(scope="module")
def headers() -> dict[str, Path]:
    """Where headers are, as variables of the Makefile."""
    deepstream = Path(
        os.environ.get("NRD_TRT_DEEPSTREAM_HEADERS") or "/opt/nvidia/deepstream/deepstream/sources/includes"
    )
    if not (deepstream / "nvdsinfer_custom_impl.h").is_file():
        pytest.skip("no headers of DeepStream: NRD_TRT_DEEPSTREAM_HEADERS names none")
    roots = [Path(text) for text in os.environ.get("NRD_TRT_TENSORRT_HEADERS", "").split(":") if text]
    tensorrt = [
        path for root in roots for path in (root, *root.glob("*")) if (path / "include/NvOnnxParser.h").is_file()
    ]
    if not tensorrt:
        pytest.skip("no headers of TensorRT with NvOnnxParser.h: NRD_TRT_TENSORRT_HEADERS names none")
    cuda = next(Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h"), None)
    if cuda is None or shutil.which("g++") is None or shutil.which("make") is None:
        pytest.skip("needs make, g++ and the headers of CUDA in /usr/local/cuda")
    return {"DEEPSTREAM_INCLUDES": deepstream, "CUDA": cuda.parent.parent, "TENSORRT": tensorrt[0]}


def make(folder: Path, variables: dict[str, Any]) -> Path:
    """Build the library without a warning."""
    words = [f"{name}={value}" for name, value in variables.items()]
    subprocess.run(["make", "-C", folder, *words], env={**os.environ, "CXXFLAGS": "-Werror"}, check=True)
    return folder / "libnvdsinfer_nrd.so"


def test_the_library_widens_masks_and_refuses_anything_else(headers: dict[str, Path], tmp_path: Path) -> None:
    folder, _ = packaged(planar(tmp_path / "city.nrd"))
    built = make(folder, headers)
    includes = [word for path in (headers["CUDA"], headers["TENSORRT"]) for word in ("-isystem", path / "include")]
    source, program = REPOSITORY / "tests/packaging/deepstream_frame.cpp", tmp_path / "frame"
    command = ["g++", "-isystem", headers["DEEPSTREAM_INCLUDES"], *includes, source, built, "-o", program]
    subprocess.run([*map(str, command), f"-Wl,-rpath,{folder}"], check=True)
    ran = subprocess.run([program], capture_output=True, text=True, check=True)
    untouched = "0 1" + " -1" * 7
    assert ran.stdout.splitlines() == ["1 1 0 1 127 128 200 255 -1", *[untouched] * 4]
    assert ran.stderr.splitlines() == [
        f"nrd_trt: expected an output `mask`{what}; package the bundle again."
        for what in (" of uint8", *[" of the network's height and width"] * 2, ", got none")
    ]


@needs_compiler
def test_the_library_of_a_plan_with_a_plugin_loads_it(headers: dict[str, Path], tmp_path: Path) -> None:
    plugin = library()
    facts = {"decode": "plugin", "plugin": read_plugin(plugin).record("uint8")}
    folder, notes = packaged(planar(tmp_path / "city.nrd", **facts), plugin=plugin)
    assert (folder / LIBRARY).read_bytes() == plugin.read_bytes()
    assert f"The plan decodes by {LIBRARY}, which the library loads" in notes
    built = make(folder, {**headers, "LDLIBS": ""})  # libnvinfer is the process's
    assert {b"getPluginRegistry", LIBRARY.encode()} <= set(built.read_bytes().split(b"\0"))


def test_nvinfer_knows_every_setting(headers: dict[str, Path], tmp_path: Path) -> None:
    parser = headers["DEEPSTREAM_INCLUDES"].parent / "gst-plugins/gst-nvinfer/gstnvinfer_property_parser.h"
    if not parser.is_file():
        parser = headers["DEEPSTREAM_INCLUDES"].parent / "src/gst-plugins/gst-nvinfer/gstnvinfer_property_parser.h"
    if not parser.is_file():
        pytest.skip("no sources of nvinfer beside the headers of DeepStream")
    known = parser.read_text()
    for number, plan in enumerate((PLAN, None)):
        folder, _ = packaged(planar(tmp_path / f"city{number}.nrd", plan=plan))
        assert all(f'"{name}"' in known for name in settings(folder)["property"])
