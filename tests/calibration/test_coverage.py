"""Classes of calibration images, predicted and labelled, and what is said of those that are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nrd_trt.calibration.coverage import ClassCounter, Coverage, count_labels, coverage_of, look_at_classes
from nrd_trt.calibration.stream import CalibrationStream
from nrd_trt.errors import ConfigError, NrdTrtError, ShapeError
from nrd_trt.graph.metadata import read_facts
from nrd_trt.specs import Size
from tests.artefacts import scenes
from tests.helpers import small_export

NAMES = ("Sky", "Road", "Car", "Pole")
SIZE: Size = (4, 6)


def counted(*masks: list[int]) -> ClassCounter:
    counter = ClassCounter(NAMES)
    for mask in masks:
        counter.add(np.array(mask, np.uint8))
    return counter


def covered(predicted: ClassCounter, labelled: ClassCounter) -> Coverage:
    found = coverage_of(predicted, labelled)
    assert found is not None
    return found


def test_labels_tell_what_the_model_overlooks_from_what_is_not_shown() -> None:
    """Poles are predicted and not there, cars are there and not predicted."""
    found = covered(counted([0, 0, 1, 3], [1, 1, 1, 1]), counted([0, 0, 1, 2], [1, 1, 2, 2]))
    assert (found.never_seen, found.images) == (("Car",), {"Sky": 1, "Road": 2, "Car": 0, "Pole": 1})
    labels = found.labels
    assert labels is not None
    assert (labels.never_labelled, labels.never_predicted, labels.labelled) == (("Pole",), ("Car",), 2)
    assert labels.pixel_share == {"Sky": 0.25, "Road": 0.375, "Car": 0.375, "Pole": 0}
    overlooked, absent = look_at_classes(found)
    assert "classes never predicted" in overlooked
    assert "although their labels show them: Car, labelled on 2 of 2 images (1); more images do not" in overlooked
    assert "classes never labelled on the calibration images: Pole (1); add images" in absent


def test_a_class_that_is_neither_labelled_nor_predicted_is_not_overlooked() -> None:
    found = covered(counted([0, 1, 2]), counted([0, 1, 2]))
    assert found.labels is not None and found.labels.never_predicted == ()
    (absent,) = look_at_classes(found)
    assert absent.startswith("classes never labelled on the calibration images: Pole (1);")


def test_without_labels_the_prediction_is_all_there_is() -> None:
    found = covered(counted([0, 1, 2]), counted())
    assert found.labels is None
    (text,) = look_at_classes(found)
    assert text == "classes never predicted on the calibration images: Pole (1); add images that show them."
    assert look_at_classes(covered(counted([0, 1, 2, 3]), counted())) == ()
    assert coverage_of(counted(), counted([0])) is None and look_at_classes(None) == ()


def write(folder: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(folder / f"{name}.png")


def count(folder: Path | None, *, required: bool = False) -> tuple[ClassCounter, list[str]]:
    images = [Path(f"{name}.jpg") for name in "ab"]
    counter, found = count_labels(images, [SIZE] * 2, folder, class_names=NAMES, ignore_index=9, required=required)
    return counter, list(found)


def test_labels_are_counted_without_what_is_ignored(tmp_path: Path) -> None:
    assert count(None)[0].masks == 0
    write(tmp_path, "a", np.array([[0, 0, 1, 255, 255, 9]] * 4))
    counter, found = count(tmp_path)
    counts = counter.counts()
    assert counts is not None and (counts.images, counter.masks, found) == (
        {"Sky": 1, "Road": 1, "Car": 0, "Pole": 0},
        1,
        [],
    )
    assert counts.pixel_share["Sky"] == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match=r"b\.png: expected the label of b\.jpg, found none"):
        count(tmp_path, required=True)


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (np.full(SIZE, 7), ConfigError, "expected class indices 0-3 or ignored values .*got \\[7\\]"),
        (np.zeros((4, 4)), ShapeError, "expected the image's size 4x6, got 4x4"),
    ],
)
def test_labels_that_cannot_be_read_count_only_where_they_were_asked_for(
    label: np.ndarray, error: type[NrdTrtError], message: str, tmp_path: Path
) -> None:
    write(tmp_path, "a", np.zeros(SIZE))
    write(tmp_path, "b", label)
    counter, (text,) = count(tmp_path)
    assert counter.masks == 0 and text.startswith("calibration set: the labels beside the images are not counted: ")
    with pytest.raises(error, match=message):
        count(tmp_path, required=True)


def test_a_stream_finds_the_labels_beside_its_images_or_where_it_is_told(tmp_path: Path) -> None:
    data, facts = scenes(tmp_path / "data", 3, labels=True), read_facts(small_export())
    beside = CalibrationStream(data, facts, images=2)
    assert beside.labelled.masks == 2, "those of the chosen images"
    assert CalibrationStream(data / "images", facts).labelled.masks == 0
    told = CalibrationStream(data / "images", facts, images=2, labels=data / "labels")
    assert told.labelled.counts() == beside.labelled.counts() is not None
    with pytest.raises(ConfigError, match=r"labels=.*: expected a folder of images that they belong to, got synthetic"):
        CalibrationStream("synthetic", facts, labels=data / "labels")
