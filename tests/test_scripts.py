"""The doors in `scripts/`: each opens, and leads to the verb that it names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from nrd_trt.cli.main import VERBS
from tests.artefacts import REPOSITORY, environment

DOORS = sorted(path for path in (REPOSITORY / "scripts").glob("*.py") if "run_verb" in path.read_text())
VERB_OF = {"build_engine": "build", "export_onnx": "export", "inspect_engine": "inspect", "video_demo": "video"}


def test_there_are_doors() -> None:
    assert {"train", "evaluate", "complexity", "build_engine", "validate"} <= {path.stem for path in DOORS}
    assert {VERB_OF.get(path.stem, path.stem) for path in DOORS} <= VERBS.keys()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_script_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.name)
def test_door_shows_the_help_of_its_verb(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(COLUMNS="200", NO_COLOR="1")
    )
    assert result.returncode == 0, result.stderr
    verb = VERB_OF.get(path.stem, path.stem)
    summary = (VERBS[verb].__doc__ or "?").splitlines()[0]
    assert summary.rstrip(".").split(" (")[0] in " ".join(result.stdout.split())
    assert list(tmp_path.iterdir()) == []
