"""`make check-resolution`: what it reads from the pages and what it refuses, with pip on a folder of tiny wheels."""

from __future__ import annotations

import configparser
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.dev import check_resolution as script
from scripts.dev.check_resolution import (
    PLATFORMS,
    Distribution,
    Install,
    Platform,
    Resolution,
    ResolutionError,
    documented_installs,
    problems_of,
    requirements_of,
    resolve,
    run_pip,
)
from tests.artefacts import REPOSITORY

PAGE = """
pip install not-in-a-block
```bash
sudo apt install python3-venv
.venv/bin/pip install . 'numpy<2' \\
   extra    # JetPack 6, JetPack 7.2
python -m pip3 install '.[trt]'     # CUDA 13
```
```
pip install not-in-bash
```
"""
SETUP = """
[options]
install_requires =
    numpy>=1.26,<3
[options.extras_require]
gpu =
    nvidia-ml-py>=12
# A comment.
trt =
    tensorrt>=10.3,<12
cuda =
"""


def setup_cfg(text: str = SETUP) -> configparser.RawConfigParser:
    config = configparser.RawConfigParser()
    config.read_string(text)
    return config


# --- the pages


def test_a_command_is_read_once_for_each_platform_that_its_comment_names() -> None:
    assert list(documented_installs("a.md", PAGE)) == [
        Install("a.md", (".", "numpy<2", "extra"), "JetPack 6"),
        Install("a.md", (".", "numpy<2", "extra"), "JetPack 7"),
        Install("a.md", (".[trt]",), "CUDA 13"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "pip install . # on a Jetson",
            r"a.md: .*expected a comment with one of: JetPack 6, JetPack 7, CUDA 12, CUDA 13",
        ),
        ("pip install torch --index-url x # CUDA 12", "a.md: .*cannot check a command with --index-url"),
    ],
)
def test_a_command_that_cannot_be_checked_is_refused(line: str, message: str) -> None:
    with pytest.raises(ResolutionError, match=message):
        list(documented_installs("a.md", f"```bash\n{line}\n```\n"))


def test_the_pages_have_an_install_for_every_platform() -> None:
    installs = [one for page in script.PAGES for one in documented_installs(page, (REPOSITORY / page).read_text())]
    assert {install.platform for install in installs} == {*PLATFORMS}
    config = setup_cfg((REPOSITORY / "setup.cfg").read_text())
    for install in installs:
        names = [requirement.name for requirement in requirements_of(install.words, config)]
        jetson, tensorrt = "JetPack" in install.platform, [name for name in names if name.startswith("tensorrt")]
        assert (names.count("numpy"), len(tensorrt)) == ((2, 0) if jetson else (1, 1)), install
        assert [name for name in names if name.startswith("cuda")] == []


def test_words_become_requirements() -> None:
    found = requirements_of([".[gpu,trt,cuda]", "tensorrt-cu12<12"], setup_cfg())
    assert [*map(str, found)] == ["numpy<3,>=1.26", "nvidia-ml-py>=12", "tensorrt<12,>=10.3", "tensorrt-cu12<12"]
    assert [*map(str, requirements_of(["."], setup_cfg()))] == ["numpy<3,>=1.26"]
    with pytest.raises(ResolutionError, match=r"\.\[gpu,tensort\]: setup.cfg has no extra tensort\."):
        requirements_of([".[gpu,tensort]"], setup_cfg())


# --- pip, on wheels for other machines


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write wheels that hold nothing into a folder that pip takes for its only index."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)

    def write(name: str, version: str, tag: str = "py3-none-any", requires: Sequence[str] = ()) -> None:
        stem = f"{name.replace('-', '_')}-{version}"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        extras = {extra for requirement in requires for extra in re.findall(r'extra == "(\w+)"', requirement)}
        with zipfile.ZipFile(tmp_path / f"{stem}-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join([*lines, *(f"Provides-Extra: {x}" for x in extras)]))
            wheel.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            wheel.writestr(f"{stem}.dist-info/RECORD", "")

    return write


def versions(resolution: Resolution) -> dict[str, str]:
    return {name: distribution.version for name, distribution in resolution.found.items()}


def test_wheels_are_those_of_the_platform(index: Callable[..., None]) -> None:
    """Not of a newer C library, another Python or another machine."""
    index("binary", "1", "cp310-cp310-manylinux_2_17_aarch64.manylinux2014_aarch64")
    index("binary", "2", "cp310-abi3-manylinux_2_35_aarch64")
    index("binary", "3", "cp310-cp310-manylinux_2_36_aarch64")
    index("binary", "4", "cp312-cp312-manylinux_2_28_aarch64")
    index("binary", "5", "cp310-cp310-manylinux_2_28_x86_64")
    expected = {"JetPack 6": "2", "JetPack 7": "4"}
    assert {
        name: versions(resolve([Requirement("Binary")], PLATFORMS[name]))["binary"] for name in expected
    } == expected


def test_markers_are_those_of_the_platform(index: Callable[..., None]) -> None:
    """pip judges them by the interpreter that it runs on, here never 3.9 on riscv64."""
    platform = Platform(python="3.9", machine="riscv64", glibc=39)
    markers = ['python_version < "3.10"', 'platform_machine != "riscv64"', 'extra == "gpu"', 'extra == "cpu"']
    names = ["backport", "foreign", "cuda", "openmp"]
    index("top", "1", requires=[f"{name}>=2; {marker}" for name, marker in zip(names, markers, strict=True)])
    index("backport", "2", requires=["typing"])
    for name in ("foreign", "cuda", "openmp", "typing"):
        index(name, "2")
    found = versions(resolve([Requirement("top[gpu]")], platform))
    assert found == {"top": "1", "backport": "2", "typing": "2", "cuda": "2"}


def test_what_cannot_be_resolved_is_told_in_pips_words(index: Callable[..., None]) -> None:
    index("top", "1", requires=["absent>=3"])
    with pytest.raises(ResolutionError, match=r"pip cannot resolve it:\n.*absent>=3"):
        run_pip([Requirement("top")], PLATFORMS["JetPack 6"])


def test_a_source_package_of_tensorrt_stands_for_its_bindings() -> None:
    """Its libraries are another index's, and pip is not asked for them, nor for what only an extra of it requires."""
    asked: list[tuple[list[str], bool]] = []
    requires = {
        "tensorrt": ["tensorrt_cu13==11.4"],
        "tensorrt-cu13": ["tensorrt_cu13_libs==11.4", "tensorrt_cu13_bindings==11.4", 'numpy; extra == "numpy"'],
    }

    def pip(requirements: Sequence[Requirement], platform: Platform | None) -> dict[str, Distribution]:
        asked.append(([*map(str, requirements)], platform is None))
        names = [requirement.name.replace("_", "-") for requirement in requirements]
        return {name: Distribution(name, "11.4", tuple(map(Requirement, requires.get(name, ())))) for name in names}

    resolution = resolve([Requirement("tensorrt<12"), Requirement("onnx")], PLATFORMS["CUDA 13"], pip)
    assert versions(resolution) == {"onnx": "11.4", "tensorrt-cu13-bindings": "11.4"}
    assert [*map(str, resolution.elsewhere)] == ["tensorrt_cu13_libs==11.4"]
    wheels = ["tensorrt_cu13_bindings==11.4", "onnx"]
    assert asked == [(["tensorrt<12"], True), (["tensorrt_cu13==11.4"], True), (wheels, False)]


def test_a_pip_that_brings_something_else_is_not_asked_for_ever() -> None:
    def pip(requirements: Sequence[Requirement], platform: Platform | None) -> dict[str, Distribution]:
        return {"numpy": Distribution("numpy", "2.0")}

    with pytest.raises(ResolutionError, match=r"pip did not bring numpy<2\."):
        resolve([Requirement("numpy<2")], PLATFORMS["JetPack 6"], pip)


# --- what a platform must get


JETSON = {"numpy": "1.26.4", "onnx": "1.23.2", "nvidia-ml-py": "13.6"}
CUDA_12 = {"numpy": "2.5.5", "tensorrt-cu12-bindings": "11.4", "nvidia-cuda-runtime-cu12": "12.8.90"}
CUDA_13 = {"numpy": "2.5.5", "tensorrt-cu13-bindings": "11.4", "nvidia-cuda-runtime": "13.2.86", "cuda-toolkit": "13.2"}
LATER = "nvidia-cuda-runtime: expected CUDA 13.0 or a later 13, got 14.0"
ONE_MINOR = "expected one minor version of CUDA, got nvidia-cuda-runtime"


@pytest.mark.parametrize(
    ("platform", "found", "problems"),
    [
        ("JetPack 6", JETSON, []),
        ("JetPack 6", {**JETSON, "numpy": "2.2.6"}, ["numpy: expected >=1.26,<2, got 2.2.6"]),
        ("JetPack 7", {"onnx": "1.23.2"}, ["numpy: expected >=1.26,<2, got none"]),
        *(
            ("JetPack 6", {**JETSON, name: "12"}, [f"{name}: the system brings CUDA and TensorRT, no wheel may"])
            for name in ("nvidia-cuda-runtime-cu12", "cuda-bindings", "tensorrt-cu12-bindings", "nvidia-cublas")
        ),
        ("CUDA 12", CUDA_12, []),
        (
            "CUDA 12",
            {**CUDA_12, "nvidia-cuda-runtime-cu12": "12.6.77"},
            ["nvidia-cuda-runtime-cu12: expected CUDA 12.8 or a later 12, got 12.6.77"],
        ),
        ("CUDA 12", {**CUDA_12, "nvidia-cudnn-cu13": "9"}, ["nvidia-cudnn-cu13: expected packages of CUDA 12"]),
        ("CUDA 13", CUDA_13, []),
        ("CUDA 13", {**CUDA_13, "cuda-toolkit": "13.0.3"}, [f"{ONE_MINOR} 13.2.86, cuda-toolkit 13.0.3"]),
        ("CUDA 13", {**CUDA_13, "nvidia-cuda-runtime": "14.0"}, [LATER, f"{ONE_MINOR} 14.0, cuda-toolkit 13.2"]),
        ("CUDA 13", {"numpy": "2.5.5"}, ["expected the bindings of TensorRT for CUDA 13, got none"]),
    ],
)
def test_a_set_is_held_against_its_platform(platform: str, found: dict[str, str], problems: list[str]) -> None:
    resolution = Resolution({name: Distribution(name, version) for name, version in found.items()}, [])
    assert problems_of(resolution, PLATFORMS[platform]) == problems


def test_every_command_is_checked_whatever_fails_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "setup.cfg").write_text(SETUP + "modelopt =\n    from-source\n")
    (tmp_path / "docs/jetson.md").write_text("```bash\npip install . # JetPack 6\n```\n")
    (tmp_path / "docs/datacenter.md").write_text("```bash\npip install . tensorrt-cu12-bindings # CUDA 12\n```\n")
    numpy = {"3.10": "2.2.6", "3.11": "2.4.6", "3.12": "2.5.5"}

    def pip(requirements: Sequence[Requirement], platform: Platform | None) -> dict[str, Distribution]:
        if platform is None:
            return {"tensorrt": Distribution("tensorrt", "11.4", (Requirement("tensorrt-cu13-bindings"),))}
        versions = {requirement.name: "11.4" for requirement in requirements} | {"numpy": numpy[platform.python]}
        versions |= {"nvidia-ml-py": "13.6"}
        return {name: Distribution(name, version) for name, version in versions.items()}

    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "run_pip", pip)
    assert script.main([]) == 1
    everything = (
        "pip install '.[gpu,trt,cuda]'   (setup.cfg)\n"
        "  3 packages: numpy {}, nvidia-ml-py 13.6, tensorrt-cu13-bindings 11.4\n"
    )
    assert capsys.readouterr().out == (
        "JetPack 6: pip install .   (docs/jetson.md)\n  1 packages: numpy 2.2.6\n"
        "  WRONG numpy: expected >=1.26,<2, got 2.2.6\n"
        "CUDA 12: pip install . tensorrt-cu12-bindings   (docs/datacenter.md)\n"
        "  2 packages: numpy 2.5.5, tensorrt-cu12-bindings 11.4\n"
        + "".join(f"Python {python}: {everything.format(version)}" for python, version in numpy.items())
    )
    numpy["3.10"] = "1.26.4"
    assert script.main([]) == 0
