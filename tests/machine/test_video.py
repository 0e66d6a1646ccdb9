"""The doctor's rows on video: what files, cameras, pipelines and the page need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nrd_trt.machine.doctor.machine import Row
from nrd_trt.machine.doctor.report import examine
from tests.machine.recorded import NO_GPU, recorded

GSTREAMER = {"gst-launch-1.0 --version": "gst-launch-1.0 version 1.22.0\nGStreamer 1.22.0\n"}


def rows(root: Path, versions: dict[str, str], commands: dict[str, str]) -> dict[str, Row]:
    machine: dict[str, Any] = {**NO_GPU, "versions": versions, "commands": {**NO_GPU.get("commands", {}), **commands}}
    names = ("Video files, streams", "Cameras, windows", "GStreamer", "Web page")
    found = {row.name: row for row in examine(recorded(root, machine)).rows if row.name in names}
    assert tuple(found) == names
    return found


def test_all_there(tmp_path: Path) -> None:
    versions = {
        "av": "18.1.0", "opencv-python": "4.12.0", "fastapi": "0.165.0", "uvicorn": "0.54", "prometheus_client": "0.23",
    }  # fmt: skip
    found = rows(tmp_path, versions, GSTREAMER)
    assert {row.status for row in found.values()} == {"ok"}
    assert [row.remedy for row in found.values()] == [None] * 4
    assert found["GStreamer"].found == "gst-launch-1.0 1.22.0"


def test_nothing_there(tmp_path: Path) -> None:
    found = rows(tmp_path, {}, {})
    assert {row.status for row in found.values()} == {"missing"}
    remedies = " ".join(str(row.remedy) for row in found.values())
    for part in ("nrd-trt[video]", "nrd-trt[camera]", "gstreamer1.0-tools", "nrd-trt[serve]"):
        assert part in remedies


@pytest.mark.parametrize(
    ("versions", "commands", "status", "text"),
    [
        ({"opencv-python-headless": "4.12.0"}, {}, "limited", "without windows; cameras work"),
        ({}, {"cv2": "4.8.0\n"}, "ok", "OpenCV 4.8.0 of the system"),
        ({}, {"cv2": "ModuleNotFoundError: No module named 'cv2'\n"}, "missing", "not installed"),
    ],
)
def test_opencv(tmp_path: Path, versions: dict[str, str], commands: dict[str, str], status: str, text: str) -> None:
    found = rows(tmp_path, versions, commands)["Cameras, windows"]
    assert found.status == status
    assert text in found.found


def test_a_page_with_one_package_missing(tmp_path: Path) -> None:
    found = rows(tmp_path, {"fastapi": "0.165.0", "uvicorn": "0.54"}, {})["Web page"]
    assert (found.status, found.found) == ("missing", "prometheus_client not installed")
