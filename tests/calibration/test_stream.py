"""The calibration stream: distinct arrays, the same in every pass, preprocessed as in deployment; every bad folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.data.images import read_image
from nrd_trt.data.preprocessing import fit_image
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import CalibrationError, ConfigError, NrdTrtError, ShapeError
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.runtime.graph_io import image_feed
from nrd_trt.specs import Fit, InputForm, InputShape, Range, Resample
from tests.helpers import DYNAMIC, small_export


def facts_of(form: InputForm = "uint8", shape: InputShape | None = None) -> GraphFacts:
    facts = read_facts(small_export(form))
    return replace(facts, shape=shape or facts.shape)


def picture(seed: int, size_hw: tuple[int, int] = (70, 90)) -> np.ndarray:
    return street_scene(seed, size_hw).image


def folder_of(path: Path, count: int) -> Path:
    path.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(picture(index)).save(path / f"{index:03}.png")
    return path


def video_of(path: Path, count: int) -> Path:
    """Frame i is red of level 10·i, so that a decoded frame says which one it is."""
    pytest.importorskip("av", reason="needs PyAV: pip install nrd-trt[video]")
    from tests.video.clips import write_clip

    frames = [np.full((64, 96, 3), (10 * index, 0, 0), np.uint8) for index in range(count)]
    return write_clip(path, frames, codec="mjpeg", pix_fmt="yuvj420p")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data") / "images", 9)


def arrays(stream: CalibrationStream) -> list[np.ndarray]:
    return [feed["image"] for feed in stream]


def test_stream_is_sized_repeatable_and_of_distinct_arrays(folder: Path) -> None:
    stream = CalibrationStream(folder, facts_of(), images=6)
    first, second = arrays(stream), arrays(stream)
    assert len(stream) == len(first) == len(stream.names) == 6
    for index, array in enumerate(first):
        assert array.shape == (1, 128, 256, 3) and array.dtype == np.uint8
        assert (array == second[index]).all()
        assert not any((array == other).all() for other in first[:index])
        assert not any(np.shares_memory(array, other) for other in (*first[:index], *second))


@pytest.mark.parametrize("form", ["uint8", "float"])
def test_feeds_are_those_of_deployment(form: InputForm, folder: Path) -> None:
    model = small_export(form)
    facts = read_facts(model)
    ways: tuple[tuple[Fit, Resample], ...] = (("resize", "pillow"), ("pad", "pillow"), ("letterbox", "cv2"))
    for fit, resample in ways:
        stream = CalibrationStream(folder, facts, images=2, fit=fit, resample=resample)
        for name, feed in zip(stream.names, stream, strict=True):
            fitted = fit_image(read_image(folder / name), facts.shape, facts.info, fit, resample=resample)
            expected = image_feed(fitted.image, facts)
            assert feed.keys() == expected.keys()
            assert all((feed[key] == expected[key]).all() for key in expected)
            assert (feed.names, feed.contents_hw) == ((name,), (fitted.content_hw,))


def test_choice_is_seeded_and_spread(folder: Path) -> None:
    chosen = [CalibrationStream(folder, facts_of(), images=3, seed=seed).names for seed in (0, 0, *range(1, 9))]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 3
    for names in chosen:
        assert [int(name[:3]) // 3 for name in names] == [0, 1, 2]
    assert len(CalibrationStream(folder, facts_of(), images=100).names) == 9
    with pytest.raises(ConfigError, match="images=0: expected 1 or more"):
        CalibrationStream(folder, facts_of(), images=0)


def test_key_follows_names_contents_and_fit(folder: Path, tmp_path: Path) -> None:
    def key(path: Path, **changes: Any) -> str:
        return CalibrationStream(path, facts_of(), **changes).sha256

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert key(copy) == key(folder)
    keys = [key(folder), key(folder, images=5), key(folder, fit="letterbox"), key(folder, resample="cv2")]
    Image.fromarray(picture(77)).save(copy / "003.png")
    keys.append(key(copy))
    (copy / "003.png").rename(copy / "003b.png")
    keys.append(key(copy))
    assert len(set(keys)) == len(keys)


def test_batches_are_filled_up(folder: Path) -> None:
    stream = CalibrationStream(folder, facts_of(shape=InputShape.static((64, 96), batch=4)))
    feeds = list(stream)
    assert len(stream) == len(feeds) == 3
    assert [len(feed.names) for feed in feeds] == [4, 4, 1]
    assert [name for feed in feeds for name in feed.names] == list(stream.names)
    assert all(feed["image"].shape == (4, 64, 96, 3) for feed in feeds)
    last = feeds[-1]["image"]
    assert all((image == last[0]).all() for image in last)


def test_mixed_sizes_are_fitted(folder: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(folder, tmp_path / "mixed"))
    Image.fromarray(picture(50, (200, 120))).save(mixed / "tall.png")
    assert {array.shape for array in arrays(CalibrationStream(mixed, facts_of()))} == {(1, 128, 256, 3)}
    sizes = {array.shape[1:3] for array in arrays(CalibrationStream(mixed, facts_of(shape=DYNAMIC)))}
    assert sizes == {(64, 96), (192, 128)}
    batched = replace(DYNAMIC, batch=Range(min=2, opt=2, max=2))
    assert {array.shape for array in arrays(CalibrationStream(mixed, facts_of(shape=batched)))} == {(2, 128, 256, 3)}
    with pytest.raises(ShapeError, match=r"tall.png: image 200x120 is larger than the engine's 128x256; use fit="):
        CalibrationStream(mixed, facts_of(), fit="pad")


def test_scenes_are_drawn_at_the_engine_size() -> None:
    stream = CalibrationStream("synthetic", facts_of(shape=InputShape.static((64, 96))), images=4, seed=3)
    first = arrays(stream)
    assert len(stream) == 4 and {array.shape for array in first} == {(1, 64, 96, 3)}
    assert all((a == b).all() for a, b in zip(first, arrays(stream), strict=True))
    assert all(20_000 <= int(name.split()[1]) < 100_000 for name in stream.names)
    other = CalibrationStream("synthetic", facts_of(shape=InputShape.static((64, 96))), images=4, seed=4)
    assert stream.sha256 != other.sha256


def test_frames_are_spread_over_the_video(tmp_path: Path) -> None:
    video = video_of(tmp_path / "clip.avi", 20)
    stream = CalibrationStream(video, facts_of(shape=InputShape.static((64, 96))), images=5)
    numbers = [int(name.rsplit(" ", 1)[1]) for name in stream.names]
    assert [number // 4 for number in numbers] == [0, 1, 2, 3, 4]
    levels = [float(array[..., 0].mean()) / 10 for array in arrays(stream)]
    assert np.rint(levels).tolist() == numbers
    assert all(array[..., 1:].mean() < 10 for array in arrays(stream)), "RGB"
    assert all((a == b).all() for a, b in zip(arrays(stream), arrays(stream), strict=True))
    assert len(CalibrationStream(video, facts_of(), images=50)) == 20


def test_video_that_is_cut_after_the_first_pass(tmp_path: Path) -> None:
    video = video_of(tmp_path / "clip.avi", 12)
    stream = CalibrationStream(video, facts_of(), images=4)
    video_of(video, 3)
    with pytest.raises(CalibrationError, match=r"expected frame \d+ as before, got none; has the file changed"):
        arrays(stream)


def labels(path: Path) -> None:
    path.mkdir()
    for index in range(3):
        Image.fromarray(np.full((40, 40), index, np.uint8)).save(path / f"{index}.png")


def copies(path: Path) -> None:
    path.mkdir()
    for name in ("a.png", "b.png", "c.bmp"):  # the same pixels in other bytes
        Image.fromarray(picture(1)).save(path / name)


def damaged(path: Path) -> None:
    folder_of(path, 3)
    (path / "001.png").write_bytes((path / "001.png").read_bytes()[:300])


def empty(*names: str) -> Callable[[Path], None]:
    """Write a folder with empty files and folders of these names."""

    def write(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).touch() if "." in name else (path / name).mkdir()

    return write


BAD: dict[str, tuple[Callable[[Path], object], type[NrdTrtError], str]] = {
    "missing": (lambda path: None, ConfigError, "expected a folder of images, found none"),
    "another file": (Path.touch, ConfigError, "data: expected a folder of images, a video .* got another file"),
    "empty": (empty(), CalibrationError, "the folder is empty; check the path"),
    "one level too high": (
        lambda path: folder_of(path / "train" / "images", 2), CalibrationError,
        r"found them one level below; give .*/train",
    ),
    "other files": (empty("notes", "a.heic"), CalibrationError, r"images \(.png.*found notes/, .heic; check the path"),
    "a video inside": (empty("a.mp4"), CalibrationError, r"found a video; give the file itself, .*a.mp4"),
    "labels": (labels, CalibrationError, r"0.png: expected a photo, got what looks like a label image"),
    "one image": (lambda path: folder_of(path, 1), CalibrationError, "expected different images, got one image"),
    "copies of one image": (copies, CalibrationError, "expected different images, got 3 copies of one image"),
    "unreadable": (damaged, ConfigError, r"001.png: expected an image, cannot read it"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(case: str, tmp_path: Path) -> None:
    make, error, message = BAD[case]
    make(tmp_path / "data")
    with pytest.raises(error, match=message):
        CalibrationStream(tmp_path / "data", facts_of())


def test_grey_photos_are_no_labels_and_mostly_copies_are_warned_of(tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 1, **dict.fromkeys("cdefg", 0)}.items():
        Image.fromarray(picture(seed)).convert("L").save(tmp_path / f"{name}.png")
    stream = CalibrationStream(tmp_path, facts_of())
    assert len(stream) == 7
    few, alike = stream.warnings
    assert "7 images, fewer than 8" in few
    assert "7 images, only 2 of them different: 5 nearly equal an earlier one" in alike
