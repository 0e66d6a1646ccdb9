"""Try a TensorRT flavour in a process of its own: ``python -m nrd_trt.machine.doctor.trial tensorrt-rtx 8.9``.

A broken installation may abort the process that imports it, and TensorRT prints to stdout; the report is the last line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from nrd_trt.engine.compat import ConfigOptions, load_tensorrt
from nrd_trt.errors import BuildError, ConfigError, MissingDependencyError


def try_flavour(flavour: str, compute_capability: str | None) -> dict[str, Any]:
    """Import a flavour and make a builder.

    Args:
        flavour: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        compute_capability: Of this machine's GPU, or None.

    Returns:
        ``version`` (None where it cannot be imported), ``builds``, ``knows_gpu`` (whether the GPU is among the targets
        that it builds for; None where it has no such list) and ``error``.
    """
    result: dict[str, Any] = {"version": None, "builds": False, "knows_gpu": None, "error": None}
    try:
        tensorrt = load_tensorrt(flavour)
        result["version"] = tensorrt.version
        builder = tensorrt.builder(tensorrt.log(lambda severity, text: None))
        result["builds"] = True
    except (MissingDependencyError, BuildError) as exc:
        result["error"] = str(exc.__cause__ or exc) if result["version"] is None else str(exc)
        return result
    if flavour == "tensorrt-rtx" and compute_capability:
        try:
            tensorrt.config(builder, ConfigOptions(compute_capabilities=(compute_capability,)))
            result["knows_gpu"] = True
        except ConfigError:
            result["knows_gpu"] = False
    return result


if __name__ == "__main__":
    print(json.dumps(try_flavour(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))
