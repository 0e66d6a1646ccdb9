"""Which machines a plan fits, and what is said of those that it does not."""

from __future__ import annotations

from typing import Any

import pytest

from nrd_trt.engine.plan_host import PlanHost, check_host, host_mismatches
from nrd_trt.errors import RunnerError

BUILT: dict[str, Any] = {
    "os": "linux",
    "machine": "x86_64",
    "name": "tensorrt",
    "version": "10.13.2",
    "compute_capabilities": ["8.6"],
    "version_compatible": False,
    "hardware_compatible": False,
}
HERE: dict[str, Any] = {
    "os": "linux",
    "machine": "x86_64",
    "builder": "tensorrt",
    "version": "10.13.2",
    "gpu": "A10",
    "compute_capability": "8.6",
}
NO_GPU = "no GPU that could run it was found"
VERSION = "TensorRT version: built for 10.13.2, this is 11.0.0"


@pytest.mark.parametrize(
    ("built", "here", "expected"),
    [
        ({}, {}, []),
        ({}, {"gpu": "RTX 3090"}, []),
        ({}, {"os": "windows"}, ["operating system: built for linux, this is windows"]),
        ({}, {"machine": "aarch64"}, ["machine: built for x86_64, this is aarch64"]),
        ({}, {"builder": "tensorrt-rtx"}, ["builder: built for tensorrt, this is tensorrt-rtx"]),
        ({}, {"version": "11.0.0"}, [VERSION]),
        ({}, {"version": None}, []),
        ({"version_compatible": True}, {"version": "11.0.0"}, []),
        ({}, {"gpu": None, "compute_capability": None}, [NO_GPU]),
        ({"compute_capabilities": []}, {"gpu": None, "compute_capability": None}, [NO_GPU]),
        ({}, {"compute_capability": "8.9"}, ["compute capability: built for 8.6, this is 8.9"]),
        ({"compute_capabilities": ["8.6", "8.9"]}, {"compute_capability": "8.9"}, []),
        (
            {"compute_capabilities": ["8.6", "8.9"]},
            {"compute_capability": "12.0"},
            ["compute capability: built for 8.6 or 8.9, this is 12.0"],
        ),
        ({"hardware_compatible": True}, {"compute_capability": "8.9"}, []),
        ({"hardware_compatible": True}, {"compute_capability": "12.0"}, []),
        ({"hardware_compatible": True, "compute_capabilities": ["10.0"]}, {"compute_capability": "12.0"}, []),
        (
            {"hardware_compatible": True, "compute_capabilities": ["10.0"]},
            {"compute_capability": "9.0"},
            ["compute capability: built for 10.0 or later, this is 9.0"],
        ),
        ({"compute_capabilities": []}, {"compute_capability": "12.0"}, []),
    ],
)
def test_mismatches(built: dict[str, Any], here: dict[str, Any], expected: list[str]) -> None:
    assert host_mismatches({**BUILT, **built}, PlanHost(**{**HERE, **here})) == expected


def test_error_names_every_difference_and_the_rebuild() -> None:
    host = PlanHost(
        os="windows",
        machine="aarch64",
        builder="tensorrt-rtx",
        version="11.0.0",
        gpu="Orin",
        compute_capability="8.7",
    )
    with pytest.raises(RunnerError) as caught:
        check_host(BUILT, host, plan="a.nrd/engine.plan", rebuild="nrd-trt build a.nrd -o a.nrd")
    assert str(caught.value) == (
        "a.nrd/engine.plan: this machine cannot run the plan: operating system: built for linux, this is windows; "
        "machine: built for x86_64, this is aarch64; builder: built for tensorrt, this is tensorrt-rtx; "
        f"{VERSION}; compute capability: built for 8.6, this is 8.7. Rebuild it with: nrd-trt build a.nrd -o a.nrd"
    )


def test_a_fitting_host_is_no_error() -> None:
    check_host(BUILT, PlanHost(**HERE), plan="a", rebuild="b")
