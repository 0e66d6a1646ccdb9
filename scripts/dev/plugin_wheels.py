"""Build the wheels nrd-trt-plugin, which spare a device the compiler, and inspect what is in them.

``make plugin-wheels`` runs it. It needs CMake, g++ for each platform (Debian's ``g++-aarch64-linux-gnu``), readelf, the
headers of each major of TensorRT, and a package index for NVIDIA's run-time compilers and headers of CUDA. No nvcc, no
GPU and no TensorRT. Exits 1 where a library is not what a wheel may hold, 2 where something is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
KERNELS = PLUGINS / "nrd_decode"

# The oldest compiler that knows an architecture, so that the code runs with the oldest driver: JetPack 6 has that of
# CUDA 12.6, JetPack 7 that of 13.0, and GPUs of compute capability 10.0 and 12.0 are served from CUDA 12.8 on.
COMPILERS: dict[str, tuple[int, ...]] = {
    "nvidia-cuda-nvrtc-cu12==12.6.85": (75, 80, 86, 87, 89, 90),
    "nvidia-cuda-nvrtc-cu12==12.9.86": (100, 103, 120, 121),
    "nvidia-cuda-nvrtc==13.0.88": (88, 110),
}
PTX = 90  # of the first compiler: newer GPUs compile it
HEADERS = ("nvidia-cuda-runtime-cu12==12.6.77", "nvidia-cuda-nvcc-cu12==12.6.85")
ARM_ONLY = {87, 88, 110, 121}
"""Architectures of systems on a chip with Arm cores."""

# Systems with glibc 2.34 and libstdc++ of GCC 11, or newer: RHEL 9, Ubuntu 22.04, which JetPack 6 is.
TAG = "manylinux_2_34"
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (11, 0, 0)}
SYSTEM = re.compile(r"(libc|libm|libdl|libpthread|libstdc\+\+|libgcc_s|ld-linux-\w+(-\w+)?)\.so\.\d+")
MACHINES = {"x86_64": "X86-64", "aarch64": "AArch64"}
EXPORTS = {"getCreators", "setLoggerFinder", "nrd_plugin_info"}
_SOURCE = (KERNELS / "decode_kernel.cu").read_text()
NAMES = [f"generic_{name}" for name in re.findall(r"^NRD_ANY_SHAPE\((\w+),", _SOURCE, re.MULTILINE)]
NAMES += ["_".join(parts) for parts in re.findall(r"^NRD_RELEASED\((\w+), (\w+),", _SOURCE, re.MULTILINE)]
_CUDA = 190  # ELF's number for its machine


class WheelError(Exception):
    """A library or a wheel is not what it has to be."""


@dataclass(frozen=True, kw_only=True)
class LibraryFacts:
    """What `inspect_library` read.

    Attributes:
        file: Name of the file.
        bytes: Size of the file.
        machine: As readelf names it.
        needed: Libraries that it asks the loader for.
        exports: Symbols that others see.
        newest: Newest version of each set of system symbols, such as ``GLIBC_2.34``.
        architectures: Compute capabilities of the cubins in it.
    """

    file: str
    bytes: int
    machine: str
    needed: tuple[str, ...]
    exports: tuple[str, ...]
    newest: tuple[str, ...]
    architectures: tuple[int, ...]

    def __str__(self) -> str:
        exports = " ".join(self.exports) or "nothing"
        sm = " ".join(map(str, self.architectures))
        return (
            f"{self.file}: {self.bytes / 2**20:.1f} MiB, {self.machine}, exports {exports}, no undefined symbol but of "
            f"{' '.join(self.needed)} (up to {' '.join(self.newest)}), code for sm {sm}"
        )


def architectures_of(arch: str) -> list[int]:
    """Return the compute capabilities that a platform's wheel has code for."""
    known = sorted(number for numbers in COMPILERS.values() for number in numbers)
    return [number for number in known if arch == "aarch64" or number not in ARM_ONLY]


# --- building


def install(requirements: Sequence[str], target: Path, arch: str) -> Path:
    """Unpack packages of the index for a platform into a folder; return it."""
    options = ["--no-deps", "--only-binary=:all:", "--platform", f"manylinux2014_{arch}", "--upgrade"]
    run(sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", target, *requirements)
    return target


def compile_image(nvrtc: Path, flag: str, output: Path) -> Path:
    """Compile the kernels with NVIDIA's run-time compiler.

    Args:
        nvrtc: Its library.
        flag: Such as ``sm_87`` for a cubin, ``compute_90`` for PTX.
        output: File to write.

    Raises:
        WheelError: They do not compile; the message is the compiler's.
    """
    for beside in nvrtc.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(beside))  # it is looked for by its bare name
    library, source = ctypes.CDLL(str(nvrtc)), KERNELS / "decode_kernel.cu"
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    options = [f"-arch={flag}", "-std=c++17", "-fmad=false", "-default-device", f"-I{KERNELS}"]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, len(options), given)
    kind = "ProgramLog" if status else "CUBIN" if flag.startswith("sm_") else "PTX"
    getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    result = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{kind}")(program, result)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise WheelError(f"{nvrtc.name}, {flag}: the kernels do not compile: {result.value.decode()}")
    output.write_bytes(result.raw)
    return output


def compile_images(work: Path) -> list[Path]:
    """Compile the kernels for every architecture that a wheel may have."""
    jobs, images = [], work / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    for number, (requirement, architectures) in enumerate(COMPILERS.items()):
        folder = install([requirement], work / f"nvrtc{number}", platform.machine())
        nvrtc = next(path for path in folder.rglob("libnvrtc.so.*") if "alt" not in path.name)
        jobs += [(nvrtc, f"sm_{n}", images / f"sm_{n}.cubin") for n in architectures]
        jobs += [(nvrtc, f"compute_{PTX}", images / f"compute_{PTX}.ptx")] if PTX in architectures else []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_image(*job), jobs))


def build_libraries(arch: str, headers: Path, images: Sequence[Path], work: Path) -> Path:
    """Build the plugin and its registrar for a platform and the TensorRT of `headers`; return the folder ``trtNN``."""
    build = work / f"build-{arch}-{headers.name}"
    shutil.rmtree(build, ignore_errors=True)
    chosen = build / "images"
    chosen.mkdir(parents=True)
    for image in images:
        if image.suffix == ".ptx" or int(image.stem.removeprefix("sm_")) in architectures_of(arch):
            shutil.copy(image, chosen)
    cuda = ";".join(str(path) for path in sorted((work / f"cuda-{arch}/nvidia").glob("*/include")))
    settings = [f"-DTENSORRT_ROOT={headers}", f"-DNRD_TRT_IMAGES={chosen}", f"-DNRD_CUDA_INCLUDE={cuda}"]
    settings += ["-DBUILD_TESTING=OFF", "-DNRD_TRT_WERROR=ON", "-DCMAKE_INSTALL_LIBDIR=lib"]
    if arch != platform.machine():
        settings += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={arch}"]
        settings += [f"-DCMAKE_CXX_COMPILER={compiler_of(arch)}"]
    run("cmake", "-S", PLUGINS, "-B", build, *settings)
    run("cmake", "--build", build, "--parallel", str(os.cpu_count()))
    run("cmake", "--install", build, "--strip", "--prefix", build / "installed")
    (registrar,) = (build / "installed/lib").glob("libnrd_trt_plugin_trt*.so")
    return (build / "installed/lib").rename(build / registrar.stem.removeprefix("libnrd_trt_plugin_"))


def compiler_of(arch: str) -> str:
    """Return the C++ compiler for a platform."""
    return "g++" if arch == platform.machine() else f"{arch}-linux-gnu-g++"


def make_wheel(arch: str, libraries: Sequence[Path], output: Path, work: Path) -> Path:
    """Pack the folders ``trtNN`` into a wheel for a platform; return its file."""
    stage = work / f"stage-{arch}"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(PLUGINS / "wheel", stage)
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, stage)
    (stage / "VERSION").write_text(version())
    for folder in libraries:
        shutil.copytree(folder, stage / "nrd_trt_plugin" / folder.name)
    output.mkdir(parents=True, exist_ok=True)
    options = ["--wheel", "--no-isolation", f"--config-setting=--build-option=--plat-name={TAG}_{arch}"]
    run(sys.executable, "-m", "build", *options, "--outdir", output, stage)
    return output / f"nrd_trt_plugin-{version()}-py3-none-{TAG}_{arch}.whl"


def version() -> str:
    """Return the version of the package, which is the wheel's."""
    text = (ROOT / "nrd_trt/__init__.py").read_text()
    return str(re.findall(r'^__version__ = "(.+)"', text, re.MULTILINE)[0])


def run(*command: str | Path) -> str:
    """Run a program; return its output.

    Raises:
        WheelError: It failed; the message is its output.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WheelError(f"{' '.join(map(str, command))}: failed\n{done.stdout}{done.stderr}")
    return done.stdout


# --- inspecting


def inspect_library(path: Path, arch: str, exports: set[str], architectures: Sequence[int]) -> LibraryFacts:
    """Read a library with readelf and compare it with what a wheel may hold.

    Raises:
        WheelError: It is for another machine, exports something else, needs what the systems of the tag do not have, or
            lacks kernels; the message says what was expected.
    """
    text = run("readelf", "--wide", "--file-header", "--dynamic", "--dyn-syms", "--program-headers", path)
    machine = re.findall(r"Machine:\s+(.+)", text)[0]
    # Number, value, size, type, binding, visibility, section, name
    symbols = re.findall(r"^\s+\d+: \w+\s+\w+ \w+\s+(\w+)\s+\w+\s+(\w+) (\S+)", text, re.MULTILINE)
    defined = {name for binding, section, name in symbols if section not in ("UND", "ABS") and binding != "LOCAL"}
    undefined = {name for binding, section, name in symbols if section == "UND" and binding == "GLOBAL"}
    needed = tuple(sorted(re.findall(r"\(NEEDED\).*\[(.+)\]", text)))
    newest = newest_versions(undefined)
    found = sorted(sm for sm, _ in cubins(path.read_bytes()))

    def expect(holds: bool, what: str, got: object) -> None:
        if not holds:
            raise WheelError(f"{path}: expected {what}, got {got}")

    expect(MACHINES[arch] in machine, f"a library for {arch}", machine)
    expect(defined == exports, f"the exports {sorted(exports)}", sorted(defined))
    expect(all("@" in name for name in undefined), "no undefined symbol but the system's", sorted(undefined))
    expect(all(SYSTEM.fullmatch(name) for name in needed), "only C and C++ libraries to be needed", needed)
    for family, number in newest.items():
        expect(number <= NEWEST.get(family, ()), f"symbols as old as {TAG}", f"{family}_{_dotted(number)}")
    expect(not re.search(r"\((RPATH|RUNPATH|TEXTREL)\)", text), "neither RPATH nor TEXTREL", "one")
    expect(not re.search(r"GNU_STACK.* RWE ", text), "a stack without code", "one with it")
    expect(found == sorted(architectures), f"code for sm {sorted(architectures)}", found)
    for sm, image in cubins(path.read_bytes()):
        absent = [name for name in kernel_names() if f"\0.text.{name}\0".encode() not in image]
        expect(not absent, f"every kernel for sm_{sm}", f"none of {absent}")
    return LibraryFacts(
        file=f"{path.parent.name}/{path.name}",
        bytes=path.stat().st_size,
        machine=machine,
        needed=needed,
        exports=tuple(sorted(defined)),
        newest=tuple(f"{family}_{_dotted(number)}" for family, number in sorted(newest.items())),
        architectures=tuple(found),
    )


def kernel_names() -> list[str]:
    """Return the names that decode_kernel.cu gives its kernels."""
    return [f"nrd_{op}_{name}" for op in ("logits", "mask") for name in NAMES]


def newest_versions(symbols: set[str]) -> dict[str, tuple[int, ...]]:
    """Return the newest version of each family among names such as ``dlsym@GLIBC_2.34``."""
    newest: dict[str, tuple[int, ...]] = {}
    for family, text in re.findall(r"@(\w+?)_([\d.]+)", " ".join(symbols)):
        newest[family] = max(newest.get(family, ()), tuple(map(int, text.split("."))))
    return newest


def cubins(library: bytes) -> Iterator[tuple[int, bytes]]:
    """Find the ELF files for a GPU in a library: compute capability, and all from there to the next."""
    starts = [found.start() for found in re.finditer(rb"\x7fELF\x02", library)]
    for start, end in zip(starts, [*starts[1:], len(library)], strict=True):
        if struct.unpack_from("<H", library, start + 18)[0] == _CUDA:
            flags = struct.unpack_from("<I", library, start + 48)[0]
            # Version 8 of the ABI, which came with CUDA 13 and new GPUs, moved it by a byte.
            yield (flags >> 8 if library[start + 8] >= 8 else flags) & 0xFF, library[start:end]


def inspect_wheel(path: Path, arch: str, majors: Sequence[str]) -> list[LibraryFacts]:
    """Unpack a wheel and inspect its libraries, licences and tag.

    Raises:
        WheelError: Something is missing or not what the name says.
    """
    target = path.with_suffix("")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(target)
    info = f"nrd_trt_plugin-{version()}.dist-info"
    libraries = {f"nrd_trt_plugin/{m}/libnrd_trt_plugin{kind}.so" for m in majors for kind in ("", f"_{m}")}
    wanted = libraries | {"nrd_trt_plugin/__init__.py", *(f"{info}/licenses/{name}" for name in ("LICENSE", "NOTICE"))}
    others = {name for name in names - wanted if not name.startswith(f"{info}/")}
    if wanted - names or others:
        raise WheelError(f"{path}: expected {sorted(wanted)}, lacks {sorted(wanted - names)}, has {sorted(others)}")
    tag = re.findall(r"^Tag: (.+)$", (target / info / "WHEEL").read_text(), re.MULTILINE)
    if tag != [f"py3-none-{TAG}_{arch}"]:
        raise WheelError(f"{path}: expected the tag py3-none-{TAG}_{arch}, got {tag}")
    facts = [
        inspect_library(target / name, arch, set() if "_trt1" in Path(name).stem else EXPORTS, architectures_of(arch))
        for name in sorted(libraries)
    ]
    shutil.rmtree(target)
    return facts


def _dotted(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))


# --- the command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("headers", nargs="+", type=Path, help="a folder with TensorRT's include/, for each major")
    parser.add_argument("--arch", nargs="+", choices=MACHINES, default=list(MACHINES), help="default: both")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist", help="default: dist/")
    parser.add_argument("--work", type=Path, default=ROOT / "build/plugin-wheels", help="default: build/plugin-wheels/")
    options = parser.parse_args(arguments)
    tools = ("cmake", "readelf", *map(compiler_of, options.arch))
    missing = [f"the program {tool}" for tool in tools if shutil.which(tool) is None]
    missing += [f"{path}/include/NvInferRuntime.h" for path in options.headers if not _has_headers(path)]
    if missing:
        print(f"plugin_wheels: needs {', '.join(missing)}; plugins/README.md says where it comes from", file=sys.stderr)
        return 2
    try:
        build_wheels(options.headers, options.arch, options.output, options.work)
    except WheelError as error:
        print(f"plugin_wheels: {error}", file=sys.stderr)
        return 1
    return 0


def _has_headers(folder: Path) -> bool:
    return (folder / "include/NvInferRuntime.h").is_file()


def build_wheels(headers: Sequence[Path], archs: Sequence[str], output: Path, work: Path) -> None:
    """Build, inspect and tell of the wheels of some platforms."""
    images = compile_images(work)
    for image in images:
        print(f"{image.name}: {image.stat().st_size / 2**20:.2f} MiB", flush=True)
    for arch in archs:
        install(HEADERS, work / f"cuda-{arch}", arch)
        libraries = [build_libraries(arch, path.resolve(), images, work) for path in headers]
        wheel = make_wheel(arch, libraries, output, work)
        facts = inspect_wheel(wheel, arch, [folder.name for folder in libraries])
        print(f"\n{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB", *facts, sep="\n  ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
