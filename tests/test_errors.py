"""The error tree."""

from __future__ import annotations

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
    "BatchError": (errors.NrdTrtError,),
}


def test_the_tree_is_complete_and_public() -> None:
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    assert {name: kind.__bases__ for name, kind in kinds.items()} == PARENTS
    for name in PARENTS:
        assert getattr(nrd_trt, name) is getattr(errors, name)
    assert PARENTS.keys() <= set(nrd_trt.__all__)
