"""Check that TensorRT's bindings have every name that the toolkit uses; needs pip, gcc and neither GPU nor TensorRT.

The bindings are on PyPI and want nine C functions of libraries that are not; a stub that returns null gives them.
Exit status: 0 every name is there or replaced, 1 a name is missing (named), 2 bindings cannot be had or imported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrd_trt.engine.compat import load_tensorrt, version_numbers
from nrd_trt.engine.surface import Finding, check_surface, read_surface
from nrd_trt.errors import NrdTrtError

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("10.3.0", "10.7.0", "10.9.0.34", "10.16.1.11", "11.0.0.114", "11.4.0.106")
_CU13_SINCE = (10, 13, 2)
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


class BindingsError(NrdTrtError):
    """Bindings cannot be imported."""


class NoBindingsError(BindingsError):
    """Bindings cannot be had here: no package index, no wheel for this machine, or no C compiler."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bindings", nargs="+", metavar="VERSION", default=[], help=f"e.g. {' '.join(VERSIONS)}")
    parser.add_argument("--rtx", action="store_true", help="check the installed tensorrt_rtx")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if not options.bindings and not options.rtx:
        parser.error("give --bindings VERSION … or --rtx")
    try:
        checked = {version: check_version(version) for version in options.bindings}
        if options.rtx:
            tensorrt = load_tensorrt("tensorrt-rtx")
            found = read_surface(tensorrt.trt)
            checked[f"rtx {tensorrt.version}"] = check_surface(found, tensorrt.flavour, tensorrt.version)
    except NrdTrtError as exc:
        print(exc, file=sys.stderr)
        return 2
    print(_json(checked) if options.json else _table(checked))
    missing = {version: [f for f in findings if f.state == "missing"] for version, findings in checked.items()}
    for version, findings in missing.items():
        for finding in findings:
            print(f"{version}: {finding.name} is missing: {finding.detail}", file=sys.stderr)
    return 1 if any(missing.values()) else 0


def check_version(version: str) -> list[Finding]:
    """Check the enterprise bindings of a version."""
    return check_surface(read_version(version), "tensorrt", version)


def read_version(version: str) -> dict[str, Any]:
    """Read the surface of a version's bindings in a process of their own."""
    code = "import json, tensorrt; from nrd_trt.engine.surface import read_surface as r; print(json.dumps(r(tensorrt)))"
    return dict(json.loads(run_with_bindings(version, ["-c", code])))


def run_with_bindings(version: str, arguments: Sequence[str]) -> str:
    """Run Python where ``import tensorrt`` finds the bindings of a version; return its output."""
    folder = fetch_bindings(version)
    paths = {"LD_LIBRARY_PATH": str(folder / "lib"), "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    result = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise BindingsError(f"bindings {version}: {' '.join(arguments)[:60]} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def fetch_bindings(version: str) -> Path:
    """Return the folder with ``tensorrt/`` and the stub libraries of a version; download them on first use."""
    cache = Path(os.environ.get("NRD_TRT_BINDINGS", ROOT / "build" / "tensorrt-bindings"))
    tag = sys.implementation.cache_tag
    target = cache / f"{version}-{tag}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            folder = Path(temporary) / target.name
            _download(version, folder)
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            wheel.unlink()
            (folder / "tensorrt_bindings").rename(folder / "tensorrt")
            _write_stubs(folder)
            if not target.is_dir():  # another process may have been faster
                folder.rename(target)
    return target


def _download(version: str, folder: Path) -> None:
    """Download a wheel of the bindings for this Python and machine."""
    packages = ["tensorrt-cu12-bindings"]
    if version_numbers(version) >= _CU13_SINCE:
        packages.append("tensorrt-cu13-bindings")
    for package in packages:
        wanted = ["--no-deps", "--only-binary=:all:", f"{package}=={version}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *wanted]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return
    raise NoBindingsError(
        f"bindings {version}: no wheel for this Python and machine; see `pip download {' '.join(wanted)}`: "
        f"{result.stderr.strip()[-400:]}"
    )


def _write_stubs(folder: Path) -> None:
    """Write libraries under the names that the bindings want; each has all nine symbols and returns null."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise NoBindingsError("the stub libraries need a C compiler: install gcc or set CC.")
    binary = (folder / "tensorrt" / "tensorrt.so").read_bytes()
    source = folder / "lib" / "stub.c"
    source.parent.mkdir()
    source.write_text("".join(f"void* {symbol}(void) {{ return 0; }}\n" for symbol in _SYMBOLS))
    for library in _LIBRARIES:
        name = re.search(rf"lib{library}\.so\.\d+".encode(), binary)
        if name is None:
            raise BindingsError(f"{folder}: the bindings do not want lib{library}; this script does not know them.")
        output = str(source.parent / name[0].decode())
        subprocess.run([compiler, "-shared", "-fPIC", "-o", output, str(source)], check=True)


def _json(checked: Mapping[str, list[Finding]]) -> str:
    return json.dumps({version: [asdict(finding) for finding in findings] for version, findings in checked.items()})


def _table(checked: Mapping[str, list[Finding]]) -> str:
    """Return one line per name and one column per version, then what replaces the absent ones."""
    marks = {"present": "yes", "replaced": "no*", "missing": "MISSING"}
    names = [finding.name for finding in next(iter(checked.values()))]
    width = max(map(len, names))
    lines = ["  ".join([f"{'name':{width}}", *checked])]
    for row, name in enumerate(names):
        cells = [f"{marks[findings[row].state]:{len(version)}}" for version, findings in checked.items()]
        lines.append("  ".join([f"{name:{width}}", *cells]).rstrip())
    notes = {f.name: f.detail for findings in checked.values() for f in findings if f.state == "replaced"}
    return "\n".join([*lines, *(f"* {name}: {detail}" for name, detail in notes.items())])


if __name__ == "__main__":
    sys.exit(main())
