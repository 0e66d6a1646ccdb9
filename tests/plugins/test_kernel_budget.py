"""The machine that executes the kernels' machine code counts rightly, and the kernels draw the host reference's masks.

What runs here is what nvcc made of the kernels, instruction by instruction (scripts/dev/sass): a proof of the machine
code on a CPU. Counts are held against two listings that were counted by hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.dev.sass import budgets, toolchain
from scripts.dev.sass.cost import Cost, Time
from scripts.dev.sass.cubin import KernelImage, read_cubin
from scripts.dev.sass.devices import ARCHITECTURES
from scripts.dev.sass.lints import find_faults
from scripts.dev.sass.listing import read_kernel, split_listing
from scripts.dev.sass.multiprocessor import ExecutionError, Multiprocessor, allocate, allow, library
from scripts.dev.sass.problems import ELEMENTS, Element, make_problem, random_inputs
from tests.artefacts import REPOSITORY
from tests.helpers import made_once
from tests.plugins.test_kernel_compilation import compiled_once
from tests.warm.programs import python

BY_HAND = Path(__file__).with_name("counted_by_hand.sass")
OPERATIONS = Path(__file__).with_name("operations.cu")
POISON = 0x7FBADBAD
THREADS = 64
PAGE = REPOSITORY / "docs/kernel-costs.md"


def missing() -> str | None:
    """What the machine lacks here, or None."""
    try:
        toolchain.find_headers()
        toolchain.find_disassembler()
    except toolchain.MissingToolError as exc:
        return str(exc)
    return None if shutil.which("g++") else "needs g++"


NEEDS_COMPILERS = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def machine_of(listings: dict[str, str]) -> Multiprocessor:
    """Kernels of a listing, with one parameter of 8 bytes."""
    images = {
        name: KernelImage(
            name=name,
            code=b"",
            registers=32,
            stack_bytes=0,
            shared_bytes=0,
            constants=b"",
            parameter_offset=0x210,
            parameter_bytes=8,
        )
        for name in listings
    }
    return Multiprocessor(87, images, lambda: listings)


def run_by_hand(name: str, text: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What a kernel of the listing stores, and its counts."""
    listings = split_listing(BY_HAND.read_text()) if text is None else {name: text}
    machine, out = machine_of(listings), allocate((THREADS,), np.uint32)
    allow((out, True))
    machine.launch(name, 1, THREADS, 8 * THREADS, out.ctypes.data.to_bytes(8, "little"))
    return out, machine.counts(name)


@NEEDS_COMPILERS
def test_a_branch_that_splits_a_warp_is_counted_as_by_hand() -> None:
    out, counts = run_by_hand("diverge")
    thread = np.arange(THREADS)
    assert np.array_equal(out, np.where(thread < 12, thread * thread + 1, thread + 100))
    assert counts["issues"][:, 0].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1]
    assert counts["issues"][:, 1].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
    assert counts["lanes"].tolist() == [64, 64, 64, 12, 52, 52, 12, 12, 64, 64, 64, 64, 64, 64]
    assert counts["sectors"].sum() == counts["fewest_sectors"].sum() == THREADS * 4 // 32


@NEEDS_COMPILERS
def test_a_loop_and_a_barrier_are_counted_as_by_hand() -> None:
    out, counts = run_by_hand("loop")
    assert np.array_equal(out, 5 * (np.arange(THREADS) % 4 + 1))
    per_warp = [1, 1, 1, 1, 4, 4, 4, 4, 4, 1, 1, 1, 1, 1, 1, 1, 1]
    assert counts["issues"][:, 0].tolist() == counts["issues"][:, 1].tolist() == per_warp
    assert counts["lanes"][4] == 2 * 8 * (1 + 2 + 3 + 4)
    assert (counts["wavefronts"].sum(), counts["fewest_wavefronts"].sum()) == (2 * 2 * 2, 2 * 2)


@NEEDS_COMPILERS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("STS [R0.X8], R2", "STS [R0.X16], R2"), "lies outside"),
        (("STG.E [R4.64], R2", "STG.E [R4.64+0x100], R2"), "lies outside the tensors"),
        (("MOV R2, RZ", "MOV.SPREAD R2, RZ"), "MOV.SPREAD is not known"),
        (("BAR.SYNC.DEFER_BLOCKING 0x0", "@!P0 BAR.SYNC.DEFER_BLOCKING 0x0"), None),
        (("BAR.SYNC.DEFER_BLOCKING 0x0", "BAR.SYNC.DEFER_BLOCKING 0x1"), "only the block's own barrier"),
        (("BSYNC B0", "WARPSYNC 0x1"), "comes to the block's barrier alone"),
    ],
)
def test_what_cannot_be_right_stops_the_machine(change: tuple[str, str], message: str | None) -> None:
    text = split_listing(BY_HAND.read_text())["loop"]
    assert change[0] in text
    if message is None:
        run_by_hand("loop", text.replace(*change))  # all threads have left the loop: the predicate holds for each
        return
    with pytest.raises(ExecutionError, match=message):
        run_by_hand("loop", text.replace(*change))


@NEEDS_COMPILERS
def test_a_lost_barrier_shows_as_values_that_nobody_wrote() -> None:
    text = split_listing(BY_HAND.read_text())["loop"]
    out, _ = run_by_hand("loop", text.replace("BAR.SYNC.DEFER_BLOCKING 0x0", "NOP"))
    assert not np.array_equal(out, 5 * (np.arange(THREADS) % 4 + 1))


FEW = re.compile(r"NRD_(ANY_SHAPE\(fp16|RELEASED\(\w+, fp16|CLASSES\(1[19],)")
"""The kernels of fp16, and those for 11 and 19 classes on tensor cores: nvcc takes a third of the time of all."""
EMPTY = """
#undef NRD_LOGITS
#undef NRD_MASK
#define NRD_LOGITS(name, ...) extern "C" __global__ void nrd_logits_##name(__grid_constant__ LogitsArguments const a) {}
#define NRD_MASK(name, ...) extern "C" __global__ void nrd_mask_##name(__grid_constant__ MaskArguments const a) {}
"""


def compile_few(cubin: Path) -> None:
    """Compile `FEW`; the others, whose names the launcher looks for too, are empty."""
    text = toolchain.SOURCE.read_text().replace('"generic_kernel.h"', f'"{toolchain.KERNELS}/generic_kernel.h"')
    rows = re.findall(r"^NRD_.*$", text, re.MULTILINE)
    few, others = [row for row in rows if FEW.match(row)], [row for row in rows if not FEW.match(row)]
    source = cubin.with_suffix(".cu")
    source.write_text("\n".join([text[: text.index(f"\n{rows[0]}")], *few, EMPTY, *others, "}\n"]))
    toolchain.compile_cubin(source, 87, cubin)


def cubin_of_sm_87(*, few: bool = True) -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc; install the CUDA toolkit")
    return made_once("few_87.cubin", compile_few) if few else compiled_once(87)


@cache
def kernels_for_sm_87(*, few: bool = True) -> Multiprocessor:
    return Multiprocessor.open(87, cubin_of_sm_87(few=few))


@NEEDS_COMPILERS
@pytest.mark.parametrize(
    ("element", "classes"),
    [
        pytest.param(element, classes, marks=() if (element, classes) == ("fp16", 19) else pytest.mark.all_combinations)
        for element in ELEMENTS
        for classes in (19, 30)
    ],
)
def test_machine_code_draws_the_masks_of_the_host_reference(element: Element, classes: int) -> None:
    """Every variant that the launcher takes for a class count in one chunk and for one in two.

    `make check-kernels` holds every type, on five numbers of classes, against the same reference.
    """
    machine = kernels_for_sm_87(few=(element, classes) == ("fp16", 19))
    problem = make_problem(random_inputs(classes, (2, 2), seed=classes), classes, element)
    want, drawn = problem.reference(), 0
    for variant in range(1, library().machineVariants()):
        mask = problem.empty_mask()
        planned = machine.plan(problem.decode(mask, variant))
        if planned is None or b"generic" in planned.kernel:
            continue
        machine.decode(problem.decode(mask, variant), range(planned.blocks))
        different = (mask != want).mean()
        assert different == 0 if b"tensor" not in planned.kernel else different < 1e-3, planned.kernel
        drawn += 1
    assert drawn >= (1 if element == "fp32" else 2)


@NEEDS_COMPILERS
@pytest.mark.parametrize("planar", [False, True], ids=["channels_last", "planar"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16"])
def test_machine_code_takes_every_layout_and_mask_type_in_either_order_of_warps(planar: bool, dtype: str) -> None:
    machine = kernels_for_sm_87()
    problem = make_problem(random_inputs(11, (1, 2)), 11, "fp16")
    want, given = problem.reference(), problem.in_planes() if planar else problem
    for variant in (2, 3):
        for order in (False, True):
            mask = given.empty_mask(dtype)
            machine.decode(given.decode(mask, variant), range(2), last_warp_first=order)
            assert (mask != want).mean() <= (0 if variant == 2 else 1e-3)


@NEEDS_COMPILERS
def test_kernels_of_fixed_sizes_spill_nothing() -> None:
    """Those of `FEW`, for the logits as well; test_kernel_compilation.py asks it of all."""
    kernels = read_cubin(cubin_of_sm_87())
    fixed = [kernel for name, kernel in kernels.items() if re.search("(simt|tensor_core)_fp16$|_1[19]$", name)]
    assert len(fixed) == 8
    assert all(kernel.stack_bytes == 0 and 0 < kernel.registers <= 128 for kernel in fixed)


def test_blocks_of_a_multiprocessor() -> None:
    sm_87, sm_90 = ARCHITECTURES[87], ARCHITECTURES[90]
    assert sm_90.resident_blocks(80, 30 * 1024) == 6  # by registers
    assert sm_87.resident_blocks(32, 31 * 1024) == 5  # by shared memory
    assert sm_87.resident_blocks(32, 1024) == 12  # by warps
    assert sm_87.resident_blocks(80, 160 * 1024) == 1


@NEEDS_COMPILERS
def test_shared_memory_stays_within_every_gpu_s_default() -> None:
    machine = kernels_for_sm_87()
    problem = make_problem(random_inputs(19, (1, 1)), 19, "fp16")
    planned = [machine.plan(problem.decode(problem.empty_mask(), variant)) for variant in (1, 2)]  # generic and SIMT
    assert all(plan is not None and 0 < plan.shared_bytes <= 48 * 1024 for plan in planned)


def test_faults_of_a_listing_are_counted() -> None:
    code = """
        /*0000*/                   LDG.E R0, desc[UR4][R2.64] ;
        /*0010*/                   IADD3 R1, R0, 0x1, RZ ;
        /*0020*/                   LDG.E R4, desc[UR4][R2.64+0x10] ;
        /*0030*/                   STL [R1], R4 ;
        /*0040*/                   BRX R4 -0x50                     (*"BRANCH_TARGETS .L_x_0,.L_x_1"*);
        /*0050*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0060*/                   LDG.E R5, desc[UR4][R2.64+0x10] ;
        /*0070*/                   LDG.E R6, desc[UR4][R2.64+0x20] ;
        /*0080*/                   LDG.E R7, desc[UR4][R2.64+0x30] ;
        /*0090*/                   STS.128 [R1], R4 ;
    """

    instructions = read_kernel("kernel", code)
    assert find_faults(instructions, {}) == {"indirect branch": 1, "local memory": 1}

    in_staging = [replace(each, lines=((str(SOURCE), 4),)) for each in instructions]
    assert find_faults(in_staging, {"staging": ["stage"]})["lone loads"] == 1


SOURCE = Path(__file__).with_name("phases_example.h")


def cost(**changes: object) -> Cost:
    time = Time(us=2, lower_us=1, upper_us=3, waves=1)
    values = {
        "warp_instructions": 100.0,
        "cycles": 50.0,
        "busy_cycles": 30.0,
        "path_cycles": 80.0,
        "pipes": {"issue": 30.0},
        "phases": {"staging": 100.0},
        "shared_wavefronts": 4.0,
        "fewest_shared_wavefronts": 3.0,
        "global_sectors": 8.0,
        "fewest_global_sectors": 8.0,
        "registers": 80,
        "stack_bytes": 0,
        "shared_bytes": 1024,
        "resident_warps": 24,
        "times": {"H200": time},
    }
    return Cost(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"warp_instructions": 104.0}, "warp instructions: expected at most 103, got 104"),
        ({"cycles": 60.0}, "cycles: expected at most 52, got 60"),
        ({"registers": 81}, "registers: expected at most 80, got 81"),
        ({"resident_warps": 20}, "resident warps: expected at least 24, got 20"),
    ],
)
def test_a_budget_that_is_exceeded_is_told(changes: dict[str, object], message: str | None) -> None:
    limits = {"case": budgets.limit_of(cost())}
    told = budgets.find_excess("case", cost(**changes), limits)
    assert told == ([] if message is None else [f"case: {message}"])
    assert "has no budget" in budgets.find_excess("other", cost(), limits)[0]


def test_a_fault_that_is_not_known_is_told() -> None:
    known = {"sm_90 kernel": {"lone loads": 2}}
    assert budgets.find_new_faults("sm_90 kernel", {"lone loads": 2}, known) == []
    assert len(budgets.find_new_faults("sm_90 kernel", {"lone loads": 3, "local memory": 1}, known)) == 2


def test_the_table_keeps_what_is_written(tmp_path: Path) -> None:
    table = budgets.read_budgets()
    budgets.write_budgets(table, tmp_path / "budgets.json")
    assert budgets.read_budgets(tmp_path / "budgets.json") == table
    assert (tmp_path / "budgets.json").read_text() == budgets.TABLE.read_text()


def test_the_page_shows_what_the_budgets_allow() -> None:
    rows = re.findall(r"^\| (sm_\S+) \| (\d+) \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    limits = budgets.read_budgets().limits
    assert {name for name, *_ in rows} == {name for name in limits if re.search(r"\.k(19|150)\.fp16\.", name)}
    for name, *numbers in rows:
        limit = limits[name]
        for number, most in zip(map(int, numbers), (limit.warp_instructions, limit.cycles), strict=True):
            assert abs(number * budgets.MARGIN - most) <= 1, name


def run_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [python(), "scripts/dev/kernel_budget.py", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, **environment}, check=False
    )


@pytest.mark.skipif((toolchain.PACKAGED / "bin/nvcc").exists(), reason="a package has nvcc, whatever the path says")
def test_without_a_compiler_it_says_so_and_passes() -> None:
    done = run_command(PATH="/nowhere")
    assert (done.returncode, done.stdout) == (0, "")
    assert "skipped: nvcc: not found; install the CUDA toolkit" in done.stderr
    assert run_command("--json", PATH="/nowhere").returncode == 2


@NEEDS_COMPILERS
def test_a_pattern_that_no_case_matches_is_an_error() -> None:
    done = run_command("--arch", "87", "--cubin", cubin_of_sm_87(), "--jobs", "1", "--only", "sm_87.k12.*")
    assert done.returncode == 1 and "--only: expected a pattern that a case matches" in done.stderr


@NEEDS_COMPILERS
def test_a_case_is_printed_as_one_object() -> None:
    only = ["--jobs", "1", "--only", "sm_87.k11.fp16.random.simt", "--json"]
    done = run_command("--arch", "87", "--cubin", cubin_of_sm_87(), *only)
    printed = json.loads(done.stdout)
    (case,) = printed["cases"]
    assert (case["arch"], case["classes"], case["type"], case["theta"], case["variant"]) == (
        "sm_87",
        11,
        "fp16",
        "random",
        "simt",
    )
    assert done.returncode == bool(printed["failures"])
    assert case["warp_instructions"] > 1000 and case["cycles"] > case["busy_cycles"] > 0
    assert sum(case["phases"].values()) == pytest.approx(case["warp_instructions"])
    time = case["times"]["AGX Orin"]
    assert time["lower_us"] <= time["us"] <= time["upper_us"]


def halves_of(words: np.ndarray, dtype: str) -> np.ndarray:
    """Widen packed halves: the lower one first."""
    bits = np.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(*words.shape[:-1], -1)
    if dtype == "fp16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def expected_products(memory: np.ndarray, dtype: str) -> list[np.ndarray]:
    """What ldmatrix and m16n8k16 give for 32 rows of 8 halves."""
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    a = [memory[8 * n + g, t] for n in range(4)]
    bits = np.stack([memory & 0xFFFF, memory >> 16], axis=-1).reshape(32, 8)
    b = [bits[8 * n + 2 * t, g] | bits[8 * n + 2 * t + 1, g] << 16 for n in range(2)]
    values = halves_of(memory, dtype)
    left = np.block([[values[0:8], values[16:24]], [values[8:16], values[24:32]]])  # 16 x 16
    product = left @ values[:16]
    start = [1.0, 2.0, 3.0, lane]
    c = [(product[g + n // 2 * 8, 2 * t + n % 2] + start[n]).astype(np.float32) for n in range(4)]
    return [*a, *b, *(row.view(np.uint32) for row in c)]


def expected_exchanges(x: np.ndarray) -> list[np.ndarray | int]:
    lane = np.arange(32)
    ballot = sum(1 << int(i) for i in lane if x[i] % 3 == 0)
    same = [sum(1 << int(j) for j in lane if x[j] % 4 == x[i] % 4) for i in lane]
    down = np.where(lane % 16 < 13, x[(lane + 3) % 32], x)
    return [
        x[lane ^ 5],
        np.where(lane >= 3, x[lane - 3], x),
        down,
        x[lane * 7 & 31],
        ballot,
        int((x == 77).any()) + 2 * int((x != 77).all()),
        int(x.max()),
        int(x.view(np.int32).min()) & 0xFFFFFFFF,
        np.array(same),
    ]


def expected_numbers() -> list[np.ndarray]:
    lane = np.arange(32)
    x = np.float32(-2) + np.float32(0.37) * lane.astype(np.float32)
    y = np.float32(1.5) - np.float32(0.21) * lane.astype(np.float32)
    n = (lane * 1237 + 5).astype(np.uint64)
    is_nan = lane == 9

    def bits(values: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(values), np.uint32(0x7FFFFFFF), values.astype(np.float32).view(np.uint32))

    def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
        tensor = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype)).view(torch.int16).numpy()
        return tensor.view(np.uint16).astype(np.uint32)

    x = np.where(is_nan, np.float32(np.nan), x)
    largest = np.where(is_nan, y, np.maximum(x, y))
    pairs = []
    for dtype, positive in (("bfloat16", False), ("float16", False), ("float16", True)):
        upper, lower = (np.where(values < 0, np.float32(0), values) if positive else values for values in (x, y))
        packed = np.where(is_nan, np.uint32(0x7FFF), rounded(upper, dtype)) << 16 | rounded(lower, dtype)
        pairs.append(packed)
    ones = np.array([int(i).bit_count() for i in n])
    first = np.array([(int(i) & -int(i)).bit_length() for i in n])
    zeros = np.array([32 - int(i).bit_length() for i in n])
    product = (n * 0x01234567 & 0xFFFFFFFF) | np.uint64(0x89ABCDEF) << np.uint64(32)
    picked = sum(
        (product >> np.uint64(8 * byte) & np.uint64(255)) << np.uint64(8 * i) for i, byte in enumerate((0, 2, 5, 7))
    )
    wide = np.array([(int(i) * 0x123456789 >> 20) & 0xFFFFFFFF for i in n])
    return [
        bits(np.where(is_nan, np.float32(np.nan), largest)),
        bits(largest),
        *pairs,
        bits(y.astype(np.float16).astype(np.float32)),
        bits(n.astype(np.float32)),
        np.trunc(y).astype(np.int32).view(np.uint32),
        n // 7 + 1000 * (n % 7),
        ones + 100 * first + 10000 * zeros,
        picked,
        bits(y / np.float32(3)),
        wide,
    ]


@NEEDS_COMPILERS
@pytest.mark.parametrize("architecture", [87, 90])
def test_instructions_beside_plain_arithmetic_do_what_ptx_says(architecture: int, tmp_path: Path) -> None:
    """Copies, matrices, products, exchanges in a warp, votes of a block and conversions, against NumPy."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc; install the CUDA toolkit")
    cubin = tmp_path / "operations.cubin"
    toolchain.compile_cubin(OPERATIONS, architecture, cubin)
    machine = Multiprocessor.open(architecture, cubin)
    rng = np.random.default_rng(0)
    given, out = allocate((128,), np.uint32), allocate((64, 32), np.uint32)
    for half in (0, 16):  # small halves of both types
        given |= (rng.integers(0x3C00, 0x4200, 128) | rng.integers(0, 2, 128) << 15).astype(np.uint32) << half
    allow((given, False), (out, True))
    parameters = given.ctypes.data.to_bytes(8, "little") + out.ctypes.data.to_bytes(8, "little")
    machine.launch("operations", 1, 64, 1024, parameters)
    weights = np.array([1, 3, 5, 7], np.uint64)
    memory = given.reshape(32, 4)
    kept = memory * (np.arange(4) < (np.arange(32) % 5)[:, None])
    want: list[np.ndarray | int] = [1 + 4 * 13, 3 * 64]
    want += [memory @ weights, np.full(32, POISON), kept @ weights]
    want += expected_products(memory, "fp16") + expected_products(memory, "bf16")
    want += [*expected_exchanges(given[:32]), *expected_numbers()]
    for number, row in enumerate(want):
        expected = np.broadcast_to(np.asarray(row, np.uint64) & np.uint64(0xFFFFFFFF), 32).astype(np.uint32)
        assert np.array_equal(out[number], expected), f"row {number}: {out[number]} {expected}"
    assert not out[len(want) :].any()
