"""The real `polygraphy`, as a process that finds this checkout's extension. Nothing here asserts.

An entry point is found by a distribution's metadata, and those of an installed checkout may be older than its
setup.cfg. So they are written anew from setup.cfg and lie first on the path, where they stand for the installed ones.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

import nrd_trt
from tests.artefacts import REPOSITORY, environment, workspace
from tests.warm.programs import programs

SCRIPTS = REPOSITORY / "nrd_trt/polygraphy"
IMAGES = ("--data-loader-script", SCRIPTS / "load_images.py")
MASKS = ("--compare-func-script", SCRIPTS / "compare_masks.py")

needs_polygraphy = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None, reason="needs polygraphy: pip install 'nrd-trt[polygraphy]'"
)


@cache
def metadata_folder() -> Path:
    """A folder with the metadata that `pip install` makes of setup.cfg, as far as entry points go."""
    config = configparser.RawConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    groups = config["options.entry_points"].items()
    folder = workspace() / "metadata"
    info = folder / f"nrd_trt-{nrd_trt.__version__}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: nrd-trt\nVersion: {nrd_trt.__version__}\n")
    (info / "entry_points.txt").write_text("\n".join(f"[{group}]{lines}\n" for group, lines in groups))
    return folder


def tool_environment(**changes: str) -> dict[str, str]:
    """Return the environment in which `polygraphy` and `nrd-trt` are this checkout's."""
    own = {name: text for name, text in environment().items() if not name.startswith("NRD_POLYGRAPHY_")}
    path = {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{metadata_folder()}",
        "PATH": f"{programs()}{os.pathsep}{own.get('PATH', '')}",
    }
    return {**own, **path, **changes}


def polygraphy(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `polygraphy`; output and errors are both in `stdout`. Changes to the environment are settings of the scripts,
    without their prefix."""
    return subprocess.run(
        [str(programs() / "polygraphy"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=tool_environment(**{f"NRD_POLYGRAPHY_{name}": text for name, text in changes.items()}),
        timeout=300,
    )
