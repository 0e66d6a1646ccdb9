"""The plugin library: find it, check it against TensorRT, the GPU and a bundle, load it. No onnx.

A library runs as code as soon as it is opened, so it must come from a source that is trusted. TensorRT itself is behind
`nrd_trt.engine.compat`.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nrd_trt.engine.compat import TensorRT, version_numbers
from nrd_trt.engine.record import PluginRecord
from nrd_trt.errors import PluginError
from nrd_trt.files import sha256_file
from nrd_trt.specs import MaskEncoding

LIBRARY = "libnrd_trt_plugin.so"
VARIABLE = "NRD_TRT_PLUGIN"
BUILD_COMMAND = "cmake -S plugins -B plugins/build -DTENSORRT_ROOT=… && cmake --build plugins/build -j"
OPS = ("NrdPatchDecode", "NrdPatchDecodeMask")
NAMESPACE, CREATOR_VERSION = "nrd", "1"
SUPPORTED: Mapping[str, frozenset[int]] = {
    "num_classes": frozenset(range(2, 257)),
    "hidden": frozenset({8, 16, 32}),
    "guidance_channels": frozenset({8, 16, 32}),
    "patch": frozenset({4, 8, 16}),
    "upsample": frozenset({1, 2, 4, 8}),
}
"""Attributes of the decode node that the kernels are written for."""

# Integrated GPUs run code of their very own architecture only, and nothing else runs theirs.
_TEGRA = frozenset({53, 62, 72, 87, 101, 110})


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """What a library says of itself through ``nrd_plugin_info``.

    Attributes:
        version: Of the library.
        tensorrt: Version of the TensorRT headers that it was built with.
        tensorrt_major: Its major version.
        cuda: Version of the CUDA toolkit.
        architectures: GPUs that it holds machine code for, 87 for compute capability 8.7.
        ptx: Architectures that it holds PTX for, which a driver compiles for that and later ones.
        kernel_revision: Counts changes of the kernels.
        ops: Plugins in it.
    """

    version: str
    tensorrt: str
    tensorrt_major: int
    cuda: str
    architectures: tuple[int, ...]
    ptx: tuple[int, ...]
    kernel_revision: int
    ops: tuple[str, ...]

    @classmethod
    def from_json(cls, text: str) -> PluginInfo:
        """Parse what ``nrd_plugin_info`` returns.

        Raises:
            ValueError: A value is missing or has another type.
        """
        return msgspec.json.decode(text, type=cls)

    def runs_on(self, compute_capability: str, driver: str | None) -> bool:
        """Whether there is code for a GPU.

        Args:
            compute_capability: Such as ``"8.7"``.
            driver: The newest CUDA that its driver supports, which must be this library's to compile PTX; None where it
                is not known.
        """
        gpu = int(compute_capability.replace(".", ""))
        if gpu in self.architectures:
            return True
        if gpu in _TEGRA:
            return False
        compiles = driver is None or version_numbers(driver) >= version_numbers(self.cuda)
        same_major = any(sm // 10 == gpu // 10 and sm < gpu for sm in set(self.architectures) - _TEGRA)
        return same_major or (compiles and any(ptx <= gpu for ptx in self.ptx))


@dataclass(frozen=True, kw_only=True)
class PluginLibrary:
    """A library that was read, and is one of this toolkit's.

    Attributes:
        path: Absolute.
        sha256: Of the file.
        info: What it says of itself.
    """

    path: Path
    sha256: str
    info: PluginInfo

    def record(self, mask_encoding: MaskEncoding) -> PluginRecord:
        """Return what a bundle records of it: nothing that depends on where it lies."""
        info = self.info
        return PluginRecord(
            file=self.path.name,
            sha256=self.sha256,
            version=info.version,
            tensorrt=info.tensorrt,
            cuda=info.cuda,
            architectures=info.architectures,
            ptx=info.ptx,
            kernel_revision=info.kernel_revision,
            mask_encoding=mask_encoding,
        )


def find_plugin(given: Path | None = None) -> Path:
    """Return the library to use: the one given, that of ``NRD_TRT_PLUGIN``, of the checkout, of the loader's path.

    Args:
        given: Explicit path; it and the variable are not searched past.

    Raises:
        PluginError: There is none; the message lists every path tried and the command that builds it.
    """
    if given is not None:
        tried = [given]
    else:
        root = Path(__file__).resolve().parents[2]
        checkout = root if (root / "setup.cfg").is_file() else None
        tried = search_path(os.environ, checkout, _loader_cache())
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        places = f"{VARIABLE}, plugins/build of a checkout, LD_LIBRARY_PATH, ldconfig"
        raise PluginError(
            f"no plugin library was found: expected {LIBRARY} at {', '.join(map(str, tried)) or 'one place'} "
            f"({'plugin=' if given is not None else places}), got no such file; build it in a checkout with: "
            f"{BUILD_COMMAND}, or name it with plugin= or {VARIABLE}."
        )
    return found.resolve()


def search_path(environ: Mapping[str, str], checkout: Path | None, loader_cache: str | None) -> list[Path]:
    """Return where the library may lie, best first.

    Args:
        environ: Environment variables.
        checkout: Folder of the repository, or None where the package is installed without one.
        loader_cache: Output of ``ldconfig -p``, or None.
    """
    if environ.get(VARIABLE):
        return [Path(environ[VARIABLE])]
    places = [checkout / "plugins" / "build" / LIBRARY] if checkout else []
    places += [Path(part, LIBRARY) for part in environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    pattern = rf"^\s*{re.escape(LIBRARY)}\S* .*=> (\S+)$"
    return places + [Path(found) for found in re.findall(pattern, loader_cache or "", re.MULTILINE)]


def read_plugin(path: Path) -> PluginLibrary:
    """Open a library and read what it says of itself; this runs its code.

    Raises:
        PluginError: It is not one of this toolkit's.
    """
    path = path.resolve()
    remedy = f"give the path of {LIBRARY}, or build it with: {BUILD_COMMAND}"
    try:
        digest = sha256_file(path)
        opened = ctypes.CDLL(str(path))
    except OSError as exc:
        raise PluginError(f"{path}: expected {LIBRARY}, got a file that cannot be opened ({exc}); {remedy}.") from exc
    try:
        tell = opened.nrd_plugin_info
        tell.restype = ctypes.c_char_p
        info = PluginInfo.from_json((tell() or b"").decode())
    except AttributeError as exc:
        raise PluginError(
            f"{path}: expected a library of this toolkit, got one without nrd_plugin_info; {remedy}."
        ) from exc
    except ValueError as exc:
        raise PluginError(
            f"{path}: expected nrd_plugin_info to describe the library, got something else ({exc}); {remedy}."
        ) from exc
    if missing := sorted(set(OPS) - set(info.ops)):
        raise PluginError(
            f"{path}: expected the plugins {', '.join(OPS)}, got {', '.join(info.ops) or 'none'} without "
            f"{', '.join(missing)}; {remedy}."
        )
    return PluginLibrary(path=path, sha256=digest, info=info)


def misfit(
    info: PluginInfo, tensorrt: str, compute_capability: str | None, driver: str | None
) -> tuple[str, str] | None:
    """Return why a library cannot be used, as "expected … got …" and the remedy; None where it fits.

    Args:
        info: Of the library.
        tensorrt: Version of TensorRT that would load it.
        compute_capability: Of the GPU, or None where it is not known.
        driver: The newest CUDA that the GPU's driver supports, or None.
    """
    major = version_numbers(tensorrt)[:1]
    if (info.tensorrt_major,) != major:
        return (
            f"expected a library built for TensorRT {_text(major)} ({tensorrt} is loaded), got one for TensorRT "
            f"{info.tensorrt}",
            f"build it with the headers of the installed version: {BUILD_COMMAND}",
        )
    if driver is not None and version_numbers(info.cuda)[:1] > version_numbers(driver)[:1]:
        return (
            f"expected a library built with CUDA {driver} or older, which the driver supports, got one built with "
            f"CUDA {info.cuda}",
            f"update the driver, or build it with an older toolkit: {BUILD_COMMAND}",
        )
    if compute_capability is not None and not info.runs_on(compute_capability, driver):
        listed = ", ".join([*(f"sm_{sm}" for sm in info.architectures), *(f"compute_{sm}" for sm in info.ptx)])
        sm = compute_capability.replace(".", "")
        return (
            f"expected code for this GPU's compute capability {compute_capability} (sm_{sm}), got {listed or 'none'}",
            f"build it with: {BUILD_COMMAND.replace(' && ', f' -DCMAKE_CUDA_ARCHITECTURES={sm} && ')}",
        )
    return None


def check_plugin(
    library: PluginLibrary, tensorrt: TensorRT, compute_capability: str | None = None, driver: str | None = None
) -> None:
    """Raise `PluginError` unless a library fits TensorRT and the GPU; see `misfit`."""
    if not tensorrt.takes_plugins:
        raise PluginError(
            f"{library.path}: {tensorrt.flavour} loads no plugins, its parser would end the process; "
            "use the decode in the ONNX file (decode='onnx') with it."
        )
    if found := misfit(library.info, tensorrt.version, compute_capability, driver):
        raise PluginError(f"{library.path}: {found[0]}; {found[1]}.")


def check_recorded(library: PluginLibrary, recorded: PluginRecord, *, bundle: str, rebuild: str) -> None:
    """Raise `PluginError` unless a library is the one that a plan was built with.

    Args:
        library: Found on this machine.
        recorded: The library of the build.
        bundle: Its name, for the message.
        rebuild: The command that builds the plan again with this library.
    """
    if library.sha256 == recorded.sha256:
        return
    found = library.record(recorded.mask_encoding)
    names = ("version", "tensorrt", "cuda", "architectures", "ptx", "kernel_revision")
    pairs = {name: (getattr(recorded, name), getattr(found, name)) for name in names}
    others = [f"{name}: {_text(was)}, found {_text(now)}" for name, (was, now) in pairs.items() if was != now]
    raise PluginError(
        f"{library.path}: {bundle} was built with another plugin library: expected SHA-256 "
        f"{recorded.sha256[:12]}…, got {library.sha256[:12]}… "
        f"({'; '.join(others) or 'it says the same of itself'}). Give the library of the build "
        f"(plugin= or {VARIABLE}), or rebuild with: {rebuild}"
    )


_LOADED: dict[str, PluginLibrary] = {}  # by flavour, each of which has one registry per process
_LOADING = threading.Lock()


def load_plugin(library: PluginLibrary, tensorrt: TensorRT) -> None:
    """Register the creators of a checked library with TensorRT; it stays loaded until the process ends.

    Raises:
        PluginError: TensorRT refuses it, or another library has registered creators of these names.
    """
    check_plugin(library, tensorrt)
    with _LOADING:
        absent = _absent_creators(tensorrt)
        loaded = _LOADED.get(tensorrt.flavour)
        if not absent and loaded is not None and loaded.sha256 == library.sha256:
            return
        if len(absent) < len(OPS):
            other = f"{loaded.path} (SHA-256 {loaded.sha256[:12]}…)" if loaded else "a library that is not nrd_trt's"
            raise PluginError(
                f"{library.path}: expected no creators of {', '.join(OPS)} in this process, got those of {other}; "
                "a process holds one library: use another process, and preload none."
            )
        accepted = tensorrt.load_plugin_library(library.path)
        if absent := _absent_creators(tensorrt):
            raise PluginError(
                f"{library.path}: expected {tensorrt.flavour} {tensorrt.version} to take the creators "
                f"{', '.join(OPS)}, got {'none of ' + ', '.join(absent) if accepted else 'a refusal'}; "
                f"build it with the headers of the installed version: {BUILD_COMMAND}"
            )
        _LOADED[tensorrt.flavour] = library


def _absent_creators(tensorrt: TensorRT) -> list[str]:
    return [op for op in OPS if not tensorrt.has_creator(op, CREATOR_VERSION, NAMESPACE)]


def _loader_cache() -> str | None:
    """Return what ``ldconfig -p`` lists; the paths of users may lack its folder."""
    command = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if command is None:
        return None
    done = subprocess.run([command, "-p"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
