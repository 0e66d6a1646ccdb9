"""A bundle whose plan needs the plugin, and a machine on which no library lies about."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.building.plugin_machine import build_with_plugin, hide_libraries
from tests.helpers import made_once


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let no library be found unless a test names one."""
    hide_libraries(monkeypatch, tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def planned() -> Path:
    """A bundle that was built with the plugin on an Orin; do not change it."""
    return made_once("planned.nrd", build_with_plugin)
