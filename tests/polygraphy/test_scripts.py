"""What the scripts make of their settings, images and masks, and what the runner shows, inside this process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.polygraphy.tool import SCRIPTS, needs_polygraphy

pytest.importorskip("polygraphy", reason="needs polygraphy: pip install 'nrd-trt[polygraphy]'")

from polygraphy.comparator import IterationResult
from polygraphy.exception import PolygraphyException

from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.preprocessing import normalise
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import ConfigError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.model.network import Segmentor
from nrd_trt.polygraphy.load_images import load_data
from nrd_trt.polygraphy.masks import MaskCompare
from nrd_trt.polygraphy.runner import NrdTorchRunner
from nrd_trt.polygraphy.settings import PREFIX, Settings, read_model
from nrd_trt.runtime.graph_io import margin_of_logits
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.specs import InputShape
from tests import artefacts
from tests.helpers import DYNAMIC, cached_small_model

pytestmark = needs_polygraphy


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the shell may have set."""
    for name in Settings.__dataclass_fields__:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def setting(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        monkeypatch.setenv(PREFIX + name, str(value))


# --- settings


def test_settings_are_read() -> None:
    given = {
        "MODEL": "a.onnx",
        "DATA": "images",
        "FIT": "pad",
        "RESAMPLE": "cv2",
        "COUNT": "3",
        "MIN_AGREEMENT": "0.5",
        "MIN_MIOU": "0",
    }
    read = Settings.read({**{PREFIX + name: text for name, text in given.items()}, "PATH": "/bin"})
    assert read == Settings(
        model=Path("a.onnx"), data=Path("images"), fit="pad", resample="cv2", count=3, min_agreement=0.5, min_miou=0.0
    )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("FIT", "crop", "FIT 'crop': expected one of resize, pad, letterbox"),
        ("RESAMPLE", "nearest", "RESAMPLE 'nearest': expected one of cv2, pillow"),
        ("COUNT", "0", "COUNT '0': expected a number of images"),
        ("COUNT", "many", "COUNT 'many': expected a number of images"),
        ("MIN_AGREEMENT", "99.5", "MIN_AGREEMENT '99.5': expected a fraction in 0-1"),
        ("MAX_CLEAR_FLIPS", "nan", "MAX_CLEAR_FLIPS 'nan': expected a fraction in 0-1"),
        ("PRECISION", "int4", "PRECISION 'int4': expected one of fp32"),
        ("MODEL", "", "MODEL: expected a path, got an empty value"),
        ("MIN_AGREE", "1", "MIN_AGREE: expected one of"),
    ],
)
def test_wrong_setting_is_named(name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Settings.read({PREFIX + name: text})


def test_facts_are_those_of_the_bundle_around_a_file() -> None:
    bundle = artefacts.bundle("fp16", fit="pad", resample="cv2")
    for path in (bundle, bundle / "model.onnx"):
        model = read_model(path)
        assert (model.graph.precision, model.fit, model.resample) == ("fp16", "pad", "cv2")


@pytest.mark.parametrize("name", ["absent.onnx", "text.onnx", "model.plan"])
def test_other_file_is_no_model(name: str, tmp_path: Path) -> None:
    if name != "absent.onnx":
        (tmp_path / name).write_text("no model")
    with pytest.raises(ConfigError, match=f"{name}: expected an ONNX file"):
        read_model(tmp_path / name)


def test_folder_of_the_scripts_is_printed() -> None:
    command = [sys.executable, "-m", "nrd_trt.polygraphy"]
    done = subprocess.run(command, env=artefacts.environment(), capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == SCRIPTS
    assert {"load_images.py", "compare_masks.py"} <= {path.name for path in SCRIPTS.iterdir()}


# --- images


def test_scenes_come_in_the_models_form(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, MODEL=artefacts.onnx_file(), COUNT=2)
    feeds = load_data()
    first, second = feeds
    assert len(feeds) == 2
    assert (first["image"].dtype, first["image"].shape) == (np.uint8, (1, *artefacts.SIZE_HW, 3))
    assert not np.array_equal(first["image"], second["image"])
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip((first, second), feeds, strict=True))


def test_images_of_a_folder_are_prepared_as_for_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Float input and a smallest batch of two: scaled, padded, normalised, repeated."""
    options = ExportOptions(shape=InputShape.static((64, 96), batch=2), input_form="float")
    model = artefacts.write_model(export_onnx(artefacts.trained_model(), options), "batch_of_two.onnx")
    rgb = street_scene(3, (48, 80)).image
    write_rgb(tmp_path / "a.png", rgb)
    setting(monkeypatch, MODEL=model, DATA=tmp_path, FIT="pad")
    (feed,) = load_data()
    info = artefacts.trained_model().info
    assert (feed["image"].dtype, feed["image"].shape) == (np.float32, (2, 3, 64, 96))
    assert np.array_equal(feed["image"][1, :, :48, :80], normalise(rgb[None], info)[0])
    assert np.abs(feed["image"][:, :, 48:]).max() < 0.01  # the mean's colour


def test_model_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PolygraphyException, match="NRD_POLYGRAPHY_MODEL: expected the ONNX file or bundle"):
        load_data()
    assert "[E] nrd_trt: NRD_POLYGRAPHY_MODEL" in "".join(capsys.readouterr())


def test_broken_image_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    setting(monkeypatch, MODEL=artefacts.onnx_file(), DATA=tmp_path)
    with pytest.raises(PolygraphyException, match=r"broken\.png: expected an image"):
        list(load_data())


# --- masks


def result(name: str, **outputs: np.ndarray) -> IterationResult:
    return IterationResult(outputs=outputs, runtime=0.0, runner_name=name)


def compare(first: IterationResult, second: IterationResult) -> dict[str, Any]:
    return MaskCompare()(first, second)


def stripes(wrong: int = 0) -> np.ndarray:
    """Ten columns of two classes; the first `wrong` of its 100 pixels have the other class."""
    mask = np.zeros((1, 10, 10), np.uint8)
    mask[..., 5:] = 1
    mask[0, 0, :wrong] = 1
    return mask


def test_figures_are_right() -> None:
    found = compare(result("trt", mask=stripes(wrong=2)), result("onnxrt", mask=stripes()))["mask"]
    assert found.agreement == pytest.approx(0.98)
    assert found.miou_between == pytest.approx((48 / 50 + 50 / 52) / 2)
    assert found.clear_flips == pytest.approx(0.02)
    assert not found


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"MIN_AGREEMENT": 0.98}, True),
        ({"MIN_AGREEMENT": 0.981}, False),
        ({"PRECISION": "bf16"}, True),
        ({"PRECISION": "fp16"}, False),
        ({"MIN_AGREEMENT": 0.9, "MIN_MIOU": 0.97}, False),
        ({"MIN_AGREEMENT": 0.9, "MIN_MIOU": 0.96}, True),
        ({"MIN_AGREEMENT": 0.9, "MAX_CLEAR_FLIPS": 0.019}, False),
        ({"MIN_AGREEMENT": 0.9, "MAX_CLEAR_FLIPS": 0.021}, True),
    ],
)
def test_gates(settings: dict[str, object], passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, **settings)
    found = compare(result("trt", mask=stripes(wrong=2)), result("onnxrt", mask=stripes()))["mask"]
    assert bool(found) is passes
    assert found.describe()[1] is passes


def test_gates_are_those_of_the_models_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, MODEL=artefacts.bundle("fp16"))
    assert MaskCompare().thresholds_for("mask").min_agreement == 0.995


def test_flip_near_a_tie_is_not_clear() -> None:
    """One of two wrong pixels lies where the reference's logits are equal; PyTorch is it, though it comes first."""
    logits = np.stack([np.where(stripes() == 0, 5.0, -5.0), np.where(stripes() == 0, -5.0, 5.0)], axis=1)
    logits[0, :, 0, 0] = 1.0
    torch = result("nrd-torch-runner-N0", mask=stripes(), logits=logits.astype(np.float32))
    found = compare(torch, result("onnxrt", mask=stripes(wrong=2)))
    assert list(found) == ["mask"]
    assert (found["mask"].agreement, found["mask"].clear_flips) == (pytest.approx(0.98), pytest.approx(0.01))


def test_logits_are_compared_by_their_best_class() -> None:
    logits = np.zeros((1, 3, 4, 4), np.float32)
    logits[0, 2] = 1.0
    other = logits.copy()
    other[0, 1, 0, :2] = 2.0
    found = compare(result("trt", logits=other), result("onnxrt", logits=logits))["logits"]
    assert found.agreement == pytest.approx(14 / 16)


@pytest.mark.parametrize(("value", "side"), [(np.nan, 0), (np.inf, 1)])
def test_logits_that_are_not_finite_fail(value: float, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, MIN_AGREEMENT=0)
    pair = [np.zeros((1, 3, 4, 4), np.float32) for _ in range(2)]
    pair[side][0, 0, 0, 0] = value
    assert not compare(result("trt", logits=pair[0]), result("onnxrt", logits=pair[1]))["logits"]


def test_packed_mask_is_unpacked() -> None:
    mask = np.arange(32, dtype=np.uint8).reshape(1, 4, 8) % 5
    packed = mask.view("<i4")
    assert compare(result("trt", mask=packed), result("nrd-torch", mask=mask))["mask"].agreement == 1
    assert not compare(result("trt", mask=packed[:, ::-1]), result("nrd-torch", mask=mask))["mask"]


def test_masks_of_other_sizes_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, MIN_AGREEMENT=0)
    assert not compare(result("trt", mask=stripes()[:, :5]), result("onnxrt", mask=stripes()))["mask"]


def test_outputs_without_a_mask_are_refused() -> None:
    with pytest.raises(PolygraphyException, match="expected the output mask or logits in both"):
        compare(result("trt", mask=stripes()), result("onnxrt", theta=np.zeros(3)))


def test_margin_is_that_of_pytorch() -> None:
    model = artefacts.trained_model()
    image = street_scene(5, artefacts.SIZE_HW).image[None]
    with TorchRunner(model, margin=True) as runner:
        outputs = runner.infer({"image": image})
    margin = margin_of_logits(outputs["logits"][0], model.config.upsample)
    np.testing.assert_allclose(margin, outputs["margin"][0], atol=1e-4)  # sums in another order, logits near 10


# --- the runner


FIXED, PAIRS = InputShape.static(artefacts.SIZE_HW), InputShape.static(artefacts.SIZE_HW, batch=2)


def network_of(options: ExportOptions) -> tuple[Segmentor, Path]:
    """The trained network and its file; of open sizes the quickest one, which is traced for other tests as well."""
    if options.shape == DYNAMIC:
        return cached_small_model(), artefacts.untrained_checkpoint(11)
    return artefacts.trained_model(), artefacts.checkpoint()


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (ExportOptions(shape=FIXED), "mask"),
        (ExportOptions(shape=PAIRS, input_form="float"), "both"),
        (ExportOptions(shape=DYNAMIC), "logits"),
        (ExportOptions(shape=FIXED, mask_encoding="u8x4"), "mask"),
    ],
)
def test_runner_has_the_files_inputs_and_outputs(options: ExportOptions, output: str, tmp_path: Path) -> None:
    import onnxruntime

    network, checkpoint = network_of(options)
    onnx.save(select_outputs(export_onnx(network, options), output), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    sizes = tuple(size if isinstance(size, int) else None for size in image.shape)
    batch = 2 if sizes[0] is None else sizes[0]
    rgb = np.stack([street_scene(seed, artefacts.SIZE_HW).image for seed in range(batch)])
    feed = {"image": rgb if options.input_form == "uint8" else normalise(rgb, network.info)}
    with NrdTorchRunner(str(checkpoint), str(tmp_path / "model.onnx")) as runner:
        metadata = runner.get_input_metadata(use_numpy_dtypes=False)
        outputs = runner.infer(feed)
        assert runner.last_inference_time() > 0
    expected = dict(zip([entry.name for entry in session.get_outputs()], session.run(None, feed), strict=True))
    assert list(metadata) == ["image"]
    assert metadata["image"].dtype.numpy() == feed["image"].dtype
    assert tuple(metadata["image"].shape) == sizes
    assert {name: (a.dtype, a.shape) for name, a in outputs.items()} == {
        name: (a.dtype, a.shape) for name, a in expected.items()
    }
    if "mask" in expected:
        assert (outputs["mask"] == expected["mask"]).mean() > 0.999


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (lambda: Path("absent.pth"), "absent.pth: expected a checkpoint file"),
        (artefacts.untrained_checkpoint, "expected 11 classes as in the engine, got 19"),
    ],
)
def test_checkpoint_that_does_not_fit_is_named(checkpoint: Callable[[], Path], message: str) -> None:
    with pytest.raises(PolygraphyException, match=message):
        NrdTorchRunner(str(checkpoint()), str(artefacts.onnx_file())).activate()


def test_runner_can_be_entered_again() -> None:
    feed = {"image": street_scene(0, artefacts.SIZE_HW).image[None]}
    runner = NrdTorchRunner(str(artefacts.checkpoint()), str(artefacts.onnx_file()))
    masks = []
    for _ in range(2):
        before = dict(vars(runner))
        with runner:
            masks.append(runner.infer(feed)["mask"])
        assert vars(runner).keys() == before.keys()
    assert np.array_equal(*masks)


def test_runner_takes_the_forms_that_are_said(tmp_path: Path) -> None:
    """A file of another tool tells nothing about itself."""
    model = onnx.load(artefacts.onnx_file())
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    checkpoint, path = str(artefacts.checkpoint()), str(tmp_path / "bare.onnx")
    with pytest.raises(PolygraphyException, match="say them with --nrd-torch-input and --nrd-torch-output"):
        NrdTorchRunner(checkpoint, path, input_form="uint8").activate()
    with NrdTorchRunner(checkpoint, path, input_form="uint8", output="both") as runner:
        outputs = runner.infer({"image": street_scene(0, artefacts.SIZE_HW).image[None]})
    assert list(outputs) == ["mask", "logits"]


def test_checkpoint_is_not_judged_by_the_files_preprocessing() -> None:
    """The runner normalises as the checkpoint says, or a file with the wrong mean would look right."""
    with NrdTorchRunner(str(artefacts.checkpoint()), str(artefacts.onnx_file()), options={"mean": [0, 0, 0]}) as runner:
        feed = {"image": street_scene(0, artefacts.SIZE_HW).image[None]}
        other = runner.infer(feed)["mask"]
    with NrdTorchRunner(str(artefacts.checkpoint()), str(artefacts.onnx_file())) as runner:
        assert not np.array_equal(runner.infer(feed)["mask"], other)
