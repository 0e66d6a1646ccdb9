"""Settings and fixtures of all tests."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = pytest.StashKey[Path]()
"""What the workers of this run share; see `tests.helpers.run_folder`."""

# pytest listens to every logger, and torch then writes out each step of a trace.
logging.getLogger("torch.__trace").propagate = False


def pytest_configure(config: pytest.Config) -> None:
    inputs = getattr(config, "workerinput", None)  # of a pytest-xdist worker
    folder = inputs["shared_folder"] if inputs else tempfile.mkdtemp(prefix="nrd_trt-tests-")
    config.stash[FOLDER] = Path(folder)
    if inputs or not config.getoption("numprocesses", None):  # else workers run the tests, and wait for this process
        gc.disable()
        import torch

        from tests import helpers

        # Threads of torch spin; where they share cores with other workers a forward pass takes five times as long.
        torch.set_num_threads(1)
        helpers.shared_folder = config.stash[FOLDER]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["shared_folder"] = str(node.config.stash[FOLDER])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let no collection walk over what imports and collection made, which lives to the end: a tenth of all time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[FOLDER], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_trace_of_each_form() -> Iterator[None]:
    from tests import helpers

    with helpers.traces_remembered():
        yield


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid folder with `train` and `val`."""
    given = os.environ.get("NRD_TRT_CAMVID")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data" / "camvid"
    if not (folder / "val" / "images").is_dir():
        pytest.skip(f"no CamVid in {folder}: set NRD_TRT_CAMVID to a folder with train/ and val/ {{images,labels}}")
    return folder
