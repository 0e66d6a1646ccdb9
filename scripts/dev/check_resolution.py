"""Ask the package index whether the installs of docs/jetson.md and docs/datacenter.md can be made where they are meant.

Every `pip install` on these pages names its platforms in the comment behind it. pip resolves it for each, installs
nothing, and a line says what was found. The Dockerfile's extras follow for an Arm server, and all of setup.cfg for each
Python that is supported. Exits with 1 if one does not resolve, gets another CUDA or NumPy than its platform takes, or
not the versions of the page's table. Those of PyTorch, which only reads checkpoints, are told:
mirrors of the index lag behind.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/jetson.md", "docs/datacenter.md")


@dataclass(frozen=True)
class Platform:
    """Python, machine, minor version of glibc, and what NumPy and CUDA may be; None where the system has CUDA."""

    python: str
    machine: str
    glibc: int
    numpy: str = ">=1.26"
    cuda: str | None = None


# 2.28 is the C library that the wheels of TensorRT ask for; a driver runs every minor version of its CUDA.
PLATFORMS = {
    "JetPack 6": Platform("3.10", "aarch64", 35, "<2"),
    "JetPack 7": Platform("3.12", "aarch64", 39, "<2"),
    "CUDA 12": Platform("3.12", "x86_64", 28, ">=2", "==12.*"),
    "CUDA 13": Platform("3.12", "x86_64", 28, ">=2", "==13.*"),
}
PYTHONS = {f"Python {python}": Platform(python, "x86_64", 28) for python in ("3.10", "3.11", "3.12")}
ARM = {"Arm server": Platform("3.12", "aarch64", 28)}
# PyPI has PyCUDA, and something that modelopt needs, as sources only; pip resolves wheels only for another machine.
FROM_SOURCE = {"pycuda", "modelopt"}
COLUMNS = {"TensorRT": r"tensorrt-cu\d+-bindings", "PyTorch": "torch", "its CUDA": r"nvidia-cuda-runtime(-cu\d+)?"}
"""Packages whose versions stand in the pages' tables, where the head of a column is not the package's own name."""
TOLD = re.compile(r"torch|nvidia-cuda-runtime.*")
SHOWN = re.compile(r"numpy|onnx|onnxruntime|torch|tensorrt-.+|nvidia-cuda-runtime.*")
# pip judges markers by the Python that it runs on, whatever platform it is asked for.
PIP = """
import sys
from pip._vendor.packaging import markers
here = markers.default_environment()
python, machine = sys.argv[1:3]
there = {"python_version": python, "python_full_version": f"{python}.99", "platform_machine": machine}
markers.default_environment = lambda: {**here, **there}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


class ResolutionError(Exception):
    """A documented command that cannot be checked, or that pip cannot resolve."""


def documented_installs(page: str, text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield platform and words of every `pip install` in a page's bash blocks, for each platform that is named."""
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    for line, words, comment in re.findall(r"^(.*\bpip[\d.]* install ([^#\n]+)(.*))", blocks, re.MULTILINE):
        named = [name for name in PLATFORMS if name in comment]
        if not named or " -" in words:
            raise ResolutionError(f"{page}: `{line}`: expected no option, and a comment with one of {[*PLATFORMS]}.")
        yield from ((name, shlex.split(words)) for name in named)


def requirements_of(words: list[str], setup: configparser.RawConfigParser) -> list[str]:
    """Return the requirements of a command; ``.[extra]`` stands for those of setup.cfg.

    `tensorrt` and `tensorrt-cu12` are source packages: they stand for their wheel of bindings. The libraries come from
    NVIDIA's index and are not asked for.
    """
    lines: list[str] = []
    for word in words:
        if not word.startswith("."):
            lines.append(word)
            continue
        extras = [extra for extra in word[2:-1].split(",") if extra]
        texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
        lines += [line for text in texts for line in text.splitlines() if line]
    lines = [re.sub(r"^tensorrt(?![\w-])", "tensorrt-cu13", line) for line in lines]
    return [re.sub(r"^(tensorrt(-rtx)?-cu\d+)(?![\w-])", r"\1-bindings", line) for line in lines]


def resolve(requirements: list[str], platform: Platform) -> dict[str, str]:
    """Return the versions, by name, of the wheels that a platform gets; raise `ResolutionError` if there are none."""
    tags = [f"manylinux_2_{minor}_{platform.machine}" for minor in range(platform.glibc, 16, -1)]
    words = ["--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--python-version", platform.python]
    words += ["--implementation=cp", f"--abi=cp{platform.python.replace('.', '')}"]
    words += [f"--platform={tag}" for tag in [*tags, f"manylinux2014_{platform.machine}", f"linux_{platform.machine}"]]
    with tempfile.TemporaryDirectory(prefix="nrd_trt-resolution-") as folder:
        words += [f"--target={folder}/none", f"--report={folder}/report.json", *requirements]
        command = [sys.executable, "-c", PIP, platform.python, platform.machine, "install", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ResolutionError("\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARN")))
        found = [item["metadata"] for item in json.loads(Path(folder, "report.json").read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in found}


def problems_of(found: Mapping[str, str], platform: Platform) -> list[str]:
    """Return what a documented set has that its platform must not have, or lacks."""
    problems = []
    if found.get("numpy", "0") not in SpecifierSet(platform.numpy):
        problems.append(f"numpy: expected {platform.numpy}, got {found.get('numpy')}")
    if platform.cuda is None:
        brought = [name for name in found if re.match(r"nvidia-cu|cuda-|tensorrt", name)]
        return problems + [f"{name}: the system brings CUDA and TensorRT, no wheel may" for name in brought]
    # A name with -cu12 says for which CUDA a package is, and these versions are CUDA's own.
    cuda = {name: f"{match[1]}.0" for name in found if (match := re.search(r"-cu(\d+)(?:-|$)", name))}
    cuda |= {name: version for name, version in found.items() if re.match(r"nvidia-cuda-runtime|cuda-toolkit", name)}
    wrong = [f"{name}: expected CUDA {platform.cuda}" for name in cuda if cuda[name] not in SpecifierSet(platform.cuda)]
    return problems + wrong + ["no TensorRT"] * (not any(name.startswith("tensorrt-") for name in found))


def documented_versions(text: str) -> dict[str, dict[str, str]]:
    """Return what a page's table of resolved versions says: for each platform the version by a pattern of names."""
    found: dict[str, dict[str, str]] = {}
    for table in re.findall(r"^\| resolved on .*\n(?:\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        names = [COLUMNS.get(name, name) for cell in head[1:] for name in cell.split(", ")]
        for first, *cells in rows:
            versions = [version for cell in cells for version in cell.split(", ")]
            found[first.partition(":")[0]] = dict(zip(names, versions, strict=True))
    return found


def stale(found: Mapping[str, str], documented: Mapping[str, str]) -> list[str]:
    """Return what a page says of versions that is not so; of CUDA it says major and minor."""
    return [
        f"{name}: the page says {version}, got {got}"
        for pattern, version in documented.items()
        for name, got in found.items()
        if re.fullmatch(pattern, name) and not f"{got}.".startswith(f"{version}.")
    ]


def main() -> int:
    """Check every documented command and every supported Python."""
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = {page: (ROOT / page).read_text() for page in PAGES}
    installs = [install for page, text in texts.items() for install in documented_installs(page, text)]
    versions = {name: table for text in texts.values() for name, table in documented_versions(text).items()}
    extras = [extra for extra in setup["options.extras_require"] if extra not in FROM_SOURCE]
    of_image = re.findall(r"^ARG EXTRAS=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    installs += [(name, [f".[{words}]"]) for name in ARM for words in of_image]
    installs += [(name, [f".[{','.join(extras)}]"]) for name in PYTHONS]
    failed = 0
    for name, words in installs:
        platform, requirements = {**PLATFORMS, **ARM, **PYTHONS}[name], requirements_of(words, setup)
        try:
            found = resolve(requirements, platform)
            problems = problems_of(found, platform) if name in PLATFORMS else []
            others = stale(found, versions.get(name, {}))
            problems += [other for other in others if not TOLD.match(other)]
            shown = [f"{package} {version}" for package, version in sorted(found.items()) if SHOWN.fullmatch(package)]
            libraries = [package.replace("bindings", "libs") for package in found if re.match("tensorrt-cu", package)]
            shown += [f"not on this index: {package}" for package in libraries]
            shown += [other for other in others if TOLD.match(other)]
        except ResolutionError as exc:
            shown, problems = [], [str(exc)]
        print(f"{name}: pip install {shlex.join(words)}: {', '.join(shown)}", *problems, sep="\n  WRONG ", flush=True)
        failed += bool(problems)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
