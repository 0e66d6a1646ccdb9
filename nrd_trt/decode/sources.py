"""Where the sources of the CUDA kernels lie. Standard library only."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.errors import PluginError

_PACKAGE = Path(__file__).resolve().parents[1]
_PLACES = (_PACKAGE.parent / "plugins", _PACKAGE / "_plugins")  # of a checkout; of an installed package
_NEEDED = "nrd_decode/decode_kernel.h"


def kernel_sources() -> Path:
    """Return the folder ``plugins`` of this checkout, or the copy of its kernels in the installed package.

    Raises:
        PluginError: Neither is there.
    """
    for place in _PLACES:
        if (place / _NEEDED).is_file():
            return place
    tried = " or ".join(str(place / _NEEDED) for place in _PLACES)
    raise PluginError(f"kernel sources: expected {tried}, found neither; reinstall nrd-trt or use a whole checkout.")
