"""Files for other vendors' compilers: what they consist of, what they compute, and what this toolkit says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import nrd_trt
from nrd_trt.cli.main import app
from nrd_trt.data.preprocessing import planar
from nrd_trt.errors import ConfigError, ExportError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.importer import importer_problems
from nrd_trt.graph.inline import inline_decode, inline_problems
from nrd_trt.graph.metadata import load_checked
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.runtime.engine import open_engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import InputForm, Precision
from tests.artefacts import SIZE_HW, checkpoint, onnx_file
from tests.helpers import STATIC, agreement, byte_images, cached_small_model, exported, feed, made_once, small_export


def inlined(form: InputForm = "uint8") -> Path:
    """The trained network as `export` writes it for other runtimes; do not change it."""

    def make(path: Path) -> None:
        made = nrd_trt.export(checkpoint(), path, size=SIZE_HW, input_form=form, inline=True, progress=False)
        assert made.parity.passed and made.parity.agreement >= 0.9999

    return made_once(f"inlined-{form}.onnx", make)


def test_the_file_has_plain_operators_and_the_masks_of_the_ordinary_one() -> None:
    model, image = load_checked(inlined()), {"image": byte_images(0, 1, *SIZE_HW)}
    assert not model.functions and [entry.domain for entry in model.opset_import] == [""]
    assert not list(inline_problems(model)) and not importer_problems(model)
    assert all(tensor.data_type != TensorProto.FLOAT16 for tensor in model.graph.initializer)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    with OrtRunner(onnx_file()) as ordinary, OrtRunner(model) as runner:
        masks = [one.infer(image)["mask"] for one in (ordinary, runner)]
    assert np.array_equal(*masks) and len(np.unique(masks[0])) > 1


def test_openvino_reads_the_file_itself() -> None:
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'nrd-trt[openvino]'")
    core, image = openvino.Core(), {"image": byte_images(0, 1, *SIZE_HW)}
    with pytest.raises(RuntimeError, match="NrdPatchDecodeMask"):
        core.read_model(onnx_file())
    compiled = core.compile_model(core.read_model(inlined()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with OrtRunner(onnx_file()) as ordinary:
        assert agreement(compiled(image)["mask"], ordinary.infer(image)["mask"]) >= 0.9999


@pytest.fixture
def hexagon() -> Iterator[Callable[..., Any]]:
    """Opens a file in Qualcomm's provider, which compiles for a Hexagon processor and emulates it on Linux."""
    package = pytest.importorskip("onnxruntime_qnn", reason="needs Qualcomm's compiler: pip install onnxruntime-qnn")
    import onnxruntime

    name = "QNNExecutionProvider"
    onnxruntime.register_execution_provider_library(name, package.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name][:1]

    def opened(file: Path, entries: Mapping[str, str], **settings: str) -> Any:
        options = onnxruntime.SessionOptions()
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        chosen = {"backend_type": "htp", "soc_model": "60", "htp_arch": "73", **settings}
        options.add_provider_for_devices(devices, chosen)
        return onnxruntime.InferenceSession(file, options)

    yield opened
    onnxruntime.unregister_execution_provider_library(name)


def test_qualcomms_compiler_takes_the_whole_file(hexagon: Callable[..., Any], tmp_path: Path) -> None:
    """Some nodes of the ordinary file are left to a CPU."""
    left: list[set[str]] = []
    for file in (inlined(), onnx_file()):
        target = tmp_path / file.name
        hexagon(file, {"ep.context_enable": "1", "ep.context_file_path": str(target)}, enable_htp_prepare_only="1")
        left.append({node.op_type for node in onnx.load(target, load_external_data=False).graph.node})
    assert left[0] == {"EPContext"}  # what was compiled
    assert left[1] > {"EPContext"}


def test_qualcomms_emulator_draws_the_masks_of_planar_floats(hexagon: Callable[..., Any]) -> None:
    """The processor computes in fp16; it reads uint8 images as zeros and ones."""
    file, image = inlined("rgb_float"), byte_images(0, 1, *SIZE_HW)
    with OrtRunner(onnx_file()) as ordinary:
        want = ordinary.infer({"image": image})["mask"]
    session = hexagon(file, {"session.disable_cpu_ep_fallback": "1"})
    (got,) = session.run(["mask"], {"image": planar(image)})
    assert agreement(got, want) >= 0.99 and len(np.unique(want)) > 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types_stay_where_they_were(precision: Precision) -> None:
    form = ExportOptions(shape=STATIC, confidence=precision == "fp16")
    typed = to_precision(export_onnx(cached_small_model(), form), precision)
    image = feed("uint8", 1, 128, 256)
    with OrtRunner(typed, threads=1) as ordinary, OrtRunner(inline_decode(typed), threads=1) as runner:
        want, got = ordinary.infer(image), runner.infer(image)
    assert want.keys() == got.keys() >= {"mask", "logits"}
    assert all(np.array_equal(want[name], got[name]) for name in want)


def test_an_encoder_with_pooling_needs_no_other_operator() -> None:
    assert "MaxPool" in {node.op_type for node in inline_decode(exported("resnetv1c18", 19, "uint8")).graph.node}


def _six_axes(model: onnx.ModelProto) -> None:
    transpose = next(node for node in model.functions[0].node if list(node.output) == ["tiles_by_patch"])
    transpose.attribute[0].ints[:] = [0, 4, 2, 1, 3, 5]


def _other_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Erf"


def _other_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_six_axes, "got 6 axes of tiles"),
        (_other_operator, "got the operator Erf"),
        (_other_domain, "operators of 'com.microsoft'"),
    ],
)
def test_what_would_be_left_is_an_error(change: Callable[[onnx.ModelProto], None], told: str) -> None:
    change(model := copy_model(small_export()))
    with pytest.raises(ExportError, match=told):
        inline_decode(model)


def test_functions_and_shapes_that_only_a_run_knows_are_found() -> None:
    problems = list(inline_problems(small_export("uint8", "dynamic")))
    assert "the function NrdPatchDecode" in problems and "operators of 'nrd'" in problems
    assert "the shape of theta, which only a run knows" in problems


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamic": (SIZE_HW, SIZE_HW, (96, 96))}, "inline=True: expected one size and one number of images"),
        ({"batch": (1, 2, 2)}, "inline=True: expected one size and one number of images"),
        ({"mask_encoding": "u8x4"}, "inline=True: expected mask_encoding='uint8', got 'u8x4'"),
    ],
)
def test_forms_that_other_compilers_do_not_read(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        nrd_trt.export(checkpoint(), tmp_path / "m.onnx", inline=True, progress=False, **changes)


def test_what_this_toolkit_does_with_the_file(tmp_path: Path) -> None:
    said = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["inspect", str(inlined())])
    assert "none can take the decode, which is inlined" in said.stdout
    assert nrd_trt.inspect(inlined()).to_dict()["onnx"]["inlined"] is True
    assert nrd_trt.inspect(onnx_file()).to_dict()["onnx"]["inlined"] is False
    with pytest.raises(ConfigError, match=r"one that nrd_trt\.export inlined for other runtimes"):
        nrd_trt.build(inlined(), tmp_path / "city.nrd", builder="onnxruntime", progress=False)
    with open_engine(inlined()) as engine:
        assert engine.predict(byte_images(0, 1, 50, 70)[0]).shape == (50, 70)
