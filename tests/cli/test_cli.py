"""Every verb as its user calls it: exit codes, what is on stdout and stderr, and what is left on the disk."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import nrd_trt as package
from nrd_trt import gates
from nrd_trt.building import build as build_module
from nrd_trt.cli.main import VERBS
from nrd_trt.data.classes import CAMVID_CLASSES
from nrd_trt.data.overlay import CONFIDENCE_PALETTE
from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, read_bundle
from nrd_trt.files import sha256_file
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import read_facts
from tests.artefacts import (
    SIZE,
    bundle,
    checkpoint,
    content,
    listing,
    needs_rtx,
    onnx_file,
    plant,
    run_process,
    untrained_checkpoint,
)
from tests.cli.conftest import Invoke, check_refused, one_object, printed
from tests.faults import swap_rgb

VALIDATION_KEYS = {
    "pixel_agreement", "miou_between", "miou_reference", "miou_engine", "tie_share", "per_class_iou",
    "checkpoint_matches", "runner", "arithmetic", "passed",
}  # fmt: skip
QUICK = ("--builder", "onnxruntime", "--threads", 1, "--min-agreement", 0.9)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, nrd_trt: Invoke) -> None:
    result = nrd_trt(verb, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert (VERBS[verb].__doc__ or "?").split("\n")[0].split(".")[0] in " ".join(result.stdout.split())
    assert "--verbose" in result.stdout and "--quiet" in result.stdout
    assert "--json" in result.stdout or verb == "serve"  # a page has no result to print


def test_help_lists_every_verb_in_the_order_of_their_use(nrd_trt: Invoke) -> None:
    result = nrd_trt("--help")
    assert result.exit_code == 0
    assert all(f" {verb} " in result.stdout for verb in VERBS)
    order = "doctor train evaluate complexity export calibrate build inspect validate predict".split()
    assert [verb for verb in VERBS if verb in order] == order
    assert nrd_trt().exit_code == 2  # a bare call is a mistake that shows the help
    result = nrd_trt("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, package.__version__)


def test_evaluate(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    (data / "labels").rename(tmp_path / "elsewhere")
    arguments = ("evaluate", checkpoint(), "--data", data, "--size", SIZE, "--threads", 1)
    check_refused(nrd_trt(*arguments, "--json"), tmp_path, listing(tmp_path), "--labels")
    arguments += ("--labels", tmp_path / "elsewhere")
    found = printed(nrd_trt(*arguments, "--json"))
    assert found.keys() >= {"miou", "per_class_iou", "pixel_accuracy", "images", "runner", "arithmetic"}
    assert (found["images"], found["runner"], found["arithmetic"]) == (2, "torch", "native")
    assert found["per_class_iou"].keys() == set(CAMVID_CLASSES)
    slide = ("--scales", "0.5,1", "--flip", "--tile", SIZE, "--stride", "40x60")
    for option in (slide, ("--dilations", "1,1,2,3"), ("--fit", "letterbox"), ("--ignore-index", 0)):
        assert one_object(nrd_trt(*arguments, *option, "--json").stdout)["miou"] != found["miou"], option
    assert one_object(nrd_trt(*arguments, "--output-stride", 32, "--runner", "torch", "--json").stdout) == found
    people = nrd_trt(*arguments, "-q")
    assert (people.exit_code, people.stderr) == (0, "")
    for text in ("run by", "torch, native arithmetic", f"{found['miou']:.4f}", "IoU Sky"):
        assert text in people.stdout


def test_complexity_json(nrd_trt: Invoke) -> None:
    found = printed(nrd_trt("complexity", "camvid_mobilenetv2", "--size", SIZE, "--json"))
    assert found.keys() == {
        *("size", "encoder", "head", "total_gmac", "decoder_gmac", "decoder_ratio", "dilated_ratio", "parts"),
        *("parameters", "activation_bytes"),
    }
    assert list(found["parts"]) == ["encoder", "aspp", "bottleneck", "guidance", "controller", "decode"]
    assert sum(found["parts"].values()) == pytest.approx(found["total_gmac"])
    assert (found["size"], found["encoder"], found["head"]) == (SIZE, "mobilenetv2", "nrd")
    assert 0 < found["dilated_ratio"] < found["decoder_ratio"] < 1
    people = nrd_trt("complexity", "camvid_mobilenetv2", "--size", SIZE)
    assert (people.exit_code, people.stderr) == (0, "")
    ratio = f"{100 * found['decoder_ratio']:.1f} % of DeepLabV3+'s on the same encoder"
    for text in (*found["parts"], f"{found['total_gmac']:.3f} GMAC", ratio, "at stride 8", "MiB"):
        assert text in people.stdout
    dilated = ("--head", "deeplabv3", "--output-stride", 8, "--dilations", "1,12,24,36")
    found = one_object(nrd_trt("complexity", "camvid_r18", *dilated, "--size", SIZE, "--json").stdout)
    assert (found["head"], found["dilated_ratio"], found["parts"]["controller"]) == ("deeplabv3", 1.0, 0.0)


def test_export_writes_a_checked_file_and_its_json(nrd_trt: Invoke, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    result = nrd_trt("export", checkpoint(), "-o", target, "--size", SIZE, "--threads", 1, "--json")
    found = printed(result)
    assert found.keys() == {"path", "sha256", "opset", "parity"}
    assert found["parity"].keys() >= {"max_abs", "agreement"}
    assert found["sha256"] == sha256_file(target)
    assert found["path"] == str(target)
    facts = read_facts(onnx.load(target))
    assert (facts.precision, facts.input_form, facts.output) == ("fp32", "uint8", "mask")  # the defaults
    assert (facts.shape.batch.min, facts.shape.batch.max) == (1, 1)
    assert "exporting" in result.stderr
    assert listing(tmp_path) == ["m.onnx"]


def test_parity_that_fails_leaves_no_file(nrd_trt: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gates._DEFAULTS, "bf16", replace(Gates.of("bf16"), min_agreement=1.0))
    target = tmp_path / "m.onnx"
    arguments = ("export", checkpoint(), "-o", target, "--size", SIZE, "--precision", "bf16", "--threads", 1)
    result = nrd_trt(*arguments, "--json")
    assert result.exit_code == 1
    found = one_object(result.stdout)
    assert found["sha256"] is None
    assert found["parity"]["failures"]
    assert "gate failed" in result.stderr
    assert listing(tmp_path) == []


def test_build_prints_the_bundles_facts(nrd_trt: Invoke, tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    result = nrd_trt("build", onnx_file(), "-o", target, *QUICK, "--json")
    found = printed(result)
    assert found.pop("path") == str(target)
    assert found == read_bundle(target).record.to_dict()
    assert found["precision"]["asked"] == "fp16"  # the default
    assert found["builder"]["name"] == "onnxruntime"
    assert VALIDATION_KEYS <= found["validation"].keys()
    assert "validating" in result.stderr
    assert listing(tmp_path) == ["a.nrd", *(f"a.nrd/{name}" for name in (RECORD_FILE, ONNX_FILE, "reference.npz"))]
    result = nrd_trt("build", onnx_file(), "-o", target, *QUICK, "-q", "--force")
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("a.nrd", "fp16", "agree with the fp32 ONNX file", "simulated arithmetic", "near borders", "passed"):
        assert text in result.stdout


def test_build_whose_gate_fails_keeps_the_bundle(nrd_trt: Invoke, tmp_path: Path) -> None:
    target = tmp_path / "a.nrd"
    arguments = ("build", onnx_file(), "-o", target, "--builder", "onnxruntime", "--precision", "bf16")
    result = nrd_trt(*arguments, "--min-agreement", 1, "--json")
    assert result.exit_code == 1
    found = one_object(result.stdout)
    assert found["passed"] is False
    assert read_bundle(target).record.to_dict()["passed"] is False
    assert "gate failed: pixel agreement" in result.stderr


def test_build_without_a_form_takes_the_checkpoints(
    nrd_trt: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def stop(request: Any) -> None:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "build_bundle", stop)
    result = nrd_trt("build", checkpoint(), "-o", tmp_path / "a.nrd", "--json")
    assert result.exit_code == 130
    assert one_object(result.stdout)["error"]["type"] == "Interrupted"
    (request,) = asked
    assert (request.builder, request.decode, request.precision, request.force) == ("auto", "auto", None, False)
    assert request.form_given() == []


@needs_rtx
@pytest.mark.parametrize("flags", [(), ("-v",)])
def test_tensorrt_prints_nothing_on_stdout(flags: tuple[str, ...], tmp_path: Path) -> None:
    """A process of its own: TensorRT writes to the file descriptor."""
    target = tmp_path / "a.nrd"
    result = run_process("build", onnx_file(), "-o", target, "--builder", "tensorrt-rtx", "--json", *flags)
    assert result.returncode in (0, 1), result.stderr
    assert one_object(result.stdout)["builder"]["name"] == "tensorrt-rtx"
    assert (target / PLAN_FILE).is_file()
    assert ("[TensorRT" in result.stderr) == bool(flags)


def test_validate_json(nrd_trt: Invoke, data: Path) -> None:
    found = printed(nrd_trt("validate", bundle(), "--json"))
    assert VALIDATION_KEYS <= found.keys()
    assert (found["miou_reference"], found["miou_engine"], found["per_class_iou"]) == (None, None, None)
    assert (found["checkpoint_matches"], found["runner"], found["arithmetic"]) == (None, "onnxruntime", "native")
    found = printed(nrd_trt("validate", bundle(), "--checkpoint", checkpoint(), "--data", data, "--json"))
    assert found["checkpoint_matches"] is True
    assert 0 <= found["miou_engine"] <= 1
    assert "Sky" in found["per_class_iou"]
    people = nrd_trt("validate", bundle(), "--checkpoint", checkpoint(), "--data", data)
    assert people.exit_code == 0
    assert "IoU Sky" in people.stdout


def test_validate_localises_rebuilds_and_reports(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", checkpoint(), "--data", data, "--localise", "--rebuild", 2)
    report = tmp_path / "report.html"
    found = printed(nrd_trt("validate", bundle(), *options, "--report", report, "--json"))
    assert VALIDATION_KEYS <= found.keys()
    assert found["localisation"]["first_beyond"] is None
    assert [stage["within"] for stage in found["localisation"]["stages"]] == [True] * 7
    assert (found["rebuilds"]["builds"], found["rebuilds"]["agreement"]) == (2, 1.0)
    assert {"pixels", "share", "near_tie", "far", "far_share"} == found["flips"].keys()
    assert found["boundary_tolerance_px"] == 2
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    people = nrd_trt("validate", bundle(), *options, "--report", report, "--force", "-q")
    assert people.exit_code == 0
    assert "first beyond: none" in people.stdout
    assert "builds: 2 with onnxruntime" in people.stdout


def test_validate_names_a_planted_fault_and_exits_1(nrd_trt: Invoke, tmp_path: Path) -> None:
    path = plant(bundle(), tmp_path / "faulty.nrd", swap_rgb)
    result = nrd_trt("validate", path, "--checkpoint", checkpoint(), "--localise")
    assert result.exit_code == 1
    assert "stage preprocessing is the first beyond its tolerance: red and blue are swapped" in result.stderr
    assert "preprocessing  BEYOND" in result.stdout
    assert "first beyond: preprocessing" in result.stdout
    assert "-> " in result.stdout
    assert "worst image scene" in result.stdout


def test_benchmark_compares_bundles_and_checkpoints(nrd_trt: Invoke) -> None:
    targets = (bundle(), bundle("fp16"), checkpoint())
    quick = ("--warmup", 0, "--runs", 1, "--threads", 1)
    rows = printed(nrd_trt("benchmark", *targets, "--compare", *quick, "--json"))["results"]
    assert rows[0].keys() >= {"latency_ms", "throughput_fps", "peak_memory_mib", "runner"}
    assert [row["target"] for row in rows] == [target.name for target in targets]
    assert [row["runner"] for row in rows] == ["onnxruntime", "onnxruntime", "torch"]
    alone = one_object(nrd_trt("benchmark", bundle(), *quick, "--json").stdout)
    assert alone["latency_ms"].keys() >= {"p50", "p90", "p99"}
    assert alone["throughput_fps"] > 0 and alone["peak_memory_mib"] > 0
    people = nrd_trt("benchmark", bundle("fp16"), *quick)
    assert "executed in fp32: layers of the file have another type" in people.stdout


def test_predict_writes_a_palette_png_of_the_images_size(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    found = printed(nrd_trt("predict", bundle(), data / "images/00.png", "-o", tmp_path / "out", "--json"))
    assert found.keys() >= {"files", "latency_ms"}
    assert found["files"] == [str(tmp_path / "out/00.png")]
    assert found["latency_ms"] > 0
    assert listing(tmp_path / "out") == ["00.png"]
    rgb = np.asarray(Image.open(data / "images/00.png"))
    with package.open_bundle(bundle()) as predictor, Image.open(tmp_path / "out/00.png") as mask:
        assert (mask.mode, mask.size) == ("P", (70, 50))
        np.testing.assert_array_equal(np.asarray(mask), predictor.predict(rgb))
        palette = np.array(mask.getpalette()).reshape(-1, 3)[:11]
        np.testing.assert_array_equal(palette, predictor.info.palette)


def test_predict_folder_with_overlays(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    Image.new("L", (33, 65), 90).save(data / "images/grey.jpg")
    out = tmp_path / "a/b"
    result = nrd_trt("predict", bundle(), data, "-o", out, "--overlay", "--opacity", 1, "--json")
    assert result.exit_code == 0, result.stderr
    names = ["00.png", "00_overlay.png", "01.png", "01_overlay.png", "grey.png", "grey_overlay.png"]
    assert [Path(name).name for name in one_object(result.stdout)["files"]] == names == listing(out)
    for stem, size in (("00", (70, 50)), ("grey", (33, 65))):
        with Image.open(out / f"{stem}.png") as mask, Image.open(out / f"{stem}_overlay.png") as overlay:
            assert mask.size == overlay.size == size
            assert overlay.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(overlay), np.asarray(mask.convert("RGB")))  # opacity 1


def test_predict_with_confidence(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    image, out = data / "images/00.png", tmp_path / "out"
    sure = bundle(output="mask,confidence")
    found = printed(nrd_trt("predict", sure, image, "-o", out, "--overlay", "--confidence", "--opacity", 1, "--json"))
    names = [f"00{kind}.png" for kind in ("", "_overlay", "_confidence", "_confidence_overlay")]
    assert [Path(name).name for name in found["files"]] == names
    with package.open_bundle(sure) as engine:
        drawn = engine.segment(np.asarray(Image.open(image)))
    with Image.open(out / "00_confidence.png") as grey, Image.open(out / "00_confidence_overlay.png") as overlay:
        assert grey.mode == "L"
        np.testing.assert_array_equal(np.asarray(grey), drawn.confidence)
        np.testing.assert_array_equal(np.asarray(overlay), np.array(CONFIDENCE_PALETTE)[drawn.confidence])  # opacity 1
    result = nrd_trt("predict", bundle(), image, "-o", tmp_path / "other", "--confidence")
    assert result.exit_code == 2
    assert "--confidence: expected an engine with the output confidence, got one with mask" in result.stderr
    assert "nrd-trt build CHECKPOINT -o NAME.nrd --outputs mask,confidence" in result.stderr
    assert not (tmp_path / "other").exists()


def test_predict_in_tiles(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    image, wide = tmp_path / "wide.png", bundle(output="logits")
    Image.open(data / "images/00.png").resize((200, 130)).save(image)
    found = printed(nrd_trt("predict", wide, image, "-o", tmp_path / "out", "--tile", SIZE, "--json"))
    with package.open_bundle(wide) as engine, Image.open(tmp_path / "out/wide.png") as mask:
        rgb = np.asarray(Image.open(image).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(mask), engine.predict(rgb, tile=(64, 96)))
    assert 0 < found["seam_agreement"] < 1
    assert "pools over each window" in found["warnings"][0]
    refused = nrd_trt("predict", bundle(), image, "-o", tmp_path / "other", "--tile", SIZE)
    assert refused.exit_code == 2
    assert "nrd-trt build CHECKPOINT -o NAME.nrd --outputs mask,logits" in refused.stderr
    refused = nrd_trt("predict", wide, image, "-o", tmp_path / "other", "--tile", SIZE, "--stride", "65x10")
    assert "--stride 65x10: expected at most the window's 64x96" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_predict_needs_force_to_replace(nrd_trt: Invoke, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert nrd_trt("predict", bundle(), data / "images/00.png", "-o", out).exit_code == 0
    (out / "00.png").write_bytes(b"")
    (out / "01_overlay.png").write_bytes(b"mine")
    for flags in ((), ("--overlay",)):
        result = nrd_trt("predict", bundle(), data / "images" / f"0{len(flags)}.png", "-o", out, *flags)
        assert result.exit_code == 2
        assert "--force" in result.stderr
    assert content(out) == {"00.png": b"", "01_overlay.png": b"mine"}
    result = nrd_trt("predict", bundle(), data / "images/00.png", "-o", out, "--force")
    assert result.exit_code == 0
    assert (out / "00.png").read_bytes() != b""
    assert "1 masks" in result.stdout


def test_predict_writes_no_file_twice_and_replaces_nothing_that_it_reads(
    nrd_trt: Invoke, data: Path, tmp_path: Path
) -> None:
    for first, second, flags in (("a.png", "a.jpg", ()), ("b.png", "b_overlay.jpg", ("--overlay",))):
        (folder := tmp_path / first[0]).mkdir()
        for name in (first, second):
            Image.new("RGB", (40, 40)).save(folder / name)
        result = nrd_trt("predict", bundle(), folder, "-o", tmp_path / "out", *flags)
        assert result.exit_code == 2
        assert f"several images would write {first[0]}" in result.stderr
    assert not (tmp_path / "out").exists()
    before = content(data)
    result = nrd_trt("predict", bundle(), data / "images", "-o", data / "labels/../images", "--force")
    assert result.exit_code == 2
    assert "choose another folder" in result.stderr
    assert content(data) == before


@pytest.mark.parametrize(
    ("fault", "code", "kind", "said"),
    [
        (PermissionError(13, "Permission denied", "a.nrd"), 2, "PermissionError", "Permission denied.*free space"),
        (ZeroDivisionError("planted"), 70, "ZeroDivisionError", "internal error: ZeroDivisionError: planted"),
        (KeyboardInterrupt(), 130, "Interrupted", "Ctrl-C"),
    ],
)
def test_faults_of_other_hands_have_exit_codes(
    fault: BaseException, code: int, kind: str, said: str, nrd_trt: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(package, "validate", fail)
    for flags in ((), ("-v",)):
        result = nrd_trt("validate", bundle(), "--json", *flags)
        assert result.exit_code == code
        assert re.search(said, result.stderr)
        assert one_object(result.stdout)["error"]["type"] == kind
        assert ("Traceback" in result.stderr and "test_cli.py" in result.stderr) == (code == 70 and flags == ("-v",))
    assert nrd_trt("validate", bundle()).stdout == ""


def test_processes_exit_like_this_one(tmp_path: Path) -> None:
    """The real thing: error, gate failure and success of a process, with nothing but JSON on stdout."""
    done = run_process("validate", bundle(), "--json")
    assert (done.returncode, one_object(done.stdout)["passed"]) == (0, True)
    failed = run_process("validate", bundle("bf16"), "--min-agreement", 1, "--json")
    assert (failed.returncode, one_object(failed.stdout)["passed"]) == (1, False)
    bad = run_process("build", untrained_checkpoint(), "-o", tmp_path / "a.nrd", "--size", "100x100", "--json")
    assert bad.returncode == 2
    assert "96x96" in one_object(bad.stdout)["error"]["message"]
    assert "Traceback" not in bad.stderr
    assert listing(tmp_path) == []
