"""The command line inside this process, and pictures to give it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nrd_trt.cli.main import app
from tests.artefacts import listing, scenes
from tests.building.conftest import no_library, planned  # noqa: F401  fixtures of the plugin's options

Result = Any  # of the runner; its module differs between versions of Typer
Invoke = Callable[..., Result]


@pytest.fixture
def nrd_trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Invoke]:
    """Run `nrd-trt` in this process; the result has `exit_code`, `stdout` and `stderr`."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)))

    yield invoke


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two labelled scenes: `images/` and `labels/`."""
    return scenes(tmp_path / "data", 2, labels=True)


def one_object(stdout: str) -> dict[str, Any]:
    """Return the one JSON object that stdout must be."""
    found: dict[str, Any] = json.loads(stdout)
    if not isinstance(found, dict):
        raise TypeError(f"expected a JSON object, got {stdout!r}")
    return found


def printed(result: Result) -> dict[str, Any]:
    """Return the JSON object of a run that succeeded."""
    assert result.exit_code == 0, result.stderr
    return one_object(result.stdout)


def check_refused(result: Result, folder: Path, before: list[str], *expected: str) -> None:
    """Exit 2, the message (regular expressions) on stderr without a traceback, one JSON object, nothing left."""
    assert result.exit_code == 2, (result.stdout, result.stderr)
    for text in expected:
        assert re.search(text, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    found = one_object(result.stdout)["error"]
    assert found.keys() == {"type", "message"}
    assert f"error: {found['message']}" in result.stderr
    assert listing(folder) == before
