"""Ask the package index whether the installs of docs/jetson.md and docs/datacenter.md can be made where they are meant.

Every `pip install` on these pages names its platforms in the comment behind it. pip resolves it for the Python, machine
and C library of each, installs nothing, and two lines say what was asked and found. All extras of setup.cfg together
follow, for each Python that is supported. Exits with 1 if a command does not resolve, or gets packages of another CUDA
or another major version of numpy than its platform takes.

`tensorrt` and `tensorrt-cu12` are source packages that name a wheel of bindings and one of libraries. The bindings are
resolved; the libraries come from NVIDIA's index, are listed and not asked for.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/jetson.md", "docs/datacenter.md")


@dataclass(frozen=True, kw_only=True)
class Platform:
    """Where a command is meant to run, and what it must get there.

    Attributes:
        python: its minor version, ``"3.10"``.
        machine: ``"aarch64"`` or ``"x86_64"``.
        glibc: minor version of the oldest C library, 35 for 2.35.
        numpy: versions that may be installed.
        cuda: the least CUDA version that wheels may bring, of this major one only; None where the system has CUDA.
    """

    python: str
    machine: str
    glibc: int
    numpy: str = ">=1.26,<3"
    cuda: tuple[int, int] | None = None


# 2.28 is the C library that the wheels of TensorRT ask for; 12.8 and 13.0 are the least CUDA of the PyTorch that is
# supported, and a driver runs every minor version of its major.
PLATFORMS = {
    "JetPack 6": Platform(python="3.10", machine="aarch64", glibc=35, numpy=">=1.26,<2"),
    "JetPack 7": Platform(python="3.12", machine="aarch64", glibc=39, numpy=">=1.26,<2"),
    "CUDA 12": Platform(python="3.12", machine="x86_64", glibc=28, numpy=">=2,<3", cuda=(12, 8)),
    "CUDA 13": Platform(python="3.12", machine="x86_64", glibc=28, numpy=">=2,<3", cuda=(13, 0)),
}
PYTHONS = {
    f"Python {python}": Platform(python=python, machine="x86_64", glibc=28) for python in ("3.10", "3.11", "3.12")
}
# PyPI has PyCUDA, and something that modelopt needs, as sources only; pip resolves wheels only for another machine.
FROM_SOURCE = {"pycuda", "modelopt"}
SHOWN = re.compile(r"numpy|onnx|onnxruntime|torch|tensorrt-.+|cuda-toolkit|nvidia-cuda-runtime(-cu\d+)?|nvidia-ml-py")
SOURCE_PACKAGE = re.compile(r"tensorrt(-rtx)?(-cu\d+)?")
NOT_ON_THE_INDEX = re.compile(r"tensorrt-cu\d+-libs")
# The versions of these are those of the CUDA release that they belong to.
CUDA_RUNTIME = re.compile(r"cuda-toolkit|nvidia-cuda-runtime(-cu\d+)?")


class ResolutionError(Exception):
    """A documented command that says nothing that can be checked, or that pip cannot resolve."""


@dataclass(frozen=True)
class Install:
    """A documented command: what it installs, as words of pip, and where."""

    page: str
    words: tuple[str, ...]
    platform: str


@dataclass(frozen=True)
class Distribution:
    """One that pip chose: its canonical name, its version, and the requirements in its metadata."""

    name: str
    version: str
    requires: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class Resolution:
    """What a platform gets, by name, and the requirements that are met by another index."""

    found: Mapping[str, Distribution]
    elsewhere: Sequence[Requirement]


Pip = Callable[..., dict[str, Distribution]]


def documented_installs(page: str, text: str) -> Iterator[Install]:
    """Yield every `pip install` in the bash blocks of a page, once for each platform that its comment names.

    Raises:
        ResolutionError: one names no platform, or has an option, whose effect would go unchecked.
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        command, _, comment = line.partition("#")
        install = re.search(r"\bpip[\d.]* install (.+)", command)
        if not install:
            continue
        words = shlex.split(install[1])
        named = [name for name in PLATFORMS if re.search(rf"\b{name}\b", comment)]
        if not named:
            raise ResolutionError(f"{page}: `{line}`: expected a comment with one of: {', '.join(PLATFORMS)}.")
        if options := [word for word in words if word.startswith("-")]:
            raise ResolutionError(f"{page}: `{line}`: cannot check a command with {', '.join(options)}.")
        yield from (Install(page, tuple(words), name) for name in named)


def requirements_of(words: Sequence[str], setup: configparser.RawConfigParser) -> list[Requirement]:
    """Return the words of a command as requirements; ``.[extra]`` stands for those of setup.cfg."""
    lines: list[str] = []
    extras = setup["options.extras_require"]
    for word in words:
        if match := re.fullmatch(r"\.(?:\[(.+)\])?", word):
            names = match[1].split(",") if match[1] else []
            if unknown := [name for name in names if name not in extras]:
                raise ResolutionError(f"{word}: setup.cfg has no extra {', '.join(unknown)}.")
            texts = [setup["options"]["install_requires"], *(extras[name] for name in names)]
            lines += [line for text in texts for line in text.splitlines() if line]
        else:
            lines.append(word)
    return [Requirement(line) for line in lines]


def run_pip(requirements: Sequence[Requirement], platform: Platform | None) -> dict[str, Distribution]:
    """Return what pip would install, by name; without a platform, the packages alone, from source where need be."""
    words = ["--no-deps", "--ignore-installed"]
    if platform is not None:
        tags = [f"manylinux_2_{minor}_{platform.machine}" for minor in range(platform.glibc, 16, -1)]
        tags += [f"manylinux2014_{platform.machine}", f"linux_{platform.machine}"]
        words = ["--ignore-installed", "--only-binary=:all:", "--python-version", platform.python]
        words += ["--implementation", "cp", "--abi", f"cp{platform.python.replace('.', '')}"]
        words += [word for tag in tags for word in ("--platform", tag)]
    with tempfile.TemporaryDirectory(prefix="nrd_trt-resolution-") as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", f"{folder}/report.json"]
        command += [*words, "--target", f"{folder}/none", *map(str, requirements)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
            raise ResolutionError("\n    ".join(["pip cannot resolve it:", *said[-12:]]))
        report = json.loads(Path(folder, "report.json").read_text())
    return {
        (name := canonicalize_name(item["metadata"]["name"])): Distribution(
            name, item["metadata"]["version"], tuple(map(Requirement, item["metadata"].get("requires_dist", [])))
        )
        for item in report["install"]
    }


def resolve(requirements: Sequence[Requirement], platform: Platform, pip: Pip = run_pip) -> Resolution:
    """Return what a platform gets of requirements.

    pip judges environment markers by the interpreter that it runs on, whatever platform it is asked for. So what the
    platform's own markers require, and pip did not bring, is asked for by name until nothing is missing; what they do
    not require is left out.

    Raises:
        ResolutionError: there is no such set of wheels.
    """
    asked, elsewhere = follow_sources(requirements, pip)
    while True:
        found = pip(asked, platform)
        reached, missing = walk(asked, found, environment_of(platform))
        if not missing:
            return Resolution({name: found[name] for name in sorted(reached)}, elsewhere)
        more, others = follow_sources(missing, pip)
        if not {*map(str, more)} - {*map(str, asked)}:
            raise ResolutionError(f"pip did not bring {', '.join(map(str, missing))}.")
        asked, elsewhere = [*asked, *more], [*elsewhere, *others]


def follow_sources(requirements: Sequence[Requirement], pip: Pip) -> tuple[list[Requirement], list[Requirement]]:
    """Put what TensorRT's source packages name in their places; return wheels, and what only NVIDIA's index has."""
    wheels: list[Requirement] = []
    elsewhere: list[Requirement] = []
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if NOT_ON_THE_INDEX.fullmatch(name):
            elsewhere.append(requirement)
        elif SOURCE_PACKAGE.fullmatch(name):
            named = pip([requirement], None)[name].requires
            waiting[:0] = [each for each in named if each.marker is None]
        else:
            wheels.append(requirement)
    return wheels, elsewhere


def environment_of(platform: Platform) -> dict[str, str]:
    """Return what environment markers see there, of any patch release of its Python."""
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    python = {"python_version": platform.python, "python_full_version": f"{platform.python}.99"}
    return {**default_environment(), **linux, **python, "platform_machine": platform.machine}  # type: ignore[dict-item]


def walk(
    requirements: Sequence[Requirement], found: Mapping[str, Distribution], environment: Mapping[str, str]
) -> tuple[set[str], list[Requirement]]:
    """Return the names that requirements lead to, and the requirements, without markers, that nothing found meets."""
    reached: set[str] = set()
    missing: list[Requirement] = []
    seen: set[str] = set()
    waiting: list[tuple[Requirement, tuple[str, ...]]] = [(requirement, ("",)) for requirement in requirements]
    while waiting:
        conditional, extras = waiting.pop()
        marker = conditional.marker
        if marker and not any(marker.evaluate({**environment, "extra": extra}) for extra in extras):
            continue
        requirement = Requirement(str(conditional).partition(";")[0])
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        if name not in found or not requirement.specifier.contains(found[name].version, prereleases=True):
            missing.append(requirement)
            continue
        reached.add(name)
        waiting += [(child, ("", *requirement.extras)) for child in found[name].requires]
    return reached, missing


def problems_of(resolution: Resolution, platform: Platform) -> list[str]:
    """Return what a documented set has that its platform must not have, or lacks."""
    found = {name: each.version for name, each in resolution.found.items()}
    problems = []
    if "numpy" not in found or found["numpy"] not in SpecifierSet(platform.numpy):
        problems.append(f"numpy: expected {platform.numpy}, got {found.get('numpy', 'none')}")
    if platform.cuda is None:
        brought = [name for name in found if re.match(r"nvidia-cu|cuda-|tensorrt", name)]
        return problems + [f"{name}: the system brings CUDA and TensorRT, no wheel may" for name in brought]
    major, minor = platform.cuda
    runtimes = {name: Version(found[name]).release[:2] for name in found if CUDA_RUNTIME.fullmatch(name)}
    problems += [
        f"{name}: expected CUDA {major}.{minor} or a later {major}, got {found[name]}"
        for name, release in runtimes.items()
        if not platform.cuda <= release < (major + 1, 0)
    ]
    if len({*runtimes.values()}) > 1:
        problems.append(f"expected one minor version of CUDA, got {', '.join(f'{n} {found[n]}' for n in runtimes)}")
    suffixes = {name: match[1] for name in found if (match := re.search(r"-cu(\d+)(?:-|$)", name))}
    problems += [f"{name}: expected packages of CUDA {major}" for name in suffixes if suffixes[name] != str(major)]
    if f"tensorrt-cu{major}-bindings" not in found:
        problems.append(f"expected the bindings of TensorRT for CUDA {major}, got none")
    return problems


def check(install: Install, platform: Platform, setup: configparser.RawConfigParser, pip: Pip) -> list[str]:
    """Resolve one command, print its line, and return what is wrong with it."""
    print(f"{install.platform}: pip install {shlex.join(install.words)}   ({install.page})", flush=True)
    try:
        resolution = resolve(requirements_of(install.words, setup), platform, pip)
        problems = problems_of(resolution, platform) if install.platform in PLATFORMS else []
    except ResolutionError as exc:
        problems = [str(exc)]
    else:
        shown = [f"{each.name} {each.version}" for each in resolution.found.values() if SHOWN.fullmatch(each.name)]
        others = ", ".join(map(str, resolution.elsewhere))
        print(
            f"  {len(resolution.found)} packages: {', '.join(shown)}"
            + (f"; not on this index: {others}" if others else "")
        )
    for problem in problems:
        print(f"  WRONG {problem}")
    return problems


def main(arguments: Collection[str] | None = None) -> int:
    """Check every documented command and every supported Python."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [extra for extra in setup["options.extras_require"] if extra not in FROM_SOURCE]
    installs = [install for page in PAGES for install in documented_installs(page, (ROOT / page).read_text())]
    installs += [Install("setup.cfg", (f".[{','.join(extras)}]",), name) for name in PYTHONS]
    wrong = [
        install for install in installs if check(install, {**PLATFORMS, **PYTHONS}[install.platform], setup, run_pip)
    ]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
