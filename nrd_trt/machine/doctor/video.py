"""What `nrd-trt video` and `serve` need: PyAV, OpenCV, GStreamer, the packages of the page."""

from __future__ import annotations

import re

from nrd_trt.machine.doctor.machine import Machine, Row

_OPENCV = ("opencv-python", "opencv-contrib-python")
_HEADLESS = ("opencv-python-headless", "opencv-contrib-python-headless")
_PAGE = ("fastapi", "uvicorn", "prometheus_client")
_ASK_OPENCV = "import cv2; print(cv2.__version__)"


def video_rows(machine: Machine) -> list[Row]:
    """Look at everything that frames may come from or go to."""
    return [_files_row(machine), _opencv_row(machine), _gstreamer_row(machine), _page_row(machine)]


def _files_row(machine: Machine) -> Row:
    name = "Video files, streams"
    if version := machine.version_of("av"):
        return Row(name=name, status="ok", found=f"PyAV {version}")
    found = "PyAV is not installed; folders of images need none"
    return Row(name=name, status="missing", found=found, remedy="pip install 'nrd-trt[video]'")


def _opencv_row(machine: Machine) -> Row:
    name = "Cameras, windows"
    if version := machine.first_version(*_OPENCV):
        return Row(name=name, status="ok", found=f"OpenCV {version}")
    if version := machine.first_version(*_HEADLESS):
        found = f"OpenCV {version} without windows; cameras work"
        remedy = "pip uninstall opencv-python-headless && pip install opencv-python"
        return Row(name=name, status="limited", found=found, remedy=remedy)
    # JetPack's is no distribution that pip knows.
    answer = (machine.run([machine.python, "-c", _ASK_OPENCV]) or "").strip()
    if re.fullmatch(r"[\d.]+\S*", answer):
        return Row(name=name, status="ok", found=f"OpenCV {answer} of the system")
    found = "OpenCV is not installed; files, streams and GStreamer need none"
    return Row(name=name, status="missing", found=found, remedy="pip install 'nrd-trt[camera]'")


def _gstreamer_row(machine: Machine) -> Row:
    name = "GStreamer"
    match = re.search(r"version ([\d.]+)", machine.run(["gst-launch-1.0", "--version"]) or "")
    if match:
        return Row(name=name, status="ok", found=f"gst-launch-1.0 {match[1]}")
    found = "no gst-launch-1.0; needed for pipelines, csi:// and jetson://"
    remedy = "sudo apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good"
    return Row(name=name, status="missing", found=found, remedy=remedy)


def _page_row(machine: Machine) -> Row:
    name = "Web page"
    missing = [package for package in _PAGE if machine.version_of(package) is None]
    if missing:
        found = f"{', '.join(missing)} not installed"
        return Row(name=name, status="missing", found=found, remedy="pip install 'nrd-trt[serve]'")
    return Row(name=name, status="ok", found=f"FastAPI {machine.version_of('fastapi')}")
