"""Small files that would take gigabytes are refused before anything is allocated, and pipes before they are read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nrd_trt.calibration.images import open_images
from nrd_trt.data.folders import read_label
from nrd_trt.data.images import read_image
from nrd_trt.engine.bundle import ReferenceSet
from nrd_trt.errors import ConfigError
from nrd_trt.model import load_model
from nrd_trt.runtime.graph_io import Segmentation
from nrd_trt.serving.pictures import Look, compose
from nrd_trt.serving.uploads import Limits, read_upload
from tests.hostile import bombs
from tests.hostile.sandbox import run

Write, Read = Callable[[Path], object], Callable[[Path], object]


def label_of(path: Path) -> np.ndarray:
    return read_label(path, num_classes=11, ignore_index=255, image_hw=(4, 4))


def calibrated(path: Path) -> object:
    return list(open_images(path.parent, images=1, seed=0, size_hw=(64, 64)).read())


FILES: dict[str, tuple[Write, Read, str]] = {
    "a tensor that no network has, all of one element": (
        lambda path: bombs.expanded_checkpoint(path, "ema.weight", 1 << 28),
        load_model,
        "ema.weight",
    ),
    "a tensor of the network, all of one element": (
        lambda path: bombs.expanded_checkpoint(path, "decode_head.bottleneck.conv.weight", 1 << 14, 1 << 14, 1, 1),
        load_model,
        "decode_head.bottleneck.conv.weight",
    ),
    "small tensors of a large network": (bombs.wide_checkpoint, load_model, "misshapen"),
    "a record that is deflated": (lambda path: bombs.deflated_checkpoint(path, 512), load_model, "compressed"),
    "zeros that a pickle asks for": (
        lambda path: bombs.calling_checkpoint(path, b"c__builtin__\nbytearray\nJ\0\0\0\x7f\x85R"),
        load_model,
        "bytearray",
    ),
    "a number of NumPy's that is large": (
        lambda path: bombs.calling_checkpoint(
            path, b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x0bV2147483640\x85R\x85R"
        ),
        load_model,
        "data",
    ),
    "references that are deflated": (lambda path: bombs.references(path, 1200), ReferenceSet.from_file, "MiB"),
    "a label of many pixels": (
        lambda path: path.write_bytes(bombs.black_png(9_400, 9_400, channels=1)),
        label_of,
        "expected the image's size 4x4",
    ),
    "an image of many pixels": (
        lambda path: path.write_bytes(bombs.black_png(10_000, 9_000, channels=4)),
        read_image,
        "89 million pixels",
    ),
    "an image that is a pipe": (bombs.pipe, read_image, "a file"),
    "a label that is a pipe": (bombs.pipe, label_of, "a file"),
    "an image that is a device": (lambda path: path.symlink_to("/dev/zero"), read_image, "a file"),
    "an image that is a folder": (Path.mkdir, read_image, "a file"),
}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
OTHER_FORMATS = {"EPS": EPS, "GIF": b"GIF87a\1\0\1\0\0\0\0;", "XPM": b"/* XPM */", "DDS": b"DDS |\0\0\0" + bytes(120)}


@pytest.mark.parametrize("reader", [read_image, label_of, calibrated])
@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_a_file_of_another_format_starts_no_decoder(
    name: str, reader: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EPS with the name of a PNG would start Ghostscript."""
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    (path := tmp_path / "photo.png").write_bytes(OTHER_FORMATS[name])
    with pytest.raises(ConfigError, match=r"photo\.png: expected .* give one in PNG"):
        reader(path)
    assert not started


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_asks_for_much_is_refused_before_it_gets_it(name: str, tmp_path: Path) -> None:
    write, read, words = FILES[name]
    path = tmp_path / "file.pth"
    write(path)
    outcome = run(lambda: read(path), most_mib=256)
    assert outcome.ending == "refused", outcome
    assert words in outcome.said and str(path) in outcome.said


def test_the_largest_upload_is_drawn_in_little_memory() -> None:
    """As the page draws it: read, then the overlay beside the image."""
    body = bombs.black_png(6600, 6000, channels=4)

    def draw() -> None:
        rgb = read_upload(body, Limits().image_pixels)
        drawn = Segmentation(mask=np.zeros(rgb.shape[:2], np.uint8))
        compose(rgb, drawn, ((1, 2, 3),) * 11, Look(view="side"))

    outcome = run(draw, most_mib=500)
    assert outcome.ending == "right", outcome
