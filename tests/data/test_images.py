"""One reader of images: the same file gives the same pixels, or the same error, wherever it is given.

The page's uploads are held to the same files in tests/serving/test_uploads.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nrd_trt.calibration.images import open_images
from nrd_trt.cli.main import app
from nrd_trt.data.images import read_image
from nrd_trt.errors import ConfigError, ShapeError, VideoError
from nrd_trt.video.sources.open_source import FolderReader
from tests.artefacts import bundle
from tests.data.pictures import RGB, encoded, readable, unreadable


def opened(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return read_image(file)


def calibrated(path: Path) -> np.ndarray:
    (image,) = open_images(path.parent, images=1, seed=0, size_hw=(64, 64)).read()
    return image


def played(path: Path) -> np.ndarray:
    with closing(FolderReader(path.parent, rate=Fraction(1))) as reader:
        (picture,) = reader
        return picture.rgb()


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "path": read_image,
    "text": lambda path: read_image(str(path)),
    "bytes": lambda path: read_image(path.read_bytes()),
    "open file": opened,
    "calibration": calibrated,
    "video": played,
}


@pytest.mark.parametrize("name", readable())
def test_every_reader_returns_the_same_pixels(name: str, tmp_path: Path) -> None:
    content, expected = readable()[name]
    (path := tmp_path / name).write_bytes(content)
    for reader, read in READERS.items():
        got = read(path)
        assert (got.dtype, got.flags.writeable) == (np.uint8, True), reader
        np.testing.assert_array_equal(got, expected, reader)


def test_predict_reads_them_too(tmp_path: Path) -> None:
    """An overlay of opacity 0 is the image as it was read."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for index, (name, (content, _)) in enumerate(readable().items()):
        (source / f"{index:02}_{name}").write_bytes(content)
    result = CliRunner().invoke(
        app, ["predict", str(bundle()), str(source), "-o", str(out), "--overlay", "--opacity", "0"]
    )
    assert result.exit_code == 0, result.stderr
    for index, (name, (_, expected)) in enumerate(readable().items()):
        with Image.open(out / f"{index:02}_{Path(name).stem}_overlay.png") as overlay:
            np.testing.assert_array_equal(np.asarray(overlay), expected, name)


@pytest.mark.parametrize("name", unreadable())
def test_every_reader_refuses_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    (path := tmp_path / name).write_bytes(unreadable()[name])
    for reader, read in READERS.items():
        with pytest.raises((ConfigError, VideoError), match=r"expected (an image, cannot read it|8 or 16 bits)"):
            pytest.fail(f"{reader} read {read(path)}")
    result = CliRunner().invoke(app, ["predict", str(bundle()), str(path), "-o", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}: expected ")


def test_limits_on_pixels_and_formats_and_a_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(RGB)
    assert read_image(content, most_pixels=RGB[..., 0].size, formats=("PNG",)).shape == RGB.shape
    with pytest.raises(ShapeError, match=r"image: expected at most 0 million pixels, got 56x40"):
        read_image(content, most_pixels=RGB[..., 0].size - 1)
    with pytest.raises(ConfigError, match="image: expected an image"):
        read_image(content, formats=("JPEG",))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, of which it only warns at first
    with pytest.raises(ShapeError, match="expected at most 89 million pixels, got far more"):
        read_image(content)
    with pytest.raises(ConfigError, match=r"none\.png: expected an image, cannot read it .*No such file"):
        read_image(Path("none.png"))
