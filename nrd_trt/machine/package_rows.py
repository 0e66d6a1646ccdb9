"""Rows of `nrd_trt.machine.doctor` on packages: Python's, TensorRT's flavours, the plugin library, those of video."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

from nrd_trt.engine.plugins import (
    BUILD_COMMAND,
    VARIABLE,
    WHEEL,
    PluginInfo,
    find_misfit,
    search_path,
    wheel_libraries,
)
from nrd_trt.files import sha256_file
from nrd_trt.machine.findings import Inventory, Row
from nrd_trt.machine.gpu import DRIVER_OF_CUDA
from nrd_trt.machine.host import Machine, fast_types
from nrd_trt.machine.software import Flavour, ask

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "tensorrt-lean": "TensorRT lean runtime"}
REINSTALL = "pip install --force-reinstall"
_REINSTALL_TORCH = f"{REINSTALL} torch -i https://download.pytorch.org/whl/cu130"


def python_row(machine: Machine) -> Row:
    """Say which Python runs this, on what."""
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', machine.read("etc/os-release"), re.MULTILINE)
    on = f"{system[1] if system else platform.system()}, {machine.architecture}"
    return Row("Python", "ok", f"{platform.python_version()}, {machine.python}; {on}")


def torch_row(have: Inventory) -> Row:
    """Say which PyTorch is there and whether it sees the GPU."""
    name, torch = "PyTorch", have.torch
    if torch.version is None:
        found = "not installed; needed to train, export and evaluate checkpoints, not to rebuild or run bundles"
        return Row(name, "missing", found, "pip install 'nrd-trt[torch]'")
    if torch.error:
        return Row(name, "missing", f"{torch.version}, and cannot be imported: {torch.error}", _REINSTALL_TORCH)
    found = f"{torch.version}, {f'CUDA {torch.cuda} build' if torch.cuda else 'CPU build'}"
    if torch.available:
        return Row(name, "ok", f"{found}, sees {torch.gpu}")
    if not have.graphics.gpus:
        return Row(name, "ok", f"{found}; CUDA not available (no GPU)")
    if torch.cuda is None:
        return Row(name, "limited", f"{found}; the GPU is not used", _REINSTALL_TORCH)
    major = int(torch.cuda.split(".")[0])
    if not have.graphics.supports(major):
        remedy = f"a driver of branch {DRIVER_OF_CUDA.get(major, 580)} or newer (see Driver)"
    else:
        remedy = "python -c 'import torch; torch.zeros(1).cuda()'   (prints the reason)"
    return Row(name, "limited", f"{found}; CUDA not available", remedy)


def onnx_row(machine: Machine) -> Row:
    """Say which onnx is there."""
    version, script = machine.version_of("onnx"), machine.version_of("onnxscript")
    if version is None:
        return Row("ONNX", "missing", "not installed", "pip install nrd-trt")
    if script is None and machine.version_of("torch"):
        found = f"onnx {version}; onnxscript, which PyTorch's exporter imports, is not installed"
        return Row("ONNX", "limited", found, "pip install 'nrd-trt[export]'")
    return Row("ONNX", "ok", f"onnx {version}" + (f", onnxscript {script}" if script else ""))


def ort_row(have: Inventory) -> Row:
    """Say which ONNX Runtime is there."""
    name, ort = "ONNX Runtime", have.ort
    if ort.version is None:
        return Row(name, "missing", "not installed", "pip install 'nrd-trt[ort]'")
    if ort.error:
        remedy = f"{REINSTALL} 'onnxruntime>=1.23,<2'"
        return Row(name, "missing", f"{ort.version}, and cannot be imported: {ort.error}", remedy)
    providers = ", ".join(provider.removesuffix("ExecutionProvider") for provider in ort.providers)
    return Row(name, "ok", f"{ort.version}, providers {providers}")


def openvino_row(machine: Machine) -> Row:
    """Say which OpenVINO is there, and in which types it is fast on this processor."""
    version = machine.version_of("openvino")
    if version is None:
        found = "not installed; ONNX Runtime runs every file on a CPU"
        return Row("OpenVINO", "missing", found, "pip install 'nrd-trt[openvino]'")
    fast = " and ".join(f"{kind} by {', '.join(names)}" for kind, names in fast_types(machine).items())
    return Row("OpenVINO", "ok", f"{version}; this processor multiplies {fast or 'neither int8 nor bf16 fast'}")


def flavour_row(have: Inventory, flavour: Flavour) -> Row:
    """Say what one flavour of TensorRT can do here."""
    if not flavour.version:
        return _absent_flavour(have, flavour)
    name, lean = TITLES[flavour.name], flavour.name == "tensorrt-lean"
    if flavour.why.startswith("installed, and cannot"):
        return Row(name, "missing", f"{flavour.version} {flavour.why}", install_flavour(have, flavour.name))
    runs = {True: "runs plans", False: "cannot run plans", None: "may not run plans"}[flavour.runs]
    builds = "builds no plans by design" if lean else "builds plans" if flavour.builds else "cannot build plans"
    found = f"{flavour.version}: {builds} here, {runs} here ({flavour.why})"
    if flavour.runs is True and (flavour.builds or lean):
        return Row(name, "ok", found)
    some = flavour.runs is not False or flavour.builds
    return Row(name, "limited" if some else "missing", found, _remedy_to_run(have, flavour))


def option_rows(have: Inventory) -> Iterator[Row]:
    """List what each installed flavour takes as ``builder_options``."""
    for flavour in have.flavours.values():
        if flavour.options:
            listed = "; ".join(f"{name}: {words}" for name, words in flavour.options.items())
            yield Row(f"{TITLES[flavour.name]} options", "ok", listed)


def _absent_flavour(have: Inventory, flavour: Flavour) -> Row:
    name, found = TITLES[flavour.name], flavour.why
    if flavour.name == "tensorrt-lean":
        return Row(name, "n/a", f"{found}; only version-compatible plans could use it")
    remedy = install_flavour(have, flavour.name)
    if have.jetson is not None:
        if flavour.name == "tensorrt-rtx":
            return Row(name, "n/a", f"{found}; a Jetson's GPU is not among its targets")
        if version := have.jetson.packages.get("python3-libnvinfer"):
            found = f"apt installed python3-libnvinfer {version}, which this Python does not see"
    elif flavour.name == "tensorrt" and not have.graphics.gpus:
        found = f"{found}; it needs an NVIDIA GPU to build and to run"
        remedy = f"on a machine with a GPU: {remedy}"
    return Row(name, "missing", found, remedy)


def install_flavour(have: Inventory, name: str) -> str:
    """Return the command that installs a flavour, for the CUDA version that the driver supports."""
    if have.jetson is not None and name == "tensorrt":
        apt = "" if "python3-libnvinfer" in have.jetson.packages else "sudo apt install python3-libnvinfer && "
        return f"{apt}/usr/bin/python3 -m venv --system-site-packages .venv && .venv/bin/pip install nrd-trt" + (
            "   (never `pip install tensorrt` on JetPack 6)" if (have.jetson.l4t or "").startswith("36.") else ""
        )
    if have.graphics.cuda_major == 12:
        return f"pip install {name}-cu12"
    return f"pip install 'nrd-trt[{'rtx' if name == 'tensorrt-rtx' else 'trt'}]'"


def _remedy_to_run(have: Inventory, flavour: Flavour) -> str:
    if not have.graphics.gpus:
        return "to run its plans: a machine with an NVIDIA GPU (see GPU)"
    if not have.graphics.supports(flavour.cuda_major):
        older = f", or: pip install {flavour.name}-cu12" if have.graphics.cuda_major == 12 else ""
        return f"a newer driver (see Driver){older}"
    if flavour.runs is not True:
        return f"use TensorRT for this GPU: {install_flavour(have, 'tensorrt')}"
    return "build with TensorRT's messages shown   (they say why no builder can be made)"


def cuda_row(have: Inventory) -> Row:
    """Say whether the driver opens the GPU, which is all that running a plan needs beside TensorRT."""
    name, cuda = "libcuda", have.cuda
    if cuda is None:
        return Row(name, "n/a", "no GPU to open")
    if isinstance(cuda, str):
        found, _, remedy = cuda.removeprefix("CUDA: ").removesuffix(".").partition("; ")
        return Row(name, "missing", found, remedy or "nvidia-smi   (says how the driver is)")
    pycuda = f"; PyCUDA {version}" if (version := have.machine.version_of("pycuda")) else ""
    return Row(name, "ok", f"the driver opens {cuda.name}, for CUDA {cuda.cuda}{pycuda}")


def plugin_row(have: Inventory, *, load: bool) -> Row:
    """Look for the plugin library where a build would, and with `load` compare it with TensorRT and the GPU."""
    name, machine, tensorrt = "Plugin library", have.machine, have.flavours["tensorrt"]
    cache = machine.run(["ldconfig", "-p"]) or machine.run(["/sbin/ldconfig", "-p"])
    tried = search_path(machine.environ, machine.checkout, cache, wheel_libraries(tensorrt.version))
    rows = (_library_row(have, place, load=load) for place in tried if place.is_file())
    first = next(rows, None)
    if first is None:
        if given := machine.environ.get(VARIABLE):
            remedy = f"unset {VARIABLE}   (or set it to the library's path)"
            return Row(name, "missing", f"{VARIABLE}={given}: no such file", remedy)
        if tensorrt.version is None:
            return Row(name, "n/a", "none; only TensorRT loads it, which is not installed")
        places = ", ".join([VARIABLE, *map(str, tried), "the loader's path"])
        found = f"none ({places}); engines decode with the function in the ONNX file, with the same masks"
        return Row(name, "missing", found, f"{BUILD_COMMAND}   (or install the wheel {WHEEL})")
    return first if first.status == "ok" else next((row for row in rows if row.status == "ok"), first)


def _library_row(have: Inventory, path: Path, *, load: bool) -> Row:
    """Say whether TensorRT and the GPU can use one library, which runs its code, or that it would be asked."""
    name, machine, tensorrt = "Plugin library", have.machine, have.flavours["tensorrt"]
    if not load:
        found = f"{path}, SHA-256 {sha256_file(path)[:12]}…; not loaded, which would run its code"
        if tensorrt.version is None:
            return Row(name, "n/a", f"{found}; TensorRT, which would load it, is not installed")
        return Row(name, "limited", found, "nrd_trt.doctor(load_plugin=True)   (in a child process: does it fit?)")
    info = ask(machine, PluginInfo, "-m", "nrd_trt.machine.software", str(path))
    if isinstance(info, str):
        return Row(name, "missing", f"{path}: it cannot be used: {info}", BUILD_COMMAND)
    listed = info.code.replace(",", "")
    described = f"{path}, version {info.version} for TensorRT {info.tensorrt}, CUDA {info.cuda}, {listed}"
    if tensorrt.version is None:
        return Row(name, "n/a", f"{described}; TensorRT, which would load it, is not installed")
    capability = have.graphics.first.compute_capability if have.graphics.first else None
    if misfit := find_misfit(info, tensorrt.version, capability, have.graphics.cuda):
        return Row(name, "limited", f"{path} does not fit: {misfit.reason}", misfit.remedy)
    return Row(name, "ok", f"{described}; a build with builder='tensorrt' uses it")


def video_rows(machine: Machine) -> Iterator[Row]:
    """Look at everything that frames of a video may come from or go to."""
    if version := machine.version_of("av"):
        nvdec = f", PyNvVideoCodec {found}" if (found := machine.version_of("pynvvideocodec")) else ""
        yield Row("Video files, streams", "ok", f"PyAV {version}{nvdec}")
    else:
        found = "PyAV is not installed; folders of images need none"
        yield Row("Video files, streams", "missing", found, "pip install 'nrd-trt[video]'")
    yield _opencv_row(machine)
    if gstreamer := re.search(r"version ([\d.]+)", machine.run(["gst-launch-1.0", "--version"]) or ""):
        yield Row("GStreamer", "ok", f"gst-launch-1.0 {gstreamer[1]}")
    else:
        remedy = "sudo apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good"
        yield Row("GStreamer", "missing", "no gst-launch-1.0; needed for pipelines, csi:// and jetson://", remedy)
    packages = ("fastapi", "uvicorn", "prometheus_client")
    if missing := [package for package in packages if machine.version_of(package) is None]:
        yield Row("Web page", "missing", f"{', '.join(missing)} not installed", "pip install 'nrd-trt[serve]'")
    else:
        yield Row("Web page", "ok", f"FastAPI {machine.version_of('fastapi')}")


def _opencv_row(machine: Machine) -> Row:
    name = "Cameras, windows"
    if version := machine.first_version("opencv-python", "opencv-contrib-python"):
        return Row(name, "ok", f"OpenCV {version}")
    if version := machine.first_version("opencv-python-headless", "opencv-contrib-python-headless"):
        remedy = "pip uninstall opencv-python-headless && pip install opencv-python"
        return Row(name, "limited", f"OpenCV {version} without windows; cameras work", remedy)
    # JetPack's is no distribution that pip knows.
    answer = (machine.run([machine.python, "-c", "import cv2; print(cv2.__version__)"]) or "").strip()
    if re.fullmatch(r"[\d.]+\S*", answer):
        return Row(name, "ok", f"OpenCV {answer} of the system")
    found = "OpenCV is not installed; files, streams and GStreamer need none"
    return Row(name, "missing", found, "pip install 'nrd-trt[camera]'")
