"""Samples: which images a run sees, how they are mixed and read, and every bad file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from nrd_trt.data.folders import IGNORE
from nrd_trt.data.synthetic import Scene, street_scene
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.training import samples as samples_module
from nrd_trt.training.samples import FIRST_SCENE, Samples
from tests.training.conftest import SIZE, VOID, tiny, write_arrays

SYNTHETIC = Path("synthetic")
OTHER = replace(tiny().info, class_names=tuple("abcdefghijk"))
"""Eleven classes that are not CamVid's."""


def flat(folder: Path, *labels: int) -> None:
    """Write pictures of one colour and one class each."""
    for index, label in enumerate(labels):
        image = np.full((70, 100, 3), 100, np.uint8)
        write_arrays(folder, str(index), image, np.full((70, 100), label, np.uint8))


def classes_of(batch: tuple[np.ndarray, np.ndarray]) -> set[int]:
    return set(np.unique(batch[1]).tolist()) - {IGNORE}


def test_a_sample_depends_on_the_seed_and_its_number_and_not_on_its_batch(data: Path) -> None:
    samples = Samples(tiny(), [data])
    whole, parts = samples.batch(4, 4), [Samples(tiny(), [data]).batch(first, 2) for first in (6, 4)]
    for kind in (0, 1):
        assert np.array_equal(whole[kind], np.concatenate([parts[1][kind], parts[0][kind]]))
        assert not np.array_equal(whole[kind][0], whole[kind][1])
    assert not np.array_equal(whole[0][:2], Samples(tiny(seed=1), [data]).batch(4, 2)[0])
    assert (whole[0].shape, whole[0].dtype) == ((4, 3, 64, 64), np.float32)
    assert (whole[1].shape, whole[1].dtype) == ((4, 64, 64), np.uint8)


def test_scenes_are_mixed_in_at_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def scene(seed: int, size_hw: tuple[int, int]) -> Scene:
        seeds.append(seed)
        return Scene(image=np.zeros((*size_hw, 3), np.uint8), label=np.full(size_hw, 7, np.uint8))

    monkeypatch.setattr(samples_module, "_scene", scene)
    flat(tmp_path, 3, 3)
    of_scenes = {}
    for share in (0.0, 0.3, 1.0):
        small = replace(tiny().augmentation, crop_hw=(32, 32))
        samples = Samples(tiny(synthetic_share=share, augmentation=small), [tmp_path])
        of_scenes[share] = sum(classes_of(samples.batch(index, 1)) == {7} for index in range(100))
    assert of_scenes[0.0] == 0 and of_scenes[1.0] == 100
    assert 20 <= of_scenes[0.3] <= 40
    assert min(seeds) >= FIRST_SCENE, "scenes that other code uses must not be trained on"
    assert len(set(seeds)) > 50


def test_folders_are_mixed(tmp_path: Path) -> None:
    flat(tmp_path / "a", 1, 1, 1)
    flat(tmp_path / "b", 2, 2, 2)
    folders = [tmp_path / "a", tmp_path / "b"]
    samples = Samples(tiny(synthetic_share=0.0), folders)
    assert (len(samples.training), samples.validation_count()) == (4, 2)
    assert classes_of(samples.batch(0, 20)) == {1, 2}
    assert [set(samples.validation_sample(index)[1].flat) for index in (0, 1)] == [{1}, {2}]
    with_scenes = Samples(tiny(synthetic_share=0.5), [*folders, SYNTHETIC])
    assert classes_of(with_scenes.batch(0, 12)) > {1, 2}
    assert with_scenes.validation_count() == 2, "validation is on the images alone"


def test_scenes_alone() -> None:
    samples = Samples(tiny(synthetic_share=0.0), [SYNTHETIC])
    images, labels = samples.batch(0, 2)
    assert len(classes_of((images, labels))) > 3
    assert samples.validation_count() == 20
    with mock.patch.object(samples_module, "street_scene", wraps=street_scene) as drawn:
        image, label = samples.validation_sample(0)
        assert not np.array_equal(image, samples.validation_sample(19)[0])
    assert image.shape == (*SIZE, 3) and label.shape == SIZE
    seeds = [call.args[0] for call in drawn.call_args_list]
    assert max(seeds) < FIRST_SCENE, "validation scenes must not be among those trained on"
    assert (samples.class_weights() == 1).all()  # nothing to count


def test_scenes_have_camvids_classes_and_need_a_share(tmp_path: Path) -> None:
    flat(tmp_path, 1, 1)
    for data in ([SYNTHETIC], [tmp_path, SYNTHETIC], [tmp_path]):
        with pytest.raises(ConfigError, match=r"recipe camvid_mobilenetv2: procedural scenes have the CamVid classes"):
            Samples(tiny(info=OTHER), data)
    Samples(tiny(info=OTHER, synthetic_share=0.0), [tmp_path])
    with pytest.raises(ConfigError, match=r"data='synthetic' .*share of procedural scenes is 0; give synthetic_share="):
        Samples(tiny(synthetic_share=0.0), [tmp_path, SYNTHETIC])


def test_labels_that_count_from_one(tmp_path: Path) -> None:
    label = np.repeat(np.array([0, 1, 11, 255], np.uint8), 25)[None].repeat(70, axis=0)
    for stem in "ab":
        write_arrays(tmp_path, stem, np.zeros((70, 100, 3), np.uint8), label)
    info = replace(tiny().info, ignore_index=None)
    reduced = Samples(tiny(info=info, reduce_zero_label=True), [tmp_path])
    image, found = reduced.validation_sample(0)
    assert (image.shape, image.dtype) == ((70, 100, 3), np.uint8), "as it is in its file"
    assert found[0, ::25].tolist() == [IGNORE, 0, 10, IGNORE]
    samples = Samples(tiny(info=info, synthetic_share=0.0), [tmp_path])
    for use in (lambda: samples.batch(0, 1), samples.class_weights, lambda: samples.validation_sample(0)):
        with pytest.raises(ConfigError, match=r"labels.[ab]\.png: expected class indices 0-10 .*got \[11\]"):
            use()
    write_arrays(tmp_path, "b", np.zeros((70, 99, 3), np.uint8), label)
    with pytest.raises(ShapeError, match=r"labels.b\.png: expected the image's size 70x99, got 70x100"):
        samples.batch(0, 1)


def test_weights_are_roots_of_rarity_within_bounds(tmp_path: Path) -> None:
    label = np.full((100, 100), VOID, np.uint8)
    label[:1, :1], label[1:2, :25], label[2:3], label[3:7], label[7:57] = 0, 1, 2, 3, 4
    for part in ("train", "val"):
        write_arrays(tmp_path / part, "a", np.zeros((100, 100, 3), np.uint8), label)
    # Shares 1 : 25 : 100 : 400 : 5000 pixels, the median is 100; classes without pixels and void weigh nothing in.
    weights = Samples(tiny(), [tmp_path]).class_weights()
    assert weights.dtype == np.float32
    assert weights.tolist() == pytest.approx([3.0, 2.0, 1.0, 0.5, 0.4, *[1.0] * 6])


def test_only_some_labels_of_a_large_set_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "_COUNTED_LABELS", 3)
    flat(tmp_path, *range(9))  # the first one is kept for validation
    samples = Samples(tiny(), [tmp_path])
    with mock.patch.object(samples, "read", wraps=samples.read) as read:
        samples.class_weights()
    assert [call.args[0][0].stem for call in read.call_args_list] == ["1", "4", "7"]
