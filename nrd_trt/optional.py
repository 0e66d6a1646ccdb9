"""Lazy imports of optional packages with an installation hint. Leaf module."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType

from nrd_trt.errors import MissingDependencyError

_SYSTEM_HINTS = {
    "tensorrt": " On a Jetson it comes with JetPack: use the system Python, or a venv that sees its packages.",
}


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module at its first use.

    Args:
        module: Import name, e.g. ``"tensorrt_rtx"``.
        extra: The extra of this package that installs it, e.g. ``"rtx"``.
        purpose: What it is needed for, e.g. ``"building TensorRT-RTX engines"``.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: The module cannot be imported; the message names the remedy.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        hint = _SYSTEM_HINTS.get(module, "")
        raise MissingDependencyError(
            f"{purpose} needs the package {module!r}, which cannot be imported ({exc}). "
            f"Install it with `pip install 'nrd-trt[{extra}]'`.{hint}"
        ) from exc


def nvtx_range(name: str) -> AbstractContextManager[object]:
    """Return a range that NVIDIA's profilers show, e.g. nsys; it is nothing where the package nvtx is not installed."""
    return _annotation()(name)


@cache
def _annotation() -> Callable[[str], AbstractContextManager[object]]:
    try:
        annotate: Callable[..., AbstractContextManager[object]] = importlib.import_module("nvtx").annotate
    except ImportError:
        nothing = nullcontext()
        return lambda name: nothing
    return lambda name: annotate(name, domain="nrd_trt")
