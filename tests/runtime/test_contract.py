"""One contract for every runner of this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nrd_trt.errors import RunnerError, ShapeError
from nrd_trt.graph.precision import to_precision
from nrd_trt.runtime.base import Runner
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.specs import InputForm, Precision
from tests.helpers import agreement, cached_small_model, feed, small_export

Make = Callable[[InputForm], Runner]


def _ort(precision: Precision) -> Make:
    return lambda form: OrtRunner(to_precision(small_export(form, "dynamic"), precision), threads=1)


RUNNERS: dict[str, Make] = {
    "torch": lambda form: TorchRunner(cached_small_model(), form),
    "onnxruntime-fp32": _ort("fp32"),
    "onnxruntime-fp16": _ort("fp16"),
}
if importlib.util.find_spec("openvino"):
    from nrd_trt.runtime.openvino_runner import OpenVinoRunner

    RUNNERS["openvino-fp32"] = lambda form: OpenVinoRunner(small_export(form, "dynamic"), threads=1, types="exact")
SIZE = (2, 64, 96)


@pytest.fixture(params=RUNNERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runner(kind: str) -> Runner:
    return RUNNERS[kind]("uint8")


@pytest.mark.parametrize("form", ["uint8", "rgb_float", "float"])
def test_specs_describe_what_is_taken_and_given(kind: str, form: InputForm) -> None:
    with RUNNERS[kind](form) as runner:
        image = feed(form, *SIZE)
        assert list(runner.inputs) == ["image"]
        assert set(runner.outputs) == {"mask", "logits"}
        runner.inputs["image"].check(image["image"])
        outputs = runner.infer(image)
        assert outputs.keys() == runner.outputs.keys()
        for name, array in outputs.items():
            runner.outputs[name].check(array)
        assert outputs["mask"].shape == SIZE
        assert outputs["logits"].shape == (2, 11, 16, 24)
        assert len(np.unique(outputs["mask"])) > 1


def test_bytes_and_floats_of_one_image_give_one_mask(kind: str) -> None:
    masks = []
    for form in ("uint8", "rgb_float"):
        with RUNNERS[kind](form) as runner:  # type: ignore[arg-type]
            masks.append(runner.infer(feed(form, *SIZE))["mask"])  # type: ignore[arg-type]
    assert np.array_equal(*masks)


def test_life_cycle(runner: Runner) -> None:
    runner.__exit__(None, None, None)  # before entering
    with runner:
        assert isinstance(runner, Runner)
        with pytest.raises(RunnerError, match="already entered"):
            runner.__enter__()
        first = runner.infer(feed("uint8", *SIZE))
    runner.__exit__(None, None, None)
    runner.__exit__(None, None, None)
    with pytest.raises(ZeroDivisionError), runner:
        again = runner.infer(feed("uint8", *SIZE))
        raise ZeroDivisionError
    assert all(np.array_equal(first[name], again[name]) for name in first)
    for use in (lambda: runner.infer(feed("uint8", *SIZE)), lambda: runner.inputs, lambda: runner.outputs):
        with pytest.raises(RunnerError, match=f"{runner.name}: not entered"):
            use()


def test_arrays_are_fresh_and_inputs_untouched(runner: Runner) -> None:
    image, other = feed("uint8", *SIZE), feed("uint8", *SIZE, seed=99)
    before = image["image"].copy()
    with runner:
        first = runner.infer(image)
        kept = {name: array.copy() for name, array in first.items()}
        second = runner.infer(other)
        for name in first:
            assert not np.shares_memory(first[name], second[name])
            assert np.array_equal(first[name], kept[name])
            first[name][...] = 0  # owned and writable
        assert not np.array_equal(second["logits"], kept["logits"])
        view = np.repeat(image["image"], 2, axis=2)[:, :, ::2]  # the same image, not contiguous
        third = runner.infer({"image": view})
    assert all(np.array_equal(third[name], kept[name]) for name in kept)
    assert np.array_equal(image["image"], before)


IMAGE = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, r"expected inputs \['image'\], got \[\]"),
        ({"image": IMAGE, "mask": IMAGE}, r"got \['image', 'mask'\]"),
        ({"picture": IMAGE}, r"got \['picture'\]"),
        ({"image": IMAGE.astype(np.float32)}, "expected uint8 .*got float32"),
        ({"image": IMAGE.astype(np.int8)}, "expected uint8 .*got int8"),
        ({"image": IMAGE[0]}, "expected uint8 any×any×any×3"),
        ({"image": IMAGE.transpose(0, 3, 1, 2)}, "got uint8 1×3×64×64"),
        ({"image": IMAGE[..., :2]}, "got uint8 1×64×64×2"),
    ],
    ids=["missing", "unknown", "renamed", "float", "int8", "rank", "planes", "channels"],
)
def test_feeds_are_checked_before_any_run(
    runner: Runner, wrong: Mapping[str, np.ndarray], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    monkeypatch.setattr(runner, "_run", ran.append)
    with runner, pytest.raises(ShapeError, match=message):
        runner.infer(wrong)
    assert not ran


@pytest.mark.parametrize("form", ["uint8", "rgb_float", "float"])
def test_sizes_off_the_grid_are_an_error(kind: str, form: InputForm) -> None:
    """PyTorch's check names the nearest size; a backend may fail in its own words, but must not give a result."""
    with RUNNERS[kind](form) as runner, pytest.raises((ShapeError, RunnerError)):
        runner.infer(feed(form, 1, 100, 128))


def test_two_threads_with_a_runner_each(kind: str) -> None:
    images = [feed("uint8", *SIZE, seed=seed) for seed in (1, 50)]
    with RUNNERS[kind]("uint8") as single:
        expected = [single.infer(image)["logits"] for image in images]
    assert not np.array_equal(*expected)

    def work(image: dict[str, np.ndarray]) -> list[np.ndarray]:
        with RUNNERS[kind]("uint8") as own:
            return [own.infer(image)["logits"] for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        for got, want in zip(pool.map(work, images), expected, strict=True):
            assert all(np.array_equal(logits, want) for logits in got)


def test_runners_agree() -> None:
    image, masks = feed("uint8", *SIZE), {}
    for name, make in {**RUNNERS, "onnxruntime-bf16": _ort("bf16")}.items():
        with make("uint8") as runner:
            assert runner.name == name.split("-")[0]
            assert runner.arithmetic == ("simulated" if name.endswith("16") else "native")
            masks[name] = runner.infer(image)["mask"]
    shares = {name: agreement(mask, masks["torch"]) for name, mask in masks.items()}
    assert shares["onnxruntime-fp32"] >= 0.9999 and shares.get("openvino-fp32", 1.0) >= 0.9999
    assert 0.9 < shares["onnxruntime-fp16"] < 1
    assert 0.5 < shares["onnxruntime-bf16"] < shares["onnxruntime-fp16"]


def test_a_file_that_onnxruntime_refuses() -> None:
    model = to_precision(small_export("uint8", "dynamic"), "fp32")
    model.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(RunnerError, match=r"cannot load the model.*NoSuchOperator"):
        OrtRunner(model).__enter__()
