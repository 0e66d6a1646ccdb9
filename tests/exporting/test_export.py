"""`nrd_trt.export`: the file, its evidence, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from nrd_trt import export, gates
from nrd_trt.errors import CheckpointError, ConfigError, ExportError, NrdTrtError, ShapeError
from nrd_trt.files import sha256_file
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import read_facts
from tests.artefacts import SIZE_HW, checkpoint, listing, scenes


def test_a_checked_file_and_its_evidence(tmp_path: Path) -> None:
    stages: list[str] = []
    target, data = tmp_path / "m.onnx", scenes(tmp_path / "data", 1)
    given: dict[str, Any] = {"outputs": ("logits", "mask"), "data": data, "fit": "pad", "mask_encoding": "u8x4"}
    made = export(str(checkpoint()), str(target), size=SIZE_HW, **given, progress=False, on_stage=stages.append)
    assert (made.path, made.sha256, made.kept_fp32) == (target, sha256_file(target), {})
    assert made.parity.passed and made.parity.agreement >= 0.9999 and (made.parity.max_abs or 1) < 1e-3
    model = onnx.load(target)
    assert made.opset == model.opset_import[0].version >= 19
    facts = read_facts(model)
    assert (facts.precision, facts.output, facts.mask_encoding) == ("fp32", "both", "u8x4")
    assert facts.checkpoint_sha256 == sha256_file(checkpoint())
    assert stages == ["exporting mobilenetv2 to ONNX, fp32"]
    assert made.to_dict().keys() == {"path", "sha256", "opset", "parity"}


def test_parity_that_fails_leaves_no_file_not_even_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gates._DEFAULTS, "bf16", replace(Gates.of("bf16"), min_agreement=1.0))
    (target := tmp_path / "m.onnx").write_bytes(b"\x08\x09\x12\x07nrd_trt, older")
    made = export(checkpoint(), target, size=SIZE_HW, precision="bf16", force=True, progress=False)
    assert made.sha256 is None and made.parity.failures[0].startswith("pixel agreement 0.")
    assert listing(tmp_path) == []


def test_what_tensorrt_would_misread_is_an_error_that_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(full: onnx.ModelProto, *args: object, **kwargs: object) -> onnx.ModelProto:
        resize = next(node for node in full.functions[1].node if node.op_type == "Resize")
        resize.attribute.append(onnx.helper.make_attribute("antialias", 1))
        return full

    monkeypatch.setattr("nrd_trt.exporting.export.derive_precision", planted)
    with pytest.raises(ExportError, match=r"got enlarged.*: antialias of Resize is 1; .*report this model"):
        export(checkpoint(), tmp_path / "m.onnx", size=SIZE_HW, progress=False)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"precision": "int8"}, ConfigError, "precision='int8': expected one of 'fp32', 'fp16', 'bf16'"),
        ({"size": "64x96"}, ConfigError, "size='64x96': expected height and width"),
        ({"size": (100, 130)}, ShapeError, "size=100x130: .*96x128"),
        ({"size": SIZE_HW, "dynamic": (SIZE_HW,) * 3}, ConfigError, "size= and dynamic= exclude each other"),
        ({"batch": 0}, ConfigError, "1 <= MIN"),
        ({"input_form": "yuv"}, ConfigError, "input_form='yuv': expected one of 'uint8', 'float', 'rgb_float'"),
        ({"mask_encoding": "u4"}, ConfigError, "mask_encoding='u4': expected one of 'uint8', 'u8x4'"),
        ({"outputs": ("mask", "mask")}, ConfigError, "expected different names"),
        ({"outputs": ()}, ConfigError, "expected different names"),
        ({"outputs": ("logits", "confidence")}, ConfigError, "outputs=: 'confidence': expected 'mask' among"),
        ({"fit": "crop"}, ConfigError, "fit='crop': expected one of"),
        ({"resample": "lanczos"}, ConfigError, "resample='lanczos': expected one of 'cv2', 'pillow'"),
        ({"threads": 0}, ConfigError, "threads=0: expected a whole number, 1 or more"),
        ({"data": 1.5}, ConfigError, r"data=1\.5: expected a path"),
        ({"data": "absent"}, ConfigError, "absent: expected a folder of images"),
        ({"output": __file__}, ConfigError, "already exists; give force=True"),
        ({"num_classes": 12}, CheckpointError, "K = 12"),
        ({"classes": 12}, ConfigError, "classes=: expected a known argument"),
        ({"checkpoint": "absent.pth"}, NrdTrtError, r"absent\.pth"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"checkpoint": checkpoint(), "output": tmp_path / "m.onnx", "progress": False, **changes}
    with pytest.raises(error, match=message):
        export(**given)
    assert listing(tmp_path) == []
