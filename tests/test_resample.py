"""`resample`: a bundle keeps it like `fit`, and every verb that scales images obeys it."""

from __future__ import annotations

import inspect
import signal
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nrd_trt
from nrd_trt.cli.main import FLAGS
from nrd_trt.data.bilinear import resize_as_cv2
from nrd_trt.data.images import read_image
from nrd_trt.engine.bundle import RECORD_FILE, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.runtime.engine import open_engine
from nrd_trt.specs import Resample
from tests.artefacts import SIZE_HW, bundle, checkpoint, copy_of, onnx_file, rewrite_facts, scenes

IMAGE_HW = (160, 250)
"""More than twice the engine's size: here the two ways differ in most pixels."""
QUIET: dict[str, Any] = {"threads": 1, "progress": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled scenes."""
    return scenes(tmp_path_factory.mktemp("resample") / "val", 2, labels=True, size_hw=IMAGE_HW)


def masks_by_hand(data: Path, resample: Resample) -> list[np.ndarray]:
    """Scale, segment, and bring the masks back, without the code that the verbs share."""
    masks = []
    with open_engine(bundle()) as engine:
        for path in sorted((data / "images").iterdir()):
            rgb, size = read_image(path), SIZE_HW[::-1]
            plain = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
            mask = engine.mask(resize_as_cv2(rgb, SIZE_HW) if resample == "cv2" else plain)
            masks.append(np.asarray(Image.fromarray(mask).resize(IMAGE_HW[::-1], Image.Resampling.NEAREST)))
    return masks


def test_a_bundle_keeps_it_and_an_old_one_has_pillow(tmp_path: Path) -> None:
    record = read_bundle(bundle(resample="cv2")).record
    assert (record.fit, record.resample, read_bundle(bundle()).record.resample) == ("resize", "cv2", "pillow")
    assert "resample='cv2'" in record.command and "resample='pillow'" in read_bundle(bundle()).record.command
    old = copy_of(bundle(resample="cv2"), tmp_path / "old.nrd")
    rewrite_facts(old, resample=...)
    assert '"resample"' not in (old / RECORD_FILE).read_text()
    assert read_bundle(old).record.resample == "pillow"


Use = Callable[..., Any]
"""Takes bundle, data, a folder to write to, and `resample` where it is given; returns what depends on it."""


def predict(path: Path, data: Path, folder: Path, **given: Resample) -> Any:
    with nrd_trt.open_bundle(path, threads=1, **given) as engine:
        return [engine.predict(read_image(image)).tobytes() for image in sorted((data / "images").iterdir())]


def video(path: Path, data: Path, folder: Path, **given: Resample) -> Any:
    nrd_trt.segment_video(data / "images", folder / "masks", path, **given, **QUIET)
    return [np.asarray(Image.open(mask)).tobytes() for mask in sorted((folder / "masks").iterdir())]


def serve(path: Path, data: Path, folder: Path, **given: Resample) -> Any:
    pytest.importorskip("fastapi", reason="needs fastapi: pip install nrd-trt[serve]")
    answers = []

    def ask(url: str) -> None:
        try:
            for image in sorted((data / "images").iterdir()):
                asked = urllib.request.Request(f"{url}segment?result=mask", image.read_bytes())
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    answers.append(np.asarray(Image.open(answer)).tobytes())
        finally:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C ends the server

    with suppress(KeyboardInterrupt):
        nrd_trt.serve(
            data / "images",
            path,
            port=0,
            loop=False,
            threads=1,
            on_ready=lambda url, token: Thread(target=ask, args=(url,), daemon=True).start(),
            **given,
        )
    return answers


@pytest.mark.parametrize("use", [predict, video, serve])
def test_masks_are_those_of_the_way_that_was_recorded_or_asked_for(use: Use, data: Path, tmp_path: Path) -> None:
    asked: list[tuple[Path, dict[str, Resample]]]
    for resample in ("pillow", "cv2"):
        other = "cv2" if resample == "pillow" else "pillow"
        asked = [(bundle(resample=resample), {}), (bundle(resample=other), {"resample": resample})]
        expected = [mask.tobytes() for mask in masks_by_hand(data, resample)]
        for number, (path, given) in enumerate(asked):
            (folder := tmp_path / f"{resample}{number}").mkdir()
            assert use(path, data, folder, **given) == expected, (resample, given)


def test_the_two_ways_differ(data: Path) -> None:
    """So that the test above tells them apart."""
    for one, other in zip(masks_by_hand(data, "pillow"), masks_by_hand(data, "cv2"), strict=True):
        assert 0 < (one != other).mean() < 0.2


def evaluate(source: Path, data: Path, **given: Resample) -> Any:
    size = {"size": SIZE_HW} if source == checkpoint() else {}
    found = nrd_trt.evaluate(source, data, **size, **given, **QUIET)
    return found.miou, found.pixel_accuracy


def validate(source: Path, data: Path, **given: Resample) -> Any:
    found = nrd_trt.validate(source, checkpoint=checkpoint(), data=data, min_agreement=0.9, **given, **QUIET)
    return found.miou_reference, found.miou_engine


@pytest.mark.parametrize("use", [evaluate, validate])
def test_figures_are_those_of_the_way_that_was_recorded_or_asked_for(use: Use, data: Path) -> None:
    plain, cv2 = use(bundle(), data), use(bundle(resample="cv2"), data)
    assert plain != cv2
    assert (use(bundle(), data, resample="cv2"), use(bundle(resample="cv2"), data, resample="pillow")) == (cv2, plain)
    for source in (onnx_file(), checkpoint()) if use is evaluate else ():
        assert use(source, data) == pytest.approx(plain) and use(source, data, resample="cv2") == pytest.approx(cv2)


def test_where_fit_is_resample_is_too() -> None:
    functions = {name for name in nrd_trt.__all__ if inspect.isfunction(getattr(nrd_trt, name))}
    taken = {name: inspect.signature(getattr(nrd_trt, name)).parameters.keys() for name in functions}
    fitting = {name for name, parameters in taken.items() if "fit" in parameters}
    assert fitting == set(
        "build calibrate evaluate export open_bundle optimize segment_video serve tune validate".split()
    )
    assert all("resample" in taken[name] for name in fitting)
    verbs = {verb for verb, flags in FLAGS.items() if flags.get("resample") == "--resample"}
    assert verbs == {verb for verb, flags in FLAGS.items() if "fit" in flags} | {"train", "prune"}


@pytest.mark.parametrize("verb", ["open_bundle", "validate", "evaluate", "segment_video", "serve", "tune", "train"])
def test_another_value_is_refused_by_name(verb: str, data: Path, tmp_path: Path) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "open_bundle": (bundle(),),
        "validate": (bundle(),),
        "evaluate": (bundle(), data),
        "segment_video": (data / "images", "null", bundle()),
        "serve": (data / "images", bundle()),
        "tune": (checkpoint(), tmp_path / "a.nrd", data),
        "train": ("camvid_mobilenetv2", data, tmp_path / "run"),
    }
    with pytest.raises(ConfigError, match="resample='lanczos': expected one of 'cv2', 'pillow'"):
        getattr(nrd_trt, verb)(*arguments[verb], resample="lanczos")
    assert not list(tmp_path.iterdir())
