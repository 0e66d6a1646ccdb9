"""Whether a plan fits the machine that would run it."""

from __future__ import annotations

from dataclasses import dataclass

from nrd_trt.engine.record import BuilderRecord
from nrd_trt.errors import RunnerError


@dataclass(frozen=True, kw_only=True)
class PlanHost:
    """What of a machine a plan depends on; None where it cannot be told.

    Attributes:
        os: ``"linux"``.
        machine: ``"x86_64"`` or ``"aarch64"``.
        builder: ``"tensorrt"`` or ``"tensorrt-rtx"``: the flavour that would run the plan.
        version: Version of that flavour.
        gpu: Name of the GPU.
        compute_capability: ``"8.7"``.
    """

    os: str
    machine: str
    builder: str
    version: str | None
    gpu: str | None
    compute_capability: str | None


def host_mismatches(built: BuilderRecord, host: PlanHost) -> list[str]:
    """Return one line per fact in which a host differs from what a plan was built for; empty when it fits."""
    pairs = (
        ("operating system", built.os, host.os),
        ("machine", built.machine, host.machine),
        ("builder", built.name, host.builder),
    )
    lines = [_differs(name, expected, got) for name, expected, got in pairs if expected != got]
    if not built.version_compatible and host.version is not None and built.version != host.version:
        lines.append(_differs("TensorRT version", built.version, host.version))
    if host.compute_capability is None:
        lines.append("no GPU that could run it was found")
    elif not _runs_on(built, host.compute_capability):
        wanted = " or ".join(built.compute_capabilities) + (" or later" if built.hardware_compatible else "")
        lines.append(_differs("compute capability", wanted, host.compute_capability))
    return lines


def check_host(built: BuilderRecord, host: PlanHost, *, plan: str, rebuild: str) -> None:
    """Raise `RunnerError` that names every fact in which a plan does not fit this machine, and how to rebuild it."""
    if lines := host_mismatches(built, host):
        raise RunnerError(f"{plan}: this machine cannot run the plan: {'; '.join(lines)}. Rebuild it with: {rebuild}")


def _runs_on(built: BuilderRecord, capability: str) -> bool:
    targets = built.compute_capabilities
    if not targets:  # TensorRT-RTX's default: every GPU that it supports
        return True
    if built.hardware_compatible:
        return any(_number(capability) >= _number(target) for target in targets)
    return capability in targets


def _number(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


def _differs(what: str, expected: object, got: object) -> str:
    return f"{what}: built for {expected}, this is {got}"
