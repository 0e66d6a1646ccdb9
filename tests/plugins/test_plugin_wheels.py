"""The wheels nrd-trt-plugin: what is packed, under which tag, and that a library which does not fit is refused.

Small libraries stand for the real ones, which `make plugin-wheels` builds: it needs a package index and the headers of
TensorRT, and inspects what it built with the functions that are tested here. Wheels in dist/ are inspected too.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import struct
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

import pytest

import nrd_trt
from scripts.dev import plugin_wheels
from scripts.dev.plugin_wheels import (
    ARM_ONLY,
    EXPORTS,
    ROOT,
    TAG,
    WheelError,
    architectures_of,
    inspect_library,
    inspect_wheel,
    kernel_names,
    make_wheel,
    newest_versions,
)

HERE = platform.machine()
MAJORS = ("trt10", "trt11")
CODE = "".join(f"void {name}(void) {{}} " for name in EXPORTS)

pytestmark = [
    pytest.mark.skipif(HERE not in plugin_wheels.MACHINES, reason="wheels are for x86-64 and aarch64"),
    pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("readelf") is None, reason="needs gcc and readelf"),
]


def cubins(architectures: Sequence[int], names: Sequence[str]) -> bytes:
    """Headers of ELF files for a GPU, and the names of their sections; those of new GPUs are of the newer ABI."""
    made = b""
    for number in architectures:
        newer = number >= 100
        header = bytearray(64)
        header[:9] = b"\x7fELF\x02\x01\x01\x33" + (b"\x08" if newer else b"\x07")
        struct.pack_into("<H", header, 18, 190)
        struct.pack_into("<I", header, 48, number << 8 if newer else number)
        made += bytes(header) + b"\0" + b"".join(f".text.{name}".encode() + b"\0" for name in names)
    return made


def compiled(
    path: Path, code: str = CODE, *, lacks: str | None = None, without: int | None = None, flags: Sequence[str] = ()
) -> Path:
    """Compile a library with what passes for the kernels of every architecture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [number for number in architectures_of(HERE) if number != without]
    path.with_suffix(".bin").write_bytes(cubins(numbers, [name for name in kernel_names() if name != lacks]))
    code += f'__asm__(".section .rodata\\n.incbin \\"{path.with_suffix(".bin")}\\"\\n.previous");'
    source = path.with_suffix(".c")
    source.write_text(code)
    plugin_wheels.run("gcc", "-shared", "-fPIC", "-nostartfiles", *flags, source, "-o", path)
    source.unlink()
    path.with_suffix(".bin").unlink()
    return path


def inspect(path: Path, arch: str = HERE) -> plugin_wheels.LibraryFacts:
    return inspect_library(path, arch, EXPORTS, architectures_of(HERE))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for major in MAJORS:
        compiled(folder / major / "libnrd_trt_plugin.so")
        compiled(folder / major / f"libnrd_trt_plugin_{major}.so", "")
    return make_wheel(HERE, [folder / major for major in MAJORS], folder / "dist", folder)


def test_wheel_holds_the_libraries_the_licences_and_no_code(wheel: Path) -> None:
    assert wheel.name == f"nrd_trt_plugin-{nrd_trt.__version__}-py3-none-{TAG}_{HERE}.whl"
    facts = inspect_wheel(wheel, HERE, MAJORS)
    assert [one.file for one in facts] == [
        f"{major}/libnrd_trt_plugin{kind}.so" for major in MAJORS for kind in ("", f"_{major}")
    ]
    assert [set(one.exports) for one in facts] == [EXPORTS, set()] * 2
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        header = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        for name in ("LICENSE", "NOTICE"):
            assert archive.read(f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
        assert "Root-Is-Purelib: false" in archive.read(f"{info}/WHEEL").decode()
    assert (header["Name"], header["Version"]) == ("nrd-trt-plugin", nrd_trt.__version__)
    assert "Apache-2.0" in (header["License-Expression"], header["License"])
    assert (header["Requires-Python"], header["Requires-Dist"]) == (">=3.10", None)


def test_wheel_is_found_where_it_is_installed(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nrd_trt.engine import plugins

    zipfile.ZipFile(wheel).extractall(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    monkeypatch.setattr(plugins, "_CHECKOUT", tmp_path / "nowhere")
    found = plugins.find_plugin(tensorrt="10.3.0")
    assert found == tmp_path / "nrd_trt_plugin/trt10/libnrd_trt_plugin.so"


def test_wheel_that_lacks_a_library_is_refused(wheel: Path) -> None:
    with pytest.raises(WheelError, match=r"lacks \['nrd_trt_plugin/trt12/libnrd_trt_plugin.so', .*_trt12.so'\]"):
        inspect_wheel(wheel, HERE, (*MAJORS, "trt12"))
    with pytest.raises(WheelError, match=r"has \['nrd_trt_plugin/trt11/libnrd_trt_plugin.so', .*_trt11.so'\]"):
        inspect_wheel(wheel, HERE, MAJORS[:1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"code": CODE + "int other;"}, r"expected the exports .*, got .*'other'"),
        ({"code": "void getCreators(void) {}"}, r"expected the exports .*, got \['getCreators'\]"),
        ({"code": CODE + "void cuInit(void); static void (*volatile f)(void) = cuInit;"}, r"no undefined .*'cuInit'"),
        ({"flags": ["-Wl,--no-as-needed", "-l:libresolv.so.2"]}, r"only C and C\+\+ libraries .*libresolv"),
        ({"flags": ["-Wl,-rpath,/opt"]}, "neither RPATH nor TEXTREL"),
        ({"flags": ["-Wl,-z,execstack"]}, "a stack without code"),
        ({"without": 90}, r"expected code for sm .* 90, .*, got \[75"),
        ({"lacks": "nrd_mask_simt_fp16"}, r"every kernel for sm_75, got none of \['nrd_mask_simt_fp16'\]"),
    ],
    ids=["more exports", "fewer exports", "undefined", "needed", "rpath", "stack", "architecture", "kernel"],
)
def test_library_that_does_not_fit_is_refused(
    options: dict[str, str | int | list[str]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(WheelError, match=words):
        inspect(compiled(tmp_path / "lib.so", **options))  # type: ignore[arg-type]


def test_library_of_another_machine_or_a_newer_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = CODE + "void* malloc(unsigned long); static void* (*volatile make)(unsigned long) = malloc;"
    path = compiled(tmp_path / "lib.so", code)
    assert inspect(path).newest[0].startswith("GLIBC_2.")
    (other,) = set(plugin_wheels.MACHINES) - {HERE}
    with pytest.raises(WheelError, match=f"expected a library for {other}, got"):
        inspect(path, other)
    monkeypatch.setitem(plugin_wheels.NEWEST, "GLIBC", (2, 1))
    with pytest.raises(WheelError, match=rf"symbols as old as {TAG}, got GLIBC_2\."):
        inspect(path)


def test_newest_versions_are_compared_as_numbers() -> None:
    assert newest_versions({"a@GLIBC_2.4", "b@GLIBC_2.34", "c@GLIBCXX_3.4.9", "d@GLIBCXX_3.4.21", "e"}) == {
        "GLIBC": (2, 34),
        "GLIBCXX": (3, 4, 21),
    }


def test_architectures_of_the_platforms() -> None:
    """Orin under JetPack 6 and Thor under JetPack 7 are Arm; a datacenter GPU is found beside both kinds of host."""
    assert {87, 110, 80, 90, 100} <= set(architectures_of("aarch64"))
    assert set(architectures_of("aarch64")) - set(architectures_of("x86_64")) == ARM_ONLY
    oldest = next(iter(plugin_wheels.COMPILERS))
    assert "12.6." in oldest and {87, 90} < set(plugin_wheels.COMPILERS[oldest])  # JetPack 6's driver


def test_kernels_are_those_of_the_source() -> None:
    assert len(kernel_names()) == 16
    assert "nrd_logits_tensor_core_bf16" in kernel_names()


@pytest.mark.parametrize("arch", plugin_wheels.MACHINES)
def test_built_wheels(arch: str) -> None:
    wheels = list((ROOT / "dist").glob(f"nrd_trt_plugin-{nrd_trt.__version__}-*_{arch}.whl"))
    if not wheels:
        pytest.skip(f"no wheel for {arch} in dist/: make plugin-wheels, with a package index and TensorRT's headers")
    assert len(inspect_wheel(wheels[0], arch, MAJORS)) == 4


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plugin_wheels.main([str(tmp_path)]) == 2
    assert f"{tmp_path}/include/NvInferRuntime.h" in capsys.readouterr().err


def nvrtc() -> Path | None:
    package = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in package.submodule_search_locations or ()] if package else []
    return next((path for folder in folders for path in folder.rglob("libnvrtc.so.*")), None)


@pytest.mark.skipif(nvrtc() is None, reason="no NVRTC; pip install nvidia-cuda-nvrtc")
def test_error_of_the_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decode_kernel.cu").write_text("this is no kernel")
    monkeypatch.setattr(plugin_wheels, "KERNELS", tmp_path)
    with pytest.raises(WheelError, match=r"sm_87: the kernels do not compile: decode_kernel.cu\(1\): error"):
        plugin_wheels.compile_image(nvrtc() or tmp_path, "sm_87", tmp_path / "sm_87.cubin")
