"""The plugin library: find it, check it against TensorRT, the GPU and a bundle, load it. No onnx.

Opening a library runs its code, so it must come from a source that you trust. TensorRT itself is behind
`nrd_trt.engine.compat`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from nrd_trt.engine.compat import TensorRT, version_numbers
from nrd_trt.engine.record import PluginFacts, PluginRecord
from nrd_trt.errors import PluginError
from nrd_trt.files import sha256_file
from nrd_trt.specs import MaskEncoding

LIBRARY = "libnrd_trt_plugin.so"
REGISTRAR = "libnrd_trt_plugin_trt{major}.so"
"""The library that registers itself when it is opened, for programs that do no more; it is built with the other one."""
VARIABLE = "NRD_TRT_PLUGIN"
WHEEL = "nrd-trt-plugin"
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

# Integrated GPUs run machine code of their own architecture only, and no other GPU runs theirs.
_TEGRA = frozenset({53, 62, 72, 87, 101, 110})
_CHECKOUT = Path(__file__).resolve().parents[2]
_REMEDY = f"give the path of {LIBRARY}, or build it with: {BUILD_COMMAND}"
_FACTS = tuple(field.name for field in fields(PluginFacts))


@dataclass(frozen=True, kw_only=True)
class PluginInfo(PluginFacts):
    """What a library says of itself through ``nrd_plugin_info``.

    Attributes:
        tensorrt_major: Major version of the TensorRT headers that it was built with.
        ops: Names of its plugins.
    """

    tensorrt_major: int
    ops: tuple[str, ...]

    @classmethod
    def from_json(cls, text: str) -> PluginInfo:
        """Parse what ``nrd_plugin_info`` returns.

        Raises:
            ValueError: A value is missing or has another type.
        """
        return msgspec.json.decode(text, type=cls)

    @property
    def code(self) -> str:
        """The architectures that it holds code for, as nvcc names them."""
        return ", ".join([*(f"sm_{sm}" for sm in self.architectures), *(f"compute_{sm}" for sm in self.ptx)])

    def runs_on(self, compute_capability: str, cuda: str | None) -> bool:
        """Whether there is code for a GPU.

        Args:
            compute_capability: Compute capability of the GPU, such as ``"8.7"``.
            cuda: Newest CUDA version that its driver supports, or None where it is not known. PTX needs one that is
                not older than this library's.
        """
        gpu = int(compute_capability.replace(".", ""))
        if gpu in self.architectures:
            return True
        if gpu in _TEGRA:
            return False
        compiles = cuda is None or version_numbers(cuda) >= version_numbers(self.cuda)
        same_major = any(sm // 10 == gpu // 10 and sm < gpu for sm in set(self.architectures) - _TEGRA)
        return same_major or (compiles and any(ptx <= gpu for ptx in self.ptx))


@dataclass(frozen=True, kw_only=True)
class PluginLibrary:
    """A library of this toolkit that was read.

    Attributes:
        path: Absolute path of the file.
        sha256: Hash of the file.
        info: What the library says of itself.
    """

    path: Path
    sha256: str
    info: PluginInfo

    def record(self, mask_encoding: MaskEncoding) -> PluginRecord:
        """Return what a bundle records of it, which does not depend on its folder."""
        facts = {name: getattr(self.info, name) for name in _FACTS}
        return PluginRecord(file=self.path.name, sha256=self.sha256, mask_encoding=mask_encoding, **facts)


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """Why a library cannot be used.

    Attributes:
        reason: What was expected and what the library is.
        remedy: What to do.
    """

    reason: str
    remedy: str


def find_plugin(given: Path | None = None, *, tensorrt: str | None = None) -> Path:
    """Return the library to use: the one given, of ``NRD_TRT_PLUGIN``, the checkout, the wheel, the loader's path.

    Args:
        given: Explicit path. Where it or the variable is set, no other place is searched.
        tensorrt: Version of TensorRT that will load it, by which one of the wheel's is taken.

    Raises:
        PluginError: There is none; the message lists every path tried and the command that builds it.
    """
    return _existing(given, tensorrt)[0]


def take_plugin(
    check: Callable[[PluginLibrary], None], given: Path | None = None, *, tensorrt: str | None = None
) -> PluginLibrary:
    """Read the libraries of `find_plugin` in its order and return the first that passes a check.

    Args:
        check: Raises `PluginError` for a library that does not do.
        given: As in `find_plugin`.
        tensorrt: As in `find_plugin`.

    Raises:
        PluginError: There is none, or none passes; the message is about the first.
    """
    refused: list[PluginError] = []
    for path in _existing(given, tensorrt):
        try:
            library = read_plugin(path)
            check(library)
        except PluginError as exc:
            refused.append(exc)
        else:
            return library
    raise refused[0]


def take_recorded(recorded: PluginRecord, given: Path | None = None, *, bundle: str, rebuild: str) -> PluginLibrary:
    """Read the library that `find_recorded` finds."""
    return read_plugin(find_recorded(recorded, given, bundle=bundle, rebuild=rebuild))


def find_recorded(recorded: PluginRecord, given: Path | None = None, *, bundle: str, rebuild: str) -> Path:
    """Return the first library of `find_plugin`'s that a plan was built with, by its hash; none is opened.

    Args:
        recorded: The library of the build.
        given: As in `find_plugin`.
        bundle: Name of the bundle, for the message.
        rebuild: The call that builds the plan again with a library of this machine.

    Raises:
        PluginError: There is none, or none is that of the build; the message is about the first.
    """
    digests = {path: _digest(path) for path in _existing(given, recorded.tensorrt)}
    for path, digest in digests.items():
        if digest == recorded.sha256:
            return path
    path, digest = next(iter(digests.items()))
    raise PluginError(
        f"{path}: {bundle} was built with another plugin library: expected SHA-256 {recorded.sha256[:12]}… (version "
        f"{recorded.version} for TensorRT {recorded.tensorrt}, CUDA {recorded.cuda}, kernel revision "
        f"{recorded.kernel_revision}), got {digest[:12]}…, which was not opened. Give the library of the build "
        f"(plugin= or {VARIABLE}), or rebuild with: {rebuild}"
    )


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as exc:
        raise PluginError(f"{path}: expected {LIBRARY}, got a file that cannot be read ({exc}); {_REMEDY}.") from exc


def _existing(given: Path | None, tensorrt: str | None) -> list[Path]:
    tried = places_here(tensorrt) if given is None else [given]
    found = [path.resolve() for path in tried if path.is_file()]
    if not found:
        places = f"{VARIABLE}, plugins/build of a checkout, the wheel {WHEEL}, LD_LIBRARY_PATH, ldconfig"
        raise PluginError(
            f"no plugin library was found: expected {LIBRARY} at {', '.join(map(str, tried)) or 'one place'} "
            f"({'plugin=' if given is not None else places}), got no such file; install the wheel {WHEEL}, build it in "
            f"a checkout with: {BUILD_COMMAND}, or name it with plugin= or {VARIABLE}."
        )
    return found


def places_here(tensorrt: str | None = None, checkout: Path | None = None) -> list[Path]:
    """Return where the library may be on this machine, best first.

    Args:
        tensorrt: As in `find_plugin`.
        checkout: Instead of the folder above the package, which is searched where it is a checkout of the repository.
    """
    checkout = checkout or _CHECKOUT
    ldconfig = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")  # a user's PATH may lack it
    listed = None
    if ldconfig is not None:
        command = [ldconfig, "-p"]
        listed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    here = checkout if (checkout / "setup.cfg").is_file() else None
    return search_path(os.environ, here, listed, wheel_libraries(tensorrt))


def wheel_libraries(tensorrt: str | None = None) -> list[Path]:
    """Return where the wheel has a library for a version of TensorRT, or for each that it knows; none without it."""
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    if tensorrt is None:
        return sorted((path for folder in folders for path in folder.glob(f"trt*/{LIBRARY}")), reverse=True)
    return [folder / f"trt{version_numbers(tensorrt)[0]}" / LIBRARY for folder in folders]


def search_path(
    environ: Mapping[str, str], checkout: Path | None, loader_cache: str | None, wheel: Sequence[Path] = ()
) -> list[Path]:
    """Return where the library may be, best first.

    Args:
        environ: Environment variables.
        checkout: Folder of the repository, or None where the package is installed without one.
        loader_cache: Output of ``ldconfig -p``, or None.
        wheel: What `wheel_libraries` returned.
    """
    if environ.get(VARIABLE):
        return [Path(environ[VARIABLE])]
    places = [checkout / "plugins" / "build" / LIBRARY] if checkout else []
    places += wheel
    places += [Path(part, LIBRARY) for part in environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    pattern = rf"^\s*{re.escape(LIBRARY)}\S* .*=> (\S+)$"
    return places + [Path(found) for found in re.findall(pattern, loader_cache or "", re.MULTILINE)]


def read_plugin(path: Path) -> PluginLibrary:
    """Open a library and read what it says of itself; this runs its code.

    Raises:
        PluginError: It is not one of this toolkit's.
    """
    path, remedy = path.resolve(), _REMEDY
    digest = _digest(path)
    try:
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


def find_misfit(info: PluginInfo, tensorrt: str, compute_capability: str | None, cuda: str | None) -> Misfit | None:
    """Return why a library cannot be used, or None where it fits.

    Args:
        info: What the library says of itself.
        tensorrt: Version of TensorRT that would load it.
        compute_capability: Compute capability of the GPU, or None where it is not known.
        cuda: Newest CUDA version that the GPU's driver supports, or None where it is not known.
    """
    major = version_numbers(tensorrt)[0]
    if info.tensorrt_major != major:
        return Misfit(
            reason=f"expected a library built for TensorRT {major} ({tensorrt} is loaded), got one for TensorRT "
            f"{info.tensorrt}",
            remedy=f"install the wheel {WHEEL}, or build it with the headers of the installed version: {BUILD_COMMAND}",
        )
    if cuda is not None and version_numbers(info.cuda)[:1] > version_numbers(cuda)[:1]:
        return Misfit(
            reason=f"expected a library built with CUDA {cuda} or older, which the driver supports, got one built with "
            f"CUDA {info.cuda}",
            remedy=f"update the driver, or build it with an older toolkit: {BUILD_COMMAND}",
        )
    if compute_capability is not None and not info.runs_on(compute_capability, cuda):
        sm = compute_capability.replace(".", "")
        return Misfit(
            reason=f"expected code for this GPU's compute capability {compute_capability} (sm_{sm}), got "
            f"{info.code or 'none'}",
            remedy=f"install the wheel {WHEEL}, or build it with: "
            + BUILD_COMMAND.replace(" && ", f" -DCMAKE_CUDA_ARCHITECTURES={sm} && "),
        )
    return None


def check_plugin(
    library: PluginLibrary, tensorrt: TensorRT, compute_capability: str | None = None, cuda: str | None = None
) -> None:
    """Raise `PluginError` unless a library fits TensorRT and the GPU; see `find_misfit`."""
    if not tensorrt.takes_plugins:
        raise PluginError(
            f"{library.path}: {tensorrt.flavour} loads no plugins, its parser would end the process; "
            "use the decode in the ONNX file (decode='onnx') with it."
        )
    if found := find_misfit(library.info, tensorrt.version, compute_capability, cuda):
        raise PluginError(f"{library.path}: {found.reason}; {found.remedy}.")


_LOADED: dict[TensorRT, PluginLibrary] = {}  # each has one registry per process
_LOADING = threading.Lock()


def load_plugin(library: PluginLibrary, tensorrt: TensorRT) -> None:
    """Register the creators of a checked library with TensorRT; it stays loaded until the process ends.

    Raises:
        PluginError: TensorRT refuses it, or another library has registered creators of these names.
    """
    check_plugin(library, tensorrt)
    with _LOADING:
        absent = _absent_creators(tensorrt)
        loaded = _LOADED.get(tensorrt)
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
        _LOADED[tensorrt] = library


def _absent_creators(tensorrt: TensorRT) -> list[str]:
    return [op for op in OPS if not tensorrt.has_creator(op, CREATOR_VERSION, NAMESPACE)]
