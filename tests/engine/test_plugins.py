"""The plugin library: found in its order, read, compared with TensorRT, GPU and bundle, registered once."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nrd_trt.engine import plugins
from nrd_trt.engine.compat import TensorRT
from nrd_trt.engine.plugins import (
    BUILD_COMMAND,
    LIBRARY,
    SUPPORTED,
    VARIABLE,
    PluginInfo,
    PluginLibrary,
    check_plugin,
    find_misfit,
    find_plugin,
    load_plugin,
    places_here,
    read_plugin,
    search_path,
    take_plugin,
    take_recorded,
    wheel_libraries,
)
from nrd_trt.errors import PluginError
from nrd_trt.files import sha256_file
from tests.artefacts import REPOSITORY, environment
from tests.engine.surface.enterprise import enterprise
from tests.plugin_library import INFO, library, make_library, needs_compiler

CACHE = f"""\t2 libs found in cache
\tlibnrd_trt_plugin.so.1 (libc6,x86-64) => /opt/lib/libnrd_trt_plugin.so.1
\tlibnrd_trt_plugin_trt10.so (libc6,x86-64) => /opt/lib/libnrd_trt_plugin_trt10.so
\t{LIBRARY} (libc6,x86-64) => /usr/lib/{LIBRARY}
"""


def info(**changes: Any) -> PluginInfo:
    return PluginInfo.from_json(json.dumps({**INFO, **changes}))


def tensorrt(version: str = "10.3.0", flavour: str = "tensorrt") -> TensorRT:
    return TensorRT(flavour, enterprise(version))


def test_supported_constants_are_those_that_the_kernels_take() -> None:
    source = (REPOSITORY / "plugins/nrd_decode/decode_problem.h").read_text()
    taken = {}
    for name, text in re.findall(r'"(\w+): expected ([^"]+)"', source):
        low, *others = map(int, re.findall(r"\d+", text))
        taken[name] = set(range(low, others[0] + 1)) if " to " in text else {low, *others}
    assert {name: set(values) for name, values in SUPPORTED.items()} == taken


# --- finding


def test_search_order() -> None:
    places = {"LD_LIBRARY_PATH": "/first::/second"}
    listed = [Path("/opt/lib/libnrd_trt_plugin.so.1"), Path("/usr/lib", LIBRARY)]
    assert search_path(places, Path("/repo"), CACHE) == [
        Path("/repo/plugins/build", LIBRARY),
        Path("/first", LIBRARY),
        Path("/second", LIBRARY),
        *listed,
    ]
    assert search_path(places, Path("/repo"), CACHE, [Path("/wheel", LIBRARY)])[:3] == [
        Path("/repo/plugins/build", LIBRARY),
        Path("/wheel", LIBRARY),
        Path("/first", LIBRARY),
    ]
    assert search_path({}, None, CACHE) == listed
    assert search_path({}, None, None) == []
    assert search_path({**places, VARIABLE: "/given.so"}, Path("/repo"), CACHE) == [Path("/given.so")]
    assert search_path({VARIABLE: ""}, None, None) == []


def test_places_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    monkeypatch.delenv(VARIABLE, raising=False)
    loader = [Path("/nowhere", LIBRARY), tmp_path / LIBRARY]
    assert places_here()[:3] == [REPOSITORY / "plugins" / "build" / LIBRARY, *loader]
    assert places_here(checkout=tmp_path)[:2] == loader  # it is no checkout
    monkeypatch.setenv("PATH", "")  # ldconfig is found all the same
    assert places_here()[1:3] == loader
    monkeypatch.setenv(VARIABLE, "/named.so")
    assert places_here() == [Path("/named.so")]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installed wheel's package, for TensorRT 10 and 11."""
    package = tmp_path / "site/nrd_trt_plugin"
    for major in (10, 11):
        (package / f"trt{major}").mkdir(parents=True)
        (package / f"trt{major}" / LIBRARY).touch()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(plugins, "_CHECKOUT", tmp_path / "nowhere")
    return package


def test_wheel_has_a_library_for_each_major(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(wheel / "trt10"))
    assert find_plugin(tensorrt="10.3.0") == wheel / "trt10" / LIBRARY
    assert find_plugin(tensorrt="11.4.0.106") == wheel / "trt11" / LIBRARY  # before the loader's path
    assert find_plugin() == wheel / "trt11" / LIBRARY
    assert wheel_libraries() == [wheel / f"trt{major}" / LIBRARY for major in (11, 10)]


def test_wheel_without_the_major_that_is_loaded(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setattr(plugins.shutil, "which", lambda *_, **__: None)  # no ldconfig
    with pytest.raises(PluginError, match=r"at .*/nrd_trt_plugin/trt12/libnrd.*install the wheel nrd-trt-plugin"):
        find_plugin(tensorrt="12.0")


def test_the_first_place_with_a_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, other = tmp_path / "given.so", tmp_path / LIBRARY
    tried = [tmp_path / "absent.so", other, given]
    monkeypatch.setattr(plugins, "places_here", lambda *_: tried)
    with pytest.raises(PluginError, match=", ".join(map(str, tried))) as caught:
        find_plugin()
    assert BUILD_COMMAND in str(caught.value) and VARIABLE in str(caught.value)
    assert "name it with plugin=" in str(caught.value)
    given.touch()
    assert find_plugin() == given
    other.symlink_to("given.so")
    assert find_plugin() == given  # the link is followed
    other.unlink()
    other.touch()
    assert find_plugin() == other
    assert find_plugin(given) == given


def test_named_library_that_is_absent_is_not_searched_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LIBRARY).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    absent = tmp_path / "absent.so"
    monkeypatch.setenv(VARIABLE, str(absent))
    for given in (absent, None):
        with pytest.raises(PluginError, match=rf"expected {LIBRARY} at {absent} .*cmake -S plugins"):
            find_plugin(given)


@needs_compiler
def test_search_goes_on_past_a_library_that_does_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("no library")
    other, right = library(tensorrt="11.4.0"), library()
    monkeypatch.setattr(plugins, "places_here", lambda *_: [tmp_path / "absent.so", tmp_path / "text.so", other, right])
    check = partial(check_plugin, tensorrt=tensorrt())
    assert take_plugin(check).path == right
    with pytest.raises(PluginError, match=r"built for TensorRT 10 .*install the wheel nrd-trt-plugin, or build it"):
        take_plugin(check, other)  # what is given is all that is looked at
    with pytest.raises(PluginError, match=r"text\.so: expected"):  # none does: the first one is told of
        take_plugin(partial(check_plugin, tensorrt=tensorrt("12.0")))


# --- reading


@needs_compiler
def test_library_is_read() -> None:
    found = read_plugin(library())
    assert found.path == library()
    assert found.sha256 == sha256_file(library())
    assert json.loads(json.dumps(vars(found.info))) == INFO
    record = msgspec.to_builtins(found.record("u8x4"))
    told = {key: value for key, value in vars(found.info).items() if key not in ("ops", "tensorrt_major")}
    assert record == {"file": LIBRARY, "sha256": found.sha256, **told, "mask_encoding": "u8x4"}
    assert str(library().parent) not in str(record)


@needs_compiler
@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("", {}, "got one without nrd_plugin_info"),
        ("", {"source": "const char* nrd_plugin_info(void) { return 0; }"}, "got something else"),
        ("no json", {}, "got something else"),
        ("[]", {}, "Expected `object`, got `array`"),
        (None, {"cuda": ...}, "missing required field `cuda`"),
        (None, {"tensorrt_major": "10"}, r"Expected `int`, got `str` - at `\$\.tensorrt_major`"),
        (None, {"architectures": ["sm_87"]}, r"at `\$\.architectures\[0\]`"),
        (None, {"ops": "NrdPatchDecode"}, r"Expected `array`, got `str` - at `\$\.ops`"),
        (None, {"ops": ["NrdPatchDecode"]}, "got NrdPatchDecode without NrdPatchDecodeMask"),
        (None, {"ops": []}, "got none without NrdPatchDecode, NrdPatchDecodeMask"),
    ],
)
def test_other_libraries_are_refused(text: str | None, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = make_library(tmp_path / "other.so", text, **changes)
    with pytest.raises(PluginError, match=rf"{path}: expected .*{words}.*cmake -S plugins"):
        read_plugin(path)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\necho I am a script\n", b"\x7fELF" + bytes(60)])
def test_what_is_no_library_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / LIBRARY
    path.write_bytes(content)
    with pytest.raises(PluginError, match=rf"{path}: expected {LIBRARY}, got a file that cannot be opened .*cmake"):
        read_plugin(path)


# --- TensorRT and the GPU


MIXED = [75, 80, 87, 90]


@pytest.mark.parametrize(
    ("architectures", "ptx", "capability", "cuda", "runs"),
    [
        (MIXED, [], "7.5", "13.0", True),
        (MIXED, [], "8.7", "13.0", True),  # its own code
        (MIXED, [], "8.8", "13.0", True),  # machine code runs within its major: that of 8.0
        (MIXED, [], "7.0", "13.0", False),  # older than any
        (MIXED, [], "7.2", "13.0", False),  # integrated: its own code only
        (MIXED, [], "10.0", "13.0", False),
        (MIXED, [], "11.0", "13.0", False),
        ([], [90], "12.0", "12.6", True),  # compiled by the driver
        ([], [90], "12.0", None, True),
        ([], [90], "12.0", "12.5", False),  # a driver older than the toolkit does not read its PTX
        ([], [90], "8.9", "12.6", False),
        ([], [90], "9.0", "12.6", True),
        ([], [80], "8.7", "12.6", False),  # integrated
        ([87], [], "8.9", "12.6", False),  # code for an integrated GPU runs nowhere else
        ([87], [87], "8.9", "12.6", True),
        ([86], [], "8.0", "12.6", False),
        ([86], [], "8.9", "12.5", True),  # machine code needs the driver's major only
        ([110], [], "11.0", "13.0", True),
        ([100], [], "10.3", "13.0", True),
    ],
)
def test_which_gpus_have_code(
    architectures: list[int], ptx: list[int], capability: str, cuda: str | None, runs: bool
) -> None:
    assert info(architectures=architectures, ptx=ptx).runs_on(capability, cuda) is runs


@pytest.mark.parametrize(
    ("version", "capability", "cuda", "expected"),
    [
        ("10.3.0", "8.7", "12.6", None),
        ("10.16.1.11", "8.7", None, None),
        ("10.3.0", None, None, None),
        ("11.4.0", "8.7", "12.6", "built for TensorRT 11 (11.4.0 is loaded), got one for TensorRT 10.3.0"),
        ("10.3.0", "8.7", "11.8", "CUDA 11.8 or older, which the driver supports, got one built with CUDA 12.6"),
        ("10.3.0", "11.0", "13.0", "compute capability 11.0 (sm_110), got sm_75, sm_80, sm_86, sm_87, sm_89, sm_90"),
    ],
)
def test_misfit(version: str, capability: str | None, cuda: str | None, expected: str | None) -> None:
    found = find_misfit(info(), version, capability, cuda)
    assert (found is None) == (expected is None)
    if found and expected:
        assert found.reason.startswith("expected ") and expected in found.reason
        assert "cmake -S plugins" in found.remedy
        assert ("-DCMAKE_CUDA_ARCHITECTURES=110 " in found.remedy) == (capability == "11.0")


# --- the record of a bundle


@needs_compiler
def test_another_library_is_refused_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constructor would run on opening: in a process of its own, which must end without the mark that it makes."""
    mark = tmp_path / "executed"
    code = f'#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ fopen("{mark}", "w"); }}\n'
    hostile = make_library(tmp_path / "hostile.so", source=code)
    recorded = read_plugin(library()).record("uint8")
    with pytest.raises(PluginError) as caught:
        take_recorded(recorded, hostile, bundle="a.nrd", rebuild="rebuild it")
    assert str(caught.value).startswith(f"{hostile}: a.nrd was built with another plugin library: expected SHA-256 ")
    words = f"{recorded.sha256[:12]}… (version 0.1.0 for TensorRT 10.3.0, CUDA 12.6, kernel revision 1), got "
    assert f"{words}{sha256_file(hostile)[:12]}…, which was not opened." in str(caught.value)
    assert str(caught.value).endswith("rebuild with: rebuild it")
    monkeypatch.setattr(plugins, "places_here", lambda *_: [hostile, library()])
    assert take_recorded(recorded, bundle="a.nrd", rebuild="rebuild it") == read_plugin(library())
    assert not mark.exists()
    read_plugin(hostile)
    assert mark.exists()  # so that the test can fail


# --- registering


@pytest.fixture
def found() -> PluginLibrary:
    return read_plugin(library())


@needs_compiler
def test_library_is_registered_once_and_a_process_holds_one(found: PluginLibrary) -> None:
    trt = tensorrt()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: load_plugin(found, trt), range(8)))
    assert trt.trt.registry.loaded == [str(library())]
    assert all(trt.has_creator(op, "1", "nrd") for op in INFO["ops"])
    assert not trt.has_creator("NrdPatchDecode", "1", "")
    with pytest.raises(PluginError, match=rf"got those of {library()} \(SHA-256 .*use another process"):
        load_plugin(read_plugin(library(2)), trt)
    assert trt.trt.registry.loaded == [str(library())]


@needs_compiler
@pytest.mark.parametrize(
    ("registry", "words"),
    [
        ({"takes": False}, r"expected tensorrt 10\.3\.0 to take the creators .*got a refusal; build it"),
        ({"drops": {"NrdPatchDecodeMask"}}, "got none of NrdPatchDecodeMask; build it"),
        *(
            ({"creators": {(op, "1", "nrd")}}, r"got those of a library that is not nrd_trt's.*preload none")
            for op in INFO["ops"]
        ),
        (None, "got a refusal"),
    ],
)
def test_creators_that_cannot_be_registered_are_an_error(
    registry: dict[str, Any] | None, words: str, found: PluginLibrary
) -> None:
    trt = tensorrt()
    if registry is None:
        trt.trt.get_plugin_registry = lambda: None
    else:
        vars(trt.trt.registry).update(registry)
    with pytest.raises(PluginError, match=words):
        load_plugin(found, trt)
    assert trt.trt.registry.loaded == [str(library())] * ("drops" in (registry or {}))


@needs_compiler
@pytest.mark.parametrize(
    ("version", "flavour", "words"),
    [
        (
            "11.4.0",
            "tensorrt",
            r"expected a library built for TensorRT 11 .* got one for TensorRT 10\.3\.0; install the wheel",
        ),
        ("10.7.0", "tensorrt-rtx", r"tensorrt-rtx loads no plugins.*decode='onnx'"),
    ],
)
def test_another_major_and_rtx_never_get_one(version: str, flavour: str, words: str, found: PluginLibrary) -> None:
    """The parser of TensorRT-RTX ends the process when it meets a plugin, so its registry must not even be asked."""
    trt = tensorrt(version, flavour)
    trt.trt.get_plugin_registry = lambda: pytest.fail("asked for the registry")
    with pytest.raises(PluginError, match=f"^{library()}: {words}"):
        load_plugin(found, trt)


# --- a real registry

LEAN = next((name for name in ("tensorrt_lean", "tensorrt_lean_bindings") if importlib.util.find_spec(name)), None)
_ON_A_REGISTRY = """
import importlib, sys
from pathlib import Path
from nrd_trt.engine.compat import TensorRT
from nrd_trt.engine.plugins import PluginLibrary, load_plugin, read_plugin
from nrd_trt.errors import PluginError
trt = TensorRT("tensorrt-lean", importlib.import_module(sys.argv[1]))
print("version", trt.version)
for path in map(Path, sys.argv[2:]):
    try:
        load_plugin(read_plugin(path), trt)
        load_plugin(read_plugin(path), trt)
        print("loaded", all(trt.has_creator(op, "1", "nrd") for op in ("NrdPatchDecode", "NrdPatchDecodeMask")))
    except PluginError as exc:
        print(exc)
"""
needs_lean = pytest.mark.skipif(
    LEAN is None,
    reason="needs TensorRT's lean runtime: pip install 'nrd-trt[lean]' (no GPU needed)",
)


def on_lean(*paths: Path) -> tuple[str, list[str]]:
    """The version of the lean runtime, and what a process with its registry says of libraries, one line each."""
    command = [sys.executable, "-c", _ON_A_REGISTRY, str(LEAN), *map(str, paths)]
    path = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment(**path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, *lines = [line for line in done.stdout.splitlines() if not line.startswith("[")]  # TensorRT's own
    return version.removeprefix("version "), lines


@needs_lean
@needs_compiler
def test_real_registry_refuses_what_has_no_creators(tmp_path: Path) -> None:
    version = on_lean()[0]
    current = {"tensorrt": version, "tensorrt_major": int(version.split(".")[0])}
    silent = make_library(tmp_path / "silent.so", **current)
    source = "void* getCreators(int* count) { *count = 0; return 0; }\nvoid setLoggerFinder(void* finder) { }\n"
    empty = make_library(tmp_path / "empty.so", source=source, **current)
    _, (first, second, third) = on_lean(silent, empty, library())
    for path, line in ((silent, first), (empty, second)):
        assert line.startswith(f"{path}: expected tensorrt-lean {version} to take the creators NrdPatchDecode")
    assert f"expected a library built for TensorRT {current['tensorrt_major']}" in third


@needs_lean
def test_real_registry_takes_the_real_library() -> None:
    try:
        found = read_plugin(find_plugin())
    except PluginError as exc:
        pytest.skip(f"needs the plugin library: {exc}")
    version = on_lean()[0]
    if find_misfit(found.info, version, None, None):
        pytest.skip(f"the library is built for TensorRT {found.info.tensorrt}, not {version}")
    assert on_lean(found.path)[1] == ["loaded True"]
