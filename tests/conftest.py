"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent


# Threads of torch spin; where they share cores with other workers a forward pass takes five times as long.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The CamVid folder with `train` and `val`."""
    given = os.environ.get("NRD_TRT_CAMVID")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data" / "camvid"
    if not (folder / "val" / "images").is_dir():
        pytest.skip(f"no CamVid in {folder}: set NRD_TRT_CAMVID to a folder with train/ and val/ {{images,labels}}")
    return folder
