"""The cases of the budget: which kernels run on which weights, and how one is measured."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nrd_trt.specs import STRIDE

from .cost import Cost, Launch, Sample, cost_of
from .devices import ARCHITECTURES
from .multiprocessor import ExecutionError, Multiprocessor, library
from .problems import (
    FACTOR,
    PATCH,
    Element,
    Problem,
    Theta,
    make_problem,
    natural_inputs,
    random_inputs,
)

CLASSES = (11, 19, 59, 60, 150)
SIZE_HW = (1024, 2048)
GENERIC = 1
TENSOR_CORE_TOLERANCE = 1e-5
"""Of the largest logit. Masks may differ where the two best are nearer."""

_INTERIOR: dict[Theta, tuple[int, int]] = {"natural": (6, 8), "random": (2, 6)}
"""Rows and columns of the lattice of blocks; random weights are alike everywhere."""
_CHECKED = 6
_OFFSET = FACTOR // 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel on one kind of weights.

    Attributes:
        architecture: Compute capability without its point.
        classes: K.
        element: Type of theta and guidance.
        theta: Where they come from.
        variant: Number of the variant in decode_problem.h.
        kernel: Name of the kernel that the launcher takes for it.
        shared_bytes: Dynamic shared memory of the launch.
    """

    architecture: int
    classes: int
    element: Element
    theta: Theta
    variant: int
    kernel: str
    shared_bytes: int

    @property
    def name(self) -> str:
        """One word by which a case is chosen and its budget found."""
        parts = f"sm_{self.architecture}", f"k{self.classes}", self.element, self.theta, variant_name(self.variant)
        return ".".join(parts)


def variant_name(number: int) -> str:
    """Return the name that the Python operators give a variant."""
    from nrd_trt.decode.cuda_op import VARIANTS

    return VARIANTS[number]


def list_cases(machine: Multiprocessor, *, elements: Sequence[Element], thetas: Sequence[Theta]) -> Iterator[Case]:
    """Go over the cases of one architecture, with every variant that the launcher supports."""
    for classes in CLASSES:
        for element in elements:
            small = make_problem(random_inputs(classes, (1, 1)), classes, element)
            for variant in range(GENERIC, library().machineVariants()):
                planned = machine.plan(small.decode(small.empty_mask(), variant))
                if planned is None:
                    continue
                for theta in thetas:
                    yield Case(
                        architecture=machine.architecture,
                        classes=classes,
                        element=element,
                        theta=theta,
                        variant=variant,
                        kernel=planned.kernel.decode(),
                        shared_bytes=planned.shared_bytes,
                    )


@cache
def problem_of(classes: int, element: Element, theta: Theta) -> Problem:
    """Return the image that a case decodes."""
    patches_hw = SIZE_HW[0] // STRIDE, SIZE_HW[1] // STRIDE
    inputs = random_inputs(classes, patches_hw) if theta == "random" else natural_inputs(classes, SIZE_HW)
    return make_problem(inputs, classes, element)


def measure(machine: Multiprocessor, case: Case, phases: Mapping[str, Sequence[str]]) -> Cost:
    """Execute blocks of a case inside the image and at its border, and check the mask that they draw.

    Raises:
        ExecutionError: The machine stopped, or the mask is not the host reference's.
    """
    problem = problem_of(case.classes, case.element, case.theta)
    rows, columns = problem.patches_hw
    interior, border = _sampled(rows, columns, _INTERIOR[case.theta])
    border_share = 1 - (rows - 2) * (columns - 2) / (rows * columns)
    mask = problem.empty_mask()
    request = problem.decode(mask, case.variant)
    samples: list[Sample] = []
    machine.load(case.kernel)
    machine.reset(case.kernel)
    before = machine.counts(case.kernel)
    for blocks, share in ((interior, 1 - border_share), (border, border_share)):
        machine.decode(request, blocks)
        after = machine.counts(case.kernel)
        samples.append(Sample(counts=_difference(after, before), blocks=len(blocks), share=share))
        before = after
    for block in [*interior[:: len(interior) // _CHECKED], *border]:
        _check_block(problem, case, mask, block)
    theta_bytes, guidance_bytes = (array[0, 0].nbytes for array in (problem.theta, problem.guidance))
    launch = Launch(
        kernel=case.kernel,
        blocks=rows * columns,
        shared_bytes=case.shared_bytes,
        bytes_per_block=theta_bytes + PATCH * PATCH * guidance_bytes + STRIDE * STRIDE,
    )
    return cost_of(machine, launch, samples, phases)


def _difference(after: NDArray[np.void], before: NDArray[np.void]) -> NDArray[np.void]:
    out = np.zeros_like(after)
    for name in out.dtype.names or ():
        out[name] = after[name] - before[name]
    return out


def _sampled(rows: int, columns: int, lattice: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Return blocks on a lattice inside the image, and corners and sides; a block draws one patch."""
    down = np.linspace(1, rows - 2, lattice[0]).astype(int)
    across = np.linspace(1, columns - 2, lattice[1]).astype(int)
    interior = [int(row * columns + column) for row in down for column in across]
    middle, centre = rows // 2, columns // 2
    sides = [(0, centre), (rows - 1, centre), (middle, 0), (middle, columns - 1)]
    corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]
    return interior, [row * columns + column for row, column in sides + corners]


def _check_block(problem: Problem, case: Case, mask: NDArray[np.uint8], block: int) -> None:
    """Compare what a block drew with the reference on its neighbourhood."""
    rows, columns = problem.patches_hw
    row, column = divmod(block, columns)
    top, left = max(row - 1, 0), max(column - 1, 0)
    want, gaps = _reference(case.classes, case.element, case.theta, block)
    first = [STRIDE * place + (_OFFSET if place else 0) for place in (row, column)]
    last = [min(STRIDE * (place + 1) + _OFFSET, STRIDE * count) for place, count in ((row, rows), (column, columns))]
    drawn = mask[first[0] : last[0], first[1] : last[1]]
    inside = np.s_[first[0] - STRIDE * top : last[0] - STRIDE * top, first[1] - STRIDE * left : last[1] - STRIDE * left]
    wrong = drawn != want[inside]
    if "tensor" in case.kernel:
        wrong &= gaps[inside] > TENSOR_CORE_TOLERANCE
    if wrong.any():
        raise ExecutionError(
            f"{case.name}, block {block}: {wrong.sum()} of {wrong.size} pixels are not those of the host reference"
        )


@cache
def _reference(
    classes: int, element: Element, theta: Theta, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the mask around a block, and each pixel's gap of the two best logits over the largest logit."""
    problem = problem_of(classes, element, theta)
    rows, columns = problem.patches_hw
    row, column = divmod(block, columns)
    part = problem.part(max(row - 1, 0), max(column - 1, 0), min(row + 2, rows), min(column + 2, columns))
    return part.reference(), _gaps(part)


def _gaps(problem: Problem) -> NDArray[np.float32]:
    import torch

    from nrd_trt.decode.reference import upsample

    rows, columns = (PATCH * count for count in problem.patches_hw)
    logits = np.empty((1, problem.classes, rows, columns), np.float32)
    wide = problem.widened()
    request = wide.decode(np.empty(0, np.uint8), 0)
    library().machineReferenceLogits(ctypes.byref(request), logits.ctypes.data_as(ctypes.c_void_p))
    best = upsample(torch.from_numpy(logits), FACTOR).topk(2, dim=1).values[0]
    gaps: NDArray[np.float32] = ((best[0] - best[1]) / np.abs(logits).max()).numpy()
    return gaps


def make_machine(architecture: int, cubin: Path) -> Multiprocessor:
    """Return the machine of an architecture with its limits."""
    return Multiprocessor.open(architecture, cubin, shared_bytes=ARCHITECTURES[architecture].block_shared_bytes)
