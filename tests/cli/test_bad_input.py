"""Bad input to every verb: exit 2, one message without a traceback, one JSON object, nothing left on the disk."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from nrd_trt.engine.bundle import ONNX_FILE, RECORD_FILE
from tests.artefacts import bundle, checkpoint, content, copy_of, listing, onnx_file
from tests.bad_checkpoints import BAD_CHECKPOINTS
from tests.cli.conftest import Invoke, check_refused, one_object

PLACES = {"CKPT": checkpoint, "ONNX": onnx_file, "BUNDLE": bundle}


def typed(line: str, out: Path, **places: Path) -> list[object]:
    """Return a command line whose capitals stand for places."""
    found = {name: place for name, place in places.items()} | {"OUT": out}
    return [PLACES[word]() if word in PLACES else found.get(word, word) for word in line.split()]


TYPED = [
    # usage
    ("tune", "Missing argument 'CKPT'"),
    ("build ONNX", "Missing option '-o'"),
    ("build ONNX -o OUT --precison fp16", "No such option: --precison"),
    ("evaluate BUNDLE", "Missing option '--data'"),
    ("benchmark BUNDLE --runs 0", "--runs: "),
    ("benchmark BUNDLE --threads none", "--threads: "),
    ("predict BUNDLE b.png -o OUT --opacity 60", "--opacity: "),
    ("fly", "No such command 'fly'"),
    # forms
    ("build CKPT -o OUT --size 100x130", "--size 100x130: .*96x128"),
    ("export CKPT -o OUT --size 0x0", "32x32"),
    ("export CKPT -o OUT --size big", "--size 'big': expected HEIGHTxWIDTH"),
    ("export CKPT -o OUT --dynamic 64x64:96x96", "--dynamic '64x64:96x96': expected MIN:OPT:MAX"),
    ("build CKPT -o OUT --batch many", "--batch 'many': expected N or MIN:OPT:MAX"),
    ("build CKPT -o OUT --precision int4", "--precision 'int4': expected one of fp32, fp16, bf16, int8, fp8"),
    ("export CKPT -o OUT --output boxes", "--output 'boxes': expected one of mask, logits, both"),
    ("export CKPT -o OUT --mean 1,2", "--mean '1,2': expected 3 numbers"),
    ("export CKPT -o OUT --classes absent.txt", "--classes 'absent.txt': cannot read it"),
    # builds
    ("build ONNX -o OUT --builder onnxruntime --compute-capability 8.6", "--compute-capability: only --builder"),
    ("build ONNX -o OUT --mask-encoding u8x4", "--mask-encoding: fixed in an ONNX file"),
    ("build ONNX -o OUT --optimization-level 9", "--optimization-level 9: expected 0 to 5"),
    ("validate BUNDLE --max-miou-drop 2", "--max-miou-drop 2.0: expected a fraction in 0-1"),
    # int8
    ("build ONNX -o OUT --precision int8", "give --calibration"),
    ("build ONNX -o OUT --precision fp16 --calibration r.json", "serves --precision int8 or fp8 only"),
    ("build ONNX -o OUT --precision int8 --calibration nowhere", "nowhere"),
    ("build ONNX -o OUT --calibration synthetic --memory-mb 9", "--memory-mb: expected --precision int8 or fp8, got"),
    ("build ONNX -o OUT --precision fp32 --calibration synthetic", "--calibration: expected fp16, bf16, int8 or fp8"),
    # the other verbs
    ("predict BUNDLE absent.png -o OUT", r"absent\.png"),
    ("validate BUNDLE --localise", "--localise needs --checkpoint"),
    ("validate BUNDLE --runner torch", "--runner torch"),
    ("predict BUNDLE DATA -o OUT --runner tensorrt-rtx", "--runner tensorrt-rtx"),
    ("evaluate BUNDLE --data DATA --runner cuda", "--runner 'cuda': expected one of auto"),
    ("evaluate CKPT --data DATA --runner onnxruntime --size 64x96", "other runners: nrd-trt build"),
    ("benchmark BUNDLE BUNDLE", "--compare"),
    ("complexity camvid_r18 --size 500x480", "500x480.*512x480"),
    ("complexity camvid_r19", "camvid_r19.*camvid_r18"),
    ("complexity camvid_r18 --dilations 1,2", "--dilations '1,2'"),
    ("complexity CKPT --head bilinear", "--head bilinear.*give a recipe's name"),
]


@pytest.mark.parametrize(("line", "message"), TYPED, ids=[line for line, _ in TYPED])
def test_bad_command_lines(line: str, message: str, nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    result = nrd_trt(*typed(line, tmp_path / "out", DATA=data / "images" if "predict" in line else data), "--json")
    check_refused(result, tmp_path, before, message)


BAD_FILES = [
    ("build BAD -o OUT --builder onnxruntime", "truncated.safetensors", "not a readable safetensors file"),
    ("export BAD -o OUT", "truncated.pth", "not a readable PyTorch checkpoint"),
    ("validate BUNDLE --checkpoint BAD", "text.safetensors", "not a readable safetensors file"),
    ("benchmark BAD", "empty.pth", "not a readable PyTorch checkpoint"),
    ("complexity BAD", "list.pth", "expected a state dict of tensors"),
]


@pytest.mark.parametrize(("line", "name", "message"), BAD_FILES)
def test_bad_checkpoints(line: str, name: str, message: str, nrd_trt: Invoke, tmp_path: Path) -> None:
    """Every verb that reads them; every kind of file: tests/model."""
    BAD_CHECKPOINTS[name](bad := tmp_path / name)
    result = nrd_trt(*typed(line, tmp_path / "out", BAD=bad), "--json")
    check_refused(result, tmp_path, [name], message, name)


@pytest.mark.parametrize(
    ("line", "name", "content"),
    [
        ("build ONNX -o OUT --precision fp32 --builder onnxruntime --threads 1", "images/01.png", b"not a picture"),
        ("evaluate CKPT --size 64x96", "labels/01.png", b"not a picture"),
        ("validate BUNDLE --checkpoint CKPT", "labels/01.png", None),
    ],
)
def test_bad_data(line: str, name: str, content: bytes | None, nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    """Every verb that reads it; every kind of damage: tests/data."""
    (data / name).unlink()
    if content is not None:
        (data / name).write_bytes(content)
    before = listing(tmp_path)
    result = nrd_trt(*typed(line, tmp_path / "out"), "--data", data, "--json")
    check_refused(result, tmp_path, before, r"01\.png")


DAMAGES = {
    ONNX_FILE: "validate BAD",
    "reference.npz": "build BAD -o OUT --builder onnxruntime",
    RECORD_FILE: "predict BAD IMAGE -o OUT",
    "absent": "benchmark BAD",
    "extra": "evaluate BAD --data DATA",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundles(damage: str, nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    path = copy_of(bundle(), tmp_path / "bad.nrd")
    if damage == "absent":
        shutil.rmtree(path)
    elif damage == "extra":
        (path / "model.plan").write_bytes(b"smuggled")
    else:
        changed = bytearray((path / damage).read_bytes())
        changed[len(changed) // 2] ^= 1
        (path / damage).write_bytes(changed)
    before = listing(tmp_path)
    line = typed(DAMAGES[damage], tmp_path / "out", BAD=path, DATA=data, IMAGE=data / "images/00.png")
    advice = "check the path" if damage == "absent" else "[Rr]ebuild"
    check_refused(nrd_trt(*line, "--json"), tmp_path, before, "bad.nrd", advice)


def test_existing_output_without_force(nrd_trt: Invoke, tmp_path: Path) -> None:
    path = copy_of(bundle(), tmp_path / "a.nrd")
    (tmp_path / "m.onnx").write_bytes(b"mine")
    before, names = content(tmp_path), listing(tmp_path)
    for line, out in (("build ONNX -o OUT --builder onnxruntime", path), ("export CKPT -o OUT", tmp_path / "m.onnx")):
        check_refused(nrd_trt(*typed(line, out), "--json"), tmp_path, names, "already exists; give --force")
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--recipe", "camvid_r18", "--data", "data", "-o", "out"],
        ["complexity", "camvid_r18"],
        ["evaluate", "CKPT", "--data", "DATA"],
        ["benchmark", "CKPT"],
        ["export", "CKPT", "-o", "m.onnx", "--dilations", "1,2,3,4"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_pytorch_the_remedy_is_named(
    arguments: list[str], nrd_trt: Invoke, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    places = {"CKPT": str(checkpoint()), "DATA": str(data)}
    result = nrd_trt(*(places.get(word, word) for word in arguments), "--json")
    assert result.exit_code == 2
    assert one_object(result.stdout)["error"]["type"] == "MissingDependencyError"
    assert "pip install 'nrd-trt[torch]'" in result.stderr
