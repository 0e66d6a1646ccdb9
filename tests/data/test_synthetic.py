"""Street scenes: same seed same bytes, exact labels, every class often enough, an endless drive."""

from __future__ import annotations

import hashlib
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest

from nrd_trt.data import _scene_objects as objects
from nrd_trt.data._scene_canvas import Camera, Canvas, Label, Light
from nrd_trt.data.classes import CAMVID_CLASSES
from nrd_trt.data.synthetic import Scene, street_clip, street_scene
from nrd_trt.errors import ConfigError

SMALL = (120, 160)
SEEDS = range(50)
UNTOUCHED = 255


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """One small frame of each of 50 streets."""
    return [street_scene(seed, SMALL) for seed in SEEDS]


def _same(first: Scene, second: Scene) -> bool:
    return np.array_equal(first.image, second.image) and np.array_equal(first.label, second.label)


def _canvas(value: float) -> Canvas:
    """Canvas of one grey whose every pixel still waits for a label."""
    light = Light(sun_x=0.5, sun=0.5, haze=(0.8, 0.8, 0.8), haze_m=200.0)
    canvas = Canvas((180, 240), Camera(x=0.0, height=1.4, horizon=0.5, curve=0.0), light)
    canvas.image[:], canvas.label[:] = value, UNTOUCHED
    return canvas


def test_labels_follow_camvid_order() -> None:
    assert [label.name for label in Label][:6] == [name.upper() for name in CAMVID_CLASSES][:6]
    assert [CAMVID_CLASSES[label] for label in (Label.SIGN, Label.CAR)] == ["SignSymbol", "Car"]
    assert list(Label) == list(range(len(CAMVID_CLASSES)))


@pytest.mark.parametrize("size_hw", [(32, 32), (96, 128), (130, 75), (64, 256)])
def test_shape_dtype_and_label_set(size_hw: tuple[int, int]) -> None:
    scene = street_scene(1, size_hw)
    assert scene.image.shape == (*size_hw, 3)
    assert scene.label.shape == size_hw
    assert scene.image.dtype == scene.label.dtype == np.uint8
    assert scene.image.flags.c_contiguous
    assert scene.label.max() < len(CAMVID_CLASSES)


def test_size_changes_resolution_not_composition() -> None:
    small, large = street_scene(3, (180, 240)).label, street_scene(3, (360, 480)).label
    assert (large[1::2, 1::2] == small).mean() > 0.95


def test_every_frame_has_sky_road_and_building_and_every_class_is_common(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert {Label.SKY, Label.ROAD, Label.BUILDING} <= set(np.unique(scene.label))
    for label in Label:
        assert np.mean([(scene.label == label).sum() >= 5 for scene in scenes]) > 0.6, label


def test_class_shares_are_like_camvid(scenes: list[Scene]) -> None:
    """The large classes have about the shares of real frames, measured on the CamVid training set."""
    pixels = np.bincount(np.concatenate([scene.label.ravel() for scene in scenes]))
    share = pixels / pixels.sum()
    expected = {Label.ROAD: 0.32, Label.BUILDING: 0.24, Label.SKY: 0.17, Label.TREE: 0.10, Label.CAR: 0.06}
    assert {label: share[label] for label in expected} == pytest.approx(expected, abs=0.06)


def test_scenes_are_those_of_every_other_machine() -> None:
    drawn = [street_scene(seed, SMALL, time_s=time_s) for seed in range(8) for time_s in (0, 9)]
    labels, images = (b"".join(getattr(scene, part).tobytes() for scene in drawn) for part in ("label", "image"))
    assert hashlib.sha256(labels).hexdigest() == "8719789f5c0a299aa1ccd84ded3a0d54d1d908f091c6f11530c006dac0439b5e"
    assert hashlib.sha256(images).hexdigest() == "40378598563b663e158e302768b30b8dabe9b6b21a8f3ae956d07b5ec6bbc1b5"


def test_clip_frame_is_the_scene_at_its_time() -> None:
    for index, frame in enumerate(street_clip(5, SMALL, frames=3, fps=10.0)):
        assert _same(frame, street_scene(5, SMALL, time_s=index / 10.0))


def test_clip_moves_smoothly() -> None:
    labels = [frame.label for frame in street_clip(4, SMALL, frames=6)]
    changed = [(first != second).mean() for first, second in pairwise(labels)]
    assert 0.001 < min(changed)
    assert max(changed) < 0.15


def test_drive_never_runs_out_of_street() -> None:
    later = street_scene(2, SMALL, time_s=20_000.0)
    assert len(np.unique(later.label)) >= 8
    assert not np.array_equal(later.label, street_scene(2, SMALL).label)


def test_skipping_what_is_out_of_view_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = [street_scene(seed, SMALL) for seed in range(6)]
    monkeypatch.setattr(Canvas, "in_view", lambda *_: True)
    assert all(_same(scene, street_scene(seed, SMALL)) for seed, scene in enumerate(skipped))


DRAWERS = [
    objects.draw_fence,
    partial(objects.draw_plot, length=12.0, urban=1.0),
    partial(objects.draw_plot, length=12.0, urban=0.0),
    objects.draw_tree,
    objects.draw_lamp,
    objects.draw_bollard,
    objects.draw_sign,
    partial(objects.draw_car, oncoming=True),
    partial(objects.draw_car, oncoming=False),
    objects.draw_pedestrian,
    objects.draw_bicyclist,
]


def test_colour_and_label_cover_the_same_pixels() -> None:
    """Exactly the labelled pixels have got a colour; on black, where shadows do not show, on white for a railing.

    Both are those of when their hash was recorded.
    """
    drawn = hashlib.sha256()
    for draw, seed in product(DRAWERS, range(8)):
        canvas = _canvas(value := float(draw is DRAWERS[0]))
        draw(canvas, objects.Item(x=2.5, z=9.0, side=1, rng=np.random.default_rng(seed), time_s=0.3))
        labelled = canvas.label != UNTOUCHED
        assert labelled.any(), draw
        np.testing.assert_array_equal(labelled, (canvas.image != value).any(axis=0), str(draw))
        drawn.update(canvas.label)
        drawn.update((canvas.image.clip(0, 1) * 255).astype(np.uint8))
    assert drawn.hexdigest() == "643e7a194a6a5fb83abb33edc6a08166cef9990256dbaf3ab0182189fbeeda37"


def test_what_cannot_be_drawn_is_refused_at_once() -> None:
    for size_hw in ((31, 200), (200, 31), (0, 0)):
        with pytest.raises(ConfigError, match=rf">= 32, got {size_hw[0]}x{size_hw[1]}"):
            street_scene(0, size_hw)
    with pytest.raises(ConfigError, match="seed"):
        street_scene(-1, SMALL)
    for wrong in ({"frames": 0}, {"frames": 3, "fps": 0.0}):
        with pytest.raises(ConfigError, match="frames"):  # not only when the first frame is asked for
            street_clip(0, SMALL, **wrong)  # type: ignore[arg-type]
