"""The benchmark of the kernels, compiled for a CPU over a CUDA whose clock is known, and by nvcc for all architectures.

Its launches run the emulated kernels; those that it times only move the clock (bench_on_cpu/). So what it computes and
what it finds wrong is tested here; what its figures are on a GPU is not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.decode import on_cpu
from tests.decode.on_cpu import KERNELS

HERE = Path(__file__).with_name("bench_on_cpu")
FEW = (75, 90)
KNOWN = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
SIZE = "32x64x30"
COPY_BYTES_PER_US = 1e6
MULTIPROCESSORS, CLOCK_MHZ = 100, 1000  # of the GPU in bench_on_cpu
EMPTY_US = 1.0
SIMT, TENSOR_CORE = "2", "3"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bench") / "bench"
    sources = ["-x", "c++", str(KERNELS / "bench" / "bench.cu"), str(HERE / "launchers.cpp"), "-x", "none"]
    on_cpu.compile_cpp(["-std=c++17", "-O1", f"-I{HERE}", f"-I{KERNELS}", *sources, *on_cpu.kernel_objects()], target)
    return target


def run(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, env={**os.environ, **environment})


def measure(program: Path, folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    target = folder / "bench.json"
    result = run(program, "--quick", "--json", str(target), *arguments, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(folder.iterdir()) == [target]
    found: dict[str, Any] = json.loads(target.read_text())
    return found


@pytest.fixture(scope="module")
def bench(program: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    groups = "cases,layouts,fp32,logits,classes"
    return measure(program, tmp_path_factory.mktemp("json"), "--case", SIZE, "--groups", groups)


def time_us(row: dict[str, Any]) -> float:
    """What bench_on_cpu lets a launch take."""
    height, width = map(int, row["size"].split("x"))
    return float(3 + 0.01 * row["batch"] * height * width / 1024 + 0.25 * row["classes"])


def moved_bytes(row: dict[str, Any]) -> float:
    height, width = map(int, row["size"].split("x"))
    k, pixels = row["classes"], row["batch"] * height * width
    parameters = 18 * 16 + 16 + 16 * 16 + 16 + 16 * k + k
    element = 4 if row["type"] == "fp32" else 2
    output = pixels // 16 * k * element if row["op"] == "logits" else pixels * mask_bytes(row)
    return float(pixels // 1024 * parameters * element + pixels // 16 * 16 * element + output)


def mask_bytes(row: dict[str, Any]) -> int:
    return {"uint8": 1, "half": 2, "int32": 4}[row["mask_type"]]


def test_everything_is_right_and_timed_on_inputs_that_no_cache_holds(bench: dict[str, Any]) -> None:
    assert bench["failures"] == 0
    assert bench["checked"] == len(bench["rows"]) > 50
    assert all(row["passed"] and row["fault"] == "" for row in bench["rows"])
    for row in bench["rows"]:
        for name in ("p50_us", "p90_us", "warm_p50_us", "warm_p90_us"):
            assert row[name] == pytest.approx(time_us(row)), row
        output = row["batch"] * 32 * 64 * (row["classes"] / 16 * 2 if row["op"] == "logits" else mask_bytes(row))
        assert row["sets"] * (moved_bytes(row) - output) > 4 * 65536 or row["type"] == "fp32", "cached inputs"
        assert row["launches"] >= 50
        assert row["launches"] % row["sets"] == 0


def test_every_kind_of_launch_is_there(bench: dict[str, Any]) -> None:
    def found(group: str, name: str) -> set[Any]:
        return {row[name] for row in bench["rows"] if row["group"] == group}

    variants = {"generic", "simt", "tensor_core"}
    assert found("cases", "variant") == variants
    assert found("cases", "batch") == {1, 8}
    assert found("cases", "type") == {"fp16", "bf16"}
    assert found("cases", "values") == {"random", "natural"}
    assert found("cases", "prune") == {True, False}
    assert found("layouts", "theta_layout") == found("layouts", "guidance_layout") == {"nchw", "nhwc"}
    assert found("layouts", "mask_type") == {"uint8", "int32", "half"}
    assert found("fp32", "variant") == {"generic", "simt"}
    assert found("logits", "variant") == {"generic", "simt", "tensor_core"}
    assert found("classes", "classes") == {2, 19, 60, 150, 256}


def test_floors_and_targets(bench: dict[str, Any]) -> None:
    """T_byte, T_instr and the limit, as the issue that asked for the kernels gives them."""
    assert bench["copy_bytes_per_s"] == pytest.approx(1e12)
    for row in bench["rows"]:
        byte_us = moved_bytes(row) / COPY_BYTES_PER_US
        assert row["byte_floor_us"] == pytest.approx(byte_us), row
        assert row["empty_us"] == pytest.approx(EMPTY_US)
        height, width = map(int, row["size"].split("x"))
        cells, k = row["batch"] * height * width / 16, row["classes"]
        instructions = cells * (1.27 * (544 + 16 * k) + 96 * k) / (128 * MULTIPROCESSORS * CLOCK_MHZ)
        if row["op"] == "mask":
            assert row["instruction_floor_us"] == pytest.approx(instructions)
            assert row["target_us"] == pytest.approx(1.6 * max(byte_us, instructions) + EMPTY_US)
            assert row["ratio"] == pytest.approx(row["p50_us"] / row["target_us"])
        assert row["byte_ratio"] == pytest.approx(row["p50_us"] / (2 * byte_us + EMPTY_US))


def test_cost_model(bench: dict[str, Any]) -> None:
    models = {model["variant"]: model for model in bench["models"]}
    assert set(models) == {"simt", "tensor_core"}
    assert models["simt"]["points"] == 5
    for model in models.values():
        assert model["variable"] == "classes"
        assert model["slope_us"] == pytest.approx(0.25)
        assert model["constant_us"] == pytest.approx(3.02)
        assert model["largest_residual"] < 1e-6


def test_a_slow_device_ends_inside_the_limit(program: Path, tmp_path: Path) -> None:
    """Launches of 20 ms, as of 150 classes in batches of 8 on an Orin; the clock is that of bench_on_cpu."""
    groups = ("--case", SIZE, "--groups", "cases,logits,classes")
    whole = measure(program, tmp_path, *groups, FAKE_LAUNCH_US="20000")
    assert whole["left_out"] == 0
    assert whole["settings"] > 5
    assert all(row["p50_us"] == pytest.approx(20000) for row in whole["rows"])
    timings = 2 * len(whole["rows"])
    rounds = 1 + max(row["sets"] for row in whole["rows"])
    assert 30 < whole["seconds"] < timings * rounds * 10 * 0.02
    limit = int(whole["seconds"] / 2)
    part = measure(program, tmp_path, *groups, "--limit", str(limit), FAKE_LAUNCH_US="20000")
    longest = whole["seconds"] / 3
    assert limit <= part["seconds"] < limit + longest
    assert 0 < part["left_out"] < part["settings"] == whole["settings"]
    assert part["rows"] == whole["rows"][: len(part["rows"])]
    assert part["failures"] == 0


def test_what_was_measured_before_an_end_is_in_the_file(program: Path, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    arguments = ["--quick", "--json", str(target), "--case", "256x512x150"]
    with subprocess.Popen([str(program), *arguments], stdout=subprocess.DEVNULL) as process:
        while not target.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    found = json.loads(target.read_text())
    assert found["rows"]
    assert found["left_out"] > 0


def test_natural_theta_has_few_mixed_cells(program: Path, tmp_path: Path) -> None:
    rows = measure(program, tmp_path, "--case", "256x512x19", "--groups", "fp32")["rows"]
    shares = {row["values"]: row["mixed_share"] for row in rows}
    assert 0.05 < shares["natural"] < 0.2
    assert shares["random"] > 0.9


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("value", "1 pixels are not the host reference's"),
        ("unwritten", "two runs differ, or elements are not written"),
        ("outside", "writes outside of the output"),
        ("unsteady", "two runs differ, or elements are not written"),
    ],
)
@pytest.mark.parametrize("variant", [SIMT, TENSOR_CORE])
def test_a_wrong_kernel_is_found_and_not_timed(
    program: Path, tmp_path: Path, fault: str, message: str, variant: str
) -> None:
    target = tmp_path / "bench.json"
    arguments = ["--quick", "--case", "32x32x5", "--groups", "fp32,cases", "--json", str(target)]
    result = run(program, *arguments, FAKE_FAULT=fault, FAKE_VARIANT=variant)
    assert result.returncode == 1
    assert message in result.stdout
    name = {SIMT: "simt", TENSOR_CORE: "tensor_core"}[variant]
    for row in json.loads(target.read_text())["rows"]:
        assert row["passed"] == (row["variant"] != name) == ("p50_us" in row), row


def test_wrong_logits_and_lines_that_the_host_does_not_draw_are_found(program: Path, tmp_path: Path) -> None:
    """Of eight rows of patches the third is compared between kernels; only tensor cores may differ there."""
    arguments = ["--quick", "--case", "256x32x5"]
    generic = run(program, *arguments, "--groups", "fp32", FAKE_FAULT="line 80", FAKE_VARIANT="1")
    assert generic.returncode == 1
    assert "the mask is not that of the other kernels" in generic.stdout
    logits = run(program, "--quick", "--case", "32x32x5", "--groups", "logits", FAKE_FAULT="value", FAKE_VARIANT=SIMT)
    assert logits.returncode == 1
    assert logits.stdout.count("the logits are not the host reference's") == 1
    target = tmp_path / "bench.json"
    cores = [*arguments, "--groups", "cases", "--json", str(target)]
    assert run(program, *cores, FAKE_FAULT="line 80", FAKE_VARIANT=TENSOR_CORE).returncode == 0
    for row in json.loads(target.read_text())["rows"]:
        share = 1 / (row["batch"] * 256 * 32) if row["variant"] == "tensor_core" else 0
        assert row["different_from_simt"] == pytest.approx(share)


def test_theta_of_a_file(program: Path, tmp_path: Path) -> None:
    """Each patch's b2 says which class fills it, so the mask is known; half of the image's cells are not mixed."""
    k, h, w = 5, 1, 2
    theta = np.zeros((899 - 17 * (19 - k), h, w), np.float16)
    theta[-k + 3, 0, 0] = theta[-k + 1, 0, 1] = 4
    (tmp_path / "theta").write_bytes(theta.tobytes())
    (tmp_path / "guidance").write_bytes(np.zeros((16, 8 * h, 8 * w), np.float16).tobytes())
    (tmp_path / "tables").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    (tmp_path / "out").mkdir()
    files = [f for name in ("theta", "guidance", "tables") for f in (f"--{name}", str(tmp_path / name))]
    bench = measure(program, tmp_path / "out", "--case", f"{32 * h}x{32 * w}x{k}", *files)
    assert {(row["group"], row["values"]) for row in bench["rows"]} == {("file", "file")}
    assert bench["rows"][0]["mixed_share"] == pytest.approx(1 / 15)  # one column of cells between the patches
    result = run(program, "--case", f"32x32x{k}", *files)
    assert result.returncode == 2
    assert "got more" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "'--fast': no such option"),
        (["--case"], "--case: expected a value after it"),
        (["--case", "100x64x19"], "--case: got '100x64x19', expected HEIGHTxWIDTHxCLASSES"),
        (["--case", "64x64"], "expected HEIGHTxWIDTHxCLASSES"),
        (["--case", "64x64x257"], "2 to 256 classes"),
        (["--case", "64x64x1e2"], "2 to 256 classes"),
        (["--limit", "0"], "--limit: got '0', expected whole seconds"),
        (["--groups", "cases,all"], "--groups: got 'all'"),
        (["--guidance", "x"], "expected together with --theta"),
        (["--theta", "x"], "--theta: expected one --case"),
        (["--theta", "/nowhere", "--case", "32x32x5"], "/nowhere: cannot be opened"),
        (["--json", "/nowhere/b.json"], "--json: cannot write /nowhere/b.json"),
    ],
)
def test_bad_arguments(program: Path, arguments: list[str], message: str) -> None:
    result = run(program, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"nrd_decode_bench: [^\n]+\n", result.stderr)
    assert message in result.stderr


def test_help(program: Path) -> None:
    result = run(program, "--help", FAKE_NO_DEVICE="1")
    assert result.returncode == 0
    for name in ("--quick", "--json", "--limit", "--case", "--groups", "--theta", "--guidance", "--tables"):
        assert name in result.stdout


def test_no_gpu_and_another_gpu(program: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "bench.json")
    absent = run(program, "--json", target, FAKE_NO_DEVICE="1")
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr == "nrd_decode_bench: no CUDA device: no CUDA-capable device is detected\n"
    other = run(program, "--json", target, FAKE_OTHER_DEVICE="1")
    assert (other.returncode, other.stdout) == (2, "")
    assert "no code for compute capability 9.0" in other.stderr
    assert "-DCMAKE_CUDA_ARCHITECTURES=90" in other.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("wanted", [FEW, pytest.param(KNOWN, marks=pytest.mark.all_combinations)], ids=["some", "all"])
def test_compiles_without_warnings(wanted: tuple[int, ...], tmp_path: Path) -> None:
    listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    numbers = [number for number in wanted if f"sm_{number}" in listed]
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    strict = ["-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    command = ["nvcc", "-std=c++17", "-O3", "-fmad=false", *strict, *codes, f"-I{KERNELS}", "--threads", "2"]
    source = str(KERNELS / "bench" / "bench.cu")
    result = subprocess.run([*command, "-c", source, "-o", str(tmp_path / "bench.o")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout + result.stderr == ""
