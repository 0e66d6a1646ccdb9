"""The model of the Python backend within a double of the backend: what a batch of requests is answered with."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nrd_trt
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import RunnerError
from nrd_trt.packaging.triton_model import TritonPythonModel, warmup_image
from nrd_trt.runtime.engine import Engine
from tests.artefacts import bundle, copy_of, rewrite_facts


@dataclass
class Tensor:
    name: str
    data: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.data


class TritonError(Exception):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


BACKEND = SimpleNamespace(
    Tensor=Tensor,
    TritonError=TritonError,
    InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=tensors, error=error),
    get_input_tensor_by_name=lambda request, name: request[name],
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder, with a bundle that pads, so that it takes images up to its size."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", BACKEND)
    rewrite_facts(copy_of(bundle(), tmp_path / "street.nrd"), fit="pad")
    return tmp_path


def started(folder: Path, *, warmup: bool = False, **settings: str) -> TritonPythonModel:
    texts = {"bundle": "street.nrd", "threads": "1", **settings}
    config = {
        "parameters": {name: {"string_value": text} for name, text in texts.items()},
        "model_warmup": [{}] * warmup,
    }
    model = TritonPythonModel()
    place = {"model_repository": str(folder), "model_instance_kind": "CPU", "model_instance_device_id": "0"}
    model.initialize({**place, "model_config": json.dumps(config)})
    return model


def request(images: np.ndarray) -> dict[str, Tensor]:
    return {"image": Tensor("image", images)}


def images_of(*seeds: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.stack([street_scene(seed, size).image for seed in seeds])


def test_each_request_of_a_batch_gets_its_own_masks_or_its_own_error(folder: Path) -> None:
    good = [images_of(1, 2), images_of(3, size=(64, 96))]
    large, empty = images_of(4, size=(64, 128)), np.zeros((1, 0, 60, 3), np.uint8)
    model = started(folder)
    answers = model.execute([request(images) for images in (good[0], large, empty, good[1])])
    with nrd_trt.open_bundle(folder / "street.nrd", threads=1) as engine:
        for answer, images in zip((answers[0], answers[3]), good, strict=True):
            (tensor,) = answer.tensors
            np.testing.assert_array_equal(tensor.data, [engine.predict(image) for image in images])
            assert (tensor.name, tensor.data.dtype, answer.error) == ("mask", np.uint8, None)
    for answer, message in ((answers[1], "64x128 is larger"), (answers[2], "at least one pixel, got (1, 0, 60, 3)")):
        assert answer.error.code == "invalid" and message in str(answer.error)
    model.finalize()


def test_confidence_is_answered_where_the_bundle_gives_it(folder: Path) -> None:
    copy_of(bundle(output="mask,confidence"), folder / "sure.nrd")
    images = images_of(1, 2)
    (answer,) = started(folder, bundle="sure.nrd").execute([request(images)])
    with nrd_trt.open_bundle(folder / "sure.nrd", threads=1) as engine:
        drawn = [engine.segment(image) for image in images]
    assert [tensor.name for tensor in answer.tensors] == ["mask", "confidence"]
    np.testing.assert_array_equal(answer.tensors[0].data, [one.mask for one in drawn])
    np.testing.assert_array_equal(answer.tensors[1].data, [one.confidence for one in drawn])


def test_a_run_that_fails_is_an_error_of_its_requests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RunnerError("the device has faulted.")

    model = started(folder)
    monkeypatch.setattr(Engine, "draw_all", fail)
    answers = model.execute([request(images_of(1)), request(images_of(1, size=(64, 128)))])
    assert [answer.error.code for answer in answers] == ["internal", "invalid"]
    assert str(answers[0].error) == "the device has faulted."


def test_the_first_image_tells_whether_arrays_arrive(folder: Path) -> None:
    """An older Python backend gives zeros with NumPy 2."""
    model = started(folder, warmup=True)
    with pytest.raises(RunnerError, match=r"^NumPy .* install 'numpy<2'"):
        model.execute([request(np.zeros((1, 64, 96, 3), np.uint8))])
    model = started(folder, warmup=True)
    assert model.execute([request(warmup_image((64, 96))[None])])[0].error is None
    assert model.execute([request(np.zeros((1, 64, 96, 3), np.uint8))])[0].error is None


def test_the_bundle_is_opened_as_the_parameters_say(folder: Path) -> None:
    with pytest.raises(nrd_trt.ConfigError, match=r"verify_key=.*public\.pem: expected a file with a public key"):
        started(folder, verify_key="public.pem")
    with pytest.raises(nrd_trt.ConfigError, match="runner='cuda'"):
        started(folder, runner="cuda")
