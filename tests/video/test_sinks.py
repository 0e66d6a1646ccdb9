"""Folders of masks and pictures, and what `-o` may name."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from nrd_trt.errors import ConfigError, MissingDependencyError, VideoError
from nrd_trt.video.frames import EndOfRun
from nrd_trt.video.sinks.mp4 import Mp4Sink
from nrd_trt.video.sinks.open_sink import FolderSink, open_sink
from nrd_trt.video.sinks.window import WindowSink
from tests.helpers import model_info
from tests.video.stand_ins import INFO as STREAM
from tests.video.stand_ins import segmented

INFO = model_info(11)


def opened(text: str, *, overlay: bool = False, force: bool = False) -> Any:
    return open_sink(text, INFO, overlay=overlay, force=force, report=print)


def files(sink: FolderSink, folder: Path) -> list[str]:
    """Write two frames and return the names of the files."""
    sink.open(STREAM)
    for index in range(2):
        sink.write(segmented(index, np.full((6, 8, 3), 77, np.uint8)))
    sink.close("complete")
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_gets_masks_pictures_or_both(tmp_path: Path) -> None:
    masks, pictures = ["000000.png", "000001.png"], ["000000_overlay.png", "000001_overlay.png"]
    for text, overlay, names, mode in (
        ("{}", False, masks, "P"),
        ("{}", True, sorted(masks + pictures), "P"),
        ("masks:{}", False, masks, "P"),
        ("overlays:{}", False, masks, "RGB"),
    ):
        folder = tmp_path / "new" / f"{len(list(tmp_path.glob('new/*')))}"
        assert files(opened(text.format(folder), overlay=overlay), folder) == names
        with Image.open(folder / "000001.png") as image:
            assert (image.mode, image.size) == (mode, (8, 6))
        if overlay:
            with Image.open(folder / "000000_overlay.png") as image:
                assert (image.mode, image.size) == ("RGB", (8, 6))


def test_a_folder_with_files_needs_force_and_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConfigError, match="holds files already; give force=True"):
        opened(str(tmp_path))
    files(opened(str(tmp_path), force=True), tmp_path)
    assert (tmp_path / "note").read_text() == "mine"
    with pytest.raises(ConfigError, match="expected a folder, got a file"):
        opened(str(tmp_path / "note"), force=True)


def test_forms(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MOV", "c.m4v"):
        assert isinstance(opened(str(tmp_path / name)), Mp4Sink)
    (tmp_path / "a.folder").mkdir()
    assert isinstance(opened(str(tmp_path / "a.folder")), FolderSink)
    for name in ("a.avi", "clip.mkv", "picture.png"):
        with pytest.raises(ConfigError, match=r"expected NAME\.mp4, a folder"):
            opened(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"the folder .*nowhere does not exist"):  # before anything runs
        opened(str(tmp_path / "nowhere" / "a.mp4"))


@pytest.fixture
def cv2(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """What the window asks of OpenCV."""
    stand_in = MagicMock(error=RuntimeError)
    stand_in.getBuildInformation.return_value = "General configuration\n  GUI:     GTK3\n    GTK+: YES\n"
    stand_in.waitKey.return_value, stand_in.getWindowProperty.return_value = -1, 1.0
    monkeypatch.setitem(sys.modules, "cv2", stand_in)
    return stand_in


def test_a_window_shows_bgr_and_closes(cv2: MagicMock) -> None:
    sink = opened("window")
    sink.open(STREAM)
    start = time.monotonic()
    for index in range(3):
        sink.write(segmented(index, np.full((4, 4, 3), (200, 0, 0), np.uint8)))
    assert cv2.imshow.call_args.args[1][0, 0].tolist() == [0, 0, 200]
    first, _, last = (call.args[0] for call in cv2.waitKey.call_args_list)
    assert first == 1  # 0 would wait for ever
    # The last picture is due two fifteenths of a second after the first one.
    assert last == pytest.approx(2000 / 15 - (time.monotonic() - start) * 1000, abs=30)
    sink.close("complete")
    cv2.destroyWindow.assert_called_once_with(cv2.namedWindow.call_args.args[0])


def test_a_window_without_a_display_is_an_error_and_one_that_is_closed_ends_the_run(cv2: MagicMock) -> None:
    sink = WindowSink()
    sink.open(STREAM)
    for cv2.waitKey.return_value, cv2.getWindowProperty.return_value in ((ord("q"), 1.0), (27, 1.0), (-1, 0.0)):
        with pytest.raises(EndOfRun):
            sink.write(segmented(0, np.zeros((4, 4, 3), np.uint8)))
    cv2.namedWindow.side_effect = cv2.error("cannot open display")
    with pytest.raises(VideoError, match=r"a window cannot be shown \(cannot open display\); is there a display"):
        sink.open(STREAM)


def test_an_opencv_without_windows_or_none_at_all_is_named(cv2: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.getBuildInformation.return_value = "General configuration\n  GUI:                           NONE\n"
    for module, told in ((cv2, "headless build"), (None, r"nrd-trt\[camera\]")):
        monkeypatch.setitem(sys.modules, "cv2", module)  # type: ignore[arg-type]
        with pytest.raises(MissingDependencyError, match=told):
            WindowSink()
