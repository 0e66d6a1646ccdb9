"""The thin scripts that the documentation names: each runs its verb. Maintainers' tools lie in `scripts/dev/`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nrd_trt.cli.main import VERBS
from tests.artefacts import REPOSITORY, environment

SCRIPTS = {
    "benchmark": "benchmark",
    "build_engine": "build",
    "calibrate": "calibrate",
    "export_onnx": "export",
    "train": "train",
    "validate": "validate",
    "video_demo": "video",
}


def test_scripts_are_those_that_the_documentation_names() -> None:
    assert {path.stem for path in (REPOSITORY / "scripts").glob("*.py")} == {*SCRIPTS, "demo"}


def test_services_that_cannot_be_installed_are_no_failure(tmp_path: Path) -> None:
    for program in ("bash", "env", "id"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    script = REPOSITORY / "scripts/install_test_services.sh"
    result = subprocess.run([str(script)], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert result.stdout.startswith("Test services are not installed (no apt-get); ")


def test_a_server_that_cannot_be_installed_is_no_failure(tmp_path: Path) -> None:
    for program in ("bash", "env", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    (tmp_path / "uname").write_text("#!/bin/sh\necho Linux aarch64\n")
    (tmp_path / "uname").chmod(0o755)
    script = REPOSITORY / "scripts/install_triton.sh"
    result = subprocess.run([str(script)], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert result.stdout.startswith("No Triton server was installed (the wheel of its server is for Linux on x86-64)")


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_shows_the_help_of_its_verb(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), "--help"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(COLUMNS="200", NO_COLOR="1")
    )
    assert result.returncode == 0, result.stderr
    summary = (VERBS[SCRIPTS[name]].__doc__ or "?").splitlines()[0]
    assert summary.rstrip(".").split(" (")[0] in " ".join(result.stdout.split())
    assert list(tmp_path.iterdir()) == []
