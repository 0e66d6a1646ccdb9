"""The rooms' rules hold for the package, and each rule notices a small planted tree that breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.architecture import (
    PACKAGE,
    ROOT,
    Check,
    Module,
    closed_doors,
    cycles,
    exports,
    hidden_torch,
    read_tree,
    startup,
    third_parties,
    too_long,
)


@cache
def _package() -> dict[str, Module]:
    return read_tree(ROOT)


_CHECKS: list[Check] = [closed_doors, cycles, third_parties, hidden_torch, exports, too_long]


def test_the_package_is_read() -> None:
    """The other tests say nothing where the tree is empty or imports are not seen."""
    assert {"errors", "specs", "engine.compat", "runtime.base", "calibration.ranges", PACKAGE} <= set(_package())
    assert "nrd_trt.specs" in {imported.target for imported in _package()["runtime.base"].imports}


@pytest.mark.parametrize("check", _CHECKS, ids=lambda check: check.__name__)
def test_package_keeps_the_rule(check: Check) -> None:
    problems = check(_package())
    assert not problems, "\n".join(["", *problems])


def test_import_is_light() -> None:
    """Time is not asserted here: CONTRIBUTING.md has the command that measures it."""
    assert startup(ROOT) == []


def test_all_names_can_be_had() -> None:
    import nrd_trt

    assert [name for name in nrd_trt.__all__ if not hasattr(nrd_trt, name)] == []


_LONG_BODY = "def f():\n    '''Summary.'''\n" + "    x = 1\n" * 61
_PLANTED: dict[str, tuple[Check, dict[str, str], str]] = {
    "room": (closed_doors, {"data/a.py": "from nrd_trt.model import b\n", "model/b.py": ""}, "data/a.py:1"),
    "room, lazily": (closed_doors, {"data/a.py": "def f():\n    import nrd_trt.cli.main\n"}, "data/a.py:2"),
    "room, for hints": (
        closed_doors,
        {"graph/a.py": "if TYPE_CHECKING:\n    from nrd_trt.engine.b import C\n"},
        "graph/a.py:2",
    ),
    "room, relative": (closed_doors, {"validate/a.py": "from ..runtime.b import C\n"}, "validate/a.py:1"),
    "other module of an open room": (
        closed_doors,
        {"benchmark/a.py": "from nrd_trt.runtime.ort import C\n"},
        "a.py:1",
    ),
    "room of the command line only": (
        closed_doors,
        {"pipeline/a.py": "def f():\n    from nrd_trt.calibration.ranges import g\n"},
        "pipeline may not import calibration.ranges",
    ),
    "room that is imported on use": (
        closed_doors,
        {"cli/a.py": "from nrd_trt.calibration.ranges import g\n"},
        "cli/a.py:1: calibration.ranges is imported with the module",
    ),
    "room beside the package": (
        closed_doors,
        {"../calibration/a.py": "import nrd_trt.model.c\n"},
        "calibration/a.py:1",
    ),
    "leaf": (closed_doors, {"specs.py": "import nrd_trt.files\n"}, "specs.py:1"),
    "package by name": (closed_doors, {"cli/a.py": "from nrd_trt import load_model\n"}, "cli/a.py:1"),
    "package by attribute": (closed_doors, {"cli/a.py": "import nrd_trt\nnrd_trt.load_model\n"}, "cli/a.py:2"),
    "unknown room": (closed_doors, {"utils/a.py": ""}, "not in the table"),
    "ring of two": (
        cycles,
        {"data/a.py": "from nrd_trt.data import b\n", "data/b.py": "def f():\n    from nrd_trt.data.a import x\n"},
        "data.a -> data.b -> data.a",
    ),
    "ring of three": (
        cycles,
        {"data/a.py": "from . import b\n", "data/b.py": "from . import c\n", "data/c.py": "from .a import x\n"},
        "data.a -> data.b -> data.c -> data.a",
    ),
    "torch": (third_parties, {"runtime/a.py": "import torch\n"}, "runtime/a.py:1: torch"),
    "torch, lazily": (third_parties, {"pipeline/a.py": "def f():\n    from torch import nn\n"}, "pipeline/a.py:2"),
    "tensorrt with the module": (third_parties, {"engine/compat.py": "import tensorrt\n"}, "imported with the module"),
    "tensorrt elsewhere": (
        third_parties,
        {"engine/builder.py": "def f():\n    require('tensorrt_rtx', extra='rtx')\n"},
        "engine/builder.py:2: tensorrt_rtx belongs",
    ),
    "polygraphy elsewhere": (
        third_parties,
        {"validate/a.py": "def f():\n    from polygraphy.logger import G_LOGGER\n"},
        "validate/a.py:2: polygraphy belongs",
    ),
    "cuda elsewhere": (
        third_parties,
        {"data/a.py": "def f():\n    from cuda.bindings import runtime\n"},
        "data/a.py:2",
    ),
    "onnxruntime with the module": (
        third_parties,
        {"runtime/a.py": "class A:\n    import onnxruntime\n"},
        "runtime/a.py:2",
    ),
    "onnxruntime by call": (third_parties, {"runtime/a.py": "ort = require('onnxruntime')\n"}, "runtime/a.py:1"),
    "torch by way of another": (
        hidden_torch,
        {"cli/a.py": "from nrd_trt.pipeline.b import f\n", "pipeline/b.py": "from nrd_trt.model import c\n"},
        "cli.a -> pipeline.b -> model.c",
    ),
    "torch by way of a folder": (
        hidden_torch,
        {
            "pipeline/b.py": "from nrd_trt.model.empty import x\n",
            "model/empty.py": "",
            "model/__init__.py": "import torch\n",
        },
        "pipeline.b -> model",
    ),
    "unsorted __all__": (exports, {"__init__.py": "__all__ = ['b', 'a', '__version__']\n"}, "not sorted"),
    "public name": (exports, {"__init__.py": "__all__ = []\ndef f(): ...\n"}, "f is public"),
    "missing name": (exports, {"__init__.py": "__all__ = ['__version__', 'g']\n"}, "g is in __all__ and not defined"),
    "long file": (too_long, {"data/a.py": "x = 1\n" * 400}, "data/a.py: 400 lines"),
    "long body": (too_long, {"data/a.py": _LONG_BODY}, "data/a.py:1: f has 61 lines"),
}


def _plant(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"__init__.py": "", "model/c.py": "import torch\n", **files}.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("name", _PLANTED)
def test_planted_violation_is_found(name: str, tmp_path: Path) -> None:
    check, files, expected = _PLANTED[name]
    problems = check(read_tree(_plant(tmp_path, files)))
    assert [problem for problem in problems if expected in problem], problems


def test_tree_that_keeps_the_rules_passes(tmp_path: Path) -> None:
    files = {
        "__init__.py": "__version__ = '1'\n__all__ = ['__version__', 'f']\ndef f():\n    from nrd_trt.model import c\n",
        "engine/compat.py": "def f():\n    require('tensorrt')\n    import cuda\n",
        "pipeline/b.py": "import nrd_trt\nprint(nrd_trt.__version__)\ndef f():\n    from nrd_trt.model import c\n",
        "pipeline/d.py": "if TYPE_CHECKING:\n    from nrd_trt.pipeline.e import x\nfrom nrd_trt.runtime import base\n",
        "pipeline/e.py": "from nrd_trt.pipeline import d\nfrom nrd_trt import __version__\n",
        "runtime/base.py": "def f():\n    import onnxruntime\n",
        "validate/a.py": "from nrd_trt.runtime.base import Runner\n",
    }
    modules = read_tree(_plant(tmp_path, files))
    assert {check.__name__: check(modules) for check in _CHECKS} == {check.__name__: [] for check in _CHECKS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import numpy\n", "loads numpy"),
        ("import email.mime.text, http.server, sqlite3, xml.dom.minidom\n", "modules, over"),
    ],
)
def test_heavy_import_is_found(text: str, expected: str, tmp_path: Path) -> None:
    problems = startup(_plant(tmp_path, {"__init__.py": text}))
    assert [problem for problem in problems if expected in problem], problems
