"""`nrd-trt inspect` on ONNX files, bundles and plans, good and bad."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from nrd_trt.cli.main import app
from nrd_trt.engine import compat
from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, read_bundle
from nrd_trt.errors import BundleError, RunnerError
from nrd_trt.files import sha256_file
from nrd_trt.graph.metadata import TypeChoices, read_facts, write_choices, write_facts
from nrd_trt.graph.precision import to_precision, to_quantized
from nrd_trt.graph.quantize import choose_layers, plan_quantization
from nrd_trt.inspection import plan_summary
from nrd_trt.inspection.plan_summary import PlanLayer, PlanSummary, inspector_layers, open_plan, read_header
from nrd_trt.machine import host
from nrd_trt.specs import TensorSpec
from tests.artefacts import SIZE_HW, bundle, copy_of, needs_rtx, onnx_file, read_facts_of, rewrite_facts
from tests.helpers import DYNAMIC

KEYS = {
    "kind", "path", "bytes", "sha256", "layers", "layers_from", "types", "formats", "profiles", "precision", "plugin",
    "onnx", "on_cpu", "plan", "bundle",
}  # fmt: skip
WEIGHT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def invoke(*arguments: object) -> Any:
    """Run the verb in this process, on a wide terminal."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["inspect", *map(str, arguments)])


def shown(*arguments: object) -> dict[str, Any]:
    """Return the JSON object of a call that must succeed."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert found.keys() == KEYS
    return found


def rtx_bundle() -> Path:
    return bundle("fp16", "tensorrt-rtx")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_summary, "has_gpu", lambda: False)


# --- ONNX files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_onnx_file_of_each_precision(precision: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle(precision) / ONNX_FILE, tmp_path / "m.onnx"))
    model, found = onnx.load(path), shown(path)
    assert (found["kind"], found["bytes"], found["sha256"]) == ("onnx", path.stat().st_size, sha256_file(path))
    summary = found["onnx"]
    assert summary["opset"]["ai.onnx"] == model.opset_import[0].version
    assert summary["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, *SIZE_HW, 3]}]
    assert summary["outputs"] == [{"name": "mask", "dtype": "uint8", "shape": [1, *SIZE_HW]}]
    assert summary["nodes"]["total"] == len(found["layers"]) == len(model.graph.node)
    assert summary["nodes"]["by_op"]["Conv"] == sum(node.op_type == "Conv" for node in model.graph.node)
    convolutions = {layer["type"] for layer in found["layers"] if layer["kind"] == "Conv"}
    assert WEIGHT_TYPES[precision] in convolutions
    assert "unknown" not in found["types"]
    weights = summary["weights"][WEIGHT_TYPES[precision]]
    assert weights["bytes"] == weights["elements"] * (4 if precision == "fp32" else 2)
    assert weights["elements"] > 1_000_000
    assert found["precision"]["asked"] == precision
    assert summary["metadata"] == json.loads(json.dumps(read_facts(model).to_dict()))
    assert found["profiles"] == [{"image": {which: [1, *SIZE_HW, 3] for which in ("min", "opt", "max")}}]
    (function,), (node,) = summary["functions"], summary["plugin_nodes"]
    assert (node["op"], node["domain"]) == (function["name"], function["domain"])
    assert (node["attributes"]["num_classes"], node["attributes"]["plugin_namespace"]) == (11, "nrd")
    assert len(node["attributes"]["x_table"]) == node["attributes"]["patch"]


def test_dynamic_onnx_file(tmp_path: Path) -> None:
    path, model = tmp_path / "m.onnx", onnx.load(onnx_file())
    write_facts(model, replace(read_facts(model), shape=DYNAMIC))
    for index, name in enumerate(("batch", "height", "width")):
        model.graph.input[0].type.tensor_type.shape.dim[index].dim_param = name
    onnx.save(model, path)
    found = shown(path)
    sizes = {"min": [1, 64, 64, 3], "opt": [2, 128, 256, 3], "max": [3, 256, 320, 3]}
    assert found["profiles"] == [{"image": sizes}]
    assert found["onnx"]["inputs"][0]["shape"] == ["batch", "height", "width", 3]
    assert "image 1×64×64×3 to 3×256×320×3, best at 2×128×256×3" in invoke(path).stdout


def test_onnx_file_of_another_tool(tmp_path: Path) -> None:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    found = shown(tmp_path / "m.onnx")
    assert (found["onnx"]["metadata"], found["profiles"], found["types"]) == (None, None, {"float32": 1})
    assert "another tool wrote this file" in invoke(tmp_path / "m.onnx").stdout
    assert found["on_cpu"] is None


@pytest.mark.parametrize("has", ["avx2", "avx512_vnni", "avx512_bf16"])
@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8", "int8 for a CPU"])
def test_what_a_cpu_would_compute_in(kind: str, has: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'nrd-trt[openvino]'")
    monkeypatch.setattr(host, "instructions", lambda machine: (has,))
    full = onnx.load(onnx_file())
    if kind.startswith("int8"):
        plan = plan_quantization(full, choose_layers(full), "cpu" if kind != "int8" else "gpu")
        model = to_quantized(full, plan, dict.fromkeys(plan.tensors, 10.0))
        write_choices(model, TypeChoices(int8_layers=plan.layers, target=plan.target))
    else:
        model = to_precision(full, kind)  # type: ignore[arg-type]
    onnx.save(model, tmp_path / "m.onnx")
    chosen = {"int8": "avx512_vnni", "bf16": "avx512_bf16"}.get(kind.split()[0]) == has
    computed = kind.split()[0] if chosen or kind == "int8 for a CPU" else "fp32"
    types = sorted({"fp32", computed})
    assert shown(tmp_path / "m.onnx")["on_cpu"] == {"runner": "openvino" if chosen else "onnxruntime", "types": types}
    assert f"in {' and '.join(types)}\n" in invoke(tmp_path / "m.onnx").stdout


# --- bundles ---------------------------------------------------------------------------------------------------------


def test_bundle_without_a_plan() -> None:
    path = bundle("fp16")
    before = {entry: (entry.stat().st_mtime_ns, sha256_file(entry)) for entry in path.iterdir()}
    found, facts = shown(path), read_bundle(path).record.to_dict()
    assert {entry: (entry.stat().st_mtime_ns, sha256_file(entry)) for entry in path.iterdir()} == before
    assert (found["kind"], found["plan"], found["layers_from"]) == ("bundle", None, "onnx")
    assert found["bundle"]["files"] == facts["files"]
    assert found["bundle"]["sizes"] == {name: (path / name).stat().st_size for name in facts["files"]}
    assert found["bundle"]["validation"] == facts["validation"]
    assert found["precision"]["asked"] == "fp16"
    assert "layers" not in found["bundle"]["precision"]
    text = invoke(path).stdout
    for part in ("ONNX Runtime: no plan", facts["command"].split()[2], "passed", "every hash", "Bicyclist", "float16"):
        assert part in text


def test_every_gated_figure_the_structure_and_trivial_masks_are_told(tmp_path: Path) -> None:
    path = copy_of(bundle("fp16"), tmp_path / "a.nrd")
    validation = read_bundle(path).record.validation
    gates = validation.gates
    structure = {"compared": "layers", "checked": {"convolutions": 3}, "found": 1, "differences": ["a: b"]}
    structure["not_provable"] = []
    told = {"warnings": ["the network draws Sky on 99.0% of the pixels"], "structure": structure}
    rewrite_facts(path, validation={**read_facts_of(path)["validation"], **told})
    text = invoke(path).stdout
    assert validation.class_iou is not None
    name, iou = validation.class_iou
    for line in (
        f"agreement near borders {validation.border_agreement:.4f} (gate: at least {gates.min_border_agreement:g})",
        f"lowest IoU of a class {iou:.4f} {name} (gate: at least {gates.min_class_iou:g})",
        f"boundary F within 2 px {validation.boundary_between:.4f} (gate: at least {gates.min_boundary_f:g})",
        "1 difference, compared layer by layer with the checkpoint (3 convolutions)",
    ):
        assert line in text
    assert text.index("WARNING: ") < text.index(told["warnings"][0]) < text.index("Masks")
    finer = {"min_class_iou": None, "min_border_agreement": None, "min_boundary_f": None, "max_class_drop": None}
    old = {**read_facts_of(path)["validation"], "gates": {"min_agreement": 0.9, "max_miou_drop": 0.1, **finer}}
    rewrite_facts(path, validation={**old, "border_agreement": None, "warnings": [], "structure": None})
    text = invoke(path).stdout
    assert "boundary F within 2 px" in text and "(gate: none recorded)" in text
    assert not any(word in text for word in ("WARNING", "near borders", "structure"))


def test_builder_options_are_told_where_there_are_any(tmp_path: Path) -> None:
    path = copy_of(bundle("fp16"), tmp_path / "a.nrd")
    assert "builder options" not in invoke(path).stdout
    options = {"max_aux_streams": "2", "tactic_sources": "A,B"}
    rewrite_facts(path, builder={**read_facts_of(path)["builder"], "builder_options": options})
    assert "  builder options  max_aux_streams=2, tactic_sources=A,B\n" in invoke(path).stdout
    assert json.loads(invoke(path, "--json").stdout)["bundle"]["builder"]["builder_options"] == options


def test_tf32_is_told_or_what_tensorrt_does_without_a_word(tmp_path: Path) -> None:
    path = copy_of(bundle("fp16"), tmp_path / "a.nrd")
    built, said = read_facts_of(path)["builder"], []
    for tf32 in (built["tf32"], True, None):
        rewrite_facts(path, builder={**built, "tf32": tf32})
        said += re.findall(r"^  TF32 +(.+)$", invoke(path).stdout, re.MULTILINE)
    assert said == ["off", "allowed", "not recorded; TensorRT's default allows it"]


@needs_rtx
@pytest.mark.usefixtures("no_gpu")
def test_bundle_with_a_plan() -> None:
    path = rtx_bundle()
    found, facts = shown(path), read_bundle(path).record.to_dict()
    assert found["layers"] == facts["precision"]["layers"]
    assert (found["layers_from"], found["types"]["half"]) == ("build", facts["precision"]["found"]["half"])
    plan = found["plan"]
    assert (plan["flavour"], plan["opened"], plan["inputs"]) == ("tensorrt-rtx", False, None)
    assert plan["version"] == facts["builder"]["version"] == importlib.metadata.version("tensorrt-rtx-cu13")
    assert "no NVIDIA GPU" in plan["why_not"]
    names = [layer["name"] for layer in facts["precision"]["layers"]]
    for option in ([], ["--layers"]):
        text = invoke(path, *option).stdout
        assert "before it fused layers" in text and "convolution" in text
        assert "simulated arithmetic; the plan was built but not run here" in text
        assert "targets 8.0, 8.6, 8.9, 12.0 and later" in text
        assert all(name in text for name in names) == bool(option)
        assert [line for line in text.splitlines()[1:] if len(line) > 100] == []


@needs_rtx
@pytest.mark.usefixtures("no_gpu")
def test_plan_inside_its_bundle_and_without_it(tmp_path: Path) -> None:
    inside = rtx_bundle() / PLAN_FILE
    alone = Path(shutil.copy(inside, tmp_path / "other.engine"))
    for path in (inside, alone):
        found = shown(path)
        assert (found["kind"], found["path"], found["sha256"]) == ("plan", str(path), sha256_file(path))
        assert found["bytes"] == path.stat().st_size
        if path == inside:
            assert found["bundle"]["command"] == read_bundle(path.parent).record.to_dict()["command"]
        else:
            assert (found["bundle"], found["onnx"], found["layers"]) == (None, None, None)
    text = invoke(alone).stdout
    assert sha256_file(alone) in text
    assert "give the bundle folder" in text


# --- opening a plan --------------------------------------------------------------------------------------------------

INSPECTED_10 = {
    "Layers": [
        {
            "Name": "conv0",
            "LayerType": "CaskConvolution",
            "Outputs": [{"Name": "a", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Channel major FP16 format"}],
        },
        "reformat",
    ],
    "Bindings": ["image", "mask"],
}
INSPECTED_11 = {
    "Layers": [
        {
            "Name": "conv0",
            "LayerType": "CaskConvolution",
            "Outputs": [{"Name": "a", "Format": "Channel major", "Datatype": "Half"}],
        }
    ],
    "I/O Tensors": ["image", "mask"],
}


def test_layers_of_the_inspector() -> None:
    assert inspector_layers(json.dumps(INSPECTED_10)) == (
        PlanLayer(name="conv0", kind="CaskConvolution", type="half", format="Channel major FP16 format"),
        PlanLayer(name="reformat", kind="unknown", type="unknown", format="unknown"),
    )
    (layer,) = inspector_layers(json.dumps(INSPECTED_11))
    assert (layer.type, layer.format) == ("half", "Channel major")
    assert inspector_layers("{}") == ()
    kinds = {"UINT8": "uint8", "Int8 format": "int8", "FP32": "float", "INT32": "int32", "Bool": "bool", "": "unknown"}
    for text, kind in kinds.items():
        told = {"Name": "a", "Outputs": [{"Format/Datatype": f"Row major linear {text}"}]}
        (layer,) = inspector_layers(json.dumps({"Layers": [told]}))
        assert layer.type == kind, text


PLAN = b"ftrt" + bytes(20) + bytes([10, 3, 0, 30])
"""A header and nothing else."""


class _Engine:
    """What `TensorRT.deserialize` returns, with layers."""

    device_memory_bytes = 5 << 20
    closed = False

    def __init__(self) -> None:
        self.inputs = {"image": TensorSpec(name="image", dtype=np.dtype("uint8"), shape=(None, 64, 96, 3))}
        self.outputs = {"mask": TensorSpec(name="mask", dtype=np.dtype("uint8"), shape=(None, 64, 96))}

    def profile_range(self, name: str) -> tuple[tuple[int, ...], ...]:
        return tuple((batch, 64, 96, 3) for batch in (1, 2, 4))

    def layer_information(self) -> str:
        return json.dumps(INSPECTED_10)

    def close(self) -> None:
        self.closed = True


def runtime_giving(monkeypatch: pytest.MonkeyPatch, deserialize: Callable[..., Any]) -> None:
    """Put a GPU and a runtime in place."""
    runtime = SimpleNamespace(version="1.7.1.116", deserialize=deserialize)
    monkeypatch.setattr(plan_summary, "has_gpu", lambda: True)
    monkeypatch.setattr(compat, "load_tensorrt", lambda flavour: runtime)


@needs_rtx
@pytest.mark.parametrize("compatible", [False, True])
def test_opened_plan(compatible: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A version-compatible one may bring its own runtime."""
    path, engine, allowed = copy_of(rtx_bundle(), tmp_path / "a.nrd"), _Engine(), []
    rewrite_facts(path, builder={**read_facts_of(path)["builder"], "version_compatible": compatible})

    def deserialize(plan: bytes, *, host_code: bool, **_: Any) -> _Engine:
        allowed.append(host_code)
        return engine

    runtime_giving(monkeypatch, deserialize)
    found = shown(path)
    assert engine.closed
    assert allowed == [compatible]
    assert (found["layers_from"], found["types"]) == ("plan", {"half": 1, "unknown": 1})
    assert found["formats"] == {"Channel major FP16 format": 1, "unknown": 1}
    assert found["profiles"][0]["image"]["max"] == [4, 64, 96, 3]
    assert found["plan"]["opened_with"] == "tensorrt-rtx 1.7.1.116"
    text = invoke(path).stdout
    for part in ("of the plan, as built", "scratch memory   5.0 MiB", "mask uint8 ?×64×96"):
        assert part in text


def test_plan_that_cannot_be_opened_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The advice is a call of the library, which the command line shows as a command."""
    path = tmp_path / "a.plan"
    path.write_bytes(PLAN)
    monkeypatch.setattr(plan_summary, "has_gpu", lambda: True)
    monkeypatch.setitem(compat.FLAVOURS, "tensorrt", ("nrd_no_such_module", "trt"))
    assert "pip install 'nrd-trt[trt]'" in (open_plan(path, rebuild="nrd_trt.build()").why_not or "")

    def refuse(plan: bytes, *, rebuild: str, **_: Any) -> None:
        raise RunnerError(f"it was made for another GPU; rebuild with: {rebuild}")

    runtime_giving(monkeypatch, refuse)
    plan = shown(path)["plan"]
    assert plan["opened"] is False
    assert plan["why_not"] == "it was made for another GPU; rebuild with: nrd_trt.build('m.onnx', 'NAME.nrd')"
    text = " ".join(invoke(path).stdout.split())
    assert "rebuild with: nrd-trt build m.onnx -o NAME.nrd" in text
    assert f"built for: trtexec --loadEngine={path} " in text


def test_a_header_is_28_bytes_and_tells_the_version_in_one_form(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(PLAN)
    assert read_header(path) == PlanSummary(
        path=str(path), bytes=28, sha256=sha256_file(path), flavour="tensorrt", version="10.3.0.30"
    )
    path.write_bytes(b"vtrt\x01" + bytes(23))  # a header of another form
    assert (read_header(path).flavour, read_header(path).version) == ("tensorrt-rtx", None)
    for data, told in ((b"", r"got b'' \(0 bytes\)"), (PLAN[:27], r"got b'ftrt' \(27 bytes\)")):
        path.write_bytes(data)
        with pytest.raises(BundleError, match=f"expected a TensorRT plan.*{told}; build it again"):
            read_header(path)


# --- bad inputs ------------------------------------------------------------------------------------------------------


def damaged(name: str, folder: Path) -> Path:
    """Make one bad input."""
    path = folder / name
    if name == "empty folder":
        path.mkdir()
    elif name.endswith(".nrd"):
        copy_of(bundle("fp16"), path)
        target = path / (RECORD_FILE if name == "facts.nrd" else ONNX_FILE)
        changed = bytearray(target.read_bytes())
        changed[len(changed) // 2] ^= 1
        target.write_bytes(changed)
    elif name != "absent":
        data = onnx_file().read_bytes()
        contents = {"half": data[: len(data) // 2]}
        path.write_bytes(contents.get(path.stem, b"hello, I am a text\n" * 10))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("absent", "ConfigError", ["expected a bundle", "found none", "check the path"]),
        ("facts.nrd", "BundleError", ["bundle.json", "ebuild"]),
        ("model.nrd", "BundleError", ["model.onnx", "expected SHA-256", "rebuild with: nrd-trt build"]),
        ("empty folder", "BundleError", ["expected a bundle folder", "check the path"]),
        ("text.onnx", "ExportError", ["expected an ONNX file", "export it again"]),
        ("text", "ExportError", ["expected an ONNX file", "export it again"]),
        ("half.onnx", "ExportError", ["expected an ONNX file", "export it again"]),
        ("text.plan", "BundleError", ["expected a TensorRT plan", "got b'hell'", "build it again"]),
    ],
)
def test_bad_inputs(name: str, kind: str, parts: list[str], tmp_path: Path) -> None:
    path = damaged(name, tmp_path)
    result = invoke(path, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == kind
    assert all(part in error["message"] for part in [str(path), *parts]), error["message"]
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
