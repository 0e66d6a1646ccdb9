"""Whether a plan fits the machine that would run it. Imports errors only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nrd_trt.errors import RunnerError


@dataclass(frozen=True, kw_only=True)
class Host:
    """What of a machine a plan depends on; None where it cannot be told.

    Attributes:
        os: ``"linux"``.
        machine: ``"x86_64"`` or ``"aarch64"``.
        builder: ``"tensorrt"`` or ``"tensorrt-rtx"``: the flavour that would run the plan.
        version: Its version.
        gpu: Name of the GPU.
        compute_capability: ``"8.7"``.
    """

    os: str
    machine: str
    builder: str
    version: str | None
    gpu: str | None
    compute_capability: str | None


def host_mismatches(built: Mapping[str, Any], host: Host) -> list[str]:
    """Return one line per fact in which a host differs from what a plan was built for; empty when it fits.

    Args:
        built: ``builder`` of a bundle's facts.
        host: This machine.
    """
    lines = [
        _differs(name, built.get(key), value)
        for name, key, value in (
            ("operating system", "os", host.os),
            ("machine", "machine", host.machine),
            ("builder", "name", host.builder),
        )
        if built.get(key) != value
    ]
    if not built.get("version_compatible") and host.version is not None and built.get("version") != host.version:
        lines.append(_differs("TensorRT version", built.get("version"), host.version))
    if host.compute_capability is None:
        lines.append("no GPU that could run it was found")
    elif not _runs_on(built, host.compute_capability):
        wanted = " or ".join(built["compute_capabilities"]) + (" or later" if built.get("hardware_compatible") else "")
        lines.append(_differs("compute capability", wanted, host.compute_capability))
    return lines


def check_host(built: Mapping[str, Any], host: Host, *, plan: str, rebuild: str) -> None:
    """Raise `RunnerError` that names every fact in which a plan does not fit this machine, and how to rebuild it."""
    if lines := host_mismatches(built, host):
        raise RunnerError(f"{plan}: this machine cannot run the plan: {'; '.join(lines)}. Rebuild it with: {rebuild}")


def _runs_on(built: Mapping[str, Any], capability: str) -> bool:
    targets = built.get("compute_capabilities") or []
    if not targets:  # TensorRT-RTX's default: every GPU that it supports
        return True
    if built.get("hardware_compatible"):
        return any(_number(capability) >= _number(target) for target in targets)
    return capability in targets


def _number(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


def _differs(what: str, expected: object, got: object) -> str:
    return f"{what}: built for {expected}, this is {got}"
