"""Folders of masks and pictures, and what `-o` may name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nrd_trt.errors import ConfigError, MissingDependencyError
from nrd_trt.video.frames import EndOfRun
from nrd_trt.video.sinks.mp4 import Mp4Sink
from nrd_trt.video.sinks.open_sink import FolderSink, NullSink, open_sink
from nrd_trt.video.sinks.window import WindowSink
from tests.helpers import model_info
from tests.video.test_mp4 import segmented
from tests.video.test_pipeline import INFO as STREAM

INFO = model_info(11)


def opened(text: str, *, overlay: bool = False, force: bool = False) -> Any:
    return open_sink(text, INFO, overlay=overlay, force=force, report=print)


def files(sink: FolderSink, folder: Path) -> list[str]:
    """Write two frames and return the names of the files."""
    sink.open(STREAM)
    for index in range(2):
        sink.write(segmented(index, index, 1, np.full((6, 8, 3), 77, np.uint8)))
    sink.close("complete")
    return sorted(path.name for path in folder.iterdir())


def test_a_plain_folder_gets_index_masks(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "masks"
    assert files(opened(str(folder)), folder) == ["000000.png", "000001.png"]
    with Image.open(folder / "000000.png") as image:
        assert (image.mode, image.size) == ("P", (8, 6))


def test_with_overlay_it_gets_pictures_too(tmp_path: Path) -> None:
    names = files(opened(str(tmp_path), overlay=True), tmp_path)
    assert names == ["000000.png", "000000_overlay.png", "000001.png", "000001_overlay.png"]
    with Image.open(tmp_path / "000000_overlay.png") as image:
        assert (image.mode, image.size) == ("RGB", (8, 6))


@pytest.mark.parametrize(("kind", "mode"), [("masks", "P"), ("overlays", "RGB")])
def test_a_folder_of_one_kind(tmp_path: Path, kind: str, mode: str) -> None:
    assert files(opened(f"{kind}:{tmp_path}"), tmp_path) == ["000000.png", "000001.png"]
    with Image.open(tmp_path / "000001.png") as image:
        assert image.mode == mode


def test_a_folder_with_files_needs_force(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files already; give force=True"):
        opened(str(tmp_path))
    files(opened(str(tmp_path), force=True), tmp_path)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("")
    with pytest.raises(ConfigError, match="expected a folder, found a file"):
        opened(str(tmp_path / "masks"), force=True)


def test_forms(tmp_path: Path) -> None:
    assert isinstance(opened("null"), NullSink)
    for name in ("a.mp4", "b.MOV", "c.m4v"):
        assert isinstance(opened(str(tmp_path / name)), Mp4Sink)
    (tmp_path / "a.folder").mkdir()
    assert isinstance(opened(str(tmp_path / "a.folder")), FolderSink)


@pytest.mark.parametrize("text", ["a.avi", "clip.mkv", "picture.png"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected NAME\.mp4, a folder"):
        opened(str(tmp_path / text))


def test_a_missing_folder_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder .*nowhere does not exist"):
        opened(str(tmp_path / "nowhere" / "a.mp4"))


class Cv2:
    """What the window asks of OpenCV."""

    WINDOW_NORMAL = WINDOW_KEEPRATIO = WND_PROP_VISIBLE = 0
    error = RuntimeError

    def __init__(self, gui: str) -> None:
        self.gui, self.key, self.visible = gui, -1, 1.0
        self.shown: list[np.ndarray] = []

    def getBuildInformation(self) -> str:
        return f"General configuration\n  GUI:                           {self.gui}\n    GTK+: YES\n"

    def namedWindow(self, title: str, flags: int) -> None:
        self.title = title

    def imshow(self, title: str, picture: np.ndarray) -> None:
        self.shown.append(picture)

    def waitKey(self, milliseconds: int) -> int:
        assert milliseconds >= 1  # 0 would wait for ever
        return self.key

    def getWindowProperty(self, title: str, what: int) -> float:
        return self.visible

    def destroyWindow(self, title: str) -> None:
        self.title = ""


@pytest.fixture
def cv2(monkeypatch: pytest.MonkeyPatch) -> Cv2:
    stand_in = Cv2("GTK3")
    monkeypatch.setitem(sys.modules, "cv2", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_a_window_shows_bgr_and_closes(cv2: Cv2) -> None:
    sink = WindowSink()
    sink.open(STREAM)
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[..., 0] = 200
    sink.write(segmented(0, 0, 1, picture))
    assert cv2.shown[0][0, 0].tolist() == [0, 0, 200]
    sink.close("complete")
    assert cv2.title == ""


@pytest.mark.parametrize("how", ["q", "esc", "button"])
def test_a_window_that_is_closed_ends_the_run(cv2: Cv2, how: str) -> None:
    sink = WindowSink()
    sink.open(STREAM)
    cv2.key = {"q": ord("q"), "esc": 27, "button": -1}[how]
    cv2.visible = 0.0 if how == "button" else 1.0
    with pytest.raises(EndOfRun):
        sink.write(segmented(0, 0, 1, np.zeros((4, 4, 3), np.uint8)))


def test_an_opencv_without_windows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", Cv2("NONE"))  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match="headless build"):
        WindowSink()


def test_no_opencv_at_all_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match=r"nrd-trt\[camera\]"):
        WindowSink()
