"""`make check-resolution`: what it reads from the pages and what it refuses, with pip on a folder of tiny wheels."""

from __future__ import annotations

import configparser
import zipfile
from pathlib import Path

import pytest

from scripts.dev import check_resolution as script
from scripts.dev.check_resolution import (
    PLATFORMS,
    ResolutionError,
    documented_installs,
    documented_versions,
    problems_of,
    requirements_of,
    stale,
)
from tests.artefacts import REPOSITORY

PAGE = """
```bash
sudo apt install python3-venv
.venv/bin/pip install . 'numpy<2' \\
   extra    # JetPack 6, JetPack 7.2
```
```
pip install not-in-bash
```
"""


def test_a_command_is_read_for_each_platform_that_its_comment_names() -> None:
    words = [".", "numpy<2", "extra"]
    assert [*documented_installs("a.md", PAGE)] == [("JetPack 6", words), ("JetPack 7", words)]
    for line in ("pip install . # on a Jetson", "pip3 install x --pre # CUDA 12"):
        with pytest.raises(ResolutionError, match=r"a.md: `pip.*: expected no option, and a comment with one of"):
            list(documented_installs("a.md", f"```bash\n{line}\n```\n"))


def test_the_pages_have_an_install_for_every_platform() -> None:
    setup = configparser.RawConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    installs = [one for page in script.PAGES for one in documented_installs(page, (REPOSITORY / page).read_text())]
    assert {platform for platform, _ in installs} == {*PLATFORMS}
    for platform, words in installs:
        requirements = requirements_of(words, setup)
        tensorrt = [line for line in requirements if line.startswith(f"tensorrt-cu{platform[-2:]}-bindings")]
        assert ("numpy<2" in requirements, len(tensorrt)) == ((True, 0) if "JetPack" in platform else (False, 1))


@pytest.mark.parametrize(
    ("platform", "found", "problems"),
    [
        ("JetPack 6", {"numpy": "1.26.4", "nvidia-ml-py": "13"}, []),
        ("JetPack 6", {"numpy": "2.2.6"}, ["numpy: expected <2, got 2.2.6"]),
        ("CUDA 12", {"tensorrt-cu12-bindings": "11"}, ["numpy: expected >=2, got None"]),
        (
            "JetPack 7",
            {"numpy": "1.26.4", "cuda-bindings": "13"},
            ["cuda-bindings: the system brings CUDA and TensorRT, no wheel may"],
        ),
        ("CUDA 12", {"numpy": "2", "tensorrt-cu12-bindings": "11", "nvidia-cuda-runtime-cu12": "12.8.90"}, []),
        ("CUDA 13", {"numpy": "2", "tensorrt-cu13-bindings": "11", "cuda-toolkit": "13.2.2"}, []),
        (
            "CUDA 13",
            {"numpy": "2", "nvidia-cudnn-cu12": "13", "cuda-toolkit": "12.9"},
            ["nvidia-cudnn-cu12: expected CUDA ==13.*", "cuda-toolkit: expected CUDA ==13.*", "no TensorRT"],
        ),
    ],
)
def test_a_set_is_held_against_its_platform(platform: str, found: dict[str, str], problems: list[str]) -> None:
    assert problems_of(found, PLATFORMS[platform]) == problems


def test_the_pages_say_which_versions_are_resolved() -> None:
    texts = [(REPOSITORY / page).read_text() for page in script.PAGES]
    tables = {name: table for text in texts for name, table in documented_versions(text).items()}
    assert tables.keys() == PLATFORMS.keys()
    assert all({"numpy", "onnxruntime"} <= table.keys() for table in tables.values())
    assert {script.COLUMNS["TensorRT"], "torch", script.COLUMNS["its CUDA"]} <= tables["CUDA 12"].keys()
    table = {"numpy": "1.26.4", "torch": "2.10.0", script.COLUMNS["its CUDA"]: "12.8"}
    found = {"numpy": "1.26.4", "torch": "2.10.0", "nvidia-cuda-runtime-cu12": "12.8.90"}
    assert stale(found, table) == []
    assert stale({**found, "numpy": "2.0.0", "nvidia-cuda-runtime-cu12": "12.80.1"}, table) == [
        "numpy: the page says 1.26.4, got 2.0.0",
        "nvidia-cuda-runtime-cu12: the page says 12.8, got 12.80.1",
    ]


def test_wheels_and_markers_are_those_of_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through all of it: pages, pip on an index of its own, report, exit code."""
    extras = "[options.extras_require]\npycuda =\n    absent\nimage =\n    numpy\n"
    setup = f"[options]\ninstall_requires =\n    Top_x\n    numpy\n{extras}"
    (tmp_path / "Dockerfile").write_text("ARG BASE=x\nARG EXTRAS=image\n")
    (tmp_path / "setup.cfg").write_text(setup)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/jetson.md").write_text(
        "```bash\npip install . 'numpy<2' # JetPack 6\npip install . # JetPack 7\n```"
    )
    (tmp_path / "docs/datacenter.md").write_text("```bash\npip install numpy absent # CUDA 12\n```\n")
    requires = ('onnx; python_version < "3.11" and platform_machine == "aarch64"', 'absent; python_version == "3.9"')
    metadata = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    for stem, tag, lines in (
        ("Top_x-1", "py3-none-any", metadata),
        ("numpy-1.26", "cp310-cp310-manylinux_2_35_aarch64", ""),
        ("numpy-1.27", "cp310-cp310-manylinux_2_36_aarch64", ""),
        ("numpy-2.5", "py3-none-any", ""),
        ("onnx-1", "cp310-abi3-manylinux_2_17_aarch64", ""),
    ):
        name, version = stem.split("-")
        with zipfile.ZipFile(tmp_path / f"{stem}-{tag}.whl", "w") as wheel:
            wheel.writestr(
                f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}"
            )
            wheel.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.main() == 1
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == [
        "JetPack 6: pip install . 'numpy<2': numpy 1.26, onnx 1",
        "JetPack 7: pip install .: numpy 2.5",
        "  WRONG numpy: expected <2, got 2.5",
        "CUDA 12: pip install numpy absent: ",
    ]
    assert "absent" in told[4] and told[4].startswith("  WRONG ERROR")
    assert told[-4] == "Arm server: pip install '.[image]': numpy 2.5"
    assert told[-3:] == [f"Python 3.{minor}: pip install '.[image]': numpy 2.5" for minor in (10, 11, 12)]
