"""Figures against labels, each computed a second time by hand from `model.predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nrd_trt.cli.evaluate import table
from nrd_trt.data.images import read_image
from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import CheckpointError, ConfigError, NrdTrtError, ShapeError
from nrd_trt.model import load_model
from nrd_trt.model.network import Segmentor
from nrd_trt.runtime.engine import open_engine
from nrd_trt.validation import evaluate as evaluating
from nrd_trt.validation.evaluate import Evaluation, evaluate
from tests.artefacts import SIZE_HW, bundle, checkpoint, needs_rtx, onnx_file, trained_model

SIZES_HW = [(50, 70), (64, 96), (131, 90)]  # none but the second is the network's
Pairs = list[tuple[np.ndarray, np.ndarray]]


def data_set(folder: Path, pairs: Pairs) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index, (image, label) in enumerate(pairs):
        write_rgb(folder / "images" / f"{index}.png", image)
        Image.fromarray(label).save(folder / "labels" / f"{index}.png")
    return folder


def scenes(sizes_hw: list[tuple[int, int]]) -> Pairs:
    drawn = [street_scene(index, size_hw) for index, size_hw in enumerate(sizes_hw)]
    return [(scene.image, scene.label.copy()) for scene in drawn]


def run(target: Path, data: Path, **changes: Any) -> Evaluation:
    size = {"size": SIZE_HW} if target.suffix == ".safetensors" else {}
    return evaluate(target, data, progress=False, threads=1, **{**size, **changes})


def predicted(model: Segmentor, image: np.ndarray, fit: str) -> np.ndarray:
    """The mask at the image's size, by Pillow and `model.predict` alone."""
    (height, width), (h, w) = image.shape[:2], SIZE_HW
    if fit == "resize":
        fitted = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    else:
        fitted = np.tile(np.rint(model.info.mean).astype(np.uint8), (h, w, 1))
        fitted[:height, :width] = image
    planes = (fitted.astype(np.float32) - np.float32(model.info.mean)) / np.float32(model.info.std)
    mask = model.predict(torch.from_numpy(planes.transpose(2, 0, 1)[None].copy()))[0].numpy().astype(np.uint8)
    if fit == "pad":
        return mask[:height, :width]
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def by_hand(model: Segmentor, pairs: Pairs, *, fit: str = "resize", ignored: tuple[int, ...] = (255, 11)) -> Any:
    """Return the mIoU, the IoU of every class and the accuracy over all pixels of all images."""
    masks = np.concatenate([predicted(model, image, fit).ravel() for image, _ in pairs])
    labels = np.concatenate([label.ravel() for _, label in pairs])
    counted = ~np.isin(labels, ignored)
    masks, labels = masks[counted], labels[counted]
    per_class = {}
    for index, name in enumerate(model.info.class_names):
        union = ((masks == index) | (labels == index)).sum()
        per_class[name] = float(((masks == index) & (labels == index)).sum() / union) if union else None
    present = [iou for iou in per_class.values() if iou is not None]
    return float(np.mean(present)), per_class, float((masks == labels).mean())


def check(got: Evaluation, expected: Any, images: int) -> None:
    assert got.miou == pytest.approx(expected[0], rel=1e-12)
    assert got.per_class_iou == pytest.approx(expected[1], rel=1e-12)
    assert got.pixel_accuracy == pytest.approx(expected[2], rel=1e-12)
    assert got.images == images


# --- the figures -----------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_models_masks(tmp_path: Path) -> None:
    pairs = scenes(SIZES_HW)
    got = run(checkpoint(), data_set(tmp_path / "data", pairs))
    check(got, by_hand(trained_model(), pairs), 3)
    assert 0 < got.miou < 1  # type: ignore[operator]
    assert 0 < got.pixel_accuracy < 1  # type: ignore[operator]
    assert (got.runner, got.arithmetic, got.plan_ran) == ("torch", "native", None)
    means = [by_hand(trained_model(), [pair])[0] for pair in pairs]
    assert abs(np.mean(means) - got.miou) > 1e-3, "one matrix over the data set, not a mean over the images"


def test_every_source_agrees_with_the_checkpoint(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", scenes(SIZES_HW))
    expected = run(checkpoint(), data)
    for source, arithmetic, tolerance in (
        (bundle(), "native", 1e-3),
        (bundle("fp16"), "simulated", 1e-2),
        (onnx_file("logits"), "native", 1e-3),
    ):
        got = run(source, data, runner="onnxruntime")
        assert (got.runner, got.arithmetic, got.images) == ("onnxruntime", arithmetic, 3)
        assert got.miou == pytest.approx(expected.miou, abs=tolerance)
        assert got.pixel_accuracy == pytest.approx(expected.pixel_accuracy, abs=tolerance)
        assert got.per_class_iou.keys() == expected.per_class_iou.keys()


def test_padding_is_not_counted(tmp_path: Path) -> None:
    pairs = scenes([(50, 70), (64, 96)])
    data = data_set(tmp_path / "data", pairs)
    expected = by_hand(trained_model(), pairs, fit="pad")
    check(run(checkpoint(), data, fit="pad"), expected, 2)
    assert expected != by_hand(trained_model(), pairs)
    padded = run(bundle(fit="pad"), data)  # what the bundle was built with is its default
    assert padded.miou == pytest.approx(expected[0], abs=1e-3)
    assert run(bundle(), data, fit="pad") == padded


def test_ignored_pixels_are_not_counted(tmp_path: Path) -> None:
    pairs = scenes(SIZES_HW)
    for _, label in pairs:
        label[:20], label[20:25] = 255, 11
    got = run(checkpoint(), data_set(tmp_path / "void", pairs))
    check(got, by_hand(trained_model(), pairs), 3)
    for _, label in pairs:
        label[20:25] = 255
    got = run(checkpoint(), data_set(tmp_path / "roads", pairs), ignore_index=3)
    check(got, by_hand(trained_model(), pairs, ignored=(255, 3)), 3)
    assert got.per_class_iou["Road"] in (None, 0.0)
    got = run(checkpoint(), data_set(tmp_path / "none", [(image, np.full_like(label, 255)) for image, label in pairs]))
    assert (got.miou, got.pixel_accuracy, set(got.per_class_iou.values())) == (None, None, {None})


def test_size_and_options_of_a_checkpoint_are_heeded(tmp_path: Path) -> None:
    pairs = scenes(SIZES_HW)
    data = data_set(tmp_path / "data", pairs)
    usual = run(checkpoint(), data)
    got = run(checkpoint(), data, dilations=(1, 1, 2, 3))
    check(got, by_hand(load_model(checkpoint(), dilations=(1, 1, 2, 3)), pairs), 3)
    assert got.miou != usual.miou
    own = run(checkpoint(), data, size=None)
    assert own == run(checkpoint(), data, size=trained_model().info.size_hw)
    assert own.miou != usual.miou


def test_protocol_is_heeded(tmp_path: Path) -> None:
    pairs = scenes([(131, 170), (96, 160)])
    data = data_set(tmp_path / "data", pairs)
    got = run(checkpoint(), data, tile=(64, 96), flip=True)
    assert (got.viewing.protocol, got.viewing.flip, got.averaged) == ("slide", True, True)
    assert 0.3 < got.seam_agreement < 1  # type: ignore[operator]
    with open_engine(checkpoint(), size=SIZE_HW) as engine:
        masks = [engine.predict(image, tile=(64, 96), flip=True) for image, _ in pairs]
    hits = sum(int((mask == label).sum()) for mask, (_, label) in zip(masks, pairs, strict=True))
    assert got.pixel_accuracy == pytest.approx(hits / sum(int((label < 11).sum()) for _, label in pairs))
    assert "slide, mirrored too" in "\n".join(table(got))
    plain = run(checkpoint(), data)
    assert (plain.viewing.protocol, plain.averaged, plain.seam_agreement) == ("whole", False, None)


def test_an_evaluation_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, record = scenes(SIZES_HW), tmp_path / "record.jsonl"
    data = data_set(tmp_path / "data", pairs)
    fields: dict[str, Any] = {"tile": (32, 64), "record": record}
    whole = run(checkpoint(), data, **fields)
    lines = record.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["image"] for line in lines[1:]] == ["0.png", "1.png", "2.png"]
    alone = [by_image(tmp_path / str(index), pair) for index, pair in enumerate(pairs)]
    assert [(json.loads(line)["miou"], json.loads(line)["pixel_accuracy"]) for line in lines[1:]] == alone
    with pytest.raises(ConfigError, match="already exists; give resume=True"):
        run(checkpoint(), data, **fields)
    record.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed within the line of the second image
    seen: list[Path] = []
    monkeypatch.setattr(evaluating, "read_image", lambda path: seen.append(path) or read_image(path))
    assert run(checkpoint(), data, resume=True, **fields) == whole
    assert [path.name for path in seen] == ["1.png", "2.png"]
    assert record.read_bytes() == b"".join(lines)
    for changes, message in (
        ({"tile": (64, 64)}, "the evaluation began with viewing"),
        ({"ignore_index": 3}, "began with ignore index 11, got 3"),
        ({"record": None}, r"resume=True: expected record=FILE"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(checkpoint(), data, resume=True, **{**fields, **changes})
    assert record.read_bytes() == b"".join(lines)


def by_image(folder: Path, pair: tuple[np.ndarray, np.ndarray]) -> tuple[float | None, float | None]:
    found = run(checkpoint(), data_set(folder, [pair]), tile=(32, 64))
    return found.miou, found.pixel_accuracy


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b"{}\n", b"[" * 100 + b"\n"])
def test_record_of_another_kind_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine: expected results of an evaluation.*name another"):
        run(checkpoint(), data_set(tmp_path / "data", scenes([SIZE_HW])), record=tmp_path / "mine", resume=True)
    assert (tmp_path / "mine").read_bytes() == content


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [checkpoint, bundle])
def test_labels_are_a_must(make: Any, tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", scenes([SIZE_HW]))
    (data / "labels").rename(tmp_path / "elsewhere")
    for folder in (data, data / "images"):
        with pytest.raises(ConfigError, match="give labels="):
            run(make(), folder)
    with pytest.raises(ConfigError, match=r"absent.*check the path"):
        run(make(), tmp_path / "absent")


@pytest.mark.parametrize("make", [checkpoint, bundle])
def test_bad_labels_name_their_file(make: Any, tmp_path: Path) -> None:
    pairs = scenes(SIZES_HW)
    pairs[2][1][5, 5] = 12
    with pytest.raises(ConfigError, match=r"labels/2\.png: expected class indices 0-10 .*got \[12\].*ignore_index="):
        run(make(), data_set(tmp_path / "range", pairs))
    pairs[1] = (pairs[1][0], pairs[1][1][1:])
    with pytest.raises(ShapeError, match=r"labels/1\.png: expected the image's size 64x96"):
        run(make(), data_set(tmp_path / "size", pairs))


@pytest.mark.parametrize(
    ("make", "changes", "error", "message"),
    [
        (checkpoint, {"runner": "onnxruntime"}, ConfigError, r"runner='onnxruntime'.*nrd_trt\.build\("),
        (checkpoint, {"runner": "tensorrt"}, ConfigError, r"runner='tensorrt'.*nrd_trt\.build\("),
        (checkpoint, {"runner": "tvm"}, ConfigError, "runner='tvm': expected one of 'auto'"),
        (checkpoint, {"output_stride": 8}, ConfigError, "output stride"),
        (checkpoint, {"size": (100, 100)}, ShapeError, "^size=.*96x96"),
        (checkpoint, {"protocol": "slide", "fit": "pad"}, ConfigError, "fit='pad': only protocol='whole' fits"),
        (checkpoint, {"protocol": "ade20k", "resample": "pillow"}, ConfigError, "scales as OpenCV does"),
        (bundle, {"protocol": "ade20k"}, ConfigError, "takes 64x96 only"),
        (bundle, {"flip": True}, ConfigError, "averaged by their logits"),
        (bundle, {"runner": "torch"}, ConfigError, "a bundle holds no PyTorch model"),
        (bundle, {"size": SIZE_HW}, ConfigError, "size"),
        (bundle, {"output_stride": 32}, ConfigError, "what describes a checkpoint"),
        (onnx_file, {"runner": "torch"}, ConfigError, "runner='torch'"),
        (lambda: Path("absent.pth"), {}, CheckpointError, "absent"),
        (lambda: Path("absent.onnx"), {}, NrdTrtError, "absent"),
    ],
)
def test_arguments_that_do_not_fit_the_source(
    make: Any, changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(make(), data_set(tmp_path / "data", scenes([SIZE_HW])), **changes)


@needs_rtx
def test_plan_that_was_not_run_is_mentioned(tmp_path: Path) -> None:
    got = run(bundle(builder="tensorrt-rtx"), data_set(tmp_path / "data", scenes([SIZE_HW])))
    assert got.plan_ran is (got.runner == "tensorrt-rtx")
    assert ("built but not run here" in "\n".join(table(got))) is (not got.plan_ran)
