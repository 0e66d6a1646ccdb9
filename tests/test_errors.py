"""The error tree."""

from __future__ import annotations

import pytest

import nrd_trt
from nrd_trt import errors

PARENTS = {
    "NrdTrtError": (Exception,),
    "MissingDependencyError": (errors.NrdTrtError, ImportError),
    "ConfigError": (errors.NrdTrtError, ValueError),
    "ShapeError": (errors.NrdTrtError, ValueError),
    "CheckpointError": (errors.NrdTrtError,),
    "ExportError": (errors.NrdTrtError,),
    "BuildError": (errors.NrdTrtError,),
    "PluginError": (errors.BuildError,),
    "CalibrationError": (errors.NrdTrtError,),
    "RunnerError": (errors.NrdTrtError,),
    "BundleError": (errors.NrdTrtError,),
    "VideoError": (errors.NrdTrtError,),
}


def test_the_tree_is_complete() -> None:
    assert {name for name, value in vars(errors).items() if isinstance(value, type)} == PARENTS.keys()


@pytest.mark.parametrize(("name", "parents"), PARENTS.items())
def test_parents(name: str, parents: tuple[type, ...]) -> None:
    assert getattr(errors, name).__bases__ == parents
    assert getattr(nrd_trt, name) is getattr(errors, name)
    assert name in nrd_trt.__all__
