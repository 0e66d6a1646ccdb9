"""Drawing: views, classes, palettes, outlines and the legend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from nrd_trt.data.classes import CAMVID_CLASSES, CAMVID_PALETTE, CITYSCAPES_PALETTE, known_classes
from nrd_trt.data.overlay import blend, colour
from nrd_trt.data.synthetic import street_scene
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.specs import ModelInfo
from nrd_trt.video import legend
from nrd_trt.video.overlay import OverlayStyle, Painter, class_shares, distinct_colours

INFO = ModelInfo(class_names=CAMVID_CLASSES, palette=CAMVID_PALETTE)
SCENE = street_scene(3, (180, 240))
Line = tuple[str, str]


def draw(info: ModelInfo = INFO, **style: Any) -> np.ndarray:
    return Painter(info, OverlayStyle(**style))(SCENE.image, SCENE.label)


def test_views_are_the_blend_that_images_get_the_palette_and_the_image_beside_the_overlay() -> None:
    for given, opacity in (({}, 0.6), ({"opacity": 0.2}, 0.2)):
        np.testing.assert_array_equal(draw(**given), blend(SCENE.image, SCENE.label, CAMVID_PALETTE, opacity))
    np.testing.assert_array_equal(draw(view="mask"), colour(SCENE.label, CAMVID_PALETTE))
    side = draw(view="side", legend=True, contours=True)
    np.testing.assert_array_equal(side[:, :240], SCENE.image)
    np.testing.assert_array_equal(side[:, 240:], draw(legend=True, contours=True))


def test_frames_may_be_read_only_views_and_pictures_belong_to_the_caller() -> None:
    rgb, mask = SCENE.image[::-1, ::-1], SCENE.label[::-1, ::-1]
    rgb.setflags(write=False)
    mask.setflags(write=False)
    for view in ("overlay", "mask", "side"):
        picture = Painter(INFO, OverlayStyle(view=view, contours=True, legend=True, opacity=0))(rgb, mask)
        assert not np.shares_memory(picture, rgb)
        assert picture.flags.writeable
        assert picture.dtype == np.uint8


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match="expected the image's size 180x240, got 90x240"):
        Painter(INFO, OverlayStyle())(SCENE.image, SCENE.label[::2])


def test_only_the_chosen_classes_are_coloured() -> None:
    chosen = np.isin(SCENE.label, (3, 8))
    for show in (("Car", "Road"), (8, 3), (3, "Car", "Car")):
        overlay, mask = draw(show=show), draw(show=show, view="mask")
        np.testing.assert_array_equal(overlay[~chosen], SCENE.image[~chosen])
        np.testing.assert_array_equal(overlay[chosen], draw()[chosen])
        assert not mask[~chosen].any()
        np.testing.assert_array_equal(mask[chosen], draw(view="mask")[chosen])


def test_palettes_give_class_i_their_colour_i() -> None:
    for name, colours in (
        ("camvid", CAMVID_PALETTE),
        ("cityscapes", CITYSCAPES_PALETTE),
        ("generated", distinct_colours(11)),
    ):
        np.testing.assert_array_equal(draw(view="mask", palette=name), colour(SCENE.label, colours[:11]))
    names, colours = known_classes(19) or ((), ())
    with pytest.raises(ConfigError, match="'camvid': expected a colour for each of the 19 classes, got 11; take model"):
        draw(ModelInfo(class_names=names, palette=colours), palette="camvid")


def test_generated_colours_are_far_apart() -> None:
    for count, apart in {11: 85, 19: 70, 150: 20, 256: 15}.items():
        colours = np.array(distinct_colours(count), np.float64)
        distance = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e9 * np.eye(count)
        assert len(colours) == count
        assert distance.min() >= apart
        np.testing.assert_array_equal(colours[:5], distinct_colours(5))


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({"view": "both"}, "view='both': expected one of 'overlay', 'mask', 'side'"),
        ({"palette": "voc"}, "palette='voc': expected one of 'model', 'camvid'"),
        ({"opacity": 1.1}, "opacity=1.1: expected 0 to 1"),
        ({"opacity": float("nan")}, "opacity=nan: expected 0 to 1"),
        ({"show": ()}, "show=.*: expected at least one class"),
        *[
            ({"show": ("Car", name)}, rf"show='?{name}'?: expected .*; it has 0 Sky, 1 Building, .*10 Bicyclist")
            for name in ("car", "Cat", 11, -1)
        ],
    ],
)
def test_invalid_styles_are_refused(style: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(**style)


def outlined(mask: np.ndarray, **style: Any) -> np.ndarray:
    return (Painter(INFO, OverlayStyle(contours=True, **style))(np.zeros((*mask.shape, 3), np.uint8), mask) == 255).all(
        2
    )


def test_outlines_run_along_the_borders_between_classes() -> None:
    mask = np.zeros((6, 6), np.uint8)
    mask[2:4, 2:5] = 8
    assert outlined(mask).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 0, 0, 1],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    mask = np.zeros((720, 40), np.uint8)
    mask[360:, 20:] = 8
    np.testing.assert_array_equal(np.flatnonzero(outlined(mask)[500]), [19, 20])  # wider in a large picture
    np.testing.assert_array_equal(np.flatnonzero(outlined(mask)[:, 30]), [359, 360])
    mask = np.repeat(np.array([[0, 1, 1, 8, 3, 2]], np.uint8), 6, axis=0)  # none between classes without a colour
    np.testing.assert_array_equal(np.flatnonzero(outlined(mask, show=("Car",))[3]), [3, 4])


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the legends of this test wrote: names and figures."""
    found: list[Line] = []
    write = legend._Layout.write

    def spy(self: legend._Layout, plate: Image.Image, top: int, line: legend._Line) -> None:
        found.append((line.text, line.figure))
        write(self, plate, top, line)

    monkeypatch.setattr(legend._Layout, "write", spy)
    return found


def test_the_legend_lists_colours_names_and_shares_of_what_has_pixels_largest_first(lines: list[Line]) -> None:
    shares, painter = np.zeros(256), Painter(INFO, OverlayStyle(legend=True, palette="generated"))
    shares[[8, 0, 7, 3]] = 0.0996, 0.85, 0.0004, 0.05
    column = [tuple(rgb) for rgb in painter(SCENE.image, SCENE.label, shares)[:60, 12].tolist()]
    assert lines == [("Sky", "85.0 %"), ("Car", "10.0 %"), ("Road", "5.0 %"), ("Fence", "<0.1 %")]
    expected = [distinct_colours(11)[index] for index in (0, 8, 3, 7)]
    assert list(dict.fromkeys(rgb for rgb in column if rgb in expected)) == expected


def test_the_legend_counts_the_mask_where_no_shares_are_given_and_stays_in_its_corner(lines: list[Line]) -> None:
    changed = (draw(legend=True) != draw()).any(axis=2)
    assert np.flatnonzero(changed.any(axis=1)).max() < 0.75 * 180
    assert np.flatnonzero(changed.any(axis=0)).max() < 240 / 2
    Painter(INFO, OverlayStyle(legend=True))(SCENE.image, SCENE.label, class_shares(SCENE.label))
    assert len(lines) > 10
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    lines.clear()
    draw(legend=True, show=("Car", "Road"))
    assert [name for name, _ in lines] == ["Road", "Car"]


def legend_on(background: int, size_hw: tuple[int, int]) -> np.ndarray:
    """A picture of one colour, all of it Sky, with its legend."""
    image = np.full((*size_hw, 3), background, np.uint8)
    return Painter(INFO, OverlayStyle(legend=True, opacity=0))(image, np.zeros(size_hw, np.uint8))


def test_the_legend_is_readable_on_any_background_and_grows_with_the_picture() -> None:
    for background in (0, 128, 255):
        plate = legend_on(background, (360, 480))[8:24, 30:80]
        assert plate.max() > 220
        assert plate.min() < 70
    small, large = (np.count_nonzero((legend_on(255, (side, side)) != 255).any(axis=(1, 2))) for side in (360, 1080))
    assert large == pytest.approx(3 * small, rel=0.1)


@pytest.mark.parametrize("height", [200, 360, 1080])
def test_what_does_not_fit_is_counted(height: int, lines: list[Line]) -> None:
    names, colours = known_classes(150) or ((), ())
    mask = (np.arange(height * height) % 150).astype(np.uint8).reshape(height, height)
    image = np.zeros((height, height, 3), np.uint8)
    info = ModelInfo(class_names=names, palette=colours)
    picture = Painter(info, OverlayStyle(legend=True, opacity=0.0, contours=True))(image, mask)  # all white
    assert 8 < len(lines) < 25
    assert (picture[round(0.75 * height) :, 1:] == 255).all()
    assert lines[-1] == (f"+{150 - len(lines) + 1} more", "")


def test_a_long_name_is_cut_before_the_figure() -> None:
    info = ModelInfo(class_names=("m" * 99, "b"), palette=((255, 255, 255), (0, 0, 0)))
    picture = Painter(info, OverlayStyle(legend=True))(np.zeros((90, 120, 3), np.uint8), np.zeros((90, 120), np.uint8))
    bright = "".join("#" if column else "." for column in (picture[5:25] > 150).any(axis=(0, 2)))
    colour_name_figure = [part for part in bright.strip(".").split(".....") if part]
    assert len(colour_name_figure) == 3


def test_a_picture_too_small_for_a_line_has_no_legend() -> None:
    for size_hw in ((1, 1), (8, 8), (20, 400), (400, 20), (32, 64)):
        assert (legend_on(200, size_hw) == 200).all()


def test_class_shares_are_the_counts_of_all_indices() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    shares = class_shares(mask[:, ::2])
    np.testing.assert_array_equal(shares, np.bincount(mask[:, ::2].ravel(), minlength=256) / mask[:, ::2].size)
    assert (shares.shape, shares.dtype) == ((256,), np.float64)
